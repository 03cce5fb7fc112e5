// targets: sm_90a
// Some rows of activations, 17 to 256, times a weight matrix: batched decode and speculation, bound by the bytes of the
// weights. On Hopper by wgmma, the weights as its 64 rows and the batch as its few columns.
#include "common/epilogue.cuh"
#include "common/multiply_add.cuh"
#include "common/pipeline.cuh"
#include "ptx/ptx.cuh"

static constexpr uint32_t kTile = 128;  // columns of the output, rows of the weights, of a block
static constexpr uint32_t kTileK = 64;  // of k in a stage: 128 bytes of a row, what the swizzle spans
static constexpr uint32_t kRowBytes = kTileK * 2;  // of a row of either operand in a stage
static constexpr uint32_t kConsumerWarps = kTile / 64 * 4;  // warps that multiply
static constexpr uint32_t kThreads = (kConsumerWarps + 1) * 32;
static constexpr uint32_t kPitch = kTile + 4;  // floats of a row of sums; the 4 spread a fragment over the banks
static constexpr uint32_t kRowsAtOnce = 4;  // that a thread finishes together, so that their loads overlap

// What a block has in shared memory for up to kBatch rows of activations, and how many blocks share an SM.
template <uint32_t kBatch_, uint32_t kStages_, uint32_t kBlocks_>
struct Shape {
    static constexpr uint32_t kBatch = kBatch_, kStages = kStages_, kBlocks = kBlocks_;
    static constexpr uint32_t kWeightBytes = kTile * kRowBytes;
    static constexpr uint32_t kStageBytes = kWeightBytes + kBatch * kRowBytes;
    static_assert(kStageBytes % 1024 == 0 && kBatch / 2 * kRowBytes % 1024 == 0, "whole atoms of the swizzle");
    static_assert(kBatch * kPitch * 4 <= kStages * kStageBytes, "the sums take the ring's place");
    static_assert(kBlocks * (kStages * (kStageBytes + 16) + 1024) <= 228 << 10, "they fit beside each other");
};
using Tile64 = Shape<64, 4, 2>;
using Tile128 = Shape<128, 3, 2>;
using Tile192 = Shape<192, 5, 1>;
using Tile256 = Shape<256, 4, 1>;

