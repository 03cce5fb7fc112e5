//! `kernels/norm.cu`: normalisation of rows.

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::constants::norm as constants;
use super::{BiasTerm, Check, Element, VECTOR};

const CHECK: Check = Check { kernel: "norm" };
const MAX_THREADS: usize = constants::NORM_MAX_THREADS as usize;
/// Of a thread.
const VECTORS: usize = constants::NORM_VECTORS as usize;
/// Two sums, one float for each warp.
const SHARED_BYTES: u32 = 2 * (MAX_THREADS as u32 / 32) * 4;

/// The longest row, padding included, that a block holds in its registers.
pub const MAX_WIDTH: usize = MAX_THREADS * VECTORS * VECTOR;

/// How a row is normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormVariant {
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias`, with the biased variance.
    Layer,
    /// `x / sqrt(mean(x²) + epsilon) * weight`.
    Rms,
}

impl NormVariant {
    /// The kernel that does it.
    pub fn kernel_name(self, element: &str) -> String {
        format!("norm_{}_{element}", self.name())
    }

    /// Its name in the names of kernels.
    pub(super) fn name(self) -> &'static str {
        match self {
            NormVariant::Layer => "layer",
            NormVariant::Rms => "rms",
        }
    }
}

/// Normalisation of rows of `T` in one variant.
pub struct Norm<T> {
    kernel: Kernel,
    variant: NormVariant,
    element: PhantomData<T>,
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    /// Rows of the output.
    pub rows: usize,
    /// Elements of a row that are normalised. Rows lie [`NormShape::pitch`] elements apart; what is between is padding,
    /// zero in every input.
    pub width: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

impl NormShape {
    /// Elements from one row to the next: the width, up to a whole number of 16-byte vectors.
    pub fn pitch(&self) -> usize {
        self.width.next_multiple_of(VECTOR)
    }

    /// Rows are read and written once, and so are weight and bias read. Rows that are gathered have their number read
    /// too, 4 bytes each, which is not counted. FLOPs per element: 1 for the mean and 1 to centre (LayerNorm), 2 for
    /// the squares, 2 to scale, 1 for the bias.
    pub fn work(&self, variant: NormVariant, bias: BiasTerm) -> Work {
        let matrix = (self.rows * self.pitch()) as u64;
        let vector = (self.pitch() * 2) as u64;
        let vectors = if bias == BiasTerm::Present { 2 } else { 1 };
        let centring = if variant == NormVariant::Layer { 2 } else { 0 };
        Work {
            bytes_read: matrix * 2 + vectors * vector,
            bytes_written: matrix * 2,
            flops: (centring + 4 + vectors - 1) * matrix,
        }
    }
}

/// Weights of a norm, each `[pitch]`.
#[derive(Clone, Copy)]
pub struct NormWeights<'a, T> {
    /// Factors.
    pub weight: Slice<'a, T>,
    /// Terms; LayerNorm alone has them.
    pub bias: Option<Slice<'a, T>>,
}

impl<T: Element> NormWeights<'_, T> {
    pub(super) fn check(&self, check: Check, variant: NormVariant, pitch: usize) -> Result<(), CudaError> {
        check.matrix("weight", self.weight.into(), 1, pitch)?;
        if let Some(bias) = self.bias {
            if variant == NormVariant::Rms {
                return check.fail("bias", "given", "none for RMSNorm");
            }
            check.matrix("bias", bias.into(), 1, pitch)?;
        }
        Ok(())
    }
}

impl<T: Element> Norm<T> {
    /// Loads the kernel.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device, variant: NormVariant) -> Result<Norm<T>, CudaError> {
        let kernel = device.module("norm")?.kernel(&variant.kernel_name(T::NAME))?;
        Ok(Norm { kernel, variant, element: PhantomData })
    }

    /// `out[r, :] = norm(hidden[r, :])`, both `[rows, pitch]`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, no rows, a width of 0 or a pitch above
    /// [`MAX_WIDTH`], a bias for RMSNorm, or a buffer that is not aligned to 16 bytes.
    pub fn normalise(
        &self,
        stream: &Stream,
        shape: NormShape,
        hidden: Slice<'_, T>,
        weights: NormWeights<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let checked = self.check(shape, weights, &out)?;
        CHECK.matrix("hidden", hidden.into(), shape.rows, shape.pitch())?;
        let rows = Rows { hidden, gather: None };
        // SAFETY: `check` and the line above compared the lengths.
        unsafe { self.launch(stream, checked, rows, weights, out) }
    }

    /// `out[r, :] = norm(hidden[gather[r], :])`, with `out` `[rows, pitch]` and `hidden` of any number of rows.
    ///
    /// # Errors
    /// As for [`Norm::normalise`].
    ///
    /// # Safety
    /// Each of the `rows` numbers in `gather` is that of a row of `hidden` when the launch runs.
    pub unsafe fn gather_and_normalise(
        &self,
        stream: &Stream,
        shape: NormShape,
        hidden: Slice<'_, T>,
        gather: Slice<'_, u32>,
        weights: NormWeights<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let checked = self.check(shape, weights, &out)?;
        CHECK.matrix("hidden", hidden.into(), hidden.len() / shape.pitch(), shape.pitch())?;
        if gather.len() != shape.rows {
            return CHECK.fail("gather", gather.len(), format_args!("{} elements", shape.rows));
        }
        let rows = Rows { hidden, gather: Some(gather) };
        // SAFETY: as above; the numbers in `gather` are the caller's promise.
        unsafe { self.launch(stream, checked, rows, weights, out) }
    }

    fn check(
        &self,
        shape: NormShape,
        weights: NormWeights<'_, T>,
        out: &SliceMut<'_, T>,
    ) -> Result<Checked, CudaError> {
        let pitch = shape.pitch();
        let rows = CHECK.size("rows", shape.rows, i32::MAX as usize)?;
        let width = CHECK.size("width", shape.width, MAX_WIDTH)?;
        CHECK.matrix("out", out.into(), shape.rows, pitch)?;
        weights.check(CHECK, self.variant, pitch)?;
        // At most MAX_THREADS, as the pitch is at most MAX_WIDTH.
        let threads = pitch.div_ceil(VECTOR * VECTORS).next_multiple_of(32) as u32;
        let mut launch = Launch::linear(rows, threads);
        launch.shared_bytes = SHARED_BYTES;
        // The pitch is below `width` + VECTOR.
        Ok(Checked { launch, pitch: pitch as u32, width, epsilon: shape.epsilon })
    }

    /// # Safety
    /// The buffers have the lengths of the shape that was checked, and `rows.gather` names rows of `rows.hidden`.
    unsafe fn launch(
        &self,
        stream: &Stream,
        checked: Checked,
        rows: Rows<'_, T>,
        weights: NormWeights<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let arguments = Arguments::new()
            .input(rows.hidden)
            .optional_input(rows.gather)
            .input(weights.weight)
            .optional_input(weights.bias)
            .output(&out)
            .scalar(checked.pitch)
            .scalar(checked.width)
            .scalar(checked.epsilon);
        // SAFETY: the arguments are those of the norm kernels; their lengths are the caller's promise.
        unsafe { stream.launch(&self.kernel, &checked.launch, &arguments) }
    }
}

/// A shape as the kernel takes it.
struct Checked {
    launch: Launch,
    pitch: u32,
    width: u32,
    epsilon: f32,
}

/// What is normalised.
struct Rows<'a, T> {
    hidden: Slice<'a, T>,
    gather: Option<Slice<'a, u32>>,
}
