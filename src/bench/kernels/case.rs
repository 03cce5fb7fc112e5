//! What is measured: every kernel at the shapes that the published models give it. Pure arithmetic, no device.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::backend::Determinism;
use crate::backend::cuda::Properties;
use crate::backend::cuda::Work;
use crate::backend::cuda::kernels::BiasTerm;
use crate::backend::cuda::kernels::attention_batch_invariant::{self, BatchInvariantShape, Division, SPLIT_LEN};
use crate::backend::cuda::kernels::attention_decode::{self, DecodeShape, split_len};
use crate::backend::cuda::kernels::attention_prefill::{self, PrefillShape, Tile, Variant};
use crate::backend::cuda::kernels::embed::EmbedShape;
use crate::backend::cuda::kernels::gemv;
use crate::backend::cuda::kernels::gemv_normed;
use crate::backend::cuda::kernels::linear::{Epilogue, GemmAlgorithm, GemmShape, QkvShape};
use crate::backend::cuda::kernels::norm::{NormShape, NormVariant};
use crate::backend::cuda::kernels::paged::{Heads, Sequence};
use crate::backend::cuda::kernels::sample::{LogprobsRow, LogprobsShape, RowParams, SampleShape};
use crate::backend::cuda::layout::{LinearLayout, padded};
use crate::backend::cuda::model::cost_model::Part;
use crate::backend::cuda::model::{LinearOp, Op, row_launches};
use crate::checkpoint::Dtype;
use crate::model::{ModelSpec, WeightFormat};
use crate::sampling::SamplingParams;
use crate::text::TokenId;

use super::super::report::{Row, Suite};

/// Positions of a page: as the engine has them.
pub(super) const PAGE_SIZE: usize = 64;

/// LinearOp weights are kept: in 16 bits, F16 or BF16.
const WEIGHTS: WeightFormat = WeightFormat::dense(Dtype::Bf16);

/// One kernel at one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Whose shapes: `starcoder2-15b`.
    pub model: String,
    /// The kernel and its sizes.
    pub what: What,
}

/// A launch, or the two of a split attention.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Rows of the embedding.
    Embed(EmbedShape),
    /// A norm, with nothing added.
    Norm(NormShape, NormVariant),
    /// Queries, keys and values, rotated and written to the cache.
    Qkv(QkvShape, BiasTerm),
    /// A matrix of a layer, and what follows its sums.
    Product(Part, Epilogue, GemmShape, BiasTerm),
    /// The MLP's way in with the norm ahead of it, in one launch.
    NormedProduct(NormShape, NormVariant, GemmShape, BiasTerm),
    /// Logits.
    Head(GemmShape),
    /// One row of each of `batch` sequences that hold `context` positions, this one included.
    Decode {
        /// Sequences.
        batch: usize,
        /// Positions of each.
        context: usize,
        /// The launch.
        shape: DecodeShape,
        /// Its variant; `None`: the device's own.
        variant: Option<attention_decode::Variant>,
    },
    /// A whole prompt of `length` rows.
    Prefill {
        /// Its rows.
        length: usize,
        /// The launch.
        shape: PrefillShape,
    },
    /// Batch-invariant attention of one row of each of `batch` sequences.
    OrderedDecode {
        /// Sequences.
        batch: usize,
        /// Positions of each.
        context: usize,
        /// The launch.
        shape: BatchInvariantShape,
    },
    /// Batch-invariant attention of a whole prompt.
    OrderedPrefill {
        /// Its rows.
        length: usize,
        /// The launch.
        shape: BatchInvariantShape,
    },
    /// A token for each of `rows` rows.
    Sample {
        /// Rows.
        rows: usize,
        /// Tokens.
        vocabulary: usize,
        /// LinearOp they are chosen.
        choice: Choice,
    },
    /// Log-probabilities of one target and the five best tokens of each of `rows` rows.
    Logprobs {
        /// Rows.
        rows: usize,
        /// Tokens.
        vocabulary: usize,
    },
}

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The likeliest.
    Greedy,
    /// Temperature 0.8, top-p 0.95.
    Nucleus,
}

impl Choice {
    /// What `rows` rows ask for, each of its own logits row.
    pub(super) fn rows(self, rows: usize) -> Vec<RowParams> {
        let params = match self {
            Choice::Greedy => SamplingParams::default(),
            Choice::Nucleus => SamplingParams { temperature: 0.8, top_p: 0.95, ..SamplingParams::default() },
        };
        (0..rows as u32).map(|row| RowParams::new(&params, row, row)).collect()
    }
}

