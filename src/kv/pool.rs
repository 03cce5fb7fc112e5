//! The pages of one cache group. A page is free, referenced by sequences, or cached: unreferenced, and kept for the
//! next sequence with the same prefix.

use std::num::NonZeroU32;

use super::lru::Lru;
use super::prefix::NodeId;
use super::{CacheGroup, OutOfPages, PageId};

/// Allocates and releases the pages of one group.
#[derive(Debug)]
pub struct PagePool {
    window: Option<NonZeroU32>,
    /// Most recently freed last, so that warm pages are reused first.
    free: Vec<PageId>,
    states: Vec<PageState>,
    cached: Lru,
    /// Pages whose contents became invalid since [`PagePool::take_freed`]. `None` unless tracked.
    freed: Option<Vec<PageId>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct PageState {
    ref_count: u32,
    /// The prefix whose last block this page holds.
    node: Option<NodeId>,
}

impl PagePool {
    /// A pool whose pages are all free.
    pub(super) fn new(group: &CacheGroup) -> PagePool {
        PagePool {
            window: group.window,
            free: (0..group.pages).rev().map(PageId).collect(),
            states: vec![PageState::default(); group.pages as usize],
            cached: Lru::new(group.pages),
            freed: None,
        }
    }

    /// The window of the group's layers.
    pub fn window(&self) -> Option<NonZeroU32> {
        self.window
    }

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        self.states.len() as u32
    }

    /// Pages that can be allocated: free ones and cached ones.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.cached.len()
    }

    /// Number of cached pages.
    pub fn cached(&self) -> u32 {
        self.cached.len()
    }

    pub(super) fn watch_freed(&mut self) {
        self.freed.get_or_insert_default();
    }

    pub(super) fn take_freed(&mut self) -> Vec<PageId> {
        self.freed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Appends `count` pages to `pages`, all or none: free pages first, then cached ones, least recently used first.
    /// `on_evict` is called with the prefix of each evicted page.
    pub(super) fn allocate(
        &mut self,
        count: u32,
        pages: &mut Vec<PageId>,
        mut on_evict: impl FnMut(NodeId),
    ) -> Result<(), OutOfPages> {
        if count > self.available() {
            return Err(OutOfPages { needed: count, free: self.available() });
        }
        for _ in 0..count {
            // `available` was checked: if no page is free, one is cached.
            let Some(page) = self.free.pop().or_else(|| self.evict_oldest(&mut on_evict)) else { break };
            self.states[page.0 as usize].ref_count = 1;
            pages.push(page);
        }
        Ok(())
    }

    /// Evicts the least recently used cached page.
    fn evict_oldest(&mut self, on_evict: &mut impl FnMut(NodeId)) -> Option<PageId> {
        let page = self.cached.pop()?;
        if let Some(node) = self.states[page.0 as usize].node.take() {
            on_evict(node);
        }
        self.note_freed(page);
        Some(page)
    }

    fn note_freed(&mut self, page: PageId) {
        if let Some(freed) = &mut self.freed {
            freed.push(page);
        }
    }

    /// Evicts every cached page.
    pub(super) fn evict_cached(&mut self, mut on_evict: impl FnMut(NodeId)) {
        while let Some(page) = self.evict_oldest(&mut on_evict) {
            self.free.push(page);
        }
    }

    /// Drops one reference to each page.
    ///
    /// # Panics
    /// If a page is not of this pool or has no references; two sequences would write it.
    pub(super) fn release(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            let state = &mut self.states[page.0 as usize];
            assert!(state.ref_count > 0, "page {} was freed twice", page.0);
            state.ref_count -= 1;
            if state.ref_count > 0 {
                continue;
            }
            if state.node.is_some() {
                self.cached.push(page);
            } else {
                self.free.push(page);
                self.note_freed(page);
            }
        }
    }

    /// Adds a reference to pages of cached prefixes.
    pub(super) fn share(&mut self, pages: &[PageId]) {
        for &page in pages {
            let state = &mut self.states[page.0 as usize];
            if state.ref_count == 0 {
                self.cached.remove(page);
            }
            state.ref_count += 1;
        }
    }

    /// Records that the page holds the last block of the prefix `node`.
    pub(super) fn set_node(&mut self, page: PageId, node: NodeId) {
        self.states[page.0 as usize].node = Some(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use crate::kv::KvFormat;

    fn pool(pages: u32) -> PagePool {
        PagePool::new(&CacheGroup { window: None, pages, format: KvFormat::Dense(Dtype::F32), page_bytes: 0 })
    }

    #[test]
    fn allocates_all_or_nothing() {
        let mut pool = pool(3);
        let mut pages = Vec::new();
        pool.allocate(2, &mut pages, drop).unwrap();
        assert_eq!(pages, [PageId(0), PageId(1)]);
        assert_eq!(pool.allocate(2, &mut pages, drop), Err(OutOfPages { needed: 2, free: 1 }));
        assert_eq!((pages.len(), pool.available()), (2, 1));
        pool.release(pages.drain(..1));
        assert_eq!(pool.available(), 2);
    }

    #[test]
    #[should_panic(expected = "page 0 was freed twice")]
    fn refuses_a_page_freed_twice() {
        let mut pool = pool(1);
        let mut pages = Vec::new();
        pool.allocate(1, &mut pages, drop).unwrap();
        pool.release([pages[0], pages[0]]);
    }
}
