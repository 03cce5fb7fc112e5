// targets: sm_90
// A wait that never ends, in a file that is always built to trap: tests/kernels/mbarrier_trap.rs says what the host
// must then report, on the interpreter and on a GPU.
#undef RIGEL_MBARRIER_TRAP_NS
#define RIGEL_MBARRIER_TRAP_NS 50000000u
#include "ptx/ptx.cuh"
#include "ptx/mbarrier_trap.cuh"

// out[i] = in[i] + 1, behind two phases of a barrier at which every thread of the block arrives.
//   in, out  u32 [64 * blocks]
// Grid (blocks), 64 threads, 1040 bytes of shared memory. Block `block` misses one arrival of the second phase, so that
// its threads wait for ever; none does where there is no such block.
KERNEL(conform_mbarrier_trap, 64)(const uint32_t* in, uint32_t* out, uint32_t block) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared) + 1032;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 64);
        mbarrier_init_fence();
    }
    block_sync();
    grid_dependency_launch();
    grid_dependency_wait();
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, 0, "first phase");
    if (threadIdx.x != 63 || blockIdx.x != block) mbarrier_arrive(barrier);
    if (threadIdx.x == 37 || blockIdx.x != block) mbarrier_wait(barrier, 1, "second phase");
    const uint32_t i = blockIdx.x * 64 + threadIdx.x;
    out[i] = in[i] + 1;
}
REGISTER_KERNEL(conform_mbarrier_trap)
