//! A matrix of weights as the launchers of products take it.

use super::super::buffer::Slice;
use super::super::error::CudaError;
use super::{Check, Element};
use crate::model::WeightFormat;

/// The weights of a matrix in device memory: bytes, and how they are kept. The launch has the matrix's sizes.
#[derive(Debug, Clone, Copy)]
pub struct WeightMatrix<'a> {
    /// What the packer of the format writes: of dense weights the elements, row after row.
    pub bytes: Slice<'a, u8>,
    /// How they are kept.
    pub format: WeightFormat,
}

impl<'a, T: Element> From<Slice<'a, T>> for WeightMatrix<'a> {
    fn from(elements: Slice<'a, T>) -> WeightMatrix<'a> {
        WeightMatrix { bytes: elements.bytes(), format: WeightFormat::dense(T::DTYPE) }
    }
}

impl<'a> WeightMatrix<'a> {
    /// The elements, for kernels that take dense weights of the activations' type.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for another format.
    pub(super) fn dense<T: Element>(self, check: Check) -> Result<Slice<'a, T>, CudaError> {
        let dtype = self.format.dense_dtype();
        match self.bytes.cast().filter(|_| dtype == Some(T::DTYPE)) {
            Some(elements) => Ok(elements),
            None => {
                let found = dtype.map_or("quantised".to_owned(), |dtype| dtype.to_string());
                check.fail("the weights' format", found, T::DTYPE)
            }
        }
    }
}
