//! `kernels/random.cu`: random matrices, the same bits as [`Uniform`]'s.

use std::marker::PhantomData;

use super::super::buffer::SliceMut;
use super::super::device::Device;
use super::super::error::CudaError;
use super::super::launch::{Arguments, Launch};
use super::super::layout::RowOrder;
use super::super::module::Kernel;
use super::super::stream::Stream;
use super::super::work::Work;
use super::constants;
use super::{Check, Element};
use crate::model::Uniform;

const CHECK: Check = Check { kernel: "random_fill" };
const THREADS: u32 = constants::random::THREADS;
/// Blocks that fill an SM of any device.
const BLOCKS: u32 = 8;

/// Random matrices of `T`.
pub struct Random<T> {
    fill: Kernel,
    element: PhantomData<T>,
}

/// A matrix, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomShape {
    /// Its rows.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Elements from the start of a row to that of the next.
    pub stride: usize,
}

impl RandomShape {
    /// Rows of `columns` without anything between them.
    pub fn dense(rows: usize, columns: usize) -> RandomShape {
        RandomShape { rows, columns, stride: columns }
    }

    /// Every element is written once; a fraction is scaled, centred, scaled and moved.
    pub fn work(&self) -> Work {
        let elements = (self.rows * self.columns) as u64;
        Work { bytes_read: 0, bytes_written: 2 * elements, flops: 4 * elements }
    }
}

impl<T: Element> Random<T> {
    /// Loads the kernel.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<Random<T>, CudaError> {
        let fill = device.module("random")?.kernel(&format!("random_fill_{}", T::NAME))?;
        Ok(Random { fill, element: PhantomData })
    }

    /// `out[r, c] = values[order.source(r) * columns + c]`, rounded to `T`. `out` ends with the last row's last
    /// element; what lies between the rows is not touched.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for no rows or columns, 2³² elements or more, a stride less than a row, heads that do not
    /// divide the rows, or a length of `out` that is not that of `shape`.
    pub fn fill(
        &self,
        stream: &Stream,
        shape: RandomShape,
        order: RowOrder,
        values: Uniform,
        out: SliceMut<'_, T>,
    ) -> Result<(), CudaError> {
        let RandomShape { rows, columns, stride } = shape;
        CHECK.size("rows", rows, u32::MAX as usize)?;
        let row_length = CHECK.size("columns", columns, u32::MAX as usize / rows)?;
        if stride < columns {
            return CHECK.fail("stride", stride, format_args!("at least {columns}"));
        }
        let head_dim = match order {
            RowOrder::Natural => 0,
            RowOrder::Interleaved { head_dim } => {
                if head_dim == 0 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim) {
                    return CHECK.fail("head_dim", head_dim, format_args!("an even divisor of {rows} rows"));
                }
                // No larger than the rows.
                head_dim as u32
            }
        };
        let len = (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(columns));
        if len != Some(out.len()) {
            return CHECK.fail("out", out.len(), format_args!("{rows} rows of {columns}, {stride} from row to row"));
        }
        // Fits: `columns` was held against what `rows` leave.
        let elements = (rows * columns) as u32;
        let most = BLOCKS * stream.device().properties().sm_count;
        let launch = Launch::linear(elements.div_ceil(THREADS).min(most), THREADS);
        let arguments = Arguments::new()
            .output(&out)
            .scalar(stride as u64)
            .scalar(elements)
            .scalar(row_length)
            .scalar(head_dim)
            .scalar(values.seed)
            .scalar(values.centre)
            .scalar(values.range);
        // SAFETY: the arguments are those of random_fill, checked above to have the lengths that it indexes.
        unsafe { stream.launch(&self.fill, &launch, &arguments) }
    }
}
