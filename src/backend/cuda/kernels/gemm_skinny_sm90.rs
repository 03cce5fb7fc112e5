//! `kernels/gemm_skinny_sm90.cu`: 17 to 256 rows of activations times a weight matrix, on compute capability 9.0 alone.
//! How a product is cut is decided here, by a [`Plan`] that depends on the sizes and on the number of multiprocessors
//! alone; into how many parts k is cut, on columns, depth and device alone.

use super::super::buffer::Slice;
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::image;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::tensor_map::{Dimension, Swizzle, TensorMap};
use super::constants::gemm_skinny_sm90 as constants;
use super::product::shape::{ProductInputs, ProductShape};
use super::{Check, Element};

pub(super) const CHECK: Check = Check { kernel: "gemm" };

const IMAGE: &str = "gemm_skinny_sm90";

const COLUMNS: usize = constants::TILE as usize;
const DEPTH: usize = constants::DEPTH as usize;
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
pub enum Batch {
    /// Up to 64 rows.
    Rows64,
    /// Up to 128 rows.
    Rows128,
    /// Up to 192 rows.
    Rows192,
    /// Up to 256 rows.
    Rows256,
}

impl Batch {
    /// All of them, the smallest first.
    pub const ALL: [Batch; 4] = [Batch::Rows64, Batch::Rows128, Batch::Rows192, Batch::Rows256];

    /// The smallest that has room for `rows`; the largest where none has.
    pub fn for_rows(rows: usize) -> Batch {
        Batch::ALL.into_iter().find(|batch| rows <= batch.rows()).unwrap_or(Batch::Rows256)
    }

    /// The most rows.
    pub fn rows(self) -> usize {
        self.numbers()[0] as usize
    }

    fn stages(self) -> usize {
        self.numbers()[1] as usize
    }

    /// The numbers that make it, as `Shape` of the kernels takes them.
    fn numbers(self) -> [u32; 3] {
        match self {
            Batch::Rows64 => constants::BATCH64,
            Batch::Rows128 => constants::BATCH128,
            Batch::Rows192 => constants::BATCH192,
            Batch::Rows256 => constants::BATCH256,
        }
    }

    /// Bytes of shared memory of a block.
    pub fn shared_bytes(self) -> usize {
        self.stages() * ((COLUMNS + self.rows()) * ROW_BYTES + BARRIER_BYTES)
    }

    fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("skinny_{epilogue}_{element}_{}", self.rows())
    }
}

/// How a product is cut into blocks, each of 128 columns and one part of k. Blocks whose parts are added up, and two
/// tiles side by side that share activations, are one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Which kernel.
    pub batch: Batch,
    /// Parts of k.
    pub splits: u32,
    /// Tiles of a cluster: 1 or 2.
    pub across: u32,
}

impl Plan {
    /// The plan of a product on a device of `multiprocessors`.
    ///
    /// Blocks are equal and share the memory's bandwidth, so it takes no more of them than multiprocessors to use it
    /// all, and up to twice as many run at one time. So there are as many parts, 1, 2, 4 or 8, as make a block for
    /// seven of eight multiprocessors; their number at most doubles by it, which is at one time too.
    pub fn choose(multiprocessors: u32, shape: ProductShape) -> Plan {
        let ProductShape { rows, columns, depth } = shape;
        let (tiles, chunks) = (columns.div_ceil(COLUMNS), depth.div_ceil(DEPTH));
        let wanted = multiprocessors as usize * 7 / 8;
        let mut splits = 1;
        while splits < MAX_CLUSTERED
            && tiles.saturating_mul(splits as usize) < wanted
            && chunks / (2 * splits as usize) >= MIN_CHUNKS
        {
            splits *= 2;
        }
        let across = if tiles > 1 && 2 * splits <= MAX_CLUSTERED { 2 } else { 1 };
        Plan { batch: Batch::for_rows(rows), splits, across }
    }

    /// Blocks of a launch: whole clusters.
    pub fn blocks(&self, columns: usize) -> usize {
        let clusters = columns.div_ceil(COLUMNS).div_ceil(self.across as usize);
        clusters.saturating_mul((self.across * self.splits) as usize)
    }

    /// The kernel that computes it.
    pub(super) fn kernel_name(self, epilogue: &str, element: &str) -> String {
        self.batch.kernel_name(epilogue, element)
    }
}

