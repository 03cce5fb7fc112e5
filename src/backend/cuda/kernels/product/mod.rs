//! Products of activations with weight matrices, the one front door to `gemv`, `gemm_skinny_sm90`, `gemm_sm90` and
//! `gemm_sm80`: [`Projection`] for a matrix with a bias and what follows it, [`QkvProjection`] for the fused query, key and
//! value weights with rotation and the write into the cache, [`Head`] for logits. Up to [`gemv::MAX_ROWS`] rows go to
//! `gemv`; on a Hopper up to [`gemm_skinny_sm90::MAX_ROWS`] to `gemm_skinny_sm90` and more to `gemm_sm90`; elsewhere, and
//! with [`Arithmetic::BatchInvariant`] all, to `gemm_sm80`. Nothing of a launch depends on values in device memory, so
//! that it can be recorded once for its number of rows.
//!
//! Every epilogue has one definition for all, in `kernels/common/epilogue.cuh`.

mod qkv;
pub(super) mod shape;

use std::marker::PhantomData;

pub use qkv::{QkvOutputs, QkvProjection, QkvRows, QkvShape};
pub use shape::{BIAS_ROPE_KV, Epilogue, LOGITS, MAX_DEPTH, ProductInputs, ProductShape};

use super::super::buffer::{Slice, SliceMut};
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::launch::Arguments;
use super::super::stream::Stream;
use super::super::switches::LinearAlgorithm;
use super::gemm::{Gemm, Plan};
use super::gemm_skinny_sm90::{self, Skinny};
use super::gemm_sm90::GemmSm90;
use super::gemv::{self, Gemv};
use super::{Check, Element, VECTOR, WeightMatrix, gemm, gemm_sm90};
use crate::backend::Arithmetic;

/// Which kernels compute a product, and how they cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// `gemv`, for up to [`gemv::MAX_ROWS`] rows.
    Gemv,
    /// `gemm_skinny_sm90`, for up to [`gemm_skinny_sm90::MAX_ROWS`] rows, where [`gemm_skinny_sm90::runs_on`] says so.
    Skinny(gemm_skinny_sm90::Plan),
    /// `gemm_sm80`, for any number.
    Gemm(Plan),
    /// `gemm_sm90`, for any number, where [`gemm_sm90::runs_on`] says so.
    GemmSm90(gemm_sm90::Plan),
}

impl Path {
    /// The fastest path of a product on a device; depends on nothing else.
    pub fn choose(device: &Properties, shape: ProductShape) -> Path {
        Path::choose_for(Arithmetic::Fastest, device, shape)
    }

    /// The path that the device's algorithms name for so many rows, else the fastest; with
    /// [`Arithmetic::BatchInvariant`] the one that it allows. `gemm_sm80` gives a row the same bits by any plan and beside any
    /// number of rows; `gemv`, `gemm_sm90` and each kernel of `gemm_skinny_sm90` do too, but others.
    pub fn choose_for(arithmetic: Arithmetic, device: &Properties, shape: ProductShape) -> Path {
        let algorithm = match arithmetic {
            Arithmetic::BatchInvariant => LinearAlgorithm::Sm80,
            Arithmetic::Fastest => {
                device.algorithms.linear(shape.rows).unwrap_or_else(|| Path::fastest(device, shape.rows))
            }
        };
        match algorithm {
            LinearAlgorithm::GemvNormed | LinearAlgorithm::Gemv => Path::Gemv,
            LinearAlgorithm::Skinny => Path::Skinny(gemm_skinny_sm90::Plan::choose(device.multiprocessors, shape)),
            LinearAlgorithm::Sm90 => Path::GemmSm90(gemm_sm90::Plan::choose(device.multiprocessors, shape)),
            LinearAlgorithm::Sm80 => Path::Gemm(Plan::choose(device.into(), shape)),
        }
    }

    /// The fastest algorithm for so many rows that runs on the device.
    fn fastest(device: &Properties, rows: usize) -> LinearAlgorithm {
        if rows <= gemv::MAX_ROWS {
            LinearAlgorithm::Gemv
        } else if rows <= gemm_skinny_sm90::MAX_ROWS && gemm_skinny_sm90::runs_on(device) {
            LinearAlgorithm::Skinny
        } else if gemm_sm90::runs_on(device) {
            LinearAlgorithm::Sm90
        } else {
            LinearAlgorithm::Sm80
        }
    }

    /// `gemv` or `gemm`.
    pub fn family(self) -> &'static str {
        self.check().kernel
    }

    /// The kernel that a product of `rows` rows runs as; `epilogue` and `element` by their names in those of kernels.
    pub fn kernel_name(self, epilogue: &str, element: &str, rows: usize) -> String {
        match self {
            Path::Gemv => gemv::kernel_name(epilogue, element, rows),
            Path::Skinny(plan) => plan.kernel_name(epilogue, element),
            Path::Gemm(plan) => plan.tile.kernel_name(epilogue, element),
            Path::GemmSm90(plan) => plan.tile.kernel_name(epilogue, element),
        }
    }

    fn check(self) -> Check {
        match self {
            Path::Gemv => gemv::CHECK,
            Path::Skinny(_) => gemm_skinny_sm90::CHECK,
            Path::Gemm(_) => gemm::CHECK,
            Path::GemmSm90(_) => gemm_sm90::CHECK,
        }
    }
}

