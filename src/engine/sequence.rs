//! One request on its way through the engine: its tokens, pages, text so far, and when it ends.

use std::ops::Range;
use std::time::Instant;

use crate::sampling::{SampleRow, Sampled, TokenHistory, TokenLogprobs};
use crate::text::{Detokenizer, StopMatcher, StopOutcome, StopText, TokenId};

use super::Limits;
use super::event::{Event, Failure, Finish, FinishReason, PromptToken, StopCause, Timings, Token};
use super::generation::EventSender;
use super::request::{Request, RequestError};

/// A request's state between steps. The worker asks it what to compute ([`Sequence::next_rows`]) and tells it what
/// came of that.
#[derive(Debug)]
pub(super) struct Sequence {
    request: Request,
    /// Prompt and output.
    tokens: Vec<TokenId>,
    /// Positions whose keys and values are in the cache.
    computed: usize,
    /// End-of-sequence tokens in force for this request.
    eos_token_ids: Vec<TokenId>,
    /// These and the request's own stop tokens.
    ending_token_ids: Vec<TokenId>,
    /// None where the checkpoint has no tokenizer.
    text: Option<TextStream>,
    /// None where no penalty is on.
    history: Option<TokenHistory>,
    /// Log-probability of the next prompt token to be reported.
    next_prompt_logprob: Option<f32>,
    events: EventSender,
    clock: Clock,
    ended: bool,
}

/// Tokens to text to stops.
#[derive(Debug)]
struct TextStream {
    detokenizer: Detokenizer,
    stops: StopMatcher,
}

#[derive(Debug)]
struct Clock {
    submitted: Instant,
    started: Option<Instant>,
    prompt_done: Option<Instant>,
    last: Instant,
}

impl Sequence {
    pub(super) fn new(
        request: Request,
        limits: &Limits,
        events: EventSender,
        submitted: Instant,
    ) -> Result<Sequence, RequestError> {
        let text = match &limits.tokenizer {
            Some(tokenizer) => Some(TextStream {
                detokenizer: Detokenizer::new(tokenizer.clone(), request.special_output),
                stops: StopMatcher::new(request.stop.clone(), request.stop_text)?,
            }),
            None if request.stop.is_empty() => None,
            None => return Err(RequestError::StopWithoutTokenizer),
        };
        let eos_token_ids = if request.ignore_eos { Vec::new() } else { limits.eos_token_ids.clone() };
        let penalties = request.sampling.has_penalties();
        let history = penalties.then(|| TokenHistory::new(limits.spec.vocab_size, &request.prompt));
        Ok(Sequence {
            tokens: request.prompt.clone(),
            computed: 0,
            ending_token_ids: [&eos_token_ids, &request.stop_token_ids[..]].concat(),
            eos_token_ids,
            text,
            history,
            next_prompt_logprob: None,
            events,
            clock: Clock { submitted, started: None, prompt_done: None, last: submitted },
            ended: false,
            request,
        })
    }

    /// Positions to compute next: a chunk of the prompt, or the last token. At most `max_rows`, and at most
    /// `max_logits_rows` where each row's logits are wanted.
    pub(super) fn next_rows(&self, max_rows: usize, max_logits_rows: usize) -> Range<usize> {
        let most = if self.scores_prompt() { max_rows.min(max_logits_rows) } else { max_rows };
        self.computed..self.tokens.len().min(self.computed + most)
    }

    /// Which of these positions need logits.
    pub(super) fn logits_positions(&self, rows: &Range<usize>) -> Range<usize> {
        if self.scores_prompt() {
            rows.clone()
        } else if rows.end == self.tokens.len() && self.request.max_tokens > 0 {
            rows.end - 1..rows.end
        } else {
            rows.end..rows.end
        }
    }

    pub(super) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Are log-probabilities of the prompt still to be reported?
    fn scores_prompt(&self) -> bool {
        self.request.prompt_logprobs.is_some() && self.computed < self.request.prompt.len()
    }

    /// How many best tokens to report for each prompt position of `rows`, and the token that follows it there.
    pub(super) fn prompt_targets(&self, rows: &Range<usize>) -> Option<(usize, Vec<Option<TokenId>>)> {
        let top = self.request.prompt_logprobs.filter(|_| self.scores_prompt())?;
        let following = |position: usize| self.request.prompt.get(position + 1).copied();
        Some((top, rows.clone().map(following).collect()))
    }

