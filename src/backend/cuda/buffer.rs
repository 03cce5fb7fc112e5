//! Typed device memory that knows its length, and borrowed parts of it.

use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};

use bytemuck::Pod;
use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUdeviceptr;

use super::error::CudaError;

/// `len` elements of `T` in device memory, freed in the order of the stream that allocated them: before a buffer is
/// dropped, work on other streams that uses it must be ordered before that stream by an [`Event`](super::Event).
#[derive(Debug)]
pub struct Buffer<T> {
    /// Keeps the allocation.
    _memory: CudaSlice<u8>,
    pointer: CUdeviceptr,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `memory` holds at least `len` elements.
    pub(super) fn new(memory: CudaSlice<u8>, pointer: CUdeviceptr, len: usize) -> Buffer<T> {
        debug_assert!(memory.len() >= len * size_of::<T>());
        Buffer { _memory: memory, pointer, len, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it, to be read.
    pub fn view(&self) -> Slice<'_, T> {
        Slice { pointer: self.pointer, len: self.len, borrow: PhantomData }
    }

    /// All of it, to be written.
    pub fn view_mut(&mut self) -> SliceMut<'_, T> {
        SliceMut { pointer: self.pointer, len: self.len, borrow: PhantomData }
    }

    /// Elements `range`, to be read; `None` where there are not as many.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Option<Slice<'_, T>> {
        let (pointer, len) = part::<T>(self.pointer, self.len, range)?;
        Some(Slice { pointer, len, borrow: PhantomData })
    }

    /// Elements `range`, to be written; `None` where there are not as many.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Option<SliceMut<'_, T>> {
        let (pointer, len) = part::<T>(self.pointer, self.len, range)?;
        Some(SliceMut { pointer, len, borrow: PhantomData })
    }

    /// [`Buffer::slice`] of a range that was planned for: that there are not as many elements is a bug.
    pub(super) fn planned(&self, range: Range<usize>) -> Result<Slice<'_, T>, CudaError> {
        let short = CudaError::CopyLength { from: range.end, into: self.len };
        self.slice(range).ok_or(short)
    }

    /// [`Buffer::slice_mut`] likewise.
    pub(super) fn planned_mut(&mut self, range: Range<usize>) -> Result<SliceMut<'_, T>, CudaError> {
        let short = CudaError::CopyLength { from: range.end, into: self.len };
        self.slice_mut(range).ok_or(short)
    }
}

/// Elements of a [`Buffer`] that a kernel or a copy reads.
#[derive(Debug)]
pub struct Slice<'a, T> {
    pointer: CUdeviceptr,
    len: usize,
    borrow: PhantomData<&'a T>,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

/// Elements of a [`Buffer`] that a kernel or a copy writes, and may read.
#[derive(Debug)]
pub struct SliceMut<'a, T> {
    pointer: CUdeviceptr,
    len: usize,
    borrow: PhantomData<&'a mut T>,
}

macro_rules! slice_common {
    ($slice:ident) => {
        impl<'a, T: Pod> $slice<'a, T> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether it has no element.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// The largest power of two, 256 at the most, that its address is a multiple of.
            pub fn alignment(&self) -> u64 {
                1 << self.pointer.trailing_zeros().min(8)
            }

            /// The same bytes as elements of another type; `None` where they are no whole number of these or not
            /// aligned for them.
            pub fn cast<U: Pod>(self) -> Option<$slice<'a, U>> {
                let bytes = self.len * size_of::<T>();
                let fits = size_of::<U>() != 0
                    && bytes.is_multiple_of(size_of::<U>())
                    && self.pointer.is_multiple_of(align_of::<U>() as u64);
                fits.then(|| $slice { pointer: self.pointer, len: bytes / size_of::<U>(), borrow: PhantomData })
            }

            /// The same memory, byte by byte.
            pub fn bytes(self) -> $slice<'a, u8> {
                $slice { pointer: self.pointer, len: self.len * size_of::<T>(), borrow: PhantomData }
            }

            pub(super) fn pointer(&self) -> CUdeviceptr {
                self.pointer
            }
        }
    };
}

slice_common!(Slice);
slice_common!(SliceMut);

impl<T: Pod> SliceMut<'_, T> {
    /// The same elements, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, T> {
        SliceMut { pointer: self.pointer, len: self.len, borrow: PhantomData }
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> Slice<'_, T> {
        Slice { pointer: self.pointer, len: self.len, borrow: PhantomData }
    }
}

fn part<T>(pointer: CUdeviceptr, len: usize, range: impl RangeBounds<usize>) -> Option<(CUdeviceptr, usize)> {
    let (start, len) = bounds(len, range)?;
    Some((pointer + (start * size_of::<T>()) as u64, len))
}

/// Start and length of `range` among `len` elements; `None` where there are not as many.
pub(super) fn bounds(len: usize, range: impl RangeBounds<usize>) -> Option<(usize, usize)> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.checked_add(1)?,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    (start <= end && end <= len).then(|| (start, end - start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lies_inside_or_is_none() {
        assert_eq!(part::<u32>(1000, 10, 2..5), Some((1008, 3)));
        assert_eq!(part::<u32>(1000, 10, ..), Some((1000, 10)));
        assert_eq!(part::<u32>(1000, 10, 10..), Some((1040, 0)));
        assert_eq!(part::<u32>(1000, 10, 0..=9), Some((1000, 10)));
        assert_eq!(part::<u32>(1000, 10, 0..=10), None);
        assert_eq!(part::<u32>(1000, 10, (Bound::Included(5), Bound::Excluded(4))), None);
        assert_eq!(part::<u32>(1000, 10, 0..=usize::MAX), None);
    }

    #[test]
    fn bytes_may_be_seen_as_another_type_that_fits() {
        let slice = |pointer, len| Slice::<u32> { pointer, len, borrow: PhantomData };
        assert_eq!(slice(0x100, 6).cast::<[u32; 2]>().map(|pairs| pairs.len()), Some(3));
        assert_eq!(slice(0x100, 6).cast::<u16>().map(|halves| halves.len()), Some(12));
        assert_eq!(slice(0x100, 6).cast::<u64>().map(|words| words.len()), Some(3));
        assert!(slice(0x104, 6).cast::<u64>().is_none(), "misaligned");
        assert!(slice(0x100, 5).cast::<u64>().is_none(), "half a word left");
        assert!(slice(0x100, 5).cast::<()>().is_none());
    }

    #[test]
    fn alignment_is_that_of_the_address() {
        let slice = |pointer| Slice::<u16> { pointer, len: 1, borrow: PhantomData };
        assert_eq!(slice(0x7f00).alignment(), 256);
        assert_eq!(slice(0x7f10).alignment(), 16);
        assert_eq!(slice(0x7f02).alignment(), 2);
    }
}
