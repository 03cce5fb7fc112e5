//! `kernels/gemm_sm90.cu`: many rows of activations times a weight matrix on compute capability 9.0. Which tile, in
//! clusters of how many blocks and in what order is decided here, by a [`Plan`] that depends on the sizes and on the
//! number of SMs alone.

use super::super::buffer::SliceMut;
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::image;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::tensor_map::{Dimension, Swizzle, TensorMap};
use super::constants::gemm_sm90 as constants;
use super::gemm::rows_of_a_group;
use super::linear::shape::{GemmShape, LinearInputs};
use super::{Check, Element};

pub(super) const CHECK: Check = Check { kernel: "gemm" };

const IMAGE: &str = "gemm_sm90";

/// Rows of the output that a block computes at a time, and those of each of its two halves.
const TILE_M: u32 = constants::TILE_M;
const HALF_TILE_M: u32 = constants::GROUP_ROWS;
/// Elements of k in a stage, and columns of the output tile stored at a time: rows of 128 bytes in shared memory.
const BOX_ELEMENTS: u32 = constants::TILE_K;
const THREADS: u32 = constants::THREADS;
/// Of the stages together, of the store tiles of the output, and of barriers: two per stage, one per store tile.
const RING_BYTES: u32 = constants::RING_BYTES;
const OUTPUT_BYTES: u32 = constants::CONSUMERS * constants::STORE_TILES * constants::STORE_TILE_BYTES;
const STORE_BARRIER_BYTES: u32 = 32;

/// Whether the kernels run on a device, and are in this binary.
pub fn runs_on(device: &Properties) -> bool {
    image::runs_on(IMAGE, device.compute_capability)
}

/// How much of the output a block computes at a time: 128 rows and `n` columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 256 columns: the fewest bytes for each product.
    N256,
    /// 192 columns.
    N192,
    /// 128 columns.
    N128,
    /// 64 columns.
    N64,
}

impl Tile {
    /// All of them, the largest first.
    pub const ALL: [Tile; 4] = [Tile::N256, Tile::N192, Tile::N128, Tile::N64];

    /// Rows of the output.
    pub fn m(self) -> u32 {
        TILE_M
    }

    /// Columns of the output.
    pub fn n(self) -> u32 {
        let [n] = match self {
            Tile::N256 => constants::TILE256,
            Tile::N192 => constants::TILE192,
            Tile::N128 => constants::TILE128,
            Tile::N64 => constants::TILE64,
        };
        n
    }

    /// Stages of the ring in shared memory: as many as fit.
    pub fn stages(self) -> u32 {
        RING_BYTES / self.stage_bytes()
    }

    /// The kernel that computes it.
    pub(super) fn kernel_name(self, epilogue: &str, element: &str) -> String {
        format!("gemm_sm90_{epilogue}_{element}_{TILE_M}x{}", self.n())
    }

    fn stage_bytes(self) -> u32 {
        (TILE_M + self.n()) * BOX_ELEMENTS * 2
    }

    fn shared_bytes(self) -> u32 {
        self.stages() * (self.stage_bytes() + 16) + OUTPUT_BYTES + STORE_BARRIER_BYTES
    }
}

/// How a GEMM is tiled. It changes no bit of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What a block computes at a time.
    pub tile: Tile,
    /// Blocks that share weights, of neighbouring rows of tiles: 1 or 2.
    pub cluster: u32,
    /// Clusters that run, at most as many as there are tiles for: each computes one after the other.
    pub clusters: u32,
    /// Rows of a cluster's tiles that are computed together, so that those that run at one time share operands in L2;
    /// at least 1.
    pub group: u32,
}

impl Plan {
    /// The plan of a product: tile and cluster of the least estimated time; of equals those that compute least past the
    /// output's ends, then the widest, then in clusters.
    pub fn choose(sm_count: u32, shape: GemmShape) -> Plan {
        // With one row of tiles the second block of a cluster would have nothing to do.
        let clusters = if shape.m > TILE_M as usize { &[2, 1][..] } else { &[1] };
        let all = Tile::ALL.into_iter().flat_map(|tile| clusters.iter().map(move |cluster| (tile, *cluster)));
        let best = all.min_by_key(|(tile, cluster)| cost(*tile, *cluster, sm_count, shape));
        let (tile, cluster) = best.unwrap_or((Tile::N256, 1)); // there are four or eight
        Plan::with_tile(sm_count, shape, tile, cluster)
    }

