// The part of the CUDA language that kernel files use, for the host compiler: keywords, vector types, built-in
// variables and the intrinsics that need no instruction of kernels/ptx/. No CUDA header is needed.
// __shared__ stays undefined on purpose: kernels take shared memory through SHARED_MEMORY(name).
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#define RIGEL_VECTOR2(T, name)           \
    struct alignas(2 * sizeof(T)) name { \
        T x, y;                          \
    };                                   \
    static inline name make_##name(T x, T y) { return {x, y}; }
#define RIGEL_VECTOR4(T, name)           \
    struct alignas(4 * sizeof(T)) name { \
        T x, y, z, w;                    \
    };                                   \
    static inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }
RIGEL_VECTOR2(float, float2)
RIGEL_VECTOR4(float, float4)
RIGEL_VECTOR2(unsigned, uint2)
RIGEL_VECTOR4(unsigned, uint4)
RIGEL_VECTOR2(int, int2)
RIGEL_VECTOR4(int, int4)
RIGEL_VECTOR2(unsigned short, ushort2)
#undef RIGEL_VECTOR2
#undef RIGEL_VECTOR4

#define threadIdx (::interpreter::here().thread_index)
#define blockIdx (::interpreter::here().block_index)
#define blockDim (::interpreter::here().block_size)
#define gridDim (::interpreter::here().grid_size)
static constexpr int warpSize = 32;

static inline unsigned __float_as_uint(float f) {
    unsigned u;
    __builtin_memcpy(&u, &f, 4);
    return u;
}
static inline float __uint_as_float(unsigned u) {
    float f;
    __builtin_memcpy(&f, &u, 4);
    return f;
}
static inline int __float_as_int(float f) { return static_cast<int>(__float_as_uint(f)); }
static inline float __int_as_float(int i) { return __uint_as_float(static_cast<unsigned>(i)); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
static inline int __ffs(int x) { return __builtin_ffs(x); }

template <class A, class B>
static inline typename std::common_type<A, B>::type min(A a, B b) {
    using T = typename std::common_type<A, B>::type;
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
static inline typename std::common_type<A, B>::type max(A a, B b) {
    using T = typename std::common_type<A, B>::type;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
// Macros: the C library declares functions of these names.
#define rsqrtf(x) (1.0f / ::sqrtf(x))
#define __expf(x) (::expf(x))
#define __logf(x) (::logf(x))
#define __fdividef(a, b) ((a) / (b))
#define __frcp_rn(x) (1.0f / (x))
#define __fmaf_rn(a, b, c) (::fmaf((a), (b), (c)))
#define __ldg(pointer) (*(pointer))
