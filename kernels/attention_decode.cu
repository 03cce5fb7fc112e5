// targets: sm_80 compute_80 sm_90
// Attention of one row a sequence over its paged cache: decode, bound by the bytes of keys and values, read once. The
// keys of a sequence are split over blocks; a second kernel merges what the blocks found.
#include "common/attention.cuh"
#include "common/pages.cuh"
#include "common/partials.cuh"

static constexpr uint32_t kWarps = 4;
static constexpr uint32_t kThreads = kWarps * 32;

// Keys that a query at the end of `sequence` sees, and the splits that they fall into: split i holds positions
// i split_len .. (i + 1) split_len.
struct Splits {
    KeyRange visible;
    uint32_t first;
    uint32_t count;
    DEVICE Splits of(const Span& sequence, uint32_t window, uint32_t split_len) {
        const KeyRange visible{first_visible(sequence.start, window), sequence.start + 1};
        const uint32_t first = visible.first / split_len;
        return Splits{visible, first, (visible.end - 1) / split_len - first + 1};
    }
};

// The states and weighted values of the block's warps, in shared memory.
template <uint32_t kHeadDim, uint32_t kRows>
struct WarpResults {
    static constexpr uint32_t kPitch = kHeadDim + 8;  // floats; the 8 spread the rows of a fragment over the banks
    float* values;                                    // [kWarps][kRows][kPitch]
    SoftmaxState* states;                             // [kWarps][kRows]
    DEVICE WarpResults in(uint8_t* shared) {
        float* const values = reinterpret_cast<float*>(shared);
        return WarpResults{values, reinterpret_cast<SoftmaxState*>(values + kWarps * kRows * kPitch)};
    }
    // The state and four weighted values, from `column` on, of one row over all warps, merged in their order.
    DEVICE SoftmaxState merged(const WarpResults& results, uint32_t row, uint32_t column, float (&values)[4]) {
        SoftmaxState state = no_keys();
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) values[i] = 0.0f;
#pragma unroll
        for (uint32_t warp = 0; warp < kWarps; warp++) {
            const MergeFactors factors = merge(state, results.states[warp * kRows + row]);
            const float* const of_warp = results.values + (warp * kRows + row) * kPitch + column;
            const float4 other = *reinterpret_cast<const float4*>(of_warp);
            values[0] = values[0] * factors.own + other.x * factors.other;
            values[1] = values[1] * factors.own + other.y * factors.other;
            values[2] = values[2] * factors.own + other.z * factors.other;
            values[3] = values[3] * factors.own + other.w * factors.other;
        }
        return state;
    }
};

