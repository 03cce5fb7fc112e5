// targets: sm_90a
// Kernels with one mistake each in the use of bulk copies, mbarriers, MMA instructions of a warpgroup and clusters.
// A tile is 64 rows of 64 k of bf16, with the swizzle of 128 bytes: 8 KiB.
#include "common/pipeline.cuh"
#include "common/dtypes.cuh"

static constexpr uint32_t kTile = 8192;

#define ON_TILES(name, ...)                                                                                                     \
    KERNEL(name, __VA_ARGS__)                                                                                                  \
    ([[maybe_unused]] const __grid_constant__ TensorMap in, [[maybe_unused]] const __grid_constant__ TensorMap out,             \
     [[maybe_unused]] float* y)

// A barrier of one arrival behind `tiles` tiles of shared memory, which the whole block then knows.
DEVICE uint32_t barrier_behind(uint32_t tiles) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared) + tiles * kTile;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    block_sync();
    return barrier;
}
// The map's first tiles, from the start of shared memory on: thread 0 loads them, all wait. The barrier behind them.
template <uint32_t kTiles>
DEVICE uint32_t load_tiles(const TensorMap& map) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(kTiles);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTiles * kTile);
        for (uint32_t i = 0; i < kTiles; i++) tensor_load_2d(shared_address(shared) + i * kTile, &map, static_cast<int>(i * 64), 0, barrier);
    }
    mbarrier_wait(barrier, 0);
    return barrier;
}
DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
DEVICE void multiply_tile(float (&sums)[32], uint32_t a, uint32_t b) {
#pragma unroll
    for (uint32_t step = 0; step < 4; step++)
        warpgroup_multiply_bf16<kMajorK, kMajorK>(sums, matrix_descriptor_128(a + step * 32), matrix_descriptor_128(b + step * 32), 1);
}
DEVICE void clear(float (&sums)[32]) {
#pragma unroll
    for (uint32_t i = 0; i < 32; i++) sums[i] = 0.0f;
}
DEVICE uint2 two_words(uint32_t first, uint32_t second) {
    uint2 words;
    words.x = first, words.y = second;
    return words;
}
DEVICE void store_sums(float* y, const float (&sums)[32]) {
#pragma unroll
    for (uint32_t i = 0; i < 32; i++) y[threadIdx.x * 32 + i] = sums[i];
}

// ---- proxies ----

ON_TILES(planted_store_without_proxy_fence, 128) {
    SHARED_MEMORY(shared);
    for (uint32_t i = threadIdx.x; i < kTile / 4; i += 128) reinterpret_cast<uint32_t*>(shared)[i] = i;  // PARTNER store without proxy fence
    block_sync();
    if (threadIdx.x == 0) {
        tensor_store_2d(&out, 0, 0, shared_address(shared));  // BUG store without proxy fence
        bulk_commit();
        bulk_wait_read<0>();
    }
}
REGISTER_KERNEL(planted_store_without_proxy_fence)

// The fence comes behind the barrier, where it orders nothing that another thread does.
ON_TILES(planted_proxy_fence_too_late, 256) {
    SHARED_MEMORY(shared);
    if (threadIdx.x >= 128)
        for (uint32_t i = threadIdx.x - 128; i < kTile / 2; i += 128) reinterpret_cast<uint32_t*>(shared)[i] = 0;  // PARTNER proxy fence too late
    block_sync();
    if (threadIdx.x >= 128) {
        fence_proxy_async_shared();
        return;
    }
    float sums[32];
    clear(sums);
    warpgroup_fence();
    const uint32_t tiles = shared_address(shared);
    warpgroup_multiply_bf16<kMajorK, kMajorK>(sums, matrix_descriptor_128(tiles), matrix_descriptor_128(tiles + kTile), 1);  // BUG proxy fence too late
    warpgroup_commit();
    warpgroup_wait<0>();
    store_sums(y, sums);
}
REGISTER_KERNEL(planted_proxy_fence_too_late)

ON_TILES(planted_barrier_without_fence, 128) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = shared_address(shared) + kTile;
    if (threadIdx.x == 0) mbarrier_init(barrier, 1);  // PARTNER barrier without fence
    block_sync();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTile);
        tensor_load_2d(shared_address(shared), &in, 0, 0, barrier);  // BUG barrier without fence
    }
    mbarrier_wait(barrier, 0);
}
REGISTER_KERNEL(planted_barrier_without_fence)

