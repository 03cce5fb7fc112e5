//! `rigel bench start`: how long until the first token.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use clap::Args;
use rigel::bench::report::{Report, Row};
use rigel::bench::start::{Start as Started, add_rows, measure};
use rigel::bench::table::{Table, digits, percent};
use rigel::engine::Engine;

use super::super::error::CliError;
use super::super::model_args::{DeviceOption, DtypeOption, ModelArg};
use super::super::output::Output;
use super::model_name;

const EXAMPLES: &str = "\
Examples:
  rigel bench start
  rigel bench start --model ./random-15b -r 3 --json start.json
  rigel bench start --model ./starcoder2-3b --device cpu -p 64";

/// Measure the time from process start to first token, by phase
///
/// Each repetition is a process of its own. From the second repetition on, the files are in memory: only the first
/// shows the time of the disk. `rigel synth` makes a model to load.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Start {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    device: DeviceOption,
    #[command(flatten)]
    dtype: DtypeOption,
    /// Tokens of the prompt, computed in chunks of 256 on the CPU and 2048 on a GPU
    #[arg(long, short = 'p', value_name = "TOKENS", default_value = "512", allow_negative_numbers = true)]
    prompt: NonZeroUsize,
    /// Repetitions
    #[arg(long, short, value_name = "N", default_value = "5", allow_negative_numbers = true)]
    repetitions: NonZeroUsize,
    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One repetition, started at this time (nanoseconds since 1970): what the command starts itself with
    #[arg(long, hide = true, value_name = "NANOSECONDS")]
    once: Option<u64>,
}

impl Start {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        match self.once {
            Some(started) => self.once(Duration::from_nanos(started), out),
            None => self.all(out),
        }
    }

    /// One start, in this process.
    fn once(self, started: Duration, out: &mut Output) -> Result<(), CliError> {
        let process = now().saturating_sub(started);
        let builder = Engine::builder().dtype(self.dtype.dtype.into()).max_sequences(NonZeroUsize::MIN);
        let process_us = process.as_secs_f64() * 1e6;
        out.json(&measure(self.model.source()?, self.device.device.into(), builder, self.prompt.get(), process_us)?)
    }

    /// Every repetition in a process of its own, then the table.
    fn all(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.source()?;
        let starts = (0..self.repetitions.get()).map(|_| self.child()).collect::<Result<Vec<_>, _>>()?;
        // There is at least one repetition.
        let Some(first) = starts.first() else { return Ok(()) };
        let mut report = Report::begin(first.device.clone());
        add_rows(&mut report, &model_name(&self.model.name()), &starts);
        if let Some(path) = &self.json {
            report.write(path)?;
        }
        let (name, prompt) = (&report.device.name, first.prompt);
        if prompt < self.prompt.get() {
            let asked = self.prompt;
            tracing::warn!("--prompt {asked}: there is room for a prompt of {prompt} tokens: measured with as many");
        }
        out.line(&format!("{source} on {name}, a prompt of {prompt} tokens, {} processes", starts.len()))?;
        out.line("")?;
        out.text(&table(&report.rows).to_string())
    }

    fn child(&self) -> Result<Started, CliError> {
        let failed = |what: String| CliError::Failed(format!("a repetition: {what}"));
        let program = std::env::current_exe().map_err(|error| failed(format!("this program's own file: {error}")))?;
        let mut command = Command::new(program);
        command.args(["bench", "start"]).args(self.model.named().into_iter().flat_map(|model| ["--model", model]));
        // They were read from the same words.
        let word = |value: Option<clap::builder::PossibleValue>| value.map(|v| v.get_name().to_owned());
        for (option, value) in [
            ("--device", word(clap::ValueEnum::to_possible_value(&self.device.device))),
            ("--dtype", word(clap::ValueEnum::to_possible_value(&self.dtype.dtype))),
            ("--prompt", Some(self.prompt.to_string())),
        ] {
            command.args(value.iter().flat_map(|value| [option, value.as_str()]));
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.arg("--once").arg(now().as_nanos().to_string()).output();
        let output = output.map_err(|error| failed(error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let last = said.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            // The child's own line is the error, under its own exit code.
            return Err(match output.status.code() {
                Some(2) => CliError::Usage(last),
                Some(_) => CliError::Failed(last),
                None => failed(output.status.to_string()),
            });
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("it wrote no result: {error}")))
    }
}

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&["phase", ">ms", ">± %", ">GB/s", ">of the link"]);
    for row in rows {
        let (ms, spread) = row
            .times
            .map_or_else(Default::default, |times| (digits(times.median_us / 1e3), digits(times.spread() * 100.0)));
        let rate = row.bytes_per_second().map_or_else(String::new, |rate| digits(rate / 1e9));
        table.row([row.name.clone(), ms, spread, rate, row.of_limit.map_or_else(String::new, percent)]);
    }
    table
}
