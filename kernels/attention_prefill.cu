// targets: sm_80 compute_80 sm_90
// Prefill attention: many rows of a sequence (a whole prompt or a chunk) over the paged cache.
#include "common/key_tiles.cuh"

static constexpr uint32_t kWarps = 4;
static constexpr uint32_t kThreads = kWarps * 32;
static constexpr uint32_t kRowTiles = 2;                     // of 16 rows, of a warp
static constexpr uint32_t kQueries = kWarps * kRowTiles * 16;  // of a tile
static_assert(kQueries == kThreads, "a thread for each query's position");
static constexpr uint32_t kKeys = 64;                        // of a tile, at a multiple of 64
static constexpr uint32_t kBuffers = 3;
static constexpr uint32_t kPaddingTile = 0xffffffffu;

// Computes: out[r, h, :] = sum over keys k that row r sees of p[k] v[k, h / group, :],
// p = softmax over k of q[r, h, :] . k[k, h / group, :] / sqrt(kHeadDim)
// Shapes:
//   queries, out    T [rows, kv_heads group, kHeadDim]
//   keys, values    T [pages, kv_heads, page_size, kHeadDim], page_size = 1 << page_shift >= 16; a row's own key and
//                   value are there already
//   sequences       [.]; block_tables u32 [.]; see common/pages.cuh
//   tiles           [gridDim.x] (sequence, first row within the sequence); sequence 0xffffffff: nothing to do
//   window          a row at position q sees keys q - window + 1 .. q; 2^31 for all up to q
// All inputs are written by earlier work on the stream.
//
// Query tile: 128 queries, the heads of one KV head for floor(128 / group) rows; query p is row p / group, head p %
// group. All heads of a group thus share each load of keys and values, the queries of a row are contiguous, and masks
// depend on p / group alone. Used queries of 128: 128 for groups of 1 and 2, 126 for 9, 120 for 12 and 24. Unused
// queries are zero, computed and not stored.
//
// Warp: 32 queries as two m16 tiles, so each fragment of keys or values read from shared memory is multiplied twice.
// (With 16 queries per warp, shared memory and tensor cores would take equally long: 2 x 16 KiB at 128 bytes per cycle,
// 2 x 64 x 16 x 128 multiply-adds at 1024 per cycle.) Scores, softmax weights and accumulators stay in registers: 64 +
// 128 of 255. With kHeadDim 128 the queries (64 more registers) are read again from shared memory for each key tile.
// Row positions, needed only by tiles at a mask edge, are in shared memory too.
//
// Key tiles: 64 keys, aligned to multiples of 64 positions. Key tiles that no row sees are skipped; in the others, keys
// that no row sees are not read. Keys and values alternate in three buffers: one is multiplied while the next two are
// copied, with one barrier each. 80.5 KiB of shared memory (40.5 with kHeadDim 64) allow two blocks on an SM with 164
// KiB; so do the registers.
//
// Order of sums: key tiles ascending, 16 keys at a time. A key tile that a row does not see changes none of its bits,
// so a row's bits depend on its position and window alone, not on the chunk or on other rows.
//
// Grid: (tiles, kv_heads), 128 threads. Longest tiles first, for the grid's end to be even.
// Smem: (128 + 3 x 64) kHeadDim x sizeof(T) + 128 x 4.
// Bytes: for each sequence and KV head the keys and values that its rows see, once (each tile reads them again, from
// L2); queries and outputs. FLOPs: 4 kHeadDim for each head and pair of row and key that it sees.
// Alignment: 16 bytes.
// Registers: at most 232 (attention_prefill_*_64), 255 (attention_prefill_*_128)
template <class T, uint32_t kHeadDim, class Queries>
DEVICE void attention_prefill(const T* queries, const Cache<T>& cache, T* out, const Sequence* sequences,
                              const uint2* tiles, uint32_t group, uint32_t window) {
    using Layout = TileLayout<kHeadDim>;
    SHARED_MEMORY(shared);
    const uint32_t query_tile = shared_address(shared), ring = query_tile + kQueries * Layout::kRowBytes;
    uint32_t* const positions = reinterpret_cast<uint32_t*>(shared + (kQueries + kBuffers * kKeys) * Layout::kRowBytes);
    const auto buffer_at = [&](uint32_t buffer) { return ring + buffer * kKeys * Layout::kRowBytes; };
    const auto after = [](uint32_t buffer) { return buffer == kBuffers - 1 ? 0 : buffer + 1; };

    grid_dependency_launch();
    grid_dependency_wait();
    const uint2 own = load_global_8(tiles + blockIdx.x);
    if (own.x == kPaddingTile) return;
    const Span sequence = load_span(sequences, own.x);
    if (own.y >= sequence.rows) return;

    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_head = blockIdx.y;
    const uint32_t rows = min(kQueries / group, sequence.rows - own.y);
    const uint32_t first_position = sequence.start + own.y, last_position = first_position + rows - 1;
    const KeyRange visible{first_visible(first_position, window), last_position + 1};
    const uint32_t first_tile = visible.first / kKeys, end_tile = (visible.end + kKeys - 1) / kKeys;
    // Query p of the tile starts at this element of `queries` and `out`.
    const uint32_t first_row = sequence.first_row + own.y;
    const auto element = [&](uint32_t p) {
        const size_t row = first_row + p / group;
        return ((row * cache.kv_heads + kv_head) * group + p % group) * kHeadDim;
    };

    copy_queries<kHeadDim, kThreads, kQueries>(query_tile, queries, rows * group, element);
    WarpPages pages = look_up(cache, sequence.table, visible, first_tile * (kKeys / kUnit), 1);
    const auto copy = [&](const T* source, uint32_t tile, uint32_t buffer) {
        if (tile < end_tile) {
            copy_tile<T, kHeadDim, kThreads, kKeys>(source, cache, kv_head, pages, visible, tile, first_tile,
                                                    buffer_at(buffer));
        }
        copy_async_commit();
    };
    copy(cache.keys, first_tile, 0);
    copy(cache.values, first_tile, 1);

    SoftmaxState states[kRowTiles][2];
    float sums[kRowTiles][kHeadDim / 8][4] = {};
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) states[m][half] = SoftmaxState::none();
    }

    // Position of each query; unused queries take the last row's.
    positions[threadIdx.x] = first_position + min(threadIdx.x / group, rows - 1);
    copy_async_wait<1>();
    block_sync();
    Queries own_queries;
    own_queries.fill(query_tile + warp * kRowTiles * 16 * Layout::kRowBytes, lane);

    for (uint32_t tile = first_tile, buffer = 0; tile < end_tile; tile++) {
        // Both barriers: the oldest copy is complete, and no warp still reads the buffer that is filled next.
        copy_async_wait<1>();
        block_sync();
        if ((tile + 1 - first_tile) % (32 * kUnit / kKeys) == 0) {
            pages = look_up(cache, sequence.table, visible, (tile + 1) * (kKeys / kUnit), 1);
        }
        copy(cache.keys, tile + 1, after(after(buffer)));
        float scores[kRowTiles][kKeys / 8][4];
        multiply_keys<T, kHeadDim, kRowTiles, kKeys>(scores, own_queries, buffer_at(buffer));
        buffer = after(buffer);

        const uint32_t first_key = tile * kKeys;
        if (first_key + kKeys - 1 > first_position || last_position - first_key >= window) {
#pragma unroll
            for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
                for (uint32_t half = 0; half < 2; half++) {
                    const uint32_t position = positions[(warp * kRowTiles + m) * 16 + half * 8 + lane / 4];
                    mask_keys<kKeys>(scores[m], half, position, first_key, window);
                }
            }
        }
        online_softmax_step<kHeadDim, kRowTiles, kKeys>(scores, states, sums, kLog2Scale<kHeadDim>);
        uint32_t weights[kRowTiles][kKeys / 16][4];
        pack_weights<T, kRowTiles, kKeys>(weights, scores);

        copy_async_wait<1>();
        block_sync();
        copy(cache.values, tile + 1, after(after(buffer)));
        multiply_values<T, kHeadDim, kRowTiles, kKeys>(sums, weights, buffer_at(buffer));
        buffer = after(buffer);
    }

    // Outputs replace this warp's queries in shared memory, so that they are stored 16 bytes at a time. No other warp
    // reads those queries, and this warp's lanes read them before the last barrier.
    reduce_rows(states);
