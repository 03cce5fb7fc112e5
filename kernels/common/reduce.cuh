// Sums over a warp and over a block, in an order that depends on the number of threads alone.
#pragma once
#include "ptx/ptx.cuh"

// The sum over the warp, the same bits in every lane.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (uint32_t distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}

// The sum over the block's first `threads` threads, a multiple of 32, the same bits in every thread. The others call it
// too. `scratch` holds one float for each of their warps; it may be used again after a barrier. blockDim.y and z are 1.
DEVICE float sum_of_threads(float value, float* scratch, uint32_t threads) {
    const uint32_t warps = threads / 32;
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0 && threadIdx.x < threads) scratch[threadIdx.x / 32] = value;
    block_sync();
    float sum = 0.0f;
    for (uint32_t warp = 0; warp < warps; warp++) sum += scratch[warp];
    return sum;
}
