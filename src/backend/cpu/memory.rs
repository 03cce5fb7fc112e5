//! Zeroed, aligned `f32` memory that is checked for and only touched when used.

use memmap2::MmapMut;

use crate::backend::BackendError;

/// Zeroed `f32`s, shared by the threads of a pool through raw pointers. Begins at a page.
pub(crate) struct Memory {
    map: MmapMut,
    at: *mut f32,
}

// SAFETY: `at` points into `map`, which `Memory` owns.
unsafe impl Send for Memory {}
// SAFETY: through `&Memory` one gets a raw pointer; whoever uses it promises that accesses do not race.
unsafe impl Sync for Memory {}

/// In what page_size the system should hand out memory. Nothing but time depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// Its smallest pages: what is never used is never taken.
    Small,
    /// Large pages: fewer address translations, and neighbours in memory are neighbours in the cache's sets.
    Large,
}

impl Memory {
    /// `shape`'s product of zeros. Address space alone until it is written.
    pub(crate) fn zeroed(
        shape: &[usize],
        page_size: PageSize,
        what: &'static str,
        advice: &str,
    ) -> Result<Memory, BackendError> {
        let needed = shape.iter().fold(4u64, |bytes, &n| bytes.saturating_mul(n as u64));
        let out_of_memory = || BackendError::OutOfMemory { needed, what: what.to_owned(), advice: advice.to_owned() };
        // Rust's allocations end at `isize::MAX`, and a mapping is not empty.
        let bytes = isize::try_from(needed).map_err(|_| out_of_memory())?.max(4) as usize;
        let mut map = MmapMut::map_anon(bytes).map_err(|_| out_of_memory())?;
        if page_size == PageSize::Large {
            // Refused where the system has none: then small pages do.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Memory { at: map.as_mut_ptr().cast(), map })
    }

    /// The first element. Reading and writing through it is up to the caller to order.
    pub(crate) fn as_ptr(&self) -> *mut f32 {
        self.at
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.map.len() / size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_aligned() {
        for page_size in [PageSize::Small, PageSize::Large] {
            let memory = Memory::zeroed(&[3, 7], page_size, "a test", "").unwrap();
            assert_eq!(memory.as_ptr() as usize % 64, 0);
            assert_eq!(memory.len(), 21);
            // SAFETY: 21 elements, and nobody else has them.
            assert!(unsafe { std::slice::from_raw_parts(memory.as_ptr(), 21) }.iter().all(|&x| x == 0.0));
        }
        assert_eq!(Memory::zeroed(&[0, 7], PageSize::Small, "a test", "").unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for shape in [[usize::MAX, usize::MAX], [1 << 31, 1 << 30]] {
            let error = Memory::zeroed(&shape, PageSize::Small, "the cache", "ask for fewer pages");
            let error = error.err().unwrap().to_string();
            assert!(error.contains("the cache") && error.contains("ask for fewer pages"), "{error}");
        }
    }
}
