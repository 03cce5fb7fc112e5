// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/atomic.cuh: tests/kernels/conformance.rs says what it must
// give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// All lanes of four blocks update out[0] with their input; each writes the old value it saw to out[32 + thread].
#define ATOMIC_KERNEL(name)                                         \
    KERNEL(conform_##name, 32)(const uint32_t* in, uint32_t* out) { \
        const uint32_t thread = blockIdx.x * 32 + threadIdx.x;      \
        out[32 + thread] = name(out, in[thread]);                   \
    }                                                               \
    REGISTER_KERNEL(conform_##name)
ATOMIC_KERNEL(atomic_add_relaxed)
ATOMIC_KERNEL(atomic_add_acq_rel)
ATOMIC_KERNEL(atomic_min_relaxed)
ATOMIC_KERNEL(atomic_max_relaxed)
ATOMIC_KERNEL(atomic_exchange_relaxed)
ATOMIC_KERNEL(atomic_exchange_acq_rel)

KERNEL(conform_atomic_wrap_acq_rel, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    out[32 + thread] = atomic_wrap_acq_rel(out, in[128]);
}
REGISTER_KERNEL(conform_atomic_wrap_acq_rel)

KERNEL(conform_atomic_add_float, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    atomic_add_relaxed(reinterpret_cast<float*>(out), static_cast<float>(in[thread]));
    out[32 + thread] = 0;
}
REGISTER_KERNEL(conform_atomic_add_float)

KERNEL(conform_reduce_add_float, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    reduce_add_relaxed(reinterpret_cast<float*>(out), static_cast<float>(in[thread]));
    out[32 + thread] = 0;
}
REGISTER_KERNEL(conform_reduce_add_float)

KERNEL(conform_reduce_add_release, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    reduce_add_release(out, in[thread]);
    out[32 + thread] = 0;
}
REGISTER_KERNEL(conform_reduce_add_release)

// An addition made of compare-exchanges.
KERNEL(conform_atomic_compare_exchange_relaxed, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    uint32_t seen = load_relaxed_gpu(out);
    for (;;) {
        const uint32_t old = atomic_compare_exchange_relaxed(out, seen, seen + in[thread]);
        if (old == seen) break;
        seen = old;
    }
    out[32 + thread] = seen;
}
REGISTER_KERNEL(conform_atomic_compare_exchange_relaxed)

// An addition made of compare-exchanges.
KERNEL(conform_atomic_compare_exchange_acq_rel, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    uint32_t seen = load_relaxed_gpu(out);
    for (;;) {
        const uint32_t old = atomic_compare_exchange_acq_rel(out, seen, seen + in[thread]);
        if (old == seen) break;
        seen = old;
    }
    out[32 + thread] = seen;
}
REGISTER_KERNEL(conform_atomic_compare_exchange_acq_rel)

// The low word of each 64-bit value is the thread, the high word its input.
KERNEL(conform_atomic_max_u64, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    const uint64_t value = static_cast<uint64_t>(in[thread]) << 32 | thread;
    atomic_max_relaxed(reinterpret_cast<uint64_t*>(out), value);
    out[32 + thread] = 0;
}
REGISTER_KERNEL(conform_atomic_max_u64)

// One thread takes the pair (0, 0), all others see what it left.
KERNEL(conform_atomic_compare_exchange_u64, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t thread = blockIdx.x * 32 + threadIdx.x;
    const uint64_t mine = static_cast<uint64_t>(in[thread]) << 32 | (thread + 1);
    const uint64_t old = atomic_compare_exchange_relaxed(reinterpret_cast<uint64_t*>(out), uint64_t{0}, mine);
    out[32 + thread] = static_cast<uint32_t>(old);
}
REGISTER_KERNEL(conform_atomic_compare_exchange_u64)
