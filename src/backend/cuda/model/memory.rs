//! The memory plan: GPU memory of a model, planned line by line before anything is allocated, and allocated as planned.

use std::fmt;

use crate::backend::BackendError;
use crate::backend::cache_layout::CacheSizes;
use crate::checkpoint::Dtype;
use crate::host::Size;
use crate::kv::{CacheGeometry, KvFormat};
use crate::model::ModelSpec;

use super::super::kernels::paged::WorkspaceLen;
use super::super::layout::{ELEMENT_BYTES, Layout, padded};
use super::super::weights::RopeTable;
use super::super::{Device, Properties};
use super::attention::AttentionPlan;
use super::sampler::Sampler;
use super::step::{StepLayout, StepShape};
use super::{CudaOptions, check_supported};

/// Reserve for the driver while a model runs, such as CUDA graphs: kept free, not allocated.
pub const DRIVER_BYTES: u64 = 256 << 20;
/// All formats of a GPU cache take equal space, so a plan may use any.
const ANY_FORMAT: KvFormat = KvFormat::Dense(Dtype::Bf16);
/// Most logits rows in a step: f32 `[.., vocab]`, 48 MiB for the published vocabulary.
const MAX_LOGITS_ROWS: usize = 256;

/// Lengths of the buffers that live as long as the model, in elements. Widths are padded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Rows in a step.
    pub rows: usize,
    /// Logits rows in a step.
    pub logits_rows: usize,
    /// Elements of a row of the residual stream.
    pub hidden: usize,
    /// Elements of a row of queries or attention output.
    pub attn_out: usize,
    /// Elements of a row of MLP activations.
    pub intermediate: usize,
    /// Elements of a row of logits.
    pub vocab: usize,
    /// The KV cache.
    pub cache: CacheGeometry,
    /// Bytes of one layer's keys (or values) in a page.
    pub layer_page_bytes: usize,
    /// 32-bit words of the largest step's inputs.
    pub step_words: usize,
    /// Attention workspace.
    pub attention: WorkspaceLen,
    /// Bytes of the sampler's buffers.
    pub sampler_bytes: u64,
}

/// The cache's parameters except for its pages.
fn cache_sizes(options: &CudaOptions, format: KvFormat) -> CacheSizes {
    CacheSizes { page_size: options.page_size, max_rows: options.max_rows, format }
}

/// Most block-table entries of one sequence in all cache groups, in a step that computes `rows` of its rows.
pub(super) fn blocks_of_sequence(spec: &ModelSpec, options: &CudaOptions, rows: usize) -> usize {
    let positions = u32::try_from(spec.max_positions).unwrap_or(u32::MAX);
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    let blocks = |window| CacheGeometry::pages_for_sequence(options.page_size.get(), positions, window, rows) as usize;
    spec.windows().into_iter().map(blocks).sum()
}

/// The largest step; the inputs of any step fit.
fn largest_step(spec: &ModelSpec, options: &CudaOptions, attention: AttentionPlan, logits_rows: usize) -> StepShape {
    let (split_tiles, tiles) = attention.max_tiles(spec, options);
    StepShape {
        rows: options.max_rows,
        sequences: options.max_sequences,
        tiles,
        split_tiles,
        split_rows: 1,
        blocks: options.max_sequences * blocks_of_sequence(spec, options, options.max_rows),
        logits_rows,
        decodes: true,
    }
}

impl Sizes {
    pub(super) fn new(spec: &ModelSpec, options: &CudaOptions, gpu: &Properties, format: KvFormat) -> Sizes {
        let logits_rows = Sizes::logits_rows(options);
        let attention = AttentionPlan::new(spec, options, gpu);
        let step = largest_step(spec, options, attention, logits_rows);
        let cache = cache_sizes(options, format).geometry(spec, options.pages);
        Sizes {
            rows: options.max_rows,
            logits_rows,
            hidden: padded(spec.hidden_size),
            attn_out: spec.heads * spec.head_dim,
            intermediate: padded(spec.intermediate_size()),
            vocab: padded(spec.vocab_size),
            layer_page_bytes: format.bytes(u64::from(options.page_size.get()) * spec.kv_heads as u64, spec.head_dim)
                as usize,
            step_words: StepLayout::new(step, cache.groups.len()).words(),
            cache,
            attention: attention.workspace_len(spec, options, gpu),
            sampler_bytes: Sampler::bytes(gpu, spec, logits_rows),
        }
    }

    /// Most logits rows in a step.
    pub(super) fn logits_rows(options: &CudaOptions) -> usize {
        options.max_rows.min(MAX_LOGITS_ROWS)
    }

    fn activations(&self) -> usize {
        self.rows * (2 * self.hidden + 2 * self.attn_out + self.intermediate)
    }
}

/// One line of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLine {
    /// Purpose.
    pub what: &'static str,
    /// Bytes of device memory.
    pub bytes: u64,
}

/// The memory plan of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Allocated once, for the model's lifetime.
    pub lines: Vec<MemoryLine>,
}

