//! `sample` and `logprobs` against the reference sampler, and the functions they are made of against float64.

mod common;

use std::cell::Cell;

use common::{Bench, Random};
use rigel::backend::cuda::kernels::sample::{
    Insertion, Logprobs, LogprobsRow, LogprobsShape, MOST_TOP, MOST_VOCABULARY, NO_TOKEN, RowLogprobs, RowParams,
    Sample, SampleInputs, SampleOutputs, SampleShape, seen_words,
};
use rigel::backend::cuda::{Arguments, CudaError, Launch, Work};
use rigel::sampling::{NotFinite, SampleRow, SamplingParams, SeenTokens, TokenLogprobs, noise, sample};
use rigel::text::TokenId;

/// One row asked for.
#[derive(Clone)]
struct Asked {
    params: SamplingParams,
    logits_row: usize,
    position: u32,
    seen: Option<Vec<u32>>,
    insertion: Insertion,
    banned: Vec<u32>,
    top: Option<usize>,
}

impl Asked {
    fn new(params: SamplingParams, logits_row: usize, position: u32) -> Asked {
        Asked { params, logits_row, position, seen: None, insertion: Insertion::None, banned: vec![], top: None }
    }
}

/// Rows of logits and what is asked of them; `None` is padding.
struct Case {
    vocabulary: usize,
    logits: Vec<Vec<f32>>,
    rows: Vec<Option<Asked>>,
}

/// What the kernel made of a case.
#[derive(PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    logprobs: Vec<RowLogprobs>,
    /// Of each row, in order.
    seen: Vec<u32>,
}

/// What an output holds before the launch.
const POISON: u32 = 0xffff_fffe;

impl Case {
    fn pitch(&self) -> usize {
        self.vocabulary.next_multiple_of(8)
    }

    /// Rows of logits one after the other, the padding NaN.
    fn flat_logits(&self) -> Vec<f32> {
        let mut flat = vec![f32::NAN; self.logits.len() * self.pitch()];
        for (row, logits) in flat.chunks_mut(self.pitch()).zip(&self.logits) {
            row[..self.vocabulary].copy_from_slice(logits);
        }
        flat
    }

    /// Every row has a bitset of its own, whether it is used or not.
    fn flat_seen(&self) -> Vec<u32> {
        let words = seen_words(self.vocabulary);
        let mut flat = vec![0; self.rows.len() * words];
        for (bits, row) in flat.chunks_mut(words).zip(&self.rows) {
            for token in row.iter().flat_map(|row| row.seen.iter().flatten()) {
                bits[*token as usize / 32] |= 1 << (token % 32);
            }
        }
        flat
    }

    fn run(&self, bench: &Bench, launcher: &Sample) -> Outcome {
        let mut banned = vec![7];
        let mut params = Vec::new();
        for (slot, row) in self.rows.iter().enumerate() {
            let Some(row) = row else {
                params.push(RowParams::SKIP);
                continue;
            };
            let mut own = RowParams::new(&row.params, row.logits_row as u32, row.position);
            if row.seen.is_some() {
                own = own.with_seen(slot as u32, row.insertion);
            }
            own = own.with_banned(banned.len() as u32, row.banned.len() as u32);
            banned.extend(&row.banned);
            if let Some(top) = row.top {
                own = own.with_logprobs(top as u32);
            }
            params.push(own);
        }
        let shape = SampleShape {
            rows: params.len(),
            logits_rows: self.logits.len(),
            vocabulary: self.vocabulary,
            pitch: self.pitch(),
            seen_slots: self.rows.len(),
        };
        let stream = &bench.stream;
        let (rows, logits) = (stream.upload(&params).unwrap(), stream.upload(&self.flat_logits()).unwrap());
        let banned = stream.upload(&banned).unwrap();
        let mut seen = stream.upload(&self.flat_seen()).unwrap();
        let mut tokens = stream.upload(&vec![POISON; params.len()]).unwrap();
        let mut logprobs = stream.alloc(params.len()).unwrap();
        stream.fill_bytes(logprobs.view_mut(), 0xee).unwrap();
        let mut partials = stream.alloc(launcher.partials(shape.rows, shape.vocabulary)).unwrap();
        let mut counters = stream.zeroed(shape.rows).unwrap();
        let mut launch = || {
            let inputs = SampleInputs { rows: rows.view(), logits: logits.view(), banned: banned.view() };
            let outputs = SampleOutputs {
                tokens: tokens.view_mut(),
                logprobs: logprobs.view_mut(),
                seen: seen.view_mut(),
                partials: partials.view_mut(),
                counters: counters.view_mut(),
            };
            launcher.launch(stream, shape, inputs, outputs)
        };
        // A row that fails writes less than it declares.
        if self.rows.iter().flatten().all(|row| reference(&self.logits[row.logits_row], row).is_ok()) {
            bench.run(launcher.work(shape, &params), launch);
        } else {
            launch().unwrap();
        }
        assert_eq!(stream.download(counters.view()).unwrap(), vec![0; params.len()]);
        Outcome {
            tokens: stream.download(tokens.view()).unwrap(),
            logprobs: stream.download(logprobs.view()).unwrap(),
            seen: stream.download(seen.view()).unwrap(),
        }
    }

