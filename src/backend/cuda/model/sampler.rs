//! Draws and log-probabilities on the device: what goes there, what comes back, and which requests the kernels are not
//! written for.

use super::super::error::CudaError;
use super::super::kernels::sample::{
    Insertion, Logprobs, LogprobsRow, LogprobsShape, MOST_TOP, MOST_VOCABULARY, NO_TOKEN, RowLogprobs, RowParams,
    Sample, SampleInputs, SampleOutputs, SampleShape, seen_words,
};
use super::super::{Buffer, Device, Pinned, Slice, Stream};
use crate::model::ModelSpec;
use crate::sampling::{NotFinite, SampleError, SampleRow, Sampled, TokenLogprobs};
use crate::text::TokenId;

/// Room for the tokens that the rows of one launch ban together.
const BANNED: usize = 4096;

/// Lengths of the buffers on the device, in elements.
struct Lengths {
    rows: usize,
    seen: usize,
    partials: usize,
}

impl Lengths {
    fn new(device: &Device, spec: &ModelSpec, rows: usize) -> Lengths {
        // A row is spread over several blocks as long as there is no more than one for each multiprocessor in all.
        let partials = rows.max(device.properties().multiprocessors as usize);
        Lengths { rows, seen: rows * seen_words(spec.vocab_size), partials }
    }

    fn bytes(&self) -> usize {
        // Parameters, tokens, counters, log-probabilities and their rows; bitsets, bans, partial results.
        let row = size_of::<RowParams>() + 4 + 4 + size_of::<RowLogprobs>() + size_of::<LogprobsRow>();
        self.rows * row + 4 * (self.seen + BANNED) + 8 * self.partials
    }
}

/// Host memory and device memory of the same length.
struct Pair<T> {
    host: Pinned<T>,
    device: Buffer<T>,
}

impl<T: bytemuck::Pod> Pair<T> {
    fn new(device: &Device, stream: &Stream, len: usize) -> Result<Pair<T>, CudaError> {
        Ok(Pair { host: Pinned::zeroed(device, len)?, device: stream.zeroed(len)? })
    }

    /// Brings the first `len` elements to the device.
    fn send(&mut self, stream: &Stream, len: usize) -> Result<(), CudaError> {
        stream.copy_from_pinned(self.host.planned(0..len)?, self.device.planned_mut(0..len)?)
    }

    /// Has the first `len` elements brought to the host.
    fn fetch(&mut self, stream: &Stream, len: usize) -> Result<(), CudaError> {
        stream.copy_to_pinned(self.device.planned(0..len)?, self.host.planned_mut(0..len)?)
    }
}

/// Logits on the device, `[rows, pitch]`, of which the first `vocabulary` of a row are the model's.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a> {
    pub(super) values: Slice<'a, f32>,
    pub(super) rows: usize,
    pub(super) vocabulary: usize,
    pub(super) pitch: usize,
}

/// All that a row may not choose.
fn banned<'a>(row: &'a SampleRow<'_>) -> impl Iterator<Item = TokenId> + 'a {
    row.params.banned_token_ids.iter().chain(row.banned).copied()
}

/// Whether nothing but bans and the repetition penalty changes the row's logits.
fn is_plain(row: &SampleRow<'_>) -> bool {
    let params = row.params;
    params.frequency_penalty == 0.0
        && params.presence_penalty == 0.0
        && params.logit_bias.is_empty()
        && params.allowed_token_ids.is_none()
        && row.processor.is_none()
}

/// The sampler of one model.
pub(super) struct Sampler {
    sample: Sample,
    logprobs: Logprobs,
    params: Pair<RowParams>,
    banned: Pair<u32>,
    seen: Pair<u32>,
    tokens: Pair<u32>,
    scores: Pair<RowLogprobs>,
    targets: Pair<LogprobsRow>,
    partials: Buffer<u64>,
    counters: Buffer<u32>,
    rows: usize,
    seen_words: usize,
    vocabulary: usize,
    /// Of each row that was given to the stream and not yet asked for: whether it wants log-probabilities.
    started: Vec<bool>,
}

impl Sampler {
    /// Bytes on the device for draws from up to `rows` rows of logits.
    pub(super) fn bytes(device: &Device, spec: &ModelSpec, rows: usize) -> u64 {
        Lengths::new(device, spec, rows).bytes() as u64
    }

    pub(super) fn new(device: &Device, stream: &Stream, spec: &ModelSpec, rows: usize) -> Result<Sampler, CudaError> {
        let lengths = Lengths::new(device, spec, rows);
        Ok(Sampler {
            sample: Sample::load(device)?,
            logprobs: Logprobs::load(device)?,
            params: Pair::new(device, stream, rows)?,
            banned: Pair::new(device, stream, BANNED)?,
            seen: Pair::new(device, stream, lengths.seen)?,
            tokens: Pair::new(device, stream, rows)?,
            scores: Pair::new(device, stream, rows)?,
            targets: Pair::new(device, stream, rows)?,
            partials: stream.zeroed(lengths.partials)?,
            counters: stream.zeroed(rows)?,
            rows,
            seen_words: seen_words(spec.vocab_size),
            vocabulary: spec.vocab_size,
            started: Vec::with_capacity(rows),
        })
    }

