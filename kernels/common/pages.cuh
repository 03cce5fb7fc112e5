// The paged KV cache as kernels see it. Mirrored by src/backend/cuda/kernels/paged.rs.
#pragma once
#include "common/vector.cuh"

// One sequence of a step: rows first_row .. first_row + rows of the step, at positions start .. start + rows. Padding
// has no rows. Logical block b, with positions from b page_size on, is in page block_tables[table + b - first_block];
// earlier blocks have left the window.
struct Sequence {
    uint32_t first_row;
    uint32_t rows;
    uint32_t start;
    uint32_t first_block;
    uint32_t table;
    uint32_t unused[3];
};
static_assert(sizeof(Sequence) == 32, "as paged.rs lays it out");

// A sequence's rows and positions, and the (virtual) entry of block_tables for its logical block 0.
struct Span {
    uint32_t first_row;
    uint32_t rows;
    uint32_t start;
    uint32_t table;
};
DEVICE Span load_span(const Sequence* sequences, uint32_t index) {
    const uint4 head = load_global_16(sequences + index);
    const uint32_t table = load_global_4(&sequences[index].table);
    return Span{head.x, head.y, head.z, table - head.w};
}

// The window of full attention; also the widest one.
static constexpr uint32_t kNoWindow = 0x80000000u;

// Whether a query sees a key: the key is not later, and less than `window` before it. Positions are below 2^31, so the
// distance of a later key wraps to at least 2^31.
DEVICE bool is_visible(uint32_t query, uint32_t key, uint32_t window) { return query - key < window; }

// The first key that a query sees.
DEVICE uint32_t first_visible(uint32_t query, uint32_t window) { return query < window ? 0 : query - window + 1; }

// Positions first .. end.
struct KeyRange {
    uint32_t first;
    uint32_t end;
    METHOD bool contains(uint32_t position) const { return position - first < end - first; }
};

// How keys and values lie in the pages of the cache. A type of it has
//   Element                    what pages are arrays of
//   at<kHeadDim>(slot, chunk)  the element that chunk `chunk` of a row's kVector columns begins at, for a slot of all pages
//                              and heads
//   copy(shared, from, bytes)  starts to copy a chunk to shared memory as the attention kernels multiply it: 16 bytes of
//                              it, or none and zeros
// Dense: rows of kHeadDim elements of the queries' type.
template <class T>
struct DenseKv {
    using Element = T;
    template <uint32_t kHeadDim>
    DEVICE size_t at(size_t slot, uint32_t chunk) {
        return slot * kHeadDim + chunk * kVector;
    }
    DEVICE void copy(uint32_t shared, const T* from, uint32_t bytes) { copy_async_16(shared, from, bytes); }
};

// Keys and values of one layer, each T [pages][kv_heads][page_size][head_dim], page_size = 1 << page_shift.
template <class T>
struct Cache {
    using Kv = DenseKv<T>;
    const typename Kv::Element* keys;
    const typename Kv::Element* values;
    const uint32_t* block_tables;
    uint32_t kv_heads;
    uint32_t page_shift;

    // Row of `keys` and `values` that holds the first slot of a head in a page.
    METHOD uint32_t first_slot(uint32_t page, uint32_t kv_head) const {
        return (page * kv_heads + kv_head) << page_shift;
    }
    // Slot of a position in its page.
    METHOD uint32_t slot_in_page(uint32_t position) const { return position & ((1u << page_shift) - 1); }
};

// Pages are looked up in units of 16 aligned keys, the smallest page size. A warp holds the pages of 32 units, one per
// lane: a lookup is a shuffle, and memory is read once per 32 units. Unit i of the warp is positions 16 (first + i
// stride) ...
static constexpr uint32_t kUnit = 16;

struct WarpPages {
    uint32_t page;
    // The page of unit `index` modulo 32. All lanes call it with the same index.
    METHOD uint32_t page_of(uint32_t index) const { return shuffle_from(page, index % 32); }
};

// Looks up the pages of units first, first + stride, ... of a sequence, one per lane; `table` is as in its Span.
// Positions are clamped to `visible`, so that only held blocks are looked up.
template <class T>
DEVICE WarpPages look_up(const Cache<T>& cache, uint32_t table, const KeyRange& visible, uint32_t first,
                         uint32_t stride) {
    const uint32_t position = (first + threadIdx.x % 32 * stride) * kUnit;
    const uint32_t clamped = min(max(position, visible.first), visible.end - 1);
    // In 32 bits: `table` may be virtual, before the array's start.
    return WarpPages{load_global_4(cache.block_tables + (table + (clamped >> cache.page_shift)))};
}
