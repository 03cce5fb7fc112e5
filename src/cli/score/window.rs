//! A text that is longer than the model's positions, in windows that overlap.

use std::ops::Range;

/// Tokens that are computed together, of which those from `new` on are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens of the text.
    pub tokens: Range<usize>,
    /// The first token that no window before had.
    pub new: usize,
}

/// Windows of at most `context` tokens over a text of `len`, each `stride` tokens after the one before, as in Hugging
/// Face's guide to the perplexity of fixed-length models: every token is new in one window, and sees at least
/// `context − stride` tokens before it, or all there are. `stride` is from 1 to `context − 1`, so that a new token
/// has one before it.
pub fn windows(len: usize, context: usize, stride: usize) -> impl Iterator<Item = Window> {
    let mut next = (len > 0).then_some((0, 0));
    std::iter::from_fn(move || {
        let (start, new) = next?;
        let end = len.min(start + context);
        next = (end < len).then_some((start + stride, end));
        Some(Window { tokens: start..end, new })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn windows_are_those_of_the_guide() {
        let found: Vec<_> = windows(10, 4, 2).map(|window| (window.tokens, window.new)).collect();
        assert_eq!(found, [(0..4, 0), (2..6, 4), (4..8, 6), (6..10, 8)]);
        let found: Vec<_> = windows(9, 4, 3).map(|window| (window.tokens, window.new)).collect();
        assert_eq!(found, [(0..4, 0), (3..7, 4), (6..9, 7)]);
        assert_eq!(windows(4, 4, 1).count(), 1);
        assert_eq!(windows(0, 4, 1).count(), 0);
    }

    proptest! {
        #[test]
        fn every_token_is_new_once(len in 0usize..300, context in 2usize..60, stride in 1usize..60) {
            let stride = stride.min(context - 1);
            let mut counted = 0;
            for (index, Window { tokens, new }) in windows(len, context, stride).enumerate() {
                prop_assert!(tokens.len() <= context && tokens.end <= len);
                prop_assert_eq!(new, counted);
                prop_assert!(new < tokens.end);
                prop_assert!(index == 0 || new - tokens.start >= context - stride);
                counted = tokens.end;
            }
            prop_assert_eq!(counted, len);
        }
    }
}
