//! The paged KV cache with prefix sharing: a page pool per group, and one index of cached prefixes.

use std::num::NonZeroU32;

use crate::text::TokenId;

use super::pool::PagePool;
use super::prefix::{NodeId, PrefixIndex};
use super::{BlockTable, BlockTables, CacheGeometry, OutOfPages, PageId, first_visible};

/// Whether pages of ended sequences stay cached for later ones with the same prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrefixCache {
    /// Until their pages are needed, least recently used first.
    #[default]
    On,
    /// Never: every sequence computes its whole prompt.
    Off,
}

/// Allocates, shares and releases KV pages.
///
/// A shared page is never written: sequences share full blocks and write only beyond them. [`PageCache::match_prefix`]
/// returns exactly the pages that [`PageCache::insert`] stored; tokens are compared, not just hashes.
#[derive(Debug)]
pub struct PageCache {
    page_size: NonZeroU32,
    /// One per group.
    pools: Vec<PagePool>,
    index: Option<PrefixIndex>,
}

/// A sequence's position in the prefix index. Must be returned with [`PageCache::release_cursor`].
#[derive(Debug)]
pub struct PrefixCursor {
    /// `None` once a block could not be inserted.
    node: Option<NodeId>,
    blocks: u32,
}

impl PrefixCursor {
    /// Number of blocks inserted, from the start of the sequence.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }
}

/// A cached prefix. The holder references its pages.
#[derive(Debug)]
pub struct PrefixHit {
    /// Number of cached blocks.
    pub blocks: u32,
    /// Block tables with the pages that later queries still see.
    pub tables: BlockTables,
    /// Cursor after the cached blocks.
    pub cursor: PrefixCursor,
}

impl PageCache {
    /// A cache whose pages are all free.
    pub fn new(geometry: &CacheGeometry, prefixes: PrefixCache) -> PageCache {
        let pools: Vec<PagePool> = geometry.groups.iter().map(PagePool::new).collect();
        let index = (prefixes == PrefixCache::On).then(|| PrefixIndex::new(pools.len()));
        PageCache { page_size: geometry.page_size, pools, index }
    }

    /// Positions per page.
    pub fn page_size(&self) -> NonZeroU32 {
        self.page_size
    }

    /// The pool of each group.
    pub fn pools(&self) -> &[PagePool] {
        &self.pools
    }

    /// Returns `true` if prefixes are cached.
    pub fn keeps_prefixes(&self) -> bool {
        self.index.is_some()
    }

    /// Number of pages in all groups.
    pub fn pages(&self) -> u32 {
        self.pools.iter().map(PagePool::pages).sum()
    }

    /// Pages of all groups that can be allocated: free ones and cached ones.
    pub fn available(&self) -> u32 {
        self.pools.iter().map(PagePool::available).sum()
    }

    /// Starts tracking pages whose contents are invalid, for [`PageCache::take_freed`].
    pub fn watch_freed(&mut self) {
        self.pools.iter_mut().for_each(PagePool::watch_freed);
    }

    /// Pages of a group freed since the last call. Empty unless [`PageCache::watch_freed`] was called.
    pub fn take_freed(&mut self, group: usize) -> Vec<PageId> {
        self.pools[group].take_freed()
    }

    /// Appends `count` pages of a group to `pages`, all or none.
    pub(super) fn allocate(&mut self, group: usize, count: u32, pages: &mut Vec<PageId>) -> Result<(), OutOfPages> {
        let PageCache { pools, index, .. } = self;
        pools[group].allocate(count, pages, |node| clear_page(index, node, group))
    }

    /// Drops one reference to each of these pages of a group.
    ///
    /// # Panics
    /// If a page is not of this group or has no references; two sequences would write it.
    pub(super) fn release(&mut self, group: usize, pages: impl IntoIterator<Item = PageId>) {
        self.pools[group].release(pages);
    }

