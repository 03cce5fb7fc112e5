// targets: sm_80 compute_80 sm_90
// Attention of any number of rows of a sequence over its paged cache with one order of sums for all of them: what a row
// gets has the same bits in a prompt, in a chunk of one, among rows to be verified and as the one row of a decode step.
#include "common/key_tiles.cuh"
#include "common/partials.cuh"

static constexpr uint32_t kWarps = 4;
static constexpr uint32_t kThreads = kWarps * 32;
static constexpr uint32_t kQueries = kWarps * 16;  // of a tile
static constexpr uint32_t kKeys = 64;  // of a tile, at a multiple of 64
static constexpr uint32_t kBuffers = 3;
static constexpr uint32_t kPaddingTile = 0xffffffffu;

// Adds the keys of `other` to `state`, as common/softmax.cuh's merge does, but with every rounding spelled out: two
// kernels that merge in the same order get the same bits, however they were compiled.
DEVICE float merge_value(float own, float other, const MergeFactors& factors) {
    return multiply_add_rounded(own, factors.own, multiply_rounded(other, factors.other));
}
DEVICE MergeFactors merge_rounded(SoftmaxState& state, const SoftmaxState& other) {
    const float max = fmaxf(state.max, other.max), subtracted = score_offset(max);
    const MergeFactors factors{exp2_approx(state.max - subtracted), exp2_approx(other.max - subtracted)};
    state = SoftmaxState{max, merge_value(state.sum, other.sum, factors)};
    return factors;
}

// The rows of a tile: `rows` of a sequence, the first of them at `first_row` of the step and at `first_position`.
struct TileRows {
    uint32_t first_row;
    uint32_t rows;
    uint32_t first_position;
    uint32_t table;
    DEVICE TileRows of(const Sequence* sequences, const uint2& tile, uint32_t group) {
        if (tile.x == kPaddingTile) return TileRows{0, 0, 0, 0};
        const Span sequence = load_span(sequences, tile.x);
        const uint32_t left = tile.y < sequence.rows ? sequence.rows - tile.y : 0;
        return TileRows{sequence.first_row + tile.y, min(kQueries / group, left), sequence.start + tile.y,
                        sequence.table};
    }
    // The keys that any of them sees.
    METHOD KeyRange seen(uint32_t window) const {
        return KeyRange{first_visible(first_position, window), first_position + rows};
    }
};

