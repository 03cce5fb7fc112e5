//! `rigel tokenize`: text to token ids.

use clap::Args;
use rigel::text::{AddGenerationPrompt, ChatMessage, ChatTemplate, SpecialTokens, TokenId};
use serde::Serialize;

use super::error::CliError;
use super::input::text_or_stdin;
use super::model_args::ModelArg;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel tokenize 'def f():'
  rigel tokenize --json - < main.py
  rigel tokenize --chat --json 'Write a quicksort.'
  rigel tokenize 'x = 1' | rigel detokenize -

Prints the ids on one line, or with --json {\"token_ids\":[…]}.";

/// Text to token ids
///
/// Reads no weights. The ids are those that `generate` gives the model for this text: with the special tokens that the
/// tokenizer puts around every prompt, if it has any (StarCoder2's has none). With --chat, a template's own are all.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Tokenize {
    #[command(flatten)]
    model: ModelArg,
    /// Text; - reads it from stdin, byte for byte
    text: String,
    /// Put the text through the chat template first, as one turn of a user
    #[arg(long, help_heading = "Input", conflicts_with = "no_special")]
    chat: bool,
    /// Take special tokens in the text as plain text: for text that you do not trust
    #[arg(long, help_heading = "Input")]
    no_special: bool,
    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Serialize)]
struct Record {
    token_ids: Vec<TokenId>,
}

impl Tokenize {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let tokenizer = self.model.tokenizer()?;
        let text = text_or_stdin(self.text)?;
        let token_ids = if self.chat {
            let template = ChatTemplate::from_source(&self.model.source()?)?;
            let text = template.render(&[ChatMessage::user(text)], AddGenerationPrompt::Yes)?;
            tokenizer.encode(&text, SpecialTokens::Parse)?
        } else {
            let special = if self.no_special { SpecialTokens::AsText } else { SpecialTokens::Parse };
            tokenizer.encode_prompt(&text, special)?
        };
        if self.json {
            return out.json(&Record { token_ids });
        }
        let ids: Vec<String> = token_ids.iter().map(TokenId::to_string).collect();
        out.line(&ids.join(" "))
    }
}