#pragma unroll
    for (uint32_t m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const float factor = states[m][half].normaliser();
            const uint32_t p = (warp * kRowTiles + m) * 16 + half * 8 + lane / 4;
#pragma unroll
            for (uint32_t n = 0; n < kHeadDim / 8; n++) {
                const float (&pair)[4] = sums[m][n];
                *reinterpret_cast<uint32_t*>(shared + Layout::offset(p, n) + lane % 4 * 4) =
                    pack<T>(pair[2 * half] * factor, pair[2 * half + 1] * factor);
            }
        }
    }
    warp_sync();
#pragma unroll 4
    for (uint32_t i = lane / Layout::kChunks; i < kRowTiles * 16; i += 32 / Layout::kChunks) {
        const uint32_t p = warp * kRowTiles * 16 + i, chunk = lane % Layout::kChunks;
        if (p < rows * group) {
            store_global_16(out + element(p) + chunk * kVector,
                            *reinterpret_cast<const uint4*>(shared + Layout::offset(p, chunk)));
        }
    }
}

#define ATTENTION_PREFILL_KERNEL(name, T, kHeadDim, Queries)                                                   \
    KERNEL(name, kThreads, 2)                                                                                  \
    (const T* queries, const T* keys, const T* values, T* out, const Sequence* sequences,                      \
     const uint32_t* block_tables, const uint2* tiles, uint32_t kv_heads, uint32_t group, uint32_t page_shift, \
     uint32_t window) {                                                                                        \
        const Cache<T> cache{keys, values, block_tables, kv_heads, page_shift};                                \
        attention_prefill<T, kHeadDim, Queries>(queries, cache, out, sequences, tiles, group, window);         \
    }                                                                                                          \
    REGISTER_KERNEL(name)

// One token, for the macro.
using Held64 = HeldQueries<64, kRowTiles>;

#define ATTENTION_PREFILL_KERNELS(T)                                    \
    ATTENTION_PREFILL_KERNEL(attention_prefill_##T##_64, T, 64, Held64) \
    ATTENTION_PREFILL_KERNEL(attention_prefill_##T##_128, T, 128, SharedQueries<128>)

ATTENTION_PREFILL_KERNELS(bf16)
ATTENTION_PREFILL_KERNELS(f16)
