//! A block table: the pages of one sequence in one cache group.

use super::PageId;

/// The pages of one sequence in one cache group, from the first block that is still in the window.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockTable {
    first_block: u32,
    pub(super) pages: Vec<PageId>,
}

impl BlockTable {
    /// A table with these pages for the blocks from `first_block` on. The caller does the page accounting.
    pub fn from_pages(first_block: u32, pages: Vec<PageId>) -> BlockTable {
        BlockTable { first_block, pages }
    }

    /// Logical index of the first page. Earlier blocks have left the window.
    pub fn first_block(&self) -> u32 {
        self.first_block
    }

    /// The pages of the blocks from [`BlockTable::first_block`] on.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The page of a logical block. `None` if it left the window or is not allocated.
    pub fn page(&self, block: u32) -> Option<PageId> {
        self.pages.get(block.checked_sub(self.first_block)? as usize).copied()
    }

    /// The first block without a page.
    pub(super) fn end_block(&self) -> u32 {
        self.first_block + self.pages.len() as u32
    }

    /// Removes the pages of the blocks before `block`.
    pub(super) fn drop_before(&mut self, block: u32) -> impl Iterator<Item = PageId> {
        let hidden = block.saturating_sub(self.first_block).min(self.pages.len() as u32);
        self.first_block += hidden;
        self.pages.drain(..hidden as usize)
    }

    /// Removes all pages, last first, and restarts at block 0.
    pub(super) fn drop_all(&mut self) -> impl Iterator<Item = PageId> {
        self.first_block = 0;
        self.pages.drain(..).rev()
    }
}
