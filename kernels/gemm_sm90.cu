// targets: sm_90a
// Many rows of activations times a weight matrix on Hopper: prefill and large batches, on the tensor cores by wgmma.
#include "common/epilogue.cuh"
#include "common/multiply_add.cuh"
#include "common/tile_order.cuh"
#include "common/pipeline.cuh"
#include "common/vector.cuh"
#include "ptx/ptx.cuh"

// Warpgroups: one fills the ring, two multiply, half of the tile's rows each.
static constexpr uint32_t kGroupThreads = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kGroupThreads;
static constexpr uint32_t kTileM = 128, kGroupRows = kTileM / kConsumers, kTileK = 64;
static constexpr uint32_t kRowBytes = 128;  // of everything in shared memory: the width of its swizzle
static constexpr uint32_t kActivationBytes = kTileM * kRowBytes, kRingBytes = 192 << 10;
static constexpr uint32_t kStoreTileBytes = kGroupRows * kRowBytes;  // of the output, per warpgroup
static constexpr uint32_t kStoreTiles = 2;
static_assert(kTileK * 2 == kRowBytes, "a row of a stage is what the swizzle spreads");

// kTileM x kTileN of the output, and the shared memory of a block that computes it.
template <uint32_t kTileN_>
struct Tile {
    static constexpr uint32_t kTileN = kTileN_;
    static constexpr uint32_t kStageBytes = kActivationBytes + kTileN * kRowBytes;
    static constexpr uint32_t kStages = kRingBytes / kStageBytes;
    using Stages = Pipeline<kStages>;
    static constexpr uint32_t kOutput = kStages * kStageBytes;  // store tiles of the output
    static constexpr uint32_t kBarriers = kOutput + kConsumers * kStoreTiles * kStoreTileBytes;  // the ring's
    static constexpr uint32_t kStoreBarriers = kBarriers + Stages::kBytes;  // one a store tile
    static_assert(kStageBytes % 1024 == 0, "the swizzle repeats every 8 m");
};

// Whether an output is a plain matrix of T, which TMA stores.
template <class Output>
struct IsMatrix {
    static constexpr bool value = false;
};
template <class T>
struct IsMatrix<Matrix<T>> {
    static constexpr bool value = true;
};

// Where a 16-byte chunk of a store tile's row lies. As TMA spreads them: the 8 rows of a matrix that stmatrix
// writes, and the 8 chunks of a row, lie in 8 different groups of 4 banks.
DEVICE uint32_t store_offset(uint32_t row, uint32_t chunk) { return row * kRowBytes + (chunk ^ row % 8) * 16; }
// The same for f32, written 8 bytes a lane: 4 rows of 2 neighbouring chunks lie in 8 different groups.
DEVICE uint32_t wide_store_offset(uint32_t row, uint32_t chunk) { return row * kRowBytes + (chunk ^ row % 4 * 2) * 16; }

