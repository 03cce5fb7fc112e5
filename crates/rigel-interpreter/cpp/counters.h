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
    uint64_t count() const;

  private:
    static constexpr size_t kPageBytes = 1 << 16;

    uint64_t* page(size_t number) {
        Found& found = found_[number % kFound];
        if (found.number != number) found = {number, find(number)};
        return found.page;
    }
    uint64_t* find(size_t number);
    struct Found {
        size_t number = SIZE_MAX;
        uint64_t* page = nullptr;
    };
    static constexpr size_t kFound = 16;  // pages found last
    Found found_[kFound];
    std::unordered_map<size_t, std::unique_ptr<uint64_t[]>> pages_;
};

inline void TouchedBytes::add(size_t offset, size_t bytes) {
    while (bytes > 0) {
        const size_t bit = offset % 64, here = bytes < 64 - bit ? bytes : 64 - bit;
        const uint64_t bits = (here == 64 ? ~0ull : (1ull << here) - 1) << bit;
        page(offset / kPageBytes)[offset % kPageBytes / 64] |= bits;
        offset += here;
        bytes -= here;
    }
}

// What a launch did besides.
struct LaunchCounts {
    uint64_t requested_read = 0, requested_written = 0;  // bytes of global memory, the sum over all accesses
    uint64_t matrix_instructions = 0, barriers = 0;
    uint64_t matrix_load_rows = 0, matrix_load_conflicts = 0;  // ldmatrix: rows, rows that share banks with another
    uint64_t matrix_store_rows = 0, matrix_store_conflicts = 0;  // stmatrix
    uint64_t warpgroup_instructions = 0;                         // wgmma
};
struct LaunchCounters : LaunchCounts {
    TouchedBytes read, written;  // distinct bytes of global memory
};

}  // namespace interpreter
