// Eight 16-bit elements: what one 16-byte access carries.
#pragma once
#include "common/dtypes.cuh"

static constexpr uint32_t kVector = 8;

// The elements in f32, exact.
template <class T>
DEVICE void unpack(const uint4& packed, float (&values)[kVector]) {
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        values[2 * i] = low_f32<T>(pairs[i]);
        values[2 * i + 1] = high_f32<T>(pairs[i]);
    }
}

// Eight f32 rounded to T.
template <class T>
DEVICE uint4 pack(const float (&values)[kVector]) {
    uint4 packed;
    packed.x = pack<T>(values[0], values[1]);
    packed.y = pack<T>(values[2], values[3]);
    packed.z = pack<T>(values[4], values[5]);
    packed.w = pack<T>(values[6], values[7]);
    return packed;
}

DEVICE uint4 zero_vector() {
    uint4 zero;
    zero.x = zero.y = zero.z = zero.w = 0;
    return zero;
}
