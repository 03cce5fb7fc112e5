//! Opens a model on a device: chooses the device, sizes steps and cache, and loads the weights.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Instant;

use super::cpu::{self, CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "cuda")]
use super::cuda::model::{CudaOptions, WeightSource};
use super::dtype::matrix_dtypes;
use super::placement::{Device, Placement};
use super::{Backend, BackendError, Determinism, LoadProgress, LoadStage, WeightDtype};
use crate::checkpoint::{Checkpoint, Config, Dtype, ModelSource, OpenOptions, WeightLoading};
use crate::host::{Size, counted};
use crate::kv::CacheGeometry;
#[cfg(feature = "cuda")]
use crate::model::random_name;
use crate::model::{ModelSpec, random_checkpoint};

/// Page size on the CPU: small enough that a page does not long outlive the window, large enough for long contiguous
/// reads.
const CPU_PAGE_SIZE: NonZeroU32 = NonZeroU32::new(64).unwrap();
/// Prompt rows per step on the CPU: enough to amortise reading the weights.
const CPU_PREFILL_CHUNK: NonZeroU32 = NonZeroU32::new(256).unwrap();
/// Sequences per step on the CPU: enough to amortise reading the weights.
const CPU_SEQUENCES: NonZeroUsize = NonZeroUsize::new(32).unwrap();
/// Page size on a GPU: one tile of the attention kernels.
#[cfg(feature = "cuda")]
const CUDA_PAGE_SIZE: NonZeroU32 = NonZeroU32::new(64).unwrap();
/// Prompt rows per step on a GPU: enough for its GEMMs to be compute-bound.
#[cfg(feature = "cuda")]
const CUDA_PREFILL_CHUNK: NonZeroU32 = NonZeroU32::new(2048).unwrap();
/// Sequences per step on a GPU: about where its GEMMs become compute-bound.
#[cfg(feature = "cuda")]
pub(super) const CUDA_SEQUENCES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Options for opening a model on a device.
#[derive(Debug, Clone, Default)]
pub struct BackendOptions {
    /// Where the model runs.
    pub device: Device,
    /// The dtype of the weights on a GPU. On the CPU, which uses them as they are stored, anything but
    /// [`WeightDtype::Auto`] is an error.
    pub dtype: WeightDtype,
    /// Threads of the CPU backend; one for each core that the process may use ([`cpu::available_cores`]) by default.
    /// More are capped at that, with a warning.
    pub threads: Option<NonZeroUsize>,
    /// Positions per page.
    pub page_size: Option<NonZeroU32>,
    /// Context length, prompt and completion together. The model's own by default, and at most, with a warning.
    pub context: Option<NonZeroU32>,
    /// Bytes that the model may take of its device: weights, cache and workspace on a GPU; cache and workspace on the
    /// CPU. The default is 90 % of what is free on a GPU, and on the CPU half of what this process can have.
    pub memory: Option<NonZeroU64>,
    /// The most sequences computed in one step; 32 on the CPU and 256 on a GPU by default.
    pub max_sequences: Option<NonZeroUsize>,
    /// The most prompt rows computed in one step; 256 on the CPU and 2048 on a GPU by default.
    pub prefill_chunk: Option<NonZeroU32>,
    /// How the weight files come to this process.
    pub weight_loading: WeightLoading,
    /// Reads the weights in at once and locks them in memory. Of no effect on a GPU.
    pub mlock: bool,
    /// Determinism of a GPU's kernels.
    pub determinism: Determinism,
}

/// The model and the source of its weights.
#[derive(Debug, Clone)]
pub enum ModelWeights {
    /// A directory, a hub id or `nano`: see [`ModelSource::resolve`].
    Named(String),
    /// Files that were already resolved.
    Stored(ModelSource),
    /// Random weights for the network that `config` describes, made on the device; equal seeds give equal weights.
    Random {
        /// The network.
        config: Box<Config>,
        /// Seed of the weights.
        seed: u32,
    },
}

/// A backend and its checkpoint.
pub struct Opened {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// Tokenizer and templates.
    pub source: ModelSource,
}

