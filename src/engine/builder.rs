//! Builds an engine from a model's name.

use std::collections::BTreeSet;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use crate::backend::{
    self, Backend, BackendError, BackendOptions, Determinism, Device, LoadProgress, ModelWeights, Opened, WeightDtype,
};
use crate::checkpoint::{CheckpointError, Config, ModelSource, WeightLoading};
use crate::kv::PrefixCache;
use crate::text::{TextError, TokenId, Tokenizer};

use super::draft::Speculation;
use super::{Engine, Limits};

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
    Backend(BackendError),
    /// Text was asked of a model without a tokenizer.
    #[error(
        "{file} does not exist, nor do vocab.json and merges.txt: text needs the tokenizer; copy it from the model's \
         hub page, or give token ids"
    )]
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

impl From<BackendError> for EngineError {
    fn from(error: BackendError) -> EngineError {
        match error {
            BackendError::Checkpoint(error) => EngineError::Checkpoint(error),
            error => EngineError::Backend(error),
        }
    }
}

/// Describes an engine; [`EngineBuilder::build`] loads the model.
#[derive(Debug, Default)]
pub struct EngineBuilder {
    weights: Option<ModelWeights>,
    backend: BackendOptions,
    options: EngineOptions,
    on_load: OnLoad,
}

/// Options of the engine that do not depend on the backend.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Most sequences in a step; `None` for the backend's maximum.
    pub max_sequences: Option<NonZeroUsize>,
    /// Most prompt rows in a step; `None` for the backend's maximum.
    pub prefill_chunk: Option<NonZeroU32>,
    /// Whether prefixes of ended requests stay cached.
    pub prefix_cache: PrefixCache,
    /// Whether tokens are drafted. [`Speculation::Auto`] means [`Speculation::Off`] here.
    pub speculation: Speculation,
    /// Test hook: fills freed pages with NaN ([`BackendHooks::poison`](backend::BackendHooks::poison)), to expose reads
    /// of them.
    pub poison_freed_pages: bool,
}

/// Receives the loading progress.
#[derive(Default)]
struct OnLoad(Option<Box<dyn FnMut(LoadProgress) + Send>>);

impl OnLoad {
    /// Reports progress, if anyone listens.
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

impl EngineBuilder {
    /// A directory, a hub id (`ORG/NAME`, `ORG/NAME@REVISION`) found in the local Hugging Face cache, or `nano`, the
    /// bundled model; see [`ModelSource::resolve`]. The default is the bundled model.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.weights = Some(ModelWeights::Named(model.into()));
        self
    }

    /// Uses files that were already resolved.
    pub fn source(mut self, source: ModelSource) -> Self {
        self.weights = Some(ModelWeights::Stored(source));
        self
    }

    /// No files: random weights for the network that `config` describes, to measure with. On a GPU they are made there,
    /// in the dtype of [`EngineBuilder::dtype`]; on the CPU in memory, by all threads. Either way, equal seeds give
    /// equal weights. [`WeightDtype::Auto`] is F16 where `config` says so, else BF16. There is no tokenizer.
    pub fn dummy_weights(mut self, config: Config, seed: u32) -> Self {
        self.weights = Some(ModelWeights::Random { config: Box::new(config), seed });
        self
    }

    /// Where the model runs.
    pub fn device(mut self, device: Device) -> Self {
        self.backend.device = device;
        self
    }

    /// The dtype of the weights on a GPU. On the CPU, which uses them as they are stored, anything but
    /// [`WeightDtype::Auto`] is an error.
    pub fn dtype(mut self, dtype: WeightDtype) -> Self {
        self.backend.dtype = dtype;
        self
    }

    /// Calls `report` a few times a second while weights are loaded, and once when all are there, on the thread that
    /// calls [`EngineBuilder::build`]; its [`stage`](LoadProgress::stage) says what is done to them. They are uploaded
    /// to a GPU. Before that, [`WeightLoading::Read`] reads them into this process. On the CPU, pages of mapped files
    /// that are not in memory are read ahead of the first token; where all are, `report` is not called.
    pub fn on_load(mut self, report: impl FnMut(LoadProgress) + Send + 'static) -> Self {
        self.on_load = OnLoad(Some(Box::new(report)));
        self
    }

    /// How the weight files come to this process: mapped, by default, or read into memory of its own, which nothing
    /// that happens to the files later can change. Memory for [`WeightLoading::Read`] is checked before; on a GPU it is
    /// given back when the weights are there. A file that is mapped from a network file system is warned of, with the
    /// tracing target `rigel::network_file_system`.
    pub fn weight_loading(mut self, loading: WeightLoading) -> Self {
        self.backend.weight_loading = loading;
        self
    }

    /// Reads the weights in at once and locks them in memory (mlock), mapped or not, so that the system never takes
    /// their pages back. Where it refuses, a warning says what to raise, and the model runs unlocked. Of no effect on a
    /// GPU, whose memory is never paged out.
    pub fn mlock(mut self) -> Self {
        self.backend.mlock = true;
        self
    }

