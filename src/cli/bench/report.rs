//! `rigel bench report`: the measured part of docs/performance.md.

use std::path::PathBuf;

use clap::Args;
use rigel::bench::document::{Document, Source, newest};

use super::super::error::CliError;
use super::super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel bench report                             # from the newest results
  rigel bench report benches/results/h200.json
  rigel bench report --check                     # fails where it would change";

/// Write the tables and plots of docs/performance.md
///
/// Replaces the text between two markers of the page, and the plots beside it. Missing measurements are named as
/// missing.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Report {
    /// Result files, at most one of a GPU and one of a CPU [default: the newest of each in --results]
    files: Vec<PathBuf>,
    /// Folder of the committed results
    #[arg(long, value_name = "DIR", default_value = "benches/results")]
    results: PathBuf,
    /// Folder of performance.md
    #[arg(long, value_name = "DIR", default_value = "docs")]
    docs: PathBuf,
    /// Write nothing; fail if something would change
    #[arg(long)]
    check: bool,
}

impl Report {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let sources = match self.files.as_slice() {
            [] => newest(&self.results)?,
            files => files.iter().map(|file| Source::read(file)).collect::<Result<_, _>>()?,
        };
        for (index, source) in sources.iter().enumerate() {
            let kind = &source.report.device.kind;
            if let Some(other) = sources[..index].iter().find(|other| other.report.device.kind == *kind) {
                let (first, second) = (&other.file, &source.file);
                return Err(CliError::Usage(format!(
                    "{first} and {second} are both of the kind {kind}; give one of each kind"
                )));
            }
        }
        let document = Document::of(&sources);
        if self.check {
            let stale: Vec<String> =
                document.stale(&self.docs)?.iter().map(|path| path.display().to_string()).collect();
            return match stale.as_slice() {
                [] => Ok(()),
                stale => {
                    let stale = stale.join(", ");
                    Err(CliError::Failed(format!("{stale}: not what the results say; run `rigel bench report`")))
                }
            };
        }
        document.write(&self.docs)?;
        for source in &sources {
            out.line(&format!("{}: {}, {}", source.file, source.report.device.name, source.report.date))?;
        }
        if sources.is_empty() {
            out.line("no results: every cell says that it is not yet measured")?;
        }
        Ok(())
    }
}
