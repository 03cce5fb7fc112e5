//! Which page of a group holds which positions of one sequence.

use super::PageId;

/// The pages of one sequence in one group of the cache, from the first that a later query can still see.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockTable {
    first_block: u32,
    pub(super) pages: Vec<PageId>,
}

impl BlockTable {
    /// Pages of the blocks from `first_block` on, that the caller keeps the books of.
    pub fn from_pages(first_block: u32, pages: Vec<PageId>) -> BlockTable {
        BlockTable { first_block, pages }
    }

    /// Logical index of the first page: those before it were freed.
    pub fn first_block(&self) -> u32 {
        self.first_block
    }

    /// The pages, from logical block [`BlockTable::first_block`] on.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The page of a logical block; none where it was freed or not reserved yet.
    pub fn page(&self, block: u32) -> Option<PageId> {
        self.pages.get(block.checked_sub(self.first_block)? as usize).copied()
    }

    /// The first block that has no page yet.
    pub(super) fn end_block(&self) -> u32 {
        self.first_block + self.pages.len() as u32
    }

    /// Takes out the pages of the blocks before `block`.
    pub(super) fn drop_before(&mut self, block: u32) -> impl Iterator<Item = PageId> {
        let hidden = block.saturating_sub(self.first_block).min(self.pages.len() as u32);
        self.first_block += hidden;
        self.pages.drain(..hidden as usize)
    }

    /// Takes out all pages, the last first, and starts over at block 0.
    pub(super) fn drop_all(&mut self) -> impl Iterator<Item = PageId> {
        self.first_block = 0;
        self.pages.drain(..).rev()
    }
}
