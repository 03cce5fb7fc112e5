// targets: sm_80 compute_80 sm_90
// Many rows of activations times a weight matrix: prefill and large batches, on the tensor cores by mma.sync.
#include "common/epilogue.cuh"
#include "common/multiply_add.cuh"
#include "common/tile_order.cuh"
#include "common/vector.cuh"
#include "common/weight_tiles.cuh"
#include "ptx/ptx.cuh"

// What a block computes: kTileM x kTileN of the output, kTileK of k per k tile, by warps of kWarpM x kWarpN; kBlocks of
// them share an SM's registers.
template <uint32_t kTileM_, uint32_t kTileN_, uint32_t kTileK_, uint32_t kWarpM_, uint32_t kWarpN_, uint32_t kBlocks_>
struct Tile {
    static constexpr uint32_t kTileM = kTileM_, kTileN = kTileN_, kTileK = kTileK_;
    static constexpr uint32_t kWarpM = kWarpM_, kWarpN = kWarpN_, kBlocks = kBlocks_;
    static constexpr uint32_t kWarpsAcross = kTileN / kWarpN;
    static constexpr uint32_t kThreads = kTileM / kWarpM * kWarpsAcross * 32;
    static constexpr uint32_t kRowBytes = kTileK * 2;  // of a row of 16-bit elements in a stage
    static constexpr uint32_t kActivationBytes = kTileM * kRowBytes;
    static constexpr uint32_t kChunks = kTileK / kVector;        // 16-byte chunks of a row
    static constexpr uint32_t kRowsAtOnce = kThreads / kChunks;  // that all threads together copy, a chunk each
    static_assert(kTileK == 32 || kTileK == 64, "the swizzles below are for m of 64 and 128 bytes");
    static_assert(kTileM % kRowsAtOnce == 0 && kTileN % kRowsAtOnce == 0, "whole k_tiles of copies");
    static_assert(kRowsAtOnce % 8 == 0, "all m of a thread are swizzled alike");
    static_assert(kWarpM % 16 == 0 && kWarpN % 32 == 0, "16 x 32 of the output is what a quad's stores need");

    // What the number of a row's chunk is xored with: the 8 rows of a matrix that ldmatrix reads, at one chunk, then
    // lie in 8 different groups of 4 banks, and so do the chunks that 8 neighbouring threads of a copy write. Its
    // period is 8 rows.
    DEVICE uint32_t swizzle(uint32_t row) { return kChunks == 8 ? row % 8 : row / 2 % 4; }
};

// Waits until at most `stages` - 2 of this thread's groups of copies are unfinished, for 3, 4, 6 or 8 stages. The
// instruction takes a constant: of these, each but the last that applies waits for nothing more. Predicated, where a
// switch would be a jump through a table.
DEVICE void wait_for_next_stage(uint32_t stages) {
    copy_async_wait<6>();
    if (stages < 8) copy_async_wait<4>();
    if (stages < 6) copy_async_wait<2>();
    if (stages < 4) copy_async_wait<1>();
}

// Lane t of a quad has word t of four vectors; afterwards it has the four words of vector t. Its own inverse.
DEVICE void transpose_quad(uint32_t (&words)[4], uint32_t t) {
    // Swaps the off-diagonal halves of 2 x 2 squares of words, then of 2 x 2 squares of those.
#pragma unroll
    for (uint32_t distance = 1; distance <= 2; distance *= 2) {
        const bool high = (t & distance) != 0;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t low_word = distance == 1 ? 2 * i : i, high_word = low_word + distance;
            const uint32_t received = shuffle_xor(high ? words[low_word] : words[high_word], distance);
            if (high) {
                words[low_word] = received;
            } else {
                words[high_word] = received;
            }
        }
    }
}