/// The kernels of one epilogue and element type.
struct Product<T> {
    gemv: Gemv,
    /// Where it runs.
    skinny: Option<Skinny>,
    gemm: Gemm,
    /// Where it runs.
    gemm_sm90: Option<GemmSm90>,
    arithmetic: Arithmetic,
    element: PhantomData<T>,
}

/// A launch's sizes, checked, as the kernels take them.
pub(super) struct Sizes {
    rows: u32,
    pub(super) columns: u32,
    depth: u32,
}

impl Sizes {
    fn of(check: Check, path: Path, shape: ProductShape) -> Result<Sizes, CudaError> {
        let max_rows = match path {
            Path::Gemv => gemv::MAX_ROWS,
            Path::Skinny(plan) => plan.batch.rows(),
            Path::Gemm(_) | Path::GemmSm90(_) => i32::MAX as usize,
        };
        Sizes::up_to(check, max_rows, shape)
    }

    pub(super) fn up_to(check: Check, max_rows: usize, shape: ProductShape) -> Result<Sizes, CudaError> {
        Ok(Sizes {
            rows: check.size("rows", shape.rows, max_rows)?,
            columns: check.width("columns", shape.columns, i32::MAX as usize & !(VECTOR - 1))?,
            depth: check.width("depth", shape.depth, MAX_DEPTH)?,
        })
    }

    pub(super) fn append(&self, arguments: Arguments) -> Arguments {
        arguments.scalar(self.rows).scalar(self.columns).scalar(self.depth)
    }
}

impl<T: Element> Product<T> {
    fn load(device: &Device, epilogue: &str) -> Result<Product<T>, CudaError> {
        let gemv = Gemv::load(device, epilogue, T::NAME)?;
        let skinny = Skinny::load(device, epilogue, T::NAME)?;
        let gemm = Gemm::load(device, epilogue, T::NAME)?;
        let gemm_sm90 = GemmSm90::load(device, epilogue, T::NAME)?;
        Ok(Product { gemv, skinny, gemm, gemm_sm90, arithmetic: Arithmetic::default(), element: PhantomData })
    }

    fn path(&self, stream: &Stream, shape: ProductShape) -> Result<Path, CudaError> {
        let device = stream.device().properties();
        device.algorithms.check_rows(shape.rows)?;
        Ok(Path::choose_for(self.arithmetic, device, shape))
    }

    /// # Safety
    /// `arguments` are those that all kernels of `path` begin with, of the lengths of `shape`; its rows suit `path`.
    unsafe fn launch(
        &self,
        stream: &Stream,
        path: Path,
        shape: ProductShape,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        match path {
            // SAFETY: the caller's promise.
            Path::Gemv => unsafe { self.gemv.launch(stream, shape, &arguments) },
            Path::Skinny(plan) => {
                let Some(kernels) = &self.skinny else {
                    let found = stream.device().properties().compute_capability;
                    return path.check().fail("compute capability", found, "9.0, and kernels that were built for it");
                };
                // SAFETY: the caller's promise.
                unsafe { kernels.launch(stream, plan, shape, arguments) }
            }
            // SAFETY: the caller's promise.
            Path::Gemm(plan) => unsafe { self.gemm.launch(stream, plan, shape, arguments) },
            Path::GemmSm90(plan) => {
                let Some(kernels) = &self.gemm_sm90 else {
                    let found = stream.device().properties().compute_capability;
                    return gemm_sm90::CHECK.fail("compute capability", found, "9.0, and kernels built for it");
                };
                // SAFETY: the caller's promise.
                unsafe { kernels.launch(stream, plan, shape, arguments) }
            }
        }
    }
}

/// Checks what every product reads.
fn check_operands<T: Element>(
    check: Check,
    shape: ProductShape,
    inputs: ProductInputs<'_, T>,
) -> Result<(), CudaError> {
    let ProductShape { rows, columns, depth } = shape;
    check.matrix("x", inputs.x.into(), rows, depth)?;
    check.matrix("weights", inputs.weights.dense::<T>(check)?.into(), columns, depth)?;
    if let Some(bias) = inputs.bias {
        check.matrix("bias", bias.into(), 1, columns)?;
    }
    Ok(())
}