    /// What to draw after `rows`, from this logits row; nothing where the prompt goes on or no token is wanted.
    pub(super) fn sample_row(&self, rows: &Range<usize>, logits_row: usize) -> Option<SampleRow<'_>> {
        (rows.end == self.tokens.len() && self.request.max_tokens > 0).then_some(SampleRow {
            logits_row,
            params: &self.request.sampling,
            // Positions fit u32: the prompt and max_tokens were checked against the model's.
            position: self.tokens.len() as u32,
            history: self.history.as_ref(),
            banned: if self.is_below_min_tokens() { &self.ending_token_ids } else { &[] },
            processor: None,
            logprobs: self.request.logprobs,
        })
    }

    /// Are there fewer tokens than the request wants at least?
    fn is_below_min_tokens(&self) -> bool {
        self.tokens.len() - self.request.prompt.len() < self.request.sampling.min_tokens as usize
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.events.is_cancelled()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// The first step is about to run.
    pub(super) fn start(&mut self, now: Instant) {
        self.clock.started = Some(now);
    }

    /// Log-probabilities of prompt rows came: entry `i` is that of the token after row `rows.start + i`.
    pub(super) fn report_prompt(&mut self, rows: &Range<usize>, logprobs: Vec<TokenLogprobs>) {
        let tokens = logprobs.into_iter().zip(rows.clone()).map(|(logprobs, position)| PromptToken {
            id: self.tokens[position],
            logprob: std::mem::replace(&mut self.next_prompt_logprob, logprobs.target),
            top: logprobs.top,
        });
        let event = Event::Prompt(tokens.collect());
        self.events.send(event);
    }

    /// The rows are in the cache, and no token was wanted after them.
    pub(super) fn advance(&mut self, rows: &Range<usize>, now: Instant) {
        self.computed = rows.end;
        if self.computed == self.tokens.len() {
            self.clock.prompt_done = Some(now);
            self.clock.last = now;
            self.finish(FinishReason::Length, String::new());
        }
    }

    /// The rows are in the cache, and this token was drawn after them.
    pub(super) fn accept(&mut self, rows: &Range<usize>, sampled: Sampled, now: Instant) {
        let Sampled { token, logprobs } = sampled;
        self.computed = rows.end;
        self.clock.prompt_done.get_or_insert(now);
        self.clock.last = now;
        self.tokens.push(token);
        if let Some(history) = &mut self.history {
            history.push(token);
        }
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
            let decided = stream.detokenizer.push(token);
            match stream.stops.push(&decided) {
                StopOutcome::Continue { text: more } => text = more,
                StopOutcome::Stopped { text: last, stop } => {
                    text = last;
                    cause = Some(StopCause::Text(self.request.stop[stop].clone()));
                }
            }
        }
        self.events.send(Event::Token(Token { id: token, text, logprobs }));
        let generated = self.tokens.len() - self.request.prompt.len();
        match cause {
            // The stop text was the end of the text: what is held back after it is not part of it.
            Some(cause @ StopCause::Text(_)) => self.finish(FinishReason::Stop(cause), String::new()),
            Some(cause) => self.flush_and_finish(FinishReason::Stop(cause)),
            None if generated >= self.request.max_tokens as usize => self.flush_and_finish(FinishReason::Length),
            None => {}
        }
    }

    /// Decides the text held back, in which a stop text may still show up.
    fn flush_and_finish(&mut self, mut reason: FinishReason) {
        let mut text = String::new();
        if let Some(TextStream { mut detokenizer, mut stops }) = self.text.take() {
            match stops.push(&detokenizer.finish()) {
                StopOutcome::Continue { text: more } => text = more + &stops.finish(),
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
            completion_tokens: self.tokens.len() - self.request.prompt.len(),
            queued: started - clock.submitted,
            prefill: prompt_done - started,
            decode: clock.last - prompt_done,
        };
        self.events.send(Event::Finished(Finish { reason, text, timings }));
        self.ended = true;
    }

    /// The request cannot go on.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.events.send(Event::Failed(failure));
        self.ended = true;
    }
}
