//! A whole model on one GPU: [`CudaBackend`].
//!
//! | file | what it holds |
//! |---|---|
//! | `mod`
//! the backend |
//! | `memory`
//! the memory plan |
//! | `shapes`
//! launch shapes for a network and a step |
//! | `step`, `inputs`
//! a batch as kernel inputs, and their upload |
//! | `attention`
//! which attention kernel takes which sequences |
//! | [`cost_model`]
//! bytes and FLOPs of each launch |
//! | `program` | a step as a list of launches |
//! | `forward`
//! runs the program: token ids to logits |
//! | `workspace`
//! activations and logits |
//! | `graph_cache`
//! CUDA graphs of decode steps, one per bucket of rows |
//! | `source`
//! sources of weights |
//! | `sampler`, `logit_edits`
//! sampling and log-probabilities on the device |
//!
//! A decode step, with one row per sequence, is padded to the next bucket. A bucket's second step is captured as a CUDA
//! graph and replayed from then on. The graph allocates nothing, copies nothing from the host and waits for nothing;
//! one copy of the step's inputs from pinned memory precedes it. Its token ids may still be on the device
//! ([`Token::Sampled`]), so a step can be submitted before the host knows the tokens of the previous one.

mod attention;
mod cache;
pub mod cost_model;
mod forward;
mod graph_cache;
mod inputs;
mod logit_edits;
mod memory;
mod program;
mod sampler;
mod shapes;
mod source;
mod step;
mod workspace;

use std::num::NonZeroU32;

pub use memory::{DRIVER_BYTES, MemoryLine, MemoryPlan, max_pages, pages_within};
pub(crate) use program::{LinearOp, Op, row_launches};
pub use source::WeightSource;

use super::error::CudaError;
use super::kernels::Element;
use super::kernels::norm::MAX_WIDTH;
use super::kernels::paged::{MAX_GROUP, MIN_PAGE};
use super::layout::{Layout, padded};
use super::weights::{RopeTable, Weights};
use super::{Device, Properties, Slice, Stream};
use crate::backend::slot_mapping::SlotMapping;
use crate::backend::support::check_network;
use crate::backend::{
    Backend, BackendError, BackendHooks, Batch, Determinism, DeviceInfo, LoadProgress, Token, check_import, check_page,
};
use crate::checkpoint::Dtype;
use crate::host::Size;
use crate::kv::{CacheGeometry, KvFormat, PageId};
use crate::model::{Activation, Layer, ModelSpec};
use crate::sampling::{self, NotFinite, SampleError, SampleRow, Sampled, TokenLogprobs};
use crate::text::TokenId;
use attention::AttentionPlan;
use cache::Cache;
use forward::{ForwardPass, Kernels};
use graph_cache::{Bucket, GraphCache};
use inputs::Inputs;
use memory::Sizes;
use program::{Launch, Program};
use sampler::{Logits, Sampler};
use step::{Step, StepLayout, StepShape};
use workspace::Workspace;

/// Options of a [`CudaBackend`].
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Positions per page: a power of two, at least 16.
    pub page_size: NonZeroU32,
    /// Pages of the cache group with the widest window. The other groups get pages for as many sequences.
    pub pages: u32,
    /// Most rows in a batch.
    pub max_rows: usize,
    /// Most sequences in a batch.
    pub max_sequences: usize,
    /// Determinism of the kernels.
    pub determinism: Determinism,
}

/// Most sequences in a step: the limit of a grid axis with one block per sequence.
pub const MAX_SEQUENCES: usize = 65_535;

/// The first feature of the network without GPU kernels. `None` if all are supported.
pub fn lack(spec: &ModelSpec) -> Option<&'static str> {
    let erf = |layer: &Layer| layer.mlp.activation() == Some(Activation::GeluErf);
    spec.layers.iter().any(erf).then_some("hidden_act gelu (with erf) has no kernels for a GPU yet")
}