// What earlier work stored is not known to copies because the thread has waited for it.
ON_TILES(planted_earlier_work_without_proxy_fence, 128) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    grid_dependency_wait();
    fence_proxy_async_shared();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTile);
        tensor_load_2d(shared_address(shared), &in, 0, 0, barrier);  // BUG earlier work without proxy fence
    }
    mbarrier_wait(barrier, 0);
}
REGISTER_KERNEL(planted_earlier_work_without_proxy_fence)

// ---- bulk copies ----

ON_TILES(planted_load_not_waited, 128) {
    SHARED_MEMORY(shared);
    reinterpret_cast<float*>(shared)[threadIdx.x] = 0.0f;
    fence_proxy_async_shared();
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTile);
        tensor_load_2d(shared_address(shared), &in, 0, 0, barrier);  // PARTNER load not waited
    }
    block_sync();
    y[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];  // BUG load not waited
    mbarrier_wait(barrier, 0);
}
REGISTER_KERNEL(planted_load_not_waited)

// The later of two loads was waited for, which says nothing of the earlier.
ON_TILES(planted_waited_for_another, 128) {
    SHARED_MEMORY(shared);
    const uint32_t first = barrier_behind(2), second = first + 8;
    if (threadIdx.x == 0) {
        mbarrier_init(second, 1);
        mbarrier_init_fence();
        mbarrier_arrive_expect(first, kTile);
        tensor_load_2d(shared_address(shared), &in, 0, 0, first);  // PARTNER waited for another
        mbarrier_arrive_expect(second, kTile);
        tensor_load_2d(shared_address(shared) + kTile, &in, 64, 0, second);
    }
    block_sync();
    mbarrier_wait(second, 0);
    y[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];  // BUG waited for another
    mbarrier_wait(first, 0);
}
REGISTER_KERNEL(planted_waited_for_another)

// Thread 0 alone has waited.
ON_TILES(planted_waited_by_one, 128) {
    SHARED_MEMORY(shared);
    reinterpret_cast<float*>(shared)[threadIdx.x] = 0.0f;
    fence_proxy_async_shared();
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTile);
        tensor_load_2d(shared_address(shared), &in, 0, 0, barrier);  // PARTNER waited by one
        mbarrier_wait(barrier, 0);
    }
    if (threadIdx.x > 32) y[threadIdx.x] = reinterpret_cast<float*>(shared)[threadIdx.x];  // BUG waited by one
}
REGISTER_KERNEL(planted_waited_by_one)

ON_TILES(planted_source_overwritten, 128) {
    SHARED_MEMORY(shared);
    uint32_t* const words = reinterpret_cast<uint32_t*>(shared);
    for (uint32_t i = threadIdx.x; i < kTile / 4; i += 128) words[i] = i;
    fence_proxy_async_shared();
    block_sync();
    if (threadIdx.x == 0) {
        tensor_store_2d(&out, 0, 0, shared_address(shared));  // PARTNER source overwritten
        bulk_commit();
    }
    block_sync();
    words[threadIdx.x] = 7;  // BUG source overwritten
    if (threadIdx.x == 0) bulk_wait_read<0>();
}
REGISTER_KERNEL(planted_source_overwritten)

ON_TILES(planted_store_not_waited, 128) {
    SHARED_MEMORY(shared);
    for (uint32_t i = threadIdx.x; i < kTile / 4; i += 128) reinterpret_cast<uint32_t*>(shared)[i] = i;
    fence_proxy_async_shared();
    block_sync();
    if (threadIdx.x == 0) {
        tensor_store_2d(&out, 0, 0, shared_address(shared));  // BUG store not waited
        bulk_commit();
    }
}
REGISTER_KERNEL(planted_store_not_waited)

// bulk_wait_read says that shared memory is free, not that global memory is written.
ON_TILES(planted_read_wait_for_written, 128) {
    SHARED_MEMORY(shared);
    if (threadIdx.x < 32) reinterpret_cast<float*>(shared)[threadIdx.x] = 1.0f;
    fence_proxy_async_shared();
    block_sync();
    if (threadIdx.x == 0) {
        bulk_store(y, shared_address(shared), 128);  // PARTNER read wait for written
        bulk_commit();
        bulk_wait_read<0>();
    }
    block_sync();
    y[128 + threadIdx.x] = y[threadIdx.x % 32];  // BUG read wait for written
}
REGISTER_KERNEL(planted_read_wait_for_written)