    /// Runs the case and compares each row with the reference sampler; returns how many tokens differed for the
    /// closeness of the decision.
    fn check(&self, bench: &Bench, launcher: &Sample, place: &str) -> usize {
        let outcome = self.run(bench, launcher);
        let mut close_calls = 0;
        let mut expected_seen = self.flat_seen();
        let words = seen_words(self.vocabulary);
        for (index, row) in self.rows.iter().enumerate() {
            let (found, logprobs) = (outcome.tokens[index], &outcome.logprobs[index]);
            let untouched = || bytemuck::bytes_of(logprobs).iter().all(|byte| *byte == 0xee);
            let Some(row) = row else {
                assert_eq!(found, POISON, "{place}, row {index}: padding was written");
                assert!(untouched(), "{place}, row {index}: padding was written");
                continue;
            };
            let place = format!("{place}, row {index}, {:?} at {}", row.params, row.position);
            let logits = &self.logits[row.logits_row];
            match reference(logits, row) {
                Err(NotFinite) => {
                    assert_eq!(found, NO_TOKEN, "{place}: the logits are not finite");
                    match row.top {
                        Some(_) => assert_eq!(logprobs.token_logprobs(), Err(NotFinite), "{place}"),
                        None => assert!(untouched(), "{place}: log-probabilities without being asked for"),
                    }
                }
                Ok(expected) => {
                    if found != expected {
                        if let Err(problem) = admissible(logits, row, found) {
                            panic!("{place}: token {found}, expected {expected}; {problem}");
                        }
                        close_calls += 1;
                    }
                    match row.top {
                        Some(top) => {
                            let expected = TokenLogprobs::from_logits(logits, Some(TokenId(found)), top).unwrap();
                            same_logprobs(&logprobs.token_logprobs().unwrap(), &expected, &place);
                        }
                        None => assert!(untouched(), "{place}: log-probabilities without being asked for"),
                    }
                    if row.seen.is_some() && row.insertion == Insertion::DrawnToken {
                        expected_seen[index * words + found as usize / 32] |= 1 << (found % 32);
                    }
                }
            }
        }
        assert!(outcome.seen == expected_seen, "{place}: bitsets of seen tokens");
        close_calls
    }
}

fn seen_tokens(vocabulary: usize, tokens: &[u32]) -> SeenTokens {
    let mut seen = SeenTokens::new(vocabulary);
    tokens.iter().for_each(|token| seen.insert(TokenId(*token)));
    seen
}

fn reference(logits: &[f32], row: &Asked) -> Result<u32, NotFinite> {
    let seen = row.seen.as_ref().map(|tokens| seen_tokens(logits.len(), tokens));
    let banned: Vec<TokenId> = row.banned.iter().map(|id| TokenId(*id)).collect();
    let asked = SampleRow {
        logits_row: 0,
        params: &row.params,
        position: row.position,
        seen: seen.as_ref(),
        banned: &banned,
        logprobs: None,
    };
    sample(logits, &asked).map(|sampled| sampled.token.0)
}

/// Scores closer than this, relative to 1 or their size, f32 cannot tell apart: a scaled logit, the logarithm of a
/// variate and their difference are each rounded, 2^-24 of their size, and the variate's own error is 2^-20.9.
const SCORE_TOLERANCE: f64 = 1.0 / (1 << 20) as f64;
/// Masses within this fraction of the whole around top_p are on neither side: the exponentials have 2^-23.4 of their
/// size, and each is cut at 2^-44 of the largest.
const MASS_TOLERANCE: f64 = 1.0 / (1 << 22) as f64;

