//! `rigel detokenize`: token ids to text.

use clap::Args;
use rigel::text::{SpecialOutput, TextError, TokenId};
use serde::Serialize;

use super::error::CliError;
use super::input::{STDIN, read_text, text_or_stdin};
use super::model_args::ModelArg;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel detokenize 444 320 865 306 370 837
  rigel detokenize 600,283,8 --model bigcode/starcoder2-3b
  rigel tokenize 'x = 1' | rigel detokenize";

/// Token ids to text
///
/// Reads no weights. The text is printed as it is; bytes that are no UTF-8 become U+FFFD.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Detokenize {
    #[command(flatten)]
    model: ModelArg,
    /// Token ids between spaces or commas; - reads them from stdin, as do no ids at all where stdin is a pipe or a file
    #[arg(allow_negative_numbers = true)]
    ids: Vec<String>,
    /// Leave special tokens out of the text
    #[arg(long, help_heading = "Output")]
    skip_special: bool,
    /// Print a JSON object, {"text":"…"}
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Serialize)]
struct Record<'a> {
    text: &'a str,
}

impl Detokenize {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let is_read = matches!(self.ids.as_slice(), [stdin] if stdin == STDIN);
        let ids = if is_read || self.ids.is_empty() {
            let text = text_or_stdin(is_read.then(|| STDIN.to_owned()), read_text)?
                .ok_or_else(|| CliError::Usage("no ids; give <IDS>, or pipe them in".to_owned()))?;
            parse_ids(&text).map_err(|error| error.at("stdin"))?
        } else {
            parse_ids(&self.ids.join(" "))?
        };
        let tokenizer = self.model.tokenizer()?;
        if let Some(&id) = ids.iter().find(|id| tokenizer.token_bytes(**id).is_none()) {
            return Err(TextError::UnknownId { id, vocab_size: tokenizer.vocab_size() }.into());
        }
        let special = if self.skip_special { SpecialOutput::Skip } else { SpecialOutput::Keep };
        let text = tokenizer.decode(&ids, special)?;
        if self.json {
            return out.json(&Record { text: &text });
        }
        out.text(&text)?;
        out.end_text()
    }
}

/// Ids between white space, commas, or both.
fn parse_ids(text: &str) -> Result<Vec<TokenId>, CliError> {
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    words
        .enumerate()
        .map(|(index, word)| {
            word.parse().map(TokenId).map_err(|_| {
                let word = word.escape_debug();
                let which = ordinal(index + 1);
                CliError::Usage(format!("the {which} id is `{word}`; expected a number from 0 to {}", u32::MAX))
            })
        })
        .collect()
}

/// `1st`, `2nd`, `3rd`, `4th`.
fn ordinal(number: usize) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_between_spaces_or_commas() {
        let ids = |text| parse_ids(text).map(|ids| ids.into_iter().map(|id| id.0).collect::<Vec<_>>());
        assert_eq!(ids("1 2,3, 4\n").unwrap(), [1, 2, 3, 4]);
        assert_eq!(ids("").unwrap(), [0u32; 0]);
        assert_eq!(ids("1 -2").unwrap_err().to_string(), "the 2nd id is `-2`; expected a number from 0 to 4294967295");
        assert!(ids("4294967296").is_err());
        assert!(ids("[1]").is_err());
    }

    #[test]
    fn ordinals_are_those_of_english() {
        let said = [1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111].map(ordinal);
        assert_eq!(said, ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "22nd", "101st", "111th"]);
    }
}
