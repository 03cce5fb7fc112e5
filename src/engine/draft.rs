//! Speculation without a second model: what followed the last time the same few tokens came is drafted again.
//!
//! Code repeats itself, and answers repeat their prompts. The model computes the drafted tokens together with the last
//! one in a single pass, which reads the weights once; a drafted token stands if it is the one that is drawn at its
//! position anyway, so the text is the same with and without drafts.

use std::collections::HashMap;

use crate::text::TokenId;

/// Does the engine draft tokens?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// For [`EngineBuilder`](super::EngineBuilder) to decide, by the model's device: on the CPU, and on a GPU only with
    /// [`Determinism::BatchInvariant`](crate::backend::Determinism::BatchInvariant), where drafts cannot change a text.
    #[default]
    Auto,
    /// By looking the last tokens up in prompt and output ([`PromptLookup`]), while few sequences run and drafts are
    /// accepted.
    PromptLookup,
    /// Never.
    Off,
}

/// Runs of last tokens whose earlier appearance is looked for, the longest first, and the tokens drafted after each: the
/// longer the run, the surer what follows. (Chosen on the replay of benches/speculation.rs: a longer run or a fourth one
/// brings nothing, and without the single token a third of the accepted drafts is lost.)
const LONG: usize = 4;
const SHORT: usize = 2;
const AFTER_LONG: usize = 6;
const AFTER_SHORT: usize = 4;
const AFTER_ONE: usize = 3;
/// The most tokens drafted at once.
const MOST: usize = 15;
/// Drafts refused whole, one after the other, before it takes a rest; and the rest in tokens, doubled each time up to
/// `LONGEST_REST`.
const PATIENCE: u32 = 12;
const SHORTEST_REST: usize = 8;
const LONGEST_REST: usize = 64;

/// Drafts the tokens of one sequence by looking its last ones up among those before, and watches how that goes: drafts
/// grow while they are accepted whole, shrink when they are not, and pause where none is.
///
/// (Prompt lookup decoding: Saxena, 2023; the n-gram speculation of other engines.)
#[derive(Debug, Default)]
pub struct PromptLookup {
    /// What came after each run of tokens the last time: a position.
    long: HashMap<[TokenId; LONG], u32>,
    short: HashMap<[TokenId; SHORT], u32>,
    one: HashMap<TokenId, u32>,
    /// Positions whose runs before them are in the maps.
    indexed: usize,
    /// Tokens to draft after a run of more than one, where that is more than usual.
    grown: usize,
    /// Drafts refused whole since one was not.
    refused: u32,
    /// Number of tokens before which nothing is drafted.
    resting_until: usize,
    draft: Vec<TokenId>,
}

impl PromptLookup {
    /// Up to `most` tokens that may follow `tokens`, which are the sequence's prompt and output: those of the last call
    /// and the ones that came since. Empty where the last tokens are new or drafts are resting.
    pub fn draft(&mut self, tokens: &[TokenId], most: usize) -> &[TokenId] {
        self.draft.clear();
        self.index(tokens);
        if self.is_resting(tokens.len()) {
            return &self.draft;
        }
        let Some((position, length)) = self.earlier(tokens) else { return &self.draft };
        for at in position as usize..position as usize + length.min(most) {
            // Past the end it goes on with the draft itself: the repetition of a repetition.
            let token = tokens.get(at).or_else(|| self.draft.get(at - tokens.len()));
            self.draft.extend(token.copied());
        }
        &self.draft
    }

    /// The position after the last appearance of the longest run that appeared, and how many tokens to draft from there.
    fn earlier(&self, tokens: &[TokenId]) -> Option<(u32, usize)> {
        let long = last(tokens).and_then(|run| self.long.get(&run)).map(|at| (*at, AFTER_LONG.max(self.grown)));
        let short = || last(tokens).and_then(|run| self.short.get(&run)).map(|at| (*at, AFTER_SHORT.max(self.grown)));
        let one = || tokens.last().and_then(|token| self.one.get(token)).map(|at| (*at, AFTER_ONE));
        long.or_else(short).or_else(one)
    }

    /// Is nothing drafted for a sequence of so many tokens, because nothing was accepted lately?
    pub fn is_resting(&self, tokens: usize) -> bool {
        tokens < self.resting_until
    }

    /// The tokens drafted last.
    pub fn last_draft(&self) -> &[TokenId] {
        &self.draft
    }

    /// Puts down what came after each run of tokens. The run at the end has nothing after it yet.
    fn index(&mut self, tokens: &[TokenId]) {
        for position in self.indexed..tokens.len() {
            let before = &tokens[..position];
            // Positions of a sequence fit u32.
            let at = position as u32;
            last(before).map(|run| self.long.insert(run, at));
            last(before).map(|run| self.short.insert(run, at));
            before.last().map(|token| self.one.insert(*token, at));
        }
        self.indexed = tokens.len();
    }

    /// Of the last draft's `drafted` tokens the first `accepted` were right, and the sequence has `tokens` tokens now.
    pub fn verified(&mut self, drafted: usize, accepted: usize, tokens: usize) {
        self.grown = if accepted == drafted { (2 * drafted).min(MOST) } else { 0 };
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

/// The last `N` tokens.
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
        // 2 3 came before 4, then before 9: the last time counts.
        assert_eq!(lookup.draft(&ids(&[1, 2, 3, 4, 5, 2, 3, 9, 8, 7, 2, 3]), 3), ids(&[9, 8, 7]));
        // The longer run decides.
        let tokens = ids(&[6, 1, 2, 3, 4, 5, 0, 2, 3, 9, 6, 1, 2, 3]);
        assert_eq!(PromptLookup::default().draft(&tokens, 1), ids(&[4]));
        // A single token is a run, too, with a shorter draft.
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
