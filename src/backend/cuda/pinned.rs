//! Host memory that the device copies to and from while the host goes on.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};

use super::device::Device;
use super::error::{CudaError, Naming};

/// `len` elements of `T` in page-locked host memory, for [`Stream::copy_from_pinned`](super::Stream::copy_from_pinned)
/// and back. Such a copy runs while the host goes on; touching the elements waits for the last one, and so does
/// dropping them.
///
/// cudarc's own such type leaves the waiting to its event tracking, which [`Device::open`] switches off.
pub struct Pinned<T> {
    pointer: NonNull<u8>,
    len: usize,
    context: Arc<CudaContext>,
    /// Recorded after every copy; each copy waits for the one before, so that the last stands for all.
    copied: CudaEvent,
    element: PhantomData<T>,
}

// SAFETY: it owns its memory, as a Vec does; the event is the driver's, which locks for itself.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Sync> Sync for Pinned<T> {}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // An error of the work has been or will be reported by its stream; where it failed, nothing copies any more.
        let _ = self.copied.synchronize();
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the pointer came from malloc_host, and no copy to or from it runs any more.
            let _ = unsafe { result::free_host(self.pointer.as_ptr().cast()) };
        }
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
        // SAFETY: the context is current; what comes back is owned by `Pinned` from here on.
        let pointer = unsafe { result::malloc_host(bytes, 0) }.named(CALL)?;
        let pointer = NonNull::new(pointer.cast::<u8>()).ok_or_else(|| failed("no memory".to_owned()))?;
        // SAFETY: the allocation has that many bytes.
        unsafe { pointer.write_bytes(0, bytes) };
        Ok(Pinned { pointer, len, context, copied, element: PhantomData })
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

    /// Its address, for a copy between [`Pinned::before_copy`] and [`Pinned::after_copy`].
    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

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
    /// The elements, once the last copy is done.
    ///
    /// # Errors
    /// That of the work before the copy, where it failed.
    pub fn as_slice(&self) -> Result<&[T], CudaError> {
        self.copied.synchronize().named("cuEventSynchronize")?;
        // SAFETY: `len` elements, set to zero at first, every bit pattern of which is a `T`; page-locked memory starts
        // on a page, aligned for every `T`; no copy writes them, since that takes a mutable reference.
        Ok(unsafe { std::slice::from_raw_parts(self.pointer.as_ptr().cast(), self.len) })
    }

    /// The elements, to be changed, once the last copy is done.
    ///
    /// # Errors
    /// That of the work before the copy, where it failed.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], CudaError> {
        self.copied.synchronize().named("cuEventSynchronize")?;
        // SAFETY: as above, and no copy reads them any more.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr().cast(), self.len) })
    }
}