    /// The tokens that were drawn last, in the order of the rows.
    pub(super) fn draws(&self) -> Slice<'_, u32> {
        self.tokens.device.view()
    }

    /// Whether the kernels can draw for these rows.
    pub(super) fn takes(&self, rows: &[SampleRow<'_>]) -> bool {
        rows.len() <= self.rows
            && self.vocabulary <= MOST_VOCABULARY
            && rows.iter().map(|row| banned(row).count()).sum::<usize>() <= BANNED
            && rows.iter().all(|row| row.logprobs.is_none_or(|top| top <= MOST_TOP) && is_plain(row))
    }

    /// Whether draws were started and not finished.
    pub(super) fn is_started(&self) -> bool {
        !self.started.is_empty()
    }

    /// Gives draws for rows that it takes to the stream.
    pub(super) fn start(
        &mut self,
        stream: &Stream,
        logits: Logits<'_>,
        rows: &[SampleRow<'_>],
    ) -> Result<(), CudaError> {
        let count = rows.len();
        if count == 0 {
            return Ok(());
        }
        let (mut bans, mut sets) = (0, 0);
        for (index, row) in rows.iter().enumerate() {
            // Numbers of rows and of bans are small.
            let mut params = RowParams::new(row.params, row.logits_row as u32, row.position);
            if let Some(history) = row.history.filter(|_| row.params.repetition_penalty != 1.0) {
                let seen = history.seen();
                let words = &mut self.seen.host.as_mut_slice()?[sets * self.seen_words..][..self.seen_words];
                for (pair, word) in words.chunks_exact_mut(2).zip(seen.words()) {
                    pair.copy_from_slice(&[*word as u32, (word >> 32) as u32]);
                }
                params = params.with_seen(sets as u32, Insertion::None);
                sets += 1;
            }
            let own = banned(row).count();
            if own > 0 {
                let ids = &mut self.banned.host.as_mut_slice()?[bans..][..own];
                ids.iter_mut().zip(banned(row)).for_each(|(id, banned)| *id = banned.0);
                params = params.with_banned(bans as u32, own as u32);
                bans += own;
            }
            if let Some(top) = row.logprobs {
                params = params.with_logprobs(top as u32);
            }
            self.params.host.as_mut_slice()?[index] = params;
        }
        self.params.send(stream, count)?;
        self.seen.send(stream, sets * self.seen_words)?;
        self.banned.send(stream, bans)?;
        let shape = SampleShape {
            rows: count,
            logits_rows: logits.rows,
            vocabulary: logits.vocabulary,
            pitch: logits.pitch,
            seen_slots: self.rows,
        };
        let inputs = SampleInputs {
            rows: self.params.device.planned(0..count)?,
            logits: logits.values,
            banned: self.banned.device.view(),
        };
        let outputs = SampleOutputs {
            tokens: self.tokens.device.planned_mut(0..count)?,
            logprobs: self.scores.device.planned_mut(0..count)?,
            seen: self.seen.device.view_mut(),
            partials: self.partials.view_mut(),
            counters: self.counters.view_mut(),
        };
        self.sample.launch(stream, shape, inputs, outputs)?;
        self.tokens.fetch(stream, count)?;
        if rows.iter().any(|row| row.logprobs.is_some()) {
            self.scores.fetch(stream, count)?;
        }
        self.started.extend(rows.iter().map(|row| row.logprobs.is_some()));
        Ok(())
    }

    /// Waits for the draws that were started. None where none were.
    pub(super) fn finish(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, CudaError> {
        let started = std::mem::take(&mut self.started);
        let (tokens, scores) = (self.tokens.host.as_slice()?, self.scores.host.as_slice()?);
        let draw = |(index, wants): (usize, bool)| {
            let token = tokens[index];
            if token == NO_TOKEN {
                return Err(NotFinite.into());
            }
            let logprobs = if wants { Some(scores[index].token_logprobs()?) } else { None };
            Ok(Sampled { token: TokenId(token), logprobs })
        };
        Ok(started.into_iter().enumerate().map(draw).collect())
    }

    /// Puts tokens that were drawn elsewhere where the next step looks for them.
    pub(super) fn put(&mut self, stream: &Stream, drawn: &[Result<Sampled, SampleError>]) -> Result<(), CudaError> {
        let count = drawn.len().min(self.rows);
        for (word, drawn) in self.tokens.host.as_mut_slice()?.iter_mut().zip(drawn) {
            *word = drawn.as_ref().map_or(NO_TOKEN, |drawn| drawn.token.0);
        }
        self.tokens.send(stream, count)
    }

    /// Whether the kernel scores that many rows with that many best tokens.
    pub(super) fn scores(&self, rows: usize, top: usize) -> bool {
        rows <= self.rows && top <= MOST_TOP && self.vocabulary <= MOST_VOCABULARY
    }

    /// Log-probabilities of row `i`'s `targets[i]` and `top` best tokens, of sizes that it scores. Waits for them.
    pub(super) fn logprobs(
        &mut self,
        stream: &Stream,
        logits: Logits<'_>,
        targets: &[Option<TokenId>],
        top: usize,
    ) -> Result<Vec<Result<TokenLogprobs, NotFinite>>, CudaError> {
        let count = targets.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        for (index, (row, target)) in self.targets.host.as_mut_slice()?.iter_mut().zip(targets).enumerate() {
            *row = LogprobsRow::new(index as u32, *target, top as u32);
        }
        self.targets.send(stream, count)?;
        let shape =
            LogprobsShape { rows: count, logits_rows: logits.rows, vocabulary: logits.vocabulary, pitch: logits.pitch };
        let out = self.scores.device.planned_mut(0..count)?;
        self.logprobs.launch(stream, shape, self.targets.device.planned(0..count)?, logits.values, out)?;
        self.scores.fetch(stream, count)?;
        Ok(self.scores.host.as_slice()?.iter().take(count).map(RowLogprobs::token_logprobs).collect())
    }
}
