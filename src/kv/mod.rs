//! Bookkeeping of the paged key/value cache: which pages are free, which page holds which positions of a sequence,
//! which pages the sliding windows have left behind, and which beginnings of ended sequences are still there. Pure
//! arithmetic: no tensors, no device calls.
//!
//! The cache is a list of groups, one for each window that layers of the network have. A page of a group holds
//! `page_size` consecutive positions of one sequence, for every layer of the group and every KV head at once; a sequence
//! has a block table for each group. A sequence in a step of `C` rows with window `W` never holds more than
//! `ceil((W - 2 + C) / page_size) + 1` pages of a group ([`CacheGeometry::pages_for_sequence`]).

mod block_table;
mod block_tables;
mod cache;
mod format;
mod geometry;
mod lru;
mod pool;
mod prefix;
#[cfg(test)]
mod testing;

pub use block_table::BlockTable;
pub use block_tables::BlockTables;
pub use cache::{Chain, PageCache, PrefixCache, PrefixHit};
pub use format::KvFormat;
pub use geometry::{CacheGeometry, CacheGroup};
pub use pool::PagePool;

use std::num::NonZeroU32;

/// One page of a group of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct PageId(pub u32);

/// The first position that a query at `position` sees: the window rule `q - k <= W - 1`.
pub fn first_visible(position: u32, window: Option<NonZeroU32>) -> u32 {
    window.map_or(0, |window| (position + 1).saturating_sub(window.get()))
}

/// A group has too few free pages left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache has {free} free pages, {needed} are needed")]
pub struct OutOfPages {
    /// Pages that were asked for.
    pub needed: u32,
    /// Pages that were free.
    pub free: u32,
}
