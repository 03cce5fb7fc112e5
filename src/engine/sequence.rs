//! One sample on its way through the engine: its tokens, how many of them are computed, and its pages.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::kv::{BlockTables, Chain, PageCache, PrefixHit};
use crate::sampling::{LogitsContext, SampleRow, Sampled, SamplingParams, TokenHistory, TokenLogprobs};
use crate::text::{TextStream, TokenId};

use super::Limits;
use super::draft::PromptLookup;
use super::generation::Reply;
use super::output::{Output, Verdict};
use super::request::Request;
use super::scheduler::SequenceId;

/// A sample's state between steps.
///
/// `tokens` are those that are known; where `drawing` is set one more is being drawn, whose keys and values may be
/// computed before anybody here knows it.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Arc<Request>,
    /// How many came before it. The one that came last is preempted first.
    pub(super) arrival: u64,
    /// The first sample of the same request: its prompt is computed once, for all.
    pub(super) leader: Option<SequenceId>,
    /// Prompt and output.
    tokens: Vec<TokenId>,
    /// Positions whose keys and values are in the cache, or will be once the work that was given to the backend is
    /// done.
    computed: usize,
    /// Place among the last draws of the token that is being drawn.
    pub(super) drawing: Option<u32>,
    pub(super) blocks: BlockTables,
    /// None while the sequence has no pages.
    chain: Option<Chain>,
    params: SamplingParams,
    /// What may not be chosen before `min_tokens` are there.
    ending_tokens: Vec<TokenId>,
    history: Option<TokenHistory>,
    /// Prompt positions whose log-probabilities were reported.
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
        reply: Arc<Reply>,
        submitted: Instant,
    ) -> Sequence {
        let output = Output::new(request.clone(), sample, limits, text, reply, submitted);
        let mut params = request.sampling.clone();
        params.seed = params.seed.wrapping_add(u64::from(sample));
        let history = params.has_penalties().then(|| TokenHistory::new(limits.spec.vocab_size, &request.prompt));
        Sequence {
            arrival: 0,
            leader: None,
            tokens: request.prompt.clone(),
            computed: 0,
            drawing: None,
            blocks: BlockTables::default(),
            chain: None,
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

    /// Prompt and output, as far as they are known.
    pub(super) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Positions whose keys and values are in the cache or on their way there.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Positions that could be computed next: up to the last token, the one that is being drawn included. None where
    /// the token that is being drawn is the last that is wanted.
    pub(super) fn remaining(&self) -> usize {
        match self.drawing {
            None => self.tokens.len() - self.computed,
            Some(_) if self.output.generated() + 1 >= self.request.max_tokens as usize => 0,
            Some(_) => self.tokens.len() + 1 - self.computed,
        }
    }

    /// Is its prompt in the cache?
    pub(super) fn has_prompt(&self) -> bool {
        self.computed >= self.request.prompt.len()
    }

    /// Are log-probabilities of the prompt still to be reported?
    pub(super) fn is_scoring(&self) -> bool {
        self.scored < self.request.prompt.len()
    }

    /// How many of its first tokens may be taken from the cache: not the last, whose logits choose the next one, and
    /// none whose log-probabilities are wanted.
    pub(super) fn max_from_cache(&self) -> usize {
        self.scored.min(self.tokens.len() - 1)
    }

    /// Which rows of a step need logits: the last one, before a draw, those of drafts, and those to be scored.
    pub(super) fn logits_positions(&self, rows: &Range<usize>) -> Range<usize> {
        if self.is_scoring() {
            self.scored.max(rows.start)..rows.end
        } else if rows.end >= self.known_end() && self.request.max_tokens > 0 {
            rows.start.max(self.known_end() - 1)..rows.end
        } else {
            rows.end..rows.end
        }
    }

    /// One past the last token that is known or is being drawn.
    fn known_end(&self) -> usize {
        self.tokens.len() + usize::from(self.drawing.is_some())
    }

    /// Will a token be drawn after these rows?
    pub(super) fn draws_after(&self, rows: &Range<usize>) -> bool {
        rows.end >= self.known_end() && self.request.max_tokens > 0
    }

    /// The prompt positions of `rows` to be scored, and what follows each.
    pub(super) fn targets(&self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = Option<TokenId>> {
        let end = rows.end.min(self.request.prompt.len());
        let scored = self.scored.max(rows.start).min(end)..end;
        scored.map(|position| self.request.prompt.get(position + 1).copied())
    }

    /// What to draw from logits row `logits_row`: the token that comes `ahead` tokens after the next one.
    pub(super) fn sample_row(&self, logits_row: usize, ahead: usize) -> SampleRow<'_> {
        let prompt = self.request.prompt.len();
        let early = self.output.generated() + ahead < self.params.min_tokens as usize;
        SampleRow {
            logits_row,
            params: &self.params,
            // Positions fit u32: the prompt and max_tokens were checked against the model's.
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

    /// May tokens be drafted for it? Not where a choice depends on the tokens before it in other ways than through the
    /// model.
    pub(super) fn takes_drafts(&self) -> bool {
        self.history.is_none() && self.request.processor.is_none() && !self.is_scoring()
    }

    /// Could tokens be drafted for it in the next step?
    pub(super) fn may_draft(&self) -> bool {
        let tokens = self.tokens.len();
        self.takes_drafts() && self.lookup.as_ref().is_none_or(|lookup| !lookup.is_resting(tokens + 1))
    }

    /// The positions that it will have computed when it decodes: those of its tokens, and the next one's where that is
    /// computed at all.
    pub(super) fn positions_to_enter(&self) -> usize {
        self.tokens.len().max((self.tokens.len() + 1).min(self.request.max_computed()))
    }

    /// The most tokens that may be drafted: with them and the one drawn after them it ends at `max_tokens`.
    pub(super) fn max_drafts(&self) -> usize {
        (self.request.max_tokens as usize).saturating_sub(self.output.generated() + 1)
    }

    /// The rows before `end` are in the cache or on their way there; whole blocks of them are put down for others.
    pub(super) fn advance(&mut self, end: usize, cache: &mut PageCache) {
        self.computed = end;
        let Some(chain) = &mut self.chain else { return };
        let size = cache.page_size().get() as usize;
        loop {
            let start = chain.blocks() as usize * size;
            if start + size > self.computed.min(self.tokens.len()) {
                return;
            }
            cache.record(chain, &self.tokens[start..start + size], &self.blocks);
        }
    }

    /// Log-probabilities of prompt positions `scored ..` came.
    pub(super) fn report_prompt(&mut self, mut logprobs: Vec<TokenLogprobs>) {
        let top = self.request.prompt_logprobs.unwrap_or(0);
        logprobs.iter_mut().for_each(|logprobs| logprobs.top.truncate(top));
        let scored = self.scored..self.scored + logprobs.len();
        self.scored = scored.end;
        self.output.prompt(&self.request.prompt[scored], logprobs);
    }

    /// The next token was drawn.
    pub(super) fn accept(&mut self, sampled: Sampled, now: Instant) -> Verdict {
        let token = sampled.token;
        self.tokens.push(token);
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        self.output.token(sampled, now)
    }

    /// Takes what the cache has of its beginning, or begins with nothing. How many tokens the cache had.
    pub(super) fn enter(&mut self, cache: &mut PageCache) -> usize {
        let salt = self.request.cache_salt.as_deref();
        match cache.find(salt, &self.tokens, self.max_from_cache()) {
            None => {
                self.blocks = BlockTables::new(cache);
                self.chain = Some(cache.open(salt));
                self.computed = 0;
            }
            Some(PrefixHit { blocks, tables, chain }) => {
                self.computed = blocks as usize * cache.page_size().get() as usize;
                self.blocks = tables;
                self.chain = Some(chain);
            }
        }
        self.computed
    }

    /// Gives its pages back; it has to be computed again, from what the cache then still has of it.
    pub(super) fn leave(&mut self, cache: &mut PageCache) {
        self.blocks.release(cache);
        if let Some(chain) = self.chain.take() {
            cache.close(chain);
        }
        self.computed = 0;
    }
}
