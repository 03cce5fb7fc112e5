//! Products of activations with weight matrices, the one front door to `gemv`, `gemm_small_m_sm90`, `gemm_sm90` and
//! `gemm_sm80`: [`Projection`] for a matrix with a bias and what follows it, [`QkvProjection`] for the fused query, key
//! and value weights with rotation and the write into the cache, [`Head`] for logits. Up to [`gemv::MAX_ROWS`] rows go
//! to `gemv`; on a Hopper up to [`gemm_small_m_sm90::MAX_ROWS`] to `gemm_small_m_sm90` and more to `gemm_sm90`;
//! elsewhere, and with [`Determinism::BatchInvariant`] all, to `gemm_sm80`. Nothing of a launch depends on values in
//! device memory, so that it can be captured once for its number of rows.
//!
//! Every epilogue has one definition for all, in `kernels/common/epilogue.cuh`.

mod qkv;
pub(super) mod shape;

use std::marker::PhantomData;

pub use qkv::{QkvOutputs, QkvProjection, QkvRows, QkvShape};
pub use shape::{BIAS_ROPE_KV, Epilogue, GemmShape, LOGITS, LinearInputs, MAX_K};

use super::super::buffer::{Slice, SliceMut};
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::launch::Arguments;
use super::super::stream::Stream;
use super::super::switches::LinearAlgorithm;
use super::gemm::{Gemm, Plan};
use super::gemm_sm90::GemmSm90;
use super::gemm_small_m_sm90::{self, SmallM};
use super::gemv::{self, Gemv};
use super::{Check, Element, VECTOR, WeightMatrix, gemm, gemm_sm90};
use crate::backend::Determinism;

/// Which kernels compute a product, and how they cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemmAlgorithm {
    /// `gemv`, for up to [`gemv::MAX_ROWS`] rows.
    Gemv,
    /// `gemm_small_m_sm90`, for up to [`gemm_small_m_sm90::MAX_ROWS`] rows, where [`gemm_small_m_sm90::runs_on`] says
    /// so.
    SmallM(gemm_small_m_sm90::Plan),
    /// `gemm_sm80`, for any number.
    Sm80(Plan),
    /// `gemm_sm90`, for any number, where [`gemm_sm90::runs_on`] says so.
    Sm90(gemm_sm90::Plan),
}

impl GemmAlgorithm {
    /// The fastest algorithm of a product on a device; depends on nothing else.
    pub fn choose(device: &Properties, shape: GemmShape) -> GemmAlgorithm {
        GemmAlgorithm::choose_for(Determinism::Fast, device, shape)
    }

    /// The algorithm that the device's algorithms name for so many rows, else the fastest; with
    /// [`Determinism::BatchInvariant`] the one that it allows. `gemm_sm80` gives a row the same bits by any plan and
    /// beside any number of rows; `gemv`, `gemm_sm90` and each kernel of `gemm_small_m_sm90` do too, but others.
    pub fn choose_for(determinism: Determinism, device: &Properties, shape: GemmShape) -> GemmAlgorithm {
        let algorithm = match determinism {
            Determinism::BatchInvariant => LinearAlgorithm::Sm80,
            Determinism::Fast => {
                device.algorithms.linear(shape.m).unwrap_or_else(|| GemmAlgorithm::fastest(device, shape.m))
            }
        };
        match algorithm {
            LinearAlgorithm::GemvNormed | LinearAlgorithm::Gemv => GemmAlgorithm::Gemv,
            LinearAlgorithm::SmallM => GemmAlgorithm::SmallM(gemm_small_m_sm90::Plan::choose(device.sm_count, shape)),
            LinearAlgorithm::Sm90 => GemmAlgorithm::Sm90(gemm_sm90::Plan::choose(device.sm_count, shape)),
            LinearAlgorithm::Sm80 => GemmAlgorithm::Sm80(Plan::choose(device.into(), shape)),
        }
    }

    /// The fastest algorithm for so many rows that runs on the device.
    fn fastest(device: &Properties, rows: usize) -> LinearAlgorithm {
        if rows <= gemv::MAX_ROWS {
            LinearAlgorithm::Gemv
        } else if rows <= gemm_small_m_sm90::MAX_ROWS && gemm_small_m_sm90::runs_on(device) {
            LinearAlgorithm::SmallM
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
            GemmAlgorithm::Gemv => gemv::kernel_name(epilogue, element, rows),
            GemmAlgorithm::SmallM(plan) => plan.kernel_name(epilogue, element),
            GemmAlgorithm::Sm80(plan) => plan.tile.kernel_name(epilogue, element),
            GemmAlgorithm::Sm90(plan) => plan.tile.kernel_name(epilogue, element),
        }
    }

