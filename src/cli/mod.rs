//! The `rigel` command line: turns arguments and files into requests, and events into bytes on stdout.
//!
//! One file a command; the rest is what they share:
//!
//! | file | what lives there |
//! |---|---|
//! | `generate` `respond` `chat` `infill` `batch` `score` `tokenize` `detokenize` `inspect` `pull` `list` `remove` `plan` `synth` `bench` `profile` `doctor` | a command's arguments and what it does |
//! | `completions` | what a shell and `man` want to know of the parser |
//! | `model_args` `sampling_args` | options of several commands |
//! | `model_source` | from a model's name to its files |
//! | `numbers` | the values of options that count something |
//! | `once` `idle` | options that may not be given twice; options that change nothing |
//! | `input` | stdin and files, byte for byte |
//! | `prompts` `lines` `kind` | prompts from JSON lines; lines of any file; files that are no JSON lines |
//! | `nearest` `missing_prompt` | fields that were probably meant |
//! | `completion` | one request to text or to a JSON object |
//! | `output` | stdout |
//! | `environment` `value_names` | what the parser has besides: variables of the environment, what a value's name says |
//! | `running` | the command that runs: its options, and where their values come from |
//! | `error`, `usage`, `option_names`, `log`, `bars`, `load_bar` | stderr |
//! | `version` | what this binary is |
//! | `signals` | Ctrl-C, SIGTERM, SIGHUP |
//!
//! Nothing here knows how a token is computed or chosen, and nothing here loops over steps: that is the engine's.

mod bars;
mod batch;
mod bench;
mod chat;
mod completion;
mod completions;
mod detokenize;
mod doctor;
mod environment;
mod error;
mod generate;
mod idle;
mod infill;
mod input;
mod inspect;
mod kind;
mod lines;
mod list;
mod load_bar;
mod log;
mod missing_prompt;
mod model_args;
mod model_source;
mod nearest;
mod numbers;
mod once;
mod option_names;
mod output;
#[cfg(feature = "cuda")]
mod plan;
mod profile;
mod prompts;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod pull_progress;
mod remove;
mod respond;
mod running;
mod sampling_args;
mod score;
#[cfg_attr(unix, expect(unsafe_code, reason = "sigaction tells whether a signal is ignored"))]
mod signals;
mod synth;
mod tokenize;
mod usage;
mod value_names;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use error::CliError;
use output::Output;

/// Runs StarCoder2 code models from a Hugging Face checkpoint directory.
#[derive(Debug, Parser)]
#[command(
    name = "rigel",
    bin_name = "rigel",
    version = version::VERSION,
    long_version = version::long(),
    arg_required_else_help = true,
    // The last of a repeated option counts, so that an alias of a shell can be overridden; `once` has those of which
    // none does.
    args_override_self = true,
    max_term_width = 100,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{ENVIRONMENT}")
)]
struct Cli {
    /// Print what is being done on stderr: -v for information, -vv for details
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  rigel generate 'def fibonacci(n):'
  rigel pull bigcode/starcoder2-3b
  rigel generate --model bigcode/starcoder2-3b --max-new-tokens 64 - < prompt.py
  rigel respond --model ./starcoder2-15b-instruct-v0.1 'Write a quicksort.'
  rigel batch prompts.jsonl completions.jsonl
  rigel plan --model 15b --gpu rtx4090
  rigel doctor

Without --model, every command uses nano, a small model inside this binary.
`rigel <command> --help` has examples of each command.";

/// What the environment sets. Lines of at most 80 characters, so that none is wrapped.
const ENVIRONMENT: &str = "\
Environment:
  RIGEL_MODEL, RIGEL_DEVICE, RIGEL_DTYPE, RIGEL_THREADS, RIGEL_CONTEXT,
  RIGEL_PREFILL_CHUNK, RIGEL_MEMORY, RIGEL_NO_MMAP, RIGEL_MLOCK,
  RIGEL_SPECULATION, RIGEL_BATCH_INVARIANT
                 The option of that name, where it is not given; an empty
                 variable counts as unset. `rigel doctor` checks them
  RIGEL_CPU_ISA  Instruction set of the CPU backend: portable, avx2, avx512
                 [default: the best]
  RIGEL_CUDA_…   Switches of the GPU backend: `rigel doctor` lists them
  RUST_LOG       What is logged on stderr: warn, info, debug, or one of these
                 for a module
  HF_HOME, HF_HUB_CACHE
                 Where downloaded models are [default: ~/.cache/huggingface/hub]
  HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE
                 Access token, server and offline mode of `rigel pull`
  NO_COLOR       Set to anything: no colours";

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
    #[cfg(feature = "hub")]
    Pull(pull::Pull),
    List(list::List),
    Remove(remove::Remove),
    #[cfg(feature = "cuda")]
    Plan(plan::Plan),
    Synth(synth::Synth),
    Bench(bench::Bench),
    Profile(profile::Profile),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(completions::Man),
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
            #[cfg(feature = "hub")]
            Command::Pull(command) => command.run(out),
            Command::List(command) => command.run(out),
            Command::Remove(command) => command.run(out),
            #[cfg(feature = "cuda")]
            Command::Plan(command) => command.run(out),
            Command::Synth(command) => command.run(out),
            Command::Bench(command) => command.run(out),
            Command::Profile(command) => command.run(out),
            Command::Doctor(command) => command.run(out),
            Command::Completions(command) => command.run(out),
            Command::Man(command) => command.run(out),
        }
    }
}

