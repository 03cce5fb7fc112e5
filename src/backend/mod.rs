//! The [`Backend`] trait: one forward pass over a ragged batch, and sampling.
//!
//! A backend owns the weights and the paged KV cache of one model. It does not know about requests, stop conditions or
//! text: the caller names the rows to compute, the pages of their keys and values, and the rows that need logits.
//! Logits stay in the backend (on a GPU, in device memory), where [`Backend::sample`] turns them into token ids.
//!
//! No module above this one names a device.

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

/// The rows of one sequence in a [`Batch`], and its block tables.
#[derive(Debug, Clone)]
pub struct SequenceRows<'a> {
    /// This sequence's rows of [`Batch::tokens`]. Row `rows.start + i` is at position `start + i`.
    pub rows: Range<usize>,
    /// Position of the first row, counted from 0.
    pub start: u32,
    /// One block table per cache group ([`Backend::cache`]): position `p` is slot `p % page_size` of the page of block
    /// `p / page_size`. Every block that a row writes, or sees through the group's window, has a page; there may be
    /// more.
    pub tables: &'a [BlockTable],
}

/// A row's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// An id known to the host.
    Known(TokenId),
    /// The token that the last [`Backend::start_sampling`] samples for its row of this index, finished or not.
    Sampled(u32),
}

impl Token {
    /// Known tokens.
    pub fn known(ids: &[TokenId]) -> Vec<Token> {
        ids.iter().copied().map(Token::Known).collect()
    }
}

/// A ragged batch: rows of any number of sequences, prefill chunks and decode rows together.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// Tokens of all rows, `[rows]`, sequence by sequence. Ids are below the vocabulary size.
    pub tokens: &'a [Token],
    /// The sequences; their `rows` are disjoint, in order, and cover `tokens`.
    pub sequences: &'a [SequenceRows<'a>],
    /// Rows that need logits, ascending. The i-th one is logits row `i` until the next forward pass.
    pub logits_rows: &'a [usize],
}

/// Errors of a backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The checkpoint lacks something the backend needs.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The batch is malformed; a bug in the caller.
    #[error("invalid batch: {0}")]
    InvalidBatch(String),
    /// The cache has too few pages.
    #[error(transparent)]
    Cache(#[from] crate::kv::OutOfPages),
    /// Fewer tokens were returned than requested; a bug in the backend.
    #[error("the backend returned fewer tokens than requested")]
    MissingSample,
    /// Not enough memory for weights, cache or workspace.
    #[error("out of memory: {} for {what}; {advice}", Size(*.needed))]
    OutOfMemory {
        /// Bytes requested.
        needed: u64,
        /// Purpose of the memory.
        what: String,
        /// How to reduce it.
        advice: String,
    },
    /// The device or the thread pool could not be initialised.
    #[error("{0}")]
    Unavailable(String),
    /// An environment variable has an invalid value. The text names the variable, the value and the valid values.
    #[error("{0}")]
    Variable(String),
    /// No usable GPU: no driver, no device, no kernels, or too old.
    #[cfg(feature = "cuda")]
    #[error("device cuda: {0}")]
    NoGpu(cuda::CudaError),
    /// The crate was built without its feature `cuda`.
    #[error(
        "device cuda: rigel was built without its feature cuda; build it with features = [\"cuda\"], or use the device cpu"
    )]
    NoCudaFeature,
    /// A dtype was requested for the CPU.
    #[error("dtype {dtype}: the CPU uses weights as they are stored; leave the dtype at auto, or use the device cuda")]
    DtypeOnCpu {
        /// The requested dtype.
        dtype: Dtype,
    },
    /// The device failed.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}

/// One model on one device.
///
/// A backend may be [asynchronous](Backend::is_asynchronous): the next step can be submitted before the host knows the
/// tokens of the previous one. Work runs in submission order. A loop over it is
///
/// ```text
/// forward(step n + 1)          with Token::Sampled of step n, whose draws may still be under way
/// finish_sampling()            the tokens of step n; does not wait for step n + 1
/// start_sampling(step n + 1)
/// ```
///
/// The host's work for step `n` then overlaps the device's step `n + 1`. A synchronous backend computes within the
/// call.
///
/// Numerics: sums, softmax and norm statistics in f32, RoPE angles from f32, logits f32.
pub trait Backend: Send {
    /// The network.
    fn spec(&self) -> &ModelSpec;

    /// The device.
    fn device(&self) -> DeviceInfo;

    /// Returns `true` if a row's bits do not depend on the other rows of its batch. Speculation then cannot change a
    /// text.
    fn is_batch_invariant(&self) -> bool {
        false
    }

    /// Geometry of the cache: page size, and the pages of each group.
    fn cache(&self) -> &CacheGeometry;

    /// Most rows in a [`Batch`].
    fn max_rows(&self) -> usize;