ON_TILES(planted_box_not_aligned, 128) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(2);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTile);
        tensor_load_2d(shared_address(shared) + 512, &in, 0, 0, barrier);  // BUG box not aligned
    }
    mbarrier_wait(barrier, 0);
}
REGISTER_KERNEL(planted_box_not_aligned)

// ---- mbarriers ----

ON_TILES(planted_too_many_arrivals, 128) {
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, 16);
    block_sync();
    if (threadIdx.x == 1) mbarrier_arrive(barrier);  // BUG too many arrivals
}
REGISTER_KERNEL(planted_too_many_arrivals)

ON_TILES(planted_too_few_bytes, 128) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kTile / 2);
        tensor_load_2d(shared_address(shared), &in, 0, 0, barrier);  // BUG too few bytes
    }
    mbarrier_wait(barrier, 0);
}
REGISTER_KERNEL(planted_too_few_bytes)

ON_TILES(planted_too_many_bytes, 128) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 2 * kTile);
        tensor_load_2d(shared_address(shared), &in, 0, 0, barrier);
    }
    mbarrier_wait(barrier, 0);  // BUG too many bytes
}
REGISTER_KERNEL(planted_too_many_bytes)

ON_TILES(planted_wrong_parity, 128) {
    const uint32_t barrier = load_tiles<1>(in);
    block_sync();
    mbarrier_wait(barrier, 1);  // BUG wrong parity
}
REGISTER_KERNEL(planted_wrong_parity)

ON_TILES(planted_barrier_overwritten, 128) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) *reinterpret_cast<uint64_t*>(shared + kTile) = 1;
    block_sync();
    if (threadIdx.x == 0) mbarrier_arrive(barrier);  // BUG barrier overwritten
}
REGISTER_KERNEL(planted_barrier_overwritten)

// ---- MMA instructions ----

ON_TILES(planted_sums_read_early, 128) {
    SHARED_MEMORY(shared);
    const uint32_t tiles = shared_address(shared);
    load_tiles<2>(in);
    float sums[32];
    clear(sums);
    warpgroup_fence();
    multiply_tile(sums, tiles, tiles + kTile);
    warpgroup_commit();
    y[threadIdx.x] = sums[5];  // BUG sums read early
    warpgroup_wait<0>();
}
REGISTER_KERNEL(planted_sums_read_early)

ON_TILES(planted_fence_missing, 128) {
    SHARED_MEMORY(shared);
    const uint32_t tiles = shared_address(shared);
    load_tiles<2>(in);
    float sums[32];
    clear(sums);
    warpgroup_fence();
    for (uint32_t turn = 0; turn < 2; turn++) {
        warpgroup_multiply_bf16<kMajorK, kMajorK>(sums, matrix_descriptor_128(tiles), matrix_descriptor_128(tiles + kTile), 1);  // BUG fence missing
        warpgroup_commit();
        warpgroup_wait<0>();
        sums[3] *= 0.5f;
    }
    store_sums(y, sums);
}
REGISTER_KERNEL(planted_fence_missing)

// The reader gives the stage back while its last group still reads it.
ON_TILES(planted_wait_too_weak_for_stage, 160) {
    SHARED_MEMORY(shared);
    const uint32_t tiles = shared_address(shared), barriers = tiles + 2 * kTile;
    using One = Pipeline<1>;
    if (threadIdx.x == 0) {
        One{barriers}.init(128);
        mbarrier_init_fence();
    }
    block_sync();
    One::State pipe;
    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128) return;
        for (uint32_t turn = 0; turn < 2; turn++) {
            One{barriers}.producer_acquire(pipe, 2 * kTile);
            tensor_load_2d(tiles, &in, 0, 0, One{barriers}.full(pipe));  // BUG wait too weak for stage
            tensor_load_2d(tiles + kTile, &in, 64, 0, One{barriers}.full(pipe));
            pipe.advance();
        }
        return;
    }
    float sums[32];
    clear(sums);
    for (uint32_t turn = 0; turn < 2; turn++) {
        One{barriers}.consumer_wait(pipe);
        warpgroup_fence();
        multiply_tile(sums, tiles, tiles + kTile);
        warpgroup_commit();
        warpgroup_wait<1>();
        One{barriers}.consumer_release(pipe);
        pipe.advance();
    }
    warpgroup_wait<0>();
    store_sums(y, sums);
}
REGISTER_KERNEL(planted_wait_too_weak_for_stage)

