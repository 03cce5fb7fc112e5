//! Speculative decoding without a draft model: prompt lookup drafts what followed the last occurrence of the same
//! tokens.
//!
//! Code repeats itself, and answers repeat their prompts. Drafted tokens are verified together with the last token in
//! one forward pass, which reads the weights once. A draft is accepted if it is the token that would have been sampled
//! at its position, so the text does not change.

use std::collections::HashMap;

use crate::text::TokenId;

/// Whether the engine drafts tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// [`EngineBuilder`](super::EngineBuilder) decides by device: on the CPU, and on a GPU only with
    /// [`Determinism::BatchInvariant`](crate::backend::Determinism::BatchInvariant), where drafts cannot change the
    /// text.
    #[default]
    Auto,
    /// Prompt lookup ([`PromptLookup`]), while few sequences run and drafts are accepted.
    PromptLookup,
    /// Never.
    Off,
}

/// Lengths of the token runs that are looked up, longest first, and the draft length after each: the longer the run,
/// the more likely its continuation. (Chosen with the replay of benches/speculation.rs: longer runs or a fourth length
/// gain nothing; without single tokens a third of the accepted drafts is lost.)
const LONG_RUN: usize = 4;
const SHORT_RUN: usize = 2;
const AFTER_LONG: usize = 6;
const AFTER_SHORT: usize = 4;
const AFTER_ONE: usize = 3;
/// Most tokens in one draft.
const MAX_DRAFT: usize = 15;
/// Consecutive drafts rejected in full before drafting rests; the rest in tokens, doubled each time up to
/// `LONGEST_REST`.
const PATIENCE: u32 = 12;
const SHORTEST_REST: usize = 8;
const LONGEST_REST: usize = 64;

/// Drafts for one sequence by looking up its last tokens, and adapts: drafts grow while accepted in full, shrink
/// otherwise, and rest while none is accepted.
///
/// (Prompt lookup decoding: Saxena, 2023; the n-gram speculation of other engines.)
#[derive(Debug, Default)]
pub struct PromptLookup {
    /// For each run of tokens, the position after its last occurrence.
    long: HashMap<[TokenId; LONG_RUN], u32>,
    short: HashMap<[TokenId; SHORT_RUN], u32>,
    one: HashMap<TokenId, u32>,
    /// Positions indexed so far.
    indexed: usize,
    /// Draft length after a run of several tokens, if more than the default.
    grown: usize,
    /// Consecutive drafts rejected in full.
    refused: u32,
    /// Token count until which drafting rests.
    resting_until: usize,
    draft: Vec<TokenId>,
}

impl PromptLookup {
    /// Drafts up to `max` tokens that may follow `tokens`, the sequence's prompt and output (those of the last call and
    /// the ones since). Empty if the last tokens are new or drafting rests.
    pub fn draft(&mut self, tokens: &[TokenId], max: usize) -> &[TokenId] {
        self.draft.clear();
        self.index(tokens);
        if self.is_resting(tokens.len()) {
            return &self.draft;
        }
        let Some((position, length)) = self.earlier(tokens) else { return &self.draft };
        for at in position as usize..position as usize + length.min(max) {
            // Past the end, continue with the draft itself: a repeating loop.
            let token = tokens.get(at).or_else(|| self.draft.get(at - tokens.len()));
            self.draft.extend(token.copied());
        }
        &self.draft
    }

    /// Position after the last occurrence of the longest known run, and the draft length.
    fn earlier(&self, tokens: &[TokenId]) -> Option<(u32, usize)> {
        let long = last(tokens).and_then(|run| self.long.get(&run)).map(|at| (*at, AFTER_LONG.max(self.grown)));
        let short = || last(tokens).and_then(|run| self.short.get(&run)).map(|at| (*at, AFTER_SHORT.max(self.grown)));
        let one = || tokens.last().and_then(|token| self.one.get(token)).map(|at| (*at, AFTER_ONE));
        long.or_else(short).or_else(one)
    }

