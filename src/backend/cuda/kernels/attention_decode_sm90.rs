//! `kernels/attention_decode_sm90.cu`: how [`attention_decode`](super::attention_decode) is launched on Hopper.

use super::super::device::Properties;
use super::super::image;
use super::super::launch::Launch;
use super::attention_decode::Form;

/// The most blocks of a cluster: as many as every device takes. A row whose splits are more has the same bits with any
/// number of splits in the grid because clusters are then all of this size.
const MOST_BLOCKS: usize = 8;
/// Bytes of an mbarrier.
const BARRIER: usize = 8;

/// Whether this binary has the kernels, and they run on the device.
pub(super) fn runs_on(device: &Properties) -> bool {
    image::runs_on(Form::Cluster.file(), device.compute_capability)
}

/// Clusters for so many splits.
pub(super) fn clusters(splits: usize) -> usize {
    splits.div_ceil(MOST_BLOCKS)
}

/// The most splits for each of `blocks` (sequences, heads and tiles of heads) whose clusters all run at one time.
///
/// The multiprocessors of a cluster lie together, in groups of up to 18 of which some have but 14, and each has room for
/// two blocks. Of 132 multiprocessors, 15 clusters of 8 were seen to run at a time with a block each, where 16 would have
/// room, and 7 blocks leave room that no other cluster takes: so it is counted with five of six.
pub(super) fn splits_at_a_time(multiprocessors: usize, blocks: usize) -> usize {
    match 2 * multiprocessors * 5 / 6 / blocks {
        splits if splits > MOST_BLOCKS => splits / MOST_BLOCKS * MOST_BLOCKS,
        splits => splits,
    }
}

/// Makes whole clusters of the blocks of a launch, one along x for each split, and room behind their rings for what the
/// blocks of a cluster send each other: results of the tile's `heads`, in whole rounds of the cluster.
pub(super) fn gather(launch: &mut Launch, heads: usize, head_dim: usize) {
    let blocks = launch.grid[0].clamp(1, MOST_BLOCKS as u32);
    launch.grid[0] = launch.grid[0].next_multiple_of(blocks);
    launch.cluster[0] = blocks;
    let slots = heads.next_multiple_of(blocks as usize);
    launch.shared_bytes += (slots * (head_dim + 2) * 4 + BARRIER) as u32;
}
