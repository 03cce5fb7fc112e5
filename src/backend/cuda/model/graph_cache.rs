//! Graph cache: CUDA graphs of decode steps, one per bucket of rows.

use std::cell::Cell;

use super::super::error::CudaError;
use super::super::{Device, Graph, Properties, Stream};
use super::CudaOptions;
use super::attention::AttentionPlan;
use super::memory::{Sizes, blocks_of_sequence};
use super::shapes::BUCKETS;
use super::step::{StepLayout, StepShape};
use crate::model::ModelSpec;

/// A bucket: a decode step with a fixed number of rows, one per sequence, all with logits.
pub(super) struct Bucket {
    pub(super) shape: StepShape,
    pub(super) layout: StepLayout,
    pub(super) graph: GraphState,
}

/// State of a bucket's graph.
pub(super) enum GraphState {
    /// No graph: disabled, or the driver could not capture or replay it.
    Never,
    /// Not run yet. Kernels are loaded by their first launch, which cannot be captured.
    Cold,
    /// Run once, without capture.
    Warm,
    /// Captured.
    Captured(Graph),
}

impl GraphState {
    /// Runs `step`, which must submit the same launches every time. If the driver cannot capture or replay it, the
    /// bucket stays without a graph; `rows` and `failures` are for the warning.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        rows: usize,
        failures: &CaptureFailures,
        mut step: impl FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if stream.trace().is_on() {
            // A replay has no events between its launches.
            return step();
        }
        let replayed = match self {
            GraphState::Never => return step(),
            GraphState::Cold => {
                step()?;
                *self = GraphState::Warm;
                return Ok(());
            }
            // A capture executes nothing, whether it succeeds or not.
            GraphState::Warm => stream.capture(&mut step).and_then(|graph| {
                graph.launch()?;
                *self = GraphState::Captured(graph);
                Ok(())
            }),
            GraphState::Captured(graph) => graph.launch(),
        };
        match replayed {
            Err(error) if !error.is_final() => {
                *self = GraphState::Never;
                // The step itself may be at fault; then it fails here with its own error.
                step()?;
                failures.report(rows, &error);
                Ok(())
            }
            done => done,
        }
    }
}

/// Whether a capture has failed before, so that the warning is logged once.
#[derive(Default)]
pub(super) struct CaptureFailures(Cell<bool>);

impl CaptureFailures {
    fn report(&self, rows: usize, error: &CudaError) {
        if self.0.replace(true) {
            return tracing::debug!("decode steps of {rows} rows have no CUDA graph either: {error}");
        }
        let rows = if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") };
        tracing::warn!(
            "decode steps of {rows} have no CUDA graph: {error}; they are launched kernel by kernel, which gives the same \
             tokens more slowly"
        );
    }
}

/// The buckets, in ascending order of rows.
pub(super) struct GraphCache {
    buckets: Vec<Bucket>,
    failures: CaptureFailures,
}

impl GraphCache {
    pub(super) fn new(spec: &ModelSpec, options: &CudaOptions, device: &Device) -> GraphCache {
        let groups = spec.windows().len();
        let bucket = |shape: StepShape| {
            let graph = if device.captures() { GraphState::Cold } else { GraphState::Never };
            Bucket { shape, layout: StepLayout::new(shape, groups), graph }
        };
        let buckets = bucket_shapes(spec, options, device.properties()).map(bucket).collect();
        GraphCache { buckets, failures: CaptureFailures::default() }
    }

    /// The smallest bucket that fits a decode step of this shape.
    pub(super) fn bucket_for(&mut self, exact: StepShape) -> Option<(&mut Bucket, &CaptureFailures)> {
        let bucket = self.buckets.iter_mut().find(|bucket| takes(bucket.shape, exact))?;
        Some((bucket, &self.failures))
    }
}

/// Shapes of the buckets, in ascending order of rows.
pub(super) fn bucket_shapes(
    spec: &ModelSpec,
    options: &CudaOptions,
    device: &Properties,
) -> impl Iterator<Item = StepShape> {
    let attention = AttentionPlan::new(spec, options, device);
    let most = options.max_sequences.min(options.max_rows).min(Sizes::logits_rows(options));
    BUCKETS.into_iter().filter(move |rows| *rows <= most).map(move |rows| shape(rows, spec, options, attention))
}

/// Returns `true` if a step of the shape `exact` fits a bucket.
pub(super) fn takes(bucket: StepShape, exact: StepShape) -> bool {
    exact.rows == exact.sequences
        && exact.rows <= bucket.rows
        && exact.blocks <= bucket.blocks
        && exact.tiles <= bucket.tiles
        && exact.split_tiles <= bucket.split_tiles
        && exact.split_rows <= bucket.split_rows
}

/// Shape of a bucket: `rows` sequences of one row, with as many blocks as each may see.
fn shape(rows: usize, spec: &ModelSpec, options: &CudaOptions, attention: AttentionPlan) -> StepShape {
    let (split_tiles, tiles, decodes) = match attention {
        AttentionPlan::Fast { .. } => (0, 0, true),
        AttentionPlan::BatchInvariant { max_split, .. } if rows <= max_split => (rows, 0, false),
        AttentionPlan::BatchInvariant { .. } => (0, rows, false),
    };
    StepShape {
        rows,
        sequences: rows,
        tiles,
        split_tiles,
        split_rows: split_tiles.min(1),
        blocks: rows * blocks_of_sequence(spec, options, 1),
        logits_rows: rows,
        decodes,
    }
}
