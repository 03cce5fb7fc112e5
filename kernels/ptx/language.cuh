// The words with which a kernel file is written, so that nvcc and the host compiler both accept it.
//
//   KERNEL(norm_layer_bf16, 256)(const bf16* x, int rows) { ... }     arguments as of __launch_bounds__
//   REGISTER_KERNEL(norm_layer_bf16)                                  the interpreter finds kernels by name
//   SHARED_MEMORY(tile);                                              uint8_t* to the block's dynamic shared memory
//   DEVICE float square(float x) { return x * x; }                    a function that kernels call
//   METHOD void add(float x) { sum += x; }            a member function that kernels call
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__

#define ON_GPU 1
#define DEVICE static __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name
#define REGISTER_KERNEL(name)
// One declaration for all: extern "C" kernels and templates must agree on its linkage.
extern __shared__ __align__(1024) uint8_t rigel_dynamic_shared_memory[];
#define SHARED_MEMORY(name) uint8_t* const name = rigel_dynamic_shared_memory

#else

#define ON_GPU 0
#include "cuda_language.h"  // crates/rigel-interpreter/include
#include "twins.h"
#define DEVICE static inline __attribute__((always_inline))
#define METHOD inline __attribute__((always_inline))
#define KERNEL(name, ...)                                             \
    static constexpr unsigned name##_launch_bounds[] = {__VA_ARGS__}; \
    extern "C" __attribute__((visibility("hidden"))) void name
#define REGISTER_KERNEL(name) \
    static ::interpreter::Registration<decltype(&name)> name##_registration(#name, &name, name##_launch_bounds[0]);
#define SHARED_MEMORY(name) uint8_t* const name = ::interpreter::here().shared_memory

#endif