    fn check(self) -> Check {
        match self {
            GemmAlgorithm::Gemv => gemv::CHECK,
            GemmAlgorithm::SmallM(_) => gemm_small_m_sm90::CHECK,
            GemmAlgorithm::Sm80(_) => gemm::CHECK,
            GemmAlgorithm::Sm90(_) => gemm_sm90::CHECK,
        }
    }
}

/// The kernels of one epilogue and element type.
struct LinearKernels<T> {
    gemv: Gemv,
    /// Where it runs.
    small_m: Option<SmallM>,
    gemm: Gemm,
    /// Where it runs.
    gemm_sm90: Option<GemmSm90>,
    determinism: Determinism,
    element: PhantomData<T>,
}

/// A launch's sizes, checked, as the kernels take them.
pub(super) struct GemmSizes {
    m: u32,
    pub(super) n: u32,
    k: u32,
}

impl GemmSizes {
    fn of(check: Check, algorithm: GemmAlgorithm, shape: GemmShape) -> Result<GemmSizes, CudaError> {
        let max_rows = match algorithm {
            GemmAlgorithm::Gemv => gemv::MAX_ROWS,
            GemmAlgorithm::SmallM(plan) => plan.tile.m(),
            GemmAlgorithm::Sm80(_) | GemmAlgorithm::Sm90(_) => i32::MAX as usize,
        };
        GemmSizes::up_to(check, max_rows, shape)
    }

    pub(super) fn up_to(check: Check, max_rows: usize, shape: GemmShape) -> Result<GemmSizes, CudaError> {
        Ok(GemmSizes {
            m: check.size("m", shape.m, max_rows)?,
            n: check.width("n", shape.n, i32::MAX as usize & !(VECTOR - 1))?,
            k: check.width("k", shape.k, MAX_K)?,
        })
    }

    pub(super) fn append(&self, arguments: Arguments) -> Arguments {
        arguments.scalar(self.m).scalar(self.n).scalar(self.k)
    }
}

impl<T: Element> LinearKernels<T> {
    fn load(device: &Device, epilogue: &str) -> Result<LinearKernels<T>, CudaError> {
        let gemv = Gemv::load(device, epilogue, T::NAME)?;
        let small_m = SmallM::load(device, epilogue, T::NAME)?;
        let gemm = Gemm::load(device, epilogue, T::NAME)?;
        let gemm_sm90 = GemmSm90::load(device, epilogue, T::NAME)?;
        Ok(LinearKernels { gemv, small_m, gemm, gemm_sm90, determinism: Determinism::default(), element: PhantomData })
    }

    fn algorithm(&self, stream: &Stream, shape: GemmShape) -> Result<GemmAlgorithm, CudaError> {
        let device = stream.device().properties();
        device.algorithms.check_rows(shape.m)?;
        Ok(GemmAlgorithm::choose_for(self.determinism, device, shape))
    }

