//! `kernels/gemv.cu`: 1 to 16 rows of activations times a weight matrix.

use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::Check;
use super::constants::gemv as constants;
use super::linear::shape::GemmShape;

pub(super) const CHECK: Check = Check { kernel: "gemv" };
const THREADS: u32 = constants::THREADS;
const WARPS: u32 = constants::WARPS;

/// The most rows of one launch.
pub const MAX_ROWS: usize = 16;

/// The kernels of one epilogue, by how much of the output a block computes. Any of them gives a row the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tile {
    M8N16,
    M8N32,
    M16N32,
}

impl Tile {
    const ALL: [Tile; 3] = [Tile::M8N16, Tile::M8N32, Tile::M16N32];

    /// The activations are read again by every block: `m / n` of the tile times the bytes of the weights. Up to
    /// 2 rows that is little, and narrow tiles make more blocks.
    fn for_rows(m: usize) -> Tile {
        match m {
            0..=2 => Tile::M8N16,
            3..=8 => Tile::M8N32,
            _ => Tile::M16N32,
        }
    }

    fn m(self) -> u32 {
        match self {
            Tile::M8N16 | Tile::M8N32 => 8,
            Tile::M16N32 => 16,
        }
    }

    pub(super) fn n(self) -> u32 {
        match self {
            Tile::M8N16 => 16,
            Tile::M8N32 | Tile::M16N32 => 32,
        }
    }

    fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("gemv_{epilogue}_{element}_{}x{}", self.m(), self.n())
    }

    /// One partial sum for each warp, row and column, in f32; 4 floats of padding a row.
    pub(super) fn shared_bytes(self) -> u32 {
        WARPS * self.m() * (self.n() + 4) * 4
    }
}

/// The kernel that a product of `rows` rows runs as.
pub(super) fn kernel_name(epilogue: &str, element: &str, m: usize) -> String {
    Tile::for_rows(m).kernel_name(epilogue, element)
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
        shape: GemmShape,
        arguments: &Arguments,
    ) -> Result<(), CudaError> {
        let tile = Tile::for_rows(shape.m);
        let n = CHECK.size("n", shape.n, i32::MAX as usize)?;
        let mut launch = Launch::linear(n.div_ceil(tile.n()), THREADS);
        launch.shared_bytes = tile.shared_bytes();
        // SAFETY: the caller's promise; the grid has every column.
        unsafe { stream.launch(&self.0[tile as usize], &launch, arguments) }
    }
}
