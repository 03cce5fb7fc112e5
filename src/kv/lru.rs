//! Pages in least-recently-used order.

use super::PageId;

/// Null link.
const NONE: u32 = u32::MAX;

/// An LRU list: a doubly linked list over page ids, with constant-time operations and no allocation.
#[derive(Debug)]
pub(super) struct Lru {
    /// Previous and next page of each page in the list.
    links: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
    len: u32,
}

impl Lru {
    /// An empty list over pages `0..pages`.
    pub(super) fn new(pages: u32) -> Lru {
        Lru { links: vec![(NONE, NONE); pages as usize], oldest: NONE, newest: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Adds a page that is not in the list, as most recently used.
    pub(super) fn push(&mut self, page: PageId) {
        self.links[page.0 as usize] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = page.0,
            newest => self.links[newest as usize].1 = page.0,
        }
        self.newest = page.0;
        self.len += 1;
    }

    /// Removes a page that is in the list.
    pub(super) fn remove(&mut self, page: PageId) {
        let (before, after) = self.links[page.0 as usize];
        match before {
            NONE => self.oldest = after,
            before => self.links[before as usize].1 = after,
        }
        match after {
            NONE => self.newest = before,
            after => self.links[after as usize].0 = before,
        }
        self.len -= 1;
    }

    /// Removes the least recently used page.
    pub(super) fn pop(&mut self) -> Option<PageId> {
        let page = Some(self.oldest).filter(|&oldest| oldest != NONE).map(PageId)?;
        self.remove(page);
        Some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Compared with a vector: pushes, removals, pops.
        #[test]
        fn orders_as_a_vector(operations in prop::collection::vec((0u32..8, any::<bool>()), 0..200)) {
            let mut lru = Lru::new(8);
            let mut model: Vec<u32> = Vec::new();
            for (page, pop) in operations {
                if pop {
                    let oldest = if model.is_empty() { None } else { Some(PageId(model.remove(0))) };
                    prop_assert_eq!(lru.pop(), oldest);
                } else if let Some(at) = model.iter().position(|&p| p == page) {
                    model.remove(at);
                    lru.remove(PageId(page));
                } else {
                    model.push(page);
                    lru.push(PageId(page));
                }
                prop_assert_eq!(lru.len() as usize, model.len());
            }
        }
    }
}
