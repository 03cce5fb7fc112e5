//! `kernels/sample.cu` and `kernels/logprobs.cu`: a token for each row of a step, and log-probabilities.
//!
//! Everything that edits from step to step is in device memory ([`RowParams`], [`LogitEdit`]s, bitsets), so a launch
//! for a number of rows can be recorded once and replayed; rows that a step does not use are [`RowParams::SKIP`].

use bytemuck::{Pod, Zeroable};

use crate::sampling::{NotFinite, SamplingParams, TokenLogprobs};
use crate::text::TokenId;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::Check;
use super::constants;

/// The kernel of [`Sample`].
pub const KERNEL: &str = "sample_rows";
const CHECK: Check = Check { kernel: "sample" };
const CHECK_LOGPROBS: Check = Check { kernel: "logprobs" };
const THREADS: u32 = constants::select::BLOCK;
const GROUP: usize = constants::logits::GROUP as usize;
const TOKENS_OF_BLOCK: usize = constants::sample::TOKENS_OF_BLOCK as usize;
/// Bytes of SelectMemory, Rare and ChangedTokens: the kernels assert these sizes.
const SELECT_BYTES: usize = constants::select::SELECT_BYTES as usize;
const RARE_BYTES: usize = constants::sample::RARE_BYTES as usize;
const CHANGED_TOKENS_BYTES: usize = constants::sample::CHANGED_TOKENS_BYTES as usize;

/// The largest vocabulary: ids have 18 bits in the kernels.
pub const MAX_VOCABULARY: usize = 1 << constants::select::ID_BITS;
/// The most rows of one launch.
pub const MAX_ROWS: usize = 65_535;
/// The most best tokens of a row.
pub const MAX_TOP: usize = constants::logprobs::MAX_TOP as usize;
/// What stands in place of a token where none could be chosen: the row's logits are not finite.
pub const NO_TOKEN: u32 = constants::logprobs::NO_TOKEN;
/// No bitset, no target.
const NONE: u32 = constants::sample::NONE;

const SKIP: u32 = constants::sample::SKIP;
const MARK_SEEN: u32 = constants::sample::MARK_SEEN;
const LOGPROBS: u32 = constants::sample::LOGPROBS;
const MORE: u32 = constants::sample::MORE;

/// Words of one bitset of tokens: the halves, low ones first, of
/// [`SeenTokens::words`](crate::sampling::SeenTokens::words). Token `t` is bit `t % 32` of word `t / 32`.
pub fn set_words(vocabulary: usize) -> usize {
    2 * vocabulary.div_ceil(64)
}

/// What one row of a step asks for, as the kernel reads it.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct RowParams {
    logits_row: u32,
    position: u32,
    seed_low: u32,
    seed_high: u32,
    temperature: f32,
    /// ln(min_p); -inf where min-p is off.
    floor: f32,
    top_p: f32,
    top_k: u32,
    repetition_penalty: f32,
    seen: u32,
    first_change: u32,
    edits: u32,
    flags: u32,
    top: u32,
    unused: [u32; 2],
    /// This and the next two are read where [`MORE`] is set.
    frequency_penalty: f32,
    presence_penalty: f32,
    allowed: u32,
    /// Zero.
    reserved: [u32; 5],
}

/// What edits the logit of one token of a row, ahead of the repetition penalty and after it.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct LogitEdit {
    /// The token.
    pub id: u32,
    /// Added to its logit; -inf bans it.
    pub bias: f32,
    /// How often it was generated: frequency and presence penalty weaken it where this is not 0.
    pub count: u32,
    unused: u32,
}

impl LogitEdit {
    /// A token that may not be chosen.
    pub fn banned(token: TokenId) -> LogitEdit {
        LogitEdit::biased(token, f32::NEG_INFINITY)
    }

    /// A token with a number added to its logit.
    pub fn biased(token: TokenId, bias: f32) -> LogitEdit {
        LogitEdit { id: token.0, bias, count: 0, unused: 0 }
    }

    /// A token that was generated `count` times.
    pub fn generated(token: TokenId, count: u32) -> LogitEdit {
        LogitEdit { id: token.0, bias: 0.0, count, unused: 0 }
    }

    /// Both edits of one token. Biases are added up; beside a ban no other bias counts.
    #[must_use]
    pub fn and(self, other: LogitEdit) -> LogitEdit {
        LogitEdit { bias: self.bias + other.bias, count: self.count.saturating_add(other.count), ..self }
    }
}

