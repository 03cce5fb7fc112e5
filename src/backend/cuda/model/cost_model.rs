//! The cost model: every launch of a step, in order, with the bytes it must move and the FLOPs it must do, as declared
//! by its launcher ([`Work`]). Needs no device.
//!
//! Tests compare it with what the interpreter counts and with [`Counts`](crate::model::Counts).

use super::super::kernels::attention_batch_invariant::{self, Division};
use super::super::kernels::embed::{self, EmbedShape};
use super::super::kernels::linear::{BIAS_ROPE_KV, Epilogue, LOGITS, QkvShape};
use super::super::kernels::paged::Sequence;
use super::super::kernels::sample::{self, RowParams, SampleShape};
use super::super::kernels::{BiasTerm, Element, gemv_normed};
use super::super::layout::{ELEMENT_BYTES, Layout, LinearLayout, padded};
use super::super::{Properties, Work};
use super::CudaOptions;
use super::attention::{AttentionPlan, StepTiles};
use super::graph_cache::{bucket_shapes, takes};
use super::memory::Sizes;
pub use super::program::Part;
use super::program::{Launch, LinearOp, NormOp, Op, Program};
use super::shapes::window_len;
use super::step::StepShape;
use crate::model::ModelSpec;
use crate::sampling::SamplingParams;

/// One sequence's share of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceStep {
    /// Rows to compute.
    pub rows: u32,
    /// Position of the first row; earlier positions are cached.
    pub start: u32,
}

/// A step as the cost model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepDescription<'a> {
    /// The sequences in batch order.
    pub sequences: &'a [SequenceStep],
    /// Number of logits rows.
    pub logits_rows: usize,
    /// Number of rows sampled afterwards, greedily.
    pub sampled_rows: usize,
}

/// Cost of one launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelCost {
    /// Kernel name in the compiled image, such as `gemv_bias_gelu_bf16_8x16`.
    pub kernel: String,
    /// Kernel family in the benchmarks: `gemv`, `gemm`, `attention_decode`.
    pub family: &'static str,
    /// Part of the network.
    pub part: Part,
    /// Layer. `None` before the first and after the last.
    pub layer: Option<usize>,
    /// Bytes and FLOPs, those of padding rows included.
    pub work: Work,
}

/// Costs of the launches of `step`, in the order in which a [`CudaBackend`](super::CudaBackend) of `T` with `options`
/// submits them on `device`.
pub fn kernel_costs<T: Element>(
    spec: &ModelSpec,
    options: &CudaOptions,
    device: &Properties,
    step: &StepDescription<'_>,
) -> Vec<KernelCost> {
    if step.sequences.iter().all(|sequence| sequence.rows == 0) {
        return Vec::new();
    }
    let layout = Layout::new(spec, T::DTYPE);
    let costs = Costs::new::<T>(spec, options, device, step);
    let launches = Program::new(spec, &layout, options, device).launches(costs.shape);
    let mut costs: Vec<KernelCost> = launches.iter().flat_map(|launch| costs.of(launch)).collect();
    costs.extend(sampling(spec, options, device, step.sampled_rows));
    costs
}

/// A step with everything its launches' work depends on.
struct Costs {
    element: &'static str,
    /// The shape that runs, padding included.
    shape: StepShape,
    /// The shape without padding.
    exact: StepShape,
    /// Padding included.
    sequences: Vec<Sequence>,
    tiles: StepTiles,
    attention: AttentionPlan,
    page_size: usize,
}

impl Costs {
    fn new<T: Element>(
        spec: &ModelSpec,
        options: &CudaOptions,
        device: &Properties,
        step: &StepDescription<'_>,
    ) -> Costs {
        let mut first_row = 0;
        let mut sequences: Vec<Sequence> = Vec::with_capacity(step.sequences.len());
        for &SequenceStep { rows, start } in step.sequences {
            sequences.push(Sequence { first_row, rows, start, ..Sequence::PADDING });
            first_row += rows;
        }
        let page_size = options.page_size.get() as usize;
        let attention = AttentionPlan::new(spec, options, device);
        // The total does not depend on the tiles' order.
        let tiles = attention.tiles(&sequences, spec, spec.window());
        let blocks = spec.windows().into_iter().flat_map(|window| {
            sequences.iter().map(move |sequence| sequence.visible_blocks(window_len(window), page_size))
        });
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
        Costs { element: T::NAME, shape, exact, sequences, tiles, attention, page_size }
    }

