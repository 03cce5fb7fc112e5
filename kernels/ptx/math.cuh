// Approximate elementary functions of the special-function unit; subnormal inputs and results count as zero (.ftz).
// PTX ISA: Floating-Point Instructions. Their error on a GPU is not the host model's: compare with tolerances.
#pragma once
#include "language.cuh"

// 2 to the power x; ex2.approx.ftz, relative error 2^-22.
DEVICE float exp2_approx(float x) {
#if ON_GPU
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return interpreter::exp2_approx(x);
#endif
}

// Base-2 logarithm; lg2.approx.ftz.
DEVICE float log2_approx(float x) {
#if ON_GPU
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return interpreter::log2_approx(x);
#endif
}

// 1 / x; rcp.approx.ftz, 1 ulp.
DEVICE float reciprocal_approx(float x) {
#if ON_GPU
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return interpreter::reciprocal_approx(x);
#endif
}

// 1 / sqrt(x); rsqrt.approx.ftz, relative error 2^-22.9.
DEVICE float rsqrt_approx(float x) {
#if ON_GPU
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return interpreter::rsqrt_approx(x);
#endif
}

// Hyperbolic tangent; tanh.approx (sm_75), relative error 2^-11.
DEVICE float tanh_approx(float x) {
#if ON_GPU
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return interpreter::tanh_approx(x);
#endif
}