// Computes: out[r, h, :] = sum over keys k that row r sees of p[k] v[k, h / group, :],
// p = softmax over k of q[r, h, :] . k[k, h / group, :] / sqrt(kHeadDim)
// Shapes:
//   queries, out    T [rows, kv_heads group, kHeadDim]
//   workspace       f32, see Partials, for gridDim.x tile_rows rows; touched with more than one split alone
//   keys, values    T [pages, kv_heads, page_size, kHeadDim], page_size = 1 << page_shift >= 16; a row's own key and
//                   value are there already
//   sequences       [.]; block_tables u32 [.]; see common/pages.cuh
//   tiles           [gridDim.x] (sequence, first row within the sequence); sequence 0xffffffff: nothing to do
//   window          a row at position q sees keys q - window + 1 .. q; 2^31 for all up to q
//   split_len       positions of a split, a multiple of 64
//   tile_rows       with more than one split, no tile has more rows
// all written by earlier work on the stream.
//
// Order of a row's sums: the keys of split i, positions i split_len .. (i + 1) split_len, in tiles of 64 ascending, 16
// keys at a time, from nothing; then splits ascending, merged one by one. A split, and a tile, of which the row sees
// nothing changes no bit of it. So its bits depend on its position, window and split_len alone, and it does not matter
// who computes the splits:
//
//   gridDim.z = 1   a block computes all splits of its tile, and merges them in registers
//   else            block z computes the z-th split that the tile sees any of, and writes what it found to `workspace`;
//                   attention_batch_invariant_merge merges. For few rows, which would leave most SMs idle.
//
// A tile is 64 queries: the heads of one KV head for floor(64 / group) rows, query p being row p / group, head
// p % group. A warp has 16 of them; half of attention_prefill's, since merging in registers takes as many again as the
// sums of a split. Warps whose queries are all left over copy, and compute nothing. The way of keys and values is
// attention_prefill's: a ring of three buffers of 64, two of them under way.
//
// Grid: (tiles, kv_heads, splits), 128 threads.
// Smem: (64 + 3 x 64) kHeadDim x sizeof(T) + 64 x 4.
// Bytes: for each sequence and KV head the keys and values that its rows see, once (each tile reads them again, from
// L2); queries; outputs, or for each row, head and split of its tile (kHeadDim + 2) x 4. FLOPs: 4 kHeadDim for each
// head and pair of row and key that it sees.
// Alignment: 16 bytes.
// Registers: at most 192 (attention_batch_invariant_bf16_64 attention_batch_invariant_f16_64)
// Registers: at most 248 (attention_batch_invariant_bf16_128 attention_batch_invariant_f16_128)
template <class T, uint32_t kHeadDim, class Queries>
DEVICE void attention_batch_invariant(const T* queries, const Cache<T>& cache, T* out, float* workspace,
                                      const Sequence* sequences, const uint2* tiles, uint32_t group, uint32_t window,
                                      uint32_t split_len, uint32_t tile_rows) {
    using Layout = TileLayout<kHeadDim>;
    SHARED_MEMORY(shared);
    const uint32_t query_tile = shared_address(shared), ring = query_tile + kQueries * Layout::kRowBytes;
    uint32_t* const positions = reinterpret_cast<uint32_t*>(shared + (kQueries + kBuffers * kKeys) * Layout::kRowBytes);
    const auto buffer_at = [&](uint32_t buffer) { return ring + buffer * kKeys * Layout::kRowBytes; };
    const auto after = [](uint32_t buffer) { return buffer == kBuffers - 1 ? 0 : buffer + 1; };

    grid_dependency_launch();
    grid_dependency_wait();
    const TileRows own = TileRows::of(sequences, load_global_8(tiles + blockIdx.x), group);
    if (own.rows == 0) return;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y, splits = gridDim.z;
    const uint32_t last_position = own.first_position + own.rows - 1;
    KeyRange visible = own.seen(window);
    if (splits > 1) {
        const uint32_t first = (visible.first / split_len + blockIdx.z) * split_len;
        if (first >= visible.end) return;
        visible = KeyRange{max(visible.first, first), min(visible.end, first + split_len)};
    }
    const uint32_t first_tile = visible.first / kKeys, end_tile = (visible.end + kKeys - 1) / kKeys;
    const uint32_t own_queries = own.rows * group, all_heads = cache.kv_heads * group;
    // Query p of the tile begins at this element of `queries` and `out`.
    const auto element = [&](uint32_t p) {
        const size_t row = own.first_row + p / group;
        return (row * all_heads + kv_head * group + p % group) * kHeadDim;
    };

    copy_queries<kHeadDim, kThreads, kQueries>(query_tile, queries, own_queries, element);
    WarpPages pages = look_up(cache, own.table, visible, first_tile * (kKeys / kUnit), 1);
    const auto copy = [&](const T* source, uint32_t tile, uint32_t buffer) {
        if (tile < end_tile) {
            copy_tile<T, kHeadDim, kThreads, kKeys>(source, cache, kv_head, pages, visible, tile, first_tile,
                                                    buffer_at(buffer));
        }
        copy_async_commit();
    };
    copy(cache.keys, first_tile, 0);
    copy(cache.values, first_tile, 1);

    // Of the split, and of the splits before it.
    SoftmaxState states[1][2] = {{SoftmaxState::none(), SoftmaxState::none()}},
                 all_states[2] = {SoftmaxState::none(), SoftmaxState::none()};
    float sums[1][kHeadDim / 8][4] = {}, all_sums[kHeadDim / 8][4] = {};

    // Positions of all queries; those that are left over take the last row's.
    if (threadIdx.x < kQueries) {
        positions[threadIdx.x] = own.first_position + min(threadIdx.x / group, own.rows - 1);
    }
    copy_async_wait<1>();
    block_sync();
    Queries held;
    held.fill(query_tile + warp * 16 * Layout::kRowBytes, lane);
    const bool computes = warp * 16 < own_queries;

    for (uint32_t tile = first_tile, buffer = 0; tile < end_tile; tile++) {
        // Both barriers: the oldest copy has come, and no warp reads the buffer behind it any more.
        copy_async_wait<1>();
        block_sync();
        if ((tile + 1 - first_tile) % (32 * kUnit / kKeys) == 0) {
            pages = look_up(cache, own.table, visible, (tile + 1) * (kKeys / kUnit), 1);
        }
        copy(cache.keys, tile + 1, after(after(buffer)));
        uint32_t weights[1][kKeys / 16][4] = {};
        if (computes) {
            float scores[1][kKeys / 8][4];
            multiply_keys<T, kHeadDim, 1, kKeys>(scores, held, buffer_at(buffer));
            const uint32_t first_key = tile * kKeys;
            if (first_key + kKeys - 1 > own.first_position || last_position - first_key >= window) {
#pragma unroll
                for (uint32_t half = 0; half < 2; half++) {
                    const uint32_t position = positions[warp * 16 + half * 8 + lane / 4];
                    mask_keys<kKeys>(scores[0], half, position, first_key, window);
                }
            }
            online_softmax_step<kHeadDim, 1, kKeys>(scores, states, sums, kLog2Scale<kHeadDim>);
            pack_weights<T, 1, kKeys>(weights, scores);
        }
        buffer = after(buffer);

        copy_async_wait<1>();
        block_sync();
        copy(cache.values, tile + 1, after(after(buffer)));
        if (computes) multiply_values<T, kHeadDim, 1, kKeys>(sums, weights, buffer_at(buffer));
        buffer = after(buffer);

        if ((tile + 1) * kKeys % split_len != 0 && tile + 1 != end_tile) continue;
        reduce_rows(states);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const MergeFactors factors = merge_rounded(all_states[half], states[0][half]);
            states[0][half] = SoftmaxState::none();
#pragma unroll
            for (uint32_t n = 0; n < kHeadDim / 8; n++) {
#pragma unroll
                for (uint32_t i = 2 * half; i < 2 * half + 2; i++) {
                    all_sums[n][i] = merge_value(all_sums[n][i], sums[0][n][i], factors);
                    sums[0][n][i] = 0.0f;
                }
            }
        }
    }

    if (splits > 1) {
        // One split, merged with nothing, is itself.
        const size_t count = static_cast<size_t>(gridDim.x) * tile_rows * all_heads * splits;
        const auto partials = Partials<float>::in(workspace, count, kHeadDim);
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t p = warp * 16 + half * 8 + lane / 4;
            if (p >= own_queries) continue;
            const size_t row = static_cast<size_t>(blockIdx.x) * tile_rows + p / group;
            const size_t partial = (row * all_heads + kv_head * group + p % group) * splits + blockIdx.z;
#pragma unroll
            for (uint32_t n = 0; n < kHeadDim / 8; n++) {
                const float pair[2] = {all_sums[n][2 * half], all_sums[n][2 * half + 1]};
                store_columns(partials.values + partial * kHeadDim + n * 8 + lane % 4 * 2, pair);
            }
            if (lane % 4 == 0) store_global_8(partials.states + partial * 2, words_of(all_states[half]));
        }
        return;
    }

    // Outputs take the place of this warp's queries, to be stored 16 bytes at a time. No other warp reads those, and
    // its own lanes have read them before the last barrier.
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const float factor = all_states[half].normaliser();
        const uint32_t p = warp * 16 + half * 8 + lane / 4;
