//! Bookkeeping of the paged KV cache: free pages, block tables, window eviction and the prefix cache. Pure arithmetic:
//! no tensors, no device calls.
//!
//! A page (vLLM's block) holds the keys and values of `page_size` consecutive positions of one sequence; block `i` of a
//! sequence is its positions from `i * page_size` on, and a block table maps blocks to pages. The cache has one group
//! of pages for each window of the network, and a sequence has one block table per group. A page holds every layer of
//! its group and every KV head. In a step of `C` rows a sequence with window `W` holds at most `ceil((W - 2 + C) /
//! page_size) + 1` pages of a group ([`CacheGeometry::pages_for_sequence`]).

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
pub use cache::{PageCache, PrefixCache, PrefixCursor, PrefixHit};
pub use format::KvFormat;
pub use geometry::{CacheGeometry, CacheGroup};
pub use pool::PagePool;

use std::num::NonZeroU32;

/// Index of a page within its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct PageId(pub u32);

/// First position visible to a query at `position`: the window rule `q - k <= W - 1`.
pub fn first_visible(position: u32, window: Option<NonZeroU32>) -> u32 {
    window.map_or(0, |window| (position + 1).saturating_sub(window.get()))
}

/// A group has too few pages available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache has {free} free pages, {needed} are needed")]
pub struct OutOfPages {
    /// Pages requested.
    pub needed: u32,
    /// Pages available.
    pub free: u32,
}
