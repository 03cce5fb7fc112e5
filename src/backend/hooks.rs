//! What tests do to a backend that nobody else does.

use super::BackendError;
use crate::kv::PageId;

/// For tests of those who own pages.
pub trait BackendHooks {
    /// Fills keys and values of pages of a group with NaN, behind the work that was given before, so that whoever reads a
    /// page that was freed is found.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] for a page that is none of the cache; what the device says.
    fn poison(&mut self, group: usize, pages: &[PageId]) -> Result<(), BackendError>;
}
