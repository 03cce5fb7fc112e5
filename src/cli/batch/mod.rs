//! `rigel batch`: a file of requests to a file of responses, each line once, whenever the machine stops.
//!
//! | file | what lives there |
//! |---|---|
//! | `input` | the input |
//! | `scan` | its first reading: ids and hashes |
//! | `head` `job` | a line: its id, what it asks for |
//! | `oddities` `misspelt` | what is no error and probably not meant |
//! | `ids` `ledger` | which line has which id, which are recorded: 17 bytes a line |
//! | `outputs` `append` `errors` `record` | the output and the errors: files that only grow, and their lines |
//! | `manifest` `model_digest` `digest` | what an output belongs to |
//! | `run` `sink` | lines to requests, events to records |
//! | `progress` `failures` | the bar, the closing line, the line after it |
//!
//! Memory holds the lines in flight and 17 bytes of each other one, whatever the file's size.

mod append;
mod digest;
mod errors;
mod failures;
mod head;
mod ids;
mod input;
mod job;
mod ledger;
mod manifest;
mod misspelt;
mod model_digest;
mod oddities;
mod outputs;
mod progress;
mod record;
mod run;
mod scan;
mod sink;
#[cfg(test)]
mod tests;

use std::io::BufReader;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, value_parser};
use rigel::openai::{Defaults, ServedModel};

use super::bars::Show;
use super::error::CliError;
use super::lines::Lines;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::numbers::count;
use super::output::Output;
use super::sampling_args::{DEFAULT_MAX_NEW_TOKENS, GenerationArgs, GenerationOptions};
use super::signals::{Signal, note, on_signal};

use head::IdFields;
use input::{InputFile, as_it_was};
use ledger::Shard;
use manifest::{InputEntry, Manifest, ModelEntry, RunEntry};
use model_digest::model_digest;
use outputs::{Failed, Outputs, check_output_name};
use progress::Progress;
use run::Answering;
use scan::{Scanned, scan};
use sink::{Order, Sink};

const EXAMPLES: &str = "\
Examples:
  rigel batch prompts.jsonl completions.jsonl
  rigel batch --model bigcode/starcoder2-3b -n 64 prompts.jsonl out.jsonl
  rigel batch --temperature 0.8 --seed 7 prompts.jsonl samples.jsonl
  rigel batch --ordered --id-field task_id HumanEval.jsonl out.jsonl
  rigel batch --shard 2/8 requests.jsonl part2.jsonl
  rigel batch --retry-failed requests.jsonl out.jsonl";

