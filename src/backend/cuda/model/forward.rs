//! The forward pass: each [`Op`] of a step's [`Program`](super::program::Program) given to the stream, in order.

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
use super::attention::is_ordered;
use super::cache::Cache;
use super::program::{Launch, LinearOp, NormOp, Op, ResidualInput};
use super::shapes::norm_variant;
use super::step::{GroupLayout, StepLayout, StepShape};
use super::workspace::{Workspace, rows, rows_mut};
use crate::backend::Determinism;
use crate::model::ModelSpec;

/// The kernels of attention.
enum Attention<T> {
    /// By the number of a sequence's rows.
    Fast { decode: AttentionDecode<T>, prefill: AttentionPrefill<T> },
    /// One for all.
    BatchInvariant(AttentionBatchInvariant<T>),
}

impl<T: Element> Attention<T> {
    fn load(device: &Device, head_dim: usize, determinism: Determinism) -> Result<Attention<T>, CudaError> {
        if is_ordered(determinism, device.properties()) {
            return AttentionBatchInvariant::load(device, head_dim).map(Attention::BatchInvariant);
        }
        let decode = AttentionDecode::load(device, head_dim)?;
        Ok(Attention::Fast { decode, prefill: AttentionPrefill::load(device, head_dim)? })
    }
}

/// The loaded kernels of a forward pass.
pub(super) struct Kernels<T> {
    embed: Embed<T>,
    norm: Norm<T>,
    /// Products that take the norm ahead of them along.
    normed: NormedGemv<T>,
    qkv: QkvProjection<T>,
    attention: Attention<T>,
    /// Into the MLP.
    gelu: Projection<T>,
    /// Back into the residual stream: out of attention, and out of the MLP.
    residual: Projection<T>,
    head: Head<T>,
    algorithms: Algorithms,
}

impl<T: Element> Kernels<T> {
    pub(super) fn load(device: &Device, spec: &ModelSpec, determinism: Determinism) -> Result<Kernels<T>, CudaError> {
        // All norms are of one kind: others were refused.
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

/// One forward pass over one step, whose inputs are on the device when its first kernel runs.
pub(super) struct Pass<'a, T> {
    pub(super) kernels: &'a Kernels<T>,
    pub(super) weights: &'a Weights<T>,
    pub(super) rope: &'a RopeTable,
    pub(super) cache: &'a mut Cache,
    pub(super) workspace: &'a mut Workspace<T>,
    /// The step's inputs, laid out as `layout` says.
    pub(super) inputs: &'a Buffer<u32>,
    /// The tokens that were drawn last.
    pub(super) draws: Slice<'a, u32>,
    pub(super) shape: StepShape,
    pub(super) layout: &'a StepLayout,
}

impl<'a, T: Element> Pass<'a, T> {
    /// Gives the step to the stream: the launches of its program.
    pub(super) fn run(&mut self, stream: &Stream, launches: &[Launch]) -> Result<(), CudaError> {
        launches.iter().try_for_each(|launch| self.launch(stream, launch))
    }

