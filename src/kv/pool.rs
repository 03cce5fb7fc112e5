//! The pool of free pages.

use super::{OutOfPages, PageId};

/// Hands out pages and takes them back. Most recently freed first, so that a page is reused while it is in cache.
#[derive(Debug)]
pub struct PagePool {
    free: Vec<PageId>,
    /// `true` where the page is free: a page freed twice would be given to two sequences.
    is_free: Vec<bool>,
}

impl PagePool {
    /// A pool of pages `0..pages`, all free.
    pub fn new(pages: u32) -> PagePool {
        PagePool { free: (0..pages).rev().map(PageId).collect(), is_free: vec![true; pages as usize] }
    }

    /// Number of free pages.
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Number of pages, free or not.
    pub fn pages(&self) -> u32 {
        self.is_free.len() as u32
    }

    /// Appends `count` pages to `pages`: all of them, or none and an error.
    pub fn allocate(&mut self, count: u32, pages: &mut Vec<PageId>) -> Result<(), OutOfPages> {
        if count > self.free() {
            return Err(OutOfPages { needed: count, free: self.free() });
        }
        for page in self.free.drain(self.free.len() - count as usize..).rev() {
            self.is_free[page.0 as usize] = false;
            pages.push(page);
        }
        Ok(())
    }

    /// Takes pages back.
    ///
    /// # Panics
    /// When a page is not of this pool or is free already: two sequences would come to share it.
    pub fn release(&mut self, pages: impl IntoIterator<Item = PageId>) {
        for page in pages {
            let is_free = &mut self.is_free[page.0 as usize];
            assert!(!*is_free, "page {} was freed twice", page.0);
            *is_free = true;
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocates_all_or_nothing() {
        let mut pool = PagePool::new(3);
        let mut pages = Vec::new();
        pool.allocate(2, &mut pages).unwrap();
        assert_eq!(pages, [PageId(0), PageId(1)]);
        assert_eq!(pool.allocate(2, &mut pages), Err(OutOfPages { needed: 2, free: 1 }));
        assert_eq!((pages.len(), pool.free()), (2, 1));
        pool.release(pages.drain(..1));
        assert_eq!(pool.free(), 2);
    }

    #[test]
    #[should_panic(expected = "page 0 was freed twice")]
    fn refuses_a_page_freed_twice() {
        let mut pool = PagePool::new(1);
        let mut pages = Vec::new();
        pool.allocate(1, &mut pages).unwrap();
        pool.release([pages[0], pages[0]]);
    }
}
