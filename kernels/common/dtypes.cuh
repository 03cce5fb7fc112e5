// The 16-bit element types of activations and weights, as types with one set of names, so that a kernel template takes
// either. They hold bits; arithmetic is done in f32.
#pragma once
#include "ptx/ptx.cuh"

struct bf16 {
    uint16_t bits;
    DEVICE bf16 round(float value) { return bf16{round_bf16(value)}; }
    DEVICE uint32_t pack(float low, float high) { return pack_bf16x2(low, high); }
};
struct f16 {
    uint16_t bits;
    DEVICE f16 round(float value) { return f16{round_f16(value)}; }
    DEVICE uint32_t pack(float low, float high) { return pack_f16x2(low, high); }
};

// One element to f32, exact.
DEVICE float to_f32(bf16 value) { return widen_bf16(value.bits); }
DEVICE float to_f32(f16 value) { return widen_f16(value.bits); }

// The low and the high element of a packed pair to f32, exact.
template <class T>
DEVICE float low_f32(uint32_t pair) {
    return to_f32(T{static_cast<uint16_t>(pair & 0xffffu)});
}
template <class T>
DEVICE float high_f32(uint32_t pair) {
    return to_f32(T{static_cast<uint16_t>(pair >> 16)});
}

// f32 to T, to nearest even.
template <class T>
DEVICE T from_f32(float value) {
    return T::round(value);
}
// Two f32 to a packed pair of T, `low` in the low half.
template <class T>
DEVICE uint32_t pack(float low, float high) {
    return T::pack(low, high);
}
