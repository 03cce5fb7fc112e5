// Logarithm and exponential in f32, by explicit fused multiply-adds alone: what the special-function unit offers is not
// accurate enough near 1 for a logarithm, and these give the same bits on every device and on the interpreter.
#pragma once
#include "ptx/ptx.cuh"

// ln(x) for positive normal x. Relative error at most 1.4 x 2^-24 over all of them, near 1 too, since there the result
// is (x - 1) plus a small correction.
//
// x = 2^n m with m in [sqrt(1/2), sqrt(2)); f = m - 1 is exact; ln(1 + f) = f + f^2 (-1/2 + f P(f)), P the minimax
// polynomial of degree 7, whose own error is 2^-27 relative to the result.
DEVICE float natural_log(float x) {
    const uint32_t bits = __float_as_uint(x);
    // The exponent field after a subtraction that carries where the fraction passes sqrt(1/2).
    const int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    const float f = __uint_as_float(bits - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
    const float n = static_cast<float>(exponent);
    float p = -0x1.38b586p-4f;
    p = __fmaf_rn(p, f, 0x1.055b64p-3f);
    p = __fmaf_rn(p, f, -0x1.0d8542p-3f);
    p = __fmaf_rn(p, f, 0x1.22da1cp-3f);
    p = __fmaf_rn(p, f, -0x1.547246p-3f);
    p = __fmaf_rn(p, f, 0x1.99a008p-3f);
    p = __fmaf_rn(p, f, -0x1.000226p-2f);
    p = __fmaf_rn(p, f, 0x1.555554p-2f);
    p = __fmaf_rn(p, f, -0.5f);
    p = __fmaf_rn(p, f * f, f);
    // ln(2) in two parts.
    return __fmaf_rn(n, 0x1.62e43p-1f, __fmaf_rn(n, -0x1.05c61p-29f, p));
}

// Masses are probabilities up to a common factor, as whole numbers of 2^-44 of the best token's: their sums are exact,
// so they do not depend on the order of the additions. 2^18 of them stay below 2^62.
static constexpr uint32_t kMassBits = 44;

// exp(x) 2^44 for x <= 0 (-inf too), rounded down. Relative error at most 1.5 x 2^-24 before that.
//
// x = n ln(2) + f with |f| <= ln(2) / 2; exp(f) = 1 + (f + f^2 P(f)), P the minimax polynomial of degree 4, lies in
// [0.7, 1.42], 24 bits of which are kept.
DEVICE uint64_t mass_of(float x) {
    if (!(x > -31.2f)) return 0;  // below 2^-45
    constexpr float kRound = 12582912.0f;  // 1.5 x 2^23: adding it leaves no bit for a fraction
    const float n = __fmaf_rn(x, 0x1.715476p+0f, kRound) - kRound;
    const float f = __fmaf_rn(n, 0x1.05c61p-29f, __fmaf_rn(n, -0x1.62e43p-1f, x));
    float p = 0x1.6a23dp-10f;
    p = __fmaf_rn(p, f, 0x1.123a2p-7f);
    p = __fmaf_rn(p, f, 0x1.5558f2p-5f);
    p = __fmaf_rn(p, f, 0x1.555492p-3f);
    p = __fmaf_rn(p, f, 0x1.fffffcp-2f);
    p = __fmaf_rn(p, f * f, f) + 1.0f;
    const uint32_t fraction = static_cast<uint32_t>(p * 0x1p24f);
    const int32_t shift = static_cast<int32_t>(kMassBits) - 24 + static_cast<int32_t>(n);
    return shift >= 0 ? static_cast<uint64_t>(fraction) << shift : fraction >> -shift;
}
