//! Test hooks of a backend.

use super::BackendError;
use crate::kv::PageId;

/// Hooks for tests of page management.
pub trait BackendHooks {
    /// Submits a NaN fill of `pages` of a group, to expose reads of freed pages.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] if a page is out of range; device errors.
    fn poison(&mut self, group: usize, pages: &[PageId]) -> Result<(), BackendError>;
}
