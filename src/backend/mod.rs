//! One forward pass over a ragged batch: the [`Backend`] trait and what crosses it.
//!
//! A backend owns the weights and the paged key/value cache of one model. It knows nothing of requests, stops or
//! text; it is told which rows to compute, where their keys and values live, and which rows need logits. Logits
//! stay inside the backend (on a GPU: in its memory), where [`Backend::sample`] turns them into token ids.
//!
//! Nothing above this room names a device.

mod cache_layout;
pub mod cpu;
mod cpu_plan;
#[cfg(feature = "cuda")]
pub mod cuda;
mod determinism;
mod device_info;
mod dtype;
#[cfg(feature = "cuda")]
mod gpu_plan;
mod hooks;
mod open;
mod placement;
mod progress;
mod slot_mapping;
mod support;

pub use cpu_plan::CpuPlan;
pub use determinism::Determinism;
pub use device_info::DeviceInfo;
pub use dtype::WeightDtype;
#[cfg(feature = "cuda")]
pub use gpu_plan::GpuPlan;
pub use hooks::BackendHooks;
pub use open::{BackendOptions, ModelWeights, Opened, open};
pub use placement::Device;
pub use progress::{LoadProgress, LoadStage};

use std::ops::Range;

use crate::checkpoint::{Checkpoint, CheckpointError, Dtype};
use crate::host::{Size, counted};
use crate::kv::{BlockTable, CacheGeometry, CacheGroup, PageId};
use crate::model::ModelSpec;
use crate::sampling::{NotFinite, SampleError, SampleRow, Sampled, TokenLogprobs};
use crate::text::TokenId;

/// The rows of one sequence inside a [`Batch`], and where its keys and values live.
#[derive(Debug, Clone)]
pub struct SequenceRows<'a> {
    /// This sequence's rows of [`Batch::tokens`]. Row `rows.start + i` is at position `start + i`.
    pub rows: Range<usize>,
    /// Position in the sequence of the first row, counted from 0.
    pub start: u32,
    /// One for each group of the cache ([`Backend::cache`]): position `p` lives in the page of block `p / page_size`, slot
    /// `p % page_size`. Every block that a row of the batch sees through the group's window has a page, and so has that of
    /// each row; there may be more.
    pub tables: &'a [BlockTable],
}

/// A row's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// One whose id the caller knows.
    Known(TokenId),
    /// The one that the last [`Backend::start_sampling`] drew for the row of this index among its rows, whether or not the
    /// draw has been waited for.
    Sampled(u32),
}

impl Token {
    /// Tokens that are all known.
    pub fn known(ids: &[TokenId]) -> Vec<Token> {
        ids.iter().copied().map(Token::Known).collect()
    }
}

/// A ragged batch: rows of any number of sequences, prefill chunks and decode rows alike.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// The tokens of all rows, `[rows]`, sequence after sequence. Every id is below the vocabulary size.
    pub tokens: &'a [Token],
    /// The sequences; their `rows` are disjoint, in order, and cover `tokens`.
    pub sequences: &'a [SequenceRows<'a>],
    /// Rows whose logits are wanted, ascending. The i-th of them is logits row `i` until the next forward.
    pub logits_rows: &'a [usize],
}

/// Why a forward pass failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The checkpoint does not hold what this backend needs.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The batch asked for something that the backend cannot do; a bug in the caller.
    #[error("invalid batch: {0}")]
    InvalidBatch(String),
    /// The cache has no page left for the batch.
    #[error(transparent)]
    Cache(#[from] crate::kv::OutOfPages),
    /// Fewer tokens came back than were to be drawn; a bug in the backend.
    #[error("the backend drew fewer tokens than it was asked for")]
    MissingSample,
    /// Memory for weights, cache or workspace could not be had.
    #[error("out of memory: {} for {what}; {advice}", Size(*.needed))]
    OutOfMemory {
        /// Bytes that were asked for.
        needed: u64,
        /// What they were for.
        what: String,
        /// What makes it smaller.
        advice: String,
    },
    /// The device or the thread pool could not be brought up.
    #[error("{0}")]
    Unavailable(String),
    /// A variable of the environment has a value that it does not take. The text names the variable, the value and what
    /// to give.
    #[error("{0}")]
    Variable(String),
    /// The GPU asked for is not to be had: no driver, no GPU, no kernels, or one too old.
    #[cfg(feature = "cuda")]
    #[error("device cuda: {0}")]
    NoGpu(cuda::CudaError),
    /// The crate was built without its feature `cuda`.
    #[error(
        "device cuda: rigel was built without its feature cuda; build it with features = [\"cuda\"], or use the device cpu"
    )]
    NoCudaFeature,
    /// A dtype was asked for, and the model runs on the CPU.
    #[error("dtype {dtype}: the CPU uses weights as they are stored; leave the dtype at auto, or use the device cuda")]
    DtypeOnCpu {
        /// What was asked for.
        dtype: Dtype,
    },
    /// The device failed in the middle of the work.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}

/// One model on one device.
///
/// A device may be [asynchronous](Backend::is_asynchronous): a step can be given to it before the tokens of the step before
/// are known to the host. What is given is done in order. A loop over it is
///
/// ```text
/// forward(step n + 1)          with Token::Sampled of step n, whose draws may still be under way
/// finish_sampling()            the tokens of step n; does not wait for step n + 1
/// start_sampling(step n + 1)
/// ```
///
/// and whatever the host does about step `n` is done while the device computes step `n + 1`. A backend that is not
/// asynchronous answers at once: it computes within the call.
///
/// Numerics: sums, softmax and norm statistics in f32, RoPE angles from f32, logits f32.
pub trait Backend: Send {
    /// What the network is.
    fn spec(&self) -> &ModelSpec;