    /// Returns `true` if drafting rests at this token count because no draft was accepted lately.
    pub fn is_resting(&self, tokens: usize) -> bool {
        tokens < self.resting_until
    }

    /// The last draft.
    pub fn last_draft(&self) -> &[TokenId] {
        &self.draft
    }

    /// Indexes the position after each run. The run at the end has no continuation yet.
    fn index(&mut self, tokens: &[TokenId]) {
        for position in self.indexed..tokens.len() {
            let before = &tokens[..position];
            // Positions fit in u32.
            let at = position as u32;
            last(before).map(|run| self.long.insert(run, at));
            last(before).map(|run| self.short.insert(run, at));
            before.last().map(|token| self.one.insert(*token, at));
        }
        self.indexed = tokens.len();
    }

    /// Reports that the first `accepted` of the last draft's `drafted` tokens matched; the sequence now has `tokens`
    /// tokens.
    pub fn verified(&mut self, drafted: usize, accepted: usize, tokens: usize) {
        self.grown = if accepted == drafted { (2 * drafted).min(MAX_DRAFT) } else { 0 };
        if accepted > 0 {
            self.refused = 0;
            return;
        }
        self.refused += 1;
        if self.refused >= PATIENCE {
            let doublings = (self.refused - PATIENCE).min(8);
            self.resting_until = tokens + (SHORTEST_REST << doublings).min(LONGEST_REST);
        }
    }
}

/// The last `N` tokens. `None` if there are fewer.
fn last<const N: usize>(tokens: &[TokenId]) -> Option<[TokenId; N]> {
    tokens.last_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn repeats_what_followed_the_last_time() {
        let mut lookup = PromptLookup::default();
        assert!(lookup.draft(&ids(&[1, 2, 3, 4, 5]), 8).is_empty());
        // 2 3 was followed by 4, then by 9: the last occurrence counts.
        assert_eq!(lookup.draft(&ids(&[1, 2, 3, 4, 5, 2, 3, 9, 8, 7, 2, 3]), 3), ids(&[9, 8, 7]));
        // The longer run wins.
        let tokens = ids(&[6, 1, 2, 3, 4, 5, 0, 2, 3, 9, 6, 1, 2, 3]);
        assert_eq!(PromptLookup::default().draft(&tokens, 1), ids(&[4]));
        // A single token is a run too, with a shorter draft.
        assert_eq!(PromptLookup::default().draft(&ids(&[4, 1, 2, 3, 5, 6, 4]), 9), ids(&[1, 2, 3]));
    }

    #[test]
    fn a_repetition_goes_on_past_the_end() {
        let tokens = ids(&[7, 1, 2, 1, 2]);
        assert_eq!(PromptLookup::default().draft(&tokens, 4), ids(&[1, 2, 1, 2]));
    }

    #[test]
    fn grows_with_success_and_rests_after_failure() {
        let mut lookup = PromptLookup::default();
        let tokens = ids(&[1; 40]);
        assert_eq!(lookup.draft(&tokens, 99).len(), AFTER_LONG);
        lookup.verified(AFTER_LONG, AFTER_LONG, 40);
        assert_eq!(lookup.draft(&tokens, 99).len(), 2 * AFTER_LONG);
        lookup.verified(2 * AFTER_LONG, 2, 40);
        assert_eq!(lookup.draft(&tokens, 99).len(), AFTER_LONG);
        assert_eq!(lookup.draft(&tokens, 2).len(), 2);
        for _ in 0..PATIENCE {
            assert!(!lookup.draft(&tokens, 99).is_empty());
            lookup.verified(1, 0, 40);
        }
        assert!(lookup.draft(&tokens, 99).is_empty());
        assert!(lookup.draft(&ids(&[1; 40 + SHORTEST_REST - 1]), 99).is_empty());
        assert!(!lookup.draft(&ids(&[1; 40 + SHORTEST_REST]), 99).is_empty());
    }
}
