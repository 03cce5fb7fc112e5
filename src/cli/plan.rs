//! `rigel plan`: whether a model fits a GPU, before there is one.

mod help;
mod record;
mod text;

use std::num::{NonZeroU64, NonZeroUsize};

use clap::{Args, ValueEnum};
use rigel::backend::cuda::GpuSpec;
use rigel::backend::cuda::model::{MAX_SEQUENCES, MemoryLine};
use rigel::backend::{BackendOptions, GpuPlan, WeightDtype};
use rigel::bench::shapes::Shapes;
use rigel::checkpoint::{Checkpoint, CheckpointError, Config};
use rigel::engine::Engine;
use rigel::host::Size;
use rigel::model::{Layer, ModelSpec};

use super::error::CliError;
use super::model_args::{DtypeOption, ModelArg, SizeOptions};
use super::numbers::count;
use super::output::Output;
use help::{EXAMPLES, JSON_HELP};
use record::{CardLimit, Line, Record};

/// Sequences of a step of a GPU where nothing is asked for.
const DEFAULT_SEQUENCES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Here a model's shapes are enough.
const MODEL_HELP: &str = "3b, 7b, 15b, a config.json, a checkpoint directory, or a hub id that `rigel pull` fetched [default: \
                          the bundled nano]";

/// Here there is a GPU, and nothing else takes its memory.
const MEMORY_HELP: &str = "Memory that the model may take, such as 70GiB [default: 90 % of the GPU's]";

/// Say whether a model fits a GPU, and how many sequences
///
/// Needs neither the GPU nor the weights: the same code that loads a model counts, line by line. A sequence counts with
/// its whole context. Exits with 1 where the model does not start, or where --max-seqs sequences do not fit at once.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP}"),
    mut_arg("model", |model| model.value_name("NAME|CONFIG|DIR|ID").help(MODEL_HELP)),
    mut_arg("memory", |memory| memory.help(MEMORY_HELP).help_heading("GPU"))
)]
pub struct Plan {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    dtype: DtypeOption,
    #[command(flatten)]
    size: SizeOptions,
    /// Sequences that are to fit at once [default: as many as do, up to 256]
    #[arg(long, aliases = ["max-num-seqs", "max-sequences"], value_parser = count::<NonZeroUsize>)]
    #[arg(value_name = "N", help_heading = "Model", allow_negative_numbers = true)]
    max_seqs: Option<NonZeroUsize>,
    /// Which GPU: workspaces depend on its SMs
    #[arg(long, value_enum, default_value_t, help_heading = "GPU")]
    gpu: GpuArg,
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

/// What is planned for.
struct Network {
    name: String,
    config: Config,
    /// Whose head a checkpoint may untie.
    spec: ModelSpec,
    /// Bytes of the weight files, which the CPU maps: of the checkpoint's files, or computed from the configuration's
    /// dtype.
    stored_bytes: u64,
}

impl Plan {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        if let Some(asked) = self.max_seqs.filter(|asked| asked.get() > MAX_SEQUENCES) {
            let message =
                format!("--max-seqs is {asked}; expected at most {MAX_SEQUENCES}, as many as a GPU's step takes");
            return Err(CliError::Usage(message));
        }
        let Network { name, config, spec, stored_bytes } = self.network()?;
        if let Some(context) = self.size.context.filter(|context| context.get() as usize > spec.max_positions) {
            let positions = spec.max_positions;
            tracing::warn!("--context {context}: the model has {positions} positions: planned for as many");
        }
        let gpu = self.gpu.card();
        let there_is = gpu.properties.memory_bytes;
        if let Some(asked) = self.size.memory.filter(|asked| asked.get() > there_is) {
            let (asked, there_is, name) = (Size(asked.get()), Size(there_is), &gpu.properties.name);
            tracing::warn!("--memory {asked}: {name} has {there_is}: planned as if it had as much as was asked for");
        }
        let options = self.size.apply(Engine::builder()).backend_options().clone();
        let room = self.size.memory.map_or_else(|| nine_tenths(&gpu), NonZeroU64::get);
        let plan = planned(self.max_seqs, &options, &spec, &gpu, room)?;
        let max_sequences = options.max_sequences(&spec, &gpu.properties, room)?;
        let sequences = NonZeroUsize::new(plan.sequences).unwrap_or(NonZeroUsize::MIN);
        let longest_context = match plan.fits() {
            true => None,
            false => options.for_sequences(sequences).longest_context(&spec, &gpu.properties, room)?,
        };
        let dtype = WeightDtype::from(self.dtype.dtype).of_config(&config);
        let counts = spec.counts();
        let driver = Line { what: "driver, kept free", bytes: plan.driver_bytes };
        let lines = plan.memory.lines.iter().map(|&MemoryLine { what, bytes }| Line { what, bytes });
        let record = Record {
            model: &name,
            dtype: dtype.to_string(),
            gpu: &gpu.properties.name,
            sequences: plan.sequences,
            max_seqs_given: self.max_seqs.is_some(),
            context: plan.positions,
            prefill_chunk: plan.rows,
            memory_bytes: room,
            gpu_memory_bytes: there_is,
            lines: lines.chain([driver]).collect(),
            needed_bytes: plan.needed(),
            fits: plan.fits(),
            starts: plan.starts(),
            page_size: plan.page_size,
            pages_of_sequence: plan.pages_of_sequence,
            pages: plan.pages.unwrap_or(0),
            whole_sequences: plan.whole_sequences(),
            sequences_at_once: plan.sequences_at_once(),
            window: spec.window(),
            longest_context,
            max_sequences,
            weight_bytes_per_token: counts.weight_bytes_per_token(dtype.size()),
            kv_bytes_per_token: counts.kv_bytes_per_token(dtype.size()),
            cpu: options.plan_cpu(&spec, stored_bytes).into(),
            limits: limits(self.max_seqs, &options, &spec, &plan)?,
        };
        if self.json {
            out.json(&record)?
        } else {
            out.text(&text::text(&record))?
        }
        refusal(&record).map_or(Ok(()), |line| Err(CliError::Failed(line)))
    }

