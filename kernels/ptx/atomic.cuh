// Read-modify-write on global (or shared) memory at device scope; each returns the old value.
// PTX ISA: Parallel Synchronization and Communication, atom and red. _relaxed orders nothing by itself (a fence_gpu
// before it releases, one after it acquires); _acq_rel does both.
#pragma once
#include "language.cuh"

// *address += value.
DEVICE uint32_t atomic_add_relaxed(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.relaxed.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#else
    return interpreter::atomic_add(address, value, interpreter::Order::Relaxed);
#endif
}

// *address += value.
DEVICE uint32_t atomic_add_acq_rel(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#else
    return interpreter::atomic_add(address, value, interpreter::Order::AcqRel);
#endif
}

// *address += value; the order of additions is not fixed, so sums differ between runs.
DEVICE float atomic_add_relaxed(float* address, float value) {
#if ON_GPU
    float old;
    asm volatile("atom.relaxed.gpu.add.f32 %0, [%1], %2;" : "=f"(old) : "l"(address), "f"(value) : "memory");
    return old;
#else
    return interpreter::atomic_add(address, value, interpreter::Order::Relaxed);
#endif
}

// *address = min(*address, value).
DEVICE uint32_t atomic_min_relaxed(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.relaxed.gpu.min.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#else
    return interpreter::atomic_min(address, value, interpreter::Order::Relaxed);
#endif
}

// *address = max(*address, value).
DEVICE uint32_t atomic_max_relaxed(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.relaxed.gpu.max.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#else
    return interpreter::atomic_max(address, value, interpreter::Order::Relaxed);
#endif
}

// *address = value.
DEVICE uint32_t atomic_exchange_relaxed(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.relaxed.gpu.exch.b32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#else
    return interpreter::atomic_exchange(address, value, interpreter::Order::Relaxed);
#endif
}

// *address = value.
DEVICE uint32_t atomic_exchange_acq_rel(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.exch.b32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(value) : "memory");
    return old;
#else
    return interpreter::atomic_exchange(address, value, interpreter::Order::AcqRel);
#endif
}

// Counts up to `last`, then wraps to 0: *address = old >= last ? 0 : old + 1. The last of last + 1 callers gets `last`,
// and the counter is ready for the next launch.
DEVICE uint32_t atomic_wrap_acq_rel(uint32_t* address, uint32_t last) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(address), "r"(last) : "memory");
    return old;
#else
    return interpreter::atomic_wrap(address, last, interpreter::Order::AcqRel);
#endif
}

// If *address == expected, *address = value.
DEVICE uint32_t atomic_compare_exchange_relaxed(uint32_t* address, uint32_t expected, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.relaxed.gpu.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(old)
                 : "l"(address), "r"(expected), "r"(value)
                 : "memory");
    return old;
#else
    return interpreter::atomic_compare_exchange(address, expected, value, interpreter::Order::Relaxed);
#endif
}

// If *address == expected, *address = value.
DEVICE uint32_t atomic_compare_exchange_acq_rel(uint32_t* address, uint32_t expected, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.cas.b32 %0, [%1], %2, %3;"
                 : "=r"(old)
                 : "l"(address), "r"(expected), "r"(value)
                 : "memory");
    return old;
#else
    return interpreter::atomic_compare_exchange(address, expected, value, interpreter::Order::AcqRel);
#endif
}

// If *address == expected, *address = value.
DEVICE uint64_t atomic_compare_exchange_relaxed(uint64_t* address, uint64_t expected, uint64_t value) {
#if ON_GPU
    uint64_t old;
    asm volatile("atom.relaxed.gpu.cas.b64 %0, [%1], %2, %3;"
                 : "=l"(old)
                 : "l"(address), "l"(expected), "l"(value)
                 : "memory");
    return old;
#else
    return interpreter::atomic_compare_exchange(address, expected, value, interpreter::Order::Relaxed);
#endif
}

// *address = max(*address, value) on 64 bits: a (score, index) pair packed so that the larger pair wins.
DEVICE uint64_t atomic_max_relaxed(uint64_t* address, uint64_t value) {
#if ON_GPU
    uint64_t old;
    asm volatile("atom.relaxed.gpu.max.u64 %0, [%1], %2;" : "=l"(old) : "l"(address), "l"(value) : "memory");
    return old;
#else
    return interpreter::atomic_max(address, value, interpreter::Order::Relaxed);
#endif
}

// *address += value without the old value. PTX ISA: red.
DEVICE void reduce_add_relaxed(float* address, float value) {
#if ON_GPU
    asm volatile("red.relaxed.gpu.add.f32 [%0], %1;" ::"l"(address), "f"(value) : "memory");
#else
    interpreter::atomic_add(address, value, interpreter::Order::Relaxed);
#endif
}
DEVICE void reduce_add_release(uint32_t* address, uint32_t value) {
#if ON_GPU
    asm volatile("red.release.gpu.add.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#else
    interpreter::atomic_add(address, value, interpreter::Order::Release);
#endif
}
