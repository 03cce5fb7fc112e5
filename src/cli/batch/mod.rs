//! `rigel batch`: a file of requests to a file of responses, in any order, each line once, whenever the machine stops.
//!
//! | file | what lives there |
//! |---|---|
//! | `lines` `job` | the input: lines, and what they ask for |
//! | `kind` | inputs that are no JSON lines |
//! | `ids` `ledger` | which line has which id, which are recorded: 17 bytes a line |
//! | `append` `record` | the output and the errors: files that only grow, and their lines |
//! | `manifest` `digest` | what an output belongs to |
//! | `run` | lines to requests, events to records |
//! | `progress` | the bar and the closing line |
//!
//! Memory holds the lines in flight and 17 bytes of each other one, whatever the file's size.

mod append;
mod digest;
mod ids;
mod job;
mod kind;
mod ledger;
mod lines;
mod manifest;
mod progress;
mod record;
mod run;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::BufReader;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use rigel::openai::{Defaults, ServedModel};

use super::error::CliError;
use super::interrupt;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::{DEFAULT_MAX_NEW_TOKENS, GenerationArgs, GenerationOptions};

use append::AppendFile;
use digest::Hashing;
use ids::IdsBuilder;
use ledger::{Ledger, Shard};
use lines::{Line, Lines};
use manifest::{InputEntry, Manifest, ModelEntry, beside};
use progress::Progress;
use run::{Answering, Sink};

const EXAMPLES: &str = "\
Examples:
  rigel batch prompts.jsonl completions.jsonl
  rigel batch --model bigcode/starcoder2-3b -n 64 prompts.jsonl out.jsonl
  rigel batch --temperature 0.8 --seed 7 prompts.jsonl samples.jsonl
  rigel batch --shard 2/8 requests.jsonl part2.jsonl
  rigel batch --retry-failed requests.jsonl out.jsonl";

