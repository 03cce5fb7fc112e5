// Clusters: blocks that run together on one part of the chip, and reach each other's shared memory (sm_90).
// PTX ISA: Cluster special registers; barrier.cluster; mapa; ld with .shared::cluster; st.async.
#pragma once
#include "language.cuh"

// This block's number in its cluster, x fastest.
DEVICE uint32_t cluster_rank() {
#if ON_GPU
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return interpreter::cluster_rank();
#endif
}
// Blocks in the cluster.
DEVICE uint32_t cluster_blocks() {
#if ON_GPU
    uint32_t blocks;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
#else
    return interpreter::cluster_blocks();
#endif
}
// All threads of the cluster arrive; what they did before is visible behind cluster_wait. All threads of a warp
// together.
DEVICE void cluster_arrive() {
#if ON_GPU
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
    interpreter::cluster_arrive();
#endif
}
// Waits until all threads of the cluster have arrived.
DEVICE void cluster_wait() {
#if ON_GPU
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    interpreter::cluster_wait();
#endif
}
// The address, for instructions that take one of the cluster, of what has `shared_address` in this block, in block
// `rank`.
DEVICE uint32_t cluster_address(uint32_t shared_address, uint32_t rank) {
#if ON_GPU
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address), "r"(rank));
    return address;
#else
    return interpreter::cluster_address(shared_address, rank);
#endif
}
// 4 bytes of the shared memory of any block of the cluster, which must not have ended.
DEVICE uint32_t load_cluster_4(uint32_t cluster_address) {
#if ON_GPU
    uint32_t value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(cluster_address) : "memory");
    return value;
#else
    return interpreter::load_cluster(cluster_address);
#endif
}
// Stores 16 bytes to the shared memory of any block of the cluster, which must not end before they are there; then
// counts 16 at an mbarrier of that block, a wait for which (mbarrier_wait_cluster) acquires them and nothing else of
// this thread. Both addresses come from cluster_address. This block may end at once.
DEVICE void store_async_16(uint32_t address, uint4 value, uint32_t barrier) {
#if ON_GPU
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
        "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(barrier)
        : "memory");
#else
    interpreter::store_async(address, &value, sizeof value, barrier);
#endif
}
// The same of 8 bytes.
DEVICE void store_async_8(uint32_t address, uint2 value, uint32_t barrier) {
#if ON_GPU
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(address),
                 "r"(value.x), "r"(value.y), "r"(barrier)
                 : "memory");
#else
    interpreter::store_async(address, &value, sizeof value, barrier);
#endif
}
