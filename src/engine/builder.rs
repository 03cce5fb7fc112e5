//! From a model's name to a running engine.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use crate::backend::cpu::{CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
use crate::backend::cuda::model::CudaOptions;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{self, CudaError};
use crate::backend::{Arithmetic, Backend, BackendError, LoadProgress, WeightDtype};
use crate::checkpoint::{Checkpoint, CheckpointError, Dtype, ModelSource};
use crate::kv::{CacheGeometry, PrefixCache};
use crate::model::ModelSpec;
use crate::text::{TextError, TokenId, Tokenizer};

use super::draft::Speculation;
use super::{Engine, Limits};

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// A GPU where this build has a backend for it and there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// Why an engine could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model's files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer or the chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The backend could not load the model.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The device asked for is not to be had: no driver, no GPU, no kernels, or one too old.
    #[cfg(feature = "cuda")]
    #[error("device cuda: {0}")]
    Cuda(#[from] CudaError),
    /// The crate was built without its feature `cuda`.
    #[error("device cuda: rigel was built without the feature cuda; build it with default features, or use cpu")]
    NoCudaFeature,
    /// A dtype was asked for, and the model runs on the CPU.
    #[error("dtype {dtype}: the CPU uses weights as they are stored; leave the dtype at auto, or use the device cuda")]
    DtypeOnCpu {
        /// What was asked for.
        dtype: Dtype,
    },
    /// Text was asked of a model without a tokenizer.
    #[error("{file} does not exist: text needs the tokenizer; copy it from the model's hub page, or give token ids")]
    NoTokenizer {
        /// Where it would be.
        file: String,
    },
    /// The operating system gave no thread.
    #[error("no thread for the engine: {source}")]
    Thread {
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Describes an engine; [`EngineBuilder::build`] loads the model.
#[derive(Debug, Default)]
pub struct EngineBuilder {
    source: Option<Source>,
    device: Device,
    dtype: WeightDtype,
    threads: Option<NonZeroUsize>,
    page_size: Option<NonZeroU32>,
    context: Option<NonZeroU32>,
    memory: Option<NonZeroU64>,
    arithmetic: Arithmetic,
    options: EngineOptions,
    on_load: OnLoad,
}

/// How an engine goes about its requests, whatever its backend is.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// The most sequences computed in one step; as many as the backend takes by default.
    pub max_sequences: Option<NonZeroUsize>,
    /// The most prompt rows computed in one step; as many as the backend takes by default.
    pub prefill_chunk: Option<NonZeroU32>,
    /// Are keys and values of ended requests kept for requests that begin alike?
    pub prefix_cache: PrefixCache,
    /// Does the engine draft tokens? [`Speculation::Auto`] is as [`Speculation::Off`] where no builder decides.
    pub speculation: Speculation,
    /// For tests: fills pages of the cache that were freed with NaN ([`Backend::poison`]), so that whoever still reads
    /// one is found.
    pub poison_freed_pages: bool,
}

/// Whom to tell how far the weights have come.
#[derive(Default)]
struct OnLoad(Option<Box<dyn FnMut(LoadProgress) + Send>>);

impl OnLoad {
    /// Tells them, if there is anybody.
    #[cfg(feature = "cuda")]
    fn report(&mut self, progress: LoadProgress) {
        if let Some(report) = &mut self.0 {
            report(progress);
        }
    }
}

impl fmt::Debug for OnLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "OnLoad(a function)" } else { "OnLoad(nobody)" })
    }
}

#[derive(Debug)]
enum Source {
    Name(String),
    Resolved(ModelSource),
}

/// Positions a page of the CPU's cache holds: small enough that little of a page outlives the window, large enough
/// that a page's keys are one long stream.
const CPU_PAGE_SIZE: NonZeroU32 = NonZeroU32::new(64).unwrap();
/// Prompt rows a step of the CPU: enough that reading the weights is small beside the arithmetic on them.
const CPU_PREFILL_CHUNK: NonZeroU32 = NonZeroU32::new(256).unwrap();
/// Sequences of a step of the CPU: enough that reading the weights is shared by many tokens.
const CPU_SEQUENCES: NonZeroUsize = NonZeroUsize::new(32).unwrap();
/// Positions a page of a GPU's cache holds: one tile of the attention kernels.
#[cfg(feature = "cuda")]
const CUDA_PAGE_SIZE: NonZeroU32 = NonZeroU32::new(64).unwrap();
/// Prompt rows a step of a GPU: enough for its products to be bound by arithmetic, with room to spare.
#[cfg(feature = "cuda")]
const CUDA_PREFILL_CHUNK: NonZeroU32 = NonZeroU32::new(2048).unwrap();
/// Sequences of a step of a GPU: where its products begin to be bound by arithmetic.
#[cfg(feature = "cuda")]
const CUDA_SEQUENCES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

