//! `rigel synth`: a checkpoint of random weights.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use clap::{Args, ValueEnum};
use rigel::bench::shapes::Shapes;
use rigel::bench::synthetic::{Synthetic, SyntheticError, Written};
use rigel::checkpoint::Dtype;
use rigel::host::{Size, counted};

use super::error::CliError;
use super::load_bar::LoadBar;
use super::model_source::with_weights;
use super::numbers::bytes;
use super::output::Output;
use super::signals;

const EXAMPLES: &str = "\
Examples:
  rigel synth 3b --out ./random-3b
  rigel synth 15b --out /data/random-15b --shard-size 10GB
  rigel synth config.json --out ./tiny --dtype f32 --seed 7 --tokenizer nano";

/// Write a checkpoint of random weights
///
/// Writes config.json and safetensors shards, as the Hugging Face hub has them. Equal seeds give equal weights, also
/// those of --dummy-weights. The files are written into DIR.unfinished, which is renamed to DIR once they are complete.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Synth {
    /// 3b, 7b, 15b, a config.json, or a model that has one
    #[arg(value_name = "NAME|CONFIG")]
    config: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Dtype of the weights
    #[arg(long, value_enum, default_value_t)]
    dtype: StoredArg,
    /// Maximum size of one file; a larger tensor gets a file of its own
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "5GB", allow_negative_numbers = true)]
    shard_size: std::num::NonZeroU64,
    /// Random seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u32,
    /// Copy the tokenizer of this model: a directory, a hub id, or nano
    #[arg(long, value_name = "MODEL")]
    tokenizer: Option<String>,
    /// Show no progress bar
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum StoredArg {
    #[default]
    Bf16,
    F16,
    F32,
}

impl Synth {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let shapes = Shapes::resolve(&self.config)?;
        let dtype = match self.dtype {
            StoredArg::Bf16 => Dtype::Bf16,
            StoredArg::F16 => Dtype::F16,
            StoredArg::F32 => Dtype::F32,
        };
        let tokenizer = self.tokenizer.as_deref().map(with_weights).transpose()?;
        let synthetic =
            Synthetic { shapes: &shapes, dtype, seed: self.seed, shard_bytes: self.shard_size.get(), tokenizer };
        let stopped = Arc::new(OnceLock::new());
        let seen = stopped.clone();
        signals::on_signal(move |signal, count| {
            // A second one does not wait until what was written is removed.
            if count > 1 {
                signal.exit();
            }
            let _ = seen.set(signal);
        })?;
        let bar = Mutex::new(LoadBar::unless(self.quiet).drawer());
        let written = synthetic.write(&self.out, &|progress| {
            // A panic elsewhere leaves a bar that can still be drawn.
            let mut draw = bar.lock().unwrap_or_else(PoisonError::into_inner);
            (*draw)(progress);
            if stopped.get().is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        drop(bar);
        match written {
            Ok(Written { bytes, shards }) => {
                let (bytes, out_name) = (Size(bytes), self.out.display());
                let files = counted(shards, "file");
                out.line(&format!("{}: {bytes} of {dtype} in {files} in {out_name}", shapes.name))
            }
            Err(SyntheticError::Stopped) => match stopped.get() {
                Some(signal) => signal.exit(),
                None => Err(SyntheticError::Stopped.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}