    /// What it is called, its configuration, the network, whose head a checkpoint may untie, and the bytes that it
    /// takes as stored.
    fn network(&self) -> Result<Network, CliError> {
        let source = self.model.shape_or_source()?;
        match Checkpoint::open(&source) {
            Ok(checkpoint) => {
                let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
                spec.untie_stored_head(&checkpoint);
                let stored_bytes = checkpoint.files().iter().map(|file| file.bytes).sum();
                Ok(Network { name: source.to_string(), config: checkpoint.config().clone(), spec, stored_bytes })
            }
            // Without weights its config.json is enough.
            Err(CheckpointError::NoWeights { .. } | CheckpointError::MissingFile { .. }) => {
                let Shapes { name, config, spec, .. } = Shapes::of_source(&source)?;
                // As transformers has it: f32 where the configuration names no dtype.
                let element = if matches!(config.dtype.as_deref(), Some("bfloat16" | "float16")) { 2 } else { 4 };
                let stored_bytes = spec.counts().parameters * element;
                Ok(Network { name, config, spec, stored_bytes })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl GpuArg {
    fn card(self) -> GpuSpec {
        let value = self.to_possible_value();
        let name = value.as_ref().map_or("h100", |value| value.get_name());
        // A test holds the names of the arguments against those of the cards.
        GpuSpec::find(name).unwrap_or_else(|| GpuSpec::all().swap_remove(0))
    }
}

/// What loading takes of a card where nothing is asked for.
fn nine_tenths(card: &GpuSpec) -> u64 {
    card.properties.memory_bytes - card.properties.memory_bytes / 10
}

/// Bytes of the weights on a GPU.
fn weights(plan: &GpuPlan) -> u64 {
    plan.memory.lines.first().map_or(0, |line| line.bytes)
}

fn limits(
    max_seqs: Option<NonZeroUsize>,
    options: &BackendOptions,
    spec: &ModelSpec,
    plan: &GpuPlan,
) -> Result<Vec<CardLimit>, CliError> {
    let counts = spec.counts();
    let read = counts.weight_bytes_per_token(2) as f64;
    // Positions that a layer reads, of all layers.
    let visible =
        |layer: &Layer| layer.attention.window.map_or(plan.positions, |w| plan.positions.min(w.get() as usize));
    let visible: usize = spec.layers.iter().map(visible).sum();
    let cache = (2 * 2 * spec.kv_heads * spec.head_dim * visible) as f64;
    let limit = |card: GpuSpec| {
        let room = nine_tenths(&card);
        let on_card = planned(max_seqs, options, spec, &card, room)?;
        Ok(CardLimit {
            gpu: card.name,
            memory_bytes: card.properties.memory_bytes,
            bytes_per_second: card.bytes_per_second,
            tokens_per_second: card.bytes_per_second / read,
            tokens_per_second_at_context: card.bytes_per_second / (read + cache),
            fits: on_card.fits(),
            starts: on_card.starts(),
            sequences_at_once: on_card.sequences_at_once(),
            holds_weights: weights(&on_card) <= room,
        })
    };
    GpuSpec::all().into_iter().map(limit).collect()
}

/// The plan of as many sequences as were asked for; else of as many as fit at once, up to the default, one at the
/// least.
fn planned(
    max_seqs: Option<NonZeroUsize>,
    options: &BackendOptions,
    spec: &ModelSpec,
    card: &GpuSpec,
    room: u64,
) -> Result<GpuPlan, CliError> {
    let sequences = match max_seqs {
        Some(sequences) => sequences,
        None => options
            .max_sequences(spec, &card.properties, room)?
            .map_or(NonZeroUsize::MIN, |most| most.min(DEFAULT_SEQUENCES)),
    };
    Ok(options.for_sequences(sequences).plan_gpu(spec, &card.properties, room)?)
}

/// What is missing, and what would fit; nothing where all does that was asked for.
fn refusal(record: &Record<'_>) -> Option<String> {
    let Record { sequences, context, .. } = record;
    let room = Size(record.memory_bytes);
    if !record.starts {
        let advice = match record.longest_context {
            Some(longest) => format!("a context of {longest} starts"),
            None => "use a smaller model or a GPU with more memory".to_owned(),
        };
        return Some(format!("does not start: {}; {advice}", text::shortage(record)));
    }
    if record.fits || !record.max_seqs_given {
        return None;
    }
    let mut ways = Vec::new();
    ways.extend(record.max_sequences.map(|most| format!("{most} sequences of {context} positions")));
    ways.extend(record.longest_context.map(|longest| format!("{sequences} sequences of {longest} positions")));
    let needed = Size(record.needed_bytes);
    let mut line = format!("does not fit: {sequences} sequences of {context} positions need {needed} > {room}");
    if !ways.is_empty() {
        line += &format!("; what fits: {}", ways.join(", or "));
    }
    Some(line + "; it runs all the same, and sequences wait for each other")
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
        assert_eq!(names, GpuSpec::all().iter().map(|card| card.name.to_owned()).collect::<Vec<_>>());
    }
}
