//! A recording of a stream's work, replayed with one call.

use cudarc::driver::CudaGraph;

use super::error::{CudaError, Naming};

/// A recording made by [`Stream::capture`](super::Stream::capture). It holds the addresses of the buffers that it
/// uses, not the buffers: they must live, and stay where they are, as long as it is replayed.
pub struct Graph(pub(super) CudaGraph);

impl Graph {
    /// Brings the recording to the device ahead of its first replay.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn upload(&self) -> Result<(), CudaError> {
        self.0.upload().named("cuGraphUpload")
    }

    /// Replays it on the stream that it was recorded on.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn launch(&self) -> Result<(), CudaError> {
        self.0.launch().named("cuGraphLaunch")
    }
}
