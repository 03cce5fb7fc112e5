//! The sampler once more, in float64 and from the definitions alone: what [`sample`] is checked against.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::{LogitsContext, LogitsProcessor, NotFinite, SampleError, SampleRow, SamplingParams, TokenHistory};
use super::{noise, sample};
use crate::text::TokenId;

/// Steps ahead of the temperature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Allowed,
    Banned,
    Bias,
    Processor,
    Repetition,
    Output,
}

const ORDER: [Stage; 6] =
    [Stage::Allowed, Stage::Banned, Stage::Bias, Stage::Processor, Stage::Repetition, Stage::Output];

/// All that a draw depends on.
#[derive(Debug, Clone)]
struct Case {
    logits: Vec<f32>,
    params: SamplingParams,
    prompt: Vec<TokenId>,
    output: Vec<TokenId>,
    /// A bit for each token.
    mask: Option<u32>,
    banned: Vec<TokenId>,
    halves: bool,
    position: u32,
}

/// Halves logits, and turns the sign of the last token generated.
#[derive(Debug)]
struct Halve;

impl LogitsProcessor for Halve {
    fn process(&self, context: &LogitsContext<'_>, logits: &mut [f32]) {
        logits.iter_mut().for_each(|logit| *logit /= 2.0);
        if let Some(last) = context.output.last() {
            logits[last.0 as usize] *= -1.0;
        }
        logits[context.prompt[0].0 as usize] += 1.0;
    }
}

impl Case {
    fn sampled(&self) -> Result<TokenId, SampleError> {
        let mut history = TokenHistory::new(self.logits.len(), &self.prompt);
        self.output.iter().for_each(|&token| history.push(token));
        let context = LogitsContext { prompt: &self.prompt, output: &self.output };
        let row = SampleRow {
            logits_row: 0,
            params: &self.params,
            position: self.position,
            history: Some(&history),
            allowed_mask: self.mask.as_ref().map(std::slice::from_ref),
            banned: &self.banned,
            processor: self.halves.then_some((&Halve as &dyn LogitsProcessor, context)),
            logprobs: None,
        };
        sample(&self.logits, &row).map(|sampled| sampled.token)
    }

    /// The logit of each token once the stages, in this order, have been at it.
    fn processed(&self, order: &[Stage]) -> Vec<f64> {
        let params = &self.params;
        let mut x: Vec<f64> = self.logits.iter().map(|&logit| f64::from(logit)).collect();
        let times = |of: &[TokenId], id: usize| of.iter().filter(|token| token.0 as usize == id).count() as f64;
        for stage in order {
            for (id, x) in x.iter_mut().enumerate() {
                let token = TokenId(id as u32);
                let (in_prompt, in_output) = (times(&self.prompt, id), times(&self.output, id));
                *x = match stage {
                    Stage::Allowed if params.allowed_token_ids.as_ref().is_some_and(|ids| !ids.contains(&token)) => {
                        f64::NEG_INFINITY
                    }
                    Stage::Allowed if self.mask.is_some_and(|mask| mask >> id & 1 == 0) => f64::NEG_INFINITY,
                    Stage::Banned if params.banned_token_ids.contains(&token) || self.banned.contains(&token) => {
                        f64::NEG_INFINITY
                    }
                    Stage::Bias => {
                        *x + params.logit_bias.iter().filter(|b| b.0 == token).map(|b| f64::from(b.1)).sum::<f64>()
                    }
                    Stage::Processor if self.halves => {
                        let turned = if self.output.last() == Some(&token) { -1.0 } else { 1.0 };
                        *x / 2.0 * turned + if self.prompt[0] == token { 1.0 } else { 0.0 }
                    }
                    Stage::Repetition if in_prompt + in_output > 0.0 => {
                        let penalty = f64::from(params.repetition_penalty);
                        if *x > 0.0 { *x / penalty } else { *x * penalty }
                    }
                    Stage::Output if in_output > 0.0 => {
                        *x - in_output * f64::from(params.frequency_penalty) - f64::from(params.presence_penalty)
                    }
                    _ => *x,
                };
            }
        }
        x
    }

