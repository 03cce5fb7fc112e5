// Programmatic dependent launch: a grid that was launched with the attribute may start before the grid ahead of it in
// the stream has finished. PTX ISA: Parallel Synchronization, griddepcontrol (sm_90). Below sm_90 no grid starts early,
// so both functions are nothing there.
#pragma once
#include "language.cuh"

// Waits until the grids that this one depends on have finished and their writes are visible. Before it, nothing may be
// touched that an earlier, unfinished grid writes, nor written what one reads. What they stored in the ordinary way is
// visible to bulk copies behind fence_proxy_async_global, in the thread that asks for those.
DEVICE void grid_dependency_wait() {
#if ON_GPU
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
    interpreter::grid_dependency_wait();
#endif
}
// Lets the next grid start once every block of this one has called it or ended. It makes no write visible.
DEVICE void grid_dependency_launch() {
#if ON_GPU
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
#else
    interpreter::grid_dependency_launch();
#endif
}
