//! Which model, and where it runs.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use clap::{Args, ValueEnum};
use rigel::backend::{Determinism, Device, WeightDtype};
use rigel::checkpoint::{ModelSource, WeightLoading};
use rigel::engine::{Engine, EngineBuilder, Speculation};
use rigel::text::Tokenizer;

use super::error::CliError;
use super::load_bar::LoadBar;
use super::model_source;
use super::numbers::{bytes, count};

/// The variable that stands for `--model`.
pub const MODEL_VARIABLE: &str = "RIGEL_MODEL";

/// `--model`, for commands that read files only.
#[derive(Debug, Args)]
pub struct ModelArg {
    /// Checkpoint directory, or hub id (ORG/NAME, ORG/NAME@REVISION) that `rigel pull` fetched [default: the bundled
    /// nano]
    #[arg(long, short, env = MODEL_VARIABLE, hide_env = true, value_name = "DIR|ID", help_heading = "Model")]
    model: Option<String>,
}

impl ModelArg {
    /// Finds the model's files.
    pub fn source(&self) -> Result<ModelSource, CliError> {
        logged(self.named().map_or_else(default_model, model_source::with_weights)?)
    }

    /// The same for a command that has `--dummy-weights`.
    pub fn source_or_dummy(&self) -> Result<ModelSource, CliError> {
        logged(self.named().map_or_else(default_model, model_source::with_weights_or_dummy)?)
    }

    /// The same where the shapes are enough: 3b, 7b, 15b or a config.json.
    pub fn shape_or_source(&self) -> Result<ModelSource, CliError> {
        logged(match self.named() {
            None => default_model()?,
            Some(name) => ModelSource::resolve_shape(name)?,
        })
    }

    /// What the model is called where nothing else is known of it.
    pub fn name(&self) -> String {
        self.named().unwrap_or("nano").to_owned()
    }

    /// The model asked for.
    pub fn named(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The model's tokenizer; reads no weights.
    pub fn tokenizer(&self) -> Result<Tokenizer, CliError> {
        let source = self.source()?;
        match Tokenizer::from_source(&source)? {
            Some(tokenizer) => Ok(tokenizer),
            None => Err(no_tokenizer(&source)),
        }
    }
}

/// The model of a command that was given none.
///
/// # Errors
/// [`CliError::Usage`] in a program without the bundled model.
fn default_model() -> Result<ModelSource, CliError> {
    if cfg!(feature = "nano") {
        return Ok(ModelSource::nano());
    }
    let missing = "no model: this program was built without the bundled one (cargo feature nano); give --model DIR|ID";
    Err(CliError::Usage(missing.to_owned()))
}

/// Says which files a name came to.
fn logged(source: ModelSource) -> Result<ModelSource, CliError> {
    tracing::info!("model: {}", source.describe("config.json"));
    Ok(source)
}

fn no_tokenizer(source: &ModelSource) -> CliError {
    rigel::engine::EngineError::NoTokenizer { file: source.describe("tokenizer.json") }.into()
}

/// What a variable that stands for a flag may be set to.
fn flag() -> clap::builder::FalseyValueParser {
    clap::builder::FalseyValueParser::new()
}

/// `--device`.
#[derive(Debug, Args)]
pub struct DeviceOption {
    /// Where the model runs; auto takes the GPU where there is one, else the CPU
    #[arg(long, env = "RIGEL_DEVICE", hide_env = true, value_enum, default_value_t, help_heading = "Model")]
    pub device: DeviceArg,
}

/// `--dtype`.
#[derive(Debug, Args)]
pub struct DtypeOption {
    /// Dtype of the weights on a GPU; auto keeps f16 and makes bf16 of all else. The CPU uses them as stored
    #[arg(long, env = "RIGEL_DTYPE", hide_env = true, value_enum, default_value_t, help_heading = "Model")]
    pub dtype: DtypeArg,
}

/// How much room a model gets.
#[derive(Debug, Args)]
pub struct SizeOptions {
    /// Positions to make room for, prompt and completion together [default: the model's]
    #[arg(long, short, aliases = ["ctx-size", "n-ctx", "max-model-len"], env = "RIGEL_CONTEXT", hide_env = true)]
    #[arg(value_name = "TOKENS", value_parser = count::<NonZeroU32>, help_heading = "Model", allow_negative_numbers = true)]
    pub context: Option<NonZeroU32>,
    /// The most prompt tokens computed in one step [default: 256 on the CPU, 2048 on a GPU]
    #[arg(long, aliases = ["max-num-batched-tokens", "ubatch-size"], env = "RIGEL_PREFILL_CHUNK", hide_env = true)]
    #[arg(value_name = "TOKENS", value_parser = count::<NonZeroU32>, help_heading = "Model", allow_negative_numbers = true)]
    prefill_chunk: Option<NonZeroU32>,
    /// Memory that the model may take of its device, such as 20GiB; on the CPU without the weights [default: 90 % of
    /// what is free on a GPU, on the CPU half of what the machine and the container leave]
    #[arg(long, env = "RIGEL_MEMORY", hide_env = true, value_name = "SIZE", value_parser = bytes)]
    #[arg(help_heading = "Model", allow_negative_numbers = true)]
    pub memory: Option<NonZeroU64>,
}

impl SizeOptions {
    /// The builder, told of them.
    pub fn apply(&self, mut builder: EngineBuilder) -> EngineBuilder {
        if let Some(context) = self.context {
            builder = builder.context(context);
        }
        if let Some(rows) = self.prefill_chunk {
            builder = builder.prefill_chunk(rows);
        }
        if let Some(bytes) = self.memory {
            builder = builder.memory(bytes);
        }
        builder
    }
}

/// `--batch-invariant`.
#[derive(Debug, Args)]
pub struct DeterminismOption {
    /// On a GPU, give a request the same log-probabilities, bit for bit, in any company, at some cost. The CPU always
    /// does
    #[arg(long, env = "RIGEL_BATCH_INVARIANT", hide_env = true, value_parser = flag(), help_heading = "Model")]
    batch_invariant: bool,
}

impl DeterminismOption {
    pub fn determinism(&self) -> Determinism {
        if self.batch_invariant { Determinism::BatchInvariant } else { Determinism::Fast }
    }
}

/// `--model` and what it takes to run it.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    device: DeviceOption,
    #[command(flatten)]
    dtype: DtypeOption,
    /// Threads of the CPU backend, at most one for each core that the process may use [default: as many]
    #[arg(long, env = "RIGEL_THREADS", hide_env = true, value_parser = count::<NonZeroUsize>)]
    #[arg(value_name = "N", help_heading = "Model", allow_negative_numbers = true)]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    size: SizeOptions,
    /// Read the weight files into memory at the start instead of mapping them: for files on a network, or that may
    /// change or vanish meanwhile. On a GPU the memory is given back once the weights are there
    #[arg(long, env = "RIGEL_NO_MMAP", hide_env = true, value_parser = flag(), help_heading = "Model")]
    no_mmap: bool,
    /// Keep the weights in memory: read them at the start and never let the system take them back. Where it refuses, a
    /// warning says what to raise. Of no effect on a GPU
    #[arg(long, env = "RIGEL_MLOCK", hide_env = true, value_parser = flag(), help_heading = "Model")]
    mlock: bool,
    /// Draft tokens that came after the same ones before; auto does on the CPU. The text is the same either way
    #[arg(long, env = "RIGEL_SPECULATION", hide_env = true, value_enum, default_value_t, help_heading = "Model")]
    speculation: SpeculationArg,
    #[command(flatten)]
    determinism: DeterminismOption,
}