// Attention of the query row of each sequence that has one row in the step, over the keys of one split:
//
//   state[h] = (m, sum over keys k of exp2(s[k] - m))
//   values[h, :] = sum over keys k of exp2(s[k] - m) v[k, h / group, :]
//   s[k] = q[h, :] . k[k, h / group, :] log2(e) / sqrt(kHeadDim), m = max over keys k of s[k]
//
// and where the grid has one split a sequence, the quotient of the two, out[h, :], at once.
//
//   queries, out    T [rows, heads, kHeadDim], heads = kv_heads group
//   workspace       f32, see Partials; not touched where there is one split
//   keys, values    T [pages, kv_heads, page_size, kHeadDim], page_size = 1 << page_shift >= 16
//   sequences       [gridDim.z]; block_tables u32 [.]; see common/pages.cuh. One with rows != 1 is passed over.
//   window          a row at position q sees keys q - window + 1 .. q; 2^31 for all up to q
// all written by earlier work on the stream.
//
// Split i of a sequence holds the positions i split_len .. (i + 1) split_len, wherever the window begins: block x takes
// the x-th split that the row sees any of. In it a warp takes units of 16 keys: unit u (positions 16 u ..) goes to warp
// u % 4. A warp multiplies and softens its own keys alone, no barrier in the loop; in the end the four are merged in
// their order. So which sums are formed in which order depends on position, window and split_len alone: a row has the
// same bits in any batch, and with any number of splits in the grid.
//
// All query heads of a KV head, up to 16 kRowTiles, are the rows of m16n8k16 tiles: keys and values are read once for
// the whole group. Rows that are left over are zeros, computed and not stored.
//
// Bytes in flight: each warp has kStages units under way, of 2 x 16 x kHeadDim elements, 8 KiB (kHeadDim 64: 4), and
// waits with kStages - 1 of them asked for: 4 x 2 x 8 = 64 KiB a block (4 x 3 x 4 = 48), two blocks a multiprocessor.
// (H200: 4.8 TB/s x 0.7 us / 132 multiprocessors = 25 KiB keep memory busy.) The queries, once, come through the last
// stage, which is filled after them.
//
// Grid (splits, kv_heads ceil(group / (16 kRowTiles)), sequences), 128 threads. Shared memory: the larger of the
// stages, 4 x kStages x 2 x 16 x kHeadDim x sizeof(T), and WarpResults.
// Bytes: keys and values that rows see, queries, the blocks of tables that hold them, and for each head and split
// (kHeadDim + 2) x 4 written, or the outputs. FLOPs: 4 kHeadDim for each head and key that it sees.
// Alignment: 16 bytes; split_len a multiple of 64.
// Registers: at most 112 (attention_decode_split_*_64x16), 168 (attention_decode_split_*_64x32)
// Registers: at most 168 (attention_decode_split_*_128x16), 255 (attention_decode_split_*_128x32)
template <class T, uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kStages>
DEVICE void attention_decode_split(const T* queries, const Cache<T>& cache, T* out, float* workspace,
                                   const Sequence* sequences, uint32_t group, uint32_t window, uint32_t split_len) {
    using Layout = TileLayout<kHeadDim>;
    constexpr uint32_t kRows = 16 * kRowTiles;
    constexpr uint32_t kUnitBytes = kUnit * Layout::kRowBytes, kStageBytes = 2 * kUnitBytes;
    static_assert(kRows * Layout::kRowBytes <= kStageBytes, "the queries pass through one stage");
    SHARED_MEMORY(shared);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t stages = shared_address(shared) + warp * kStages * kStageBytes;  // of this warp
    const uint32_t head_tiles = gridDim.y / cache.kv_heads;
    const uint32_t kv_head = blockIdx.y / head_tiles, first_head = blockIdx.y % head_tiles * kRows;
    const uint32_t heads = min(group - first_head, kRows), all_heads = cache.kv_heads * group;

    grid_dependency_launch();
    grid_dependency_wait();
    const Span sequence = load_span(sequences, blockIdx.z);
    if (sequence.rows != 1) return;
    const Splits splits = Splits::of(sequence, window, split_len);
    if (blockIdx.x >= splits.count) return;
    const uint32_t first_position = (splits.first + blockIdx.x) * split_len;
    const KeyRange keys{max(splits.visible.first, first_position), min(splits.visible.end, first_position + split_len)};

    // Unit number i of this warp is first_unit + i kWarps of the sequence.
    const uint32_t first_seen = keys.first / kUnit, last_seen = (keys.end - 1) / kUnit;
    const uint32_t first_unit = first_seen + (warp - first_seen) % kWarps;
    const uint32_t units = first_unit > last_seen ? 0 : (last_seen - first_unit) / kWarps + 1;
    WarpPages pages = look_up(cache, sequence.table, keys, first_unit, kWarps);

    // Copies of this warp go row by row: lane l has chunk l % kChunks of rows l / kChunks, + kStep, ...
    constexpr uint32_t kStep = 32 / Layout::kChunks;
    const uint32_t chunk = lane % Layout::kChunks, first_row = lane / Layout::kChunks;
    const size_t query_row = static_cast<size_t>(sequence.first_row) * all_heads + kv_head * group + first_head;
    const size_t query = query_row * kHeadDim;
#pragma unroll
    for (uint32_t row = first_row; row < kRows; row += kStep) {
        const T* const source = queries + query + (row < heads ? row : 0) * kHeadDim + chunk * kVector;
        copy_async_16(stages + (kStages - 1) * kStageBytes + Layout::offset(row, chunk), source, row < heads ? 16 : 0);
    }
    copy_async_commit();
    // Starts to copy keys and values of unit number `i`; those that the row does not see become zeros and are not read.
    const auto copy = [&](uint32_t i, uint32_t stage) {
        if (i < units) {
            const uint32_t page = page_of(pages, i);
            const uint32_t position = (first_unit + i * kWarps) * kUnit + first_row;
            const size_t slot = first_slot(cache, page, kv_head) + slot_in_page(cache, position);
            const size_t source = slot * kHeadDim + chunk * kVector;
            const uint32_t target = stages + stage * kStageBytes;
#pragma unroll
            for (uint32_t row = 0; row < kUnit; row += kStep) {
                const uint32_t bytes = KeyRange::contains(keys, position + row) ? 16 : 0;
                const uint32_t shared_chunk = target + Layout::offset(first_row + row, chunk);
                copy_async_16(shared_chunk, cache.keys + source + row * kHeadDim, bytes);
                copy_async_16(shared_chunk + kUnitBytes, cache.values + source + row * kHeadDim, bytes);
            }
        }
        copy_async_commit();
    };
#pragma unroll
    for (uint32_t i = 0; i < kStages - 1; i++) copy(i, i);

    copy_async_wait<kStages - 1>();
    warp_sync();
    HeldQueries<kHeadDim, kRowTiles> held;
    HeldQueries<kHeadDim, kRowTiles>::fill(held, stages + (kStages - 1) * kStageBytes, lane);

    SoftmaxState states[kRowTiles][2];
    float sums[kRowTiles][kHeadDim / 8][4] = {};
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) states[m][0] = states[m][1] = no_keys();
    uint32_t stage = 0, free_stage = kStages - 1;
    for (uint32_t i = 0; i < units; i++) {
        // The oldest copy has come for all lanes, and none reads the stage before it, or the queries, any more.
        copy_async_wait<kStages - 2>();
        warp_sync();
        const uint32_t next = i + kStages - 1;
        if (next % 32 == 0) pages = look_up(cache, sequence.table, keys, first_unit + next * kWarps, kWarps);
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
                    const bool seen = KeyRange::contains(keys, first_key + n * 8 + lane % 4 * 2 + e % 2);
#pragma unroll
                    for (uint32_t m = 0; m < kRowTiles; m++) scores[m][n][e] = seen ? scores[m][n][e] : kMasked;
                }
            }
        }
        soften<kHeadDim, kRowTiles, kUnit>(scores, states, sums, kLog2Scale<kHeadDim>);
        uint32_t weights[kRowTiles][1][4];
        pack_weights<T, kRowTiles, kUnit>(weights, scores);
        multiply_values<T, kHeadDim, kRowTiles, kUnit>(sums, weights, unit + kUnitBytes);
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }

    whole_rows(states);
    copy_async_wait_all();
    block_sync();
    const auto results = WarpResults<kHeadDim, kRows>::in(shared);
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t row = warp * kRows + m * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0) results.states[row] = states[m][half];
#pragma unroll
            for (uint32_t n = 0; n < kHeadDim / 8; n++) {
                *reinterpret_cast<float2*>(results.values + row * results.kPitch + n * 8 + lane % 4 * 2) =
                    make_float2(sums[m][n][2 * half], sums[m][n][2 * half + 1]);
            }
        }
    }
    block_sync();
    const size_t count = static_cast<size_t>(gridDim.z) * all_heads * gridDim.x;
    const Partials partials = Partials::in(workspace, count, kHeadDim);
    for (uint32_t i = threadIdx.x; i < heads * (kHeadDim / 4); i += kThreads) {
        const uint32_t row = i / (kHeadDim / 4), column = i % (kHeadDim / 4) * 4;
        float values[4];
        const SoftmaxState state = WarpResults<kHeadDim, kRows>::merged(results, row, column, values);
        if (gridDim.x == 1) {
            const float factor = normaliser(state);
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) values[j] *= factor;
            store_global_8(out + query + row * kHeadDim + column, pack_four<T>(values));
        } else {
            const size_t head = static_cast<size_t>(blockIdx.z) * all_heads + kv_head * group + first_head + row;
            const size_t split = head * gridDim.x + blockIdx.x;
            uint4 bits;
            bits.x = __float_as_uint(values[0]), bits.y = __float_as_uint(values[1]);
            bits.z = __float_as_uint(values[2]), bits.w = __float_as_uint(values[3]);
            store_global_16(partials.values + split * kHeadDim + column, bits);
            if (column == 0) {
                uint2 pair;
                pair.x = __float_as_uint(state.max), pair.y = __float_as_uint(state.sum);
                store_global_8(partials.states + split * 2, pair);
            }
        }
    }
}

