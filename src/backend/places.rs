//! Where the rows of a batch stand: checks everything that kernels rely on, and gives each row its position, page and
//! slot. Shared by the backends, none of which it knows.

use super::{BackendError, Batch, SequenceRows, Token};
use crate::kv::{CacheGeometry, first_visible};
use crate::model::ModelSpec;

/// Where a row's key and value go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowPlace {
    pub(crate) position: u32,
    pub(crate) page: u32,
    pub(crate) slot: u32,
}

/// The places of one batch. Its memory is kept from batch to batch.
pub(crate) struct Places {
    /// One for each row of the batch.
    pub(crate) rows: Vec<RowPlace>,
    /// Number of the batch that last wrote each page.
    written: Vec<u64>,
    batch: u64,
    max_rows: usize,
}

impl Places {
    /// For batches of up to `max_rows` rows over a cache of `pages` pages.
    pub(crate) fn new(max_rows: usize, pages: u32) -> Places {
        Places { rows: Vec::with_capacity(max_rows), written: vec![0; pages as usize], batch: 0, max_rows }
    }

    /// Checks the batch, then places its rows. On success every token id is below the vocabulary size, every page that
    /// a row sees or writes is one of the cache, no page is written by two sequences, and logits rows are rows.
    pub(crate) fn make(
        &mut self,
        batch: &Batch<'_>,
        spec: &ModelSpec,
        cache: CacheGeometry,
    ) -> Result<(), BackendError> {
        self.rows.clear();
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
            self.add_sequence(sequence, total, spec, cache)
                .map_err(|what| invalid(format!("sequence {index}: {what}")))?;
        }
        if self.rows.len() != total {
            return Err(invalid(format!("{total} token ids, but sequences of {} rows", self.rows.len())));
        }
        Ok(())
    }

    fn add_sequence(
        &mut self,
        sequence: &SequenceRows<'_>,
        total: usize,
        spec: &ModelSpec,
        cache: CacheGeometry,
    ) -> Result<(), String> {
        let rows = &sequence.rows;
        if rows.start != self.rows.len() || rows.end < rows.start || rows.end > total {
            return Err(format!("rows {rows:?}, expected to begin at {} and end by {total}", self.rows.len()));
        }
        if rows.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let Some(last) = sequence.start.checked_add(count - 1).filter(|&last| last < u32::MAX) else {
            return Err(format!("{count} rows from position {} overflow", sequence.start));
        };
        let first_needed = first_visible(sequence.start, spec.window()) / cache.page_size;
        if sequence.first_block > first_needed {
            return Err(format!("first block is {}, block {first_needed} is still visible", sequence.first_block));
        }
        let blocks = (last / cache.page_size - sequence.first_block) as usize + 1;
        if sequence.pages.len() < blocks {
            return Err(format!("{} pages for {blocks} blocks", sequence.pages.len()));
        }
        let visible = (first_needed - sequence.first_block) as usize;
        if let Some(page) = sequence.pages[visible..blocks].iter().find(|page| page.0 >= cache.pages) {
            return Err(format!("page {} of {}", page.0, cache.pages));
        }
        // Two writers of one page would race.
        for block in sequence.start / cache.page_size..=last / cache.page_size {
            let page = sequence.pages[(block - sequence.first_block) as usize];
            if std::mem::replace(&mut self.written[page.0 as usize], self.batch) == self.batch {
                return Err(format!("page {} is written twice in one batch", page.0));
            }
        }
        for position in sequence.start..=last {
            let page = sequence.pages[(position / cache.page_size - sequence.first_block) as usize].0;
            self.rows.push(RowPlace { position, page, slot: position % cache.page_size });
        }
        Ok(())
    }
}

fn invalid(what: String) -> BackendError {
    BackendError::InvalidBatch(what)
}