/// Whether `found` is what a sampler without rounding errors might choose: every token that beats it by more than
/// rounding is one that top-p drops for sure, and it is not dropped for sure itself. Greedy choices, bans, min-p and
/// top-k leave no room.
fn admissible(logits: &[f32], row: &Asked, found: u32) -> Result<(), String> {
    let params = &row.params;
    if params.is_greedy() {
        return Err("a greedy choice".to_owned());
    }
    let mut x = logits.to_vec();
    if let Some(seen) = row.seen.as_ref().filter(|_| params.repetition_penalty != 1.0) {
        for token in seen_tokens(x.len(), seen).iter() {
            let logit = &mut x[token.0 as usize];
            *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
        }
    }
    row.banned.iter().for_each(|id| {
        if let Some(logit) = x.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY
        }
    });
    let best = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let floor = if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY };
    let mut kept: Vec<(u32, f32)> = (0..)
        .zip(&x)
        .map(|(id, x)| (id, if x - best == 0.0 { 0.0 } else { (x - best) / params.temperature }))
        .filter(|(_, scaled)| *scaled > f32::NEG_INFINITY && *scaled >= floor)
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    let total: f64 = kept.iter().map(|(_, scaled)| f64::from(*scaled).exp()).sum();
    let mut before = 0.0;
    // (id, score, whether it is in for sure, whether it may be in)
    let mut candidates = Vec::new();
    for (id, scaled) in &kept {
        let share = before / total;
        let p = f64::from(params.top_p);
        let block = noise::philox4x32([id / 4, row.position, 0, 0], [params.seed as u32, (params.seed >> 32) as u32]);
        let uniform = (((block[*id as usize % 4] >> 8) as f32 + 0.5) / (1 << 24) as f32).min(1.0 - f32::EPSILON / 2.0);
        let score = f64::from(*scaled) - (-f64::from(uniform).ln()).ln();
        let all = params.top_p >= 1.0;
        candidates.push((*id, score, all || share < p - MASS_TOLERANCE, all || share < p + MASS_TOLERANCE));
        before += f64::from(*scaled).exp();
    }
    let Some((_, own, _, may)) = candidates.iter().find(|c| c.0 == found) else {
        return Err("it was dropped before top-p".to_owned());
    };
    if !may {
        return Err("top-p drops it by more than rounding".to_owned());
    }
    let slack = SCORE_TOLERANCE * own.abs().max(1.0);
    match candidates.iter().find(|(_, score, surely, _)| *surely && *score > own + slack) {
        Some((id, score, ..)) => Err(format!("token {id} scores {score}, above its {own}")),
        None => Ok(()),
    }
}

/// Equal ids; values within the rounding of a difference of logits, of a logarithm and of the sum behind it.
fn same_logprobs(found: &TokenLogprobs, expected: &TokenLogprobs, place: &str) {
    let close = |found: f32, expected: f32| {
        let bound = 2f64.powi(-22) * (1.0 + f64::from(expected).abs());
        assert!(
            found == expected || (f64::from(found) - f64::from(expected)).abs() <= bound,
            "{place}: log-probability {found}, expected {expected}"
        );
    };
    assert_eq!(found.target.is_some(), expected.target.is_some(), "{place}");
    if let (Some(found), Some(expected)) = (found.target, expected.target) {
        close(found, expected);
    }
    let ids = |logprobs: &TokenLogprobs| logprobs.top.iter().map(|(id, _)| id.0).collect::<Vec<_>>();
    assert_eq!(ids(found), ids(expected), "{place}: best tokens");
    found.top.iter().zip(&expected.top).for_each(|(found, expected)| close(found.1, expected.1));
}

/// Shapes of distributions, by the number of a test's turn.
fn logits_like(kind: usize, vocabulary: usize, random: &mut Random) -> Vec<f32> {
    let mut normal = |spread: f64| (0..4).map(|_| random.uniform()).sum::<f64>() * spread;
    let mut logits: Vec<f32> = match kind {
        // As of a language model: a bulk and a few far above it.
        0 => (0..vocabulary).map(|i| (normal(3.0) + if i % 97 == 5 { 9.0 } else { 0.0 }) as f32).collect(),
        // Many ties at every place.
        1 => (0..vocabulary).map(|_| (normal(2.0) * 2.0).round() as f32 / 2.0).collect(),
        // All equal.
        2 => vec![-3.25; vocabulary],
        // One far above.
        3 => (0..vocabulary).map(|i| (normal(1.0) + if i == vocabulary / 2 { 60.0 } else { 0.0 }) as f32).collect(),
        // Half of them impossible, zeros of both signs.
        4 => (0..vocabulary)
            .map(|i| match i % 4 {
                1 => f32::NEG_INFINITY,
                2 => [0.0, -0.0][i / 4 % 2],
                _ => normal(1.0) as f32,
            })
            .collect(),
        // Flat, with differences of the last bits.
        5 => (0..vocabulary).map(|_| f32::from_bits(8f32.to_bits() + (normal(40.0).abs() as u32))).collect(),
        // Any size of number.
        _ => (0..vocabulary).map(|_| (normal(1.0) * 10f64.powf(normal(12.0))) as f32).collect(),
    };
    if kind == 4 {
        logits[0] = 0.5;
    }
    logits
}

