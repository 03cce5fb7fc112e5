//! `kernels/gemm_sm80.cu`: many rows of activations times a weight matrix. Which tile, how many stages and in what
//! order is decided here, by a [`Plan`] that depends on the sizes and on two numbers of the device alone.

use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::Check;
use super::constants::gemm_sm80 as constants;
use super::product::shape::ProductShape;

pub(super) const CHECK: Check = Check { kernel: "gemm" };

/// Numbers of stages that the kernels can wait for, the most first.
const STAGES: [u32; 4] = [8, 6, 4, 3];
/// What the driver keeps of a multiprocessor's shared memory for each block. The multiprocessor has as much more than a
/// block may have: 100 KiB for 99, 164 for 163, 228 for 227.
const RESERVED_BYTES: u32 = 1 << 10;

/// How much of the output a block computes. Every tile gives a row the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 rows, 256 columns: the fewest bytes for each product.
    Rows128Columns256,
    /// 128 rows, 128 columns, twice on a multiprocessor.
    Rows128Columns128,
    /// 64 rows, 64 columns.
    Rows64Columns64,
    /// 32 rows, 64 columns.
    Rows32Columns64,
}

impl Tile {
    /// All of them, the largest first.
    pub const ALL: [Tile; 4] =
        [Tile::Rows128Columns256, Tile::Rows128Columns128, Tile::Rows64Columns64, Tile::Rows32Columns64];

    /// The numbers that make it, as `Tile` of the kernels takes them.
    fn numbers(self) -> [u32; 6] {
        match self {
            Tile::Rows128Columns256 => constants::TILE128X256,
            Tile::Rows128Columns128 => constants::TILE128X128,
            Tile::Rows64Columns64 => constants::TILE64X64,
            Tile::Rows32Columns64 => constants::TILE32X64,
        }
    }

    /// Rows of the output.
    pub fn rows(self) -> u32 {
        self.numbers()[0]
    }

    /// Columns of the output.
    pub fn columns(self) -> u32 {
        self.numbers()[1]
    }

    /// Elements of k in a stage.
    pub fn depth(self) -> u32 {
        self.numbers()[2]
    }

    /// The kernel that computes it.
    pub(super) fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("gemm_{epilogue}_{element}_{}x{}", self.rows(), self.columns())
    }

    fn threads(self) -> u32 {
        let [rows, columns, _, warp_rows, warp_columns, _] = self.numbers();
        rows / warp_rows * (columns / warp_columns) * 32
    }

    fn stage_bytes(self) -> u32 {
        (self.rows() + self.columns()) * self.depth() * 2
    }

    /// Blocks that share a multiprocessor where there are enough: as the registers allow; more of the small tiles would
    /// leave fewer stages to each.
    fn resident(self) -> u32 {
        self.numbers()[5]
    }

    /// Percent of the multiprocessor's matrix rate that a tile is taken to reach while its operands come in time. Only
    /// their order and rough distance matter; they follow from the ldmatrix instructions for each multiplication, 8 for
    /// 32 in warp tiles of 64x64, 4 for 8 and 3 for 4 in the small ones, and from the barriers.
    fn efficiency(self) -> u64 {
        match self {
            Tile::Rows128Columns256 => 100,
            Tile::Rows128Columns128 => 90,
            Tile::Rows64Columns64 => 55,
            Tile::Rows32Columns64 => 35,
        }
    }

    /// Tiles down and across the output, and in all.
    fn counts(self, shape: ProductShape) -> (u64, u64, u64) {
        shape.tiles(self.rows(), self.columns())
    }
}

/// What a plan depends on besides the sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Multiprocessors of the device.
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: u32,
}

impl From<&Properties> for Limits {
    fn from(device: &Properties) -> Limits {
        Limits { multiprocessors: device.multiprocessors, shared_bytes: device.shared_bytes }
    }
}

/// How a product is cut into blocks. It changes no bit of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What a block computes.
    pub tile: Tile,
    /// Stages of its ring in shared memory: 3, 4, 6 or 8.
    pub stages: u32,
    /// Rows of tiles that are computed together, so that those that run at one time share operands in L2; at least 1.
    pub group: u32,
}

impl Plan {
    /// The plan of a product: the tile of the least estimated time, the larger of equals in all; then stages and group.
    pub fn choose(limits: Limits, shape: ProductShape) -> Plan {
        let fitting = Tile::ALL.into_iter().filter_map(|tile| Plan::with_tile(limits, shape, tile));
        let best = fitting.min_by_key(|plan| plan.tile.cost(limits, shape));
        // No GPU has less; if one had, the launch would say so.
        best.unwrap_or(Plan { tile: Tile::Rows32Columns64, stages: 3, group: 1 })
    }