/// The launch that draws for `rows` rows.
pub(super) fn sample_shape(rows: usize, vocabulary: usize) -> SampleShape {
    SampleShape { rows, logits_rows: rows, vocabulary, pitch: padded(vocabulary), set_slots: 0 }
}

/// The launch that scores `rows` rows.
pub(super) fn logprobs_shape(rows: usize, vocabulary: usize) -> LogprobsShape {
    LogprobsShape { rows, logits_rows: rows, vocabulary, pitch: padded(vocabulary) }
}

/// A target and the five best tokens of each row.
pub(super) fn logprobs_rows(rows: usize, vocabulary: usize) -> Vec<LogprobsRow> {
    let row = |row: u32| LogprobsRow::new(row, Some(TokenId(row % vocabulary as u32)), 5);
    (0..rows as u32).map(row).collect()
}

/// Numbers of rows of products: decoding alone, in batches, and prompts.
const ROWS: [usize; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192];
/// With a norm ahead of a product in one launch where that is possible, and in two.
const DETERMINISMS: [Determinism; 2] = [Determinism::Fast, Determinism::BatchInvariant];
/// Rows of what is bound by launching or by bytes whatever the number.
const FEW_ROWS: [usize; 4] = [1, 16, 256, 2048];
/// Rows with logits.
const LOGITS_ROWS: [usize; 5] = [1, 8, 32, 64, 256];
/// Batches and contexts of decode attention.
const DECODES: [(usize, usize); 9] =
    [(1, 1024), (1, 4096), (8, 1024), (8, 4096), (32, 4096), (64, 1024), (64, 4096), (256, 1024), (256, 4096)];
/// Lengths of prompts.
const LENGTHS: [usize; 5] = [512, 2048, 4096, 8192, 16_384];

impl What {
    /// Every launch of the network's steps beside attention, at numbers of rows. Norms stand alone and, where a kernel
    /// has both, with the product behind them.
    fn of_rows(spec: &ModelSpec, device: &Properties) -> Vec<What> {
        // By the part of the network, as a step has them.
        let mut found: BTreeMap<(Part, bool), Vec<What>> = BTreeMap::new();
        for (rows, determinism) in ROWS.into_iter().flat_map(|rows| DETERMINISMS.map(|determinism| (rows, determinism)))
        {
            let logits_rows = if LOGITS_ROWS.contains(&rows) { rows } else { 0 };
            for launch in row_launches(spec, device, determinism, PAGE_SIZE, rows, logits_rows) {
                let Some(what) = What::of(launch.part, &launch.op) else { continue };
                // One norm kernel serves all of them.
                let part = if matches!(what, What::Norm(..)) { Part::AttentionNorm } else { launch.part };
                let of_part = found.entry((part, matches!(what, What::NormedProduct(..)))).or_default();
                if !of_part.contains(&what) {
                    of_part.push(what);
                }
            }
        }
        found.into_values().flatten().collect()
    }

    /// A launch, where it is one that is measured.
    fn of(part: Part, op: &Op) -> Option<What> {
        let bias = |weights: &LinearLayout| if weights.bias.is_some() { BiasTerm::Present } else { BiasTerm::Absent };
        let few = |rows: usize, what: What| FEW_ROWS.contains(&rows).then_some(what);
        match *op {
            Op::Embed { shape, .. } => few(shape.rows, What::Embed(shape)),
            Op::Norm { norm, .. } => few(norm.shape.rows, What::Norm(norm.shape, norm.variant)),
            Op::Qkv { weights, shape, linear: LinearOp::Plain(_) } => Some(What::Qkv(shape, bias(&weights))),
            Op::UpProj { weights, shape, linear: LinearOp::Plain(_) } => {
                Some(What::Product(part, Epilogue::BiasGelu, shape, bias(&weights)))
            }
            Op::UpProj { weights, shape, linear: LinearOp::FusedNorm(norm) } => {
                Some(What::NormedProduct(norm.shape, norm.variant, shape, bias(&weights)))
            }
            Op::ResidualProj { weights, shape, .. } => {
                Some(What::Product(part, Epilogue::BiasResidual, shape, bias(&weights)))
            }
            Op::Head { shape, linear: LinearOp::Plain(_), .. } => Some(What::Head(shape)),
            // Of the kernels with a norm ahead the MLP's stands for all.
            Op::Qkv { linear: LinearOp::FusedNorm(_), .. } | Op::Head { linear: LinearOp::FusedNorm(_), .. } => None,
            Op::Decode(_) | Op::Prefill(_) | Op::BatchInvariant(_) => None,
        }
    }
}

