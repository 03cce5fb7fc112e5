//! `kernels/gemm_small_m_sm90.cu`: 17 to 256 rows of activations times a weight matrix, on compute capability 9.0
//! alone. The tiling is decided here, by a [`Plan`] that depends on the sizes and on the number of SMs alone; into how
//! many parts k is cut, on `n`, `k` and the device alone.

use super::super::buffer::Slice;
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::image;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::tensor_map::{Dimension, Swizzle, TensorMap};
use super::constants::gemm_small_m_sm90 as constants;
use super::linear::shape::{GemmShape, LinearInputs};
use super::{Check, Element};

pub(super) const CHECK: Check = Check { kernel: "gemm" };

const IMAGE: &str = "gemm_small_m_sm90";

const TILE_N: usize = constants::TILE as usize;
const TILE_K: usize = constants::TILE_K as usize;
/// Threads of a block.
pub const THREADS: u32 = constants::THREADS;
/// Bytes of a row of either operand in a stage, and of the two barriers of one.
const ROW_BYTES: usize = constants::ROW_BYTES as usize;
const BARRIER_BYTES: usize = 16;
/// Blocks of a cluster that every device of compute capability 9.0 can run.
const MAX_CLUSTERED: u32 = 8;
/// A part of fewer chunks of 64 k would take longer to begin and to be added up than to be multiplied.
const MIN_CHUNKS: usize = 4;

/// The most rows of one launch.
pub const MAX_ROWS: usize = 256;

/// Whether the kernels run on a device, and are in this binary.
pub fn runs_on(device: &Properties) -> bool {
    image::runs_on(IMAGE, device.compute_capability)
}

/// The kernels of one epilogue, by the rows that they compute at the most. Each gives a row the same bits beside any
/// other rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// Up to 64 rows.
    M64,
    /// Up to 128 rows.
    M128,
    /// Up to 192 rows.
    M192,
    /// Up to 256 rows.
    M256,
}

impl Tile {
    /// All of them, the smallest first.
    pub const ALL: [Tile; 4] = [Tile::M64, Tile::M128, Tile::M192, Tile::M256];

    /// The smallest that has room for `rows`; the largest where none has.
    pub fn for_rows(m: usize) -> Tile {
        Tile::ALL.into_iter().find(|tile| m <= tile.m()).unwrap_or(Tile::M256)
    }

    /// The most rows.
    pub fn m(self) -> usize {
        self.numbers()[0] as usize
    }

    fn stages(self) -> usize {
        self.numbers()[1] as usize
    }

    /// The numbers that make it, as `Shape` of the kernels takes them.
    fn numbers(self) -> [u32; 3] {
        match self {
            Tile::M64 => constants::TILE64,
            Tile::M128 => constants::TILE128,
            Tile::M192 => constants::TILE192,
            Tile::M256 => constants::TILE256,
        }
    }

    /// Bytes of shared memory of a block.
    pub fn shared_bytes(self) -> usize {
        self.stages() * ((TILE_N + self.m()) * ROW_BYTES + BARRIER_BYTES)
    }

    fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("gemm_small_m_{epilogue}_{element}_{}", self.m())
    }
}

/// How a GEMM is tiled, each of 128 columns and one split of k. Blocks whose parts are added up, and two
/// tiles side by side that share activations, are one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Which kernel.
    pub tile: Tile,
    /// Parts of k.
    pub splits: u32,
    /// Tiles of a cluster: 1 or 2.
    pub across: u32,
}

impl Plan {
    /// The plan of a product on a device of `sm_count`.
    ///
    /// Blocks are equal and share the memory's bandwidth, so it takes no more of them than SMs to use it
    /// all, and up to twice as many run at one time. So there are as many parts, 1, 2, 4 or 8, as make a block for
    /// seven of eight SMs; their number at most doubles by it, which is at one time too.
    pub fn choose(sm_count: u32, shape: GemmShape) -> Plan {
        let GemmShape { m, n, k } = shape;
        let (tiles, chunks) = (n.div_ceil(TILE_N), k.div_ceil(TILE_K));
        let wanted = sm_count as usize * 7 / 8;
        let mut splits = 1;
        while splits < MAX_CLUSTERED
            && tiles.saturating_mul(splits as usize) < wanted
            && chunks / (2 * splits as usize) >= MIN_CHUNKS
        {
            splits *= 2;
        }
        let across = if tiles > 1 && 2 * splits <= MAX_CLUSTERED { 2 } else { 1 };
        Plan { tile: Tile::for_rows(m), splits, across }
    }

    /// Blocks of a launch: whole clusters.
    pub fn blocks(&self, n: usize) -> usize {
        let clusters = n.div_ceil(TILE_N).div_ceil(self.across as usize);
        clusters.saturating_mul((self.across * self.splits) as usize)
    }

    /// The kernel that computes it.
    pub(super) fn kernel_name(self, epilogue: &str, element: &str) -> String {
        self.tile.kernel_name(epilogue, element)
    }
}

