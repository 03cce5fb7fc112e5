// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/warp.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

#define SHUFFLE_KERNEL(name)                                        \
    KERNEL(conform_##name, 32)(const uint32_t* in, uint32_t* out) { \
        const uint32_t lane = threadIdx.x;                          \
        out[lane] = name(in[lane], in[32]);                         \
    }                                                               \
    REGISTER_KERNEL(conform_##name)
SHUFFLE_KERNEL(shuffle_xor)
SHUFFLE_KERNEL(shuffle_from)
SHUFFLE_KERNEL(shuffle_up)
SHUFFLE_KERNEL(shuffle_down)

KERNEL(conform_shuffle_float, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = __float_as_uint(shuffle_xor(__uint_as_float(in[lane]), 3u));
}
REGISTER_KERNEL(conform_shuffle_float)

KERNEL(conform_shuffle_half_warp, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = lane < 16 ? shuffle_xor(in[lane], 5u, 0xffffu) : shuffle_xor(in[lane], 9u, 0xffff0000u);
}
REGISTER_KERNEL(conform_shuffle_half_warp)

KERNEL(conform_warp_ballot, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = warp_ballot((in[lane] & 1u) != 0);
}
REGISTER_KERNEL(conform_warp_ballot)

KERNEL(conform_warp_any, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = (warp_any(in[lane] == in[32]) ? 1u : 0u) | (warp_any(in[lane] == in[33]) ? 2u : 0u);
}
REGISTER_KERNEL(conform_warp_any)

KERNEL(conform_warp_all, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = (warp_all(in[lane] <= in[32]) ? 1u : 0u) | (warp_all(in[lane] <= in[33]) ? 2u : 0u);
}
REGISTER_KERNEL(conform_warp_all)

#define REDUCE_KERNEL(name)                                         \
    KERNEL(conform_##name, 32)(const uint32_t* in, uint32_t* out) { \
        const uint32_t lane = threadIdx.x;                          \
        out[lane] = name(in[lane]);                                 \
    }                                                               \
    REGISTER_KERNEL(conform_##name)
REDUCE_KERNEL(warp_sum_u32)
REDUCE_KERNEL(warp_min_u32)
REDUCE_KERNEL(warp_max_u32)

KERNEL(conform_warp_sync, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    words[lane] = in[lane];
    warp_sync();
    out[lane] = words[31 - lane];
}
REGISTER_KERNEL(conform_warp_sync)