#pragma unroll
        for (uint32_t n = 0; n < kHeadDim / 8; n++) {
            const float (&pair)[4] = all_sums[n];
            *reinterpret_cast<uint32_t*>(shared + Layout::offset(p, n) + lane % 4 * 4) =
                pack<T>(multiply_rounded(pair[2 * half], factor), multiply_rounded(pair[2 * half + 1], factor));
        }
    }
    warp_sync();
#pragma unroll 4
    for (uint32_t i = lane / Layout::kChunks; i < 16; i += 32 / Layout::kChunks) {
        const uint32_t p = warp * 16 + i, chunk = lane % Layout::kChunks;
        if (p < own_queries) {
            store_global_16(out + element(p) + chunk * kVector,
                            *reinterpret_cast<const uint4*>(shared + Layout::offset(p, chunk)));
        }
    }
}

// Computes: out[r, h, :] from what attention_batch_invariant left in `workspace` for `split_count` splits of gridDim.y
// tiles of up to gridDim.z rows: the splits that the row's tile sees any of, merged one by one in ascending order.
// Shapes:
//   out        T [rows, heads, kHeadDim]
//   workspace, sequences, tiles, group, window, split_len   as there
//
// Grid: (heads, tiles, tile_rows), 32 threads, each for kHeadDim / 32 columns of a row and head.
// Bytes: (kHeadDim + 2) x 4 for each row, head and split of its tile, the outputs.
// FLOPs: 3 kHeadDim for each of them.
// Alignment: 16 bytes.
// Registers: at most 56 (attention_batch_invariant_merge_*)
template <class T, uint32_t kHeadDim>
DEVICE void attention_batch_invariant_merge(const float* workspace, T* out, const Sequence* sequences,
                                            const uint2* tiles, uint32_t group, uint32_t window, uint32_t split_len,
                                            uint32_t split_count) {
    using Row = RowResult<kHeadDim>;
    const uint32_t heads = gridDim.x;

    grid_dependency_launch();
    grid_dependency_wait();
    const TileRows own = TileRows::of(sequences, load_global_8(tiles + blockIdx.y), group);
    if (blockIdx.z >= own.rows) return;
    const KeyRange seen = own.seen(window);
    const uint32_t count = min((seen.end - 1) / split_len - seen.first / split_len + 1, split_count);
    const size_t row = static_cast<size_t>(blockIdx.y) * gridDim.z + blockIdx.z;
    const size_t first = (row * heads + blockIdx.x) * split_count;
    const size_t all = static_cast<size_t>(gridDim.y) * gridDim.z * heads * split_count;
    Row result = Row::none();
    Row::each(Partials<const float>::in(workspace, all, kHeadDim), first, first + count, 1, [&](const Row& split) {
        const MergeFactors factors = merge_rounded(result.state, split.state);
#pragma unroll
        for (uint32_t i = 0; i < Row::kOwn; i++) {
            result.values[i] = merge_value(result.values[i], split.values[i], factors);
        }
    });

    const float factor = result.state.normaliser();
    float quotients[Row::kOwn];
#pragma unroll
    for (uint32_t i = 0; i < Row::kOwn; i++) quotients[i] = multiply_rounded(result.values[i], factor);
    const size_t out_row = (static_cast<size_t>(own.first_row + blockIdx.z) * heads + blockIdx.x) * kHeadDim;
    store_rounded(out + out_row + Row::first_column(), quotients);
}

