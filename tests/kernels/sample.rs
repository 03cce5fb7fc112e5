//! `sample` and `logprobs` against the reference sampler, and the functions they are made of against float64.

use crate::common;
use std::cell::Cell;
use std::collections::BTreeMap;

use crate::common::{Bench, Random};
use rigel::backend::cuda::kernels::sample::{
    LogitEdit, Logprobs, LogprobsRow, LogprobsShape, MAX_TOP, MAX_VOCABULARY, NO_TOKEN, RowLogprobs, RowParams, Sample,
    SampleInputs, SampleOutputs, SampleShape, SeenUpdate, set_words,
};
use rigel::backend::cuda::{Arguments, CudaError, Launch, Work};
use rigel::sampling::{
    NotFinite, SampleError, SampleRow, SamplingParams, SeenTokens, TokenHistory, TokenLogprobs, noise, sample,
};
use rigel::text::TokenId;

/// One row asked for.
#[derive(Clone)]
struct Asked {
    params: SamplingParams,
    logits_row: usize,
    position: u32,
    /// Tokens of the prompt, where a bitset of these and of the output goes along.
    seen: Option<Vec<u32>>,
    insertion: SeenUpdate,
    /// Tokens generated.
    output: Vec<u32>,
    banned: Vec<u32>,
    top: Option<usize>,
}

impl Asked {
    fn new(params: SamplingParams, logits_row: usize, position: u32) -> Asked {
        let insertion = SeenUpdate::None;
        Asked { params, logits_row, position, seen: None, insertion, output: vec![], banned: vec![], top: None }
    }

    /// Prompt and output.
    fn all_seen(&self) -> Option<Vec<u32>> {
        self.seen.as_ref().map(|seen| [seen.as_slice(), &self.output].concat())
    }

    /// The row's list of edits, which is in order.
    fn edits(&self) -> Vec<LogitEdit> {
        let mut edits: BTreeMap<u32, (f32, u32)> = BTreeMap::new();
        self.params.logit_bias.iter().for_each(|(id, bias)| edits.entry(id.0).or_default().0 = *bias);
        self.output.iter().for_each(|id| edits.entry(*id).or_default().1 += 1);
        let banned = self.banned.iter().copied().chain(self.params.banned_token_ids.iter().map(|id| id.0));
        banned.for_each(|id| edits.entry(id).or_default().0 = f32::NEG_INFINITY);
        let change =
            |(id, (bias, count))| LogitEdit::biased(TokenId(id), bias).and(LogitEdit::generated(TokenId(id), count));
        edits.into_iter().map(change).collect()
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
    /// Of each row, in order: that of its seen and that of its allowed tokens.
    sets: Vec<u32>,
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

    /// Every row has two bitsets of its own, whether they are used or not.
    fn flat_sets(&self) -> Vec<u32> {
        let words = set_words(self.vocabulary);
        let mut flat = vec![0; 2 * self.rows.len() * words];
        for (sets, row) in flat.chunks_mut(2 * words).zip(&self.rows) {
            let Some(row) = row else { continue };
            let allowed = row.params.allowed_token_ids.as_ref();
            let allowed = allowed.map(|ids| ids.iter().map(|id| id.0).collect::<Vec<_>>());
            for (bits, tokens) in sets.chunks_mut(words).zip([row.all_seen(), allowed]) {
                if let Some(tokens) = tokens {
                    bits.copy_from_slice(bytemuck::cast_slice(token_set(self.vocabulary, &tokens).words()));
                }
            }
        }
        flat
    }

    fn run(&self, bench: &Bench, launcher: &Sample) -> Outcome {
        // No row's.
        let mut edits = vec![LogitEdit::banned(TokenId(7))];
        let mut params = Vec::new();
        for (slot, row) in self.rows.iter().enumerate() {
            let Some(row) = row else {
                params.push(RowParams::SKIP);
                continue;
            };
            let mut own = RowParams::new(&row.params, row.logits_row as u32, row.position);
            if row.seen.is_some() {
                own = own.with_seen(2 * slot as u32, row.insertion);
            }
            if row.params.allowed_token_ids.is_some() {
                own = own.with_allowed(2 * slot as u32 + 1);
            }
            own = own.with_changes(edits.len() as u32, row.edits().len() as u32);
            edits.extend(row.edits());
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
            set_slots: 2 * self.rows.len(),
        };
        let stream = &bench.stream;
        let (rows, logits) = (stream.upload(&params).unwrap(), stream.upload(&self.flat_logits()).unwrap());
        let edits = stream.upload(&edits).unwrap();
        let mut sets = stream.upload(&self.flat_sets()).unwrap();
        let mut tokens = stream.upload(&vec![POISON; params.len()]).unwrap();
        let mut logprobs = stream.alloc(params.len()).unwrap();
        stream.fill_bytes(logprobs.view_mut(), 0xee).unwrap();
        let mut partials = stream.alloc(launcher.partials(shape.rows, shape.vocabulary)).unwrap();
        let mut counters = stream.zeroed(shape.rows).unwrap();
        let mut launch = || {
            let inputs = SampleInputs { rows: rows.view(), logits: logits.view(), edits: edits.view() };
            let outputs = SampleOutputs {
                tokens: tokens.view_mut(),
                logprobs: logprobs.view_mut(),
                sets: sets.view_mut(),
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
            sets: stream.download(sets.view()).unwrap(),
        }
    }

    /// Runs the case and compares each row with the reference sampler; returns how many tokens differed for the
    /// closeness of the decision.
    fn check(&self, bench: &Bench, launcher: &Sample, place: &str) -> usize {
        let outcome = self.run(bench, launcher);
        let mut close_calls = 0;
        let mut expected_sets = self.flat_sets();
        let words = set_words(self.vocabulary);
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
                Err(SampleError::NotFinite(_)) => {
                    assert_eq!(found, NO_TOKEN, "{place}: the logits are not finite");
                    match row.top {
                        Some(_) => assert_eq!(logprobs.token_logprobs(), Err(NotFinite), "{place}"),
                        None => assert!(untouched(), "{place}: log-probabilities without being asked for"),
                    }
                }
                Err(other) => panic!("{place}: {other}"),
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
                    if row.seen.is_some() && row.insertion == SeenUpdate::SampledToken {
                        expected_sets[2 * index * words + found as usize / 32] |= 1 << (found % 32);
                    }
                }
            }
        }
        assert!(outcome.sets == expected_sets, "{place}: bitsets of tokens");
        close_calls
    }
}

