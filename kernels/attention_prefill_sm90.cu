// targets: sm_90a
// Attention of many rows of a sequence over its paged cache, on Hopper: prompts, whole or in chunks.
#include "common/key_tiles.cuh"
#include "common/multiply_add.cuh"
#include "common/pipeline.cuh"

static constexpr uint32_t kWarpgroup = 128;                 // threads
static constexpr uint32_t kConsumers = 2;                   // warpgroups that multiply
static constexpr uint32_t kThreads = (1 + kConsumers) * kWarpgroup;
static constexpr uint32_t kConsumerQueries = 64;            // rows of one wgmma
static constexpr uint32_t kQueries = kConsumers * kConsumerQueries;
static constexpr uint32_t kKeys = 128;                      // of a tile, at a multiple of 128
static constexpr uint32_t kStages = 2;                      // of keys, and of values, and of queries
static constexpr uint32_t kProducerRegisters = 56, kConsumerRegisters = 224;
static_assert(kWarpgroup * (kProducerRegisters + kConsumers * kConsumerRegisters) <= 65536, "there are no more");
static constexpr uint32_t kPaddingTile = 0xffffffffu;

// Named barriers: of the producers; of consumer c's turn to ask for products; of consumer c's own four warps.
static constexpr uint32_t kProducers = 1, kTurn = 2, kOwn = kTurn + kConsumers;

// Each ring's consumers: the warps of both warpgroups.
using Stages = Pipeline<kStages>;
static constexpr uint32_t kConsumerWarps = kConsumers * kWarpgroup / 32;

// A tile as wgmma reads it, and as tensor maps with a swizzle of 128 bytes write it: panels of 64 elements, one behind
// the other, in which a row is 128 bytes.
template <uint32_t kHeadDim>
struct PanelLayout {
    static constexpr uint32_t kRows = 128;
    static constexpr uint32_t kRowBytes = 128;
    static constexpr uint32_t kChunks = kHeadDim / kVector;  // of a row
    static constexpr uint32_t kPanels = kHeadDim / 64;
    static constexpr uint32_t kPanelBytes = kRows * kRowBytes;
    static constexpr uint32_t kBytes = kPanels * kPanelBytes;
    // Bytes from the tile's start, which is aligned to 1024, to a chunk of 16.
    DEVICE uint32_t offset(uint32_t row, uint32_t chunk) {
        return chunk / 8 * kPanelBytes + row * kRowBytes + (chunk % 8 ^ row % 8) * 16;
    }
};
static_assert(kQueries == PanelLayout<64>::kRows && kKeys == PanelLayout<64>::kRows, "tiles of all kinds are alike");

// Up to 128 queries of one KV head, consecutive ones of a sequence: what a block does at a time.
struct Item {
    uint32_t queries;         // 0: none
    uint32_t skipped;         // heads of the group, of the first query's row, that are another item's
    uint32_t first_row;       // of the first query,
    uint32_t first_position;  // and where it stands
    uint32_t kv_head;
    // Rows from the first query's to query p's; of those that are left over, to the last one's.
    METHOD uint32_t rows_to(uint32_t p, uint32_t group) const { return (skipped + min(p, queries - 1)) / group; }
    METHOD uint32_t last_position(uint32_t group) const { return first_position + rows_to(kQueries - 1, group); }
    METHOD KeyRange visible(uint32_t group, uint32_t window) const {
        return KeyRange{first_visible(first_position, window), last_position(group) + 1};
    }
};

// Where in shared memory everything is.
template <uint32_t kHeadDim>
struct Memory {
    static constexpr uint32_t kTileBytes = PanelLayout<kHeadDim>::kBytes;
    static constexpr uint32_t kBarriers = 3 * kStages * kTileBytes, kItems = kBarriers + 3 * Stages::kBytes;
    uint32_t start;
    METHOD uint32_t queries(uint32_t stage) const { return start + stage * kTileBytes; }
    METHOD uint32_t keys(uint32_t stage) const { return queries(kStages + stage); }
    METHOD uint32_t values(uint32_t stage) const { return queries(2 * kStages + stage); }
    METHOD Stages query_stages() const { return Stages{start + kBarriers}; }
    METHOD Stages key_stages() const { return Stages{start + kBarriers + Stages::kBytes}; }
    METHOD Stages value_stages() const { return Stages{start + kBarriers + 2 * Stages::kBytes}; }
};