/// Whether the token drawn joins the row's bitset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenUpdate {
    /// The bitset stays as it is.
    None,
    /// The kernel sets the token's bit. No other row of the launch may name the same bitset.
    SampledToken,
}

impl RowParams {
    /// A row for which nothing is read or written: padding.
    pub const SKIP: RowParams = RowParams {
        logits_row: 0,
        position: 0,
        seed_low: 0,
        seed_high: 0,
        temperature: 0.0,
        floor: f32::NEG_INFINITY,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        seen: NONE,
        first_change: 0,
        edits: 0,
        flags: SKIP,
        top: 0,
        unused: [0; 2],
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        allowed: NONE,
        reserved: [0; 5],
    };

    /// The token at `position`, counted from the start of the prompt, from one row of logits. What `params` lists,
    /// biases and ids, and what penalties need to know come by the methods below.
    pub fn new(params: &SamplingParams, logits_row: u32, position: u32) -> RowParams {
        let SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, seed, .. } = *params;
        let SamplingParams { frequency_penalty, presence_penalty, .. } = *params;
        RowParams {
            logits_row,
            position,
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            // Whatever makes a row greedy.
            temperature: if params.is_greedy() { 0.0 } else { temperature },
            // As the reference sampler has it, so that the kernel compares with the same number.
            floor: if min_p > 0.0 { min_p.ln() } else { f32::NEG_INFINITY },
            top_p,
            top_k,
            repetition_penalty,
            flags: if frequency_penalty != 0.0 || presence_penalty != 0.0 { MORE } else { 0 },
            frequency_penalty,
            presence_penalty,
            ..RowParams::SKIP
        }
    }

    /// With the bitset `slot` of the tokens seen so far, which a repetition penalty needs.
    #[must_use]
    pub fn with_seen(self, slot: u32, insertion: SeenUpdate) -> RowParams {
        let insert = if insertion == SeenUpdate::SampledToken { MARK_SEEN } else { 0 };
        RowParams { seen: slot, flags: self.flags & !MARK_SEEN | insert, ..self }
    }

    /// With `first .. first + count` of the launch's edits: each token once, in ascending order.
    #[must_use]
    pub fn with_changes(self, first: u32, count: u32) -> RowParams {
        RowParams { first_change: first, edits: count, ..self }
    }

    /// Only with the tokens of the bitset `slot`.
    #[must_use]
    pub fn with_allowed(self, slot: u32) -> RowParams {
        RowParams { allowed: slot, flags: self.flags | MORE, ..self }
    }

    /// With the log-probabilities of the token drawn and of the `top` best ones; [`MAX_TOP`] at the most are given.
    #[must_use]
    pub fn with_logprobs(self, top: u32) -> RowParams {
        RowParams { flags: self.flags | LOGPROBS, top: top.min(MAX_TOP as u32), ..self }
    }

    fn is_skipped(&self) -> bool {
        self.flags & SKIP != 0
    }

    fn wants_logprobs(&self) -> bool {
        self.flags & LOGPROBS != 0
    }

    fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// One row of logits whose log-probabilities are wanted, as the kernel reads it.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct LogprobsRow {
    logits_row: u32,
    target: u32,
    top: u32,
    unused: u32,
}

impl LogprobsRow {
    /// A row for which nothing is read or written: padding.
    pub const SKIP: LogprobsRow = LogprobsRow { logits_row: NONE, target: NONE, top: 0, unused: 0 };

    /// The log-probabilities of `target` and of the `top` best tokens; [`MAX_TOP`] at the most are given.
    pub fn new(logits_row: u32, target: Option<TokenId>, top: u32) -> LogprobsRow {
        LogprobsRow { logits_row, target: target.map_or(NONE, |t| t.0), top: top.min(MAX_TOP as u32), unused: 0 }
    }
}

/// Log-probabilities (natural logarithm) of one row, before any processor, as the kernels write them. Only the first
/// [`RowLogprobs::top`] of the arrays are written.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct RowLogprobs {
    /// That of the token drawn or asked for; NaN where there is none.
    pub target: f32,
    /// How many best tokens follow; [`NO_TOKEN`] where the logits are not finite.
    pub top: u32,
    unused: [u32; 2],
    /// The best tokens, best first, the lower id first among equals.
    pub ids: [u32; MAX_TOP],
    /// Their log-probabilities.
    pub logprobs: [f32; MAX_TOP],
}

