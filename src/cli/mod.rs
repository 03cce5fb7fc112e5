//! The `rigel` command line: turns arguments and files into requests, and events into bytes on stdout.
//!
//! One file a command; the rest is what they share:
//!
//! | file | what lives there |
//! |---|---|
//! | `generate` `respond` `chat` `infill` `batch` `score` `tokenize` `detokenize` `inspect` `plan` `synth` `bench` `profile` `doctor` | a command's arguments and what it does |
//! | `model_args` `sampling_args` | options of several commands |
//! | `input` | stdin, files, JSON lines |
//! | `completion` | one request to text or to a JSON object |
//! | `output` | stdout |
//! | `error`, `log`, `load_bar` | stderr |
//! | `interrupt` | Ctrl-C |
//!
//! Nothing here knows how a token is computed or chosen, and nothing here loops over steps: that is the engine's.

mod batch;
mod bench;
mod chat;
mod completion;
mod detokenize;
mod doctor;
mod error;
mod generate;
mod infill;
mod input;
mod inspect;
mod interrupt;
mod load_bar;
mod log;
mod model_args;
mod output;
#[cfg(feature = "cuda")]
mod plan;
mod profile;
mod respond;
mod sampling_args;
mod score;
mod synth;
mod tokenize;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use error::CliError;
use output::Output;

/// Runs StarCoder2 code models from a Hugging Face checkpoint directory.
#[derive(Debug, Parser)]
#[command(
    name = "rigel",
    bin_name = "rigel",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "\
Examples:
  rigel generate 'def fibonacci(n):'
  rigel generate --model bigcode/starcoder2-3b --max-new-tokens 64 - < prompt.py
  rigel respond --model ./starcoder2-15b-instruct-v0.1 'Write a quicksort.'
  rigel batch prompts.jsonl completions.jsonl
  rigel inspect --model bigcode/starcoder2-7b
  rigel doctor

Without --model, every command uses nano, a small model inside this binary.
`rigel <command> --help` has examples of each command."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(generate::Generate),
    Respond(respond::Respond),
    Chat(chat::Chat),
    Infill(infill::Infill),
    Batch(batch::Batch),
    Score(score::Score),
    Tokenize(tokenize::Tokenize),
    Detokenize(detokenize::Detokenize),
    Inspect(inspect::Inspect),
    #[cfg(feature = "cuda")]
    Plan(plan::Plan),
    Synth(synth::Synth),
    Bench(bench::Bench),
    Profile(profile::Profile),
    Doctor(doctor::Doctor),
}

impl Command {
    fn run(self, out: &mut Output) -> Result<(), CliError> {
        match self {
            Command::Generate(command) => command.run(out),
            Command::Respond(command) => command.run(out),
            Command::Chat(command) => command.run(out),
            Command::Infill(command) => command.run(out),
            Command::Batch(command) => command.run(out),
            Command::Score(command) => command.run(out),
            Command::Tokenize(command) => command.run(out),
            Command::Detokenize(command) => command.run(out),
            Command::Inspect(command) => command.run(out),
            #[cfg(feature = "cuda")]
            Command::Plan(command) => command.run(out),
            Command::Synth(command) => command.run(out),
            Command::Bench(command) => command.run(out),
            Command::Profile(command) => command.run(out),
            Command::Doctor(command) => command.run(out),
        }
    }
}

/// Runs the command that the process was started with. Exit codes: 0, 1 for what fails while running, 2 for bad
/// input; 128 and the signal's number where Ctrl-C or a weight file that is gone (SIGBUS) ended it.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return error::report_usage(&error, &command_name()),
    };
    log::init();
    rigel::checkpoint::name_files_on_sigbus("run the command again, with --no-mmap if the file may change again");
    let mut out = Output::stdout();
    let result = cli.command.run(&mut out).and_then(|()| out.flush());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(line) = error.line() {
                // There is nobody left to tell when stderr is closed.
                let _ = writeln!(std::io::stderr(), "error: {line}");
            }
            error.exit_code()
        }
    }
}

/// `rigel generate` where the arguments name that command, else `rigel`.
fn command_name() -> String {
    let first = std::env::args_os().nth(1).unwrap_or_default();
    match Cli::command().find_subcommand(&first) {
        Some(command) => format!("rigel {}", command.get_name()),
        None => "rigel".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_consistent() {
        Cli::command().debug_assert();
    }
}
