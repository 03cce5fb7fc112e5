// Tensor-core instructions of a warp: ldmatrix, stmatrix and mma.sync. All 32 lanes of the warp take part.
// PTX ISA: Warp Level Matrix Instructions, ldmatrix, stmatrix and mma (fragment layouts are drawn there).
#pragma once
#include "language.cuh"

// ldmatrix reads `Count` 8x8 matrices of 16-bit elements from shared memory. Lane 8 m + r gives the address of row r of
// matrix m (16 bytes, 16-byte aligned); lanes beyond 8 Count give any valid address. Afterwards lane l holds of each
// matrix m, in register m, the elements (row l / 4, columns 2 (l % 4) and 2 (l % 4) + 1), low half first.
// The transposed form hands out the transposed matrices.

DEVICE void load_matrix_x1(uint32_t (&fragment)[1], uint32_t shared_row_address) {
#if ON_GPU
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(fragment[0])
                 : "r"(shared_row_address)
                 : "memory");
#else
    interpreter::load_matrix(fragment, 1, interpreter::Layout::AsStored, shared_row_address);
#endif
}

DEVICE void load_matrix_x1_transposed(uint32_t (&fragment)[1], uint32_t shared_row_address) {
#if ON_GPU
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(fragment[0])
                 : "r"(shared_row_address)
                 : "memory");
#else
    interpreter::load_matrix(fragment, 1, interpreter::Layout::Transposed, shared_row_address);
#endif
}

DEVICE void load_matrix_x2(uint32_t (&fragment)[2], uint32_t shared_row_address) {
#if ON_GPU
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(shared_row_address)
                 : "memory");
#else
    interpreter::load_matrix(fragment, 2, interpreter::Layout::AsStored, shared_row_address);
#endif
}

DEVICE void load_matrix_x2_transposed(uint32_t (&fragment)[2], uint32_t shared_row_address) {
#if ON_GPU
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(shared_row_address)
                 : "memory");
#else
    interpreter::load_matrix(fragment, 2, interpreter::Layout::Transposed, shared_row_address);
#endif
}

DEVICE void load_matrix_x4(uint32_t (&fragment)[4], uint32_t shared_row_address) {
#if ON_GPU
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_row_address)
                 : "memory");
#else
    interpreter::load_matrix(fragment, 4, interpreter::Layout::AsStored, shared_row_address);
#endif
}

DEVICE void load_matrix_x4_transposed(uint32_t (&fragment)[4], uint32_t shared_row_address) {
#if ON_GPU
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_row_address)
                 : "memory");
#else
    interpreter::load_matrix(fragment, 4, interpreter::Layout::Transposed, shared_row_address);
#endif
}

// stmatrix (sm_90) is ldmatrix the other way: lane l gives of each matrix m, in register m, the elements that ldmatrix
// would hand it, and lane 8 m + r the address that row r of matrix m goes to.

DEVICE void store_matrix_x4(uint32_t shared_row_address, const uint32_t (&fragment)[4]) {
#if ON_GPU
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_row_address),
                 "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
                 : "memory");
#else
    interpreter::store_matrix(fragment, 4, interpreter::Layout::AsStored, shared_row_address);
#endif
}

DEVICE void store_matrix_x4_transposed(uint32_t shared_row_address, const uint32_t (&fragment)[4]) {
#if ON_GPU
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_row_address),
                 "r"(fragment[0]), "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
                 : "memory");
#else
    interpreter::store_matrix(fragment, 4, interpreter::Layout::Transposed, shared_row_address);
#endif
}

// d = a b + c on a tile of 16 rows, 8 columns and k = 16 or 8, a row-major, b column-major ("row.col"), sums in f32.
// With g = lane / 4 and t = lane % 4, packed pairs low half first:
//   a[0], a[1], a[2], a[3]   rows g, g+8, g, g+8; columns 2t, 2t | 2t+8, 2t+8 (k = 8: a[0], a[1] alone)
//   b[0], b[1]               rows 2t | 2t+8, column g                         (k = 8: b[0] alone)
//   c, d [0..3]              rows g, g, g+8, g+8; columns 2t, 2t+1, 2t, 2t+1

DEVICE void multiply_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
#if ON_GPU
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
        "%12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    interpreter::multiply_m16n8k16(d, a, b, c, interpreter::Element::Bf16);
#endif
}

DEVICE void multiply_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
#if ON_GPU
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, "
        "%12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    interpreter::multiply_m16n8k16(d, a, b, c, interpreter::Element::F16);
#endif
}

DEVICE void multiply_m16n8k8_bf16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], const float (&c)[4]) {
#if ON_GPU
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    interpreter::multiply_m16n8k8(d, a, b, c, interpreter::Element::Bf16);
#endif
}

DEVICE void multiply_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], const float (&c)[4]) {
#if ON_GPU
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#else
    interpreter::multiply_m16n8k8(d, a, b, c, interpreter::Element::F16);
#endif
}
