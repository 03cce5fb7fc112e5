//! One request to what is printed of it: streamed text, or a JSON object.

use std::fmt::Write as _;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use rigel::engine::{
    Completion, Engine, Event, Failure, Finish, FinishReason, MAX_LOGPROBS, Request, StopCause, Timings,
};
use rigel::host::counted;
use rigel::sampling::TokenLogprobs;
use rigel::text::{TokenId, TokenNames, Tokenizer};
use serde::Serialize;

use super::error::CliError;
use super::output::Output;

/// How results are printed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct FormatArgs {
    /// Print one JSON object a prompt, when it is done
    #[arg(long)]
    pub json: bool,
    /// Report log-probabilities of new tokens and of the N best; a table on stderr without --json
    #[arg(long, value_name = "N", value_parser = logprobs(), allow_negative_numbers = true)]
    pub logprobs: Option<usize>,
    /// No bar while the model loads and no closing line with tokens and times on stderr
    #[arg(long, short)]
    pub quiet: bool,
}

/// As many as a request may ask for.
fn logprobs() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=MAX_LOGPROBS as u64)
}

/// The fields of [`Record`], for `--help`.
pub const JSON_HELP: &str = "\
JSON object of --json:
  prompt_token_ids  ids of the prompt
  token_ids         ids generated, the one that ended the generation included
  text              text generated, without stop text and special tokens
  finish_reason     \"stop\" or \"length\"
  logprobs          with --logprobs: log-probability of each id generated
  top               with --logprobs: [[id, logprob], …], the N best, for each id
  timings           seconds (queued, prefill, decode, time_to_first_token),
                    tokens (prompt_tokens, completion_tokens), tokens a second
                    (prefill_rate, decode_rate; null where there was none)";

/// What `--json` prints of a generation.
#[derive(Serialize)]
pub struct Record<'a> {
    pub prompt_token_ids: &'a [TokenId],
    pub token_ids: &'a [TokenId],
    pub text: &'a str,
    pub finish_reason: &'static str,
    #[serde(flatten)]
    pub logprobs: Option<LogprobsRecord<'a>>,
    pub timings: TimingsRecord,
}

/// Log-probabilities, one entry a token generated.
#[derive(Serialize)]
pub struct LogprobsRecord<'a> {
    logprobs: Vec<Option<f32>>,
    top: Vec<&'a [(TokenId, f32)]>,
}