ON_TILES(planted_warp_misses_commit, 128) {
    SHARED_MEMORY(shared);
    const uint32_t tiles = shared_address(shared);
    load_tiles<2>(in);
    float sums[32];
    clear(sums);
    warpgroup_fence();
    multiply_tile(sums, tiles, tiles + kTile);
    if (threadIdx.x >= 32)
        warpgroup_commit();  // PARTNER warp misses commit
    else
        warpgroup_multiply_bf16<kMajorK, kMajorK>(sums, matrix_descriptor_128(tiles), matrix_descriptor_128(tiles), 1);  // BUG warp misses commit
    warpgroup_wait<0>();
    store_sums(y, sums);
}
REGISTER_KERNEL(planted_warp_misses_commit)

ON_TILES(planted_registers_never_come, 384, 1) {
    if (threadIdx.x < 128) {
        warpgroup_registers_increase<240>();  // BUG registers never come
    } else {
        y[threadIdx.x - 128] = 1.0f;
        block_sync();
    }
    if (threadIdx.x < 128) block_sync();
}
REGISTER_KERNEL(planted_registers_never_come)

// ---- clusters, of two blocks ----

// Without the barrier of the cluster the other block's mbarrier may not be there yet.
ON_TILES(planted_multicast_too_early, 32) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, kTile);
    if (cluster_rank() == 0) {
        cluster_sync();
        if (threadIdx.x == 0) tensor_load_2d_multicast(shared_address(shared), &in, 0, 0, barrier, 3);
    } else {
        reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = 1;
        fence_proxy_async_shared();
        cluster_sync();
        y[threadIdx.x] = __uint_as_float(reinterpret_cast<uint32_t*>(shared)[threadIdx.x]);  // BUG multicast too early
    }
    mbarrier_wait(barrier, 0);
    cluster_sync();
}
REGISTER_KERNEL(planted_multicast_too_early)

// What another block did before it arrived is acquired by a wait of the cluster's scope alone.
ON_TILES(planted_wait_of_the_block, 32) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    cluster_sync();
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = threadIdx.x;  // PARTNER wait of the block
    warp_sync();
    if (threadIdx.x == 0) mbarrier_arrive_cluster(cluster_address(barrier, cluster_rank() ^ 1));
    mbarrier_wait(barrier, 0);
    y[blockIdx.x * 32 + threadIdx.x] = static_cast<float>(load_cluster_4(cluster_address(shared_address(shared) + threadIdx.x * 4, cluster_rank() ^ 1)));  // BUG wait of the block
    cluster_sync();
}
REGISTER_KERNEL(planted_wait_of_the_block)

// A relaxed arrival tells of copies and MMA instructions that were waited for, not of ordinary stores.
ON_TILES(planted_relaxed_arrival, 32) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1);
    cluster_sync();
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = threadIdx.x;  // PARTNER relaxed arrival
    warp_sync();
    if (threadIdx.x == 0) mbarrier_arrive_cluster_relaxed(cluster_address(barrier, cluster_rank() ^ 1));
    mbarrier_wait_cluster(barrier, 0);
    const uint32_t other = cluster_address(shared_address(shared) + threadIdx.x * 4, cluster_rank() ^ 1);
    y[blockIdx.x * 32 + threadIdx.x] = static_cast<float>(load_cluster_4(other));  // BUG relaxed arrival
    cluster_sync();
}
REGISTER_KERNEL(planted_relaxed_arrival)

ON_TILES(planted_other_block_unsynchronised, 32) {
    SHARED_MEMORY(shared);
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = threadIdx.x;
    cluster_sync();
    const uint32_t other = cluster_address(shared_address(shared) + threadIdx.x * 4, cluster_rank() ^ 1);
    y[blockIdx.x * 32 + threadIdx.x] = static_cast<float>(load_cluster_4(other));  // PARTNER other block unsynchronised
    reinterpret_cast<uint32_t*>(shared)[threadIdx.x] = 1;  // BUG other block unsynchronised
    cluster_sync();
}
REGISTER_KERNEL(planted_other_block_unsynchronised)

// What another block sent is acquired by a wait of the cluster's scope alone.
ON_TILES(planted_sent_and_wait_of_the_block, 32) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1), other = cluster_rank() ^ 1;
    cluster_sync();
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, 32 * 8);
    const uint32_t place = cluster_address(shared_address(shared) + threadIdx.x * 8, other);
    store_async_8(place, two_words(threadIdx.x, 1), cluster_address(barrier, other));  // PARTNER sent and wait of the block
    mbarrier_wait(barrier, 0);
    y[blockIdx.x * 32 + threadIdx.x] = static_cast<float>(reinterpret_cast<uint2*>(shared)[threadIdx.x].x);  // BUG sent and wait of the block
}
REGISTER_KERNEL(planted_sent_and_wait_of_the_block)

