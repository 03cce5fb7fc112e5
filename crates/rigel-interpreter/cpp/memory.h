// Device memory and the shared memory of resident blocks: two reserved regions of the address space, each with a shadow
// at a fixed distance, so that the hook of an access finds it with one subtraction.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>

#include "races.h"
#include "site.h"

namespace interpreter {

struct Region {
    uint8_t* base = nullptr;
    size_t bytes = 0;
    uint8_t* written = nullptr;  // a byte a byte: 1 when it has been written since it was allocated
    Cells cells;  // the last accesses

    void reserve(size_t size);
    bool holds(const void* p) const { return offset(p) < bytes; }
    size_t offset(const void* p) const { return static_cast<size_t>(static_cast<const uint8_t*>(p) - base); }
    bool all_written(size_t at, size_t n) const {
        constexpr uint64_t kAll = 0x0101010101010101;
        for (; n >= 8; at += 8, n -= 8) {
            uint64_t eight;
            std::memcpy(&eight, written + at, 8);
            if (eight != kAll) return false;
        }
        for (; n > 0; at++, n--)
            if (!written[at]) return false;
        return true;
    }
};

constexpr size_t kDeviceBytes = 16ull << 30;  // address space; the played device may have less memory
extern Region device_memory;

// Allocations in device memory. Addresses are 256-byte aligned; at least 256 bytes that belong to no one follow each,
// and freed addresses are not reused before the whole region has been, so that stray accesses meet unowned bytes.
class Allocations {
  public:
    void* allocate(size_t bytes);  // nullptr: the region is full
    bool free(void* base);  // false: not the start of an allocation
    bool inside(size_t offset, size_t bytes);
    size_t size_of(const void* base) const;
    std::string nearest(size_t offset) const;  // for reports

  private:
    std::map<size_t, size_t> by_start_;  // offset → bytes
    size_t next_ = 256;
    size_t last_start_ = 0, last_end_ = 0;  // the allocation found last
};
extern Allocations allocations;

// Shared memory: each resident block has an arena; its dynamic shared memory begins kArenaMargin bytes into it.
constexpr size_t kArenaBytes = 256 << 10, kArenaMargin = 8 << 10;
constexpr size_t kArenas = 4096;
extern Region shared_memory;

void prepare_memory();  // reserves both regions; once

}  // namespace interpreter
