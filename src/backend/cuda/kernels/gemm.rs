//! `kernels/gemm_sm80.cu`: many rows of activations times a weight matrix. Which tile, how many stages and in what
//! order is decided here, by a [`Plan`] that depends on the sizes and on two numbers of the device alone.

use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::Check;
use super::constants::gemm_sm80 as constants;
use super::linear::shape::GemmShape;

pub(super) const CHECK: Check = Check { kernel: "gemm" };

/// Numbers of stages that the kernels can wait for, the most first.
const STAGES: [u32; 4] = [8, 6, 4, 3];
/// What the driver keeps of an SM's shared memory for each block. The SM has as much more than a
/// block may have: 100 KiB for 99, 164 for 163, 228 for 227.
const RESERVED_BYTES: u32 = 1 << 10;

/// How much of the output a block computes. Every tile gives a row the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 × 256: the fewest bytes for each product.
    M128N256,
    /// 128 × 128, twice on an SM.
    M128N128,
    /// 64 × 64.
    M64N64,
    /// 32 × 64.
    M32N64,
}

impl Tile {
    /// All of them, the largest first.
    pub const ALL: [Tile; 4] = [Tile::M128N256, Tile::M128N128, Tile::M64N64, Tile::M32N64];

    /// The numbers that make it, as `Tile` of the kernels takes them.
    fn numbers(self) -> [u32; 6] {
        match self {
            Tile::M128N256 => constants::TILE128X256,
            Tile::M128N128 => constants::TILE128X128,
            Tile::M64N64 => constants::TILE64X64,
            Tile::M32N64 => constants::TILE32X64,
        }
    }

    /// Rows of the output.
    pub fn m(self) -> u32 {
        self.numbers()[0]
    }

    /// Columns of the output.
    pub fn n(self) -> u32 {
        self.numbers()[1]
    }

    /// Elements of k in a stage.
    pub fn k(self) -> u32 {
        self.numbers()[2]
    }

    /// The kernel that computes it.
    pub(super) fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("gemm_{epilogue}_{element}_{}x{}", self.m(), self.n())
    }

    fn threads(self) -> u32 {
        let [m, n, _, warp_m, warp_n, _] = self.numbers();
        m / warp_m * (n / warp_n) * 32
    }

    fn stage_bytes(self) -> u32 {
        (self.m() + self.n()) * self.k() * 2
    }

    /// Blocks that share an SM where there are enough: as the registers allow; more of the small tiles would
    /// leave fewer stages to each.
    fn resident(self) -> u32 {
        self.numbers()[5]
    }

    /// Percent of the SM's matrix rate that a tile is taken to reach while its operands come in time. Only
    /// their order and rough distance matter; they follow from the ldmatrix instructions for each multiplication, 8 for
    /// 32 in warp tiles of 64x64, 4 for 8 and 3 for 4 in the small ones, and from the barriers.
    fn efficiency(self) -> u64 {
        match self {
            Tile::M128N256 => 100,
            Tile::M128N128 => 90,
            Tile::M64N64 => 55,
            Tile::M32N64 => 35,
        }
    }

    /// Tiles down and across the output, and in all.
    fn counts(self, shape: GemmShape) -> (u64, u64, u64) {
        shape.tiles(self.m(), self.n())
    }
}

/// What a plan depends on besides the sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// SMs of the device.
    pub sm_count: u32,
    /// Bytes of shared memory that one block may have.
    pub shared_bytes: u32,
}

impl From<&Properties> for Limits {
    fn from(device: &Properties) -> Limits {
        Limits { sm_count: device.sm_count, shared_bytes: device.shared_bytes }
    }
}

