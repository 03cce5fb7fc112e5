//! The buffers that live as long as the model: activations, logits, and the cache of keys and values.

use std::ops::Range;

use bytemuck::Pod;

use super::super::buffer::{Buffer, Slice, SliceMut};
use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::kernels::paged::CacheView;
use super::super::stream::Stream;
use super::memory::Sizes;
use crate::backend::cache_layout::{LayerPlace, layer_places};
use crate::kv::{CacheGeometry, PageId};
use crate::model::ModelSpec;

/// What a step computes on its way. Every row is as wide as [`Sizes`] says, padding included.
pub(super) struct Workspace<T> {
    /// The residual stream, `[rows, hidden]`.
    pub hidden: Buffer<T>,
    /// The residual stream normalised, `[rows, hidden]`.
    pub normed: Buffer<T>,
    /// Rotated queries, `[rows, heads * head_dim]`.
    pub queries: Buffer<T>,
    /// What attention returns, `[rows, heads * head_dim]`.
    pub attended: Buffer<T>,
    /// Activations inside the MLP, `[rows, intermediate]`.
    pub inner: Buffer<T>,
    /// f32 `[logits_rows, vocab]`.
    pub logits: Buffer<f32>,
    /// Attention's partial results, f32.
    pub partials: Buffer<f32>,
    /// Attention's counters of clusters that have stored their results, 0 between launches.
    pub arrivals: Buffer<u32>,
    pub sizes: Sizes,
}

impl<T: Element> Workspace<T> {
    pub(super) fn new(stream: &Stream, sizes: &Sizes) -> Result<Workspace<T>, CudaError> {
        let rows = sizes.rows;
        Ok(Workspace {
            // What no kernel writes is padding, and padding is zero.
            hidden: stream.zeroed(rows * sizes.hidden)?,
            normed: stream.zeroed(rows * sizes.hidden)?,
            queries: stream.zeroed(rows * sizes.attended)?,
            attended: stream.zeroed(rows * sizes.attended)?,
            inner: stream.zeroed(rows * sizes.inner)?,
            logits: stream.zeroed(sizes.logits_rows * sizes.vocab)?,
            partials: stream.zeroed(sizes.attention.partials)?,
            arrivals: stream.zeroed(sizes.attention.arrivals)?,
            sizes: sizes.clone(),
        })
    }
}

/// The first `rows` rows of `width` elements, to be read.
pub(super) fn rows<T: Pod>(buffer: &Buffer<T>, rows: usize, width: usize) -> Result<Slice<'_, T>, CudaError> {
    buffer.planned(0..rows * width)
}

/// The first `rows` rows of `width` elements, to be written.
pub(super) fn rows_mut<T: Pod>(
    buffer: &mut Buffer<T>,
    rows: usize,
    width: usize,
) -> Result<SliceMut<'_, T>, CudaError> {
    buffer.planned_mut(0..rows * width)
}

/// Keys and values of every layer, in the pages of its group.
pub(super) struct Cache<T> {
    groups: Vec<Group<T>>,
    /// Where each layer is.
    layers: Vec<LayerPlace>,
    geometry: CacheGeometry,
    /// Elements of a layer's keys in a page, and of its values.
    layer_page: usize,
}

/// Keys and values of the layers of one group, each `[pages, kv_heads, page_size, head_dim]`, layer after layer.
struct Group<T> {
    keys: Buffer<T>,
    values: Buffer<T>,
    layers: usize,
}

impl<T: Element> Cache<T> {
    pub(super) fn new(stream: &Stream, spec: &ModelSpec, sizes: &Sizes) -> Result<Cache<T>, CudaError> {
        let (layers, layer_page) = (layer_places(spec), sizes.layer_page);
        let group = |(group, pages): (usize, u32)| {
            let count = layers.iter().filter(|place| place.group == group).count();
            let elements = count * pages as usize * layer_page;
            Ok(Group { keys: stream.alloc(elements)?, values: stream.alloc(elements)?, layers: count })
        };
        let pages = sizes.cache.groups.iter().map(|group| group.pages).enumerate();
        let groups = pages.map(group).collect::<Result<_, CudaError>>()?;
        Ok(Cache { groups, layers, geometry: sizes.cache.clone(), layer_page })
    }

    pub(super) fn geometry(&self) -> &CacheGeometry {
        &self.geometry
    }

    /// The group of a layer.
    pub(super) fn group(&self, layer: usize) -> usize {
        self.layers[layer].group
    }

    /// One layer, to be read.
    pub(super) fn layer(&self, layer: usize) -> Result<CacheView<'_, T>, CudaError> {
        let (range, group) = (self.range(layer), self.group(layer));
        let Group { keys, values, .. } = &self.groups[group];
        Ok(CacheView {
            keys: keys.planned(range.clone())?,
            values: values.planned(range)?,
            pages: self.pages(group),
            page_size: self.geometry.page_size.get() as usize,
        })
    }

    /// Keys and values of one layer, to be written.
    pub(super) fn layer_mut(&mut self, layer: usize) -> Result<(SliceMut<'_, T>, SliceMut<'_, T>), CudaError> {
        let (range, group) = (self.range(layer), self.group(layer));
        let Group { keys, values, .. } = &mut self.groups[group];
        Ok((keys.planned_mut(range.clone())?, values.planned_mut(range)?))
    }

    /// The contents of a page of the cache, once the work given before is done.
    pub(super) fn export(&self, stream: &Stream, group: usize, page: PageId) -> Result<Vec<u8>, CudaError> {
        let mut bytes = Vec::with_capacity(self.geometry.groups[group].page_bytes as usize);
        let Group { keys, values, .. } = &self.groups[group];
        for range in self.page_ranges(group, page) {
            for buffer in [keys, values] {
                bytes.extend_from_slice(bytemuck::cast_slice(&stream.download(buffer.planned(range.clone())?)?));
            }
        }
        Ok(bytes)
    }

    /// Fills a page of the cache with what another one held; `bytes` are as many as a page has.
    pub(super) fn import(
        &mut self,
        stream: &Stream,
        group: usize,
        page: PageId,
        bytes: &[u8],
    ) -> Result<(), CudaError> {
        let mut elements = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
        let ranges = self.page_ranges(group, page);
        let Group { keys, values, .. } = &mut self.groups[group];
        let mut parts = elements.chunks_exact(self.layer_page);
        for range in ranges {
            for buffer in [&mut *keys, &mut *values] {
                // As many parts as there are ranges, twice.
                let part = parts.next().unwrap_or_default();
                stream.copy_from_host(part, buffer.planned_mut(range.clone())?)?;
            }
        }
        Ok(())
    }

    /// Fills a page of the cache with NaN in every layer: all ones are that in both element types.
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

    /// Where a layer lies in the keys and in the values of its group.
    fn range(&self, layer: usize) -> Range<usize> {
        let LayerPlace { group, index } = self.layers[layer];
        let elements = self.pages(group) * self.layer_page;
        index * elements..(index + 1) * elements
    }

    /// Where a page lies in the keys and in the values of its group, layer by layer.
    fn page_ranges(&self, group: usize, page: PageId) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (pages, elements) = (self.pages(group), self.layer_page);
        (0..self.groups[group].layers).map(move |index| {
            let start = (index * pages + page.0 as usize) * elements;
            start..start + elements
        })
    }
}
