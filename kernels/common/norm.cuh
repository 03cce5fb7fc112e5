// Normalisation of one row by some threads of a block, LayerNorm or RMSNorm: what the norm kernel does to its rows, and
// gemv_normed to those that it multiplies. The sums have one order for both, and so the row the same bits.
#pragma once
#include "common/reduce.cuh"
#include "common/vector.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kNormVectors = 4;  // of a thread
static constexpr uint32_t kNormMaxThreads = 512;  // width <= 512 x 4 x 8 = 16384

// y = (x - mean(x)) / sqrt(var(x) + epsilon) weight + bias, var the biased variance, as torch.nn.LayerNorm.
struct LayerNorm {
    static constexpr bool kCentered = true;
};
// y = x / sqrt(mean(x^2) + epsilon) weight, as LlamaRMSNorm.
struct RmsNorm {
    static constexpr bool kCentered = false;
};

// A thread's part of a row that `threads` threads hold, a multiple of 32: vectors thread, thread + threads, ...
// Threads beyond hold nothing, and take part in the sums alone.
struct RowPart {
    uint32_t threads;
    METHOD uint32_t column(uint32_t vector) const { return (vector * threads + threadIdx.x) * kVector; }
    METHOD bool holds(uint32_t vector, uint32_t width) const { return threadIdx.x < threads && column(vector) < width; }
};

// The statistics of a row, and the row with them: mean first, then the squares of the differences from it, sums of f32
// over registers. Of its `width` elements the first `count` are the model's, the rest padding: zeros.
// All threads of the block call it; `scratch`: 2 x kNormMaxThreads / 32 floats, free again after a barrier.
template <class Norm, class T>
struct RowStatistics {
    float mean, inverse;
    DEVICE RowStatistics of(const RowPart& part, const uint4 (&x)[kNormVectors], uint32_t count, float epsilon,
                            float* scratch) {
        // Within 2^-22 of 1 / count: a division would call a subroutine, around which registers are spilled.
        const float share = reciprocal_approx(static_cast<float>(count));
        float total = 0.0f;
#pragma unroll
        for (uint32_t v = 0; v < kNormVectors; v++) {
            float values[kVector];
            unpack<T>(x[v], values);
#pragma unroll
            for (uint32_t i = 0; i < kVector; i++) total += values[i];
        }
        RowStatistics row;
        row.mean = Norm::kCentered ? sum_of_threads(total, scratch, part.threads) * share : 0.0f;
        float squares = 0.0f;
#pragma unroll
        for (uint32_t v = 0; v < kNormVectors; v++) {
            float values[kVector];
            unpack<T>(x[v], values);
#pragma unroll
            for (uint32_t i = 0; i < kVector; i++) {
                const float difference = part.column(v) + i < count ? values[i] - row.mean : 0.0f;
                squares += difference * difference;
            }
        }
        // Scratch of its own: no barrier between the two sums.
        const float sum = sum_of_threads(squares, scratch + kNormMaxThreads / 32, part.threads);
        row.inverse = rsqrt_approx(sum * share + epsilon);
        return row;
    }
    // Eight elements, normalised and rounded.
    METHOD uint4 apply(const uint4& packed, const uint4& weight, const uint4& bias) const {
        float x[kVector], weights[kVector], biases[kVector], y[kVector];
        unpack<T>(packed, x);
        unpack<T>(weight, weights);
        unpack<T>(bias, biases);
#pragma unroll
        for (uint32_t i = 0; i < kVector; i++) y[i] = (x[i] - mean) * inverse * weights[i] + biases[i];
        return pack<T>(y);
    }
};
