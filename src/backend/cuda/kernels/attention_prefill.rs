//! `kernels/attention_prefill.cu` and, on Hopper, `kernels/attention_prefill_sm90.cu`: attention of many rows of a
//! sequence, a prompt or a chunk of one. Both take the same tiles; their sums differ in order, so a device keeps to
//! one.

use std::cmp::Reverse;
use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::super::buffer::{Slice, SliceMut};
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::switches::AttentionAlgorithm;
use super::super::work::Work;
use super::constants;
use super::paged::{AttentionInputs, Heads, SPAN_BYTES, Sequence, Sizes, check_head_dim, first_visible};
use super::{Check, Element, attention_prefill_sm90};

const CHECK: Check = Check { kernel: "attention_prefill" };
const THREADS: u32 = constants::attention_prefill::THREADS;
const QUERIES: usize = constants::attention_prefill::QUERIES as usize;
const KEYS: usize = constants::attention_prefill::KEYS as usize;
const BUFFERS: usize = constants::attention_prefill::BUFFERS as usize;
// Both variants take the same tiles.
const _: () = assert!(QUERIES == attention_prefill_sm90::QUERIES);

/// A share of a step for each KV head, as the kernels read it: 128 queries of a sequence, in the warp's variant only as
/// many as are whole rows.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Tile {
    /// Index of the sequence.
    pub sequence: u32,
    /// The first row, counted from the sequence's first in the step: a multiple of [`tile_rows`]. In the warpgroup's
    /// variant the quotient alone counts: it is how many tiles of the sequence, 128 queries each, come before.
    pub first_row: u32,
}

impl Tile {
    /// No tile: nothing is read or written for it.
    pub const PADDING: Tile = Tile { sequence: constants::attention_prefill::PADDING_TILE, first_row: 0 };
}

/// How many rows a tile has: 128 queries are those of all heads of a KV head for as many whole rows as there is room.
pub fn tile_rows(heads: &Heads) -> usize {
    (QUERIES / heads.group().max(1)).max(1)
}

/// How many tiles a step of `rows` rows in `sequences` sequences has at the most.
pub fn max_tiles(rows: usize, sequences: usize, heads: &Heads) -> usize {
    max_tiles_of(tile_rows(heads), rows, sequences)
}

/// [`max_tiles`] of `step` rows.
pub(super) fn max_tiles_of(step: usize, rows: usize, sequences: usize) -> usize {
    // Each sequence has at most one tile that is not full, and at least one row in it.
    rows / step + sequences.min(rows)
}

/// The tiles of all sequences that `takes` says yes to, such as those of more than one row where the others are left to
/// decode; those with the most keys first, so that the last blocks of the grid are short. Those of either variant serve
/// both; those of the other are more than the warpgroup's variant needs.
pub fn plan_tiles(
    sequences: &[Sequence],
    heads: &Heads,
    window: Option<usize>,
    variant: Variant,
    takes: impl Fn(&Sequence) -> bool,
) -> Vec<Tile> {
    let step = tile_rows(heads);
    match variant {
        Variant::Warp => plan_tiles_of(step, sequences, window, takes),
        Variant::Warpgroup => longest_first(sequences, window, takes, |sequence| {
            let (group, queries, rows) = (heads.group() as u64, QUERIES as u64, u64::from(sequence.rows));
            (0..(rows * group).div_ceil(queries)).map(move |index| {
                let (first, end) = (index * queries, ((index + 1) * queries).min(rows * group));
                (index as u32 * step as u32, first / group, (end - 1) / group)
            })
        }),
    }
}

/// [`plan_tiles`] of `step` whole rows each.
pub(super) fn plan_tiles_of(
    step: usize,
    sequences: &[Sequence],
    window: Option<usize>,
    takes: impl Fn(&Sequence) -> bool,
) -> Vec<Tile> {
    longest_first(sequences, window, takes, |sequence| {
        let rows = sequence.rows;
        (0..rows)
            .step_by(step)
            .map(move |first| (first, first.into(), (u64::from(first) + step as u64).min(rows.into()) - 1))
    })
}

