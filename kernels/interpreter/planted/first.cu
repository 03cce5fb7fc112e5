// targets: sm_80
#include "common/dtypes.cuh"

KERNEL(planted_square, 256)(const float* x, float* y, int n) {
    SHARED_MEMORY(shared);
    float* tile = reinterpret_cast<float*>(shared);
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    block_sync();
    const float other = tile[threadIdx.x ^ 1];
    const float sum = shuffle_xor(tile[threadIdx.x], 1);
    if (i < n) y[i] = other + sum;
}
REGISTER_KERNEL(planted_square)
