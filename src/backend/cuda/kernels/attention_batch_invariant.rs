//! `kernels/attention_batch_invariant.cu`: attention of any number of rows of a sequence, with one order of sums for
//! all.

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::attention_prefill::{self, PrefillShape, Tile};
use super::constants;
use super::paged::{
    AttentionInputs, Heads, MAX_POSITIONS, SPAN_BYTES, Sequence, check_head_dim, check_workspace, first_visible,
    window_argument,
};
use super::{Check, Element};

const CHECK: Check = Check { kernel: "attention_batch_invariant" };
const THREADS: u32 = constants::attention_batch_invariant::THREADS;
const MERGE_THREADS: u32 = 32;
const QUERIES: usize = constants::attention_batch_invariant::QUERIES as usize;
const KEYS: usize = constants::attention_batch_invariant::KEYS as usize;
const BUFFERS: usize = constants::attention_batch_invariant::BUFFERS as usize;

/// Positions of a split where a model runs. It is part of what a row's bits depend on, so it is one for all.
pub const SPLIT_LEN: usize = 256;

/// How many rows a tile has: 64 queries are those of all heads of a KV head for as many whole rows as there is room.
pub fn tile_rows(heads: &Heads) -> usize {
    (QUERIES / heads.group().max(1)).max(1)
}

/// How many tiles a step of `rows` rows in `sequences` sequences has at the most.
pub fn max_tiles(rows: usize, sequences: usize, heads: &Heads) -> usize {
    attention_prefill::max_tiles_of(tile_rows(heads), rows, sequences)
}

/// The tiles of all sequences that `takes` says yes to; those with the most keys first.
pub fn plan_tiles(
    sequences: &[Sequence],
    heads: &Heads,
    window: Option<usize>,
    takes: impl Fn(&Sequence) -> bool,
) -> Vec<Tile> {
    attention_prefill::plan_tiles_of(tile_rows(heads), sequences, window, takes)
}

/// The kernel of [`AttentionBatchInvariant::first`].
pub fn kernel_name(element: &str, head_dim: usize) -> String {
    format!("attention_batch_invariant_{element}_{head_dim}")
}

/// The kernel of [`AttentionBatchInvariant::merge`].
pub fn merge_kernel_name(element: &str, head_dim: usize) -> String {
    format!("attention_batch_invariant_merge_{element}_{head_dim}")
}

/// Who computes the splits of a tile. A row's bits do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// A block computes a whole tile.
    Whole,
    /// A block computes one split of a tile; a second launch merges them.
    Split {
        /// The most rows of a tile.
        tile_rows: usize,
    },
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchInvariantShape {
    /// Rows of the step: of `queries` and `out`.
    pub rows: usize,
    /// Tiles, padding included.
    pub tiles: usize,
    /// Heads of the layer.
    pub heads: Heads,
    /// A row sees itself and up to `window - 1` positions before it; `None`: all.
    pub window: Option<usize>,
    /// Every row's position is below this.
    pub positions: usize,
    /// Positions of a split, a multiple of 64: [`SPLIT_LEN`].
    pub split_len: usize,
    /// Who computes them.
    pub division: Division,
}

impl BatchInvariantShape {
    /// The most splits that a tile sees any position of; 1 where a block computes them all.
    pub fn splits(&self) -> usize {
        let Division::Split { tile_rows } = self.division else { return 1 };
        let split_len = self.split_len.max(1);
        let all = self.positions.div_ceil(split_len).max(1);
        // The window of the first row to the last row may begin at the last position of a split.
        let seen = |window: usize| (window.saturating_sub(1) + tile_rows.max(1) - 1).div_ceil(split_len) + 1;
        self.window.map_or(all, |window| all.min(seen(window)))
    }

    /// Elements of the workspace: head_dim weighted values, a maximum and a sum for each split and query head of each
    /// row of a tile; none where there is one split.
    pub fn workspace_len(&self) -> usize {
        match (self.division, self.splits()) {
            (Division::Whole, _) | (_, 1) => 0,
            (Division::Split { tile_rows }, splits) => {
                self.tiles * tile_rows * self.heads.query * splits * (self.heads.dim + 2)
            }
        }
    }

    /// What the first launch moves and computes: for each sequence that has tiles its visible keys and values once, its
    /// queries and its part of the tables; its outputs, or a partial result for each row, head and split of its tile; 2
    /// products of head_dim multiply-adds for each head and visible pair. `sequences` are those of the step, of which
    /// `tiles` holds all tiles or none.
    pub fn work(&self, sequences: &[Sequence], tiles: &[Tile], page_size: usize) -> Work {
        let BatchInvariantShape { rows, heads, window, .. } = *self;
        let work = PrefillShape { rows, tiles: self.tiles, heads, window }.work(sequences, tiles, page_size);
        if self.splits() == 1 { work } else { Work { bytes_written: self.partial_bytes(sequences, tiles), ..work } }
    }