/// The tiles that `tiles_of` says of sequences with rows, as `first_row` and the first and last row that they hold,
/// those with the most keys first.
fn longest_first<'a, I: Iterator<Item = (u32, u64, u64)>>(
    sequences: &'a [Sequence],
    window: Option<usize>,
    takes: impl Fn(&Sequence) -> bool,
    tiles_of: impl Fn(&'a Sequence) -> I,
) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (index, sequence) in (0..).zip(sequences).filter(|(_, sequence)| sequence.rows > 0 && takes(sequence)) {
        let start = u64::from(sequence.start);
        tiles.extend(tiles_of(sequence).map(|(first_row, first, last)| {
            let keys = start + last + 1 - first_visible(start + first, window);
            (keys, Tile { sequence: index, first_row })
        }));
    }
    tiles.sort_by_key(|(keys, _)| Reverse(*keys));
    tiles.into_iter().map(|(_, tile)| tile).collect()
}

/// Whether [`Variant::Warpgroup`] runs on the device.
pub fn has_warpgroups(device: &Properties) -> bool {
    attention_prefill_sm90::runs_on(device)
}

/// Which kernel computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `attention_prefill.cu`: MMA instructions of a warp. Runs everywhere.
    Warp,
    /// `attention_prefill_sm90.cu`: MMA instructions of a warpgroup. Compute capability 9.0 alone.
    Warpgroup,
}

impl Variant {
    /// The one for a device: as its algorithms say, else of a warpgroup where that runs and this binary has it.
    pub fn of(device: &Properties) -> Variant {
        match device.algorithms.prefill {
            Some(AttentionAlgorithm::Sm80) => Variant::Warp,
            Some(AttentionAlgorithm::Sm90) => Variant::Warpgroup,
            Some(AttentionAlgorithm::BatchInvariant) | None if has_warpgroups(device) => Variant::Warpgroup,
            Some(AttentionAlgorithm::BatchInvariant) | None => Variant::Warp,
        }
    }

    /// The name of its file, with which the names of its kernels begin.
    pub fn file(self) -> &'static str {
        match self {
            Variant::Warp => "attention_prefill",
            Variant::Warpgroup => attention_prefill_sm90::FILE,
        }
    }

    /// The kernel for an element type and heads of `head_dim` elements.
    pub fn kernel_name(self, element: &str, head_dim: usize) -> String {
        format!("{}_{element}_{head_dim}", self.file())
    }
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillShape {
    /// Rows of the step: of `queries` and `out`.
    pub rows: usize,
    /// Tiles, padding included.
    pub tiles: usize,
    /// Heads of the layer.
    pub heads: Heads,
    /// A row sees itself and up to `window - 1` positions before it; `None`: all.
    pub window: Option<usize>,
}

impl PrefillShape {
    /// For each sequence that has tiles its visible keys and values once, its queries, its outputs and its part of the
    /// tables; 2 products of head_dim multiply-adds for each head and visible pair. `sequences` are those of the step,
    /// of which `tiles` holds all tiles or none.
    pub fn work(&self, sequences: &[Sequence], tiles: &[Tile], page_size: usize) -> Work {
        let Heads { query, kv, dim } = self.heads;
        let mut work = Work { bytes_read: (self.tiles * size_of::<Tile>()) as u64, ..Work::default() };
        for (index, sequence) in (0..).zip(sequences) {
            if !tiles.iter().any(|tile| tile.sequence == index) {
                continue;
            }
            let row_bytes = u64::from(sequence.rows) * (query * dim * 2) as u64;
            let cached = 2 * sequence.visible_keys(self.window) * (kv * dim * 2) as u64;
            let tables = SPAN_BYTES + 4 * sequence.visible_blocks(self.window, page_size);
            work.bytes_read += row_bytes + cached + tables;
            work.bytes_written += row_bytes;
            work.flops += 4 * sequence.visible_pairs(self.window) * (query * dim) as u64;
        }
        work
    }
}

