// targets: sm_90a
// Tiny kernels for the functions of kernels/ptx/{mbarrier,bulk_copy,cluster}.cuh, and for stmatrix and setmaxnreg:
// tests/kernels/conformance_hopper.rs says what they must give, on the interpreter and on a GPU. Each has one block of
// 128 threads, or a cluster of two.
#include "ptx/ptx.cuh"

DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
// A barrier behind `bytes` of shared memory, which the whole block, or the whole cluster, then knows.
DEVICE uint32_t barrier_behind(uint32_t bytes, uint32_t arrivals) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared) + bytes;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, arrivals);
        mbarrier_init_fence();
    }
    if (cluster_blocks() > 1) cluster_sync();
    block_sync();
    return barrier;
}
// Shared memory to `out`, 16 bytes a thread at a time.
DEVICE void copy_out(uint32_t* out, uint32_t bytes) {
    SHARED_MEMORY(shared);
    for (uint32_t i = threadIdx.x; i < bytes / 4; i += 128)
        out[blockIdx.x * (bytes / 4) + i] = reinterpret_cast<uint32_t*>(shared)[i];
}

// For a kernel that copies them: words that this one stores in the ordinary way.
KERNEL(conform_stored_for_the_next, 128)(const uint32_t* in, uint32_t* out) {
    grid_dependency_launch();
    grid_dependency_wait();
    out[threadIdx.x] = in[threadIdx.x] + 1;
}
REGISTER_KERNEL(conform_stored_for_the_next)

// 128 words by one copy, of what earlier work stored.
template <bool kHinted>
DEVICE void load_bulk(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(512, 1);
    grid_dependency_launch();
    grid_dependency_wait();
    if (threadIdx.x == 0) {
        fence_proxy_async_global();
        mbarrier_arrive_expect(barrier, 512);
        if (kHinted) {
            bulk_load_hinted(shared_address(shared), in, 512, barrier, l2_evict_first());
        } else {
            bulk_load(shared_address(shared), in, 512, barrier);
        }
    }
    mbarrier_wait(barrier, 0);
    copy_out(out, 512);
}
KERNEL(conform_bulk_load, 128)(const uint32_t* in, uint32_t* out) { load_bulk<false>(in, out); }
REGISTER_KERNEL(conform_bulk_load)
KERNEL(conform_bulk_load_hinted, 128)(const uint32_t* in, uint32_t* out) { load_bulk<true>(in, out); }
REGISTER_KERNEL(conform_bulk_load_hinted)

// Eight groups of one store each; the fourth may still be under way when its successors are asked for.
KERNEL(conform_bulk_store, 128)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = in[threadIdx.x];
    fence_proxy_async_shared();
    block_sync();
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 8; i++) {
            bulk_store(out + i * 16, shared_address(shared) + i * 64, 64);
            bulk_commit();
            bulk_wait_read<3>();
        }
        bulk_wait<0>();
    }
}
REGISTER_KERNEL(conform_bulk_store)

// All 128 threads arrive; each phase hands every thread its neighbour's word, ten times.
KERNEL(conform_mbarrier_arrive, 128)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    uint32_t* const words = reinterpret_cast<uint32_t*>(shared);
    const uint32_t barrier = barrier_behind(1024, 128);
    uint32_t word = in[threadIdx.x];
    for (uint32_t turn = 0; turn < 10; turn++) {
        words[turn % 2 * 128 + threadIdx.x] = word;
        mbarrier_arrive(barrier);
        mbarrier_wait(barrier, turn % 2);
        word = words[turn % 2 * 128 + (threadIdx.x + 1) % 128] + 1;
    }
    out[threadIdx.x] = word;
}
REGISTER_KERNEL(conform_mbarrier_arrive)

// ---- boxes: `map` is of `in`; what arrives goes to `out` as it lies in shared memory ----

