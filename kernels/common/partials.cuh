// What the splits of an attention hand to their merge.
#pragma once
#include "common/vector.cuh"

// One workspace of f32: weighted values [rows, heads, splits, head_dim], then states [rows, heads, splits] of
// (max, sum); `count` is rows x heads x splits.
struct Partials {
    float* values;
    float* states;
    DEVICE Partials in(float* workspace, size_t count, uint32_t head_dim) {
        return Partials{workspace, workspace + count * head_dim};
    }
};

// Two or four neighbouring f32.
DEVICE void load_columns(const float* source, float (&values)[2]) {
    const uint2 bits = load_global_8(source);
    values[0] = __uint_as_float(bits.x), values[1] = __uint_as_float(bits.y);
}
DEVICE void load_columns(const float* source, float (&values)[4]) {
    const uint4 bits = load_global_16(source);
    values[0] = __uint_as_float(bits.x), values[1] = __uint_as_float(bits.y);
    values[2] = __uint_as_float(bits.z), values[3] = __uint_as_float(bits.w);
}

// Four neighbouring elements of T.
template <class T>
DEVICE uint2 pack_four(const float (&values)[4]) {
    uint2 packed;
    packed.x = pack<T>(values[0], values[1]);
    packed.y = pack<T>(values[2], values[3]);
    return packed;
}
