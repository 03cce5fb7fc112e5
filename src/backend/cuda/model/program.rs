//! A step as one list of launches. [`Program`] derives it from the network and the shape of the step; `forward` runs it
//! and [`cost_model`](super::cost_model) costs it. Kernels are chosen here and nowhere else.

use std::fmt;
use std::num::NonZeroU32;

use super::super::Properties;
use super::super::kernels::attention_batch_invariant::{BatchInvariantShape, Division};
use super::super::kernels::attention_decode::{self, DecodeShape};
use super::super::kernels::attention_prefill::{self, PrefillShape};
use super::super::kernels::embed::EmbedShape;
use super::super::kernels::gemv_normed;
use super::super::kernels::linear::{GemmAlgorithm, GemmShape, QkvShape};
use super::super::kernels::norm::{NormShape, NormVariant};
use super::super::layout::{Layout, LinearLayout, NormLayout, Region};
use super::CudaOptions;
use super::attention::AttentionPlan;
use super::shapes::{batch_invariant_shape, decode_shape, heads, norm_variant, window_len};
use super::step::StepShape;
use crate::backend::Determinism;
use crate::checkpoint::Dtype;
use crate::model::{Mlp, ModelSpec, Norm};

/// The part of the network that a launch computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// Embedding lookup.
    Embed,
    /// The norm before attention.
    AttentionNorm,
    /// Query, key and value projection.
    Qkv,
    /// Attention, including the merge of splits.
    Attention,
    /// Output projection of attention, added to the residual stream.
    OProj,
    /// The norm before the MLP.
    MlpNorm,
    /// Up projection of the MLP.
    UpProj,
    /// Down projection of the MLP, added to the residual stream.
    DownProj,
    /// The final norm.
    FinalNorm,
    /// Logits.
    Head,
    /// Sampling.
    Sample,
}

impl Part {
    /// All parts in the order of a step.
    pub const ALL: [Part; 11] = [
        Part::Embed,
        Part::AttentionNorm,
        Part::Qkv,
        Part::Attention,
        Part::OProj,
        Part::MlpNorm,
        Part::UpProj,
        Part::DownProj,
        Part::FinalNorm,
        Part::Head,
        Part::Sample,
    ];

    /// Name in tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Part::Embed => "embed",
            Part::AttentionNorm => "attention_norm",
            Part::Qkv => "qkv",
            Part::Attention => "attention",
            Part::OProj => "o_proj",
            Part::MlpNorm => "mlp_norm",
            Part::UpProj => "up_proj",
            Part::DownProj => "down_proj",
            Part::FinalNorm => "final_norm",
            Part::Head => "head",
            Part::Sample => "sample",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Input of a projection into the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResidualInput {
    /// Attention output, `[rows, heads * head_dim]`.
    Attention,
    /// MLP activations, `[rows, intermediate]`.
    Mlp,
}

/// A norm: its weights and sizes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NormOp {
    pub weights: NormLayout,
    pub variant: NormVariant,
    pub shape: NormShape,
}

/// How a linear layer is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once for a shape of steps, some hundreds at a time")]
pub(crate) enum LinearOp {
    /// From its input as it is.
    Plain(GemmAlgorithm),
    /// From the residual stream, which the same kernel normalises first.
    FusedNorm(NormOp),
}

/// One launch; attention may launch a second kernel to merge splits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Op {
    /// `hidden[r] = embedding[token_ids[r]]`
    Embed { table: Region, shape: EmbedShape },
    /// `normed[r] = norm(hidden[r])`; only of rows with logits if it gathers.
    Norm { norm: NormOp, gathers: bool },
    /// Queries, keys and values, rotated; keys and values are written to the cache.
    Qkv { weights: LinearLayout, shape: QkvShape, linear: LinearOp },
    /// Decode attention over sequences of one row.
    Decode(DecodeShape),
    /// Prefill attention over the whole tiles.
    Prefill(PrefillShape),
    /// Batch-invariant attention over the tiles of its division.
    BatchInvariant(BatchInvariantShape),
    /// `intermediate[r] = gelu(norm(hidden[r]) · Wᵀ + b)`
    UpProj { weights: LinearLayout, shape: GemmShape, linear: LinearOp },
    /// `hidden[r] += input[r] · Wᵀ + b`
    ResidualProj { input: ResidualInput, weights: LinearLayout, shape: GemmShape, algorithm: GemmAlgorithm },
    /// Logits of the rows that need them.
    Head { weights: LinearLayout, shape: GemmShape, linear: LinearOp },
}

