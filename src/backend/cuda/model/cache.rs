//! The KV cache in device memory.

use std::ops::Range;

use super::super::buffer::{Buffer, SliceMut};
use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::kernels::paged::CacheView;
use super::super::stream::Stream;
use super::memory::Sizes;
use crate::backend::cache_layout::{LayerPlace, layer_places};
use crate::kv::{CacheGeometry, KvFormat, PageId};
use crate::model::ModelSpec;

/// Keys and values of every layer, in the pages of its group, as bytes of their format.
pub(super) struct Cache {
    groups: Vec<Group>,
    /// Location of each layer.
    layers: Vec<LayerPlace>,
    geometry: CacheGeometry,
    /// Bytes of one layer's keys (or values) in a page.
    layer_page_bytes: usize,
}

/// Keys and values of a group's layers, each `[pages, kv_heads, page_size, head_dim]`, layer by layer.
struct Group {
    keys: Buffer<u8>,
    values: Buffer<u8>,
    layers: usize,
}

impl Cache {
    pub(super) fn new(stream: &Stream, spec: &ModelSpec, sizes: &Sizes) -> Result<Cache, CudaError> {
        let (layers, layer_page_bytes) = (layer_places(spec), sizes.layer_page_bytes);
        let group = |(group, pages): (usize, u32)| {
            let count = layers.iter().filter(|place| place.group == group).count();
            let bytes = count * pages as usize * layer_page_bytes;
            Ok(Group { keys: stream.alloc(bytes)?, values: stream.alloc(bytes)?, layers: count })
        };
        let pages = sizes.cache.groups.iter().map(|group| group.pages).enumerate();
        let groups = pages.map(group).collect::<Result<_, CudaError>>()?;
        Ok(Cache { groups, layers, geometry: sizes.cache.clone(), layer_page_bytes })
    }

    pub(super) fn geometry(&self) -> &CacheGeometry {
        &self.geometry
    }

    /// The group of a layer.
    pub(super) fn group(&self, layer: usize) -> usize {
        self.layers[layer].group
    }

    /// One layer, for kernels that read dense keys and values of `T`.
    pub(super) fn layer<T: Element>(&self, layer: usize) -> Result<CacheView<'_, T>, CudaError> {
        let (range, group) = (self.range(layer), self.group(layer));
        let other = || self.other_format::<T>(group);
        if !self.is_dense::<T>(group) {
            return Err(other());
        }
        let Group { keys, values, .. } = &self.groups[group];
        Ok(CacheView {
            keys: keys.planned(range.clone())?.cast().ok_or_else(other)?,
            values: values.planned(range)?.cast().ok_or_else(other)?,
            pages: self.pages(group),
            page_size: self.geometry.page_size.get() as usize,
        })
    }

    /// Keys and values of one layer, for kernels that write dense `T`.
    pub(super) fn layer_mut<T: Element>(
        &mut self,
        layer: usize,
    ) -> Result<(SliceMut<'_, T>, SliceMut<'_, T>), CudaError> {
        let (range, group) = (self.range(layer), self.group(layer));
        let other = self.other_format::<T>(group);
        if !self.is_dense::<T>(group) {
            return Err(other);
        }
        let Group { keys, values, .. } = &mut self.groups[group];
        let (keys, values) = (keys.planned_mut(range.clone())?.cast(), values.planned_mut(range)?.cast());
        keys.zip(values).ok_or(other)
    }

    /// Contents of a page, after all submitted work.
    pub(super) fn export(&self, stream: &Stream, group: usize, page: PageId) -> Result<Vec<u8>, CudaError> {
        let mut bytes = Vec::with_capacity(self.geometry.groups[group].page_bytes as usize);
        let Group { keys, values, .. } = &self.groups[group];
        for range in self.page_ranges(group, page) {
            for buffer in [keys, values] {
                bytes.extend(stream.download(buffer.planned(range.clone())?)?);
            }
        }
        Ok(bytes)
    }

    /// Submits a write of a page; `bytes` has the length of a page.
    pub(super) fn import(
        &mut self,
        stream: &Stream,
        group: usize,
        page: PageId,
        bytes: &[u8],
    ) -> Result<(), CudaError> {
        let ranges = self.page_ranges(group, page);
        let Group { keys, values, .. } = &mut self.groups[group];
        let mut parts = bytes.chunks_exact(self.layer_page_bytes);
        for range in ranges {
            for buffer in [&mut *keys, &mut *values] {
                // Equally many parts and ranges, twice.
                let part = parts.next().unwrap_or_default();
                stream.copy_from_host(part, buffer.planned_mut(range.clone())?)?;
            }
        }
        Ok(())
    }

    /// Fills a page with NaN in every layer: all ones is NaN in every format.
    pub(super) fn poison(&mut self, stream: &Stream, group: usize, page: PageId) -> Result<(), CudaError> {
        let ranges = self.page_ranges(group, page);
        let Group { keys, values, .. } = &mut self.groups[group];
        for range in ranges {
            stream.fill_bytes(keys.planned_mut(range.clone())?, 0xff)?;
            stream.fill_bytes(values.planned_mut(range)?, 0xff)?;
        }
        Ok(())
    }

    fn pages(&self, group: usize) -> usize {
        self.geometry.groups[group].pages as usize
    }

    fn is_dense<T: Element>(&self, group: usize) -> bool {
        self.geometry.groups[group].format == KvFormat::Dense(T::DTYPE)
    }

    /// Error of a kernel that does not support the group's format.
    fn other_format<T: Element>(&self, group: usize) -> CudaError {
        CudaError::Operand {
            kernel: "attention",
            what: "the cache's format",
            found: self.geometry.groups[group].format.to_string(),
            expected: T::DTYPE.to_string(),
        }
    }

    /// A layer's range in the keys and values of its group.
    fn range(&self, layer: usize) -> Range<usize> {
        let LayerPlace { group, index } = self.layers[layer];
        let bytes = self.pages(group) * self.layer_page_bytes;
        index * bytes..(index + 1) * bytes
    }

    /// A page's ranges in the keys and values of its group, layer by layer.
    fn page_ranges(&self, group: usize, page: PageId) -> impl Iterator<Item = Range<usize>> + use<> {
        let (pages, bytes) = (self.pages(group), self.layer_page_bytes);
        (0..self.groups[group].layers).map(move |index| {
            let start = (index * pages + page.0 as usize) * bytes;
            start..start + bytes
        })
    }
}