/// Opens the device and loads the weights. `report` is called while weights are read and uploaded.
///
/// # Errors
/// The device is not available; files are missing, broken or of another network; not enough memory.
pub fn open(
    options: &BackendOptions,
    weights: ModelWeights,
    report: &mut dyn FnMut(LoadProgress),
) -> Result<Opened, BackendError> {
    // Device errors come before file errors.
    let placement = options.device.placement()?;
    let source = match weights {
        ModelWeights::Named(name) => ModelSource::resolve(&name)?,
        ModelWeights::Stored(source) => source,
        ModelWeights::Random { config, seed } => return open_random(options, placement, *config, seed, report),
    };
    let checkpoint = open_checkpoint(options, &source, report)?;
    let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
    spec.untie_stored_head(&checkpoint);
    log_files(&checkpoint, &spec);
    options.warn_of_context(&spec);
    let spec = options.limited(spec);
    let backend = match options.device.with_kernels(placement, &spec) {
        Placement::Cpu => {
            no_dtype_on_cpu(options.dtype)?;
            read_ahead(&checkpoint, report);
            options.lock_weights(&checkpoint);
            options.cpu_backend(&checkpoint, spec)?
        }
        #[cfg(feature = "cuda")]
        Placement::Cuda(device) => {
            let dtype = options.dtype.resolve_and_log(&checkpoint, &spec);
            options.cuda_backend(&device, (&checkpoint).into(), dtype, spec, report)?
        }
    };
    Ok(Opened { backend, source })
}

#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "nothing is read or uploaded to the CPU"))]
fn open_random(
    options: &BackendOptions,
    placement: Placement,
    config: Config,
    seed: u32,
    report: &mut dyn FnMut(LoadProgress),
) -> Result<Opened, BackendError> {
    let spec = ModelSpec::from_config(&config)?;
    options.warn_of_context(&spec);
    let spec = options.limited(spec);
    let dtype = options.dtype.of_config(&config);
    match placement {
        Placement::Cpu => {
            CpuBackend::check_memory(spec.counts().parameters * dtype.size() as u64, "random weights")?;
            let checkpoint = random_checkpoint(config, dtype, seed)?;
            options.lock_weights(&checkpoint);
            Ok(Opened { backend: options.cpu_backend(&checkpoint, spec)?, source: checkpoint.source().clone() })
        }
        #[cfg(feature = "cuda")]
        Placement::Cuda(device) => {
            let source = ModelSource::in_memory(&random_name(&config));
            let backend = options.cuda_backend(&device, WeightSource::Random { seed }, dtype, spec, report)?;
            Ok(Opened { backend, source })
        }
    }
}

/// Opens the checkpoint and warns about network file systems.
fn open_checkpoint(
    options: &BackendOptions,
    source: &ModelSource,
    report: &mut dyn FnMut(LoadProgress),
) -> Result<Checkpoint, BackendError> {
    let began = Instant::now();
    let report = &mut |done_bytes, total_bytes| {
        let (stage, elapsed) = (LoadStage::Read, began.elapsed());
        report(LoadProgress { stage, done_bytes, total_bytes, elapsed });
    };
    let checkpoint =
        Checkpoint::open_with(source, OpenOptions { weights: options.weight_loading, on_read: Some(report) })?;
    if let Some((file, kind)) = checkpoint.network_file() {
        tracing::warn!(
            target: "rigel::network_file_system",
            "{file} is mapped from a network file system ({kind}): where its server goes away or somebody writes to \
             the file, this process ends or computes nonsense; read the weights into memory instead"
        );
    }
    Ok(checkpoint)
}

/// Reads mapped weights that are not in memory, in order and with several threads. Otherwise the first token would wait
/// for one page fault after another, without progress.
fn read_ahead(checkpoint: &Checkpoint, report: &mut dyn FnMut(LoadProgress)) {
    let began = Instant::now();
    checkpoint.read_ahead(&mut |done_bytes, total_bytes| {
        let (stage, elapsed) = (LoadStage::Read, began.elapsed());
        report(LoadProgress { stage, done_bytes, total_bytes, elapsed });
    });
}