/// How a GEMM is tiled. It changes no bit of the output.
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
    pub fn choose(limits: Limits, shape: GemmShape) -> Plan {
        let fitting = Tile::ALL.into_iter().filter_map(|tile| Plan::with_tile(limits, shape, tile));
        let best = fitting.min_by_key(|plan| plan.tile.cost(limits, shape));
        // No GPU has less; if one had, the launch would say so.
        best.unwrap_or(Plan { tile: Tile::M32N64, stages: 3, group: 1 })
    }

    /// The plan with this tile; none where 3 stages do not fit into a block's shared memory.
    pub fn with_tile(limits: Limits, shape: GemmShape, tile: Tile) -> Option<Plan> {
        let (down, _, blocks) = tile.counts(shape);
        let sm_count = u64::from(limits.sm_count.max(1));
        let wanted = blocks.div_ceil(sm_count).min(tile.resident().into()) as u32;
        // More than one stage past the end would be zeros.
        let turns = (shape.k as u64).div_ceil(tile.k().into());
        let useful = STAGES.into_iter().rev().find(|stages| u64::from(*stages) > turns).unwrap_or(STAGES[0]);
        let fit = |resident| Some((resident, tile.stages_beside(limits.shared_bytes, resident)?.min(useful)));
        let (resident, stages) = (1..=wanted.max(1)).rev().find_map(fit)?;

        let together = blocks.min(sm_count * u64::from(resident));
        Some(Plan { tile, stages, group: rows_of_a_group(down, together, tile.m(), tile.n()) })
    }
}

/// How many of the `down` rows of tiles to compute together, where `together` tiles of `m` x `n` run at one time.
/// Of those, in `group` rows and together / group columns, the rows and columns to be read are fewest where both are
/// equally many elements. Then groups of equal size.
pub(super) fn rows_of_a_group(down: u64, together: u64, m: u32, n: u32) -> u32 {
    let down = down.max(1);
    let square = (together * u64::from(n) / u64::from(m)).isqrt().clamp(1, down);
    u32::try_from(down.div_ceil(down.div_ceil(square))).unwrap_or(u32::MAX)
}

impl Tile {
    /// Stages of each of `resident` blocks on one SM; none where 3 do not fit.
    fn stages_beside(self, shared_bytes: u32, resident: u32) -> Option<u32> {
        let own = ((shared_bytes + RESERVED_BYTES) / resident).saturating_sub(RESERVED_BYTES);
        STAGES.into_iter().find(|stages| stages * self.stage_bytes() <= own)
    }