    /// The plan with this tile; none where 3 stages do not fit into a block's shared memory.
    pub fn with_tile(limits: Limits, shape: ProductShape, tile: Tile) -> Option<Plan> {
        let (down, _, blocks) = tile.counts(shape);
        let multiprocessors = u64::from(limits.multiprocessors.max(1));
        let wanted = blocks.div_ceil(multiprocessors).min(tile.resident().into()) as u32;
        // More than one stage past the end would be zeros.
        let turns = (shape.depth as u64).div_ceil(tile.depth().into());
        let useful = STAGES.into_iter().rev().find(|stages| u64::from(*stages) > turns).unwrap_or(STAGES[0]);
        let fit = |resident| Some((resident, tile.stages_beside(limits.shared_bytes, resident)?.min(useful)));
        let (resident, stages) = (1..=wanted.max(1)).rev().find_map(fit)?;

        let together = blocks.min(multiprocessors * u64::from(resident));
        Some(Plan { tile, stages, group: rows_of_a_group(down, together, tile.rows(), tile.columns()) })
    }
}

/// How many of the `down` rows of tiles to compute together, where `together` tiles of `rows` x `columns` run at one time.
/// Of those, in `group` rows and together / group columns, the rows and columns to be read are fewest where both are
/// equally many elements. Then groups of equal size.
pub(super) fn rows_of_a_group(down: u64, together: u64, rows: u32, columns: u32) -> u32 {
    let down = down.max(1);
    let square = (together * u64::from(columns) / u64::from(rows)).isqrt().clamp(1, down);
    u32::try_from(down.div_ceil(down.div_ceil(square))).unwrap_or(u32::MAX)
}

impl Tile {
    /// Stages of each of `resident` blocks on one multiprocessor; none where 3 do not fit.
    fn stages_beside(self, shared_bytes: u32, resident: u32) -> Option<u32> {
        let own = ((shared_bytes + RESERVED_BYTES) / resident).saturating_sub(RESERVED_BYTES);
        STAGES.into_iter().find(|stages| stages * self.stage_bytes() <= own)
    }

    /// Estimated time, in thousandths of a cycle for each element of k: the longest of the busiest multiprocessor's
    /// products, at 1024 multiply-adds a cycle, its operands from L2, at 32 bytes a cycle, and all weights from memory,
    /// at 14 bytes a cycle for each multiprocessor (A100 and H100 within a tenth). Then, between tiles that take as
    /// long, how much of the output they compute, with what lies past its ends.
    fn cost(self, limits: Limits, shape: ProductShape) -> (u64, u64) {
        let (.., blocks) = self.counts(shape);
        let multiprocessors = u64::from(limits.multiprocessors.max(1));
        let (rows, columns) = (u64::from(self.rows()), u64::from(self.columns()));
        let products = rows * columns * 1000 * 100 / (1024 * self.efficiency());
        let operands = (rows + columns) * 2 * 1000 / 32;
        let busiest = blocks.div_ceil(multiprocessors).saturating_mul(products.max(operands));
        let memory = (shape.columns as u64).saturating_mul(2 * 1000) / (14 * multiprocessors);
        (busiest.max(memory), blocks.saturating_mul(rows * columns))
    }
}

/// The kernels of one epilogue and element type, by tile.
pub(super) struct Gemm(Vec<Kernel>);

impl Gemm {
    pub(super) fn load(device: &Device, epilogue: &str, element: &str) -> Result<Gemm, CudaError> {
        let names = Tile::ALL.map(|tile| tile.kernel_name(epilogue, element));
        device.module("gemm_sm80")?.kernels(names).map(Gemm)
    }

