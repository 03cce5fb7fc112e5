// targets: sm_80 compute_80 sm_90
// GEMV of one or two rows with a fused norm: decode's QKV projection, up projection and logits.
#include "common/gemv.cuh"
#include "common/norm.cuh"

static constexpr uint32_t kMaxRows = 2;
static constexpr uint32_t kPadding = 32;  // elements behind a row: the two lie in different banks
static constexpr uint32_t kScratch = 2 * kNormMaxThreads / 32;  // floats, of a row

// norm(x[r, :]) for the rows r = gather[0], gather[1], or where that is null 0 and 1, as norm.cu computes it.
//
//   x             T [., k]       written by earlier work on the stream
//   gather        u32 [rows]     written by earlier work on the stream, each a row of x; or null
//   weight, bias  T [k]          written before this stream's work began; null bias: none
//   count         elements of a row that are normalised; those behind are zeros in all of them
//
// Every block normalises the rows itself, into shared memory: 2 x k x sizeof(T) bytes from L2 and one more memory
// latency between griddepcontrol.wait and the first MMA, while the first 32 KiB of weights are in flight anyway. This
// replaces a kernel of its own, which would cost a drain, a launch and two memory latencies. With more than two rows
// the norm would delay the weights.
//
// The threads that norm.cu would use for this width hold a row, so sums have the same order and a row has the bits of
// norm.cu followed by gemv.cu.
template <class Norm, class T>
struct NormedRows {
    using Element = T;
    const T* x;
    const uint32_t* gather;
    const T *weight, *bias;
    uint32_t count;
    float epsilon;

    // Layout of `shared`.
    struct Layout {
        float* scratch;  // [kMaxRows][kScratch]
        T *weight, *bias;  // [k] each
        T* normed;  // [kMaxRows][k + kPadding]
        DEVICE Layout in(uint8_t* shared, uint32_t k) {
            float* const scratch = reinterpret_cast<float*>(shared);
            T* const weight = reinterpret_cast<T*>(scratch + kMaxRows * kScratch);
            return Layout{scratch, weight, weight + k, weight + 2 * k};
        }
    };

    DEVICE RowPart part(uint32_t k) {
        return RowPart{(k / kVector + kNormVectors * 32 - 1) / (kNormVectors * 32) * 32};
    }
    // Each thread reads back what it wrote: no barrier.
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
        // One row after the other: the registers of both would not fit beside the weights'.
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
// Grid: (ceil(n / 16)), 256 threads, which hold k <= 8192.
// Smem: that of gemv, 2 x 2 x 16 floats, and
// (4 k + 2 x 32) x sizeof(T): the norm's weights, read ahead, and both rows.
// Bytes: (n k + 2 k + m k + m n + the epilogue's) x sizeof(T).
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
