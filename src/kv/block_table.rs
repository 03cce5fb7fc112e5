//! Which page holds which positions of one sequence.

use super::{OutOfPages, PageCache, PageId, PrefixHit, first_visible};

/// The pages of one sequence, from the first that a later query can still see.
///
/// Dropping a table with pages in it leaks them; [`BlockTable::release`] gives them back.
#[derive(Debug, Default)]
pub struct BlockTable {
    first_block: u32,
    pages: Vec<PageId>,
}

impl BlockTable {
    /// A table with no pages, of a sequence at its beginning.
    pub fn new() -> BlockTable {
        BlockTable::default()
    }

    /// The table of a sequence whose beginning was found in the cache, and the chain to go on recording with.
    pub fn after(hit: PrefixHit) -> (BlockTable, super::Chain) {
        (BlockTable { first_block: hit.first_block, pages: hit.pages }, hit.chain)
    }

    /// Logical index of the first page: those before it were freed.
    pub fn first_block(&self) -> u32 {
        self.first_block
    }

    /// The pages, from logical block [`BlockTable::first_block`] on.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The page of a logical block; none where it was freed or not reserved yet.
    pub fn page(&self, block: u32) -> Option<PageId> {
        self.pages.get(block.checked_sub(self.first_block)? as usize).copied()
    }

    /// The first position that has no page.
    pub fn end(&self, cache: &PageCache) -> u32 {
        (self.first_block + self.pages.len() as u32).saturating_mul(cache.page_size().get())
    }

    /// Makes room for positions up to and excluding `end`: every page of them, or none and an error.
    pub fn reserve(&mut self, end: u32, cache: &mut PageCache) -> Result<(), OutOfPages> {
        let held = self.first_block + self.pages.len() as u32;
        let needed = end.div_ceil(cache.page_size().get()).saturating_sub(held);
        cache.allocate(needed, &mut self.pages)
    }

    /// Frees every page that no query at `next` or later can see.
    pub fn evict(&mut self, next: u32, cache: &mut PageCache) {
        let first_block = first_visible(next, cache.window()) / cache.page_size();
        let hidden = first_block.saturating_sub(self.first_block).min(self.pages.len() as u32);
        if hidden > 0 {
            cache.release(self.pages.drain(..hidden as usize));
            self.first_block += hidden;
        }
    }

    /// Gives every page back and starts over at position 0. The last pages first: of a beginning that is kept, the
    /// end is the first to be given up.
    pub fn release(&mut self, cache: &mut PageCache) {
        cache.release(self.pages.drain(..).rev());
        self.first_block = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{CacheGeometry, PrefixCache};
    use proptest::prelude::*;
    use std::num::NonZeroU32;

    fn non_zero(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn the_key_at_distance_window_is_hidden() {
        assert_eq!(first_visible(3, Some(non_zero(4))), 0);
        assert_eq!(first_visible(4, Some(non_zero(4))), 1);
        assert_eq!(first_visible(4096, Some(non_zero(4096))), 1);
        assert_eq!(first_visible(9, None), 0);
    }

    #[test]
    fn a_page_is_freed_with_its_last_visible_position() {
        let mut pool = PageCache::new(non_zero(4), 4, Some(non_zero(4)), PrefixCache::Off);
        let mut table = BlockTable::new();
        table.reserve(8, &mut pool).unwrap();
        table.evict(6, &mut pool); // sees 3..=6
        assert_eq!(table.pages().len(), 2);
        table.evict(7, &mut pool); // sees 4..=7
        assert_eq!((table.first_block(), table.pages().len(), pool.available()), (1, 1, 3));
    }

    proptest! {
        /// Against the definition: walk a sequence in steps of random sizes; every position that a later query sees
        /// has a page, no page is held that none can see, and the promised bound on pages holds.
        #[test]
        fn holds_what_the_window_shows(
            page_size in 1u32..20,
            window in prop::option::of(1u32..50),
            steps in prop::collection::vec(1u32..30, 1..20),
        ) {
            let window = window.map(non_zero);
            let total: u32 = steps.iter().sum();
            let largest = *steps.iter().max().unwrap();
            let bound = CacheGeometry::pages_for_sequence(page_size, total, window, largest);
            let mut pool = PageCache::new(non_zero(page_size), bound, window, PrefixCache::Off);
            let mut table = BlockTable::new();
            let mut position = 0;
            for rows in steps {
                table.evict(position, &mut pool);
                prop_assert!(table.pages().is_empty() || table.first_block() == first_visible(position, window) / page_size);
                table.reserve(position + rows, &mut pool).unwrap();
                for row in position..position + rows {
                    for key in first_visible(row, window)..=row {
                        let block = key / page_size;
                        prop_assert!(block >= table.first_block());
                        prop_assert!(((block - table.first_block()) as usize) < table.pages().len());
                    }
                }
                position += rows;
            }
            table.release(&mut pool);
            prop_assert_eq!(pool.available(), bound);
        }
    }
}
