//! The reference sampler, on the host.

use crate::text::TokenId;

use super::logprobs::max_logit;
use super::processor::process;
use super::{
    LogitsContext, LogitsProcessor, SampleError, SamplingParams, SeenTokens, TokenHistory, TokenLogprobs, noise,
};

/// How to sample from one row of logits.
#[derive(Debug, Clone)]
pub struct SampleRow<'a> {
    /// Index among the logits rows of the last forward pass.
    pub logits_row: usize,
    /// Sampling parameters.
    pub params: &'a SamplingParams,
    /// Position of the token to sample, counted from the start of the prompt.
    pub position: u32,
    /// Prompt and output so far; required if [`SamplingParams::has_penalties`].
    pub history: Option<&'a TokenHistory>,
    /// The tokens that may be chosen, of those in [`SamplingParams::allowed_token_ids`] where there is such a list:
    /// token `t` where bit `t % 32` of word `t / 32` is 1, and none beyond the last word. `None`: all.
    pub allowed_mask: Option<&'a [u32]>,
    /// Tokens that may not be sampled, besides [`SamplingParams::banned_token_ids`].
    pub banned: &'a [TokenId],
    /// The request's processor and its context.
    pub processor: Option<(&'a dyn LogitsProcessor, LogitsContext<'a>)>,
    /// Return log-probabilities of the chosen token and of this many best ones.
    pub logprobs: Option<usize>,
}

impl<'a> SampleRow<'a> {
    /// A row with these parameters and nothing else.
    pub fn new(logits_row: usize, params: &'a SamplingParams, position: u32) -> SampleRow<'a> {
        SampleRow {
            logits_row,
            params,
            position,
            history: None,
            allowed_mask: None,
            banned: &[],
            processor: None,
            logprobs: None,
        }
    }

    /// Returns `true` if anything changes the logits before sampling.
    fn changes_logits(&self) -> bool {
        let params = self.params;
        params.allowed_token_ids.is_some()
            || self.allowed_mask.is_some()
            || !params.banned_token_ids.is_empty()
            || !self.banned.is_empty()
            || !params.logit_bias.is_empty()
            || self.processor.is_some()
            || (self.history.is_some() && params.has_penalties())
    }
}

/// A sampled token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: TokenId,
    /// Its log-probability and those of the top tokens, before any processor, if requested.
    pub logprobs: Option<TokenLogprobs>,
}

/// Samples one token from f32 logits `[vocab_size]`. Ids at or above the vocabulary size are passed over.
///
/// # Errors
/// [`SampleError::NotFinite`] where the logits hold NaN or +∞ or nothing above −∞, as they come or once they are
/// processed; [`SampleError::ProcessorPanicked`].
pub fn sample(logits: &[f32], row: &SampleRow<'_>) -> Result<Sampled, SampleError> {
    max_logit(logits)?;
    let mut processed;
    let logits_for_choice = if row.changes_logits() {
        processed = logits.to_vec();
        change(&mut processed, row)?;
        // Everything may be banned, or a sum may overflow.
        max_logit(&processed)?;
        &processed
    } else {
        logits
    };
    let token = if row.params.is_greedy() {
        argmax(logits_for_choice)
    } else {
        draw(logits_for_choice, row.params, row.position)
    };
    let logprobs = match row.logprobs {
        Some(top) => Some(TokenLogprobs::from_logits(logits, Some(token), top)?),
        None => None,
    };
    Ok(Sampled { token, logprobs })
}

/// Everything before the temperature, in order.
fn change(logits: &mut [f32], row: &SampleRow<'_>) -> Result<(), SampleError> {
    let params = row.params;
    if let Some(allowed) = &params.allowed_token_ids {
        keep_allowed(logits, allowed);
    }
    if let Some(mask) = row.allowed_mask {
        keep_masked(logits, mask);
    }
    for token in params.banned_token_ids.iter().chain(row.banned) {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    for (token, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit += bias;
        }
    }
    if let Some((processor, context)) = &row.processor {
        process(*processor, context, logits)?;
    }
    if let Some(history) = row.history {
        if params.repetition_penalty != 1.0 {
            penalise_repetition(logits, history.seen(), params.repetition_penalty);
        }
        penalise_output(logits, history, params.frequency_penalty, params.presence_penalty);
    }
    Ok(())
}

