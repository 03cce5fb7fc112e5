//! `rigel bench`: figures that anyone can repeat.

mod compare;
#[cfg(feature = "cuda")]
mod kernels;
mod model;
mod report;
mod start;

use clap::{Args, Subcommand};

use super::error::CliError;
use super::output::Output;

/// Measures kernels and models, and compares results
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "cuda")]
    Kernels(kernels::Kernels),
    Model(model::Model),
    Start(start::Start),
    Compare(compare::Compare),
    Report(report::Report),
}

impl Bench {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        match self.command {
            #[cfg(feature = "cuda")]
            Command::Kernels(command) => command.run(out),
            Command::Model(command) => command.run(out),
            Command::Start(command) => command.run(out),
            Command::Compare(command) => command.run(out),
            Command::Report(command) => command.run(out),
        }
    }
}