fn token_set(vocabulary: usize, tokens: &[u32]) -> SeenTokens {
    let mut seen = SeenTokens::new(vocabulary);
    tokens.iter().for_each(|token| seen.insert(TokenId(*token)));
    seen
}

fn reference(logits: &[f32], row: &Asked) -> Result<u32, SampleError> {
    let prompt: Vec<TokenId> = row.seen.iter().flatten().map(|id| TokenId(*id)).collect();
    let mut history = TokenHistory::new(logits.len(), &prompt);
    row.output.iter().for_each(|id| history.push(TokenId(*id)));
    let banned: Vec<TokenId> = row.banned.iter().map(|id| TokenId(*id)).collect();
    let plain = SampleRow::new(0, &row.params, row.position);
    let asked = SampleRow { history: Some(&history), banned: &banned, ..plain };
    sample(logits, &asked).map(|sampled| sampled.token.0)
}

/// What edits logits ahead of the temperature.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Allowed,
    Banned,
    Bias,
    Repetition,
    Output,
}

const ORDER: [Stage; 5] = [Stage::Allowed, Stage::Banned, Stage::Bias, Stage::Repetition, Stage::Output];

/// The logits after all stages in this order, token by token.
fn processed(logits: &[f32], row: &Asked, order: &[Stage]) -> Vec<f32> {
    let params = &row.params;
    let allowed = params.allowed_token_ids.as_ref();
    let banned = |id| row.banned.contains(&id) || params.banned_token_ids.contains(&TokenId(id));
    let mut x = logits.to_vec();
    for (id, x) in (0..).zip(&mut x) {
        let count = row.output.iter().filter(|of| **of == id).count();
        let seen = row.seen.as_ref().is_some_and(|seen| count > 0 || seen.contains(&id));
        for stage in order {
            *x = match stage {
                Stage::Allowed if allowed.is_some_and(|ids| !ids.contains(&TokenId(id))) => f32::NEG_INFINITY,
                Stage::Banned if banned(id) => f32::NEG_INFINITY,
                Stage::Bias => {
                    params.logit_bias.iter().find(|bias| bias.0 == TokenId(id)).map_or(*x, |bias| *x + bias.1)
                }
                Stage::Repetition if seen && *x > 0.0 => *x / params.repetition_penalty,
                Stage::Repetition if seen => *x * params.repetition_penalty,
                Stage::Output if count > 0 => *x - count as f32 * params.frequency_penalty - params.presence_penalty,
                _ => *x,
            }
        }
    }
    x
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
    let x = processed(logits, row, &ORDER);
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
        // Two levels: as many on the upper one as are listed but not sorted, and not enough for most of the mass.
        6 => (0..vocabulary).map(|i| if i % 5 < 2 { 2.5 } else { 2.0 }).collect(),
        // Any size of number.
        _ => (0..vocabulary).map(|_| (normal(1.0) * 10f64.powf(normal(12.0))) as f32).collect(),
    };
    if kind == 4 {
        logits[0] = 0.5;
    }
    logits
}

const KINDS: usize = 8;

/// All processors alone and together, at usual and at extreme settings.
fn settings(vocabulary: usize) -> Vec<SamplingParams> {
    let base = SamplingParams { temperature: 1.0, ..Default::default() };
    let k = |top_k: usize| SamplingParams { top_k: top_k as u32, ..base.clone() };
    let p = |top_p: f32| SamplingParams { top_p, ..base.clone() };
    let t = |temperature: f32| SamplingParams { temperature, ..base.clone() };
    let m = |min_p: f32| SamplingParams { min_p, ..base.clone() };
    let mut all = vec![SamplingParams::default(), base.clone()];
    all.extend([f32::MIN_POSITIVE, 1e-40, 0.01, 0.6, 5.0, 1e30].map(t));
    all.extend([1, 2, 7, 40, 300, 700, vocabulary.saturating_sub(1).max(1), vocabulary, vocabulary + 9].map(k));
    all.extend([f32::MIN_POSITIVE, 0.1, 0.5, 0.95, 1.0 - f32::EPSILON / 2.0].map(p));
    all.extend([1e-30, 0.05, 1.0].map(m));
    all.push(SamplingParams { top_k: 50, top_p: 0.9, temperature: 0.8, ..base.clone() });
    all.push(SamplingParams { top_k: 3, top_p: 0.99, min_p: 0.01, ..base.clone() });
    all.push(SamplingParams { top_p: 0.7, min_p: 0.02, temperature: 1.7, ..base.clone() });
    all.push(SamplingParams { top_k: vocabulary as u32 / 2 + 1, top_p: 0.6, temperature: 50.0, ..base });
    all
}

