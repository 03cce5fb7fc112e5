//! Keys and values of every layer in pages: f32 `[layer][page][kv_head][slot][head_dim]`, keys and values apart.

use std::num::NonZeroU32;

use super::memory::{Memory, Portions};
use crate::backend::BackendError;
use crate::kv::{CacheGeometry, PageId};
use crate::model::ModelSpec;

/// The paged cache. Which position lives where is the caller's business.
pub(crate) struct Cache {
    keys: Memory,
    values: Memory,
    geometry: CacheGeometry,
    kv_heads: usize,
    head_dim: usize,
}

impl Cache {
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> u64 {
        4 * (self.keys.len() + self.values.len()) as u64
    }

    /// Bytes of one page, of all layers.
    pub(crate) fn page_bytes(spec: &ModelSpec, page_size: NonZeroU32) -> u64 {
        2 * 4 * (spec.layers.len() * spec.kv_heads * spec.head_dim) as u64 * u64::from(page_size.get())
    }

    /// Room for `pages` pages. Address space alone: the system hands out memory as positions are first written.
    pub(crate) fn new(spec: &ModelSpec, page_size: NonZeroU32, pages: u32) -> Result<Cache, BackendError> {
        let shape = [spec.layers.len(), pages as usize, spec.kv_heads, page_size.get() as usize, spec.head_dim];
        let zeroed = |what| Memory::zeroed(&shape, Portions::Small, what, "allow fewer positions or sequences");
        Ok(Cache {
            keys: zeroed("the cache of keys")?,
            values: zeroed("the cache of values")?,
            geometry: CacheGeometry { page_size: page_size.get(), pages },
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
        })
    }

    pub(crate) fn geometry(&self) -> CacheGeometry {
        self.geometry
    }

    /// Elements from one KV head's slots to the next one's, inside a page.
    pub(crate) fn head_stride(&self) -> usize {
        self.geometry.page_size as usize * self.head_dim
    }

    /// Elements from one page to the next, inside a layer.
    pub(crate) fn page_stride(&self) -> usize {
        self.kv_heads * self.head_stride()
    }

    /// Keys and values of one layer and KV head: f32 `[page][..][slot][head_dim]`, pages [`Cache::page_stride`]
    /// apart. Writes through them are the caller's to order.
    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> (*mut f32, *mut f32) {
        let at = layer * self.geometry.pages as usize * self.page_stride() + kv_head * self.head_stride();
        debug_assert!(at <= self.keys.len());
        // `wrapping_add`: with no pages the address is never used.
        (self.keys.as_ptr().wrapping_add(at), self.values.as_ptr().wrapping_add(at))
    }

    /// Copies a page of the cache to another one in every layer. Both are pages of the cache.
    pub(crate) fn copy_page(&mut self, from: PageId, to: PageId) {
        let stride = self.page_stride();
        let layers = self.keys.len() / stride / self.geometry.pages as usize;
        for layer in 0..layers {
            let first = layer * self.geometry.pages as usize;
            let [source, destination] = [from, to].map(|page| (first + page.0 as usize) * stride);
            for memory in [&self.keys, &self.values] {
                let memory = memory.as_ptr();
                // SAFETY: both pages lie in the cache, which is borrowed exclusively; a page is copied to itself or to
                // one that it does not overlap.
                unsafe { std::ptr::copy(memory.add(source), memory.add(destination), stride) };
            }
        }
    }

    /// Fills a page of the cache with NaN in every layer, to show that nobody reads it.
    pub(crate) fn poison(&mut self, page: PageId) {
        let stride = self.page_stride();
        let layers = self.keys.len() / stride / self.geometry.pages as usize;
        for layer in 0..layers {
            let start = (layer * self.geometry.pages as usize + page.0 as usize) * stride;
            for memory in [&self.keys, &self.values] {
                // SAFETY: the page lies in the cache, which is borrowed exclusively.
                unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().add(start), stride) }.fill(f32::NAN);
            }
        }
    }
}
