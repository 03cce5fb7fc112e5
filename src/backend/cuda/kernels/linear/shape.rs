//! What a product is: its sizes, what happens to its sums, and what it reads. The kernels of each algorithm and the
//! front door to them share these.

use super::super::super::buffer::Slice;
use super::super::super::work::Work;
use super::super::{BiasTerm, VECTOR, WeightMatrix};
use crate::model::WeightFormat;

/// The longest sum: the kernels count k in 32 bits, some steps beyond the end.
pub const MAX_K: usize = i32::MAX as usize & !(VECTOR - 1);

/// The epilogues of [`Head`](super::Head) and of [`QkvProjection`](super::QkvProjection) in the names of kernels.
pub const LOGITS: &str = "logits";
/// See [`LOGITS`].
pub const BIAS_ROPE_KV: &str = "bias_rope_kv";

/// What happens to a sum of a [`Projection`](super::Projection) before it is rounded and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `gelu(sum + bias)`, the tanh variant.
    BiasGelu,
    /// `out + sum + bias`: the residual stream, updated in place.
    BiasResidual,
}

impl Epilogue {
    /// Its name in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Epilogue::BiasGelu => "bias_gelu",
            Epilogue::BiasResidual => "bias_residual",
        }
    }
}

/// GemmSizes of one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmShape {
    /// Rows of activations and of the output.
    pub m: usize,
    /// Columns of the output: rows of the weights. A multiple of 8.
    pub n: usize,
    /// Elements of a row of activations and of weights. A multiple of 8, [`MAX_K`] at the most.
    pub k: usize,
}

impl GemmShape {
    /// Work of a [`Projection`](super::Projection): weights in their format, activations, bias and residual read once,
    /// the output written once, all but the weights of 16 bits.
    pub fn work(&self, weights: &WeightFormat, epilogue: Epilogue, bias: BiasTerm) -> Work {
        let output = self.m * self.n;
        let residual = if epilogue == Epilogue::BiasResidual { output } else { 0 };
        self.of(weights, 2 * (self.bias(bias) + residual), 2 * output)
    }

    /// Work of a [`Head`](super::Head): weights in their format and activations of 16 bits read once, logits of 32 bits
    /// written once.
    pub fn logits_work(&self, weights: &WeightFormat) -> Work {
        self.of(weights, 0, 4 * self.m * self.n)
    }

    /// Tiles of `m` x `n` down and across the output, and in all.
    pub(in super::super) fn tiles(&self, m: u32, n: u32) -> (u64, u64, u64) {
        let tiles = |size: usize, tile: u32| (size as u64).div_ceil(u64::from(tile));
        let (down, across) = (tiles(self.m, m), tiles(self.n, n));
        (down, across, down.saturating_mul(across))
    }

    pub(super) fn bias(&self, bias: BiasTerm) -> usize {
        if bias == BiasTerm::Present { self.n } else { 0 }
    }

    pub(super) fn of(&self, weights: &WeightFormat, bytes_read_besides: usize, bytes_written: usize) -> Work {
        let GemmShape { m, n, k } = *self;
        Work {
            bytes_read: weights.bytes(n, k) + (2 * m * k + bytes_read_besides) as u64,
            bytes_written: bytes_written as u64,
            flops: 2 * (m * n * k) as u64,
        }
    }
}

/// What a product reads.
#[derive(Clone, Copy)]
pub struct LinearInputs<'a, T> {
    /// Activations, `[m, k]`.
    pub x: Slice<'a, T>,
    /// Weights, `[n, k]`; no kernel writes them.
    pub weights: WeightMatrix<'a>,
    /// `[n]`, or none; no kernel writes it.
    pub bias: Option<Slice<'a, T>>,
}
