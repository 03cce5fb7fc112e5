// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/convert.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

KERNEL(conform_pack_bf16x2, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = pack_bf16x2(__uint_as_float(in[lane]), __uint_as_float(in[32 + lane]));
}
REGISTER_KERNEL(conform_pack_bf16x2)

KERNEL(conform_pack_f16x2, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = pack_f16x2(__uint_as_float(in[lane]), __uint_as_float(in[32 + lane]));
}
REGISTER_KERNEL(conform_pack_f16x2)

KERNEL(conform_round_bf16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = round_bf16(__uint_as_float(in[lane]));
}
REGISTER_KERNEL(conform_round_bf16)

KERNEL(conform_round_f16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = round_f16(__uint_as_float(in[lane]));
}
REGISTER_KERNEL(conform_round_f16)

KERNEL(conform_widen_bf16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = __float_as_uint(widen_bf16(static_cast<uint16_t>(in[lane])));
}
REGISTER_KERNEL(conform_widen_bf16)

KERNEL(conform_widen_f16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = __float_as_uint(widen_f16(static_cast<uint16_t>(in[lane])));
}
REGISTER_KERNEL(conform_widen_f16)
