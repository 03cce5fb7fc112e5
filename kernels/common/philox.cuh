// The counter-based generator behind every draw: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011), and the exponential variates made of it. The same numbers as src/sampling/noise.rs.
#pragma once
#include "common/elementary.cuh"
#include "ptx/ptx.cuh"

// 128 random bits for a 128-bit counter and a 64-bit key.
DEVICE uint4 philox4x32(uint4 counter, uint32_t key_low, uint32_t key_high) {
#pragma unroll
    for (uint32_t round = 0; round < 10; round++) {
        const uint64_t first = static_cast<uint64_t>(0xd2511f53u) * counter.x;
        const uint64_t second = static_cast<uint64_t>(0xcd9e8d57u) * counter.z;
        counter.x = static_cast<uint32_t>(second >> 32) ^ counter.y ^ key_low;
        counter.y = static_cast<uint32_t>(second);
        counter.z = static_cast<uint32_t>(first >> 32) ^ counter.w ^ key_high;
        counter.w = static_cast<uint32_t>(first);
        key_low += 0x9e3779b9u;
        key_high += 0xbb67ae85u;
    }
    return counter;
}

// The bits behind the variates of tokens 4 group .. 4 group + 3 at `position`.
DEVICE uint4 noise_of_group(uint32_t group, uint32_t position, uint32_t seed_low, uint32_t seed_high) {
    uint4 counter;
    counter.x = group;
    counter.y = position;
    counter.z = counter.w = 0;
    return philox4x32(counter, seed_low, seed_high);
}

// ln(e) for the exponential variate e = -ln(u), u = (bits >> 8 + 1/2) / 2^24, as f32 rounds it, but below 1.
DEVICE float log_exponential(uint32_t bits) {
    const float uniform = (static_cast<float>(bits >> 8) + 0.5f) * 0x1p-24f;
    // -ln u lies between 2^-24 and 17.4: a positive normal number.
    return natural_log(-natural_log(min(uniform, 0x1.fffffep-1f)));
}

// No variate's logarithm is below minus this: ln(2^-24) = -16.64.
static constexpr float kMaxAdvantage = 16.7f;
