//! `kernels/attention_decode.cu` and, on Hopper, `kernels/attention_decode_sm90.cu`: attention of one row a sequence,
//! its keys split over blocks, and the splits' merge. The two merge in different orders, so a device keeps to one.

use std::marker::PhantomData;

use super::super::buffer::SliceMut;
use super::super::device::{Device, Properties};
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::switches::AttentionAlgorithm;
use super::super::work::Work;
use super::constants;
use super::paged::{
    AttentionInputs, Heads, MAX_POSITIONS, SPAN_BYTES, Sequence, Sizes, WorkspaceLen, check_head_dim, check_workspace,
    first_visible,
};
use super::{Check, Element, attention_decode_sm90};

const CHECK: Check = Check { kernel: "attention_decode" };
const THREADS: u32 = constants::attention_decode::THREADS;
const WARPS: usize = constants::attention_decode::WARPS as usize;
const UNIT: usize = constants::pages::UNIT as usize;
/// Split lengths are multiples of this: a unit for each warp.
pub const SPLIT_STEP: usize = WARPS * UNIT;
/// The shortest split where each SM has two blocks: two units a warp.
const SHORTEST_WITH_TWO_BLOCKS: usize = 2 * SPLIT_STEP;
/// Keeps positions at the end of a split within 32 bits.
const MAX_SPLIT: usize = 1 << 29;

/// The length of splits with which a launch for up to `sequences` sequences of up to `positions` positions has as many
/// blocks as run at a time, two for each of `sm_count`, in clusters somewhat fewer: one more would wait for
/// another to end. Where those splits would be too short to be worth their merge, one block for each SM.
pub fn split_len(
    variant: Variant,
    sequences: usize,
    heads: &Heads,
    window: Option<usize>,
    positions: usize,
    sm_count: usize,
) -> usize {
    let rows = sequences.max(1) * heads.kv.max(1) * RowTile::of(heads).count(heads);
    let length = |splits: usize| {
        let positions = split_positions(window, positions).div_ceil(splits.max(1));
        positions.clamp(1, MAX_SPLIT).next_multiple_of(SPLIT_STEP)
    };
    let two = match variant {
        Variant::Split => 2 * sm_count / rows,
        Variant::Cluster => attention_decode_sm90::splits_at_a_time(sm_count, rows),
    };
    match length(two) {
        short if short < SHORTEST_WITH_TWO_BLOCKS => length(sm_count / rows),
        length => length,
    }
}

/// The most positions that a row's splits cover: those that it sees, from the first one's unit on.
fn split_positions(window: Option<usize>, positions: usize) -> usize {
    window.map_or(positions, |window| window.saturating_add(UNIT - 1).min(positions))
}

/// Whether [`Variant::Cluster`] runs on the device.
pub fn has_clusters(device: &Properties) -> bool {
    attention_decode_sm90::runs_on(device)
}

/// Which kernels compute it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `attention_decode.cu`: a second kernel merges the splits. Runs everywhere.
    Split,
    /// `attention_decode_sm90.cu`: the blocks of a cluster merge theirs, the last cluster those of all. Compute
    /// capability 9.0 alone.
    Cluster,
}

impl Variant {
    /// The one for a device: as its algorithms say, else of clusters where that runs and this binary has it.
    pub fn of(device: &Properties) -> Variant {
        match device.algorithms.decode {
            Some(AttentionAlgorithm::Sm80) => Variant::Split,
            Some(AttentionAlgorithm::Sm90) => Variant::Cluster,
            Some(AttentionAlgorithm::BatchInvariant) | None if has_clusters(device) => Variant::Cluster,
            Some(AttentionAlgorithm::BatchInvariant) | None => Variant::Split,
        }
    }

    /// The name of its file.
    pub fn file(self) -> &'static str {
        match self {
            Variant::Split => "attention_decode",
            Variant::Cluster => attention_decode_sm90::FILE,
        }
    }
}

