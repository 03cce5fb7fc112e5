// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/barrier.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

KERNEL(conform_block_sync, 64)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    words[threadIdx.x] = in[threadIdx.x];
    block_sync();
    out[threadIdx.x] = words[63 - threadIdx.x];
}
REGISTER_KERNEL(conform_block_sync)

// Whether any of two warps has one, and any of the other two.
KERNEL(conform_barrier_any, 128)(const uint32_t* in, uint32_t* out) {
    const uint32_t pair = threadIdx.x / 64;
    const bool first = barrier_any(1 + pair, 64, in[threadIdx.x % 32] == in[5] && threadIdx.x / 32 == 1);
    const bool second = barrier_any(1 + pair, 64, false), third = barrier_any(1 + pair, 64, threadIdx.x == 100);
    out[threadIdx.x] = (first ? 1 : 0) + (second ? 2 : 0) + (third ? 4 : 0);
}
REGISTER_KERNEL(conform_barrier_any)

// Warp 1 writes and arrives; warp 0 waits for it.
KERNEL(conform_barrier_sync_arrive, 64)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    const uint32_t lane = threadIdx.x % 32;
    if (threadIdx.x >= 32) {
        words[lane] = in[lane];
        barrier_arrive(3, 64);
    } else {
        barrier_sync(3, 64);
        out[lane] = words[31 - lane];
    }
}
REGISTER_KERNEL(conform_barrier_sync_arrive)
