//! Sampling and log-probabilities on the device, and which rows fall back to the host.

use super::super::error::CudaError;
use super::super::kernels::sample::{
    LogitEdit, Logprobs, LogprobsRow, LogprobsShape, MAX_TOP, MAX_VOCABULARY, NO_TOKEN, RowLogprobs, RowParams, Sample,
    SampleInputs, SampleOutputs, SampleShape, SeenUpdate, set_words,
};
use super::super::{Buffer, Device, Pinned, Properties, Slice, Stream};
use super::logit_edits;
use crate::model::ModelSpec;
use crate::sampling::{NotFinite, SampleError, SampleRow, Sampled, SeenTokens, TokenLogprobs};
use crate::text::TokenId;

/// Capacity for logit edits per row. The rows of a launch share it, and one row alone can edit every token.
const EDITS_PER_ROW: usize = 512;
/// Token bitsets per row: seen and allowed tokens.
const SETS_PER_ROW: usize = 2;

/// Buffer lengths in elements.
struct Lengths {
    rows: usize,
    sets: usize,
    edits: usize,
    partials: usize,
}

impl Lengths {
    fn new(gpu: &Properties, spec: &ModelSpec, rows: usize) -> Lengths {
        Lengths {
            rows,
            sets: rows * SETS_PER_ROW * set_words(spec.vocab_size),
            edits: spec.vocab_size.max(rows * EDITS_PER_ROW),
            // A row is spread over several blocks as long as there is at most one block per SM in total.
            partials: rows.max(gpu.sm_count as usize),
        }
    }

    fn bytes(&self) -> usize {
        // Parameters, tokens, counters, log-probabilities and their rows; bitsets, edits, partial results.
        let row = size_of::<RowParams>() + 4 + 4 + size_of::<RowLogprobs>() + size_of::<LogprobsRow>();
        self.rows * row + 4 * self.sets + size_of::<LogitEdit>() * self.edits + 8 * self.partials
    }
}

/// A host buffer and a device buffer of the same length.
struct Pair<T> {
    host: Pinned<T>,
    device: Buffer<T>,
}

impl<T: bytemuck::Pod> Pair<T> {
    fn new(device: &Device, stream: &Stream, len: usize) -> Result<Pair<T>, CudaError> {
        Ok(Pair { host: Pinned::zeroed(device, len)?, device: stream.zeroed(len)? })
    }

    /// Uploads the first `len` elements.
    fn send(&mut self, stream: &Stream, len: usize) -> Result<(), CudaError> {
        stream.copy_from_pinned(self.host.planned(0..len)?, self.device.planned_mut(0..len)?)
    }

    /// Downloads the first `len` elements.
    fn fetch(&mut self, stream: &Stream, len: usize) -> Result<(), CudaError> {
        stream.copy_to_pinned(self.device.planned(0..len)?, self.host.planned_mut(0..len)?)
    }
}

/// Logits on the device, `[rows, pitch]`; the first `vocabulary` elements of a row are valid.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a> {
    pub(super) values: Slice<'a, f32>,
    pub(super) rows: usize,
    pub(super) vocabulary: usize,
    pub(super) pitch: usize,
}

/// A started sample.
enum Started {
    /// On the device.
    Device {
        /// Whether log-probabilities were requested.
        logprobs: bool,
    },
    /// On the host; `None` while it is not sampled.
    Host(Option<Result<Sampled, SampleError>>),
}

/// Host arrays shared by the rows of a launch, and how much of them is used.
struct Shared<'a> {
    edits: &'a mut [LogitEdit],
    changes_taken: usize,
    /// Two for each row that the kernel samples.
    sets: &'a mut [u32],
    sets_taken: usize,
    set_words: usize,
    vocabulary: usize,
    /// Edits of the current row.
    gathered: &'a mut Vec<LogitEdit>,
}