/// The kernels of one head_dim, by the rows of their matrix tiles: query heads that a block computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowTile {
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

    pub(super) fn kernel_name(self, variant: Variant, element: &str, head_dim: usize) -> String {
        let kernel = match variant {
            Variant::Split => "attention_decode_split",
            Variant::Cluster => attention_decode_sm90::FILE,
        };
        format!("{kernel}_{element}_{head_dim}x{}", self.heads())
    }

    /// Blocks for the query heads of one KV head.
    fn count(self, heads: &Heads) -> usize {
        heads.group().div_ceil(self.heads())
    }
}

pub(super) fn merge_kernel_name(element: &str, head_dim: usize) -> String {
    format!("attention_decode_merge_{element}_{head_dim}")
}

/// All stages of all warps. What the warps find is laid over it.
fn ring_bytes(head_dim: usize) -> usize {
    let stages = if head_dim == 64 { 4 } else { 3 };
    WARPS * stages * 2 * UNIT * head_dim * 2
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

/// Device memory that launches of [`AttentionDecode`] on one stream share, of at least
/// [`DecodeShape::workspace_len`] elements.
pub struct DecodeWorkspace<'a> {
    /// What it holds before and after means nothing.
    pub partials: SliceMut<'a, f32>,
    /// 0 before the first launch; each leaves them 0.
    pub tile_counters: SliceMut<'a, u32>,
}

impl DecodeShape {
    /// The most splits that a row sees any position of.
    pub fn splits(&self) -> usize {
        split_positions(self.window, self.positions).div_ceil(self.split_len.max(1))
    }

    /// What a launch needs at the least: head_dim weighted values, a maximum and a sum for each partial result that
    /// goes through memory, of a split or of a cluster's, and of clusters a counter for each sequence and query head.
    pub fn workspace_len(&self, variant: Variant) -> WorkspaceLen {
        let rows = self.sequences * self.heads.query;
        let (partials, tile_counters) = match (variant, self.splits()) {
            (_, 0 | 1) => (0, 0),
            (Variant::Split, splits) => (splits, 0),
            (Variant::Cluster, splits) => match attention_decode_sm90::clusters(splits) {
                1 => (0, 0),
                clusters => (clusters, 1),
            },
        };
        WorkspaceLen { partials: rows * partials * (self.heads.dim + 2), tile_counters: rows * tile_counters }
    }

    /// What it moves and computes in any variant: visible keys and values once, queries, tables, outputs; 2 products of
    /// head_dim multiply-adds for each head and visible position. `sequences` are those of the step; those that have
    /// not one row are passed over.
    pub fn work(&self, sequences: &[Sequence], page_size: usize) -> Work {
        let Heads { query, kv, dim } = self.heads;
        let works = sequences.iter().map(|sequence| {
            if sequence.rows != 1 {
                return Work { bytes_read: SPAN_BYTES, ..Work::default() };
            }
            let keys = sequence.visible_keys(self.window);
            let cached = 2 * keys * (kv * dim * 2) as u64;
            let tables = 4 * sequence.visible_blocks(self.window, page_size);
            Work {
                bytes_read: SPAN_BYTES + tables + cached + (query * dim * 2) as u64,
                bytes_written: (query * dim * 2) as u64,
                flops: 4 * keys * (query * dim) as u64,
            }
        });
        works.sum()
    }