const FORMATS: &str = "\
Input, one JSON object a line:
  {\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{…}}
  {\"custom_id\":\"b\",\"url\":\"/v1/chat/completions\",\"body\":{…}}
  {\"prompt\":\"…\"}  or  {\"id\":\"c\",\"prompt\":\"…\",\"max_tokens\":64}
  {\"text\":\"…\"}  or  {\"token_ids\":[…]}
  {\"messages\":[…]}
The first two are OpenAI's, with OpenAI's defaults (temperature 1, 16 tokens of
a completion). A plain line holds a body's fields itself, and the options fill
in what it leaves out; other fields are ignored, with a warning where one is
spelt almost like a field or is another program's word for one. A line without
custom_id or id is called line-N, after its number in the file. No two lines may
have the same id.

A stop string is looked for in the text with special tokens, shown or not:
\"stop\":[\"<file_sep>\"] ends there. Integers may be written 8 or 8.0.

Output, one JSON object a line, in the order in which lines are done, or with
--ordered in the order of the input:
  {\"id\":…,\"custom_id\":\"a\",\"response\":{\"status_code\":200,\"request_id\":…,
   \"body\":{…}},\"error\":null}
and \"text\" besides, the first choice's, where the line was a plain one. Lines
that fail go to OUT.errors.jsonl (out.errors.jsonl for out.jsonl), with
\"response\":null and \"error\":{\"code\":…,\"message\":…}; the rest goes on.

The same command goes on where an earlier run was stopped or killed: every line
is in the output or the errors once. OUT.manifest.json says what the output
belongs to, and another model, input or option is refused. Ctrl-C, SIGTERM and
SIGHUP finish the requests that are being computed and leave the others to the
next run; a second signal stops at once.

--retry-failed takes a corrected input, too: lines that failed may differ.

A line without a seed samples with one made of --seed and its id, so its samples
do not depend on order or shard.

Exit codes: 0 when every line was answered, 1 when lines failed, 2 for bad
input, 128 + n after signal n (130, 143, 129). More: docs/batch.md.";

/// Run a file of requests
///
/// Reads OpenAI batch lines or plain prompts, keeps many in flight, and writes each answer when it is done. Memory
/// stays the same whatever the file's size.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{FORMATS}"))]
pub struct Batch {
    #[command(flatten)]
    model: ModelArgs,
    /// Requests, JSON lines
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Responses, JSON lines; continued if the file exists
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Run part i of n: every n-th line, from the i-th on. Each part has an output of its own
    #[arg(long, value_name = "i/n", default_value_t = Shard::WHOLE, help_heading = "Run")]
    shard: Shard,
    /// Requests read ahead of those that are done
    #[arg(long, value_name = "N", default_value = "256", value_parser = count::<NonZeroUsize>, help_heading = "Run")]
    #[arg(allow_negative_numbers = true)]
    max_in_flight: NonZeroUsize,
    /// Maximum number of requests computed at a time [default: 32 on the CPU, 256 on a GPU]
    #[arg(
        long,
        value_name = "N",
        aliases = ["max-sequences", "max-num-seqs"],
        value_parser = count::<NonZeroUsize>,
        help_heading = "Run",
        allow_negative_numbers = true
    )]
    max_seqs: Option<NonZeroUsize>,
    /// Write answers in the order of the input; at most --max-in-flight of them wait for an earlier one
    #[arg(long, help_heading = "Run")]
    ordered: bool,
    /// Take ids from this field of a line, where it is there; else from custom_id or id
    #[arg(long, value_name = "NAME", help_heading = "Run")]
    id_field: Option<String>,
    /// Add log-probabilities to the answers of plain lines: of each token and of the N best tokens at its position
    #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(..=20), help_heading = "Run", allow_negative_numbers = true)]
    logprobs: Option<u8>,
    /// Run the lines again that failed, as the input has them now
    #[arg(long, help_heading = "Run")]
    retry_failed: bool,
    /// Seconds between progress lines where stderr is no terminal
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds, help_heading = "Run")]
    progress_every: Duration,
    /// Print no bars and no closing line on stderr
    #[arg(long, short, help_heading = "Run")]
    quiet: bool,
    #[command(flatten)]
    generation: GenerationArgs,
}

/// A time from a hundredth of a second on.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..1e9).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds, such as 60 or 0.5".to_owned())
}