    /// Evicts every cached page.
    pub fn evict_cached(&mut self) {
        let PageCache { pools, index, .. } = self;
        for (group, pool) in pools.iter_mut().enumerate() {
            pool.evict_cached(|node| clear_page(index, node, group));
        }
    }

    /// The longest cached prefix of `tokens`, at most `limit` tokens: every page that a query after it can see is
    /// present in every group. Prefixes under different salts are separate.
    pub fn match_prefix(&mut self, salt: Option<&str>, tokens: &[TokenId], limit: usize) -> Option<PrefixHit> {
        let PageCache { pools, index, page_size } = self;
        let index = index.as_mut()?;
        let size = page_size.get();
        let first_block = |end: u32, window| first_visible(end * size, window) / size;
        let mut node = index.root(salt)?;
        let mut path = Vec::new();
        let mut best = 0u32;
        // For each group, the number of consecutive pages present up to here.
        let mut runs = vec![0u32; pools.len()];
        for block in tokens[..limit.min(tokens.len())].chunks_exact(size as usize) {
            let Some(child) = index.child(node, block) else { break };
            node = child;
            path.push(child);
            let end = path.len() as u32;
            for (group, run) in runs.iter_mut().enumerate() {
                *run = if index.page(child, group).is_some() { *run + 1 } else { 0 };
            }
            if runs.iter().zip(&*pools).all(|(run, pool)| *run >= end - first_block(end, pool.window())) {
                best = end;
            }
        }
        let node = *path.get(best.checked_sub(1)? as usize)?;
        index.pin(node);
        let table = |(group, pool): (usize, &mut PagePool)| {
            let first_block = first_block(best, pool.window());
            let visible = &path[first_block as usize..best as usize];
            let pages: Vec<PageId> = visible.iter().filter_map(|node| index.page(*node, group)).collect();
            pool.share(&pages);
            BlockTable::from_pages(first_block, pages)
        };
        let tables = BlockTables::from_tables(pools.iter_mut().enumerate().map(table).collect());
        Some(PrefixHit { blocks: best, tables, cursor: PrefixCursor { node: Some(node), blocks: best } })
    }

    /// A cursor at the start of a sequence.
    pub fn cursor(&mut self, salt: Option<&str>) -> PrefixCursor {
        PrefixCursor { node: self.index.as_mut().map(|index| index.pin_root(salt)), blocks: 0 }
    }

    /// Inserts the sequence's next block: its `page_size` tokens and its pages in `tables`, fully written and never
    /// written again. A group's page may be missing if it has left the window.
    pub fn insert(&mut self, cursor: &mut PrefixCursor, tokens: &[TokenId], tables: &BlockTables) {
        let block = cursor.blocks;
        cursor.blocks += 1;
        let (Some(index), Some(node)) = (&mut self.index, cursor.node) else { return };
        cursor.node = index.pin_child(node, tokens);
        let Some(node) = cursor.node else { return };
        for (group, (table, pool)) in tables.as_slice().iter().zip(&mut self.pools).enumerate() {
            if let Some(page) = table.page(block)
                && index.page(node, group).is_none()
            {
                index.set_page(node, group, page);
                pool.set_node(page, node);
            }
        }
    }

    /// Releases a sequence's cursor.
    pub fn release_cursor(&mut self, cursor: PrefixCursor) {
        if let (Some(index), Some(node)) = (&mut self.index, cursor.node) {
            index.unpin(node);
        }
    }
}

