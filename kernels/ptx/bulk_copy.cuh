// Bulk copies between global and shared memory: the tensor memory accelerator (TMA, sm_90). One thread asks for a whole
// row or tile. PTX ISA: Data Movement and Conversion, cp.async.bulk, cp.async.bulk.tensor, prefetch.tensormap.
//
// Copies belong to the asynchronous proxy. Loads count their bytes at an mbarrier, and are there for whoever has waited
// for its phase; stores form groups that the thread which asked for them waits for. What ordinary stores wrote into
// shared memory is read by a bulk store, or by wgmma, only behind fence_proxy_async_shared of the thread that wrote it,
// and then a barrier. Behind a load that was waited for no such fence is needed. What earlier grids stored into global
// memory is loaded only behind grid_dependency_wait and then fence_proxy_async_global of the thread that asks for it.
#pragma once
#include "language.cuh"

// A tensor in global memory and the box that copies move, as the host encoded it: CUtensorMap. A kernel takes it as
// `const __grid_constant__ TensorMap`, and hands on its address.
struct alignas(128) TensorMap {
    uint64_t words[16];
};

// This thread's earlier ordinary accesses of shared memory come before later ones of the asynchronous proxy.
DEVICE void fence_proxy_async_shared() {
#if ON_GPU
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    interpreter::fence_proxy_async_shared();
#endif
}
// The same for global memory; and behind grid_dependency_wait, what earlier grids stored comes before this thread's
// later bulk loads.
DEVICE void fence_proxy_async_global() {
#if ON_GPU
    asm volatile("fence.proxy.async.global;" ::: "memory");
#else
    interpreter::fence_proxy_async_global();
#endif
}

// Asks for the map itself, ahead of its first use.
DEVICE void tensor_map_prefetch(const TensorMap* map) {
#if ON_GPU
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
    interpreter::prefetch(map);
#endif
}

// ---- loads ----

// `bytes` consecutive ones (a multiple of 16; source and destination aligned to 16), counted at `barrier`.
DEVICE void bulk_load(uint32_t shared_destination, const void* global_source, uint32_t bytes, uint32_t barrier) {
#if ON_GPU
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_destination),
                 "l"(global_source), "r"(bytes), "r"(barrier)
                 : "memory");
#else
    interpreter::bulk_load(shared_destination, global_source, bytes, barrier);
#endif
}
// The same with a policy of L2: l2_evict_first, l2_evict_last.
DEVICE void bulk_load_hinted(uint32_t shared_destination, const void* global_source, uint32_t bytes, uint32_t barrier,
                             uint64_t policy) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(shared_destination),
        "l"(global_source), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
#else
    static_cast<void>(policy);
    interpreter::bulk_load(shared_destination, global_source, bytes, barrier);
#endif
}

// The map's box with its first element at x (the dimension of consecutive elements), y, ...; elements outside of the
// tensor, coordinates below zero included, arrive as zeros, and are counted. The destination is aligned to 128 bytes,
// and for a map with a swizzle to 8 rows of it: 256, 512 or 1024 bytes.
DEVICE void tensor_load_2d(uint32_t shared_destination, const TensorMap* map, int x, int y, uint32_t barrier) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
        "[%4];" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(barrier)
        : "memory");
#else
    const int at[] = {x, y};
    interpreter::tensor_load(shared_destination, map, at, 2, barrier);
#endif
}
DEVICE void tensor_load_2d_hinted(uint32_t shared_destination, const TensorMap* map, int x, int y, uint32_t barrier,
                                  uint64_t policy) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
        "{%2, %3}], [%4], %5;" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
        : "memory");
#else
    static_cast<void>(policy);
    const int at[] = {x, y};
    interpreter::tensor_load(shared_destination, map, at, 2, barrier);
#endif
}

DEVICE void tensor_load_3d(uint32_t shared_destination, const TensorMap* map, int x, int y, int z, uint32_t barrier) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
        : "memory");