    /// The token, or none where nothing is left; and whether a sampler in f32 may see another one.
    fn expected(&self, order: &[Stage]) -> (Option<TokenId>, bool) {
        let params = &self.params;
        let x = self.processed(order);
        let mut ids: Vec<usize> = (0..x.len()).filter(|&id| x[id] > f64::NEG_INFINITY).collect();
        // Zeros of either sign are equal.
        ids.sort_by(|&a, &b| x[b].partial_cmp(&x[a]).expect("numbers").then(a.cmp(&b)));
        let Some(&best) = ids.first().filter(|&&best| x[best] < f64::INFINITY) else { return (None, false) };
        if params.temperature == 0.0 {
            return (Some(TokenId(best as u32)), false);
        }
        let weight = |id: usize| ((x[id] - x[best]) / f64::from(params.temperature)).exp();
        let mut close = false;
        ids.retain(|&id| {
            close |= params.min_p > 0.0 && (weight(id) / f64::from(params.min_p) - 1.0).abs() < 1e-5;
            weight(id) >= f64::from(params.min_p)
        });
        if params.top_k > 0 {
            ids.truncate(params.top_k as usize);
        }
        let total: f64 = ids.iter().map(|&id| weight(id)).sum();
        let mut before = 0.0;
        ids.retain(|&id| {
            let share = before / total;
            before += weight(id);
            close |= params.top_p < 1.0 && id != best && (share - f64::from(params.top_p)).abs() < 1e-5;
            params.top_p >= 1.0 || share < f64::from(params.top_p) || id == best
        });
        let score = |id: usize| {
            (x[id] - x[best]) / f64::from(params.temperature)
                - f64::from(noise::log_exponential(params.seed, self.position, id as u32))
        };
        ids.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        close |= ids.len() > 1 && score(ids[0]) - score(ids[1]) < 1e-4;
        (Some(TokenId(ids[0] as u32)), close)
    }
}

/// Numbers of which float32 sums, halves and doubles are exact: multiples of 1/8, and penalties that are powers of two.
fn case() -> impl Strategy<Value = Case> {
    const VOCABULARY: u32 = 24;
    let id = || (0..VOCABULARY).prop_map(TokenId);
    let eighth = |most: i32| (-most..=most).prop_map(|n| n as f32 / 8.0);
    let ids = |range: std::ops::Range<usize>| prop::collection::vec(id(), range);
    let bias = prop::collection::hash_map(0..VOCABULARY + 3, eighth(60), 0..6)
        .prop_map(|bias| bias.into_iter().map(|(id, bias)| (TokenId(id), bias)).collect::<Vec<_>>());
    let choice = (
        prop::sample::select(vec![0.0f32, 0.0, 0.5, 1.0, 2.0]),
        prop::sample::select(vec![0u32, 0, 1, 3, 10, 40]),
        prop::sample::select(vec![1.0f32, 1.0, 0.3, 0.9, 0.0, -0.0]),
        prop::sample::select(vec![0.0f32, 0.0, 0.1, 0.6]),
        any::<u64>(),
    );
    let penalties = (prop::sample::select(vec![1.0f32, 2.0, 0.5, 4.0]), eighth(16), eighth(16));
    let lists = (bias, prop::option::of(ids(1..20)), ids(0..5));
    let params = (choice, penalties, lists).prop_map(|(choice, penalties, lists)| SamplingParams {
        temperature: choice.0,
        top_k: choice.1,
        top_p: choice.2,
        min_p: choice.3,
        seed: choice.4,
        repetition_penalty: penalties.0,
        frequency_penalty: penalties.1,
        presence_penalty: penalties.2,
        logit_bias: lists.0,
        allowed_token_ids: lists.1,
        banned_token_ids: lists.2,
        min_tokens: 0,
    });
    let logits = prop::collection::vec(eighth(40), VOCABULARY as usize);
    // Most masks allow most tokens.
    let mask = prop::option::weighted(0.3, (any::<u32>(), any::<u32>()).prop_map(|(a, b)| a | b));
    (logits, params, ids(1..8), ids(0..12), (mask, ids(0..3)), any::<bool>(), 0..500u32).prop_map(
        |(logits, params, prompt, output, (mask, banned), halves, position)| Case {
            logits,
            params,
            prompt,
            output,
            mask,
            banned,
            halves,
            position,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn tokens_are_those_of_the_definitions(case in case()) {
        prop_assert!(case.params.validate().is_ok());
        let (expected, close) = case.expected(&ORDER);
        match expected {
            None => prop_assert_eq!(case.sampled(), Err(NotFinite.into())),
            Some(token) => prop_assert!(close || case.sampled() == Ok(token), "{:?}, not {token:?}", case.sampled()),
        }
    }
}

/// Were two stages exchanged, the property above would not hold.
#[test]
fn another_order_is_found_out() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = case();
    let cases: Vec<Case> =
        (0..400).map(|_| strategy.new_tree(&mut runner).expect("no filter refuses a case").current()).collect();
    for at in [2, 3, 4] {
        let mut order = ORDER;
        order.swap(at, at + 1);
        let wrong = |case: &&Case| {
            let (token, close) = case.expected(&order);
            !close && case.sampled().ok() != token
        };
        let found = cases.iter().filter(wrong).count();
        assert!(found >= 5, "{:?} after {:?} shows in {found} of {} cases", ORDER[at], ORDER[at + 1], cases.len());
    }
    // A sampler that leaves out a stage.
    for stage in ORDER {
        let order: Vec<Stage> = ORDER.into_iter().filter(|other| *other != stage).collect();
        let found = cases.iter().filter(|case| case.sampled().ok() != case.expected(&order).0).count();
        assert!(found >= 5, "without {stage:?} {found} of {} cases differ", cases.len());
    }
}