    /// The launches that compute it, by the names of their kernels, and what each moves and computes: together the
    /// [`work`](DecodeShape::work) of any variant, and the partial results.
    pub fn launches(
        &self,
        variant: Variant,
        element: &str,
        sequences: &[Sequence],
        page_size: usize,
    ) -> Vec<(String, Work)> {
        let attend = RowTile::of(&self.heads).kernel_name(variant, element, self.heads.dim);
        let mut work = self.work(sequences, page_size);
        let rows = sequences.iter().filter(|sequence| sequence.rows == 1);
        match variant {
            Variant::Split if self.splits() > 1 => {
                let splits: u64 = rows.map(|sequence| self.seen_splits(sequence)).sum();
                let (outputs, partials) = (work.bytes_written, self.partial_bytes(splits));
                work.bytes_written = partials;
                let merge = Work {
                    bytes_read: SPAN_BYTES * sequences.len() as u64 + partials,
                    bytes_written: outputs,
                    flops: 3 * self.heads.width() as u64 * splits,
                };
                vec![(attend, work), (merge_kernel_name(element, self.heads.dim), merge)]
            }
            Variant::Split => vec![(attend, work)],
            Variant::Cluster => {
                // The FLOPs of a merge within the kernel are left out.
                let clusters = |sequence| attention_decode_sm90::clusters(self.seen_splits(sequence) as usize) as u64;
                let several: u64 = rows.map(clusters).filter(|clusters| *clusters > 1).sum();
                work.bytes_read += self.partial_bytes(several);
                work.bytes_written += self.partial_bytes(several);
                vec![(attend, work)]
            }
        }
    }

    /// Bytes of `count` partial results of every query head.
    fn partial_bytes(&self, count: u64) -> u64 {
        count * (self.heads.query * (self.heads.dim + 2) * 4) as u64
    }

    fn seen_splits(&self, sequence: &Sequence) -> u64 {
        let first = first_visible(sequence.start.into(), self.window) / UNIT as u64 * UNIT as u64;
        (u64::from(sequence.start) - first) / self.split_len.max(1) as u64 + 1
    }

    /// Checks what all kernels take; the number of splits and their length.
    fn check(&self) -> Result<(u32, u32), CudaError> {
        CHECK.size("positions", self.positions, MAX_POSITIONS)?;
        CHECK.size("sequences", self.sequences, 65_535)?;
        if !self.split_len.is_multiple_of(SPLIT_STEP) {
            return CHECK.fail("split_len", self.split_len, format_args!("a multiple of {SPLIT_STEP}"));
        }
        let split_len = CHECK.size("split_len", self.split_len, MAX_SPLIT)?;
        // A grid of whole clusters has up to 7 blocks more.
        Ok((CHECK.size("splits", self.splits(), i32::MAX as usize - 7)?, split_len))
    }
}

/// Attention of one row a sequence over caches of `T`.
pub struct AttentionDecode<T> {
    variant: Variant,
    attend: [Kernel; 2],
    /// Of the variant that has one.
    merge: Option<Kernel>,
    head_dim: usize,
    element: PhantomData<T>,
}

impl<T: Element> AttentionDecode<T> {
    /// Loads the kernels for heads of `head_dim` elements, in the device's variant.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a `head_dim` that is neither 64 nor 128; those of [`Device::module`].
    pub fn load(device: &Device, head_dim: usize) -> Result<AttentionDecode<T>, CudaError> {
        AttentionDecode::load_variant(device, head_dim, Variant::of(device.properties()))
    }

    /// Those of one variant, which must run on the device.
    ///
    /// # Errors
    /// As for [`AttentionDecode::load`].
    pub fn load_variant(device: &Device, head_dim: usize, variant: Variant) -> Result<AttentionDecode<T>, CudaError> {
        check_head_dim(CHECK, head_dim)?;
        let module = device.module(variant.file())?;
        let attend = |tile: RowTile| module.kernel(&tile.kernel_name(variant, T::NAME, head_dim));
        let merge = match variant {
            Variant::Split => Some(module.kernel(&merge_kernel_name(T::NAME, head_dim))?),
            Variant::Cluster => None,
        };
        let attend = [attend(RowTile::Heads16)?, attend(RowTile::Heads32)?];
        Ok(AttentionDecode { variant, attend, merge, head_dim, element: PhantomData })
    }

