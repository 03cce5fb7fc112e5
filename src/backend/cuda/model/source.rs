//! Sources of weights.

use std::time::Instant;

use super::super::kernels::Element;
use super::super::upload::UploadError;
use super::super::{Stream, Weights};
use crate::backend::{LoadProgress, LoadStage};
use crate::checkpoint::Checkpoint;
use crate::model::ModelSpec;

/// Source of a model's weights.
#[derive(Debug, Clone, Copy)]
pub enum WeightSource<'a> {
    /// Files: uploaded, and converted if stored in another dtype.
    Checkpoint(&'a Checkpoint),
    /// Random weights generated on the device, for measurements.
    Random {
        /// Seed.
        seed: u32,
    },
}

impl<'a> From<&'a Checkpoint> for WeightSource<'a> {
    fn from(checkpoint: &'a Checkpoint) -> WeightSource<'a> {
        WeightSource::Checkpoint(checkpoint)
    }
}

impl WeightSource<'_> {
    /// Loads them onto the device. `progress` is called at the end, and during an upload.
    pub(super) fn load<T: Element>(
        self,
        stream: &Stream,
        spec: &ModelSpec,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Weights<T>, UploadError> {
        match self {
            WeightSource::Checkpoint(checkpoint) => Weights::load(stream, checkpoint, spec, progress),
            WeightSource::Random { seed } => {
                let begin = Instant::now();
                let weights = Weights::random(stream, spec, seed)?;
                let bytes = weights.layout().bytes();
                let (stage, elapsed) = (LoadStage::Upload, begin.elapsed());
                progress(LoadProgress { stage, done_bytes: bytes, total_bytes: bytes, elapsed });
                Ok(weights)
            }
        }
    }
}