impl MemoryPlan {
    /// The plan of a model of `spec` with these options on a GPU like `gpu`: what loading allocates. Needs no device.
    ///
    /// # Errors
    /// Unsupported network or options.
    pub fn of(spec: &ModelSpec, options: &CudaOptions, gpu: &Properties) -> Result<MemoryPlan, BackendError> {
        check_supported(spec, options)?;
        // Same size in F16.
        let layout = Layout::new(spec, Dtype::Bf16);
        Ok(MemoryPlan::new(spec, &layout, &Sizes::new(spec, options, gpu, ANY_FORMAT)))
    }

    pub(super) fn new(spec: &ModelSpec, layout: &Layout, sizes: &Sizes) -> MemoryPlan {
        let elements = |count: usize| (count * ELEMENT_BYTES) as u64;
        let line = |what, bytes| MemoryLine { what, bytes };
        MemoryPlan {
            lines: vec![
                line("weights", layout.bytes()),
                line("rope table", RopeTable::bytes(spec, spec.max_positions)),
                line("key/value cache", sizes.cache.bytes()),
                line("activations", elements(sizes.activations())),
                line("logits", (sizes.logits_rows * sizes.vocab * 4) as u64),
                line("attention workspace", (4 * (sizes.attention.partials + sizes.attention.tile_counters)) as u64),
                line("step inputs", (sizes.step_words * 4) as u64),
                line("sampler", sizes.sampler_bytes),
            ],
        }
    }

    /// Total bytes.
    pub fn bytes(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }

    /// Checks that `free` bytes suffice, with the driver's reserve.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`], with what is needed, what is free and how to reduce it.
    pub fn check(&self, free: u64) -> Result<(), BackendError> {
        if self.needed() <= free {
            return Ok(());
        }
        Err(self.shortage(&format!("{} are free on the GPU", Size(free))))
    }

    /// All lines and the driver's reserve.
    pub fn needed(&self) -> u64 {
        self.bytes().saturating_add(DRIVER_BYTES)
    }

    fn shortage(&self, room: &str) -> BackendError {
        let advice = format!(
            "{room}; a lower context makes the cache smaller, a lower prefill chunk the activations, and the device cpu \
             needs none of it"
        );
        let what = format!("{self}, driver {}", Size(DRIVER_BYTES));
        BackendError::OutOfMemory { needed: self.needed(), what, advice }
    }
}

/// Most pages that fit on `device` beside everything else, if the model may take `memory` bytes of its free memory (90
/// % by default). Ignores `options.pages`.
///
/// # Errors
/// [`BackendError::OutOfMemory`] with every line if not even `least` pages fit; unsupported network or options; device
/// errors.
pub fn pages_within(
    device: &Device,
    spec: &ModelSpec,
    options: &CudaOptions,
    memory: Option<u64>,
    least: u32,
) -> Result<u32, BackendError> {
    let (free, _) = device.memory()?;
    let room = memory.unwrap_or(free - free / 10).min(free);
    match max_pages(device.properties(), spec, options, room)? {
        Some(pages) if pages >= least => Ok(pages),
        _ => {
            let room = format!("{} may be taken of the {} that are free on the GPU", Size(room), Size(free));
            let options = CudaOptions { pages: least, ..options.clone() };
            Err(MemoryPlan::of(spec, &options, device.properties())?.shortage(&room))
        }
    }
}

/// Most pages within `room` bytes on a GPU like `gpu`, driver reserve included. `None` if everything else does not fit.
/// Ignores `options.pages`.
///
/// # Errors
/// Unsupported network or options.
pub fn max_pages(
    gpu: &Properties,
    spec: &ModelSpec,
    options: &CudaOptions,
    room: u64,
) -> Result<Option<u32>, BackendError> {
    let rest = MemoryPlan::of(spec, &CudaOptions { pages: 0, ..options.clone() }, gpu)?.needed();
    // Kernels index the slots of all heads with 32 bits.
    let most = u32::MAX / options.page_size.get().saturating_mul(spec.kv_heads as u32).max(1);
    let left = room.checked_sub(rest);
    Ok(left.map(|left| cache_sizes(options, ANY_FORMAT).max_pages(spec, left).min(most)))
}

/// `weights 5.64 GiB, key/value cache 120 MiB, …`
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, MemoryLine { what, bytes }) in self.lines.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{what} {}", Size(*bytes))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said_with_every_line() {
        let lines = vec![
            MemoryLine { what: "weights", bytes: 31_915_778_048 },
            MemoryLine { what: "key/value cache", bytes: 335_544_320 },
        ];
        let plan = MemoryPlan { lines };
        assert!(plan.check(plan.bytes() + DRIVER_BYTES).is_ok());
        let error = plan.check(24_000_000_000).unwrap_err().to_string();
        assert_eq!(
            error,
            "out of memory: 30.3 GiB for weights 29.7 GiB, key/value cache 320 MiB, driver 256 MiB; 22.4 GiB are free on \
             the GPU; a lower context makes the cache smaller, a lower prefill chunk the activations, and the device cpu \
             needs none of it"
        );
    }
}
