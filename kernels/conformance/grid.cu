// targets: sm_80 compute_80 sm_90
// One tiny kernel for each function of kernels/ptx/grid_dependency.cuh and time.cuh: tests/kernels/conformance.rs says
// what it must give, on the interpreter and on a GPU.
#include "ptx/ptx.cuh"

// One step of a chain of grids, each launched to start early.
KERNEL(conform_grid_dependency, 32)(const uint32_t* in, uint32_t* out) {
    const uint32_t lane = threadIdx.x;
    grid_dependency_launch();
    grid_dependency_wait();
    out[lane] = in[lane] + 1;
}
REGISTER_KERNEL(conform_grid_dependency)

// The timer does not go back.
KERNEL(conform_global_nanoseconds, 32)(const uint32_t* in, uint32_t* out) {
    const uint64_t before = global_nanoseconds();
    block_sync();
    const uint64_t after = global_nanoseconds();
    out[threadIdx.x] = before > 0 && after >= before ? in[threadIdx.x] : 0;
}
REGISTER_KERNEL(conform_global_nanoseconds)

// Cycles go by, and not back.
KERNEL(conform_sm_cycles, 32)(const uint32_t* in, uint32_t* out) {
    const uint64_t before = sm_cycles();
    block_sync();
    const uint64_t after = sm_cycles();
    out[threadIdx.x] = before > 0 && after >= before ? in[threadIdx.x] : 0;
}
REGISTER_KERNEL(conform_sm_cycles)