/// Begins the arguments of the kernels of `path` with `x` and `weights`, and with the output where that is a plain
/// matrix of `T` and the kernels take it by a map: all of the lengths of `shape`.
fn operands<T: Element>(
    path: Path,
    shape: ProductShape,
    inputs: ProductInputs<'_, T>,
    matrix: Option<&SliceMut<'_, T>>,
) -> Result<Arguments, CudaError> {
    match path {
        Path::Gemv | Path::Gemm(_) => {
            Ok(Arguments::new().input(inputs.x).input(inputs.weights.dense::<T>(path.check())?))
        }
        Path::Skinny(plan) => gemm_skinny_sm90::operands(plan, shape, inputs),
        Path::GemmSm90(plan) => gemm_sm90::operands(plan, shape, inputs, matrix),
    }
}

/// Products with matrices of `T` that end in one [`Epilogue`].
pub struct Projection<T>(Product<T>);

impl<T: Element> Projection<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// Those of [`Device::module`].
    pub fn load(device: &Device, epilogue: Epilogue) -> Result<Projection<T>, CudaError> {
        Product::load(device, epilogue.name()).map(Projection)
    }

    /// The same, by paths that `arithmetic` allows; without, the fastest.
    pub fn with(self, arithmetic: Arithmetic) -> Projection<T> {
        Projection(Product { arithmetic, ..self.0 })
    }

    /// `out[m, n] = epilogue(Σ x[m, k] weights[n, k])`, with `out` `[rows, columns]`, by the path that
    /// [`Path::choose_for`] gives.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, no rows, columns or depth that are no multiples
    /// of 8, a depth above [`MAX_DEPTH`], or a buffer that is not aligned to 16 bytes; [`CudaError::Algorithm`] for more
    /// rows than the algorithm takes that was chosen by name.
    pub fn launch(
        &self,
        stream: &Stream,
        shape: ProductShape,
        inputs: ProductInputs<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        self.launch_by(self.0.path(stream, shape)?, stream, shape, inputs, out)
    }

    /// The same by a given path.
    ///
    /// # Errors
    /// As for [`Projection::launch`]; for more than [`gemv::MAX_ROWS`] rows by [`Path::Gemv`]; by [`Path::Skinny`] for
    /// more rows than the kernel's, or parts of k and tiles that are no cluster; by [`Path::Gemm`] and
    /// [`Path::GemmSm90`] for stages that are not 3, 4, 6 or 8, a group of no row of tiles or more than there are, and
    /// clusters that are none or more than there are tiles for, or not of 1 or 2 blocks; and by a path on a device that
    /// does not run it;
    /// [`CudaError::LaunchLimit`] for stages that do not fit into shared memory.
    pub fn launch_by(
        &self,
        path: Path,
        stream: &Stream,
        shape: ProductShape,
        inputs: ProductInputs<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let check = path.check();
        let sizes = Sizes::of(check, path, shape)?;
        check_operands(check, shape, inputs)?;
        check.matrix("out", (&out).into(), shape.rows, shape.columns)?;
        let arguments = operands(path, shape, inputs, Some(&out))?;
        let arguments = sizes.append(arguments.optional_input(inputs.bias).output(&out));
        // SAFETY: the arguments are those of the kernels with this epilogue, checked above to have the lengths that
        // they index.
        unsafe { self.0.launch(stream, path, shape, arguments) }
    }
}

/// Products with the output embedding: logits in f32.
pub struct Head<T>(Product<T>);

impl<T: Element> Head<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// Those of [`Device::module`].
    pub fn load(device: &Device) -> Result<Head<T>, CudaError> {
        Product::load(device, LOGITS).map(Head)
    }

    /// The same, by paths that `arithmetic` allows; without, the fastest.
    pub fn with(self, arithmetic: Arithmetic) -> Head<T> {
        Head(Product { arithmetic, ..self.0 })
    }

    /// `out[m, n] = Σ x[m, k] weights[n, k]`, with `x` `[rows, depth]`, `weights` `[columns, depth]` and `out`
    /// `[rows, columns]` in f32.
    ///
    /// # Errors
    /// As for [`Projection::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        shape: ProductShape,
        x: Slice<'_, T>,
        weights: WeightMatrix<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<(), CudaError> {
        self.launch_by(self.0.path(stream, shape)?, stream, shape, x, weights, out)
    }

    /// The same by a given path.
    ///
    /// # Errors
    /// As for [`Projection::launch_by`].
    pub fn launch_by(
        &self,
        path: Path,
        stream: &Stream,
        shape: ProductShape,
        x: Slice<'_, T>,
        weights: WeightMatrix<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let check = path.check();
        let sizes = Sizes::of(check, path, shape)?;
        let inputs = ProductInputs { x, weights, bias: None };
        check_operands(check, shape, inputs)?;
        check.matrix("out", (&out).into(), shape.rows, shape.columns)?;
        let arguments = sizes.append(operands(path, shape, inputs, None)?.output(&out));
        // SAFETY: the arguments are those of the kernels for logits, checked above to have the lengths that they index.
        unsafe { self.0.launch(stream, path, shape, arguments) }
    }
}
