// Loads, stores and fences that order memory between threads.
// PTX ISA: Memory Consistency Model; Data Movement, ld and st; Parallel Synchronization, fence.
//
// A flag says that data is ready: the writer does store_release_gpu(flag) after its writes (or fence_gpu, then
// store_relaxed_gpu), the reader load_acquire_gpu(flag) before its reads (or load_relaxed_gpu, then fence_gpu).
// A plain load or store of a flag is a race.
#pragma once
#include "language.cuh"

// Loads at device scope, relaxed.
DEVICE uint32_t load_relaxed_gpu(const uint32_t* address) {
#if ON_GPU
    uint32_t value;
    asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
#else
    return interpreter::load_u32(address, interpreter::Order::Relaxed);
#endif
}

// Loads at device scope, acquire.
DEVICE uint32_t load_acquire_gpu(const uint32_t* address) {
#if ON_GPU
    uint32_t value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
#else
    return interpreter::load_u32(address, interpreter::Order::Acquire);
#endif
}

// Stores at device scope, relaxed.
DEVICE void store_relaxed_gpu(uint32_t* address, uint32_t value) {
#if ON_GPU
    asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#else
    interpreter::store_u32(address, value, interpreter::Order::Relaxed);
#endif
}

// Stores at device scope, release.
DEVICE void store_release_gpu(uint32_t* address, uint32_t value) {
#if ON_GPU
    asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
#else
    interpreter::store_u32(address, value, interpreter::Order::Release);
#endif
}

// Orders this thread's earlier accesses before its later ones as seen by the block: fence.acq_rel.cta.
DEVICE void fence_block() {
#if ON_GPU
    asm volatile("fence.acq_rel.cta;" ::: "memory");
#else
    interpreter::fence(interpreter::Scope::Block);
#endif
}

// Orders this thread's earlier accesses before its later ones as seen by the device: fence.acq_rel.gpu.
DEVICE void fence_gpu() {
#if ON_GPU
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#else
    interpreter::fence(interpreter::Scope::Gpu);
#endif
}

// Orders this thread's earlier accesses before its later ones as seen by the device and the host: fence.acq_rel.sys.
DEVICE void fence_system() {
#if ON_GPU
    asm volatile("fence.acq_rel.sys;" ::: "memory");
#else
    interpreter::fence(interpreter::Scope::System);
#endif
}
