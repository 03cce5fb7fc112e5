// f32 arithmetic with its one rounding spelled out: the compiler does not contract it with what comes after, as it may
// with operators. PTX ISA: Floating-Point Instructions, mul.
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
