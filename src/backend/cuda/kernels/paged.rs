//! The paged cache of keys and values as the attention kernels see it (`kernels/common/pages.cuh`): what a step's
//! sequences are, where their positions lie, and which of them a row sees. Knows nothing of who allots pages.

use bytemuck::{Pod, Zeroable};

use super::super::buffer::Slice;
use super::super::error::CudaError;
use super::{Check, Element};

/// The most query heads that share a key/value head.
pub const MAX_GROUP: usize = 64;
/// Positions are below this.
pub const MAX_POSITIONS: usize = 1 << 31;
/// The smallest page.
pub const MIN_PAGE: usize = 16;

/// What a kernel that looks where a sequence stands reads of it: `load_span` of `kernels/common/pages.cuh`.
pub(super) const SPAN_BYTES: u64 = 20;

/// One sequence of a step, as the kernels read it. Its rows are `first_row .. first_row + rows` of the step and stand
/// at positions `start .. start + rows`. Logical block `b`, positions from `b * page_size` on, lies in page
/// `block_tables[table + b - first_block]`; no row of the step sees any of the blocks before `first_block`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Sequence {
    /// Its first row of the step.
    pub first_row: u32,
    /// Its number of rows in the step; 0 for padding.
    pub rows: u32,
    /// The position of its first row.
    pub start: u32,
    /// Its first logical block that is still there.
    pub first_block: u32,
    /// Where in `block_tables` the page of `first_block` stands.
    pub table: u32,
    /// Fills 32 bytes.
    pub unused: [u32; 3],
}

impl Sequence {
    /// No sequence: nothing is read or written for it.
    pub const PADDING: Sequence =
        Sequence { first_row: 0, rows: 0, start: 0, first_block: 0, table: 0, unused: [0; 3] };

    /// How many positions any of its rows sees, with a window of `window` positions.
    pub fn visible_keys(&self, window: Option<usize>) -> u64 {
        if self.rows == 0 { 0 } else { self.end() - first_visible(self.start.into(), window) }
    }

    /// How many pairs of a row and a position that it sees there are.
    pub fn visible_pairs(&self, window: Option<usize>) -> u64 {
        // Rows at positions 0 .. end together: a triangle up to the window, a rectangle from there on.
        let until = |end: u64| {
            let window = window.map_or(u64::MAX, |window| window as u64);
            let triangle = end.min(window);
            triangle * (triangle + 1) / 2 + end.saturating_sub(window) * window.min(end)
        };
        until(self.end()) - until(self.start.into())
    }

    /// How many blocks of `page_size` positions hold what its rows see.
    pub fn visible_blocks(&self, window: Option<usize>, page_size: usize) -> u64 {
        let page_size = page_size.max(1) as u64;
        if self.rows == 0 {
            return 0;
        }
        (self.end() - 1) / page_size - first_visible(self.start.into(), window) / page_size + 1
    }

    fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.rows)
    }
}

/// The first position that a row at `position` sees.
pub(super) fn first_visible(position: u64, window: Option<usize>) -> u64 {
    window.map_or(0, |window| (position + 1).saturating_sub(window as u64))
}

/// A window as the kernels take it: 2³¹ sees everything.
pub(super) fn window_argument(check: Check, window: Option<usize>) -> Result<u32, CudaError> {
    check.size("window", window.unwrap_or(MAX_POSITIONS).min(MAX_POSITIONS), MAX_POSITIONS)
}

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads: query head `h` reads head `h / (query / kv)`.
    pub kv: usize,
    /// Elements of a head: 64 or 128.
    pub dim: usize,
}

impl Heads {
    /// Query heads of a key/value head.
    pub fn group(&self) -> usize {
        self.query / self.kv.max(1)
    }

    /// Elements of a row of queries or outputs.
    pub fn width(&self) -> usize {
        self.query * self.dim
    }

    /// Checks that they are of the width that the kernel was loaded for.
    pub(super) fn check_dim(self, check: Check, loaded: usize) -> Result<Heads, CudaError> {
        if self.dim == loaded { Ok(self) } else { check.fail("head_dim", self.dim, loaded) }
    }

    /// The numbers of key/value heads and of query heads of each.
    pub(super) fn check(&self, check: Check) -> Result<(u32, u32), CudaError> {
        let kv = check.size("the number of key/value heads", self.kv, 1024)?;
        if !self.query.is_multiple_of(self.kv) {
            let expected = format_args!("a multiple of the {kv} key/value heads");
            return check.fail("the number of query heads", self.query, expected);
        }
        Ok((kv, check.size("the number of query heads of a key/value head", self.group(), MAX_GROUP)?))
    }
}

/// Checks that there are kernels for heads of `dim` elements.
pub(super) fn check_head_dim(check: Check, dim: usize) -> Result<(), CudaError> {
    if dim == 64 || dim == 128 { Ok(()) } else { check.fail("head_dim", dim, "64 or 128") }
}

/// Elements of the workspace of an attention whose keys are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkspaceLen {
    /// Partial results, in f32.
    pub partials: usize,
    /// Counters of partial results that have come, u32.
    pub tile_counters: usize,
}

