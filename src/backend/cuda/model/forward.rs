//! The forward pass: submits each [`Op`] of a step's [`Program`](super::program::Program) to the stream.

use std::ops::Range;

use bytemuck::Pod;

use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::kernels::attention_batch_invariant::{AttentionBatchInvariant, Division};
use super::super::kernels::attention_decode::{AttentionDecode, DecodeWorkspace};
use super::super::kernels::attention_prefill::AttentionPrefill;
use super::super::kernels::embed::Embed;
use super::super::kernels::gemv_normed::{Matrix, NormedGemv, NormedRows};
use super::super::kernels::linear::{
    Epilogue, GemmShape, Head, LinearInputs, Projection, QkvOutputs, QkvProjection, QkvRows, QkvShape,
};
use super::super::kernels::norm::Norm;
use super::super::kernels::paged::AttentionInputs;
use super::super::layout::LinearLayout;
use super::super::weights::{LinearWeights, RopeTable, Weights};
use super::super::{Algorithms, Buffer, Device, Slice, Stream};
use super::attention::is_batch_invariant;
use super::cache::Cache;
use super::program::{Launch, LinearOp, NormOp, Op, ResidualInput};
use super::shapes::norm_variant;
use super::step::{GroupLayout, StepLayout, StepShape};
use super::workspace::{Workspace, rows, rows_mut};
use crate::backend::Determinism;
use crate::model::ModelSpec;

/// Attention kernels.
enum Attention<T> {
    /// Decode or prefill, by the number of rows of a sequence.
    Fast { decode: AttentionDecode<T>, prefill: AttentionPrefill<T> },
    /// One kernel for all rows.
    BatchInvariant(AttentionBatchInvariant<T>),
}

impl<T: Element> Attention<T> {
    fn load(device: &Device, head_dim: usize, determinism: Determinism) -> Result<Attention<T>, CudaError> {
        if is_batch_invariant(determinism, device.properties()) {
            return AttentionBatchInvariant::load(device, head_dim).map(Attention::BatchInvariant);
        }
        let decode = AttentionDecode::load(device, head_dim)?;
        Ok(Attention::Fast { decode, prefill: AttentionPrefill::load(device, head_dim)? })
    }
}

/// The kernels of a forward pass.
pub(super) struct Kernels<T> {
    embed: Embed<T>,
    norm: Norm<T>,
    /// Linear layers fused with the norm before them.
    normed: NormedGemv<T>,
    qkv: QkvProjection<T>,
    attention: Attention<T>,
    /// Up projection.
    gelu: Projection<T>,
    /// Output and down projection, added to the residual stream.
    residual: Projection<T>,
    head: Head<T>,
    algorithms: Algorithms,
}

impl<T: Element> Kernels<T> {
    pub(super) fn load(device: &Device, spec: &ModelSpec, determinism: Determinism) -> Result<Kernels<T>, CudaError> {
        // All norms of the network are of one kind; others were refused.
        let norm = norm_variant(spec.final_norm.kind);
        Ok(Kernels {
            embed: Embed::load(device)?,
            norm: Norm::load(device, norm)?,
            normed: NormedGemv::load(device, norm)?,
            qkv: QkvProjection::load(device)?,
            attention: Attention::load(device, spec.head_dim, determinism)?,
            gelu: Projection::load(device, Epilogue::BiasGelu)?,
            residual: Projection::load(device, Epilogue::BiasResidual)?,
            head: Head::load(device)?,
            algorithms: device.properties().algorithms,
        })
    }
}

/// One forward pass. Its inputs are on the device when the first kernel runs.
pub(super) struct ForwardPass<'a, T> {
    pub(super) kernels: &'a Kernels<T>,
    pub(super) weights: &'a Weights<T>,
    pub(super) rope: &'a RopeTable,
    pub(super) cache: &'a mut Cache,
    pub(super) workspace: &'a mut Workspace<T>,
    /// Inputs of the step in the layout `layout`.
    pub(super) inputs: &'a Buffer<u32>,
    /// Tokens of the last sampling.
    pub(super) sampled: Slice<'a, u32>,
    pub(super) shape: StepShape,
    pub(super) layout: &'a StepLayout,
}

impl<'a, T: Element> ForwardPass<'a, T> {
    /// Submits the launches.
    pub(super) fn run(&mut self, stream: &Stream, launches: &[Launch]) -> Result<(), CudaError> {
        launches.iter().try_for_each(|launch| self.launch(stream, launch))
    }

