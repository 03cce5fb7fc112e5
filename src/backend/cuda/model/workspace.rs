//! Buffers that live as long as the model, besides weights and cache: activations, logits, attention workspace.

use bytemuck::Pod;

use super::super::buffer::{Buffer, Slice, SliceMut};
use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::stream::Stream;
use super::memory::Sizes;

/// Intermediate results of a step. Rows have the widths of [`Sizes`], padding included.
pub(super) struct Workspace<T> {
    /// The residual stream, `[rows, hidden]`.
    pub hidden: Buffer<T>,
    /// Normalised residual stream, `[rows, hidden]`.
    pub normed: Buffer<T>,
    /// Rotated queries, `[rows, heads * head_dim]`.
    pub queries: Buffer<T>,
    /// Attention output, `[rows, heads * head_dim]`.
    pub attn_out: Buffer<T>,
    /// MLP activations, `[rows, intermediate]`.
    pub intermediate: Buffer<T>,
    /// f32 `[logits_rows, vocab]`.
    pub logits: Buffer<f32>,
    /// Partial results of attention, f32.
    pub partials: Buffer<f32>,
    /// Counters of finished clusters, 0 between launches.
    pub tile_counters: Buffer<u32>,
    pub sizes: Sizes,
}

impl<T: Element> Workspace<T> {
    pub(super) fn new(stream: &Stream, sizes: &Sizes) -> Result<Workspace<T>, CudaError> {
        let rows = sizes.rows;
        Ok(Workspace {
            // Padding is zero and never written.
            hidden: stream.zeroed(rows * sizes.hidden)?,
            normed: stream.zeroed(rows * sizes.hidden)?,
            queries: stream.zeroed(rows * sizes.attn_out)?,
            attn_out: stream.zeroed(rows * sizes.attn_out)?,
            intermediate: stream.zeroed(rows * sizes.intermediate)?,
            logits: stream.zeroed(sizes.logits_rows * sizes.vocab)?,
            partials: stream.zeroed(sizes.attention.partials)?,
            tile_counters: stream.zeroed(sizes.attention.tile_counters)?,
            sizes: sizes.clone(),
        })
    }
}

/// The first `rows` rows of `width` elements.
pub(super) fn rows<T: Pod>(buffer: &Buffer<T>, rows: usize, width: usize) -> Result<Slice<'_, T>, CudaError> {
    buffer.planned(0..rows * width)
}

/// The first `rows` rows of `width` elements, mutable.
pub(super) fn rows_mut<T: Pod>(
    buffer: &mut Buffer<T>,
    rows: usize,
    width: usize,
) -> Result<SliceMut<'_, T>, CudaError> {
    buffer.planned_mut(0..rows * width)
}
