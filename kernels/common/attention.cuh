// Flash attention for the rows of one warp, on tensor cores: q k^T, online softmax, and the product with the values.
// Shared by prefill and decode.
//
// A row is one query head at one position. A warp holds 16 kRowTiles rows in m16n8k16 fragments: with g = lane / 4 and
// t = lane % 4, element i of a 16 x 8 fragment is row g + 8 (i / 2), column 2 t + i % 2. Scores become softmax weights
// in place, and two neighbouring fragments, packed, are the 16 x 16 A operand of the product with the values: weights
// never leave registers.
//
// Tiles in shared memory are rows of kHeadDim 16-bit elements in 16-byte chunks; chunk c of row r is stored at chunk c
// ^ (r % 8). Eight rows of one chunk (an ldmatrix read) thus cover all 32 banks, and so do eight neighbouring chunks of
// a row (a cp.async write).
#pragma once
#include "common/multiply_add.cuh"
#include "common/softmax.cuh"
#include "common/vector.cuh"

// log2(e) / sqrt(head_dim): converts q . k to a score in the log2 domain.
template <uint32_t kHeadDim>
static constexpr float kLog2Scale = 0.0f;
template <>
constexpr float kLog2Scale<64> = 0.18033688f;
template <>
constexpr float kLog2Scale<128> = 0.12751743f;

template <uint32_t kHeadDim>
struct TileLayout {
    static constexpr uint32_t kRowBytes = kHeadDim * 2;
    static constexpr uint32_t kChunks = kHeadDim / kVector;  // of a row
    // Byte offset of a chunk in the tile, which is aligned to kRowBytes.
    DEVICE uint32_t offset(uint32_t row, uint32_t chunk) { return row * kRowBytes + (chunk ^ row % 8) * 16; }
};

// Queries in shared memory, read by fragment. `lane_address` is this lane's row of the first ldmatrix: matrices of rows
// 0-7 and 8-15 of chunk 0, then of chunk 1.
template <uint32_t kHeadDim>
struct SharedQueries {
    uint32_t lane_address;
    DEVICE SharedQueries at(uint32_t tile, uint32_t lane) {
        return SharedQueries{tile + TileLayout<kHeadDim>::offset(lane % 16, lane / 16)};
    }
    METHOD void fill(uint32_t tile, uint32_t lane) { *this = at(tile, lane); }
    METHOD void read(uint32_t row_tile, uint32_t step, uint32_t (&fragment)[4]) const {
        load_matrix_x4(fragment, (lane_address ^ step * 32) + row_tile * 16 * TileLayout<kHeadDim>::kRowBytes);
    }
};

// Queries in registers.
template <uint32_t kHeadDim, uint32_t kRowTiles>
struct HeldQueries {
    uint32_t fragments[kRowTiles][kHeadDim / 16][4];
    METHOD void fill(uint32_t tile, uint32_t lane) {
        const auto shared = SharedQueries<kHeadDim>::at(tile, lane);
#pragma unroll
        for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
            for (uint32_t step = 0; step < kHeadDim / 16; step++) { shared.read(m, step, fragments[m][step]); }
        }
    }
    METHOD void read(uint32_t row_tile, uint32_t step, uint32_t (&fragment)[4]) const {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) fragment[i] = fragments[row_tile][step][i];
    }
};

// scores[m][n][i] = query . key for the kKeys keys at `keys` in shared memory, summed in ascending order of head_dim,
// 16 at a time.
template <class T, uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kKeys, class Queries>
DEVICE void multiply_keys(float (&scores)[kRowTiles][kKeys / 8][4], const Queries& queries, uint32_t keys) {
    using Layout = TileLayout<kHeadDim>;
    const uint32_t lane = threadIdx.x % 32;
    // Matrices: keys 0-7 of chunk 0 and of chunk 1, keys 8-15 of chunk 0 and of chunk 1.
    const uint32_t lane_address = keys + Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t n = 0; n < kKeys / 8; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) scores[m][n][i] = 0.0f;
        }
    }
#pragma unroll
    for (uint32_t step = 0; step < kHeadDim / 16; step++) {
        uint32_t query[kRowTiles][4];
#pragma unroll
        for (uint32_t m = 0; m < kRowTiles; m++) queries.read(m, step, query[m]);
#pragma unroll
        for (uint32_t pair = 0; pair < kKeys / 16; pair++) {
            uint32_t key[4];
            load_matrix_x4(key, (lane_address ^ step * 32) + pair * 16 * Layout::kRowBytes);
            const uint32_t low[2] = {key[0], key[1]}, high[2] = {key[2], key[3]};
#pragma unroll
            for (uint32_t m = 0; m < kRowTiles; m++) {
                multiply_add(T{}, scores[m][2 * pair], query[m], low);
                multiply_add(T{}, scores[m][2 * pair + 1], query[m], high);
            }
        }
    }
}

