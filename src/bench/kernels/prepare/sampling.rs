//! Draws and log-probabilities.

use crate::backend::cuda::kernels::sample::{
    LogitEdit, Logprobs, LogprobsRow, LogprobsShape, RowLogprobs, RowParams, Sample, SampleInputs, SampleOutputs,
    SampleShape,
};
use crate::backend::cuda::layout::padded;
use crate::backend::cuda::{Buffer, CudaError, Stream};
use crate::model::Uniform;

use super::super::case::{Choice, logprobs_rows, logprobs_shape, sample_shape};
use super::super::timer::Launches;
use super::STREAMS_OF_SET;

/// Logits of `rows` rows: even over 16 natural units, a few tokens far above the rest.
fn logits(stream: &Stream, rows: usize, vocabulary: usize, set: usize, seed: u32) -> Result<Buffer<f32>, CudaError> {
    let pitch = padded(vocabulary);
    let uniform = Uniform { seed: seed.wrapping_add(set as u32 * STREAMS_OF_SET), centre: 0.0, range: 8.0 };
    let value = |index: usize| match index % pitch {
        column if column < vocabulary => {
            let value = uniform.value(index as u32);
            if column % 9973 == 17 { value + 10.0 } else { value }
        }
        _ => f32::NEG_INFINITY,
    };
    stream.upload(&(0..rows * pitch).map(value).collect::<Vec<_>>())
}

/// A token for each row.
pub struct Draws {
    kernel: Sample,
    shape: SampleShape,
    rows: Buffer<RowParams>,
    edits: Buffer<LogitEdit>,
    tokens: Buffer<u32>,
    logprobs: Buffer<RowLogprobs>,
    bitsets: Buffer<u32>,
    partials: Buffer<u64>,
    counters: Buffer<u32>,
    sets: Vec<Buffer<f32>>,
}

impl Draws {
    pub fn new(
        stream: &Stream,
        rows: usize,
        vocabulary: usize,
        choice: Choice,
        sets: usize,
        seed: u32,
    ) -> Result<Draws, CudaError> {
        let kernel = Sample::load(stream.device())?;
        let shape = sample_shape(rows, vocabulary);
        Ok(Draws {
            shape,
            rows: stream.upload(&choice.rows(rows))?,
            edits: stream.zeroed(0)?,
            tokens: stream.zeroed(rows)?,
            logprobs: stream.zeroed(rows)?,
            bitsets: stream.zeroed(0)?,
            partials: stream.zeroed(kernel.partials(rows, vocabulary))?,
            counters: stream.zeroed(rows)?,
            sets: (0..sets).map(|set| logits(stream, rows, vocabulary, set, seed)).collect::<Result<_, _>>()?,
            kernel,
        })
    }
}

impl Launches for Draws {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some(logits) = self.sets.get(set % self.sets.len().max(1)) else { return Ok(()) };
        let inputs = SampleInputs { rows: self.rows.view(), logits: logits.view(), edits: self.edits.view() };
        let outputs = SampleOutputs {
            tokens: self.tokens.view_mut(),
            logprobs: self.logprobs.view_mut(),
            sets: self.bitsets.view_mut(),
            partials: self.partials.view_mut(),
            counters: self.counters.view_mut(),
        };
        self.kernel.launch(stream, self.shape, inputs, outputs)
    }
}

/// Log-probabilities of each row.
pub struct Scores {
    kernel: Logprobs,
    shape: LogprobsShape,
    rows: Buffer<LogprobsRow>,
    out: Buffer<RowLogprobs>,
    sets: Vec<Buffer<f32>>,
}

impl Scores {
    pub fn new(stream: &Stream, rows: usize, vocabulary: usize, sets: usize, seed: u32) -> Result<Scores, CudaError> {
        Ok(Scores {
            kernel: Logprobs::load(stream.device())?,
            shape: logprobs_shape(rows, vocabulary),
            rows: stream.upload(&logprobs_rows(rows, vocabulary))?,
            out: stream.zeroed(rows)?,
            sets: (0..sets).map(|set| logits(stream, rows, vocabulary, set, seed)).collect::<Result<_, _>>()?,
        })
    }
}

impl Launches for Scores {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some(logits) = self.sets.get(set % self.sets.len().max(1)) else { return Ok(()) };
        self.kernel.launch(stream, self.shape, self.rows.view(), logits.view(), self.out.view_mut())
    }
}
