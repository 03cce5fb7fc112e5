//! The block tables of one sequence, one per cache group. They grow together; each evicts what left its group's window.

use super::{BlockTable, OutOfPages, PageCache, PagePool, first_visible};

/// The block tables of one sequence. `BlockTables::default()` has none, for a sequence without pages.
///
/// Dropping non-empty tables leaks their pages; use [`BlockTables::release`].
#[derive(Debug, Default)]
pub struct BlockTables(Vec<BlockTable>);

impl BlockTables {
    /// Empty tables, for a sequence at position 0.
    pub fn new(cache: &PageCache) -> BlockTables {
        BlockTables(cache.pools().iter().map(|_| BlockTable::default()).collect())
    }

    pub(super) fn from_tables(tables: Vec<BlockTable>) -> BlockTables {
        BlockTables(tables)
    }

    /// The tables in group order.
    pub fn as_slice(&self) -> &[BlockTable] {
        &self.0
    }

    /// One past the last position that could be reserved in every group.
    pub fn max_end(&self, cache: &PageCache) -> u32 {
        let blocks = |(table, pool): (&BlockTable, &PagePool)| table.end_block().saturating_add(pool.available());
        self.0.iter().zip(cache.pools()).map(blocks).min().unwrap_or(u32::MAX).saturating_mul(cache.page_size().get())
    }

    /// Allocates pages for positions before `end` in every group, all or none.
    pub fn reserve(&mut self, end: u32, cache: &mut PageCache) -> Result<(), OutOfPages> {
        let blocks = end.div_ceil(cache.page_size().get());
        let needed = |table: &BlockTable| blocks.saturating_sub(table.end_block());
        for (table, pool) in self.0.iter().zip(cache.pools()) {
            if needed(table) > pool.available() {
                return Err(OutOfPages { needed: needed(table), free: pool.available() });
            }
        }
        for (group, table) in self.0.iter_mut().enumerate() {
            let needed = needed(table);
            cache.allocate(group, needed, &mut table.pages)?;
        }
        Ok(())
    }

    /// Frees the pages that no query at `next` or later can see.
    pub fn evict(&mut self, next: u32, cache: &mut PageCache) {
        for (group, table) in self.0.iter_mut().enumerate() {
            let first_block = first_visible(next, cache.pools()[group].window()) / cache.page_size();
            cache.release(group, table.drop_before(first_block));
        }
    }

    /// Releases all pages and restarts at position 0. The last pages are released first, so that the end of a cached
    /// prefix is evicted before its start.
    pub fn release(&mut self, cache: &mut PageCache) {
        for (group, table) in self.0.iter_mut().enumerate() {
            cache.release(group, table.drop_all());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::testing::{geometry, non_zero};
    use crate::kv::{CacheGeometry, PrefixCache};
    use proptest::prelude::*;

    #[test]
    fn the_key_at_distance_window_is_hidden() {
        assert_eq!(first_visible(3, Some(non_zero(4))), 0);
        assert_eq!(first_visible(4, Some(non_zero(4))), 1);
        assert_eq!(first_visible(4096, Some(non_zero(4096))), 1);
        assert_eq!(first_visible(9, None), 0);
    }

    #[test]
    fn a_page_is_freed_with_its_last_visible_position() {
        let mut cache = PageCache::new(&geometry(4, &[(Some(4), 4), (None, 3)]), PrefixCache::Off);
        let mut tables = BlockTables::new(&cache);
        tables.reserve(8, &mut cache).unwrap();
        tables.evict(6, &mut cache); // sees 3..=6
        assert_eq!(tables.as_slice()[0].pages().len(), 2);
        tables.evict(7, &mut cache); // sees 4..=7
        let [windowed, whole] = tables.as_slice() else { panic!("two groups") };
        assert_eq!((windowed.first_block(), windowed.pages().len(), cache.pools()[0].available()), (1, 1, 3));
        assert_eq!((whole.first_block(), whole.pages().len(), cache.pools()[1].available()), (0, 2, 1));
        // One group can take three more blocks, the other one.
        assert_eq!(tables.max_end(&cache), 12);
        assert_eq!(tables.reserve(13, &mut cache), Err(OutOfPages { needed: 2, free: 1 }));
        assert_eq!((cache.pools()[0].available(), cache.pools()[1].available()), (3, 1), "all or nothing");
        tables.reserve(12, &mut cache).unwrap();
    }

    proptest! {
        /// Compared with the definition over steps of random sizes: every position that a later query sees has a page
        /// in each group, no page outside the window is held, and the bound on pages holds.
        #[test]
        fn holds_what_the_windows_show(
            page_size in 1u32..20,
            windows in prop::collection::vec(prop::option::of(1u32..50), 1..4),
            steps in prop::collection::vec(1u32..30, 1..20),
        ) {
            let total: u32 = steps.iter().sum();
            let largest = *steps.iter().max().unwrap();
            let bound = |window: Option<u32>| {
                CacheGeometry::pages_for_sequence(page_size, total, window.map(non_zero), largest)
            };
            let groups: Vec<_> = windows.iter().map(|window| (*window, bound(*window))).collect();
            let mut cache = PageCache::new(&geometry(page_size, &groups), PrefixCache::Off);
            let mut tables = BlockTables::new(&cache);
            let mut position = 0;
            for rows in steps {
                tables.evict(position, &mut cache);
                for (table, window) in tables.as_slice().iter().zip(&windows) {
                    let first = first_visible(position, window.map(non_zero)) / page_size;
                    prop_assert!(table.pages().is_empty() || table.first_block() == first);
                }
                prop_assert!(tables.max_end(&cache) >= position + rows);
                tables.reserve(position + rows, &mut cache).unwrap();
                for (table, window) in tables.as_slice().iter().zip(&windows) {
                    for row in position..position + rows {
                        for key in first_visible(row, window.map(non_zero))..=row {
                            prop_assert!(table.page(key / page_size).is_some());
                        }
                    }
                }
                position += rows;
            }
            tables.release(&mut cache);
            for (pool, (_, pages)) in cache.pools().iter().zip(groups) {
                prop_assert_eq!(pool.available(), pages);
            }
        }
    }
}
