//! One launcher for each `kernels/*.cu`, and [`linear`] in front of the GEMM and GEMV launchers. A launcher checks shapes and
//! alignment, chooses kernel and grid, and declares the bytes and FLOPs of the launch.
//!
//! A launcher is a value that holds the loaded kernels of one element type; each call gives one launch to a stream and
//! returns before it has run. Buffers must live until then ([`Buffer`](super::Buffer)).

pub mod attention_batch_invariant;
pub mod attention_decode;
mod attention_decode_sm90;
pub mod attention_prefill;
mod attention_prefill_sm90;
pub mod ceilings;
mod constants;
pub mod embed;
pub mod gemm;
pub mod gemm_sm90;
pub mod gemm_small_m_sm90;
pub mod gemv;
pub mod gemv_normed;
pub mod linear;
pub mod norm;
pub mod paged;
pub mod random;
pub mod sample;
mod weight_matrix;

#[cfg(test)]
mod choice_tests;
#[cfg(test)]
mod instance_tests;

use std::fmt::Display;

use bytemuck::Pod;
use cudarc::driver::sys::CUtensorMapDataType;

pub use weight_matrix::WeightMatrix;

use super::buffer::{Slice, SliceMut};
use super::error::CudaError;
use crate::checkpoint::Dtype;

/// Elements of a 16-byte access.
const VECTOR: usize = constants::vector::VECTOR as usize;

/// A 16-bit element type of weights and activations.
pub trait Element: Pod + Send + Sync + sealed::Sealed {
    /// Its name in the names of kernels.
    const NAME: &'static str;
    /// Its dtype in checkpoints.
    const DTYPE: Dtype;
    /// Its type in tensor maps.
    #[doc(hidden)]
    const TENSOR_MAP_TYPE: CUtensorMapDataType;
}

impl Element for half::bf16 {
    const NAME: &'static str = "bf16";
    const DTYPE: Dtype = Dtype::Bf16;
    const TENSOR_MAP_TYPE: CUtensorMapDataType = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

impl Element for half::f16 {
    const NAME: &'static str = "f16";
    const DTYPE: Dtype = Dtype::F16;
    const TENSOR_MAP_TYPE: CUtensorMapDataType = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

/// Whether a launch has a bias, for what it must move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasTerm {
    /// None.
    Absent,
    /// One element a column.
    Present,
}

impl<T> From<Option<Slice<'_, T>>> for BiasTerm {
    fn from(bias: Option<Slice<'_, T>>) -> BiasTerm {
        if bias.is_some() { BiasTerm::Present } else { BiasTerm::Absent }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// Checks the operands of one kernel.
#[derive(Clone, Copy)]
struct Check {
    kernel: &'static str,
}

impl Check {
    fn fail<T>(self, what: &'static str, found: impl Display, expected: impl Display) -> Result<T, CudaError> {
        let (found, expected) = (found.to_string(), expected.to_string());
        Err(CudaError::Operand { kernel: self.kernel, what, found, expected })
    }

    /// `rows` × `columns` elements, where the two multiply without overflow, from an address of 16 bytes.
    fn matrix(self, what: &'static str, operand: Operand, rows: usize, columns: usize) -> Result<(), CudaError> {
        match rows.checked_mul(columns) {
            Some(len) if len == operand.len => {}
            _ => return self.fail(what, operand.len, format_args!("{rows} x {columns} elements")),
        }
        if operand.alignment < 16 {
            return self.fail(what, format_args!("aligned to {} bytes", operand.alignment), "aligned to 16");
        }
        Ok(())
    }

    /// A size from 1 to `most`, as the kernel takes it.
    fn size(self, what: &'static str, size: usize, most: usize) -> Result<u32, CudaError> {
        match u32::try_from(size) {
            Ok(number) if (1..=most).contains(&size) => Ok(number),
            _ => self.fail(what, size, format_args!("1 to {most}")),
        }
    }

    /// A row length from 8 to `most` whose rows all start at 16 bytes.
    fn width(self, what: &'static str, width: usize, most: usize) -> Result<u32, CudaError> {
        if !width.is_multiple_of(VECTOR) {
            return self.fail(what, width, format_args!("a multiple of {VECTOR}"));
        }
        self.size(what, width, most)
    }
}

/// What is checked of a buffer.
#[derive(Clone, Copy)]
struct Operand {
    len: usize,
    alignment: u64,
}

impl<T: Pod> From<Slice<'_, T>> for Operand {
    fn from(slice: Slice<'_, T>) -> Operand {
        Operand { len: slice.len(), alignment: slice.alignment() }
    }
}

impl<T: Pod> From<&SliceMut<'_, T>> for Operand {
    fn from(slice: &SliceMut<'_, T>) -> Operand {
        Operand { len: slice.len(), alignment: slice.alignment() }
    }
}