const KINDS: usize = 7;

/// All processors alone and together, at usual and at extreme settings.
fn settings(vocabulary: usize) -> Vec<SamplingParams> {
    let base = SamplingParams { temperature: 1.0, ..Default::default() };
    let k = |top_k: usize| SamplingParams { top_k: top_k as u32, ..base.clone() };
    let p = |top_p: f32| SamplingParams { top_p, ..base.clone() };
    let t = |temperature: f32| SamplingParams { temperature, ..base.clone() };
    let m = |min_p: f32| SamplingParams { min_p, ..base.clone() };
    let mut all = vec![SamplingParams::default(), base.clone()];
    all.extend([f32::MIN_POSITIVE, 1e-40, 0.01, 0.6, 5.0, 1e30].map(t));
    all.extend([1, 2, 7, 40, vocabulary.saturating_sub(1).max(1), vocabulary, vocabulary + 9].map(k));
    all.extend([f32::MIN_POSITIVE, 0.1, 0.5, 0.95, 1.0 - f32::EPSILON / 2.0].map(p));
    all.extend([1e-30, 0.05, 1.0].map(m));
    all.push(SamplingParams { top_k: 50, top_p: 0.9, temperature: 0.8, ..base.clone() });
    all.push(SamplingParams { top_k: 3, top_p: 0.99, min_p: 0.01, ..base.clone() });
    all.push(SamplingParams { top_p: 0.7, min_p: 0.02, temperature: 1.7, ..base.clone() });
    all.push(SamplingParams { top_k: vocabulary as u32 / 2 + 1, top_p: 0.6, temperature: 50.0, ..base });
    all
}

/// Rows for all settings over some kinds of logits, with seeds, positions, penalties, bans and log-probabilities dealt
/// out among them.
fn mixed(vocabulary: usize, kinds: &[usize], random: &mut Random) -> Case {
    let logits: Vec<Vec<f32>> = kinds.iter().map(|kind| logits_like(*kind, vocabulary, random)).collect();
    let mut rows = Vec::new();
    for (turn, mut params) in settings(vocabulary).into_iter().enumerate() {
        params.seed = random.bits();
        let mut row = Asked::new(params, turn % kinds.len(), random.bits() as u32 % 10_000);
        let some = |random: &mut Random, of: usize| -> Vec<u32> {
            (0..of).map(|_| (random.bits() % vocabulary as u64) as u32).collect()
        };
        match random.bits() % 5 {
            0 => {
                row.params.repetition_penalty = [1.3, 0.7, 3.0][turn % 3];
                row.seen = Some(some(random, vocabulary / 3 + 1));
            }
            1 => row.banned = [some(random, vocabulary / 7), vec![vocabulary as u32, u32::MAX]].concat(),
            2 => {
                row.seen = Some(some(random, 3));
                row.insertion = Insertion::DrawnToken;
            }
            3 => row.top = Some([0, 1, 5, 20, MOST_TOP][turn % 5]),
            _ => {
                row.params.repetition_penalty = 1.1;
                row.seen = Some(some(random, vocabulary / 2));
                row.insertion = Insertion::DrawnToken;
                row.banned = some(random, vocabulary / 5);
                row.top = Some(3);
            }
        }
        rows.push(Some(row));
        if turn % 9 == 4 {
            rows.push(None);
        }
    }
    Case { vocabulary, logits, rows }
}

/// Of this many tokens drawn in one schedule no more than one in a hundred may be a close call.
fn few(close_calls: usize, rows: usize) {
    eprintln!("{close_calls} close calls in {rows} rows");
    assert!(close_calls * 100 <= rows, "{close_calls} close calls in {rows} rows");
}

device_test! {
    fn tokens_are_the_reference_samplers() {
        let turn = Cell::new(0);
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let mut random = Random(turn.get() as u64);
            let (mut close_calls, mut rows) = (0, 0);
            for (at, vocabulary) in [1, 31, 32, 33, 131, 517, 2500].into_iter().enumerate() {
                let first = at + turn.get();
                let kinds: Vec<usize> = (0..4).map(|i| (first + 2 * i) % KINDS).collect();
                let case = mixed(vocabulary, &kinds, &mut random);
                close_calls += case.check(bench, &launcher, &format!("{vocabulary} tokens, kinds {kinds:?}"));
                rows += case.rows.len();
            }
            few(close_calls, rows);
            turn.set(turn.get() + 1);
        });
    }
}
