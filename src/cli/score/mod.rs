//! `rigel score`: log-probabilities of given tokens.

mod progress;
mod sum;
mod window;

use clap::Args;
use rigel::engine::{Engine, Event, Failure, PromptToken, Request};
use rigel::host::counted;
use rigel::text::{SpecialTokens, TokenId};
use serde::Serialize;

use super::error::CliError;
use super::input;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::prompts::{Prompt, PromptInput, Prompts};
use progress::Progress;
use sum::{Sum, scored_bytes};
use window::{Window, windows};

/// The most best tokens that are reported at each position.
const MAX_TOP: usize = 20;

const EXAMPLES: &str = "\
Examples:
  rigel score --text src/main.rs
  rigel score --text book.txt --stride 1024
  rigel score --prompts texts.jsonl
  rigel score --prompts texts.jsonl --json --top 0 > scores.jsonl
  echo '{\"prompt\":\"x = 1\"}' | rigel score --prompts - --json";

const FORMATS: &str = "\
Lines of --prompts, one object each:
  {\"prompt\":\"…\"}, {\"text\":\"…\"} or {\"token_ids\":[…]}; other fields are ignored.
  A line that cannot be scored is an error on stderr, and the rest goes on; the
  exit code is 1 then. The last line is the totals: on stdout, or with --json
  on stderr.

JSON object of --json, one a line:
  line           with --prompts: the line's number in the file
  token_ids      the ids scored
  logprobs       [null, …]: natural log-probabilities, each given those before
  top            [[[id, logprob], …], …]: the best tokens after tokens 0..=i;
                 absent with --top 0
  perplexity     exp(-mean of logprobs); null for a single token
  bits_per_byte  bits of all tokens but the first over their bytes; null where
                 token ids were given";

/// Log-probabilities of given text or token ids
///
/// Prints a line for each text: tokens, mean log-probability, perplexity, bits per byte; or everything with --json.
/// Results are printed as they come.
#[derive(Debug, Args)]
#[command(override_usage = "\
rigel score [OPTIONS] --text <FILE>
       rigel score [OPTIONS] --prompts <FILE>")]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{FORMATS}"))]
pub struct Score {
    #[command(flatten)]
    model: ModelArgs,
    /// Score a file as one text, whatever is in it; - is stdin
    #[arg(long, value_name = "FILE", help_heading = "Input", conflicts_with = "prompts")]
    #[arg(required_unless_present = "prompts")]
    text: Option<String>,
    /// Score each text of a file of JSON lines; - is stdin
    #[arg(long, value_name = "FILE", help_heading = "Input", visible_alias = "jsonl", alias = "token-ids")]
    prompts: Option<String>,
    /// Take special tokens in texts as plain text
    #[arg(long, help_heading = "Input")]
    no_special: bool,
    /// Score texts that are longer than the context in windows that advance by N tokens, each token once. Smaller
    /// strides leave each token more context, and take longer
    #[arg(long, value_name = "N", help_heading = "Input", allow_negative_numbers = true)]
    stride: Option<usize>,
    /// Print one JSON object a line
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Best tokens reported at each position, 0 to 20 [default: 5]
    #[arg(long, value_name = "N", help_heading = "Output", requires = "json", allow_negative_numbers = true)]
    top: Option<usize>,
}

/// The record that `--json` prints.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    token_ids: &'a [TokenId],
    logprobs: Vec<Option<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<Vec<&'a [(TokenId, f32)]>>,
    perplexity: Option<f64>,
    bits_per_byte: Option<f64>,
}