/// An [`Op`] and its part of the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Launch {
    pub op: Op,
    pub part: Part,
    /// `None` before the first layer and after the last.
    pub layer: Option<usize>,
}

/// The launches of a step of `rows` rows with `logits_rows` logits rows, attention excluded: what the kernel benchmarks
/// measure.
pub(crate) fn row_launches(
    spec: &ModelSpec,
    device: &Properties,
    determinism: Determinism,
    page_size: usize,
    rows: usize,
    logits_rows: usize,
) -> Vec<Launch> {
    // Both element types have the same layout.
    let layout = Layout::new(spec, Dtype::Bf16);
    let (decode, prefill) = (attention_decode::Variant::of(device), attention_prefill::Variant::of(device));
    let attention = AttentionPlan::Fast { decode, prefill };
    let program = Program { spec, layout: &layout, device, determinism, page_size, attention };
    program.launches(StepShape {
        rows,
        sequences: 0,
        tiles: 0,
        split_tiles: 0,
        split_rows: 0,
        blocks: 0,
        logits_rows,
        decodes: false,
    })
}

/// Everything but the step's shape that determines its launches.
pub(super) struct Program<'a> {
    spec: &'a ModelSpec,
    layout: &'a Layout,
    device: &'a Properties,
    determinism: Determinism,
    page_size: usize,
    attention: AttentionPlan,
}

