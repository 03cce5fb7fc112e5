//! A step as one list of launches. [`Program`] makes it of the network's layers and the shape of a step; `forward` runs it,
//! [`account`](super::account) costs it. Which kernel computes what is decided here alone.

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

/// The part of the network that a launch belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// Rows of the embedding.
    Embed,
    /// The norm ahead of attention.
    AttentionNorm,
    /// Queries, keys and values.
    Qkv,
    /// Attention, and the merge of its splits.
    Attention,
    /// Attention's way back into the residual stream.
    OProj,
    /// The norm ahead of the MLP.
    MlpNorm,
    /// The MLP's way in.
    UpProj,
    /// The MLP's way back into the residual stream.
    DownProj,
    /// The norm ahead of the head.
    FinalNorm,
    /// Logits.
    Head,
    /// The draw of tokens.
    Sample,
}

impl Part {
    /// All of them, in the order of a step.
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

    /// Its name in tables and results.
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

/// What a projection adds to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResidualInput {
    /// What attention returned, `[rows, heads * head_dim]`.
    Attention,
    /// Activations inside the MLP, `[rows, intermediate]`.
    Mlp,
}

/// Where a norm's weights are, and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct NormOp {
    pub weights: NormLayout,
    pub variant: NormVariant,
    pub shape: NormShape,
}

/// LinearOp a product is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "made once for a shape of steps, some hundreds at a time")]
pub(crate) enum LinearOp {
    /// From rows as they are.
    Plain(GemmAlgorithm),
    /// From rows that the same kernel normalises first.
    FusedNorm(NormOp),
}

/// One launch, or the launches of one attention kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Op {
    /// `hidden[r] = embedding[token_ids[r]]`
    Embed { table: Region, shape: EmbedShape },
    /// `normed[r] = norm(hidden[r])`; of the rows that have logits where it gathers.
    Norm { norm: NormOp, gathers: bool },
    /// Queries, and keys and values into the cache, rotated.
    Qkv { weights: LinearLayout, shape: QkvShape, how: LinearOp },
    /// Decode attention, of the sequences of one row.
    Decode(DecodeShape),
    /// Prefill attention, of the whole tiles.
    Prefill(PrefillShape),
    /// Batch-invariant attention, of the tiles of its division.
    BatchInvariant(BatchInvariantShape),
    /// `inner[r] = gelu(norm(hidden[r]) · Wᵀ + b)`
    Up { weights: LinearLayout, shape: GemmShape, how: LinearOp },
    /// `hidden[r] += input[r] · Wᵀ + b`
    AddProjection { input: ResidualInput, weights: LinearLayout, shape: GemmShape, algorithm: GemmAlgorithm },
    /// Logits of the rows that have them.
    Head { weights: LinearLayout, shape: GemmShape, how: LinearOp },
}

/// An [`Op`] and its place in the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Launch {
    pub op: Op,
    pub part: Part,
    /// `None` ahead of the first layer and behind the last.
    pub layer: Option<usize>,
}

/// The launches beside attention of a step of `rows` rows, with logits of `logits_rows` of them: what kernel benches measure.
pub(crate) fn row_launches(
    spec: &ModelSpec,
    device: &Properties,
    determinism: Determinism,
    page_size: usize,
    rows: usize,
    logits_rows: usize,
) -> Vec<Launch> {
    // Elements of either type take as much.
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

/// What the launches of a step depend on besides its shape.
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

    /// The launches of a step of this shape, in stream order.
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
            self.behind_norm(norm, Part::AttentionNorm, false, &mut push, |how| {
                let shape = self.qkv_shape(rows, weights.qkv);
                let how = how.unwrap_or_else(|| LinearOp::Plain(self.algorithm(shape.gemm_shape())));
                (Part::Qkv, Op::Qkv { weights: weights.qkv, shape, how })
            });
            self.attention(shape, layer.attention.window, &mut push);
            push(Part::OProj, self.add_projection(rows, ResidualInput::Attention, weights.o_proj));
            let norm = self.norm(&layer.mlp_norm, weights.mlp_norm, rows);
            // Networks with another MLP are refused before (`lack`, `check_network`).
            let (Mlp::Plain { .. }, [up, down]) = (&layer.mlp, &weights.mlp[..]) else { continue };
            self.behind_norm(norm, Part::MlpNorm, false, &mut push, |how| {
                let shape = gemm_shape(rows, *up);
                let how = how.unwrap_or_else(|| LinearOp::Plain(self.algorithm(shape)));
                (Part::UpProj, Op::Up { weights: *up, shape, how })
            });
            push(Part::DownProj, self.add_projection(rows, ResidualInput::Mlp, *down));
        }
        if shape.logits_rows > 0 {
            let norm = self.norm(&spec.final_norm, layout.final_norm, shape.logits_rows);
            let mut push = |part, op| launches.push(Launch { op, part, layer: None });
            self.behind_norm(norm, Part::FinalNorm, true, &mut push, |how| {
                let weights = LinearLayout { weight: layout.head, bias: None };
                let shape = gemm_shape(shape.logits_rows, weights);
                let how = how.unwrap_or_else(|| LinearOp::Plain(self.algorithm(shape)));
                (Part::Head, Op::Head { weights, shape, how })
            });
        }
        launches
    }

    /// A norm and the product behind it: two launches, or one that does both.
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

    fn add_projection(&self, rows: usize, input: ResidualInput, weights: LinearLayout) -> Op {
        let shape = gemm_shape(rows, weights);
        Op::AddProjection { input, weights, shape, algorithm: self.algorithm(shape) }
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
