//! `kernels/embed.cu`: rows of a table by their number.

use std::marker::PhantomData;

use super::super::buffer::{Slice, SliceMut};
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::constants::embed as constants;
use super::{Check, Element, VECTOR};

/// The kernel.
pub const KERNEL: &str = "embed_gather";
const CHECK: Check = Check { kernel: KERNEL };
const THREADS: u32 = constants::THREADS;

/// An id with this bit stands for the token that was drawn in the place that its other bits name.
pub const SAMPLED: u32 = constants::SAMPLED;

/// Embedding lookup in tables of `T`.
pub struct Embed<T> {
    gather: Kernel,
    element: PhantomData<T>,
}

/// Sizes of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedShape {
    /// Rows of the output.
    pub rows: usize,
    /// Rows of the table, below 2³¹.
    pub vocabulary: usize,
    /// Elements of a row.
    pub width: usize,
}

impl EmbedShape {
    /// Each output row is read and written once, 16-bit elements; equal ids read the same bytes. Ids that stand for
    /// drawn tokens read 4 bytes more each, which is not counted.
    pub fn work(&self) -> Work {
        let copied = (self.rows * self.width * 2) as u64;
        Work { bytes_read: (self.rows * 4) as u64 + copied, bytes_written: copied, flops: 0 }
    }
}

impl<T: Element> Embed<T> {
    /// Loads the kernel.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<Embed<T>, CudaError> {
        let gather = device.module("embed")?.kernel(KERNEL)?;
        Ok(Embed { gather, element: PhantomData })
    }

    /// `out[r, :] = table[ids[r], :]`, with `ids` `[rows]`, `table` `[vocabulary, width]` and `out` `[rows, width]`.
    /// An id of [`SAMPLED`]` | i` stands for `sampled[i]`. A row whose id is not below `vocabulary` becomes NaN.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for a length that is not that of `shape`, no rows, a width that is no multiple of 8, or
    /// a buffer that is not aligned to 16 bytes.
    pub fn gather(
        &self,
        stream: &Stream,
        shape: EmbedShape,
        ids: Slice<'_, u32>,
        sampled: Option<Slice<'_, u32>>,
        table: Slice<'_, T>,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let EmbedShape { rows, vocabulary, width } = shape;
        let row_count = CHECK.size("rows", rows, i32::MAX as usize)?;
        let vocabulary_size = CHECK.size("vocabulary", vocabulary, SAMPLED as usize)?;
        let row_width = CHECK.width("width", width, 65_535 * VECTOR * THREADS as usize)?;
        if ids.len() != rows {
            return CHECK.fail("ids", ids.len(), format_args!("{rows} elements"));
        }
        CHECK.matrix("table", table.into(), vocabulary, width)?;
        CHECK.matrix("out", (&out).into(), rows, width)?;
        let mut launch = Launch::linear(row_count, THREADS);
        launch.grid[1] = row_width.div_ceil(VECTOR as u32 * THREADS);
        let sampled_len = sampled.map_or(0, |sampled| u32::try_from(sampled.len()).unwrap_or(u32::MAX));
        let arguments = Arguments::new()
            .input(ids)
            .optional_input(sampled)
            .input(table)
            .output(&out)
            .scalar(sampled_len)
            .scalar(vocabulary_size)
            .scalar(row_width);
        // SAFETY: the arguments are those of embed_gather, checked above to have the lengths that it indexes; ids
        // that are no row of the table, and places where nothing is drawn, are not looked up.
        unsafe { stream.launch(&self.gather, &launch, &arguments) }
    }
}
