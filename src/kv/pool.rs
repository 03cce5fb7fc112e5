//! The pages of one group of the cache and what each is doing: free, used by sequences, or idle (used by nobody, and kept
//! for the next sequence that begins with the same tokens).

use std::num::NonZeroU32;

use super::lru::Lru;
use super::prefix::NodeId;
use super::{CacheGroup, OutOfPages, PageId};

/// Hands out the pages of one group and takes them back.
#[derive(Debug)]
pub struct PagePool {
    window: Option<NonZeroU32>,
    /// Most recently freed last, so that a page is used again while it is in the processor's cache.
    free: Vec<PageId>,
    states: Vec<PageState>,
    idle: Lru,
    /// Pages whose contents nobody may read any more, since [`PagePool::take_forgotten`]; where that is asked for.
    forgotten: Option<Vec<PageId>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct PageState {
    users: u32,
    /// The beginning whose last block this page holds.
    node: Option<NodeId>,
}

impl PagePool {
    /// All pages of the group, free.
    pub(super) fn new(group: &CacheGroup) -> PagePool {
        PagePool {
            window: group.window,
            free: (0..group.pages).rev().map(PageId).collect(),
            states: vec![PageState::default(); group.pages as usize],
            idle: Lru::new(group.pages),
            forgotten: None,
        }
    }

    /// The window of the group's layers.
    pub fn window(&self) -> Option<NonZeroU32> {
        self.window
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

    pub(super) fn watch_forgotten(&mut self) {
        self.forgotten.get_or_insert_default();
    }

    pub(super) fn take_forgotten(&mut self) -> Vec<PageId> {
        self.forgotten.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Appends `count` pages to `pages`: all of them, or none and an error. Free ones first, then the idle ones that
    /// were used least recently, whose beginnings `forget` then forgets.
    pub(super) fn allocate(
        &mut self,
        count: u32,
        pages: &mut Vec<PageId>,
        mut forget: impl FnMut(NodeId),
    ) -> Result<(), OutOfPages> {
        if count > self.available() {
            return Err(OutOfPages { needed: count, free: self.available() });
        }
        for _ in 0..count {
            // There are `available` pages: where none is free, one is idle.
            let Some(page) = self.free.pop().or_else(|| self.take_idle(&mut forget)) else { break };
            self.states[page.0 as usize].users = 1;
            pages.push(page);
        }
        Ok(())
    }

    /// Takes the page that was idle for the longest.
    fn take_idle(&mut self, forget: &mut impl FnMut(NodeId)) -> Option<PageId> {
        let page = self.idle.pop()?;
        if let Some(node) = self.states[page.0 as usize].node.take() {
            forget(node);
        }
        self.note_forgotten(page);
        Some(page)
    }

    fn note_forgotten(&mut self, page: PageId) {
        if let Some(forgotten) = &mut self.forgotten {
            forgotten.push(page);
        }
    }

    /// Frees every idle page.
    pub(super) fn free_idle(&mut self, mut forget: impl FnMut(NodeId)) {
        while let Some(page) = self.take_idle(&mut forget) {
            self.free.push(page);
        }
    }

    /// Takes pages back from one of their users.
    ///
    /// # Panics
    /// When a page is not of this pool or nobody uses it: two sequences would come to write it.
    pub(super) fn release(&mut self, pages: impl IntoIterator<Item = PageId>) {
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
                self.note_forgotten(page);
            }
        }
    }

    /// Gives pages that hold known beginnings another user.
    pub(super) fn share(&mut self, pages: &[PageId]) {
        for &page in pages {
            let state = &mut self.states[page.0 as usize];
            if state.users == 0 {
                self.idle.remove(page);
            }
            state.users += 1;
        }
    }

    /// The page holds the last block of the beginning `node`.
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
