// targets: sm_90a
// One tiny kernel for each variant of the MMA instruction in kernels/ptx/warpgroup.cuh:
// tests/kernels/conformance_hopper.rs says what it must give, on the interpreter and on a GPU.
//
// in: A [64][16], then B [N][16], 16-bit elements in pairs; out: the sums, register by register, 128 threads each,
// first of d = A B^T, then of d = A B^T + d. Operands are laid out in shared memory here, element by element, as the
// PTX ISA draws it.
#include "ptx/ptx.cuh"

// Bytes from the start of an operand to element (r, k): rows of 128 bytes, their 16-byte pieces xored with the row.
struct RowsOfK128 {
    static constexpr int kMajor = kMajorK;
    DEVICE uint32_t at(uint32_t r, uint32_t k) { return r * 128 + (k / 8 ^ r % 8) * 16 + k % 8 * 2; }
    DEVICE uint64_t descriptor(uint32_t address) { return matrix_descriptor_128(address); }
};
// The same, k from the second 32 bytes of the rows on.
struct SecondStepOfK128 {
    static constexpr int kMajor = kMajorK;
    DEVICE uint32_t at(uint32_t r, uint32_t k) { return RowsOfK128::at(r, k + 16); }
    DEVICE uint64_t descriptor(uint32_t address) { return matrix_descriptor_128(address + 32); }
};
struct RowsOfK64 {
    static constexpr int kMajor = kMajorK;
    DEVICE uint32_t at(uint32_t r, uint32_t k) { return r * 64 + (k / 8 ^ r / 2 % 4) * 16 + k % 8 * 2; }
    DEVICE uint64_t descriptor(uint32_t address) { return matrix_descriptor_64(address); }
};
// Matrices of 8 rows of 16 bytes: first the two of k for eight rows, then the next eight rows.
struct MatricesOfK {
    static constexpr int kMajor = kMajorK;
    DEVICE uint32_t at(uint32_t r, uint32_t k) { return r / 8 * 256 + k / 8 * 128 + r % 8 * 16 + k % 8 * 2; }
    DEVICE uint64_t descriptor(uint32_t address) { return matrix_descriptor(address, 128, 256, 0); }
};
// A row of 64 elements of M or N for each k; 16 of k, then the next 64 elements.
struct RowsOfMN {
    static constexpr int kMajor = kMajorMN;
    DEVICE uint32_t at(uint32_t r, uint32_t k) {
        return r / 64 * 2048 + k / 8 * 1024 + k % 8 * 128 + (r % 64 / 8 ^ k % 8) * 16 + r % 8 * 2;
    }
    DEVICE uint64_t descriptor(uint32_t address) { return matrix_descriptor_128_mn(address, 2048); }
};

static constexpr uint32_t kBAt = 8192;  // bytes, of the second operand

template <class Layout>
DEVICE void lay_out(uint8_t* shared, const uint32_t* in, uint32_t rows) {
    const uint16_t* const elements = reinterpret_cast<const uint16_t*>(in);
    for (uint32_t i = threadIdx.x; i < rows * 16; i += 128)
        *reinterpret_cast<uint16_t*>(shared + Layout::at(i / 16, i % 16)) = elements[i];
}

template <int N>
DEVICE void put_out(uint32_t* out, const float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i * 128 + threadIdx.x] = __float_as_uint(d[i]);
}

#define MULTIPLY_bf16 warpgroup_multiply_bf16
#define MULTIPLY_f16 warpgroup_multiply_f16

