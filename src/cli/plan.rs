//! `rigel plan`: whether a model fits a GPU, before there is one.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use clap::{Args, ValueEnum};
use rigel::backend::WeightDtype;
use rigel::backend::cuda::Card;
use rigel::backend::cuda::model::MemoryLine;
use rigel::bench::shapes::Shapes;
use rigel::bench::table::{Table, digits};
use rigel::checkpoint::{Checkpoint, CheckpointError, Config, ModelSource};
use rigel::engine::{Engine, EngineBuilder, GpuPlan};
use rigel::model::{ModelSpec, grouped};
use serde::Serialize;

use super::error::CliError;
use super::model_args::{DtypeArg, default_model};
use super::numbers::bytes;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel plan --model 15b --memory 80GiB --max-seqs 64 --context 8192
  rigel plan --model ./starcoder2-7b --gpu rtx4090
  rigel plan --model config.json --gpu h200 --max-seqs 256 --json";

/// Does a model fit a GPU? Line by line what it would take there, before anything is loaded
///
/// Needs neither the GPU nor the weights: the same code that loads a model counts. Fits means: that many sequences can
/// have the whole context at once. Exits with 1 where they cannot, and says what can.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    /// 3b, 7b, 15b, a config.json, a checkpoint directory, or a hub id found in the local Hugging Face cache [default:
    /// the bundled nano]
    #[arg(long, short, value_name = "NAME|CONFIG|DIR|ID", help_heading = "Model")]
    model: Option<String>,
    /// Dtype of the weights; auto keeps f16 and makes bf16 of all else
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    dtype: DtypeArg,
    /// Positions of a sequence, prompt and completion together [default: the model's]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", allow_negative_numbers = true)]
    context: Option<NonZeroU32>,
    /// Sequences computed at once
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Model", allow_negative_numbers = true)]
    max_seqs: NonZeroUsize,
    /// The most prompt tokens computed in one step [default: 2048]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", allow_negative_numbers = true)]
    prefill_chunk: Option<NonZeroU32>,
    /// Which GPU: workspaces depend on its multiprocessors
    #[arg(long, value_enum, default_value_t, help_heading = "GPU")]
    gpu: GpuArg,
    /// Memory that the model may take, such as 80GiB [default: 90 % of the GPU's]
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "GPU", allow_negative_numbers = true)]
    memory: Option<NonZeroU64>,
    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The cards that are known by name.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum GpuArg {
    H200,
    #[default]
    H100,
    H100Pcie,
    A100,
    #[value(name = "a100-40gb")]
    A10040gb,
    L40s,
    Rtx4090,
    Rtx3090,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Record<'a> {
    model: &'a str,
    dtype: String,
    gpu: &'a str,
    sequences: usize,
    context: usize,
    prefill_chunk: usize,
    /// Bytes that there are.
    memory_bytes: u64,
    lines: Vec<Line>,
    /// All lines, the driver's too.
    needed_bytes: u64,
    fits: bool,
    /// Whether it runs all the same, with sequences that wait for each other.
    starts: bool,
    page_size: u32,
    pages_of_sequence: u32,
    /// Pages that there is room for.
    pages: u32,
    /// Sequences of the whole context that those are.
    whole_sequences: u32,
    /// The longest context with as many sequences.
    longest_context: Option<NonZeroU32>,
    /// The most sequences with this context.
    most_sequences: Option<NonZeroUsize>,
    /// Bytes of weights that a decoded token reads.
    weight_bytes_per_token: u64,
    /// Bytes that a token adds to the cache.
    kv_bytes_per_token: u64,
    /// Decoded tokens a second, one sequence, that the memory of each card allows by its data sheet.
    limits: Vec<CardLimit>,
}

#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct CardLimit {
    gpu: &'static str,
    memory_bytes: u64,
    bytes_per_second: f64,
    /// With an empty cache.
    tokens_per_second: f64,
    /// With all keys and values that the context and the window let a token see.
    tokens_per_second_at_context: f64,
    /// Whether as many sequences of that context fit 90 % of its memory.
    fits: bool,
}