impl Shared<'_> {
    /// The row's kernel parameters, with its edits and bitsets added to the arrays. `None` if the kernel cannot sample
    /// the row.
    fn prepare(&mut self, row: &SampleRow<'_>) -> Option<RowParams> {
        let takes = row.processor.is_none()
            && row.logprobs.is_none_or(|top| top <= MAX_TOP)
            && logit_edits::gather(row, self.vocabulary, self.gathered)
            && self.gathered.len() <= self.edits.len() - self.changes_taken;
        if !takes {
            return None;
        }
        // Row and edit counts are small.
        let mut params = RowParams::new(row.params, row.logits_row as u32, row.position);
        if let Some(history) = row.history.filter(|_| row.params.repetition_penalty != 1.0) {
            params = params.with_seen(self.add_set(history.seen()), SeenUpdate::None);
        }
        if let Some(slot) = self.add_allowed(row) {
            params = params.with_allowed(slot);
        }
        let (first, count) = (self.changes_taken, self.gathered.len());
        if count > 0 {
            self.edits[first..][..count].copy_from_slice(self.gathered);
            self.changes_taken += count;
            params = params.with_changes(first as u32, count as u32);
        }
        Some(row.logprobs.map_or(params, |top| params.with_logprobs(top as u32)))
    }

    /// Stores the tokens allowed by the row's list and mask in a bitset, if it has either.
    fn add_allowed(&mut self, row: &SampleRow<'_>) -> Option<u32> {
        let list = row.params.allowed_token_ids.as_ref();
        if list.is_none() && row.allowed_mask.is_none() {
            return None;
        }
        let slot = self.next_slot();
        let words = self.set_mut(slot);
        words.fill(if list.is_none() { u32::MAX } else { 0 });
        for token in list.into_iter().flatten() {
            if let Some(word) = words.get_mut(token.0 as usize / 32) {
                *word |= 1 << (token.0 % 32);
            }
        }
        if let Some(mask) = row.allowed_mask {
            let mask = mask.iter().chain(std::iter::repeat(&0));
            words.iter_mut().zip(mask).for_each(|(word, mask)| *word &= mask);
        }
        Some(slot)
    }

    /// Stores a bitset in the next slot and returns its index.
    fn add_set(&mut self, tokens: &SeenTokens) -> u32 {
        let slot = self.next_slot();
        for (pair, word) in self.set_mut(slot).chunks_exact_mut(2).zip(tokens.words()) {
            pair.copy_from_slice(&[*word as u32, (word >> 32) as u32]);
        }
        slot
    }

    fn next_slot(&mut self) -> u32 {
        self.sets_taken += 1;
        (self.sets_taken - 1) as u32
    }

    /// Words of a slot: bit `t % 32` of word `t / 32` is token `t`.
    fn set_mut(&mut self, slot: u32) -> &mut [u32] {
        &mut self.sets[slot as usize * self.set_words..][..self.set_words]
    }
}

/// The sampler of one model.
pub(super) struct Sampler {
    sample: Sample,
    logprobs: Logprobs,
    params: Pair<RowParams>,
    edits: Pair<LogitEdit>,
    sets: Pair<u32>,
    tokens: Pair<u32>,
    /// Tokens sampled on the host, on their way to the device.
    put: Pinned<u32>,
    scores: Pair<RowLogprobs>,
    targets: Pair<LogprobsRow>,
    partials: Buffer<u64>,
    counters: Buffer<u32>,
    rows: usize,
    set_words: usize,
    vocabulary: usize,
    started: Vec<Started>,
    /// Edits of the current row.
    gathered: Vec<LogitEdit>,
}

impl Sampler {
    /// Device bytes for sampling up to `rows` rows of logits.
    pub(super) fn bytes(gpu: &Properties, spec: &ModelSpec, rows: usize) -> u64 {
        Lengths::new(gpu, spec, rows).bytes() as u64
    }

    pub(super) fn new(device: &Device, stream: &Stream, spec: &ModelSpec, rows: usize) -> Result<Sampler, CudaError> {
        let lengths = Lengths::new(device.properties(), spec, rows);
        Ok(Sampler {
            sample: Sample::load(device)?,
            logprobs: Logprobs::load(device)?,
            params: Pair::new(device, stream, rows)?,
            edits: Pair::new(device, stream, lengths.edits)?,
            sets: Pair::new(device, stream, lengths.sets)?,
            tokens: Pair::new(device, stream, rows)?,
            put: Pinned::zeroed(device, rows)?,
            scores: Pair::new(device, stream, rows)?,
            targets: Pair::new(device, stream, rows)?,
            partials: stream.zeroed(lengths.partials)?,
            counters: stream.zeroed(rows)?,
            rows,
            set_words: set_words(spec.vocab_size),
            vocabulary: spec.vocab_size,
            started: Vec::with_capacity(rows),
            gathered: Vec::new(),
        })
    }

