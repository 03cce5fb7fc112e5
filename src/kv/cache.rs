//! Every page of the cache and what it is doing: free, used by sequences, or idle (used by nobody, and kept for the
//! next sequence that begins with the same tokens).

use std::num::NonZeroU32;

use crate::text::TokenId;

use super::lru::Lru;
use super::prefix::{NodeId, PrefixIndex};
use super::{OutOfPages, PageId, first_visible};

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
/// write only past those. What was put down as a beginning's page ([`PageCache::record`]) is what [`PageCache::find`]
/// gives, tokens compared one by one.
#[derive(Debug)]
pub struct PageCache {
    page_size: NonZeroU32,
    window: Option<NonZeroU32>,
    /// Most recently freed last, so that a page is used again while it is in the processor's cache.
    free: Vec<PageId>,
    states: Vec<PageState>,
    idle: Lru,
    index: Option<PrefixIndex>,
    /// Pages whose contents nobody may read any more, since [`PageCache::take_forgotten`]; where that is asked for.
    forgotten: Option<Vec<PageId>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct PageState {
    users: u32,
    /// The beginning whose last block this page holds.
    node: Option<NodeId>,
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
    /// The first of them that later queries still see; it is in `pages[0]`.
    pub first_block: u32,
    /// Pages of the blocks `first_block .. blocks`.
    pub pages: Vec<PageId>,
    /// To go on recording from there.
    pub chain: Chain,
}

impl PageCache {
    /// Pages `0..pages` of `page_size` positions, all free, for a model with this `window`.
    pub fn new(page_size: NonZeroU32, pages: u32, window: Option<NonZeroU32>, prefixes: PrefixCache) -> PageCache {
        PageCache {
            page_size,
            window,
            free: (0..pages).rev().map(PageId).collect(),
            states: vec![PageState::default(); pages as usize],
            idle: Lru::new(pages),
            index: (prefixes == PrefixCache::On).then(PrefixIndex::new),
            forgotten: None,
        }
    }

    /// Positions of a page.
    pub fn page_size(&self) -> NonZeroU32 {
        self.page_size
    }

    /// The window of the model.
    pub fn window(&self) -> Option<NonZeroU32> {
        self.window
    }

    /// Are pages kept for sequences that begin alike?
    pub fn keeps_prefixes(&self) -> bool {
        self.index.is_some()
    }

    /// Number of pages, whatever they are doing.
    pub fn pages(&self) -> u32 {
        self.states.len() as u32
    }

    /// Pages that can be had: those that are free and those that are idle.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.idle.len()
    }

    /// Pages that no sequence uses and that are kept for their contents.
    pub fn idle(&self) -> u32 {
        self.idle.len()
    }

    /// From now on keeps a list of the pages whose contents nobody may read any more, for [`PageCache::take_forgotten`].
    pub fn watch_forgotten(&mut self) {
        self.forgotten.get_or_insert_default();
    }

    /// The pages that became free since the last call, where [`PageCache::watch_forgotten`] was called.
    pub fn take_forgotten(&mut self) -> Vec<PageId> {
        self.forgotten.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Appends `count` pages to `pages`: all of them, or none and an error. Free ones first, then the idle ones that
    /// were used least recently, whose beginnings are then forgotten.
    pub fn allocate(&mut self, count: u32, pages: &mut Vec<PageId>) -> Result<(), OutOfPages> {
        if count > self.available() {
            return Err(OutOfPages { needed: count, free: self.available() });
        }
        for _ in 0..count {
            let page = match self.free.pop() {
                Some(page) => page,
                None => {
                    // There are `available` pages, so one is idle.
                    let Some(page) = self.idle.pop() else { break };
                    self.forget(page);
                    page
                }
            };
            self.states[page.0 as usize].users = 1;
            pages.push(page);
        }
        Ok(())
    }

    fn forget(&mut self, page: PageId) {
        if let Some(node) = self.states[page.0 as usize].node.take()
            && let Some(index) = &mut self.index
        {
            index.clear_page(node);
        }
        if let Some(forgotten) = &mut self.forgotten {
            forgotten.push(page);
        }
    }

    /// Frees every idle page: what they hold is not to be found again.
    pub fn forget_idle(&mut self) {
        while let Some(page) = self.idle.pop() {
            self.forget(page);
            self.free.push(page);
        }
    }

    /// Takes pages back from one of their users.
    ///
    /// # Panics
    /// When a page is not of this cache or nobody uses it: two sequences would come to write it.
    pub fn release(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            let state = &mut self.states[page.0 as usize];
            assert!(state.users > 0, "page {} was freed twice", page.0);
            state.users -= 1;
            if state.users > 0 {
                continue;
            }
            if state.node.is_some() {
                self.idle.push(page);
            } else {
                self.free.push(page);
                if let Some(forgotten) = &mut self.forgotten {
                    forgotten.push(page);
                }
            }
        }
    }

