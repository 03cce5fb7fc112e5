//! Host memory that the device copies to and from while the host goes on.

use std::marker::PhantomData;
use std::ops::{Range, RangeBounds};
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::buffer::bounds;
use super::device::Device;
use super::error::{CudaError, Naming};

/// `len` elements of `T` in page-locked host memory, for [`Stream::copy_from_pinned`](super::Stream::copy_from_pinned)
/// and back. Such a copy runs while the host goes on; touching the elements waits for the last one, and so does
/// dropping them.
///
/// Where a [`Graph`](super::Graph) has recorded the copy, its replays are the copies: each reads (or writes) the
/// elements as they are while it runs. So fill them, then replay; touching them waits for the last replay to end. A
/// slice from [`Pinned::as_slice`] or [`Pinned::as_mut_slice`] must not be held across [`Graph::launch`], which cannot
/// see it: the replay would carry some of the changes and not others.
///
/// [`Graph::launch`]: super::Graph::launch
///
/// cudarc's own such type leaves the waiting to its event tracking, which [`Device::open`] switches off.
pub struct Pinned<T> {
    memory: Arc<PinnedMemory>,
    len: usize,
    element: PhantomData<T>,
}

/// The allocation, kept by its [`Pinned`] and by the graphs that copy to or from it.
pub(super) struct PinnedMemory {
    pointer: NonNull<u8>,
    context: Arc<CudaContext>,
    /// Recorded after every copy; each copy waits for the one before, so that the last stands for all.
    copied: CudaEvent,
}

// SAFETY: it owns its memory, as a Vec does, and gives no access to it; the event is the driver's, which locks for
// itself.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // An error of the work has been or will be reported by its stream; where it failed, nothing copies any more.
        let _ = self.copied.synchronize();
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the pointer came from malloc_host, and no copy to or from it runs any more.
            let _ = unsafe { result::free_host(self.pointer.as_ptr().cast()) };
        }
    }
}

impl PinnedMemory {
    /// Has `stream` wait for the last copy, of whichever stream.
    pub(super) fn before_copy(&self, stream: &CudaStream) -> Result<(), CudaError> {
        stream.wait(&self.copied).named("cuStreamWaitEvent")
    }

    /// Has accesses and the release wait for what `stream` was given before. Must be called whatever came of it.
    pub(super) fn after_copy(&self, stream: &CudaStream) -> Result<(), CudaError> {
        // Without an event to wait for later, it is waited for now.
        self.copied.record(stream).or_else(|_| stream.synchronize()).named("cuEventRecord")
    }
}

impl<T: Pod> Pinned<T> {
    /// `len` elements, all bytes zero.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the host cannot lock as much memory.
    pub fn zeroed(device: &Device, len: usize) -> Result<Pinned<T>, CudaError> {
        const CALL: &str = "cuMemHostAlloc";
        let failed = |answer: String| CudaError::Driver { call: CALL, answer };
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes < isize::MAX as usize);
        // A driver allocates no zero bytes.
        let bytes = bytes.ok_or_else(|| failed(format!("{len} elements are more than can be addressed")))?.max(1);
        let context = device.context().clone();
        context.bind_to_thread().named("cuCtxSetCurrent")?;
        let copied = context.new_event(None).named("cuEventCreate")?;
        // No flags: write-combined memory is slow for the host to read.
        // SAFETY: the context is current; what comes back is owned by `PinnedMemory` from here on.
        let pointer = unsafe { result::malloc_host(bytes, 0) }.named(CALL)?;
        let pointer = NonNull::new(pointer.cast::<u8>()).ok_or_else(|| failed("no memory".to_owned()))?;
        // SAFETY: the allocation has that many bytes.
        unsafe { pointer.write_bytes(0, bytes) };
        let memory = Arc::new(PinnedMemory { pointer, context, copied });
        Ok(Pinned { memory, len, element: PhantomData })
    }

    /// The elements, once the last copy is done.
    ///
    /// # Errors
    /// That of the work before the copy, where it failed.
    pub fn as_slice(&self) -> Result<&[T], CudaError> {
        self.memory.copied.synchronize().named("cuEventSynchronize")?;
        // SAFETY: `len` elements, set to zero at first, every bit pattern of which is a `T`; page-locked memory starts
        // on a page, aligned for every `T`; no copy writes them, since that takes a mutable reference, and no replay,
        // as the type's documentation asks.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.pointer.as_ptr().cast(), self.len) })
    }

    /// The elements, to be changed, once the last copy is done.
    ///
    /// # Errors
    /// That of the work before the copy, where it failed.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], CudaError> {
        self.memory.copied.synchronize().named("cuEventSynchronize")?;
        // SAFETY: as above, and no copy reads them any more.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.memory.pointer.as_ptr().cast(), self.len) })
    }
}

