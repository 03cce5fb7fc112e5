//! The CPU backend: correct on any machine, fast on those with vector units, and the oracle for every other backend.
//!
//! Weights are used in their stored dtype straight from the checkpoint's mapping; activations, cache and sums are
//! f32. A row's results have the same bits in whatever batch, chunk or page layout it is computed, and on however
//! many threads: every sum has one order, see `matmul` and `attention`.
//!
//! | file | what it holds |
//! |---|---|
//! | `forward` | the pass from token ids to logits |
//! | `plan` | a batch, checked and cut into tasks |
//! | `thread_pool`, `parallel_region`, `sync` | the threads, and how they share work |
//! | `weights`, `cache`, `workspace`, `memory` | what lives longer than a batch |
//! | `matmul`, `attention`, `norm`, `rope`, `activation` | the arithmetic, over any instruction set |
//! | `simd`, `kernels` | sixteen lanes, and the choice of an instruction set |
//!
//! `RIGEL_CPU_ISA` (`portable`, `avx2`, `avx512`) overrides that choice.

mod activation;
mod attention;
mod cache;
mod forward;
mod kernels;
mod matmul;
mod memory;
mod norm;
mod parallel_region;
mod plan;
mod rope;
mod simd;
mod sync;
mod thread_pool;
mod weights;
mod workspace;

#[cfg(test)]
mod model_check;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::OnceLock;

pub use kernels::{ISA_VARIABLE, Isa};

use super::cache_layout::CacheSizes;
use super::support::check_network;
use super::{Backend, BackendError, BackendHooks, Batch, DeviceInfo, Token, check_import, check_page};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::host::{AvailableMemory, Size, available_memory, counted};
use crate::kv::{CacheGeometry, KvFormat, PageId};
use crate::model::ModelSpec;
use crate::sampling::{self, SampleError, SampleRow, Sampled};
use crate::text::TokenId;
use cache::Cache;
use forward::ForwardPass;
use kernels::Kernels;
use plan::Plan;
use thread_pool::ThreadPool;
use weights::Weights;
use workspace::Workspace;

/// How a [`CpuBackend`] is set up.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// Threads, the caller's among them; [`available_cores`] by default. More than those make everything slower.
    pub threads: Option<NonZeroUsize>,
    /// Positions that a page of the cache holds.
    pub page_size: NonZeroU32,
    /// Pages of the cache. Where layers have different windows, the pages of the layers with the widest window; the
    /// other layers have enough pages for as many sequences.
    pub pages: u32,
    /// The most rows in a batch, and the most logits rows.
    pub max_rows: usize,
}

/// One model on the CPU.
pub struct CpuBackend {
    spec: ModelSpec,
    inv_freq: Vec<f32>,
    isa: Isa,
    kernels: &'static Kernels,
    pool: ThreadPool,
    weights: Weights,
    cache: Cache,
    workspace: Workspace,
    plan: Plan,
    max_rows: usize,
    /// Logits rows of the last forward pass.
    logits_rows: usize,
    /// Ids of the batch's rows.
    token_ids: Vec<TokenId>,
    /// What the last draws gave: `None` for one that failed.
    sampled: Vec<Option<TokenId>>,
    /// The same until it is asked for.
    started: Option<Vec<Result<Sampled, SampleError>>>,
}

impl CpuBackend {
    /// Checks the checkpoint against `spec`, allocates cache and workspace (address space: memory comes as it is
    /// used), and starts the threads. Reads no weight matrix.
    ///
    /// # Errors
    /// A tensor that is missing or misshapen, memory that cannot be had, an instruction set in `RIGEL_CPU_ISA` that
    /// this machine lacks, or threads that cannot be started.
    pub fn new(checkpoint: &Checkpoint, spec: ModelSpec, options: CpuOptions) -> Result<CpuBackend, BackendError> {
        CpuBackend::with_isa(checkpoint, spec, options, Isa::from_env()?)
    }

    /// Bytes that cache and activations of a backend with these options take: what [`CpuBackend::new`] allocates, once.
    /// Weights stay in their file, norms and biases are small.
    pub fn planned_bytes(spec: &ModelSpec, options: &CpuOptions) -> u64 {
        let cache = cache_sizes(options).geometry(spec, options.pages).bytes();
        Workspace::bytes(spec, options.max_rows, options.max_rows, threads(options).get()).saturating_add(cache)
    }

