//! Geometry of the paged cache: its groups, and the pages a sequence holds in each.

use std::num::NonZeroU32;

use super::{KvFormat, OutOfPages};

/// The layers with one window. They share pages, because they evict the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGroup {
    /// Keys that a query sees, its own included: `q - k <= W - 1`. `None` for full attention.
    pub window: Option<NonZeroU32>,
    /// Number of pages.
    pub pages: u32,
    /// Storage format.
    pub format: KvFormat,
    /// Bytes of a page: keys and values of all layers of the group.
    pub page_bytes: u64,
}

/// Geometry of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheGeometry {
    /// Positions per page, the same in all groups: a block of tokens is one page of each group, and sequences share
    /// full blocks.
    pub page_size: NonZeroU32,
    /// One per window of the network, in order of first layer. A sequence has a block table for each.
    pub groups: Vec<CacheGroup>,
}

impl CacheGeometry {
    /// Most pages of a group that a sequence of up to `max_positions` tokens holds while a step computes up to `rows`
    /// of its rows.
    pub fn pages_for_sequence(page_size: u32, max_positions: u32, window: Option<NonZeroU32>, rows: u32) -> u32 {
        let whole = max_positions.div_ceil(page_size);
        match window {
            None => whole,
            // The W - 1 positions before the first row, and the rows; the first may be the last one of its page.
            Some(window) => {
                ((window.get() - 1).saturating_add(rows.saturating_sub(1)).div_ceil(page_size) + 1).min(whole)
            }
        }
    }

    /// Checks that a sequence of `positions` tokens fits, computed one row at a time.
    ///
    /// # Errors
    /// The needed pages of the first group that has fewer.
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
