//! Bookkeeping of the paged key/value cache: which pages are free, which page holds which positions of a sequence,
//! which pages the sliding window has left behind, and which beginnings of ended sequences are still there. Pure
//! arithmetic: no tensors, no device calls.
//!
//! A page holds `page_size` consecutive positions of one sequence, for every layer and KV head at once. A sequence
//! in a step of `C` rows with window `W` never holds more than `ceil((W - 2 + C) / page_size) + 1` pages
//! ([`CacheGeometry::pages_for_sequence`]).

mod block_table;
mod cache;
mod lru;
mod prefix;

pub use block_table::BlockTable;
pub use cache::{Chain, PageCache, PrefixCache, PrefixHit};

use std::num::NonZeroU32;

/// One page of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct PageId(pub u32);

/// Size of a paged cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGeometry {
    /// Positions a page holds.
    pub page_size: u32,
    /// Number of pages.
    pub pages: u32,
}

impl CacheGeometry {
    /// The most pages that one sequence of at most `max_positions` tokens holds while a step computes up to
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
}

/// The first position that a query at `position` sees: the window rule `q - k <= W - 1`.
pub fn first_visible(position: u32, window: Option<NonZeroU32>) -> u32 {
    window.map_or(0, |window| (position + 1).saturating_sub(window.get()))
}

/// The pool has no free page left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache has {free} free pages, {needed} are needed")]
pub struct OutOfPages {
    /// Pages that were asked for.
    pub needed: u32,
    /// Pages that were free.
    pub free: u32,
}
