//! Embedding and norm.

use crate::backend::cuda::kernels::Element;
use crate::backend::cuda::kernels::embed::{Embed, EmbedShape};
use crate::backend::cuda::kernels::norm::{Norm, NormShape, NormVariant, NormWeights};
use crate::backend::cuda::{Buffer, CudaError, Stream};

use super::super::timer::Launches;
use super::{Filler, set_of};

/// Rows of one table, by random ids: a set of ids for each set, since the table itself outgrows the cache.
pub struct Embedding<T> {
    kernel: Embed<T>,
    shape: EmbedShape,
    table: Buffer<T>,
    sets: Vec<(Buffer<u32>, Buffer<T>)>,
}

impl<T: Element> Embedding<T> {
    pub fn new(filler: &Filler<T>, shape: EmbedShape, sets: usize) -> Result<Embedding<T>, CudaError> {
        let EmbedShape { rows, vocabulary, width } = shape;
        let kernel = Embed::load(filler.stream.device())?;
        let table = filler.filled(vocabulary * width, 0, 1, 0.0, super::spread::WEIGHTS)?;
        let set = |set: usize| {
            // A step that shares no factor with the table's rows meets each of them once before any twice.
            let ids: Vec<u32> =
                (0..rows).map(|row| (((set * rows + row) as u64 * 2_654_435_761) % vocabulary as u64) as u32).collect();
            Ok((filler.stream.upload(&ids)?, filler.stream.zeroed::<T>(rows * width)?))
        };
        Ok(Embedding { kernel, shape, table, sets: (0..sets).map(set).collect::<Result<_, CudaError>>()? })
    }
}

impl<T: Element> Launches for Embedding<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some((ids, out)) = set_of(&mut self.sets, set) else { return Ok(()) };
        self.kernel.gather(stream, self.shape, ids.view(), None, self.table.view(), out.view_mut())
    }
}

/// A norm.
pub struct Norms<T> {
    kernel: Norm<T>,
    shape: NormShape,
    weight: Buffer<T>,
    bias: Buffer<T>,
    sets: Vec<(Buffer<T>, Buffer<T>)>,
}

impl<T: Element> Norms<T> {
    pub fn new(filler: &Filler<T>, shape: NormShape, variant: NormVariant, sets: usize) -> Result<Norms<T>, CudaError> {
        let (stream, elements) = (&filler.stream, shape.rows * shape.pitch());
        let set = |set| Ok((filler.activations(elements, set, 0)?, stream.zeroed::<T>(elements)?));
        Ok(Norms {
            kernel: Norm::load(stream.device(), variant)?,
            shape,
            weight: filler.filled(shape.pitch(), 0, 1, 1.0, 0.1)?,
            bias: filler.filled(shape.pitch(), 0, 2, 0.0, super::spread::BIASES)?,
            sets: (0..sets).map(set).collect::<Result<_, CudaError>>()?,
        })
    }
}

impl<T: Element> Launches for Norms<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Some((hidden, out)) = set_of(&mut self.sets, set) else { return Ok(()) };
        let weights = NormWeights { weight: self.weight.view(), bias: Some(self.bias.view()) };
        self.kernel.normalise(stream, self.shape, hidden.view(), weights, out.view_mut())
    }
}