/// The parser of the command line.
fn parser() -> clap::Command {
    value_names::apply(environment::without_empty(Cli::command()))
}

/// The command line, whose first word is the program's name: what it asks for, and the parser with what it found.
fn parse<T: Into<OsString>>(
    words: impl IntoIterator<Item = T>,
) -> Result<(Cli, clap::Command, clap::ArgMatches), clap::Error> {
    let words: Vec<OsString> = words.into_iter().map(T::into).collect();
    let mut parser = once::keep_inputs(parser());
    let matches = match parser.try_get_matches_from_mut(&words) {
        // A variable stands back where an option is given that excludes its own.
        Err(error) if error.kind() == ErrorKind::ArgumentConflict => {
            let excluded = usage::variables_at_fault(&error, words.get(1..).unwrap_or_default());
            if excluded.is_empty() {
                return Err(error);
            }
            parser = environment::without(parser, &|variable| excluded.iter().any(|name| name == variable));
            parser.try_get_matches_from_mut(&words)?
        }
        matches => matches?,
    };
    once::check(&mut parser, &matches)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut parser))?;
    Ok((cli, parser, matches))
}

/// Runs the command that the process was started with. Exit codes: 0, 1 for what fails while running, 2 for bad
/// input; 128 and the signal's number where a signal ended it: Ctrl-C, SIGTERM, SIGHUP, or SIGBUS for a weight file
/// that is gone.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let cli = match parse(std::env::args_os()) {
        Ok((cli, parser, matches)) => {
            // `rigel doctor` speaks of the options of all commands.
            if !matches!(cli.command, Command::Doctor(_)) {
                running::set(&parser, &matches);
            }
            cli
        }
        Err(error) => return usage::report(&error, &arguments),
    };
    log::init(cli.verbose);
    rigel::checkpoint::name_files_on_sigbus(match running::has("no-mmap") {
        true => "run the command again, with --no-mmap if the file may change again",
        false => "run the command again",
    });
    let mut out = Output::stdout();
    let result = cli.command.run(&mut out).and_then(|()| out.flush());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(line) = error.line_with_origins() {
                out.note(&format!("error: {line}"));
            }
            error.exit_code()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_consistent() {
        parser().debug_assert();
        once::keep_inputs(parser()).debug_assert();
    }

    /// Every option that has a variable is in the list that `rigel --help` ends with.
    #[test]
    fn variables_are_listed() {
        let arguments = environment::arguments(&parser());
        for variable in arguments.iter().filter_map(|argument| argument.get_env()) {
            let variable = variable.to_string_lossy();
            assert!(ENVIRONMENT.contains(variable.as_ref()), "{variable}");
        }
        assert!(arguments.len() >= 11, "{arguments:?}");
    }

    #[test]
    fn the_last_of_a_repeated_option_counts() {
        let parse = |arguments: &[&str]| parse([&["rigel", "generate", "x"], arguments].concat());
        assert!(parse(&["--seed", "1", "--seed", "2", "--json", "--json"]).is_ok());
        // These collect.
        let Ok((Cli { command: Command::Generate(_), .. }, ..)) = parse(&["--stop", "a", "--stop", "b"]) else {
            panic!()
        };
    }

    #[test]
    fn an_input_is_given_once() {
        for (arguments, said) in [
            (&["generate", "--file", "a", "-f", "b"][..], "--file is given twice, as a and as b; give one of them"),
            (&["generate", "--prompts", "a", "--seed", "1", "--jsonl", "b"], "--prompts is given twice, as a and as b"),
            (&["score", "--text", "a", "--text=b"], "--text is given twice, as a and as b"),
            (&["infill", "--at", "a:1:1", "--at", "b:1:1"], "--at is given twice, as a:1:1 and as b:1:1"),
            (&["infill", "--file", "a", "--line", "1", "--column", "1", "--line", "2"], "--line is given twice"),
        ] {
            let error = parse([&["rigel"], arguments].concat()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("error: {said}")), "{error}");
        }
        for arguments in [
            &["generate", "--file", "a"][..],
            &["score", "--prompts", "a"],
            &["infill", "--prefix-file", "a", "--suffix-file", "b", "--context-file", "c", "--context-file", "d"],
            // A text that is no option's.
            &["tokenize", "--count", "x"],
        ] {
            let parsed = parse([&["rigel"], arguments].concat());
            assert!(parsed.is_ok(), "{arguments:?}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn names_of_other_programs_are_taken() {
        for arguments in [
            &["generate", "--max-tokens", "3", "x"][..],
            &["generate", "--n-predict", "3", "x"],
            &["generate", "--device", "gpu", "x"],
            &["generate", "-c", "8k", "x"],
            &["generate", "--ctx-size", "512", "--temp", "0.5", "--repeat-penalty", "1.1", "x"],
            &["generate", "--max-model-len", "512", "x"],
        ] {
            let parsed = Cli::try_parse_from([&["rigel"], arguments].concat());
            assert!(parsed.is_ok(), "{arguments:?}: {}", parsed.unwrap_err());
        }
    }
}
