//! From a model's name to a running engine.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};

use crate::backend::cpu::{CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{self, CudaError};
use crate::backend::{Backend, BackendError, LoadProgress, WeightDtype};
use crate::checkpoint::{Checkpoint, CheckpointError, Dtype, ModelSource};
use crate::kv::CacheGeometry;
use crate::model::ModelSpec;
use crate::text::{TextError, TokenId, Tokenizer};

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
    /// The device asked for is there, and this version of Rigel cannot run a model on it.
    #[error("device cuda: this version of rigel runs models on the CPU only; use the device cpu or auto")]
    NoCudaBackend,
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
    prefill_chunk: Option<NonZeroU32>,
    on_load: OnLoad,
}

/// Whom to tell how far the weights have come.
#[derive(Default)]
struct OnLoad(Option<Box<dyn FnMut(LoadProgress) + Send>>);

impl OnLoad {
    /// Tells them, if there is anybody.
    #[expect(dead_code, reason = "nothing is loaded before there is a backend on a GPU")]
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
        self.prefill_chunk = Some(rows);
        self
    }

    /// Opens the checkpoint, checks it, brings the device up and starts the engine's thread.
    pub fn build(self) -> Result<Engine, EngineError> {
        if self.device == Device::Cuda {
            return Err(why_not_cuda());
        }
        let source = match self.source {
            None => ModelSource::nano(),
            Some(Source::Name(name)) => ModelSource::resolve(&name)?,
            Some(Source::Resolved(source)) => source,
        };
        let checkpoint = Checkpoint::open(&source)?;
        let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
        spec.untie_stored_head(&checkpoint);
        let tokenizer = Tokenizer::from_source(&source)?;
        no_dtype_on_cpu(self.dtype)?;
        let page_size = self.page_size.unwrap_or(CPU_PAGE_SIZE);
        // More rows than positions can never come together.
        let max_positions = spec.max_positions.try_into().unwrap_or(u32::MAX);
        let max_rows = self.prefill_chunk.unwrap_or(CPU_PREFILL_CHUNK).get().min(max_positions);
        let pages = CacheGeometry::pages_for_sequence(page_size.get(), max_positions, spec.window, max_rows);
        let options = CpuOptions { threads: self.threads, page_size, pages, max_rows: max_rows as usize };
        let backend = CpuBackend::new(&checkpoint, spec, options)?;
        Engine::with_backend(Box::new(backend), tokenizer, source.describe("tokenizer.json"))
    }
}

/// That no dtype is asked of the CPU.
fn no_dtype_on_cpu(dtype: WeightDtype) -> Result<(), EngineError> {
    match dtype {
        WeightDtype::Auto => Ok(()),
        WeightDtype::Bf16 => Err(EngineError::DtypeOnCpu { dtype: Dtype::Bf16 }),
        WeightDtype::F16 => Err(EngineError::DtypeOnCpu { dtype: Dtype::F16 }),
    }
}

/// What stands between here and a model on the GPU, the nearest obstacle first.
#[cfg(feature = "cuda")]
fn why_not_cuda() -> EngineError {
    if cuda::images().is_empty() {
        return CudaError::BuiltWithoutKernels.into();
    }
    match cuda::Device::open(0) {
        Ok(_) => EngineError::NoCudaBackend,
        Err(error) => error.into(),
    }
}

#[cfg(not(feature = "cuda"))]
fn why_not_cuda() -> EngineError {
    EngineError::NoCudaFeature
}

impl Engine {
    /// An engine over any backend. `tokenizer_origin` is where a missing tokenizer would be, for messages.
    pub fn with_backend(
        backend: Box<dyn Backend>,
        tokenizer: Option<Tokenizer>,
        tokenizer_origin: String,
    ) -> Result<Engine, EngineError> {
        let spec = backend.spec().clone();
        let mut eos_token_ids: Vec<TokenId> = spec.eos_token_ids.iter().copied().map(TokenId).collect();
        if eos_token_ids.is_empty() {
            // Old generation_config.json files name an id above the vocabulary; the tokenizer knows better.
            eos_token_ids.extend(tokenizer.as_ref().and_then(Tokenizer::eos));
        }
        Engine::start(Limits { spec, tokenizer, tokenizer_origin, eos_token_ids }, backend)
    }
}