    /// # Safety
    /// `arguments` are those of the kernels without `stages` and `group`, with the lengths of `shape`.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        plan: Plan,
        shape: ProductShape,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        let Plan { tile, stages, group } = plan;
        if !STAGES.contains(&stages) {
            return CHECK.fail("stages", stages, "3, 4, 6 or 8");
        }
        let (down, _, blocks) = tile.counts(shape);
        let blocks = CHECK.size("the number of tiles", blocks as usize, i32::MAX as usize)?;
        // The kernel multiplies it with the tiles across.
        let group = CHECK.size("group", group as usize, down as usize)?;
        let mut launch = Launch::linear(blocks, tile.threads());
        launch.shared_bytes = stages * tile.stage_bytes();
        let arguments = arguments.scalar(stages).scalar(group);
        // SAFETY: the caller's promise; stages and group are in the kernel's range, and the grid has every tile once.
        unsafe { stream.launch(&self.0[tile as usize], &launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Limits = Limits { multiprocessors: 132, shared_bytes: 227 << 10 };
    const A100: Limits = Limits { multiprocessors: 108, shared_bytes: 163 << 10 };
    const RTX3090: Limits = Limits { multiprocessors: 82, shared_bytes: 99 << 10 };

    fn shape(rows: usize, columns: usize, depth: usize) -> ProductShape {
        ProductShape { rows, columns, depth }
    }

    fn tile(limits: Limits, rows: usize, columns: usize) -> Tile {
        Plan::choose(limits, shape(rows, columns, 6144)).tile
    }

    #[test]
    fn few_rows_get_flat_tiles_and_many_the_largest_that_fits() {
        for limits in [H200, A100, RTX3090] {
            for columns in [6144, 7168, 24_576, 49_152] {
                assert_eq!(tile(limits, 17, columns), Tile::Rows32Columns64, "{limits:?} {columns}");
                assert_eq!(tile(limits, 32, columns), Tile::Rows32Columns64, "{limits:?} {columns}");
                assert_eq!(tile(limits, 33, columns), Tile::Rows64Columns64, "{limits:?} {columns}");
                assert_eq!(tile(limits, 64, columns), Tile::Rows64Columns64, "{limits:?} {columns}");
            }
        }
        assert_eq!(tile(H200, 4096, 24_576), Tile::Rows128Columns256);
        assert_eq!(tile(A100, 4096, 24_576), Tile::Rows128Columns256);
        // Three stages of 48 KiB do not fit into 99.
        assert_eq!(tile(RTX3090, 4096, 24_576), Tile::Rows128Columns128);
    }

    #[test]
    fn a_middle_number_of_rows_fills_the_multiprocessors() {
        // 128x256 would make 48 blocks for 132 multiprocessors.
        assert_eq!(tile(H200, 256, 6144), Tile::Rows128Columns128);
        assert_eq!(tile(H200, 96, 6144), Tile::Rows64Columns64);
    }

    #[test]
    fn stages_fill_the_shared_memory_that_a_block_has() {
        let large = shape(4096, 6144, 6144);
        let stages = |limits, tile| Plan::with_tile(limits, large, tile).map(|plan| plan.stages);
        assert_eq!(stages(H200, Tile::Rows128Columns256), Some(4));
        assert_eq!(stages(A100, Tile::Rows128Columns256), Some(3));
        assert_eq!(stages(RTX3090, Tile::Rows128Columns256), None);
        assert_eq!(stages(H200, Tile::Rows128Columns128), Some(6));
        assert_eq!(stages(A100, Tile::Rows128Columns128), Some(4));
        assert_eq!(stages(RTX3090, Tile::Rows128Columns128), Some(3));
        for limits in [H200, A100, RTX3090] {
            for tile in Tile::ALL {
                for rows in [1, 17, 64, 300, 5000] {
                    for depth in [8, 64, 72, 1024] {
                        let Some(plan) = Plan::with_tile(limits, shape(rows, 6144, depth), tile) else { continue };
                        assert!(STAGES.contains(&plan.stages), "{plan:?}");
                        assert!(plan.stages * tile.stage_bytes() <= limits.shared_bytes, "{plan:?}");
                    }
                }
            }
        }
        // One block a multiprocessor has it all; a short sum needs no more than it has turns.
        let few = |depth| Plan::choose(RTX3090, shape(32, 5120, depth));
        assert_eq!((few(6144).tile, few(6144).stages), (Tile::Rows32Columns64, 8));
        assert_eq!(few(200).stages, 6);
        assert_eq!(few(8).stages, 3);
    }

    #[test]
    fn groups_are_square_in_elements_and_of_equal_size() {
        let group = |rows, tile| Plan::with_tile(H200, shape(rows, 24_576, 6144), tile).unwrap().group;
        // 264 blocks at a time: 16 x 16.5.
        assert_eq!(group(128 * 64, Tile::Rows128Columns128), 16);
        // 132 at a time, twice as wide as high: 16 x 8.25.
        assert_eq!(group(128 * 64, Tile::Rows128Columns256), 16);
        // 17 rows of tiles are 9 and 8, not 16 and 1.
        assert_eq!(group(128 * 17, Tile::Rows128Columns128), 9);
        assert_eq!(group(128 * 5, Tile::Rows128Columns128), 5);
        assert_eq!(group(1, Tile::Rows32Columns64), 1);
    }

    #[test]
    fn any_sizes_have_a_plan() {
        for rows in [1, 2, 127, 129, usize::MAX / 2] {
            for columns in [8, 136, 1 << 40] {
                for depth in [8, 1 << 30] {
                    let plan =
                        Plan::choose(Limits { multiprocessors: 0, shared_bytes: 0 }, shape(rows, columns, depth));
                    assert_eq!(plan.stages, 3);
                }
            }
        }
    }
}
