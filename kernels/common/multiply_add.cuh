// d += a b on tensor cores for bf16 and f16: the instructions of ptx/matrix.cuh and ptx/warpgroup.cuh, by element type.
#pragma once
#include "common/dtypes.cuh"

// Of a warp, m16n8k16.
DEVICE void multiply_add(bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_m16n8k16_bf16(d, a, b, d);
}
DEVICE void multiply_add(f16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_m16n8k16_f16(d, a, b, d);
}

// Of a warpgroup, m64nNk16, in files for sm_90a alone: as templates they are no code elsewhere.

// d = a b + (accumulate ? d : 0), both operands in shared memory, major K.
template <int R>
DEVICE void multiply_add(bf16, float (&d)[R], uint64_t a, uint64_t b, uint32_t accumulate) {
    warpgroup_multiply_bf16<kMajorK, kMajorK>(d, a, b, accumulate);
}
template <int R>
DEVICE void multiply_add(f16, float (&d)[R], uint64_t a, uint64_t b, uint32_t accumulate) {
    warpgroup_multiply_f16<kMajorK, kMajorK>(d, a, b, accumulate);
}
// a in registers, b major MN.
template <int R>
DEVICE void multiply_add(bf16, float (&d)[R], const uint32_t (&a)[4], uint64_t b) {
    warpgroup_multiply_bf16<kMajorMN>(d, a, b, 1);
}
template <int R>
DEVICE void multiply_add(f16, float (&d)[R], const uint32_t (&a)[4], uint64_t b) {
    warpgroup_multiply_f16<kMajorMN>(d, a, b, 1);
}
