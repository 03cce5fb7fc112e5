// Decode attention of one split of a sequence's keys, by a block; shared by all devices. Each kernel file merges splits
// in its own way.
#pragma once
#include "common/attention.cuh"
#include "common/pages.cuh"
#include "common/partials.cuh"

static constexpr uint32_t kWarps = 4;
static constexpr uint32_t kThreads = kWarps * 32;

// The keys that a query at the end of `sequence` sees, and their splits: split i is positions first + i split_len ..
// first + (i + 1) split_len. `first` is the start of the first visible key's 16-key unit, so a window always has
// equally many splits.
struct Splits {
    KeyRange visible;
    uint32_t first;
    uint32_t count;
    DEVICE Splits of(const Span& sequence, uint32_t window, uint32_t split_len) {
        const KeyRange visible{first_visible(sequence.start, window), sequence.start + 1};
        const uint32_t first = visible.first / kUnit * kUnit;
        return Splits{visible, first, (visible.end - 1 - first) / split_len + 1};
    }
    // The visible keys of split `index`, which is below `count`.
    METHOD KeyRange keys(uint32_t index, uint32_t split_len) const {
        const uint32_t begin = first + index * split_len;
        return KeyRange{max(visible.first, begin), min(visible.end, begin + split_len)};
    }
};

// Results of the block's warps, in shared memory.
template <uint32_t kHeadDim, uint32_t kRows>
struct WarpResults {
    using Row = RowResult<kHeadDim>;
    static constexpr uint32_t kPitch = kHeadDim + 8;  // floats; the 8 spread the rows of a fragment over the banks
    static constexpr uint32_t kBytes = kWarps * kRows * (kPitch * sizeof(float) + sizeof(SoftmaxState));
    float* values;  // [kWarps][kRows][kPitch]
    SoftmaxState* states;  // [kWarps][kRows]
    DEVICE WarpResults in(uint8_t* shared) {
        float* const values = reinterpret_cast<float*>(shared);
        return WarpResults{values, reinterpret_cast<SoftmaxState*>(values + kWarps * kRows * kPitch)};
    }
    // One row, merged over all warps in order.
    METHOD Row merged(uint32_t row) const {
        Row result = Row::none();
#pragma unroll
        for (uint32_t warp = 0; warp < kWarps; warp++) {
            const uint32_t at = warp * kRows + row;
            result.add(Row::load_shared(states[at], values + at * kPitch));
        }
        return result;
    }
};

// Bytes of a block's pipeline: the stages of each warp, a unit of keys and a unit of values each.
template <uint32_t kHeadDim, uint32_t kStages>
static constexpr uint32_t kRingBytes = kWarps * kStages * 2 * kUnit * TileLayout<kHeadDim>::kRowBytes;