// A block that was sent something must still be there when it comes.
ON_TILES(planted_sent_and_not_waited, 32) {
    SHARED_MEMORY(shared);
    const uint32_t barrier = barrier_behind(1), other = cluster_rank() ^ 1;
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier, 8);
    cluster_sync();
    y[blockIdx.x * 32 + threadIdx.x] = 1.0f;
    if (threadIdx.x == 0) store_async_8(cluster_address(shared_address(shared), other), two_words(1, 1), cluster_address(barrier, other));  // BUG sent and not waited
    cluster_sync();
}
REGISTER_KERNEL(planted_sent_and_not_waited)

// ---- none ----

// One warp fills a ring of two stages, a warpgroup multiplies; then through stmatrix and a bulk store.
ON_TILES(correct_ring, 160) {
    SHARED_MEMORY(shared);
    using Two = Pipeline<2>;
    const uint32_t stages = shared_address(shared), staging = stages + 4 * kTile, barriers = staging + kTile;
    if (threadIdx.x == 0) {
        Two{barriers}.init(4);
        mbarrier_init_fence();
    }
    block_sync();
    Two::State pipe;
    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128) return;
        for (uint32_t turn = 0; turn < 6; turn++) {
            const uint32_t stage = stages + pipe.stage * 2 * kTile;
            Two{barriers}.producer_acquire(pipe, 2 * kTile);
            tensor_load_2d(stage, &in, static_cast<int>(turn % 2 * 64), 0, Two{barriers}.full(pipe));
            tensor_load_2d(stage + kTile, &in, 64 - static_cast<int>(turn % 2 * 64), 0, Two{barriers}.full(pipe));
            pipe.advance();
        }
        return;
    }
    float sums[32];
    clear(sums);
    for (uint32_t turn = 0; turn < 6; turn++) {
        const uint32_t stage = stages + pipe.stage * 2 * kTile;
        Two{barriers}.consumer_wait(pipe);
        warpgroup_fence();
        multiply_tile(sums, stage, stage + kTile);
        warpgroup_commit();
        warpgroup_wait<0>();
        if (threadIdx.x % 32 == 0) Two{barriers}.consumer_release(pipe);
        pipe.advance();
    }
    store_sums(y, sums);
    const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t chunk = 2 * i + lane / 16;
        uint32_t fragment[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) fragment[j] = pack_bf16x2(sums[8 * i + 2 * j], sums[8 * i + 2 * j + 1]);
        store_matrix_x4(staging + row * 128 + (chunk ^ row % 8) * 16, fragment);
    }
    fence_proxy_async_shared();
    barrier_sync(1, 128);
    if (threadIdx.x == 0) {
        tensor_store_2d(&out, 0, 0, staging);
        bulk_commit();
        bulk_wait_read<0>();
    }
}
REGISTER_KERNEL(correct_ring)

// Each block multicasts half of a tile to both, which add up what they see of each other.
ON_TILES(correct_multicast, 32) {
    SHARED_MEMORY(shared);
    const uint32_t tile = shared_address(shared), full = tile + 2 * kTile, empty = full + 8;
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init(empty, 2);
        mbarrier_init_fence();
    }
    cluster_sync();
    for (uint32_t turn = 0; turn < 3; turn++) {
        if (threadIdx.x == 0) {
            mbarrier_wait_cluster(empty, turn % 2 ^ 1);
            mbarrier_arrive_expect(full, 2 * kTile);
            tensor_load_2d_multicast(tile + cluster_rank() * kTile, &in, static_cast<int>(cluster_rank() * 64), 0, full, 3);
        }
        mbarrier_wait(full, turn % 2);
        const float first = reinterpret_cast<float*>(shared)[threadIdx.x], second = reinterpret_cast<float*>(shared)[kTile / 4 + threadIdx.x];
        y[blockIdx.x * 32 + threadIdx.x] = first + second;
        warp_sync();
        // Both blocks fill this one: both must know that it is empty.
        if (threadIdx.x < 2) mbarrier_arrive_cluster(cluster_address(empty, threadIdx.x));
    }
    cluster_sync();
}
REGISTER_KERNEL(correct_multicast)
