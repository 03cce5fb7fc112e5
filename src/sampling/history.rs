//! Token history of a sequence, for penalties.

use crate::text::TokenId;

use super::SeenTokens;

/// The tokens of a sequence, with counts of the generated ones.
#[derive(Debug, Clone)]
pub struct TokenHistory {
    seen: SeenTokens,
    vocab_size: usize,
    /// Ascending by id, each id once.
    output: Vec<(TokenId, u32)>,
}

impl TokenHistory {
    /// The history of a sequence with this prompt and no output; ids are below `vocab_size`.
    pub fn new(vocab_size: usize, prompt: &[TokenId]) -> TokenHistory {
        let mut seen = SeenTokens::new(vocab_size);
        prompt.iter().for_each(|&token| seen.insert(token));
        TokenHistory { seen, vocab_size, output: Vec::new() }
    }

    /// Adds a generated token; ids at or above the vocabulary size are ignored.
    pub fn push(&mut self, token: TokenId) {
        if token.0 as usize >= self.vocab_size {
            return;
        }
        self.seen.insert(token);
        match self.output.binary_search_by_key(&token, |entry| entry.0) {
            Ok(at) => self.output[at].1 += 1,
            Err(at) => self.output.insert(at, (token, 1)),
        }
    }

    /// The tokens of prompt and output.
    pub fn seen(&self) -> &SeenTokens {
        &self.seen
    }

    /// Count of each generated token, by ascending id.
    pub fn output_counts(&self) -> impl Iterator<Item = (TokenId, u32)> + '_ {
        self.output.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_was_generated_and_not_the_prompt() {
        let mut history = TokenHistory::new(100, &[TokenId(7), TokenId(3), TokenId(7), TokenId(100)]);
        assert_eq!(history.output_counts().count(), 0);
        [9, 3, 9, 99, 100, 9].into_iter().for_each(|id| history.push(TokenId(id)));
        let counts: Vec<(u32, u32)> = history.output_counts().map(|(token, count)| (token.0, count)).collect();
        assert_eq!(counts, [(3, 1), (9, 3), (99, 1)]);
        assert_eq!(history.seen().iter().map(|token| token.0).collect::<Vec<_>>(), [3, 7, 9, 99]);
    }
}
