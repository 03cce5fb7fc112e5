//! Which page holds which positions of one sequence.

use std::num::NonZeroU32;

use super::{OutOfPages, PageId, PagePool, first_visible};

/// The pages of one sequence, from the first that a later query can still see.
///
/// Dropping a table with pages in it leaks them; [`BlockTable::release`] gives them back.
#[derive(Debug)]
pub struct BlockTable {
    page_size: u32,
    window: Option<NonZeroU32>,
    first_block: u32,
    pages: Vec<PageId>,
}

impl BlockTable {
    /// A table with no pages, for a sequence of a model with this `window`.
    pub fn new(page_size: NonZeroU32, window: Option<NonZeroU32>) -> BlockTable {
        BlockTable { page_size: page_size.get(), window, first_block: 0, pages: Vec::new() }
    }

    /// Logical index of the first page: those before it were freed.
    pub fn first_block(&self) -> u32 {
        self.first_block
    }

    /// The pages, from logical block [`BlockTable::first_block`] on.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Makes room for positions up to and excluding `end`: every page of them, or none and an error.
    pub fn reserve(&mut self, end: u32, pool: &mut PagePool) -> Result<(), OutOfPages> {
        let held = self.first_block + self.pages.len() as u32;
        let needed = end.div_ceil(self.page_size).saturating_sub(held);
        pool.allocate(needed, &mut self.pages)
    }

    /// Frees every page that no query at `next` or later can see.
    pub fn evict(&mut self, next: u32, pool: &mut PagePool) {
        let first_block = first_visible(next, self.window) / self.page_size;
        let hidden = first_block.saturating_sub(self.first_block).min(self.pages.len() as u32);
        pool.release(self.pages.drain(..hidden as usize));
        self.first_block += hidden;
    }

    /// Gives every page back and starts over at position 0.
    pub fn release(&mut self, pool: &mut PagePool) {
        pool.release(self.pages.drain(..));
        self.first_block = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::CacheGeometry;
    use proptest::prelude::*;

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
        let mut pool = PagePool::new(4);
        let mut table = BlockTable::new(non_zero(4), Some(non_zero(4)));
        table.reserve(8, &mut pool).unwrap();
        table.evict(6, &mut pool); // sees 3..=6
        assert_eq!(table.pages().len(), 2);
        table.evict(7, &mut pool); // sees 4..=7
        assert_eq!((table.first_block(), table.pages().len(), pool.free()), (1, 1, 3));
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
            let mut pool = PagePool::new(bound);
            let mut table = BlockTable::new(non_zero(page_size), window);
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
            prop_assert_eq!(pool.free(), bound);
        }
    }
}