/// Loads the weights of `source` onto `device` in `dtype`, F16 or BF16. `progress` is called meanwhile.
///
/// # Errors
/// Unsupported network or options; a missing or misshapen tensor; too little free memory, found before anything is
/// loaded; device errors.
pub fn load<'a>(
    device: &Device,
    source: impl Into<WeightSource<'a>>,
    spec: ModelSpec,
    dtype: Dtype,
    options: &CudaOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Backend>, BackendError> {
    if let Some(lack) = lack(&spec) {
        return Err(BackendError::Unavailable(format!("{lack}; use the device cpu")));
    }
    Ok(match dtype {
        Dtype::F16 => Box::new(CudaBackend::<half::f16>::new(device, source, spec, options, progress)?),
        Dtype::Bf16 | Dtype::F32 => Box::new(CudaBackend::<half::bf16>::new(device, source, spec, options, progress)?),
    })
}

/// One model on one GPU. Weights, activations and cache are of `T`; sums, softmax, norm statistics and logits are f32.
pub struct CudaBackend<T> {
    stream: Stream,
    resident: Resident<T>,
    graphs: GraphCache,
    sampler: Sampler,
    slots: SlotMapping,
    options: CudaOptions,
    attention: AttentionPlan,
    plan: MemoryPlan,
    /// Logits rows of the last forward pass.
    logits_rows: usize,
    /// The row of logits last copied to the host.
    host_logits: Vec<f32>,
}

/// Device state of a forward pass.
struct Resident<T> {
    spec: ModelSpec,
    kernels: Kernels<T>,
    weights: Weights<T>,
    rope: RopeTable,
    cache: Cache,
    workspace: Workspace<T>,
    inputs: Inputs,
}

impl<T: Element> Resident<T> {
    fn logits(&self) -> Logits<'_> {
        let Sizes { logits_rows: rows, vocab: pitch, .. } = self.workspace.sizes;
        Logits { values: self.workspace.logits.view(), rows, vocabulary: self.spec.vocab_size, pitch }
    }

    fn pass<'a>(&'a mut self, sampled: Slice<'a, u32>, shape: StepShape, layout: &'a StepLayout) -> ForwardPass<'a, T> {
        let Resident { kernels, weights, rope, cache, workspace, inputs, .. } = self;
        ForwardPass { kernels, weights, rope, cache, workspace, inputs: inputs.words(), sampled, shape, layout }
    }

    /// The launches of a step.
    fn launches(&self, options: &CudaOptions, device: &Device, shape: StepShape) -> Vec<Launch> {
        Program::new(&self.spec, self.weights.layout(), options, device.properties()).launches(shape)
    }
}

impl<T: Element> CudaBackend<T> {
    /// See [`load`].
    ///
    /// # Errors
    /// As for [`load`].
    pub fn new<'a>(
        device: &Device,
        source: impl Into<WeightSource<'a>>,
        spec: ModelSpec,
        options: &CudaOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<CudaBackend<T>, BackendError> {
        check_supported(&spec, options)?;
        check_network(&spec)?;
        device.properties().algorithms.check_network(options.determinism, padded(spec.hidden_size))?;
        let sizes = Sizes::new(&spec, options, device.properties(), KvFormat::Dense(T::DTYPE));
        let plan = MemoryPlan::new(&spec, &Layout::new(&spec, T::DTYPE), &sizes);
        let (free, _) = device.memory()?;
        plan.check(free)?;
        tracing::info!("{}: {plan}", device.properties().name);

        let stream = device.stream()?;
        Ok(CudaBackend {
            // Kernel errors come before the upload.
            resident: Resident {
                kernels: Kernels::load(device, &spec, options.determinism)?,
                cache: Cache::new(&stream, &spec, &sizes)?,
                inputs: Inputs::new(device, &stream, sizes.step_words)?,
                rope: RopeTable::load(&stream, &spec, spec.max_positions)?,
                weights: source.into().load(&stream, &spec, progress)?,
                workspace: Workspace::new(&stream, &sizes)?,
                spec: spec.clone(),
            },
            graphs: GraphCache::new(&spec, options, device),
            sampler: Sampler::new(device, &stream, &spec, sizes.logits_rows)?,
            slots: SlotMapping::new(options.max_rows, &sizes.cache),
            options: options.clone(),
            attention: AttentionPlan::new(&spec, options, device.properties()),
            plan,
            logits_rows: 0,
            host_logits: Vec::new(),
            stream,
        })
    }

    /// The stream of all work, for measurements.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The memory it has taken.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Checks that no sampling is in flight, whose results would be lost.
    fn check_finished(&self) -> Result<(), BackendError> {
        if self.sampler.is_started() {
            return Err(BackendError::InvalidBatch("draws were started and not finished".to_owned()));
        }
        Ok(())
    }
}