impl Case {
    /// Every kernel at the shapes of `spec`, which is called `model`.
    pub fn all(model: &str, spec: &ModelSpec, device: &Properties) -> Vec<Case> {
        let window = spec.window().map(|window| window.get() as usize);
        let heads = Heads { query: spec.heads, kv: spec.kv_heads, dim: spec.head_dim };
        let mut all = What::of_rows(spec, device);
        for (batch, context) in DECODES {
            let positions = spec.max_positions.max(context);
            let shape = |variant| {
                let sm_count = device.sm_count as usize;
                let split_len = split_len(variant, batch, &heads, window, spec.max_positions, sm_count);
                DecodeShape { rows: batch, sequences: batch, heads, window, positions, split_len }
            };
            let own = attention_decode::Variant::of(device);
            all.push(What::Decode { batch, context, shape: shape(own), variant: None });
            // What the merge inside of the kernel is worth, against the other variant as it would be cut.
            let split = attention_decode::Variant::Split;
            if own != split && shape(split).splits() > 1 {
                all.push(What::Decode { batch, context, shape: shape(split), variant: Some(split) });
            }
        }
        for length in LENGTHS {
            // Where the window hides nothing the two are the same.
            let windows = if window.is_some_and(|window| window < length) { vec![window, None] } else { vec![None] };
            for window in windows {
                all.push(Case::prefill(length, heads, window));
            }
        }
        for (batch, context) in [(1, 4096), (16, 4096), (64, 4096)] {
            all.push(Case::ordered_decode(batch, context, heads, window, spec.max_positions));
        }
        for length in [2048, 8192] {
            all.push(Case::ordered_prefill(length, heads, window, spec.max_positions));
        }
        for choice in [Choice::Greedy, Choice::Nucleus] {
            for rows in [1, 64, 256] {
                all.push(What::Sample { rows, vocabulary: spec.vocab_size, choice });
            }
        }
        for rows in [1, 256] {
            all.push(What::Logprobs { rows, vocabulary: spec.vocab_size });
        }
        all.into_iter().map(|what| Case { model: model.to_owned(), what }).collect()
    }

    fn prefill(length: usize, heads: Heads, window: Option<usize>) -> What {
        let shape = PrefillShape { rows: length, tiles: 0, heads, window };
        let tiles = attention_prefill::plan_tiles(&prompt(length), &heads, window, Variant::Warp, |_| true).len();
        What::Prefill { length, shape: PrefillShape { tiles, ..shape } }
    }

    fn ordered_decode(batch: usize, context: usize, heads: Heads, window: Option<usize>, positions: usize) -> What {
        let (rows, tiles, positions) = (batch, batch, positions.max(context));
        let division = Division::Split { tile_rows: 1 };
        let shape = BatchInvariantShape { rows, tiles, heads, window, positions, split_len: SPLIT_LEN, division };
        What::OrderedDecode { batch, context, shape }
    }

    fn ordered_prefill(length: usize, heads: Heads, window: Option<usize>, positions: usize) -> What {
        let tiles = attention_batch_invariant::plan_tiles(&prompt(length), &heads, window, |_| true).len();
        let (rows, positions, division) = (length, positions.max(length), Division::Whole);
        let shape = BatchInvariantShape { rows, tiles, heads, window, positions, split_len: SPLIT_LEN, division };
        What::OrderedPrefill { length, shape }
    }

