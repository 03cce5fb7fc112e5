//! `kernels/attention_decode.cu`: attention of one row a sequence, its keys split over blocks, and the splits' merge.

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::paged::{
    AttentionInputs, Heads, MOST_POSITIONS, Sequence, check_head_dim, check_workspace, first_visible, window_argument,
};
use super::{Check, Element};

const CHECK: Check = Check { kernel: "attention_decode" };
/// kThreads, kWarps and kUnit of the kernels.
const THREADS: u32 = 128;
const WARPS: usize = 4;
const UNIT: usize = 16;
/// Split lengths are multiples of this: a unit for each warp.
pub const SPLIT_STEP: usize = WARPS * UNIT;
/// Below two units a warp, a split costs more than it saves.
const SHORTEST_SPLIT: usize = 2 * SPLIT_STEP;

/// The length of splits with which a launch for up to `sequences` sequences of up to `positions` positions has up to
/// two blocks for each of `multiprocessors`, as many as run at a time: a third would wait for a first to end.
pub fn split_len(
    sequences: usize,
    heads: &Heads,
    window: Option<usize>,
    positions: usize,
    multiprocessors: usize,
) -> usize {
    let blocks = sequences.max(1) * heads.kv.max(1) * RowTile::of(heads).count(heads);
    let wanted = (2 * multiprocessors / blocks).max(1);
    let visible = window.map_or(positions, |window| window.min(positions)).clamp(1, MOST_SPLIT);
    visible.div_ceil(wanted).next_multiple_of(SPLIT_STEP).max(SHORTEST_SPLIT)
}

/// Keeps positions at the end of a split within 32 bits.
const MOST_SPLIT: usize = 1 << 29;

/// The kernels of one head_dim, by the rows of their matrix tiles: query heads that a block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RowTile {
    Heads16,
    Heads32,
}

impl RowTile {
    fn of(heads: &Heads) -> RowTile {
        if heads.group() <= 16 { RowTile::Heads16 } else { RowTile::Heads32 }
    }

    fn heads(self) -> usize {
        match self {
            RowTile::Heads16 => 16,
            RowTile::Heads32 => 32,
        }
    }

    fn kernel_name(self, element: &str, head_dim: usize) -> String {
        format!("attention_decode_split_{element}_{head_dim}x{}", self.heads())
    }

    /// Blocks for the query heads of one KV head.
    fn count(self, heads: &Heads) -> usize {
        heads.group().div_ceil(self.heads())
    }

    /// The stages of all warps, or what the warps merge in the same place: states and rows of f32, with 8 of padding.
    fn shared_bytes(self, head_dim: usize) -> usize {
        let stages = if head_dim == 64 { 4 } else { 3 };
        let loading = WARPS * stages * 2 * UNIT * head_dim * 2;
        loading.max(WARPS * self.heads() * (head_dim + 8 + 2) * 4)
    }
}

/// The kernel of [`AttentionDecode::split`].
pub fn split_kernel_name(element: &str, heads: &Heads) -> String {
    RowTile::of(heads).kernel_name(element, heads.dim)
}

