//! Which model, and where it runs.

use std::num::{NonZeroU32, NonZeroUsize};

use clap::{Args, ValueEnum};
use rigel::backend::WeightDtype;
use rigel::checkpoint::ModelSource;
use rigel::engine::{Device, Engine};
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
    /// Threads of the CPU backend [default: all cores]
    #[arg(long, value_name = "N", help_heading = "Model", allow_negative_numbers = true)]
    threads: Option<NonZeroUsize>,
    /// Positions to make room for, prompt and completion together [default: the model's]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", allow_negative_numbers = true)]
    context: Option<NonZeroU32>,
    /// The most prompt tokens computed in one step [default: 256 on the CPU, 2048 on a GPU]
    #[arg(long, value_name = "TOKENS", help_heading = "Model", allow_negative_numbers = true)]
    prefill_chunk: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DeviceArg {
    #[default]
    Auto,
    Cpu,
    Cuda,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum DtypeArg {
    #[default]
    Auto,
    Bf16,
    F16,
}

impl ModelArgs {
    /// `--context`.
    pub fn context(&self) -> Option<u32> {
        self.context.map(NonZeroU32::get)
    }

    /// Loads the model and starts the engine.
    pub fn engine(&self, source: ModelSource, bar: LoadBar) -> Result<Engine, CliError> {
        let device = match self.device {
            DeviceArg::Auto => Device::Auto,
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Cuda => Device::Cuda,
        };
        let dtype = match self.dtype {
            DtypeArg::Auto => WeightDtype::Auto,
            DtypeArg::Bf16 => WeightDtype::Bf16,
            DtypeArg::F16 => WeightDtype::F16,
        };
        let mut builder = Engine::builder().source(source).device(device).dtype(dtype).on_load(bar.drawer());
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(context) = self.context {
            builder = builder.context(context);
        }
        if let Some(rows) = self.prefill_chunk {
            builder = builder.prefill_chunk(rows);
        }
        Ok(builder.build()?)
    }
}
