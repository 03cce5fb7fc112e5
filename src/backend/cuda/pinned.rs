//! Host memory that the device copies to and from while the host goes on.

use std::marker::PhantomData;

use bytemuck::Pod;
use cudarc::driver::PinnedHostSlice;

use super::device::Device;
use super::error::{CudaError, Naming};

/// `len` elements of `T` in page-locked host memory, for [`Stream::copy_from_pinned`](super::Stream::copy_from_pinned)
/// and back. Such a copy runs while the host goes on; touching the elements waits for the last one.
pub struct Pinned<T> {
    pub(super) memory: PinnedHostSlice<u8>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Pinned<T> {
    /// `len` elements, all bytes zero.
    ///
    /// # Errors
    /// [`CudaError::Driver`] where the host cannot lock as much memory.
    pub fn zeroed(device: &Device, len: usize) -> Result<Pinned<T>, CudaError> {
        const CALL: &str = "cuMemHostAlloc";
        let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| *bytes < isize::MAX as usize);
        let bytes = bytes.ok_or_else(|| CudaError::Driver { call: CALL, answer: format!("{len} elements") })?;
        // No flags: write-combined memory, cudarc's own choice, is slow for the host to read.
        // SAFETY: the memory is unset until it is filled below, before anything can read it.
        let mut memory = unsafe { device.context().alloc_pinned_with_flags::<u8>(bytes, 0) }.named(CALL)?;
        memory.as_mut_slice().named("cuEventSynchronize")?.fill(0);
        Ok(Pinned { memory, len, element: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, once the last copy is done.
    ///
    /// # Errors
    /// That of the work before the copy, where it failed.
    pub fn as_slice(&self) -> Result<&[T], CudaError> {
        // Page-locked memory starts on a page: aligned for every T.
        self.memory.as_slice().named("cuEventSynchronize").map(bytemuck::cast_slice)
    }

    /// The elements, to be changed, once the last copy is done.
    ///
    /// # Errors
    /// That of the work before the copy, where it failed.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], CudaError> {
        self.memory.as_mut_slice().named("cuEventSynchronize").map(bytemuck::cast_slice_mut)
    }
}
