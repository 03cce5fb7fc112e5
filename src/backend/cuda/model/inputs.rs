//! Upload of a step's inputs.

use super::super::error::CudaError;
use super::super::{Buffer, Device, Pinned, Stream};

/// Device words of a step's inputs, uploaded through two pinned buffers in turn: one is in transit while the next step
/// is written into the other.
pub(super) struct Inputs {
    pinned: [Pinned<u32>; 2],
    next: usize,
    device: Buffer<u32>,
}

impl Inputs {
    /// Capacity for `words` words.
    pub(super) fn new(device: &Device, stream: &Stream, words: usize) -> Result<Inputs, CudaError> {
        Ok(Inputs {
            pinned: [Pinned::zeroed(device, words)?, Pinned::zeroed(device, words)?],
            next: 0,
            device: stream.zeroed(words)?,
        })
    }

    /// Calls `write` with the first `words` words and submits their copy.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        words: usize,
        write: impl FnOnce(&mut [u32]),
    ) -> Result<(), CudaError> {
        let pinned = &mut self.pinned[self.next];
        self.next = (self.next + 1) % 2;
        let destination = self.device.planned_mut(0..words)?;
        // Both pinned buffers are as long as the device buffer.
        write(&mut pinned.as_mut_slice()?[..words]);
        stream.copy_from_pinned(pinned.planned(0..words)?, destination)
    }

    /// The device words.
    pub(super) fn words(&self) -> &Buffer<u32> {
        &self.device
    }
}