const FORMATS: &str = "\
Input, one JSON object a line:
  {\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":{…}}
  {\"custom_id\":\"b\",\"url\":\"/v1/chat/completions\",\"body\":{…}}
  {\"prompt\":\"…\"}  or  {\"id\":\"c\",\"prompt\":\"…\",\"max_tokens\":64}
  {\"messages\":[…]}
The first two are OpenAI's, with OpenAI's defaults (temperature 1, 16 tokens of
a completion). A plain line holds a body's fields itself, and what it does not
say the options say. A line without custom_id or id is called line-N, after its
number in the file. No two lines may have the same id.

A stop string is looked for in the text with special tokens, shown or not:
\"stop\":[\"<file_sep>\"] ends there. Integers may be written 8 or 8.0.

Output, one JSON object a line, in the order in which lines are done:
  {\"id\":…,\"custom_id\":\"a\",\"response\":{\"status_code\":200,\"request_id\":…,
   \"body\":{…}},\"error\":null}
and \"text\" besides, the first choice's, where the line was a plain one. Lines
that fail go to OUT.errors.jsonl, with \"response\":null and
\"error\":{\"code\":…,\"message\":…}; the rest goes on.

The same command goes on where an earlier run was stopped or killed: every line
is in the output or the errors once. OUT.manifest.json says what the output
belongs to, and another model, input or option is refused. Ctrl-C finishes what
is in flight; a second one stops at once.

A line without a seed draws with one made of --seed and its id, so its samples
do not depend on order or shard.

Exit codes: 0 when every line was answered, 1 when lines failed or the run was
stopped, 2 for bad input. More: docs/batch.md.";

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
    /// Responses, JSON lines; one that is there is gone on with
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Run part i of n: every n-th line, from the i-th on. Each part has an output of its own
    #[arg(long, value_name = "i/n", default_value_t = Shard::WHOLE, help_heading = "Run")]
    shard: Shard,
    /// The most requests that are read and not done
    #[arg(long, value_name = "N", default_value = "256", help_heading = "Run", allow_negative_numbers = true)]
    max_in_flight: NonZeroUsize,
    /// The most requests that are computed at a time [default: 32 on the CPU, 256 on a GPU]
    #[arg(long, value_name = "N", help_heading = "Run", allow_negative_numbers = true)]
    max_sequences: Option<NonZeroUsize>,
    /// Do the lines again that failed: empties OUT.errors.jsonl first
    #[arg(long, help_heading = "Run")]
    retry_failed: bool,
    /// No bars and no closing line on stderr
    #[arg(long, short, help_heading = "Run")]
    quiet: bool,
    #[command(flatten)]
    generation: GenerationArgs,
}

impl Batch {
    pub fn run(self, _: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let options = self.generation.defaults(&source)?;
        refuse_same_file(&self.input, &self.output)?;
        let seed = options.sampling.seed;
        let Scanned { ids, entry, last, total } = scan(&self.input, self.shard)?;
        let model = ModelEntry { name: self.model.model.name(), digest: manifest::model_digest(&source)? };
        let manifest = Manifest::new(model, entry, seed, self.shard, self.model.context(), &options);
        let (output, mut errors) = open_output(&self.output, &manifest)?;
        if self.retry_failed {
            errors.clear()?;
        }
        let mut ledger = Ledger::new(ids, self.shard, last, total);
        for file in [&output, &errors] {
            file.each_id(|number, id| {
                ledger.record(id).map_err(|error| {
                    let message = format!("custom_id {id:?} {error}; give another output file");
                    CliError::Usage(message).at(format!("{}:{number}", file.path().display()))
                })
            })?;
        }
        let progress = Progress::new(ledger.count(), total, !self.quiet);
        let mut sink = Sink { output, errors, ledger, progress };
        let draining = Arc::new(AtomicBool::new(false));
        let result = if sink.ledger.is_complete() {
            Ok(())
        } else {
            drain_on_interrupt(&sink.progress, draining.clone())?;
            let engine =
                self.model.engine(source.clone(), LoadBar::unless(self.quiet), Load::Many(self.max_sequences))?;
            let served = ServedModel::new(&engine, &source, self.model.model.name());
            let answering =
                Answering { served: &served, plain: &plain_defaults(options), openai: &Defaults::openai(), seed };
            let lines = Lines::new(BufReader::new(open_input(&self.input)?));
            run::run(&engine, &answering, lines, &mut sink, self.max_in_flight, &draining)
        };
        let closing = sink.progress.close();
        if !self.quiet {
            interrupt::note(&closing);
        }
        result?;
        verdict(&sink)
    }
}

/// Exit code 0 only where every line of the run has an answer.
fn verdict(sink: &Sink) -> Result<(), CliError> {
    let (count, total) = (sink.ledger.count(), sink.ledger.total());
    if count < total {
        let message = format!("stopped after {count} of {total} lines; the same command goes on from there");
        return Err(CliError::Failed(message));
    }
    if !sink.errors.is_empty() {
        let errors = sink.errors.path().display();
        return Err(CliError::Failed(format!("some lines failed: {errors} says why; --retry-failed does them again")));
    }
    Ok(())
}

/// What plain lines take where they say nothing.
fn plain_defaults(options: GenerationOptions) -> Defaults {
    let GenerationOptions { max_new_tokens, stop, stop_token_ids, ignore_eos, sampling } = options;
    let max_tokens = max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
    Defaults { max_tokens, chat_max_tokens: Some(max_tokens), sampling, stop, stop_token_ids, ignore_eos }
}

fn drain_on_interrupt(progress: &Progress, draining: Arc<AtomicBool>) -> Result<(), CliError> {
    let bar = progress.bar();
    interrupt::on_interrupt(move |count| {
        if count > 1 {
            interrupt::exit();
        }
        draining.store(true, Ordering::Relaxed);
        const NOTE: &str = "finishing what is in flight; Ctrl-C again stops at once, and the same command goes on";
        if bar.is_hidden() { interrupt::note(NOTE) } else { bar.println(NOTE) }
    })
}

/// Where the records of lines that failed go.
fn errors_path(output: &Path) -> PathBuf {
    beside(output, ".errors.jsonl")
}

/// That none of the files that are written is the input, under whatever name.
fn refuse_same_file(input: &Path, output: &Path) -> Result<(), CliError> {
    for written in [output.to_owned(), errors_path(output), Manifest::path_of(output)] {
        // Where one of them is not there, they are not the same.
        let same = matches!((input.canonicalize(), written.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if same {
            return Err(CliError::Usage(format!("{} is the input, too; give another output file", written.display())));
        }
    }
    Ok(())
}

fn open_input(path: &Path) -> Result<File, CliError> {
    let error = |source| CliError::Read { origin: path.display().to_string(), source };
    let file = File::open(path).map_err(error)?;
    if file.metadata().map_err(error)?.is_file() {
        return Ok(file);
    }
    let found = path.display();
    Err(CliError::Usage(format!("{found} is not a regular file; the input is read twice, so give the name of one")))
}

/// What a first reading of the input finds out.
struct Scanned {
    ids: ids::Ids,
    entry: InputEntry,
    /// The last line's number.
    last: u32,
    /// Lines of the shard.
    total: u64,
}

fn scan(path: &Path, shard: Shard) -> Result<Scanned, CliError> {
    let error = |source| CliError::Read { origin: path.display().to_string(), source };
    let mut file = open_input(path)?;
    kind::check_begin(path, &mut file)?;
    let mut lines = Lines::new(BufReader::with_capacity(1 << 16, Hashing::new(file)));
    let (mut ids, mut last, mut total) = (IdsBuilder::default(), 0, 0);
    // The first line, until one begins as an object.
    let (mut first, mut has_objects) = (None, false);
    while let Some((number, line)) = lines.next().map_err(error)? {
        has_objects |= job::is_object(line);
        if !has_objects
            && first.is_none()
            && let Line::Bytes(bytes) = line
        {
            first = Some(bytes[..bytes.len().min(1 << 10)].to_vec());
        }
        ids.push(&job::custom_id(number, line), number);
        total += u64::from(shard.holds(number));
        last = number;
    }
    if let Some(first) = first.filter(|_| !has_objects) {
        return Err(kind::refuse_without_objects(path, &first));
    }
    let hashed = lines.into_inner().into_inner();
    let ids = ids.build().map_err(|duplicate| {
        let ids::Duplicate { first, second } = duplicate;
        let id = id_of_line(path, second).map_or_else(String::new, |id| format!(" {id:?}"));
        let message = format!("custom_id{id} is that of line {first}, too; give each line an id of its own");
        CliError::Usage(message).at(format!("{}:{second}", path.display()))
    })?;
    let entry = InputEntry {
        name: path.display().to_string(),
        bytes: hashed.bytes,
        lines: ids.len() as u64,
        digest: hashed.digest.hex(),
    };
    Ok(Scanned { ids, entry, last, total })
}

/// The id of a line, for a message.
fn id_of_line(path: &Path, wanted: u32) -> Option<String> {
    let mut lines = Lines::new(BufReader::new(open_input(path).ok()?));
    while let Some((number, line)) = lines.next().ok()? {
        if number == wanted {
            return Some(job::custom_id(number, line));
        }
    }
    None
}

/// The output and its errors, for this process alone and for this manifest.
fn open_output(path: &Path, manifest: &Manifest) -> Result<(AppendFile, AppendFile), CliError> {
    let mut output = AppendFile::open(path.to_owned())?;
    let mut errors = AppendFile::open(errors_path(path))?;
    let manifest_path = Manifest::path_of(path);
    match Manifest::read(&manifest_path)? {
        Some(earlier) => manifest.continues(&earlier, path)?,
        None => {
            // What is there already would be taken for lines of this run.
            if let Some(foreign) = [&output, &errors].into_iter().find(|file| !file.is_empty()) {
                return Err(CliError::Usage(format!(
                    "{} is there and {} is not, so it is no output of rigel batch; give another output file, or remove it",
                    foreign.path().display(),
                    manifest_path.display()
                )));
            }
            manifest.write(&manifest_path)?;
        }
    }
    // Only now: a file that is not ours stays as it is.
    output.repair()?;
    errors.repair()?;
    Ok((output, errors))
}