    /// Threads of the CPU backend; one for each core that the process may use by default. More are capped at that, with
    /// a warning: threads that wait for each other's cores make a step many times slower.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.backend.threads = Some(threads);
        self
    }

    /// Positions a page of the cache holds.
    pub fn page_size(mut self, page_size: NonZeroU32) -> Self {
        self.backend.page_size = Some(page_size);
        self
    }

    /// The most prompt rows computed in one step.
    pub fn prefill_chunk(mut self, rows: NonZeroU32) -> Self {
        (self.options.prefill_chunk, self.backend.prefill_chunk) = (Some(rows), Some(rows));
        self
    }

    /// Positions to make room for, prompt and completion together. The default is the model's own number, which more
    /// are capped at, with a warning. Fewer make the cache smaller.
    pub fn context(mut self, positions: NonZeroU32) -> Self {
        self.backend.context = Some(positions);
        self
    }

    /// Bytes of memory that the engine may take of its device: weights, cache and workspace on a GPU; cache and
    /// workspace on the CPU, without the weights, mapped or read. What is left after weights and workspace is the
    /// cache, up to what [`EngineBuilder::max_sequences`] sequences of the whole context can use. The default is 90 %
    /// of what is free on a GPU, and on the CPU half of what this process can have
    /// ([`available_memory`](crate::host::available_memory): the limit of its container counts).
    pub fn memory(mut self, bytes: NonZeroU64) -> Self {
        self.backend.memory = Some(bytes);
        self
    }

    /// The most sequences computed in one step; 32 on the CPU and 256 on a GPU by default.
    pub fn max_sequences(mut self, sequences: NonZeroUsize) -> Self {
        (self.options.max_sequences, self.backend.max_sequences) = (Some(sequences), Some(sequences));
        self
    }

    /// Whether a request's log-probabilities may depend in their last bits on the other requests of a batch, on a GPU.
    /// On the CPU they never do.
    pub fn determinism(mut self, determinism: Determinism) -> Self {
        self.backend.determinism = determinism;
        self
    }

    /// Whether prefixes of ended requests stay cached. On by default.
    pub fn prefix_cache(mut self, prefix_cache: PrefixCache) -> Self {
        self.options.prefix_cache = prefix_cache;
        self
    }

    /// Whether the engine drafts tokens.
    pub fn speculation(mut self, speculation: Speculation) -> Self {
        self.options.speculation = speculation;
        self
    }

    /// Test hook: fills freed pages with NaN.
    pub fn poison_freed_pages(mut self) -> Self {
        self.options.poison_freed_pages = true;
        self
    }

    /// The backend options, for planning.
    pub fn backend_options(&self) -> &BackendOptions {
        &self.backend
    }

    /// Loads the checkpoint, opens the device and starts the engine's thread.
    pub fn build(mut self) -> Result<Engine, EngineError> {
        let Opened { backend, source } = self.open()?;
        if self.options.speculation == Speculation::Auto && backend.is_batch_invariant() {
            self.options.speculation = Speculation::PromptLookup;
        }
        let tokenizer = Tokenizer::from_source(&source)?;
        Engine::with_backend(backend, tokenizer, source.describe("tokenizer.json"), self.options)
    }

    /// Opens only the backend, as [`EngineBuilder::build`] would, to measure forward passes.
    pub fn build_backend(mut self) -> Result<Box<dyn Backend>, EngineError> {
        Ok(self.open()?.backend)
    }

    fn open(&mut self) -> Result<Opened, EngineError> {
        let weights = self.weights.take().unwrap_or_else(|| ModelWeights::Stored(ModelSource::nano()));
        Ok(backend::open(&self.backend, weights, &mut |progress| self.on_load.report(progress))?)
    }
}

impl Engine {
    /// An engine over any backend. `tokenizer_origin` is where the tokenizer was expected, for messages.
    pub fn with_backend(
        backend: Box<dyn Backend>,
        tokenizer: Option<Tokenizer>,
        tokenizer_origin: String,
        options: EngineOptions,
    ) -> Result<Engine, EngineError> {
        let (spec, cache) = (backend.spec().clone(), backend.cache().clone());
        let mut eos_token_ids: Vec<TokenId> = spec.eos_token_ids.iter().copied().map(TokenId).collect();
        if eos_token_ids.is_empty() {
            // Old generation_config.json files name an id above the vocabulary; the tokenizer knows better.
            eos_token_ids.extend(tokenizer.as_ref().and_then(Tokenizer::eos));
        }
        // An id beyond the vocabulary is never sampled.
        let tokenizer_eos = tokenizer.as_ref().and_then(Tokenizer::eos).filter(|id| (id.0 as usize) < spec.vocab_size);
        let chat: BTreeSet<TokenId> =
            spec.chat_eos_token_ids.iter().copied().map(TokenId).chain(tokenizer_eos).collect();
        let (eos_token_ids, chat_eos_token_ids) = (eos_token_ids.into(), chat.into_iter().collect());
        let limits = Limits { spec, cache, tokenizer, tokenizer_origin, eos_token_ids, chat_eos_token_ids };
        Engine::start(limits, backend, &options)
    }
}
