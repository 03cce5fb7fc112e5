//! Zeroed, aligned `f32` memory that is checked for and only touched when used.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::backend::BackendError;

/// A cache line and an AVX-512 register.
const ALIGNMENT: usize = 64;

/// Zeroed `f32`s, shared by the threads of a team through raw pointers.
pub(crate) struct Memory {
    at: NonNull<f32>,
    layout: Layout,
}

// SAFETY: `Memory` owns its allocation as a `Box<[f32]>` would.
unsafe impl Send for Memory {}
// SAFETY: through `&Memory` one gets a raw pointer; whoever uses it promises that accesses do not race.
unsafe impl Sync for Memory {}

impl Memory {
    /// `shape`'s product of zeros. Large allocations cost address space alone until they are written.
    pub(crate) fn zeroed(shape: &[usize], what: &'static str, advice: &str) -> Result<Memory, BackendError> {
        let needed = shape.iter().fold(4u64, |bytes, &n| bytes.saturating_mul(n as u64));
        let out_of_memory = || BackendError::OutOfMemory { needed, what, advice: advice.to_owned() };
        let bytes = usize::try_from(needed).map_err(|_| out_of_memory())?.max(ALIGNMENT);
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| out_of_memory())?;
        // SAFETY: the size is not 0.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
        Ok(Memory { at: at.cast(), layout })
    }

    /// The first element. Reading and writing through it is up to the caller to order.
    pub(crate) fn as_ptr(&self) -> *mut f32 {
        self.at.as_ptr()
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.layout.size() / size_of::<f32>()
    }

    /// All elements.
    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: `len` initialised elements; writers through `as_ptr` hold the backend exclusively.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len()) }
    }

    /// All elements.
    #[cfg(test)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as `as_slice`, and `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.at.as_ptr().cast(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_writable() {
        let mut memory = Memory::zeroed(&[3, 7], "a test", "").unwrap();
        assert_eq!(memory.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(memory.len(), 21);
        assert!(memory.as_slice().iter().all(|&x| x == 0.0));
        memory.as_mut_slice()[20] = 1.0;
        assert_eq!(memory.as_slice()[20], 1.0);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for shape in [[usize::MAX, usize::MAX], [1 << 31, 1 << 30]] {
            let error = Memory::zeroed(&shape, "the cache", "ask for fewer pages").err().unwrap().to_string();
            assert!(error.contains("the cache") && error.contains("ask for fewer pages"), "{error}");
        }
    }
}