/// Rows for all settings over some kinds of logits, with seeds, positions, penalties, biases, bans, allowed tokens and
/// log-probabilities dealt out among them.
fn mixed(vocabulary: usize, kinds: &[usize], random: &mut Random) -> Case {
    let logits: Vec<Vec<f32>> = kinds.iter().map(|kind| logits_like(*kind, vocabulary, random)).collect();
    let mut rows = Vec::new();
    for (turn, mut params) in settings(vocabulary).into_iter().enumerate() {
        params.seed = random.bits();
        let mut row = Asked::new(params, turn % kinds.len(), random.bits() as u32 % 10_000);
        let some = |random: &mut Random, of: usize| -> Vec<u32> {
            (0..of).map(|_| (random.bits() % vocabulary as u64) as u32).collect()
        };
        let biases = |random: &mut Random, of: usize| -> Vec<(TokenId, f32)> {
            let unique = some(random, of).into_iter().collect::<std::collections::BTreeSet<u32>>();
            // Some of them not in order.
            unique.into_iter().rev().map(|id| (TokenId(id), (random.uniform() * 12.0) as f32)).collect()
        };
        match random.bits() % 8 {
            0 => {
                row.params.repetition_penalty = [1.3, 0.7, 3.0][turn % 3];
                row.seen = Some(some(random, vocabulary / 3 + 1));
            }
            1 => {
                row.banned = some(random, vocabulary / 7);
                // Ids that are no token. Of their edits the id alone is read, which shows among few bytes.
                if vocabulary > 500 {
                    row.banned.extend([vocabulary as u32, u32::MAX]);
                }
            }
            2 => {
                row.seen = Some(some(random, 3));
                row.insertion = SeenUpdate::SampledToken;
            }
            3 => row.top = Some([0, 1, 5, 20, MAX_TOP][turn % 5]),
            4 => {
                row.params.frequency_penalty = [0.3, -0.7, 2.0][turn % 3];
                row.params.presence_penalty = [1.1, 0.0, -0.4][turn / 3 % 3];
                row.output = some(random, vocabulary / 2 + 1);
            }
            5 => {
                row.params.logit_bias = biases(random, vocabulary / 4 + 1);
                row.banned = some(random, 2);
            }
            6 => {
                row.params.allowed_token_ids =
                    Some(some(random, vocabulary / 2 + 1).into_iter().map(TokenId).collect());
                row.params.logit_bias = biases(random, 3);
                row.top = Some(2);
            }
            _ => {
                row.params.repetition_penalty = 1.1;
                row.params.frequency_penalty = 0.37;
                row.params.presence_penalty = 0.21;
                row.params.logit_bias = biases(random, vocabulary / 3);
                row.params.banned_token_ids = vec![TokenId(vocabulary as u32 / 2)];
                let allowed = some(random, vocabulary);
                row.params.allowed_token_ids = Some(allowed.into_iter().map(TokenId).collect());
                row.output = some(random, vocabulary / 3);
                row.seen = Some(some(random, vocabulary / 2));
                row.insertion = SeenUpdate::SampledToken;
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

device_test! {
    fn rows_over_a_models_vocabulary_are_split_and_listed() {
        let turn = Cell::new(0);
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let vocabulary = 49_152;
            let mut random = Random(1000 + turn.get() as u64);
            let logits = vec![logits_like(0, vocabulary, &mut random), logits_like(1, vocabulary, &mut random)];
            let seed = random.bits();
            let greedy = SamplingParams::default();
            // The usual one, and one whose nucleus is far longer than the list.
            let usual = SamplingParams { temperature: 0.8, top_k: 40, top_p: 0.95, seed, ..Default::default() };
            let wide = SamplingParams { temperature: 3.0, top_p: 0.9, seed, ..Default::default() };
            let mut rows = vec![Some(Asked::new(greedy.clone(), 0, 3)), None, Some(Asked::new(greedy, 1, 4))];
            let mut drawn = Asked::new([usual, wide][turn.get() % 2].clone(), turn.get() / 2 % 2, 5);
            drawn.top = [None, Some(5)][turn.get() % 2];
            rows.push(Some(drawn));
            let close_calls = Case { vocabulary, logits, rows }.check(bench, &launcher, "49152 tokens");
            assert_eq!(close_calls, 0);
            turn.set(turn.get() + 1);
        });
    }
}

device_test! {
    fn a_nucleus_of_thousands_of_small_masses_ends_where_it_should() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            // Each of the many weighs less than 2^32 units of the best one's 2^44, all of them half as much as that.
            let vocabulary = 2500;
            let mut logits = vec![-8.5; vocabulary];
            logits[100] = 0.0;
            let params = SamplingParams { temperature: 1.0, top_p: 0.8, seed: 5, ..Default::default() };
            let rows = (0..30).map(|position| Some(Asked::new(params.clone(), 0, position))).collect();
            let close_calls = Case { vocabulary, logits: vec![logits], rows }.check(bench, &launcher, "a plateau");
            assert_eq!(close_calls, 0);
        });
    }
}

device_test! {
    fn the_largest_vocabulary_has_ids_of_18_bits() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let last = MAX_VOCABULARY as u32 - 1;
            let mut logits = vec![-10.0; MAX_VOCABULARY];
            // Four equals behind the best one, which is banned; two of them are kept.
            for (id, value) in [(last, 3.0), (last - 1, 2.0), (last - 2, 2.0), (200_000, 2.0), (131_072, 2.0)] {
                logits[id as usize] = value;
            }
            let drawn = SamplingParams { temperature: 1.0, top_k: 2, ..Default::default() };
            let rows = [SamplingParams::default(), drawn]
                .into_iter()
                .map(|params| Some(Asked { banned: vec![last], ..Asked::new(params, 0, 1) }))
                .collect();
            let case = Case { vocabulary: MAX_VOCABULARY, logits: vec![logits], rows };
            case.check(bench, &launcher, "the largest vocabulary");
        });
    }
}

/// A row that cannot be sampled from fails alone; `change` spoils logits that are fine otherwise.
fn spoiled(bench: &Bench, launcher: &Sample, vocabulary: usize) {
    let mut random = Random(5);
    let fine = logits_like(0, vocabulary, &mut random);
    let with = |at: usize, value: f32| {
        let mut logits = fine.clone();
        logits[at] = value;
        logits
    };
    let last = vocabulary - 1;
    let negative_nan = f32::from_bits(0xffc0_0001);
    let huge = with(last / 2, 3e38);
    let logits = vec![
        fine.clone(),
        with(0, f32::NAN),
        with(last, negative_nan),
        with(last / 2, f32::INFINITY),
        vec![f32::NEG_INFINITY; vocabulary],
        huge,
        with(1, f32::NEG_INFINITY),
    ];
    let drawn = SamplingParams { temperature: 0.9, top_p: 0.8, seed: 3, ..Default::default() };
    let mut rows = Vec::new();
    for params in [SamplingParams::default(), drawn] {
        for logits_row in 0..logits.len() {
            let mut row = Asked::new(params.clone(), logits_row, 11);
            row.top = [None, Some(2)][logits_row % 2];
            rows.push(Some(row));
        }
        let all: Vec<u32> = (0..vocabulary as u32).collect();
        // Everything is banned; everything but one; NaN is banned, which does not make it a number.
        rows.push(Some(Asked { banned: all.clone(), top: Some(1), ..Asked::new(params.clone(), 0, 11) }));
        rows.push(Some(Asked { banned: all[1..].to_vec(), ..Asked::new(params.clone(), 0, 11) }));
        rows.push(Some(Asked { banned: vec![0], ..Asked::new(params.clone(), 1, 11) }));
        // A penalty that makes the largest logit infinite, and one that makes it zero, with others below -f32::MAX.
        for penalty in [1e-30, 1e30] {
            let params = SamplingParams { repetition_penalty: penalty, ..params.clone() };
            let seen = Some(vec![last as u32 / 2, 0, 2]);
            rows.push(Some(Asked { seen, insertion: SeenUpdate::SampledToken, ..Asked::new(params, 5, 11) }));
        }
    }
    let failures = rows.iter().flatten().filter(|row| reference(&logits[row.logits_row], row).is_err()).count();
    assert_eq!(failures, 14);
    Case { vocabulary, logits, rows }.check(bench, launcher, &format!("{vocabulary} tokens, spoiled"));
}

