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

// One warp expects 64 threads, the others all 96.
KERNEL(planted_barrier_counts, 96)(uint32_t* y) {
    if (threadIdx.x < 32)
        barrier_sync(1, 64);  // PARTNER barrier counts
    else
        barrier_sync(1, 96);  // BUG barrier counts
    y[threadIdx.x % 64] = 1;
}
REGISTER_KERNEL(planted_barrier_counts)

KERNEL(planted_barrier_16, 32)(uint32_t*) {
    barrier_sync(16, 32);  // BUG barrier 16
}
REGISTER_KERNEL(planted_barrier_16)

KERNEL(planted_barrier_0, 32)(uint32_t*) {
    barrier_sync(0, 32);  // BUG barrier 0
}
REGISTER_KERNEL(planted_barrier_0)

KERNEL(planted_barrier_of_33, 64)(uint32_t*) {
    barrier_sync(1, 33);  // BUG barrier of 33
}
REGISTER_KERNEL(planted_barrier_of_33)

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

KERNEL(planted_mask_without_caller, 32)(uint32_t* y) {
    y[threadIdx.x] = shuffle_xor(threadIdx.x, 1u, 0xffffu);  // BUG mask without caller
}
REGISTER_KERNEL(planted_mask_without_caller)

// The second warp of 48 threads has 16 lanes.
KERNEL(planted_mask_beyond_warp, 48)(uint32_t* y) {
    warp_sync();  // BUG mask beyond warp
    y[threadIdx.x] = 1;
}
REGISTER_KERNEL(planted_mask_beyond_warp)

// ldmatrix is one instruction of the whole warp, not one in each branch.
KERNEL(planted_matrix_load_in_branches, 32)(uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    for (uint32_t i = threadIdx.x; i < 128; i += 32) words[i] = i;
    warp_sync();
    uint32_t fragment[1];
    if (threadIdx.x < 16)
        load_matrix_x1(fragment, shared_address(shared) + threadIdx.x * 16);  // PARTNER matrix load in branches
    else
        load_matrix_x1_transposed(fragment, shared_address(shared) + threadIdx.x * 16);  // BUG matrix load in branches
    y[threadIdx.x] = fragment[0];
}
REGISTER_KERNEL(planted_matrix_load_in_branches)

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