    /// The kernel, and its part in the model where it has several: `gemv up_proj`, `attention_decode`.
    pub fn name(&self) -> String {
        let product = |rows: usize| if rows <= gemv::MAX_ROWS { "gemv" } else { "gemm" };
        match &self.what {
            What::Embed(_) => "embed".to_owned(),
            What::Norm(..) => "norm".to_owned(),
            What::Qkv(shape, _) => format!("{} qkv", product(shape.rows)),
            What::Product(part, _, shape, _) => format!("{} {}", product(shape.m), part.name()),
            What::NormedProduct(..) => format!("gemv_normed {}", Part::UpProj.name()),
            What::Head(shape) => format!("{} head", product(shape.m)),
            What::Decode { variant: None, .. } => "attention_decode".to_owned(),
            What::Decode { variant: Some(attention_decode::Variant::Split), .. } => "attention_decode split".to_owned(),
            What::Decode { variant: Some(attention_decode::Variant::Cluster), .. } => {
                "attention_decode cluster".to_owned()
            }
            What::Prefill { .. } => "attention_prefill".to_owned(),
            What::OrderedDecode { .. } => "attention_batch_invariant decode".to_owned(),
            What::OrderedPrefill { .. } => "attention_batch_invariant prefill".to_owned(),
            What::Sample { choice: Choice::Greedy, .. } => "sample greedy".to_owned(),
            What::Sample { choice: Choice::Nucleus, .. } => "sample nucleus".to_owned(),
            What::Logprobs { .. } => "logprobs".to_owned(),
        }
    }

    /// A row of results for it, without figures yet.
    pub fn row(&self, device: &Properties) -> Row {
        let work = self.work();
        let row = Row::new(Suite::Kernels, self.name());
        let sizes = self.sizes().into_iter().map(|(name, size)| (name.to_owned(), size)).collect();
        Row {
            model: Some(self.model.clone()),
            shape: sizes,
            path: self.path(device),
            bytes: work.bytes(),
            flops: work.flops,
            ..row
        }
    }

    /// The sizes that tell it from others of its name.
    fn sizes(&self) -> Vec<(&'static str, Value)> {
        let number = |size: usize| Value::from(size);
        let window = |window: Option<usize>| window.map_or(Value::from("none"), Value::from);
        let product = |shape: GemmShape| {
            vec![("rows", number(shape.m)), ("columns", number(shape.n)), ("depth", number(shape.k))]
        };
        let decode = |batch, context| vec![("batch", number(batch)), ("context", number(context))];
        let prefill = |length, seen| vec![("length", number(length)), ("window", window(seen))];
        match &self.what {
            What::Embed(shape) => vec![("rows", number(shape.rows)), ("width", number(shape.width))],
            What::Norm(shape, _) => vec![("rows", number(shape.rows)), ("width", number(shape.width))],
            What::Qkv(shape, _) => product(shape.gemm_shape()),
            What::Product(_, _, shape, _) | What::Head(shape) | What::NormedProduct(_, _, shape, _) => product(*shape),
            What::Decode { batch, context, .. } | What::OrderedDecode { batch, context, .. } => {
                decode(*batch, *context)
            }
            What::Prefill { length, shape } => prefill(*length, shape.window),
            What::OrderedPrefill { length, shape } => prefill(*length, shape.window),
            What::Sample { rows, vocabulary, .. } | What::Logprobs { rows, vocabulary } => {
                vec![("rows", number(*rows)), ("vocabulary", number(*vocabulary))]
            }
        }
    }

    /// The same as `rows=16`, for filters.
    pub(super) fn sizes_for_filter(&self) -> Vec<String> {
        let size = |(name, value): (&str, Value)| match value {
            Value::String(text) => format!("{name}={text}"),
            number => format!("{name}={number}"),
        };
        self.sizes().into_iter().map(size).collect()
    }

    /// LinearOp it is cut up on this device, where that is a choice.
    fn path(&self, device: &Properties) -> Option<String> {
        let product = |shape: GemmShape| match GemmAlgorithm::choose(device, shape) {
            GemmAlgorithm::Gemv => None,
            GemmAlgorithm::SmallM(plan) => {
                let (rows, splits) = (plan.tile.m(), plan.splits);
                Some(format!("small_m, {rows} rows, {splits} parts of k"))
            }
            GemmAlgorithm::Sm80(plan) => {
                let (rows, columns) = (plan.tile.m(), plan.tile.n());
                Some(format!("tiles {rows}x{columns}, {} stages", plan.stages))
            }
            GemmAlgorithm::Sm90(plan) => {
                let (rows, columns) = (plan.tile.m(), plan.tile.n());
                let blocks = plan.clusters * plan.cluster;
                Some(format!("wgmma, tiles {rows}x{columns}, clusters of {}, {blocks} blocks", plan.cluster))
            }
        };
        match &self.what {
            What::Qkv(shape, _) => product(shape.gemm_shape()),
            What::Product(_, _, shape, _) | What::Head(shape) => product(*shape),
            What::Decode { shape, variant, .. } => {
                let file = variant.unwrap_or_else(|| attention_decode::Variant::of(device)).file();
                Some(format!("{file}, {} splits of {}", shape.splits(), shape.split_len))
            }
            What::OrderedDecode { shape, .. } => Some(format!("{} splits of {}", shape.splits(), shape.split_len)),
            What::Prefill { .. } => Some(Variant::of(device).file().to_owned()),
            _ => None,
        }
    }

