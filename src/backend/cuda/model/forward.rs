//! The forward pass, readable from top to bottom: one launch after the other, in stream order.

use std::ops::Range;

use bytemuck::Pod;

use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::kernels::attention_decode::{AttentionDecode, DecodeShape, DecodeWorkspace};
use super::super::kernels::attention_ordered::{AttentionOrdered, Division};
use super::super::kernels::attention_prefill::{AttentionPrefill, PrefillShape};
use super::super::kernels::embed::{Embed, EmbedShape};
use super::super::kernels::gemv_normed::{self, Matrix, NormedProducts, NormedRows};
use super::super::kernels::norm::{Norm, NormForm, NormShape, NormWeights};
use super::super::kernels::paged::AttentionInputs;
use super::super::kernels::product::{
    Epilogue, Head, ProductInputs, ProductShape, Projection, QkvOutputs, QkvProjection, QkvRows, QkvShape,
};
use super::super::weights::{LinearWeights, RopeTable, Weights};
use super::super::{Algorithms, Buffer, Device, Slice, Stream};
use super::attention::{is_ordered, ordered_shape};
use super::step::{StepLayout, StepShape, heads, window};
use super::workspace::{Cache, Workspace, rows, rows_mut};
use crate::backend::Arithmetic;
use crate::model::{ModelSpec, NormKind};

/// The kernels of attention.
enum Attention<T> {
    /// By the number of a sequence's rows.
    Fastest { decode: AttentionDecode<T>, prefill: AttentionPrefill<T> },
    /// One for all.
    Ordered(AttentionOrdered<T>),
}

impl<T: Element> Attention<T> {
    fn load(device: &Device, head_dim: usize, arithmetic: Arithmetic) -> Result<Attention<T>, CudaError> {
        if is_ordered(arithmetic, device.properties()) {
            return AttentionOrdered::load(device, head_dim).map(Attention::Ordered);
        }
        let decode = AttentionDecode::load(device, head_dim)?;
        Ok(Attention::Fastest { decode, prefill: AttentionPrefill::load(device, head_dim)? })
    }
}

/// The loaded kernels of a forward pass.
pub(super) struct Kernels<T> {
    embed: Embed<T>,
    norm: Norm<T>,
    /// Products that take the norm ahead of them along.
    normed: NormedProducts<T>,
    qkv: QkvProjection<T>,
    attention: Attention<T>,
    mlp_in: Projection<T>,
    /// Back into the residual stream: out of attention, and out of the MLP.
    out: Projection<T>,
    head: Head<T>,
    arithmetic: Arithmetic,
    algorithms: Algorithms,
}

impl<T: Element> Kernels<T> {
    pub(super) fn load(device: &Device, spec: &ModelSpec, arithmetic: Arithmetic) -> Result<Kernels<T>, CudaError> {
        Ok(Kernels {
            embed: Embed::load(device)?,
            norm: Norm::load(device, norm_form(spec.norm.kind))?,
            normed: NormedProducts::load(device, norm_form(spec.norm.kind))?,
            qkv: QkvProjection::load(device)?.with(arithmetic),
            attention: Attention::load(device, spec.head_dim, arithmetic)?,
            mlp_in: Projection::load(device, Epilogue::BiasGelu)?.with(arithmetic),
            out: Projection::load(device, Epilogue::BiasResidual)?.with(arithmetic),
            head: Head::load(device)?.with(arithmetic),
            arithmetic,
            algorithms: device.properties().algorithms,
        })
    }
}

/// One forward pass over one step, whose inputs are on the device when its first kernel runs.
pub(super) struct Pass<'a, T> {
    pub(super) spec: &'a ModelSpec,
    pub(super) kernels: &'a Kernels<T>,
    pub(super) weights: &'a Weights<T>,
    pub(super) rope: &'a RopeTable,
    pub(super) cache: &'a mut Cache<T>,
    pub(super) workspace: &'a mut Workspace<T>,
    /// The step's inputs, laid out as `layout` says.
    pub(super) inputs: &'a Buffer<u32>,
    /// The tokens that were drawn last.
    pub(super) draws: Slice<'a, u32>,
    pub(super) shape: StepShape,
    pub(super) layout: &'a StepLayout,
    /// Positions of a split of decode attention.
    pub(super) split_len: usize,
}

