//! The pages of the whole cache, shared between sequences that begin alike: a pool for each group, and one index of the
//! beginnings that they hold.

use std::num::NonZeroU32;

use crate::text::TokenId;

use super::pool::PagePool;
use super::prefix::{NodeId, PrefixIndex};
use super::{BlockTable, BlockTables, CacheGeometry, OutOfPages, PageId, first_visible};

/// Are the pages of ended sequences kept for others that begin alike?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrefixCache {
    /// Until their room is needed, the least recently used first.
    #[default]
    On,
    /// Never: each sequence computes its whole prompt.
    Off,
}

/// Hands out pages, shares them between sequences that begin alike, and takes them back.
///
/// A page that two sequences share is never written: sequences share whole blocks of tokens that were computed, and
/// write only past those. What was put down as a beginning's pages ([`PageCache::record`]) is what [`PageCache::find`]
/// gives, tokens compared one by one.
#[derive(Debug)]
pub struct PageCache {
    page_size: NonZeroU32,
    /// One for each group.
    pools: Vec<PagePool>,
    index: Option<PrefixIndex>,
}

/// How far a sequence is known to [`PageCache`]: the blocks of it that were recorded. To be given back with
/// [`PageCache::close`].
#[derive(Debug)]
pub struct Chain {
    /// None once a block could not be recorded.
    tip: Option<NodeId>,
    blocks: u32,
}

impl Chain {
    /// Blocks recorded, from the first of the sequence on.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }
}

/// The beginning of a sequence that is in the cache already. Its pages are used by whoever got it.
#[derive(Debug)]
pub struct PrefixHit {
    /// Blocks of the sequence that need not be computed.
    pub blocks: u32,
    /// Pages of those of them that later queries still see.
    pub tables: BlockTables,
    /// To go on recording from there.
    pub chain: Chain,
}

impl PageCache {
    /// All pages of `geometry`, free.
    pub fn new(geometry: &CacheGeometry, prefixes: PrefixCache) -> PageCache {
        let pools: Vec<PagePool> = geometry.groups.iter().map(PagePool::new).collect();
        let index = (prefixes == PrefixCache::On).then(|| PrefixIndex::new(pools.len()));
        PageCache { page_size: geometry.page_size, pools, index }
    }

    /// Positions of a page.
    pub fn page_size(&self) -> NonZeroU32 {
        self.page_size
    }

    /// The pages of each group.
    pub fn pools(&self) -> &[PagePool] {
        &self.pools
    }

    /// Are pages kept for sequences that begin alike?
    pub fn keeps_prefixes(&self) -> bool {
        self.index.is_some()
    }

    /// Number of pages of all groups, whatever they are doing.
    pub fn pages(&self) -> u32 {
        self.pools.iter().map(PagePool::pages).sum()
    }

    /// Pages of all groups that can be had: those that are free and those that are idle.
    pub fn available(&self) -> u32 {
        self.pools.iter().map(PagePool::available).sum()
    }

    /// From now on keeps a list of the pages whose contents nobody may read any more, for [`PageCache::take_forgotten`].
    pub fn watch_forgotten(&mut self) {
        self.pools.iter_mut().for_each(PagePool::watch_forgotten);
    }

    /// The pages of a group that became free since the last call, where [`PageCache::watch_forgotten`] was called.
    pub fn take_forgotten(&mut self, group: usize) -> Vec<PageId> {
        self.pools[group].take_forgotten()
    }

    /// Appends `count` pages of a group to `pages`: all of them, or none and an error.
    pub(super) fn allocate(&mut self, group: usize, count: u32, pages: &mut Vec<PageId>) -> Result<(), OutOfPages> {
        let PageCache { pools, index, .. } = self;
        pools[group].allocate(count, pages, |node| clear_page(index, node, group))
    }

    /// Takes pages of a group back from one of their users.
    ///
    /// # Panics
    /// When a page is not of this group or nobody uses it: two sequences would come to write it.
    pub(super) fn release(&mut self, group: usize, pages: impl IntoIterator<Item = PageId>) {
        self.pools[group].release(pages);
    }

    /// Frees every idle page: what they hold is not to be found again.
    pub fn forget_idle(&mut self) {
        let PageCache { pools, index, .. } = self;
        for (group, pool) in pools.iter_mut().enumerate() {
            pool.free_idle(|node| clear_page(index, node, group));
        }
    }

