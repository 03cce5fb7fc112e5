//! `rigel generate`: raw completion of prompts.

use clap::Args;
use rigel::engine::{Engine, RequestError};
use rigel::text::{SpecialOutput, SpecialTokens, TokenId, Tokenizer};

use super::completion::{self, FormatArgs, JSON_HELP};
use super::error::CliError;
use super::input;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::prompts::{Prompt, PromptInput, Prompts};
use super::sampling_args::{GenerationArgs, GenerationOptions};

const EXAMPLES: &str = "\
Examples:
  rigel generate --echo 'def fibonacci(n):'
  rigel generate --model bigcode/starcoder2-3b -n 64 --file prompt.py
  git show HEAD:main.rs | rigel generate
  rigel generate --temperature 0.8 --top-p 0.95 --seed 7 'import os'
  rigel generate --stop $'\\ndef ' --stop $'\\nclass ' 'def main():'
  rigel generate --echo --quiet 'def main():' > main.py
  rigel generate --json --logprobs 3 'x ='
  rigel generate --json --prompts prompts.jsonl > completions.jsonl";

const PROMPTS_HELP: &str = "\
Lines of --prompts, one object each:
  {\"prompt\":\"…\"}, {\"text\":\"…\"} or {\"token_ids\":[…]}; other fields are ignored,
  with a warning for those that `rigel batch` reads (max_tokens, seed …).
  A line that cannot be continued is an error on stderr, and the rest goes on;
  the exit code is 1 then.
  Without --json a line ==> prompts.jsonl:3 <== stands before each completion.";

/// Continue a prompt
///
/// The text is printed as it comes. The prompt is an argument, a file, or what is piped in; it is taken byte for byte:
/// no template, nothing trimmed but a byte order mark at the start of a file or of stdin, and nothing added but the
/// special tokens that the model's tokenizer puts around every prompt (StarCoder2's puts none). Special tokens written
/// in it, such as <fim_prefix>, become those tokens unless --no-special is given.
#[derive(Debug, Args)]
#[command(override_usage = "\
rigel generate [OPTIONS] <PROMPT>
       rigel generate [OPTIONS] --file <FILE>
       rigel generate [OPTIONS] --prompts <FILE>")]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{PROMPTS_HELP}\n\n{JSON_HELP}"))]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; - reads it from stdin, as does no text at all where stdin is a pipe or a file
    #[arg(conflicts_with_all = ["file", "prompts"])]
    prompt: Option<String>,
    /// Continue a file's text; - is stdin
    #[arg(long, short, value_name = "FILE", help_heading = "Input", conflicts_with = "prompts")]
    file: Option<String>,
    /// Continue each prompt of a file of JSON lines; - is stdin
    #[arg(long, value_name = "FILE", help_heading = "Input", visible_alias = "jsonl", alias = "token-ids")]
    prompts: Option<String>,
    /// Take special tokens in the prompt as plain text: for text that you do not trust
    #[arg(long, help_heading = "Input")]
    no_special: bool,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// Print the prompt before its completion
    #[arg(long, help_heading = "Output")]
    echo: bool,
}

impl Generate {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let options = self.generation.options(&source)?;
        let special = if self.no_special { SpecialTokens::AsText } else { SpecialTokens::Parse };
        let printing = Printing { options, special, format: self.format, echo: self.echo };
        let bar = LoadBar::unless(printing.format.quiet);
        if let Some(file) = self.prompts {
            let prompts = Prompts::open(&file)?;
            // Without a tokenizer there is no text to print.
            if !printing.format.json && Tokenizer::from_source(&source)?.is_none() {
                let missing = source.describe("tokenizer.json");
                return Err(CliError::Usage(format!(
                    "{missing} does not exist, so there is no text to print; give --json to print token ids alone"
                )));
            }
            let engine = self.model.engine(source, bar, Load::One)?;
            return printing.all(&engine, prompts, out);
        }
        let text = prompt_text(self.prompt, self.file)?;
        // A tokenizer that puts a token before each prompt makes a prompt of nothing.
        if text.is_empty() && self.model.model.tokenizer()?.encode_prompt("", special)?.is_empty() {
            return Err(RequestError::EmptyPrompt.into());
        }
        let engine = self.model.engine(source, bar, Load::One)?;
        printing.one(&engine, PromptInput::Text(text), "", out)
    }
}

/// The prompt of the argument, of the file, or of what is piped in.
fn prompt_text(prompt: Option<String>, file: Option<String>) -> Result<String, CliError> {
    const NO_PROMPT: &str = "no prompt; give <PROMPT>, --file FILE or --prompts FILE, or pipe a text in";
    if let Some(file) = file {
        return input::read_text(&file);
    }
    if let Some(prompt) = prompt.as_ref().filter(|prompt| input::is_file_name(prompt)) {
        tracing::warn!("{prompt} is a file, and the prompt is its name alone; --file {prompt} continues its text");
        return Ok(prompt.clone());
    }
    input::text_or_stdin(prompt, input::read_text)?.ok_or_else(|| CliError::Usage(NO_PROMPT.to_owned()))
}

/// What is the same for every prompt.
struct Printing {
    options: GenerationOptions,
    special: SpecialTokens,
    format: FormatArgs,
    echo: bool,
}

impl Printing {
    /// The prompts of a file, one after the other; goes on after those that fail. Text is parted by headers, as `head`
    /// and `tail` part files.
    fn all(&self, engine: &Engine, prompts: Prompts, out: &mut Output) -> Result<(), CliError> {
        let origin = prompts.origin().to_owned();
        let (mut before, mut lines, mut failed, mut warned) = ("", 0, 0, false);
        for prompt in prompts {
            let Prompt { place, input, unread, .. } = prompt?;
            lines += 1;
            if !unread.is_empty() && !warned {
                warned = true;
                let fields = unread.join(", ");
                tracing::warn!("{place}: ignoring {fields}: fields of lines are for `rigel batch`, which reads them");
            }
            let header = if self.format.json { String::new() } else { format!("{before}==> {place} <==\n") };
            let printed = input.and_then(|input| self.one(engine, input, &header, out));
            if !self.format.json {
                out.end_line()?;
            }
            match printed {
                Ok(()) => before = "\n",
                Err(error) if error.ends_all() => return Err(error.at(place)),
                Err(error) => {
                    failed += 1;
                    out.note(&format!("error: {}", error.at(place).line().unwrap_or_default()));
                }
            }
        }
        match failed {
            _ if lines == 0 => Err(CliError::Usage(format!("{origin} has no prompts"))),
            0 => Ok(()),
            _ => Err(CliError::Failed(format!("{failed} of {lines} lines could not be continued"))),
        }
    }

    /// Prints what comes of one prompt, after `header` where anything does.
    fn one(&self, engine: &Engine, input: PromptInput, header: &str, out: &mut Output) -> Result<(), CliError> {
        let (ids, echo) = match input {
            PromptInput::Text(text) => {
                let ids = engine.tokenizer()?.encode_prompt(&text, self.special)?;
                (ids, if self.echo { text } else { String::new() })
            }
            PromptInput::TokenIds(ids) => {
                let echo = if self.echo { decode(engine, &ids)? } else { String::new() };
                (ids, echo)
            }
        };
        let request = self.options.request(engine, ids)?;
        completion::run(engine, request, &(header.to_owned() + &echo), &self.format, out)
    }
}

fn decode(engine: &Engine, ids: &[TokenId]) -> Result<String, CliError> {
    Ok(engine.tokenizer()?.decode(ids, SpecialOutput::Keep)?)
}