    /// What the second launch moves and computes: partial results, outputs; a multiply-add and a product for each
    /// element of them.
    pub fn merge_work(&self, sequences: &[Sequence], tiles: &[Tile]) -> Work {
        let Heads { query, dim, .. } = self.heads;
        let of_tile = |tile: &Tile| match sequences.get(tile.sequence as usize) {
            Some(sequence) => Work {
                bytes_read: SPAN_BYTES,
                bytes_written: (self.rows_of(sequence, tile) as usize * query * dim * 2) as u64,
                flops: 0,
            },
            None => Work::default(),
        };
        let partials = self.partial_bytes(sequences, tiles);
        let both: Work = tiles.iter().map(of_tile).sum();
        let elements = partials / (4 * (dim as u64 + 2)) * dim as u64;
        Work {
            bytes_read: both.bytes_read + partials + (self.tiles * size_of::<Tile>()) as u64,
            flops: 3 * elements,
            ..both
        }
    }

    /// Bytes of the partial results of all tiles.
    fn partial_bytes(&self, sequences: &[Sequence], tiles: &[Tile]) -> u64 {
        let split_len = self.split_len.max(1) as u64;
        let of_tile = |tile: &Tile| {
            let Some(sequence) = sequences.get(tile.sequence as usize) else { return 0 };
            let (first, rows) = (u64::from(sequence.start) + u64::from(tile.first_row), self.rows_of(sequence, tile));
            let splits = (first + rows - 1) / split_len - first_visible(first, self.window) / split_len + 1;
            rows * splits
        };
        let partials: u64 = tiles.iter().map(of_tile).sum();
        partials * self.heads.query as u64 * (self.heads.dim as u64 + 2) * 4
    }

    fn rows_of(&self, sequence: &Sequence, tile: &Tile) -> u64 {
        u64::from(sequence.rows - tile.first_row).min(tile_rows(&self.heads) as u64)
    }

    /// Checks what both kernels take beside heads: the tiles, the splits, their length and the rows of a tile.
    fn check(&self) -> Result<Numbers, CudaError> {
        CHECK.size("positions", self.positions, MAX_POSITIONS)?;
        if !self.split_len.is_multiple_of(KEYS) {
            return CHECK.fail("split_len", self.split_len, format_args!("a multiple of {KEYS}"));
        }
        let (tiles, tile_rows) = match self.division {
            Division::Whole => (CHECK.size("tiles", self.tiles, i32::MAX as usize)?, 1),
            Division::Split { tile_rows: most } => {
                (CHECK.size("tiles", self.tiles, 65_535)?, CHECK.size("tile_rows", most, tile_rows(&self.heads))?)
            }
        };
        Ok(Numbers {
            tiles,
            tile_rows,
            splits: CHECK.size("splits", self.splits(), 65_535)?,
            split_len: CHECK.size("split_len", self.split_len, 1 << 29)?,
        })
    }
}

/// Checked sizes, as the kernels take them.
struct Numbers {
    tiles: u32,
    tile_rows: u32,
    splits: u32,
    split_len: u32,
}

/// Attention in one order of sums over caches of `T`.
pub struct AttentionBatchInvariant<T> {
    kernel: Kernel,
    merge: Kernel,
    head_dim: usize,
    element: PhantomData<T>,
}

impl<T: Element> AttentionBatchInvariant<T> {
    /// Loads the kernels for heads of `head_dim` elements.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a `head_dim` that is neither 64 nor 128; those of [`Device::module`].
    pub fn load(device: &Device, head_dim: usize) -> Result<AttentionBatchInvariant<T>, CudaError> {
        check_head_dim(CHECK, head_dim)?;
        let module = device.module("attention_batch_invariant")?;
        let kernel = module.kernel(&kernel_name(T::NAME, head_dim))?;
        let merge = module.kernel(&merge_kernel_name(T::NAME, head_dim))?;
        Ok(AttentionBatchInvariant { kernel, merge, head_dim, element: PhantomData })
    }

