//! `rigel respond`: the `respond` function of the StarCoder2-Instruct model card, as transformers 4.39 runs it.

use clap::Args;
use rigel::checkpoint::ModelSource;
use rigel::engine::{Completion, EosTokens, FinishReason, Request};
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, SpecialOutput, SpecialTokens, TokenId, Tokenizer, clean_up_spaces,
};

use super::completion::{self, Record};
use super::error::CliError;
use super::input;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::max_tokens;

const EXAMPLES: &str = "\
Examples:
  rigel respond 'Write a function that reverses a string.'
  rigel respond --max-length 2048 - < task.md
  rigel respond --model bigcode/starcoder2-15b-instruct-v0.1 'Sort a list.'
  rigel respond --response-prefix $'```python\\n' -n 400 'Sort a list.'";

const JSON_HELP: &str = "\
JSON object of --json: that of `rigel generate --json` (see its --help); text is
the answer.";

/// The text at which an answer ends: the headings of the template begin with it.
const END: &str = "###";

/// Answer an instruction, as the instruct model's card does
///
/// The instruction goes through the model's chat template; the answer is decoded greedily, ends at an
/// end-of-sequence token or at ###, and is printed when it is whole, without white space at its end. As in the card,
/// the prompt counts towards --max-length, and spaces before punctuation are removed. Needs an instruct model (nano
/// is one).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Respond {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model shall do; - reads it from stdin
    instruction: String,
    /// Text that the answer begins with
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, help_heading = "Input")]
    #[arg(allow_hyphen_values = true)]
    response_prefix: String,
    /// The most tokens of prompt and answer together
    #[arg(long, value_name = "N", default_value_t = 256, conflicts_with = "max_new_tokens")]
    #[arg(help_heading = "Length and stops", allow_negative_numbers = true)]
    max_length: u32,
    /// The most tokens of the answer, in place of --max-length
    #[arg(long, short = 'n', value_name = "N", help_heading = "Length and stops", allow_negative_numbers = true)]
    max_new_tokens: Option<u32>,
    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// No bar while the model loads and no closing line with tokens and times on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

impl Respond {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let instruction = input::text_or_stdin(self.instruction)?;
        let prompt_text = prompt_text(&source, instruction)? + &self.response_prefix;
        let engine = self.model.engine(source, LoadBar::unless(self.quiet), Load::One)?;
        let tokenizer = engine.tokenizer()?;
        let prompt = tokenizer.encode(&prompt_text, SpecialTokens::Parse)?;
        let limit = match self.max_new_tokens {
            Some(max_new_tokens) => Limit::NewTokens(max_new_tokens),
            None => Limit::Length(self.max_length),
        };
        let request = Request {
            max_tokens: limit.max_tokens(prompt.len(), engine.spec().max_positions)?,
            stop_token_ids: vec![end_token(tokenizer)?],
            // The card stops at the tokenizer's end-of-sequence token; a fine-tune may have another.
            eos: EosTokens::Chat,
            ..Request::new(prompt.clone())
        };
        let completion = engine.generate(request)?.wait()?;
        let text = self.response_prefix + &answer(tokenizer, &prompt, &completion)?;
        if self.json {
            out.json(&Record {
                prompt_token_ids: &prompt,
                token_ids: &completion.token_ids,
                text: &text,
                finish_reason: completion.reason.as_str(),
                logprobs: None,
                timings: completion.timings.into(),
            })?;
        } else {
            out.line(&text)?;
        }
        if completion.reason == FinishReason::Length {
            tracing::warn!("{}", limit.cut(prompt.len(), &completion));
        }
        if !self.quiet {
            completion::closing_note(&engine, &completion.timings, &completion.reason);
        }
        Ok(())
    }
}

/// The instruction as one user turn. The card does not ask the template for a generation prompt; StarCoder2's ends
/// with one anyway.
fn prompt_text(source: &ModelSource, instruction: String) -> Result<String, CliError> {
    let template = ChatTemplate::from_source(source)?;
    let turn = ChatMessage::user(instruction);
    Ok(template.render(&[turn], AddGenerationPrompt::No)?)
}

fn end_token(tokenizer: &Tokenizer) -> Result<TokenId, CliError> {
    let missing = || format!("the tokenizer has no token `{END}`, at which `respond` stops; use `generate`");
    tokenizer.id(END).ok_or_else(|| CliError::Usage(missing()))
}

/// How long an answer may be.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// Prompt and answer together.
    Length(u32),
    /// The answer.
    NewTokens(u32),
}

