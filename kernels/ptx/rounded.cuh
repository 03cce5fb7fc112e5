// f32 arithmetic with its one rounding spelled out: the compiler does not contract it with what comes after, as it may
// with operators. PTX ISA: Floating-Point Instructions, mul and fma.
#pragma once
#include "language.cuh"

// a b, to nearest even; mul.rn.
DEVICE float multiply_rounded(float a, float b) {
#if ON_GPU
    float product;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
    return product;
#else
    return a * b;
#endif
}

// a b + c, rounded once, to nearest even; fma.rn.
DEVICE float multiply_add_rounded(float a, float b, float c) {
#if ON_GPU
    float sum;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(sum) : "f"(a), "f"(b), "f"(c));
    return sum;
#else
    return __builtin_fmaf(a, b, c);
#endif
}