impl<'a, T: Element> Pass<'a, T> {
    /// Gives the step to the stream.
    pub(super) fn run(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let weights = self.weights;
        self.embed(stream)?;
        for (index, layer) in weights.layers().enumerate() {
            self.project_qkv(stream, index, layer.attention_norm, layer.qkv)?;
            self.attend(stream, index)?;
            self.project_attended(stream, layer.attention_out)?;
            self.mlp_in(stream, layer.mlp_norm, layer.mlp_in)?;
            self.mlp_out(stream, layer.mlp_out)?;
        }
        self.head(stream)
    }

    /// `hidden[r] = embedding[token_ids[r]]`
    fn embed(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let table = self.weights.embedding();
        let (rows, width) = (self.shape.rows, self.workspace.sizes.hidden);
        let shape = EmbedShape { rows, vocabulary: table.len() / width, width };
        let ids = self.words(&self.layout.token_ids)?;
        let hidden = rows_mut(&mut self.workspace.hidden, rows, width)?;
        self.kernels.embed.gather(stream, shape, ids, Some(self.draws), table, hidden)
    }

    /// `normed[r] = norm(hidden[r])`
    fn norm(&mut self, stream: &Stream, weights: NormWeights<'_, T>) -> Result<(), CudaError> {
        let (shape, width) = (self.norm_shape(self.shape.rows), self.workspace.sizes.hidden);
        let hidden = rows(&self.workspace.hidden, shape.rows, width)?;
        let normed = rows_mut(&mut self.workspace.normed, shape.rows, width)?;
        self.kernels.norm.normalise(stream, shape, hidden, weights, normed)
    }

    /// Whether products of so many rows take the norm ahead of them along.
    fn takes_norm(&self, rows: usize) -> bool {
        gemv_normed::takes(self.kernels.arithmetic, &self.kernels.algorithms, rows, self.spec.hidden_size)
    }

    /// Queries, and keys and values into the cache, rotated, of `norm(hidden[r])`.
    fn project_qkv(
        &mut self,
        stream: &Stream,
        layer: usize,
        norm: NormWeights<'_, T>,
        weights: LinearWeights<'_, T>,
    ) -> Result<(), CudaError> {
        let count = self.shape.rows;
        let takes_norm = self.takes_norm(count);
        if !takes_norm {
            self.norm(stream, norm)?;
        }
        let places = QkvRows {
            positions: self.words(&self.layout.positions)?,
            row_pages: self.words(&self.layout.row_pages)?,
            rotations: self.rope.view(),
        };
        let shape = QkvShape {
            rows: count,
            depth: weights.columns,
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            page_size: self.cache.geometry().page_size as usize,
        };
        let (keys, values) = self.cache.layer_mut(layer)?;
        let queries = rows_mut(&mut self.workspace.queries, count, self.workspace.sizes.attended)?;
        let out = QkvOutputs { queries, keys, values };
        if takes_norm {
            let hidden = rows(&self.workspace.hidden, count, weights.columns)?;
            let normed = normed_rows(self.spec, hidden, None, norm);
            // SAFETY: nothing is gathered.
            return unsafe { self.kernels.normed.qkv(stream, shape, normed, matrix(weights), places, out) };
        }
        let inputs = product_inputs(rows(&self.workspace.normed, count, weights.columns)?, weights);
        self.kernels.qkv.launch(stream, shape, inputs, places, out)
    }