impl<T> Pinned<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements `range`, for a copy from them; `None` where there are not as many.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Option<PinnedSlice<'_, T>> {
        let (start, len) = bounds(self.len, range)?;
        Some(PinnedSlice { memory: &self.memory, start, len, borrow: PhantomData })
    }

    /// Elements `range`, for a copy to them; `None` where there are not as many.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Option<PinnedSliceMut<'_, T>> {
        let (start, len) = bounds(self.len, range)?;
        Some(PinnedSliceMut { memory: &self.memory, start, len, borrow: PhantomData })
    }

    /// [`Pinned::slice`] of a range that was planned for: that there are not as many elements is a bug.
    pub(super) fn planned(&self, range: Range<usize>) -> Result<PinnedSlice<'_, T>, CudaError> {
        let short = CudaError::CopyLength { from: range.end, into: self.len() };
        self.slice(range).ok_or(short)
    }

    /// [`Pinned::slice_mut`] likewise.
    pub(super) fn planned_mut(&mut self, range: Range<usize>) -> Result<PinnedSliceMut<'_, T>, CudaError> {
        let short = CudaError::CopyLength { from: range.end, into: self.len() };
        self.slice_mut(range).ok_or(short)
    }
}

/// Elements of a [`Pinned`] that a copy reads: a [`Pinned::slice`], or all of it by `From`.
pub struct PinnedSlice<'a, T> {
    memory: &'a Arc<PinnedMemory>,
    start: usize,
    len: usize,
    borrow: PhantomData<&'a T>,
}

/// Elements of a [`Pinned`] that a copy writes: a [`Pinned::slice_mut`], or all of it by `From`.
pub struct PinnedSliceMut<'a, T> {
    memory: &'a Arc<PinnedMemory>,
    start: usize,
    len: usize,
    borrow: PhantomData<&'a mut T>,
}

impl<'a, T> From<&'a Pinned<T>> for PinnedSlice<'a, T> {
    fn from(pinned: &'a Pinned<T>) -> PinnedSlice<'a, T> {
        PinnedSlice { memory: &pinned.memory, start: 0, len: pinned.len, borrow: PhantomData }
    }
}

impl<'a, T> From<&'a mut Pinned<T>> for PinnedSliceMut<'a, T> {
    fn from(pinned: &'a mut Pinned<T>) -> PinnedSliceMut<'a, T> {
        PinnedSliceMut { memory: &pinned.memory, start: 0, len: pinned.len, borrow: PhantomData }
    }
}

macro_rules! pinned_slice_common {
    ($slice:ident) => {
        impl<'a, T> $slice<'a, T> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether it has no element.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// Its allocation, whose copies wait for each other.
            pub(super) fn memory(&self) -> &'a Arc<PinnedMemory> {
                self.memory
            }

            /// The address of its first element.
            pub(super) fn pointer(&self) -> *mut u8 {
                // SAFETY: `start` is at most the number of elements of the allocation.
                unsafe { self.memory.pointer.as_ptr().add(self.start * size_of::<T>()) }
            }
        }
    };
}

pinned_slice_common!(PinnedSlice);
pinned_slice_common!(PinnedSliceMut);
