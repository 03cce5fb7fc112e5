//! `rigel tokenize`: text to token ids.

use clap::Args;
use rigel::text::{AddGenerationPrompt, ChatMessage, ChatTemplate, SpecialTokens, TokenId, TokenNames};
use serde::Serialize;

use super::completion::piece;
use super::error::CliError;
use super::input::{read_exact, text_or_stdin};
use super::model_args::ModelArg;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel tokenize 'def f():'
  rigel tokenize --pieces 'def f():'
  rigel tokenize --count < main.py
  rigel tokenize --json - < main.py
  rigel tokenize --chat --json 'Write a quicksort.'
  rigel tokenize 'x = 1' | rigel detokenize

Prints the ids on one line, or with --json {\"token_ids\":[…]}; with --pieces and
--json {\"token_ids\":[…],\"pieces\":[…]}, with --count and --json {\"count\":…}.
Bytes that are no text by themselves have a name such as bytes:\\xc3.";

/// Text to token ids
///
/// Reads no weights. The ids are those that `generate` gives the model for this text: with the special tokens that the
/// tokenizer puts around every prompt, if it has any (StarCoder2's has none). With --chat, a template's own are all.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Tokenize {
    #[command(flatten)]
    model: ModelArg,
    /// Text; - reads it from stdin, as does no text at all where stdin is a pipe or a file. It is taken byte for byte,
    /// a byte order mark included, which `generate` leaves out
    text: Option<String>,
    /// Put the text through the chat template first, as one turn of a user
    #[arg(long, help_heading = "Input", conflicts_with = "no_special")]
    chat: bool,
    /// Take special tokens in the text as plain text: for text that you do not trust
    #[arg(long, help_heading = "Input")]
    no_special: bool,
    /// Print a line for each token: its id, a tab, and its text in quotes
    #[arg(long, help_heading = "Output", conflicts_with = "count")]
    pieces: bool,
    /// Print the number of tokens alone
    #[arg(long, help_heading = "Output")]
    count: bool,
    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Serialize)]
struct Record<'a> {
    token_ids: &'a [TokenId],
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<Vec<String>>,
}

#[derive(Serialize)]
struct CountRecord {
    count: usize,
}

impl Tokenize {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let tokenizer = self.model.tokenizer()?;
        let text = text_or_stdin(self.text, read_exact)?
            .ok_or_else(|| CliError::Usage("no text; give <TEXT>, or pipe one in".to_owned()))?;
        let token_ids = if self.chat {
            let template = ChatTemplate::from_source(&self.model.source()?)?;
            let text = template.render(&[ChatMessage::user(text)], AddGenerationPrompt::Yes)?;
            tokenizer.encode(&text, SpecialTokens::Parse)?
        } else {
            let special = if self.no_special { SpecialTokens::AsText } else { SpecialTokens::Parse };
            tokenizer.encode_prompt(&text, special)?
        };
        if self.count {
            let count = token_ids.len();
            return if self.json { out.json(&CountRecord { count }) } else { out.line(&count.to_string()) };
        }
        if self.json {
            let name = |id: &TokenId| TokenNames::shared_name(Some(&tokenizer), *id);
            let pieces = self.pieces.then(|| token_ids.iter().map(name).collect());
            return out.json(&Record { token_ids: &token_ids, pieces });
        }
        if self.pieces {
            let lines: Vec<String> = token_ids.iter().map(|id| format!("{id}\t{}\n", piece(&tokenizer, *id))).collect();
            return out.text(&lines.concat());
        }
        let ids: Vec<String> = token_ids.iter().map(TokenId::to_string).collect();
        out.line(&ids.join(" "))
    }
}