/// Begins a kernel's arguments with the maps of its operands, whose lengths are those of `shape`, which has no zero.
///
/// # Errors
/// [`CudaError::Operand`] for more rows than the kernel's, parts that are not 1 to 8 or more than there are chunks of
/// k, tiles that are not 1 or 2, and a cluster of more than 8 blocks; those of [`TensorMap::input`].
pub(super) fn operands<T: Element>(
    plan: Plan,
    shape: ProductShape,
    inputs: ProductInputs<'_, T>,
) -> Result<Arguments, CudaError> {
    let ProductShape { rows, columns, depth } = shape;
    CHECK.size("rows", rows, plan.batch.rows())?;
    let max_splits = depth.div_ceil(DEPTH).min(MAX_CLUSTERED as usize);
    let splits = CHECK.size("parts of k", plan.splits as usize, max_splits)?;
    let across = CHECK.size("tiles of a cluster", plan.across as usize, 2)?;
    CHECK.size("blocks of a cluster", (across * splits) as usize, MAX_CLUSTERED as usize)?;
    let map = |matrix: Slice<'_, T>, rows: usize, in_box: usize| {
        let dimensions = Dimension::of_matrix(depth, rows, [DEPTH as u32, in_box as u32]);
        TensorMap::input(matrix, &dimensions, Swizzle::Bytes128)
    };
    let x = map(inputs.x, rows, plan.batch.rows() / across as usize)?;
    Ok(Arguments::new().tensor_map(&x).tensor_map(&map(inputs.weights.dense(CHECK)?, columns, COLUMNS)?))
}

/// The kernels of one epilogue and element type, by the most rows.
pub(super) struct Skinny(Vec<Kernel>);

impl Skinny {
    /// None on devices that they do not run on.
    pub(super) fn load(device: &Device, epilogue: &str, element: &str) -> Result<Option<Skinny>, CudaError> {
        if !runs_on(device.properties()) {
            return Ok(None);
        }
        let names = Batch::ALL.map(|batch| batch.kernel_name(epilogue, element));
        Ok(Some(Skinny(device.module(IMAGE)?.kernels(names)?)))
    }

    /// # Safety
    /// `arguments` are those of the kernels without `across`, with the lengths of `shape`; they begin with what
    /// [`operands`] made for this plan.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        plan: Plan,
        shape: ProductShape,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        let blocks = CHECK.size("the number of blocks", plan.blocks(shape.columns), i32::MAX as usize)?;
        let mut launch = Launch::linear(blocks, THREADS);
        launch.cluster[0] = plan.across * plan.splits;
        launch.shared_bytes = plan.batch.shared_bytes() as u32;
        let arguments = arguments.scalar(plan.across);
        // SAFETY: the caller's promise; the grid has every tile and part once, and is whole clusters.
        unsafe { stream.launch(&self.0[plan.batch as usize], &launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: usize, columns: usize, depth: usize) -> Plan {
        Plan::choose(132, ProductShape { rows, columns, depth })
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
    fn every_matrix_of_the_models_fills_the_multiprocessors_and_runs_at_one_time() {
        for (columns, depth) in MATRICES {
            let plan = plan(64, columns, depth);
            let blocks = plan.blocks(columns);
            assert!(blocks >= 132 * 7 / 8, "{columns} x {depth}: {blocks} blocks, {plan:?}");
            // Two a multiprocessor, but for the head, which is no longer split.
            assert!(blocks <= 264 || plan.splits == 1, "{columns} x {depth}: {blocks} blocks, {plan:?}");
            assert!(depth.div_ceil(DEPTH) / plan.splits as usize >= MIN_CHUNKS, "{columns} x {depth}: {plan:?}");
        }
        let cut = |columns, depth| {
            let Plan { splits, across, .. } = plan(64, columns, depth);
            (splits, across)
        };
        assert_eq!(cut(3072, 3072), (8, 1));
        assert_eq!(cut(7168, 6144), (4, 2));
        assert_eq!(cut(12_288, 3072), (2, 2));
        assert_eq!(cut(24_576, 6144), (1, 2));
    }

    #[test]
    fn the_parts_of_k_do_not_depend_on_the_rows() {
        for (columns, depth) in MATRICES {
            let splits = plan(17, columns, depth).splits;
            assert!((17..=256).all(|rows| plan(rows, columns, depth).splits == splits), "{columns} x {depth}");
        }
        let rows = [17, 64, 65, 128, 129, 192, 193, 256].map(|rows| Batch::for_rows(rows).rows());
        assert_eq!(rows, [64, 64, 128, 128, 192, 192, 256, 256]);
    }

    #[test]
    fn any_sizes_have_a_plan_that_can_be_launched() {
        for multiprocessors in [0, 1, 132, u32::MAX] {
            for columns in [8, 128, 136, usize::MAX / 2] {
                for depth in [8, 72, 512, 1032, 1 << 30] {
                    let plan = Plan::choose(multiprocessors, ProductShape { rows: 33, columns, depth });
                    assert!(plan.across * plan.splits <= MAX_CLUSTERED, "{plan:?}");
                    assert!(plan.splits as usize <= depth.div_ceil(DEPTH), "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn small_batches_leave_room_for_a_second_block_and_all_have_weights_enough_under_way() {
        for batch in Batch::ALL {
            // 228 KiB of a multiprocessor, 1 of which the driver keeps for each block; 227 for one block.
            let most = if batch.rows() <= 128 { (228 << 10) / 2 - (1 << 10) } else { 227 << 10 };
            assert!(batch.shared_bytes() <= most, "{batch:?}: {}", batch.shared_bytes());
            assert!(batch.stages() * COLUMNS * ROW_BYTES >= 48 << 10, "{batch:?}");
        }
    }
}