impl<T: Element> Backend for CudaBackend<T> {
    fn spec(&self) -> &ModelSpec {
        &self.resident.spec
    }

    fn device(&self) -> DeviceInfo {
        let device = self.stream.device();
        let Properties { name, compute_capability, memory_bytes, .. } = device.properties();
        DeviceInfo::Cuda {
            ordinal: device.ordinal(),
            name: name.clone(),
            compute_capability: (compute_capability.major, compute_capability.minor),
            memory_bytes: *memory_bytes,
            dtype: T::DTYPE,
        }
    }

    fn is_batch_invariant(&self) -> bool {
        self.options.determinism == Determinism::BatchInvariant
    }

    fn cache(&self) -> &CacheGeometry {
        self.resident.cache.geometry()
    }

    fn max_rows(&self) -> usize {
        self.resident.workspace.sizes.rows
    }

    fn max_logits_rows(&self) -> usize {
        self.resident.workspace.sizes.logits_rows
    }

    fn max_sequences(&self) -> usize {
        self.options.max_sequences
    }

    fn is_asynchronous(&self) -> bool {
        true
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.logits_rows = 0;
        self.slots.make(batch, &self.resident.spec, self.resident.cache.geometry())?;
        if batch.sequences.len() > self.options.max_sequences {
            let found = batch.sequences.len();
            let what = format!("{found} sequences, at most {} are allowed", self.options.max_sequences);
            return Err(BackendError::InvalidBatch(what));
        }
        let max_logits = self.resident.workspace.sizes.logits_rows;
        if batch.logits_rows.len() > max_logits {
            let what = format!("logits of {} rows, at most {max_logits} are allowed", batch.logits_rows.len());
            return Err(BackendError::InvalidBatch(what));
        }
        let beyond = |token: &Token| match token {
            Token::Sampled(place) if *place as usize >= max_logits => Some(*place),
            Token::Known(_) | Token::Sampled(_) => None,
        };
        if let Some(place) = batch.tokens.iter().find_map(beyond) {
            return Err(BackendError::InvalidBatch(format!("the token sampled for row {place} of {max_logits}")));
        }
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let CudaBackend { stream, resident, graphs, sampler, slots, options, .. } = self;
        let step = Step::new(batch, &resident.spec, resident.cache.geometry(), self.attention);
        let exact = step.shape(batch);
        let send = |inputs: &mut Inputs, layout: &StepLayout| {
            inputs.send(stream, layout.words(), |words| step.write(words, layout, batch, slots))
        };
        match graphs.bucket_for(exact) {
            Some((Bucket { shape, layout, graph }, failures)) => {
                send(&mut resident.inputs, layout)?;
                let run = || {
                    let launches = resident.launches(options, stream.device(), *shape);
                    resident.pass(sampler.sampled_tokens(), *shape, layout).run(stream, &launches)
                };
                graph.run(stream, shape.rows, failures, run)?;
            }
            None => {
                let layout = StepLayout::new(exact, resident.cache.geometry().groups.len());
                send(&mut resident.inputs, &layout)?;
                let launches = resident.launches(options, stream.device(), exact);
                resident.pass(sampler.sampled_tokens(), exact, &layout).run(stream, &launches)?;
            }
        }
        self.logits_rows = batch.logits_rows.len();
        Ok(())
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        if row >= self.logits_rows {
            return Err(BackendError::InvalidBatch(format!("logits row {row} of {}", self.logits_rows)));
        }
        let start = row * self.resident.workspace.sizes.vocab;
        let logits = self.resident.workspace.logits.slice(start..start + self.resident.spec.vocab_size);
        // In range: there are that many logits rows.
        let logits = logits.ok_or_else(|| BackendError::InvalidBatch(format!("logits row {row}")))?;
        self.host_logits = self.stream.download(logits)?;
        Ok(&self.host_logits)
    }

    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError> {
        self.check_finished()?;
        if let Some(row) = rows.iter().find(|row| row.logits_row >= self.logits_rows) {
            let what = format!("sampling from logits row {} of {}", row.logits_row, self.logits_rows);
            return Err(BackendError::InvalidBatch(what));
        }
        let on_host = self.sampler.start(&self.stream, self.resident.logits(), rows)?;
        let mut sampled = Vec::with_capacity(on_host.len());
        for row in on_host.iter().map(|index| &rows[*index]) {
            sampled.push(sampling::sample(self.logits(row.logits_row)?, row));
        }
        Ok(self.sampler.put(&self.stream, &on_host, sampled)?)
    }

    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        // A row that the host did not sample is one whose logits could not be read; that error was returned then.
        self.sampler.finish()?.into_iter().collect::<Option<Vec<_>>>().ok_or(BackendError::MissingSample)
    }

    fn logprobs(
        &mut self,
        targets: &[Option<TokenId>],
        top: usize,
    ) -> Result<Vec<Result<TokenLogprobs, NotFinite>>, BackendError> {
        if targets.len() > self.logits_rows {
            let what = format!("log-probabilities of {} rows of {}", targets.len(), self.logits_rows);
            return Err(BackendError::InvalidBatch(what));
        }
        self.check_finished()?;
        let top = top.min(self.resident.spec.vocab_size);
        if self.sampler.scores(targets.len(), top) {
            let logits = self.resident.logits();
            return Ok(self.sampler.logprobs(&self.stream, logits, targets, top)?);
        }
        let one = |(row, &target)| Ok(TokenLogprobs::from_logits(self.logits(row)?, target, top));
        targets.iter().enumerate().map(one).collect()
    }

    fn export_page(&mut self, group: usize, page: PageId) -> Result<Vec<u8>, BackendError> {
        check_page(group, page, self.resident.cache.geometry())?;
        Ok(self.resident.cache.export(&self.stream, group, page)?)
    }

    fn import_page(&mut self, group: usize, page: PageId, bytes: &[u8]) -> Result<(), BackendError> {
        check_import(group, page, bytes, self.resident.cache.geometry())?;
        Ok(self.resident.cache.import(&self.stream, group, page, bytes)?)
    }

    fn hooks(&mut self) -> Option<&mut dyn BackendHooks> {
        Some(self)
    }
}