    /// # Safety
    /// `arguments` are those that all kernels of `algorithm` begin with, of the lengths of `shape`; its rows suit
    /// `algorithm`.
    unsafe fn launch(
        &self,
        stream: &Stream,
        algorithm: GemmAlgorithm,
        shape: GemmShape,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        match algorithm {
            // SAFETY: the caller's promise.
            GemmAlgorithm::Gemv => unsafe { self.gemv.launch(stream, shape, &arguments) },
            GemmAlgorithm::SmallM(plan) => {
                let Some(kernels) = &self.small_m else {
                    let found = stream.device().properties().compute_capability;
                    return algorithm.check().fail(
                        "compute capability",
                        found,
                        "9.0, and kernels that were built for it",
                    );
                };
                // SAFETY: the caller's promise.
                unsafe { kernels.launch(stream, plan, shape, arguments) }
            }
            // SAFETY: the caller's promise.
            GemmAlgorithm::Sm80(plan) => unsafe { self.gemm.launch(stream, plan, shape, arguments) },
            GemmAlgorithm::Sm90(plan) => {
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
fn check_operands<T: Element>(check: Check, shape: GemmShape, inputs: LinearInputs<'_, T>) -> Result<(), CudaError> {
    let GemmShape { m, n, k } = shape;
    check.matrix("x", inputs.x.into(), m, k)?;
    check.matrix("weights", inputs.weights.dense::<T>(check)?.into(), n, k)?;
    if let Some(bias) = inputs.bias {
        check.matrix("bias", bias.into(), 1, n)?;
    }
    Ok(())
}

/// Begins the arguments of the kernels of `algorithm` with `x` and `weights`, and with the output where that is a plain
/// matrix of `T` and the kernels take it by a map: all of the lengths of `shape`.
fn operands<T: Element>(
    algorithm: GemmAlgorithm,
    shape: GemmShape,
    inputs: LinearInputs<'_, T>,
    matrix: Option<&SliceMut<'_, T>>,
) -> Result<Arguments, CudaError> {
    match algorithm {
        GemmAlgorithm::Gemv | GemmAlgorithm::Sm80(_) => {
            Ok(Arguments::new().input(inputs.x).input(inputs.weights.dense::<T>(algorithm.check())?))
        }
        GemmAlgorithm::SmallM(plan) => gemm_small_m_sm90::operands(plan, shape, inputs),
        GemmAlgorithm::Sm90(plan) => gemm_sm90::operands(plan, shape, inputs, matrix),
    }
}

/// Products with matrices of `T` that end in one [`Epilogue`].
pub struct Projection<T>(LinearKernels<T>);

impl<T: Element> Projection<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device, epilogue: Epilogue) -> Result<Projection<T>, CudaError> {
        LinearKernels::load(device, epilogue.name()).map(Projection)
    }

    /// The same, by algorithms that `determinism` allows; by default the fastest.
    pub fn with(self, determinism: Determinism) -> Projection<T> {
        Projection(LinearKernels { determinism, ..self.0 })
    }

    /// `out[m, n] = epilogue(Σ x[m, k] weights[n, k])`, with `out` `[m, n]`, by the algorithm that
    /// [`GemmAlgorithm::choose_for`] gives.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, zero rows, `n` or `k` not a multiple of 8, `k`
    /// above [`MAX_K`], or a buffer that is not aligned to 16 bytes; [`CudaError::Algorithm`] for more rows than the
    /// algorithm takes that was chosen by name.
    pub fn launch(
        &self,
        stream: &Stream,
        shape: GemmShape,
        inputs: LinearInputs<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        self.launch_with(self.0.algorithm(stream, shape)?, stream, shape, inputs, out)
    }

    /// The same by a given algorithm.
    ///
    /// # Errors
    /// As for [`Projection::launch`]; for more than [`gemv::MAX_ROWS`] rows by [`GemmAlgorithm::Gemv`]; by
    /// [`GemmAlgorithm::SmallM`] for more rows than the kernel's, or parts of k and tiles that are no cluster; by
    /// [`GemmAlgorithm::Sm80`] and [`GemmAlgorithm::Sm90`] for stages that are not 3, 4, 6 or 8, a group of no row of
    /// tiles or more than there are, and clusters that are none or more than there are tiles for, or not of 1 or 2
    /// blocks; and by an algorithm on a device that does not run it; [`CudaError::LaunchLimit`] for stages that do not
    /// fit into shared memory.
    pub fn launch_with(
        &self,
        algorithm: GemmAlgorithm,
        stream: &Stream,
        shape: GemmShape,
        inputs: LinearInputs<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let check = algorithm.check();
        let sizes = GemmSizes::of(check, algorithm, shape)?;
        check_operands(check, shape, inputs)?;
        check.matrix("out", (&out).into(), shape.m, shape.n)?;
        let arguments = operands(algorithm, shape, inputs, Some(&out))?;
        let arguments = sizes.append(arguments.optional_input(inputs.bias).output(&out));
        // SAFETY: the arguments are those of the kernels with this epilogue, checked above to have the lengths that
        // they index.
        unsafe { self.0.launch(stream, algorithm, shape, arguments) }
    }
}

/// Products with the output embedding: logits in f32.
pub struct Head<T>(LinearKernels<T>);

impl<T: Element> Head<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<Head<T>, CudaError> {
        LinearKernels::load(device, LOGITS).map(Head)
    }

    /// The same, by algorithms that `determinism` allows; by default the fastest.
    pub fn with(self, determinism: Determinism) -> Head<T> {
        Head(LinearKernels { determinism, ..self.0 })
    }

    /// `out[m, n] = Σ x[m, k] weights[n, k]`, with `x` `[m, k]`, `weights` `[n, k]` and `out`
    /// `[m, n]` in f32.
    ///
    /// # Errors
    /// As for [`Projection::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        shape: GemmShape,
        x: Slice<'_, T>,
        weights: WeightMatrix<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<(), CudaError> {
        self.launch_with(self.0.algorithm(stream, shape)?, stream, shape, x, weights, out)
    }

    /// The same by a given algorithm.
    ///
    /// # Errors
    /// As for [`Projection::launch_with`].
    pub fn launch_with(
        &self,
        algorithm: GemmAlgorithm,
        stream: &Stream,
        shape: GemmShape,
        x: Slice<'_, T>,
        weights: WeightMatrix<'_>,
        out: SliceMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let check = algorithm.check();
        let sizes = GemmSizes::of(check, algorithm, shape)?;
        let inputs = LinearInputs { x, weights, bias: None };
        check_operands(check, shape, inputs)?;
        check.matrix("out", (&out).into(), shape.m, shape.n)?;
        let arguments = sizes.append(operands(algorithm, shape, inputs, None)?.output(&out));
        // SAFETY: the arguments are those of the kernels for logits, checked above to have the lengths that they index.
        unsafe { self.0.launch(stream, algorithm, shape, arguments) }
    }
}
