//! The buffers that live as long as the model: activations, logits, and the cache of keys and values.

use std::ops::Range;

use bytemuck::Pod;

use super::super::buffer::{Buffer, Slice, SliceMut};
use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::kernels::paged::CacheView;
use super::super::stream::Stream;
use super::memory::Sizes;
use crate::kv::{CacheGeometry, PageId};

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

/// Keys and values of every layer, each `[pages, kv_heads, page_size, head_dim]`, layer after layer.
pub(super) struct Cache<T> {
    keys: Buffer<T>,
    values: Buffer<T>,
    /// Elements of one layer's keys, and of its values.
    layer: usize,
    geometry: CacheGeometry,
}

impl<T: Element> Cache<T> {
    pub(super) fn new(stream: &Stream, sizes: &Sizes, geometry: CacheGeometry) -> Result<Cache<T>, CudaError> {
        let elements = sizes.layers * sizes.layer_cache;
        Ok(Cache { keys: stream.alloc(elements)?, values: stream.alloc(elements)?, layer: sizes.layer_cache, geometry })
    }

    pub(super) fn geometry(&self) -> CacheGeometry {
        self.geometry
    }

    /// One layer, to be read.
    pub(super) fn layer(&self, layer: usize) -> Result<CacheView<'_, T>, CudaError> {
        let range = self.range(layer);
        Ok(CacheView {
            keys: self.keys.planned(range.clone())?,
            values: self.values.planned(range)?,
            pages: self.geometry.pages as usize,
            page_size: self.geometry.page_size as usize,
        })
    }

    /// Keys and values of one layer, to be written.
    pub(super) fn layer_mut(&mut self, layer: usize) -> Result<(SliceMut<'_, T>, SliceMut<'_, T>), CudaError> {
        let range = self.range(layer);
        Ok((self.keys.planned_mut(range.clone())?, self.values.planned_mut(range)?))
    }

    /// Copies a page of the cache to another one in every layer.
    pub(super) fn copy_page(&mut self, stream: &Stream, from: PageId, to: PageId) -> Result<(), CudaError> {
        let Some(elements) = self.layer.checked_div(self.geometry.pages as usize) else { return Ok(()) };
        for start in (0..self.keys.len()).step_by(self.layer.max(1)) {
            let [from, to] = [from, to].map(|page| start + page.0 as usize * elements);
            stream.copy_within(&mut self.keys, from, to, elements)?;
            stream.copy_within(&mut self.values, from, to, elements)?;
        }
        Ok(())
    }

    /// Fills a page of the cache with NaN in every layer: all ones are that in both element types.
    pub(super) fn poison(&mut self, stream: &Stream, page: PageId) -> Result<(), CudaError> {
        let Some(elements) = self.layer.checked_div(self.geometry.pages as usize) else { return Ok(()) };
        for start in (page.0 as usize * elements..self.keys.len()).step_by(self.layer.max(1)) {
            stream.fill_bytes(self.keys.planned_mut(start..start + elements)?, 0xff)?;
            stream.fill_bytes(self.values.planned_mut(start..start + elements)?, 0xff)?;
        }
        Ok(())
    }

    fn range(&self, layer: usize) -> Range<usize> {
        layer * self.layer..(layer + 1) * self.layer
    }
}
