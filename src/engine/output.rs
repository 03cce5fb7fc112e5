//! Turns a sample's tokens into events: text, stop conditions, timings.

use std::sync::Arc;
use std::time::Instant;

use crate::sampling::{Sampled, TokenLogprobs};
use crate::text::{StopOutcome, StopStrings, StopText, TextStream, TokenId};

use super::Limits;
use super::event::{Event, Failure, Finish, FinishReason, PromptToken, StopCause, Timings, Token};
use super::generation::EventSink;
use super::request::{EosTokens, Request, RequestError};

/// Whether a sample continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It continues.
    GoOn,
    /// Its final event was sent.
    Ended,
}

/// The output side of one sample.
#[derive(Debug)]
pub(super) struct Output {
    request: Arc<Request>,
    sample: u32,
    /// Number of generated tokens.
    generated: usize,
    /// End-of-sequence tokens that apply to this request.
    eos_token_ids: Arc<[TokenId]>,
    /// `None` if the checkpoint has no tokenizer.
    text: Option<TextStream>,
    /// Log-probability of the next prompt token to report.
    next_prompt_logprob: Option<f32>,
    sink: Arc<EventSink>,
    clock: Clock,
    ended: bool,
}

/// The text decoder of a request's samples. `None` if the checkpoint has no tokenizer and the request has no stop
/// strings.
pub(super) fn text_stream(request: &Request, limits: &Limits) -> Result<Option<TextStream>, RequestError> {
    let Some(tokenizer) = &limits.tokenizer else {
        return if request.stop.is_empty() { Ok(None) } else { Err(RequestError::StopWithoutTokenizer) };
    };
    let stops = StopStrings {
        stop: request.stop.clone(),
        stop_text: request.stop_text,
        min_tokens: request.sampling.min_tokens,
    };
    Ok(Some(TextStream::new(tokenizer.clone(), request.special_output, stops)?))
}

#[derive(Debug)]
struct Clock {
    submitted: Instant,
    started: Option<Instant>,
    prompt_done: Option<Instant>,
    last: Instant,
}

impl Output {
    pub(super) fn new(
        request: Arc<Request>,
        sample: u32,
        limits: &Limits,
        text: Option<TextStream>,
        sink: Arc<EventSink>,
        submitted: Instant,
    ) -> Output {
        Output {
            sample,
            generated: 0,
            eos_token_ids: match (request.ignore_eos, request.eos) {
                (true, _) => Arc::default(),
                (false, EosTokens::Completion) => limits.eos_token_ids.clone(),
                (false, EosTokens::Chat) => limits.chat_eos_token_ids.clone(),
            },
            text,
            next_prompt_logprob: None,
            sink,
            clock: Clock { submitted, started: None, prompt_done: None, last: submitted },
            ended: false,
            request,
        }
    }

    /// Tokens that end this sample; banned before `min_tokens`.
    pub(super) fn ending_tokens(&self) -> Vec<TokenId> {
        self.eos_token_ids.iter().chain(&self.request.stop_token_ids).copied().collect()
    }

    /// Number of generated tokens.
    pub(super) fn generated(&self) -> usize {
        self.generated
    }

    /// Returns `true` if no more events are wanted.
    pub(super) fn is_closed(&self) -> bool {
        self.sink.is_closed()
    }

    /// Returns `true` if the consumer is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled()
    }

    /// Called before the first step that computes rows of the sample.
    pub(super) fn start(&mut self, now: Instant) {
        self.clock.started.get_or_insert(now);
    }

    /// Log-probabilities of the tokens that follow the next `ids.len()` prompt tokens.
    pub(super) fn prompt(&mut self, ids: &[TokenId], logprobs: Vec<TokenLogprobs>) {
        let tokens = logprobs.into_iter().zip(ids).map(|(logprobs, &id)| PromptToken {
            id,
            logprob: std::mem::replace(&mut self.next_prompt_logprob, logprobs.target),
            top: logprobs.top,
        });
        let event = Event::Prompt(tokens.collect());
        self.sink.send(event);
    }

    /// The prompt is computed and no token was requested.
    pub(super) fn prompt_done(&mut self, now: Instant) {
        self.clock.prompt_done = Some(now);
        self.clock.last = now;
        self.finish(FinishReason::Length, String::new());
    }

    /// Accepts a sampled token.
    pub(super) fn token(&mut self, sampled: Sampled, now: Instant) -> Verdict {
        let Sampled { token, logprobs } = sampled;
        self.generated += 1;
        self.clock.prompt_done.get_or_insert(now);
        self.clock.last = now;
        let mut cause = if self.eos_token_ids.contains(&token) {
            Some(StopCause::Eos(token))
        } else if self.request.stop_token_ids.contains(&token) {
            Some(StopCause::Token(token))
        } else {
            None
        };
        let mut text = String::new();
        if let Some(stream) = &mut self.text
            && (cause.is_none() || self.request.stop_text == StopText::Include)
        {
            match stream.push(token) {
                StopOutcome::Continue { text: more } => text = more,
                StopOutcome::Stopped { text: last, stop } => {
                    text = last;
                    cause = Some(StopCause::Text(self.request.stop[stop].clone()));
                }
            }
        }
        self.sink.send(Event::Token(Token { sample: self.sample, id: token, text, logprobs }));
        match cause {
            // The text ends at the stop string; text held back after it is dropped.
            Some(cause @ StopCause::Text(_)) => self.finish(FinishReason::Stop(cause), String::new()),
            Some(cause) => self.flush_and_finish(FinishReason::Stop(cause)),
            None if self.generated >= self.request.max_tokens as usize => self.flush_and_finish(FinishReason::Length),
            None => {}
        }
        if self.ended { Verdict::Ended } else { Verdict::GoOn }
    }

    /// The request's deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.clock.started.is_none() {
            // It never ran.
            self.clock.started = Some(now);
        }
        self.clock.last = now;
        self.flush_and_finish(FinishReason::Deadline);
    }

    /// Releases the text held back; a stop string may still complete in it.
    fn flush_and_finish(&mut self, mut reason: FinishReason) {
        let mut text = String::new();
        if let Some(mut stream) = self.text.take() {
            match stream.finish() {
                StopOutcome::Continue { text: more } => text = more,
                StopOutcome::Stopped { text: last, stop } => {
                    text = last;
                    reason = FinishReason::Stop(StopCause::Text(self.request.stop[stop].clone()));
                }
            }
        }
        self.finish(reason, text);
    }

    fn finish(&mut self, reason: FinishReason, text: String) {
        let clock = &self.clock;
        let started = clock.started.unwrap_or(clock.submitted);
        let prompt_done = clock.prompt_done.unwrap_or(clock.last);
        let timings = Timings {
            prompt_tokens: self.request.prompt.len(),
            completion_tokens: self.generated,
            queued: started - clock.submitted,
            prefill: prompt_done - started,
            decode: clock.last - prompt_done,
        };
        self.sink.send(Event::Finished(Finish { sample: self.sample, reason, text, timings }));
        self.ended = true;
    }

    /// The request fails.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.sink.send(Event::Failed(failure));
        self.ended = true;
    }
}