#else
    const int at[] = {x, y, z};
    interpreter::tensor_load(shared_destination, map, at, 3, barrier);
#endif
}
DEVICE void tensor_load_3d_hinted(uint32_t shared_destination, const TensorMap* map, int x, int y, int z,
                                  uint32_t barrier, uint64_t policy) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
        "{%2, %3, %4}], [%5], %6;" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "l"(policy)
        : "memory");
#else
    static_cast<void>(policy);
    const int at[] = {x, y, z};
    interpreter::tensor_load(shared_destination, map, at, 3, barrier);
#endif
}

DEVICE void tensor_load_4d(uint32_t shared_destination, const TensorMap* map, int x, int y, int z, int w,
                           uint32_t barrier) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
        "%5}], [%6];" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
        : "memory");
#else
    const int at[] = {x, y, z, w};
    interpreter::tensor_load(shared_destination, map, at, 4, barrier);
#endif
}
DEVICE void tensor_load_4d_hinted(uint32_t shared_destination, const TensorMap* map, int x, int y, int z, int w,
                                  uint32_t barrier, uint64_t policy) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
        "{%2, %3, %4, %5}], [%6], %7;" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier), "l"(policy)
        : "memory");
#else
    static_cast<void>(policy);
    const int at[] = {x, y, z, w};
    interpreter::tensor_load(shared_destination, map, at, 4, barrier);
#endif
}

// The same into every block of the cluster whose bit is set in `blocks`: at the same place of its shared memory, and
// the bytes are counted by its own barrier at `barrier`'s place.
DEVICE void tensor_load_2d_multicast(uint32_t shared_destination, const TensorMap* map, int x, int y, uint32_t barrier,
                                     uint16_t blocks) {
#if ON_GPU
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(shared_destination),
        "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
        : "memory");
#else
    const int at[] = {x, y};
    interpreter::tensor_load_multicast(shared_destination, map, at, 2, barrier, blocks);
#endif
}

// ---- stores ----

// The map's box from shared memory, laid out as a load would; elements outside of the tensor are not written.
DEVICE void tensor_store_2d(const TensorMap* map, int x, int y, uint32_t shared_source) {
#if ON_GPU
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(x),
                 "r"(y), "r"(shared_source)
                 : "memory");
#else
    const int at[] = {x, y};
    interpreter::tensor_store(map, at, 2, shared_source);
#endif
}

DEVICE void tensor_store_3d(const TensorMap* map, int x, int y, int z, uint32_t shared_source) {
#if ON_GPU
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
                 "r"(x), "r"(y), "r"(z), "r"(shared_source)
                 : "memory");
#else
    const int at[] = {x, y, z};
    interpreter::tensor_store(map, at, 3, shared_source);
#endif
}

// `bytes` consecutive ones (a multiple of 16; source and destination aligned to 16).
DEVICE void bulk_store(void* global_destination, uint32_t shared_source, uint32_t bytes) {
#if ON_GPU
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global_destination),
                 "r"(shared_source), "r"(bytes)
                 : "memory");
#else
    interpreter::bulk_store(global_destination, shared_source, bytes);
#endif
}

// Closes the group of all bulk stores that this thread has asked for since the last commit.
DEVICE void bulk_commit() {
#if ON_GPU
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    interpreter::bulk_commit();
#endif
}
// Waits until at most the `Pending` newest groups of this thread have still to read shared memory.
template <int Pending>
DEVICE void bulk_wait_read() {
#if ON_GPU
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
#else
    interpreter::bulk_wait(Pending, interpreter::BulkWait::Read);
#endif
}
// Waits until at most the `Pending` newest groups of this thread are unfinished: what the others wrote can be read.
template <int Pending>
DEVICE void bulk_wait() {
#if ON_GPU
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
#else
    interpreter::bulk_wait(Pending, interpreter::BulkWait::Written);
#endif
}
