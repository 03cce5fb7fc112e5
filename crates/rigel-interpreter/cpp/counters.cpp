#include "counters.h"

namespace interpreter {

uint64_t* TouchedBytes::find(size_t number) {
    auto& made = pages_[number];
    if (!made) made.reset(new uint64_t[kPageBytes / 64]());
    return made.get();
}

uint64_t TouchedBytes::count() const {
    uint64_t count = 0;
    for (const auto& [number, page] : pages_)
        for (size_t word = 0; word < kPageBytes / 64; word++)
            count += static_cast<uint64_t>(__builtin_popcountll(page[word]));
    return count;
}

}  // namespace interpreter
