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

/// Measure kernels and models, and compare results
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

/// What tables call a model: the last part of its id or path.
fn model_name(name: &str) -> String {
    let parts = ['/', '\\'];
    name.trim_end_matches(parts).rsplit(parts).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_by_the_last_part_of_their_name() {
        let names = ["nano", "bigcode/starcoder2-3b", "./a/starcoder2-7b/", r"C:\a\starcoder2-15b\"].map(model_name);
        assert_eq!(names, ["nano", "starcoder2-3b", "starcoder2-7b", "starcoder2-15b"]);
    }
}
