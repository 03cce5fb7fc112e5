//! `kernels/gemv_normed.cu`: one or two rows, normalised and multiplied with a weight matrix in one launch. What it gives
//! has the bits of [`Norm`](super::norm::Norm) followed by [`gemv`](super::gemv).

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::switches::Algorithms;
use super::super::work::Work;
use super::constants;
use super::gemv::Tile;
use super::norm::{NormForm, NormWeights};
use super::product::{BIAS_ROPE_KV, Epilogue, LOGITS, ProductShape, QkvOutputs, QkvRows, QkvShape, Sizes};
use super::{Check, Element, VECTOR, WeightMatrix};
use crate::backend::Arithmetic;

const CHECK: Check = Check { kernel: "gemv_normed" };
const THREADS: u32 = constants::gemv::THREADS;
/// Of a thread: a row is held by the block's registers.
const VECTORS: usize = constants::norm::NORM_VECTORS as usize;
/// Floats of two sums of each row, one for each warp, and elements behind a row.
const SCRATCH_BYTES: usize = MAX_ROWS * constants::gemv_normed::SCRATCH as usize * 4;
const PADDING: usize = constants::gemv_normed::PADDING as usize;
/// How much of the output a block computes.
const TILE: Tile = Tile::Rows8Columns16;

/// The most rows of one launch.
pub const MAX_ROWS: usize = constants::gemv_normed::MAX_ROWS as usize;
/// The longest row, padding included.
pub const MAX_WIDTH: usize = THREADS as usize * VECTORS * VECTOR;

/// Whether products of so many rows of this width take their norm with them, where `algorithms` let them.
/// [`Arithmetic::BatchInvariant`] keeps to kernels that take any number of rows.
pub fn takes(arithmetic: Arithmetic, algorithms: &Algorithms, rows: usize, width: usize) -> bool {
    let may = arithmetic == Arithmetic::Fastest && algorithms.fuses_norm();
    may && rows <= MAX_ROWS && width.next_multiple_of(VECTOR) <= MAX_WIDTH
}

/// The kernel of a form of norm and an epilogue, by their names in those of kernels.
pub fn kernel_name(form: NormForm, epilogue: &str, element: &str) -> String {
    format!("gemv_normed_{epilogue}_{}_{element}", form.name())
}

/// What a norm and a product cost as one launch: the rows between them are neither written nor read.
pub fn work_of_both(norm: Work, product: Work) -> Work {
    let between = norm.bytes_written;
    Work {
        bytes_read: norm.bytes_read + product.bytes_read - between,
        bytes_written: product.bytes_written,
        flops: norm.flops + product.flops,
    }
}

/// Rows ahead of their norm.
#[derive(Clone, Copy)]
pub struct NormedRows<'a, T> {
    /// `[any number of rows, pitch]`.
    pub hidden: Slice<'a, T>,
    /// Which of them are multiplied, `[rows]`; none for the first ones.
    pub gather: Option<Slice<'a, u32>>,
    /// Weights of the norm.
    pub norm: NormWeights<'a, T>,
    /// Elements of a row that are normalised.
    pub width: usize,
    /// Added to the variance.
    pub epsilon: f32,
}

/// The matrix that they are multiplied with.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    /// `[columns, pitch]`; no kernel writes it.
    pub weights: WeightMatrix<'a>,
    /// `[columns]`, or none; no kernel writes it.
    pub bias: Option<Slice<'a, T>>,
}

/// Products behind a norm in one form, with matrices of `T`.
pub struct NormedProducts<T> {
    gelu: Kernel,
    qkv: Kernel,
    logits: Kernel,
    form: NormForm,
    element: PhantomData<T>,
}