    /// The longest beginning of `tokens`, of at most `limit` of them, that the cache holds: every page of it that a
    /// query after it can see. Sequences under different salts do not see each other's.
    pub fn find(&mut self, salt: Option<&str>, tokens: &[TokenId], limit: usize) -> Option<PrefixHit> {
        let index = self.index.as_mut()?;
        let size = self.page_size.get();
        let mut node = index.root(salt)?;
        let mut path = Vec::new();
        let (mut best, mut run) = (0u32, 0u32);
        for block in tokens[..limit.min(tokens.len())].chunks_exact(size as usize) {
            let Some(child) = index.child(node, block) else { break };
            node = child;
            path.push(child);
            run = if index.page(child).is_some() { run + 1 } else { 0 };
            let end = path.len() as u32;
            let visible = end - first_visible(end * size, self.window) / size;
            if run >= visible {
                best = end;
            }
        }
        let tip = *path.get(best.checked_sub(1)? as usize)?;
        let first_block = first_visible(best * size, self.window) / size;
        let pages: Vec<PageId> =
            path[first_block as usize..best as usize].iter().filter_map(|node| index.page(*node)).collect();
        index.pin(tip);
        for &page in &pages {
            let state = &mut self.states[page.0 as usize];
            if state.users == 0 {
                self.idle.remove(page);
            }
            state.users += 1;
        }
        Some(PrefixHit { blocks: best, first_block, pages, chain: Chain { tip: Some(tip), blocks: best } })
    }

    /// The chain of a sequence of which nothing is recorded.
    pub fn open(&mut self, salt: Option<&str>) -> Chain {
        Chain { tip: self.index.as_mut().map(|index| index.pin_root(salt)), blocks: 0 }
    }

    /// Records the sequence's next block: its `page_size` tokens, and its page, which is written to the end and will
    /// not be written again; none where the window has already taken it.
    pub fn record(&mut self, chain: &mut Chain, tokens: &[TokenId], page: Option<PageId>) {
        chain.blocks += 1;
        let (Some(index), Some(tip)) = (&mut self.index, chain.tip) else { return };
        chain.tip = index.pin_child(tip, tokens);
        if let (Some(node), Some(page)) = (chain.tip, page)
            && index.page(node).is_none()
        {
            index.set_page(node, page);
            self.states[page.0 as usize].node = Some(node);
        }
    }

