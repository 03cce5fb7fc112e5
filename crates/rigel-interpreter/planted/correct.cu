// targets: sm_80
// Correct kernels with every pattern that the race checker must accept, over all seeds.
#include "common/dtypes.cuh"

// y[i] = x[i ^ 1] twice over, through shared memory and through a shuffle.
KERNEL(correct_exchange, 256)(const float* x, float* y, int n) {
    SHARED_MEMORY(shared);
    float* tile = reinterpret_cast<float*>(shared);
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    block_sync();
    const float other = tile[threadIdx.x ^ 1];
    const float sum = shuffle_xor(tile[threadIdx.x], 1);
    if (i < n) y[i] = other + sum;
}
REGISTER_KERNEL(correct_exchange)

// Accesses of 1, 2 and 16 bytes to the same 16: every block writes 32 numbers of its own one by one, then 8 at a time, and
// reads them one by one; each also writes one byte of the same word.
//   numbers u16 [32 blocks], out u16 [32 blocks], bytes u8 [blocks]
KERNEL(correct_widths, 32)(uint16_t* numbers, uint16_t* out, uint8_t* bytes) {
    uint16_t* own = numbers + blockIdx.x * 32;
    own[threadIdx.x] = static_cast<uint16_t>(threadIdx.x);
    block_sync();
    if (threadIdx.x < 4) {
        uint4 eight = load_global_16(own + threadIdx.x * 8);
        eight.x += 0x00010001;
        store_global_16(own + threadIdx.x * 8, eight);
    }
    block_sync();
    out[blockIdx.x * 32 + threadIdx.x] = own[threadIdx.x ^ 7];
    if (threadIdx.x == 0) bytes[blockIdx.x] = static_cast<uint8_t>(blockIdx.x + 1);
}
REGISTER_KERNEL(correct_widths)

// The sum of x, by the block that arrives last: partial sums, then a counter that acquires and releases.
// partial: one float a block; counter: 0 before the launch and after it.
KERNEL(correct_last_block_sum, 256)(const float* x, float* partial, uint32_t* counter, float* y, int n) {
    SHARED_MEMORY(shared);
    float* sums = reinterpret_cast<float*>(shared);
    uint32_t* last = reinterpret_cast<uint32_t*>(shared + 32 * sizeof(float));
    float sum = 0.0f;
    for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += static_cast<int>(gridDim.x * blockDim.x)) sum += x[i];
    for (uint32_t mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    block_sync();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned warp = 0; warp < blockDim.x / 32; warp++) total += sums[warp];
        partial[blockIdx.x] = total;
        *last = atomic_wrap_acq_rel(counter, gridDim.x - 1) == gridDim.x - 1;
    }
    block_sync();
    if (*last && threadIdx.x == 0) {
        float total = 0.0f;
        for (unsigned block = 0; block < gridDim.x; block++) total += partial[block];
        y[0] = total;
    }
}
REGISTER_KERNEL(correct_last_block_sum)

// The same with relaxed atomics between fences: all threads write, one counts for the block.
KERNEL(correct_fence_and_counter, 64)(uint32_t* data, uint32_t* counter, uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* last = reinterpret_cast<uint32_t*>(shared);
    data[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + 1;
    block_sync();
    if (threadIdx.x == 0) {
        fence_gpu();
        *last = atomic_add_relaxed(counter, 1u) == gridDim.x - 1;
        fence_gpu();
    }
    block_sync();
    if (*last) {
        uint32_t sum = 0;
        for (unsigned block = 0; block < gridDim.x; block++) sum += data[block * blockDim.x + threadIdx.x];
        y[threadIdx.x] = sum;
    }
}
REGISTER_KERNEL(correct_fence_and_counter)

// Blocks hand a value on, each to the next, with release and acquire. A cooperative launch.
KERNEL(correct_flag_chain, 32)(uint32_t* value, uint32_t* flags) {
    if (threadIdx.x == 0) {
        if (blockIdx.x > 0)
            while (load_acquire_gpu(&flags[blockIdx.x - 1]) == 0) {
            }
        const uint32_t before = blockIdx.x > 0 ? *value : 0;
        *value = before + 1;
        store_release_gpu(&flags[blockIdx.x], 1);
    }
}
REGISTER_KERNEL(correct_flag_chain)

// A pipeline of asynchronous copies, `stages` deep: y = sum over tiles of the block's tile, element by element.
KERNEL(correct_copy_pipeline, 64)(const float* x, float* y, int tiles) {
    SHARED_MEMORY(shared);
    constexpr int kStages = 3;
    float* ring = reinterpret_cast<float*>(shared);
    const auto fetch = [&](int tile) {
        if (tile < tiles) copy_async_16(shared_address(ring + (tile % kStages) * 256 + threadIdx.x * 4), x + tile * 256 + threadIdx.x * 4);
        copy_async_commit();
    };
    for (int tile = 0; tile < kStages - 1; tile++) fetch(tile);
    float sum = 0.0f;
    for (int tile = 0; tile < tiles; tile++) {
        copy_async_wait<kStages - 2>();
        block_sync();
        fetch(tile + kStages - 1);
        for (int i = 0; i < 4; i++) sum += ring[(tile % kStages) * 256 + (i * 64 + 17 * static_cast<int>(threadIdx.x)) % 256];
    }
    y[threadIdx.x] = sum;
}
REGISTER_KERNEL(correct_copy_pipeline)

// y = x + 1 on data of the grid ahead, launched to start early.
KERNEL(correct_dependent_step, 64)(const uint32_t* x, uint32_t* y) {
    grid_dependency_launch();
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    grid_dependency_wait();
    y[i] = x[i] + 1;
}
REGISTER_KERNEL(correct_dependent_step)

// Producers and consumers at named barriers: warp 1 fills, warp 0 sums.
KERNEL(correct_named_barriers, 64)(const uint32_t* x, uint32_t* y, int rounds) {
    SHARED_MEMORY(shared);
    uint32_t* slot = reinterpret_cast<uint32_t*>(shared);
    const unsigned lane = threadIdx.x % 32;
    if (threadIdx.x / 32 == 1) {
        for (int round = 0; round < rounds; round++) {
            barrier_sync(1, 64);  // the slot is free
            slot[lane] = x[round * 32 + lane];
            barrier_arrive(2, 64);  // the slot is full
        }
    } else {
        uint32_t sum = 0;
        for (int round = 0; round < rounds; round++) {
            barrier_arrive(1, 64);
            barrier_sync(2, 64);
            sum += slot[31 - lane];
        }
        y[lane] = sum;
    }
}
REGISTER_KERNEL(correct_named_barriers)

// order[i] = the thread, counted through the grid, that came i-th.
KERNEL(correct_order_of_arrival, 64)(uint32_t* counter, uint32_t* order) {
    order[atomic_add_relaxed(counter, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}
REGISTER_KERNEL(correct_order_of_arrival)