// What a launch is about, beside the tensor maps.
template <class T>
struct Launch {
    const T* queries;
    T* out;
    const Sequence* sequences;
    const uint2* tiles;
    uint32_t tile_count;
    uint32_t group;
    uint32_t window;
};

// Elements from the start of `queries` and `out` to query p of an item.
template <class T>
DEVICE size_t element(const Cache<T>& cache, const Launch<T>& launch, const Item& item, uint32_t p, uint32_t head_dim) {
    const uint32_t query = item.skipped + p;
    const size_t row = item.first_row + query / launch.group;
    return ((row * cache.kv_heads + item.kv_head) * launch.group + query % launch.group) * head_dim;
}

// An item and where its sequence's pages are, as in Span.
struct Found {
    Item item;
    uint32_t table;
};
template <class T>
DEVICE Found find(const Cache<T>& cache, const Launch<T>& launch, uint32_t number) {
    Found found{};
    if (number >= launch.tile_count * cache.kv_heads) return found;
    const uint2 tile = load_global_8(launch.tiles + number / cache.kv_heads);
    if (tile.x == kPaddingTile) return found;
    const Span sequence = load_span(launch.sequences, tile.x);
    const uint32_t first = tile.y / (kQueries / launch.group) * kQueries, in_all = sequence.rows * launch.group;
    if (first >= in_all) return found;
    const uint32_t row = first / launch.group;
    found.item = Item{min(kQueries, in_all - first), first % launch.group, sequence.first_row + row,
                      sequence.start + row, number % cache.kv_heads};
    found.table = sequence.table;
    return found;
}