    /// How many pages of the cache fit `memory` bytes beside the activations of a backend with these options (whatever
    /// their pages): at most `most`. Half of what this process can have where none is given ([`available_memory`]): the
    /// rest is for the pages of the weights that are mapped, and for others.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] where not even `least` fit.
    pub fn pages_within(
        spec: &ModelSpec,
        options: &CpuOptions,
        memory: Option<u64>,
        least: u32,
        most: u32,
    ) -> Result<u32, BackendError> {
        let workspace = CpuBackend::planned_bytes(spec, &CpuOptions { pages: 0, ..options.clone() });
        let sizes = cache_sizes(options);
        let cache = |pages| sizes.geometry(spec, pages).bytes();
        let available = available_memory();
        let of_what = match (memory, available) {
            (None, Some(AvailableMemory { bytes, limit })) => {
                format!(", half of the {} that are left in {limit}", Size(bytes))
            }
            _ => String::new(),
        };
        let memory = memory.or(available.map(|available| available.bytes / 2)).unwrap_or(u64::MAX);
        let pages = sizes.max_pages(spec, memory.saturating_sub(workspace));
        if pages < least {
            let needed = workspace.saturating_add(cache(least));
            let (activations, page) = (Size(workspace), Size(cache(1)));
            let what = format!("activations {activations} and {least} pages of the cache, {page} each");
            let advice = format!(
                "{} may be used{of_what}; a lower context makes the cache smaller, a lower prefill chunk or number of \
                 sequences the activations",
                Size(memory)
            );
            return Err(BackendError::OutOfMemory { needed, what, advice });
        }
        let pages = pages.min(most);
        let planned = workspace.saturating_add(cache(pages));
        if let Some(AvailableMemory { bytes, limit }) = available.filter(|available| planned > available.bytes) {
            // Asked for: it may be given back by others until it is used.
            tracing::warn!(
                "cache and activations may grow to {}, and {} are left in {limit}: the system may end this process when \
                 they fill up",
                Size(planned),
                Size(bytes)
            );
        }
        Ok(pages)
    }

    /// That this process can have `bytes` of memory, for `what`, where the system says how much it can.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    pub fn check_memory(bytes: u64, what: &str) -> Result<(), BackendError> {
        match available_memory() {
            Some(available) if bytes > available.bytes => Err(BackendError::OutOfMemory {
                needed: bytes,
                what: what.to_owned(),
                advice: format!("{} are left in {}; use a smaller network", Size(available.bytes), available.limit),
            }),
            _ => Ok(()),
        }
    }

    /// Bytes that cache and activations took.
    #[cfg(test)]
    fn allocated_bytes(&self) -> u64 {
        self.workspace.allocated_bytes() + self.cache.allocated_bytes()
    }

    /// [`CpuBackend::new`] with the kernels of `isa`, whatever the environment says.
    pub fn with_isa(
        checkpoint: &Checkpoint,
        spec: ModelSpec,
        options: CpuOptions,
        isa: Isa,
    ) -> Result<CpuBackend, BackendError> {
        let kernels = Kernels::new(isa)
            .ok_or_else(|| BackendError::Unavailable(format!("this machine has no {}", isa.name())))?;
        let threads = threads(&options);
        let pool = ThreadPool::new(threads)
            .map_err(|error| BackendError::Unavailable(format!("{threads} threads cannot be started: {error}")))?;
        check_network(&spec)?;
        let weights = Weights::new(checkpoint, &spec, kernels)?;
        let (counted_threads, memory) = (counted(threads.get(), "thread"), Size(Self::planned_bytes(&spec, &options)));
        tracing::info!("CPU backend: {} kernels, {counted_threads}, {memory} for cache and activations", isa.name());
        let cache = Cache::new(&spec, cache_sizes(&options).geometry(&spec, options.pages))?;
        let workspace = Workspace::new(&spec, options.max_rows, options.max_rows, pool.size())?;
        Ok(CpuBackend {
            inv_freq: spec.ropes[0].inv_freq(spec.head_dim),
            isa,
            kernels,
            weights,
            plan: Plan::new(options.max_rows, cache.geometry()),
            cache,
            workspace,
            max_rows: options.max_rows,
            logits_rows: 0,
            token_ids: Vec::new(),
            sampled: Vec::new(),
            started: None,
            pool,
            spec,
        })
    }
}

/// Cores that this process may use: all of the machine's, less those that its affinity leaves out, and no more than its
/// control group's quota of time where there is one. One where the system does not say.
pub fn available_cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// What the cache of a backend with these options is, but for its number of pages.
fn cache_sizes(options: &CpuOptions) -> CacheSizes {
    CacheSizes { page_size: options.page_size, max_rows: options.max_rows, format: KvFormat::Dense(Dtype::F32) }
}