impl Score {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        if let Some(top) = self.top.filter(|top| *top > MAX_TOP) {
            return Err(CliError::Usage(format!("--top is {top}; expected 0 to {MAX_TOP}")));
        }
        if self.stride == Some(0) {
            return Err(CliError::Usage("--stride is 0; expected at least 1".to_owned()));
        }
        let texts = match (&self.text, &self.prompts) {
            (Some(path), _) => Texts::Whole(input::origin(path), whole_text(path)?),
            // clap asks for one of the two.
            (None, path) => Texts::Lines(Prompts::open(path.as_deref().unwrap_or(input::STDIN))?),
        };
        let engine = self.model.engine(source, LoadBar::Shown, Load::One)?;
        let scorer = Scorer::new(&engine, &self)?;
        match texts {
            Texts::Whole(origin, text) => {
                let mut progress = Progress::new(Some(text.len() as u64));
                let (line, end) = (None, text.len() as u64);
                let scored = scorer.one(line, &origin, PromptInput::Text(text), end, &mut progress, out);
                progress.close();
                scored.map(|_| ()).map_err(|error| error.at(origin))
            }
            Texts::Lines(prompts) => scorer.all(prompts, out),
        }
    }
}

/// What is scored.
enum Texts {
    /// One text and its name.
    Whole(String, String),
    Lines(Prompts),
}

/// The text of a file. One that looks like JSON lines is refused rather than scored as a text or taken for lines:
/// either would be a guess.
fn whole_text(path: &str) -> Result<String, CliError> {
    let text = input::read_text(path)?;
    let named = [".jsonl", ".ndjson"].iter().any(|end| path.to_ascii_lowercase().ends_with(end));
    if !named && !begins_as_lines(&text) {
        return Ok(text);
    }
    if path == input::STDIN {
        tracing::warn!("stdin looks like JSON lines and is scored as one text; --prompts - scores each line");
        return Ok(text);
    }
    let message = format!(
        "looks like JSON lines, and --text scores a file as one text; give --prompts {path}, or `--text - < {path}` to \
         score its bytes"
    );
    Err(CliError::Usage(message).at(path))
}

/// Whether a text begins with an object and its first key in one line.
fn begins_as_lines(text: &str) -> bool {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    text.strip_prefix('{').is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with(['"', '\'']))
}

/// What is the same for every text.
struct Scorer<'a> {
    engine: &'a Engine,
    special: SpecialTokens,
    context: usize,
    stride: Option<usize>,
    top: usize,
    json: bool,
}