device_test! {
    fn logits_that_are_not_finite_fail_alone() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            spoiled(bench, &launcher, 70);
        });
    }
}

device_test! {
    fn greedy_rows_that_are_not_finite_fail_in_whichever_part() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            // Five parts. The value that decides lies in the first, in the last, in between; equals in several, zeros
            // of both signs.
            let vocabulary = 9000;
            let mut logits = Vec::new();
            for (at, value) in [(0, f32::NAN), (vocabulary - 1, f32::NAN), (4096, f32::INFINITY), (5000, 7.0)] {
                let mut row = vec![-2.0; vocabulary];
                row[at] = value;
                logits.push(row);
            }
            logits.push((0..vocabulary).map(|i| if i > 4000 { [0.0, -0.0][i / 3 % 2] } else { -1.0 }).collect());
            logits.push(vec![f32::NEG_INFINITY; vocabulary]);
            let rows = (0..logits.len()).map(|row| Some(Asked::new(SamplingParams::default(), row, 0))).collect();
            let case = Case { vocabulary, logits, rows };
            case.check(bench, &launcher, "9000 tokens, greedy");
            assert_eq!(case.run(bench, &launcher).tokens, [NO_TOKEN, NO_TOKEN, NO_TOKEN, 5000, 4001, NO_TOKEN]);
        });
    }
}

device_test! {
    fn the_order_of_what_changes_logits_and_each_rounding_decide() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let mut random = Random(31);
            let vocabulary = 50;
            let mut flat = || (0..vocabulary).map(|_| random.uniform() as f32 * 5.0).collect::<Vec<f32>>();
            let logits = [flat(), flat(), flat()].to_vec();
            // Biases and penalties that move the best tokens past each other.
            let mut rows = Vec::new();
            for turn in 0..120usize {
                let own = &logits[turn % 3];
                let mut best: Vec<u32> = (0..vocabulary as u32).collect();
                best.sort_by(|a, b| own[*b as usize].total_cmp(&own[*a as usize]));
                let drawn = SamplingParams { temperature: 0.7, top_k: 20, seed: random.bits(), ..Default::default() };
                let params = if turn % 4 == 0 { drawn } else { SamplingParams::default() };
                let mut row = Asked::new(params, turn % 3, turn as u32);
                row.params.repetition_penalty = [1.5, 0.6][turn / 4 % 2];
                row.params.frequency_penalty = [0.9, 0.4, -0.6][turn / 2 % 3];
                row.params.presence_penalty = [0.0, 1.5][turn / 3 % 2];
                let uniform = |random: &mut Random| random.uniform() as f32 * 4.0;
                row.params.logit_bias =
                    best[..8].iter().map(|id| (TokenId(*id), uniform(&mut random))).collect();
                row.banned = vec![best[turn % 5]];
                row.params.allowed_token_ids = Some(best.iter().skip(turn % 4).map(|id| TokenId(*id)).collect());
                row.seen = Some([1, 2, 4, 6].map(|rank| best[rank]).to_vec());
                row.output = (0..12).map(|_| best[random.bits() as usize % 10]).collect();
                rows.push(Some(row));
            }
            let case = Case { vocabulary, logits, rows };
            assert_eq!(case.check(bench, &launcher, "the order"), 0);
            let found = case.run(bench, &launcher).tokens;
            let greedy_with = |order: &[Stage]| -> usize {
                let rows = case.rows.iter().flatten().zip(&found).filter(|(row, _)| row.params.is_greedy());
                let differs = |(row, token): &(&Asked, &u32)| {
                    let x = processed(&case.logits[row.logits_row], row, order);
                    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    x.iter().position(|x| *x == largest) != Some(**token as usize)
                };
                rows.filter(differs).count()
            };
            assert_eq!(greedy_with(&ORDER), 0);
            for at in [2, 3] {
                let mut order = ORDER;
                order.swap(at, at + 1);
                assert!(greedy_with(&order) >= 3, "{order:?} shows in {} rows", greedy_with(&order));
            }
            for without in ORDER {
                let order: Vec<Stage> = ORDER.into_iter().filter(|stage| *stage != without).collect();
                assert!(greedy_with(&order) >= 3, "without {without:?}: {} rows", greedy_with(&order));
            }

            // Two tokens whose logits are equal where the product is rounded before it is taken off, and in a different
            // order where it is not: the first wins by its id, and not by its logit.
            let mut rows = Vec::new();
            let mut logits = Vec::new();
            while rows.len() < 20 {
                let (x, frequency) = (random.uniform() as f32 * 8.0 + 10.0, (random.uniform().abs() + 0.1) as f32);
                let rounded = x - 3.0 * frequency;
                // The product is exact in f64, and so is the difference.
                let fused = (f64::from(x) - 3.0 * f64::from(frequency)) as f32;
                if fused < rounded {
                    logits.push(vec![-1.0, x, rounded, -2.0]);
                    let params = SamplingParams { frequency_penalty: frequency, ..Default::default() };
                    rows.push(Some(Asked { output: vec![1; 3], ..Asked::new(params, rows.len(), 0) }));
                }
            }
            let case = Case { vocabulary: 4, logits, rows };
            assert_eq!(case.run(bench, &launcher).tokens, [1; 20]);
            case.check(bench, &launcher, "a rounded product");
        });
    }
}

device_test! {
    fn every_token_may_have_a_change_of_its_own() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let mut random = Random(41);
            // Split over blocks where greedy; blocks of 256 tokens that are full, empty, and cut off.
            let vocabulary = 9001;
            let flat = vec![1.0; vocabulary];
            let bias = |id: u32, bias: f32| (TokenId(id), bias);
            let all: Vec<_> = (0..vocabulary as u32).map(|id| bias(id, random.uniform() as f32)).collect();
            let ends: Vec<_> = [0, 255, 256, 511, 4096, 8959, 8960, 9000].map(|id| bias(id, -2.0)).to_vec();
            let last = vec![bias(9000, 0.5), bias(8960, 0.25)];
            let mut rows = Vec::new();
            for logit_bias in [all.clone(), ends, last, all] {
                for temperature in [0.0, 1.0] {
                    let params = SamplingParams { temperature, top_k: 30, logit_bias: logit_bias.clone(), ..Default::default() };
                    let mut row = Asked::new(params, 0, rows.len() as u32);
                    if rows.len() > 5 {
                        row.banned = (0..vocabulary as u32).filter(|id| id % 1000 != 999).collect();
                    }
                    rows.push(Some(row));
                }
            }
            let case = Case { vocabulary, logits: vec![flat], rows };
            assert_eq!(case.check(bench, &launcher, "a change for each token"), 0);
            let found = case.run(bench, &launcher).tokens;
            assert_eq!((found[2], found[4]), (1, 9000));
        });
    }
}

