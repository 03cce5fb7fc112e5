// targets: sm_80 compute_80 sm_90
// GEMV for a few rows of activations: decode, bound by reading the weights once.
#include "common/gemv.cuh"

// out[m, n] = epilogue(sum over k of x[m, k] weights[n, k]), x [m, k]: see common/gemv.cuh. One kernel for each
// epilogue, type and tile shape; the launcher picks the shape by the number of rows.
// Registers: at most 80 (gemv_*_8x16 gemv_*_8x32), 108 (gemv_*_16x32)
#define GEMV_KERNEL(name, Epilogue, FORM, T, kRowTiles, kColumnTiles)                                                 \
    KERNEL(name, kThreads, 2)(const T* x, const T* weights, FORM##_PARAMETERS(T)) {                                   \
        gemv<Epilogue, kRowTiles, kColumnTiles>(RowsInMemory<T>{x}, DenseWeights<T>{weights}, FORM##_OUTPUT(T), m, n, \
                                                k);                                                                   \
    }                                                                                                                 \
    REGISTER_KERNEL(name)
#define GEMV_SHAPES(name, Epilogue, FORM, T)                \
    GEMV_KERNEL(name##_##T##_8x16, Epilogue, FORM, T, 1, 1) \
    GEMV_KERNEL(name##_##T##_8x32, Epilogue, FORM, T, 1, 2) \
    GEMV_KERNEL(name##_##T##_16x32, Epilogue, FORM, T, 2, 2)
#define GEMV_KERNELS(T)                                            \
    GEMV_SHAPES(gemv_bias_gelu, BiasGelu, MATRIX, T)               \
    GEMV_SHAPES(gemv_bias_residual, BiasResidual, MATRIX, T)       \
    GEMV_SHAPES(gemv_bias_rope_kv, BiasRopeKv, QUERY_KEY_VALUE, T) \
    GEMV_SHAPES(gemv_logits, Logits, LOGITS, T)

GEMV_KERNELS(bf16)
GEMV_KERNELS(f16)
