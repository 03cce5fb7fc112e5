//! `rigel inspect`: what a checkpoint is.

use std::fmt;

use clap::Args;
use rigel::checkpoint::Checkpoint;
use rigel::model::{Description, grouped};
use serde::Serialize;

use super::error::CliError;
use super::model_args::ModelArg;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel inspect
  rigel inspect --model bigcode/starcoder2-15b
  rigel inspect --model 15b                  # its shapes, without weights
  rigel inspect --model ./my-checkpoint --json";

/// Describe a checkpoint from its headers alone
///
/// Prints shapes, the exact number of parameters, the bytes that a decoded token reads and adds to the cache, the bytes
/// of the weights on a GPU, the window, dtypes and files. Every tensor's name, shape and dtype is checked; no weight is
/// read.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    #[command(flatten)]
    model: ModelArg,
    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

impl Inspect {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.shape_or_source()?;
        let (description, gpu_weights) = if source.is_shape() {
            let description = Description::of_shape(&source)?;
            let gpu_weights = gpu::weights(None, description.spec());
            (description, gpu_weights)
        } else {
            let checkpoint = Checkpoint::open(&source)?;
            let description = Description::of(&checkpoint)?;
            let gpu_weights = gpu::weights(Some(&checkpoint), description.spec());
            (description, gpu_weights)
        };
        if self.json {
            return out.json(&Record { description: &description, gpu_weights });
        }
        out.line(description.to_string().trim_end())?;
        gpu_weights.iter().try_for_each(|weights| out.line(&weights.to_string()))
    }
}

/// The record that `--json` prints.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    description: &'a Description,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_weights: Option<GpuWeights>,
}

/// The weights as a GPU holds them.
#[derive(Debug, Serialize)]
struct GpuWeights {
    /// Their dtype there, where none is asked for.
    dtype: String,
    /// Bytes they take, padding included.
    bytes: u64,
}

impl fmt::Display for GpuWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18} {} bytes of {}", "weights on a GPU", grouped(self.bytes), self.dtype)
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use rigel::backend::WeightDtype;
    use rigel::backend::cuda::layout::Layout;
    use rigel::checkpoint::{Checkpoint, Dtype};
    use rigel::model::ModelSpec;

    use super::GpuWeights;

    pub fn weights(checkpoint: Option<&Checkpoint>, spec: &ModelSpec) -> Option<GpuWeights> {
        let dtype = checkpoint.map_or(Dtype::Bf16, |checkpoint| WeightDtype::Auto.resolve(checkpoint, spec));
        Some(GpuWeights { dtype: dtype.to_string(), bytes: Layout::new(spec, dtype).bytes() })
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use rigel::checkpoint::Checkpoint;
    use rigel::model::ModelSpec;

    use super::GpuWeights;

    pub fn weights(_: Option<&Checkpoint>, _: &ModelSpec) -> Option<GpuWeights> {
        None
    }
}