device_test! {
    fn a_row_has_the_same_token_in_any_company() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let alone = |case: &Case, row: usize| {
                let (vocabulary, logits) = (case.vocabulary, case.logits.clone());
                Case { vocabulary, logits, rows: vec![case.rows[row].clone()] }.run(bench, &launcher)
            };
            let case = mixed(131, &[0, 1], &mut Random(77));
            let together = case.run(bench, &launcher);
            for row in (0..case.rows.len()).step_by(5) {
                let own = alone(&case, row);
                assert_eq!(own.tokens[0], together.tokens[row], "row {row}");
                assert!(own.logprobs[0] == together.logprobs[row] || case.rows[row].is_none(), "row {row}");
            }
            // Greedy rows are spread over more blocks the fewer rows there are.
            let mut random = Random(78);
            let logits = vec![logits_like(1, 9000, &mut random), logits_like(2, 9000, &mut random)];
            let mut case = Case { vocabulary: 9000, logits, rows: vec![None; 300] };
            for (at, row) in [(0, 0), (7, 1), (299, 0)] {
                case.rows[at] = Some(Asked::new(SamplingParams::default(), row, 0));
            }
            assert_eq!(launcher.partials(300, 9000), 300, "one part a row");
            assert_eq!(launcher.partials(1, 9000), 5);
            let together = case.run(bench, &launcher);
            for at in [0, 7, 299] {
                assert_eq!(alone(&case, at).tokens[0], together.tokens[at], "row {at}");
            }
        });
    }
}

device_test! {
    fn frequencies_follow_the_probabilities() {
        // Probabilities of the kept: tokens 1, 3, 4, 6 and 7 make up 0.95 of the whole at temperature 2.
        const LOGITS: [f32; 9] = [-1.0, 4.0, -3.0, 3.0, 2.5, -8.0, 1.0, 2.0, -2.0];
        let params = SamplingParams { temperature: 2.0, top_k: 7, top_p: 0.9, seed: 12, ..Default::default() };
        let counts = Cell::new([0u32; 9]);
        let position = Cell::new(0);
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let rows: Vec<_> =
                (0..200).map(|i| Some(Asked::new(params.clone(), 0, position.get() + i))).collect();
            position.set(position.get() + 200);
            let case = Case { vocabulary: 9, logits: vec![LOGITS.to_vec()], rows };
            let mut total = counts.get();
            case.run(bench, &launcher).tokens.iter().for_each(|token| total[*token as usize] += 1);
            counts.set(total);
        });
        let kept = [1, 3, 4, 6, 7];
        let weight = |token: usize| f64::from(LOGITS[token] / 2.0).exp();
        let whole: f64 = kept.iter().map(|token| weight(*token)).sum();
        let draws = f64::from(counts.get().iter().sum::<u32>());
        let in_kept: u32 = kept.iter().map(|token| counts.get()[*token]).sum();
        assert_eq!(f64::from(in_kept), draws, "only kept tokens are drawn");
        let chi_square: f64 = kept
            .iter()
            .map(|token| {
                let expected = draws * weight(*token) / whole;
                (f64::from(counts.get()[*token]) - expected).powi(2) / expected
            })
            .sum();
        // 4 degrees of freedom: 18.5 is passed once in a thousand.
        assert!(chi_square < 18.5, "{chi_square}: {:?}", counts.get());
    }
}

device_test! {
    fn steps_replay_as_a_graph_with_other_rows() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let stream = &bench.stream;
            let vocabulary = 5000;
            let shape = SampleShape { rows: 2, logits_rows: 2, vocabulary, pitch: 5000, set_slots: 1 };
            let mut random = Random(9);
            let case_logits = [logits_like(0, vocabulary, &mut random), logits_like(0, vocabulary, &mut random)];
            let logits = stream.upload(&case_logits.concat()).unwrap();
            let edits = stream.upload(&[LogitEdit::banned(TokenId(3))]).unwrap();
            let mut rows = stream.upload(&[RowParams::SKIP; 2]).unwrap();
            let mut sets = stream.zeroed::<u32>(set_words(vocabulary)).unwrap();
            let mut tokens = stream.upload(&[POISON; 2]).unwrap();
            let mut logprobs = stream.zeroed::<RowLogprobs>(2).unwrap();
            // More than needed: a workspace for several buckets.
            let mut partials = stream.alloc::<u64>(launcher.partials(2, vocabulary) + 5).unwrap();
            let mut counters = stream.zeroed::<u32>(7).unwrap();
            let mut step = || {
                let inputs = SampleInputs { rows: rows.view(), logits: logits.view(), edits: edits.view() };
                let outputs = SampleOutputs {
                    tokens: tokens.view_mut(),
                    logprobs: logprobs.view_mut(),
                    sets: sets.view_mut(),
                    partials: partials.view_mut(),
                    counters: counters.view_mut(),
                };
                launcher.launch(stream, shape, inputs, outputs)
            };
            step().unwrap();
            let graph = stream.capture(step).unwrap();
            assert_eq!(stream.download(tokens.view()).unwrap(), [POISON; 2]);
            // Greedy with a penalty that brings every token down once it was chosen; a draw beside it, then padding.
            let greedy = SamplingParams { repetition_penalty: 100.0, ..Default::default() };
            let drawn = SamplingParams { temperature: 1.0, top_k: 20, seed: 4, ..Default::default() };
            let mut chosen = Vec::new();
            for position in 0..3u32 {
                let first = RowParams::new(&greedy, 1, position).with_seen(0, SeenUpdate::SampledToken);
                let second =
                    if position < 2 { RowParams::new(&drawn, 0, position) } else { RowParams::SKIP };
                stream.copy_from_host(&[first, second], rows.view_mut()).unwrap();
                graph.launch().unwrap();
                let found = stream.download(tokens.view()).unwrap();
                let mut expected = Asked::new(greedy.clone(), 0, position);
                expected.seen = Some(chosen.clone());
                assert_eq!(found[0], reference(&case_logits[1], &expected).unwrap());
                let drawn = Asked::new(drawn.clone(), 0, position.min(1));
                assert_eq!(found[1], reference(&case_logits[0], &drawn).unwrap());
                chosen.push(found[0]);
            }
            assert!(chosen[0] != chosen[1] && chosen[1] != chosen[2] && chosen[0] != chosen[2], "{chosen:?}");
        });
    }
}