impl BackendOptions {
    /// Locks the weights in memory if requested. Failing to is a warning, not an error.
    fn lock_weights(&self, checkpoint: &Checkpoint) {
        if self.mlock {
            match checkpoint.lock_weights() {
                Ok(bytes) => tracing::debug!("{} of weights are locked into memory", Size(bytes)),
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    /// Warns if the requested context is longer than the model's.
    fn warn_of_context(&self, spec: &ModelSpec) {
        if let Some(context) = self.context.filter(|context| context.get() as usize > spec.max_positions) {
            let positions = spec.max_positions;
            tracing::warn!(
                "a context of {context} was asked for and the model has {positions} positions: using as many"
            );
        }
    }

    /// The same options with the effective context.
    pub(super) fn limited(&self, mut spec: ModelSpec) -> ModelSpec {
        if let Some(context) = self.context {
            spec.max_positions = spec.max_positions.min(context.get() as usize);
        }
        spec
    }

    /// The same options for this many sequences.
    pub fn for_sequences(&self, sequences: NonZeroUsize) -> BackendOptions {
        BackendOptions { max_sequences: Some(sequences), ..self.clone() }
    }

    fn cpu_backend(&self, checkpoint: &Checkpoint, spec: ModelSpec) -> Result<Box<dyn Backend>, BackendError> {
        let (step, options) = self.cpu_step(&spec);
        let memory = self.memory.map(NonZeroU64::get);
        let threads = self.threads.map(|wanted| cap_threads(wanted, cpu::available_cores()));
        let options = CpuOptions { threads, ..options };
        let pages = CpuBackend::pages_within(&spec, &options, memory, step.min_pages, step.max_pages)?;
        step.log(&spec, pages);
        Ok(Box::new(CpuBackend::new(checkpoint, spec, CpuOptions { pages, ..options })?))
    }

    /// Step size and options for the CPU, without pages.
    pub(super) fn cpu_step(&self, spec: &ModelSpec) -> (StepSize, CpuOptions) {
        let step = self.step(spec, CPU_PAGE_SIZE, CPU_PREFILL_CHUNK, CPU_SEQUENCES);
        let options = CpuOptions { threads: self.threads, page_size: step.page_size, pages: 0, max_rows: step.rows };
        (step, options)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backend(
        &self,
        device: &cuda::Device,
        source: WeightSource<'_>,
        dtype: Dtype,
        spec: ModelSpec,
        report: &mut dyn FnMut(LoadProgress),
    ) -> Result<Box<dyn Backend>, BackendError> {
        let (step, options) = self.cuda_step(&spec);
        let memory = self.memory.map(NonZeroU64::get);
        let pages = cuda::model::pages_within(device, &spec, &options, memory, step.min_pages)?;
        let options = CudaOptions { pages: pages.min(step.max_pages), ..options };
        tracing::info!("{}: weights in {dtype}", device.properties().name);
        step.log(&spec, options.pages);
        cuda::model::load(device, source, spec, dtype, &options, report)
    }

    /// Step size and options for a GPU, without pages.
    #[cfg(feature = "cuda")]
    pub(super) fn cuda_step(&self, spec: &ModelSpec) -> (StepSize, CudaOptions) {
        let step = self.step(spec, CUDA_PAGE_SIZE, CUDA_PREFILL_CHUNK, CUDA_SEQUENCES);
        let options = CudaOptions {
            page_size: step.page_size,
            pages: 0,
            max_rows: step.rows,
            max_sequences: step.sequences,
            determinism: self.determinism,
        };
        (step, options)
    }

    /// Step size from the request and the device's defaults.
    fn step(&self, spec: &ModelSpec, page_size: NonZeroU32, chunk: NonZeroU32, sequences: NonZeroUsize) -> StepSize {
        let page_size = self.page_size.unwrap_or(page_size);
        let sequences = self.max_sequences.unwrap_or(sequences).get();
        // A step never has more rows than all positions of all sequences.
        let max_positions: u32 = spec.max_positions.try_into().unwrap_or(u32::MAX);
        let all_rows = spec.max_positions.saturating_mul(sequences);
        let rows = (self.prefill_chunk.unwrap_or(chunk).get() as usize).min(all_rows).max(sequences);
        let pages = |rows: u32| CacheGeometry::pages_for_sequence(page_size.get(), max_positions, spec.window(), rows);
        let whole = pages(rows.try_into().unwrap_or(u32::MAX));
        StepSize {
            page_size,
            rows,
            sequences,
            min_pages: pages(1),
            whole_pages: whole,
            max_pages: u32::try_from(sequences).unwrap_or(u32::MAX).saturating_mul(whole),
        }
    }
}

/// Sizes of a step and of the cache.
pub(super) struct StepSize {
    page_size: NonZeroU32,
    rows: usize,
    sequences: usize,
    /// Pages that one sequence at full context needs.
    pub(super) min_pages: u32,
    /// Most pages of one sequence at full context, with chunked prefill.
    pub(super) whole_pages: u32,
    /// Pages needed by `sequences` sequences at full context.
    pub(super) max_pages: u32,
}

impl StepSize {
    /// Logs step and cache sizes, for `--verbose`.
    fn log(&self, spec: &ModelSpec, pages: u32) {
        let StepSize { page_size, rows, sequences, .. } = self;
        let (sequences, positions) = (counted(*sequences, "sequence"), spec.max_positions);
        tracing::info!("a step has at most {sequences} and {}", counted(*rows, "row"));
        tracing::info!("a sequence has at most {positions} positions; the cache has {pages} pages of {page_size}");
    }
}

/// Logs the weights.
fn log_files(checkpoint: &Checkpoint, spec: &ModelSpec) {
    let files = checkpoint.files();
    let bytes = files.iter().map(|file| file.bytes).sum();
    let dtypes: Vec<String> = matrix_dtypes(checkpoint, spec).iter().map(Dtype::to_string).collect();
    let (count, dtypes) = (counted(files.len(), "file"), dtypes.join(" and "));
    tracing::info!("{}: {} of weights in {count}, stored in {dtypes}", checkpoint.source(), Size(bytes));
}

/// `wanted` threads, at most `cores`.
fn cap_threads(wanted: NonZeroUsize, cores: NonZeroUsize) -> NonZeroUsize {
    if wanted > cores {
        let cores = counted(cores.get(), "core");
        tracing::warn!("{wanted} threads were asked for and this process may use {cores}: using as many");
    }
    wanted.min(cores)
}

/// Checks that no dtype was requested for the CPU.
fn no_dtype_on_cpu(dtype: WeightDtype) -> Result<(), BackendError> {
    match dtype {
        WeightDtype::Auto => Ok(()),
        WeightDtype::Bf16 => Err(BackendError::DtypeOnCpu { dtype: Dtype::Bf16 }),
        WeightDtype::F16 => Err(BackendError::DtypeOnCpu { dtype: Dtype::F16 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_capped_at_the_cores() {
        let count = |n| NonZeroUsize::new(n).unwrap();
        for (wanted, cores, expected) in [(1, 1, 1), (1, 8, 1), (8, 8, 8), (9, 8, 8), (1000, 1, 1)] {
            assert_eq!(cap_threads(count(wanted), count(cores)), count(expected));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn weights_that_are_not_in_memory_are_told_of_while_they_are_read() {
        use safetensors::SafeTensors;
        use safetensors::tensor::TensorView;

        let (root, nano) =
            (tempfile::tempdir().unwrap(), concat!(env!("CARGO_MANIFEST_DIR"), "/crates/rigel-nano/model"));
        let weights = std::fs::read(format!("{nano}/model.safetensors")).unwrap();
        std::fs::copy(format!("{nano}/config.json"), root.path().join("config.json")).unwrap();
        // Longer than what a system reads ahead by itself, once it is asked for the header.
        let padding = vec![0u8; 40 << 20];
        let padding = TensorView::new(safetensors::Dtype::U8, vec![padding.len()], &padding).unwrap();
        let mut tensors = SafeTensors::deserialize(&weights).unwrap().tensors();
        tensors.push(("padding".to_owned(), padding));
        std::fs::write(root.path().join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
        let stages = || {
            let options = BackendOptions { device: Device::Cpu, ..BackendOptions::default() };
            let source = ModelSource::directory(root.path()).unwrap();
            let mut seen = Vec::new();
            open(&options, ModelWeights::Stored(source), &mut |progress| seen.push(progress)).unwrap();
            assert!(seen.last().is_none_or(|last| last.done_bytes == last.total_bytes), "{seen:?}");
            seen.into_iter().map(|progress| progress.stage).collect::<Vec<_>>()
        };
        assert_eq!(stages(), [], "a file that was just written");
        if !crate::checkpoint::read_ahead::testing::drop_pages(&root.path().join("model.safetensors")) {
            return eprintln!(
                "weights_that_are_not_in_memory…: skipped, this file system drops no pages when asked to"
            );
        }
        let cold = stages();
        assert!(!cold.is_empty() && cold.iter().all(|stage| *stage == LoadStage::Read), "{cold:?}");
        assert_eq!(stages(), [], "they are there now");
    }
}
