// targets: sm_80 compute_80 sm_90
// Attention of one row a sequence over its paged cache: decode, bound by the bytes of keys and values, read once. The
// keys of a sequence are split over blocks; a second kernel merges what the blocks found.
#include "common/attention_decode.cuh"

// Computes: Attention of the query row of each sequence that has one row in the step, over the keys of one split: its
// state and weighted values, as attend_split says; and where the grid has one split a sequence, the quotient of the
// two, out[h, :], at once. Shapes:
//   queries, out    T [rows, heads, kHeadDim], heads = kv_heads group
//   workspace       f32, see Partials; not touched where there is one split
//   keys, values    T [pages, kv_heads, page_size, kHeadDim], page_size = 1 << page_shift >= 16
//   sequences       [gridDim.z]; block_tables u32 [.]; see common/pages.cuh. One with rows != 1 is passed over.
//   window          a row at position q sees keys q - window + 1 .. q; 2^31 for all up to q
// all written by earlier work on the stream.
//
// Block x takes split x of those that the row sees; see Splits. Warps are merged in their order. So which sums are
// formed in which order depends on position, window and split_len alone: a row has the same bits in any batch, and with
// any number of splits in the grid.
//
// Grid: (splits, kv_heads ceil(group / (16 kRowTiles)), sequences), 128 threads.
// Smem: kRingBytes.
// Bytes: keys and values that rows see, queries, the blocks of tables that hold them, and for each head and split
// (kHeadDim + 2) x 4 written, or the outputs. FLOPs: 4 kHeadDim for each head and key that it sees.
// Alignment: 16 bytes; split_len a multiple of 64.
// Registers: at most 112 (attention_decode_split_*_64x16), 184 (attention_decode_split_*_64x32)
// Registers: at most 176 (attention_decode_split_*_128x16), 255 (attention_decode_split_*_128x32)
template <class T, uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kStages>
DEVICE void attention_decode_split(const T* queries, const Cache<T>& cache, T* out, float* workspace,
                                   const Sequence* sequences, uint32_t group, uint32_t window, uint32_t split_len) {
    using Results = WarpResults<kHeadDim, 16 * kRowTiles>;
    SHARED_MEMORY(shared);
    const HeadTile tile = HeadTile::of<16 * kRowTiles>(cache, group);

    grid_dependency_launch();
    grid_dependency_wait();
    const Span sequence = load_span(sequences, blockIdx.z);
    if (sequence.rows != 1) return;
    const Splits splits = Splits::of(sequence, window, split_len);
    if (blockIdx.x >= splits.count) return;
    const size_t first_query = (static_cast<size_t>(sequence.first_row) * tile.layer_heads + tile.first) * kHeadDim;
    attend_split<T, kHeadDim, kRowTiles, kStages>(shared, queries + first_query, tile.heads, cache, tile.kv_head,
                                                  sequence.table, splits.keys(blockIdx.x, split_len));
    block_sync();
    const size_t count = static_cast<size_t>(gridDim.z) * tile.layer_heads * gridDim.x;
    const auto partials = Partials<float>::in(workspace, count, kHeadDim);
    for (uint32_t row = threadIdx.x / 32; row < tile.heads; row += kWarps) {
        const auto result = Results::in(shared).merged(row);
        if (gridDim.x == 1) {
            result.finish(out + first_query + row * kHeadDim);
        } else {
            const size_t head = static_cast<size_t>(blockIdx.z) * tile.layer_heads + tile.first + row;
            result.store(partials, head * gridDim.x + blockIdx.x);
        }
    }
}

// Computes: out[r, h, :] = sum over splits i of f[i] values[i, :] / sum over splits i of f[i] sum[i],
// f[i] = exp2(max[i] - max over splits of max), for the row r of each sequence that has one row, from what
// attention_decode_split left.
// Shapes:
//   out        T [rows, heads, kHeadDim]
//   workspace  f32, see Partials, for gridDim.y sequences, gridDim.x heads and `splits` splits; those that a row sees
//              none of are not read
//   sequences, window, split_len   as there
//
// A block merges the splits of one head: warp w takes splits w, w + 4, ... in ascending order, then the warps are
// merged in theirs: the order depends on the number of splits that the row sees alone.
//
// Grid: (heads, sequences), 128 threads.
// Smem: WarpResults of one row.
// Bytes: (kHeadDim + 2) x 4 for each head and split, the outputs.
// FLOPs: 3 kHeadDim a head and split.
// Alignment: 16 bytes.
// Registers: at most 40 (attention_decode_merge_*)
template <class T, uint32_t kHeadDim>
DEVICE void attention_decode_merge(const float* workspace, T* out, const Sequence* sequences, uint32_t window,
                                   uint32_t split_len, uint32_t split_count) {
    using Results = WarpResults<kHeadDim, 1>;
    using Row = typename Results::Row;
    SHARED_MEMORY(shared);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, heads = gridDim.x;

    grid_dependency_launch();
    grid_dependency_wait();
    const Span sequence = load_span(sequences, blockIdx.y);
    if (sequence.rows != 1) return;
    const uint32_t count = min(Splits::of(sequence, window, split_len).count, split_count);
    const size_t head = static_cast<size_t>(blockIdx.y) * heads + blockIdx.x;
    const size_t all = static_cast<size_t>(gridDim.y) * heads * split_count;
    Row result = Row::none();
    const size_t first = head * split_count;
    Row::each(Partials<const float>::in(workspace, all, kHeadDim), first + warp, first + count, kWarps,
              [&](const Row& split) { result.add(split); });

    const auto results = Results::in(shared);
    if (lane == 0) results.states[warp] = result.state;
#pragma unroll
    for (uint32_t i = 0; i < Row::kOwn; i++) {
        results.values[warp * Results::kPitch + Row::first_column() + i] = result.values[i];
    }
    block_sync();
    if (warp != 0) return;
    const size_t row = static_cast<size_t>(sequence.first_row) * heads + blockIdx.x;
    results.merged(0).finish(out + row * kHeadDim);
}

#define ATTENTION_DECODE_SPLIT_KERNEL(name, T, kHeadDim, kRowTiles, kStages)                                      \
    KERNEL(name, kThreads, 2)                                                                                     \
    (const T* queries, const T* keys, const T* values, T* out, float* workspace, const Sequence* sequences,       \
     const uint32_t* block_tables, uint32_t kv_heads, uint32_t group, uint32_t page_shift, uint32_t window,       \
     uint32_t split_len) {                                                                                        \
        const Cache<T> cache{keys, values, block_tables, kv_heads, page_shift};                                   \
        attention_decode_split<T, kHeadDim, kRowTiles, kStages>(queries, cache, out, workspace, sequences, group, \
                                                                window, split_len);                               \
    }                                                                                                             \
    REGISTER_KERNEL(name)
#define ATTENTION_DECODE_MERGE_KERNEL(name, T, kHeadDim)                                                \
    KERNEL(name, kThreads)                                                                              \
    (const float* workspace, T* out, const Sequence* sequences, uint32_t window, uint32_t split_len,    \
     uint32_t split_count) {                                                                            \
        attention_decode_merge<T, kHeadDim>(workspace, out, sequences, window, split_len, split_count); \
    }                                                                                                   \
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