device_test! {
    fn prompts_are_scored() {
        common::on_every_schedule(|bench| {
            let launcher = Logprobs::load(bench.device()).unwrap();
            let stream = &bench.stream;
            let mut random = Random(21);
            for vocabulary in [1usize, 31, 131, 517, 2500] {
                // The last two at 2500: more equals than the list holds, and more than can be sorted.
                let of_kinds: &[usize] = if vocabulary == 131 { &[0, 1, 2, 3, 4, 5, 6, 7] } else { &[0, 1, 2, 6] };
                let kinds = of_kinds.len();
                let pitch = vocabulary.next_multiple_of(8);
                let logits: Vec<Vec<f32>> =
                    of_kinds.iter().map(|kind| logits_like(*kind, vocabulary, &mut random)).collect();
                let mut flat = vec![f32::NAN; (kinds + 2) * pitch];
                for (row, logits) in flat.chunks_mut(pitch).zip(&logits) {
                    row[..vocabulary].copy_from_slice(logits);
                }
                flat[(kinds + 1) * pitch..].fill(f32::NEG_INFINITY);
                let target = |random: &mut Random| Some(TokenId((random.bits() % vocabulary as u64) as u32));
                // (target, top) of each row of logits that are fine; then the two that are not.
                let asked: Vec<(Option<TokenId>, usize)> = (0..kinds)
                    .map(|row| match row % 5 {
                        0 => (target(&mut random), 5),
                        1 => (None, MAX_TOP),
                        2 => (target(&mut random), 20),
                        3 => (target(&mut random), MAX_TOP - 1),
                        _ => (target(&mut random), 0),
                    })
                    .collect();
                let mut rows: Vec<LogprobsRow> = asked
                    .iter()
                    .enumerate()
                    .map(|(row, (target, top))| LogprobsRow::new(row as u32, *target, *top as u32))
                    .collect();
                rows.push(LogprobsRow::SKIP);
                let shape = LogprobsShape { rows: rows.len(), logits_rows: kinds + 2, vocabulary, pitch };
                let logits_on_device = stream.upload(&flat).unwrap();
                let run = |rows: &[LogprobsRow], declared: Option<Work>| -> Vec<RowLogprobs> {
                    let on_device = stream.upload(rows).unwrap();
                    let mut out = stream.alloc::<RowLogprobs>(rows.len()).unwrap();
                    stream.fill_bytes(out.view_mut(), 0xee).unwrap();
                    let shape = LogprobsShape { rows: rows.len(), ..shape };
                    let mut launch =
                        || launcher.launch(stream, shape, on_device.view(), logits_on_device.view(), out.view_mut());
                    match declared {
                        Some(declared) => bench.run(declared, launch),
                        None => launch().unwrap(),
                    }
                    stream.download(out.view()).unwrap()
                };
                let out = run(&rows, Some(shape.work(&rows)));
                for (row, (target, top)) in asked.iter().enumerate() {
                    let expected = TokenLogprobs::from_logits(&logits[row], *target, *top).unwrap();
                    let place = format!("{vocabulary} tokens, row {row}");
                    same_logprobs(&out[row].token_logprobs().unwrap(), &expected, &place);
                }
                assert!(bytemuck::bytes_of(&out[kinds]).iter().all(|byte| *byte == 0xee), "padding was written");

                // Not finite twice, no such row of logits, no such target.
                let beyond = Some(TokenId(vocabulary as u32));
                let bad = [
                    LogprobsRow::new(kinds as u32, None, 3),
                    LogprobsRow::new(kinds as u32 + 1, beyond, 0),
                    LogprobsRow::new(kinds as u32 + 2, None, 3),
                    LogprobsRow::new(0, beyond, 1),
                ];
                let found: Vec<_> = run(&bad, None).iter().map(RowLogprobs::token_logprobs).collect();
                assert_eq!(found[..3], [Err(NotFinite), Err(NotFinite), Err(NotFinite)]);
                let expected = TokenLogprobs::from_logits(&logits[0], beyond, 1).unwrap();
                same_logprobs(found[3].as_ref().unwrap(), &expected, "a target that is no token");
            }
        });
    }
}

