// A row of logits, four at a time.
#pragma once
#include "common/float_key.cuh"
#include "common/select.cuh"

static constexpr uint32_t kGroup = 4;  // logits of a 16-byte load

// Calls f(first id, logits) for the groups `first` .. `end` of four logits, dealt to the block's threads in turn;
// logits at and past the end of the vocabulary are -inf. Two loads of a thread are under way while it works on a third.
template <class F>
DEVICE void each_group(const float* logits, uint32_t vocabulary, uint32_t first, uint32_t end, F f) {
    uint32_t group = first + threadIdx.x;
    const auto load = [&](uint32_t at) {
        uint4 none;
        none.x = none.y = none.z = none.w = 0;
        return at < end ? load_global_16(logits + static_cast<size_t>(at) * kGroup) : none;
    };
    uint4 next = load(group), after = load(group + kBlock);
#pragma unroll 1
    for (; group < end; group += kBlock) {
        const uint32_t packed[kGroup] = {next.x, next.y, next.z, next.w};
        next = after;
        after = load(group + 2 * kBlock);
        float values[kGroup];
#pragma unroll
        for (uint32_t i = 0; i < kGroup; i++) {
            values[i] = __uint_as_float(group * kGroup + i < vocabulary ? packed[i] : 0xff800000u);
        }
        f(group * kGroup, values);
    }
}

DEVICE uint32_t groups_of(uint32_t vocabulary) { return (vocabulary + kGroup - 1) / kGroup; }