    /// The plan with this tile, in clusters of 1 or 2 blocks.
    pub fn with_tile(sm_count: u32, shape: GemmShape, tile: Tile, cluster: u32) -> Plan {
        let cluster = cluster.clamp(1, 2);
        let (down, _, tiles) = counts(tile, cluster, shape);
        let together = tiles.min(at_once(sm_count, cluster)).max(1);
        let clusters = u32::try_from(together).unwrap_or(u32::MAX);
        let group = rows_of_a_group(down, together, cluster * TILE_M, tile.n());
        Plan { tile, cluster, clusters, group }
    }
}

/// Tiles of a cluster down and across the output, and in all.
fn counts(tile: Tile, cluster: u32, shape: GemmShape) -> (u64, u64, u64) {
    shape.tiles(cluster * TILE_M, tile.n())
}

/// Clusters that the device runs at one time.
fn at_once(sm_count: u32, cluster: u32) -> u64 {
    u64::from(sm_count / cluster).max(1)
}

/// Estimated time, in thousandths of a cycle for each element of k: the longest of the busiest SM's
/// products, at 2048 multiply-adds a cycle, its operands from L2, at 32 bytes a cycle, of weights its share of the
/// cluster's, and all weights from memory, at 14 bytes a cycle for each SM. Then how much of the output is
/// computed, with what lies past its ends.
fn cost(tile: Tile, cluster: u32, sm_count: u32, shape: GemmShape) -> (u64, u64) {
    let (.., tiles) = counts(tile, cluster, shape);
    let (m, n, blocks) = (u64::from(TILE_M), u64::from(tile.n()), u64::from(cluster));
    let products = m * n * 1000 / 2048;
    let operands = (m + n / blocks) * 2 * 1000 / 32;
    let busiest = tiles.div_ceil(at_once(sm_count, cluster)).saturating_mul(products.max(operands));
    let memory = (shape.n as u64).saturating_mul(2 * 1000) / (14 * u64::from(sm_count.max(1)));
    (busiest.max(memory), tiles.saturating_mul(blocks * m * n))
}

/// Begins a kernel's arguments with the maps of its operands, and of an output that is a plain matrix of `T`. The
/// lengths of all are those of `shape`, which has no zero.
pub(super) fn operands<T: Element>(
    plan: Plan,
    shape: GemmShape,
    inputs: LinearInputs<'_, T>,
    matrix: Option<&SliceMut<'_, T>>,
) -> Result<Arguments, CudaError> {
    if !(1..=2).contains(&plan.cluster) {
        return CHECK.fail("blocks of a cluster", plan.cluster, "1 or 2");
    }
    let GemmShape { m, n, k } = shape;
    let dimensions = |width, height, box_height| Dimension::of_matrix(width, height, [BOX_ELEMENTS, box_height]);
    let weights = dimensions(k, n, plan.tile.n() / plan.cluster);
    let arguments = Arguments::new()
        .tensor_map(&TensorMap::input(inputs.x, &dimensions(k, m, TILE_M), Swizzle::Bytes128)?)
        .tensor_map(&TensorMap::input(inputs.weights.dense::<T>(CHECK)?, &weights, Swizzle::Bytes128)?);
    Ok(match matrix {
        None => arguments,
        Some(matrix) => {
            let map = TensorMap::output(matrix, &dimensions(n, m, HALF_TILE_M), Swizzle::Bytes128)?;
            arguments.tensor_map(&map)
        }
    })
}

/// The kernels of one epilogue and element type, by tile.
pub(super) struct GemmSm90(Vec<Kernel>);

impl GemmSm90 {
    /// None on a device that they do not run on.
    pub(super) fn load(device: &Device, epilogue: &str, element: &str) -> Result<Option<GemmSm90>, CudaError> {
        if !runs_on(device.properties()) {
            return Ok(None);
        }
        let names = Tile::ALL.map(|tile| tile.kernel_name(epilogue, element));
        Ok(Some(GemmSm90(device.module(IMAGE)?.kernels(names)?)))
    }

