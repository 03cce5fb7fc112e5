// targets: sm_80
// Kernels whose blocks, or grids, touch the same global memory in no order.
#include "common/dtypes.cuh"

KERNEL(planted_blocks_overlap, 32)(uint32_t* y) {
    y[blockIdx.x * 31 + threadIdx.x] = threadIdx.x;  // BUG blocks overlap
}
REGISTER_KERNEL(planted_blocks_overlap)

KERNEL(planted_reads_other_block, 32)(uint32_t* y, uint32_t* z) {
    y[blockIdx.x * 32 + threadIdx.x] = threadIdx.x;  // PARTNER reads other block
    block_sync();
    if (blockIdx.x == 1) z[threadIdx.x] = y[threadIdx.x];  // BUG reads other block
}
REGISTER_KERNEL(planted_reads_other_block)

// One byte of 16 that another block stores at once.
KERNEL(planted_wide_and_narrow, 32)(uint8_t* y, uint32_t* z) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0)
        store_global_16(y, make_uint4(1, 2, 3, 4));  // PARTNER wide and narrow
    else
        *z = y[13];  // BUG wide and narrow
}
REGISTER_KERNEL(planted_wide_and_narrow)

// The last block sums partial results, but nothing publishes them: the counter is relaxed and there is no fence.
KERNEL(planted_missing_fence, 32)(uint32_t* partial, uint32_t* counter, uint32_t* y) {
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x + 1;  // PARTNER missing fence
        const bool last = atomic_add_relaxed(counter, 1u) == gridDim.x - 1;
        if (last) {
            uint32_t sum = 0;
            for (unsigned block = 0; block < gridDim.x; block++) sum += partial[block];  // BUG missing fence
            *y = sum;
        }
    }
}
REGISTER_KERNEL(planted_missing_fence)

// The fence is there, but the other threads' writes are not ordered before it.
KERNEL(planted_counts_too_soon, 64)(uint32_t* data, uint32_t* counter, uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* last = reinterpret_cast<uint32_t*>(shared);
    data[blockIdx.x * blockDim.x + threadIdx.x] = 1;  // PARTNER counts too soon
    if (threadIdx.x == 0) *last = atomic_add_acq_rel(counter, 1u) == gridDim.x - 1;
    block_sync();
    if (*last) {
        uint32_t sum = 0;
        for (unsigned block = 0; block < gridDim.x; block++) sum += data[block * blockDim.x + threadIdx.x];  // BUG counts too soon
        y[threadIdx.x] = sum;
    }
}
REGISTER_KERNEL(planted_counts_too_soon)

KERNEL(planted_plain_flag, 32)(uint32_t* data, uint32_t* flag, uint32_t* y) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        *data = 7;
        *flag = 1;  // PARTNER plain flag
    } else {
        *y = load_acquire_gpu(flag);  // BUG plain flag
    }
}
REGISTER_KERNEL(planted_plain_flag)

// Dependent launches. Each writes y = x + 1 after touching something too early.
KERNEL(planted_read_before_wait, 32)(const uint32_t* x, uint32_t* y) {
    const uint32_t early = x[threadIdx.x];  // BUG read before wait
    grid_dependency_wait();
    y[threadIdx.x] = early + 1;
}
REGISTER_KERNEL(planted_read_before_wait)

KERNEL(planted_write_before_wait, 32)(uint32_t* x, uint32_t* y) {
    y[threadIdx.x] = 5;  // BUG write before wait
    grid_dependency_wait();
    y[threadIdx.x] = x[threadIdx.x] + 1;
}
REGISTER_KERNEL(planted_write_before_wait)

// Does not touch what the grid ahead writes, and so waits for nothing: then the next grid's wait does not cover it.
KERNEL(planted_no_wait, 32)(const uint32_t* elsewhere, uint32_t* z) {
    grid_dependency_launch();
    z[threadIdx.x] = elsewhere[threadIdx.x];
}
REGISTER_KERNEL(planted_no_wait)

// Launches its dependents first, then takes its time before it writes.
KERNEL(planted_slow_producer, 32)(uint32_t* x, uint32_t* busy) {
    grid_dependency_launch();
    grid_dependency_wait();
    for (int i = 0; i < 20; i++) atomic_add_relaxed(busy, 1u);
    x[threadIdx.x] = threadIdx.x;  // PARTNER dependent launch
}
REGISTER_KERNEL(planted_slow_producer)

KERNEL(planted_plain_step, 32)(const uint32_t* x, uint32_t* y) {
    y[threadIdx.x] = x[threadIdx.x] + 1;  // BUG streams unordered
}
REGISTER_KERNEL(planted_plain_step)