// out[r, h, :] = sum over splits i of f[i] values[i, :] / sum over splits i of f[i] sum[i],
// f[i] = exp2(max[i] - max over splits of max), for the row r of each sequence that has one row, from what
// attention_decode_split left.
//
//   out        T [rows, heads, kHeadDim]
//   workspace  f32, see Partials, for gridDim.y sequences, gridDim.x heads and `splits` splits; those that a row sees
//              none of are not read
//   sequences, window, split_len   as there
//
// A block merges the splits of one head: warp w takes splits w, w + 4, ... in ascending order, four asked for at a
// time, then the warps are merged in theirs: the order depends on the number of splits that the row sees alone.
//
// Grid (heads, sequences), 128 threads. Shared memory: 4 x (kHeadDim + 8 + 2) floats.
// Bytes: (kHeadDim + 2) x 4 for each head and split, the outputs. FLOPs: 3 kHeadDim a head and split.
// Alignment: 16 bytes.
// Registers: at most 40 (attention_decode_merge_*)
template <class T, uint32_t kHeadDim>
DEVICE void attention_decode_merge(const float* workspace, T* out, const Sequence* sequences, uint32_t window,
                                   uint32_t split_len, uint32_t split_count) {
    constexpr uint32_t kOwn = kHeadDim / 32;  // columns of a lane
    constexpr uint32_t kAhead = 4;            // splits asked for together
    SHARED_MEMORY(shared);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, heads = gridDim.x;

    grid_dependency_launch();
    grid_dependency_wait();
    const Span sequence = load_span(sequences, blockIdx.y);
    if (sequence.rows != 1) return;
    const uint32_t count = min(Splits::of(sequence, window, split_len).count, split_count);
    const size_t first = (static_cast<size_t>(blockIdx.y) * heads + blockIdx.x) * split_count;
    const float* const values = workspace + first * kHeadDim + lane * kOwn;
    const float* const states = workspace + static_cast<size_t>(gridDim.y) * heads * split_count * kHeadDim + first * 2;

    SoftmaxState state = no_keys();
    float sums[kOwn] = {};
    for (uint32_t split = warp; split < count; split += kWarps * kAhead) {
        SoftmaxState other[kAhead];
        float added[kAhead][kOwn];
#pragma unroll
        for (uint32_t i = 0; i < kAhead; i++) {
            const size_t at = split + i * kWarps;
            other[i] = no_keys();
#pragma unroll
            for (uint32_t j = 0; j < kOwn; j++) added[i][j] = 0.0f;
            if (at < count) {
                const uint2 pair = load_global_8(states + at * 2);
                other[i] = SoftmaxState{__uint_as_float(pair.x), __uint_as_float(pair.y)};
                load_columns(values + at * kHeadDim, added[i]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < kAhead; i++) {
            const MergeFactors factors = merge(state, other[i]);
#pragma unroll
            for (uint32_t j = 0; j < kOwn; j++) sums[j] = sums[j] * factors.own + added[i][j] * factors.other;
        }
    }

    const auto results = WarpResults<kHeadDim, 1>::in(shared);
    if (lane == 0) results.states[warp] = state;
#pragma unroll
    for (uint32_t j = 0; j < kOwn; j++) results.values[warp * results.kPitch + lane * kOwn + j] = sums[j];
    block_sync();
    if (threadIdx.x < kHeadDim / 4) {
        const uint32_t column = threadIdx.x * 4;
        float merged[4];
        const float factor = normaliser(WarpResults<kHeadDim, 1>::merged(results, 0, column, merged));
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) merged[j] *= factor;
        const size_t row = static_cast<size_t>(sequence.first_row) * heads + blockIdx.x;
        store_global_8(out + row * kHeadDim + column, pack_four<T>(merged));
    }
}

#define ATTENTION_DECODE_SPLIT_KERNEL(name, T, kHeadDim, kRowTiles, kStages)                                          \
    KERNEL(name, kThreads, 2)                                                                                         \
    (const T* queries, const T* keys, const T* values, T* out, float* workspace, const Sequence* sequences,           \
     const uint32_t* block_tables, uint32_t kv_heads, uint32_t group, uint32_t page_shift, uint32_t window,           \
     uint32_t split_len) {                                                                                            \
        const Cache<T> cache{keys, values, block_tables, kv_heads, page_shift};                                       \
        attention_decode_split<T, kHeadDim, kRowTiles, kStages>(queries, cache, out, workspace, sequences, group,     \
                                                                window, split_len);                                   \
    }                                                                                                                 \
    REGISTER_KERNEL(name)
#define ATTENTION_DECODE_MERGE_KERNEL(name, T, kHeadDim)                                                              \
    KERNEL(name, kThreads)                                                                                            \
    (const float* workspace, T* out, const Sequence* sequences, uint32_t window, uint32_t split_len,                  \
     uint32_t split_count) {                                                                                          \
        attention_decode_merge<T, kHeadDim>(workspace, out, sequences, window, split_len, split_count);               \
    }                                                                                                                 \
    REGISTER_KERNEL(name)
#define ATTENTION_DECODE_KERNELS(T)                                                  \
    ATTENTION_DECODE_SPLIT_KERNEL(attention_decode_split_##T##_64x16, T, 64, 1, 4)   \
    ATTENTION_DECODE_SPLIT_KERNEL(attention_decode_split_##T##_64x32, T, 64, 2, 4)   \
    ATTENTION_DECODE_SPLIT_KERNEL(attention_decode_split_##T##_128x16, T, 128, 1, 3) \
    ATTENTION_DECODE_SPLIT_KERNEL(attention_decode_split_##T##_128x32, T, 128, 2, 3) \
    ATTENTION_DECODE_MERGE_KERNEL(attention_decode_merge_##T##_64, T, 64)            \
    ATTENTION_DECODE_MERGE_KERNEL(attention_decode_merge_##T##_128, T, 128)

ATTENTION_DECODE_KERNELS(bf16)
ATTENTION_DECODE_KERNELS(f16)
