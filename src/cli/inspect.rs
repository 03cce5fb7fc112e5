//! `rigel inspect`: what a checkpoint is.

use clap::Args;
use rigel::checkpoint::Checkpoint;
use rigel::model::Description;

use super::error::CliError;
use super::model_args::ModelArg;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel inspect
  rigel inspect --model bigcode/starcoder2-15b
  rigel inspect --model ./my-checkpoint --json";

/// What a checkpoint is, from its headers alone
///
/// Shapes, exact number of parameters, bytes that a decoded token reads and adds to the cache, window, dtypes, files.
/// Every tensor's name, shape and dtype is checked; no weight is read.
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
        let description = Description::of(&Checkpoint::open(&self.model.source()?)?)?;
        if self.json { out.json(&description) } else { out.line(description.to_string().trim_end()) }
    }
}