#define SHARED_A(name, TYPE, N, LayoutA, LayoutB)                                   \
    KERNEL(conform_##name##_##TYPE##_##N, 128)(const uint32_t* in, uint32_t* out) { \
        SHARED_MEMORY(shared);                                                      \
        lay_out<LayoutA>(shared, in, 64);                                           \
        lay_out<LayoutB>(shared + kBAt, in + 512, N);                               \
        fence_proxy_async_shared();                                                 \
        block_sync();                                                               \
        const uint64_t a = LayoutA::descriptor(shared_address(shared)),             \
                       b = LayoutB::descriptor(shared_address(shared) + kBAt);      \
        float d[N / 2];                                                             \
        _Pragma("unroll") for (int i = 0; i < N / 2; i++) d[i] = 7.0f;              \
        warpgroup_fence();                                                          \
        MULTIPLY_##TYPE<LayoutA::kMajor, LayoutB::kMajor>(d, a, b, 0);              \
        warpgroup_commit();                                                         \
        warpgroup_wait<0>();                                                        \
        put_out(out, d);                                                            \
        warpgroup_fence();                                                          \
        MULTIPLY_##TYPE<LayoutA::kMajor, LayoutB::kMajor>(d, a, b, 1);              \
        warpgroup_commit();                                                         \
        warpgroup_wait<0>();                                                        \
        put_out(out + N / 2 * 128, d);                                              \
    }                                                                               \
    REGISTER_KERNEL(conform_##name##_##TYPE##_##N)

#define REGISTER_A(name, TYPE, N, LayoutB)                                                           \
    KERNEL(conform_##name##_##TYPE##_##N, 128)(const uint32_t* in, uint32_t* out) {                  \
        SHARED_MEMORY(shared);                                                                       \
        lay_out<LayoutB>(shared + kBAt, in + 512, N);                                                \
        fence_proxy_async_shared();                                                                  \
        block_sync();                                                                                \
        const uint64_t b = LayoutB::descriptor(shared_address(shared) + kBAt);                       \
        const uint32_t row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4;   \
        const uint32_t a[4] = {in[row * 8 + pair], in[(row + 8) * 8 + pair], in[row * 8 + 4 + pair], \
                               in[(row + 8) * 8 + 4 + pair]};                                        \
        float d[N / 2];                                                                              \
        _Pragma("unroll") for (int i = 0; i < N / 2; i++) d[i] = 7.0f;                               \
        warpgroup_fence();                                                                           \
        MULTIPLY_##TYPE<LayoutB::kMajor>(d, a, b, 0);                                                \
        warpgroup_commit();                                                                          \
        warpgroup_wait<0>();                                                                         \
        put_out(out, d);                                                                             \
        warpgroup_fence();                                                                           \
        MULTIPLY_##TYPE<LayoutB::kMajor>(d, a, b, 1);                                                \
        warpgroup_commit();                                                                          \
        warpgroup_wait<0>();                                                                         \
        put_out(out + N / 2 * 128, d);                                                               \
    }                                                                                                \
    REGISTER_KERNEL(conform_##name##_##TYPE##_##N)

// Every number of columns in every form; each layout once.
#define COLUMNS(N)                                 \
    SHARED_A(k_k, bf16, N, RowsOfK128, RowsOfK128) \
    SHARED_A(k_k, f16, N, RowsOfK128, RowsOfK128)  \
    REGISTER_A(registers_k, bf16, N, RowsOfK128)   \
    REGISTER_A(registers_k, f16, N, RowsOfK128)
COLUMNS(8)
COLUMNS(16)
COLUMNS(24)
COLUMNS(32)
COLUMNS(40)
COLUMNS(48)
COLUMNS(56)
COLUMNS(64)
COLUMNS(80)
COLUMNS(96)
COLUMNS(112)
COLUMNS(128)
COLUMNS(160)
COLUMNS(192)
COLUMNS(224)
COLUMNS(256)
SHARED_A(k_mn, bf16, 64, RowsOfK128, RowsOfMN)
SHARED_A(k_mn, f16, 128, RowsOfK128, RowsOfMN)
SHARED_A(mn_k, bf16, 64, RowsOfMN, RowsOfK128)
SHARED_A(mn_mn, f16, 192, RowsOfMN, RowsOfMN)
SHARED_A(second_step, bf16, 32, SecondStepOfK128, SecondStepOfK128)
SHARED_A(k64_k64, bf16, 64, RowsOfK64, RowsOfK64)
SHARED_A(matrices, f16, 64, MatricesOfK, MatricesOfK)
REGISTER_A(registers_mn, bf16, 128, RowsOfMN)
REGISTER_A(registers_mn, f16, 64, RowsOfMN)
