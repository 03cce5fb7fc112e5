//! Where a model's weights come from.

use std::time::Instant;

use super::super::kernels::Element;
use super::super::upload::UploadError;
use super::super::{Stream, Weights};
use crate::backend::{LoadProgress, LoadStage};
use crate::checkpoint::Checkpoint;
use crate::model::ModelSpec;

/// Where a model's weights come from.
#[derive(Debug, Clone, Copy)]
pub enum WeightSource<'a> {
    /// Files: uploaded, and converted where they are stored in another dtype.
    Checkpoint(&'a Checkpoint),
    /// Made on the device, for measuring: no file is needed.
    Random {
        /// Another seed, other weights.
        seed: u32,
    },
}

impl<'a> From<&'a Checkpoint> for WeightSource<'a> {
    fn from(checkpoint: &'a Checkpoint) -> WeightSource<'a> {
        WeightSource::Checkpoint(checkpoint)
    }
}

impl WeightSource<'_> {
    /// Brings them to the device. Returns when they are there; `progress` is called at the end, and on the way where
    /// they travel.
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