impl RowLogprobs {
    /// As the sampler on the host gives them.
    ///
    /// # Errors
    /// [`NotFinite`] where the row's logits were not.
    pub fn token_logprobs(&self) -> Result<TokenLogprobs, NotFinite> {
        if self.top == NO_TOKEN {
            return Err(NotFinite);
        }
        let best = self.ids.iter().map(|id| TokenId(*id)).zip(self.logprobs);
        let target = Some(self.target).filter(|logprob| !logprob.is_nan());
        Ok(TokenLogprobs { target, top: best.take(self.top as usize).collect() })
    }
}

/// Sizes of one launch of [`Sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleShape {
    /// Rows to choose a token for: the bucket.
    pub rows: usize,
    /// Rows of logits.
    pub logits_rows: usize,
    /// Tokens, at most [`MAX_VOCABULARY`].
    pub vocabulary: usize,
    /// From one row of logits to the next: the vocabulary, padded to a multiple of 8.
    pub pitch: usize,
    /// Bitsets of tokens.
    pub set_slots: usize,
}

/// Blocks over which a greedy row is spread: as many as find work, and no more than one for each SM in all.
/// The tokens do not depend on it.
fn parts(sm_count: u32, rows: usize, vocabulary: usize) -> u32 {
    let useful = vocabulary.div_ceil(GROUP).div_ceil(THREADS as usize);
    let room = sm_count as usize / rows.max(1);
    room.clamp(1, useful.max(1)) as u32
}

impl SampleShape {
    /// The bytes that a launch for these rows moves: their parameters, logits, edits and bitsets once. 1 FLOP for each
    /// token of a greedy row; of another one about 50, were all its tokens in the race. A greedy row is
    /// spread over more blocks where there are more SMs.
    pub fn work(&self, rows: &[RowParams], sm_count: u32) -> Work {
        let words = self.vocabulary.div_ceil(32);
        let logits = self.vocabulary.div_ceil(GROUP) * GROUP * 4;
        let parts = parts(sm_count, self.rows, self.vocabulary) as usize;
        let mut work = Work::default();
        let mut logits_rows: Vec<u32> = Vec::with_capacity(rows.len());
        for row in rows {
            // Flags, edits, temperature, logits row.
            let (mut read, mut written, mut flops) = (28, 0, 0);
            if !row.is_skipped() {
                logits_rows.push(row.logits_row);
                read += size_of::<LogitEdit>() * row.edits as usize;
                if row.flags & MORE != 0 {
                    read += 16;
                }
                if row.allowed != NONE {
                    read += 4 * words;
                }
                written += 4;
                let penalised = row.seen != NONE && row.repetition_penalty != 1.0;
                if penalised {
                    read += 4 * words;
                }
                if row.seen != NONE && row.flags & MARK_SEEN != 0 {
                    read += if penalised { 0 } else { 4 };
                    written += 4;
                }
                if row.is_greedy() {
                    flops += self.vocabulary;
                } else {
                    read += 24;
                    flops += 50 * self.vocabulary;
                }
                if row.wants_logprobs() {
                    read += 4;
                    written += 8 + 8 * (row.top as usize).min(self.vocabulary);
                    flops += 15 * self.vocabulary;
                } else if row.is_greedy() && parts > 1 {
                    read += 8 * parts + 4;
                    written += 8 * parts + 4;
                }
            }
            let row = Work { bytes_read: read as u64, bytes_written: written as u64, flops: flops as u64 };
            work = work + row;
        }
        logits_rows.sort_unstable();
        logits_rows.dedup();
        work.bytes_read += (logits * logits_rows.len()) as u64;
        work
    }
}

/// What [`Sample::launch`] reads.
#[derive(Clone, Copy)]
pub struct SampleInputs<'a> {
    /// `[rows]`
    pub rows: Slice<'a, RowParams>,
    /// `[logits_rows, pitch]`, written up to the next multiple of 4 past the vocabulary.
    pub logits: Slice<'a, f32>,
    /// What edits logits, of any length; an id that is no token is passed over.
    pub edits: Slice<'a, LogitEdit>,
}