device_test! {
    fn rows_that_name_what_is_not_there_get_no_token() {
        common::on_every_schedule(|bench| {
            let launcher = Sample::load(bench.device()).unwrap();
            let stream = &bench.stream;
            let shape = SampleShape { rows: 7, logits_rows: 1, vocabulary: 40, pitch: 40, set_slots: 1 };
            let params = SamplingParams::default();
            let rows = stream.upload(&[
                RowParams::new(&params, 1, 0),
                RowParams::new(&params, 0, 0).with_seen(1, SeenUpdate::SampledToken),
                RowParams::new(&params, 0, 0).with_changes(3, 0),
                RowParams::new(&params, 0, 0).with_changes(1, 2).with_logprobs(2),
                RowParams::new(&params, 0, 0).with_allowed(1),
                RowParams::new(&params, 0, 0).with_changes(0, 2),
                // Nothing in it.
                RowParams::new(&params, 0, 0).with_allowed(0),
            ]).unwrap();
            let logits: Vec<f32> = (0..40).map(|i| i as f32).collect();
            let (logits, edits) = (stream.upload(&logits).unwrap(), stream.upload(&[38, 39].map(|id| LogitEdit::banned(TokenId(id)))).unwrap());
            let mut sets = stream.zeroed::<u32>(set_words(40)).unwrap();
            let mut tokens = stream.upload(&[POISON; 7]).unwrap();
            let mut logprobs = stream.zeroed::<RowLogprobs>(7).unwrap();
            let mut partials = stream.alloc::<u64>(launcher.partials(7, 40)).unwrap();
            let mut counters = stream.zeroed::<u32>(7).unwrap();
            let inputs = SampleInputs { rows: rows.view(), logits: logits.view(), edits: edits.view() };
            let outputs = SampleOutputs {
                tokens: tokens.view_mut(),
                logprobs: logprobs.view_mut(),
                sets: sets.view_mut(),
                partials: partials.view_mut(),
                counters: counters.view_mut(),
            };
            launcher.launch(stream, shape, inputs, outputs).unwrap();
            let tokens = stream.download(tokens.view()).unwrap();
            assert_eq!(tokens, [NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN, 37, NO_TOKEN]);
            assert_eq!(stream.download(logprobs.view()).unwrap()[3].top, NO_TOKEN);
            assert_eq!(stream.download(sets.view()).unwrap(), [0; 2]);
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        common::on_every_schedule(|bench| {
            let (launcher, scorer) = (Sample::load(bench.device()).unwrap(), Logprobs::load(bench.device()).unwrap());
            let stream = &bench.stream;
            let shape = SampleShape { rows: 2, logits_rows: 3, vocabulary: 30, pitch: 32, set_slots: 4 };
            let rows = stream.upload(&[RowParams::SKIP; 3]).unwrap();
            let logits = stream.zeroed::<f32>(3 * 32 + 8).unwrap();
            let edits = stream.zeroed::<LogitEdit>(0).unwrap();
            let refused = |shape: SampleShape, shift: usize, lengths: [usize; 5]| -> String {
                let [tokens, outs, sets, partials, counters] = lengths;
                let mut tokens = stream.zeroed::<u32>(tokens).unwrap();
                let mut logprobs = stream.zeroed::<RowLogprobs>(outs).unwrap();
                let mut sets = stream.zeroed::<u32>(sets).unwrap();
                let mut partials = stream.zeroed::<u64>(partials).unwrap();
                let mut counters = stream.zeroed::<u32>(counters).unwrap();
                let logits = logits.slice(shift..shift + shape.logits_rows.min(3) * 32).unwrap();
                let rows = rows.slice(..shape.rows.min(3)).unwrap();
                let inputs = SampleInputs { rows, logits, edits: edits.view() };
                let outputs = SampleOutputs {
                    tokens: tokens.view_mut(),
                    logprobs: logprobs.view_mut(),
                    sets: sets.view_mut(),
                    partials: partials.view_mut(),
                    counters: counters.view_mut(),
                };
                let error = launcher.launch(stream, shape, inputs, outputs).unwrap_err();
                assert!(matches!(error, CudaError::Operand { .. }));
                error.to_string()
            };
            let fine = [2, 2, 8, 2, 2];
            let with = |change: fn(&mut SampleShape)| {
                let mut changed = shape;
                change(&mut changed);
                refused(changed, 0, fine)
            };
            assert_eq!(with(|s| s.rows = 0), "sample: rows is 0, expected 1 to 65535");
            assert_eq!(with(|s| s.logits_rows = 0), "sample: logits_rows is 0, expected 1 to 2147483647");
            let large = with(|s| s.vocabulary = MAX_VOCABULARY + 1);
            assert_eq!(large, "sample: vocabulary is 262145, expected 1 to 262144");
            assert_eq!(with(|s| s.vocabulary = 33), "sample: pitch is 32, expected at least the vocabulary of 33");
            assert_eq!(with(|s| s.pitch = 30), "sample: pitch is 30, expected a multiple of 8");
            assert_eq!(with(|s| s.pitch = 40), "sample: logits is 96, expected 3 x 40 elements");
            assert_eq!(with(|s| s.set_slots = 5), "sample: sets is 8, expected 5 x 2 elements");
            assert_eq!(refused(shape, 2, fine), "sample: logits is aligned to 8 bytes, expected aligned to 16");
            assert_eq!(refused(shape, 0, [3, 2, 8, 2, 2]), "sample: tokens is 3, expected 1 x 2 elements");
            assert_eq!(refused(shape, 0, [2, 1, 8, 2, 2]), "sample: logprobs is 1, expected 1 x 2 elements");
            assert_eq!(refused(shape, 0, [2, 2, 8, 1, 2]), "sample: partials is 1, expected at least 2 elements");
            assert_eq!(refused(shape, 0, [2, 2, 8, 2, 1]), "sample: counters is 1, expected at least 2 elements");

            let scored = stream.upload(&[LogprobsRow::SKIP; 2]).unwrap();
            let mut out = stream.zeroed::<RowLogprobs>(3).unwrap();
            let mut refused = |shape| {
                let logits = logits.slice(..3 * 32).unwrap();
                scorer.launch(stream, shape, scored.view(), logits, out.view_mut()).unwrap_err().to_string()
            };
            let shape = LogprobsShape { rows: 3, logits_rows: 3, vocabulary: 30, pitch: 32 };
            assert_eq!(refused(shape), "logprobs: rows is 2, expected 1 x 3 elements");
            assert_eq!(refused(LogprobsShape { rows: 2, ..shape }), "logprobs: out is 3, expected 1 x 2 elements");
            let none = LogprobsShape { vocabulary: 0, ..shape };
            assert_eq!(refused(none), "logprobs: vocabulary is 0, expected 1 to 262144");
        });
    }
}

/// Runs `conform_<function>` of kernels/conformance/sampling.cu.
fn conform(bench: &Bench, function: &str, input: &[u32], count: usize, outputs: usize) -> Vec<u32> {
    let module = bench.device().load(common::conformance_image("sampling")).unwrap();
    let kernel = module.kernel(&format!("conform_{function}")).unwrap();
    let input = bench.stream.upload(input).unwrap();
    let mut output = bench.stream.upload(&vec![POISON; outputs]).unwrap();
    let threads = if function == "atomic_add_shared" { 1024 } else { 32 };
    let launch = Launch { shared_bytes: 16, ..Launch::linear((count as u32).div_ceil(threads), threads) };
    let arguments = Arguments::new().input(input.view()).output(&output.view_mut()).scalar(count as u32);
    // SAFETY: the kernels take input, output and count; the callers below give them as many words as they index.
    unsafe { bench.stream.launch(&kernel, &launch, &arguments) }.unwrap();
    bench.stream.download(output.view()).unwrap()
}

/// natural_log of kernels/common/elementary.cuh, operation by operation.
fn natural_log(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((exponent as u32) << 23)) - 1.0;
    // From the highest power down, in units of 2^-24 of the hexadecimal digits there.
    const COEFFICIENTS: [(i32, i32); 8] = [
        (-0x138_b586, -28),
        (0x105_5b64, -27),
        (-0x10d_8542, -27),
        (0x122_da1c, -27),
        (-0x154_7246, -27),
        (0x199_a008, -27),
        (-0x100_0226, -26),
        (0x155_5554, -26),
    ];
    let value = |(digits, power): (i32, i32)| (f64::from(digits) * 2f64.powi(power)) as f32;
    let p = COEFFICIENTS.map(value).into_iter().reduce(|p, next| p.mul_add(f, next)).unwrap();
    let p = p.mul_add(f, -0.5).mul_add(f * f, f);
    let n = exponent as f32;
    n.mul_add(value((0x162_e430, -25)), n.mul_add(value((-0x105_c610, -53)), p))
}

fn log_exponential(bits: u32) -> f32 {
    let uniform = ((bits >> 8) as f32 + 0.5) * (1.0 / (1 << 24) as f32);
    natural_log(-natural_log(uniform.min(1.0 - f32::EPSILON / 2.0)))
}

/// All 2^24 variates, by the copy of the kernel's determinism above; that the kernel gives the same bits is the next
/// test's matter.
#[test]
fn every_variate_has_a_small_error() {
    for bits in (0..1u32 << 24).map(|bits| bits << 8) {
        let uniform = (((bits >> 8) as f32 + 0.5) * (1.0 / (1 << 24) as f32)).min(1.0 - f32::EPSILON / 2.0);
        let exact = (-f64::from(uniform).ln()).ln();
        let error = (f64::from(log_exponential(bits)) - exact).abs();
        assert!(error < 5.5e-7, "{bits:#x}: {error:e}");
    }
}

device_test! {
    fn functions_of_sampling_do_what_they_say() {
        common::on_every_schedule(|bench| {
            // The known-answer vectors of Random123 (`kat_vectors`, philox4x32 10).
            let known = [
                ([0; 6], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
                ([u32::MAX; 6], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
                (
                    [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344, 0xa409_3822, 0x299f_31d0],
                    [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
                ),
            ];
            let input: Vec<u32> = known.iter().flat_map(|(input, _)| *input).collect();
            let expected: Vec<u32> = known.iter().flat_map(|(_, output)| *output).collect();
            assert_eq!(conform(bench, "philox4x32", &input, 3, 12), expected);

            // Numbers of every size, and the neighbours of 1 and of the square roots of 2 and 1/2.
            let mut random = Random(31);
            let mut inputs: Vec<u32> = (0..8000).map(|_| 0x0080_0000 + random.bits() as u32 % 0x7f00_0000).collect();
            for middle in [1f32, std::f32::consts::SQRT_2, std::f32::consts::FRAC_1_SQRT_2] {
                inputs.extend(middle.to_bits() - 200..middle.to_bits() + 200);
            }
            inputs.extend([0x0080_0000, 0x7f7f_ffff]);
            let found = conform(bench, "natural_log", &inputs, inputs.len(), inputs.len());
            for (x, found) in inputs.iter().map(|bits| f32::from_bits(*bits)).zip(found) {
                let (found, exact) = (f32::from_bits(found), f64::from(x).ln());
                let bound = 1.4 * 2f64.powi(-24) * exact.abs();
                assert!((f64::from(found) - exact).abs() <= bound, "ln({x:e}) = {found:e}");
                assert_eq!(found.to_bits(), natural_log(x).to_bits(), "ln({x:e})");
            }

            let mut inputs: Vec<u32> = (0..4000).map(|_| random.bits() as u32).collect();
            inputs.extend([0, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_feff, 0xffff_ff00, u32::MAX]);
            let found = conform(bench, "log_exponential", &inputs, inputs.len(), inputs.len());
            for (bits, found) in inputs.iter().zip(found) {
                assert_eq!(found, log_exponential(*bits).to_bits(), "variate of {bits:#x}");
            }

            let inputs: Vec<f32> = (0..6000)
                .map(|_| (random.uniform() * 17.0 - 17.0) as f32)
                .chain([0.0, -0.0, -1e-30, -31.2, -31.19, -1e9, f32::MIN, f32::NEG_INFINITY])
                .collect();
            let bits: Vec<u32> = inputs.iter().map(|x| x.to_bits()).collect();
            let found = conform(bench, "mass_of", &bits, bits.len(), 2 * bits.len());
            for (x, halves) in inputs.iter().zip(found.chunks(2)) {
                let found = (u64::from(halves[1]) << 32 | u64::from(halves[0])) as f64;
                let exact = f64::from(*x).exp() * 2f64.powi(44);
                assert!((found - exact).abs() <= 1.5 * 2f64.powi(-24) * exact + 1.0, "exp({x}): {found}, {exact}");
            }
            assert_eq!((found[2 * 6000], found[2 * 6000 + 1]), (0, 1 << 12), "exp(0) is one whole");

            // In order, each other than the one before, and back again.
            let mut ordered: Vec<f32> = (0..2000).map(|_| f32::from_bits(random.bits() as u32)).collect();
            ordered.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 1e-45, -1e-45]);
            ordered.retain(|x| !x.is_nan());
            ordered.sort_by(f32::total_cmp);
            ordered.dedup_by_key(|x| x.to_bits());
            let bits: Vec<u32> = ordered.iter().map(|x| x.to_bits()).collect();
            let found = conform(bench, "ordered_bits", &bits, bits.len(), 2 * bits.len());
            assert!(found.chunks(2).all(|pair| pair[1] == 1));
            assert!(found.chunks(2).zip(found.chunks(2).skip(1)).all(|(a, b)| a[0] < b[0]));

            // 2^24 units of (1 + k 2^-23) (1 - k 2^-23), which rounds to 1: fused with the subtraction it would not.
            let around_1 = |k: i32| [k, -k].map(|k| (1.0 + k as f32 * f32::EPSILON).to_bits());
            let pairs: Vec<u32> = (1..64).flat_map(around_1).collect();
            let found = conform(bench, "multiply_rounded", &pairs, 63, 126);
            for (pair, found) in pairs.chunks(2).zip(found.chunks(2)) {
                let product = f32::from_bits(pair[0]) * f32::from_bits(pair[1]);
                assert_eq!(found, [product.to_bits(), (product - 1.0).to_bits()]);
            }

            let inputs: Vec<u32> = (0..300).map(|_| random.bits() as u32 % 1000).collect();
            let found = conform(bench, "atomic_add_shared", &inputs, 300, 301);
            assert_eq!(found[0], inputs.iter().sum::<u32>());
            let mut after: Vec<u32> = found[1..].iter().zip(&inputs).map(|(old, x)| old + x).collect();
            let mut before = [&found[1..], &[found[0]]].concat();
            after.push(0);
            after.sort_unstable();
            before.sort_unstable();
            assert_eq!(before, after, "each old value plus its own input is another's old value");
        });
    }
}
