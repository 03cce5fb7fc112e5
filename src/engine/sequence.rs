//! A sequence: one sample of a request, with its tokens, its progress and its block tables.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::kv::{BlockTables, PageCache, PrefixCursor, PrefixHit};
use crate::sampling::{LogitsContext, SampleRow, Sampled, SamplingParams, TokenHistory, TokenLogprobs};
use crate::text::{TextStream, TokenId};

use super::Limits;
use super::draft::PromptLookup;
use super::generation::EventSink;
use super::output::{Output, Verdict};
use super::request::Request;
use super::scheduler::SequenceId;

/// State of a sequence between steps.
///
/// `tokens` holds the known tokens. If `in_flight` is set, one more token is being sampled; its keys and values may be
/// computed before the host knows it.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Arc<Request>,
    /// Arrival number; the youngest sequence is preempted first.
    pub(super) arrival: u64,
    /// First sample of the same request. It computes the prompt once for all samples.
    pub(super) parent: Option<SequenceId>,
    /// Prompt and output.
    tokens: Vec<TokenId>,
    /// Number of positions whose keys and values are in the cache, or will be once submitted work is done.
    computed: usize,
    /// Index of this sequence's token among the samples in flight.
    pub(super) in_flight: Option<u32>,
    pub(super) blocks: BlockTables,
    /// `None` while the sequence holds no pages.
    cursor: Option<PrefixCursor>,
    params: SamplingParams,
    /// Tokens that may not be sampled before `min_tokens` is reached.
    ending_tokens: Vec<TokenId>,
    history: Option<TokenHistory>,
    /// Number of prompt positions whose log-probabilities have been reported.
    scored: usize,
    pub(super) lookup: Option<PromptLookup>,
    pub(super) deadline: Option<Instant>,
    pub(super) output: Output,
}

impl Sequence {
    pub(super) fn new(
        request: Arc<Request>,
        sample: u32,
        limits: &Limits,
        text: Option<TextStream>,
        sink: Arc<EventSink>,
        submitted: Instant,
    ) -> Sequence {
        let output = Output::new(request.clone(), sample, limits, text, sink, submitted);
        let mut params = request.sampling.clone();
        params.seed = params.seed.wrapping_add(u64::from(sample));
        let history = params.has_penalties().then(|| TokenHistory::new(limits.spec.vocab_size, &request.prompt));
        Sequence {
            arrival: 0,
            parent: None,
            tokens: request.prompt.clone(),
            computed: 0,
            in_flight: None,
            blocks: BlockTables::default(),
            cursor: None,
            ending_tokens: if params.min_tokens > 0 { output.ending_tokens() } else { Vec::new() },
            history,
            scored: if sample == 0 && request.prompt_logprobs.is_some() { 0 } else { request.prompt.len() },
            lookup: None,
            deadline: request.timeout.and_then(|timeout| submitted.checked_add(timeout)),
            params,
            output,
            request,
        }
    }

    /// Known tokens of prompt and output.
    pub(super) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Number of positions computed or submitted.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Positions that can be computed next, the token in flight included. Zero if that token is the last one wanted.
    pub(super) fn remaining(&self) -> usize {
        match self.in_flight {
            None => self.tokens.len() - self.computed,
            Some(_) if self.output.generated() + 1 >= self.request.max_tokens as usize => 0,
            Some(_) => self.tokens.len() + 1 - self.computed,
        }
    }

    /// Returns `true` if the whole prompt is computed or submitted.
    pub(super) fn has_prompt(&self) -> bool {
        self.computed >= self.request.prompt.len()
    }

    /// Returns `true` while log-probabilities of the prompt are still to be reported.
    pub(super) fn is_scoring(&self) -> bool {
        self.scored < self.request.prompt.len()
    }

    /// Most tokens that may come from the prefix cache: not the last one, whose logits choose the next token, and none
    /// whose log-probabilities are wanted.
    pub(super) fn max_from_cache(&self) -> usize {
        self.scored.min(self.tokens.len() - 1)
    }

    /// Positions of `rows` that need logits: the last known one before sampling, its drafts, and prompt positions to
    /// score.
    pub(super) fn logits_positions(&self, rows: &Range<usize>) -> Range<usize> {
        if self.is_scoring() {
            self.scored.max(rows.start)..rows.end
        } else if rows.end >= self.known_end() && self.request.max_tokens > 0 {
            rows.start.max(self.known_end() - 1)..rows.end
        } else {
            rows.end..rows.end
        }
    }

    /// One past the last token, the token in flight included.
    fn known_end(&self) -> usize {
        self.tokens.len() + usize::from(self.in_flight.is_some())
    }

