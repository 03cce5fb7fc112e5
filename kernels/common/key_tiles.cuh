// Copies of query tiles, key tiles and value tiles from the paged cache to shared memory in the layout that
// attention.cuh or wgmma reads, and masks.
#pragma once
#include "common/attention.cuh"
#include "common/pages.cuh"

// Starts to copy kQueries queries to shared memory, by a block of kThreads: query p from `element(p)` of `queries` on;
// queries from `count` on are zero.
template <uint32_t kHeadDim, uint32_t kThreads, uint32_t kQueries, class T, class ElementOf>
DEVICE void copy_queries(uint32_t destination, const T* queries, uint32_t count, const ElementOf& element) {
    using Layout = TileLayout<kHeadDim>;
    constexpr uint32_t kStep = kThreads / Layout::kChunks;
    const uint32_t chunk = threadIdx.x % Layout::kChunks;
#pragma unroll 4
    for (uint32_t p = threadIdx.x / Layout::kChunks; p < kQueries; p += kStep) {
        const bool is_query = p < count;
        const T* const source = queries + element(is_query ? p : 0) + chunk * kVector;
        copy_async_16(destination + Layout::offset(p, chunk), source, is_query ? 16 : 0);
    }
}

// Starts to copy rows `tile` kKeys .. of keys or values to shared memory, by a block of kThreads. Rows outside of
// `visible` become zero and are not read: their slots may hold NaN, and a weight of 0 times NaN is NaN. `pages` holds
// the page of each 16-key unit, starting with the first unit of `first_tile`. Rows of a tile are kRowBytes apart,
// with a swizzle of period 8.
template <class T, uint32_t kHeadDim, uint32_t kThreads, uint32_t kKeys, class Layout = TileLayout<kHeadDim>>
DEVICE void copy_tile(const T* source, const Cache<T>& cache, uint32_t kv_head, const WarpPages& pages,
                      const KeyRange& visible, uint32_t tile, uint32_t first_tile, uint32_t destination) {
    constexpr uint32_t kStep = kThreads / Layout::kChunks;  // rows between a thread's copies
    static_assert(kStep % 8 == 0 && kUnit % kStep == 0, "a thread's rows share a swizzle, and a warp's a page");
    const uint32_t chunk = threadIdx.x % Layout::kChunks, first = threadIdx.x / Layout::kChunks;
    const uint32_t shared = destination + Layout::offset(first, chunk);
    const T* const column = source + chunk * kVector;
#pragma unroll
    for (uint32_t i = 0; i < kKeys / kStep; i++) {
        const uint32_t page = pages.page_of((tile - first_tile) * (kKeys / kUnit) + i * kStep / kUnit);
        const uint32_t position = tile * kKeys + i * kStep + first;
        const uint32_t slot = cache.first_slot(page, kv_head) + cache.slot_in_page(position);
        Cache<T>::Kv::copy(shared + i * kStep * Layout::kRowBytes, column + static_cast<size_t>(slot) * kHeadDim,
                           visible.contains(position) ? 16 : 0);
    }
}

// Masks keys that the row at `position` does not see in a 16 x kKeys tile of scores whose first key is `first_key`: row
// g of this lane, or g + 8 where half is 1.
template <uint32_t kKeys>
DEVICE void mask_keys(float (&scores)[kKeys / 8][4], uint32_t half, uint32_t position, uint32_t first_key,
                      uint32_t window) {
#pragma unroll
    for (uint32_t n = 0; n < kKeys / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t key = first_key + n * 8 + threadIdx.x % 4 * 2 + i;
            if (!is_visible(position, key, window)) scores[n][2 * half + i] = kMasked;
        }
    }
}
