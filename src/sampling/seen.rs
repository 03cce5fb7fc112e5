//! Set of tokens that a sequence contains.

use crate::text::TokenId;

/// A set of token ids, one bit each.
#[derive(Debug, Clone)]
pub struct SeenTokens {
    words: Vec<u64>,
    vocab_size: usize,
}

impl SeenTokens {
    /// The empty set over ids below `vocab_size`.
    pub fn new(vocab_size: usize) -> SeenTokens {
        SeenTokens { words: vec![0; vocab_size.div_ceil(64)], vocab_size }
    }

    /// Adds a token; an id at or above the vocabulary size is ignored.
    pub fn insert(&mut self, token: TokenId) {
        if (token.0 as usize) < self.vocab_size {
            self.words[token.0 as usize / 64] |= 1 << (token.0 % 64);
        }
    }

    /// Returns `true` if the token is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 64).is_some_and(|word| word >> (token.0 % 64) & 1 == 1)
    }

    /// The bit set: token `t` is bit `t % 64` of word `t / 64`, `[vocab_size / 64]` rounded up.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The tokens in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    TokenId(i as u32 * 64 + bit)
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_each_token_once() {
        let mut seen = SeenTokens::new(130);
        for id in [129, 0, 64, 63, 64, 130, 500] {
            seen.insert(TokenId(id));
        }
        assert_eq!(seen.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 63, 64, 129]);
        let held: Vec<u32> = (0..600).filter(|id| seen.contains(TokenId(*id))).collect();
        assert_eq!(held, [0, 63, 64, 129]);
    }
}