// Computes: out[m, n] = epilogue(sum over k of x[m, k] weights[n, k])
// Shapes:
//   x        T [m, k]      written by earlier work on the stream
//   weights  [n, k] as Weights has them (DenseTile); written before this stream's work began
//   output   what the epilogue takes: see common/epilogue.cuh
//   stages   3, 4, 6 or 8, of the ring in shared memory
//   group    rows of tiles that are computed together, at least 1
//
// The way of the operands: a ring of `stages` stages in shared memory, each kTileK of k for all rows and columns of the
// tile, filled by cp.async of 16 bytes while earlier stages are multiplied; ldmatrix, two sets of fragments deep, so
// that the loads of one k = 16 run beside the multiplications of the last; m16n8k16. One barrier a stage: behind it,
// the next stage is complete for all threads, and the one read before it is free.
//
// Tiles. For 16 of k a warp tile of 64 x 64 reads 4 KiB by ldmatrix, 32 cycles of shared memory, and multiplies for 256
// cycles of an Ampere quarter's tensor core: four warps take half of the bandwidth that they share. 128 sums and 64
// registers of fragments leave a thread enough for addresses.
//   128x256  8 warps, k 64, 48 KiB a stage: 768 bytes from L2 for 32768 multiply-adds, the least. One block a
//            SM, so the longer stage halves its barriers. 3 stages on sm_80, 4 on sm_90.
//   128x128  4 warps, k 32, 16 KiB a stage: two blocks an SM, one's ends and barriers behind the other's
//            products; fits twice in every shared memory: 3 stages on sm_86, 4 on sm_80, 6 on sm_90.
//   64x64    4 warps of 32x32, k 64, 16 KiB a stage: up to 64 rows, and where larger tiles leave SMs idle.
//   32x64    4 warps of 16x32, k 64, 12 KiB a stage, 8 of them weights: up to 32 rows, bound by the bytes of the
//            weights; at 8 stages 56 KiB of them are under way. (H200: 4.8 TB/s x 0.7 us / 132 SMs = 25
//            KiB.)
// A stage's row is 64 or 128 bytes, whole sectors of L2, and whole lines at k 64.
//
// Order of the sum: k ascending, 16 at a time, in one accumulator, whatever the tile: a row has the same bits with any
// rows beside it and in every tile shape.
//
// Order of the tiles: common/tile_order.cuh; the launcher picks `group` by how many blocks run together.
//
// End: a quad of lanes holds 8 columns of a row, 4 bytes each lane; four such meet by shuffles, and each lane stores
// (and reads the residual) 16 bytes, 64 consecutive ones a quad. f32 is stored 8 bytes a lane, 32 a quad. The small
// tiles read all terms ahead of the main loop; the large ones those of columns, and the rest behind it, where the
// fragments' registers are free, 16 rows ahead of those that are stored.
//
// Grid: (ceil(m / kTileM) ceil(n / kTileN)), Tile::kThreads threads.
// Smem: stages x kStageBytes.
// Bytes: (n k + m k + m n + the epilogue's) x sizeof(T), each operand counted once.
// FLOPs: 2 m n k.
// Alignment: n and k multiples of 8; all buffers 16 bytes.
// Registers: at most 240 (gemm_logits_*_128x256 gemm_logits_*_128x128)
// Registers: at most 240 (gemm_bias_gelu_*_128x128 gemm_bias_residual_*_128x128)
// Registers: at most 254 (gemm_bias_gelu_*_128x256)
// Registers: at most 254 (gemm_bias_residual_*_128x256 gemm_bias_rope_kv_*_128x256 gemm_bias_rope_kv_*_128x128)
// Registers: at most 112 (gemm_logits_*_64x64 gemm_bias_gelu_*_64x64)
// Registers: at most 140 (gemm_bias_residual_*_64x64), 160 (gemm_bias_rope_kv_*_64x64)
// Registers: at most 96 (gemm_logits_*_32x64 gemm_bias_gelu_*_32x64)
// Registers: at most 96 (gemm_bias_residual_*_32x64), 112 (gemm_bias_rope_kv_*_32x64)
template <class Epilogue, class Tile, class Weights, class T>
DEVICE void gemm(const T* x, const Weights& weights, const typename Epilogue::template Output<T>& output, uint32_t m,
                 uint32_t n, uint32_t k, uint32_t stages, uint32_t group) {
    constexpr uint32_t kRowTiles = Tile::kWarpM / 16, kColumnTiles = Tile::kWarpN / 8;  // of a warp
    constexpr uint32_t kSteps = Tile::kTileK / 16;                                               // of a stage
    constexpr uint32_t kStageBytes = Tile::kActivationBytes + Tile::kTileN * Weights::kRowBytes;
    constexpr bool kTermsAhead = kRowTiles <= 2;  // there are registers for all terms beside the main loop
    SHARED_MEMORY(shared);
    const uint32_t ring = shared_address(shared);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t warp_row = warp / Tile::kWarpsAcross * Tile::kWarpM;
    const uint32_t warp_column = warp % Tile::kWarpsAcross * Tile::kWarpN;

    const uint32_t down = (m + Tile::kTileM - 1) / Tile::kTileM;
    const uint32_t across = (n + Tile::kTileN - 1) / Tile::kTileN;
    const TileIndex own = tile_index(blockIdx.x, down, across, group);
    const uint32_t first_row = own.down * Tile::kTileM, first_column = own.across * Tile::kTileN;

    // Copies. A thread has one chunk of every kRowsAtOnce-th row. Rows and k past the end are filled with zeros, and
    // not read.
    const uint32_t chunk = threadIdx.x % Tile::kChunks, copied_row = threadIdx.x / Tile::kChunks;
    const uint32_t destination = ring + copied_row * Tile::kRowBytes + (chunk ^ Tile::swizzle(copied_row)) * 16;
    const uint32_t own_row = first_row + copied_row;
    const T* const own_x = x + static_cast<size_t>(own_row) * k + chunk * kVector;
    const auto own_weights = weights.part(first_column, n, k, ring + Tile::kActivationBytes);
    const auto copy_weights = [&](uint32_t stage, uint32_t k_tile) {
        Weights::copy(own_weights, k_tile, stage * kStageBytes);
    };
    const auto copy_activations = [&](uint32_t stage, uint32_t k_tile) {
        const uint32_t start = destination + stage * kStageBytes, at_k = k_tile * Tile::kTileK;
#pragma unroll
        for (uint32_t on = 0; on < Tile::kTileM; on += Tile::kRowsAtOnce) {
            const bool inside = own_row + on < m && at_k + chunk * kVector < k;
            copy_async_16(start + on * Tile::kRowBytes, own_x + at_k + static_cast<size_t>(on) * k, inside ? 16 : 0);
        }
    };

    // Fragments. Of the activations a lane addresses row lane % 16, chunk lane / 16 of 16 rows x 16 k. A step further
    // along k is two chunks: an xor of the swizzled address with 32 bytes.
    const uint32_t a_row = lane % 16;
    const uint32_t a_lane = (warp_row + a_row) * Tile::kRowBytes + (lane / 16 ^ Tile::swizzle(a_row)) * 16;
    const uint32_t b_lane = Tile::kActivationBytes + Weights::place(warp_column, lane);
    uint32_t a[2][kRowTiles][4], b[2][kColumnTiles / 2][4];
    const auto load_fragments = [&](uint32_t set, uint32_t stage_start, uint32_t step) {
#pragma unroll
        for (uint32_t i = 0; i < kRowTiles; i++) {
            load_matrix_x4(a[set][i], stage_start + (a_lane ^ step * 32) + i * 16 * Tile::kRowBytes);
        }
#pragma unroll
        for (uint32_t j = 0; j < kColumnTiles / 2; j++) { Weights::operands(b[set][j], stage_start, b_lane, step, j); }
    };

    // All stages but one are under way before the first is needed, stages past the end as zeros.
    for (uint32_t stage = 0; stage < stages - 1; stage++) copy_weights(stage, stage);
    // Sums 0 and 1 of a lane are columns 2 t and 2 t + 1 of a tile's row g, sums 2 and 3 those of row g + 8. After four
    // tiles have met in a quad, a lane has the 8 columns of tile t.
    const uint32_t lane_row = first_row + warp_row + g;
    const uint32_t lane_column = first_column + warp_column + 2 * t, met_column = first_column + warp_column + 8 * t;
    const auto row_of = [&](uint32_t i, uint32_t half) { return lane_row + i * 16 + half * 8; };
    const auto read_column = [&](uint32_t j) {
        return Epilogue::column_terms(output, min(lane_column + j * 8, n - kVector + 2 * t));
    };
    const auto read_row = [&](uint32_t i, uint32_t half) {
        return Epilogue::row_terms(output, min(row_of(i, half), m - 1));
    };
    decltype(read_column(0)) column_terms[kColumnTiles];
    decltype(read_row(0, 0)) row_terms[kRowTiles][2];
    // What belongs to the pairs of two rows: either as the epilogue reads it, or what the output holds, 16 bytes a
    // lane.
    using PairTerms = decltype(Epilogue::pair_terms(output, row_terms[0][0], 0u));
    PairTerms pair_terms[kRowTiles][2][kColumnTiles];
    uint4 before[kRowTiles][2][kColumnTiles / 4];
    const auto read_rows = [&] {
#pragma unroll
        for (uint32_t i = 0; i < kRowTiles; i++) row_terms[i][0] = read_row(i, 0), row_terms[i][1] = read_row(i, 1);
    };
    const auto read_pairs = [&](uint32_t i) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            if constexpr (Epilogue::kAddsToOutput) {
#pragma unroll
                for (uint32_t four = 0; four < kColumnTiles / 4; four++) {
                    // Not past the end: another lane may be about to write what stands in for it.
                    const uint32_t column = met_column + four * 32;
                    const bool inside = row_of(i, half) < m && column < n;
                    const T* const place = Epilogue::place(output, row_terms[i][half], column);
                    before[i][half][four] = inside ? load_global_16(place) : zero_vector();
                }
            } else {
#pragma unroll
                for (uint32_t j = 0; j < kColumnTiles; j++) {
                    const uint32_t column = min(lane_column + j * 8, n - kVector + 2 * t);
                    pair_terms[i][half][j] = Epilogue::pair_terms(output, row_terms[i][half], column);
                }
            }
        }
    };
