//! What a batch asks for, checked and cut into the pieces that the forward pass hands out.

use super::attention::MAX_QUERIES;
use crate::backend::{BackendError, Batch};
use crate::kv::{CacheGeometry, first_visible};
use crate::model::ModelSpec;

/// Neighbouring rows of one sequence that attend together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTile {
    /// Index into the batch's sequences.
    pub(crate) sequence: usize,
    /// First row in the batch.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: u32,
}

/// Where a row's key and value go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPlace {
    pub(crate) position: u32,
    pub(crate) page: u32,
    pub(crate) slot: u32,
}

/// The plan of one batch. Its memory is kept from batch to batch.
pub(crate) struct Plan {
    pub(crate) rows: Vec<RowPlace>,
    pub(crate) tiles: Vec<RowTile>,
    /// Number of the batch that last wrote each page.
    written: Vec<u64>,
    batch: u64,
    max_rows: usize,
}

/// Most rows of a tile whose queries come from `group` heads each.
fn tile_rows(group: usize) -> usize {
    (MAX_QUERIES / group).max(1)
}

impl Plan {
    pub(crate) fn new(max_rows: usize, pages: u32) -> Plan {
        Plan {
            rows: Vec::with_capacity(max_rows),
            tiles: Vec::with_capacity(max_rows),
            written: vec![0; pages as usize],
            batch: 0,
            max_rows,
        }
    }

    /// Checks everything that the kernels rely on, then plans.
    pub(crate) fn make(
        &mut self,
        batch: &Batch<'_>,
        spec: &ModelSpec,
        cache: CacheGeometry,
    ) -> Result<(), BackendError> {
        self.rows.clear();
        self.tiles.clear();
        self.batch += 1;
        let total = batch.token_ids.len();
        if total > self.max_rows {
            return Err(invalid(format!("{total} rows, at most {} are allowed", self.max_rows)));
        }
        if let Some(id) = batch.token_ids.iter().find(|id| id.0 as usize >= spec.vocab_size) {
            return Err(invalid(format!("token id {id}, the vocabulary has {}", spec.vocab_size)));
        }
        if let Some(row) = batch.logits_rows.iter().find(|&&row| row >= total) {
            return Err(invalid(format!("logits of row {row} of {total}")));
        }
        if batch.logits_rows.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(invalid("logits rows are not ascending".to_owned()));
        }
        for index in 0..batch.sequences.len() {
            self.add_sequence(batch, index, spec, cache)?;
        }
        if self.rows.len() != total {
            return Err(invalid(format!("{total} token ids, but sequences of {} rows", self.rows.len())));
        }
        Ok(())
    }

    fn add_sequence(
        &mut self,
        batch: &Batch<'_>,
        index: usize,
        spec: &ModelSpec,
        cache: CacheGeometry,
    ) -> Result<(), BackendError> {
        let sequence = &batch.sequences[index];
        let wrong = |what: String| invalid(format!("sequence {index}: {what}"));
        let rows = &sequence.rows;
        if rows.start != self.rows.len() || rows.end < rows.start || rows.end > batch.token_ids.len() {
            let (expected, total) = (self.rows.len(), batch.token_ids.len());
            return Err(wrong(format!("rows {rows:?}, expected to begin at {expected} and end by {total}")));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let Some(last) = sequence.start.checked_add(count - 1).filter(|&last| last < u32::MAX) else {
            return Err(wrong(format!("{count} rows from position {} overflow", sequence.start)));
        };
        let first_needed = first_visible(sequence.start, spec.window) / cache.page_size;
        if sequence.first_block > first_needed {
            let found = sequence.first_block;
            return Err(wrong(format!("first block is {found}, block {first_needed} is still visible")));
        }
        let blocks = (last / cache.page_size - sequence.first_block) as usize + 1;
        if sequence.pages.len() < blocks {
            return Err(wrong(format!("{} pages for {blocks} blocks", sequence.pages.len())));
        }
        let visible = (first_needed - sequence.first_block) as usize;
        if let Some(page) = sequence.pages[visible..blocks].iter().find(|page| page.0 >= cache.pages) {
            return Err(wrong(format!("page {} of {}", page.0, cache.pages)));
        }
        // Two writers of one page would race.
        for block in sequence.start / cache.page_size..=last / cache.page_size {
            let page = sequence.pages[(block - sequence.first_block) as usize];
            if std::mem::replace(&mut self.written[page.0 as usize], self.batch) == self.batch {
                return Err(wrong(format!("page {} is written twice in one batch", page.0)));
            }
        }
        for position in sequence.start..=last {
            let page = sequence.pages[(position / cache.page_size - sequence.first_block) as usize].0;
            self.rows.push(RowPlace { position, page, slot: position % cache.page_size });
        }
        let most = tile_rows(spec.group_size());
        let mut row = rows.start;
        while row < rows.end {
            let tile = most.min(rows.end - row);
            let position = sequence.start + (row - rows.start) as u32;
            self.tiles.push(RowTile { sequence: index, row, rows: tile, position });
            row += tile;
        }
        Ok(())
    }
}

fn invalid(what: String) -> BackendError {
    BackendError::InvalidBatch(what)
}
