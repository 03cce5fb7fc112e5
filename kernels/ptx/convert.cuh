// Conversions between f32 and packed 16-bit pairs, rounding to nearest, ties to even.
// PTX ISA: Data Movement and Conversion, cvt. In a packed pair the first element is the low half.
#pragma once
#include "language.cuh"

// Two f32 to packed bf16: cvt.rn.bf16x2.f32 (its first operand is the high half).
DEVICE uint32_t pack_bf16x2(float low, float high) {
#if ON_GPU
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return interpreter::round_to_bf16(low) | static_cast<uint32_t>(interpreter::round_to_bf16(high)) << 16;
#endif
}
// Two f32 to packed f16: cvt.rn.f16x2.f32. Beyond 65504 the result is infinite.
DEVICE uint32_t pack_f16x2(float low, float high) {
#if ON_GPU
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return interpreter::round_to_f16(low) | static_cast<uint32_t>(interpreter::round_to_f16(high)) << 16;
#endif
}
// One f32 to bf16: cvt.rn.bf16.f32.
DEVICE uint16_t round_bf16(float value) {
#if ON_GPU
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    return interpreter::round_to_bf16(value);
#endif
}
// One f32 to f16: cvt.rn.f16.f32.
DEVICE uint16_t round_f16(float value) {
#if ON_GPU
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    return interpreter::round_to_f16(value);
#endif
}
// bf16 to f32, exact: the bits are the high half.
DEVICE float widen_bf16(uint16_t bits) {
#if ON_GPU
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#else
    return interpreter::widen_bf16(bits);
#endif
}
// f16 to f32, exact: cvt.f32.f16.
DEVICE float widen_f16(uint16_t bits) {
#if ON_GPU
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return interpreter::widen_f16(bits);
#endif
}