    /// What it must move and compute, as the launchers declare it.
    pub fn work(&self) -> Work {
        match &self.what {
            What::Embed(shape) => shape.work(),
            What::Norm(shape, variant) => shape.work(*variant, BiasTerm::Present),
            What::Qkv(shape, bias) => shape.work(&WEIGHTS, *bias),
            What::Product(_, epilogue, shape, bias) => shape.work(&WEIGHTS, *epilogue, *bias),
            What::NormedProduct(norm, variant, shape, bias) => {
                let norm = norm.work(*variant, BiasTerm::Present);
                gemv_normed::work_of_both(norm, shape.work(&WEIGHTS, Epilogue::BiasGelu, *bias))
            }
            What::Head(shape) => shape.logits_work(&WEIGHTS),
            // Without the partial results, which another cut would not have: those count as time, not as work.
            What::Decode { batch, context, shape, .. } => shape.work(&decoding(*batch, *context), PAGE_SIZE),
            What::Prefill { length, shape } => {
                let tiles = self.tiles(Variant::Warp);
                shape.work(&prompt(*length), &tiles, PAGE_SIZE)
            }
            What::OrderedDecode { batch, context, shape } => {
                let work = shape.work(&decoding(*batch, *context), &self.tiles(Variant::Warp), PAGE_SIZE);
                Work { bytes_written: (shape.rows * shape.heads.width() * 2) as u64, ..work }
            }
            What::OrderedPrefill { length, shape } => {
                shape.work(&prompt(*length), &self.tiles(Variant::Warp), PAGE_SIZE)
            }
            // On a device of one SM: none of it is partial results.
            What::Sample { rows, vocabulary, choice } => sample_shape(*rows, *vocabulary).work(&choice.rows(*rows), 1),
            What::Logprobs { rows, vocabulary } => {
                logprobs_shape(*rows, *vocabulary).work(&logprobs_rows(*rows, *vocabulary))
            }
        }
    }

    /// The sequences of an attention; none for other kernels.
    pub(super) fn sequences(&self) -> Vec<Sequence> {
        match &self.what {
            What::Decode { batch, context, .. } | What::OrderedDecode { batch, context, .. } => {
                decoding(*batch, *context)
            }
            What::Prefill { length, .. } | What::OrderedPrefill { length, .. } => prompt(*length),
            _ => Vec::new(),
        }
    }

    /// The tiles of an attention that has some, of prefill's in this variant.
    pub(super) fn tiles(&self, variant: Variant) -> Vec<Tile> {
        let sequences = self.sequences();
        match &self.what {
            What::Prefill { shape, .. } => {
                attention_prefill::plan_tiles(&sequences, &shape.heads, shape.window, variant, |_| true)
            }
            What::OrderedDecode { shape, .. } | What::OrderedPrefill { shape, .. } => {
                attention_batch_invariant::plan_tiles(&sequences, &shape.heads, shape.window, |_| true)
            }
            _ => Vec::new(),
        }
    }

    /// Bytes of device memory that one set of its inputs and outputs takes, about.
    pub(super) fn set_bytes(&self) -> u64 {
        let product =
            |shape: &GemmShape, output: usize| 2 * (shape.n * shape.k + shape.m * shape.k) + output * shape.m * shape.n;
        let bytes = match &self.what {
            // The table is shared by all sets.
            What::Embed(shape) => 4 * shape.rows * shape.width,
            What::Norm(shape, _) => 4 * shape.rows * shape.pitch(),
            What::Qkv(shape, _) => {
                // A page of keys and one of values for each row.
                let cache = 4 * shape.rows * shape.kv_heads * shape.page_size * shape.head_dim;
                product(&shape.gemm_shape(), 4) + cache
            }
            What::Product(_, _, shape, _) | What::NormedProduct(_, _, shape, _) => product(shape, 2),
            What::Head(shape) => product(shape, 4),
            // All sets share the workspace.
            What::Decode { shape: DecodeShape { rows, heads, .. }, .. }
            | What::Prefill { shape: PrefillShape { rows, heads, .. }, .. }
            | What::OrderedDecode { shape: BatchInvariantShape { rows, heads, .. }, .. }
            | What::OrderedPrefill { shape: BatchInvariantShape { rows, heads, .. }, .. } => {
                self.cache_pages() * page_bytes(heads) + 4 * rows * heads.width()
            }
            What::Sample { rows, vocabulary, .. } | What::Logprobs { rows, vocabulary } => {
                4 * rows * padded(*vocabulary)
            }
        };
        bytes as u64
    }