// Computes: out[m, n] = epilogue(sum over k of x[m, k] weights[n, k])
// Shapes:
//   x, weights  maps of T [m, k], written by earlier work on the stream, and of T [n, k], written
//               before this stream's work began; boxes of 64 k, 128 bytes with the swizzle of 128, and 128 rows of x,
//               kTileN / cluster of weights
//   matrix      of an output that is a plain matrix of T: its map, boxes of 64 columns and 64 rows, the same swizzle
//   output      what the epilogue takes: see common/epilogue.cuh. Of a plain matrix the bias alone
//   group       rows of tiles (of a cluster's tiles) that are computed together, at least 1
//
// Roles. Warpgroup 0 fills a ring of stages by TMA: one thread asks for x and weights of 64 k a stage, and
// runs ahead of the products, over the ends of tiles too. Warpgroups 1 and 2 multiply, 64 rows x kTileN each, by
// wgmma of m64nNk16 from shared memory, four a stage. One stage's are under way while the next one's are given; a warp
// hands a stage back once it has waited for its own. Blocks stay: a cluster computes tiles first, first + clusters, ...
// so that the copies of a tile run under the end of the one before it.
//
// Registers. 168 x 384 threads is what an SM has of them (65,536) at the start; the producer gives back all
// but 40, and the others take 232: 128 x 40 + 256 x 232 = 64,512. A lane has kTileN / 2 sums, 128 at the widest, and
// for a plain matrix the bias of as many columns, 32 pairs.
//
// Tiles. An m64n256k16 takes 128 cycles of the tensor cores (2048 multiply-adds a cycle) and reads 2 KiB of x and 8 KiB
// of weights in shared memory, of the 16 KiB that 128 cycles give. From L2 come, for 64 k, alone and in a cluster,
//   128x256  48 KiB for 1024 cycles, 48 bytes a cycle; 32 KiB, 32 bytes
//   128x192  40 KiB for  768 cycles, 53 bytes; 28 KiB, 37 bytes
//   128x128  32 KiB for  512 cycles, 64 bytes; 24 KiB, 48 bytes
//   128x64   24 KiB for  256 cycles, 96 bytes; 20 KiB, 80 bytes
// If L2 gives an SM 32 bytes a cycle, as the launcher takes it, the widest tile in a cluster alone keeps up.
// The others are for outputs that it cuts into too few or too uneven parts.
//
// Clusters of two have the same columns and neighbouring rows of tiles: each block loads its own x, and half of the
// weights into both. A stage is empty when the warps of both blocks have read theirs.
//
// Stages: 192 KiB of shared memory, 4, 4, 6 or 8 by width; 32 KiB are the output's, of 227. At 4 stages of 48 KiB
// three, 144 KiB, are under way while one is multiplied: 3072 cycles, 1.7 us at 1.8 GHz, for a latency of 0.7 us.
//
// Order of the sum: k ascending, 16 at a time, in one accumulator, whatever the tile.
//
// Order of the tiles: clusters go down `group` rows of them, then to the next column, so that those that run together
// share rows and columns in L2; the launcher picks `group` by how many run together.
//
// End. A plain matrix leaves in store tiles of 64 rows x 64 columns, two a warpgroup: stmatrix into the swizzled store
// tile, and a store by TMA, which clips what lies past the ends, while the next store tile is made. What a residual is
// added to comes in the same way beforehand, the first two store tiles during the products. Keys and values go to pages
// and logits are f32: a warp makes 16 rows of 128 bytes in its part of a store tile, and 8 lanes store the 128 bytes of
// a row, 16 each.
//
// Before the wait for earlier work: barriers, maps, and the weights of as many stages as there are.
//
// Grid: (blocks), at most one an SM and at least one of a tile, in clusters of 1 or 2; kThreads threads.
// Smem: kStoreBarriers + 32 bytes.
// Bytes: (n k + m k + m n + the epilogue's) x sizeof(T), each operand counted once.
// FLOPs: 2 m n k.
// Alignment: n and k multiples of 8; all buffers 16 bytes.
// Registers: at most 168 (gemm_sm90_*)
template <class Epilogue, class Tile, class T>
DEVICE void gemm(const TensorMap& x, const TensorMap& weights, const TensorMap* matrix,
                 const typename Epilogue::template Output<T>& output, uint32_t m, uint32_t n, uint32_t k,
                 uint32_t group) {
    using Stages = typename Tile::Stages;
    using Stored = typename Epilogue::template Stored<T>;
    constexpr bool kBulk = IsMatrix<typename Epilogue::template Output<T>>::value;
    constexpr bool kAdds = Epilogue::kAddsToOutput;
    static_assert(kBulk || !kAdds, "what is added to is read as a store tile");
    SHARED_MEMORY(shared);
    const uint32_t ring = shared_address(shared);
    const Stages stages{ring + Tile::kBarriers};
    const uint32_t cluster = cluster_blocks(), rank = cluster_rank();

    if (threadIdx.x == 0) {
        stages.init(cluster * kConsumers * 4);
#pragma unroll
        for (uint32_t store_tile = 0; store_tile < kConsumers * kStoreTiles; store_tile++) {
            mbarrier_init(ring + Tile::kStoreBarriers + store_tile * 8, 1);
        }
        mbarrier_init_fence();
        tensor_map_prefetch(&x);
        tensor_map_prefetch(&weights);
        if (kBulk) tensor_map_prefetch(matrix);
    }
    grid_dependency_launch();
    cluster_arrive();
    cluster_wait();

    // Tiles: the cluster's blocks have one column of tiles and neighbouring rows of them.
    const uint32_t down = (m + cluster * kTileM - 1) / (cluster * kTileM);
    const uint32_t across = (n + Tile::kTileN - 1) / Tile::kTileN, tiles = down * across;
    const uint32_t first_tile = blockIdx.x / cluster, tile_step = gridDim.x / cluster;
    const uint32_t k_tiles = (k + kTileK - 1) / kTileK;
    struct Place {
        uint32_t row, column;
    };
    const auto place_of = [&](uint32_t tile) {
        const TileIndex index = tile_index(tile, down, across, group);
        return Place{(index.down * cluster + rank) * kTileM, index.across * Tile::kTileN};
    };

    if (threadIdx.x < kGroupThreads) {
        warpgroup_registers_decrease<40>();
        // Each block of a cluster loads a part of the weights' rows, into all of them.
        const uint32_t part = Tile::kTileN / cluster, part_bytes = part * kRowBytes;
        const uint16_t everyone = static_cast<uint16_t>((1u << cluster) - 1);
        const auto fill_weights = [&](const typename Stages::State& pipe, uint32_t column, uint32_t k_tile) {
            // As Pipeline::producer_acquire, for consumers in the whole cluster: copies go into stages of all its
            // blocks.
            mbarrier_wait_cluster_relaxed(stages.empty(pipe), pipe.parity ^ 1, "empty");
            const uint32_t full = stages.full(pipe);
            mbarrier_arrive_expect(full, Tile::kStageBytes);
            const uint32_t to = ring + pipe.stage * Tile::kStageBytes + kActivationBytes + rank * part_bytes;
            const int at_k = static_cast<int>(k_tile * kTileK), row = static_cast<int>(column + rank * part);
            if (cluster == 1) {
                tensor_load_2d(to, &weights, at_k, row, full);
            } else {
                tensor_load_2d_multicast(to, &weights, at_k, row, full, everyone);
            }
        };
        uint32_t ahead = 0;  // stages whose weights were asked for before the wait
        if (threadIdx.x == 0) {
            const uint32_t column = place_of(first_tile).column;
            typename Stages::State pipe;
#pragma unroll 1
            for (; ahead < min(k_tiles, Tile::kStages); ahead++) {
                fill_weights(pipe, column, ahead);
                pipe.advance();
            }
        }
        grid_dependency_wait();
        if (threadIdx.x == 0) {
            fence_proxy_async_global();
            typename Stages::State pipe;
            for (uint32_t tile = first_tile; tile < tiles; tile += tile_step) {
                const Place at = place_of(tile);
#pragma unroll 1
                for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
                    if (ahead > 0) {
                        ahead--;
                    } else {
                        fill_weights(pipe, at.column, k_tile);
                    }
                    tensor_load_2d(ring + pipe.stage * Tile::kStageBytes, &x, static_cast<int>(k_tile * kTileK),
                                   static_cast<int>(at.row), stages.full(pipe));
                    pipe.advance();
                }
            }
        }
        warp_sync();
    } else {
        warpgroup_registers_increase<232>();
        const uint32_t consumer = threadIdx.x / kGroupThreads - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        const uint32_t g = lane / 4, t = lane % 4;
        const bool elected = threadIdx.x % kGroupThreads == 0;
        const uint32_t store_tiles = ring + Tile::kOutput + consumer * kStoreTiles * kStoreTileBytes;
        const uint32_t store_barriers = ring + Tile::kStoreBarriers + consumer * kStoreTiles * 8;
        // A descriptor counts in 16 bytes; the ring's addresses stay below what it can hold.
        const uint64_t first_a = matrix_descriptor_128(ring + consumer * kGroupRows * kRowBytes);
        const uint64_t first_b = matrix_descriptor_128(ring + kActivationBytes);
        // Lane b of each warp tells block b of the cluster that this warp has read a stage.
        const Stages reported{cluster_address(stages.barriers, min(lane, cluster - 1))};
        const auto consumer_release = [&](const typename Stages::State& pipe) {
            if (lane < cluster) mbarrier_arrive_cluster_relaxed(reported.empty(pipe));
        };
        constexpr uint32_t kStoreTileN = kRowBytes / sizeof(Stored), kStoreFragments = kStoreTileN / 8;
        constexpr uint32_t kAllTiles = Tile::kTileN / 8;

        grid_dependency_wait();
        if (kAdds && elected) fence_proxy_async_global();
        typename Stages::State pipe;
        // The store tile that is next, and a bit for each: the parity that its barrier is waited for.
        uint32_t store_tile = 0, store_parities = 0;
        for (uint32_t tile = first_tile; tile < tiles; tile += tile_step) {
            const Place at = place_of(tile);
            const uint32_t group_row = at.row + consumer * kGroupRows, warp_row = group_row + warp * 16;
            const auto load_store_tile = [&](uint32_t index, uint32_t column) {
                const uint32_t barrier = store_barriers + index * 8;
                mbarrier_arrive_expect(barrier, kStoreTileBytes);
                tensor_load_2d(store_tiles + index * kStoreTileBytes, matrix, static_cast<int>(column),
                               static_cast<int>(group_row), barrier);
            };
            if constexpr (kAdds) {
                if (elected) {
                    bulk_wait_read<0>();
#pragma unroll
                    for (uint32_t i = 0; i < kStoreTiles; i++) {
                        const uint32_t column = at.column + i * kStoreTileN;
                        if (i * kStoreTileN < Tile::kTileN && column < n) load_store_tile(store_tile ^ i, column);
                    }
                }
            }
            // What belongs to columns and rows is here before the products are.
            const auto lane_column = [&](uint32_t i) { return min(at.column + i * 8 + 2 * t, n - kVector + 2 * t); };
            const auto read_row = [&](uint32_t row) { return Epilogue::row_terms(output, min(row, m - 1)); };
            // Bias alone, all columns of it; where there is more to read, see below.
            using ColumnTerms = decltype(Epilogue::column_terms(output, 0u));
            ColumnTerms column_terms[kBulk ? kAllTiles : kStoreFragments];
            if constexpr (kBulk) {
#pragma unroll
                for (uint32_t i = 0; i < kAllTiles; i++) {
                    column_terms[i] = Epilogue::column_terms(output, lane_column(i));
                }
            }
            const decltype(read_row(0)) row_terms[2] = {read_row(warp_row + g), read_row(warp_row + g + 8)};
            decltype(read_row(0)) stored_row_terms[4] = {};
            if constexpr (!kBulk) {
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) stored_row_terms[i] = read_row(warp_row + i * 4 + lane / 8);
            }

            float sums[Tile::kTileN / 2];
            typename Stages::State before = pipe;
#pragma unroll 1
            for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
                stages.consumer_wait(pipe);
                const uint64_t a = first_a + pipe.stage * (Tile::kStageBytes / 16);
                const uint64_t b = first_b + pipe.stage * (Tile::kStageBytes / 16);
                warpgroup_fence();
#pragma unroll
                for (uint32_t step = 0; step < kTileK / 16; step++) {
                    multiply_add(T{}, sums, a + step * 2, b + step * 2, step > 0 ? 1 : k_tile);
                }
                warpgroup_commit();
                warpgroup_wait<1>();
                if (k_tile > 0) consumer_release(before);
                before = pipe;
                pipe.advance();
            }

            // Of a store tile, what belongs to pairs: for the next one while one is stored.
            using PairTerms = decltype(Epilogue::pair_terms(output, row_terms[0], 0u));
            PairTerms pair_terms[2][kStoreFragments];
            const auto read_terms = [&](uint32_t first) {
#pragma unroll
                for (uint32_t i = 0; i < kStoreFragments; i++) {
                    const uint32_t column = lane_column(first + i);
                    column_terms[i] = Epilogue::column_terms(output, column);
                    pair_terms[0][i] = Epilogue::pair_terms(output, row_terms[0], column);
                    pair_terms[1][i] = Epilogue::pair_terms(output, row_terms[1], column);
                }
            };
            if constexpr (!kBulk) read_terms(0);
            warpgroup_wait<0>();
            consumer_release(before);