    /// Most logits rows in a [`Batch`].
    fn max_logits_rows(&self) -> usize;

    /// Most sequences in a [`Batch`].
    fn max_sequences(&self) -> usize {
        usize::MAX
    }

    /// Returns `true` if calls submit work without waiting for it.
    fn is_asynchronous(&self) -> bool {
        false
    }

    /// Runs the network over the batch: writes keys and values into the pages and keeps the logits of
    /// `batch.logits_rows`, f32 `[logits_rows, vocab_size]`, until the next call. Sampling in flight continues. If the
    /// token of a [`Token::Sampled`] row could not be sampled, the call fails or the row's logits are not finite.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`]; device errors of this or earlier work.
    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError>;

    /// Logits of one logits row, f32 `[vocab_size]`, copied to the host if necessary.
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError>;

    /// Starts sampling one token for each of `rows`, which refer to the last forward pass. The tokens are those of the
    /// reference sampler. Rows that the device cannot sample (with a logits processor, for example) are sampled on the
    /// host before the call returns.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] if a logits row is out of range or sampling is already in flight; device errors
    /// of this or earlier work.
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError>;

    /// Returns the sampled tokens in row order; empty if none were started. Does not wait for work submitted after
    /// sampling. A row with non-finite logits, or whose processor panics, fails alone.
    ///
    /// # Errors
    /// Device errors of this or earlier work.
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError>;

    /// Samples one token for each of `rows` and waits for them.
    ///
    /// # Errors
    /// As for [`Backend::start_sampling`] and [`Backend::finish_sampling`].
    fn sample(&mut self, rows: &[SampleRow<'_>]) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        self.start_sampling(rows)?;
        self.finish_sampling()
    }

    /// For logits row `i`: the log-probabilities of `targets[i]` (if given) and of the `top` most likely tokens, from
    /// an f32 log-softmax before any sampling processor. A row with non-finite logits fails alone. The default
    /// implementation runs on the host.
    fn logprobs(
        &mut self,
        targets: &[Option<TokenId>],
        top: usize,
    ) -> Result<Vec<Result<TokenLogprobs, NotFinite>>, BackendError> {
        let one = |(row, &target)| Ok(TokenLogprobs::from_logits(self.logits(row)?, target, top));
        targets.iter().enumerate().map(one).collect()
    }

    /// Contents of a page, `page_bytes` of its group: for each layer its keys, then its values, each `[kv_heads,
    /// page_size, head_dim]` in the group's format, native endian. Waits for submitted work. Not supported by default.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] if the page is out of range or export is not supported; device errors.
    fn export_page(&mut self, _group: usize, _page: PageId) -> Result<Vec<u8>, BackendError> {
        Err(BackendError::InvalidBatch("this backend exports no pages".to_owned()))
    }

    /// Submits a write of a page with `bytes` from [`Backend::export_page`], of this or another process with the same
    /// network and group. Not supported by default.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] if the page is out of range, the length is wrong or import is not supported;
    /// device errors.
    fn import_page(&mut self, _group: usize, _page: PageId, _bytes: &[u8]) -> Result<(), BackendError> {
        Err(BackendError::InvalidBatch("this backend imports no pages".to_owned()))
    }

    /// Test hooks. `None` if the backend has none.
    fn hooks(&mut self) -> Option<&mut dyn BackendHooks> {
        None
    }
}

/// The group of a page, after checking that the page is in range.
fn check_page(group: usize, page: PageId, cache: &CacheGeometry) -> Result<&CacheGroup, BackendError> {
    let groups = cache.groups.len();
    let wrong = |what| Err(BackendError::InvalidBatch(what));
    match cache.groups.get(group) {
        None => wrong(format!("a page of group {group} of {groups}")),
        Some(found) if page.0 >= found.pages => wrong(format!("page {} of {}", page.0, found.pages)),
        Some(found) => Ok(found),
    }
}

/// As [`check_page`]; also checks the number of bytes.
fn check_import(group: usize, page: PageId, bytes: &[u8], cache: &CacheGeometry) -> Result<(), BackendError> {
    let page_bytes = check_page(group, page, cache)?.page_bytes;
    if bytes.len() as u64 == page_bytes {
        return Ok(());
    }
    Err(BackendError::InvalidBatch(format!("{} bytes for a page of {page_bytes}", bytes.len())))
}

/// The number of names and the first few of them, on one line. `None` if there are none.
fn listed(names: &[String]) -> Option<String> {
    const SHOWN: usize = 3;
    let first: Vec<String> = names.iter().take(SHOWN).map(|name| name.escape_debug().to_string()).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("{}, {}{more}", counted(names.len(), "tensor"), first.join(", ")))
}

/// Checks that the checkpoint has every tensor of `spec` in a supported dtype. Warns about unused tensors and other
/// oddities.
///
/// # Errors
/// The first tensor that is missing, has the wrong shape or an unsupported dtype.
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