impl WorkspaceLen {
    /// What serves either.
    #[must_use]
    pub fn max(self, other: WorkspaceLen) -> WorkspaceLen {
        let WorkspaceLen { partials, tile_counters } = self;
        WorkspaceLen { partials: partials.max(other.partials), tile_counters: tile_counters.max(other.tile_counters) }
    }
}

/// Checks a workspace for partial results. It may be longer than this launch needs: one serves all steps.
pub(super) fn check_workspace(check: Check, needed: usize, workspace: Slice<'_, f32>) -> Result<(), CudaError> {
    if workspace.len() < needed {
        return check.fail("workspace", workspace.len(), format_args!("at least {needed} elements"));
    }
    check.matrix("workspace", workspace.into(), workspace.len(), 1)
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CacheView<'a, T> {
    /// `[pages, kv heads, page_size, head_dim]`, rotated.
    pub keys: Slice<'a, T>,
    /// As `keys`.
    pub values: Slice<'a, T>,
    /// Pages of the cache.
    pub pages: usize,
    /// Positions of a page: a power of two, at least [`MIN_PAGE`].
    pub page_size: usize,
}

impl<T> Clone for CacheView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for CacheView<'_, T> {}

impl<T: Element> CacheView<'_, T> {
    /// The binary logarithm of the page size, once all sizes are found right.
    pub(super) fn check(&self, check: Check, heads: &Heads) -> Result<u32, CudaError> {
        if !self.page_size.is_power_of_two() || !(MIN_PAGE..=1 << 16).contains(&self.page_size) {
            return check.fail("page_size", self.page_size, format_args!("a power of two from {MIN_PAGE} to 65536"));
        }
        // The kernels number slots of all heads in 32 bits.
        check.size("pages", self.pages, u32::MAX as usize / (heads.kv * self.page_size))?;
        let page = heads.kv * self.page_size * heads.dim;
        check.matrix("keys", self.keys.into(), self.pages, page)?;
        check.matrix("values", self.values.into(), self.pages, page)?;
        Ok(self.page_size.trailing_zeros())
    }
}

/// What attention reads.
#[derive(Debug)]
pub struct AttentionInputs<'a, T> {
    /// `[rows, query heads, head_dim]`, rotated.
    pub queries: Slice<'a, T>,
    /// Keys and values of the layer, those of the step's rows included.
    pub cache: CacheView<'a, T>,
    /// Sequences of the step; the rows of each are rows of the step.
    pub sequences: Slice<'a, Sequence>,
    /// Block tables of all sequences, one behind the other: for each block that a row of a sequence sees a page of the
    /// cache. Neither is checked, here or on the device.
    pub block_tables: Slice<'a, u32>,
}

impl<T> Clone for AttentionInputs<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for AttentionInputs<'_, T> {}

/// Checked sizes, as the kernels take them.
pub(super) struct Sizes {
    pub(super) kv_heads: u32,
    pub(super) group: u32,
    pub(super) page_shift: u32,
    pub(super) window: u32,
}

impl<T: Element> AttentionInputs<'_, T> {
    pub(super) fn check(
        &self,
        check: Check,
        rows: usize,
        heads: &Heads,
        window: Option<usize>,
    ) -> Result<Sizes, CudaError> {
        let (kv_heads, group) = heads.check(check)?;
        check.size("rows", rows, i32::MAX as usize)?;
        check.matrix("queries", self.queries.into(), rows, heads.width())?;
        let page_shift = self.cache.check(check, heads)?;
        check.matrix("sequences", self.sequences.into(), self.sequences.len(), 1)?;
        Ok(Sizes { kv_heads, group, page_shift, window: window_argument(check, window)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sequence_sees_is_what_counting_finds() {
        for start in [0u32, 1, 5, 15, 16, 17, 40] {
            for rows in [0u32, 1, 2, 16, 33] {
                for window in [None, Some(1), Some(2), Some(5), Some(16), Some(17), Some(100)] {
                    let sequence = Sequence { start, rows, ..Sequence::PADDING };
                    let sees =
                        |row: u32, key: u32| key <= row && window.is_none_or(|window| ((row - key) as usize) < window);
                    let positions = start..start + rows;
                    let seen: Vec<u32> =
                        (0..start + rows).filter(|key| positions.clone().any(|row| sees(row, *key))).collect();
                    let pairs: u64 = positions.map(|row| (0..=row).filter(|key| sees(row, *key)).count() as u64).sum();
                    let mut blocks: Vec<u32> = seen.iter().map(|key| key / 16).collect();
                    blocks.dedup();
                    let place = format!("{rows} rows from {start} on, window {window:?}");
                    assert_eq!(sequence.visible_keys(window), seen.len() as u64, "{place}");
                    assert_eq!(sequence.visible_pairs(window), pairs, "{place}");
                    assert_eq!(sequence.visible_blocks(window, 16), blocks.len() as u64, "{place}");
                }
            }
        }
    }

    #[test]
    fn a_sequence_is_laid_out_as_the_kernels_read_it() {
        let sequence = Sequence { first_row: 1, rows: 2, start: 3, first_block: 4, table: 5, unused: [0; 3] };
        assert_eq!(bytemuck::cast::<Sequence, [u32; 8]>(sequence), [1, 2, 3, 4, 5, 0, 0, 0]);
    }
}
