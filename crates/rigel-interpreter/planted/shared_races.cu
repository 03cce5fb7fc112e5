// targets: sm_80
// Kernels with one race each in shared memory. Each first fills the memory that it uses, so that the race is found and not
// a read of what no one wrote.
#include "common/dtypes.cuh"

DEVICE void fill(uint8_t* shared, unsigned words) {
    for (unsigned i = threadIdx.x; i < words; i += blockDim.x) reinterpret_cast<uint32_t*>(shared)[i] = 0;
    block_sync();
}

KERNEL(planted_missing_barrier, 64)(uint32_t* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    tile[threadIdx.x] = threadIdx.x;  // PARTNER missing barrier
    warp_sync();
    y[threadIdx.x] = tile[threadIdx.x];
    if (threadIdx.x % 32 == 0) y[threadIdx.x] = tile[(threadIdx.x + 32) % 64];  // BUG missing barrier
}
REGISTER_KERNEL(planted_missing_barrier)

// A reduction buffer used twice, with one barrier too few between the uses.
KERNEL(planted_buffer_reused, 64)(const float* x, float* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    float* sums = reinterpret_cast<float*>(shared);
    for (int round = 0; round < 2; round++) {
        if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x[threadIdx.x] + static_cast<float>(round);  // BUG buffer reused
        block_sync();
        y[threadIdx.x] = sums[0] + sums[1];  // PARTNER buffer reused
    }
}
REGISTER_KERNEL(planted_buffer_reused)

KERNEL(planted_same_word_written, 32)(uint32_t* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    uint16_t* halves = reinterpret_cast<uint16_t*>(shared);
    halves[threadIdx.x / 2] = static_cast<uint16_t>(threadIdx.x);  // BUG two writers
    block_sync();
    y[threadIdx.x] = halves[threadIdx.x / 2];
}
REGISTER_KERNEL(planted_same_word_written)

// Shuffles do not order memory.
KERNEL(planted_shuffle_as_barrier, 32)(uint32_t* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    tile[threadIdx.x] = threadIdx.x;  // PARTNER shuffle as barrier
    const uint32_t other = shuffle_xor(threadIdx.x, 1u);
    y[threadIdx.x] = tile[other];  // BUG shuffle as barrier
}
REGISTER_KERNEL(planted_shuffle_as_barrier)

KERNEL(planted_copy_not_waited, 32)(const float* x, float* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    float* tile = reinterpret_cast<float*>(shared);
    copy_async_4(shared_address(tile + threadIdx.x), x + threadIdx.x);  // PARTNER copy not waited
    copy_async_commit();
    y[threadIdx.x] = tile[threadIdx.x];  // BUG copy not waited
}
REGISTER_KERNEL(planted_copy_not_waited)

// Waits for its own copies, then reads a neighbour's.
KERNEL(planted_copy_no_barrier, 32)(const float* x, float* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    float* tile = reinterpret_cast<float*>(shared);
    copy_async_4(shared_address(tile + threadIdx.x), x + threadIdx.x);  // PARTNER copy without barrier
    copy_async_commit();
    copy_async_wait<0>();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];  // BUG copy without barrier
}
REGISTER_KERNEL(planted_copy_no_barrier)

// One group too many is left pending.
KERNEL(planted_wait_too_weak, 32)(const float* x, float* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    float* tile = reinterpret_cast<float*>(shared);
    for (int stage = 0; stage < 2; stage++) {
        copy_async_4(shared_address(tile + stage * 32 + threadIdx.x), x + stage * 32 + threadIdx.x);  // PARTNER wait too weak
        copy_async_commit();
    }
    copy_async_wait<1>();
    block_sync();
    y[threadIdx.x] = tile[32 + threadIdx.x];  // BUG wait too weak
}
REGISTER_KERNEL(planted_wait_too_weak)

// A stage of a ring is filled again while another warp still reads it.
KERNEL(planted_stage_refilled, 64)(const float* x, float* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    float* tile = reinterpret_cast<float*>(shared);
    float sum = 0.0f;
    for (int round = 0; round < 3; round++) {
        copy_async_4(shared_address(tile + threadIdx.x), x + round * 64 + threadIdx.x);  // BUG stage refilled
        copy_async_commit();
        copy_async_wait<0>();
        block_sync();
        sum += tile[(threadIdx.x + 32) % 64];  // PARTNER stage refilled
    }
    y[threadIdx.x] = sum;
}
REGISTER_KERNEL(planted_stage_refilled)

KERNEL(planted_matrix_race, 64)(uint32_t* y) {
    SHARED_MEMORY(shared);
    fill(shared, 128);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    tile[threadIdx.x] = threadIdx.x;  // PARTNER matrix race
    uint32_t fragment[1];
    load_matrix_x1(fragment, shared_address(shared) + threadIdx.x % 8 * 16);  // BUG matrix race
    y[threadIdx.x] = fragment[0];
}
REGISTER_KERNEL(planted_matrix_race)
