#include "address_space.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace interpreter {

namespace {
constexpr uintptr_t kPageBytes = 4096;

// The whole pages among these bytes; equal ends where there is none.
struct Pages {
    uintptr_t low, high;
    Pages(const void* from, size_t bytes) {
        const auto first = reinterpret_cast<uintptr_t>(from);
        low = (first + kPageBytes - 1) / kPageBytes * kPageBytes;
        high = (first + bytes) / kPageBytes * kPageBytes;
        if (high < low) high = low;
    }
};
}  // namespace

void* reserve_addresses(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        std::perror("rigel interpreter: cannot reserve address space (is `ulimit -v` set?)");
        std::abort();
    }
    return at;
}

void discard(void* from, size_t bytes) {
    const Pages pages(from, bytes);
    if (pages.low < pages.high) madvise(reinterpret_cast<void*>(pages.low), pages.high - pages.low, MADV_DONTNEED);
}

void clear(void* from, size_t bytes) {
    const Pages pages(from, bytes);
    if (pages.low == pages.high) {
        std::memset(from, 0, bytes);
        return;
    }
    const auto first = reinterpret_cast<uintptr_t>(from);
    std::memset(from, 0, pages.low - first);
    discard(from, bytes);
    std::memset(reinterpret_cast<void*>(pages.high), 0, first + bytes - pages.high);
}

}  // namespace interpreter
