// Barriers of a thread block. All order shared and global memory among the threads that take part.
// PTX ISA: Parallel Synchronization and Communication, barrier{.cta}. The aligned forms: all threads of a warp must
// execute the same barrier instruction.
#pragma once
#include "language.cuh"

// Waits until every thread of the block is here: __syncthreads.
DEVICE void block_sync() {
#if ON_GPU
    asm volatile("barrier.sync.aligned 0;" ::: "memory");
#else
    interpreter::block_sync();
#endif
}

// Waits at barrier `id` (1 to 15; 0 is block_sync's) until `threads` threads, a multiple of 32, have arrived.
DEVICE void barrier_sync(uint32_t id, uint32_t threads) {
#if ON_GPU
    asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    interpreter::barrier(id, threads, interpreter::BarrierUse::Wait);
#endif
}

// The same; whether `value` holds for any of these threads. All of them call it.
DEVICE bool barrier_any(uint32_t id, uint32_t threads, bool value) {
#if ON_GPU
    uint32_t any;
    asm volatile(
        "{\n"
        ".reg .pred own, any;\n"
        "setp.ne.u32 own, %3, 0;\n"
        "barrier.red.or.pred.aligned any, %1, %2, own;\n"
        "selp.u32 %0, 1, 0, any;\n"
        "}"
        : "=r"(any)
        : "r"(id), "r"(threads), "r"(static_cast<uint32_t>(value))
        : "memory");
    return any != 0;
#else
    return interpreter::barrier_any(id, threads, value);
#endif
}

// Arrives at barrier `id` without waiting; others wait for this thread with barrier_sync(id, threads).
DEVICE void barrier_arrive(uint32_t id, uint32_t threads) {
#if ON_GPU
    asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    interpreter::barrier(id, threads, interpreter::BarrierUse::ArriveOnly);
#endif
}