/// How many requests a command has computed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// One after the other: room for more is not taken.
    One,
    /// As many as the engine takes, or at most so many.
    Many(Option<NonZeroUsize>),
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum DeviceArg {
    #[default]
    Auto,
    Cpu,
    #[value(alias = "gpu")]
    Cuda,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum DtypeArg {
    #[default]
    Auto,
    Bf16,
    F16,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum SpeculationArg {
    #[default]
    Auto,
    PromptLookup,
    Off,
}

impl From<DtypeArg> for WeightDtype {
    fn from(dtype: DtypeArg) -> WeightDtype {
        match dtype {
            DtypeArg::Auto => WeightDtype::Auto,
            DtypeArg::Bf16 => WeightDtype::Bf16,
            DtypeArg::F16 => WeightDtype::F16,
        }
    }
}

impl From<DeviceArg> for Device {
    fn from(device: DeviceArg) -> Device {
        match device {
            DeviceArg::Auto => Device::Auto,
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Cuda => Device::Cuda,
        }
    }
}

impl ModelArgs {
    /// `--context`.
    pub fn context(&self) -> Option<u32> {
        self.size.context.map(NonZeroU32::get)
    }

    /// Loads the model and starts the engine.
    pub fn engine(&self, source: ModelSource, bar: LoadBar, load: Load) -> Result<Engine, CliError> {
        Ok(self.builder(load).source(source).on_load(bar.drawer()).build()?)
    }

    /// An engine to be, of everything but the model.
    pub fn builder(&self, load: Load) -> EngineBuilder {
        let speculation = match self.speculation {
            SpeculationArg::Auto => Speculation::Auto,
            SpeculationArg::PromptLookup => Speculation::PromptLookup,
            SpeculationArg::Off => Speculation::Off,
        };
        let mut builder = Engine::builder()
            .device(self.device.device.into())
            .dtype(self.dtype.dtype.into())
            .determinism(self.determinism())
            .speculation(speculation);
        match load {
            Load::One => builder = builder.max_sequences(NonZeroUsize::MIN),
            Load::Many(None) => {}
            Load::Many(Some(most)) => builder = builder.max_sequences(most),
        }
        if self.no_mmap {
            builder = builder.weight_loading(WeightLoading::Read);
        }
        if self.mlock {
            builder = builder.mlock();
        }
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        self.size.apply(builder)
    }

    /// `--device`.
    #[cfg(feature = "cuda")]
    pub fn device(&self) -> Device {
        self.device.device.into()
    }

    /// `--batch-invariant`.
    pub fn determinism(&self) -> Determinism {
        self.determinism.determinism()
    }

    /// Threads that the CPU backend gets.
    pub fn cpu_threads(&self) -> usize {
        let cores = rigel::backend::cpu::available_cores();
        self.threads.unwrap_or(cores).min(cores).get()
    }
}
