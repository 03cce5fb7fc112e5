//! Inputs of a case in device memory, random and in several sets, and its launch on each of them.
//!
//! Set `s` of a case with seed `S` holds, from [`Uniform`] streams `S + 16 s + 0, 1, 2 …`: activations (or queries),
//! weights (keys), bias (values), residual. Peers draw the same bits from the same streams (`tools/peers/`).

mod attention;
mod linear;
mod rows;
mod sampling;

use crate::backend::cuda::kernels::Element;
use crate::backend::cuda::kernels::random::{Random, RandomShape};
use crate::backend::cuda::layout::RowOrder;
use crate::backend::cuda::{Buffer, CudaError, SliceMut, Stream};
use crate::model::Uniform;

use super::case::{Case, What};
use super::timer::Launches;

/// Streams of a set.
const STREAMS_OF_SET: u32 = 16;

/// How random inputs are spread.
pub(super) mod spread {
    /// Activations, queries, keys, values, the residual stream: about as a norm leaves them.
    pub const ACTIVATIONS: f32 = 1.0;
    /// Matrices: a standard deviation of 0.02.
    pub const WEIGHTS: f32 = 0.035;
    /// Biases.
    pub const BIASES: f32 = 0.02;
}

/// How many sets of `bytes` each are more than four times the L2, at least 1.
pub(super) fn sets_past_cache(bytes: u64, l2_bytes: u64) -> usize {
    (4 * l2_bytes).div_ceil(bytes.max(1)).max(1) as usize
}

impl Case {
    /// Allocates and fills `sets` sets of its inputs.
    ///
    /// # Errors
    /// Those of the device; out of memory is one.
    pub fn prepare<T: Element>(&self, stream: &Stream, sets: usize, seed: u32) -> Result<Box<dyn Launches>, CudaError> {
        let filler = Filler::<T>::new(stream, seed)?;
        let launches: Box<dyn Launches> = match &self.what {
            What::Embed(shape) => Box::new(rows::Embedding::new(&filler, *shape, sets)?),
            What::Norm(shape, variant) => Box::new(rows::Norms::new(&filler, *shape, *variant, sets)?),
            What::Qkv(shape, bias) => Box::new(linear::Qkv::new(&filler, *shape, *bias, sets)?),
            What::Product(_, epilogue, shape, bias) => {
                Box::new(linear::Layer::new(&filler, *epilogue, *shape, *bias, sets)?)
            }
            What::NormedProduct(norm, variant, shape, bias) => {
                Box::new(linear::Normed::new(&filler, *norm, *variant, (*shape, *bias), sets)?)
            }
            What::Head(shape) => Box::new(linear::Logits::new(&filler, *shape, sets)?),
            What::Decode { shape, variant, .. } => {
                Box::new(attention::Decode::new(&filler, self, *shape, *variant, sets)?)
            }
            What::Prefill { shape, .. } => Box::new(attention::Prefill::new(&filler, self, *shape, sets)?),
            What::OrderedDecode { shape, .. } | What::OrderedPrefill { shape, .. } => {
                Box::new(attention::Ordered::new(&filler, self, *shape, sets)?)
            }
            What::Sample { rows, vocabulary, choice } => {
                Box::new(sampling::Draws::new(stream, *rows, *vocabulary, *choice, sets, seed)?)
            }
            What::Logprobs { rows, vocabulary } => {
                Box::new(sampling::Scores::new(stream, *rows, *vocabulary, sets, seed)?)
            }
        };
        filler.settle()?;
        Ok(launches)
    }
}

pub(super) use linear::Layer;

/// Makes random buffers.
pub(super) struct Filler<T> {
    stream: Stream,
    random: Random<T>,
    seed: u32,
}

impl<T: Element> Filler<T> {
    /// From the streams of `seed`.
    pub(super) fn new(stream: &Stream, seed: u32) -> Result<Filler<T>, CudaError> {
        Ok(Filler { stream: stream.clone(), random: Random::load(stream.device())?, seed })
    }

    /// Waits until all is filled: products ask for their weights before they wait for the kernel before them, since no
    /// kernel of a model writes weights.
    pub(super) fn settle(&self) -> Result<(), CudaError> {
        self.stream.synchronize()
    }

    /// `len` elements in `centre ± range`, from stream number `operand` of a set.
    fn filled(&self, len: usize, set: usize, operand: u32, centre: f32, range: f32) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.stream.alloc::<T>(len)?;
        self.fill(buffer.view_mut(), set, operand, centre, range)?;
        Ok(buffer)
    }

    fn fill(&self, out: SliceMut<'_, T>, set: usize, operand: u32, centre: f32, range: f32) -> Result<(), CudaError> {
        let seed = self.seed.wrapping_add(set as u32 * STREAMS_OF_SET + operand);
        let shape = RandomShape::dense(1, out.len());
        self.random.fill(&self.stream, shape, RowOrder::Natural, Uniform { seed, centre, range }, out)
    }

    /// Activations.
    pub(super) fn activations(&self, len: usize, set: usize, operand: u32) -> Result<Buffer<T>, CudaError> {
        self.filled(len, set, operand, 0.0, spread::ACTIVATIONS)
    }
}

/// One of the sets, whatever number is asked for.
fn set_of<S>(sets: &mut [S], set: usize) -> Option<&mut S> {
    let count = sets.len().max(1);
    sets.get_mut(set % count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_outgrow_the_cache() {
        let l2 = 50 << 20;
        assert_eq!(sets_past_cache(302 << 20, l2), 1);
        assert_eq!(sets_past_cache(50 << 20, l2), 4);
        assert_eq!(sets_past_cache(1 << 20, l2), 200);
        assert_eq!(sets_past_cache(0, 0), 1);
    }
}
