//! From the start of a process to its first token, phase by phase.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::report::{DeviceRecord, Report, Row, Suite};
use super::times::Times;

#[cfg(feature = "cuda")]
use crate::backend::cuda;
use crate::backend::{Backend, BackendError, Batch, Device, LoadProgress, LoadStage, SequenceRows, Token};
use crate::checkpoint::{Checkpoint, ModelSource};
use crate::engine::{EngineBuilder, EngineError};
use crate::kv::{BlockTable, PageId};
use crate::model::ModelSpec;
use crate::sampling::{SampleRow, SamplingParams};
use crate::text::{TokenId, Tokenizer};

/// Steps after the first token: one that is launched, one that is recorded, one that is replayed.
const STEPS: usize = 3;
/// Bytes of a copy that measures the link, and how many are timed.
#[cfg(feature = "cuda")]
const LINK_BYTES: usize = 64 << 20;
#[cfg(feature = "cuda")]
const LINK_COPIES: usize = 5;

/// One start of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// What it ran on.
    pub device: DeviceRecord,
    /// In the order in which they came. Those up to the first token add up to the time it took.
    pub phases: Vec<Phase>,
    /// Bytes a second from pinned host memory to the device, measured after it all; none on the CPU.
    pub link: Option<f64>,
    /// Tokens of the prompt: fewer than asked for where the model has no positions, or the cache no pages, for more.
    pub prompt: usize,
}

/// A stretch of a start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// How long it took, in microseconds.
    pub us: f64,
    /// Bytes that were read from files or travelled to the device, 0 where that is not what it was about.
    pub bytes: u64,
    /// Whether it came before the first token was there.
    pub before_first_token: bool,
}

/// The name of the phase that the system takes.
const PROCESS: &str = "process start";
/// Weights that were not in memory.
const READ: &str = "read";
const UPLOAD: &str = "upload";

struct Clock {
    last: Instant,
    phases: Vec<Phase>,
}

impl Clock {
    /// What has passed since the last one was `name`.
    fn phase(&mut self, name: &str) {
        let us = self.last.elapsed().as_secs_f64() * 1e6;
        self.last = Instant::now();
        self.add(name, us, 0);
    }

    fn add(&mut self, name: &str, us: f64, bytes: u64) {
        self.phases.push(Phase { name: name.to_owned(), us, bytes, before_first_token: true });
    }
}

/// Loads the model of `source` on `device` as `builder` has it and computes a prompt of about `prompt` tokens and a few
/// steps. `process_us` is how long it took until this could be called, in microseconds.
///
/// # Errors
/// As for [`EngineBuilder::build`].
pub fn measure(
    source: ModelSource,
    device: Device,
    builder: EngineBuilder,
    prompt: usize,
    process_us: f64,
) -> Result<Start, EngineError> {
    let mut clock = Clock { last: Instant::now(), phases: Vec::new() };
    clock.add(PROCESS, process_us, 0);
    let checkpoint = Checkpoint::open(&source)?;
    ModelSpec::from_checkpoint(&checkpoint)?;
    clock.phase("map, headers");
    let _tokenizer = Tokenizer::from_source(&source)?;
    clock.phase("tokenizer");
    // Stays open beside the backend's, so that opening it again costs nothing.
    let gpu = open(device)?;
    if gpu.is_some() {
        clock.phase("open the device");
    }
    let loaded = Arc::new(Mutex::new(Vec::new()));
    let report = loaded.clone();
    // What the device came to is known: it is asked, and warned of, once.
    let device = if gpu.is_some() { device } else { Device::Cpu };
    let builder = builder.source(source).device(device).on_load(move |progress: LoadProgress| {
        let mut stages = report.lock().unwrap_or_else(PoisonError::into_inner);
        match stages.iter_mut().find(|earlier: &&mut LoadProgress| earlier.stage == progress.stage) {
            Some(earlier) => *earlier = progress,
            None => stages.push(progress),
        }
    });
    let mut backend = builder.build_backend()?;
    // The rest of it is what is done before and behind: kernels, cache and tables.
    let rest = if gpu.is_some() { "kernels, cache, tables" } else { "cache, threads" };
    let loaded = std::mem::take(&mut *loaded.lock().unwrap_or_else(PoisonError::into_inner));
    let us = |elapsed: Duration| elapsed.as_secs_f64() * 1e6;
    let all_us = us(clock.last.elapsed());
    clock.last = Instant::now();
    clock.add(rest, (all_us - loaded.iter().map(|progress| us(progress.elapsed)).sum::<f64>()).max(0.0), 0);
    for LoadProgress { stage, total_bytes, elapsed, .. } in loaded {
        let name = if stage == LoadStage::Upload { UPLOAD } else { READ };
        clock.add(name, us(elapsed), total_bytes);
    }

    let mut run = Run::new(backend.as_mut(), prompt);
    let prompt = run.prompt;
    run.prefill().map_err(EngineError::Backend)?;
    clock.phase("prefill, first token");
    let first_token = clock.phases.len();
    let names = match gpu {
        Some(_) => ["step, launched", "step, recorded", "step, replayed"],
        None => ["second step", "third step", "fourth step"],
    };
    for (step, name) in names.into_iter().enumerate() {
        run.forward(prompt + step..prompt + step + 1).map_err(EngineError::Backend)?;
        clock.phase(name);
    }
    clock.phases[first_token..].iter_mut().for_each(|phase| phase.before_first_token = false);
    drop(backend);
    let (device, link) = describe(gpu)?;
    Ok(Start { device, phases: clock.phases, link, prompt })
}

