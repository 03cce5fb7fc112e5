#include "counters.h"

#include <algorithm>

namespace interpreter {

uint64_t* TouchedBytes::page(size_t number) {
    if (number != last_number_) {
        auto& made = pages_[number];
        if (!made) made.reset(new uint64_t[kPageBytes / 64]());
        last_number_ = number;
        last_page_ = made.get();
    }
    return last_page_;
}

void TouchedBytes::add(size_t offset, size_t bytes) {
    while (bytes > 0) {
        const size_t bit = offset % 64, here = std::min<size_t>(bytes, 64 - bit);
        uint64_t& word = page(offset / kPageBytes)[offset % kPageBytes / 64];
        const uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << bit;
        count_ += static_cast<uint64_t>(__builtin_popcountll(mask & ~word));
        word |= mask;
        offset += here;
        bytes -= here;
    }
}

}  // namespace interpreter