    /// Pages of the cache that its sequences fill: those that lie before a window are there, too, as in a prefill.
    pub(super) fn cache_pages(&self) -> usize {
        let blocks = |sequence: &Sequence| (sequence.start + sequence.rows).div_ceil(PAGE_SIZE as u32) as usize;
        self.sequences().iter().map(blocks).sum()
    }
}

/// Bytes of keys and values in a page of one layer.
fn page_bytes(heads: &Heads) -> usize {
    2 * heads.kv * heads.dim * PAGE_SIZE * 2
}

/// `batch` sequences of `context` positions each, the last of them in this step. Tables follow each other.
fn decoding(batch: usize, context: usize) -> Vec<Sequence> {
    let blocks = context.div_ceil(PAGE_SIZE) as u32;
    let sequence = |index: u32| Sequence {
        first_row: index,
        rows: 1,
        start: context as u32 - 1,
        table: index * blocks,
        ..Sequence::PADDING
    };
    (0..batch as u32).map(sequence).collect()
}

/// One prompt, whole.
fn prompt(length: usize) -> Vec<Sequence> {
    vec![Sequence { rows: length as u32, ..Sequence::PADDING }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::GpuSpec;
    use crate::checkpoint::Config;

    fn h200() -> Properties {
        GpuSpec::h200().properties
    }

    fn all() -> Vec<Case> {
        let json = include_bytes!("../../../models/configs/starcoder2-15b.json");
        let spec = ModelSpec::from_config(&Config::parse(json, "config.json").unwrap()).unwrap();
        Case::all("starcoder2-15b", &spec, &h200())
    }

    #[test]
    fn rows_are_told_apart_by_name_and_sizes() {
        let rows: Vec<Row> = all().iter().map(|case| case.row(&h200())).collect();
        let mut keys: Vec<_> = rows.iter().map(Row::key).collect();
        assert!(keys.len() > 80, "{}", keys.len());
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
        let kernels = ["embed", "norm", "gemv up_proj", "gemv_normed up_proj", "gemm head", "attention_decode"];
        for kernel in kernels.into_iter().chain(["attention_prefill", "logprobs"]) {
            assert!(rows.iter().any(|row| row.name == kernel), "{kernel}");
        }
    }

    #[test]
    fn work_is_that_of_the_formulas() {
        let find = |name: &str, sizes: &str| {
            let rows: Vec<Row> = all().iter().map(|case| case.row(&h200())).collect();
            rows.into_iter().find(|row| row.name == name && row.sizes() == sizes).unwrap()
        };
        // 24576 x 6144 weights of 2 bytes, a row of each, biases.
        let gemv = find("gemv up_proj", "columns 24576, depth 6144, rows 1");
        assert_eq!(gemv.bytes, 2 * (24_576 * 6144 + 6144 + 24_576 + 24_576));
        assert_eq!(gemv.flops, 2 * 24_576 * 6144);
        // 4096 keys and values of 4 heads of 128, 64 sequences; 48 query heads in and out.
        let decode = find("attention_decode", "batch 64, context 4096");
        let tables = 20 + 4 * 64;
        assert_eq!(decode.bytes, 64 * (4096 * 2 * 4 * 128 * 2 + 2 * 48 * 128 * 2 + tables));
        // Pairs under the diagonal, 48 heads, two products of 128 multiply-adds.
        let prefill = find("attention_prefill", "length 8192, window none");
        assert_eq!(prefill.flops, 8192 * 8193 / 2 * 48 * 4 * 128);
        let window = find("attention_prefill", "length 8192, window 4096");
        assert_eq!(window.flops, (4096 * 4097 / 2 + 4096 * 4096) * 48 * 4 * 128);
    }
}