/// −∞ for every token that is not in the list.
fn keep_allowed(logits: &mut [f32], allowed: &[TokenId]) {
    let mut set = SeenTokens::new(logits.len());
    allowed.iter().for_each(|&token| set.insert(token));
    for (id, logit) in logits.iter_mut().enumerate() {
        if !set.contains(TokenId(id as u32)) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// −∞ for every token whose bit of the mask is not 1.
fn keep_masked(logits: &mut [f32], mask: &[u32]) {
    let words = mask.iter().chain(std::iter::repeat(&0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The largest logit; the lowest id among equals.
fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    TokenId(best as u32)
}

/// Hugging Face's and vLLM's rule (Keskar et al., "CTRL", 2019, with the sign taken care of).
fn penalise_repetition(logits: &mut [f32], seen: &SeenTokens, penalty: f32) {
    for token in seen.iter() {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// OpenAI's and vLLM's rule: both count the output alone. Each operation is rounded to f32: the product, then the two
/// differences.
fn penalise_output(logits: &mut [f32], history: &TokenHistory, frequency: f32, presence: f32) {
    if frequency == 0.0 && presence == 0.0 {
        return;
    }
    for (token, count) in history.output_counts() {
        if let Some(logit) = logits.get_mut(token.0 as usize) {
            *logit -= count as f32 * frequency;
            *logit -= presence;
        }
    }
}

/// A candidate: its id, and its logit over the temperature relative to the best one.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    scaled: f32,
}

/// Temperature, min-p, top-k, top-p, then an exponential race among the tokens kept.
fn draw(logits: &[f32], params: &SamplingParams, position: u32) -> TokenId {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Relative to the best before the division: a tiny temperature then gives -inf and not NaN.
    let floor = if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY };
    let mut kept: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(i, &logit)| {
            let gap = logit - max;
            Candidate { token: i as u32, scaled: if gap == 0.0 { 0.0 } else { gap / params.temperature } }
        })
        .filter(|c| c.scaled > f32::NEG_INFINITY && c.scaled >= floor)
        .collect();
    keep_top_k(&mut kept, params.top_k as usize);
    keep_top_p(&mut kept, params.top_p);
    let race = |c: &Candidate| c.scaled - noise::log_exponential(params.seed, position, c.token);
    let winner = kept.iter().map(|c| (race(c), c.token)).fold((f32::NEG_INFINITY, u32::MAX), |best, next| {
        if next.0 > best.0 || (next.0 == best.0 && next.1 < best.1) { next } else { best }
    });
    TokenId(winner.1)
}

/// Best first; the lower id first among equals, so that exactly k are kept.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.scaled.total_cmp(&a.scaled).then(a.token.cmp(&b.token))
}

fn keep_top_k(kept: &mut Vec<Candidate>, k: usize) {
    if k > 0 && k < kept.len() {
        kept.select_nth_unstable_by(k, by_rank);
        kept.truncate(k);
    }
}

/// Keeps a token while the tokens before it, among those still kept, have a total probability below `p`.
fn keep_top_p(kept: &mut Vec<Candidate>, p: f32) {
    if p >= 1.0 {
        return;
    }
    kept.sort_unstable_by(by_rank);
    let total: f64 = kept.iter().map(|c| f64::from(c.scaled).exp()).sum();
    let mut before = 0.0;
    let keep = kept
        .iter()
        .take_while(|c| {
            let enough = before >= f64::from(p) * total;
            before += f64::from(c.scaled).exp();
            !enough
        })
        .count();
    kept.truncate(keep);
}

#[cfg(test)]
mod tests {
    use super::super::NotFinite;
    use super::*;

    fn row(params: &SamplingParams, position: u32) -> SampleRow<'_> {
        SampleRow::new(0, params, position)
    }

    /// How often each token is drawn in `n` draws.
    fn frequencies(logits: &[f32], params: SamplingParams, n: u32) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..n {
            let sampled = sample(logits, &row(&params, position)).unwrap();
            counts[sampled.token.0 as usize] += 1.0 / f64::from(n);
        }
        counts
    }

    fn softmax(logits: &[f32], keep: &[bool], temperature: f64) -> Vec<f64> {
        let weights: Vec<f64> =
            logits.iter().zip(keep).map(|(&l, &k)| if k { (f64::from(l) / temperature).exp() } else { 0.0 }).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            // Five standard errors of 20,000 draws at p = 1/2.
            assert!((f - e).abs() < 0.018, "token {i}: {f} drawn, {e} expected ({found:?})");
            assert!(*e > 0.0 || *f == 0.0, "token {i} was to be dropped");
        }
    }

    const LOGITS: [f32; 5] = [2.0, 1.0, 0.0, 1.5, -1.0];

    #[test]
    fn draws_follow_the_softmax() {
        let all = [true; 5];
        for temperature in [0.5, 1.0, 2.0] {
            let params = SamplingParams { temperature, seed: 11, ..Default::default() };
            assert_close(&frequencies(&LOGITS, params, 20_000), &softmax(&LOGITS, &all, f64::from(temperature)));
        }
    }

    #[test]
    fn truncations_keep_what_they_say() {
        let base = SamplingParams { temperature: 1.0, ..Default::default() };
        let top_k = SamplingParams { top_k: 2, ..base.clone() };
        assert_close(&frequencies(&LOGITS, top_k, 20_000), &softmax(&LOGITS, &[true, false, false, true, false], 1.0));
        // Probabilities: 0.466, 0.171, 0.063, 0.283, 0.023. 0.466 + 0.283 = 0.749 < 0.75: a third token is kept.
        let top_p = SamplingParams { top_p: 0.75, ..base.clone() };
        assert_close(&frequencies(&LOGITS, top_p, 20_000), &softmax(&LOGITS, &[true, true, false, true, false], 1.0));
        let top_p = SamplingParams { top_p: 0.74, ..base.clone() };
        assert_close(&frequencies(&LOGITS, top_p, 20_000), &softmax(&LOGITS, &[true, false, false, true, false], 1.0));
        // Relative to the best: 1, 0.368, 0.135, 0.607, 0.050.
        let min_p = SamplingParams { min_p: 0.3, ..base };
        assert_close(&frequencies(&LOGITS, min_p, 20_000), &softmax(&LOGITS, &[true, true, false, true, false], 1.0));
    }

    #[test]
    fn top_p_never_drops_the_best() {
        let params = SamplingParams { temperature: 1.0, top_p: f32::MIN_POSITIVE, ..Default::default() };
        assert_eq!(sample(&LOGITS, &row(&params, 0)).unwrap().token, TokenId(0));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let params = SamplingParams::default();
        assert_eq!(sample(&[0.0, 2.0, 2.0], &row(&params, 0)).unwrap().token, TokenId(1));
    }

    #[test]
    fn a_tiny_temperature_is_greedy() {
        let params = SamplingParams { temperature: f32::MIN_POSITIVE, ..Default::default() };
        for position in 0..100 {
            assert_eq!(sample(&LOGITS, &row(&params, position)).unwrap().token, TokenId(0));
        }
    }

    #[test]
    fn repetition_penalty_follows_the_sign() {
        let mut seen = SeenTokens::new(3);
        seen.insert(TokenId(0));
        seen.insert(TokenId(2));
        let mut logits = [2.0, 1.5, -1.0];
        penalise_repetition(&mut logits, &seen, 2.0);
        assert_eq!(logits, [1.0, 1.5, -2.0]);
        let params = SamplingParams { repetition_penalty: 2.0, ..Default::default() };
        let history = TokenHistory::new(3, &[TokenId(0), TokenId(2)]);
        let row = SampleRow { history: Some(&history), ..row(&params, 0) };
        assert_eq!(sample(&[2.0, 1.5, -1.0], &row).unwrap().token, TokenId(1));
    }

    #[test]
    fn banned_tokens_are_never_chosen_and_logprobs_are_raw() {
        let params = SamplingParams::default();
        let banned = [TokenId(0)];
        let row = SampleRow { banned: &banned, logprobs: Some(1), ..row(&params, 0) };
        let sampled = sample(&LOGITS, &row).unwrap();
        assert_eq!(sampled.token, TokenId(3));
        assert_eq!(sampled.logprobs.unwrap().top[0].0, TokenId(0));
        let all: Vec<TokenId> = (0..5).map(TokenId).collect();
        assert_eq!(sample(&LOGITS, &SampleRow { banned: &all, ..row }), Err(NotFinite.into()));
    }

    #[test]
    fn a_mask_allows_tokens_by_their_bits() {
        let params = SamplingParams::default();
        let logits: Vec<f32> = (0..70).map(|id| id as f32).collect();
        let chosen = |params: &SamplingParams, mask: &[u32]| {
            sample(&logits, &SampleRow { allowed_mask: Some(mask), ..row(params, 0) }).map(|sampled| sampled.token.0)
        };
        assert_eq!(chosen(&params, &[u32::MAX; 3]), Ok(69), "bits beyond the vocabulary are no tokens");
        assert_eq!(chosen(&params, &[1, 1 << 5, 0]), Ok(37));
        assert_eq!(chosen(&params, &[1 << 31]), Ok(31), "none beyond the last word");
        assert_eq!(chosen(&params, &[]), Err(NotFinite.into()));
        // Of those that the request's own list allows, and not of those that it bans.
        let listed = SamplingParams { allowed_token_ids: Some(vec![TokenId(3), TokenId(50)]), ..params.clone() };
        assert_eq!(chosen(&listed, &[u32::MAX, 0, 0]), Ok(3));
        let banned = SamplingParams { banned_token_ids: vec![TokenId(31)], ..params };
        assert_eq!(chosen(&banned, &[3 << 30]), Ok(30));
    }

    #[derive(Debug)]
    struct Sets(f32);

    impl LogitsProcessor for Sets {
        fn process(&self, _: &LogitsContext<'_>, logits: &mut [f32]) {
            assert!(!self.0.is_nan(), "asked to panic");
            logits[1] = self.0;
        }
    }

    #[test]
    fn what_a_processor_leaves_is_checked_and_its_panic_is_caught() {
        let params = SamplingParams::default();
        let context = LogitsContext { prompt: &[], output: &[] };
        let with = |value: f32| {
            let row = SampleRow { processor: Some((&Sets(value), context)), banned: &[TokenId(1)], ..row(&params, 0) };
            sample(&LOGITS, &row).map(|sampled| sampled.token.0)
        };
        assert_eq!(with(9.0), Ok(1));
        assert_eq!(with(f32::NEG_INFINITY), Ok(0));
        assert_eq!(with(f32::INFINITY), Err(NotFinite.into()));
        assert_eq!(with(f32::NAN), Err(SampleError::ProcessorPanicked { message: "asked to panic".to_owned() }));
    }

    #[test]
    fn output_penalties_count_the_output_alone() {
        let mut history = TokenHistory::new(5, &[TokenId(0), TokenId(3)]);
        [3, 3, 4].into_iter().for_each(|id| history.push(TokenId(id)));
        let mut logits = LOGITS;
        penalise_output(&mut logits, &history, 0.25, 0.5);
        assert_eq!(logits, [2.0, 1.0, 0.0, 0.5, -1.75]);
        penalise_output(&mut logits, &history, -0.25, -0.5);
        assert_eq!(logits, LOGITS);
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let params = SamplingParams { temperature: 1.0, seed: 3, ..Default::default() };
        let tokens = |seed, start| -> Vec<TokenId> {
            let params = SamplingParams { seed, ..params.clone() };
            (start..start + 50).map(|p| sample(&LOGITS, &row(&params, p)).unwrap().token).collect()
        };
        assert_eq!(tokens(3, 0), tokens(3, 0));
        assert_eq!(tokens(3, 0)[10..], tokens(3, 10)[..40]);
        assert_ne!(tokens(3, 0), tokens(4, 0));
        assert_ne!(tokens(3, 0), tokens(3 + (1 << 32), 0));
    }
}