#define LOAD_BOX(name, kBytes, ...)                                                        \
    KERNEL(conform_##name, 128)                                                            \
    (const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {              \
        SHARED_MEMORY(shared);                                                             \
        const uint32_t barrier = barrier_behind(kBytes, 1), tile = shared_address(shared); \
        if (threadIdx.x == 0) {                                                            \
            tensor_map_prefetch(&map);                                                     \
            mbarrier_arrive_expect(barrier, kBytes);                                       \
            name(tile, &map, __VA_ARGS__);                                                 \
        }                                                                                  \
        mbarrier_wait(barrier, 0);                                                         \
        copy_out(out, kBytes);                                                             \
    }                                                                                      \
    REGISTER_KERNEL(conform_##name)
// Boxes that reach out of the tensor: see the test's tensors.
LOAD_BOX(tensor_load_2d, 2048, 16, -3, barrier)
LOAD_BOX(tensor_load_2d_hinted, 2048, 16, 5, barrier, l2_evict_first())
LOAD_BOX(tensor_load_3d, 2048, -8, 3, 1, barrier)
LOAD_BOX(tensor_load_3d_hinted, 2048, 8, -1, 0, barrier, l2_evict_last())
LOAD_BOX(tensor_load_4d, 2048, 0, 1, 2, -1, barrier)
LOAD_BOX(tensor_load_4d_hinted, 2048, 0, 1, 2, 1, barrier, l2_evict_first())

// Block r of a cluster of two loads its box to both, into the r-th half.
KERNEL(conform_tensor_load_2d_multicast, 128)(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(4096, 1), rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 4096);
        tensor_load_2d_multicast(shared_address(shared) + rank * 2048, &map, 0, static_cast<int>(rank * 8), barrier, 3);
    }
    mbarrier_wait(barrier, 0);
    copy_out(out, 4096);
    cluster_sync();
}
REGISTER_KERNEL(conform_tensor_load_2d_multicast)

// Boxes of which nothing lies in the tensor: below it, above it, right of it. Each brings zeros, and counts in full.
KERNEL(conform_boxes_outside, 128)(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(6144, 1), tile = shared_address(shared);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 6144);
        tensor_load_2d(tile, &map, 0, 1000, barrier);
        tensor_load_2d(tile + 2048, &map, 0, -16, barrier);
        tensor_load_2d(tile + 4096, &map, 128, 0, barrier);
    }
    mbarrier_wait(barrier, 0);
    copy_out(out, 6144);
}
REGISTER_KERNEL(conform_boxes_outside)

// Block r of a cluster of two loads a box to both, into the r-th half. That of block 1 lies outside of the tensor.
KERNEL(conform_box_outside_multicast, 128)(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(4096, 1), rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 4096);
        tensor_load_2d_multicast(shared_address(shared) + rank * 2048, &map, 0, static_cast<int>(rank * 512), barrier,
                                 3);
    }
    mbarrier_wait(barrier, 0);
    copy_out(out, 4096);
    cluster_sync();
}
REGISTER_KERNEL(conform_box_outside_multicast)

// The words of `in`, 512 of them, as a box to the map's tensor, which is `out`.
#define STORE_BOX(name, ...)                                                                              \
    KERNEL(conform_##name, 128)                                                                           \
    (const uint32_t* in, uint32_t*, const __grid_constant__ TensorMap map) {                              \
        SHARED_MEMORY(shared);                                                                            \
        for (uint32_t i = threadIdx.x; i < 512; i += 128) reinterpret_cast<uint32_t*>(shared)[i] = in[i]; \
        fence_proxy_async_shared();                                                                       \
        block_sync();                                                                                     \
        if (threadIdx.x == 0) {                                                                           \
            name(&map, __VA_ARGS__, shared_address(shared));                                              \
            bulk_commit();                                                                                \
            bulk_wait_read<0>();                                                                          \
        }                                                                                                 \
    }                                                                                                     \
    REGISTER_KERNEL(conform_##name)
STORE_BOX(tensor_store_2d, 16, -3)
STORE_BOX(tensor_store_3d, 8, 3, 1)
// The same, outside of the tensor: nothing is stored.
KERNEL(conform_box_outside_store, 128)(const uint32_t* in, uint32_t*, const __grid_constant__ TensorMap map) {
    SHARED_MEMORY(shared);
    for (uint32_t i = threadIdx.x; i < 512; i += 128) reinterpret_cast<uint32_t*>(shared)[i] = in[i];
    fence_proxy_async_shared();
    block_sync();
    if (threadIdx.x == 0) {
        tensor_store_2d(&map, 0, 1000, shared_address(shared));
        tensor_store_2d(&map, 128, -16, shared_address(shared));
        bulk_commit();
        bulk_wait_read<0>();
    }
}
REGISTER_KERNEL(conform_box_outside_store)

// ---- clusters ----

// Where each block is, with a cluster and without.
KERNEL(conform_cluster_place, 32)(const uint32_t* in, uint32_t* out) {
    out[blockIdx.x * 32 + threadIdx.x] = in[cluster_rank()] + cluster_blocks();
}
REGISTER_KERNEL(conform_cluster_place)

// Each block sends a word to every one, itself too; what comes may come before it is expected.
KERNEL(conform_cluster_all_to_all, 32)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(2048, 1), rank = cluster_rank(), blocks = cluster_blocks();
    const bool late = rank % 2 == 1;
    if (!late && threadIdx.x == 0) mbarrier_arrive_expect(barrier, blocks * 8);
    if (threadIdx.x < blocks) {
        uint2 words;
        words.x = in[rank], words.y = threadIdx.x;
        store_async_8(cluster_address(shared_address(shared) + rank * 8, threadIdx.x), words,
                      cluster_address(barrier, threadIdx.x));
    }
    warp_sync();
    if (late && threadIdx.x == 0) mbarrier_arrive_expect(barrier, blocks * 8);
    mbarrier_wait_cluster(barrier, 0);
    if (threadIdx.x < blocks) {
        const uint2 words = reinterpret_cast<const uint2*>(shared)[threadIdx.x];
        out[rank * blocks + threadIdx.x] = words.x + words.y;
    }
}
REGISTER_KERNEL(conform_cluster_all_to_all)

// Of two blocks: each thread reads the word of its partner in the other one.
KERNEL(conform_load_cluster_4, 128)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    const uint32_t own = blockIdx.x * 128 + threadIdx.x;
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = in[own];
    cluster_sync();
    out[own] = load_cluster_4(cluster_address(shared_address(shared) + threadIdx.x * 4, cluster_rank() ^ 1)) +
               cluster_blocks();
    cluster_sync();
}
REGISTER_KERNEL(conform_load_cluster_4)

