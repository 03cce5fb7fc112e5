//! From what a builder was told to a backend with weights: which device, how large a step and the cache are, and where the
//! weights come from.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Instant;

#[cfg(feature = "cuda")]
use crate::backend::Arithmetic;
use crate::backend::cpu::{self, CpuBackend, CpuOptions};
#[cfg(feature = "cuda")]
use crate::backend::cuda;
#[cfg(feature = "cuda")]
use crate::backend::cuda::model::{CudaOptions, WeightSource};
use crate::backend::{Backend, LoadProgress, LoadStage, WeightDtype, matrix_dtypes};
use crate::checkpoint::{Checkpoint, Config, Dtype, ModelSource, OpenOptions};
use crate::host::{Size, counted};
use crate::kv::CacheGeometry;
#[cfg(feature = "cuda")]
use crate::model::random_name;
use crate::model::{ModelSpec, random_checkpoint};

use super::builder::{EngineBuilder, EngineError, Source};
use super::draft::Speculation;
use super::placement::Placement;

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
pub(super) const CUDA_SEQUENCES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// A backend, and the files that belong to it.
pub(super) struct Loaded {
    pub(super) backend: Box<dyn Backend>,
    pub(super) source: ModelSource,
}

impl EngineBuilder {
    /// Brings the device up and the weights to it.
    pub(super) fn load(&mut self) -> Result<Loaded, EngineError> {
        // What is wrong with the device is said before any file is read.
        let placement = self.placement()?;
        let source = match self.source.take() {
            None => ModelSource::nano(),
            Some(Source::Name(name)) => ModelSource::resolve(&name)?,
            Some(Source::Resolved(source)) => source,
            Some(Source::Random { config, seed }) => return self.load_random(placement, *config, seed),
        };
        let checkpoint = self.open(&source)?;
        let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
        spec.untie_stored_head(&checkpoint);
        log_files(&checkpoint, &spec);
        self.warn_of_context(&spec);
        let spec = self.limited(spec);
        let backend = match self.with_kernels(placement, &spec) {
            Placement::Cpu => {
                no_dtype_on_cpu(self.dtype)?;
                self.read_ahead(&checkpoint);
                self.lock_weights(&checkpoint);
                self.cpu_backend(&checkpoint, spec)?
            }
            #[cfg(feature = "cuda")]
            Placement::Cuda(device) => {
                let dtype = self.dtype.resolve_and_log(&checkpoint, &spec);
                self.cuda_backend(&device, (&checkpoint).into(), dtype, spec)?
            }
        };
        Ok(Loaded { backend, source })
    }

    /// Opens the checkpoint; says where its weights are mapped from another machine.
    fn open(&mut self, source: &ModelSource) -> Result<Checkpoint, EngineError> {
        let began = Instant::now();
        let report = &mut |done_bytes, total_bytes| {
            let (stage, elapsed) = (LoadStage::Read, began.elapsed());
            self.on_load.report(LoadProgress { stage, done_bytes, total_bytes, elapsed });
        };
        let checkpoint =
            Checkpoint::open_with(source, OpenOptions { weights: self.weight_loading, on_read: Some(report) })?;
        if let Some((file, kind)) = checkpoint.network_file() {
            tracing::warn!(
                target: "rigel::network_file_system",
                "{file} is mapped from a network file system ({kind}): where its server goes away or somebody writes to \
                 the file, this process ends or computes nonsense; read the weights into memory instead"
            );
        }
        Ok(checkpoint)
    }

    /// Reads pages of mapped weights that are not in memory: in order and by several threads, where the first token would
    /// wait for one page fault after the other and nobody could say how long.
    fn read_ahead(&mut self, checkpoint: &Checkpoint) {
        let began = Instant::now();
        checkpoint.read_ahead(&mut |done_bytes, total_bytes| {
            let (stage, elapsed) = (LoadStage::Read, began.elapsed());
            self.on_load.report(LoadProgress { stage, done_bytes, total_bytes, elapsed });
        });
    }