#define ATTENTION_BATCH_INVARIANT_KERNEL(name, T, kHeadDim, Queries)                                             \
    KERNEL(name, kThreads, 2)                                                                                    \
    (const T* queries, const T* keys, const T* values, T* out, float* workspace, const Sequence* sequences,      \
     const uint32_t* block_tables, const uint2* tiles, uint32_t kv_heads, uint32_t group, uint32_t page_shift,   \
     uint32_t window, uint32_t split_len, uint32_t tile_rows) {                                                  \
        const Cache<T> cache{keys, values, block_tables, kv_heads, page_shift};                                  \
        attention_batch_invariant<T, kHeadDim, Queries>(queries, cache, out, workspace, sequences, tiles, group, \
                                                        window, split_len, tile_rows);                           \
    }                                                                                                            \
    REGISTER_KERNEL(name)
#define ATTENTION_BATCH_INVARIANT_MERGE_KERNEL(name, T, kHeadDim)                                                    \
    KERNEL(name, 32)                                                                                                 \
    (const float* workspace, T* out, const Sequence* sequences, const uint2* tiles, uint32_t group, uint32_t window, \
     uint32_t split_len, uint32_t split_count) {                                                                     \
        attention_batch_invariant_merge<T, kHeadDim>(workspace, out, sequences, tiles, group, window, split_len,     \
                                                     split_count);                                                   \
    }                                                                                                                \
    REGISTER_KERNEL(name)

// One word, for the macro.
using Held64 = HeldQueries<64, 1>;

#define ATTENTION_BATCH_INVARIANT_KERNELS(T)                                                          \
    ATTENTION_BATCH_INVARIANT_KERNEL(attention_batch_invariant_##T##_64, T, 64, Held64)               \
    ATTENTION_BATCH_INVARIANT_KERNEL(attention_batch_invariant_##T##_128, T, 128, SharedQueries<128>) \
    ATTENTION_BATCH_INVARIANT_MERGE_KERNEL(attention_batch_invariant_merge_##T##_64, T, 64)           \
    ATTENTION_BATCH_INVARIANT_MERGE_KERNEL(attention_batch_invariant_merge_##T##_128, T, 128)

ATTENTION_BATCH_INVARIANT_KERNELS(bf16)
ATTENTION_BATCH_INVARIANT_KERNELS(f16)
