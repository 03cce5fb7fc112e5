// targets: sm_90
// Attention of one row a sequence over its paged cache, on Hopper: decode, bound by the bytes of keys and values, read
// once. The keys of a sequence are split over the blocks of clusters, which merge what they found among themselves, and
// of several clusters the last to finish merges theirs: one kernel, no second one to wait for.
#include "common/arrival.cuh"
#include "common/attention_decode.cuh"

// As store_columns, to the shared memory of any block of the cluster; see store_async_16.
DEVICE void store_columns_async(uint32_t target, const float (&columns)[2], uint32_t barrier) {
    store_async_8(target, words_of(columns), barrier);
}
DEVICE void store_columns_async(uint32_t target, const float (&columns)[4], uint32_t barrier) {
    store_async_16(target, words_of(columns), barrier);
}

// Where the blocks of a cluster send each other results of rows: in the shared memory of each, behind its ring.
template <uint32_t kHeadDim>
struct Inbox {
    using Row = RowResult<kHeadDim>;
    static constexpr uint32_t kResultBytes = kHeadDim * sizeof(float) + sizeof(SoftmaxState);
    float* values;  // [slots][kHeadDim]
    SoftmaxState* states;  // [slots]
    uint64_t* barrier;  // an mbarrier
    DEVICE Inbox in(uint8_t* place, uint32_t slots) {
        float* const values = reinterpret_cast<float*>(place);
        SoftmaxState* const states = reinterpret_cast<SoftmaxState*>(values + slots * kHeadDim);
        return Inbox{values, states, reinterpret_cast<uint64_t*>(states + slots)};
    }
    METHOD uint32_t barrier_address() const { return shared_address(barrier); }
    // This warp's result to a slot of another block, or of this one.
    METHOD void send(const Row& result, uint32_t slot, uint32_t rank) const {
        const auto at = [&](const void* place) { return cluster_address(shared_address(place), rank); };
        const uint32_t remote_barrier = at(barrier);
        store_columns_async(at(values + slot * kHeadDim + Row::first_column()), result.values, remote_barrier);
        if (threadIdx.x % 32 == 0) store_async_8(at(states + slot), words_of(result.state), remote_barrier);
    }
    METHOD Row received(uint32_t slot) const { return Row::load_shared(states[slot], values + slot * kHeadDim); }
};