    /// Ends the recording of a sequence.
    pub fn close(&mut self, chain: Chain) {
        if let (Some(index), Some(tip)) = (&mut self.index, chain.tip) {
            index.unpin(tip);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    fn non_zero(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn cache(pages: u32) -> PageCache {
        PageCache::new(non_zero(2), pages, None, PrefixCache::On)
    }

    #[test]
    fn allocates_all_or_nothing() {
        let mut cache = cache(3);
        let mut pages = Vec::new();
        cache.allocate(2, &mut pages).unwrap();
        assert_eq!(pages, [PageId(0), PageId(1)]);
        assert_eq!(cache.allocate(2, &mut pages), Err(OutOfPages { needed: 2, free: 1 }));
        assert_eq!((pages.len(), cache.available()), (2, 1));
        cache.release(pages.drain(..1));
        assert_eq!(cache.available(), 2);
    }

    #[test]
    #[should_panic(expected = "page 0 was freed twice")]
    fn refuses_a_page_freed_twice() {
        let mut cache = cache(1);
        let mut pages = Vec::new();
        cache.allocate(1, &mut pages).unwrap();
        cache.release([pages[0], pages[0]]);
    }

    /// What the cache should know, kept the slow way: whole beginnings as keys, and what each page holds.
    struct Model {
        size: usize,
        window: Option<NonZeroU32>,
        /// Salt and tokens of a beginning to the page of its last block.
        known: HashMap<(u8, Vec<u32>), PageId>,
        users: HashMap<PageId, u32>,
        /// Pages that nobody uses and a beginning is known by, oldest first.
        idle: VecDeque<PageId>,
    }

    impl Model {
        fn longest(&self, salt: u8, tokens: &[u32], limit: usize) -> usize {
            let whole = tokens.len().min(limit) / self.size;
            let held = |end: usize| {
                let first = first_visible((end * self.size) as u32, self.window) as usize / self.size;
                (first..end).all(|block| self.known.contains_key(&(salt, tokens[..(block + 1) * self.size].to_vec())))
            };
            (1..=whole).rev().find(|&end| held(end)).unwrap_or(0)
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

    /// One running sequence of the test.
    struct Running {
        salt: u8,
        tokens: Vec<u32>,
        /// Blocks of the sequence in its pages, all computed.
        first_block: usize,
        pages: Vec<PageId>,
        chain: Chain,
    }

    proptest! {
        /// Sequences over few tokens begin, compute blocks and end in random order. Every hit is the longest that the
        /// model knows, in pages that hold it; no page is written while somebody else uses it; the least recently used
        /// is reclaimed; nothing leaks.
        #[test]
        fn gives_what_was_put_down(
            size in 1u32..4,
            // With a window of 1 nothing before is seen: every beginning is a hit, and none is worth one.
            window in prop::option::of(2u32..9),
            pages in 1u32..12,
            steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), any::<u64>()), 1..120),
        ) {
            let window = window.map(non_zero);
            let mut cache = PageCache::new(non_zero(size), pages, window, PrefixCache::On);
            let size = size as usize;
            let mut model =
                Model { size, window, known: HashMap::new(), users: HashMap::new(), idle: VecDeque::new() };
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
                        let running_now = match hit {
                            None => Running {
                                salt, tokens, first_block: 0, pages: Vec::new(), chain: cache.open(salts[salt as usize]),
                            },
                            Some(PrefixHit { first_block, pages, chain, .. }) => {
                                for (block, page) in (first_block as usize..).zip(&pages) {
                                    let known = model.known.get(&(salt, tokens[..(block + 1) * size].to_vec()));
                                    prop_assert_eq!(known, Some(page));
                                    *model.users.entry(*page).or_insert(0) += 1;
                                    model.idle.retain(|idle| idle != page);
                                }
                                Running { salt, tokens, first_block: first_block as usize, pages, chain }
                            }
                        };
                        running.push(running_now);
                    }
                    // A sequence computes its next block, if there is a page for it.
                    2 if !running.is_empty() => {
                        let at = which.index(running.len());
                        let sequence = &mut running[at];
                        let block = sequence.first_block + sequence.pages.len();
                        if (block + 1) * size > sequence.tokens.len() {
                            continue;
                        }
                        let expected_free = cache.pages() as usize
                            - model.users.values().filter(|users| **users > 0).count();
                        prop_assert_eq!(cache.available() as usize, expected_free);
                        let idle_only = cache.available() == cache.idle();
                        let mut page = Vec::new();
                        if cache.allocate(1, &mut page).is_err() {
                            prop_assert_eq!(expected_free, 0);
                            continue;
                        }
                        let page = page[0];
                        prop_assert_eq!(model.users.get(&page).copied().unwrap_or(0), 0);
                        if idle_only {
                            prop_assert_eq!(model.idle.pop_front(), Some(page));
                        } else {
                            prop_assert!(!model.idle.contains(&page));
                        }
                        model.forget(page);
                        model.users.insert(page, 1);
                        let beginning = sequence.tokens[..(block + 1) * size].to_vec();
                        let ids: Vec<TokenId> =
                            beginning[block * size..].iter().copied().map(TokenId).collect();
                        cache.record(&mut sequence.chain, &ids, Some(page));
                        model.known.entry((sequence.salt, beginning)).or_insert(page);
                        sequence.pages.push(page);
                        // What the window hides from what comes next goes back.
                        let next = ((block + 1) * size) as u32;
                        let first = first_visible(next, window) as usize / size;
                        let hidden = first.saturating_sub(sequence.first_block).min(sequence.pages.len());
                        let gone: Vec<PageId> = sequence.pages.drain(..hidden).collect();
                        sequence.first_block += hidden;
                        gone.iter().for_each(|page| model.release(*page));
                        cache.release(gone);
                    }
                    // A sequence ends.
                    3 if !running.is_empty() => {
                        let Running { pages, chain, .. } = running.swap_remove(which.index(running.len()));
                        pages.iter().for_each(|page| model.release(*page));
                        cache.release(pages);
                        cache.close(chain);
                    }
                    _ => {}
                }
                prop_assert_eq!(cache.idle() as usize, model.idle.len());
            }
            for Running { pages, chain, .. } in running {
                cache.release(pages);
                cache.close(chain);
            }
            prop_assert_eq!(cache.available(), cache.pages());
            // With every page taken, nothing is known any more, and nothing is kept of it.
            cache.allocate(cache.pages(), &mut Vec::new()).unwrap();
            prop_assert_eq!(cache.index.as_ref().unwrap().len(), 0);
        }
    }
}
