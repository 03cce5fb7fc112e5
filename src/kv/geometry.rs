//! The shape of a paged cache: its groups, and how many pages a sequence holds of each.

use std::num::NonZeroU32;

use super::{KvFormat, OutOfPages};

/// The layers of one window, which share pages: what one of them may forget, all may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGroup {
    /// Keys that a query of these layers sees, its own included: `q - k <= W - 1`. `None`: all.
    pub window: Option<NonZeroU32>,
    /// Number of pages.
    pub pages: u32,
    /// How keys and values are kept.
    pub format: KvFormat,
    /// Bytes of a page: keys and values of all layers of the group.
    pub page_bytes: u64,
}

/// A paged cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheGeometry {
    /// Positions that a page holds. All groups have the same, so that a block of tokens is one page of each, and
    /// sequences share whole blocks.
    pub page_size: NonZeroU32,
    /// One for each window of the network, in the order of their first layers. A sequence has a block table for each.
    pub groups: Vec<CacheGroup>,
}

impl CacheGeometry {
    /// The most pages of a group that one sequence of at most `max_positions` tokens holds while a step computes up to
    /// `rows` of its rows, with or without a sliding window.
    pub fn pages_for_sequence(page_size: u32, max_positions: u32, window: Option<NonZeroU32>, rows: u32) -> u32 {
        let whole = max_positions.div_ceil(page_size);
        match window {
            None => whole,
            // The W - 1 positions before the first row, and the rows: the first may be the last of its page.
            Some(window) => {
                ((window.get() - 1).saturating_add(rows.saturating_sub(1)).div_ceil(page_size) + 1).min(whole)
            }
        }
    }

    /// Whether a sequence of `positions` tokens can be computed, a row at a time.
    ///
    /// # Errors
    /// What it needs of the first group that has fewer pages.
    pub fn check_sequence(&self, positions: u32) -> Result<(), OutOfPages> {
        self.groups.iter().try_for_each(|group| {
            let needed = CacheGeometry::pages_for_sequence(self.page_size.get(), positions, group.window, 1);
            if needed <= group.pages { Ok(()) } else { Err(OutOfPages { needed, free: group.pages }) }
        })
    }

    /// Bytes of all pages.
    pub fn bytes(&self) -> u64 {
        let bytes = |group: &CacheGroup| group.page_bytes.saturating_mul(group.pages.into());
        self.groups.iter().fold(0, |sum, group| sum.saturating_add(bytes(group)))
    }
}
