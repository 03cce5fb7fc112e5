//! Which model, and where it runs.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use clap::{Args, ValueEnum};
use rigel::backend::{Arithmetic, WeightDtype};
use rigel::checkpoint::{ModelSource, WeightLoading};
use rigel::engine::{Device, Engine, EngineBuilder, Speculation};
use rigel::text::Tokenizer;

use super::error::CliError;
use super::load_bar::LoadBar;

/// `--model`, for commands that read files only.
#[derive(Debug, Args)]
pub struct ModelArg {
    /// Checkpoint directory, or hub id found in the local Hugging Face cache [default: the bundled nano]
    #[arg(long, short, value_name = "DIR|ID", help_heading = "Model")]
    model: Option<String>,
}

impl ModelArg {
    /// Finds the model's files.
    pub fn source(&self) -> Result<ModelSource, CliError> {
        Ok(match &self.model {
            None => ModelSource::nano(),
            Some(model) => ModelSource::resolve(model)?,
        })
    }

    /// What the model is called where nothing else is known of it.
    pub fn name(&self) -> String {
        self.model.clone().unwrap_or_else(|| "nano".to_owned())
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

fn no_tokenizer(source: &ModelSource) -> CliError {
    rigel::engine::EngineError::NoTokenizer { file: source.describe("tokenizer.json") }.into()
}

/// `--model` and what it takes to run it.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub model: ModelArg,
    /// Where the model runs; auto takes the GPU where there is one, else the CPU
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    device: DeviceArg,
    /// Dtype of the weights on a GPU; auto keeps f16 and makes bf16 of all else. The CPU uses them as stored
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    dtype: DtypeArg,
    /// Threads of the CPU backend, at most one for each core that the process may use [default: as many]
    #[arg(long, value_name = "N", help_heading = "Model", allow_negative_numbers = true)]
    threads: Option<NonZeroUsize>,
    /// Positions to make room for, prompt and completion together [default: the model's]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", allow_negative_numbers = true)]
    context: Option<NonZeroU32>,
    /// The most prompt tokens computed in one step [default: 256 on the CPU, 2048 on a GPU]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", allow_negative_numbers = true)]
    prefill_chunk: Option<NonZeroU32>,
    /// Memory that the model may take of its device, such as 20GiB; on the CPU without the weights [default: 90 % of what is
    /// free on a GPU, on the CPU half of what the machine and the container leave]
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Model", allow_negative_numbers = true)]
    memory: Option<NonZeroU64>,
    /// Read the weight files into memory at the start instead of mapping them: for files on a network, or that may change
    /// or vanish meanwhile. On a GPU the memory is given back once the weights are there
    #[arg(long, help_heading = "Model")]
    no_mmap: bool,
    /// Keep the weights in memory: read them at the start and never let the system take them back. Where it refuses, a
    /// warning says what to raise. Of no effect on a GPU
    #[arg(long, help_heading = "Model")]
    mlock: bool,
    /// Draft tokens that came after the same ones before; auto does on the CPU. The text is the same either way
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    speculation: SpeculationArg,
    /// On a GPU, give a request the same log-probabilities, bit for bit, in any company, at some cost. The CPU always does
    #[arg(long, help_heading = "Model")]
    batch_invariant: bool,
}

/// A number of bytes: digits, and a unit or none.
pub fn bytes(text: &str) -> Result<NonZeroU64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|digits| (digits.trim_end(), *unit)))
        .unwrap_or((text, 1));
    let whole = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)).and_then(NonZeroU64::new);
    whole.ok_or_else(|| "expected a whole number above 0 and a unit, such as 20GiB or 800MB".to_owned())
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
        self.context.map(NonZeroU32::get)
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
            .device(self.device.into())
            .dtype(self.dtype.into())
            .arithmetic(self.arithmetic())
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
        if let Some(bytes) = self.memory {
            builder = builder.memory(bytes);
        }
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(context) = self.context {
            builder = builder.context(context);
        }
        if let Some(rows) = self.prefill_chunk {
            builder = builder.prefill_chunk(rows);
        }
        builder
    }

    /// `--device`.
    #[cfg(feature = "cuda")]
    pub fn device(&self) -> Device {
        self.device.into()
    }

    /// `--batch-invariant`.
    pub fn arithmetic(&self) -> Arithmetic {
        if self.batch_invariant { Arithmetic::BatchInvariant } else { Arithmetic::Fastest }
    }

    /// Threads that the CPU backend gets.
    pub fn cpu_threads(&self) -> usize {
        let cores = rigel::backend::cpu::available_cores();
        self.threads.unwrap_or(cores).min(cores).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let size = |text| bytes(text).map(NonZeroU64::get);
        assert_eq!(size("17"), Ok(17));
        assert_eq!(size("20GiB"), Ok(20 << 30));
        assert_eq!(size("800 MB"), Ok(800_000_000));
        assert_eq!(size("5B"), Ok(5));
        for wrong in ["", "0GiB", "-1", "1.5GiB", "GiB", "99999999999TiB", "5 parsecs"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