    /// Estimated time, in thousandths of a cycle for each element of k: the longest of the busiest SM's
    /// products, at 1024 multiply-adds a cycle, its operands from L2, at 32 bytes a cycle, and all weights from memory,
    /// at 14 bytes a cycle for each SM (A100 and H100 within a tenth). Then, between tiles that take as
    /// long, how much of the output they compute, with what lies past its ends.
    fn cost(self, limits: Limits, shape: GemmShape) -> (u64, u64) {
        let (.., blocks) = self.counts(shape);
        let sm_count = u64::from(limits.sm_count.max(1));
        let (m, n) = (u64::from(self.m()), u64::from(self.n()));
        let products = m * n * 1000 * 100 / (1024 * self.efficiency());
        let operands = (m + n) * 2 * 1000 / 32;
        let busiest = blocks.div_ceil(sm_count).saturating_mul(products.max(operands));
        let memory = (shape.n as u64).saturating_mul(2 * 1000) / (14 * sm_count);
        (busiest.max(memory), blocks.saturating_mul(m * n))
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
        shape: GemmShape,
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

    const H200: Limits = Limits { sm_count: 132, shared_bytes: 227 << 10 };
    const A100: Limits = Limits { sm_count: 108, shared_bytes: 163 << 10 };
    const RTX3090: Limits = Limits { sm_count: 82, shared_bytes: 99 << 10 };

    fn shape(m: usize, n: usize, k: usize) -> GemmShape {
        GemmShape { m, n, k }
    }

    fn tile(limits: Limits, m: usize, n: usize) -> Tile {
        Plan::choose(limits, shape(m, n, 6144)).tile
    }

    #[test]
    fn few_rows_get_flat_tiles_and_many_the_largest_that_fits() {
        for limits in [H200, A100, RTX3090] {
            for n in [6144, 7168, 24_576, 49_152] {
                assert_eq!(tile(limits, 17, n), Tile::M32N64, "{limits:?} {n}");
                assert_eq!(tile(limits, 32, n), Tile::M32N64, "{limits:?} {n}");
                assert_eq!(tile(limits, 33, n), Tile::M64N64, "{limits:?} {n}");
                assert_eq!(tile(limits, 64, n), Tile::M64N64, "{limits:?} {n}");
            }
        }
        assert_eq!(tile(H200, 4096, 24_576), Tile::M128N256);
        assert_eq!(tile(A100, 4096, 24_576), Tile::M128N256);
        // Three stages of 48 KiB do not fit into 99.
        assert_eq!(tile(RTX3090, 4096, 24_576), Tile::M128N128);
    }

    #[test]
    fn a_middle_number_of_rows_fills_the_sms() {
        // 128x256 would make 48 blocks for 132 SMs.
        assert_eq!(tile(H200, 256, 6144), Tile::M128N128);
        assert_eq!(tile(H200, 96, 6144), Tile::M64N64);
    }

    #[test]
    fn stages_fill_the_shared_memory_that_a_block_has() {
        let large = shape(4096, 6144, 6144);
        let stages = |limits, tile| Plan::with_tile(limits, large, tile).map(|plan| plan.stages);
        assert_eq!(stages(H200, Tile::M128N256), Some(4));
        assert_eq!(stages(A100, Tile::M128N256), Some(3));
        assert_eq!(stages(RTX3090, Tile::M128N256), None);
        assert_eq!(stages(H200, Tile::M128N128), Some(6));
        assert_eq!(stages(A100, Tile::M128N128), Some(4));
        assert_eq!(stages(RTX3090, Tile::M128N128), Some(3));
        for limits in [H200, A100, RTX3090] {
            for tile in Tile::ALL {
                for m in [1, 17, 64, 300, 5000] {
                    for k in [8, 64, 72, 1024] {
                        let Some(plan) = Plan::with_tile(limits, shape(m, 6144, k), tile) else { continue };
                        assert!(STAGES.contains(&plan.stages), "{plan:?}");
                        assert!(plan.stages * tile.stage_bytes() <= limits.shared_bytes, "{plan:?}");
                    }
                }
            }
        }
        // One block an SM has it all; a short sum needs no more than it has turns.
        let few = |k| Plan::choose(RTX3090, shape(32, 5120, k));
        assert_eq!((few(6144).tile, few(6144).stages), (Tile::M32N64, 8));
        assert_eq!(few(200).stages, 6);
        assert_eq!(few(8).stages, 3);
    }

    #[test]
    fn groups_are_square_in_elements_and_of_equal_size() {
        let group = |m, tile| Plan::with_tile(H200, shape(m, 24_576, 6144), tile).unwrap().group;
        // 264 blocks at a time: 16 x 16.5.
        assert_eq!(group(128 * 64, Tile::M128N128), 16);
        // 132 at a time, twice as wide as high: 16 x 8.25.
        assert_eq!(group(128 * 64, Tile::M128N256), 16);
        // 17 rows of tiles are 9 and 8, not 16 and 1.
        assert_eq!(group(128 * 17, Tile::M128N128), 9);
        assert_eq!(group(128 * 5, Tile::M128N128), 5);
        assert_eq!(group(1, Tile::M32N64), 1);
    }

    #[test]
    fn any_sizes_have_a_plan() {
        for m in [1, 2, 127, 129, usize::MAX / 2] {
            for n in [8, 136, 1 << 40] {
                for k in [8, 1 << 30] {
                    let plan = Plan::choose(Limits { sm_count: 0, shared_bytes: 0 }, shape(m, n, k));
                    assert_eq!(plan.stages, 3);
                }
            }
        }
    }
}
