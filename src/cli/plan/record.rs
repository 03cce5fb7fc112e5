//! A plan as `--json` prints it.

use std::num::{NonZeroU32, NonZeroUsize};

use rigel::backend::CpuPlan;
use rigel::host::MemoryLimit;
use serde::Serialize;

/// The record that `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Record<'a> {
    pub(super) model: &'a str,
    pub(super) dtype: String,
    pub(super) gpu: &'a str,
    /// Those that are planned for: --max-seqs, else as many as fit, up to 256.
    pub(super) sequences: usize,
    #[serde(skip)]
    pub(super) max_seqs_given: bool,
    pub(super) context: usize,
    pub(super) prefill_chunk: usize,
    /// Bytes that the model may take.
    pub(super) memory_bytes: u64,
    /// Bytes that the GPU has.
    pub(super) gpu_memory_bytes: u64,
    pub(super) lines: Vec<Line>,
    /// All lines, the driver's too.
    pub(super) needed_bytes: u64,
    pub(super) fits: bool,
    /// Whether it runs all the same, with sequences that wait for each other.
    pub(super) starts: bool,
    pub(super) page_size: u32,
    pub(super) pages_of_sequence: u32,
    /// Pages that there is room for.
    pub(super) pages: u32,
    /// Sequences of the whole context that those are.
    pub(super) whole_sequences: u32,
    /// Sequences of the whole context that run at once: no more than are planned for.
    pub(super) sequences_at_once: usize,
    /// The window that bounds the pages of a sequence, in positions.
    #[serde(skip)]
    pub(super) window: Option<NonZeroU32>,
    /// The longest context with as many sequences.
    pub(super) longest_context: Option<NonZeroU32>,
    /// The most sequences with this context.
    pub(super) max_sequences: Option<NonZeroUsize>,
    /// Bytes of weights that a decoded token reads.
    pub(super) weight_bytes_per_token: u64,
    /// Bytes that a token adds to the cache.
    pub(super) kv_bytes_per_token: u64,
    /// What one sequence takes on the CPU.
    pub(super) cpu: CpuRecord,
    /// Decoded tokens a second, one sequence, that the memory of each card allows by its data sheet.
    pub(super) limits: Vec<CardLimit>,
}

#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) what: &'static str,
    pub(super) bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct CardLimit {
    pub(super) gpu: &'static str,
    pub(super) memory_bytes: u64,
    pub(super) bytes_per_second: f64,
    /// With an empty cache.
    pub(super) tokens_per_second: f64,
    /// With all keys and values that the context and the window let a token see.
    pub(super) tokens_per_second_at_context: f64,
    /// Whether what is planned for this GPU fits 90 % of its memory: --max-seqs sequences, else one at the least.
    pub(super) fits: bool,
    /// Whether the model runs there, if need be with sequences that wait for each other.
    pub(super) starts: bool,
    /// Sequences of the whole context that run there at once.
    pub(super) sequences_at_once: usize,
    #[serde(skip)]
    pub(super) holds_weights: bool,
}

/// What one sequence of the whole context takes of this machine's memory, without a GPU.
#[derive(Debug, Serialize)]
pub(super) struct CpuRecord {
    /// As they are stored.
    pub(super) weight_bytes: u64,
    pub(super) cache_bytes: u64,
    pub(super) activation_bytes: u64,
    pub(super) needed_bytes: u64,
    /// What this process can have; null where the system does not say.
    pub(super) available_bytes: Option<u64>,
    /// Whether all of it stays in memory; null where the system does not say.
    pub(super) fits: Option<bool>,
    /// What allows no more.
    #[serde(skip)]
    pub(super) limit: Option<MemoryLimit>,
}

impl From<CpuPlan> for CpuRecord {
    fn from(plan: CpuPlan) -> CpuRecord {
        CpuRecord {
            weight_bytes: plan.weight_bytes,
            cache_bytes: plan.cache_bytes,
            activation_bytes: plan.activation_bytes,
            needed_bytes: plan.needed(),
            available_bytes: plan.available.map(|available| available.bytes),
            fits: plan.fits(),
            limit: plan.available.map(|available| available.limit),
        }
    }
}
