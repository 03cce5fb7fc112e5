//! Work in order: memory, copies, launches, graphs.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaEvent, CudaStream, DevicePtr, result};

use super::buffer::{Buffer, Slice, SliceMut};
use super::device::Device;
use super::error::{CudaError, Naming};
use super::event::Event;
use super::graph::Graph;
use super::pinned::{PinnedMemory, PinnedSlice, PinnedSliceMut};
use super::trace::{COPY, Trace};

/// A queue of work on one [`Device`]. Calls return before their work is done, except where said; a failure of the
/// work comes out of a later call, [`Stream::synchronize`] at the latest.
#[derive(Clone)]
pub struct Stream {
    device: Device,
    inner: Arc<CudaStream>,
    trace: Arc<Trace>,
}

impl Stream {
    pub(super) fn new(device: Device, inner: Arc<CudaStream>) -> Stream {
        Stream { device, inner, trace: Arc::default() }
    }

    /// The device that it works on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits on the host until all its work is done.
    ///
    /// # Errors
    /// Errors of submitted work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.inner.synchronize().named("cuStreamSynchronize")
    }

    /// A buffer of `len` elements whose values are whatever lay there.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; [`CudaError::WhileCapturing`], because the graph would own the memory.
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        self.not_while_capturing("an allocation")?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| self.out_of_memory(u64::MAX))?;
        // A driver allocates no zero bytes.
        // SAFETY: the bytes are unset, and every bit pattern is a `T`.
        let memory = unsafe { self.inner.alloc::<u8>(bytes.max(1)) };
        let memory = match memory {
            Err(error) if error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(self.out_of_memory(bytes as u64)),
            other => other.named("cuMemAllocAsync")?,
        };
        // The guard would record cudarc's events, which are switched off.
        let pointer = memory.device_ptr(&self.inner).0;
        Ok(Buffer::new(memory, pointer, len))
    }

    /// A buffer of `len` elements, all bytes zero.
    ///
    /// # Errors
    /// As for [`Stream::alloc`].
    pub fn zeroed<T: Pod>(&self, len: usize) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(len)?;
        self.fill_bytes(buffer.view_mut(), 0)?;
        Ok(buffer)
    }

    /// A buffer with the elements of `source`.
    ///
    /// # Errors
    /// As for [`Stream::alloc`].
    pub fn upload<T: Pod>(&self, source: &[T]) -> Result<Buffer<T>, CudaError> {
        let mut buffer = self.alloc(source.len())?;
        self.copy_from_host(source, buffer.view_mut())?;
        Ok(buffer)
    }

    /// The elements of `source`, on the host. Waits for all work before.
    ///
    /// # Errors
    /// Errors of submitted work.
    pub fn download<T: Pod>(&self, source: Slice<'_, T>) -> Result<Vec<T>, CudaError> {
        self.not_while_capturing("a copy to host memory")?;
        let mut elements = vec![T::zeroed(); source.len()];
        if !source.is_empty() {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut elements);
            self.bind()?;
            // SAFETY: the source is as long, by its type; the bytes live until after the synchronisation below.
            unsafe { result::memcpy_dtoh_async(bytes, source.pointer(), self.inner.cu_stream()) }
                .named("cuMemcpyDtoHAsync")?;
        }
        self.synchronize()?;
        Ok(elements)
    }

    /// Sets every byte of `destination`.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn fill_bytes<T: Pod>(&self, destination: SliceMut<'_, T>, byte: u8) -> Result<(), CudaError> {
        if destination.is_empty() {
            return Ok(());
        }
        let bytes = destination.len() * size_of::<T>();
        self.bind()?;
        // SAFETY: the destination has that many bytes and nothing else borrows it.
        unsafe { result::memset_d8_async(destination.pointer(), byte, bytes, self.inner.cu_stream()) }
            .named("cuMemsetD8Async")
    }

    /// Copies from host memory, which may be changed as soon as the call returns.
    ///
    /// # Errors
    /// [`CudaError::CopyLength`]; [`CudaError::WhileCapturing`], because the graph would read it at each replay.
    pub fn copy_from_host<T: Pod>(&self, source: &[T], destination: SliceMut<'_, T>) -> Result<(), CudaError> {
        same_length(source.len(), destination.len())?;
        self.not_while_capturing("a copy from host memory")?;
        if source.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both have the same length; the driver reads pageable memory before it returns.
        unsafe {
            result::memcpy_htod_async(
                destination.pointer(),
                bytemuck::cast_slice::<T, u8>(source),
                self.inner.cu_stream(),
            )
        }
        .named("cuMemcpyHtoDAsync")
    }

    /// Copies between buffers of the device.
    ///
    /// # Errors
    /// [`CudaError::CopyLength`].
    pub fn copy<T: Pod>(&self, source: Slice<'_, T>, destination: SliceMut<'_, T>) -> Result<(), CudaError> {
        same_length(source.len(), destination.len())?;
        if source.is_empty() {
            return Ok(());
        }
        let bytes = source.len() * size_of::<T>();
        self.bind()?;
        // SAFETY: both have that many bytes; the borrows say that they do not overlap.
        unsafe { result::memcpy_dtod_async(destination.pointer(), source.pointer(), bytes, self.inner.cu_stream()) }
            .named("cuMemcpyDtoDAsync")
    }

    /// Copies from pinned memory while the host goes on: from a whole [`Pinned`](super::Pinned) or a
    /// [`Pinned::slice`](super::Pinned::slice) of it. Where the stream records, each replay copies the elements as they
    /// are then.
    ///
    /// # Errors
    /// [`CudaError::CopyLength`]; [`CudaError::Driver`].
    pub fn copy_from_pinned<'a, T: Pod>(
        &self,
        source: impl Into<PinnedSlice<'a, T>>,
        destination: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let source = source.into();
        same_length(source.len(), destination.len())?;
        if source.is_empty() {
            return Ok(());
        }
        let bytes = source.len() * size_of::<T>();
        self.around_pinned(source.memory(), || {
            // SAFETY: both have the same length; accesses to the source and its release wait for the event after the
            // copy, or after each replay of the graph, which keeps the source.
            unsafe {
                let source = std::slice::from_raw_parts(source.pointer(), bytes);
                result::memcpy_htod_async(destination.pointer(), source, self.inner.cu_stream())
            }
            .named("cuMemcpyHtoDAsync")
        })
    }

    /// Copies to pinned memory while the host goes on: to a whole [`Pinned`](super::Pinned) or a
    /// [`Pinned::slice_mut`](super::Pinned::slice_mut) of it. Where the stream records, each replay writes the
    /// elements.
    ///
    /// # Errors
    /// [`CudaError::CopyLength`]; [`CudaError::Driver`].
    pub fn copy_to_pinned<'a, T: Pod>(
        &self,
        source: Slice<'_, T>,
        destination: impl Into<PinnedSliceMut<'a, T>>,
    ) -> Result<(), CudaError> {
        let destination = destination.into();
        same_length(source.len(), destination.len())?;
        if source.is_empty() {
            return Ok(());
        }
        let bytes = destination.len() * size_of::<T>();
        self.around_pinned(destination.memory(), || {
            // SAFETY: as in `copy_from_pinned`.
            unsafe {
                let destination = std::slice::from_raw_parts_mut(destination.pointer(), bytes);
                result::memcpy_dtoh_async(destination, source.pointer(), self.inner.cu_stream())
            }
            .named("cuMemcpyDtoHAsync")
        })
    }

    /// Gives a copy to or from `memory` to the stream, in order with the other copies of it.
    fn around_pinned(
        &self,
        memory: &Arc<PinnedMemory>,
        copy: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if let Some(capture) = self.capture_id()? {
            // The order with other copies is that of the replays: `Graph::launch` sees to it.
            copy()?;
            self.device.keep_for_graph(capture, memory.clone());
            return Ok(());
        }
        self.bind()?;
        memory.before_copy(&self.inner)?;
        let copied = copy();
        memory.after_copy(&self.inner)?;
        copied?;
        self.trace.mark(self, COPY)
    }

    /// Marks this point of its work. The event keeps time.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn record(&self) -> Result<Event, CudaError> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.inner.record_event(flags).map(Event).named("cuEventRecord")
    }

    /// Has the work that is given to it from now on wait for `event`, of whichever stream.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let event: &CudaEvent = &event.0;
        self.inner.wait(event).named("cuStreamWaitEvent")
    }

    /// Records what `work` gives to this stream instead of running it: launches, fills, copies on the device and from
    /// and to pinned memory. Kernels must have run once before, so that they are loaded; buffers must outlive the
    /// graph. `work` must not wait for the device, and so not look into pinned memory: fill it before a replay.
    ///
    /// Another stream takes part once it has waited for an [`Event`] of this one that `work` recorded, and until this
    /// one waits for an event of its own: what it is given between runs beside this stream's work at each replay. It
    /// must have come back before `work` ends. Events from outside the capture cannot be waited for in it, nor its
    /// own outside.
    ///
    /// # Errors
    /// That of `work`; [`CudaError::Driver`], such as for something that cannot be recorded, or a stream that has not
    /// come back.
    pub fn capture(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        // Thread-local: other threads of the program may go on using the device meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.inner.begin_capture(mode).named("cuStreamBeginCapture")?;
        let capture = self.capture_id();
        let worked = work();
        // Ended in either case: a stream left capturing is of no use any more.
        let graph =
            self.inner.end_capture(sys::CUgraphInstantiate_flags(0)).named("cuStreamEndCapture or cuGraphInstantiate");
        let pinned = capture.map(|id| id.map(|id| self.device.kept_for_graph(id)).unwrap_or_default());
        worked?;
        let no_graph = || CudaError::Driver { call: "cuStreamEndCapture", answer: "no graph".to_owned() };
        Ok(Graph::new(graph?.ok_or_else(no_graph)?, self.clone(), pinned?))
    }

    /// Events behind its launches, where somebody wants to know when they ran.
    pub(super) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(super) fn inner(&self) -> &CudaStream {
        &self.inner
    }

    /// Where launches are waited for ([`Device::is_synchronous`]), waits until `work` has run, and names it where it
    /// failed. Does nothing during a capture, which cannot wait.
    pub(super) fn wait_where_synchronous(&self, work: impl FnOnce() -> String) -> Result<(), CudaError> {
        if !self.device.is_synchronous() || self.capture_id()?.is_some() {
            return Ok(());
        }
        self.inner.synchronize().map_err(|error| CudaError::failed(work(), error))
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.inner.cu_stream()
    }

    /// Makes the device's context current on this thread, which the driver's calls below cudarc's safe layer need.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.device.context().bind_to_thread().named("cuCtxSetCurrent")
    }

    fn not_while_capturing(&self, what: &'static str) -> Result<(), CudaError> {
        match self.inner.capture_status().named("cuStreamIsCapturing")? {
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
            _ => Err(CudaError::WhileCapturing { what }),
        }
    }

    /// Id of the capture in progress, unique in the process.
    fn capture_id(&self) -> Result<Option<u64>, CudaError> {
        self.bind()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut id, mut count) = (0, 0);
        let (mut graph, mut nodes, mut edges) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
        // SAFETY: every place is live; the graph and the nodes are the driver's and not touched. All are asked for
        // because the driver may refuse to leave out the edges where launches may start early.
        unsafe {
            sys::cuStreamGetCaptureInfo_v3(
                self.inner.cu_stream(),
                &mut status,
                &mut id,
                &mut graph,
                &mut nodes,
                &mut edges,
                &mut count,
            )
        }
        .result()
        .named("cuStreamGetCaptureInfo")?;
        Ok((status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE).then_some(id))
    }

    fn out_of_memory(&self, needed: u64) -> CudaError {
        // Where even that fails, the numbers say 0 and the error is still the right one.
        let (free, total) = self.device.memory().unwrap_or_default();
        CudaError::OutOfMemory { needed, free, total }
    }
}

fn same_length(from: usize, into: usize) -> Result<(), CudaError> {
    if from == into { Ok(()) } else { Err(CudaError::CopyLength { from, into }) }
}
