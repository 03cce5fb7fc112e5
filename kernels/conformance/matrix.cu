// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/matrix.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// in: 128 words, as four 8x8 matrices of 16-bit elements, row by row; they are put into shared memory.
// out: the loaded fragment, register by register, 32 lanes each.
template <int kMatrices, void (*load)(uint32_t (&)[kMatrices], uint32_t)>
DEVICE void load_matrices(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    for (uint32_t i = threadIdx.x; i < 128; i += 32) words[i] = in[i];
    warp_sync();
    uint32_t fragment[kMatrices];
    load(fragment, shared_address(shared) + threadIdx.x * 16);
    for (int m = 0; m < kMatrices; m++) out[m * 32 + threadIdx.x] = fragment[m];
}

#define LOAD_KERNEL(name, kMatrices)                                                                           \
    KERNEL(conform_##name, 32)(const uint32_t* in, uint32_t* out) { load_matrices<kMatrices, name>(in, out); } \
    REGISTER_KERNEL(conform_##name)
LOAD_KERNEL(load_matrix_x1, 1)
LOAD_KERNEL(load_matrix_x1_transposed, 1)
LOAD_KERNEL(load_matrix_x2, 2)
LOAD_KERNEL(load_matrix_x2_transposed, 2)
LOAD_KERNEL(load_matrix_x4, 4)
LOAD_KERNEL(load_matrix_x4_transposed, 4)

// in: the fragments a, b and c, register by register, 32 lanes each; out: d likewise.
template <int kA, int kB,
          void (*product)(float (&)[4], const uint32_t (&)[kA], const uint32_t (&)[kB], const float (&)[4])>
DEVICE void multiply(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    uint32_t a[kA], b[kB];
    float c[4], d[4];
    for (int i = 0; i < kA; i++) a[i] = in[i * 32 + lane];
    for (int i = 0; i < kB; i++) b[i] = in[(kA + i) * 32 + lane];
    for (int i = 0; i < 4; i++) c[i] = __uint_as_float(in[(kA + kB + i) * 32 + lane]);
    product(d, a, b, c);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = __float_as_uint(d[i]);
}

#define MULTIPLY_KERNEL(name, kA, kB)                                                                  \
    KERNEL(conform_##name, 32)(const uint32_t* in, uint32_t* out) { multiply<kA, kB, name>(in, out); } \
    REGISTER_KERNEL(conform_##name)
MULTIPLY_KERNEL(multiply_m16n8k16_bf16, 4, 2)
MULTIPLY_KERNEL(multiply_m16n8k16_f16, 4, 2)
MULTIPLY_KERNEL(multiply_m16n8k8_bf16, 2, 1)
MULTIPLY_KERNEL(multiply_m16n8k8_f16, 2, 1)