    /// Its variant.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// `out[r, h, :] = Σ p[k] v[k, :]` over the positions `k` that row `r` sees, with
    /// `p = softmax(q[r, h, :] · k[k, :] / √head_dim)`, for the row of each sequence that has one; `out` is
    /// `[rows, query heads, head_dim]`, and the rows of other sequences are not written. [`DecodeShape::launches`] says
    /// in how many launches. `workspace` has at least [`DecodeShape::workspace_len`] elements.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, heads that are not of the kernel, a page size
    /// that is no power of two of at least 16, an empty window, a `split_len` that is no multiple of [`SPLIT_STEP`],
    /// or a buffer that is not aligned to 16 bytes.
    ///
    /// # Safety
    /// When the launch runs, `inputs.sequences` and `inputs.block_tables` hold what [`AttentionInputs`] says of them.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        shape: DecodeShape,
        inputs: AttentionInputs<'_, T>,
        workspace: DecodeWorkspace<'_>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let heads = shape.heads.check_dim(CHECK, self.head_dim)?;
        let sizes = inputs.check(CHECK, shape.rows, &heads, shape.window)?;
        let (splits, split_len) = shape.check()?;
        CHECK.matrix("sequences", inputs.sequences.into(), shape.sequences, 1)?;
        CHECK.matrix("out", (&out).into(), shape.rows, heads.width())?;
        let needed = shape.workspace_len(self.variant);
        check_workspace(CHECK, needed.partials, workspace.partials.as_slice())?;
        if workspace.tile_counters.len() < needed.tile_counters {
            let expected = format_args!("at least {} elements", needed.tile_counters);
            return CHECK.fail("tile_counters", workspace.tile_counters.len(), expected);
        }
        let tile = RowTile::of(&heads);
        let mut launch = Launch::linear(splits, THREADS);
        launch.grid[1] = sizes.kv_heads * tile.count(&heads) as u32;
        launch.grid[2] = shape.sequences as u32;
        launch.shared_bytes = ring_bytes(heads.dim) as u32;
        let mut arguments = Arguments::new()
            .input(inputs.queries)
            .input(inputs.cache.keys)
            .input(inputs.cache.values)
            .output(&out)
            .output(&workspace.partials);
        if self.variant == Variant::Cluster {
            attention_decode_sm90::gather(&mut launch, heads.group().min(tile.heads()), heads.dim);
            arguments = arguments.output(&workspace.tile_counters);
        }
        let Sizes { kv_heads, group, page_shift, window } = sizes;
        let arguments = arguments.input(inputs.sequences).input(inputs.block_tables);
        let arguments = arguments.scalar(kv_heads).scalar(group).scalar(page_shift).scalar(window).scalar(split_len);
        // SAFETY: the arguments are those of the variant's kernels, checked above to have the lengths that they index;
        // what sequences and block tables hold is the caller's promise.
        unsafe { stream.launch(&self.attend[tile as usize], &launch, &arguments)? };