/// Attention of many rows over caches of `T`.
pub struct AttentionPrefill<T> {
    variant: Variant,
    kernel: Kernel,
    head_dim: usize,
    blocks: u32,
    element: PhantomData<T>,
}

impl<T: Element> AttentionPrefill<T> {
    /// Loads the kernel for heads of `head_dim` elements, in the variant for the device.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a `head_dim` that is neither 64 nor 128; those of [`Device::module`].
    pub fn load(device: &Device, head_dim: usize) -> Result<AttentionPrefill<T>, CudaError> {
        AttentionPrefill::load_variant(device, head_dim, Variant::of(device.properties()))
    }

    /// Loads the kernel of one variant.
    ///
    /// # Errors
    /// As for [`AttentionPrefill::load`]; [`CudaError::NoCode`] where the variant does not run on the device.
    pub fn load_variant(device: &Device, head_dim: usize, variant: Variant) -> Result<AttentionPrefill<T>, CudaError> {
        check_head_dim(CHECK, head_dim)?;
        let kernel = device.module(variant.file())?.kernel(&variant.kernel_name(T::NAME, head_dim))?;
        let blocks = device.properties().sm_count.max(1);
        Ok(AttentionPrefill { variant, kernel, head_dim, blocks, element: PhantomData })
    }

    /// The same with at most `blocks` blocks, at least 1, for the warpgroup's variant, whose blocks take one tile after
    /// the other: as many as the device has SMs where nothing is said. It changes no bit.
    #[must_use]
    pub fn with_blocks(self, blocks: u32) -> AttentionPrefill<T> {
        AttentionPrefill { blocks: blocks.max(1), ..self }
    }

    /// `out[r, h, :] = Σ p[k] v[k, :]` over the positions `k` that row `r` sees, with
    /// `p = softmax(q[r, h, :] · k[k, :] / √head_dim)`, for the rows of all `tiles`; `out` is
    /// `[rows, query heads, head_dim]`, and rows of no tile are not written.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, heads that are not of the kernel, a page size
    /// that is no power of two of at least 16, an empty window, or a buffer that is not aligned to 16 bytes.
    ///
    /// # Safety
    /// When the launch runs, `inputs.sequences` and `inputs.block_tables` hold what [`AttentionInputs`] says of them,
    /// and `tiles` such as [`plan_tiles`] makes of these sequences.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        shape: PrefillShape,
        inputs: AttentionInputs<'_, T>,
        tiles: Slice<'_, Tile>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let PrefillShape { rows, heads, window, .. } = shape;
        heads.check_dim(CHECK, self.head_dim)?;
        let sizes = inputs.check(CHECK, rows, &heads, window)?;
        let tile_count = CHECK.size("tiles", shape.tiles, i32::MAX as usize)?;
        CHECK.matrix("tiles", tiles.into(), shape.tiles, 1)?;
        CHECK.matrix("out", (&out).into(), rows, heads.width())?;
        let pointers = Arguments::new()
            .input(inputs.queries)
            .input(inputs.cache.keys)
            .input(inputs.cache.values)
            .output(&out)
            .input(inputs.sequences)
            .input(inputs.block_tables)
            .input(tiles);
        let (launch, arguments) = match self.variant {
            Variant::Warp => warp_launch(pointers, &sizes, &heads, tile_count),
            Variant::Warpgroup => {
                attention_prefill_sm90::launch(pointers, &sizes, rows, &heads, tile_count, &inputs.cache, self.blocks)?
            }
        };
        // SAFETY: the arguments are those of the kernels of this variant, checked above to have the lengths that they
        // index; what tiles, sequences and block tables hold is the caller's promise.
        unsafe { stream.launch(&self.kernel, &launch, &arguments) }
    }
}

