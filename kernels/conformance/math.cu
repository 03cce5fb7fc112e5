// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/math.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

#define APPROXIMATE_KERNEL(name)                                      \
    KERNEL(conform_##name, 32)(const uint32_t* in, uint32_t* out) {   \
        const uint32_t lane = threadIdx.x;                            \
        out[lane] = __float_as_uint(name(__uint_as_float(in[lane]))); \
    }                                                                 \
    REGISTER_KERNEL(conform_##name)
APPROXIMATE_KERNEL(exp2_approx)
APPROXIMATE_KERNEL(log2_approx)
APPROXIMATE_KERNEL(reciprocal_approx)
APPROXIMATE_KERNEL(rsqrt_approx)
APPROXIMATE_KERNEL(tanh_approx)

// A fused multiply-add of three words at a time.
KERNEL(conform_multiply_add_rounded, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t* const x = in + 3 * threadIdx.x;
    const float sum = multiply_add_rounded(__uint_as_float(x[0]), __uint_as_float(x[1]), __uint_as_float(x[2]));
    out[threadIdx.x] = __float_as_uint(sum);
}
REGISTER_KERNEL(conform_multiply_add_rounded)
