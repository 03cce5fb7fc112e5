// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/memory.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// A lane's words to its place among those of all.
DEVICE void put(uint32_t* out, uint2 value) {
    uint32_t* const own = out + 2 * threadIdx.x;
    own[0] = value.x;
    own[1] = value.y;
}
DEVICE void put(uint32_t* out, uint4 value) {
    uint32_t* const own = out + 4 * threadIdx.x;
    own[0] = value.x;
    own[1] = value.y;
    own[2] = value.z;
    own[3] = value.w;
}

KERNEL(conform_load_global_4, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = load_global_4(in + 1 * lane);
}
REGISTER_KERNEL(conform_load_global_4)

KERNEL(conform_load_readonly_4, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = load_readonly_4(in + 1 * lane);
}
REGISTER_KERNEL(conform_load_readonly_4)

KERNEL(conform_load_once_4_evict_first, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = load_once_4(in + 1 * lane, l2_evict_first());
}
REGISTER_KERNEL(conform_load_once_4_evict_first)

KERNEL(conform_load_once_4_evict_last, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = load_once_4(in + 1 * lane, l2_evict_last());
}
REGISTER_KERNEL(conform_load_once_4_evict_last)

KERNEL(conform_store_global_4, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    store_global_4(out + 1 * lane, in[lane]);
}
REGISTER_KERNEL(conform_store_global_4)

KERNEL(conform_load_global_8, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_global_8(in + 2 * lane));
}
REGISTER_KERNEL(conform_load_global_8)

KERNEL(conform_load_readonly_8, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_readonly_8(in + 2 * lane));
}
REGISTER_KERNEL(conform_load_readonly_8)

KERNEL(conform_load_once_8_evict_first, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_once_8(in + 2 * lane, l2_evict_first()));
}
REGISTER_KERNEL(conform_load_once_8_evict_first)

KERNEL(conform_load_once_8_evict_last, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_once_8(in + 2 * lane, l2_evict_last()));
}
REGISTER_KERNEL(conform_load_once_8_evict_last)

KERNEL(conform_store_global_8, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    store_global_8(out + 2 * lane, make_uint2(in[2 * lane + 0], in[2 * lane + 1]));
}
REGISTER_KERNEL(conform_store_global_8)

KERNEL(conform_load_global_16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_global_16(in + 4 * lane));
}
REGISTER_KERNEL(conform_load_global_16)

KERNEL(conform_load_readonly_16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_readonly_16(in + 4 * lane));
}
REGISTER_KERNEL(conform_load_readonly_16)

KERNEL(conform_load_once_16_evict_first, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_once_16(in + 4 * lane, l2_evict_first()));
}
REGISTER_KERNEL(conform_load_once_16_evict_first)

KERNEL(conform_load_once_16_evict_last, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    put(out, load_once_16(in + 4 * lane, l2_evict_last()));
}
REGISTER_KERNEL(conform_load_once_16_evict_last)

KERNEL(conform_store_global_16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    store_global_16(out + 4 * lane, make_uint4(in[4 * lane + 0], in[4 * lane + 1], in[4 * lane + 2], in[4 * lane + 3]));
}
REGISTER_KERNEL(conform_store_global_16)

// A hint changes nothing that can be seen.
KERNEL(conform_prefetch_l2, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    prefetch_l2(in + lane);
    out[lane] = in[lane];
}
REGISTER_KERNEL(conform_prefetch_l2)