/// One sequence by hand: no scheduler, so that nothing but the device is timed.
struct Run<'a> {
    backend: &'a mut dyn Backend,
    /// One for each group of the cache.
    tables: Vec<BlockTable>,
    prompt: usize,
}

impl Run<'_> {
    fn new(backend: &mut dyn Backend, prompt: usize) -> Run<'_> {
        let cache = backend.cache();
        let (page_size, groups) = (cache.page_size.get() as usize, &cache.groups);
        let fewest = groups.iter().map(|group| group.pages as usize).min().unwrap_or(0);
        let positions = backend.spec().max_positions.min(fewest.saturating_mul(page_size)).saturating_sub(STEPS);
        let prompt = prompt.min(positions).max(1);
        let pages = (prompt + STEPS).div_ceil(page_size).min(fewest) as u32;
        let tables = vec![BlockTable::from_pages(0, (0..pages).map(PageId).collect()); groups.len()];
        Run { backend, tables, prompt }
    }

    /// Computes the prompt, in chunks of as many rows as a step takes, and draws the first token.
    fn prefill(&mut self) -> Result<(), BackendError> {
        let rows = self.backend.max_rows().max(1);
        for start in (0..self.prompt).step_by(rows) {
            self.forward(start..self.prompt.min(start + rows))?;
        }
        Ok(())
    }

    /// Computes the rows at these positions and draws the token behind the last of the prompt and those after it.
    fn forward(&mut self, positions: Range<usize>) -> Result<(), BackendError> {
        let vocabulary = self.backend.spec().vocab_size;
        // Any tokens will do, and few of them alike.
        let token_ids: Vec<TokenId> =
            positions.clone().map(|position| TokenId((position * 7919 % vocabulary) as u32)).collect();
        let rows = token_ids.len();
        let sequence = SequenceRows { rows: 0..rows, start: positions.start as u32, tables: &self.tables };
        // Rows before the end of the prompt have no use for logits.
        let logits_rows = if positions.end < self.prompt { vec![] } else { vec![rows - 1] };
        self.backend.forward(&Batch {
            tokens: &Token::known(&token_ids),
            sequences: &[sequence],
            logits_rows: &logits_rows,
        })?;
        if logits_rows.is_empty() {
            return Ok(());
        }
        let params = SamplingParams::default();
        let row = SampleRow::new(0, &params, positions.end as u32);
        // What is drawn, or that its logits are not finite, is not the question.
        self.backend.sample(&[row]).map(|_| ())
    }
}

#[cfg(feature = "cuda")]
type Gpu = cuda::Device;
#[cfg(not(feature = "cuda"))]
type Gpu = std::convert::Infallible;

/// The GPU that the builder will take, opened; none where it takes the CPU.
#[cfg(feature = "cuda")]
fn open(device: Device) -> Result<Option<Gpu>, EngineError> {
    Ok(device.gpu()?)
}

#[cfg(not(feature = "cuda"))]
fn open(_: Device) -> Result<Option<Gpu>, EngineError> {
    Ok(None)
}

#[cfg(feature = "cuda")]
fn describe(gpu: Option<Gpu>) -> Result<(DeviceRecord, Option<f64>), EngineError> {
    match gpu {
        Some(gpu) => Ok((DeviceRecord::of_gpu(&gpu), Some(link(&gpu).map_err(BackendError::NoGpu)?))),
        None => Ok((cpu(), None)),
    }
}

#[cfg(not(feature = "cuda"))]
fn describe(_: Option<Gpu>) -> Result<(DeviceRecord, Option<f64>), EngineError> {
    Ok((cpu(), None))
}

fn cpu() -> DeviceRecord {
    DeviceRecord::of_cpu(std::thread::available_parallelism().map_or(1, usize::from))
}

