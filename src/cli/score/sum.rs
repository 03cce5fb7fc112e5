//! What the log-probabilities of one text, or of many, come to.

use std::fmt;

use rigel::engine::PromptToken;
use rigel::host::counted;
use rigel::text::{TokenId, Tokenizer};

/// Sums over scored tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sum {
    /// Tokens, scored or not.
    tokens: usize,
    /// Tokens that have a log-probability: all but each text's first.
    scored: usize,
    /// Sum of the natural log-probabilities.
    logprob: f64,
    /// Bytes of text that the scored tokens are; `None` where token ids were given.
    bytes: Option<u64>,
}

impl Sum {
    /// Of no text.
    pub const NONE: Sum = Sum { tokens: 0, scored: 0, logprob: 0.0, bytes: Some(0) };

    /// Of one text. `bytes` is [`scored_bytes`] where text was given.
    pub fn new(tokens: &[PromptToken], bytes: Option<usize>) -> Sum {
        let logprobs = tokens.iter().filter_map(|token| token.logprob).map(f64::from);
        Sum {
            tokens: tokens.len(),
            scored: logprobs.clone().count(),
            logprob: logprobs.sum(),
            bytes: bytes.map(|bytes| bytes as u64),
        }
    }

    pub fn add(&mut self, other: &Sum) {
        self.tokens += other.tokens;
        self.scored += other.scored;
        self.logprob += other.logprob;
        self.bytes = self.bytes.zip(other.bytes).map(|(a, b)| a + b);
    }

    /// The mean log-probability of a token; `None` where none was scored.
    pub fn mean(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.logprob / self.scored as f64)
    }

    /// `exp` of minus the mean.
    pub fn perplexity(&self) -> Option<f64> {
        self.mean().map(|mean| (-mean).exp())
    }

    /// Bits of the scored tokens over their bytes: unlike the perplexity the same measure for every tokenizer.
    pub fn bits_per_byte(&self) -> Option<f64> {
        let bytes = self.bytes.filter(|bytes| *bytes > 0 && self.scored > 0)?;
        Some(-self.logprob / std::f64::consts::LN_2 / bytes as f64)
    }
}

/// `12 tokens, mean logprob -1.2345, perplexity 3.4368, bits per byte 0.5432`.
impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<f64>| number.map_or_else(|| "-".into(), |number| format!("{number:.4}"));
        let (mean, perplexity) = (number(self.mean()), number(self.perplexity()));
        write!(f, "{}, mean logprob {mean}, perplexity {perplexity}", counted(self.tokens, "token"))?;
        match self.bits_per_byte() {
            Some(bits) => write!(f, ", bits per byte {bits:.4}"),
            None => Ok(()),
        }
    }
}

/// The bytes of a text that its scored tokens are: the first token has no log-probability. Where the tokenizer put
/// that one before the text, it is all of them.
pub fn scored_bytes(tokenizer: &Tokenizer, text: &str, first: Option<&TokenId>) -> usize {
    let first = first.and_then(|id| tokenizer.token_bytes(*id)).unwrap_or_default();
    text.as_bytes().strip_prefix(first.as_slice()).unwrap_or(text.as_bytes()).len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rigel::checkpoint::ModelSource;
    use rigel::text::SpecialTokens;

    fn token(logprob: Option<f32>) -> PromptToken {
        PromptToken { id: TokenId(1), logprob, top: Vec::new() }
    }

    #[test]
    fn the_first_token_has_no_part_in_the_mean() {
        assert_eq!(Sum::new(&[token(None)], Some(3)).mean(), None);
        let sum = Sum::new(&[token(None), token(Some(-1.0)), token(Some(-2.0))], Some(6));
        assert_eq!((sum.mean(), sum.perplexity()), (Some(-1.5), Some(1.5f64.exp())));
        assert!((sum.bits_per_byte().unwrap() - 3.0 / std::f64::consts::LN_2 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn sums_add_up_over_tokens() {
        let mut total = Sum::NONE;
        assert_eq!(total.to_string(), "0 tokens, mean logprob -, perplexity -");
        total.add(&Sum::new(&[token(None), token(Some(-3.0))], Some(2)));
        total.add(&Sum::new(&[token(None), token(Some(-0.5)), token(Some(-1.0))], Some(4)));
        assert_eq!(total.mean(), Some(-1.5));
        assert_eq!(total.to_string(), "5 tokens, mean logprob -1.5000, perplexity 4.4817, bits per byte 1.0820");
        // Bytes of some texts alone would be those of other tokens than the bits.
        total.add(&Sum::new(&[token(None)], None));
        assert_eq!(total.to_string(), "6 tokens, mean logprob -1.5000, perplexity 4.4817");
    }

    #[test]
    fn bytes_are_those_after_the_first_token() {
        let nano = Tokenizer::from_source(&ModelSource::nano()).unwrap().unwrap();
        let text = "def add(a):";
        let ids = nano.encode(text, SpecialTokens::AsText).unwrap();
        let first = nano.token_bytes(ids[0]).unwrap().len();
        assert_eq!(scored_bytes(&nano, text, ids.first()), text.len() - first);
        // A token that is not of the text.
        assert_eq!(scored_bytes(&nano, text, Some(&TokenId(0))), text.len());
        assert_eq!(scored_bytes(&nano, "", None), 0);
    }
}
