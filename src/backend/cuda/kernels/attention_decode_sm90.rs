//! `kernels/attention_decode_sm90.cu`: how [`attention_decode`](super::attention_decode) is launched on Hopper.

use super::super::device::Properties;
use super::super::image;
use super::super::launch::Launch;

/// The name of the kernel's file, with which the names of its kernels begin.
pub(super) const FILE: &str = "attention_decode_sm90";
/// Blocks of a cluster where there are more splits than that, else one for each split: as many as every device takes.
const MAX_BLOCKS: usize = 8;
/// Bytes of an mbarrier.
const BARRIER: usize = 8;

/// Whether this binary has the kernels, and they run on the device.
pub(super) fn runs_on(device: &Properties) -> bool {
    image::runs_on(FILE, device.compute_capability)
}

/// Clusters for so many splits.
pub(super) fn clusters(splits: usize) -> usize {
    splits.div_ceil(MAX_BLOCKS)
}

/// Splits of each of `rows` (sequences, KV heads and tiles of their query heads together) with which all clusters run
/// at one time, two blocks an SM.
///
/// A cluster lies within one group of SMs; groups have 14 to 18 of them, and what is left in one is of no use
/// to a cluster that is larger. Of 132 SMs 15 clusters of 8 were seen at a time with a block on each, not 16.
/// Five blocks of six fit for every size of cluster.
pub(super) fn splits_at_a_time(sm_count: usize, rows: usize) -> usize {
    match 2 * sm_count * 5 / 6 / rows {
        splits if splits > MAX_BLOCKS => splits / MAX_BLOCKS * MAX_BLOCKS,
        splits => splits,
    }
}

/// Makes whole clusters of the blocks of a launch, one along x for each split, and room behind their rings for what the
/// blocks of a cluster send each other: results of the tile's `heads`, in whole rounds of the cluster.
pub(super) fn gather(launch: &mut Launch, heads: usize, head_dim: usize) {
    let blocks = launch.grid[0].clamp(1, MAX_BLOCKS as u32);
    launch.grid[0] = launch.grid[0].next_multiple_of(blocks);
    launch.cluster[0] = blocks;
    let slots = heads.next_multiple_of(blocks as usize);
    launch.shared_bytes += (slots * (head_dim + 2) * 4 + BARRIER) as u32;
}
