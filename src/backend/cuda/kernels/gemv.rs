//! `kernels/gemv.cu`: 1 to 16 rows of activations times a weight matrix.

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::{BiasTerm, Check, Element};

const CHECK: Check = Check { kernel: "gemv" };
/// kThreads and kWarps of the kernel.
const THREADS: u32 = 256;
const WARPS: u32 = 8;

/// The most rows of one launch.
pub const MOST_ROWS: usize = 16;

/// What happens to a sum before it is rounded and stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `sum + bias`
    Bias,
    /// `gelu(sum + bias)`, the tanh form.
    BiasGelu,
    /// `out + sum + bias`: the residual stream, updated in place.
    BiasResidual,
}

impl Epilogue {
    /// Its name in the names of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Epilogue::Bias => "bias",
            Epilogue::BiasGelu => "bias_gelu",
            Epilogue::BiasResidual => "bias_residual",
        }
    }
}

/// The kernels of one epilogue, by how much of the output a block computes. Any of them gives a row the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tile {
    Rows8Columns16,
    Rows8Columns32,
    Rows16Columns32,
}

impl Tile {
    const ALL: [Tile; 3] = [Tile::Rows8Columns16, Tile::Rows8Columns32, Tile::Rows16Columns32];

    /// The activations are read again by every block: `rows / columns of a tile` times the bytes of the weights. Up to
    /// 2 rows that is little, and narrow tiles make more blocks.
    fn for_rows(rows: usize) -> Tile {
        match rows {
            0..=2 => Tile::Rows8Columns16,
            3..=8 => Tile::Rows8Columns32,
            _ => Tile::Rows16Columns32,
        }
    }

    fn rows(self) -> u32 {
        match self {
            Tile::Rows8Columns16 | Tile::Rows8Columns32 => 8,
            Tile::Rows16Columns32 => 16,
        }
    }

    fn columns(self) -> u32 {
        match self {
            Tile::Rows8Columns16 => 16,
            Tile::Rows8Columns32 | Tile::Rows16Columns32 => 32,
        }
    }

    /// One partial sum for each warp, row and column, in f32; 4 floats of padding a row.
    fn shared_bytes(self) -> u32 {
        WARPS * self.rows() * (self.columns() + 4) * 4
    }
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemvShape {
    /// Rows of activations, 1 to [`MOST_ROWS`].
    pub rows: usize,
    /// Columns of the output: rows of the weights.
    pub columns: usize,
    /// Elements of a row of activations and of weights.
    pub depth: usize,
}

impl GemvShape {
    /// Weights, activations, bias and residual read once, the output written once, all of 16 bits.
    pub fn work(&self, epilogue: Epilogue, bias: BiasTerm) -> Work {
        let GemvShape { rows, columns, depth } = *self;
        let bias = if bias == BiasTerm::Present { columns } else { 0 };
        let residual = if epilogue == Epilogue::BiasResidual { rows * columns } else { 0 };
        Work {
            bytes_read: 2 * (columns * depth + rows * depth + bias + residual) as u64,
            bytes_written: 2 * (rows * columns) as u64,
            flops: 2 * (rows * columns * depth) as u64,
        }
    }
}

/// What a product reads.
#[derive(Clone, Copy)]
pub struct GemvInputs<'a, T> {
    /// Activations, `[rows, depth]`.
    pub x: Slice<'a, T>,
    /// Weights, `[columns, depth]`.
    pub weights: Slice<'a, T>,
    /// `[columns]`, or none.
    pub bias: Option<Slice<'a, T>>,
}

/// Products of few rows with matrices of `T`, with one epilogue.
pub struct Gemv<T> {
    kernels: [Kernel; 3],
    element: PhantomData<T>,
}

impl<T: Element> Gemv<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// Those of [`Device::module`].
    pub fn load(device: &Device, epilogue: Epilogue) -> Result<Gemv<T>, CudaError> {
        let module = device.module("gemv")?;
        let kernel = |tile: Tile| {
            let (rows, columns) = (tile.rows(), tile.columns());
            module.kernel(&format!("gemv_{}_{}_{rows}x{columns}", epilogue.name(), T::NAME))
        };
        let [narrow, wide, tall] = Tile::ALL;
        Ok(Gemv { kernels: [kernel(narrow)?, kernel(wide)?, kernel(tall)?], element: PhantomData })
    }

    /// `out[m, n] = epilogue(Σ x[m, k] weights[n, k])`, with `out` `[rows, columns]`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, rows that are not 1 to [`MOST_ROWS`], no
    /// columns, a depth that is no multiple of 8, or a buffer that is not aligned to 16 bytes.
    pub fn launch(
        &self,
        stream: &Stream,
        shape: GemvShape,
        inputs: GemvInputs<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let GemvShape { rows, columns, depth } = shape;
        let row_count = CHECK.size("rows", rows, MOST_ROWS)?;
        let column_count = CHECK.size("columns", columns, i32::MAX as usize)?;
        // The kernel counts k in 32 bits, some steps beyond the end.
        let row_depth = CHECK.width("depth", depth, i32::MAX as usize)?;
        CHECK.matrix("x", inputs.x.into(), rows, depth)?;
        CHECK.matrix("weights", inputs.weights.into(), columns, depth)?;
        CHECK.matrix("out", (&out).into(), rows, columns)?;
        if let Some(bias) = inputs.bias {
            CHECK.matrix("bias", bias.into(), 1, columns)?;
        }
        let tile = Tile::for_rows(rows);
        let mut launch = Launch::linear(column_count.div_ceil(tile.columns()), THREADS);
        launch.shared_bytes = tile.shared_bytes();
        let arguments = Arguments::new()
            .input(inputs.x)
            .input(inputs.weights)
            .optional_input(inputs.bias)
            .output(&out)
            .scalar(row_count)
            .scalar(column_count)
            .scalar(row_depth);
        // SAFETY: the arguments are those of the gemv kernels, checked above to have the lengths that they index.
        unsafe { stream.launch(&self.kernels[tile as usize], &launch, &arguments) }
    }
}