// Each thread sends its words to its partner in the other block, where they are counted as they come.
#define STORE_ASYNC(function, Words, kBytes)                                                              \
    KERNEL(conform_##function, 128)(const Words* in, Words* out) {                                        \
        SHARED_MEMORY(shared);                                                                            \
        const uint32_t barrier = barrier_behind(2048, 1), own = blockIdx.x * 128 + threadIdx.x;           \
        const uint32_t place = shared_address(shared) + threadIdx.x * kBytes, other = cluster_rank() ^ 1; \
        if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, 128 * kBytes);                              \
        function(cluster_address(place, other), in[own], cluster_address(barrier, other));                \
        mbarrier_wait_cluster(barrier, 0);                                                                \
        out[own] = reinterpret_cast<const Words*>(shared)[threadIdx.x];                                   \
    }                                                                                                     \
    REGISTER_KERNEL(conform_##function)
STORE_ASYNC(store_async_16, uint4, 16)
STORE_ASYNC(store_async_8, uint2, 8)

// The same, ordered by an mbarrier in each block at which the other's threads arrive.
KERNEL(conform_mbarrier_arrive_cluster, 128)(const uint32_t* in, uint32_t* out) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(512, 128), own = blockIdx.x * 128 + threadIdx.x, other = cluster_rank() ^ 1;
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = in[own];
    mbarrier_arrive_cluster(cluster_address(barrier, other));
    mbarrier_wait_cluster(barrier, 0);
    out[own] = load_cluster_4(cluster_address(shared_address(shared) + threadIdx.x * 4, other));
    cluster_sync();
}
REGISTER_KERNEL(conform_mbarrier_arrive_cluster)

// Arrivals and waits that order nothing: what each block writes is its own.
KERNEL(conform_mbarrier_cluster_relaxed, 128)(const uint32_t* in, uint32_t* out) {
    const uint32_t barrier = barrier_behind(512, 128), own = blockIdx.x * 128 + threadIdx.x, other = cluster_rank() ^ 1;
    const uint32_t word = in[own];
    mbarrier_arrive_cluster_relaxed(cluster_address(barrier, other));
    mbarrier_wait_cluster_relaxed(barrier, 0);
    out[own] = word;
    cluster_sync();
}
REGISTER_KERNEL(conform_mbarrier_cluster_relaxed)

// ---- stmatrix: four warps, each four matrices of 128 bytes; in: fragments, register by register, 32 lanes each ----

#define STORE_KERNEL(name)                                                             \
    KERNEL(conform_##name, 128)(const uint32_t* in, uint32_t* out) {                   \
        SHARED_MEMORY(shared);                                                         \
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;               \
        uint32_t fragment[4];                                                          \
        for (uint32_t m = 0; m < 4; m++) fragment[m] = in[warp * 128 + m * 32 + lane]; \
        name(shared_address(shared) + warp * 512 + lane * 16, fragment);               \
        block_sync();                                                                  \
        copy_out(out, 2048);                                                           \
    }                                                                                  \
    REGISTER_KERNEL(conform_##name)
STORE_KERNEL(store_matrix_x4)
STORE_KERNEL(store_matrix_x4_transposed)

// ---- setmaxnreg: two warpgroups of three give what the third takes ----

KERNEL(conform_warpgroup_registers, 384, 1)(const uint32_t* in, uint32_t* out) {
    if (threadIdx.x < 256) {
        warpgroup_registers_decrease<136>();
        out[threadIdx.x] = in[threadIdx.x];
    } else {
        warpgroup_registers_increase<232>();
        out[threadIdx.x] = in[threadIdx.x] + 1;
    }
}
REGISTER_KERNEL(conform_warpgroup_registers)
