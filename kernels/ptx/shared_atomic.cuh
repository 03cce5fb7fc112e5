// Read-modify-write on the block's own shared memory. PTX ISA: Parallel Synchronization and Communication, atom.shared.
// Relaxed: orders nothing by itself; a barrier does.
#pragma once
#include "address.cuh"
#include "language.cuh"

// *address += value, `address` into this block's shared memory; returns the old value.
DEVICE uint32_t atomic_add_shared(uint32_t* address, uint32_t value) {
#if ON_GPU
    uint32_t old;
    asm volatile("atom.relaxed.cta.shared.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "r"(shared_address(address)), "r"(value)
                 : "memory");
    return old;
#else
    return interpreter::atomic_add(address, value, interpreter::Order::Relaxed);
#endif
}
