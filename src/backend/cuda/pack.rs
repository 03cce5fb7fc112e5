//! From rows of stored tensors to the bytes of a region of the arena: a [`Packer`] for each format.

use std::ops::Range;

use super::convert::{OutOfRange, convert};
use super::layout::Part;
use crate::checkpoint::{CheckpointError, Dtype, Tensor};
use crate::model::WeightFormat;

/// Rows of a stored tensor and where they go.
pub(super) struct Source<'a> {
    pub part: &'a Part,
    pub tensor: &'a Tensor,
}

/// Makes the bytes of regions of one format.
pub(super) trait Packer: Sync {
    /// Sets `piece` to bytes `range` of the region that `sources` fill, in their order; what they leave is zero.
    /// Regions are cut at multiples of 256 bytes.
    ///
    /// # Errors
    /// A value that the format cannot hold.
    fn pack(&self, sources: &[Source<'_>], range: Range<usize>, piece: &mut [u8]) -> Result<(), CheckpointError>;
}

/// The packer of a format; `None` where there is none.
pub(super) fn packer(format: &WeightFormat) -> Option<&'static dyn Packer> {
    match format.dense_dtype()? {
        Dtype::F16 => Some(&Dense(Dtype::F16)),
        Dtype::Bf16 => Some(&Dense(Dtype::Bf16)),
        Dtype::F32 => None,
    }
}

/// Elements of 16 bits, row after row.
struct Dense(Dtype);

impl Packer for Dense {
    fn pack(&self, sources: &[Source<'_>], range: Range<usize>, piece: &mut [u8]) -> Result<(), CheckpointError> {
        let own_size = self.0.size();
        let mut written = range.start;
        for source in sources {
            let (bytes, dtype) = (source.tensor.bytes(), source.tensor.dtype());
            let size = dtype.size();
            for run in source.part.runs(range.start / own_size..range.end / own_size) {
                let start = run.destination * own_size;
                piece[written - range.start..start - range.start].fill(0);
                written = start + run.elements * own_size;
                let from = &bytes[run.source * size..(run.source + run.elements) * size];
                convert(dtype, from, self.0, &mut piece[start - range.start..written - range.start])
                    .map_err(|OutOfRange { element, value }| source.out_of_range(run.source + element, value))?;
            }
        }
        piece[written - range.start..].fill(0);
        Ok(())
    }
}

impl Source<'_> {
    fn out_of_range(&self, element: usize, value: f32) -> CheckpointError {
        let place = match self.tensor.shape() {
            [_, columns] => format!("[{}, {}]", element / columns, element % columns),
            _ => format!("[{element}]"),
        };
        CheckpointError::Tensor {
            file: self.tensor.file().to_owned(),
            tensor: self.part.tensor.clone(),
            found: format!("{value} at {place}"),
            expected: "magnitudes up to 65504, the largest of F16".to_owned(),
            advice: "use the dtype bf16",
        }
    }
}