    /// Returns `true` if a token is sampled after these rows.
    pub(super) fn samples_after(&self, rows: &Range<usize>) -> bool {
        rows.end >= self.known_end() && self.request.max_tokens > 0
    }

    /// The prompt positions of `rows` to score, each with the token that follows it.
    pub(super) fn targets(&self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = Option<TokenId>> {
        let end = rows.end.min(self.request.prompt.len());
        let scored = self.scored.max(rows.start).min(end)..end;
        scored.map(|position| self.request.prompt.get(position + 1).copied())
    }

    /// Sampling input for logits row `logits_row`: the token `ahead` positions after the next one.
    pub(super) fn sample_row(&self, logits_row: usize, ahead: usize) -> SampleRow<'_> {
        let prompt = self.request.prompt.len();
        let early = self.output.generated() + ahead < self.params.min_tokens as usize;
        SampleRow {
            logits_row,
            params: &self.params,
            // Positions fit in u32: prompt and `max_tokens` were checked against the model's context.
            position: (self.tokens.len() + ahead) as u32,
            history: self.history.as_ref(),
            allowed_mask: None,
            banned: if early { &self.ending_tokens } else { &[] },
            processor: self.request.processor.as_deref().map(|processor| {
                (processor, LogitsContext { prompt: &self.tokens[..prompt], output: &self.tokens[prompt..] })
            }),
            logprobs: self.request.logprobs,
        }
    }

    /// Returns `true` if the next token depends on earlier tokens only through the model, so drafts can be verified.
    pub(super) fn takes_drafts(&self) -> bool {
        self.history.is_none() && self.request.processor.is_none() && !self.is_scoring()
    }

    /// Returns `true` if the next step may draft tokens for it.
    pub(super) fn may_draft(&self) -> bool {
        let tokens = self.tokens.len();
        self.takes_drafts() && self.lookup.as_ref().is_none_or(|lookup| !lookup.is_resting(tokens + 1))
    }

    /// Positions computed by the time it decodes: its tokens, and the next one if that is computed at all.
    pub(super) fn positions_to_admit(&self) -> usize {
        self.tokens.len().max((self.tokens.len() + 1).min(self.request.max_computed()))
    }

    /// Most tokens that may be drafted: they and the token sampled after them must not exceed `max_tokens`.
    pub(super) fn max_drafts(&self) -> usize {
        (self.request.max_tokens as usize).saturating_sub(self.output.generated() + 1)
    }

    /// Marks rows before `end` as computed and inserts their full blocks into the prefix cache.
    pub(super) fn advance(&mut self, end: usize, cache: &mut PageCache) {
        self.computed = end;
        let Some(cursor) = &mut self.cursor else { return };
        let size = cache.page_size().get() as usize;
        loop {
            let start = cursor.blocks() as usize * size;
            if start + size > self.computed.min(self.tokens.len()) {
                return;
            }
            cache.insert(cursor, &self.tokens[start..start + size], &self.blocks);
        }
    }

    /// Reports log-probabilities of the prompt positions from `scored` on.
    pub(super) fn report_prompt(&mut self, mut logprobs: Vec<TokenLogprobs>) {
        let top = self.request.prompt_logprobs.unwrap_or(0);
        logprobs.iter_mut().for_each(|logprobs| logprobs.top.truncate(top));
        let scored = self.scored..self.scored + logprobs.len();
        self.scored = scored.end;
        self.output.prompt(&self.request.prompt[scored], logprobs);
    }

    /// Appends a sampled token.
    pub(super) fn accept(&mut self, sampled: Sampled, now: Instant) -> Verdict {
        let token = sampled.token;
        self.tokens.push(token);
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        self.output.token(sampled, now)
    }

    /// Takes the longest cached prefix, or starts without one. Returns the number of cached tokens.
    pub(super) fn admit(&mut self, cache: &mut PageCache) -> usize {
        let salt = self.request.cache_salt.as_deref();
        match cache.match_prefix(salt, &self.tokens, self.max_from_cache()) {
            None => {
                self.blocks = BlockTables::new(cache);
                self.cursor = Some(cache.cursor(salt));
                self.computed = 0;
            }
            Some(PrefixHit { blocks, tables, cursor }) => {
                self.computed = blocks as usize * cache.page_size().get() as usize;
                self.blocks = tables;
                self.cursor = Some(cursor);
            }
        }
        self.computed
    }

    /// Releases all pages. The sequence must be computed again, from whatever prefix is still cached then.
    pub(super) fn release(&mut self, cache: &mut PageCache) {
        self.blocks.release(cache);
        if let Some(cursor) = self.cursor.take() {
            cache.release_cursor(cursor);
        }
        self.computed = 0;
    }
}