    /// The longest beginning of `tokens`, of at most `limit` of them, that the cache holds: in each group every page of it
    /// that a query after it can see. Sequences under different salts do not see each other's.
    pub fn find(&mut self, salt: Option<&str>, tokens: &[TokenId], limit: usize) -> Option<PrefixHit> {
        let PageCache { pools, index, page_size } = self;
        let index = index.as_mut()?;
        let size = page_size.get();
        let first_block = |end: u32, window| first_visible(end * size, window) / size;
        let mut node = index.root(salt)?;
        let mut path = Vec::new();
        let mut best = 0u32;
        // In each group, how many pages up to here are there without a gap.
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
        let tip = *path.get(best.checked_sub(1)? as usize)?;
        index.pin(tip);
        let table = |(group, pool): (usize, &mut PagePool)| {
            let first_block = first_block(best, pool.window());
            let visible = &path[first_block as usize..best as usize];
            let pages: Vec<PageId> = visible.iter().filter_map(|node| index.page(*node, group)).collect();
            pool.share(&pages);
            BlockTable::from_pages(first_block, pages)
        };
        let tables = BlockTables::from_tables(pools.iter_mut().enumerate().map(table).collect());
        Some(PrefixHit { blocks: best, tables, chain: Chain { tip: Some(tip), blocks: best } })
    }

    /// The chain of a sequence of which nothing is recorded.
    pub fn open(&mut self, salt: Option<&str>) -> Chain {
        Chain { tip: self.index.as_mut().map(|index| index.pin_root(salt)), blocks: 0 }
    }

    /// Records the sequence's next block: its `page_size` tokens, and its pages of `tables`, which are written to the end
    /// and will not be written again. A group's page may be gone already, where the window has taken it.
    pub fn record(&mut self, chain: &mut Chain, tokens: &[TokenId], tables: &BlockTables) {
        let block = chain.blocks;
        chain.blocks += 1;
        let (Some(index), Some(tip)) = (&mut self.index, chain.tip) else { return };
        chain.tip = index.pin_child(tip, tokens);
        let Some(node) = chain.tip else { return };
        for (group, (table, pool)) in tables.as_slice().iter().zip(&mut self.pools).enumerate() {
            if let Some(page) = table.page(block)
                && index.page(node, group).is_none()
            {
                index.set_page(node, group, page);
                pool.set_node(page, node);
            }
        }
    }

    /// Ends the recording of a sequence.
    pub fn close(&mut self, chain: Chain) {
        if let (Some(index), Some(tip)) = (&mut self.index, chain.tip) {
            index.unpin(tip);
        }
    }
}