impl EngineBuilder {
    /// A directory, a hub id found in the local Hugging Face cache, or `nano`, the bundled model; see
    /// [`ModelSource::resolve`]. The default is the bundled model.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.source = Some(Source::Name(model.into()));
        self
    }

    /// Files found already.
    pub fn source(mut self, source: ModelSource) -> Self {
        self.source = Some(Source::Resolved(source));
        self
    }

    /// Where the model runs.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// The dtype of the weights on a GPU. On the CPU, which uses them as they are stored, anything but
    /// [`WeightDtype::Auto`] is an error.
    pub fn dtype(mut self, dtype: WeightDtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Calls `report` a few times a second while weights are loaded into the memory of a GPU, and once when all are
    /// there, on the thread that calls [`EngineBuilder::build`]. Never on the CPU: nothing is loaded there, pages come
    /// as they are used.
    pub fn on_load(mut self, report: impl FnMut(LoadProgress) + Send + 'static) -> Self {
        self.on_load = OnLoad(Some(Box::new(report)));
        self
    }

    /// Threads of the CPU backend; all cores by default.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Positions a page of the cache holds.
    pub fn page_size(mut self, page_size: NonZeroU32) -> Self {
        self.page_size = Some(page_size);
        self
    }

    /// The most prompt rows computed in one step.
    pub fn prefill_chunk(mut self, rows: NonZeroU32) -> Self {
        self.options.prefill_chunk = Some(rows);
        self
    }

    /// Positions to make room for, prompt and completion together; the model's own number where that is lower, and by
    /// default. Fewer make the cache smaller.
    pub fn context(mut self, positions: NonZeroU32) -> Self {
        self.context = Some(positions);
        self
    }

    /// Bytes of memory that the engine may take of its device: weights, cache and workspace on a GPU; cache and
    /// workspace on the CPU, where weights stay in their file. What is left after weights and workspace is the cache, up
    /// to what [`EngineBuilder::max_sequences`] sequences of the whole context can use. The default is 90 % of what is
    /// free on a GPU, and half of the free memory on the CPU.
    pub fn memory(mut self, bytes: NonZeroU64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// The most sequences computed in one step; 32 on the CPU and 256 on a GPU by default.
    pub fn max_sequences(mut self, sequences: NonZeroUsize) -> Self {
        self.options.max_sequences = Some(sequences);
        self
    }

    /// May a request's log-probabilities depend in their last bits on its company, on a GPU? On the CPU they never do.
    pub fn arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.arithmetic = arithmetic;
        self
    }

    /// Are keys and values of ended requests kept for requests that begin alike? They are, by default.
    pub fn prefix_cache(mut self, prefix_cache: PrefixCache) -> Self {
        self.options.prefix_cache = prefix_cache;
        self
    }

    /// Does the engine draft tokens?
    pub fn speculation(mut self, speculation: Speculation) -> Self {
        self.options.speculation = speculation;
        self
    }

    /// For tests: fills pages that were freed with NaN.
    pub fn poison_freed_pages(mut self) -> Self {
        self.options.poison_freed_pages = true;
        self
    }

    /// Opens the checkpoint, checks it, brings the device up and starts the engine's thread.
    pub fn build(mut self) -> Result<Engine, EngineError> {
        // What is wrong with the device is said before any file is read.
        let placement = self.placement()?;
        let source = match self.source.take() {
            None => ModelSource::nano(),
            Some(Source::Name(name)) => ModelSource::resolve(&name)?,
            Some(Source::Resolved(source)) => source,
        };
        let checkpoint = Checkpoint::open(&source)?;
        let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
        spec.untie_stored_head(&checkpoint);
        if let Some(context) = self.context {
            spec.max_positions = spec.max_positions.min(context.get() as usize);
        }
        let tokenizer = Tokenizer::from_source(&source)?;
        let backend = match placement {
            Placement::Cpu => self.cpu_backend(&checkpoint, spec)?,
            #[cfg(feature = "cuda")]
            Placement::Cuda(device) => self.cuda_backend(&device, &checkpoint, spec)?,
        };
        Engine::with_backend(backend, tokenizer, source.describe("tokenizer.json"), self.options)
    }

    /// Where the model is to run: the device asked for, or for [`Device::Auto`] a GPU if there is one.
    fn placement(&self) -> Result<Placement, EngineError> {
        match self.device {
            Device::Cpu => Ok(Placement::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda => open_gpu().map(Placement::Cuda).map_err(EngineError::Cuda),
            #[cfg(feature = "cuda")]
            Device::Auto => Ok(open_gpu().map_or_else(|error| cpu_instead(&error), Placement::Cuda)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda => Err(EngineError::NoCudaFeature),
            #[cfg(not(feature = "cuda"))]
            Device::Auto => Ok(Placement::Cpu),
        }
    }

    fn cpu_backend(&mut self, checkpoint: &Checkpoint, spec: ModelSpec) -> Result<Box<dyn Backend>, EngineError> {
        no_dtype_on_cpu(self.dtype)?;
        let step = self.step(&spec, CPU_PAGE_SIZE, CPU_PREFILL_CHUNK, CPU_SEQUENCES);
        let memory = self.memory.map(NonZeroU64::get);
        let options = CpuOptions { threads: self.threads, page_size: step.page_size, pages: 0, max_rows: step.rows };
        let pages = CpuBackend::pages_within(&spec, &options, memory, step.least_pages, step.most_pages)?;
        if self.options.speculation == Speculation::Auto {
            self.options.speculation = Speculation::PromptLookup;
        }
        Ok(Box::new(CpuBackend::new(checkpoint, spec, CpuOptions { pages, ..options })?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_backend(
        &mut self,
        device: &cuda::Device,
        checkpoint: &Checkpoint,
        spec: ModelSpec,
    ) -> Result<Box<dyn Backend>, EngineError> {
        let dtype = self.dtype.resolve_and_log(checkpoint, &spec);
        let step = self.step(&spec, CUDA_PAGE_SIZE, CUDA_PREFILL_CHUNK, CUDA_SEQUENCES);
        let options = CudaOptions {
            page_size: step.page_size,
            pages: 0,
            max_rows: step.rows,
            max_sequences: step.sequences,
            arithmetic: self.arithmetic,
        };
        let memory = self.memory.map(NonZeroU64::get);
        let pages = cuda::model::pages_within(device, &spec, &options, memory, step.least_pages)?;
        let options = CudaOptions { pages: pages.min(step.most_pages), ..options };
        if self.options.speculation == Speculation::Auto && self.arithmetic == Arithmetic::BatchInvariant {
            self.options.speculation = Speculation::PromptLookup;
        }
        let report = &mut |progress| self.on_load.report(progress);
        Ok(cuda::model::load(device, checkpoint, spec, dtype, &options, report)?)
    }

    /// What a step holds, from what was asked for and the device's defaults.
    fn step(&self, spec: &ModelSpec, page_size: NonZeroU32, chunk: NonZeroU32, sequences: NonZeroUsize) -> StepSize {
        let page_size = self.page_size.unwrap_or(page_size);
        let sequences = self.options.max_sequences.unwrap_or(sequences).get();
        // More rows than all positions of all sequences can never come together.
        let max_positions: u32 = spec.max_positions.try_into().unwrap_or(u32::MAX);
        let all_rows = spec.max_positions.saturating_mul(sequences);
        let rows = (self.options.prefill_chunk.unwrap_or(chunk).get() as usize).min(all_rows).max(sequences);
        let pages = |rows: u32| CacheGeometry::pages_for_sequence(page_size.get(), max_positions, spec.window, rows);
        let whole = pages(rows.try_into().unwrap_or(u32::MAX));
        StepSize {
            page_size,
            rows,
            sequences,
            least_pages: pages(1),
            most_pages: u32::try_from(sequences).unwrap_or(u32::MAX).saturating_mul(whole),
        }
    }
}

/// Sizes of a step and of the cache.
struct StepSize {
    page_size: NonZeroU32,
    rows: usize,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU takes as many as it has rows"))]
    sequences: usize,
    /// What one sequence of the whole context needs.
    least_pages: u32,
    /// What as many as there can be in a step need.
    most_pages: u32,
}

/// Where a model runs.
enum Placement {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Device),
}

/// The first GPU, where this build has kernels for it.
#[cfg(feature = "cuda")]
fn open_gpu() -> Result<cuda::Device, CudaError> {
    if cuda::images().is_empty() {
        return Err(CudaError::BuiltWithoutKernels);
    }
    cuda::Device::open(0)
}

/// The CPU, since there is no GPU; where there is one that cannot be used, a warning says why.
#[cfg(feature = "cuda")]
fn cpu_instead(error: &CudaError) -> Placement {
    match error {
        CudaError::NoDriver | CudaError::NoDevice | CudaError::BuiltWithoutKernels => tracing::debug!("{error}"),
        _ => tracing::warn!("using the CPU: {error}"),
    }
    Placement::Cpu
}

/// That no dtype is asked of the CPU.
fn no_dtype_on_cpu(dtype: WeightDtype) -> Result<(), EngineError> {
    match dtype {
        WeightDtype::Auto => Ok(()),
        WeightDtype::Bf16 => Err(EngineError::DtypeOnCpu { dtype: Dtype::Bf16 }),
        WeightDtype::F16 => Err(EngineError::DtypeOnCpu { dtype: Dtype::F16 }),
    }
}

impl Engine {
    /// An engine over any backend. `tokenizer_origin` is where a missing tokenizer would be, for messages.
    pub fn with_backend(
        backend: Box<dyn Backend>,
        tokenizer: Option<Tokenizer>,
        tokenizer_origin: String,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let (spec, cache) = (backend.spec().clone(), backend.cache());
        let mut eos_token_ids: Vec<TokenId> = spec.eos_token_ids.iter().copied().map(TokenId).collect();
        if eos_token_ids.is_empty() {
            // Old generation_config.json files name an id above the vocabulary; the tokenizer knows better.
            eos_token_ids.extend(tokenizer.as_ref().and_then(Tokenizer::eos));
        }
        let eos_token_ids = eos_token_ids.into();
        Engine::start(Limits { spec, cache, tokenizer, tokenizer_origin, eos_token_ids }, backend, &options)
    }
}
