// Barriers in shared memory that count arrivals of threads and bytes of asynchronous copies: mbarrier (sm_90).
// PTX ISA: Parallel Synchronization and Communication, mbarrier.
//
// A barrier is 8 bytes of shared memory, aligned to 8. It goes through phases, the first of parity 0. A phase ends when
// as many arrivals have come as mbarrier_init said, and as many bytes as were expected; then the next begins. A wait
// for parity p ends when a phase of that parity has: so a wait for 1 on a new barrier ends at once. Arrivals release,
// waits acquire: what a thread did before its arrival is visible behind the wait.
//
// A wait takes a name for its barrier. Only builds with RIGEL_MBARRIER_TRAP_NS use it: see mbarrier_trap.cuh.
#pragma once
#include "language.cuh"
#include "mbarrier_trap.cuh"

// Makes the barrier, for `arrivals` arrivals a phase (1 to 2^20 - 1). One thread does; before others use it come
// mbarrier_init_fence and a barrier of the block (of the cluster where its other blocks use it).
DEVICE void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
#if ON_GPU
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#else
    interpreter::mbarrier_init(barrier, arrivals);
#endif
}
// Makes this thread's mbarrier_init visible to the cluster and to asynchronous copies.
DEVICE void mbarrier_init_fence() {
#if ON_GPU
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    interpreter::mbarrier_init_fence();
#endif
}
// One arrival.
DEVICE void mbarrier_arrive(uint32_t barrier) {
#if ON_GPU
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
    interpreter::mbarrier_arrive(barrier, 0);
#endif
}
// One arrival, ahead of which the phase expects `bytes` more from copies.
DEVICE void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
#if ON_GPU
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#else
    interpreter::mbarrier_arrive(barrier, bytes);
#endif
}
// One arrival at a barrier of any block of the cluster: `barrier` comes from cluster_address.
DEVICE void mbarrier_arrive_cluster(uint32_t barrier) {
#if ON_GPU
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
    interpreter::mbarrier_arrive_cluster(barrier, interpreter::Order::Release);
#endif
}
// The same without release semantics, which saves a fence at device scope: for a thread that has only read what copies
// brought, and has waited for its reads.
DEVICE void mbarrier_arrive_cluster_relaxed(uint32_t barrier) {
#if ON_GPU
    asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
    interpreter::mbarrier_arrive_cluster(barrier, interpreter::Order::Relaxed);
#endif
}
// Waits until a phase of this parity has ended. Acquires what threads of this block and copies did.
DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity, const char* name = "mbarrier") {
    MBARRIER_WAIT("", Block, Acquire);
}
// The same, and acquires what threads of the whole cluster did before they arrived.
DEVICE void mbarrier_wait_cluster(uint32_t barrier, uint32_t parity, const char* name = "mbarrier") {
    MBARRIER_WAIT(".acquire.cluster", Cluster, Acquire);
}
// Waits for arrivals of the whole cluster and acquires nothing, which spares a flush of the L1: enough
// for overwriting, by copies, what those that arrived have read.
DEVICE void mbarrier_wait_cluster_relaxed(uint32_t barrier, uint32_t parity, const char* name = "mbarrier") {
    MBARRIER_WAIT(".relaxed.cluster", Cluster, Relaxed);
}
