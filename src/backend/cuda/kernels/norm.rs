//! `kernels/norm.cu`: residual addition and normalisation of rows.

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::{BiasTerm, Check, Element, Operand, VECTOR};

const CHECK: Check = Check { kernel: "norm" };
/// kMostThreads and kVectors of the kernel.
const MOST_THREADS: usize = 512;
const VECTORS: usize = 4;
/// Two sums, one float for each warp.
const SHARED_BYTES: u32 = 2 * (MOST_THREADS as u32 / 32) * 4;

/// The longest row that a block holds in its registers.
pub const MOST_WIDTH: usize = MOST_THREADS * VECTORS * VECTOR;

/// How a row is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormForm {
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias`, with the biased variance.
    Layer,
    /// `x / sqrt(mean(x²) + epsilon) * weight`.
    Rms,
}

/// Normalisation of rows of `T` in one form.
pub struct Norm<T> {
    kernel: Kernel,
    form: NormForm,
    element: PhantomData<T>,
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

impl NormShape {
    /// With an addition two rows are read and two written for each, otherwise one and one; weight and bias once.
    /// FLOPs per element: 1 to add, 1 for the mean and 1 to centre (LayerNorm), 2 for the squares, 2 to scale, 1 for
    /// the bias.
    pub fn work(&self, form: NormForm, addition: Addition, bias: BiasTerm) -> Work {
        let matrix = (self.rows * self.width) as u64;
        let vector = (self.width * 2) as u64;
        let matrices = if addition == Addition::Delta { 2 } else { 1 };
        let vectors = if bias == BiasTerm::Present { 2 } else { 1 };
        let centring = if form == NormForm::Layer { 2 } else { 0 };
        Work {
            bytes_read: matrices * matrix * 2 + vectors * vector,
            bytes_written: matrices * matrix * 2,
            flops: (matrices - 1 + centring + 4 + vectors - 1) * matrix,
        }
    }
}

/// Whether a norm adds something to its rows first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// The rows are normalised as they are.
    None,
    /// A delta is added, and the sum written.
    Delta,
}

/// Weights of a norm, each `[width]`.
#[derive(Clone, Copy)]
pub struct NormWeights<'a, T> {
    /// Factors.
    pub weight: Slice<'a, T>,
    /// Terms; LayerNorm alone has them.
    pub bias: Option<Slice<'a, T>>,
}

impl<T: Element> Norm<T> {
    /// Loads the kernel.
    ///
    /// # Errors
    /// Those of [`Device::module`].
    pub fn load(device: &Device, form: NormForm) -> Result<Norm<T>, CudaError> {
        let name = match form {
            NormForm::Layer => "layer",
            NormForm::Rms => "rms",
        };
        let kernel = device.module("norm")?.kernel(&format!("norm_{name}_{}", T::NAME))?;
        Ok(Norm { kernel, form, element: PhantomData })
    }

    /// `out[r, :] = norm(hidden[r, :])`, both `[rows, width]`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, no rows, a width that is no multiple of 8 or
    /// above [`MOST_WIDTH`], a bias for RMSNorm, or a buffer that is not aligned to 16 bytes.
    pub fn normalise(
        &self,
        stream: &Stream,
        shape: NormShape,
        hidden: Slice<'_, T>,
        weights: NormWeights<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let launch = self.check(shape, weights, hidden.into(), &out)?;
        let sum = Arguments::new().input(hidden).optional_input(None::<Slice<'_, T>>);
        let arguments = self.finish(sum, shape, weights, hidden, &out)?;
        // SAFETY: the arguments are those of the norm kernels, checked to have the lengths that they index; without a
        // delta, `sum` is not touched.
        unsafe { stream.launch(&self.kernel, &launch, &arguments) }
    }

    /// `residual[r, :] += delta[r, :]`, rounded to `T`, then `out[r, :] = norm(residual[r, :])`, all `[rows, width]`.
    ///
    /// # Errors
    /// As for [`Norm::normalise`].
    pub fn add_and_normalise(
        &self,
        stream: &Stream,
        shape: NormShape,
        residual: SliceMut<'_, T>,
        delta: Slice<'_, T>,
        weights: NormWeights<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let launch = self.check(shape, weights, (&residual).into(), &out)?;
        CHECK.matrix("delta", delta.into(), shape.rows, shape.width)?;
        let sum = Arguments::new().input(residual.as_slice()).input(delta);
        let arguments = self.finish(sum, shape, weights, residual.as_slice(), &out)?;
        // SAFETY: as above; `sum` is `residual` itself, borrowed to be written, and each thread writes the elements
        // that it alone has read.
        unsafe { stream.launch(&self.kernel, &launch, &arguments) }
    }

    fn check(
        &self,
        shape: NormShape,
        weights: NormWeights<'_, T>,
        hidden: Operand,
        out: &SliceMut<'_, T>,
    ) -> Result<Launch, CudaError> {
        let NormShape { rows, width, .. } = shape;
        let row_count = CHECK.size("rows", rows, i32::MAX as usize)?;
        CHECK.width("width", width, MOST_WIDTH)?;
        CHECK.matrix("hidden", hidden, rows, width)?;
        CHECK.matrix("out", out.into(), rows, width)?;
        CHECK.matrix("weight", weights.weight.into(), 1, width)?;
        if let Some(bias) = weights.bias {
            if self.form == NormForm::Rms {
                return CHECK.fail("bias", "given", "none for RMSNorm");
            }
            CHECK.matrix("bias", bias.into(), 1, width)?;
        }
        // At most MOST_THREADS, as the width is at most MOST_WIDTH.
        let threads = width.div_ceil(VECTOR * VECTORS).next_multiple_of(32) as u32;
        let mut launch = Launch::linear(row_count, threads);
        launch.shared_bytes = SHARED_BYTES;
        Ok(launch)
    }

    fn finish(
        &self,
        sum: Arguments,
        shape: NormShape,
        weights: NormWeights<'_, T>,
        written: Slice<'_, T>,
        out: &SliceMut<'_, T>,
    ) -> Result<Arguments, CudaError> {
        let width = CHECK.width("width", shape.width, MOST_WIDTH)?;
        let arguments = sum.input(weights.weight).optional_input(weights.bias).input(written);
        Ok(arguments.output(out).scalar(width).scalar(shape.epsilon))
    }
}