// Attends `heads` consecutive query rows from `queries` on, which share `kv_head`, to `keys`. Leaves the warps' results
// in `shared` (kRingBytes), to be read after a block_sync.
//
//   values[row, :] = sum over keys k of exp2(s[k] - m) v[k, :]
//   state[row] = (m, sum over keys k of exp2(s[k] - m))
//   s[k] = q[row, :] . k[k, :] log2(e) / sqrt(kHeadDim), m = max over keys k of s[k]
//
// Unit u of the split, 16 keys, goes to warp u % 4. Each warp has its own online softmax; the loop has no barrier.
//
// All query heads of a KV head, up to 16 kRowTiles, are rows of m16n8k16 tiles, so keys and values are read once for
// the group. Unused rows are zero, computed and not used.
//
// Bytes in flight: each warp has kStages units of 2 x 16 x kHeadDim elements, 8 KiB (4 with kHeadDim 64), of which
// kStages - 1 are in flight while it waits: 4 x 2 x 8 = 64 KiB a block (4 x 3 x 4 = 48), two blocks per SM. (H200: 4.8
// TB/s x 0.7 us / 132 SMs = 25 KiB saturate memory.) The queries are copied once, through the last stage before its
// first use.
template <class T, uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kStages>
DEVICE void attend_split(uint8_t* shared, const T* queries, uint32_t heads, const Cache<T>& cache, uint32_t kv_head,
                         uint32_t table, const KeyRange& keys) {
    using Layout = TileLayout<kHeadDim>;
    using Kv = typename Cache<T>::Kv;
    constexpr uint32_t kRows = 16 * kRowTiles;
    constexpr uint32_t kUnitBytes = kUnit * Layout::kRowBytes, kStageBytes = 2 * kUnitBytes;
    using Results = WarpResults<kHeadDim, kRows>;
    static_assert(kRows * Layout::kRowBytes <= kStageBytes, "the queries pass through one stage");
    static_assert(Results::kBytes <= kRingBytes<kHeadDim, kStages>, "the results take the ring's place");
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t stages = shared_address(shared) + warp * kStages * kStageBytes;  // of this warp

    // This warp's unit i is unit first_unit + i kWarps of the sequence.
    const uint32_t first_unit = keys.first / kUnit + warp, last_unit = (keys.end - 1) / kUnit;
    const uint32_t units = first_unit > last_unit ? 0 : (last_unit - first_unit) / kWarps + 1;
    WarpPages pages = look_up(cache, table, keys, first_unit, kWarps);

    // Copies by row: lane l copies chunk l % kChunks of rows l / kChunks, + kStep, ...
    constexpr uint32_t kStep = 32 / Layout::kChunks;
    const uint32_t chunk = lane % Layout::kChunks, first_row = lane / Layout::kChunks;
#pragma unroll
    for (uint32_t row = first_row; row < kRows; row += kStep) {
        const T* const source = queries + (row < heads ? row : 0) * kHeadDim + chunk * kVector;
        copy_async_16(stages + (kStages - 1) * kStageBytes + Layout::offset(row, chunk), source, row < heads ? 16 : 0);
    }
    copy_async_commit();
    // Starts to copy keys and values of unit `i`; keys that the row does not see become zero and are not read.
    const auto copy = [&](uint32_t i, uint32_t stage) {
        if (i < units) {
            const uint32_t page = pages.page_of(i);
            const uint32_t position = (first_unit + i * kWarps) * kUnit + first_row;
            const size_t slot = cache.first_slot(page, kv_head) + cache.slot_in_page(position);
            const size_t source = Kv::template at<kHeadDim>(slot, chunk);
            const uint32_t target = stages + stage * kStageBytes;
#pragma unroll
            for (uint32_t row = 0; row < kUnit; row += kStep) {
                const uint32_t bytes = keys.contains(position + row) ? 16 : 0;
                const uint32_t shared_chunk = target + Layout::offset(first_row + row, chunk);
                Kv::copy(shared_chunk, cache.keys + source + row * kHeadDim, bytes);
                Kv::copy(shared_chunk + kUnitBytes, cache.values + source + row * kHeadDim, bytes);
            }
        }
        copy_async_commit();
    };
#pragma unroll
    for (uint32_t i = 0; i < kStages - 1; i++) copy(i, i);

    copy_async_wait<kStages - 1>();
    warp_sync();
    HeldQueries<kHeadDim, kRowTiles> held;
    held.fill(stages + (kStages - 1) * kStageBytes, lane);

    SoftmaxState states[kRowTiles][2];
    float sums[kRowTiles][kHeadDim / 8][4] = {};
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) states[m][0] = states[m][1] = SoftmaxState::none();
    uint32_t stage = 0, free_stage = kStages - 1;
    for (uint32_t i = 0; i < units; i++) {
        // The oldest copy is complete in all lanes, and no lane still reads the previous stage or the queries.
        copy_async_wait<kStages - 2>();
        warp_sync();
        const uint32_t next = i + kStages - 1;
        if (next % 32 == 0) pages = look_up(cache, table, keys, first_unit + next * kWarps, kWarps);
        copy(next, free_stage);
        free_stage = stage;

        const uint32_t unit = stages + stage * kStageBytes;
        float scores[kRowTiles][kUnit / 8][4];
        multiply_keys<T, kHeadDim, kRowTiles, kUnit>(scores, held, unit);
        const uint32_t first_key = (first_unit + i * kWarps) * kUnit;
        if (first_key < keys.first || first_key + kUnit > keys.end) {
#pragma unroll
            for (uint32_t n = 0; n < kUnit / 8; n++) {
#pragma unroll
                for (uint32_t e = 0; e < 4; e++) {
                    const bool seen = keys.contains(first_key + n * 8 + lane % 4 * 2 + e % 2);
#pragma unroll
                    for (uint32_t m = 0; m < kRowTiles; m++) scores[m][n][e] = seen ? scores[m][n][e] : kMasked;
                }
            }
        }
        online_softmax_step<kHeadDim, kRowTiles, kUnit>(scores, states, sums, kLog2Scale<kHeadDim>);
        uint32_t weights[kRowTiles][1][4];
        pack_weights<T, kRowTiles, kUnit>(weights, scores);
        multiply_values<T, kHeadDim, kRowTiles, kUnit>(sums, weights, unit + kUnitBytes);
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }

    reduce_rows(states);
    copy_async_wait_all();
    block_sync();
    const auto results = Results::in(shared);
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t row = warp * kRows + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0) results.states[row] = states[m][half];
#pragma unroll
            for (uint32_t n = 0; n < kHeadDim / 8; n++) {
                *reinterpret_cast<float2*>(results.values + row * Results::kPitch + n * 8 + lane % 4 * 2) =
                    make_float2(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
            }
        }
    }
}

// The query heads of a block in a grid (splits, head tiles, sequences): all or some heads of one KV head.
struct HeadTile {
    uint32_t kv_head;
    uint32_t first;  // of the layer's query heads
    uint32_t heads;
    uint32_t layer_heads;
    // Tile blockIdx.y, of at most kRows heads.
    template <uint32_t kRows, class T>
    DEVICE HeadTile of(const Cache<T>& cache, uint32_t group) {
        const uint32_t tiles = gridDim.y / cache.kv_heads, kv_head = blockIdx.y / tiles;
        const uint32_t first = blockIdx.y % tiles * kRows;
        return HeadTile{kv_head, kv_head * group + first, min(group - first, kRows), cache.kv_heads * group};
    }
};