    /// Locks the weights in memory where that was asked for; that it cannot be done is no reason to stop.
    fn lock_weights(&self, checkpoint: &Checkpoint) {
        if self.mlock {
            match checkpoint.lock_weights() {
                Ok(bytes) => tracing::debug!("{} of weights are locked into memory", Size(bytes)),
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    fn load_random(&mut self, placement: Placement, config: Config, seed: u32) -> Result<Loaded, EngineError> {
        let spec = ModelSpec::from_config(&config)?;
        self.warn_of_context(&spec);
        let spec = self.limited(spec);
        let dtype = self.dtype.of_config(&config);
        match placement {
            Placement::Cpu => {
                CpuBackend::check_memory(spec.counts().parameters * dtype.size() as u64, "random weights")?;
                let checkpoint = random_checkpoint(config, dtype, seed)?;
                self.lock_weights(&checkpoint);
                Ok(Loaded { backend: self.cpu_backend(&checkpoint, spec)?, source: checkpoint.source().clone() })
            }
            #[cfg(feature = "cuda")]
            Placement::Cuda(device) => {
                let source = ModelSource::in_memory(&random_name(&config));
                Ok(Loaded { backend: self.cuda_backend(&device, WeightSource::Random { seed }, dtype, spec)?, source })
            }
        }
    }

    /// Says where more positions were asked for than the model has.
    fn warn_of_context(&self, spec: &ModelSpec) {
        if let Some(context) = self.context.filter(|context| context.get() as usize > spec.max_positions) {
            let positions = spec.max_positions;
            tracing::warn!(
                "a context of {context} was asked for and the model has {positions} positions: using as many"
            );
        }
    }

    /// With as many positions as were asked for, or as the model has.
    pub(super) fn limited(&self, mut spec: ModelSpec) -> ModelSpec {
        if let Some(context) = self.context {
            spec.max_positions = spec.max_positions.min(context.get() as usize);
        }
        spec
    }

    fn cpu_backend(&mut self, checkpoint: &Checkpoint, spec: ModelSpec) -> Result<Box<dyn Backend>, EngineError> {
        let (step, options) = self.cpu_step(&spec);
        let memory = self.memory.map(NonZeroU64::get);
        let threads = self.threads.map(|wanted| cap_threads(wanted, cpu::available_cores()));
        let options = CpuOptions { threads, ..options };
        let pages = CpuBackend::pages_within(&spec, &options, memory, step.least_pages, step.most_pages)?;
        step.log(&spec, pages);
        if self.options.speculation == Speculation::Auto {
            self.options.speculation = Speculation::PromptLookup;
        }
        Ok(Box::new(CpuBackend::new(checkpoint, spec, CpuOptions { pages, ..options })?))
    }

    /// A CPU's step, and the options that follow from it, without pages.
    pub(super) fn cpu_step(&self, spec: &ModelSpec) -> (StepSize, CpuOptions) {
        let step = self.step(spec, CPU_PAGE_SIZE, CPU_PREFILL_CHUNK, CPU_SEQUENCES);
        let options = CpuOptions { threads: self.threads, page_size: step.page_size, pages: 0, max_rows: step.rows };
        (step, options)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backend(
        &mut self,
        device: &cuda::Device,
        source: WeightSource<'_>,
        dtype: Dtype,
        spec: ModelSpec,
    ) -> Result<Box<dyn Backend>, EngineError> {
        let (step, options) = self.cuda_step(&spec);
        let memory = self.memory.map(NonZeroU64::get);
        let pages = cuda::model::pages_within(device, &spec, &options, memory, step.least_pages)?;
        let options = CudaOptions { pages: pages.min(step.most_pages), ..options };
        tracing::info!("{}: weights in {dtype}", device.properties().name);
        step.log(&spec, options.pages);
        if self.options.speculation == Speculation::Auto && self.arithmetic == Arithmetic::BatchInvariant {
            self.options.speculation = Speculation::PromptLookup;
        }
        let report = &mut |progress| self.on_load.report(progress);
        Ok(cuda::model::load(device, source, spec, dtype, &options, report)?)
    }

    /// A GPU's step, and the options that follow from it, without pages.
    #[cfg(feature = "cuda")]
    pub(super) fn cuda_step(&self, spec: &ModelSpec) -> (StepSize, CudaOptions) {
        let step = self.step(spec, CUDA_PAGE_SIZE, CUDA_PREFILL_CHUNK, CUDA_SEQUENCES);
        let options = CudaOptions {
            page_size: step.page_size,
            pages: 0,
            max_rows: step.rows,
            max_sequences: step.sequences,
            arithmetic: self.arithmetic,
        };
        (step, options)
    }

    /// What a step holds, from what was asked for and the device's defaults.
    fn step(&self, spec: &ModelSpec, page_size: NonZeroU32, chunk: NonZeroU32, sequences: NonZeroUsize) -> StepSize {
        let page_size = self.page_size.unwrap_or(page_size);
        let sequences = self.options.max_sequences.unwrap_or(sequences).get();
        // More rows than all positions of all sequences can never come together.
        let max_positions: u32 = spec.max_positions.try_into().unwrap_or(u32::MAX);
        let all_rows = spec.max_positions.saturating_mul(sequences);
        let rows = (self.options.prefill_chunk.unwrap_or(chunk).get() as usize).min(all_rows).max(sequences);
        let pages = |rows: u32| CacheGeometry::pages_for_sequence(page_size.get(), max_positions, spec.window(), rows);
        let whole = pages(rows.try_into().unwrap_or(u32::MAX));
        StepSize {
            page_size,
            rows,
            sequences,
            least_pages: pages(1),
            whole_pages: whole,
            most_pages: u32::try_from(sequences).unwrap_or(u32::MAX).saturating_mul(whole),
        }
    }
}

/// Sizes of a step and of the cache.
pub(super) struct StepSize {
    page_size: NonZeroU32,
    rows: usize,
    sequences: usize,
    /// What one sequence of the whole context needs.
    pub(super) least_pages: u32,
    /// What one sequence of the whole context has at the most, where its prompt is computed in chunks.
    pub(super) whole_pages: u32,
    /// What as many as there can be in a step need.
    pub(super) most_pages: u32,
}

impl StepSize {
    /// Says what a step and the cache hold, for `--verbose`.
    fn log(&self, spec: &ModelSpec, pages: u32) {
        let StepSize { page_size, rows, sequences, .. } = self;
        let (sequences, positions) = (counted(*sequences, "sequence"), spec.max_positions);
        tracing::info!("a step has at most {sequences} and {}", counted(*rows, "row"));
        tracing::info!("a sequence has at most {positions} positions; the cache has {pages} pages of {page_size}");
    }
}

/// Says what the weights are.
fn log_files(checkpoint: &Checkpoint, spec: &ModelSpec) {
    let files = checkpoint.files();
    let bytes = files.iter().map(|file| file.bytes).sum();
    let dtypes: Vec<String> = matrix_dtypes(checkpoint, spec).iter().map(Dtype::to_string).collect();
    let (count, dtypes) = (counted(files.len(), "file"), dtypes.join(" and "));
    tracing::info!("{}: {} of weights in {count}, stored in {dtypes}", checkpoint.source(), Size(bytes));
}

/// `wanted` threads, but no more than `cores`.
fn cap_threads(wanted: NonZeroUsize, cores: NonZeroUsize) -> NonZeroUsize {
    if wanted > cores {
        let cores = counted(cores.get(), "core");
        tracing::warn!("{wanted} threads were asked for and this process may use {cores}: using as many");
    }
    wanted.min(cores)
}

/// That no dtype is asked of the CPU.
fn no_dtype_on_cpu(dtype: WeightDtype) -> Result<(), EngineError> {
    match dtype {
        WeightDtype::Auto => Ok(()),
        WeightDtype::Bf16 => Err(EngineError::DtypeOnCpu { dtype: Dtype::Bf16 }),
        WeightDtype::F16 => Err(EngineError::DtypeOnCpu { dtype: Dtype::F16 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use crate::engine::Device;

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
        use std::sync::{Arc, Mutex};

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
            let seen = Arc::new(Mutex::new(Vec::new()));
            let sink = seen.clone();
            let source = ModelSource::directory(root.path()).unwrap();
            let builder = EngineBuilder::default().source(source).device(Device::Cpu);
            builder.on_load(move |progress| sink.lock().unwrap().push(progress)).build_backend().unwrap();
            let seen = seen.lock().unwrap().clone();
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