// Attention of the query row of each sequence that has one row in the step.
//
// Computes: out[h, :] = sum over keys k of p[k] v[k, h / group, :], p = softmax of q[h, :] . k[k, h / group, :] /
// sqrt(kHeadDim) Shapes:
//   queries, out    T [rows, heads, kHeadDim], heads = kv_heads group
//   workspace       f32, see Partials, a split being a cluster's; not touched where a cluster has all splits of a row
//   tile_counters   u32 [gridDim.z, heads], 0 before and after each launch; not touched where the workspace is not
//   keys, values    T [pages, kv_heads, page_size, kHeadDim], page_size = 1 << page_shift >= 16
//   sequences       [gridDim.z]; block_tables u32 [.]; see common/pages.cuh. One with rows != 1 is passed over.
//   window          a row at position q sees keys q - window + 1 .. q; 2^31 for all up to q
// all written by earlier work on the stream.
//
// Block x takes split x of those that the row sees (see Splits), as attend_split says, and merges its warps in their
// order. Row h of the tile is then merged by a warp of block h % blocks of the cluster, from what all blocks send
// there, in the order of the splits. Where other clusters have splits of the row too, that is a partial result: it goes
// to the workspace, and the warp that comes last for the row merges those, in the order of the clusters. So which sums
// are formed in which order depends on position, window and split_len alone, where clusters have 8 blocks for more than
// 8 splits: a row has the same bits in any batch, and with any number of splits in the grid.
//
// Why so. A KV head's results are heads x splits x (kHeadDim + 2) x 4 bytes, 206 KB for 12 heads over 33 splits. One
// block that reads them all from L2, at 64 bytes a cycle, takes 1.8 us, as long as a kernel for it and the boundary
// before that. Eight blocks that send each other an eighth each, 6 KB, over the cluster's network do it side by side;
// what is left for L2 is an eighth of the results, and of those each warp reads one row's. The stores go straight from
// registers and are counted where they arrive: so between keys and merge no fence of the device is waited for, as at a
// barrier of the cluster (there is one at the start, while the work before still runs), and no block has to stay until
// others have read it. Blocks without keys merge, if a row is theirs, or end.
//
// Grid: (splits, a multiple of the cluster's; kv_heads ceil(group / (16 kRowTiles)); sequences) in clusters of 1 to 8
// blocks along x, 128 threads.
// Smem: kRingBytes, then the Inbox of as many slots as the tile has heads, rounded
// up to whole rounds of the cluster.
// Bytes: keys and values that rows see, queries, the blocks of tables that hold them, the outputs, and where a row has
// more than one cluster twice (kHeadDim + 2) x 4 for each head and cluster. FLOPs: 4 kHeadDim for each head and key
// that it sees; the merge's are left out.
// Alignment: 16 bytes; split_len a multiple of 64.
// Registers: at most 120 (attention_decode_sm90_*_64x16), 184 (attention_decode_sm90_*_64x32)
// Registers: at most 176 (attention_decode_sm90_*_128x16), 255 (attention_decode_sm90_*_128x32)
template <class T, uint32_t kHeadDim, uint32_t kRowTiles, uint32_t kStages>
DEVICE void attention_decode(const T* queries, const Cache<T>& cache, T* out, float* workspace, uint32_t* tile_counters,
                             const Sequence* sequences, uint32_t group, uint32_t window, uint32_t split_len) {
    using Results = WarpResults<kHeadDim, 16 * kRowTiles>;
    using Row = typename Results::Row;
    using Mail = Inbox<kHeadDim>;
    SHARED_MEMORY(shared);
    const HeadTile tile = HeadTile::of<16 * kRowTiles>(cache, group);
    const uint32_t warp = threadIdx.x / 32, blocks = cluster_blocks(), rank = cluster_rank();
    // A round deals a row to each block. Slot round x blocks + s: from block s, for this block's row of the round.
    const uint32_t rounds = (tile.heads + blocks - 1) / blocks;
    const Mail inbox = Mail::in(shared + kRingBytes<kHeadDim, kStages>, rounds * blocks);

    if (threadIdx.x == 0) {
        mbarrier_init(inbox.barrier_address(), 1);
        mbarrier_init_fence();
    }
    warp_sync();
    cluster_arrive();
    grid_dependency_launch();
    cluster_wait();
    grid_dependency_wait();
    const Span sequence = load_span(sequences, blockIdx.z);
    if (sequence.rows != 1) return;
    const Splits splits = Splits::of(sequence, window, split_len);
    const uint32_t split_count = min(splits.count, gridDim.x), first_split = blockIdx.x - rank;  // of the cluster
    if (first_split >= split_count) return;
    const size_t first_query = (static_cast<size_t>(sequence.first_row) * tile.layer_heads + tile.first) * kHeadDim;

    const bool alone = split_count == 1, attends = blockIdx.x < split_count;
    const bool merges = !alone && rank < tile.heads;
    const uint32_t present = min(split_count - first_split, blocks);  // blocks of the cluster that have keys
    if (merges && threadIdx.x == 0) {
        const uint32_t rows = (tile.heads - 1 - rank) / blocks + 1;
        mbarrier_arrive_expect(inbox.barrier_address(), rows * present * Mail::kResultBytes);
    }
    if (attends) {
        attend_split<T, kHeadDim, kRowTiles, kStages>(shared, queries + first_query, tile.heads, cache, tile.kv_head,
                                                      sequence.table, splits.keys(blockIdx.x, split_len));
        block_sync();
        for (uint32_t row = warp; row < tile.heads; row += kWarps) {
            const Row result = Results::in(shared).merged(row);
            if (alone) {
                result.finish(out + first_query + row * kHeadDim);
            } else {
                inbox.send(result, row / blocks * blocks + rank, row % blocks);
            }
        }
    }
    if (!merges) return;

    const uint32_t clusters = gridDim.x / blocks, cluster = blockIdx.x / blocks;
    const uint32_t seen = (split_count - 1) / blocks + 1;  // clusters that have keys
    const size_t count = static_cast<size_t>(gridDim.z) * tile.layer_heads * clusters;
    const auto partials = Partials<float>::in(workspace, count, kHeadDim);
    mbarrier_wait_cluster(inbox.barrier_address(), 0, "inbox");
    for (uint32_t round = warp; round * blocks + rank < tile.heads; round += kWarps) {
        const uint32_t row = round * blocks + rank;
        Row result = Row::none();
        for (uint32_t sender = 0; sender < present; sender++) { result.add(inbox.received(round * blocks + sender)); }
        if (seen > 1) {
            const size_t head = static_cast<size_t>(blockIdx.z) * tile.layer_heads + tile.first + row;
            result.store(partials, head * clusters + cluster);
            if (!arrives_last(tile_counters + head, seen)) continue;
            result = Row::none();
            const size_t first = head * clusters;
            Row::each(partials, first, first + seen, 1, [&](const Row& other) { result.add(other); });
        }
        result.finish(out + first_query + row * kHeadDim);
    }
}

#define ATTENTION_DECODE_KERNEL(name, T, kHeadDim, kRowTiles, kStages)                                                \
    KERNEL(name, kThreads, 2)                                                                                         \
    (const T* queries, const T* keys, const T* values, T* out, float* workspace, uint32_t* tile_counters,             \
     const Sequence* sequences, const uint32_t* block_tables, uint32_t kv_heads, uint32_t group, uint32_t page_shift, \
     uint32_t window, uint32_t split_len) {                                                                           \
        const Cache<T> cache{keys, values, block_tables, kv_heads, page_shift};                                       \
        attention_decode<T, kHeadDim, kRowTiles, kStages>(queries, cache, out, workspace, tile_counters, sequences,   \
                                                          group, window, split_len);                                  \
    }                                                                                                                 \
    REGISTER_KERNEL(name)
#define ATTENTION_DECODE_KERNELS(T)                                           \
    ATTENTION_DECODE_KERNEL(attention_decode_sm90_##T##_64x16, T, 64, 1, 4)   \
    ATTENTION_DECODE_KERNEL(attention_decode_sm90_##T##_64x32, T, 64, 2, 4)   \
    ATTENTION_DECODE_KERNEL(attention_decode_sm90_##T##_128x16, T, 128, 1, 3) \
    ATTENTION_DECODE_KERNEL(attention_decode_sm90_##T##_128x32, T, 128, 2, 3)

ATTENTION_DECODE_KERNELS(bf16)
ATTENTION_DECODE_KERNELS(f16)