    /// # Safety
    /// `arguments` are those of the kernels without `group`, with the lengths of `shape`, and begin with what
    /// [`operands`] made for this plan.
    pub(super) unsafe fn launch(
        &self,
        stream: &Stream,
        plan: Plan,
        shape: GemmShape,
        arguments: Arguments,
    ) -> Result<(), CudaError> {
        let Plan { tile, cluster, clusters, group } = plan;
        let (down, _, tiles) = counts(tile, cluster, shape);
        // The kernel counts them in 32 bits, a round of clusters past the end; and multiplies the group with those
        // across.
        let tiles = CHECK.size("the number of tiles", tiles as usize, i32::MAX as usize)?;
        let group = CHECK.size("group", group as usize, down as usize)?;
        let most = (i32::MAX as u32 / cluster).min(tiles);
        let clusters = CHECK.size("clusters", clusters as usize, most as usize)?;
        let mut launch = Launch::linear(clusters * cluster, THREADS);
        launch.cluster = [cluster, 1, 1];
        launch.shared_bytes = tile.shared_bytes();
        let arguments = arguments.scalar(group);
        // SAFETY: the caller's promise; the group is in the kernel's range, and every tile has a cluster.
        unsafe { stream.launch(&self.0[tile as usize], &launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SMs of H100 and H200.
    const H200: u32 = 132;

    fn shape(m: usize, n: usize) -> GemmShape {
        GemmShape { m, n, k: 6144 }
    }

    fn chosen(m: usize, n: usize) -> (u32, u32) {
        let plan = Plan::choose(H200, shape(m, n));
        (plan.tile.n(), plan.cluster)
    }

    #[test]
    fn many_rows_get_the_widest_tile_in_clusters() {
        for n in [5632, 6144, 7168, 18_432, 24_576, 49_152] {
            assert_eq!(chosen(4096, n), (256, 2), "{n}");
            assert_eq!(chosen(8192, n), (256, 2), "{n}");
        }
    }

    #[test]
    fn other_widths_where_the_widest_leaves_sms_idle() {
        // 96 clusters of 256 n are two rounds of 66, 128 of 192 too, and shorter ones.
        assert_eq!(chosen(2048, 3072), (192, 2));
        // 48 of 256, 64 of 192: one round, of which the second fills more.
        assert_eq!(chosen(1024, 3072), (192, 2));
        assert_eq!(chosen(256, 6144), (128, 2));
    }

    #[test]
    fn one_row_of_tiles_has_no_neighbour() {
        for n in [3072, 6144, 24_576] {
            for m in [65, 100, 128] {
                assert_eq!(chosen(m, n).1, 1, "{m} {n}");
            }
        }
        assert_eq!(chosen(128, 6144), (64, 1));
    }

    #[test]
    fn no_more_clusters_run_than_there_are_tiles_or_sms() {
        let clusters = |m, n, cluster| Plan::with_tile(H200, shape(m, n), Tile::N256, cluster).clusters;
        assert_eq!(clusters(8192, 24_576, 1), 132);
        assert_eq!(clusters(8192, 24_576, 2), 66);
        assert_eq!(clusters(200, 520, 1), 6);
        assert_eq!(clusters(200, 520, 2), 3);
        // An odd number of SMs leaves one idle.
        assert_eq!(Plan::with_tile(113, shape(8192, 24_576), Tile::N256, 2).clusters, 56);
    }

    #[test]
    fn groups_are_square_in_elements_and_of_equal_size() {
        let group = |m, tile, cluster| Plan::with_tile(H200, shape(m, 24_576), tile, cluster).group;
        // 66 clusters at a time, as wide as high: 8 x 8.25.
        assert_eq!(group(256 * 64, Tile::N256, 2), 8);
        // 132 at a time, twice as wide as high: 16 x 8.25.
        assert_eq!(group(128 * 64, Tile::N256, 1), 16);
        // 9 rows of tiles are 5 and 4, not 8 and 1.
        assert_eq!(group(256 * 9, Tile::N256, 2), 5);
        assert_eq!(group(1, Tile::N64, 1), 1);
    }

    #[test]
    fn stages_and_store_tiles_fit_into_the_shared_memory_of_a_block() {
        assert_eq!(Tile::ALL.map(Tile::stages), [4, 4, 6, 8]);
        for tile in Tile::ALL {
            assert!(tile.shared_bytes() <= 227 << 10, "{tile:?}: {}", tile.shared_bytes());
        }
    }

    #[test]
    fn any_sizes_have_a_plan() {
        for m in [1, 2, 127, 129, usize::MAX / 2] {
            for n in [8, 136, 1 << 40] {
                for sm_count in [0, 1, 3] {
                    let plan = Plan::choose(sm_count, shape(m, n));
                    assert!(plan.clusters >= 1 && plan.group >= 1, "{plan:?}");
                }
            }
        }
    }
}
