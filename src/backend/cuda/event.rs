//! A point in a stream's work.

use cudarc::driver::CudaEvent;

use super::error::{CudaError, Naming};

/// A point in a stream's work, recorded by [`Stream::record`](super::Stream::record): other streams and the host can
/// wait for it, and two of them give the time between.
#[derive(Debug)]
pub struct Event(pub(super) CudaEvent);

impl Event {
    /// Whether the work before it is done.
    ///
    /// # Errors
    /// Errors of submitted work.
    pub fn is_complete(&self) -> Result<bool, CudaError> {
        self.0.try_is_complete().named("cuEventQuery")
    }

    /// Waits on the host until the work before it is done.
    ///
    /// # Errors
    /// Errors of submitted work.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.0.synchronize().named("cuEventSynchronize")
    }

    /// Milliseconds from `self` to `later` on the device's clock (resolution about 0.5 µs). Waits for both.
    ///
    /// # Errors
    /// Errors of submitted work.
    pub fn milliseconds_until(&self, later: &Event) -> Result<f32, CudaError> {
        self.0.elapsed_ms(&later.0).named("cuEventElapsedTime")
    }
}