/// Begins a kernel's arguments with the maps of its operands, whose lengths are those of `shape`, which has no zero.
///
/// # Errors
/// [`CudaError::Operand`] for more rows than the kernel's, parts that are not 1 to 8 or more than there are chunks of
/// k, tiles that are not 1 or 2, and a cluster of more than 8 blocks; those of [`TensorMap::input`].
pub(super) fn operands<T: Element>(
    plan: Plan,
    shape: GemmShape,
    inputs: LinearInputs<'_, T>,
) -> Result<Arguments, CudaError> {
    let GemmShape { m, n, k } = shape;
    CHECK.size("m", m, plan.tile.m())?;
    let max_splits = k.div_ceil(TILE_K).min(MAX_CLUSTERED as usize);
    let splits = CHECK.size("parts of k", plan.splits as usize, max_splits)?;
    let across = CHECK.size("tiles of a cluster", plan.across as usize, 2)?;
    CHECK.size("blocks of a cluster", (across * splits) as usize, MAX_CLUSTERED as usize)?;
    let map = |matrix: Slice<'_, T>, m: usize, in_box: usize| {
        let dimensions = Dimension::of_matrix(k, m, [TILE_K as u32, in_box as u32]);
        TensorMap::input(matrix, &dimensions, Swizzle::Bytes128)
    };
    let x = map(inputs.x, m, plan.tile.m() / across as usize)?;
    Ok(Arguments::new().tensor_map(&x).tensor_map(&map(inputs.weights.dense(CHECK)?, n, TILE_N)?))
}

/// The kernels of one epilogue and element type, by the most rows.
pub(super) struct SmallM(Vec<Kernel>);

impl SmallM {
    /// None on devices that they do not run on.
    pub(super) fn load(device: &Device, epilogue: &str, element: &str) -> Result<Option<SmallM>, CudaError> {
        if !runs_on(device.properties()) {
            return Ok(None);
        }
        let names = Tile::ALL.map(|tile| tile.kernel_name(epilogue, element));
        Ok(Some(SmallM(device.module(IMAGE)?.kernels(names)?)))
    }

    /// # Safety
    /// `arguments` are those of the kernels without `across`, with the lengths of `shape`; they begin with what
    /// [`operands`] made for this plan.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        plan: Plan,
        shape: GemmShape,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        let blocks = CHECK.size("the number of blocks", plan.blocks(shape.n), i32::MAX as usize)?;
        let mut launch = Launch::linear(blocks, THREADS);
        launch.cluster[0] = plan.across * plan.splits;
        launch.shared_bytes = plan.tile.shared_bytes() as u32;
        let arguments = arguments.scalar(plan.across);
        // SAFETY: the caller's promise; the grid has every tile and part once, and is whole clusters.
        unsafe { stream.launch(&self.0[plan.tile as usize], &launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(m: usize, n: usize, k: usize) -> Plan {
        Plan::choose(132, GemmShape { m, n, k })
    }

    /// Columns and depths of the published models' matrices: queries, keys and values; attention's way out; the MLP's
    /// ways in and out; the head.
    const MATRICES: [(usize, usize); 15] = [
        (3584, 3072),
        (3072, 3072),
        (12_288, 3072),
        (3072, 12_288),
        (49_152, 3072),
        (5632, 4608),
        (4608, 4608),
        (18_432, 4608),
        (4608, 18_432),
        (49_152, 4608),
        (7168, 6144),
        (6144, 6144),
        (24_576, 6144),
        (6144, 24_576),
        (49_152, 6144),
    ];

    #[test]
    fn every_matrix_of_the_models_fills_the_sms_and_runs_at_one_time() {
        for (n, k) in MATRICES {
            let plan = plan(64, n, k);
            let blocks = plan.blocks(n);
            assert!(blocks >= 132 * 7 / 8, "{n} x {k}: {blocks} blocks, {plan:?}");
            // Two an SM, but for the head, which is no longer split.
            assert!(blocks <= 264 || plan.splits == 1, "{n} x {k}: {blocks} blocks, {plan:?}");
            assert!(k.div_ceil(TILE_K) / plan.splits as usize >= MIN_CHUNKS, "{n} x {k}: {plan:?}");
        }
        let cut = |n, k| {
            let Plan { splits, across, .. } = plan(64, n, k);
            (splits, across)
        };
        assert_eq!(cut(3072, 3072), (8, 1));
        assert_eq!(cut(7168, 6144), (4, 2));
        assert_eq!(cut(12_288, 3072), (2, 2));
        assert_eq!(cut(24_576, 6144), (1, 2));
    }

    #[test]
    fn the_parts_of_k_do_not_depend_on_the_rows() {
        for (n, k) in MATRICES {
            let splits = plan(17, n, k).splits;
            assert!((17..=256).all(|m| plan(m, n, k).splits == splits), "{n} x {k}");
        }
        let m = [17, 64, 65, 128, 129, 192, 193, 256].map(|m| Tile::for_rows(m).m());
        assert_eq!(m, [64, 64, 128, 128, 192, 192, 256, 256]);
    }

    #[test]
    fn any_sizes_have_a_plan_that_can_be_launched() {
        for sm_count in [0, 1, 132, u32::MAX] {
            for n in [8, 128, 136, usize::MAX / 2] {
                for k in [8, 72, 512, 1032, 1 << 30] {
                    let plan = Plan::choose(sm_count, GemmShape { m: 33, n, k });
                    assert!(plan.across * plan.splits <= MAX_CLUSTERED, "{plan:?}");
                    assert!(plan.splits as usize <= k.div_ceil(TILE_K), "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn small_batches_leave_room_for_a_second_block_and_all_have_weights_enough_under_way() {
        for tile in Tile::ALL {
            // 228 KiB of an SM, 1 of which the driver keeps for each block; 227 for one block.
            let most = if tile.m() <= 128 { (228 << 10) / 2 - (1 << 10) } else { 227 << 10 };
            assert!(tile.shared_bytes() <= most, "{tile:?}: {}", tile.shared_bytes());
            assert!(tile.stages() * TILE_N * ROW_BYTES >= 48 << 10, "{tile:?}");
        }
    }
}
