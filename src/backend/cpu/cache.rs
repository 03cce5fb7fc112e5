//! Keys and values of every layer in pages, keys and values apart: for each group of layers f32
//! `[layer][page][kv_head][slot][head_dim]`.

use super::memory::{Memory, PageSize};
use crate::backend::BackendError;
use crate::backend::cache_layout::{LayerPlace, layer_places};
use crate::kv::{CacheGeometry, PageId};
use crate::model::ModelSpec;

/// The paged cache. Which position lives where is the caller's business.
pub(crate) struct Cache {
    groups: Vec<Group>,
    /// Where each layer is.
    layers: Vec<LayerPlace>,
    geometry: CacheGeometry,
    kv_heads: usize,
    head_dim: usize,
}

/// Keys and values of the layers of one group.
struct Group {
    keys: Memory,
    values: Memory,
    layers: usize,
}

impl Cache {
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.groups.iter().map(|group| 4 * (group.keys.len() + group.values.len()) as u64).sum()
    }

    /// Room for the pages of `geometry`. Address space alone: the system hands out memory as positions are first
    /// written.
    pub(crate) fn new(spec: &ModelSpec, geometry: CacheGeometry) -> Result<Cache, BackendError> {
        let layers = layer_places(spec);
        let group = |(group, pages): (usize, u32)| {
            let count = layers.iter().filter(|place| place.group == group).count();
            let shape = [count, pages as usize, spec.kv_heads, geometry.page_size.get() as usize, spec.head_dim];
            let zeroed = |what| Memory::zeroed(&shape, PageSize::Small, what, "allow fewer positions or sequences");
            let (keys, values) = (zeroed("the cache of keys")?, zeroed("the cache of values")?);
            Ok(Group { keys, values, layers: count })
        };
        let pages = geometry.groups.iter().map(|group| group.pages).enumerate();
        let groups = pages.map(group).collect::<Result<_, BackendError>>()?;
        Ok(Cache { groups, layers, geometry, kv_heads: spec.kv_heads, head_dim: spec.head_dim })
    }

    pub(crate) fn geometry(&self) -> &CacheGeometry {
        &self.geometry
    }

    /// The group of a layer.
    pub(crate) fn group(&self, layer: usize) -> usize {
        self.layers[layer].group
    }

    /// Elements from one KV head's slots to the next one's, inside a page.
    pub(crate) fn head_stride(&self) -> usize {
        self.geometry.page_size.get() as usize * self.head_dim
    }

    /// Elements from one page to the next, inside a layer.
    pub(crate) fn page_stride(&self) -> usize {
        self.kv_heads * self.head_stride()
    }

    /// Keys and values of one layer and KV head: f32 `[page][..][slot][head_dim]`, pages [`Cache::page_stride`]
    /// apart. Writes through them are the caller's to order.
    pub(crate) fn head(&self, layer: usize, kv_head: usize) -> (*mut f32, *mut f32) {
        let LayerPlace { group, index } = self.layers[layer];
        let Group { keys, values, .. } = &self.groups[group];
        let at = self.page_start(group, index, PageId(0)) + kv_head * self.head_stride();
        debug_assert!(at <= keys.len());
        // `wrapping_add`: with no pages the address is never used.
        (keys.as_ptr().wrapping_add(at), values.as_ptr().wrapping_add(at))
    }

    /// Where a page of the `index`-th layer of a group begins.
    fn page_start(&self, group: usize, index: usize, page: PageId) -> usize {
        (index * self.geometry.groups[group].pages as usize + page.0 as usize) * self.page_stride()
    }

    /// The parts of a page of the cache, [`Cache::page_stride`] elements each: of every layer of its group the keys,
    /// then the values.
    fn parts(&self, group: usize, page: PageId) -> impl Iterator<Item = *mut f32> {
        let Group { keys, values, layers } = &self.groups[group];
        (0..*layers).flat_map(move |index| {
            let start = self.page_start(group, index, page);
            // `wrapping_add`: the page lies in the cache.
            [keys, values].map(|memory| memory.as_ptr().wrapping_add(start))
        })
    }

    /// The contents of a page of the cache.
    pub(crate) fn export(&self, group: usize, page: PageId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.geometry.groups[group].page_bytes as usize);
        for part in self.parts(group, page) {
            // SAFETY: the part lies in the cache, which nobody writes while it is borrowed outside of a forward pass.
            let elements = unsafe { std::slice::from_raw_parts(part, self.page_stride()) };
            bytes.extend_from_slice(bytemuck::cast_slice(elements));
        }
        bytes
    }

    /// Fills a page of the cache with what another one held; `bytes` are as many as a page has.
    pub(crate) fn import(&mut self, group: usize, page: PageId, bytes: &[u8]) {
        let part_bytes = size_of::<f32>() * self.page_stride();
        for (part, bytes) in self.parts(group, page).zip(bytes.chunks_exact(part_bytes)) {
            // SAFETY: the part lies in the cache, which is borrowed exclusively.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), part.cast::<u8>(), part_bytes) };
        }
    }

    /// Fills a page of the cache with NaN in every layer, to show that nobody reads it.
    pub(crate) fn poison(&mut self, group: usize, page: PageId) {
        for part in self.parts(group, page) {
            // SAFETY: the part lies in the cache, which is borrowed exclusively.
            unsafe { std::slice::from_raw_parts_mut(part, self.page_stride()) }.fill(f32::NAN);
        }
    }
}