    fn launch(&mut self, stream: &Stream, launch: &Launch) -> Result<(), CudaError> {
        // Only attention and QKV use it; they always have a layer.
        let layer = launch.layer.unwrap_or(0);
        match launch.op {
            Op::Embed { table, shape } => {
                let ids = self.words(&self.layout.token_ids)?;
                let hidden = rows_mut(&mut self.workspace.hidden, shape.rows, shape.width)?;
                self.kernels.embed.gather(stream, shape, ids, Some(self.sampled), self.weights.region(table), hidden)
            }
            Op::Norm { norm, gathers } => self.norm(stream, norm, gathers),
            Op::Qkv { weights, shape, linear } => self.qkv(stream, layer, weights, shape, linear),
            Op::Decode(_) | Op::Prefill(_) | Op::BatchInvariant(_) => self.attention(stream, layer, launch.op),
            Op::UpProj { weights, shape, linear } => self.up_proj(stream, weights, shape, linear),
            Op::ResidualProj { input, weights, shape, algorithm } => {
                let weights = self.weights.linear(weights);
                let Workspace { hidden, attn_out, intermediate, .. } = &mut *self.workspace;
                let input = match input {
                    ResidualInput::Attention => attn_out,
                    ResidualInput::Mlp => intermediate,
                };
                self.kernels.algorithms.check_rows(shape.m)?;
                let inputs = linear_inputs(rows(input, shape.m, shape.k)?, weights);
                let out = rows_mut(hidden, shape.m, shape.n)?;
                self.kernels.residual.launch_with(algorithm, stream, shape, inputs, out)
            }
            Op::Head { weights, shape, linear } => self.head(stream, weights, shape, linear),
        }
    }

    fn norm(&mut self, stream: &Stream, op: NormOp, gathers: bool) -> Result<(), CudaError> {
        let (shape, width) = (op.shape, self.workspace.sizes.hidden);
        let weights = self.weights.norm(op.weights);
        if !gathers {
            let hidden = rows(&self.workspace.hidden, shape.rows, width)?;
            let normed = rows_mut(&mut self.workspace.normed, shape.rows, width)?;
            return self.kernels.norm.normalise(stream, shape, hidden, weights, normed);
        }
        let gather = self.words(&self.layout.logits_rows)?;
        let hidden = rows(&self.workspace.hidden, self.shape.rows, width)?;
        let normed = rows_mut(&mut self.workspace.normed, shape.rows, width)?;
        // SAFETY: gathered rows are logits rows of the step, checked by the slot mapping, or padding, which is row 0.
        unsafe { self.kernels.norm.gather_and_normalise(stream, shape, hidden, gather, weights, normed) }
    }

    fn qkv(
        &mut self,
        stream: &Stream,
        layer: usize,
        weights: LinearLayout,
        shape: QkvShape,
        linear: LinearOp,
    ) -> Result<(), CudaError> {
        let weights = self.weights.linear(weights);
        let slots = QkvRows {
            positions: self.words(&self.layout.positions)?,
            row_pages: self.words(&self.group(layer).row_pages)?,
            rotations: self.rope.view(),
        };
        let (keys, values) = self.cache.layer_mut(layer)?;
        let queries = rows_mut(&mut self.workspace.queries, shape.rows, self.workspace.sizes.attn_out)?;
        let out = QkvOutputs { queries, keys, values };
        match linear {
            LinearOp::FusedNorm(norm) => {
                let hidden = rows(&self.workspace.hidden, shape.rows, shape.k)?;
                let normed = normed_rows(self.weights, hidden, None, norm);
                // SAFETY: nothing is gathered.
                unsafe { self.kernels.normed.qkv(stream, shape, normed, matrix(weights), slots, out) }
            }
            LinearOp::Plain(algorithm) => {
                self.kernels.algorithms.check_rows(shape.rows)?;
                let inputs = linear_inputs(rows(&self.workspace.normed, shape.rows, shape.k)?, weights);
                self.kernels.qkv.launch_with(algorithm, stream, shape, inputs, slots, out)
            }
        }
    }

    /// `attn_out[r] = softmax(q[r] · keys / √head_dim) · values` over the positions that row `r` sees.
    fn attention(&mut self, stream: &Stream, layer: usize, op: Op) -> Result<(), CudaError> {
        let (count, width) = (self.shape.rows, self.workspace.sizes.attn_out);
        let GroupLayout { sequences, tiles, split_tiles, .. } = self.group(layer);
        let (whole, split) = (self.words(tiles)?, self.words(split_tiles)?);
        let (sequences, block_tables) = (self.words(sequences)?, self.words(&self.layout.block_tables)?);
        let Workspace { queries, attn_out, partials, tile_counters, .. } = &mut *self.workspace;
        let (queries, cache) = (rows(queries, count, width)?, self.cache.layer(layer)?);
        let inputs = AttentionInputs { queries, cache, sequences, block_tables };
        let out = rows_mut(attn_out, count, width)?;
        // SAFETY: sequences, block tables and tiles come from a batch that `SlotMapping` checked; the rest is padding.
        // No split tile has more rows than its division.
        match (op, &self.kernels.attention) {
            (Op::Decode(shape), Attention::Fast { decode, .. }) => {
                let workspace =
                    DecodeWorkspace { partials: partials.view_mut(), tile_counters: tile_counters.view_mut() };
                // SAFETY: see above.
                unsafe { decode.launch(stream, shape, inputs, workspace, out) }
            }
            (Op::Prefill(shape), Attention::Fast { prefill, .. }) => {
                // SAFETY: see above.
                unsafe { prefill.launch(stream, shape, inputs, whole, out) }
            }
            (Op::BatchInvariant(shape), Attention::BatchInvariant(attention)) => {
                let tiles = if shape.division == Division::Whole { whole } else { split };
                // SAFETY: see above.
                unsafe { attention.launch(stream, shape, inputs, tiles, partials.view_mut(), out) }
            }
            // Program and kernels are chosen by the same rule, so this is a bug.
            _ => Err(CudaError::Operand {
                kernel: "attention",
                what: "the step's plan",
                found: "another".to_owned(),
                expected: "that of the loaded kernels".to_owned(),
            }),
        }
    }

