// How a wait at an mbarrier waits: for ever, or, in builds with RIGEL_MBARRIER_TRAP_NS, so many nanoseconds. A wait
// that lasts longer writes a record and traps, so that a kernel that hangs becomes an error that names the barrier.
//
// A trap ends the context: what printf has written and copies from the device are lost. So the record lies in
// page-locked host memory, which stays readable. The host allocates it and writes its address into
// `rigel_mbarrier_trap` when it loads the module (src/backend/cuda/mbarrier_trap.rs).
#pragma once
#include "language.cuh"

#if ON_GPU && defined(RIGEL_MBARRIER_TRAP_NS)
#include "address.cuh"
#include "time.cuh"

// What the host says, and which thread writes the record: one for each module.
struct MbarrierTrap {
    volatile uint32_t* record;  // kRecordWords words of host memory; null: there is none, and a wait only traps
    uint32_t taken;  // 1: a thread writes the record, or has
};
extern "C" {
__device__ MbarrierTrap rigel_mbarrier_trap;
}

// Records where the thread waits, and traps. Where another thread of the module writes the record, waits for that one
// to trap. It never returns, so that no register has to be kept over it.
//   word 0      1 once the record is whole
//   word 1      the barrier: bytes from the start of the block's dynamic shared memory
//   word 2      the parity that is waited for
//   words 3-8   block and grid
//   words 9-12  thread, threads of the block, bytes of dynamic shared memory, milliseconds waited
//   words 13-20 the barrier's name, 32 bytes, ended by 0
DEVICE void mbarrier_trap(uint32_t barrier, uint32_t parity, const char* name, uint32_t waited) {
    volatile uint32_t* const record = rigel_mbarrier_trap.record;
    if (record == nullptr) asm volatile("trap;");
    if (atomicExch(&rigel_mbarrier_trap.taken, 1u) == 0) {
        uint32_t shared_bytes;
        asm volatile("mov.u32 %0, %%dynamic_smem_size;" : "=r"(shared_bytes));
        record[1] = barrier - shared_address(rigel_dynamic_shared_memory);
        record[2] = parity;
        record[3] = blockIdx.x, record[4] = blockIdx.y, record[5] = blockIdx.z;
        record[6] = gridDim.x, record[7] = gridDim.y, record[8] = gridDim.z;
        record[9] = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        record[10] = blockDim.x * blockDim.y * blockDim.z;
        record[11] = shared_bytes;
        record[12] = waited / 1000000u;
        volatile char* const text = reinterpret_cast<volatile char*>(record + 13);
#pragma unroll 1
        for (uint32_t i = 0; i < 31 && name[i] != 0; i++) text[i] = name[i];
        __threadfence_system();
        record[0] = 1;
        __threadfence_system();
        asm volatile("trap;");
    }
    for (;;) asm volatile("nanosleep.u32 1000;");
}

// The clock is read only once the first try has failed. A try by itself waits some time.
#define MBARRIER_WAIT(form, scope, order)                                                            \
    for (uint32_t began = 0;;) {                                                                     \
        uint32_t ended;                                                                              \
        asm volatile(                                                                                \
            "{\n"                                                                                    \
            ".reg .pred ended;\n"                                                                    \
            "mbarrier.try_wait.parity" form                                                          \
            ".shared::cta.b64 ended, [%1], %2;\n"                                                    \
            "selp.u32 %0, 1, 0, ended;\n"                                                            \
            "}"                                                                                      \
            : "=r"(ended)                                                                            \
            : "r"(barrier), "r"(parity)                                                              \
            : "memory");                                                                             \
        if (ended) break;                                                                            \
        const uint32_t now = static_cast<uint32_t>(global_nanoseconds()) | 1u;                       \
        if (began == 0) began = now;                                                                 \
        if (now - began > RIGEL_MBARRIER_TRAP_NS) mbarrier_trap(barrier, parity, name, now - began); \
    }

#elif ON_GPU

#define MBARRIER_WAIT(form, scope, order)     \
    static_cast<void>(name);                  \
    asm volatile(                             \
        "{\n"                                 \
        ".reg .pred ended;\n"                 \
        "again_%=:\n"                         \
        "mbarrier.try_wait.parity" form       \
        ".shared::cta.b64 ended, [%0], %1;\n" \
        "@!ended bra again_%=;\n"             \
        "}" ::"r"(barrier),                   \
        "r"(parity)                           \
        : "memory")

#elif defined(RIGEL_MBARRIER_TRAP_NS)

#define MBARRIER_WAIT(form, scope, order) \
    interpreter::mbarrier_wait_or_trap(barrier, parity, interpreter::Scope::scope, interpreter::Order::order, name)

#else

#define MBARRIER_WAIT(form, scope, order) \
    static_cast<void>(name);              \
    interpreter::mbarrier_wait(barrier, parity, interpreter::Scope::scope, interpreter::Order::order)

#endif