impl<'a> LogprobsRecord<'a> {
    pub fn new(tokens: &'a [TokenLogprobs]) -> LogprobsRecord<'a> {
        LogprobsRecord {
            logprobs: tokens.iter().map(|token| token.target).collect(),
            top: tokens.iter().map(|token| token.top.as_slice()).collect(),
        }
    }
}

/// Where the time went: seconds, and tokens a second.
#[derive(Serialize)]
pub struct TimingsRecord {
    prompt_tokens: usize,
    completion_tokens: usize,
    queued: f64,
    prefill: f64,
    decode: f64,
    time_to_first_token: f64,
    prefill_rate: Option<f64>,
    decode_rate: Option<f64>,
}

impl From<Timings> for TimingsRecord {
    fn from(timings: Timings) -> Self {
        TimingsRecord {
            prompt_tokens: timings.prompt_tokens,
            completion_tokens: timings.completion_tokens,
            queued: timings.queued.as_secs_f64(),
            prefill: timings.prefill.as_secs_f64(),
            decode: timings.decode.as_secs_f64(),
            time_to_first_token: timings.time_to_first_token().as_secs_f64(),
            prefill_rate: timings.prefill_rate(),
            decode_rate: timings.decode_rate(),
        }
    }
}

/// Runs a request and prints what comes of it, after `echo`.
pub fn run(
    engine: &Engine,
    mut request: Request,
    echo: &str,
    format: &FormatArgs,
    out: &mut Output,
) -> Result<(), CliError> {
    request.logprobs = format.logprobs;
    let completion = if format.json {
        let prompt = request.prompt.clone();
        let completion = engine.generate(request)?.wait()?;
        out.json(&Record {
            prompt_token_ids: &prompt,
            token_ids: &completion.token_ids,
            text: &format!("{echo}{}", completion.text),
            finish_reason: completion.reason.as_str(),
            logprobs: format.logprobs.map(|_| LogprobsRecord::new(&completion.logprobs)),
            timings: completion.timings.into(),
        })?;
        completion
    } else {
        let completion = stream(engine, request, echo, out)?;
        logprobs_note(engine, &completion, out)?;
        completion
    };
    if !format.quiet {
        closing_note(engine, &completion, out);
    }
    Ok(())
}

/// The table of log-probabilities on stderr, where they were asked for.
pub fn logprobs_note(engine: &Engine, completion: &Completion, out: &mut Output) -> Result<(), CliError> {
    if !completion.logprobs.is_empty() {
        out.note(&logprobs_table(engine.tokenizer()?, completion));
    }
    Ok(())
}

/// The closing line, on stderr.
pub fn closing_note(engine: &Engine, completion: &Completion, out: &mut Output) {
    let end = end(engine.tokenizer().ok(), &completion.reason);
    out.note(&format!("{}, on {}", closing_line(&completion.timings, &end), engine.device()));
}

/// Prints the text while it comes.
fn stream(engine: &Engine, request: Request, echo: &str, out: &mut Output) -> Result<Completion, CliError> {
    let mut echo = Some(echo);
    let completion = collect(engine, request, |text| {
        if let Some(echo) = echo.take() {
            out.text(echo)?;
        }
        out.text(text)
    })?;
    out.end_text()?;
    Ok(completion)
}

/// Runs a request of one sample, and hands its text over as it comes: at first an empty one, once the request is taken.
pub fn collect(
    engine: &Engine,
    request: Request,
    mut on_text: impl FnMut(&str) -> Result<(), CliError>,
) -> Result<Completion, CliError> {
    let (mut token_ids, mut logprobs, mut text) = (Vec::new(), Vec::new(), String::new());
    let events = engine.generate(request)?;
    on_text("")?;
    for event in events {
        match event {
            Event::Token(token) => {
                on_text(&token.text)?;
                text.push_str(&token.text);
                token_ids.push(token.id);
                logprobs.extend(token.logprobs);
            }
            Event::Finished(Finish { reason, text: rest, timings, .. }) => {
                on_text(&rest)?;
                text.push_str(&rest);
                return Ok(Completion { prompt: Vec::new(), token_ids, logprobs, text, reason, timings });
            }
            Event::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    // The last event is one of the two above.
    Err(Failure::EngineStopped.into())
}

/// Why a generation ended, in words: a token has its text, where it has one.
fn end(tokenizer: Option<&Tokenizer>, reason: &FinishReason) -> String {
    match reason {
        FinishReason::Length => "length".to_owned(),
        FinishReason::Deadline => "out of time".to_owned(),
        FinishReason::Stop(StopCause::Eos(_)) => "end of sequence".to_owned(),
        FinishReason::Stop(StopCause::Text(stop)) => format!("stop: {stop:?}"),
        FinishReason::Stop(StopCause::Token(id)) => {
            let text = tokenizer.and_then(|tokenizer| Some((tokenizer, token_text(tokenizer, *id)?)));
            match text {
                None => format!("stop token {id}"),
                // Special tokens are read by their brackets.
                Some((tokenizer, text)) if tokenizer.is_special(*id) => format!("stop: {text}"),
                Some((_, text)) => format!("stop: {text:?}"),
            }
        }
    }
}

/// The text of a token that is text by itself.
fn token_text(tokenizer: &Tokenizer, id: TokenId) -> Option<String> {
    String::from_utf8(tokenizer.token_bytes(id)?).ok()
}

/// `12 prompt tokens, 64 new tokens (length), first token after 0.012 s, 210.3 tokens/s`.
fn closing_line(timings: &Timings, end: &str) -> String {
    let Timings { prompt_tokens, completion_tokens, .. } = *timings;
    let mut line =
        format!("{}, {} ({end})", counted(prompt_tokens, "prompt token"), counted(completion_tokens, "new token"));
    if completion_tokens > 0 {
        // Writing to a String cannot fail.
        let _ = write!(line, ", first token after {:.3} s", timings.time_to_first_token().as_secs_f64());
    }
    if let Some(rate) = timings.decode_rate() {
        let _ = write!(line, ", {rate:.1} tokens/s");
    }
    line
}

/// A token for people: its text in quotes; a name without quotes for bytes that are no text.
pub fn piece(tokenizer: &Tokenizer, id: TokenId) -> String {
    token_text(tokenizer, id).map_or_else(|| TokenNames::shared_name(Some(tokenizer), id), |text| format!("{text:?}"))
}

/// One line a token: id, log-probability, text, and the best tokens there.
fn logprobs_table(tokenizer: &Tokenizer, completion: &Completion) -> String {
    let text = |id: TokenId| piece(tokenizer, id);
    let mut table = format!("{:>6}  {:>8}  {:<16}  best", "id", "logprob", "text");
    for (&id, logprobs) in completion.token_ids.iter().zip(&completion.logprobs) {
        let logprob = logprobs.target.map_or_else(|| "-".into(), |logprob| format!("{logprob:.4}"));
        let best: Vec<String> = logprobs.top.iter().map(|&(id, l)| format!("{} {l:.4}", text(id))).collect();
        // Writing to a String cannot fail.
        let _ = write!(table, "\n{id:>6}  {logprob:>8}  {:<16}  {}", text(id), best.join("  "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_closing_line_says_what_there_is_to_say() {
        let timings = Timings {
            prompt_tokens: 12,
            completion_tokens: 5,
            queued: Duration::from_millis(2),
            prefill: Duration::from_millis(10),
            decode: Duration::from_millis(500),
        };
        assert_eq!(
            closing_line(&timings, "length"),
            "12 prompt tokens, 5 new tokens (length), first token after 0.012 s, 8.0 tokens/s"
        );
        let one = Timings { prompt_tokens: 1, completion_tokens: 1, decode: Duration::ZERO, ..timings };
        assert_eq!(
            closing_line(&one, "stop: \"\\n\\n\""),
            "1 prompt token, 1 new token (stop: \"\\n\\n\"), first token after 0.012 s"
        );
        let none = Timings { completion_tokens: 0, ..one };
        assert_eq!(closing_line(&none, "length"), "1 prompt token, 0 new tokens (length)");
    }

    #[test]
    fn ends_have_words() {
        let nano = Tokenizer::from_source(&rigel::checkpoint::ModelSource::nano()).unwrap().unwrap();
        let said = |cause| end(Some(&nano), &FinishReason::Stop(cause));
        assert_eq!(said(StopCause::Eos(TokenId(0))), "end of sequence");
        assert_eq!(said(StopCause::Token(TokenId(6))), "stop: <file_sep>");
        assert_eq!(said(StopCause::Text("\n\n".into())), "stop: \"\\n\\n\"");
        let word = nano.encode(" f", rigel::text::SpecialTokens::AsText).unwrap();
        assert_eq!(said(StopCause::Token(word[0])), "stop: \" f\"");
        assert_eq!(said(StopCause::Token(TokenId(1 << 20))), "stop token 1048576");
        assert_eq!(end(None, &FinishReason::Stop(StopCause::Token(TokenId(6)))), "stop token 6");
    }

    #[test]
    fn records_show_logprobs_only_where_asked() {
        let tokens = [TokenLogprobs { target: Some(-0.5), top: vec![(TokenId(7), -0.25)] }];
        let record = |logprobs| Record {
            prompt_token_ids: &[TokenId(1)],
            token_ids: &[TokenId(2)],
            text: "x",
            finish_reason: "stop",
            logprobs,
            timings: Timings::default().into(),
        };
        let with = serde_json::to_value(record(Some(LogprobsRecord::new(&tokens)))).unwrap();
        assert_eq!(with["logprobs"], serde_json::json!([-0.5]));
        assert_eq!(with["top"], serde_json::json!([[[7, -0.25]]]));
        assert_eq!(with["timings"]["decode_rate"], serde_json::Value::Null);
        let without = serde_json::to_value(record(None)).unwrap();
        assert!(without.get("logprobs").is_none() && without.get("top").is_none());
    }
}