impl<'a> Scorer<'a> {
    fn new(engine: &'a Engine, args: &Score) -> Result<Scorer<'a>, CliError> {
        let context = engine.spec().max_positions;
        if let Some(stride) = args.stride.filter(|stride| *stride >= context) {
            let message = format!("--stride is {stride}; expected less than the context's {context} positions");
            return Err(CliError::Usage(message));
        }
        let special = if args.no_special { SpecialTokens::AsText } else { SpecialTokens::Parse };
        let top = if args.json { args.top.unwrap_or(5) } else { 0 };
        Ok(Scorer { engine, special, context, stride: args.stride, top, json: args.json })
    }

    /// Scores every line, and goes on after those that cannot be.
    fn all(&self, prompts: Prompts, out: &mut Output) -> Result<(), CliError> {
        let mut progress = Progress::new(prompts.size());
        let origin = prompts.origin().to_owned();
        let (mut total, mut texts, mut failed) = (Sum::NONE, 0, 0);
        for prompt in prompts {
            let Prompt { place, line, bytes, input, .. } = prompt?;
            match input.and_then(|input| self.one(Some(line), &place, input, bytes, &mut progress, out)) {
                Ok(sum) => {
                    texts += 1;
                    total.add(&sum);
                }
                Err(error) if error.ends_all() => return Err(error.at(place)),
                Err(error) => {
                    failed += 1;
                    let message = error.at(place).line().unwrap_or_default();
                    progress.suspend(|| out.note(&format!("error: {message}")));
                }
            }
        }
        progress.close();
        if texts + failed == 0 {
            return Err(CliError::Usage(format!("{origin} has no prompts")));
        }
        let line = format!("total: {}, {total}", counted(texts, "text"));
        if self.json {
            out.note(&line)
        } else {
            out.line(&line)?
        }
        match failed {
            0 => Ok(()),
            _ => Err(CliError::Failed(format!("{failed} of {} lines could not be scored", texts + failed))),
        }
    }

    /// Scores a text that ends at byte `end` of its file, and prints what came of it.
    fn one(
        &self,
        line: Option<u32>,
        place: &str,
        input: PromptInput,
        end: u64,
        progress: &mut Progress,
        out: &mut Output,
    ) -> Result<Sum, CliError> {
        let (ids, bytes) = match input {
            PromptInput::TokenIds(ids) => (ids, None),
            PromptInput::Text(text) => {
                let tokenizer = self.engine.tokenizer()?;
                let ids = tokenizer.encode_prompt(&text, self.special)?;
                let bytes = scored_bytes(tokenizer, &text, ids.first());
                (ids, Some(bytes))
            }
        };
        let tokens = self.tokens(&ids, |done, all| progress.part(end, done, all))?;
        progress.text(end, tokens.len());
        let sum = Sum::new(&tokens, bytes);
        progress.suspend(|| {
            if !self.json {
                return out.line(&format!("{place}: {sum}"));
            }
            out.json(&Record {
                line,
                token_ids: &ids,
                logprobs: tokens.iter().map(|token| token.logprob).collect(),
                top: (self.top > 0).then(|| tokens.iter().map(|token| token.top.as_slice()).collect()),
                perplexity: sum.perplexity(),
                bits_per_byte: sum.bits_per_byte(),
            })
        })?;
        Ok(sum)
    }

    /// The log-probabilities of a text's tokens, in windows where it is longer than the context. `on_tokens` hears how
    /// many tokens are computed, and of how many.
    fn tokens(&self, ids: &[TokenId], on_tokens: impl Fn(usize, usize)) -> Result<Vec<PromptToken>, CliError> {
        let windows: Vec<Window> = match self.stride {
            Some(stride) if ids.len() > self.context => windows(ids.len(), self.context, stride).collect(),
            None if ids.len() > self.context => {
                return Err(CliError::Usage(format!(
                    "the text has {} tokens, and there is room for {}; give --stride N to score it in windows",
                    ids.len(),
                    self.context
                )));
            }
            // The engine has something to say about a text of nothing.
            _ => vec![Window { tokens: 0..ids.len(), new: 0 }],
        };
        let all = windows.iter().map(|window| window.tokens.len()).sum();
        let mut done = 0;
        let mut tokens: Vec<PromptToken> = Vec::with_capacity(ids.len());
        for Window { tokens: range, new } in windows {
            let (start, before) = (range.start, done);
            let mut scored = score(self.engine, ids[range].to_vec(), self.top, |more| {
                done += more;
                on_tokens(done, all);
            })?;
            done = before + scored.len();
            let new = scored.split_off(new - start);
            // Its followers are those that the first new token was scored among.
            if let (Some(last), Some(seen)) = (tokens.last_mut(), scored.pop()) {
                last.top = seen.top;
            }
            tokens.extend(new);
        }
        Ok(tokens)
    }
}

/// The tokens of a text that fits the context, with their log-probabilities and the best `top` after each.
fn score(
    engine: &Engine,
    prompt: Vec<TokenId>,
    top: usize,
    mut on_tokens: impl FnMut(usize),
) -> Result<Vec<PromptToken>, CliError> {
    let request = Request { max_tokens: 0, prompt_logprobs: Some(top), ..Request::new(prompt) };
    let mut tokens = Vec::new();
    for event in engine.generate(request)? {
        match event {
            Event::Prompt(more) => {
                on_tokens(more.len());
                tokens.extend(more);
            }
            Event::Finished(_) => return Ok(tokens),
            Event::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    // The last event is one of the two above.
    Err(Failure::EngineStopped.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_are_told_from_text() {
        for lines in [
            "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}",
            "\u{feff}{\"text\": \"a\"}",
            "\n { \"text\": \"a\",}\n",
            "{'text': 'a'}",
            "{\"text\":\"left open",
        ] {
            assert!(begins_as_lines(lines), "{lines}");
        }
        for text in ["", "{\n  \"a\": 1\n}", "def f():", "[{\"a\":1}]", "{ x }", "{"] {
            assert!(!begins_as_lines(text), "{text}");
        }
    }
}