#pragma unroll
    for (uint32_t j = 0; j < kColumnTiles; j++) column_terms[j] = read_column(j);
    grid_dependency_launch();
    grid_dependency_wait();
    for (uint32_t stage = 0; stage < stages - 1; stage++) {
        copy_activations(stage, stage);
        copy_async_commit();
    }
    if constexpr (kTermsAhead) {
        read_rows();
#pragma unroll
        for (uint32_t i = 0; i < kRowTiles; i++) read_pairs(i);
    }

    float sums[kRowTiles][kColumnTiles][4] = {};
    const uint32_t k_tiles = (k + Tile::kTileK - 1) / Tile::kTileK;
    uint32_t read_stage = 0, write_stage = stages - 1;
    wait_for_next_stage(stages);
    block_sync();
    load_fragments(0, ring, 0);
    for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
#pragma unroll
        for (uint32_t step = 0; step < kSteps; step++) {
            if (step == kSteps - 1) {
                wait_for_next_stage(stages);
                block_sync();
                read_stage = read_stage + 1 == stages ? 0 : read_stage + 1;
            }
            load_fragments((step + 1) % 2, ring + read_stage * kStageBytes, (step + 1) % kSteps);
            if (step == 0) {
                // Up to one k tile past the end, of zeros: the last one loads fragments ahead of it.
                const uint32_t ahead = k_tile + stages - 1;
                if (ahead <= k_tiles) {
                    copy_weights(write_stage, ahead);
                    copy_activations(write_stage, ahead);
                }
                copy_async_commit();
                write_stage = write_stage + 1 == stages ? 0 : write_stage + 1;
            }
#pragma unroll
            for (uint32_t i = 0; i < kRowTiles; i++) {
#pragma unroll
                for (uint32_t j = 0; j < kColumnTiles; j++) {
                    const uint32_t (&pair)[4] = b[step % 2][j / 2];
                    const uint32_t columns_of_b[2] = {pair[j % 2 * 2], pair[j % 2 * 2 + 1]};
                    multiply_add(T{}, sums[i][j], a[step % 2][i], columns_of_b);
                }
            }
        }
    }

    using Stored = typename Epilogue::template Stored<T>;
    if constexpr (!kTermsAhead) {
        read_rows();
        read_pairs(0);
    }