/// A block for each tile and KV head.
fn warp_launch(pointers: Arguments, sizes: &Sizes, heads: &Heads, tiles: u32) -> (Launch, Arguments) {
    let mut launch = Launch::linear(tiles, THREADS);
    launch.grid[1] = sizes.kv_heads;
    // Queries, the ring of keys and values, and the position of each query.
    launch.shared_bytes = ((QUERIES + BUFFERS * KEYS) * heads.dim * 2 + QUERIES * 4) as u32;
    let Sizes { kv_heads, group, page_shift, window } = *sizes;
    (launch, pointers.scalar(kv_heads).scalar(group).scalar(page_shift).scalar(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(group: usize) -> Heads {
        Heads { query: 2 * group, kv: 2, dim: 128 }
    }

    #[test]
    fn a_tile_holds_whole_rows_of_all_heads_of_a_group() {
        let rows = [1, 2, 9, 12, 24, 43, 64].map(|group| tile_rows(&heads(group)));
        assert_eq!(rows, [128, 64, 14, 10, 5, 2, 2]);
    }

    #[test]
    fn tiles_cover_each_row_once_and_the_longest_come_first() {
        let sequence = |start, rows| Sequence { start, rows, ..Sequence::PADDING };
        let sequences = [sequence(0, 21), sequence(7, 1), Sequence::PADDING, sequence(90, 10), sequence(500, 11)];
        let tiles = plan_tiles(&sequences, &heads(12), None, Variant::Warp, |sequence| sequence.rows > 1);
        let expected = [(4, 10), (4, 0), (3, 0), (0, 20), (0, 10), (0, 0)];
        assert_eq!(tiles, expected.map(|(sequence, first_row)| Tile { sequence, first_row }));
        // With a window of 8 all but the shortest see 7 keys before their first row.
        let tiles = plan_tiles(&sequences, &heads(12), Some(8), Variant::Warp, |sequence| sequence.rows > 1);
        let expected = [(0, 10), (3, 0), (4, 0), (0, 0), (0, 20), (4, 10)];
        assert_eq!(tiles, expected.map(|(sequence, first_row)| Tile { sequence, first_row }));
        assert!(
            plan_tiles(&sequences, &heads(12), None, Variant::Warp, |_| true).len() <= max_tiles(43, 5, &heads(12))
        );
        assert_eq!(max_tiles(4, 4, &heads(12)), 4);
        assert_eq!(plan_tiles(&[sequence(3, 1); 4], &heads(12), None, Variant::Warp, |_| true).len(), 4);
    }

    #[test]
    fn a_warpgroups_tiles_are_full_and_numbered_like_a_warps() {
        let sequence = |start, rows| Sequence { start, rows, ..Sequence::PADDING };
        let sequences = [sequence(0, 32), sequence(300, 12), Sequence::PADDING];
        // 32 rows of 12 heads are 384 queries; 12 rows are 144: 8 heads of row 10 are in the first tile, 4 in the next.
        let expected = [(1, 10), (1, 0), (0, 20), (0, 10), (0, 0)];
        let tiles = plan_tiles(&sequences, &heads(12), None, Variant::Warpgroup, |_| true);
        assert_eq!(tiles, expected.map(|(sequence, first_row)| Tile { sequence, first_row }));
        // No more than of a warp, whose tiles there is room for.
        for group in [1, 2, 3, 9, 12, 24, 43, 64] {
            for rows in 0..200 {
                let count = |variant| plan_tiles(&[sequence(7, rows)], &heads(group), None, variant, |_| true).len();
                assert_eq!(count(Variant::Warpgroup), (rows as usize * group).div_ceil(128), "{rows} rows of {group}");
                assert!(count(Variant::Warpgroup) <= count(Variant::Warp), "{rows} rows of {group}");
            }
        }
    }
}