    fn up_proj(
        &mut self,
        stream: &Stream,
        weights: LinearLayout,
        shape: GemmShape,
        linear: LinearOp,
    ) -> Result<(), CudaError> {
        let weights = self.weights.linear(weights);
        let Workspace { hidden, normed, intermediate, .. } = &mut *self.workspace;
        let out = rows_mut(intermediate, shape.m, shape.n)?;
        match linear {
            LinearOp::FusedNorm(norm) => {
                let hidden = rows(hidden, shape.m, shape.k)?;
                let normed = normed_rows(self.weights, hidden, None, norm);
                // SAFETY: nothing is gathered.
                unsafe { self.kernels.normed.gelu(stream, shape, normed, matrix(weights), out) }
            }
            LinearOp::Plain(algorithm) => {
                self.kernels.algorithms.check_rows(shape.m)?;
                let inputs = linear_inputs(rows(normed, shape.m, shape.k)?, weights);
                self.kernels.gelu.launch_with(algorithm, stream, shape, inputs, out)
            }
        }
    }

    /// Logits row `i` belongs to row `logits_rows[i]`.
    fn head(
        &mut self,
        stream: &Stream,
        weights: LinearLayout,
        shape: GemmShape,
        linear: LinearOp,
    ) -> Result<(), CudaError> {
        let weights = self.weights.linear(weights).weight;
        let gather = self.words(&self.layout.logits_rows)?;
        let logits = rows_mut(&mut self.workspace.logits, shape.m, shape.n)?;
        match linear {
            LinearOp::FusedNorm(norm) => {
                let hidden = rows(&self.workspace.hidden, self.shape.rows, shape.k)?;
                let normed = normed_rows(self.weights, hidden, Some(gather), norm);
                // SAFETY: gathered rows are logits rows of the step, checked by the slot mapping, or padding, which is
                // row 0.
                unsafe { self.kernels.normed.logits(stream, shape, normed, weights, logits) }
            }
            LinearOp::Plain(algorithm) => {
                self.kernels.algorithms.check_rows(shape.m)?;
                let x = rows(&self.workspace.normed, shape.m, shape.k)?;
                self.kernels.head.launch_with(algorithm, stream, shape, x, weights, logits)
            }
        }
    }

    /// Layout of the inputs of the layer's cache group.
    fn group(&self, layer: usize) -> &'a GroupLayout {
        &self.layout.groups[self.cache.group(layer)]
    }

    /// One array of the step's inputs.
    fn words<U: Pod>(&self, range: &Range<usize>) -> Result<Slice<'a, U>, CudaError> {
        let inputs: &'a Buffer<u32> = self.inputs;
        // Each array starts at a multiple of 256 bytes and holds whole elements.
        let short = CudaError::CopyLength { from: range.end, into: inputs.len() };
        inputs.planned(range.clone())?.cast().ok_or(short)
    }
}

/// The residual stream as the input of a linear layer with a fused norm.
fn normed_rows<'a, T: Element>(
    weights: &'a Weights<T>,
    hidden: Slice<'a, T>,
    gather: Option<Slice<'a, u32>>,
    norm: NormOp,
) -> NormedRows<'a, T> {
    let NormOp { weights: at, shape, .. } = norm;
    NormedRows { hidden, gather, norm: weights.norm(at), width: shape.width, epsilon: shape.epsilon }
}

fn matrix<'a, T>(weights: LinearWeights<'a, T>) -> Matrix<'a, T> {
    Matrix { weights: weights.weight, bias: weights.bias }
}

fn linear_inputs<'a, T>(x: Slice<'a, T>, weights: LinearWeights<'a, T>) -> LinearInputs<'a, T> {
    LinearInputs { x, weights: weights.weight, bias: weights.bias }
}