// Computes: out[m, n] = epilogue(sum over k of x[m, k] weights[n, k])
// Shapes:
//   x        T [m, k] by its map, with boxes of 64 k x kBatch / across rows; written by earlier work on the
//            stream
//   weights  T [n, k] by its map, with boxes of 64 k x 128 rows; written before this stream's work began
//   output   what the epilogue takes: see common/epilogue.cuh
//   rows     at most kBatch
//   across   1 or 2: tiles of 128 columns that a cluster computes side by side
//
// A cluster is `across` tiles by `splits` parts of k, at most 8 blocks: block `rank` has tile rank % across and part
// rank / across. Part s has the chunks of 64 k from chunks s / splits on, rounded down.
//
// The way of the operands: one thread fills a ring in shared memory by TMA, whose maps fill what lies past the ends
// with zeros; two warpgroups multiply 64 weight rows each, m64 n(kBatch) k16, both operands from shared memory, and
// free a stage as soon as they have read it. The weights of the first round are asked for before the work ahead in the
// stream is done. They come once and leave L2 first. The activations are read by every tile: the blocks side by side in
// a cluster load a half each, into both.
//
// Sums of the parts meet in shared memory, not in a workspace: each block lays its tile of f32 over its empty ring, and
// behind a barrier of the cluster every block adds up its share of the rows from all of them. That takes one exchange
// of 4 x 128 x rows bytes a block between SMs; through L2 it would take twice that, a round of atomics
// behind it, and one block of each tile to add up all of them at the end.
//
// Order of the sum: k ascending in a part, 16 at a time in one accumulator, then the parts in their order, from 0. It
// depends on the instruction's shape and on `splits`, which the launcher chooses by columns, depth and device alone: a
// row has the same bits with any rows beside it, up to kBatch.
//
// Sizes. Memory gives an SM 4.8 TB/s / 132 / 1.755 GHz = 20.7 bytes a cycle, so a chunk's 16 KiB of weights
// come in 790 cycles; a tensor core multiplies them with kBatch rows in 128 kBatch 64 / 2048 = 4 kBatch cycles. So 64
// and 128 rows, 256 and 512 cycles, wait for memory, and a finer step would save nothing; rows that are not there are
// not read. 192 rows take 768 cycles, still the memory's; 256 take 1024. From L2 a block of 128 columns reads rows /
// 128 times the bytes of the weights as activations, half of it with `across` 2: up to 128 rows at most 1.5 times 20.7
// = 31 bytes a cycle, about what L2 is taken to give.
//   64    24 KiB a stage, 4 stages, 2 blocks an SM: 64 KiB of weights under way a block
//   128   32 KiB, 3 stages, 2 blocks: 48 KiB a block
//   192   40 KiB, 5 stages, 1 block: 80 KiB
//   256   48 KiB, 4 stages, 1 block: 64 KiB
// (4.8 TB/s x 1 us / 132 SMs = 36 KiB keep memory busy.) With room for two blocks, the next kernel's blocks
// ask for their weights while this kernel's last blocks end; and 132 to 264 equal blocks run at one time,
// where they end together, since it is memory that they share. Registers: kBatch / 2 sums.
//
// End: lane 4 g + t of a warp has sums of columns g and g + 8, rows 8 i + 2 t and 8 i + 2 t + 1; it stores them as
// tile[row][column], in 4 bytes: with kPitch = 4 modulo 16 the lanes meet 32 banks. A warp then finishes 64 columns of
// one row of four, two neighbouring columns a lane: what it stores is consecutive. Terms of columns are read ahead of
// the wait for the work before.
//
// Grid: (ceil(tiles / across) across splits) in clusters of (across splits), 288 threads.
// Smem: the ring and
// its barriers.
// Bytes: (n k + m k + m n + the epilogue's) x sizeof(T), each operand counted once.
// FLOPs: 2 m n k.
// Alignment: n and k multiples of 8; all buffers 16 bytes.
// Registers: at most 80 (gemm_small_m_logits_*_64 gemm_small_m_bias_gelu_*_64)
// Registers: at most 80 (gemm_small_m_bias_residual_*_64), 96 (gemm_small_m_bias_rope_kv_*_64 gemm_small_m_*_128)
// Registers: at most 128 (gemm_small_m_*_192), 160 (gemm_small_m_*_256)
template <class Epilogue, class Shape, class T>
DEVICE void small_m(const TensorMap& x, const TensorMap& weights, const typename Epilogue::template Output<T>& output,
                    uint32_t m, uint32_t n, uint32_t k, uint32_t across) {
    using Stages = Pipeline<Shape::kStages>;
    SHARED_MEMORY(shared);
    const uint32_t ring = shared_address(shared);
    const Stages stages{ring + Shape::kStages * Shape::kStageBytes};
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t rank = cluster_rank(), splits = cluster_blocks() / across;
    const uint32_t side = rank % across, split = rank / across;
    const uint32_t first_column = (blockIdx.x / (across * splits) * across + side) * kTile;
    const uint32_t chunks = (k + kTileK - 1) / kTileK;
    const uint32_t first_chunk = chunks * split / splits, end_chunk = chunks * (split + 1) / splits;
    const bool fills = warp == kConsumerWarps && lane == 0;

    // The producer's. Its barriers are its own until the cluster has met, and so the weights need not wait for that.
    const uint64_t evict_first = l2_evict_first();
    const auto load_weights = [&](const typename Stages::State& pipe, uint32_t chunk) {
        // Both blocks that the activations from here go to have read the stage.
        mbarrier_wait_cluster_relaxed(stages.empty(pipe), pipe.parity ^ 1, "empty");
        const uint32_t full = stages.full(pipe);
        mbarrier_arrive_expect(full, Shape::kStageBytes);
        const uint32_t stage = ring + pipe.stage * Shape::kStageBytes;
        tensor_load_2d_hinted(stage, &weights, static_cast<int>(chunk * kTileK), static_cast<int>(first_column), full,
                              evict_first);
    };
    const uint32_t box_rows = Shape::kBatch / across;
    const uint16_t both = static_cast<uint16_t>(((1u << across) - 1) << (split * across));
    const auto load_activations = [&](const typename Stages::State& pipe, uint32_t chunk) {
        const uint32_t to = ring + pipe.stage * Shape::kStageBytes + Shape::kWeightBytes + side * box_rows * kRowBytes;
        const int at_k = static_cast<int>(chunk * kTileK), row = static_cast<int>(side * box_rows);
        if (across == 1) {
            tensor_load_2d(to, &x, at_k, row, stages.full(pipe));
        } else {
            tensor_load_2d_multicast(to, &x, at_k, row, stages.full(pipe), both);
        }
    };
    const uint32_t ahead = min(end_chunk, first_chunk + Shape::kStages);
    if (fills) {
        tensor_map_prefetch(&x);
        stages.init(kConsumerWarps * across);
        mbarrier_init_fence();
        typename Stages::State pipe;
#pragma unroll 1
        for (uint32_t chunk = first_chunk; chunk < ahead; chunk++, pipe.advance()) { load_weights(pipe, chunk); }
    }
    grid_dependency_launch();
    // A warp finishes two columns a lane; without them, it has the last ones as far as reading goes.
    const uint32_t own_column = warp % 2 * 64 + 2 * lane, column = first_column + own_column;
    const auto column_terms = Epilogue::column_terms(output, min(column, n - 2));
    warp_sync();
    cluster_arrive();
    cluster_wait();
    grid_dependency_wait();

    if (warp == kConsumerWarps) {
        if (lane == 0) {
            fence_proxy_async_global();
            typename Stages::State pipe;
#pragma unroll 1
            for (uint32_t chunk = first_chunk; chunk < end_chunk; chunk++, pipe.advance()) {
                if (chunk >= ahead) load_weights(pipe, chunk);
                load_activations(pipe, chunk);
            }
        }
        warp_sync();
    } else {
        constexpr uint32_t kSums = Shape::kBatch / 2;
        float sums[kSums];
#pragma unroll
        for (uint32_t i = 0; i < kSums; i++) sums[i] = 0.0f;
        // Lane `i` of a warp tells block `i` of those side by side.
        const Stages told{cluster_address(stages.barriers, split * across + min(lane, across - 1))};
        const uint32_t a = ring + warp / 4 * 64 * kRowBytes, b = ring + Shape::kWeightBytes;
        typename Stages::State pipe;
#pragma unroll 1
        for (uint32_t chunk = first_chunk; chunk < end_chunk; chunk++, pipe.advance()) {
            stages.consumer_wait(pipe);
            warpgroup_fence();
#pragma unroll
            for (uint32_t step = 0; step < kTileK / 16; step++) {
                const uint32_t on = pipe.stage * Shape::kStageBytes + step * 32;
                multiply_add(T{}, sums, matrix_descriptor_128(a + on), matrix_descriptor_128(b + on), 1);
            }
            warpgroup_commit();
            // At once, not when the next stage is full: what memory waits for is a free stage.
            warpgroup_wait<0>();
            if (lane < across) mbarrier_arrive_cluster_relaxed(told.empty(pipe));
        }

        // Every stage was waited for, and every consumer is done: the ring is free.
        barrier_sync(1, kConsumerWarps * 32);
        float* const tile = reinterpret_cast<float*>(shared);
        const uint32_t g = lane / 4, t = lane % 4;
        const uint32_t to = 2 * t * kPitch + warp * 16 + g;
#pragma unroll
        for (uint32_t i = 0; i < kSums / 4; i++) {
            if (i * 8 >= m) break;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) { tile[to + (i * 8 + j % 2) * kPitch + j / 2 * 8] = sums[i * 4 + j]; }
        }
    }
    // Rows are dealt to four pairs of warps of each part in turn. What belongs to the first ones comes while the
    // cluster meets, what belongs to others ahead of their sums.
    const uint32_t stride = kConsumerWarps / 2 * splits;
    const bool finishes = warp < kConsumerWarps && column < n;
    uint32_t first = split * (kConsumerWarps / 2) + warp / 2;
    // Instead of rows past the end the first, whose output is this thread's own.
    const auto row_of = [&](uint32_t i) { return first + i * stride < m ? first + i * stride : first; };
    decltype(Epilogue::row_terms(output, 0u)) row_terms[kRowsAtOnce];
    decltype(Epilogue::pair_terms(output, row_terms[0], 0u)) pair_terms[kRowsAtOnce];
    const auto read_terms = [&] {
#pragma unroll
        for (uint32_t i = 0; i < kRowsAtOnce; i++) row_terms[i] = Epilogue::row_terms(output, row_of(i));
#pragma unroll
        for (uint32_t i = 0; i < kRowsAtOnce; i++) {
            pair_terms[i] = Epilogue::pair_terms(output, row_terms[i], column);
        }
    };
    cluster_arrive();
    if (finishes && first < m) read_terms();
    warp_sync();
    cluster_wait();

    while (finishes && first < m) {
        float pairs[kRowsAtOnce][2] = {};
        for (uint32_t part = 0; part < splits; part++) {
            const uint32_t from = cluster_address(ring, part * across + side) + own_column * 4;
            uint32_t loaded[kRowsAtOnce][2];
#pragma unroll
            for (uint32_t i = 0; i < kRowsAtOnce; i++) {
                loaded[i][0] = load_cluster_4(from + row_of(i) * kPitch * 4);
                loaded[i][1] = load_cluster_4(from + row_of(i) * kPitch * 4 + 4);
            }
#pragma unroll
            for (uint32_t i = 0; i < kRowsAtOnce; i++) {
                pairs[i][0] += __uint_as_float(loaded[i][0]);
                pairs[i][1] += __uint_as_float(loaded[i][1]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < kRowsAtOnce; i++) {
            if (first + i * stride >= m) continue;
            Epilogue::template apply<T>(pairs[i], column_terms, pair_terms[i]);
            store_pair<T>(Epilogue::place(output, row_terms[i], column), pairs[i]);
        }
        first += kRowsAtOnce * stride;
        if (first < m) read_terms();
    }
    // No block may end while others read its sums.
    warp_sync();
    cluster_arrive();
    cluster_wait();
}

// One kernel for each epilogue, type and number of rows; the launcher picks the last, and how many blocks a cluster
// has.
#define GEMM_SMALL_M_KERNEL(name, Epilogue, FORM, T, Shape)                                                \
    KERNEL(name, kThreads, Shape::kBlocks)                                                                 \
    (const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights, FORM##_PARAMETERS(T), \
     uint32_t across) {                                                                                    \
        small_m<Epilogue, Shape, T>(x, weights, FORM##_OUTPUT(T), m, n, k, across);                        \
    }                                                                                                      \
    REGISTER_KERNEL(name)
#define GEMM_SMALL_M_TILES(name, Epilogue, FORM, T)                   \
    GEMM_SMALL_M_KERNEL(name##_##T##_64, Epilogue, FORM, T, Tile64)   \
    GEMM_SMALL_M_KERNEL(name##_##T##_128, Epilogue, FORM, T, Tile128) \
    GEMM_SMALL_M_KERNEL(name##_##T##_192, Epilogue, FORM, T, Tile192) \
    GEMM_SMALL_M_KERNEL(name##_##T##_256, Epilogue, FORM, T, Tile256)
#define GEMM_SMALL_M_KERNELS(T)                                                   \
    GEMM_SMALL_M_TILES(gemm_small_m_bias_gelu, BiasGelu, MATRIX, T)               \
    GEMM_SMALL_M_TILES(gemm_small_m_bias_residual, BiasResidual, MATRIX, T)       \
    GEMM_SMALL_M_TILES(gemm_small_m_bias_rope_kv, BiasRopeKv, QUERY_KEY_VALUE, T) \
    GEMM_SMALL_M_TILES(gemm_small_m_logits, Logits, LOGITS, T)

GEMM_SMALL_M_KERNELS(bf16)
GEMM_SMALL_M_KERNELS(f16)