#pragma unroll
    for (uint32_t i = 0; i < kRowTiles; i++) {
        if constexpr (!kTermsAhead) {
            if (i + 1 < kRowTiles) read_pairs(i + 1);
        }
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const auto& row = row_terms[i][half];
            const bool row_inside = row_of(i, half) < m;
            // No lanes meet for f32, so that those past the end may leave.
            if constexpr (sizeof(Stored) == 4) {
                if (!row_inside) continue;
            }
#pragma unroll
            for (uint32_t four = 0; four < kColumnTiles / 4; four++) {
                uint32_t words[4] = {};
                if constexpr (Epilogue::kAddsToOutput) {
                    const uint4& met = before[i][half][four];
                    words[0] = met.x, words[1] = met.y, words[2] = met.z, words[3] = met.w;
                    transpose_quad(words, t);
                }
#pragma unroll
                for (uint32_t tile = 0; tile < 4; tile++) {
                    const uint32_t j = four * 4 + tile;
                    float pair[2] = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
                    if constexpr (Epilogue::kAddsToOutput) {
                        Epilogue::template apply<T>(pair, column_terms[j], words[tile]);
                    } else {
                        Epilogue::template apply<T>(pair, column_terms[j], pair_terms[i][half][j]);
                    }
                    if constexpr (sizeof(Stored) == 4) {
                        const uint32_t column = lane_column + j * 8;
                        if (column < n) store_pair<T>(Epilogue::place(output, row, column), pair);
                    } else {
                        words[tile] = pack<T>(pair[0], pair[1]);
                    }
                }
                if constexpr (sizeof(Stored) == 2) {
                    transpose_quad(words, t);
                    const uint32_t column = met_column + four * 32;
                    if (row_inside && column < n) {
                        Stored* const place = Epilogue::place(output, row, column);
                        if (place != nullptr) store_global_16(place, uint4{words[0], words[1], words[2], words[3]});
                    }
                }
            }
        }
    }
}

