//! `kernels/ceilings.cu`: the device at its best, for measuring: a read of memory and nothing else, and its clock.

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::Check;
use super::constants::ceilings as constants;

const CHECK_READ: Check = Check { kernel: "read_words" };
const CHECK_WAIT: Check = Check { kernel: "wait_and_count" };
const THREADS: u32 = constants::THREADS;
const LOADS: usize = constants::LOADS as usize;
const WARPS: usize = THREADS as usize / 32;
/// Blocks for each SM: all that run at a time, with 2048 threads there.
const BLOCKS: u32 = 8;
/// Words of a 16-byte access.
const WORDS: usize = 4;

/// The longest wait, in nanoseconds: nobody hangs a device with it.
pub const LONGEST_WAIT: u64 = 100_000_000;

/// Reads memory, and counts cycles.
pub struct Ceilings {
    read: Kernel,
    wait: Kernel,
    blocks: u32,
}

impl Ceilings {
    /// Loads the kernels.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<Ceilings, CudaError> {
        let module = device.module("ceilings")?;
        let blocks = device.properties().sm_count.max(1).saturating_mul(BLOCKS);
        Ok(Ceilings { read: module.kernel("read_words")?, wait: module.kernel("wait_and_count")?, blocks })
    }

    /// Elements of `folded` of [`Ceilings::read`] for `words` words.
    pub fn folded_len(&self, words: usize) -> usize {
        self.blocks_for(words) as usize * WARPS
    }

    /// As many as find something to read.
    fn blocks_for(&self, words: usize) -> u32 {
        let useful = words.div_ceil(WORDS * LOADS * THREADS as usize);
        u32::try_from(useful).unwrap_or(u32::MAX).clamp(1, self.blocks)
    }

    /// What [`Ceilings::read`] moves for `words` words.
    pub fn read_work(&self, words: usize) -> Work {
        Work { bytes_read: 4 * words as u64, bytes_written: 4 * self.folded_len(words) as u64, flops: 0 }
    }

    /// `folded` = the words of `source` by exclusive or, in [`Ceilings::folded_len`] parts: together those of all.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a source whose length is no multiple of 4 or that is empty, another length of
    /// `folded`, or a buffer that is not aligned to 16 bytes.
    pub fn read(&self, stream: &Stream, source: Slice<'_, u32>, folded: SliceMut<'_, u32>) -> Result<(), CudaError> {
        if source.is_empty() || !source.len().is_multiple_of(WORDS) {
            return CHECK_READ.fail("source", source.len(), "a multiple of 4 words, not 0");
        }
        CHECK_READ.matrix("source", source.into(), 1, source.len())?;
        CHECK_READ.matrix("folded", (&folded).into(), 1, self.folded_len(source.len()))?;
        let vectors = (source.len() / WORDS) as u64;
        let arguments = Arguments::new().input(source).output(&folded).scalar(vectors);
        // SAFETY: the arguments are those of read_words, checked above to have the lengths that it indexes.
        unsafe { stream.launch(&self.read, &Launch::linear(self.blocks_for(source.len()), THREADS), &arguments) }
    }

    /// `passed` = cycles of an SM and nanoseconds that go by in a wait of at least `nanoseconds`, which
    /// begins when the work before it is done: the clock that that work ran at.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a wait that is not 1 to [`LONGEST_WAIT`], or `passed` that is not of 2 elements.
    pub fn wait_and_count(
        &self,
        stream: &Stream,
        nanoseconds: u64,
        passed: SliceMut<'_, u64>,
    ) -> Result<(), CudaError> {
        if !(1..=LONGEST_WAIT).contains(&nanoseconds) {
            return CHECK_WAIT.fail("nanoseconds", nanoseconds, format_args!("1 to {LONGEST_WAIT}"));
        }
        CHECK_WAIT.matrix("passed", (&passed).into(), 1, 2)?;
        let arguments = Arguments::new().output(&passed).scalar(nanoseconds);
        // SAFETY: the arguments are those of wait_and_count, which writes two elements.
        unsafe { stream.launch(&self.wait, &Launch::linear(1, 1), &arguments) }
    }
}
