// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/matrix.cuh: tests/kernels_conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// in: 128 words, as four 8x8 matrices of 16-bit elements, row by row, in shared memory.
DEVICE uint32_t matrix_row(const uint32_t* in, uint8_t* shared) {
    uint32_t* words = reinterpret_cast<uint32_t*>(shared);
    for (uint32_t i = threadIdx.x; i < 128; i += 32) words[i] = in[i];
    warp_sync();
    return shared_address(shared) + threadIdx.x * 16;
}

KERNEL(conform_load_matrix_x1, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t fragment[1];
    load_matrix_x1(fragment, matrix_row(in, shared));
    for (int m = 0; m < 1; m++) out[m * 32 + threadIdx.x] = fragment[m];
}
REGISTER_KERNEL(conform_load_matrix_x1)

KERNEL(conform_load_matrix_x1_transposed, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t fragment[1];
    load_matrix_x1_transposed(fragment, matrix_row(in, shared));
    for (int m = 0; m < 1; m++) out[m * 32 + threadIdx.x] = fragment[m];
}
REGISTER_KERNEL(conform_load_matrix_x1_transposed)

KERNEL(conform_load_matrix_x2, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t fragment[2];
    load_matrix_x2(fragment, matrix_row(in, shared));
    for (int m = 0; m < 2; m++) out[m * 32 + threadIdx.x] = fragment[m];
}
REGISTER_KERNEL(conform_load_matrix_x2)

KERNEL(conform_load_matrix_x2_transposed, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t fragment[2];
    load_matrix_x2_transposed(fragment, matrix_row(in, shared));
    for (int m = 0; m < 2; m++) out[m * 32 + threadIdx.x] = fragment[m];
}
REGISTER_KERNEL(conform_load_matrix_x2_transposed)

KERNEL(conform_load_matrix_x4, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t fragment[4];
    load_matrix_x4(fragment, matrix_row(in, shared));
    for (int m = 0; m < 4; m++) out[m * 32 + threadIdx.x] = fragment[m];
}
REGISTER_KERNEL(conform_load_matrix_x4)

KERNEL(conform_load_matrix_x4_transposed, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t fragment[4];
    load_matrix_x4_transposed(fragment, matrix_row(in, shared));
    for (int m = 0; m < 4; m++) out[m * 32 + threadIdx.x] = fragment[m];
}
REGISTER_KERNEL(conform_load_matrix_x4_transposed)

// in: the fragments a, b and c, register by register, 32 lanes each; out: d likewise.
KERNEL(conform_multiply_m16n8k16_bf16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    uint32_t a[4], b[2];
    float c[4], d[4];
    for (int i = 0; i < 4; i++) a[i] = in[i * 32 + lane];
    for (int i = 0; i < 2; i++) b[i] = in[(4 + i) * 32 + lane];
    for (int i = 0; i < 4; i++) c[i] = __uint_as_float(in[(6 + i) * 32 + lane]);
    multiply_m16n8k16_bf16(d, a, b, c);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = __float_as_uint(d[i]);
}
REGISTER_KERNEL(conform_multiply_m16n8k16_bf16)

KERNEL(conform_multiply_m16n8k16_f16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    uint32_t a[4], b[2];
    float c[4], d[4];
    for (int i = 0; i < 4; i++) a[i] = in[i * 32 + lane];
    for (int i = 0; i < 2; i++) b[i] = in[(4 + i) * 32 + lane];
    for (int i = 0; i < 4; i++) c[i] = __uint_as_float(in[(6 + i) * 32 + lane]);
    multiply_m16n8k16_f16(d, a, b, c);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = __float_as_uint(d[i]);
}
REGISTER_KERNEL(conform_multiply_m16n8k16_f16)

KERNEL(conform_multiply_m16n8k8_bf16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    uint32_t a[2], b[1];
    float c[4], d[4];
    for (int i = 0; i < 2; i++) a[i] = in[i * 32 + lane];
    for (int i = 0; i < 1; i++) b[i] = in[(2 + i) * 32 + lane];
    for (int i = 0; i < 4; i++) c[i] = __uint_as_float(in[(3 + i) * 32 + lane]);
    multiply_m16n8k8_bf16(d, a, b, c);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = __float_as_uint(d[i]);
}
REGISTER_KERNEL(conform_multiply_m16n8k8_bf16)

KERNEL(conform_multiply_m16n8k8_f16, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    uint32_t a[2], b[1];
    float c[4], d[4];
    for (int i = 0; i < 2; i++) a[i] = in[i * 32 + lane];
    for (int i = 0; i < 1; i++) b[i] = in[(2 + i) * 32 + lane];
    for (int i = 0; i < 4; i++) c[i] = __uint_as_float(in[(3 + i) * 32 + lane]);
    multiply_m16n8k8_f16(d, a, b, c);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = __float_as_uint(d[i]);
}
REGISTER_KERNEL(conform_multiply_m16n8k8_f16)
