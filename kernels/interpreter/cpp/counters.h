// What a launch did, counted.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace interpreter {

// The set of device-memory bytes that a launch has touched: one bit a byte, in pages made when first touched.
class TouchedBytes {
   public:
    void add(size_t offset, size_t bytes);
    uint64_t count() const { return count_; }

   private:
    static constexpr size_t kPageBytes = 1 << 16;

    uint64_t* page(size_t number);
    std::unordered_map<size_t, std::unique_ptr<uint64_t[]>> pages_;
    size_t last_number_ = SIZE_MAX;
    uint64_t* last_page_ = nullptr;
    uint64_t count_ = 0;
};

struct LaunchCounters {
    TouchedBytes read, written;                          // distinct bytes of global memory
    uint64_t requested_read = 0, requested_written = 0;  // the sum over all accesses
    uint64_t matrix_instructions = 0, barriers = 0;
    uint64_t matrix_load_rows = 0, matrix_load_conflicts = 0;  // ldmatrix: rows, rows that share banks with another
};

}  // namespace interpreter