/// A node's page of a group holds something else now.
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

    /// What the cache should know, kept the slow way: whole beginnings as keys, and what each page holds.
    struct Model {
        size: usize,
        groups: Vec<Group>,
    }

    struct Group {
        window: Option<NonZeroU32>,
        /// Salt and tokens of a beginning to the page of its last block.
        known: HashMap<(u8, Vec<u32>), PageId>,
        users: HashMap<PageId, u32>,
        /// Pages that nobody uses and a beginning is known by, oldest first.
        idle: VecDeque<PageId>,
    }

    impl Model {
        fn new(size: usize, windows: &[Option<u32>]) -> Model {
            let group = |window: &Option<u32>| Group {
                window: window.map(non_zero),
                known: HashMap::new(),
                users: HashMap::new(),
                idle: VecDeque::new(),
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
                self.idle.push_back(page);
            }
        }
    }

    /// One running sequence of the test: its pages hold blocks that are all computed.
    struct Running {
        salt: u8,
        tokens: Vec<u32>,
        tables: BlockTables,
        chain: Chain,
    }

    fn pages(tables: &BlockTables) -> Vec<Vec<PageId>> {
        tables.as_slice().iter().map(|table| table.pages().to_vec()).collect()
    }

    proptest! {
        /// Sequences over few tokens begin, compute blocks and end in random order. Every hit is the longest that the
        /// model knows in all groups, in pages that hold it; no page is written while somebody else uses it; the least
        /// recently used is reclaimed; nothing leaks.
        #[test]
        fn gives_what_was_put_down(
            size in 1u32..4,
            // With a window of 1 nothing before is seen: every beginning is a hit, and none is worth one.
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
                    // A sequence begins: its tokens are bits of a number, so that beginnings repeat.
                    0 | 1 => {
                        let tokens: Vec<u32> = (0..4 * size).map(|i| (seed >> (i % 6) & 1) as u32).collect();
                        let salt = (seed >> 62 & 1) as u8;
                        let ids: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
                        let limit = (seed >> 32) as usize % (tokens.len() + 1);
                        let expected = model.longest(salt, &tokens, limit);
                        let hit = cache.find(salts[salt as usize], &ids, limit);
                        prop_assert_eq!(hit.as_ref().map_or(0, |hit| hit.blocks as usize), expected);
                        let (tables, chain) = match hit {
                            None => (BlockTables::new(&cache), cache.open(salts[salt as usize])),
                            Some(PrefixHit { tables, chain, .. }) => (tables, chain),
                        };
                        for (table, group) in tables.as_slice().iter().zip(&mut model.groups) {
                            let first = first_visible((expected * size) as u32, group.window) as usize / size;
                            prop_assert_eq!(table.pages().len(), expected - first);
                            for (block, page) in (table.first_block() as usize..).zip(table.pages()) {
                                let known = group.known.get(&(salt, tokens[..(block + 1) * size].to_vec()));
                                prop_assert_eq!(known, Some(page));
                                *group.users.entry(*page).or_insert(0) += 1;
                                group.idle.retain(|idle| idle != page);
                            }
                        }
                        running.push(Running { salt, tokens, tables, chain });
                    }
                    // A sequence computes its next block, if there is a page for it in every group.
                    2 if !running.is_empty() => {
                        let at = which.index(running.len());
                        let Running { salt, tokens, tables, chain } = &mut running[at];
                        let block = chain.blocks() as usize;
                        if (block + 1) * size > tokens.len() {
                            continue;
                        }
                        let both = model.groups.iter().zip(cache.pools());
                        let unused: Vec<u32> = both.map(|(group, pool)| group.unused(pool.pages())).collect();
                        let available: Vec<u32> = cache.pools().iter().map(PagePool::available).collect();
                        prop_assert_eq!(&available, &unused);
                        let idle_only: Vec<bool> =
                            cache.pools().iter().map(|pool| pool.available() == pool.idle()).collect();
                        let before = pages(tables);
                        if tables.reserve(((block + 1) * size) as u32, &mut cache).is_err() {
                            prop_assert!(unused.contains(&0));
                            prop_assert_eq!(pages(tables), before);
                            continue;
                        }
                        let beginning = tokens[..(block + 1) * size].to_vec();
                        let ids: Vec<TokenId> = beginning[block * size..].iter().copied().map(TokenId).collect();
                        cache.record(chain, &ids, tables);
                        let both = tables.as_slice().iter().zip(&mut model.groups);
                        for ((table, group), idle_only) in both.zip(idle_only) {
                            let page = table.page(block as u32).expect("it was reserved");
                            prop_assert_eq!(group.users.get(&page).copied().unwrap_or(0), 0);
                            if idle_only {
                                prop_assert_eq!(group.idle.pop_front(), Some(page));
                            } else {
                                prop_assert!(!group.idle.contains(&page));
                            }
                            group.forget(page);
                            group.users.insert(page, 1);
                            group.known.entry((*salt, beginning.clone())).or_insert(page);
                        }
                        // What the windows hide from what comes next goes back.
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
                        let Running { mut tables, chain, .. } = running.swap_remove(which.index(running.len()));
                        for (table, group) in tables.as_slice().iter().zip(&mut model.groups) {
                            table.pages().iter().rev().for_each(|page| group.release(*page));
                        }
                        tables.release(&mut cache);
                        cache.close(chain);
                    }
                    _ => {}
                }
                for (pool, group) in cache.pools().iter().zip(&model.groups) {
                    prop_assert_eq!(pool.idle() as usize, group.idle.len());
                }
            }
            for Running { mut tables, chain, .. } in running {
                tables.release(&mut cache);
                cache.close(chain);
            }
            prop_assert_eq!(cache.available(), cache.pages());
            // With every page taken, nothing is known any more, and nothing is kept of it.
            for (group, (_, pages)) in groups.iter().enumerate() {
                cache.allocate(group, *pages, &mut Vec::new()).unwrap();
            }
            prop_assert_eq!(cache.index.as_ref().unwrap().len(), 0);
        }
    }
}
