//! Decode steps recorded as graphs, one for each bucket of rows.

use super::super::error::CudaError;
use super::super::{Device, Graph, Properties, Stream};
use super::attention::AttentionPlan;
use super::memory::Sizes;
use super::step::{StepLayout, StepShape};
use super::{CudaOptions, split_len_for};
use crate::kv::CacheGeometry;
use crate::model::ModelSpec;

/// Rows of a bucket. Up to 16 rows share one kind of product, whose cost is that of the weights; beyond, the distance
/// bounds what is computed for padding.
const BUCKETS: [usize; 17] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256];

/// The largest number of rows of a bucket that is no larger than `rows`; 1 for none.
pub(super) fn largest_bucket(rows: usize) -> usize {
    BUCKETS.into_iter().rev().find(|bucket| *bucket <= rows).unwrap_or(1)
}

/// A decode step of a fixed number of rows, one for each sequence, all with logits.
pub(super) struct Bucket {
    pub(super) shape: StepShape,
    pub(super) layout: StepLayout,
    /// Positions of a split of decode attention.
    pub(super) split_len: usize,
    pub(super) recording: Recording,
}

/// How far a bucket's step is known.
pub(super) enum Recording {
    /// Recordings are of no use: launches are waited for one by one, to find the one that fails.
    Never,
    /// It has not run yet. Kernels are loaded when they first run, which cannot be recorded.
    New,
    /// It has run.
    Known,
    /// It is recorded.
    Recorded(Graph),
}

impl Recording {
    /// Runs `step`, which gives the same launches to the stream each time.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        mut step: impl FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if stream.trace().is_on() {
            // Launches of a replay have no events between them.
            return step();
        }
        match self {
            Recording::Never => step(),
            Recording::New => {
                step()?;
                *self = Recording::Known;
                Ok(())
            }
            Recording::Known => {
                let graph = stream.capture(step)?;
                graph.launch()?;
                *self = Recording::Recorded(graph);
                Ok(())
            }
            Recording::Recorded(graph) => graph.launch(),
        }
    }
}

/// The buckets, in ascending order of rows.
pub(super) struct Recordings {
    buckets: Vec<Bucket>,
}

impl Recordings {
    pub(super) fn new(spec: &ModelSpec, options: &CudaOptions, device: &Device) -> Recordings {
        let bucket = |shape: StepShape| {
            let recording = if device.is_synchronous() { Recording::Never } else { Recording::New };
            let split_len = split_len_for(shape.sequences, spec, device.properties());
            Bucket { shape, layout: StepLayout::new(shape), split_len, recording }
        };
        Recordings { buckets: bucket_shapes(spec, options, device.properties()).map(bucket).collect() }
    }

    /// The smallest bucket that a step of this shape fits into, where each of its sequences has one row.
    pub(super) fn bucket_for(&mut self, exact: StepShape) -> Option<&mut Bucket> {
        self.buckets.iter_mut().find(|bucket| takes(bucket.shape, exact))
    }
}

/// The shapes of the buckets, in ascending order of rows.
pub(super) fn bucket_shapes(
    spec: &ModelSpec,
    options: &CudaOptions,
    device: &Properties,
) -> impl Iterator<Item = StepShape> {
    let attention = AttentionPlan::new(spec, options, device);
    let most = options.max_sequences.min(options.max_rows).min(Sizes::logits_rows(options));
    BUCKETS.into_iter().filter(move |rows| *rows <= most).map(move |rows| shape(rows, spec, options, attention))
}

/// Whether a step of the shape `exact` fits into a bucket.
pub(super) fn takes(bucket: StepShape, exact: StepShape) -> bool {
    exact.rows == exact.sequences
        && exact.rows <= bucket.rows
        && exact.blocks <= bucket.blocks
        && exact.tiles <= bucket.tiles
        && exact.split_tiles <= bucket.split_tiles
        && exact.split_rows <= bucket.split_rows
}

/// A bucket's step: `rows` sequences of one row, each with as many blocks as it may see.
fn shape(rows: usize, spec: &ModelSpec, options: &CudaOptions, attention: AttentionPlan) -> StepShape {
    let positions = u32::try_from(spec.max_positions).unwrap_or(u32::MAX);
    let blocks = CacheGeometry::pages_for_sequence(options.page_size.get(), positions, spec.window, 1);
    let (split_tiles, tiles, decodes) = match attention {
        AttentionPlan::Fastest { .. } => (0, 0, true),
        AttentionPlan::Ordered { most_split, .. } if rows <= most_split => (rows, 0, false),
        AttentionPlan::Ordered { .. } => (0, rows, false),
    };
    StepShape {
        rows,
        sequences: rows,
        tiles,
        split_tiles,
        split_rows: split_tiles.min(1),
        blocks: rows * blocks as usize,
        logits_rows: rows,
        decodes,
    }
}