    fn launch(&mut self, stream: &Stream, launch: &Launch) -> Result<(), CudaError> {
        // Attention and QKV belong to a layer.
        let layer = launch.layer.unwrap_or(0);
        match launch.op {
            Op::Embed { table, shape } => {
                let ids = self.words(&self.layout.token_ids)?;
                let hidden = rows_mut(&mut self.workspace.hidden, shape.rows, shape.width)?;
                self.kernels.embed.gather(stream, shape, ids, Some(self.draws), self.weights.region(table), hidden)
            }
            Op::Norm { norm, gathers } => self.norm(stream, norm, gathers),
            Op::Qkv { weights, shape, how } => self.qkv(stream, layer, weights, shape, how),
            Op::Decode(_) | Op::Prefill(_) | Op::BatchInvariant(_) => self.attention(stream, layer, launch.op),
            Op::Up { weights, shape, how } => self.up(stream, weights, shape, how),
            Op::AddProjection { input, weights, shape, algorithm } => {
                let weights = self.weights.linear(weights);
                let Workspace { hidden, attn_out, inner, .. } = &mut *self.workspace;
                let input = match input {
                    ResidualInput::Attention => attn_out,
                    ResidualInput::Mlp => inner,
                };
                self.kernels.algorithms.check_rows(shape.m)?;
                let inputs = linear_inputs(rows(input, shape.m, shape.k)?, weights);
                let out = rows_mut(hidden, shape.m, shape.n)?;
                self.kernels.residual.launch_with(algorithm, stream, shape, inputs, out)
            }
            Op::Head { weights, shape, how } => self.head(stream, weights, shape, how),
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
        // SAFETY: the step's logits rows are rows of the step, checked as the batch was placed, or padding, which is 0.
        unsafe { self.kernels.norm.gather_and_normalise(stream, shape, hidden, gather, weights, normed) }
    }

    fn qkv(
        &mut self,
        stream: &Stream,
        layer: usize,
        weights: LinearLayout,
        shape: QkvShape,
        how: LinearOp,
    ) -> Result<(), CudaError> {
        let weights = self.weights.linear(weights);
        let places = QkvRows {
            positions: self.words(&self.layout.positions)?,
            row_pages: self.words(&self.group(layer).row_pages)?,
            rotations: self.rope.view(),
        };
        let (keys, values) = self.cache.layer_mut(layer)?;
        let queries = rows_mut(&mut self.workspace.queries, shape.rows, self.workspace.sizes.attn_out)?;
        let out = QkvOutputs { queries, keys, values };
        match how {
            LinearOp::FusedNorm(norm) => {
                let hidden = rows(&self.workspace.hidden, shape.rows, shape.k)?;
                let normed = normed_rows(self.weights, hidden, None, norm);
                // SAFETY: nothing is gathered.
                unsafe { self.kernels.normed.qkv(stream, shape, normed, matrix(weights), places, out) }
            }
            LinearOp::Plain(algorithm) => {
                self.kernels.algorithms.check_rows(shape.rows)?;
                let inputs = linear_inputs(rows(&self.workspace.normed, shape.rows, shape.k)?, weights);
                self.kernels.qkv.launch_with(algorithm, stream, shape, inputs, places, out)
            }
        }
    }

    /// `attn_out[r] = softmax(q[r] · keys / √head_dim) · values` over the positions that row `r` sees.
    fn attention(&mut self, stream: &Stream, layer: usize, op: Op) -> Result<(), CudaError> {
        let (count, width) = (self.shape.rows, self.workspace.sizes.attn_out);
        let GroupLayout { sequences, tiles, split_tiles, .. } = self.group(layer);
        let (whole, split) = (self.words(tiles)?, self.words(split_tiles)?);
        let (sequences, block_tables) = (self.words(sequences)?, self.words(&self.layout.block_tables)?);
        let Workspace { queries, attn_out, partials, arrivals, .. } = &mut *self.workspace;
        let (queries, cache) = (rows(queries, count, width)?, self.cache.layer(layer)?);
        let inputs = AttentionInputs { queries, cache, sequences, block_tables };
        let out = rows_mut(attn_out, count, width)?;
        // SAFETY of all: `Step` made sequences, tables and tiles of a batch that `SlotMapping` had checked; what is beyond is
        // padding. No split tile has more rows than its division says.
        match (op, &self.kernels.attention) {
            (Op::Decode(shape), Attention::Fast { decode, .. }) => {
                let workspace = DecodeWorkspace { partials: partials.view_mut(), arrivals: arrivals.view_mut() };
                // SAFETY: see above.
                unsafe { decode.launch(stream, shape, inputs, workspace, out) }
            }
            (Op::Prefill(shape), Attention::Fast { prefill, .. }) => {
                // SAFETY: see above.
                unsafe { prefill.launch(stream, shape, inputs, whole, out) }
            }
            (Op::BatchInvariant(shape), Attention::BatchInvariant(ordered)) => {
                let tiles = if shape.division == Division::Whole { whole } else { split };
                // SAFETY: see above.
                unsafe { ordered.launch(stream, shape, inputs, tiles, partials.view_mut(), out) }
            }
            // The program chooses by what the kernels were loaded by: a bug.
            _ => Err(CudaError::Operand {
                kernel: "attention",
                what: "the step's plan",
                found: "another".to_owned(),
                expected: "that of the loaded kernels".to_owned(),
            }),
        }
    }

    fn up(&mut self, stream: &Stream, weights: LinearLayout, shape: GemmShape, how: LinearOp) -> Result<(), CudaError> {
        let weights = self.weights.linear(weights);
        let Workspace { hidden, normed, inner, .. } = &mut *self.workspace;
        let out = rows_mut(inner, shape.m, shape.n)?;
        match how {
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

    /// Logits row `i` is that of row `logits_rows[i]`.
    fn head(
        &mut self,
        stream: &Stream,
        weights: LinearLayout,
        shape: GemmShape,
        how: LinearOp,
    ) -> Result<(), CudaError> {
        let weights = self.weights.linear(weights).weight;
        let gather = self.words(&self.layout.logits_rows)?;
        let logits = rows_mut(&mut self.workspace.logits, shape.m, shape.n)?;
        match how {
            LinearOp::FusedNorm(norm) => {
                let hidden = rows(&self.workspace.hidden, self.shape.rows, shape.k)?;
                let normed = normed_rows(self.weights, hidden, Some(gather), norm);
                // SAFETY: the step's logits rows are rows of the step, checked as the batch was placed, or padding,
                // which is 0.
                unsafe { self.kernels.normed.logits(stream, shape, normed, weights, logits) }
            }
            LinearOp::Plain(algorithm) => {
                self.kernels.algorithms.check_rows(shape.m)?;
                let x = rows(&self.workspace.normed, shape.m, shape.k)?;
                self.kernels.head.launch_with(algorithm, stream, shape, x, weights, logits)
            }
        }
    }

    /// Where the inputs of the layer's group of the cache lie.
    fn group(&self, layer: usize) -> &'a GroupLayout {
        &self.layout.groups[self.cache.group(layer)]
    }

    /// One array of the step's inputs.
    fn words<U: Pod>(&self, range: &Range<usize>) -> Result<Slice<'a, U>, CudaError> {
        let inputs: &'a Buffer<u32> = self.inputs;
        // Each array begins at 256 bytes and holds whole elements.
        let short = CudaError::CopyLength { from: range.end, into: inputs.len() };
        inputs.planned(range.clone())?.cast().ok_or(short)
    }
}

/// The hidden state as a product takes it that normalises its rows itself.
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
