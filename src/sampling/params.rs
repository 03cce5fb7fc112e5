//! Sampling parameters of a request.

use crate::text::TokenId;

/// A parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {found}; expected {expected}")]
pub struct InvalidParam {
    /// The parameter's name, as in [`SamplingParams`].
    pub name: &'static str,
    /// The value given.
    pub found: String,
    /// The values allowed.
    pub expected: &'static str,
}

/// How to sample a token from a row of logits. Greedy by default: the largest logit, the lowest id among equals.
///
/// Later versions may have more fields: begin with the default, and change what is to differ through the setters, or
/// with `SamplingParams { temperature: 0.8, ..SamplingParams::default() }`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0 is greedy, and makes `min_p`, `top_k`, `top_p` and `seed` idle.
    pub temperature: f32,
    /// Keep the k best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest best tokens whose probabilities add up to at least this, and always the best one; 1 keeps all,
    /// 0 the best alone.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the best; 0 keeps all.
    pub min_p: f32,
    /// Positive logits of tokens already in prompt or output are divided by it, negative ones multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit once for each time that it was generated; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from the logits of tokens that were generated; 0 is off.
    pub presence_penalty: f32,
    /// Numbers added to the logits of tokens, each token once. They are taken as they are: nothing clamps them, to
    /// OpenAI's −100 to 100 or otherwise.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// The only tokens that may be sampled, if set.
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// Tokens that may not be sampled.
    pub banned_token_ids: Vec<TokenId>,
    /// Minimum number of tokens before one that ends the generation may be sampled. The caller knows those tokens and
    /// bans them ([`SampleRow::banned`](super::SampleRow::banned)). Stop strings completed earlier do not count either.
    pub min_tokens: u32,
    /// Seed of the sampler.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            banned_token_ids: Vec::new(),
            min_tokens: 0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Sets [`SamplingParams::temperature`].
    pub fn temperature(mut self, temperature: f32) -> SamplingParams {
        self.temperature = temperature;
        self
    }

    /// Sets [`SamplingParams::top_k`].
    pub fn top_k(mut self, top_k: u32) -> SamplingParams {
        self.top_k = top_k;
        self
    }

    /// Sets [`SamplingParams::top_p`].
    pub fn top_p(mut self, top_p: f32) -> SamplingParams {
        self.top_p = top_p;
        self
    }

    /// Sets [`SamplingParams::min_p`].
    pub fn min_p(mut self, min_p: f32) -> SamplingParams {
        self.min_p = min_p;
        self
    }

    /// Sets [`SamplingParams::seed`].
    pub fn seed(mut self, seed: u64) -> SamplingParams {
        self.seed = seed;
        self
    }

    /// Checks that every parameter is in range, and names the first that is not. The caller, who knows the vocabulary
    /// size, checks ids; the sampler ignores ids beyond it.
    pub fn validate(&self) -> Result<(), InvalidParam> {
        let check = |name, value: f32, ok: bool, expected| {
            // A comparison with NaN is false, so NaN fails every range.
            if ok { Ok(()) } else { Err(InvalidParam { name, found: value.to_string(), expected }) }
        };
        let SamplingParams { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check(
            "temperature",
            temperature,
            temperature >= 0.0 && temperature.is_finite(),
            "a finite number from 0 to 3.4e38 (0 is greedy)",
        )?;
        check(
            "top_p",
            top_p,
            (0.0..=1.0).contains(&top_p),
            "a number from 0 to 1 (1 keeps every token, 0 the best alone)",
        )?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1 (0 keeps every token)")?;
        check(
            "repetition_penalty",
            repetition_penalty,
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            "a finite number above 0, to 3.4e38 (1 is off)",
        )?;
        for (name, value) in
            [("frequency_penalty", self.frequency_penalty), ("presence_penalty", self.presence_penalty)]
        {
            check(name, value, (-2.0..=2.0).contains(&value), "a number from -2 to 2 (0 is off)")?;
        }
        self.validate_ids()
    }

    /// Biases are finite and one to a token; a list of allowed tokens has some.
    fn validate_ids(&self) -> Result<(), InvalidParam> {
        const BIAS: &str = "logit_bias";
        if let Some((token, bias)) = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            let (found, expected) = (format!("{bias} for token {token}"), "finite numbers");
            return Err(InvalidParam { name: BIAS, found, expected });
        }
        let mut biased: Vec<TokenId> = self.logit_bias.iter().map(|(token, _)| *token).collect();
        biased.sort_unstable();
        if let Some(pair) = biased.windows(2).find(|pair| pair[0] == pair[1]) {
            let found = format!("given twice for token {}", pair[0]);
            return Err(InvalidParam { name: BIAS, found, expected: "one number for each token" });
        }
        if self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            let (name, found) = ("allowed_token_ids", "empty".to_owned());
            return Err(InvalidParam { name, found, expected: "at least one token id, or no list (every token)" });
        }
        Ok(())
    }

    /// Returns `true` for greedy sampling: temperature 0, or `top_p` 0, which keeps only the best token.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_p == 0.0
    }

    /// Returns `true` if a repetition, frequency or presence penalty is on; a row then needs a
    /// [`TokenHistory`](super::TokenHistory).
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_parameter_out_of_range() {
        let bad = |change: fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params.validate().unwrap_err().name
        };
        assert_eq!(bad(|p| p.temperature = f32::NAN), "temperature");
        assert_eq!(bad(|p| p.temperature = -0.1), "temperature");
        assert_eq!(bad(|p| p.temperature = f32::INFINITY), "temperature");
        assert_eq!(bad(|p| p.top_p = -0.1), "top_p");
        assert_eq!(bad(|p| p.top_p = f32::NAN), "top_p");
        assert_eq!(bad(|p| p.top_p = 1.1), "top_p");
        assert_eq!(bad(|p| p.min_p = -0.5), "min_p");
        assert_eq!(bad(|p| p.min_p = f32::NAN), "min_p");
        assert_eq!(bad(|p| p.repetition_penalty = 0.0), "repetition_penalty");
        assert_eq!(bad(|p| p.frequency_penalty = 2.1), "frequency_penalty");
        assert_eq!(bad(|p| p.frequency_penalty = f32::NAN), "frequency_penalty");
        assert_eq!(bad(|p| p.presence_penalty = -2.1), "presence_penalty");
        assert_eq!(bad(|p| p.logit_bias = vec![(TokenId(1), 3.0), (TokenId(2), f32::NEG_INFINITY)]), "logit_bias");
        assert_eq!(bad(|p| p.logit_bias = vec![(TokenId(1), 3.0), (TokenId(0), 0.0), (TokenId(1), 3.0)]), "logit_bias");
        assert_eq!(bad(|p| p.allowed_token_ids = Some(vec![])), "allowed_token_ids");
        assert!(SamplingParams::default().validate().is_ok());
        let edges = SamplingParams {
            frequency_penalty: -2.0,
            presence_penalty: 2.0,
            top_p: -0.0,
            temperature: -0.0,
            logit_bias: vec![(TokenId(5), -1e30), (TokenId(4), f32::MAX)],
            allowed_token_ids: Some(vec![TokenId(0)]),
            ..Default::default()
        };
        assert!(edges.validate().is_ok());
    }

    #[test]
    fn says_what_is_wrong_with_a_bias() {
        let said = |logit_bias: &[(u32, f32)]| {
            let logit_bias = logit_bias.iter().map(|(id, bias)| (TokenId(*id), *bias)).collect();
            SamplingParams { logit_bias, ..Default::default() }.validate().unwrap_err().to_string()
        };
        assert_eq!(said(&[(3, 1.0), (7, f32::NAN)]), "logit_bias is NaN for token 7; expected finite numbers");
        let twice = "logit_bias is given twice for token 7; expected one number for each token";
        assert_eq!(said(&[(7, 1.0), (3, 1.0), (7, 1.0)]), twice);
    }

    #[test]
    fn penalties_are_on_where_they_change_something() {
        assert!(!SamplingParams::default().has_penalties());
        for params in [
            SamplingParams { repetition_penalty: 1.1, ..Default::default() },
            SamplingParams { frequency_penalty: -0.1, ..Default::default() },
            SamplingParams { presence_penalty: 0.1, ..Default::default() },
        ] {
            assert!(params.has_penalties(), "{params:?}");
        }
    }
}
