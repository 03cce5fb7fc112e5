//! `rigel generate`: raw completion of prompts.

use clap::Args;
use rigel::engine::{Engine, RequestError};
use rigel::text::{SpecialOutput, SpecialTokens, TokenId};

use super::completion::{self, FormatArgs, JSON_HELP};
use super::error::CliError;
use super::input::{self, JsonLines, PromptInput};
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::{GenerationArgs, GenerationOptions};

const EXAMPLES: &str = "\
Examples:
  rigel generate 'def fibonacci(n):'
  rigel generate --model bigcode/starcoder2-3b -n 64 - < prompt.py
  rigel generate --temperature 0.8 --top-p 0.95 --seed 7 'import os'
  rigel generate --stop $'\\ndef ' --stop $'\\nclass ' 'def main():'
  rigel generate --echo --quiet 'def main():' > main.py
  rigel generate --json --logprobs 3 'x ='
  rigel generate --json --token-ids prompts.jsonl > completions.jsonl";

/// Continue a prompt
///
/// The text is printed as it comes. The prompt is taken byte for byte: no template, nothing trimmed, and nothing added
/// but the special tokens that the model's tokenizer puts around every prompt (StarCoder2's puts none). Special tokens
/// written in it, such as <fim_prefix>, become those tokens unless --no-special is given.
#[derive(Debug, Args)]
#[command(override_usage = "\
rigel generate [OPTIONS] <PROMPT>
       rigel generate [OPTIONS] --token-ids <FILE>")]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue; - reads it from stdin
    #[arg(required_unless_present = "token_ids", conflicts_with = "token_ids")]
    prompt: Option<String>,
    /// Read prompts from JSON lines, {"token_ids":[…]} or {"text":"…"}; - is stdin
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    token_ids: Option<String>,
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
        if let Some(prompt) = self.prompt {
            let text = input::text_or_stdin(prompt)?;
            // A tokenizer that puts a token before each prompt makes a prompt of nothing.
            if text.is_empty() && self.model.model.tokenizer()?.encode_prompt("", special)?.is_empty() {
                return Err(RequestError::EmptyPrompt.into());
            }
            let engine = self.model.engine(source, LoadBar::unless(printing.format.quiet), Load::One)?;
            return printing.one(&engine, PromptInput::Text(text), out);
        }
        // clap asks for one of the two.
        let file = self.token_ids.as_deref().unwrap_or(input::STDIN);
        let prompts = JsonLines::open(file)?;
        let engine = self.model.engine(source, LoadBar::unless(printing.format.quiet), Load::One)?;
        for prompt in prompts {
            let prompt = prompt?;
            printing.one(&engine, prompt.input, out).map_err(|error| error.at(prompt.place))?;
            if !printing.format.json {
                out.line("")?;
            }
        }
        Ok(())
    }
}

/// What is the same for every prompt.
struct Printing {
    options: GenerationOptions,
    special: SpecialTokens,
    format: FormatArgs,
    echo: bool,
}

impl Printing {
    fn one(&self, engine: &Engine, input: PromptInput, out: &mut Output) -> Result<(), CliError> {
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
        if !self.format.json {
            // Without a tokenizer there is no text to print.
            engine.tokenizer()?;
        }
        let request = self.options.request(engine, ids)?;
        completion::run(engine, request, &echo, &self.format, out)
    }
}

fn decode(engine: &Engine, ids: &[TokenId]) -> Result<String, CliError> {
    Ok(engine.tokenizer()?.decode(ids, SpecialOutput::Keep)?)
}
