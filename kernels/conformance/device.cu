// targets: sm_80 compute_80 sm_90
// Kernels with which tests/cuda/device_layer.rs tries the device layer.
#include "ptx/ptx.cuh"

// to[i] = from[i] + 1, 32 threads a block; `to` may be `from`.
KERNEL(device_add_one, 32)(const uint32_t* from, uint32_t* to) {
    const uint32_t i = blockIdx.x * 32 + threadIdx.x;
    grid_dependency_launch();
    grid_dependency_wait();
    to[i] = from[i] + 1;
}
REGISTER_KERNEL(device_add_one)

// Turns 32 words around by way of the last ones of `shared_words`.
KERNEL(device_last_shared_words, 32)(const uint32_t* from, uint32_t* to, uint32_t shared_words) {
    SHARED_MEMORY(shared);
    uint32_t* last = reinterpret_cast<uint32_t*>(shared) + shared_words - 32;
    grid_dependency_launch();
    grid_dependency_wait();
    last[threadIdx.x] = from[threadIdx.x];
    block_sync();
    to[threadIdx.x] = last[31 - threadIdx.x];
}
REGISTER_KERNEL(device_last_shared_words)
