//! The buffers that live as long as the model beside weights and cache: activations, logits, workspaces.

use bytemuck::Pod;

use super::super::buffer::{Buffer, Slice, SliceMut};
use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::stream::Stream;
use super::memory::Sizes;

/// What a step computes on its way. Every row is as wide as [`Sizes`] says, padding included.
pub(super) struct Workspace<T> {
    /// The residual stream, `[rows, hidden]`.
    pub hidden: Buffer<T>,
    /// The residual stream normalised, `[rows, hidden]`.
    pub normed: Buffer<T>,
    /// Rotated queries, `[rows, heads * head_dim]`.
    pub queries: Buffer<T>,
    /// What attention returns, `[rows, heads * head_dim]`.
    pub attn_out: Buffer<T>,
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
            queries: stream.zeroed(rows * sizes.attn_out)?,
            attn_out: stream.zeroed(rows * sizes.attn_out)?,
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
