//! `rigel bench`: figures that anyone can repeat.

mod compare;

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
    Compare(compare::Compare),
}

impl Bench {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        match self.command {
            Command::Compare(command) => command.run(out),
        }
    }
}