impl<'a> Program<'a> {
    pub(super) fn new(
        spec: &'a ModelSpec,
        layout: &'a Layout,
        options: &CudaOptions,
        device: &'a Properties,
    ) -> Program<'a> {
        let page_size = options.page_size.get() as usize;
        let attention = AttentionPlan::new(spec, options, device);
        Program { spec, layout, device, determinism: options.determinism, page_size, attention }
    }

    /// The launches of a step, in stream order.
    pub(super) fn launches(&self, shape: StepShape) -> Vec<Launch> {
        let Program { spec, layout, .. } = self;
        let rows = shape.rows;
        let Region { rows: vocabulary, columns: width, .. } = layout.embedding;
        let embed = Op::Embed { table: layout.embedding, shape: EmbedShape { rows, vocabulary, width } };
        let mut launches = vec![Launch { op: embed, part: Part::Embed, layer: None }];
        for (index, (layer, weights)) in spec.layers.iter().zip(&layout.layers).enumerate() {
            let layer_index = Some(index);
            let mut push = |part, op| launches.push(Launch { op, part, layer: layer_index });
            let norm = self.norm(&layer.attention_norm, weights.attention_norm, rows);
            self.behind_norm(norm, Part::AttentionNorm, false, &mut push, |linear| {
                let shape = self.qkv_shape(rows, weights.qkv);
                let linear = linear.unwrap_or_else(|| LinearOp::Plain(self.algorithm(shape.gemm_shape())));
                (Part::Qkv, Op::Qkv { weights: weights.qkv, shape, linear })
            });
            self.attention(shape, layer.attention.window, &mut push);
            push(Part::OProj, self.residual_proj(rows, ResidualInput::Attention, weights.o_proj));
            let norm = self.norm(&layer.mlp_norm, weights.mlp_norm, rows);
            // Other MLPs were refused on loading (`lack`, `check_network`).
            let (Mlp::Plain { .. }, [up, down]) = (&layer.mlp, &weights.mlp[..]) else { continue };
            self.behind_norm(norm, Part::MlpNorm, false, &mut push, |linear| {
                let shape = gemm_shape(rows, *up);
                let linear = linear.unwrap_or_else(|| LinearOp::Plain(self.algorithm(shape)));
                (Part::UpProj, Op::UpProj { weights: *up, shape, linear })
            });
            push(Part::DownProj, self.residual_proj(rows, ResidualInput::Mlp, *down));
        }
        if shape.logits_rows > 0 {
            let norm = self.norm(&spec.final_norm, layout.final_norm, shape.logits_rows);
            let mut push = |part, op| launches.push(Launch { op, part, layer: None });
            self.behind_norm(norm, Part::FinalNorm, true, &mut push, |linear| {
                let weights = LinearLayout { weight: layout.head, bias: None };
                let shape = gemm_shape(shape.logits_rows, weights);
                let linear = linear.unwrap_or_else(|| LinearOp::Plain(self.algorithm(shape)));
                (Part::Head, Op::Head { weights, shape, linear })
            });
        }
        launches
    }

    /// A norm and the linear layer after it: two launches, or one fused launch.
    fn behind_norm(
        &self,
        norm: NormOp,
        part: Part,
        gathers: bool,
        push: &mut impl FnMut(Part, Op),
        product: impl FnOnce(Option<LinearOp>) -> (Part, Op),
    ) {
        let NormShape { rows, width, .. } = norm.shape;
        let fused = gemv_normed::takes(self.determinism, &self.device.algorithms, rows, width);
        if !fused {
            push(part, Op::Norm { norm, gathers });
        }
        let (part, op) = product(fused.then_some(LinearOp::FusedNorm(norm)));
        push(part, op);
    }

    fn norm(&self, norm: &Norm, weights: NormLayout, rows: usize) -> NormOp {
        let shape = NormShape { rows, width: self.spec.hidden_size, epsilon: norm.eps };
        NormOp { weights, variant: norm_variant(norm.kind), shape }
    }

    fn qkv_shape(&self, rows: usize, weights: LinearLayout) -> QkvShape {
        let ModelSpec { heads, kv_heads, head_dim, .. } = *self.spec;
        QkvShape { rows, k: weights.weight.columns, heads, kv_heads, head_dim, page_size: self.page_size }
    }

    fn residual_proj(&self, rows: usize, input: ResidualInput, weights: LinearLayout) -> Op {
        let shape = gemm_shape(rows, weights);
        Op::ResidualProj { input, weights, shape, algorithm: self.algorithm(shape) }
    }

    fn attention(&self, shape: StepShape, window: Option<NonZeroU32>, push: &mut impl FnMut(Part, Op)) {
        let StepShape { rows, sequences, tiles, split_tiles, split_rows, decodes, .. } = shape;
        let spec = self.spec;
        let mut push = |op| push(Part::Attention, op);
        match self.attention {
            AttentionPlan::Fast { .. } => {
                if decodes {
                    push(Op::Decode(decode_shape(rows, sequences, spec, window, self.device)));
                }
                if tiles > 0 {
                    push(Op::Prefill(PrefillShape { rows, tiles, heads: heads(spec), window: window_len(window) }));
                }
            }
            AttentionPlan::BatchInvariant { .. } => {
                if split_tiles > 0 {
                    let division = Division::Split { tile_rows: split_rows };
                    push(Op::BatchInvariant(batch_invariant_shape(rows, split_tiles, division, spec, window)));
                }
                if tiles > 0 {
                    push(Op::BatchInvariant(batch_invariant_shape(rows, tiles, Division::Whole, spec, window)));
                }
            }
        }
    }

    fn algorithm(&self, shape: GemmShape) -> GemmAlgorithm {
        GemmAlgorithm::choose_for(self.determinism, self.device, shape)
    }
}

fn gemm_shape(rows: usize, weights: LinearLayout) -> GemmShape {
    GemmShape { m: rows, n: weights.weight.rows, k: weights.weight.columns }
}