/// What [`Sample::launch`] writes.
pub struct SampleOutputs<'a> {
    /// `[rows]`: the tokens, or [`NO_TOKEN`].
    pub tokens: SliceMut<'a, u32>,
    /// `[rows]`, those of the rows that ask.
    pub logprobs: SliceMut<'a, RowLogprobs>,
    /// Bitsets of tokens that sequences hold already and of tokens that are allowed, `[set_slots,
    /// set_words(vocabulary)]`; read, and written for [`SeenUpdate::SampledToken`].
    pub sets: SliceMut<'a, u32>,
    /// As many as [`Sample::partials`] says, or more; what it holds before and after means nothing.
    pub partials: SliceMut<'a, u64>,
    /// At least `[rows]`; zero before the first launch, and zero again after each.
    pub counters: SliceMut<'a, u32>,
}

/// Chooses tokens.
pub struct Sample {
    kernel: Kernel,
    sm_count: u32,
}

impl Sample {
    /// Loads the kernel.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<Sample, CudaError> {
        let kernel = device.module("sample")?.kernel(KERNEL)?;
        Ok(Sample { kernel, sm_count: device.properties().sm_count })
    }

    /// Elements of [`SampleOutputs::partials`] that are enough for launches of 1 to `max_rows` rows.
    pub fn partials(&self, max_rows: usize, vocabulary: usize) -> usize {
        (1..=max_rows).map(|rows| rows * parts(self.sm_count, rows, vocabulary) as usize).max().unwrap_or(0)
    }

    /// [`SampleShape::work`] on this device.
    pub fn work(&self, shape: SampleShape, rows: &[RowParams]) -> Work {
        shape.work(rows, self.sm_count)
    }

    /// Chooses one token for each of `inputs.rows`, the same that [`crate::sampling::sample`] chooses on the same
    /// logits where f32 arithmetic can tell the candidates apart, whatever the other rows are. A row gets [`NO_TOKEN`]
    /// where its logits are not finite, or where it names a logits row, bitsets or edits that are not there.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, rows that are not 1 to [`MAX_ROWS`], a
    /// vocabulary that is not 1 to [`MAX_VOCABULARY`], a pitch below it or no multiple of 8, or a buffer that is not
    /// aligned to 16 bytes; [`CudaError::LaunchLimit`] for a vocabulary whose edits do not fit shared memory.
    pub fn launch(
        &self,
        stream: &Stream,
        shape: SampleShape,
        inputs: SampleInputs<'_>,
        outputs: SampleOutputs<'_>,
    ) -> Result<(), CudaError> {
        let SampleShape { rows, logits_rows, vocabulary, pitch, set_slots } = shape;
        let row_count = CHECK.size("rows", rows, MAX_ROWS)?;
        let logits_row_count = CHECK.size("logits_rows", logits_rows, i32::MAX as usize)?;
        let tokens = check_logits(CHECK, inputs.logits, shape.logits_rows, vocabulary, pitch)?;
        CHECK.matrix("rows", inputs.rows.into(), 1, rows)?;
        CHECK.matrix("tokens", (&outputs.tokens).into(), 1, rows)?;
        CHECK.matrix("logprobs", (&outputs.logprobs).into(), 1, rows)?;
        let words = set_words(vocabulary);
        CHECK.matrix("sets", (&outputs.sets).into(), set_slots, words)?;
        let Ok(slot_count) = u32::try_from(set_slots) else {
            return CHECK.fail("set_slots", set_slots, "a number of 32 bits");
        };
        let edits = inputs.edits.len();
        let Ok(change_count) = u32::try_from(edits) else {
            return CHECK.fail("edits", edits, "a number of 32 bits");
        };
        CHECK.matrix("edits", inputs.edits.into(), 1, edits)?;
        let partials = rows * parts(self.sm_count, rows, vocabulary) as usize;
        if outputs.partials.len() < partials {
            return CHECK.fail("partials", outputs.partials.len(), format_args!("at least {partials} elements"));
        }
        if outputs.counters.len() < rows {
            return CHECK.fail("counters", outputs.counters.len(), format_args!("at least {rows} elements"));
        }
        let mut launch = Launch::linear(parts(self.sm_count, rows, vocabulary), THREADS);
        launch.grid[1] = row_count;
        let changed_tokens = vocabulary.div_ceil(TOKENS_OF_BLOCK) * CHANGED_TOKENS_BYTES;
        launch.shared_bytes = (SELECT_BYTES + RARE_BYTES + changed_tokens) as u32;
        let arguments = Arguments::new()
            .input(inputs.rows)
            .input(inputs.logits)
            .input(inputs.edits)
            .output(&outputs.sets)
            .output(&outputs.partials)
            .output(&outputs.counters)
            .output(&outputs.tokens)
            .output(&outputs.logprobs)
            .scalar(logits_row_count)
            .scalar(tokens)
            .scalar(pitch as u32)
            .scalar(change_count)
            .scalar(slot_count)
            .scalar(words as u32);
        // SAFETY: the arguments are those of sample_rows, checked above to have the lengths that it indexes; what rows
        // name beyond them the kernel refuses by itself.
        unsafe { stream.launch(&self.kernel, &launch, &arguments) }
    }
}

