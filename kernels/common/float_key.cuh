// f32 as unsigned numbers in the same order: -inf < ... < -0 < +0 < ... < +inf.
#pragma once
#include "ptx/ptx.cuh"

DEVICE uint32_t ordered_bits(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

DEVICE float from_ordered_bits(uint32_t key) {
    return __uint_as_float(key ^ (static_cast<uint32_t>(static_cast<int32_t>(~key) >> 31) | 0x80000000u));
}

// The keys between which a finite maximum lies.
static constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;
static constexpr uint32_t kKeyOfInfinity = 0xff800000u;

DEVICE bool is_finite_key(uint32_t key) { return key > kKeyOfMinusInfinity && key < kKeyOfInfinity; }

// As ordered_bits, but NaN of either sign is above everything, so that the largest key shows it.
DEVICE uint32_t ordered_bits_nan_first(float x) { return x != x ? 0xffffffffu : ordered_bits(x); }

// The same with one zero, for where -0 = +0.
DEVICE uint32_t comparable_bits(float x) {
    const uint32_t key = ordered_bits_nan_first(x);
    return key == 0x7fffffffu ? 0x80000000u : key;
}
