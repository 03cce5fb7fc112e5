//! The CPU backend against the machine: decode in shares of the memory bandwidth, prefill in shares of the arithmetic
//! peak, both measured here and now, turn by turn with the work itself.
//!
//! The checkpoint is made up, bf16, with StarCoder2-3B's shapes and six of its layers: 1.45 GB, larger than any cache.
//! It is written once, under cargo's target directory.
//!
//!     cargo bench --bench cpu_decode              # all
//!     cargo bench --bench cpu_decode -- decode    # criterion's filter

#[path = "common/synthetic.rs"]
mod synthetic;

use std::hint::black_box;
use std::num::{NonZeroU32, NonZeroUsize};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use rigel::backend::cpu::{CpuBackend, CpuOptions};
use rigel::backend::{Backend, Batch, SequenceRows, Token};
use rigel::bench::cpu_limits::{READERS, multiply_add_peak, read};
use rigel::checkpoint::{Checkpoint, ModelSource};
use rigel::kv::{BlockTable, PageId};
use rigel::model::ModelSpec;
use rigel::text::TokenId;

const PAGE_SIZE: u32 = 64;
const PREFILL_ROWS: usize = 256;
/// Turns of the comparison; each measures everything once.
const TURNS: usize = 15;

fn main() {
    let directory = synthetic::checkpoint_directory().expect("the synthetic checkpoint can be written under target/");
    let checkpoint = Checkpoint::open(&ModelSource::directory(directory).expect("just written")).expect("well formed");
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut model = Model::new(&checkpoint, threads);
    let stretches = stretches(&checkpoint);

    compare(&mut model, &stretches, threads.get());

    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group("cpu");
    group.throughput(Throughput::Bytes(stretches.iter().map(|s| s.len() as u64).sum()));
    group.bench_function("read", |b| b.iter(|| read(&stretches, threads.get(), READERS[0].1)));
    group.throughput(Throughput::Bytes(model.decode_bytes()));
    group.bench_function("decode", |b| b.iter(|| model.decode()));
    group.throughput(Throughput::Elements(PREFILL_ROWS as u64));
    group.bench_function("prefill", |b| b.iter(|| model.prefill()));
    group.finish();
    criterion.final_summary();
}

/// Measures reading, decoding, arithmetic and prefill in turns, so that what else the machine does falls on all alike,
/// and prints medians.
fn compare(model: &mut Model, stretches: &[&[u8]], threads: usize) {
    let bytes: usize = stretches.iter().map(|s| s.len()).sum();
    let [mut bandwidth, mut decode, mut share, mut peak, mut prefill, mut prefill_share] = [const { Vec::new() }; 6];
    let mut forms = vec![Vec::new(); READERS.len()];
    model.prefill();
    for _ in 0..TURNS {
        for (reader, times) in READERS.iter().zip(&mut forms) {
            times.push(bytes as f64 / seconds(|| read(stretches, threads, reader.1)));
        }
        let best = forms.iter().map(|times| *times.last().expect("just pushed")).fold(0.0, f64::max);
        bandwidth.push(best);
        // The best of as many steps as there were readings, so that both have the same chances of an idle machine.
        let step = forms.iter().map(|_| seconds(|| model.decode())).fold(f64::INFINITY, f64::min);
        let rate = model.decode_bytes() as f64 / step;
        decode.push(rate);
        share.push(rate / best);
        let flops = multiply_add_peak(threads);
        peak.push(flops);
        let rate = model.prefill_flops() / seconds(|| model.prefill());
        prefill.push(rate);
        prefill_share.push(rate / flops);
    }
    let steps = median(&decode) / model.decode_bytes() as f64;
    println!(
        "decode: {steps:.2} tok/s, {:.1} GB/s = {:.0} % of the read bandwidth ({:.1} GB/s)",
        median(&decode) / 1e9,
        100.0 * median(&share),
        median(&bandwidth) / 1e9,
    );
    for (reader, times) in READERS.iter().zip(&forms) {
        println!("  read, {}: {:.1} GB/s", reader.0, median(times) / 1e9);
    }
    println!(
        "prefill of {PREFILL_ROWS} rows: {:.1} tok/s, {:.1} GFLOP/s = {:.0} % of the multiply-add peak ({:.1} GFLOP/s)",
        median(&prefill) / model.prefill_flops() * PREFILL_ROWS as f64,
        median(&prefill) / 1e9,
        100.0 * median(&prefill_share),
        median(&peak) / 1e9,
    );
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The backend and one sequence in it.
struct Model {
    backend: CpuBackend,
    tables: [BlockTable; 1],
    tokens: Vec<Token>,
}

impl Model {
    fn new(checkpoint: &Checkpoint, threads: NonZeroUsize) -> Model {
        let spec = ModelSpec::from_checkpoint(checkpoint).expect("a supported model");
        let pages = 1 + (PREFILL_ROWS as u32).div_ceil(PAGE_SIZE);
        let token = |i: u32| Token::Known(TokenId(i * 7919 % spec.vocab_size as u32));
        let tokens = (0..=PREFILL_ROWS as u32).map(token).collect();
        let options = CpuOptions {
            threads: Some(threads),
            page_size: NonZeroU32::new(PAGE_SIZE).expect("not zero"),
            pages,
            max_rows: PREFILL_ROWS,
        };
        let backend = CpuBackend::new(checkpoint, spec, options).expect("the checkpoint fits the spec");
        Model { backend, tables: [BlockTable::from_pages(0, (0..pages).map(PageId).collect())], tokens }
    }

    fn forward(&mut self, start: usize, rows: usize) {
        let sequences = [SequenceRows { rows: 0..rows, start: start as u32, tables: &self.tables }];
        let batch =
            Batch { tokens: &self.tokens[start..start + rows], sequences: &sequences, logits_rows: &[rows - 1] };
        self.backend.forward(&batch).expect("a valid batch");
        black_box(self.backend.logits(0).expect("asked for"));
    }

    /// One step after the prompt of [`Model::prefill`].
    fn decode(&mut self) {
        self.forward(PREFILL_ROWS, 1);
    }

    fn prefill(&mut self) {
        self.forward(0, PREFILL_ROWS);
    }

    /// Bytes that [`Model::decode`] must read: weights in bf16, keys and values in f32.
    fn decode_bytes(&self) -> u64 {
        let counts = self.backend.spec().counts();
        counts.weight_bytes_per_token(2) + counts.kv_bytes_per_token(4) * PREFILL_ROWS as u64
    }

    /// What [`Model::prefill`] must compute: the head for the last row alone.
    fn prefill_flops(&self) -> f64 {
        let counts = self.backend.spec().counts();
        let all: u64 = (0..PREFILL_ROWS as u64).map(|position| counts.flops_per_token(position)).sum();
        (all - 2 * counts.embedding * (PREFILL_ROWS as u64 - 1)) as f64
    }
}

/// The weights, in pieces of at most a megabyte.
fn stretches(checkpoint: &Checkpoint) -> Vec<&[u8]> {
    checkpoint.tensors().flat_map(|tensor| tensor.bytes().chunks(1 << 20)).collect()
}
