//! What becomes of a sample's tokens: text, stops, events, times.

use std::sync::Arc;
use std::time::Instant;

use crate::sampling::{Sampled, TokenLogprobs};
use crate::text::{StopOutcome, StopStrings, StopText, TextStream, TokenId};

use super::Limits;
use super::event::{Event, Failure, Finish, FinishReason, PromptToken, StopCause, Timings, Token};
use super::generation::Reply;
use super::request::{EosTokens, Request, RequestError};

/// Does the sample go on?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More is wanted.
    GoOn,
    /// Its last event was sent.
    Ended,
}

/// The way out of the engine of one sample.
#[derive(Debug)]
pub(super) struct Output {
    request: Arc<Request>,
    sample: u32,
    /// Tokens generated.
    generated: usize,
    /// End-of-sequence tokens in force for this request.
    eos_token_ids: Arc<[TokenId]>,
    /// None where the checkpoint has no tokenizer.
    text: Option<TextStream>,
    /// Log-probability of the next prompt token to be reported.
    next_prompt_logprob: Option<f32>,
    reply: Arc<Reply>,
    clock: Clock,
    ended: bool,
}

/// The text of a request's samples; none where the checkpoint has no tokenizer and nobody looks for stop texts.
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
        reply: Arc<Reply>,
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
            reply,
            clock: Clock { submitted, started: None, prompt_done: None, last: submitted },
            ended: false,
            request,
        }
    }

    /// Tokens that end this sample, which may not be chosen before `min_tokens` are there.
    pub(super) fn ending_tokens(&self) -> Vec<TokenId> {
        self.eos_token_ids.iter().chain(&self.request.stop_token_ids).copied().collect()
    }

    /// Tokens generated.
    pub(super) fn generated(&self) -> usize {
        self.generated
    }

    /// Nobody waits for this sample any more.
    pub(super) fn is_closed(&self) -> bool {
        self.reply.is_closed()
    }

    /// The consumer is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.reply.is_cancelled()
    }

    /// A step that computes rows of the sample is about to run.
    pub(super) fn start(&mut self, now: Instant) {
        self.clock.started.get_or_insert(now);
    }

    /// Log-probabilities of the tokens after the next `ids.len()` tokens of the prompt.
    pub(super) fn prompt(&mut self, ids: &[TokenId], logprobs: Vec<TokenLogprobs>) {
        let tokens = logprobs.into_iter().zip(ids).map(|(logprobs, &id)| PromptToken {
            id,
            logprob: std::mem::replace(&mut self.next_prompt_logprob, logprobs.target),
            top: logprobs.top,
        });
        let event = Event::Prompt(tokens.collect());
        self.reply.send(event);
    }

    /// The prompt is computed, and no token was asked for after it.
    pub(super) fn prompt_done(&mut self, now: Instant) {
        self.clock.prompt_done = Some(now);
        self.clock.last = now;
        self.finish(FinishReason::Length, String::new());
    }

    /// The next token was drawn.
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
        self.reply.send(Event::Token(Token { sample: self.sample, id: token, text, logprobs }));
        match cause {
            // The stop text was the end of the text: what is held back after it is not part of it.
            Some(cause @ StopCause::Text(_)) => self.finish(FinishReason::Stop(cause), String::new()),
            Some(cause) => self.flush_and_finish(FinishReason::Stop(cause)),
            None if self.generated >= self.request.max_tokens as usize => self.flush_and_finish(FinishReason::Length),
            None => {}
        }
        if self.ended { Verdict::Ended } else { Verdict::GoOn }
    }

    /// The request's time is up.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.clock.started.is_none() {
            // It waited all the time.
            self.clock.started = Some(now);
        }
        self.clock.last = now;
        self.flush_and_finish(FinishReason::Deadline);
    }

    /// Decides the text held back, in which a stop text may still show up.
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
        self.reply.send(Event::Finished(Finish { sample: self.sample, reason, text, timings }));
        self.ended = true;
    }

    /// The request cannot go on.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.reply.send(Event::Failed(failure));
        self.ended = true;
    }
}