impl<T: Element> NormedProducts<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// Those of [`Device::module`].
    pub fn load(device: &Device, form: NormForm) -> Result<NormedProducts<T>, CudaError> {
        let module = device.module("gemv_normed")?;
        let kernel = |epilogue| module.kernel(&kernel_name(form, epilogue, T::NAME));
        let (gelu, qkv, logits) = (kernel(Epilogue::BiasGelu.name())?, kernel(BIAS_ROPE_KV)?, kernel(LOGITS)?);
        Ok(NormedProducts { gelu, qkv, logits, form, element: PhantomData })
    }

    /// `out[m, n] = gelu(Σ norm(x[m, :])[k] weights[n, k] + bias[n])`, with `out` `[rows, columns]`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, more than [`MAX_ROWS`] rows or a depth above
    /// [`MAX_WIDTH`], no rows, columns or depth that are no multiples of 8, a width that is not the depth's, or a
    /// buffer that is not aligned to 16 bytes.
    ///
    /// # Safety
    /// When the launch runs, each number in `rows.gather` is that of a row of `rows.hidden`.
    pub unsafe fn gelu(
        &self,
        stream: &Stream,
        shape: ProductShape,
        rows: NormedRows<'_, T>,
        matrix: Matrix<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let (sizes, arguments) = self.begin(shape, rows, matrix)?;
        CHECK.matrix("out", (&out).into(), shape.rows, shape.columns)?;
        let arguments = sizes.append(arguments.optional_input(matrix.bias).output(&out));
        // SAFETY: the arguments are those of the kernel, checked to have the lengths that it indexes; what is gathered is
        // the caller's promise.
        unsafe { self.launch(stream, &self.gelu, shape, &sizes, &arguments) }
    }

    /// Queries, and keys and values into their pages, rotated: see
    /// [`QkvProjection::launch`](super::product::QkvProjection::launch).
    ///
    /// # Errors
    /// As for [`NormedProducts::gelu`] and there.
    ///
    /// # Safety
    /// As for [`NormedProducts::gelu`].
    pub unsafe fn qkv(
        &self,
        stream: &Stream,
        shape: QkvShape,
        rows: NormedRows<'_, T>,
        matrix: Matrix<'_, T>,
        places: QkvRows<'_>,
        out: QkvOutputs<'_, T>,
    ) -> Result<(), CudaError> {
        shape.check(CHECK)?;
        let product = shape.product(CHECK)?;
        let (sizes, arguments) = self.begin(product, rows, matrix)?;
        let arguments = shape.append(CHECK, arguments.optional_input(matrix.bias), places, &out)?;
        // SAFETY: as above; positions and pages that lie outside of the table or the cache are not followed.
        unsafe { self.launch(stream, &self.qkv, product, &sizes, &sizes.append(arguments)) }
    }

    /// `out[m, n] = Σ norm(x[m, :])[k] weights[n, k]`, with `out` `[rows, columns]` in f32.
    ///
    /// # Errors
    /// As for [`NormedProducts::gelu`].
    ///
    /// # Safety
    /// As for [`NormedProducts::gelu`].
    pub unsafe fn logits(
        &self,
        stream: &Stream,
        shape: ProductShape,
        rows: NormedRows<'_, T>,
        weights: WeightMatrix<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let (sizes, arguments) = self.begin(shape, rows, Matrix { weights, bias: None })?;
        CHECK.matrix("out", (&out).into(), shape.rows, shape.columns)?;
        // SAFETY: as above.
        unsafe { self.launch(stream, &self.logits, shape, &sizes, &sizes.append(arguments.output(&out))) }
    }

    /// Checks what all take, and begins their arguments.
    fn begin(
        &self,
        shape: ProductShape,
        rows: NormedRows<'_, T>,
        matrix: Matrix<'_, T>,
    ) -> Result<(Sizes, Arguments), CudaError> {
        let ProductShape { columns, depth, .. } = shape;
        let sizes = Sizes::up_to(CHECK, MAX_ROWS, shape)?;
        CHECK.width("depth", depth, MAX_WIDTH)?;
        let width = CHECK.size("width", rows.width, depth)?;
        if rows.width.next_multiple_of(VECTOR) != depth {
            return CHECK.fail("width", rows.width, format_args!("one that is padded to {depth}"));
        }
        CHECK.matrix("hidden", rows.hidden.into(), rows.hidden.len() / depth, depth)?;
        let there = rows.gather.map_or(rows.hidden.len() / depth, |gather| gather.len());
        if there < shape.rows {
            return CHECK.fail("rows", there, format_args!("at least {}", shape.rows));
        }
        rows.norm.check(CHECK, self.form, depth)?;
        let weights = matrix.weights.dense::<T>(CHECK)?;
        CHECK.matrix("weights", weights.into(), columns, depth)?;
        if let Some(bias) = matrix.bias {
            CHECK.matrix("bias", bias.into(), 1, columns)?;
        }
        let arguments = Arguments::new()
            .input(rows.hidden)
            .optional_input(rows.gather)
            .input(rows.norm.weight)
            .optional_input(rows.norm.bias)
            .scalar(width)
            .scalar(rows.epsilon)
            .input(weights);
        Ok((sizes, arguments))
    }

    /// # Safety
    /// `arguments` are those of `kernel`, with the lengths of `shape`.
    unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: &Kernel,
        shape: ProductShape,
        sizes: &Sizes,
        arguments: &Arguments,
    ) -> Result<(), CudaError> {
        let mut launch = Launch::linear(sizes.columns.div_ceil(TILE.columns()), THREADS);
        let row_bytes = (shape.depth * 4 + MAX_ROWS * PADDING) * size_of::<T>();
        launch.shared_bytes = TILE.shared_bytes() + (SCRATCH_BYTES + row_bytes) as u32;
        // SAFETY: the caller's promise; the grid has every column.
        unsafe { stream.launch(kernel, &launch, arguments) }
    }
}
