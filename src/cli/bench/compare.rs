//! `rigel bench compare`: two results as ratios.

use std::path::PathBuf;

use clap::Args;
use rigel::bench::Report;
use rigel::bench::compare::{pairs, table};

use super::super::error::CliError;
use super::super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel bench compare before.json after.json
  rigel bench compare benches/results/*.json     # two of them";

/// Compare two results: how many times as fast the second is
///
/// Rows are matched by name, model, sizes and tool. A ratio with a tilde lies within the spreads of its two
/// figures.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Compare {
    /// The first result, as --json writes it
    first: PathBuf,
    /// The second result
    second: PathBuf,
}

impl Compare {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let (first, second) = (Report::read(&self.first)?, Report::read(&self.second)?);
        for (name, report) in [("first", &first), ("second", &second)] {
            let Report { date, commit, device, command, invalid, .. } = report;
            out.line(&format!("{name}: {} on {date}, commit {commit}: {command}", device.name))?;
            invalid.iter().try_for_each(|why| out.line(&format!("{name} is invalid: {why}")))?;
        }
        let pairs = pairs(&first, &second);
        if pairs.is_empty() {
            let names = format!("{} and {}", self.first.display(), self.second.display());
            return Err(CliError::Failed(format!("{names} have no row in common; give two results of the same bench")));
        }
        out.line("")?;
        out.text(&table(&pairs).to_string())
    }
}
