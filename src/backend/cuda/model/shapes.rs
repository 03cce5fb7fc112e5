//! Launch shapes for a network and a step.

use std::num::NonZeroU32;

use super::super::Properties;
use super::super::kernels::attention_batch_invariant::{BatchInvariantShape, Division, SPLIT_LEN};
use super::super::kernels::attention_decode::{DecodeShape, Variant, split_len};
use super::super::kernels::norm::NormVariant;
use super::super::kernels::paged::Heads;
use crate::model::{ModelSpec, NormKind};

/// Rows of the buckets. Up to 16 rows use one kind of kernel, bound by reading the weights; beyond, the spacing limits
/// padding.
pub(super) const BUCKETS: [usize; 17] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256];

/// The largest bucket of at most `rows` rows; 1 if there is none.
pub(super) fn largest_bucket(rows: usize) -> usize {
    BUCKETS.into_iter().rev().find(|bucket| *bucket <= rows).unwrap_or(1)
}

/// The attention heads of a network.
pub(super) fn heads(spec: &ModelSpec) -> Heads {
    Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim }
}

/// A layer's window as launchers take it.
pub(super) fn window_len(window: Option<NonZeroU32>) -> Option<usize> {
    window.map(|window| window.get() as usize)
}

/// The norm kernel's variant.
pub(super) fn norm_variant(kind: NormKind) -> NormVariant {
    match kind {
        NormKind::LayerNorm => NormVariant::Layer,
        NormKind::RmsNorm => NormVariant::Rms,
    }
}

/// Decode attention for layers with a window, in a step of `rows` rows and `sequences` sequences.
pub(super) fn decode_shape(
    rows: usize,
    sequences: usize,
    spec: &ModelSpec,
    window: Option<NonZeroU32>,
    device: &Properties,
) -> DecodeShape {
    let (heads, window, positions) = (heads(spec), window_len(window), spec.max_positions);
    let sm_count = device.sm_count as usize;
    let split_len = split_len(Variant::of(device), sequences, &heads, window, positions, sm_count);
    DecodeShape { rows, sequences, heads, window, positions, split_len }
}

/// Batch-invariant attention for layers with a window, over `tiles` tiles of a step of `rows` rows.
pub(super) fn batch_invariant_shape(
    rows: usize,
    tiles: usize,
    division: Division,
    spec: &ModelSpec,
    window: Option<NonZeroU32>,
) -> BatchInvariantShape {
    BatchInvariantShape {
        rows,
        tiles,
        heads: heads(spec),
        window: window_len(window),
        positions: spec.max_positions,
        split_len: SPLIT_LEN,
        division,
    }
}