/// Bytes a second of the fastest of a few copies from pinned memory.
#[cfg(feature = "cuda")]
fn link(gpu: &cuda::Device) -> Result<f64, cuda::CudaError> {
    let stream = gpu.stream()?;
    let from = cuda::Pinned::<u8>::zeroed(gpu, LINK_BYTES)?;
    let mut to = stream.alloc::<u8>(LINK_BYTES)?;
    let mut fastest = 0.0f64;
    // The first touches everything.
    for copy in 0..=LINK_COPIES {
        let begin = stream.record()?;
        stream.copy_from_pinned(&from, to.view_mut())?;
        let end = stream.record()?;
        let seconds = f64::from(begin.milliseconds_until(&end)?) * 1e-3;
        if copy > 0 && seconds > 0.0 {
            fastest = fastest.max(LINK_BYTES as f64 / seconds);
        }
    }
    Ok(fastest)
}

/// The rows of several starts of the same model: one a phase, then the sum up to the first token.
pub fn add_rows(report: &mut Report, model: &str, starts: &[Start]) {
    let Some(first) = starts.first() else { return };
    let row = |name: &str, samples: Vec<f64>| {
        let row = Row { model: Some(model.to_owned()), times: Times::of(samples), ..Row::new(Suite::Start, name) };
        row.size("prompt", first.prompt).size("device", first.device.kind.as_str())
    };
    // A phase that is not in all of them would be no figure.
    let samples = |name: &str| -> Vec<f64> {
        let of = |start: &Start| start.phases.iter().find(|phase| phase.name == name).map(|phase| phase.us);
        starts.iter().filter_map(of).collect()
    };
    let link = starts.iter().filter_map(|start| start.link).max_by(f64::total_cmp).filter(|link| *link > 0.0);
    for phase in &first.phases {
        let mut row = row(&phase.name, samples(&phase.name));
        row.bytes = phase.bytes;
        if let (UPLOAD, Some(link), Some(rate)) = (phase.name.as_str(), link, row.bytes_per_second()) {
            row.of_limit = Some(rate / link);
            row.values.insert("link_bytes_per_second".to_owned(), link);
        }
        report.rows.push(row);
    }
    let until_first =
        |start: &Start| start.phases.iter().filter(|phase| phase.before_first_token).map(|phase| phase.us).sum::<f64>();
    report.rows.push(row("first token", starts.iter().map(until_first).collect()));
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "nano")]
    use crate::engine::Engine;

    #[cfg(feature = "nano")]
    #[test]
    fn a_start_on_the_cpu_has_its_phases_and_rows() {
        let start = measure(ModelSource::nano(), Device::Cpu, Engine::builder(), 20, 1500.0).unwrap();
        let names: Vec<&str> = start.phases.iter().map(|phase| phase.name.as_str()).collect();
        let before = [PROCESS, "map, headers", "tokenizer", "cache, threads", "prefill, first token"];
        assert_eq!(names, [&before[..], &["second step", "third step", "fourth step"]].concat());
        assert_eq!((start.prompt, start.link, start.device.kind.as_str()), (20, None, "cpu"));
        assert!(start.phases.iter().all(|phase| phase.us >= 0.0 && phase.bytes == 0));

        let mut other = start.clone();
        other.phases[0].us = 2500.0;
        let mut report = Report::begin(start.device.clone());
        add_rows(&mut report, "nano", &[start.clone(), other]);
        assert_eq!(report.rows.len(), names.len() + 1);
        assert_eq!(report.rows[0].times.unwrap().median_us, 2000.0);
        let total = report.rows.last().unwrap().times.unwrap();
        let sum: f64 = start.phases[..before.len()].iter().map(|phase| phase.us).sum();
        assert!((total.median_us - sum - 500.0).abs() < 1e-6 && total.samples == 2);
    }

    #[cfg(feature = "nano")]
    #[test]
    fn a_prompt_longer_than_a_step_is_computed_in_chunks_and_one_longer_than_the_model_is_cut() {
        let prompt = |asked| {
            let builder = Engine::builder().prefill_chunk(std::num::NonZeroU32::new(16).unwrap());
            measure(ModelSource::nano(), Device::Cpu, builder, asked, 0.0).unwrap().prompt
        };
        assert_eq!(prompt(50), 50);
        let positions =
            ModelSpec::from_checkpoint(&Checkpoint::open(&ModelSource::nano()).unwrap()).unwrap().max_positions;
        let cut = prompt(positions);
        assert!((17..positions).contains(&cut), "{cut}");
    }

    #[test]
    fn an_upload_is_held_against_the_link() {
        let phase = |name: &str, us, bytes| Phase { name: name.to_owned(), us, bytes, before_first_token: true };
        let start = Start {
            device: DeviceRecord::default(),
            phases: vec![phase(UPLOAD, 1e6, 30_000_000_000)],
            link: Some(50e9),
            prompt: 1,
        };
        let mut report = Report::begin(DeviceRecord::default());
        add_rows(&mut report, "m", &[start]);
        assert_eq!(report.rows[0].of_limit, Some(0.6));
    }
}
