// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/order.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// Block 0 writes out[0..32] and raises the flag out[32]. Block 1 copies that to out[64..96] when it sees the flag; when
// it comes too early it works the same values out itself, since a block must not wait for another.
KERNEL(conform_release_acquire, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    if (blockIdx.x == 0) {
        out[lane] = in[lane] + 1;
        block_sync();
        if (lane == 0) { store_release_gpu(out + 32, 1u); }
    } else {
        uint32_t flag = 0;
        if (lane == 0) { flag = load_acquire_gpu(out + 32); }
        const bool ready = shuffle_from(flag, 0u) != 0;
        block_sync();
        out[64 + lane] = ready ? out[lane] : in[lane] + 1;
    }
}
REGISTER_KERNEL(conform_release_acquire)

KERNEL(conform_relaxed_with_fences, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    if (blockIdx.x == 0) {
        out[lane] = in[lane] + 1;
        block_sync();
        if (lane == 0) {
            fence_gpu();
            store_relaxed_gpu(out + 32, 1u);
        }
    } else {
        uint32_t flag = 0;
        if (lane == 0) {
            flag = load_relaxed_gpu(out + 32);
            fence_gpu();
        }
        const bool ready = shuffle_from(flag, 0u) != 0;
        block_sync();
        out[64 + lane] = ready ? out[lane] : in[lane] + 1;
    }
}
REGISTER_KERNEL(conform_relaxed_with_fences)

KERNEL(conform_relaxed_with_system_fences, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    if (blockIdx.x == 0) {
        out[lane] = in[lane] + 1;
        block_sync();
        if (lane == 0) {
            fence_system();
            store_relaxed_gpu(out + 32, 1u);
        }
    } else {
        uint32_t flag = 0;
        if (lane == 0) {
            flag = load_relaxed_gpu(out + 32);
            fence_system();
        }
        const bool ready = shuffle_from(flag, 0u) != 0;
        block_sync();
        out[64 + lane] = ready ? out[lane] : in[lane] + 1;
    }
}
REGISTER_KERNEL(conform_relaxed_with_system_fences)

// Within a block a barrier orders; the fence must only be accepted.
KERNEL(conform_fence_block, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    out[lane] = in[lane];
    fence_block();
    block_sync();
    out[64 + lane] = out[31 - lane];
}
REGISTER_KERNEL(conform_fence_block)
