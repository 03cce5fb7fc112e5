//! `kernels/gemv.cu`: 1 to 16 rows of activations times a weight matrix.

use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::Check;
use super::constants::gemv as constants;
use super::product::shape::ProductShape;

pub(super) const CHECK: Check = Check { kernel: "gemv" };
const THREADS: u32 = constants::THREADS;
const WARPS: u32 = constants::WARPS;

/// The most rows of one launch.
pub const MAX_ROWS: usize = 16;

/// The kernels of one epilogue, by how much of the output a block computes. Any of them gives a row the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
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

    pub(super) fn columns(self) -> u32 {
        match self {
            Tile::Rows8Columns16 => 16,
            Tile::Rows8Columns32 | Tile::Rows16Columns32 => 32,
        }
    }

    fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("gemv_{epilogue}_{element}_{}x{}", self.rows(), self.columns())
    }

    /// One partial sum for each warp, row and column, in f32; 4 floats of padding a row.
    pub(super) fn shared_bytes(self) -> u32 {
        WARPS * self.rows() * (self.columns() + 4) * 4
    }
}

/// The kernel that a product of `rows` rows runs as.
pub(super) fn kernel_name(epilogue: &str, element: &str, rows: usize) -> String {
    Tile::for_rows(rows).kernel_name(epilogue, element)
}

/// The kernels of one epilogue and element type, by tile.
pub(super) struct Gemv(Vec<Kernel>);

impl Gemv {
    pub(super) fn load(device: &Device, epilogue: &str, element: &str) -> Result<Gemv, CudaError> {
        let names = Tile::ALL.map(|tile| tile.kernel_name(epilogue, element));
        device.module("gemv")?.kernels(names).map(Gemv)
    }

    /// # Safety
    /// `arguments` are those of the kernels, with the lengths of `shape`, whose rows are 1 to [`MAX_ROWS`].
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        shape: ProductShape,
        arguments: &Arguments,
    ) -> Result<(), CudaError> {
        let tile = Tile::for_rows(shape.rows);
        let columns = CHECK.size("columns", shape.columns, i32::MAX as usize)?;
        let mut launch = Launch::linear(columns.div_ceil(tile.columns()), THREADS);
        launch.shared_bytes = tile.shared_bytes();
        // SAFETY: the caller's promise; the grid has every column.
        unsafe { stream.launch(&self.0[tile as usize], &launch, arguments) }
    }
}