#pragma unroll
            for (uint32_t i = 0; i < Tile::kTileN / kStoreTileN; i++) {
                const uint32_t column = at.column + i * kStoreTileN;
                if (column >= n) break;
                if constexpr (kAdds) {
                    mbarrier_wait(store_barriers + store_tile * 8, store_parities >> store_tile & 1,
                                  "store_tile of the output");
                    store_parities ^= 1u << store_tile;
                } else if constexpr (kBulk) {
                    if (elected) bulk_wait_read<kStoreTiles - 1>();
                    barrier_sync(1 + consumer, kGroupThreads);
                }
                const uint32_t own = store_tile * kStoreTileBytes + warp * 16 * kRowBytes;  // 16 rows of the store tile
                const uint32_t slab = store_tiles + own;
                uint8_t* const slab_bytes = shared + Tile::kOutput + consumer * kStoreTiles * kStoreTileBytes + own;
#pragma unroll
                for (uint32_t two = 0; two < kStoreFragments; two += 2) {
                    // Two tiles of 8 columns: rows g and g + 8 of the first, then of the second.
                    const uint32_t address = slab + store_offset(lane % 16, two + lane / 16);
                    uint32_t words[4] = {};
                    if constexpr (kAdds) load_matrix_x4(words, address);
#pragma unroll
                    for (uint32_t quarter = 0; quarter < 4; quarter++) {
                        const uint32_t in_tile = two + quarter / 2, half = quarter % 2;
                        const uint32_t tile_at = i * kStoreFragments + in_tile;
                        float pair[2] = {sums[tile_at * 4 + half * 2], sums[tile_at * 4 + half * 2 + 1]};
                        const ColumnTerms& column_term = column_terms[kBulk ? tile_at : in_tile];
                        if constexpr (kAdds) {
                            Epilogue::template apply<T>(pair, column_term, words[quarter]);
                        } else {
                            Epilogue::template apply<T>(pair, column_term, pair_terms[half][in_tile]);
                        }
                        if constexpr (sizeof(Stored) == 4) {
                            uint8_t* const to =
                                slab_bytes + wide_store_offset(g + half * 8, in_tile * 2 + t / 2) + t % 2 * 8;
                            *reinterpret_cast<float2*>(to) = float2{pair[0], pair[1]};
                        } else {
                            words[quarter] = pack<T>(pair[0], pair[1]);
                        }
                    }
                    if constexpr (sizeof(Stored) == 2) store_matrix_x4(address, words);
                }
                if constexpr (kBulk) {
                    fence_proxy_async_shared();
                    barrier_sync(1 + consumer, kGroupThreads);
                    if (elected) {
                        tensor_store_2d(matrix, static_cast<int>(column), static_cast<int>(group_row),
                                        store_tiles + store_tile * kStoreTileBytes);
                        bulk_commit();
                        if constexpr (kAdds) {
                            const uint32_t next = column + kStoreTiles * kStoreTileN;
                            if (i + kStoreTiles < Tile::kTileN / kStoreTileN && next < n) {
                                bulk_wait_read<0>();
                                load_store_tile(store_tile, next);
                            }
                        }
                    }
                } else {
                    if (i + 1 < Tile::kTileN / kStoreTileN) read_terms((i + 1) * kStoreFragments);
                    // 8 lanes store the 128 bytes of a row.
                    warp_sync();
#pragma unroll
                    for (uint32_t four = 0; four < 4; four++) {
                        const uint32_t row = four * 4 + lane / 8, chunk = lane % 8;
                        const uint32_t from =
                            sizeof(Stored) == 4 ? wide_store_offset(row, chunk) : store_offset(row, chunk);
                        const uint32_t chunk_column = column + chunk * (16 / sizeof(Stored));
                        const uint4 values = *reinterpret_cast<const uint4*>(slab_bytes + from);
                        if (warp_row + row < m && chunk_column < n) {
                            Stored* const to = Epilogue::place(output, stored_row_terms[four], chunk_column);
                            if (to != nullptr) store_global_16(to, values);
                        }
                    }
                }
                store_tile ^= 1;
            }
        }
        if constexpr (kBulk) {
            if (elected) bulk_wait<0>();  // the work behind reads what was stored
        }
    }
    // No block ends while another may write its shared memory or arrive at its barriers.
    cluster_arrive();
    cluster_wait();
}

