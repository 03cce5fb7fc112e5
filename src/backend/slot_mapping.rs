//! Slot mapping: checks everything kernels rely on, and maps each row of a batch to its position, page and slot. Shared
//! by the backends and independent of them.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use super::{BackendError, Batch, SequenceRows, Token};
use crate::kv::{BlockTable, CacheGeometry, CacheGroup, first_visible};
use crate::model::ModelSpec;

/// Where a row's key and value are written in a cache group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowSlot {
    pub(crate) page: u32,
    pub(crate) slot: u32,
}

/// The slot mapping of one batch. Allocations are reused.
pub(crate) struct SlotMapping {
    /// Position of each row.
    pub(crate) positions: Vec<u32>,
    /// One per cache group.
    groups: Vec<GroupSlots>,
    batch: u64,
    max_rows: usize,
}

struct GroupSlots {
    /// One per row.
    rows: Vec<RowSlot>,
    /// For each page, the number of the batch that last wrote it.
    written: Vec<u64>,
}

impl SlotMapping {
    /// For batches of up to `max_rows` rows.
    pub(crate) fn new(max_rows: usize, cache: &CacheGeometry) -> SlotMapping {
        let group = |group: &CacheGroup| GroupSlots {
            rows: Vec::with_capacity(max_rows),
            written: vec![0; group.pages as usize],
        };
        let groups = cache.groups.iter().map(group).collect();
        SlotMapping { positions: Vec::with_capacity(max_rows), groups, batch: 0, max_rows }
    }

    /// Slot of each row in a group.
    pub(crate) fn rows(&self, group: usize) -> &[RowSlot] {
        &self.groups[group].rows
    }

    /// Checks and maps a batch. On success every token id is below the vocabulary size, every page a row reads or
    /// writes is in range, no two sequences write one page, and logits rows are rows of the batch.
    pub(crate) fn make(
        &mut self,
        batch: &Batch<'_>,
        spec: &ModelSpec,
        cache: &CacheGeometry,
    ) -> Result<(), BackendError> {
        self.positions.clear();
        self.groups.iter_mut().for_each(|group| group.rows.clear());
        self.batch += 1;
        let total = batch.tokens.len();
        if total > self.max_rows {
            return Err(invalid(format!("{total} rows, at most {} are allowed", self.max_rows)));
        }
        let beyond = |token: &Token| match token {
            Token::Known(id) if id.0 as usize >= spec.vocab_size => Some(*id),
            Token::Known(_) | Token::Sampled(_) => None,
        };
        if let Some(id) = batch.tokens.iter().find_map(beyond) {
            return Err(invalid(format!("token id {id}, the vocabulary has {}", spec.vocab_size)));
        }
        if let Some(row) = batch.logits_rows.iter().find(|&&row| row >= total) {
            return Err(invalid(format!("logits of row {row} of {total}")));
        }
        if batch.logits_rows.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(invalid("logits rows are not ascending".to_owned()));
        }
        for (index, sequence) in batch.sequences.iter().enumerate() {
            self.add_sequence(sequence, total, cache).map_err(|what| invalid(format!("sequence {index}: {what}")))?;
        }
        if self.positions.len() != total {
            return Err(invalid(format!("{total} token ids, but sequences of {} rows", self.positions.len())));
        }
        Ok(())
    }

    fn add_sequence(&mut self, sequence: &SequenceRows<'_>, total: usize, cache: &CacheGeometry) -> Result<(), String> {
        let rows = &sequence.rows;
        if rows.start != self.positions.len() || rows.end < rows.start || rows.end > total {
            return Err(format!("rows {rows:?}, expected to begin at {} and end by {total}", self.positions.len()));
        }
        let (tables, groups) = (sequence.tables.len(), cache.groups.len());
        if tables != groups {
            return Err(format!("{tables} block tables for {groups} groups of the cache"));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let Some(last) = sequence.start.checked_add(count - 1).filter(|&last| last < u32::MAX) else {
            return Err(format!("{count} rows from position {} overflow", sequence.start));
        };
        for ((slots, table), group) in self.groups.iter_mut().zip(sequence.tables).zip(&cache.groups) {
            slots.add_rows(sequence.start..=last, table, group, cache.page_size, self.batch)?;
        }
        self.positions.extend(sequence.start..=last);
        Ok(())
    }
}

impl GroupSlots {
    /// Maps the rows of one sequence.
    fn add_rows(
        &mut self,
        positions: RangeInclusive<u32>,
        table: &BlockTable,
        group: &CacheGroup,
        page_size: NonZeroU32,
        batch: u64,
    ) -> Result<(), String> {
        let (start, last, first_block, pages) =
            (*positions.start(), *positions.end(), table.first_block(), table.pages());
        let first_needed = first_visible(start, group.window) / page_size;
        if first_block > first_needed {
            return Err(format!("first block is {first_block}, block {first_needed} is still visible"));
        }
        let blocks = (last / page_size - first_block) as usize + 1;
        if pages.len() < blocks {
            return Err(format!("{} pages for {blocks} blocks", pages.len()));
        }
        let visible = (first_needed - first_block) as usize;
        if let Some(page) = pages[visible..blocks].iter().find(|page| page.0 >= group.pages) {
            return Err(format!("page {} of {}", page.0, group.pages));
        }
        // Two writers of one page would race.
        for block in start / page_size..=last / page_size {
            let page = pages[(block - first_block) as usize];
            if std::mem::replace(&mut self.written[page.0 as usize], batch) == batch {
                return Err(format!("page {} is written twice in one batch", page.0));
            }
        }
        for position in positions {
            let page = pages[(position / page_size - first_block) as usize].0;
            self.rows.push(RowSlot { page, slot: position % page_size });
        }
        Ok(())
    }
}

fn invalid(what: String) -> BackendError {
    BackendError::InvalidBatch(what)
}
