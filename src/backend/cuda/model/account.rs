//! What a step costs: every launch of a forward pass and of the draws behind it, in order, with the bytes that it must
//! move and the FLOPs that it must do, as the launchers declare them ([`Work`]). Needs no device, only what one is.
//!
//! The tests hold it against the launches that the interpreter counts, and against
//! [`Counts`](crate::model::Counts), so that no two figures of one step disagree.

use std::fmt;

use super::super::kernels::attention_ordered::{self, Division};
use super::super::kernels::attention_prefill::PrefillShape;
use super::super::kernels::embed::{self, EmbedShape};
use super::super::kernels::norm::{Addition, NormForm, NormShape};
use super::super::kernels::paged::Sequence;
use super::super::kernels::product::{BIAS_ROPE_KV, Epilogue, LOGITS, Path, ProductShape, QkvShape};
use super::super::kernels::sample::{self, RowParams, SampleShape};
use super::super::kernels::{BiasTerm, Element, gemv_normed};
use super::super::layout::{ELEMENT_BYTES, padded};
use super::super::{Properties, Work};
use super::attention::{AttentionPlan, StepTiles, ordered_shape};
use super::forward::{decode_shape, norm_form};
use super::memory::Sizes;
use super::recordings::{bucket_shapes, takes};
use super::step::{StepShape, heads, window};
use super::{CudaOptions, split_len_for};
use crate::model::ModelSpec;
use crate::sampling::SamplingParams;

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceStep {
    /// Rows that the step computes of it.
    pub rows: u32,
    /// The position of the first of them: as many positions are in the cache already.
    pub start: u32,
}

/// A step, as far as its cost depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepDescription<'a> {
    /// The sequences, in their order.
    pub sequences: &'a [SequenceStep],
    /// Rows whose logits are wanted.
    pub logits_rows: usize,
    /// Rows for which a token is then drawn, greedily.
    pub sampled_rows: usize,
}

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
    AttentionOut,
    /// The norm ahead of the MLP.
    MlpNorm,
    /// The MLP's way in.
    MlpIn,
    /// The MLP's way back into the residual stream.
    MlpOut,
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
        Part::AttentionOut,
        Part::MlpNorm,
        Part::MlpIn,
        Part::MlpOut,
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
            Part::AttentionOut => "attention_out",
            Part::MlpNorm => "mlp_norm",
            Part::MlpIn => "mlp_in",
            Part::MlpOut => "mlp_out",
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

/// One launch of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchAccount {
    /// The kernel, by its name in the compiled image: `gemv_bias_gelu_bf16_8x16`.
    pub kernel: String,
    /// Its family, as the kernel benches name it: `gemv`, `gemm`, `attention_decode`.
    pub family: &'static str,
    /// What of the network it computes.
    pub part: Part,
    /// The layer; none ahead of the first and behind the last.
    pub layer: Option<usize>,
    /// Bytes and FLOPs, of rows that pad a recorded step too: they are computed like the others.
    pub work: Work,
}

/// The launches of `step`, in the order in which a [`CudaBackend`](super::CudaBackend) of `T` with `options` gives them
/// to a stream of `device`.
pub fn account<T: Element>(
    spec: &ModelSpec,
    options: &CudaOptions,
    device: &Properties,
    step: &StepDescription<'_>,
) -> Vec<LaunchAccount> {
    if step.sequences.iter().all(|sequence| sequence.rows == 0) {
        return Vec::new();
    }
    let mut launches = Pass::new::<T>(spec, options, device, step).launches();
    launches.extend(sampling(spec, options, device, step.sampled_rows));
    launches
}

/// A forward pass, with everything that its launches' work depends on.
struct Pass<'a> {
    spec: &'a ModelSpec,
    options: &'a CudaOptions,
    device: &'a Properties,
    element: &'static str,
    /// As it runs, padding included.
    shape: StepShape,
    /// Without.
    exact: StepShape,
    /// Padding included.
    sequences: Vec<Sequence>,
    tiles: StepTiles,
    split_len: usize,
    bias: BiasTerm,
}

