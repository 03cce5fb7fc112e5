// targets: sm_80 compute_80 sm_90
// One or two rows, normalised and multiplied with a weight matrix: the first products of decode's attention and MLP, and
// the logits, without a kernel for the norm.
#include "common/gemv.cuh"
#include "common/norm.cuh"

static constexpr uint32_t kMaxRows = 2;
static constexpr uint32_t kPadding = 32;  // elements behind a row: the two lie in different banks
static constexpr uint32_t kScratch = 2 * kNormMaxThreads / 32;  // floats, of a row

// norm(x[r, :]) for the rows r = gather[0], gather[1], or where that is null 0 and 1, as norm.cu computes it.
//
//   x             T [., depth]   written by earlier work on the stream
//   gather        u32 [rows]     written by earlier work on the stream, each a row of x; or null
//   weight, bias  T [depth]      written before this stream's work began; null bias: none
//   count         elements of a row that are normalised; those behind are zeros in all of them
//
// Every block normalises the rows for itself, into shared memory: 2 x depth x sizeof(T) bytes from L2 and one more wait
// for memory, between griddepcontrol.wait and the first product, while the weights' first 32 KiB are on their way anyway.
// That takes the place of a kernel between two, which costs the end of the one ahead, a start, and its own two waits for
// memory. Beyond two rows the sums would keep the weights waiting.
//
// Threads: as many as norm.cu has for the width hold a row, so that its sums have the same order: a row has the bits that
// norm.cu and gemv.cu give it.
template <class Norm, class T>
struct NormedRows {
    using Element = T;
    const T* x;
    const uint32_t* gather;
    const T *weight, *bias;
    uint32_t count;
    float epsilon;

    // What lies in `shared`.
    struct Layout {
        float* scratch;  // [kMaxRows][kScratch]
        T *weight, *bias;  // [depth] each
        T* normed;  // [kMaxRows][depth + kPadding]
        DEVICE Layout in(uint8_t* shared, uint32_t k) {
            float* const scratch = reinterpret_cast<float*>(shared);
            T* const weight = reinterpret_cast<T*>(scratch + kMaxRows * kScratch);
            return Layout{scratch, weight, weight + k, weight + 2 * k};
        }
    };

    DEVICE RowPart part(uint32_t k) {
        return RowPart{(k / kVector + kNormVectors * 32 - 1) / (kNormVectors * 32) * 32};
    }
    // A thread reads back what it has written itself: no barrier.
    METHOD void ahead(uint32_t k, uint8_t* shared) const {
        const Layout layout = Layout::in(shared, k);
        const RowPart part = NormedRows::part(k);
#pragma unroll
        for (uint32_t v = 0; v < kNormVectors; v++) {
            if (part.holds(v, k)) {
                const uint32_t column = part.column(v);
                *reinterpret_cast<uint4*>(layout.weight + column) = load_readonly_16(weight + column);
                *reinterpret_cast<uint4*>(layout.bias + column) =
                    bias == nullptr ? zero_vector() : load_readonly_16(bias + column);
            }
        }
    }
    template <uint32_t kRowTiles>
    METHOD LaneRows<T, kRowTiles> begin(uint32_t row_count, uint32_t k, uint32_t g, uint8_t* shared) const {
        const Layout layout = Layout::in(shared, k);
        const RowPart part = NormedRows::part(k);
        const uint32_t pitch = k + kPadding;
        // One after the other: the registers of both would not fit beside the weights'.
#pragma unroll 1
        for (uint32_t r = 0; r < row_count; r++) {
            const uint32_t number = gather == nullptr ? r : load_global_4(gather + r);
            const T* const source = x + static_cast<size_t>(number) * k;
            uint4 own[kNormVectors];
#pragma unroll
            for (uint32_t v = 0; v < kNormVectors; v++) {
                const bool holds = part.holds(v, k);
                own[v] = holds ? load_global_16(source + part.column(v)) : zero_vector();
            }
            float* const scratch = layout.scratch + r * kScratch;
            const auto row = RowStatistics<Norm, T>::of(part, own, count, epsilon, scratch);
#pragma unroll
            for (uint32_t v = 0; v < kNormVectors; v++) {
                if (part.holds(v, k)) {
                    const uint32_t column = part.column(v);
                    const uint4 norm_weight = *reinterpret_cast<const uint4*>(layout.weight + column);
                    const uint4 norm_bias = *reinterpret_cast<const uint4*>(layout.bias + column);
                    const uint4 y = row.apply(own[v], norm_weight, norm_bias);
                    *reinterpret_cast<uint4*>(layout.normed + r * pitch + column) = y;
                }
            }
        }
        block_sync();
        return LaneRows<T, kRowTiles>::in(layout.normed, pitch, row_count, g);
    }
    DEVICE uint4 load(const T* from) { return *reinterpret_cast<const uint4*>(from); }
};

// out[m, n] = epilogue(sum over k of norm(x[m, :])[k] weights[n, k]), by common/gemv.cuh.
//
// Grid: (ceil(n / 16)), 256 threads, which hold depth <= 8192.
// Smem: that of gemv, 2 x 2 x 16 floats, and
// (4 depth + 2 x 32) x sizeof(T): the norm's weights, read ahead, and both rows.
// Bytes: (n k + 2 depth + m k + rows columns + the epilogue's) x sizeof(T).
// FLOPs: 2 m n k, and
// about 8 for each element of x.
// Registers: at most 124 (gemv_normed_*)
#define GEMV_NORMED_KERNEL(name, Norm, Epilogue, FORM, T)                                                         \
    KERNEL(name, kThreads, 2)                                                                                     \
    (const T* x, const uint32_t* gather, const T* norm_weight, const T* norm_bias, uint32_t count, float epsilon, \
     const T* weights, FORM##_PARAMETERS(T)) {                                                                    \
        const NormedRows<Norm, T> normed{x, gather, norm_weight, norm_bias, count, epsilon};                      \
        gemv<Epilogue, 1, 1>(normed, DenseWeights<T>{weights}, FORM##_OUTPUT(T), m, n, k);                        \
    }                                                                                                             \
    REGISTER_KERNEL(name)
#define GEMV_NORMED_KERNELS(form, Norm, T)                                                          \
    GEMV_NORMED_KERNEL(gemv_normed_bias_gelu_##form##_##T, Norm, BiasGelu, MATRIX, T)               \
    GEMV_NORMED_KERNEL(gemv_normed_bias_rope_kv_##form##_##T, Norm, BiasRopeKv, QUERY_KEY_VALUE, T) \
    GEMV_NORMED_KERNEL(gemv_normed_logits_##form##_##T, Norm, Logits, LOGITS, T)

GEMV_NORMED_KERNELS(layer, LayerNorm, bf16)
GEMV_NORMED_KERNELS(layer, LayerNorm, f16)
GEMV_NORMED_KERNELS(rms, RmsNorm, bf16)
GEMV_NORMED_KERNELS(rms, RmsNorm, f16)