impl<T: Element> BackendHooks for CudaBackend<T> {
    fn poison(&mut self, group: usize, pages: &[PageId]) -> Result<(), BackendError> {
        for page in pages {
            check_page(group, *page, self.resident.cache.geometry())?;
            self.resident.cache.poison(&self.stream, group, *page)?;
        }
        Ok(())
    }
}

/// Checks the network and the page size against the kernels' limits.
fn check_supported(spec: &ModelSpec, options: &CudaOptions) -> Result<(), BackendError> {
    let page_size = options.page_size.get() as usize;
    let hidden = padded(spec.hidden_size);
    let numbers = [
        ("head_dim", spec.head_dim, matches!(spec.head_dim, 64 | 128), "64 or 128".to_owned()),
        (
            "the number of query heads of a key/value head",
            spec.group_size(),
            spec.group_size() <= MAX_GROUP,
            format!("at most {MAX_GROUP}"),
        ),
        ("hidden_size", spec.hidden_size, hidden <= MAX_WIDTH, format!("at most {MAX_WIDTH}")),
        (
            "the page size",
            page_size,
            page_size >= MIN_PAGE && page_size.is_power_of_two(),
            format!("a power of two of at least {MIN_PAGE}"),
        ),
        (
            "the number of sequences of a step",
            options.max_sequences,
            (1..=MAX_SEQUENCES).contains(&options.max_sequences),
            format!("1 to {MAX_SEQUENCES}"),
        ),
        ("the number of rows of a step", options.max_rows, options.max_rows > 0, "at least 1".to_owned()),
    ];
    match numbers.into_iter().find(|(_, _, supported, _)| !supported) {
        None => Ok(()),
        Some((what, found, _, expected)) => Err(BackendError::Unavailable(format!(
            "device cuda: {what} is {found}; the kernels take {expected}; use the device cpu"
        ))),
    }
}

impl From<CudaError> for BackendError {
    fn from(error: CudaError) -> BackendError {
        match error {
            CudaError::OutOfMemory { needed, free, total } => BackendError::OutOfMemory {
                needed,
                what: "a buffer on the GPU".to_owned(),
                advice: format!("{} of its {} are free: is another program using it?", Size(free), Size(total)),
            },
            other => BackendError::Device(Box::new(other)),
        }
    }
}
