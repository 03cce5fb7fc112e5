//! What a request asks of the sampler.

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

/// How a token is chosen from a row of logits. The default is greedy: the largest logit, the lowest id among equals.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0 is greedy, and makes `min_p`, `top_k`, `top_p` and `seed` idle.
    pub temperature: f32,
    /// Keep the k best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest best tokens whose probabilities add up to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the best; 0 keeps all.
    pub min_p: f32,
    /// Positive logits of tokens already in prompt or output are divided by it, negative ones multiplied; 1 is off.
    pub repetition_penalty: f32,
    /// Key of the draws.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingParams {
    /// Is every parameter inside its range? The first that is not, otherwise.
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
            "a finite number of at least 0 (0 is greedy)",
        )?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0 and at most 1 (1 keeps every token)")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1 (0 keeps every token)")?;
        check(
            "repetition_penalty",
            repetition_penalty,
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            "a finite number above 0 (1 is off)",
        )
    }

    /// Is the largest logit taken, with no draw?
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
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
        assert_eq!(bad(|p| p.top_p = 0.0), "top_p");
        assert_eq!(bad(|p| p.top_p = f32::NAN), "top_p");
        assert_eq!(bad(|p| p.top_p = 1.1), "top_p");
        assert_eq!(bad(|p| p.min_p = -0.5), "min_p");
        assert_eq!(bad(|p| p.min_p = f32::NAN), "min_p");
        assert_eq!(bad(|p| p.repetition_penalty = 0.0), "repetition_penalty");
        assert!(SamplingParams::default().validate().is_ok());
    }
}