using Tile128x256 = Tile<128, 256, 64, 64, 64, 1>;
using Tile128x128 = Tile<128, 128, 32, 64, 64, 2>;
using Tile64x64 = Tile<64, 64, 64, 32, 32, 3>;
using Tile32x64 = Tile<32, 64, 64, 16, 32, 3>;

// One kernel for each epilogue, type and tile; the launcher picks tile, stages and group.
#define GEMM_KERNEL(name, Epilogue, FORM, T, Tile)                                                      \
    KERNEL(name, Tile::kThreads, Tile::kBlocks)                                                         \
    (const T* x, const T* weights, FORM##_PARAMETERS(T), uint32_t stages, uint32_t group) {             \
        gemm<Epilogue, Tile>(x, DenseTile<T, Tile>{weights}, FORM##_OUTPUT(T), m, n, k, stages, group); \
    }                                                                                                   \
    REGISTER_KERNEL(name)
#define GEMM_TILES(name, Epilogue, FORM, T)                           \
    GEMM_KERNEL(name##_##T##_128x256, Epilogue, FORM, T, Tile128x256) \
    GEMM_KERNEL(name##_##T##_128x128, Epilogue, FORM, T, Tile128x128) \
    GEMM_KERNEL(name##_##T##_64x64, Epilogue, FORM, T, Tile64x64)     \
    GEMM_KERNEL(name##_##T##_32x64, Epilogue, FORM, T, Tile32x64)
#define GEMM_KERNELS(T)                                           \
    GEMM_TILES(gemm_bias_gelu, BiasGelu, MATRIX, T)               \
    GEMM_TILES(gemm_bias_residual, BiasResidual, MATRIX, T)       \
    GEMM_TILES(gemm_bias_rope_kv, BiasRopeKv, QUERY_KEY_VALUE, T) \
    GEMM_TILES(gemm_logits, Logits, LOGITS, T)

GEMM_KERNELS(bf16)
GEMM_KERNELS(f16)
