// targets: sm_80
// Kernels with one bug each: memory that is not there, not aligned, or not written. The lines marked BUG and PARTNER are
// those that a report must name.
#include "common/dtypes.cuh"

KERNEL(planted_global_overrun, 64)(uint32_t* y, int n) {
    y[threadIdx.x + (static_cast<int>(threadIdx.x) == n - 1 ? 1 : 0)] = 1;  // BUG global overrun
}
REGISTER_KERNEL(planted_global_overrun)

KERNEL(planted_global_underrun_read, 64)(const uint32_t* x, uint32_t* y) {
    y[threadIdx.x] = x[static_cast<int>(threadIdx.x) - 1];  // BUG global underrun
}
REGISTER_KERNEL(planted_global_underrun_read)

KERNEL(planted_use_after_free, 64)(uint32_t* y) {
    y[threadIdx.x] = 1;  // BUG use after free
}
REGISTER_KERNEL(planted_use_after_free)

KERNEL(planted_host_pointer, 64)(const uint32_t* host, uint32_t* y) {
    y[threadIdx.x] = host[threadIdx.x];  // BUG host pointer
}
REGISTER_KERNEL(planted_host_pointer)

KERNEL(planted_misaligned_vector, 32)(const float* x, float* y) {
    const float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x + 1);  // BUG misaligned vector
    y[threadIdx.x] = v.x + v.w;
}
REGISTER_KERNEL(planted_misaligned_vector)

KERNEL(planted_misaligned_wrapper, 32)(const float* x, uint32_t* y) {
    y[threadIdx.x] = load_global_16(x + 2).x;  // BUG misaligned wrapper
}
REGISTER_KERNEL(planted_misaligned_wrapper)

KERNEL(planted_misaligned_shared, 32)(float* y) {
    SHARED_MEMORY(shared);
    float* tile = reinterpret_cast<float*>(shared);
    for (int i = 0; i < 5; i++) tile[threadIdx.x * 4 + i % 4] = 1.0f;
    block_sync();
    const float4 v = *reinterpret_cast<const float4*>(tile + 1);  // BUG misaligned shared
    y[threadIdx.x] = v.x + v.w;
}
REGISTER_KERNEL(planted_misaligned_shared)

KERNEL(planted_misaligned_atomic, 32)(uint32_t* y) {
    atomic_add_relaxed(reinterpret_cast<uint32_t*>(reinterpret_cast<uint8_t*>(y) + 2), 1u);  // BUG misaligned atomic
}
REGISTER_KERNEL(planted_misaligned_atomic)

KERNEL(planted_global_load_of_shared, 32)(uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    tile[threadIdx.x] = 1;
    y[threadIdx.x] = load_global_4(tile + threadIdx.x);  // BUG global load of shared
}
REGISTER_KERNEL(planted_global_load_of_shared)

KERNEL(planted_shared_address_of_global, 32)(uint32_t* y) {
    y[threadIdx.x] = shared_address(y);  // BUG shared address of global
}
REGISTER_KERNEL(planted_shared_address_of_global)

// 256 KiB further begins the memory of a block that may run beside this one.
KERNEL(planted_shared_of_another_block, 32)(uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    tile[(64 << 10) + threadIdx.x] = 1;  // BUG shared memory of another block
    y[threadIdx.x] = 1;
}
REGISTER_KERNEL(planted_shared_of_another_block)

KERNEL(planted_copy_reads_too_much, 32)(const float* x) {
    SHARED_MEMORY(shared);
    copy_async_16(shared_address(shared) + threadIdx.x * 16, x + threadIdx.x * 4, 17);  // BUG copy reads too much
    copy_async_wait_all();
}
REGISTER_KERNEL(planted_copy_reads_too_much)

KERNEL(planted_uninitialised_global, 32)(const uint32_t* x, uint32_t* y) {
    y[threadIdx.x] = x[threadIdx.x];  // BUG uninitialised global
}
REGISTER_KERNEL(planted_uninitialised_global)

KERNEL(planted_uninitialised_shared, 64)(uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    if (threadIdx.x < 63) tile[threadIdx.x] = threadIdx.x;
    block_sync();
    y[threadIdx.x] = tile[threadIdx.x];  // BUG uninitialised shared
}
REGISTER_KERNEL(planted_uninitialised_shared)

KERNEL(planted_shared_overrun, 64)(uint32_t* y) {
    SHARED_MEMORY(shared);
    uint32_t* tile = reinterpret_cast<uint32_t*>(shared);
    tile[threadIdx.x + 1] = threadIdx.x;  // BUG shared overrun
    y[threadIdx.x] = 0;
}
REGISTER_KERNEL(planted_shared_overrun)

KERNEL(planted_copy_misaligned, 32)(const float* x) {
    SHARED_MEMORY(shared);
    copy_async_16(shared_address(shared) + threadIdx.x * 8, x + threadIdx.x * 4);  // BUG misaligned copy
    copy_async_wait_all();
}
REGISTER_KERNEL(planted_copy_misaligned)

KERNEL(planted_read_only_written, 32)(uint32_t* x, uint32_t* y) {
    x[threadIdx.x] = 1;                           // PARTNER read-only load
    y[threadIdx.x] = load_readonly_4(x + threadIdx.x);  // BUG read-only load
}
REGISTER_KERNEL(planted_read_only_written)

static __attribute__((noinline)) uint32_t without_end(uint32_t n) { volatile uint32_t own[64] = {n}; return n == ~0u ? 0 : own[n % 64] + without_end(n + 1); }  // BUG endless calls

KERNEL(planted_endless_calls, 64)(uint32_t* y) {
    y[threadIdx.x] = without_end(threadIdx.x);
}
REGISTER_KERNEL(planted_endless_calls)

KERNEL(planted_large_array, 64)(uint32_t* y) {  // BUG large array
    volatile uint32_t own[32 << 10];  // 128 KiB, taken where the kernel begins
    own[threadIdx.x] = 1;
    y[threadIdx.x] = own[threadIdx.x];
}
REGISTER_KERNEL(planted_large_array)
