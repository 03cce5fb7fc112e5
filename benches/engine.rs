//! What the engine itself costs, and what it gains.
//!
//! - `engine/step of 256`: a step of 256 decoding sequences over a backend that computes nothing: planning, pages,
//!   batches, tokens and events. Measured on the engine's thread, from one call of the backend to the next.
//! - then, on a made-up 3B with six layers (1.45 GB) on the CPU: tokens a second one request at a time and sixteen at
//!   once, and the share of a step that is not the backend's.
//!
//!     cargo bench --bench engine

#[path = "common/synthetic.rs"]
mod synthetic;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criterion::Criterion;
use rigel::backend::cpu::{CpuBackend, CpuOptions};
use rigel::backend::{Backend, BackendError, Batch, DeviceInfo};
use rigel::checkpoint::{Checkpoint, Config, Dtype, ModelSource};
use rigel::engine::{Engine, EngineOptions, Request, Speculation};
use rigel::kv::{CacheGeometry, CacheGroup, KvFormat};
use rigel::model::ModelSpec;
use rigel::sampling::{NotFinite, SampleError, SampleRow, Sampled, TokenLogprobs};
use rigel::text::TokenId;

/// Sequences of the step whose cost is measured.
const SEQUENCES: usize = 256;
/// Requests at once of the comparison, their prompts and their tokens.
const BATCH: usize = 16;
const PROMPT: usize = 4;
const NEW_TOKENS: u32 = 32;
/// Turns of the comparison; each measures both ways once.
const TURNS: usize = 5;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    let mut group = criterion.benchmark_group("engine");
    group.bench_function("step of 256", |b| b.iter_custom(|steps| bookkeeping(steps as usize)));
    group.finish();
    criterion.final_summary();
    // With a filter, or for a test of the bench itself, criterion's part is all.
    let bench_alone = std::env::args().skip(1).all(|argument| argument == "--bench");
    if bench_alone {
        compare();
    }
}

/// A backend that computes nothing and says when it was called.
struct Nothing {
    spec: ModelSpec,
    cache: CacheGeometry,
    calls: Sender<(Instant, Instant)>,
    /// All sequences are there: the first call waits for them, since nothing waits for those that come late.
    all_there: Arc<AtomicBool>,
    /// Of the draws that were started.
    positions: Vec<u32>,
}

impl Backend for Nothing {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn device(&self) -> DeviceInfo {
        DeviceInfo::Other { name: "nothing".to_owned() }
    }
    fn cache(&self) -> &CacheGeometry {
        &self.cache
    }
    fn max_rows(&self) -> usize {
        2048
    }
    fn max_logits_rows(&self) -> usize {
        SEQUENCES
    }
    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        while !self.all_there.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let now = Instant::now();
        if batch.sequences.len() == SEQUENCES && batch.tokens.len() == SEQUENCES {
            // Nobody listens any more after the last step that is wanted.
            let _ = self.calls.send((now, Instant::now()));
        }
        Ok(())
    }
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Err(BackendError::InvalidBatch(format!("no logits of row {row}")))
    }
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError> {
        self.positions = rows.iter().map(|row| row.position).collect();
        Ok(())
    }
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        let drawn = |position: u32| Ok(Sampled { token: TokenId(position % 1000 + 1), logprobs: None });
        Ok(self.positions.drain(..).map(drawn).collect())
    }
}

/// The time that so many steps take beside the backend's calls.
fn bookkeeping(steps: usize) -> Duration {
    let json = r#"{"model_type": "starcoder2", "vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64, "sliding_window": 4096,
        "max_position_embeddings": 16777216, "eos_token_id": 0, "bos_token_id": 0}"#;
    let spec = ModelSpec::from_config(&Config::parse(json.as_bytes(), "config.json").expect("valid")).expect("valid");
    let group =
        CacheGroup { window: spec.window(), pages: 300_000, format: KvFormat::Dense(Dtype::F32), page_bytes: 0 };
    let cache = CacheGeometry { page_size: NonZeroU32::new(64).expect("not zero"), groups: vec![group] };
    let all_there = Arc::new(AtomicBool::new(false));
    let (calls, called): (_, Receiver<(Instant, Instant)>) = channel();
    let options = EngineOptions { speculation: Speculation::Off, ..EngineOptions::default() };
    let engine = Engine::with_backend(
        Box::new(Nothing { spec, cache, calls, all_there: all_there.clone(), positions: Vec::new() }),
        None,
        String::new(),
        options,
    )
    .expect("a thread");
    // Steps before the ones that count: all sequences are in, and their first pages are.
    const BEFORE: usize = 100;
    let request = move |i: usize| Request {
        max_tokens: (steps + BEFORE + 50) as u32,
        ..Request::new(vec![TokenId(i as u32 % 1000 + 1); 100])
    };
    let engine = Arc::new(engine);
    let consumer = std::thread::spawn({
        let engine = engine.clone();
        move || {
            let in_flight = NonZeroUsize::new(SEQUENCES).expect("not zero");
            let requests = (0..SEQUENCES).map(|i| {
                all_there.store(i + 1 == SEQUENCES, Ordering::Relaxed);
                request(i)
            });
            engine.generate_all(in_flight, requests, |_, event| drop(event));
        }
    });
    let mut beside = Duration::ZERO;
    let mut left: Option<Instant> = None;
    for (step, (entered, leaves)) in called.iter().enumerate() {
        if step > BEFORE
            && let Some(left) = left
        {
            beside += entered - left;
        }
        left = Some(leaves);
        if step == BEFORE + steps {
            break;
        }
    }
    drop(called);
    consumer.join().expect("the consumer does not panic");
    beside
}