    /// Costs of a launch; two if attention merges its splits in a second kernel.
    fn of(&self, launch: &Launch) -> Vec<KernelCost> {
        let Launch { op, part, layer } = *launch;
        let cost = |family, kernel, work| KernelCost { kernel, family, part, layer, work };
        match op {
            Op::Embed { shape, .. } => vec![cost("embed", embed::KERNEL.to_owned(), self.embed(shape))],
            Op::Norm { norm, gathers } => {
                vec![cost("norm", norm.variant.kernel_name(self.element), self.norm(norm, gathers))]
            }
            Op::Qkv { weights, shape, linear } => {
                let (family, kernel) = self.kernel(linear, BIAS_ROPE_KV, shape.rows);
                vec![cost(family, kernel, self.with_norm(linear, self.qkv(shape, weights), false))]
            }
            Op::UpProj { weights, shape, linear } => {
                let (family, kernel) = self.kernel(linear, Epilogue::BiasGelu.name(), shape.m);
                let work = shape.work(&weights.weight.format, Epilogue::BiasGelu, bias(weights));
                vec![cost(family, kernel, self.with_norm(linear, work, false))]
            }
            Op::ResidualProj { weights, shape, algorithm, .. } => {
                let epilogue = Epilogue::BiasResidual;
                let (family, kernel) = self.kernel(LinearOp::Plain(algorithm), epilogue.name(), shape.m);
                vec![cost(family, kernel, shape.work(&weights.weight.format, epilogue, bias(weights)))]
            }
            Op::Head { weights, shape, linear } => {
                let (family, kernel) = self.kernel(linear, LOGITS, shape.m);
                vec![cost(family, kernel, self.with_norm(linear, shape.logits_work(&weights.weight.format), true))]
            }
            Op::Decode(shape) => {
                let AttentionPlan::Fast { decode, .. } = self.attention else { return Vec::new() };
                let launches = shape.launches(decode, self.element, &self.sequences, self.page_size);
                launches.into_iter().map(|(kernel, work)| cost("attention_decode", kernel, work)).collect()
            }
            Op::Prefill(shape) => {
                let AttentionPlan::Fast { prefill, .. } = self.attention else { return Vec::new() };
                let kernel = prefill.kernel_name(self.element, shape.heads.dim);
                let work = shape.work(&self.sequences, &self.tiles.whole, self.page_size);
                vec![cost("attention_prefill", kernel, work)]
            }
            Op::BatchInvariant(shape) => {
                let whole = shape.division == Division::Whole;
                let tiles = if whole { &self.tiles.whole } else { &self.tiles.split };
                let kernel = attention_batch_invariant::kernel_name(self.element, shape.heads.dim);
                let work = shape.work(&self.sequences, tiles, self.page_size);
                let mut costs = vec![cost("attention_batch_invariant", kernel, work)];
                if shape.splits() > 1 {
                    let kernel = attention_batch_invariant::merge_kernel_name(self.element, shape.heads.dim);
                    costs.push(cost("attention_batch_invariant", kernel, shape.merge_work(&self.sequences, tiles)));
                }
                costs
            }
        }
    }

    /// Family and name of a linear layer's kernel.
    fn kernel(&self, linear: LinearOp, epilogue: &str, rows: usize) -> (&'static str, String) {
        match linear {
            LinearOp::Plain(algorithm) => (algorithm.family(), algorithm.kernel_name(epilogue, self.element, rows)),
            LinearOp::FusedNorm(norm) => {
                ("gemv_normed", gemv_normed::kernel_name(norm.variant, epilogue, self.element))
            }
        }
    }

    /// Work of a linear layer, including a fused norm.
    fn with_norm(&self, linear: LinearOp, product: Work, gathers: bool) -> Work {
        match linear {
            LinearOp::Plain(_) => product,
            LinearOp::FusedNorm(norm) => gemv_normed::work_of_both(self.norm(norm, gathers), product),
        }
    }

    fn embed(&self, shape: EmbedShape) -> Work {
        let mut work = shape.work();
        // Padding rows are all token 0.
        work.bytes_read -= (self.padding().saturating_sub(1) * shape.width * ELEMENT_BYTES) as u64;
        work
    }

    fn norm(&self, norm: NormOp, gathers: bool) -> Work {
        let bias = if norm.weights.bias.is_some() { BiasTerm::Present } else { BiasTerm::Absent };
        let mut work = norm.shape.work(norm.variant, bias);
        if gathers {
            let rows = norm.shape.rows;
            // Padding gathers row 0, which is already counted if every row has logits.
            let padding = rows - self.exact.logits_rows.max(1).min(rows);
            work.bytes_read -= (padding * padded(norm.shape.width) * ELEMENT_BYTES) as u64;
            work.bytes_read += 4 * rows as u64;
        }
        work
    }

    fn qkv(&self, shape: QkvShape, weights: LinearLayout) -> Work {
        let QkvShape { rows, kv_heads, head_dim, .. } = shape;
        let mut work = shape.work(&weights.weight.format, bias(weights));
        // Padding writes no keys and values, and rows at one position share its rotations.
        work.bytes_written -= (self.padding() * 2 * kv_heads * head_dim * ELEMENT_BYTES) as u64;
        work.bytes_read -= ((rows - self.distinct_positions()) * head_dim * size_of::<f32>()) as u64;
        work
    }

    /// Number of padding rows.
    fn padding(&self) -> usize {
        self.shape.rows - self.exact.rows
    }

    /// Number of distinct positions; padding is at 0.
    fn distinct_positions(&self) -> usize {
        let rows = self.sequences.iter().flat_map(|sequence| sequence.start..sequence.start + sequence.rows);
        let mut positions: Vec<u32> = rows.chain((self.padding() > 0).then_some(0)).collect();
        positions.sort_unstable();
        positions.dedup();
        positions.len()
    }
}

fn bias(weights: LinearLayout) -> BiasTerm {
    if weights.bias.is_some() { BiasTerm::Present } else { BiasTerm::Absent }
}

/// The sampling launch over the first `rows` rows of logits.
fn sampling(spec: &ModelSpec, options: &CudaOptions, device: &Properties, rows: usize) -> Option<KernelCost> {
    let greedy = SamplingParams::default();
    let params: Vec<RowParams> = (0..rows).map(|row| RowParams::new(&greedy, row as u32, 0)).collect();
    let shape = SampleShape {
        rows,
        logits_rows: Sizes::logits_rows(options),
        vocabulary: spec.vocab_size,
        pitch: padded(spec.vocab_size),
        set_slots: 0,
    };
    let work = shape.work(&params, device.sm_count);
    let kernel = sample::KERNEL.to_owned();
    (rows > 0).then_some(KernelCost { kernel, family: "sample", part: Part::Sample, layer: None, work })
}