/// Called when a node's page of a group is reused.
fn clear_page(index: &mut Option<PrefixIndex>, node: NodeId, group: usize) {
    if let Some(index) = index {
        index.clear_page(node, group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::testing::{geometry, non_zero};
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    /// Reference model: whole prefixes as keys, and what each page holds.
    struct Model {
        size: usize,
        groups: Vec<Group>,
    }

    struct Group {
        window: Option<NonZeroU32>,
        /// Salt and tokens of a prefix, to the page of its last block.
        known: HashMap<(u8, Vec<u32>), PageId>,
        users: HashMap<PageId, u32>,
        /// Cached pages without references, oldest first.
        cached: VecDeque<PageId>,
    }

    impl Model {
        fn new(size: usize, windows: &[Option<u32>]) -> Model {
            let group = |window: &Option<u32>| Group {
                window: window.map(non_zero),
                known: HashMap::new(),
                users: HashMap::new(),
                cached: VecDeque::new(),
            };
            Model { size, groups: windows.iter().map(group).collect() }
        }
        fn longest(&self, salt: u8, tokens: &[u32], limit: usize) -> usize {
            let whole = tokens.len().min(limit) / self.size;
            let key = |block: usize| (salt, tokens[..(block + 1) * self.size].to_vec());
            let held = |end: usize| {
                self.groups.iter().all(|group| {
                    let first = first_visible((end * self.size) as u32, group.window) as usize / self.size;
                    (first..end).all(|block| group.known.contains_key(&key(block)))
                })
            };
            (1..=whole).rev().find(|&end| held(end)).unwrap_or(0)
        }
    }

    impl Group {
        fn unused(&self, pages: u32) -> u32 {
            pages - self.users.values().filter(|users| **users > 0).count() as u32
        }
        fn forget(&mut self, page: PageId) {
            self.known.retain(|_, known| *known != page);
        }
        fn release(&mut self, page: PageId) {
            let users = self.users.get_mut(&page).unwrap();
            *users -= 1;
            if *users == 0 && self.known.values().any(|known| *known == page) {
                self.cached.push_back(page);
            }
        }
    }

    /// A running sequence of the test; all its blocks are computed.
    struct Running {
        salt: u8,
        tokens: Vec<u32>,
        tables: BlockTables,
        cursor: PrefixCursor,
    }

    fn pages(tables: &BlockTables) -> Vec<Vec<PageId>> {
        tables.as_slice().iter().map(|table| table.pages().to_vec()).collect()
    }

    proptest! {
        /// Sequences over few tokens start, compute blocks and end in random order. Every hit is the longest prefix
        /// that the model knows in all groups, in pages that hold it; no referenced page is overwritten; eviction is
        /// LRU; nothing leaks.
        #[test]
        fn gives_what_was_put_down(
            size in 1u32..4,
            // With a window of 1 a query sees nothing before it: every prefix is a hit, and useless.
            groups in prop::collection::vec((prop::option::of(2u32..9), 1u32..12), 1..3),
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), any::<u64>()), 1..120),
        ) {
            let mut cache = PageCache::new(&geometry(size, &groups), PrefixCache::On);
            let size = size as usize;
            let windows: Vec<Option<u32>> = groups.iter().map(|(window, _)| *window).collect();
            let mut model = Model::new(size, &windows);
            let mut running: Vec<Running> = Vec::new();
            let salts = [None, Some("a")];
            for (what, which, seed) in steps {
                match what {
                    // A sequence starts. Its tokens are bits of a number, so prefixes repeat.
                    0 | 1 => {
                        let tokens: Vec<u32> = (0..4 * size).map(|i| (seed >> (i % 6) & 1) as u32).collect();
                        let salt = (seed >> 62 & 1) as u8;
                        let ids: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
                        let limit = (seed >> 32) as usize % (tokens.len() + 1);
                        let expected = model.longest(salt, &tokens, limit);
                        let hit = cache.match_prefix(salts[salt as usize], &ids, limit);
                        prop_assert_eq!(hit.as_ref().map_or(0, |hit| hit.blocks as usize), expected);
                        let (tables, cursor) = match hit {
                            None => (BlockTables::new(&cache), cache.cursor(salts[salt as usize])),
                            Some(PrefixHit { tables, cursor, .. }) => (tables, cursor),
                        };
                        for (table, group) in tables.as_slice().iter().zip(&mut model.groups) {
                            let first = first_visible((expected * size) as u32, group.window) as usize / size;
                            prop_assert_eq!(table.pages().len(), expected - first);
                            for (block, page) in (table.first_block() as usize..).zip(table.pages()) {
                                let known = group.known.get(&(salt, tokens[..(block + 1) * size].to_vec()));
                                prop_assert_eq!(known, Some(page));
                                *group.users.entry(*page).or_insert(0) += 1;
                                group.cached.retain(|cached| cached != page);
                            }
                        }
                        running.push(Running { salt, tokens, tables, cursor });
                    }
                    // A sequence computes its next block if every group has a page for it.
                    2 if !running.is_empty() => {
                        let at = which.index(running.len());
                        let Running { salt, tokens, tables, cursor } = &mut running[at];
                        let block = cursor.blocks() as usize;
                        if (block + 1) * size > tokens.len() {
                            continue;
                        }
                        let both = model.groups.iter().zip(cache.pools());
                        let unused: Vec<u32> = both.map(|(group, pool)| group.unused(pool.pages())).collect();
                        let available: Vec<u32> = cache.pools().iter().map(PagePool::available).collect();
                        prop_assert_eq!(&available, &unused);
                        let cached_only: Vec<bool> =
                            cache.pools().iter().map(|pool| pool.available() == pool.cached()).collect();
                        let before = pages(tables);
                        if tables.reserve(((block + 1) * size) as u32, &mut cache).is_err() {
                            prop_assert!(unused.contains(&0));
                            prop_assert_eq!(pages(tables), before);
                            continue;
                        }
                        let beginning = tokens[..(block + 1) * size].to_vec();
                        let ids: Vec<TokenId> = beginning[block * size..].iter().copied().map(TokenId).collect();
                        cache.insert(cursor, &ids, tables);
                        let both = tables.as_slice().iter().zip(&mut model.groups);
                        for ((table, group), cached_only) in both.zip(cached_only) {
                            let page = table.page(block as u32).expect("it was reserved");
                            prop_assert_eq!(group.users.get(&page).copied().unwrap_or(0), 0);
                            if cached_only {
                                prop_assert_eq!(group.cached.pop_front(), Some(page));
                            } else {
                                prop_assert!(!group.cached.contains(&page));
                            }
                            group.forget(page);
                            group.users.insert(page, 1);
                            group.known.entry((*salt, beginning.clone())).or_insert(page);
                        }
                        // Pages that left the window are freed.
                        let next = ((block + 1) * size) as u32;
                        let before = pages(tables);
                        tables.evict(next, &mut cache);
                        for ((before, table), group) in before.iter().zip(tables.as_slice()).zip(&mut model.groups) {
                            let gone = before.len() - table.pages().len();
                            prop_assert_eq!(table.first_block(), first_visible(next, group.window) / size as u32);
                            before[..gone].iter().for_each(|page| group.release(*page));
                        }
                    }
                    // A sequence ends.
                    3 if !running.is_empty() => {
                        let Running { mut tables, cursor, .. } = running.swap_remove(which.index(running.len()));
                        for (table, group) in tables.as_slice().iter().zip(&mut model.groups) {
                            table.pages().iter().rev().for_each(|page| group.release(*page));
                        }
                        tables.release(&mut cache);
                        cache.release_cursor(cursor);
                    }
                    _ => {}
                }
                for (pool, group) in cache.pools().iter().zip(&model.groups) {
                    prop_assert_eq!(pool.cached() as usize, group.cached.len());
                }
            }
            for Running { mut tables, cursor, .. } in running {
                tables.release(&mut cache);
                cache.release_cursor(cursor);
            }
            prop_assert_eq!(cache.available(), cache.pages());
            // Once every page is allocated, the index must be empty.
            for (group, (_, pages)) in groups.iter().enumerate() {
                cache.allocate(group, *pages, &mut Vec::new()).unwrap();
            }
            prop_assert_eq!(cache.index.as_ref().unwrap().len(), 0);
        }
    }
}