    /// `out[r, h, :] = Σ p[k] v[k, :]` over the positions `k` that row `r` sees, with
    /// `p = softmax(q[r, h, :] · k[k, :] / √head_dim)`, for the rows of all `tiles`; `out` is
    /// `[rows, query heads, head_dim]`, and rows of no tile are not written. One launch, or with more than one split
    /// two.
    ///
    /// # Errors
    /// As for [`AttentionBatchInvariant::first`] and [`AttentionBatchInvariant::merge`].
    ///
    /// # Safety
    /// When the launch runs, `inputs.sequences` and `inputs.block_tables` hold what [`AttentionInputs`] says of them,
    /// and `tiles` such as [`plan_tiles`] makes of these sequences, with no more rows than `shape.division` says.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        shape: BatchInvariantShape,
        inputs: AttentionInputs<'_, T>,
        tiles: Slice<'_, Tile>,
        mut workspace: SliceMut<'_, f32>,
        mut out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.first(stream, shape, inputs, tiles, workspace.reborrow(), out.reborrow())? };
        if shape.splits() > 1 {
            // SAFETY: the caller's promise.
            unsafe { self.merge(stream, shape, inputs.sequences, tiles, workspace.as_slice(), out)? };
        }
        Ok(())
    }

    /// The first launch: partial results of all splits into `workspace`, of at least
    /// [`BatchInvariantShape::workspace_len`] elements, or with one split the attention itself into `out`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, heads that are not of the kernel, a page size
    /// that is no power of two of at least 16, an empty window, a `split_len` that is no multiple of 64, more rows of a
    /// tile than it has room for, or a buffer that is not aligned to 16 bytes.
    ///
    /// # Safety
    /// As for [`AttentionBatchInvariant::launch`].
    pub unsafe fn first(
        &self,
        stream: &Stream,
        shape: BatchInvariantShape,
        inputs: AttentionInputs<'_, T>,
        tiles: Slice<'_, Tile>,
        workspace: SliceMut<'_, f32>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let heads = shape.heads.check_dim(CHECK, self.head_dim)?;
        let sizes = inputs.check(CHECK, shape.rows, &heads, shape.window)?;
        let numbers = shape.check()?;
        CHECK.matrix("tiles", tiles.into(), shape.tiles, 1)?;
        CHECK.matrix("out", (&out).into(), shape.rows, heads.width())?;
        check_workspace(CHECK, shape.workspace_len(), workspace.as_slice())?;
        let mut launch = Launch::linear(numbers.tiles, THREADS);
        launch.grid[1] = sizes.kv_heads;
        launch.grid[2] = numbers.splits;
        // Queries, the ring of keys and values, and the position of each query.
        launch.shared_bytes = ((QUERIES + BUFFERS * KEYS) * heads.dim * 2 + QUERIES * 4) as u32;
        let arguments = Arguments::new()
            .input(inputs.queries)
            .input(inputs.cache.keys)
            .input(inputs.cache.values)
            .output(&out)
            .output(&workspace)
            .input(inputs.sequences)
            .input(inputs.block_tables)
            .input(tiles)
            .scalar(sizes.kv_heads)
            .scalar(sizes.group)
            .scalar(sizes.page_shift)
            .scalar(sizes.window)
            .scalar(numbers.split_len)
            .scalar(numbers.tile_rows);
        // SAFETY: the arguments are those of the attention_batch_invariant kernels, checked above to have the lengths
        // that they index; what tiles, sequences and block tables hold is the caller's promise.
        unsafe { stream.launch(&self.kernel, &launch, &arguments) }
    }

    /// The second launch, where there is more than one split: `out` from the partial results in `workspace`.
    ///
    /// # Errors
    /// As for [`AttentionBatchInvariant::first`].
    ///
    /// # Safety
    /// As for [`AttentionBatchInvariant::launch`].
    pub unsafe fn merge(
        &self,
        stream: &Stream,
        shape: BatchInvariantShape,
        sequences: Slice<'_, Sequence>,
        tiles: Slice<'_, Tile>,
        workspace: Slice<'_, f32>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let heads = shape.heads.check_dim(CHECK, self.head_dim)?;
        let (_, group) = heads.check(CHECK)?;
        let numbers = shape.check()?;
        let window = window_argument(CHECK, shape.window)?;
        CHECK.matrix("tiles", tiles.into(), shape.tiles, 1)?;
        CHECK.matrix("out", (&out).into(), shape.rows, heads.width())?;
        check_workspace(CHECK, shape.workspace_len(), workspace)?;
        let mut launch = Launch::linear(heads.query as u32, MERGE_THREADS);
        launch.grid[1] = numbers.tiles;
        launch.grid[2] = numbers.tile_rows;
        let arguments = Arguments::new()
            .input(workspace)
            .output(&out)
            .input(sequences)
            .input(tiles)
            .scalar(group)
            .scalar(window)
            .scalar(numbers.split_len)
            .scalar(numbers.splits);
        // SAFETY: as above, for the attention_batch_invariant_merge kernels.
        unsafe { stream.launch(&self.merge, &launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_splits_for_every_place_of_the_window_and_every_row_of_a_tile() {
        let heads = Heads { query: 24, kv: 2, dim: 128 };
        for window in [None, Some(1), Some(2), Some(64), Some(65), Some(66), Some(128), Some(129), Some(400)] {
            for rows in 1..=5u32 {
                let division = Division::Split { tile_rows: rows as usize };
                let shape =
                    BatchInvariantShape { rows: 5, tiles: 1, heads, window, positions: 600, split_len: 64, division };
                let seen = |start: u32| {
                    let last = u64::from(start + rows - 1);
                    last / 64 - first_visible(start.into(), window) / 64 + 1
                };
                let most = (0..600 - rows).map(seen).max().unwrap();
                let splits = shape.splits() as u64;
                assert!((most..=most + 1).contains(&splits), "window {window:?}, {rows} rows: {splits}, seen {most}");
                assert_eq!(BatchInvariantShape { division: Division::Whole, ..shape }.splits(), 1);
            }
        }
    }
}