/// The kernel of [`AttentionDecode::merge`].
pub fn merge_kernel_name(element: &str, head_dim: usize) -> String {
    format!("attention_decode_merge_{element}_{head_dim}")
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeShape {
    /// Rows of the step: of `queries` and `out`.
    pub rows: usize,
    /// Sequences, padding included.
    pub sequences: usize,
    /// Heads of the layer.
    pub heads: Heads,
    /// A row sees itself and up to `window - 1` positions before it; `None`: all.
    pub window: Option<usize>,
    /// Every row's position is below this. Splits beyond are not computed.
    pub positions: usize,
    /// Positions of a split, a multiple of [`SPLIT_STEP`]: see [`split_len`]. The same length gives a row the same bits
    /// in any batch.
    pub split_len: usize,
}

impl DecodeShape {
    /// The most splits that a row sees any position of.
    pub fn splits(&self) -> usize {
        let split_len = self.split_len.max(1);
        let all = self.positions.div_ceil(split_len);
        // A window may begin at the last position of a split.
        self.window.map_or(all, |window| all.min(window.saturating_sub(1).div_ceil(split_len) + 1))
    }

    /// Elements of the workspace: head_dim weighted values, a maximum and a sum for each split and query head of each
    /// sequence; none where there is one split.
    pub fn workspace_len(&self) -> usize {
        match self.splits() {
            0 | 1 => 0,
            splits => self.sequences * self.heads.query * splits * (self.heads.dim + 2),
        }
    }

    /// What [`AttentionDecode::split`] moves and computes: visible keys and values once, queries, tables; outputs, or a
    /// partial result for each split that a row sees any position of; 2 products of head_dim multiply-adds for each
    /// head and visible position. `sequences` are those of the step; those that have not one row are passed over.
    pub fn split_work(&self, sequences: &[Sequence], page_size: usize) -> Work {
        let Heads { query, kv, dim } = self.heads;
        let passed_over = Work { bytes_read: 20, ..Work::default() };
        let works = sequences.iter().map(|sequence| {
            if sequence.rows != 1 {
                return passed_over;
            }
            let keys = sequence.visible_keys(self.window);
            let cached = 2 * keys * (kv * dim * 2) as u64;
            let tables = 4 * sequence.visible_blocks(self.window, page_size);
            let result = if self.splits() == 1 { 2 * dim as u64 } else { self.partial_bytes(sequence) };
            Work {
                bytes_read: passed_over.bytes_read + tables + cached + (query * dim * 2) as u64,
                bytes_written: query as u64 * result,
                flops: 4 * keys * (query * dim) as u64,
            }
        });
        works.sum()
    }

    /// What [`AttentionDecode::merge`] moves and computes: partial results and outputs; a multiply-add and a product
    /// for each element of them.
    pub fn merge_work(&self, sequences: &[Sequence]) -> Work {
        let Heads { query, dim, .. } = self.heads;
        let works = sequences.iter().map(|sequence| {
            if sequence.rows != 1 {
                return Work { bytes_read: 20, ..Work::default() };
            }
            let partials = query as u64 * self.partial_bytes(sequence);
            Work {
                bytes_read: 20 + partials,
                bytes_written: (query * dim * 2) as u64,
                flops: 3 * (query * dim) as u64 * self.seen_splits(sequence),
            }
        });
        works.sum()
    }

    /// Bytes of the partial results of one query head.
    fn partial_bytes(&self, sequence: &Sequence) -> u64 {
        self.seen_splits(sequence) * (self.heads.dim as u64 + 2) * 4
    }

    fn seen_splits(&self, sequence: &Sequence) -> u64 {
        let split_len = self.split_len.max(1) as u64;
        u64::from(sequence.start) / split_len - first_visible(sequence.start.into(), self.window) / split_len + 1
    }

    /// Checks what both kernels take; the number of splits and their length.
    fn check(&self) -> Result<(u32, u32), CudaError> {
        CHECK.size("positions", self.positions, MOST_POSITIONS)?;
        CHECK.size("sequences", self.sequences, 65_535)?;
        if !self.split_len.is_multiple_of(SPLIT_STEP) {
            return CHECK.fail("split_len", self.split_len, format_args!("a multiple of {SPLIT_STEP}"));
        }
        let split_len = CHECK.size("split_len", self.split_len, MOST_SPLIT)?;
        Ok((CHECK.size("splits", self.splits(), i32::MAX as usize)?, split_len))
    }
}

/// Attention of one row a sequence over caches of `T`.
pub struct AttentionDecode<T> {
    splits: [Kernel; 2],
    merge: Kernel,
    head_dim: usize,
    element: PhantomData<T>,
}

impl<T: Element> AttentionDecode<T> {
    /// Loads the kernels for heads of `head_dim` elements.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a `head_dim` that is neither 64 nor 128; those of [`Device::module`].
    pub fn load(device: &Device, head_dim: usize) -> Result<AttentionDecode<T>, CudaError> {
        check_head_dim(CHECK, head_dim)?;
        let module = device.module("attention_decode")?;
        let split = |tile: RowTile| module.kernel(&tile.kernel_name(T::NAME, head_dim));
        let merge = module.kernel(&merge_kernel_name(T::NAME, head_dim))?;
        let splits = [split(RowTile::Heads16)?, split(RowTile::Heads32)?];
        Ok(AttentionDecode { splits, merge, head_dim, element: PhantomData })
    }

    /// `out[r, h, :] = Σ p[k] v[k, :]` over the positions `k` that row `r` sees, with
    /// `p = softmax(q[r, h, :] · k[k, :] / √head_dim)`, for the row of each sequence that has one; `out` is
    /// `[rows, query heads, head_dim]`, and the rows of other sequences are not written. One launch, or with more than
    /// one split two.
    ///
    /// # Errors
    /// Those of [`AttentionDecode::split`] and [`AttentionDecode::merge`].
    ///
    /// # Safety
    /// When the launch runs, `inputs.sequences` and `inputs.block_tables` hold what [`AttentionInputs`] says of them.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        shape: DecodeShape,
        inputs: AttentionInputs<'_, T>,
        mut workspace: SliceMut<'_, f32>,
        mut out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.split(stream, shape, inputs, workspace.reborrow(), out.reborrow())? };
        if shape.splits() > 1 {
            // SAFETY: the caller's promise.
            unsafe { self.merge(stream, shape, inputs.sequences, workspace.as_slice(), out)? };
        }
        Ok(())
    }

    /// The first half: partial results of all splits into `workspace`, of at least [`DecodeShape::workspace_len`]
    /// elements, or with one split the attention itself into `out`.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, heads that are not of the kernel, a page size
    /// that is no power of two of at least 16, an empty window, a `split_len` that is no multiple of [`SPLIT_STEP`],
    /// or a buffer that is not aligned to 16 bytes.
    ///
    /// # Safety
    /// As for [`AttentionDecode::launch`].
    pub unsafe fn split(
        &self,
        stream: &Stream,
        shape: DecodeShape,
        inputs: AttentionInputs<'_, T>,
        workspace: SliceMut<'_, f32>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let heads = shape.heads.check_dim(CHECK, self.head_dim)?;
        let sizes = inputs.check(CHECK, shape.rows, &heads, shape.window)?;
        let (splits, split_len) = shape.check()?;
        CHECK.matrix("sequences", inputs.sequences.into(), shape.sequences, 1)?;
        CHECK.matrix("out", (&out).into(), shape.rows, heads.width())?;
        check_workspace(CHECK, shape.workspace_len(), workspace.as_slice())?;
        let tile = RowTile::of(&heads);
        let mut launch = Launch::linear(splits, THREADS);
        launch.grid[1] = sizes.kv_heads * tile.count(&heads) as u32;
        launch.grid[2] = shape.sequences as u32;
        launch.shared_bytes = tile.shared_bytes(heads.dim) as u32;
        let arguments = Arguments::new()
            .input(inputs.queries)
            .input(inputs.cache.keys)
            .input(inputs.cache.values)
            .output(&out)
            .output(&workspace)
            .input(inputs.sequences)
            .input(inputs.block_tables)
            .scalar(sizes.kv_heads)
            .scalar(sizes.group)
            .scalar(sizes.page_shift)
            .scalar(sizes.window)
            .scalar(split_len);
        // SAFETY: the arguments are those of the attention_decode_split kernels, checked above to have the lengths that
        // they index; what sequences and block tables hold is the caller's promise.
        unsafe { stream.launch(&self.splits[tile as usize], &launch, &arguments) }
    }

    /// The second half, where there is more than one split: `out` from the partial results in `workspace`.
    ///
    /// # Errors
    /// As for [`AttentionDecode::split`].
    ///
    /// # Safety
    /// As for [`AttentionDecode::launch`].
    pub unsafe fn merge(
        &self,
        stream: &Stream,
        shape: DecodeShape,
        sequences: Slice<'_, Sequence>,
        workspace: Slice<'_, f32>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let heads = shape.heads.check_dim(CHECK, self.head_dim)?;
        heads.check(CHECK)?;
        let (splits, split_len) = shape.check()?;
        let window = window_argument(CHECK, shape.window)?;
        CHECK.matrix("sequences", sequences.into(), shape.sequences, 1)?;
        CHECK.matrix("out", (&out).into(), shape.rows, heads.width())?;
        check_workspace(CHECK, shape.workspace_len(), workspace)?;
        let mut launch = Launch::linear(heads.query as u32, THREADS);
        launch.grid[1] = shape.sequences as u32;
        launch.shared_bytes = (WARPS * (heads.dim + 8 + 2) * 4) as u32;
        let arguments = Arguments::new()
            .input(workspace)
            .output(&out)
            .input(sequences)
            .scalar(window)
            .scalar(split_len)
            .scalar(splits);
        // SAFETY: as above, for the attention_decode_merge kernels.
        unsafe { stream.launch(&self.merge, &launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { query: 48, kv: 4, dim: 128 };

    fn shape(window: Option<usize>, positions: usize, split_len: usize) -> DecodeShape {
        DecodeShape { rows: 1, sequences: 1, heads: HEADS, window, positions, split_len }
    }

    #[test]
    fn there_are_splits_for_every_place_of_the_window() {
        for window in
            [None, Some(1), Some(2), Some(64), Some(65), Some(66), Some(128), Some(129), Some(130), Some(4000)]
        {
            for positions in [1, 64, 65, 500, 1000] {
                let shape = shape(window, positions, 64);
                let most = (0..positions as u32)
                    .map(|start| shape.seen_splits(&Sequence { start, rows: 1, ..Sequence::PADDING }))
                    .max();
                let splits = shape.splits() as u64;
                let most = most.unwrap();
                assert!((most..=most + 1).contains(&splits), "window {window:?}, {positions}: {splits}, seen {most}");
            }
        }
        assert_eq!(shape(Some(4096), 16_384, 2048).splits(), 3);
        assert_eq!(shape(None, 16_384, 2048).splits(), 8);
    }

    #[test]
    fn splits_fill_the_multiprocessors_twice_at_the_most_and_are_no_shorter_than_pays() {
        let len = |sequences, positions, window| split_len(sequences, &HEADS, window, positions, 132);
        assert_eq!(len(1, 4096, None), 128);
        assert_eq!(len(1, 16_384, None), 256);
        assert_eq!(len(1, 16_384, Some(4096)), 128);
        assert_eq!(len(32, 4096, None), 2048);
        assert_eq!(len(256, 4096, None), 4096);
        assert_eq!(len(256, 1, None), 128);
        for len in [len(1, 0, None), len(0, 100, Some(1)), len(3, usize::MAX, None)] {
            assert!(len.is_multiple_of(SPLIT_STEP) && (1..=MOST_SPLIT).contains(&len), "{len}");
        }
    }
}
