// Clocks.
#pragma once
#include "language.cuh"

// Nanoseconds of the device's global timer. Its steps may be as coarse as 1 µs. PTX ISA: Special Registers,
// %globaltimer.
DEVICE uint64_t global_nanoseconds() {
#if ON_GPU
    uint64_t time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
#else
    return interpreter::global_nanoseconds();
#endif
}

// Cycles of the SM that the thread runs on. PTX ISA: Special Registers, %clock64.
DEVICE uint64_t sm_cycles() {
#if ON_GPU
    uint64_t cycles;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(cycles));
    return cycles;
#else
    return interpreter::sm_cycles();
#endif
}