impl Limit {
    fn max_tokens(self, prompt: usize, positions: usize) -> Result<u32, CliError> {
        match self {
            Limit::NewTokens(tokens) => max_tokens(Some(tokens), prompt, positions),
            Limit::Length(length) => {
                // The card cuts a longer prompt to `length` tokens, and then no token of an answer fits, so there is
                // never a cut prompt to run.
                let room = (length as usize).checked_sub(prompt).filter(|room| *room > 0).ok_or_else(|| {
                    CliError::Usage(format!(
                        "the prompt has {prompt} tokens, and --max-length {length} counts them: no room for an answer; \
                         give a larger --max-length, or --max-new-tokens"
                    ))
                })?;
                let available = positions.saturating_sub(prompt);
                if room > available {
                    tracing::warn!("--max-length {length} exceeds the model's {positions} positions");
                }
                // At most `length`, which is a u32.
                max_tokens(Some(room.min(available) as u32), prompt, positions)
            }
        }
    }

    /// The warning for an answer that did not end by itself.
    fn cut(self, prompt: usize, completion: &Completion) -> String {
        let tokens = completion.token_ids.len();
        match self {
            Limit::Length(length) => format!(
                "the answer was cut at --max-length {length} ({prompt} tokens of the prompt and {tokens} of the \
                 answer); give a larger --max-length, or --max-new-tokens"
            ),
            Limit::NewTokens(_) => {
                format!("the answer was cut after {tokens} tokens; give a larger --max-new-tokens")
            }
        }
    }
}

/// The answer's text: prompt and answer are decoded together, as the pipeline of transformers does.
fn answer(tokenizer: &Tokenizer, prompt: &[TokenId], completion: &Completion) -> Result<String, CliError> {
    let all: Vec<TokenId> = prompt.iter().chain(&completion.token_ids).copied().collect();
    let all_text = tokenizer.decode(&all, SpecialOutput::Skip)?;
    let prompt_text = tokenizer.decode(prompt, SpecialOutput::Skip)?;
    Ok(answer_text(&all_text, &prompt_text))
}

/// `clean_up(all)[len(clean_up(prompt)):].split("###")[0].rstrip()`, lengths in characters.
fn answer_text(all: &str, prompt: &str) -> String {
    let (all, prompt) = (clean_up_spaces(all), clean_up_spaces(prompt));
    let start = all.char_indices().nth(prompt.chars().count()).map_or(all.len(), |(index, _)| index);
    let answer = all[start..].split(END).next().unwrap_or("");
    answer.trim_end_matches(is_python_space).to_owned()
}

/// What Python's `str.rstrip()` removes: Unicode's white space, and four separators of ASCII.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_ends_at_the_hashes_and_is_trimmed() {
        assert_eq!(answer_text("Q: hi\nA: yes \n\n### Instruction\nno ###", "Q: hi\nA:"), " yes");
        assert_eq!(answer_text("pab####c", "p"), "ab");
        assert_eq!(answer_text("pab\n", "p"), "ab");
        assert_eq!(answer_text("p###", "p"), "");
        assert_eq!(answer_text("p", "p"), "");
    }

    #[test]
    fn python_trims_these_and_no_others() {
        // [chr(c) for c in range(0x110000) if chr(c).isspace()], CPython 3.12.
        let expected: Vec<u32> = [0x9..=0xd, 0x1c..=0x20, 0x85..=0x85, 0xa0..=0xa0, 0x1680..=0x1680]
            .into_iter()
            .chain([0x2000..=0x200a, 0x2028..=0x2029, 0x202f..=0x202f, 0x205f..=0x205f, 0x3000..=0x3000])
            .flatten()
            .collect();
        let found: Vec<u32> = ('\0'..=char::MAX).filter(|c| is_python_space(*c)).map(u32::from).collect();
        assert_eq!(found, expected);
        assert_eq!(answer_text("a \u{1f}\u{85}\u{3000}\u{200b} \n", ""), "a \u{1f}\u{85}\u{3000}\u{200b}");
    }

    #[test]
    fn lengths_are_those_of_the_cleaned_text() {
        // Cleaned, both lose the space before the full stop; counted in characters, not bytes.
        assert_eq!(answer_text("é . x , y", "é . "), "x, y");
        // The clean-up reaches over the prompt's end: " ." is one character shorter in the whole than in the prompt
        // alone, and the answer loses its first character, as it does in transformers.
        assert_eq!(answer_text("p .ab", "p "), "ab"); // "p.ab"[2:]
        assert_eq!(answer_text("p.", "p . x"), "");
    }

    #[test]
    fn max_length_counts_the_prompt() {
        assert_eq!(Limit::Length(256).max_tokens(55, 16384).unwrap(), 201);
        assert_eq!(Limit::Length(4096).max_tokens(55, 2048).unwrap(), 1993);
        for prompt in [256, 257, 3000] {
            let message = Limit::Length(256).max_tokens(prompt, 16384).unwrap_err().to_string();
            assert!(message.contains("--max-length 256"), "{message}");
        }
        assert_eq!(Limit::NewTokens(7).max_tokens(300, 16384).unwrap(), 7);
    }
}
