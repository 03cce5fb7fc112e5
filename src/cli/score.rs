//! `rigel score`: log-probabilities of given tokens.

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rigel::engine::{Engine, Event, Failure, PromptToken, Request};
use rigel::text::{SpecialTokens, TokenId};
use serde::Serialize;

use super::error::CliError;
use super::input;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::prompts::{Prompt, PromptInput, Prompts};

/// Best tokens reported at each position.
const TOP: usize = 5;

const EXAMPLES: &str = "\
Examples:
  rigel score --text src/main.rs
  echo '{\"text\":\"x = 1\"}' | rigel score --text - --json
  rigel score --token-ids prompts.jsonl --json > scores.jsonl

Input:
  JSON lines, one object a line: {\"token_ids\":[…]} or {\"text\":\"…\"}. A file of
  --text whose first line is no such object is one text, scored whole.

JSON object of --json, one a line:
  token_ids   the ids scored
  logprobs    [null, …]: natural log-probability of token i after those before
  top         [[[id, logprob], …], …]: the five best tokens after tokens 0..=i
  perplexity  exp(-mean of logprobs); null for a single token";

/// Log-probabilities of given text or token ids
///
/// Prints a line for each text: tokens, mean log-probability, perplexity; or everything with --json. Results are
/// printed as they come.
#[derive(Debug, Args)]
#[command(override_usage = "\
rigel score [OPTIONS] --text <FILE>
       rigel score [OPTIONS] --token-ids <FILE>")]
#[command(after_help = EXAMPLES)]
pub struct Score {
    #[command(flatten)]
    model: ModelArgs,
    /// Score a text file, or texts from JSON lines; - is stdin
    #[arg(long, value_name = "FILE", help_heading = "Input", conflicts_with = "prompts")]
    #[arg(required_unless_present = "prompts")]
    text: Option<String>,
    /// Score each prompt of a file of JSON lines; - is stdin
    #[arg(long, value_name = "FILE", help_heading = "Input", visible_alias = "jsonl", alias = "token-ids")]
    prompts: Option<String>,
    /// Take special tokens in texts as plain text
    #[arg(long, help_heading = "Input")]
    no_special: bool,
    /// Print one JSON object a line
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Record<'a> {
    token_ids: &'a [TokenId],
    logprobs: Vec<Option<f32>>,
    top: Vec<&'a [(TokenId, f32)]>,
    perplexity: Option<f64>,
}

impl Score {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let special = if self.no_special { SpecialTokens::AsText } else { SpecialTokens::Parse };
        if let Some(file) = &self.text {
            let text = input::read_text(file)?;
            let engine = self.model.engine(source, LoadBar::Shown, Load::One)?;
            let place = input::origin(file);
            return self.one(&engine, &place, PromptInput::Text(text), special, out).map_err(|error| error.at(place));
        }
        let prompts = Prompts::open(self.prompts.as_deref().unwrap_or(input::STDIN))?;
        let engine = self.model.engine(source, LoadBar::Shown, Load::One)?;
        for prompt in prompts {
            let Prompt { place, input, .. } = prompt?;
            input.and_then(|input| self.one(&engine, &place, input, special, out)).map_err(|error| error.at(place))?;
        }
        Ok(())
    }

    fn one(
        &self,
        engine: &Engine,
        place: &str,
        input: PromptInput,
        special: SpecialTokens,
        out: &mut Output,
    ) -> Result<(), CliError> {
        let ids = match input {
            PromptInput::TokenIds(ids) => ids,
            PromptInput::Text(text) => engine.tokenizer()?.encode_prompt(&text, special)?,
        };
        let tokens = score(engine, ids.clone())?;
        let mean = mean_logprob(&tokens);
        let perplexity = mean.map(|mean| (-mean).exp());
        if self.json {
            return out.json(&Record {
                token_ids: &ids,
                logprobs: tokens.iter().map(|token| token.logprob).collect(),
                top: tokens.iter().map(|token| token.top.as_slice()).collect(),
                perplexity,
            });
        }
        let number = |number: Option<f64>| number.map_or_else(|| "-".into(), |number| format!("{number:.4}"));
        out.line(&format!(
            "{place}: {} tokens, mean logprob {}, perplexity {}",
            ids.len(),
            number(mean),
            number(perplexity)
        ))
    }
}

/// The prompt's tokens with their log-probabilities, behind a progress bar where stderr is a terminal.
fn score(engine: &Engine, prompt: Vec<TokenId>) -> Result<Vec<PromptToken>, CliError> {
    // Hidden by itself where stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(prompt.len() as u64), ProgressDrawTarget::stderr());
    // The template is a constant that a test runs through; without it the bar looks plainer.
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        bar.set_style(style);
    }
    let request = Request { max_tokens: 0, prompt_logprobs: Some(TOP), ..Request::new(prompt) };
    let mut tokens = Vec::new();
    for event in engine.generate(request)? {
        match event {
            Event::Prompt(more) => {
                bar.inc(more.len() as u64);
                tokens.extend(more);
            }
            Event::Finished(_) => {
                bar.finish_and_clear();
                return Ok(tokens);
            }
            Event::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    // The last event is one of the two above.
    Err(Failure::EngineStopped.into())
}

const BAR: &str = "{wide_bar} {pos}/{len} tokens, {eta} left";

/// The mean over all tokens that have one; none where none has.
fn mean_logprob(tokens: &[PromptToken]) -> Option<f64> {
    let logprobs: Vec<f64> = tokens.iter().filter_map(|token| token.logprob).map(f64::from).collect();
    (!logprobs.is_empty()).then(|| logprobs.iter().sum::<f64>() / logprobs.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_has_no_part_in_the_mean() {
        let token = |logprob| PromptToken { id: TokenId(1), logprob, top: Vec::new() };
        assert_eq!(mean_logprob(&[token(None)]), None);
        assert_eq!(mean_logprob(&[token(None), token(Some(-1.0)), token(Some(-2.0))]), Some(-1.5));
    }

    #[test]
    fn the_bar_s_template_is_one() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
