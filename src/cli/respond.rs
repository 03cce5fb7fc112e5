//! `rigel respond`: the `respond` function of the StarCoder2-Instruct model card, as transformers 4.39 runs it.

use clap::Args;
use rigel::checkpoint::ModelSource;
use rigel::engine::{Completion, EosTokens, FinishReason};
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, SpecialOutput, SpecialTokens, TokenId, Tokenizer, clean_up_spaces,
};

use super::completion::{self, FormatArgs, LogprobsRecord, Record};
use super::error::CliError;
use super::input;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::{GenerationArgs, max_tokens};

const EXAMPLES: &str = "\
Examples:
  rigel respond 'Write a function that reverses a string.'
  rigel respond --max-length 2048 < task.md
  rigel respond --model bigcode/starcoder2-15b-instruct-v0.1 'Sort a list.'
  rigel respond --temperature 0.8 --top-p 0.95 --seed 7 'Sort a list.'
  rigel respond --response-prefix $'```python\\n' -n 400 'Sort a list.'";

const JSON_HELP: &str = "\
JSON object of --json: that of `rigel generate --json` (see its --help); text is
the answer.";

/// The text at which an answer ends: the headings of the template begin with it.
const END: &str = "###";

/// Answer an instruction, as the instruct model's card does
///
/// The instruction goes through the model's chat template; the answer is decoded greedily unless a --temperature is
/// given, ends at an end-of-sequence token or at ###, and is printed without white space at its end: as it comes on a
/// terminal, elsewhere when it is whole. As in the card, the prompt counts towards --max-length, and spaces before
/// punctuation are removed. Needs an instruct model (nano is one).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Respond {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model shall do; - reads it from stdin, as does no instruction at all where stdin is a pipe or a file
    instruction: Option<String>,
    /// Text that the answer begins with
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, help_heading = "Input")]
    #[arg(allow_hyphen_values = true)]
    response_prefix: String,
    /// The most tokens of prompt and answer together; --max-new-tokens takes its place
    #[arg(long, value_name = "N", default_value_t = 256, conflicts_with = "max_new_tokens")]
    #[arg(help_heading = "Length and stops", allow_negative_numbers = true)]
    max_length: u32,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    format: FormatArgs,
}

impl Respond {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let mut options = self.generation.options(&source)?;
        let instruction = input::text_or_stdin(self.instruction, input::read_text)?
            .ok_or_else(|| CliError::Usage("no instruction; give <INSTRUCTION>, or pipe one in".to_owned()))?;
        if instruction.trim().is_empty() {
            return Err(CliError::Usage("the instruction is empty; say what the model shall do".to_owned()));
        }
        let prompt_text = prompt_text(&source, instruction)? + &self.response_prefix;
        let engine = self.model.engine(source, LoadBar::unless(self.format.quiet), Load::One)?;
        let tokenizer = engine.tokenizer()?;
        let prompt = tokenizer.encode(&prompt_text, SpecialTokens::Parse)?;
        let limit = match options.max_new_tokens {
            Some(max_new_tokens) => Limit::NewTokens(max_new_tokens),
            None => Limit::Length(self.max_length),
        };
        options.max_new_tokens = Some(limit.max_tokens(prompt.len(), engine.spec().max_positions)?);
        let mut request = options.request(&engine, prompt.clone())?;
        request.stop_token_ids.push(end_token(tokenizer)?);
        // The card stops at the tokenizer's end-of-sequence token; a fine-tune may have another.
        request.eos = EosTokens::Chat;
        request.logprobs = self.format.logprobs;
        let mut answer = Answer::new(tokenizer.decode(&prompt, SpecialOutput::Skip)?);
        let streams = out.is_terminal() && !self.format.json;
        if streams {
            out.text(&self.response_prefix)?;
        }
        let completion = completion::collect(&engine, request, |text| {
            answer.push(text);
            if streams { out.text(&answer.printable()) } else { Ok(()) }
        })?;
        let text = answer.text();
        if self.format.json {
            out.json(&Record {
                prompt_token_ids: &prompt,
                token_ids: &completion.token_ids,
                text: &(self.response_prefix + &text),
                finish_reason: completion.reason.as_str(),
                logprobs: self.format.logprobs.map(|_| LogprobsRecord::new(&completion.logprobs)),
                timings: completion.timings.into(),
            })?;
        } else {
            let rest = if streams { answer.rest() } else { self.response_prefix + &text };
            out.line(&rest)?;
            completion::logprobs_note(&engine, &completion, out)?;
        }
        if completion.reason == FinishReason::Length {
            tracing::warn!("{}", limit.cut(prompt.len(), &completion));
        }
        if !self.format.quiet {
            completion::closing_note(&engine, &completion, out);
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

/// An answer on its way. Its text is that of prompt and answer together, cleaned up, without the prompt's: the pipeline
/// of transformers decodes both in one.
struct Answer {
    /// The prompt's text, without special tokens.
    prompt: String,
    /// The prompt's text, and that of the answer so far.
    all: String,
    /// Bytes of the answer that were printed.
    printed: usize,
}

impl Answer {
    fn new(prompt: String) -> Answer {
        Answer { all: prompt.clone(), prompt, printed: 0 }
    }

    fn push(&mut self, text: &str) {
        self.all.push_str(text);
    }

    /// The answer, as far as it is known.
    fn text(&self) -> String {
        answer_text(&self.all, &self.prompt)
    }

    /// What can be printed now: what no later text changes, neither through the clean-up, which looks at a few
    /// characters together, nor by a heading that ends the answer, with the white space before it.
    fn printable(&mut self) -> String {
        // More characters than a heading's beginning has, and than one clean-up after the other reaches.
        const HELD: usize = 16;
        let text = self.text();
        let end = text.char_indices().rev().nth(HELD).map_or(0, |(index, _)| index);
        let end = text[..end].trim_end_matches(is_python_space).len();
        let new = text.get(self.printed..end).unwrap_or_default().to_owned();
        self.printed += new.len();
        new
    }

    /// What was not printed of an answer that is whole.
    fn rest(&self) -> String {
        self.text().get(self.printed..).unwrap_or_default().to_owned()
    }
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
    use proptest::prelude::*;

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

    proptest! {
        /// What is printed piece by piece is the answer, however it comes.
        #[test]
        fn a_streamed_answer_is_the_whole_one(
            prompt in "[a .,']{0,12}",
            pieces in prop::collection::vec("( n't| 'm| 's| 've| 're| ' | \\.|[a-c]| |[.?!,']|\n|#|##|é|nt|re){0,3}", 0..40),
        ) {
            let mut answer = Answer::new(prompt);
            let mut printed = String::new();
            for piece in &pieces {
                answer.push(piece);
                printed += &answer.printable();
            }
            printed += &answer.rest();
            prop_assert_eq!(printed, answer.text());
        }
    }

    #[test]
    fn an_answer_is_printed_before_it_ends() {
        let mut answer = Answer::new("p".to_owned());
        answer.push(&"word ".repeat(20));
        assert!(answer.printable().len() > 70);
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
