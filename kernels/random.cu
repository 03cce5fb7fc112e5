// targets: sm_80 compute_80 sm_90
// Random matrices whose every element depends on its place alone: the generator of src/model/random.rs, bit for bit.
#include "common/dtypes.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kThreads = 256;

// 32 bits well mixed, one to one (Ettinger and Wellons' "lowbias32").
DEVICE uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

// Computes: out[r, c] = centre + range (2 u(s columns + c) - 1), rounded to T, where s is the row that row r takes its
// values from, and u(i) the upper 24 bits of mix(i ^ mix(seed)) as a fraction of 1. With `head_dim` 0, s = r; otherwise
// the rows belong to heads whose pairs are interleaved: s = h head_dim + p and h head_dim + p + head_dim / 2 for the
// rows h head_dim + 2 p and the one behind it. Shapes:
//   out  T [rows, columns], `stride` elements from a row to the next; what lies between the rows is not touched
//
// Every operation is rounded by itself: 2 u - 1 is exact, and the product cannot be fused with the sum.
//
// Grid: any; each thread takes every (grid x 256)th element. 256 threads.
// Bytes: rows x columns x 2 written.
// FLOPs: 4 an element.
// Alignment: 2 bytes. rows x columns below 2^32.
// Registers: at most 24 (random_fill_*)
template <class T>
DEVICE void random_fill(T* out, uint64_t stride, uint32_t elements, uint32_t columns, uint32_t head_dim, uint32_t seed,
                        float centre, float range) {
    grid_dependency_launch();
    const uint32_t key = mix(seed);
    const uint32_t half = head_dim / 2;
    grid_dependency_wait();
    // 64 bits: the step past the end may not come round to the beginning.
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * kThreads + threadIdx.x; i < elements; i += step) {
        const uint32_t row = static_cast<uint32_t>(i) / columns;
        const uint32_t column = static_cast<uint32_t>(i) - row * columns;
        uint32_t source = row;
        if (head_dim != 0) {
            const uint32_t within = row % head_dim;
            source = row - within + within / 2 + (within & 1) * half;
        }
        const uint32_t bits = mix((source * columns + column) ^ key);
        const float fraction = static_cast<float>(bits >> 8) * 0x1p-24f;
        const float centred = 2.0f * fraction - 1.0f;
        out[row * stride + column] = from_f32<T>(centre + multiply_rounded(range, centred));
    }
}

#define RANDOM_KERNEL(name, T)                                                                                      \
    KERNEL(name, kThreads)                                                                                          \
    (T * out, uint64_t stride, uint32_t elements, uint32_t columns, uint32_t head_dim, uint32_t seed, float centre, \
     float range) {                                                                                                 \
        random_fill<T>(out, stride, elements, columns, head_dim, seed, centre, range);                              \
    }                                                                                                               \
    REGISTER_KERNEL(name)

RANDOM_KERNEL(random_fill_bf16, bf16)
RANDOM_KERNEL(random_fill_f16, f16)