    /// `attended[r] = softmax(q[r] · keys / √head_dim) · values` over the positions that row `r` sees.
    fn attend(&mut self, stream: &Stream, layer: usize) -> Result<(), CudaError> {
        let StepShape { rows: count, sequences, tiles, split_tiles, split_rows, decodes, .. } = self.shape;
        let (heads, width) = (heads(self.spec), self.workspace.sizes.attended);
        let window = window(self.spec);
        let (whole, split) = (self.words(&self.layout.tiles)?, self.words(&self.layout.split_tiles)?);
        let (sequence_table, block_tables) =
            (self.words(&self.layout.sequences)?, self.words(&self.layout.block_tables)?);
        let Workspace { queries, attended, partials, arrivals, .. } = &mut *self.workspace;
        let (queries, cache) = (rows(queries, count, width)?, self.cache.layer(layer)?);
        let inputs = AttentionInputs { queries, cache, sequences: sequence_table, block_tables };
        match &self.kernels.attention {
            Attention::Fastest { decode, prefill } => {
                if decodes {
                    let shape = decode_shape(count, sequences, self.spec, self.split_len);
                    let workspace = DecodeWorkspace { partials: partials.view_mut(), arrivals: arrivals.view_mut() };
                    let out = rows_mut(attended, count, width)?;
                    // SAFETY: `Step` made sequences and tables of a batch that `Places` had checked; what is beyond is
                    // padding.
                    unsafe { decode.launch(stream, shape, inputs, workspace, out)? };
                }
                if tiles > 0 {
                    let shape = PrefillShape { rows: count, tiles, heads, window };
                    let out = rows_mut(attended, count, width)?;
                    // SAFETY: as above; the tiles are those of these sequences.
                    unsafe { prefill.launch(stream, shape, inputs, whole, out)? };
                }
            }
            Attention::Ordered(ordered) => {
                if split_tiles > 0 {
                    let division = Division::Split { tile_rows: split_rows };
                    let shape = ordered_shape(count, split_tiles, division, self.spec);
                    let out = rows_mut(attended, count, width)?;
                    // SAFETY: as above; no tile of them has more rows than `split_rows`.
                    unsafe { ordered.launch(stream, shape, inputs, split, partials.view_mut(), out)? };
                }
                if tiles > 0 {
                    let shape = ordered_shape(count, tiles, Division::Whole, self.spec);
                    let out = rows_mut(attended, count, width)?;
                    // SAFETY: as above.
                    unsafe { ordered.launch(stream, shape, inputs, whole, partials.view_mut(), out)? };
                }
            }
        }
        Ok(())
    }

    /// `hidden[r] += attended[r] · Wᵀ + b`
    fn project_attended(&mut self, stream: &Stream, weights: LinearWeights<'_, T>) -> Result<(), CudaError> {
        let shape = self.product_shape(weights);
        let inputs = product_inputs(rows(&self.workspace.attended, shape.rows, shape.depth)?, weights);
        let hidden = rows_mut(&mut self.workspace.hidden, shape.rows, shape.columns)?;
        self.kernels.out.launch(stream, shape, inputs, hidden)
    }

    /// `inner[r] = gelu(norm(hidden[r]) · Winᵀ + bin)`
    fn mlp_in(
        &mut self,
        stream: &Stream,
        norm: NormWeights<'_, T>,
        weights: LinearWeights<'_, T>,
    ) -> Result<(), CudaError> {
        let shape = self.product_shape(weights);
        let takes_norm = self.takes_norm(shape.rows);
        if !takes_norm {
            self.norm(stream, norm)?;
        }
        let inner = rows_mut(&mut self.workspace.inner, shape.rows, shape.columns)?;
        if takes_norm {
            let hidden = rows(&self.workspace.hidden, shape.rows, shape.depth)?;
            let normed = normed_rows(self.spec, hidden, None, norm);
            // SAFETY: nothing is gathered.
            return unsafe { self.kernels.normed.gelu(stream, shape, normed, matrix(weights), inner) };
        }
        let inputs = product_inputs(rows(&self.workspace.normed, shape.rows, shape.depth)?, weights);
        self.kernels.mlp_in.launch(stream, shape, inputs, inner)
    }