impl Batch {
    pub fn run(self, _: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let given: Vec<&str> = self.generation.given().into_iter().chain(self.logprobs.map(|_| "--logprobs")).collect();
        let options = self.generation.defaults(&source)?;
        check_output_name(&self.input, &self.output)?;
        let seed = options.sampling.seed;
        let fields = IdFields::new(self.id_field.clone());
        let mut input = InputFile::open(&self.input)?;
        let scanned = scan(&mut input, &fields, self.shard)?;
        let model = ModelEntry { name: self.model.model.name(), digest: model_digest(&source)? };
        let run = RunEntry {
            seed,
            shard: self.shard.to_string(),
            context: self.model.context(),
            id_field: self.id_field.clone(),
            ordered: self.ordered,
            logprobs: self.logprobs,
        };
        let manifest = Manifest::new(model, scanned.entry.clone(), run, &options);
        let failed = if self.retry_failed { Failed::Retry } else { Failed::Keep };
        let outputs = Outputs::open(&self.output, &manifest, &mut input, self.shard, failed)?;
        if !self.quiet {
            say_what_is_odd(&scanned, scanned.oddities.of_options(&given, &options.sampling));
        }
        if scanned.total == 0 {
            return Ok(());
        }
        let mut ledger = scanned.into_ledger();
        let failures = outputs.enter(&mut ledger)?;
        let show = if self.quiet { Show::Nothing } else { Show::Bars { else_every: self.progress_every } };
        let progress = Progress::new(ledger.count(), ledger.total(), show);
        let order = if self.ordered { Order::AsRead } else { Order::AsDone };
        let mut sink = Sink::new(outputs, ledger, failures, progress, order);
        let stop = Arc::new(OnceLock::new());
        let mut device = None;
        let result = if sink.ledger().is_complete() {
            sink.begin_retry()
        } else {
            let load = Load::Many(self.max_seqs);
            let engine = self.model.engine(source.clone(), LoadBar::unless(self.quiet), load)?;
            device = Some(engine.device().clone());
            let served = ServedModel::new(&engine, &source, self.model.model.name());
            let (plain, openai) = (plain_defaults(options, self.logprobs), Defaults::openai());
            let answering = Answering { served: &served, plain: &plain, openai: &openai, ids: &fields, seed };
            // Until here a signal ends the process: nothing is in flight.
            stop_on_signal(stop.clone())?;
            sink.begin_retry()?;
            sink.progress.start();
            let lines = Lines::new(BufReader::with_capacity(1 << 16, &input));
            run::run(&engine, &answering, &input, lines, &mut sink, self.max_in_flight, &stop)
        };
        let mut closing = sink.progress.close();
        if let Some(device) = device {
            closing += &format!(", on {device}");
        }
        if !self.quiet {
            note(&closing);
        }
        result?;
        verdict(&sink, &input, stop.get().copied())
    }
}

/// What is no error, and what the user may want to know before the lines are run.
fn say_what_is_odd(scanned: &Scanned, options: Option<String>) {
    let InputEntry { name, lines, .. } = &scanned.entry;
    for warning in scanned.oddities.of_fields() {
        note(&format!("warning: {name}: {warning}"));
    }
    if let Some(options) = options {
        note(&format!("warning: {options}"));
    }
    if *lines == 0 {
        note(&format!("{name} has no lines; there is nothing to do"));
    } else if scanned.total == 0 {
        note(&format!("{name} has no line of this shard; there is nothing to do"));
    }
}

/// Exit code 0 only where every line of the run has an answer.
fn verdict(sink: &Sink, input: &InputFile, stopped: Option<Signal>) -> Result<(), CliError> {
    let (count, total) = (sink.ledger().count(), sink.ledger().total());
    if count < total {
        let next = if input.is_unchanged() {
            "the same command goes on from there".to_owned()
        } else {
            let name = input.path().display();
            format!("{name} changed meanwhile, so {}", as_it_was(&name))
        };
        let message = format!("after {count} of {total} lines; {next}");
        return Err(match stopped {
            Some(signal) => CliError::Stopped { signal, message },
            None => CliError::Failed(format!("stopped {message}")),
        });
    }
    let failures = sink.failures();
    if failures.count() > 0 {
        let (summary, advice, errors) = (failures.summary(), failures.advice(), sink.errors_path().display());
        return Err(CliError::Failed(format!("{summary}; {errors} has each; {advice}")));
    }
    Ok(())
}

/// What plain lines take where they say nothing.
fn plain_defaults(options: GenerationOptions, logprobs: Option<u8>) -> Defaults {
    let GenerationOptions { max_new_tokens, stop, stop_token_ids, ignore_eos, sampling } = options;
    let max_tokens = max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
    let (chat_max_tokens, logprobs) = (Some(max_tokens), logprobs.map(usize::from));
    Defaults { max_tokens, chat_max_tokens, sampling, stop, stop_token_ids, ignore_eos, logprobs }
}

/// The first signal sets `stop`, the second ends the process.
fn stop_on_signal(stop: Arc<OnceLock<Signal>>) -> Result<(), CliError> {
    on_signal(move |signal, count| {
        if count > 1 {
            signal.exit();
        }
        let _ = stop.set(signal);
    })
}