impl<'a> Pass<'a> {
    fn new<T: Element>(
        spec: &'a ModelSpec,
        options: &'a CudaOptions,
        device: &'a Properties,
        step: &StepDescription<'_>,
    ) -> Pass<'a> {
        let mut first_row = 0;
        let mut sequences: Vec<Sequence> = Vec::with_capacity(step.sequences.len());
        for &SequenceStep { rows, start } in step.sequences {
            sequences.push(Sequence { first_row, rows, start, ..Sequence::PADDING });
            first_row += rows;
        }
        let page_size = options.page_size.get() as usize;
        let tiles = AttentionPlan::new(spec, options, device).tiles(&sequences, spec);
        let blocks = sequences.iter().map(|sequence| sequence.visible_blocks(window(spec), page_size));
        let exact = StepShape {
            rows: first_row as usize,
            sequences: sequences.len(),
            tiles: tiles.whole.len(),
            split_tiles: tiles.split.len(),
            split_rows: tiles.split_rows,
            blocks: blocks.sum::<u64>() as usize,
            logits_rows: step.logits_rows,
            decodes: tiles.decodes,
        };
        let shape = bucket_shapes(spec, options, device).find(|bucket| takes(*bucket, exact)).unwrap_or(exact);
        sequences.resize(shape.sequences, Sequence::PADDING);
        Pass {
            split_len: split_len_for(shape.sequences, spec, device),
            bias: if spec.bias { BiasTerm::Present } else { BiasTerm::Absent },
            element: T::NAME,
            spec,
            options,
            device,
            shape,
            exact,
            sequences,
            tiles,
        }
    }

    fn launches(&self) -> Vec<LaunchAccount> {
        let spec = self.spec;
        let (hidden, inner) = (padded(spec.hidden_size), padded(spec.intermediate_size));
        let attended = spec.heads * spec.head_dim;
        let mut launches = vec![self.embed(hidden)];
        for layer in 0..spec.layers {
            let product = |part, epilogue, columns, depth| {
                let shape = ProductShape { rows: self.shape.rows, columns, depth };
                self.product(part, Some(layer), shape, epilogue)
            };
            let (attention, mlp) = ((Part::AttentionNorm, self.shape.rows), (Part::MlpNorm, self.shape.rows));
            launches.extend(self.with_norm(attention, Some(layer), self.qkv(layer, hidden), BIAS_ROPE_KV));
            launches.extend(self.attention(layer));
            launches.push(product(Part::AttentionOut, Epilogue::BiasResidual, hidden, attended));
            let mlp_in = product(Part::MlpIn, Epilogue::BiasGelu, inner, hidden);
            launches.extend(self.with_norm(mlp, Some(layer), mlp_in, Epilogue::BiasGelu.name()));
            launches.push(product(Part::MlpOut, Epilogue::BiasResidual, hidden, inner));
        }
        if self.shape.logits_rows > 0 {
            let (norm, head) = (self.final_norm(hidden), self.head(hidden));
            launches.extend(self.merged(norm, self.shape.logits_rows, head, LOGITS));
        }
        launches
    }

    fn embed(&self, width: usize) -> LaunchAccount {
        let ShapeRows { rows, padding } = self.rows();
        let mut work = EmbedShape { rows, vocabulary: self.spec.vocab_size, width }.work();
        // Rows of padding are all token 0.
        work.bytes_read -= (padding.saturating_sub(1) * width * ELEMENT_BYTES) as u64;
        LaunchAccount { kernel: embed::KERNEL.to_owned(), family: "embed", part: Part::Embed, layer: None, work }
    }

    fn norm(&self, part: Part, layer: Option<usize>, rows: usize) -> LaunchAccount {
        let form = norm_form(self.spec.norm.kind);
        let bias = if form == NormForm::Layer { BiasTerm::Present } else { BiasTerm::Absent };
        let shape = NormShape { rows, width: self.spec.hidden_size, epsilon: self.spec.norm.eps };
        let work = shape.work(form, Addition::None, bias);
        LaunchAccount { kernel: form.kernel_name(self.element), family: "norm", part, layer, work }
    }

    /// A norm of so many rows and the product behind it, whose epilogue is named: two launches, or one that does both.
    fn with_norm(
        &self,
        (part, rows): (Part, usize),
        layer: Option<usize>,
        product: LaunchAccount,
        epilogue: &str,
    ) -> Vec<LaunchAccount> {
        self.merged(self.norm(part, layer, rows), rows, product, epilogue)
    }

    fn merged(&self, norm: LaunchAccount, rows: usize, product: LaunchAccount, epilogue: &str) -> Vec<LaunchAccount> {
        if !gemv_normed::takes(self.options.arithmetic, &self.device.algorithms, rows, self.spec.hidden_size) {
            return vec![norm, product];
        }
        let kernel = gemv_normed::kernel_name(norm_form(self.spec.norm.kind), epilogue, self.element);
        let work = gemv_normed::work_of_both(norm.work, product.work);
        vec![LaunchAccount { kernel, family: "gemv_normed", work, ..product }]
    }

    fn final_norm(&self, width: usize) -> LaunchAccount {
        let rows = self.shape.logits_rows;
        let mut launch = self.norm(Part::FinalNorm, None, rows);
        // Padding gathers row 0, which is among the others where they are all the step's rows.
        let padding = rows - self.exact.logits_rows.max(1).min(rows);
        launch.work.bytes_read -= (padding * width * ELEMENT_BYTES) as u64;
        launch.work.bytes_read += 4 * rows as u64;
        launch
    }

    fn qkv(&self, layer: usize, depth: usize) -> LaunchAccount {
        let ModelSpec { heads, kv_heads, head_dim, .. } = *self.spec;
        let ShapeRows { rows, padding } = self.rows();
        let page_size = self.options.page_size.get() as usize;
        let shape = QkvShape { rows, depth, heads, kv_heads, head_dim, page_size };
        let mut work = shape.work(self.bias);
        // Keys and values of padding go nowhere, and rows at one position share its rotations.
        work.bytes_written -= (padding * 2 * kv_heads * head_dim * ELEMENT_BYTES) as u64;
        work.bytes_read -= ((rows - self.distinct_positions()) * head_dim * size_of::<f32>()) as u64;
        let path = self.path(shape.product_shape());
        let kernel = path.kernel_name(BIAS_ROPE_KV, self.element, rows);
        LaunchAccount { kernel, family: path.family(), part: Part::Qkv, layer: Some(layer), work }
    }

    fn attention(&self, layer: usize) -> Vec<LaunchAccount> {
        let (spec, sequences) = (self.spec, &self.sequences);
        let (heads, page_size) = (heads(spec), self.options.page_size.get() as usize);
        let StepShape { rows, tiles, split_tiles, split_rows, decodes, .. } = self.shape;
        let mut launches = Vec::new();
        let mut push = |family, kernel, work| {
            launches.push(LaunchAccount { kernel, family, part: Part::Attention, layer: Some(layer), work });
        };
        let StepTiles { split, whole, .. } = &self.tiles;
        let ordered =
            [(split_tiles, split, Division::Split { tile_rows: split_rows }), (tiles, whole, Division::Whole)];
        match AttentionPlan::new(spec, self.options, self.device) {
            AttentionPlan::Fastest { decode, prefill } => {
                if decodes {
                    let shape = decode_shape(rows, sequences.len(), spec, self.split_len);
                    for (kernel, work) in shape.launches(decode, self.element, sequences, page_size) {
                        push("attention_decode", kernel, work);
                    }
                }
                if tiles > 0 {
                    let kernel = prefill.kernel_name(self.element, heads.dim);
                    let shape = PrefillShape { rows, tiles, heads, window: window(spec) };
                    push("attention_prefill", kernel, shape.work(sequences, whole, page_size));
                }
            }
            AttentionPlan::Ordered { .. } => {
                for (count, tiles, division) in ordered.into_iter().filter(|(count, ..)| *count > 0) {
                    let shape = ordered_shape(rows, count, division, spec);
                    let kernel = attention_ordered::kernel_name(self.element, heads.dim);
                    push("attention_ordered", kernel, shape.work(sequences, tiles, page_size));
                    if shape.splits() > 1 {
                        let kernel = attention_ordered::merge_kernel_name(self.element, heads.dim);
                        push("attention_ordered", kernel, shape.merge_work(sequences, tiles));
                    }
                }
            }
        }
        launches
    }

    fn product(&self, part: Part, layer: Option<usize>, shape: ProductShape, epilogue: Epilogue) -> LaunchAccount {
        let path = self.path(shape);
        let kernel = path.kernel_name(epilogue.name(), self.element, shape.rows);
        LaunchAccount { kernel, family: path.family(), part, layer, work: shape.work(epilogue, self.bias) }
    }

    fn head(&self, depth: usize) -> LaunchAccount {
        let shape = ProductShape { rows: self.shape.logits_rows, columns: padded(self.spec.vocab_size), depth };
        let path = self.path(shape);
        let kernel = path.kernel_name(LOGITS, self.element, shape.rows);
        LaunchAccount { kernel, family: path.family(), part: Part::Head, layer: None, work: shape.logits_work() }
    }

    fn path(&self, shape: ProductShape) -> Path {
        Path::choose_for(self.options.arithmetic, self.device, shape)
    }

    fn rows(&self) -> ShapeRows {
        ShapeRows { rows: self.shape.rows, padding: self.shape.rows - self.exact.rows }
    }

    /// Positions at which rows stand, each once; padding stands at 0.
    fn distinct_positions(&self) -> usize {
        let rows = self.sequences.iter().flat_map(|sequence| sequence.start..sequence.start + sequence.rows);
        let mut positions: Vec<u32> = rows.chain((self.rows().padding > 0).then_some(0)).collect();
        positions.sort_unstable();
        positions.dedup();
        positions.len()
    }
}

/// Rows of a step as it runs, and how many of them are padding.
struct ShapeRows {
    rows: usize,
    padding: usize,
}

/// The launch that draws a token for each of the first `rows` rows of logits.
fn sampling(spec: &ModelSpec, options: &CudaOptions, device: &Properties, rows: usize) -> Option<LaunchAccount> {
    let greedy = SamplingParams::default();
    let params: Vec<RowParams> = (0..rows).map(|row| RowParams::new(&greedy, row as u32, 0)).collect();
    let shape = SampleShape {
        rows,
        logits_rows: Sizes::logits_rows(options),
        vocabulary: spec.vocab_size,
        pitch: padded(spec.vocab_size),
        set_slots: 0,
    };
    let work = shape.work(&params, device.multiprocessors);
    let kernel = sample::KERNEL.to_owned();
    (rows > 0).then_some(LaunchAccount { kernel, family: "sample", part: Part::Sample, layer: None, work })
}
