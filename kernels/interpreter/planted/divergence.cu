// targets: sm_80
// Kernels in which threads do not meet where they must.
#include "common/dtypes.cuh"

KERNEL(planted_divergent_barrier, 64)(uint32_t* y) {
    if (threadIdx.x < 32) {
        block_sync();  // PARTNER divergent barrier
        y[threadIdx.x] = 1;
    } else {
        block_sync();  // BUG divergent barrier
        y[threadIdx.x] = 2;
    }
}
REGISTER_KERNEL(planted_divergent_barrier)

KERNEL(planted_divergent_warp_at_barrier, 32)(uint32_t* y) {
    if (threadIdx.x < 16) {
        barrier_sync(1, 32);  // PARTNER divergent warp at barrier
        y[threadIdx.x] = 1;
    } else {
        barrier_sync(1, 32);  // BUG divergent warp at barrier
        y[threadIdx.x] = 2;
    }
}
REGISTER_KERNEL(planted_divergent_warp_at_barrier)

KERNEL(planted_early_return, 64)(uint32_t* y, int n) {
    if (static_cast<int>(threadIdx.x) >= n) return;
    block_sync();  // BUG early return
    y[threadIdx.x] = 1;
}
REGISTER_KERNEL(planted_early_return)

KERNEL(planted_shuffle_in_branch, 32)(uint32_t* y) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x < 16) value = shuffle_xor(value, 1u);  // BUG shuffle in branch
    y[threadIdx.x] = value;
}
REGISTER_KERNEL(planted_shuffle_in_branch)

KERNEL(planted_mismatched_collective, 32)(uint32_t* y) {
    uint32_t value = threadIdx.x;
    if (threadIdx.x < 16)
        value = shuffle_xor(value, 1u);  // PARTNER mismatched collective
    else
        value = warp_ballot(value > 20);  // BUG mismatched collective
    y[threadIdx.x] = value;
}
REGISTER_KERNEL(planted_mismatched_collective)

KERNEL(planted_shuffle_outside_mask, 32)(uint32_t* y) {
    uint32_t value = 0;
    if (threadIdx.x < 16) value = shuffle_from(threadIdx.x, 20u, 0xffffu);  // BUG outside mask
    y[threadIdx.x] = value;
}
REGISTER_KERNEL(planted_shuffle_outside_mask)

// Warp 0 waits at barrier 1, warp 1 at barrier 2.
KERNEL(planted_deadlock, 64)(uint32_t* y) {
    if (threadIdx.x < 32)
        barrier_sync(1, 64);  // PARTNER deadlock
    else
        barrier_sync(2, 64);  // BUG deadlock
    y[threadIdx.x] = 1;
}
REGISTER_KERNEL(planted_deadlock)

// Waits for a flag that no one sets.
KERNEL(planted_livelock, 32)(uint32_t* flag) {
    if (threadIdx.x == 0)
        while (load_acquire_gpu(flag) == 0) {  // BUG livelock
        }
}
REGISTER_KERNEL(planted_livelock)

// Every block waits for all others, as only a cooperative launch may.
KERNEL(planted_grid_barrier, 32)(uint32_t* counter) {
    if (threadIdx.x == 0) {
        atomic_add_acq_rel(counter, 1u);
        while (load_acquire_gpu(counter) < gridDim.x) {  // BUG grid barrier
        }
    }
}
REGISTER_KERNEL(planted_grid_barrier)