using Tile256 = Tile<256>;
using Tile192 = Tile<192>;
using Tile128 = Tile<128>;
using Tile64 = Tile<64>;

// What a kernel takes ahead of its output: maps of x, of the weights, and of an output that TMA stores.
#define OPERAND_MAPS const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights
#define MATRIX_MAPS OPERAND_MAPS, const __grid_constant__ TensorMap matrix
#define MATRIX_MAP &matrix
#define LOGITS_MAPS OPERAND_MAPS
#define LOGITS_MAP nullptr
#define QUERY_KEY_VALUE_MAPS OPERAND_MAPS
#define QUERY_KEY_VALUE_MAP nullptr

// One kernel for each epilogue, type and tile; the launcher picks tile, cluster, blocks and group.
#define GEMM_KERNEL(name, Epilogue, FORM, T, Tile)                                         \
    KERNEL(name, kThreads, 1)(FORM##_MAPS, FORM##_PARAMETERS(T), uint32_t group) {         \
        gemm<Epilogue, Tile, T>(x, weights, FORM##_MAP, FORM##_OUTPUT(T), m, n, k, group); \
    }                                                                                      \
    REGISTER_KERNEL(name)
#define GEMM_TILES(name, Epilogue, FORM, T)                       \
    GEMM_KERNEL(name##_##T##_128x256, Epilogue, FORM, T, Tile256) \
    GEMM_KERNEL(name##_##T##_128x192, Epilogue, FORM, T, Tile192) \
    GEMM_KERNEL(name##_##T##_128x128, Epilogue, FORM, T, Tile128) \
    GEMM_KERNEL(name##_##T##_128x64, Epilogue, FORM, T, Tile64)
#define GEMM_KERNELS(T)                                                \
    GEMM_TILES(gemm_sm90_bias_gelu, BiasGelu, MATRIX, T)               \
    GEMM_TILES(gemm_sm90_bias_residual, BiasResidual, MATRIX, T)       \
    GEMM_TILES(gemm_sm90_bias_rope_kv, BiasRopeKv, QUERY_KEY_VALUE, T) \
    GEMM_TILES(gemm_sm90_logits, Logits, LOGITS, T)

GEMM_KERNELS(bf16)
GEMM_KERNELS(f16)