    /// Tokens of the last sampling in row order.
    pub(super) fn sampled_tokens(&self) -> Slice<'_, u32> {
        self.tokens.device.view()
    }

    /// Returns `true` if sampling is in flight.
    pub(super) fn is_started(&self) -> bool {
        !self.started.is_empty()
    }

    /// Starts sampling and returns the indices, ascending, of rows that the kernel cannot sample. The caller samples
    /// those and [puts](Sampler::put) the results beside the others.
    pub(super) fn start(
        &mut self,
        stream: &Stream,
        logits: Logits<'_>,
        rows: &[SampleRow<'_>],
    ) -> Result<Vec<usize>, CudaError> {
        let mut shared = Shared {
            edits: self.edits.host.as_mut_slice()?,
            changes_taken: 0,
            sets: self.sets.host.as_mut_slice()?,
            sets_taken: 0,
            set_words: self.set_words,
            vocabulary: self.vocabulary,
            gathered: &mut self.gathered,
        };
        let params = self.params.host.as_mut_slice()?;
        let (mut samples, mut on_host) = (Vec::with_capacity(rows.len()), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            let place = params.get_mut(index).filter(|_| self.vocabulary <= MAX_VOCABULARY);
            let prepared = place.and_then(|place| {
                let prepared = shared.prepare(row);
                *place = prepared.unwrap_or(RowParams::SKIP);
                prepared
            });
            if prepared.is_some() {
                samples.push(Started::Device { logprobs: row.logprobs.is_some() });
            } else {
                samples.push(Started::Host(None));
                on_host.push(index);
            }
        }
        if on_host.len() < rows.len() {
            let (count, edits, sets) = (rows.len().min(self.rows), shared.changes_taken, shared.sets_taken);
            self.params.send(stream, count)?;
            self.edits.send(stream, edits)?;
            self.sets.send(stream, sets * self.set_words)?;
            self.launch(stream, logits, count)?;
            if samples.iter().any(|started| matches!(started, Started::Device { logprobs: true })) {
                self.scores.fetch(stream, count)?;
            }
        }
        self.started = samples;
        Ok(on_host)
    }

    /// Samples the first `count` prepared rows and downloads their tokens.
    fn launch(&mut self, stream: &Stream, logits: Logits<'_>, count: usize) -> Result<(), CudaError> {
        let shape = SampleShape {
            rows: count,
            logits_rows: logits.rows,
            vocabulary: logits.vocabulary,
            pitch: logits.pitch,
            set_slots: self.rows * SETS_PER_ROW,
        };
        let inputs = SampleInputs {
            rows: self.params.device.planned(0..count)?,
            logits: logits.values,
            edits: self.edits.device.view(),
        };
        let outputs = SampleOutputs {
            tokens: self.tokens.device.planned_mut(0..count)?,
            logprobs: self.scores.device.planned_mut(0..count)?,
            sets: self.sets.device.view_mut(),
            partials: self.partials.view_mut(),
            counters: self.counters.view_mut(),
        };
        self.sample.launch(stream, shape, inputs, outputs)?;
        self.tokens.fetch(stream, count)
    }

    /// Takes the results of the rows that [`Sampler::start`] left to the host, in order, and stores their tokens where
    /// the next step reads them.
    pub(super) fn put(
        &mut self,
        stream: &Stream,
        on_host: &[usize],
        sampled: Vec<Result<Sampled, SampleError>>,
    ) -> Result<(), CudaError> {
        let words = self.put.as_mut_slice()?;
        for (&index, sampled) in on_host.iter().zip(sampled) {
            if let Some(word) = words.get_mut(index) {
                *word = sampled.as_ref().map_or(NO_TOKEN, |sampled| sampled.token.0);
            }
            if let Some(started) = self.started.get_mut(index) {
                *started = Started::Host(Some(sampled));
            }
        }
        // Not a row of this launch.
        let on_device = &on_host[..on_host.partition_point(|index| *index < self.rows)];
        for run in on_device.chunk_by(|index, next| index + 1 == *next) {
            let range = run[0]..run[0] + run.len();
            stream.copy_from_pinned(self.put.planned(range.clone())?, self.tokens.device.planned_mut(range)?)?;
        }
        Ok(())
    }

    /// The started samples in row order, once finished. Empty if none were started.
    pub(super) fn finish(&mut self) -> Result<Vec<Option<Result<Sampled, SampleError>>>, CudaError> {
        let started = std::mem::take(&mut self.started);
        let (tokens, scores) = (self.tokens.host.as_slice()?, self.scores.host.as_slice()?);
        let result = |(index, started)| match started {
            Started::Host(sampled) => sampled,
            Started::Device { logprobs } => Some(device_sample(tokens[index], logprobs.then_some(&scores[index]))),
        };
        Ok(started.into_iter().enumerate().map(result).collect())
    }

    /// Returns `true` if the kernel scores this many rows with this many top tokens.
    pub(super) fn scores(&self, rows: usize, top: usize) -> bool {
        rows <= self.rows && top <= MAX_TOP && self.vocabulary <= MAX_VOCABULARY
    }

    /// Log-probabilities of row `i`'s `targets[i]` and `top` most likely tokens. Waits for them.
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

/// A sample as the kernel wrote it.
fn device_sample(token: u32, scores: Option<&RowLogprobs>) -> Result<Sampled, SampleError> {
    if token == NO_TOKEN {
        return Err(NotFinite.into());
    }
    let logprobs = scores.map(RowLogprobs::token_logprobs).transpose()?;
    Ok(Sampled { token: TokenId(token), logprobs })
}