        let Some(merge) = self.merge.as_ref().filter(|_| splits > 1) else { return Ok(()) };
        let mut launch = Launch::linear(heads.query as u32, THREADS);
        launch.grid[1] = shape.sequences as u32;
        // WarpResults of one row: values with 8 of padding, and a state.
        launch.shared_bytes = (WARPS * (heads.dim + 8 + 2) * 4) as u32;
        let arguments = Arguments::new()
            .input(workspace.partials.as_slice())
            .output(&out)
            .input(inputs.sequences)
            .scalar(window)
            .scalar(split_len)
            .scalar(splits);
        // SAFETY: as above, for the attention_decode_merge kernels.
        unsafe { stream.launch(merge, &launch, &arguments) }
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
        // Wherever the window stands, up to the unit that it begins in.
        assert_eq!(shape(Some(4096), 16_384, 2048).splits(), 3);
        assert_eq!(shape(Some(4096), 16_384, 2112).splits(), 2);
        assert_eq!(shape(None, 16_384, 2048).splits(), 8);
    }

    #[test]
    fn splits_fill_the_sms_twice_at_the_most_and_are_no_shorter_than_pays() {
        let len = |sequences, positions, window| split_len(Variant::Split, sequences, &HEADS, window, positions, 132);
        assert_eq!(len(1, 4096, None), 128);
        assert_eq!(len(1, 16_384, None), 256);
        assert_eq!(len(1, 16_384, Some(4096)), 128);
        assert_eq!(len(32, 4096, None), 2048);
        assert_eq!(len(256, 4096, None), 4096);
        assert_eq!(len(256, 1, None), 64);
        // The 3B's two KV heads have a block for each SM all the same.
        let heads = Heads { query: 24, kv: 2, dim: 128 };
        assert_eq!(split_len(Variant::Split, 1, &heads, Some(4096), 16_384, 132), 64);
        assert_eq!(split_len(Variant::Cluster, 1, &heads, Some(4096), 16_384, 132), 64);
        // From some batch on each sequence is one split, wherever its window stands.
        for sequences in [64, 256] {
            let split_len = len(sequences, 16_384, Some(4096));
            let shape = DecodeShape { sequences, ..shape(Some(4096), 16_384, split_len) };
            assert_eq!(shape.splits(), 1, "{sequences} sequences");
            assert_eq!(shape.workspace_len(Variant::Split), WorkspaceLen::default());
        }
        for len in [len(1, 0, None), len(0, 100, Some(1)), len(3, usize::MAX, None)] {
            assert!(len.is_multiple_of(SPLIT_STEP) && (1..=MAX_SPLIT).contains(&len), "{len}");
        }
    }

    #[test]
    fn clusters_run_all_at_one_time() {
        // SMs that a cluster may lie in, two blocks on each.
        let chips: [&[usize]; 3] =
            [&[18, 18, 18, 16, 16, 16, 16, 14], &[18, 16, 16, 16, 16, 16, 16], &[16, 16, 16, 16, 14]];
        for (groups, kv) in chips.into_iter().flat_map(|groups| [1, 2, 4, 8, 16, 32].map(|kv| (groups, kv))) {
            let (sm_count, heads) = (groups.iter().sum(), Heads { query: 12 * kv, kv, dim: 128 });
            for (sequences, window) in (1..=256).flat_map(|n| [(n, Some(4096)), (n, None)]) {
                let split_len = split_len(Variant::Cluster, sequences, &heads, window, 16_384, sm_count);
                let splits = DecodeShape { sequences, heads, ..shape(window, 16_384, split_len) }.splits();
                let (cluster, clusters) = (splits.min(8), splits.div_ceil(8) * sequences * kv);
                let at_a_time: usize = groups.iter().map(|group| 2 * group / cluster).sum();
                let place = format!("{sm_count}, {kv} heads, {sequences} sequences, window {window:?}");
                assert!(cluster == 1 || clusters <= at_a_time, "{place}: {clusters} clusters of {cluster}");
            }
        }
    }

    #[test]
    fn what_goes_through_memory_is_what_the_workspace_holds() {
        let sequences = [Sequence { start: 999, rows: 1, ..Sequence::PADDING }, Sequence::PADDING];
        let partials = |shape: &DecodeShape, variant| {
            let all: Work = shape.launches(variant, "bf16", &sequences, 64).into_iter().map(|(_, work)| work).sum();
            (all.bytes_written - shape.work(&sequences, 64).bytes_written) as usize
        };
        for (split_len, splits, clusters) in [(64, 16, 2), (128, 8, 1), (192, 6, 1), (1024, 1, 1)] {
            let shape = DecodeShape { sequences: 2, ..shape(None, 1000, split_len) };
            assert_eq!(shape.splits(), splits);
            // One of the two sequences has a row.
            let rows = |len: WorkspaceLen| len.partials * 4 / 2;
            assert_eq!(partials(&shape, Variant::Split), rows(shape.workspace_len(Variant::Split)), "{split_len}");
            let len = shape.workspace_len(Variant::Cluster);
            assert_eq!(partials(&shape, Variant::Cluster), rows(len), "{split_len}");
            assert_eq!(len.tile_counters, if clusters > 1 { 2 * 48 } else { 0 }, "{split_len}");
        }
    }
}