// Online softmax: turns scores into weights exp2(scale score - max) and adds them to the states of their rows. `scale`
// is log2(e) / sqrt(head_dim). A state's max is its row's; its sum covers this lane's columns only, until reduce_rows.
// Returns whether any of `factors`, by which the accumulators must be rescaled, differs from 1 in any lane of the warp.
template <uint32_t kRowTiles, uint32_t kKeys>
DEVICE bool online_softmax_scores(float (&scores)[kRowTiles][kKeys / 8][4], SoftmaxState (&states)[kRowTiles][2],
                                  float (&factors)[kRowTiles][2], float scale) {
    bool rescaled = false;
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            float max_score = kMasked;
#pragma unroll
            for (uint32_t n = 0; n < kKeys / 8; n++) {
                max_score = fmaxf(max_score, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            }
            max_score = fmaxf(max_score, shuffle_xor(max_score, 1));
            max_score = fmaxf(max_score, shuffle_xor(max_score, 2));
            SoftmaxState& state = states[m][half];
            factors[m][half] = state.update_max(max_score * scale);
            rescaled = rescaled || factors[m][half] != 1.0f;
            const float subtracted = score_offset(state.max);
#pragma unroll
            for (uint32_t n = 0; n < kKeys / 8; n++) {
#pragma unroll
                for (uint32_t i = 2 * half; i < 2 * half + 2; i++) {
                    scores[m][n][i] = exp2_approx(scores[m][n][i] * scale - subtracted);
                    state.sum += scores[m][n][i];
                }
            }
        }
    }
    return warp_any(rescaled);
}

// Rescales the accumulators of each row.
template <uint32_t kHeadDim, uint32_t kRowTiles>
DEVICE void rescale(float (&sums)[kRowTiles][kHeadDim / 8][4], const float (&factors)[kRowTiles][2]) {
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t n = 0; n < kHeadDim / 8; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) sums[m][n][i] *= factors[m][i / 2];
        }
    }
}

// Both steps. Usually no max rises and rescaling, the larger part of the arithmetic, is skipped; multiplying by 1 would
// change no bit.
template <uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kKeys>
DEVICE void online_softmax_step(float (&scores)[kRowTiles][kKeys / 8][4], SoftmaxState (&states)[kRowTiles][2],
                                float (&sums)[kRowTiles][kHeadDim / 8][4], float scale) {
    float factors[kRowTiles][2];
    if (online_softmax_scores<kRowTiles, kKeys>(scores, states, factors, scale))
        rescale<kHeadDim, kRowTiles>(sums, factors);
}

// Weights rounded to T, as A operands of the product with the values.
template <class T, uint32_t kRowTiles, uint32_t kKeys>
DEVICE void pack_weights(uint32_t (&packed)[kRowTiles][kKeys / 16][4],
                         const float (&weights)[kRowTiles][kKeys / 8][4]) {
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t step = 0; step < kKeys / 16; step++) {
            const float (&low)[4] = weights[m][2 * step], (&high)[4] = weights[m][2 * step + 1];
            packed[m][step][0] = pack<T>(low[0], low[1]);
            packed[m][step][1] = pack<T>(low[2], low[3]);
            packed[m][step][2] = pack<T>(high[0], high[1]);
            packed[m][step][3] = pack<T>(high[2], high[3]);
        }
    }
}

// sums[m][n][i] += weights . values over kKeys keys in ascending order, 16 at a time.
template <class T, uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kKeys>
DEVICE void multiply_values(float (&sums)[kRowTiles][kHeadDim / 8][4],
                            const uint32_t (&weights)[kRowTiles][kKeys / 16][4], uint32_t values) {
    using Layout = TileLayout<kHeadDim>;
    const uint32_t lane = threadIdx.x % 32;
    // Matrices, transposed: keys 0-7 and 8-15 of chunk 0, keys 0-7 and 8-15 of chunk 1.
    const uint32_t lane_address = values + Layout::offset(lane % 16, lane / 16);
#pragma unroll
    for (uint32_t step = 0; step < kKeys / 16; step++) {
#pragma unroll
        for (uint32_t pair = 0; pair < kHeadDim / 16; pair++) {
            uint32_t value[4];
            load_matrix_x4_transposed(value, (lane_address ^ pair * 32) + step * 16 * Layout::kRowBytes);
            const uint32_t low[2] = {value[0], value[1]}, high[2] = {value[2], value[3]};
#pragma unroll
            for (uint32_t m = 0; m < kRowTiles; m++) {
                multiply_add(T{}, sums[m][2 * pair], weights[m][step], low);
                multiply_add(T{}, sums[m][2 * pair + 1], weights[m][step], high);
            }
        }
    }
}

// Sums each state over the four lanes that share a row.
template <uint32_t kRowTiles>
DEVICE void reduce_rows(SoftmaxState (&states)[kRowTiles][2]) {
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            float& sum = states[m][half].sum;
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
        }
    }
}
