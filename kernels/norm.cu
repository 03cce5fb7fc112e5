// targets: sm_80 compute_80 sm_90
// Normalisation of rows, LayerNorm or RMSNorm, in one pass over memory.
#include "common/norm.cuh"

// Computes: out[r, :] = normalise(hidden[r, :]), or of row gather[r] where `gather` is given. The statistics are sums
// of f32 over registers: mean first, then the squares of the differences from it.
//
// A row has `width` elements, the first `count` of which are the model's; the rest are padding: zero in `hidden`,
// `weight` and `bias`, and so in `out`. Shapes:
//   hidden        T [., width]      written by earlier work on the stream
//   gather        u32 [rows]        written by earlier work on the stream, each a row of `hidden`; or null
//   weight, bias  T [width]         written before this stream's work began; null bias: none
//   out           T [rows, width]
//
// Grid: (rows); block: width / 8 / 4 threads, rounded up to whole warps; thread t has vectors t, t + block, ...
// Smem: 2 x 16 floats.
// Bytes: rows width T read and written; with gather 4 rows; and weight, bias once.
// FLOPs: about 8 an element.
// Alignment: width a multiple of 8; all buffers 16 bytes.
// Registers: at most 108 (norm_layer_*), 90 (norm_rms_*)
template <class Norm, class T>
DEVICE void norm(const T* hidden, const uint32_t* gather, const T* weight, const T* bias, T* out, uint32_t width,
                 uint32_t count, float epsilon) {
    SHARED_MEMORY(shared);
    float* const scratch = reinterpret_cast<float*>(shared);
    const size_t out_row = static_cast<size_t>(blockIdx.x) * width;
    const RowPart part{blockDim.x};

    grid_dependency_launch();
    uint4 weights[kNormVectors], biases[kNormVectors];
#pragma unroll
    for (uint32_t v = 0; v < kNormVectors; v++) {
        const uint32_t column = part.column(v);
        weights[v] = column < width ? load_readonly_16(weight + column) : zero_vector();
        biases[v] = column < width && bias != nullptr ? load_readonly_16(bias + column) : zero_vector();
    }
    grid_dependency_wait();
    const size_t row = gather == nullptr ? out_row : static_cast<size_t>(load_global_4(gather + blockIdx.x)) * width;

    uint4 x[kNormVectors];
#pragma unroll
    for (uint32_t v = 0; v < kNormVectors; v++) {
        const uint32_t column = part.column(v);
        x[v] = column < width ? load_global_16(hidden + row + column) : zero_vector();
    }
    const auto statistics = RowStatistics<Norm, T>::of(part, x, count, epsilon, scratch);
#pragma unroll
    for (uint32_t v = 0; v < kNormVectors; v++) {
        const uint32_t column = part.column(v);
        if (column < width) {
            const uint4 y = statistics.apply(x[v], weights[v], biases[v]);
            store_global_16(out + out_row + column, y);
        }
    }
}

#define NORM_KERNEL(name, Norm, T)                                                                                    \
    KERNEL(name, kNormMaxThreads)                                                                                     \
    (const T* hidden, const uint32_t* gather, const T* weight, const T* bias, T* out, uint32_t width, uint32_t count, \
     float epsilon) {                                                                                                 \
        norm<Norm, T>(hidden, gather, weight, bias, out, width, count, epsilon);                                      \
    }                                                                                                                 \
    REGISTER_KERNEL(name)

NORM_KERNEL(norm_layer_bf16, LayerNorm, bf16)
NORM_KERNEL(norm_layer_f16, LayerNorm, f16)
NORM_KERNEL(norm_rms_bf16, RmsNorm, bf16)
NORM_KERNEL(norm_rms_f16, RmsNorm, f16)
