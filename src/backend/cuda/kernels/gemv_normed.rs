//! `kernels/gemv_normed.cu`: one or two rows, normalised and multiplied with a weight matrix in one launch. What it
//! gives has the bits of [`Norm`](super::norm::Norm) followed by [`gemv`](super::gemv).

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
use super::linear::{BIAS_ROPE_KV, Epilogue, GemmShape, GemmSizes, LOGITS, QkvOutputs, QkvRows, QkvShape};
use super::norm::{NormVariant, NormWeights};
use super::{Check, Element, VECTOR, WeightMatrix};
use crate::backend::Determinism;

const CHECK: Check = Check { kernel: "gemv_normed" };
const THREADS: u32 = constants::gemv::THREADS;
/// Of a thread: a row is held by the block's registers.
const VECTORS: usize = constants::norm::NORM_VECTORS as usize;
/// Floats of two sums of each row, one for each warp, and elements behind a row.
const SCRATCH_BYTES: usize = MAX_ROWS * constants::gemv_normed::SCRATCH as usize * 4;
const PADDING: usize = constants::gemv_normed::PADDING as usize;
/// How much of the output a block computes.
const TILE: Tile = Tile::M8N16;

/// The most rows of one launch.
pub const MAX_ROWS: usize = constants::gemv_normed::MAX_ROWS as usize;
/// The longest row, padding included.
pub const MAX_WIDTH: usize = THREADS as usize * VECTORS * VECTOR;

/// Whether products of so many rows of this width take their norm with them, where `algorithms` let them.
/// [`Determinism::BatchInvariant`] keeps to kernels that take any number of rows.
pub fn takes(determinism: Determinism, algorithms: &Algorithms, rows: usize, width: usize) -> bool {
    let may = determinism == Determinism::Fast && algorithms.fuses_norm();
    may && rows <= MAX_ROWS && width.next_multiple_of(VECTOR) <= MAX_WIDTH
}

/// The kernel of a variant of norm and an epilogue, by their names in those of kernels.
pub fn kernel_name(variant: NormVariant, epilogue: &str, element: &str) -> String {
    format!("gemv_normed_{epilogue}_{}_{element}", variant.name())
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
    /// `[n, pitch]`; no kernel writes it.
    pub weights: WeightMatrix<'a>,
    /// `[n]`, or none; no kernel writes it.
    pub bias: Option<Slice<'a, T>>,
}

/// Products behind a norm in one variant, with matrices of `T`.
pub struct NormedGemv<T> {
    gelu: Kernel,
    qkv: Kernel,
    logits: Kernel,
    variant: NormVariant,
    element: PhantomData<T>,
}

impl<T: Element> NormedGemv<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device, variant: NormVariant) -> Result<NormedGemv<T>, CudaError> {
        let module = device.module("gemv_normed")?;
        let kernel = |epilogue| module.kernel(&kernel_name(variant, epilogue, T::NAME));
        let (gelu, qkv, logits) = (kernel(Epilogue::BiasGelu.name())?, kernel(BIAS_ROPE_KV)?, kernel(LOGITS)?);
        Ok(NormedGemv { gelu, qkv, logits, variant, element: PhantomData })
    }

    /// `out[m, n] = gelu(Σ norm(x[m, :])[k] weights[n, k] + bias[n])`, with `out` `[m, n]`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, more than [`MAX_ROWS`] rows or `k` above
    /// [`MAX_WIDTH`], zero rows, `n` or `k` not a multiple of 8, a width that is not `k` before padding, or a
    /// buffer that is not aligned to 16 bytes.
    ///
    /// # Safety
    /// When the launch runs, each number in `rows.gather` is that of a row of `rows.hidden`.
    pub unsafe fn gelu(
        &self,
        stream: &Stream,
        shape: GemmShape,
        rows: NormedRows<'_, T>,
        matrix: Matrix<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let (sizes, arguments) = self.begin(shape, rows, matrix)?;
        CHECK.matrix("out", (&out).into(), shape.m, shape.n)?;
        let arguments = sizes.append(arguments.optional_input(matrix.bias).output(&out));
        // SAFETY: the arguments are those of the kernel, checked to have the lengths that it indexes; what is gathered
        // is the caller's promise.
        unsafe { self.launch(stream, &self.gelu, shape, &sizes, &arguments) }
    }

    /// Queries, and keys and values into their pages, rotated: see
    /// [`QkvProjection::launch`](super::linear::QkvProjection::launch).
    ///
    /// # Errors
    /// As for [`NormedGemv::gelu`] and there.
    ///
    /// # Safety
    /// As for [`NormedGemv::gelu`].
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

    /// `out[m, n] = Σ norm(x[m, :])[k] weights[n, k]`, with `out` `[m, n]` in f32.
    ///
    /// # Errors
    /// As for [`NormedGemv::gelu`].
    ///
    /// # Safety
    /// As for [`NormedGemv::gelu`].
    pub unsafe fn logits(
        &self,
        stream: &Stream,
        shape: GemmShape,
        rows: NormedRows<'_, T>,
        weights: WeightMatrix<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let (sizes, arguments) = self.begin(shape, rows, Matrix { weights, bias: None })?;
        CHECK.matrix("out", (&out).into(), shape.m, shape.n)?;
        // SAFETY: as above.
        unsafe { self.launch(stream, &self.logits, shape, &sizes, &sizes.append(arguments.output(&out))) }
    }

    /// Checks what all take, and begins their arguments.
    fn begin(
        &self,
        shape: GemmShape,
        rows: NormedRows<'_, T>,
        matrix: Matrix<'_, T>,
    ) -> Result<(GemmSizes, Arguments), CudaError> {
        let GemmShape { n, k, .. } = shape;
        let sizes = GemmSizes::up_to(CHECK, MAX_ROWS, shape)?;
        CHECK.width("k", k, MAX_WIDTH)?;
        let width = CHECK.size("width", rows.width, k)?;
        if rows.width.next_multiple_of(VECTOR) != k {
            return CHECK.fail("width", rows.width, format_args!("one that is padded to {k}"));
        }
        CHECK.matrix("hidden", rows.hidden.into(), rows.hidden.len() / k, k)?;
        let there = rows.gather.map_or(rows.hidden.len() / k, |gather| gather.len());
        if there < shape.m {
            return CHECK.fail("rows", there, format_args!("at least {}", shape.m));
        }
        rows.norm.check(CHECK, self.variant, k)?;
        let weights = matrix.weights.dense::<T>(CHECK)?;
        CHECK.matrix("weights", weights.into(), n, k)?;
        if let Some(bias) = matrix.bias {
            CHECK.matrix("bias", bias.into(), 1, n)?;
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
        shape: GemmShape,
        sizes: &GemmSizes,
        arguments: &Arguments,
    ) -> Result<(), CudaError> {
        let mut launch = Launch::linear(sizes.n.div_ceil(TILE.n()), THREADS);
        let row_bytes = (shape.k * 4 + MAX_ROWS * PADDING) * size_of::<T>();
        launch.shared_bytes = TILE.shared_bytes() + (SCRATCH_BYTES + row_bytes) as u32;
        // SAFETY: the caller's promise; the grid has every column.
        unsafe { stream.launch(kernel, &launch, arguments) }
    }
}
