// Conversions between f32 and 16-bit formats, and approximate functions.
#include <cmath>
#include <cstring>

#include "twins.h"

namespace interpreter {

namespace {
uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
// .ftz: subnormal numbers count as zero.
float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
}  // namespace

uint16_t round_to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return 0x7fff;  // PTX's one NaN
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float widen_bf16(uint16_t bits) { return float_of(static_cast<uint32_t>(bits) << 16); }

uint16_t round_to_f16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {  // subnormal: steps of 2^-24
        const float steps = std::nearbyint(std::fabs(value) * 0x1p24f);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(steps));
    }
    const uint32_t rebiased = magnitude - (112u << 23);
    return static_cast<uint16_t>(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
}
float widen_f16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31,
                   fraction = bits & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return std::copysign(static_cast<float>(fraction) * 0x1p-24f, float_of(sign | 0x3f800000));
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

float exp2_approx(float x) { return flush(std::exp2(flush(x))); }
float log2_approx(float x) { return flush(std::log2(flush(x))); }
float reciprocal_approx(float x) { return flush(1.0f / flush(x)); }
float rsqrt_approx(float x) { return flush(1.0f / std::sqrt(flush(x))); }
float tanh_approx(float x) { return std::tanh(x); }

}  // namespace interpreter