/// Sizes of one launch of [`Logprobs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogprobsShape {
    /// Rows to score.
    pub rows: usize,
    /// Rows of logits.
    pub logits_rows: usize,
    /// Tokens, at most [`MAX_VOCABULARY`].
    pub vocabulary: usize,
    /// From one row of logits to the next: the vocabulary, padded to a multiple of 8.
    pub pitch: usize,
}

impl LogprobsShape {
    /// Each row's logits read once, its results written once; about 15 FLOPs a token. Rows name different logits rows.
    pub fn work(&self, rows: &[LogprobsRow]) -> Work {
        let mut work = Work { bytes_read: (16 * rows.len()) as u64, ..Work::default() };
        for row in rows.iter().filter(|row| row.logits_row != NONE) {
            work.bytes_read += (self.vocabulary.div_ceil(GROUP) * GROUP * 4) as u64;
            work.bytes_written += 8 + 8 * u64::from(row.top).min(self.vocabulary as u64);
            work.flops += 15 * self.vocabulary as u64;
        }
        work
    }
}

/// Scores given tokens.
pub struct Logprobs {
    kernel: Kernel,
}

impl Logprobs {
    /// Loads the kernel.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<Logprobs, CudaError> {
        Ok(Logprobs { kernel: device.module("logprobs")?.kernel("logprobs_rows")? })
    }

    /// `out[r]` = log-probabilities of the target and of the best tokens of `rows[r]`, with `rows` and `out` `[rows]`
    /// and `logits` `[logits_rows, pitch]`, written up to the next multiple of 4 past the vocabulary.
    ///
    /// # Errors
    /// As for [`Sample::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        shape: LogprobsShape,
        rows: Slice<'_, LogprobsRow>,
        logits: Slice<'_, f32>,
        out: SliceMut<'_, RowLogprobs>,
    ) -> Result<(), CudaError> {
        let LogprobsShape { rows: count, logits_rows, vocabulary, pitch } = shape;
        let row_count = CHECK_LOGPROBS.size("rows", count, i32::MAX as usize)?;
        let logits_row_count = CHECK_LOGPROBS.size("logits_rows", logits_rows, i32::MAX as usize)?;
        let tokens = check_logits(CHECK_LOGPROBS, logits, logits_rows, vocabulary, pitch)?;
        CHECK_LOGPROBS.matrix("rows", rows.into(), 1, count)?;
        CHECK_LOGPROBS.matrix("out", (&out).into(), 1, count)?;
        let mut launch = Launch::linear(row_count, THREADS);
        launch.shared_bytes = SELECT_BYTES as u32;
        let arguments = Arguments::new()
            .input(rows)
            .input(logits)
            .output(&out)
            .scalar(logits_row_count)
            .scalar(tokens)
            .scalar(pitch as u32);
        // SAFETY: the arguments are those of logprobs_rows, checked above to have the lengths that it indexes; logits
        // rows that are not there the kernel refuses by itself.
        unsafe { stream.launch(&self.kernel, &launch, &arguments) }
    }
}

/// The vocabulary as the kernels take it.
fn check_logits(
    check: Check,
    logits: Slice<'_, f32>,
    rows: usize,
    vocabulary: usize,
    pitch: usize,
) -> Result<u32, CudaError> {
    let tokens = check.size("vocabulary", vocabulary, MAX_VOCABULARY)?;
    check.width("pitch", pitch, i32::MAX as usize)?;
    if pitch < vocabulary {
        return check.fail("pitch", pitch, format_args!("at least the vocabulary of {vocabulary}"));
    }
    check.matrix("logits", logits.into(), rows, pitch)?;
    Ok(tokens)
}