    /// The device that it computes on.
    fn device(&self) -> DeviceInfo;

    /// Whether a row has the same bits in whatever company it is computed. Drafted tokens then change nothing but the time.
    fn is_batch_invariant(&self) -> bool {
        false
    }

    /// The cache: how large its pages are, and how many of them there are for each window of the network.
    fn cache(&self) -> &CacheGeometry;

    /// The most rows that one [`Batch`] may have.
    fn max_rows(&self) -> usize;

    /// The most logits rows that one [`Batch`] may ask for.
    fn max_logits_rows(&self) -> usize;

    /// The most sequences that one [`Batch`] may have.
    fn max_sequences(&self) -> usize {
        usize::MAX
    }

    /// Whether work is given to the device and not waited for.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Runs the network over the batch's rows: writes their keys and values into the pages and keeps the logits of
    /// `batch.logits_rows`, f32 `[logits_rows, vocab_size]`, until the next call. Draws that are under way are not waited
    /// for, nor disturbed. A row whose [`Token::Sampled`] could not be drawn fails the call, or gets logits that are not
    /// finite.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`]; what the device says of this or earlier work.
    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError>;

    /// The logits of one logits row, f32 `[vocab_size]`, copied to the host where they live on a device.
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError>;

    /// Starts a draw for each of `rows`, of the last forward pass. The tokens are those of the reference sampler. A row that
    /// the device has no way to draw for (one with a processor of its request, say) is drawn on the host before it returns.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] for a row that is no logits row, or where draws were started and not finished;
    /// what the device says of this or earlier work.
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError>;

    /// The tokens of the draws that were started, in their order; empty if none were. Waits for them, and for nothing that
    /// was given to the device behind them. A row whose logits are not finite, or whose processor panics, fails alone.
    ///
    /// # Errors
    /// What the device says of this or earlier work.
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError>;

    /// Draws one token for each of `rows` and waits for them.
    ///
    /// # Errors
    /// Those of [`Backend::start_sampling`] and [`Backend::finish_sampling`].
    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        self.start_sampling(rows)?;
        self.finish_sampling()
    }

    /// For logits row `i`: the log-probability of `targets[i]` (where given) and of the `top` best tokens, from an f32
    /// log-softmax of the logits, before any sampling processor. A row whose logits are not finite fails alone. The
    /// default computes them on the host.
    fn logprobs(
        &mut self,
        targets: &[Option<TokenId>],
        top: usize,
    ) -> Result<Vec<Result<TokenLogprobs, NotFinite>>, BackendError> {
        let one = |(row, &target)| Ok(TokenLogprobs::from_logits(self.logits(row)?, target, top));
        targets.iter().enumerate().map(one).collect()
    }

    /// The contents of a page: for each layer of its group its keys, then its values, each `[kv_heads, page_size, head_dim]`
    /// in the group's element as the host has it; `page_bytes` of the group together. Waits for the work that was given
    /// before. The default cannot.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] for a page that is none of the cache, or a backend that cannot; what the device says.
    fn export_page(&mut self, _group: usize, _page: PageId) -> Result<Vec<u8>, BackendError> {
        Err(BackendError::InvalidBatch("this backend exports no pages".to_owned()))
    }

    /// Fills a page with `bytes` that [`Backend::export_page`] gave of a page of this network and group, here or in another
    /// process; behind the work that was given before. The default cannot.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] for a page that is none of the cache, bytes of another length, or a backend that
    /// cannot; what the device says.
    fn import_page(&mut self, _group: usize, _page: PageId, _bytes: &[u8]) -> Result<(), BackendError> {
        Err(BackendError::InvalidBatch("this backend imports no pages".to_owned()))
    }

    /// What tests may do to the backend besides; `None` if they may nothing.
    fn hooks(&mut self) -> Option<&mut dyn BackendHooks> {
        None
    }
}

/// The group, where `page` is one of its pages.
fn check_page(group: usize, page: PageId, cache: &CacheGeometry) -> Result<&CacheGroup, BackendError> {
    let groups = cache.groups.len();
    let wrong = |what| Err(BackendError::InvalidBatch(what));
    match cache.groups.get(group) {
        None => wrong(format!("a page of group {group} of {groups}")),
        Some(found) if page.0 >= found.pages => wrong(format!("page {} of {}", page.0, found.pages)),
        Some(found) => Ok(found),
    }
}

/// [`check_page`], and that `bytes` are as many as a page has.
fn check_import(group: usize, page: PageId, bytes: &[u8], cache: &CacheGeometry) -> Result<(), BackendError> {
    let page_bytes = check_page(group, page, cache)?.page_bytes;
    if bytes.len() as u64 == page_bytes {
        return Ok(());
    }
    Err(BackendError::InvalidBatch(format!("{} bytes for a page of {page_bytes}", bytes.len())))
}

/// How many names there are and the first of them, in one line whatever a file says; `None` if there is none.
fn listed(names: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    let first: Vec<String> = names.iter().take(SHOWN).map(|name| name.escape_debug().to_string()).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("{}, {}{more}", counted(names.len(), "tensor"), first.join(", ")))
}

/// Checks that the checkpoint has every tensor of `spec` in a dtype that backends take; warns of those that it has
/// besides, and of what else is remarkable about it.
///
/// # Errors
/// The first tensor that is missing, misshapen, or of another dtype.
pub(crate) fn check_tensors(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<(), CheckpointError> {
    let unused = checkpoint.check(&spec.tensors())?;
    for notice in checkpoint.notices() {
        tracing::warn!("{}: {notice}", checkpoint.source());
    }
    if let Some(unused) = listed(&unused) {
        tracing::warn!("not used of the checkpoint: {unused}");
    }
    Ok(())
}