impl Plan {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let (name, config, spec) = self.network()?;
        let gpu = self.gpu.card();
        let mut builder = Engine::builder().max_sequences(self.max_seqs);
        if let Some(context) = self.context {
            builder = builder.context(context);
        }
        if let Some(rows) = self.prefill_chunk {
            builder = builder.prefill_chunk(rows);
        }
        let room = self.memory.map_or_else(|| nine_tenths(&gpu), NonZeroU64::get);
        let plan = builder.plan(&spec, &gpu.properties, room)?;
        let (longest_context, most_sequences) = if plan.fits() {
            (None, builder.most_sequences(&spec, &gpu.properties, room)?)
        } else {
            let longest = builder.longest_context(&spec, &gpu.properties, room)?;
            (longest, builder.most_sequences(&spec, &gpu.properties, room)?)
        };
        let dtype = WeightDtype::from(self.dtype).of_config(&config);
        let counts = spec.counts();
        let driver = Line { what: "driver, kept free", bytes: plan.driver_bytes };
        let lines = plan.memory.lines.iter().map(|&MemoryLine { what, bytes }| Line { what, bytes });
        let record = Record {
            model: &name,
            dtype: dtype.to_string(),
            gpu: &gpu.properties.name,
            sequences: plan.sequences,
            context: plan.positions,
            prefill_chunk: plan.rows,
            memory_bytes: room,
            lines: lines.chain([driver]).collect(),
            needed_bytes: plan.needed(),
            fits: plan.fits(),
            starts: plan.starts(),
            page_size: plan.page_size,
            pages_of_sequence: plan.pages_of_sequence,
            pages: plan.pages.unwrap_or(0),
            whole_sequences: plan.whole_sequences(),
            longest_context,
            most_sequences,
            weight_bytes_per_token: counts.weight_bytes_per_token(dtype.size()),
            kv_bytes_per_token: counts.kv_bytes_per_token(dtype.size()),
            limits: limits(&builder, &spec, &plan)?,
        };
        if self.json {
            out.json(&record)?
        } else {
            out.text(&text(&record))?
        }
        if record.fits { Ok(()) } else { Err(CliError::Failed(refusal(&record))) }
    }

    /// What it is called, its configuration, and the network, whose head a checkpoint may untie.
    fn network(&self) -> Result<(String, Config, ModelSpec), CliError> {
        let checkpoint = |source: &ModelSource| -> Result<_, CliError> {
            let checkpoint = Checkpoint::open(source)?;
            let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
            spec.untie_stored_head(&checkpoint);
            Ok((source.to_string(), checkpoint.config().clone(), spec))
        };
        let Some(model) = &self.model else { return checkpoint(&default_model()?) };
        let path = std::path::Path::new(model);
        if path.is_dir() {
            match checkpoint(&ModelSource::directory(path)?) {
                // Without weights its config.json is enough.
                Err(CliError::Checkpoint(CheckpointError::MissingFile { .. })) => {}
                other => return other,
            }
        }
        match Shapes::resolve(model) {
            Ok(Shapes { name, config, spec, .. }) => Ok((name, config, spec)),
            Err(error @ rigel::bench::shapes::ShapesError::Unknown { .. }) => match ModelSource::resolve(model) {
                Ok(source) => checkpoint(&source),
                // A hub id that is not there says how to get it.
                Err(error @ CheckpointError::NotInCache { .. }) => Err(error.into()),
                Err(_) => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

impl GpuArg {
    fn card(self) -> Card {
        let value = self.to_possible_value();
        let name = value.as_ref().map_or("h100", |value| value.get_name());
        // A test holds the names of the arguments against those of the cards.
        Card::find(name).unwrap_or_else(|| Card::all().swap_remove(0))
    }
}

/// What loading takes of a card where nothing is asked for.
fn nine_tenths(card: &Card) -> u64 {
    card.properties.memory_bytes - card.properties.memory_bytes / 10
}

fn limits(builder: &EngineBuilder, spec: &ModelSpec, plan: &GpuPlan) -> Result<Vec<CardLimit>, CliError> {
    let counts = spec.counts();
    let weights = counts.weight_bytes_per_token(2) as f64;
    let visible = spec.window.map_or(plan.positions, |window| plan.positions.min(window.get() as usize));
    let cache = (counts.kv_bytes_per_token(2) * visible as u64) as f64;
    let limit = |card: Card| {
        Ok(CardLimit {
            gpu: card.name,
            memory_bytes: card.properties.memory_bytes,
            bytes_per_second: card.bytes_per_second,
            tokens_per_second: card.bytes_per_second / weights,
            tokens_per_second_at_context: card.bytes_per_second / (weights + cache),
            fits: builder.plan(spec, &card.properties, nine_tenths(&card))?.fits(),
        })
    };
    Card::all().into_iter().map(limit).collect()
}

/// `31.9 GB`, `201 MB`, `54.8 kB`
fn size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        1_000_000_000.. => (1e9, "GB"),
        1_000_000.. => (1e6, "MB"),
        _ => (1e3, "kB"),
    };
    format!("{} {name}", digits(bytes as f64 / unit))
}

fn text(record: &Record<'_>) -> String {
    let Record { model, dtype, gpu, sequences, context, prefill_chunk, .. } = record;
    let mut table = Table::new(&["on the GPU", ">bytes", ">"]);
    for Line { what, bytes } in &record.lines {
        table.row([(*what).to_owned(), grouped(*bytes), size(*bytes)]);
    }
    table.row(["all".to_owned(), grouped(record.needed_bytes), size(record.needed_bytes)]);
    table.row(["there is".to_owned(), grouped(record.memory_bytes), size(record.memory_bytes)]);
    if let Some(left) = record.memory_bytes.checked_sub(record.needed_bytes) {
        table.row(["left".to_owned(), grouped(left), size(left)]);
    }
    let mut cards = Table::new(&["GPU", ">GB", ">GB/s", ">tokens/s", ">at the context", "fits"]);
    for limit in &record.limits {
        cards.row([
            limit.gpu.to_owned(),
            digits(limit.memory_bytes as f64 / 1e9),
            digits(limit.bytes_per_second / 1e9),
            digits(limit.tokens_per_second),
            digits(limit.tokens_per_second_at_context),
            if limit.fits { "yes" } else { "no" }.to_owned(),
        ]);
    }
    let fits = match (record.fits, record.most_sequences) {
        (true, Some(most)) => format!("fits; up to {most} sequences of this context would\n"),
        (true, None) => "fits\n".to_owned(),
        (false, _) => "does not fit\n".to_owned(),
    };
    format!(
        "{model} in {dtype} on {gpu}: {sequences} sequences of {context} positions, prompts in chunks of \
         {prefill_chunk}\n\n{table}\nThe cache has room for {pages} pages of {page_size} positions, {whole} sequences of \
         up to {of_sequence} pages.\n{fits}\nA decoded token reads {weights} bytes of weights and adds {kv} to the cache. \
         What memory alone allows one\nsequence, by data sheets, without keys and values and with all that it sees; whether \
         all sequences fit 90 % of the memory:\n\n{cards}",
        pages = record.pages,
        page_size = record.page_size,
        whole = record.whole_sequences,
        of_sequence = record.pages_of_sequence,
        weights = grouped(record.weight_bytes_per_token),
        kv = grouped(record.kv_bytes_per_token),
    )
}

/// What is missing, and what would fit.
fn refusal(record: &Record<'_>) -> String {
    let Record { sequences, context, .. } = record;
    let missing = size(record.needed_bytes.saturating_sub(record.memory_bytes));
    let mut ways = Vec::new();
    ways.extend(record.most_sequences.map(|most| format!("{most} sequences of {context} positions")));
    ways.extend(record.longest_context.map(|longest| format!("{sequences} sequences of {longest} positions")));
    let mut line = format!("does not fit: {missing} are missing; ");
    match ways.is_empty() {
        true => line.push_str("no number of sequences fits: use a smaller model or a GPU with more memory"),
        false => line.push_str(&format!("what fits: {}", ways.join(", or "))),
    }
    if record.starts {
        let pages = format!("; it runs all the same with {} pages, and sequences wait for each other", record.pages);
        line.push_str(&pages);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_can_be_asked_for() {
        let names: Vec<String> = GpuArg::value_variants()
            .iter()
            .map(|gpu| {
                assert_eq!(gpu.to_possible_value().unwrap().get_name(), gpu.card().name);
                gpu.card().name.to_owned()
            })
            .collect();
        assert_eq!(names, Card::all().iter().map(|card| card.name.to_owned()).collect::<Vec<_>>());
    }
}