    /// `hidden[r] += inner[r] · Woutᵀ + bout`
    fn mlp_out(&mut self, stream: &Stream, weights: LinearWeights<'_, T>) -> Result<(), CudaError> {
        let shape = self.product_shape(weights);
        let inputs = product_inputs(rows(&self.workspace.inner, shape.rows, shape.depth)?, weights);
        let hidden = rows_mut(&mut self.workspace.hidden, shape.rows, shape.columns)?;
        self.kernels.out.launch(stream, shape, inputs, hidden)
    }

    /// Logits row `i` is that of row `logits_rows[i]`.
    fn head(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let count = self.shape.logits_rows;
        if count == 0 {
            return Ok(());
        }
        let (final_norm, weights) = (self.weights.final_norm(), self.weights.head());
        let gather = self.words(&self.layout.logits_rows)?;
        if self.takes_norm(count) {
            let shape = ProductShape { rows: count, ..self.product_shape(weights) };
            let logits = rows_mut(&mut self.workspace.logits, count, shape.columns)?;
            let hidden = rows(&self.workspace.hidden, self.shape.rows, shape.depth)?;
            let normed = normed_rows(self.spec, hidden, Some(gather), final_norm);
            // SAFETY: the step's logits rows are rows of the step, checked as the batch was placed, or padding, which is 0.
            return unsafe { self.kernels.normed.logits(stream, shape, normed, weights.weight, logits) };
        }
        let (shape, width) = (self.norm_shape(count), self.workspace.sizes.hidden);
        let hidden = rows(&self.workspace.hidden, self.shape.rows, width)?;
        let normed = rows_mut(&mut self.workspace.normed, count, width)?;
        // SAFETY: as above.
        unsafe { self.kernels.norm.gather_and_normalise(stream, shape, hidden, gather, final_norm, normed)? };
        let shape = ProductShape { rows: count, ..self.product_shape(weights) };
        let x = rows(&self.workspace.normed, count, shape.depth)?;
        let logits = rows_mut(&mut self.workspace.logits, count, shape.columns)?;
        self.kernels.head.launch(stream, shape, x, weights.weight, logits)
    }

    fn norm_shape(&self, rows: usize) -> NormShape {
        NormShape { rows, width: self.spec.hidden_size, epsilon: self.spec.norm.eps }
    }

    fn product_shape(&self, weights: LinearWeights<'_, T>) -> ProductShape {
        ProductShape { rows: self.shape.rows, columns: weights.rows, depth: weights.columns }
    }

    /// One array of the step's inputs.
    fn words<U: Pod>(&self, range: &Range<usize>) -> Result<Slice<'a, U>, CudaError> {
        let inputs: &'a Buffer<u32> = self.inputs;
        // Each array begins at 256 bytes and holds whole elements.
        let short = CudaError::CopyLength { from: range.end, into: inputs.len() };
        inputs.planned(range.clone())?.cast().ok_or(short)
    }
}

/// The norm kernel's form of a network's norms.
pub(super) fn norm_form(kind: NormKind) -> NormForm {
    match kind {
        NormKind::LayerNorm => NormForm::Layer,
    }
}

/// Decode attention of a step of `rows` rows in `sequences` sequences.
pub(super) fn decode_shape(rows: usize, sequences: usize, spec: &ModelSpec, split_len: usize) -> DecodeShape {
    DecodeShape { rows, sequences, heads: heads(spec), window: window(spec), positions: spec.max_positions, split_len }
}

/// The hidden state as a product takes it that normalises its rows itself.
fn normed_rows<'a, T>(
    spec: &ModelSpec,
    hidden: Slice<'a, T>,
    gather: Option<Slice<'a, u32>>,
    norm: NormWeights<'a, T>,
) -> NormedRows<'a, T> {
    NormedRows { hidden, gather, norm, width: spec.hidden_size, epsilon: spec.norm.eps }
}

fn matrix<'a, T>(weights: LinearWeights<'a, T>) -> Matrix<'a, T> {
    Matrix { weights: weights.weight, bias: weights.bias }
}

fn product_inputs<'a, T>(x: Slice<'a, T>, weights: LinearWeights<'a, T>) -> ProductInputs<'a, T> {
    ProductInputs { x, weights: weights.weight, bias: weights.bias }
}