/// The threads asked for, or one for each core.
fn threads(options: &CpuOptions) -> NonZeroUsize {
    options.threads.unwrap_or_else(available_cores)
}

impl CpuBackend {
    /// The ids of the batch's tokens.
    fn find_tokens(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.token_ids.clear();
        for token in batch.tokens {
            self.token_ids.push(match *token {
                Token::Known(id) => id,
                Token::Sampled(place) => self.sampled.get(place as usize).copied().flatten().ok_or_else(|| {
                    BackendError::InvalidBatch(format!(
                        "the token of row {place} of the last draws, which have none for it"
                    ))
                })?,
            });
        }
        Ok(())
    }
}

impl Backend for CpuBackend {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn device(&self) -> DeviceInfo {
        let dtype = self.weights.embedding.dtype();
        DeviceInfo::Cpu { isa: self.isa, threads: self.pool.size(), dtype }
    }

    fn is_batch_invariant(&self) -> bool {
        true
    }

    fn cache(&self) -> &CacheGeometry {
        self.cache.geometry()
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn max_logits_rows(&self) -> usize {
        self.max_rows
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.logits_rows = 0;
        self.find_tokens(batch)?;
        self.plan.make(batch, &self.spec, self.cache.geometry())?;
        let pass = ForwardPass {
            spec: &self.spec,
            inv_freq: &self.inv_freq,
            kernels: self.kernels,
            weights: &self.weights,
            cache: &self.cache,
            workspace: &self.workspace,
            plan: &self.plan,
            batch,
            token_ids: &self.token_ids,
            threads: self.pool.size(),
        };
        pass.run(&mut self.pool);
        self.logits_rows = batch.logits_rows.len();
        Ok(())
    }

    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        if row >= self.logits_rows {
            return Err(BackendError::InvalidBatch(format!("logits row {row} of {}", self.logits_rows)));
        }
        // SAFETY: the row was written by the last forward pass, and nobody writes while the backend is borrowed.
        Ok(unsafe { self.workspace.logits_of(row, self.spec.vocab_size) })
    }

    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError> {
        if self.started.is_some() {
            return Err(BackendError::InvalidBatch("draws were started and not finished".to_owned()));
        }
        if let Some(row) = rows.iter().find(|row| row.logits_row >= self.logits_rows) {
            let what = format!("sampling from logits row {} of {}", row.logits_row, self.logits_rows);
            return Err(BackendError::InvalidBatch(what));
        }
        let CpuBackend { pool, workspace, spec, .. } = self;
        let sampled: Vec<OnceLock<Result<Sampled, SampleError>>> = rows.iter().map(|_| OnceLock::new()).collect();
        pool.parallel_for(rows.len(), |_, index| {
            // SAFETY: as in `logits`; rows were checked above.
            let logits = unsafe { workspace.logits_of(rows[index].logits_row, spec.vocab_size) };
            // Each index comes once.
            let _ = sampled[index].set(sampling::sample(logits, &rows[index]));
        });
        let sampled = sampled.into_iter().map(|sampled| sampled.into_inner().ok_or(BackendError::MissingSample));
        let sampled = sampled.collect::<Result<Vec<_>, _>>()?;
        self.sampled = sampled.iter().map(|sampled| sampled.as_ref().ok().map(|sampled| sampled.token)).collect();
        self.started = Some(sampled);
        Ok(())
    }

    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        Ok(self.started.take().unwrap_or_default())
    }

    fn export_page(&mut self, group: usize, page: PageId) -> Result<Vec<u8>, BackendError> {
        check_page(group, page, self.cache.geometry())?;
        Ok(self.cache.export(group, page))
    }

    fn import_page(&mut self, group: usize, page: PageId, bytes: &[u8]) -> Result<(), BackendError> {
        check_import(group, page, bytes, self.cache.geometry())?;
        self.cache.import(group, page, bytes);
        Ok(())
    }

    fn hooks(&mut self) -> Option<&mut dyn BackendHooks> {
        Some(self)
    }
}

impl BackendHooks for CpuBackend {
    fn poison(&mut self, group: usize, pages: &[PageId]) -> Result<(), BackendError> {
        for page in pages {
            check_page(group, *page, self.cache.geometry())?;
            self.cache.poison(group, *page);
        }
        Ok(())
    }
}