/// A backend with a clock: how long its calls took.
struct Timed {
    inside: CpuBackend,
    clock: Arc<Mutex<Duration>>,
}

impl Timed {
    fn time<T>(&mut self, work: impl FnOnce(&mut CpuBackend) -> T) -> T {
        let start = Instant::now();
        let result = work(&mut self.inside);
        *self.clock.lock().expect("nobody panics under it") += start.elapsed();
        result
    }
}

impl Backend for Timed {
    fn spec(&self) -> &ModelSpec {
        self.inside.spec()
    }
    fn device(&self) -> DeviceInfo {
        self.inside.device()
    }
    fn cache(&self) -> &CacheGeometry {
        self.inside.cache()
    }
    fn max_rows(&self) -> usize {
        self.inside.max_rows()
    }
    fn max_logits_rows(&self) -> usize {
        self.inside.max_logits_rows()
    }
    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.time(|inside| inside.forward(batch))
    }
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        self.inside.logits(row)
    }
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError> {
        self.time(|inside| inside.start_sampling(rows))
    }
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        self.inside.finish_sampling()
    }
    fn logprobs(
        &mut self,
        targets: &[Option<TokenId>],
        top: usize,
    ) -> Result<Vec<Result<TokenLogprobs, NotFinite>>, BackendError> {
        self.time(|inside| inside.logprobs(targets, top))
    }
}

/// Runs the same requests one at a time and all at once, in turns, and prints medians.
fn compare() {
    let directory = synthetic::checkpoint_directory().expect("the checkpoint can be written under target/");
    let checkpoint = Checkpoint::open(&ModelSource::directory(directory).expect("just written")).expect("well formed");
    let spec = ModelSpec::from_checkpoint(&checkpoint).expect("a supported model");
    let page_size = NonZeroU32::new(64).expect("not zero");
    let options = CpuOptions { threads: None, page_size, pages: 4 * BATCH as u32, max_rows: 256 };
    let backend = CpuBackend::new(&checkpoint, spec, options).expect("the checkpoint fits the spec");
    let clock = Arc::new(Mutex::new(Duration::ZERO));
    let timed = Timed { inside: backend, clock: clock.clone() };
    let options = EngineOptions { speculation: Speculation::Off, ..EngineOptions::default() };
    let engine = Engine::with_backend(Box::new(timed), None, String::new(), options).expect("a thread");
    let requests = |turn: usize, count: usize| {
        (0..count).map(move |i| {
            let prompt = (0..PROMPT).map(|p| TokenId(((turn * 31 + i) * 7919 + p * 131) as u32 % 49_000 + 1));
            Request { max_tokens: NEW_TOKENS, ignore_eos: true, ..Request::new(prompt.collect()) }
        })
    };
    let rate = |turn: usize, in_flight: usize, count: usize| {
        let start = Instant::now();
        engine.generate_all(NonZeroUsize::new(in_flight).expect("not zero"), requests(turn, count), |_, _| {});
        f64::from(NEW_TOKENS) * count as f64 / start.elapsed().as_secs_f64()
    };
    rate(999, 1, 1);
    let [mut one, mut many, mut gain, mut overhead] = [const { Vec::new() }; 4];
    for turn in 0..TURNS {
        // Two of them alone tell as much as sixteen, in less time.
        one.push(rate(2 * turn, 1, 2));
        *clock.lock().expect("nobody panics under it") = Duration::ZERO;
        let start = Instant::now();
        many.push(rate(2 * turn + 1, BATCH, BATCH));
        let (all, inside) = (start.elapsed(), *clock.lock().expect("nobody panics under it"));
        overhead.push(1.0 - inside.as_secs_f64() / all.as_secs_f64());
        gain.push(many[turn] / one[turn]);
    }
    println!(
        "CPU, 1.45 GB: {:.2} tok/s one at a time, {:.2} tok/s {BATCH} at once: {:.2} times as many (medians of {TURNS} \
         turns); the engine's own share of the time {:.2} %",
        median(&one),
        median(&many),
        median(&gain),
        100.0 * median(&overhead),
    );
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
