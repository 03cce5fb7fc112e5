//! Log-probabilities of tokens, before any sampling processor.

use crate::text::TokenId;

use super::NotFinite;

/// Log-probabilities (natural logarithm) from one row of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// That of the token asked for.
    pub target: Option<f32>,
    /// The best tokens, best first, the lower id first among equals.
    pub top: Vec<(TokenId, f32)>,
}

impl TokenLogprobs {
    /// From f32 logits `[vocab_size]`: `logit - max - ln(sum(exp(logit - max)))`, the sum in f64.
    pub fn from_logits(logits: &[f32], target: Option<TokenId>, top: usize) -> Result<TokenLogprobs, NotFinite> {
        let normalizer = log_sum_exp(logits)?;
        let logprob = |token: TokenId| (f64::from(logits[token.0 as usize]) - normalizer) as f32;
        let target = target.filter(|t| (t.0 as usize) < logits.len()).map(logprob);
        let mut best = Vec::new();
        if top > 0 {
            let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
            let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
            if top < ids.len() {
                ids.select_nth_unstable_by(top, better);
                ids.truncate(top);
            }
            ids.sort_unstable_by(better);
            best = ids.into_iter().map(|id| (TokenId(id), logprob(TokenId(id)))).collect();
        }
        Ok(TokenLogprobs { target, top: best })
    }
}

/// `ln(sum(exp(logits)))`.
fn log_sum_exp(logits: &[f32]) -> Result<f64, NotFinite> {
    let max = max_logit(logits)?;
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    Ok(f64::from(max) + sum.ln())
}

/// The largest logit, where the row can be sampled from at all.
pub(super) fn max_logit(logits: &[f32]) -> Result<f32, NotFinite> {
    let mut max = f32::NEG_INFINITY;
    for &logit in logits {
        if logit.is_nan() {
            return Err(NotFinite);
        }
        max = max.max(logit);
    }
    if max.is_finite() { Ok(max) } else { Err(NotFinite) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_to_one_and_sorts() {
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        let all = TokenLogprobs::from_logits(&logits, Some(TokenId(2)), 5).unwrap();
        let total: f64 = all.top.iter().map(|&(_, l)| f64::from(l).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert_eq!(all.top.iter().map(|t| t.0.0).collect::<Vec<_>>(), [1, 3, 2, 0, 4]);
        // ln(e^2 / (e^1 + 2 e^3 + e^2 + e^-1))
        let expected = 2.0 - (1f64.exp() + 2.0 * 3f64.exp() + 2f64.exp() + (-1f64).exp()).ln();
        assert!((f64::from(all.target.unwrap()) - expected).abs() < 1e-6);
        let two = TokenLogprobs::from_logits(&logits, None, 2).unwrap();
        assert_eq!(two.top, all.top[..2]);
    }

    #[test]
    fn refuses_rows_without_a_distribution() {
        assert!(TokenLogprobs::from_logits(&[0.0, f32::NAN], None, 1).is_err());
        assert!(TokenLogprobs::from_logits(&[f32::NEG_INFINITY; 2], None, 1).is_err());
        assert!(TokenLogprobs::from_logits(&[0.0, f32::INFINITY], None, 1).is_err());
    }
}