// The number of a block's item: there and back over the list, so that who has the longest of one round has the shortest
// of the next.
DEVICE uint32_t item_number(uint32_t round) {
    return round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

// The producers' warpgroup: fetches queries, keys and values of one item after the other.
template <class T, uint32_t kHeadDim>
DEVICE void produce(const Cache<T>& cache, const Launch<T>& launch, const TensorMap* key_map,
                    const TensorMap* value_map, const Memory<kHeadDim>& memory, Item* items) {
    using Layout = PanelLayout<kHeadDim>;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool is_first = threadIdx.x == 0;
    const uint32_t in_box = min(1u << cache.page_shift, kKeys);

    Stages::State query_pipe, pipe;
    // What the four warps copied is there for wgmma, and for who waits at `full`.
    const auto hand_over = [&](uint32_t full) {
        fence_proxy_async_shared();
        barrier_sync(kProducers, kWarpgroup);
        if (is_first) mbarrier_arrive(full);
    };
    const auto wait_together = [&](uint32_t empty, uint32_t parity) {
        if (is_first) mbarrier_wait(empty, parity ^ 1, "keys or values empty");
        barrier_sync(kProducers, kWarpgroup);
    };

    if (is_first) fence_proxy_async_global();
    const uint32_t items_in_all = launch.tile_count * cache.kv_heads;
    Found next = find(cache, launch, item_number(0));
    for (uint32_t round = 0; item_number(round) < items_in_all; round++) {
        const Found found = next;
        next = find(cache, launch, item_number(round + 1));
        const Item& item = found.item;
        if (item.queries == 0) continue;
        const KeyRange visible = item.visible(launch.group, launch.window);
        const uint32_t first_tile = visible.first / kKeys, end_tile = (visible.end + kKeys - 1) / kKeys;
        WarpPages pages = look_up(cache, found.table, visible, first_tile * (kKeys / kUnit), 1);

        // Starts to fill a stage; whether with boxes, that count at `full` themselves.
        const auto start = [&](uint32_t destination, const Stages& stages, const TensorMap* map, const T* source,
                               uint32_t tile) {
            const uint32_t first_key = tile * kKeys;
            const bool is_whole = first_key >= visible.first && first_key + kKeys <= visible.end;
            if (!is_whole) {
                wait_together(stages.empty(pipe), pipe.parity);
                copy_tile<T, kHeadDim, kWarpgroup, kKeys, Layout>(source, cache, item.kv_head, pages, visible, tile,
                                                                  first_tile, destination);
            } else if (warp == 0) {
                if (lane == 0) stages.producer_acquire(pipe, Layout::kBytes);
                for (uint32_t key = 0; key < kKeys; key += in_box) {
                    const uint32_t page = pages.page_of(((tile - first_tile) * kKeys + key) / kUnit);
                    const uint32_t slot = cache.first_slot(page, item.kv_head) + cache.slot_in_page(first_key + key);
                    if (lane == 0) {
#pragma unroll
                        for (uint32_t panel = 0; panel < Layout::kPanels; panel++) {
                            tensor_load_2d(destination + panel * Layout::kPanelBytes + key * Layout::kRowBytes, map,
                                           panel * 64, slot, stages.full(pipe));
                        }
                    }
                }
            }
            copy_async_commit();
            return is_whole;
        };
        const auto start_keys = [&](uint32_t tile) {
            return start(memory.keys(pipe.stage), memory.key_stages(), key_map, cache.keys, tile);
        };
        const auto start_values = [&](uint32_t tile) {
            return start(memory.values(pipe.stage), memory.value_stages(), value_map, cache.values, tile);
        };

        wait_together(memory.query_stages().empty(query_pipe), query_pipe.parity);
        constexpr uint32_t kStep = kWarpgroup / Layout::kChunks;
        const uint32_t query_tile = memory.queries(query_pipe.stage);
#pragma unroll 4
        for (uint32_t p = threadIdx.x / Layout::kChunks; p < kQueries; p += kStep) {
            const uint32_t chunk = threadIdx.x % Layout::kChunks;
            const bool is_query = p < item.queries;
            const T* const source = launch.queries + element(cache, launch, item, is_query ? p : 0, kHeadDim);
            copy_async_16(query_tile + Layout::offset(p, chunk), source + chunk * kVector, is_query ? 16 : 0);
        }
        copy_async_commit();
        const bool keys_are_whole = start_keys(first_tile), values_are_whole = start_values(first_tile);
        copy_async_wait<2>();
        if (is_first) items[query_pipe.stage] = item;
        hand_over(memory.query_stages().full(query_pipe));
        query_pipe.advance();
        copy_async_wait<1>();
        if (!keys_are_whole) hand_over(memory.key_stages().full(pipe));
        copy_async_wait<0>();
        if (!values_are_whole) hand_over(memory.value_stages().full(pipe));
        pipe.advance();

        for (uint32_t tile = first_tile + 1; tile < end_tile; tile++) {
            if ((tile - first_tile) % (32 * kUnit / kKeys) == 0) {
                pages = look_up(cache, found.table, visible, tile * (kKeys / kUnit), 1);
            }
            if (!start_keys(tile)) {
                copy_async_wait<0>();
                hand_over(memory.key_stages().full(pipe));
            }
            if (!start_values(tile)) {
                copy_async_wait<0>();
                hand_over(memory.value_stages().full(pipe));
            }
            pipe.advance();
        }
    }
    if (is_first) {
        mbarrier_wait(memory.query_stages().empty(query_pipe), query_pipe.parity ^ 1, "queries empty");
        items[query_pipe.stage] = Item{};
        mbarrier_arrive(memory.query_stages().full(query_pipe));
    }
}

// A descriptor's address, moved on.
DEVICE uint64_t moved(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

// A consumer: scores, weights and sums of its 64 queries of one item after the other.
template <class T, uint32_t kHeadDim>
DEVICE void consume(const Cache<T>& cache, const Launch<T>& launch, const Memory<kHeadDim>& memory,
                    const uint8_t* shared, const Item* items) {
    using Layout = PanelLayout<kHeadDim>;
    const uint32_t consumer = threadIdx.x / kWarpgroup - 1;
    const uint32_t warp = threadIdx.x % kWarpgroup / 32, lane = threadIdx.x % 32;
    const Stages key_stages = memory.key_stages(), value_stages = memory.value_stages();
    constexpr uint32_t kInTurn = kConsumers * kWarpgroup;

    // Consumer 0 is first.
    if (consumer == 1) barrier_arrive(kTurn, kInTurn);
    Stages::State query_pipe, pipe;
    for (;;) {
        memory.query_stages().consumer_wait(query_pipe, "queries full");
        const Item item = items[query_pipe.stage];
        if (item.queries == 0) break;
        const uint32_t first_position = item.first_position, last_position = item.last_position(launch.group);
        const KeyRange visible = item.visible(launch.group, launch.window);
        const uint32_t first_tile = visible.first / kKeys, end_tile = (visible.end + kKeys - 1) / kKeys;
        const uint32_t query_tile = memory.queries(query_pipe.stage);
        const uint64_t queries = matrix_descriptor_128(query_tile + consumer * kConsumerQueries * Layout::kRowBytes);

        // Of this lane's two queries.
        uint32_t positions[2];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            const uint32_t p = consumer * kConsumerQueries + warp * 16 + half * 8 + lane / 4;
            positions[half] = first_position + item.rows_to(p, launch.group);
        }
        SoftmaxState states[1][2] = {{SoftmaxState::none(), SoftmaxState::none()}};
        float scores[1][kKeys / 8][4], sums[1][kHeadDim / 8][4] = {};
        uint32_t weights[1][kKeys / 16][4];
        // As wgmma takes them.
        auto& flat_scores = reinterpret_cast<float (&)[kKeys / 2]>(scores);
        auto& flat_sums = reinterpret_cast<float (&)[kHeadDim / 2]>(sums);

        const auto multiply_keys_of = [&](uint32_t stage) {
            const uint64_t keys = matrix_descriptor_128(memory.keys(stage));
#pragma unroll
            for (uint32_t step = 0; step < kHeadDim / 16; step++) {
                const uint32_t offset = step / 4 * Layout::kPanelBytes + step % 4 * 32;
                multiply_add(T{}, flat_scores, moved(queries, offset), moved(keys, offset), step > 0 ? 1 : 0);
            }
            warpgroup_commit();
        };
        const auto multiply_values_of = [&](uint32_t stage) {
            const uint64_t values = matrix_descriptor_128_mn(memory.values(stage), Layout::kPanelBytes);
#pragma unroll
            for (uint32_t step = 0; step < kKeys / 16; step++) {
                multiply_add(T{}, flat_sums, weights[0][step], moved(values, step * 16 * Layout::kRowBytes));
            }
            warpgroup_commit();
        };
        // Scores of a tile become weights. Whether sums are to be rescaled.
        float factors[1][2];
        const auto weigh_tile = [&](uint32_t tile) {
            const uint32_t first_key = tile * kKeys;
            if (first_key + kKeys - 1 > first_position || last_position - first_key >= launch.window) {
#pragma unroll
                for (uint32_t half = 0; half < 2; half++) {
                    mask_keys<kKeys>(scores[0], half, positions[half], first_key, launch.window);
                }
            }
            return online_softmax_scores<1, kKeys>(scores, states, factors, kLog2Scale<kHeadDim>);
        };
        const auto consumer_release = [&](const Stages& stages, const Stages::State& read) {
            if (lane == 0) stages.consumer_release(read);
        };

        key_stages.consumer_wait(pipe, "keys full");
        warpgroup_fence();
        multiply_keys_of(pipe.stage);
        warpgroup_wait<0>();
        consumer_release(key_stages, pipe);
        weigh_tile(first_tile);
        pack_weights<T, 1, kKeys>(weights, scores);

        for (uint32_t tile = first_tile + 1; tile < end_tile; tile++) {
            const Stages::State before = pipe;
            pipe.advance();
            key_stages.consumer_wait(pipe, "keys full");
            barrier_sync(kTurn + consumer, kInTurn);
            warpgroup_fence();
            multiply_keys_of(pipe.stage);
            value_stages.consumer_wait(before, "values full");
            warpgroup_fence();
            multiply_values_of(before.stage);
            barrier_arrive(kTurn + 1 - consumer, kInTurn);

            warpgroup_wait<1>();
            consumer_release(key_stages, pipe);
            // Not one wait ahead of this branch: see below. Waits want all four warps to branch alike.
            if (barrier_any(kOwn + consumer, kWarpgroup, weigh_tile(tile))) {
                warpgroup_wait<0>();
                rescale<kHeadDim, 1>(sums, factors);
            }
            warpgroup_wait<0>();
            consumer_release(value_stages, before);
            pack_weights<T, 1, kKeys>(weights, scores);
        }
        value_stages.consumer_wait(pipe, "values full");
        warpgroup_fence();
        multiply_values_of(pipe.stage);
        reduce_rows(states);
        warpgroup_wait<0>();
        consumer_release(value_stages, pipe);
        pipe.advance();

        // Outputs take the place of this warp's queries, once all four warps have multiplied those.
        const float factor[2] = {states[0][0].normaliser(), states[0][1].normaliser()};
        const uint32_t own = consumer * kConsumerQueries + warp * 16;
        barrier_sync(kOwn + consumer, kWarpgroup);
#pragma unroll
        for (uint32_t n = 0; n < kHeadDim / 8; n += 2) {
            // Matrices: rows 0-7 and 8-15 of chunk n, then of chunk n + 1.
            const float (&low)[4] = sums[0][n], (&high)[4] = sums[0][n + 1];
            const uint32_t packed[4] = {
                pack<T>(low[0] * factor[0], low[1] * factor[0]), pack<T>(low[2] * factor[1], low[3] * factor[1]),
                pack<T>(high[0] * factor[0], high[1] * factor[0]), pack<T>(high[2] * factor[1], high[3] * factor[1])};
            store_matrix_x4(query_tile + Layout::offset(own + lane % 16, n + lane / 16), packed);
        }
        warp_sync();
        const uint8_t* const outputs = shared + (query_tile - memory.start);
#pragma unroll 4
        for (uint32_t i = lane / Layout::kChunks; i < 16; i += 32 / Layout::kChunks) {
            const uint32_t p = own + i, chunk = lane % Layout::kChunks;
            if (p < item.queries) {
                store_global_16(launch.out + element(cache, launch, item, p, kHeadDim) + chunk * kVector,
                                *reinterpret_cast<const uint4*>(outputs + Layout::offset(p, chunk)));
            }
        }
        warp_sync();
        consumer_release(memory.query_stages(), query_pipe);
        query_pipe.advance();
    }
    // What consumer 1 arrived at for a turn that does not come.
    if (consumer == 0) barrier_sync(kTurn, kInTurn);
}

// Computes: out[r, h, :] = sum over keys k that row r sees of p[k] v[k, h / group, :],
// p = softmax over k of q[r, h, :] . k[k, h / group, :] / sqrt(kHeadDim)
// Shapes:
//   queries, out    T [rows, kv_heads group, kHeadDim]
//   keys, values    T [pages, kv_heads, page_size, kHeadDim], page_size = 1 << page_shift >= 16; a row's own key and
//                   value are there already
//   sequences       [.]; block_tables u32 [.]; see common/pages.cuh
//   tiles           [tile_count] (sequence, f): the queries of the sequence, for each KV head, from number
//                   128 (f / floor(128 / group)) on; sequence 0xffffffff, or no such queries: nothing to do
//   window          a row at position q sees keys q - window + 1 .. q; 2^31 for all up to q
//   key_map         `keys` as [pages kv_heads page_size, kHeadDim], a box of min(page_size, 128) rows and 64 elements,
//                   swizzled in 128 bytes; value_map likewise
// all written by earlier work on the stream.
//
// An item is a tile for one KV head: 128 queries, numbered as the rows' heads of that KV head come, row by row. Query p
// of a sequence is row p / group, head p % group, so keys and values are loaded once for all heads of a group, and an
// item may begin and end within a row: all 128 are filled for any group. Those that are left over at a sequence's end
// are zeros, computed and not stored.
//
// Three warpgroups. The producers fetch; each of two consumers multiplies 64 queries, one wgmma's rows, by tiles of 128
// keys. Both read the same keys and values: 64 KiB of them, for kHeadDim 128, bring 8.4 MFLOP, 2048 cycles of a
// SM's tensor cores, which is 32 bytes a cycle from L2. wgmma reads 4 KiB of keys and 2 KiB of queries for
// 64 cycles of work, 96 of the 128 bytes a cycle that shared memory has; 64 for values, with weights in registers.
//
// The exponentials of those 2048 cycles, 128 x 128 at 16 a cycle, take 1024 more, and the rest of the softmax about as
// much on other units. It is done beside the multiplication in two ways. Within a consumer: the scores of a tile are
// asked for, then the product of the weights before with their values, and the softmax of the new scores runs under the
// second. Between the two: they take turns in asking (kTurn), so that while one is at its softmax the other's products
// run. The softmax must not be left behind the wait for the second product: ptxas moves that wait up as far as its
// block of code goes, so a branch that depends on the softmax of all four warps is before it.
//
// Registers of a consumer: 64 scores, kHeadDim / 2 sums, 32 weights, and what the softmax needs: 224, which leaves 56
// for each of the producers, 128 x (56 + 2 x 224) of 65536.
//
// Whole tiles of keys come by TMA, one box a page and panel, asked for by one thread. Of a tile at an edge, the keys
// that no row of the item sees must not be read (their slots may hold anything, and 0 times NaN is NaN): the producers'
// four warps copy it by cp.async, with zeros for those, and fence it for wgmma. Queries come likewise. Scores are
// masked only in tiles of which some row does not see some key; tiles of which no row sees any are not touched.
//
// Rings of two stages each for queries, keys and values: 6 tiles of 128 x kHeadDim, 192 KiB (kHeadDim 64: 96), one
// block on an SM. 64 KiB are under way while 64 are multiplied. Queries have two, for the next item's to be
// there when the last one's outputs, which take the place of its queries on their way out, are stored.
//
// Grid: up to one block an SM, each of which takes every gridDim.x-th item (item_number), 384 threads. Items
// are tile by tile, the KV heads of each side by side; the longest tiles first.
//
// Order of a row's sums: tiles of 128 keys ascending from a multiple of 128; of scores 16 elements of kHeadDim at a
// time; of weighted values 16 keys at a time; of weights the columns of each of four lanes ascending, over all tiles,
// then the four. A tile of which the row sees nothing changes no bit of it, so its bits depend on its position and
// window alone: not on the chunk, nor on the rows beside it, nor on the number of blocks.
//
// Smem: 2 x (3 x 128 kHeadDim x sizeof(T) + 3 x 16 + sizeof(Item)).
// Bytes: for each sequence and KV head the keys and values that its rows see, once (each item reads them again, from
// L2); queries and outputs. FLOPs: 4 kHeadDim for each head and pair of row and key that it sees.
// Alignment: 16 bytes.
// Registers: at most 168 (attention_prefill_sm90_*)
template <class T, uint32_t kHeadDim>
DEVICE void attention_prefill_sm90(const Cache<T>& cache, const Launch<T>& launch, const TensorMap* key_map,
                                   const TensorMap* value_map) {
    SHARED_MEMORY(shared);
    const Memory<kHeadDim> memory{shared_address(shared)};
    Item* const items = reinterpret_cast<Item*>(shared + Memory<kHeadDim>::kItems);
    if (threadIdx.x == 0) {
        tensor_map_prefetch(key_map);
        tensor_map_prefetch(value_map);
        memory.query_stages().init(kConsumerWarps);
        memory.key_stages().init(kConsumerWarps);
        memory.value_stages().init(kConsumerWarps);
        mbarrier_init_fence();
    }
    grid_dependency_launch();
    block_sync();
    grid_dependency_wait();
    if (threadIdx.x < kWarpgroup) {
        warpgroup_registers_decrease<kProducerRegisters>();
        produce<T, kHeadDim>(cache, launch, key_map, value_map, memory, items);
    } else {
        warpgroup_registers_increase<kConsumerRegisters>();
        consume<T, kHeadDim>(cache, launch, memory, shared, items);
    }
}

#define ATTENTION_PREFILL_SM90_KERNEL(T, kHeadDim)                                                             \
    KERNEL(attention_prefill_sm90_##T##_##kHeadDim, kThreads, 1)                                               \
    (const T* queries, const T* keys, const T* values, T* out, const Sequence* sequences,                      \
     const uint32_t* block_tables, const uint2* tiles, uint32_t tile_count, uint32_t kv_heads, uint32_t group, \
     uint32_t page_shift, uint32_t window, const __grid_constant__ TensorMap key_map,                          \
     const __grid_constant__ TensorMap value_map) {                                                            \
        const Cache<T> cache{keys, values, block_tables, kv_heads, page_shift};                                \
        const Launch<T> launch{queries, out, sequences, tiles, tile_count, group, window};                     \
        attention_prefill_sm90<T, kHeadDim>(cache, launch, &key_map, &value_map);                              \
    }                                                                                                          \
    REGISTER_KERNEL(attention_prefill_sm90_##T##_##kHeadDim)

ATTENTION_PREFILL_SM90_KERNEL(bf16, 64)
ATTENTION_PREFILL_SM90_KERNEL(bf16, 128)
ATTENTION_PREFILL_SM90_KERNEL(f16, 64)
ATTENTION_PREFILL_SM90_KERNEL(f16, 128)
