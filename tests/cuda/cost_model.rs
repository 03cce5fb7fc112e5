//! The cost model of a step against the step: as many launches as the interpreter ran, the same kernels in the same
//! order, and of each the bytes that it moved.

use crate::common;
use std::num::NonZeroU32;
use std::path::Path;

use half::{bf16, f16};
use rigel::backend::cuda::kernels::Element;
use rigel::backend::cuda::model::cost_model::{KernelCost, Part, SequenceStep, StepDescription, kernel_costs};
use rigel::backend::cuda::model::{CudaBackend, CudaOptions};
use rigel::backend::cuda::{GpuSpec, Properties};
use rigel::backend::{Backend, Batch, Determinism, SequenceRows, Token};
use rigel::checkpoint::Config;
use rigel::kv::{BlockTable, PageId};
use rigel::model::ModelSpec;
use rigel::sampling::{SampleRow, SamplingParams};
use rigel::text::TokenId;
use rigel_interpreter::LaunchCounters;

const PAGE_SIZE: u32 = 16;
/// Pages of each sequence.
const PAGES: u32 = 6;

fn options(determinism: Determinism) -> CudaOptions {
    CudaOptions {
        page_size: NonZeroU32::new(PAGE_SIZE).unwrap(),
        pages: 5 * PAGES,
        max_rows: 96,
        max_sequences: 5,
        determinism,
    }
}

/// The same kernels in the same order, and the bytes of each within 2 %.
fn assert_as_counted(declared: &[KernelCost], counted: &[LaunchCounters], place: &str) {
    let names = |names: Vec<&str>| names.join(" ");
    let expected = names(counted.iter().map(|launch| launch.kernel.as_str()).collect());
    assert_eq!(names(declared.iter().map(|launch| launch.kernel.as_str()).collect()), expected, "{place}");
    for (index, (declared, counted)) in declared.iter().zip(counted).enumerate() {
        for (what, declared_bytes, counted_bytes) in [
            ("read", declared.work.bytes_read, counted.bytes_read),
            ("written", declared.work.bytes_written, counted.bytes_written),
        ] {
            let off = counted_bytes.abs_diff(declared_bytes) as f64;
            let KernelCost { kernel, part, .. } = declared;
            assert!(
                off <= 0.02 * declared_bytes as f64,
                "{place}, launch {index}, {part} ({kernel}): {counted_bytes} bytes {what}, {declared_bytes} declared"
            );
        }
    }
}

/// Steps of `(sequence, rows)`: prompts, chunks beside single rows, decode of 1 to 5 sequences, so that steps fit a
/// bucket or are padded to one. Each is held against its declared costs as it is launched, recorded and replayed.
const STEPS: [&[(usize, u32)]; 8] = [
    &[(0, 40), (1, 9), (2, 3)],
    &[(0, 1)],
    &[(0, 1), (1, 20), (2, 1)],
    &[(0, 1), (1, 1), (2, 1)],
    &[(3, 30), (4, 2)],
    &[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)],
    &[(0, 1), (1, 1), (2, 1), (3, 1)],
    &[(1, 1), (2, 1), (3, 1)],
];

fn follows_its_cost_model<T: Element>(bench: &common::Bench, name: &str, determinism: Determinism) {
    let Some(interpreter) = bench.interpreter() else { return };
    let (checkpoint, spec) = common::golden(name);
    let options = options(determinism);
    let mut backend = CudaBackend::<T>::new(bench.device(), &checkpoint, spec.clone(), &options, &mut |_| {}).unwrap();
    let table = |s: u32| [BlockTable::from_pages(0, (s * PAGES..(s + 1) * PAGES).map(PageId).collect())];
    let tables = [0, 1, 2, 3, 4].map(table);
    let mut computed = [0u32; 5];
    for (number, step) in STEPS.into_iter().enumerate() {
        let described: Vec<SequenceStep> =
            step.iter().map(|&(sequence, rows)| SequenceStep { rows, start: computed[sequence] }).collect();
        let total: u32 = step.iter().map(|(_, rows)| rows).sum();
        // Ids that differ, and none of them that of padding.
        let ids: Vec<TokenId> = (1..=total).map(TokenId).collect();
        let mut first = 0;
        let mut sequences = Vec::new();
        for &(sequence, rows) in step {
            let (start, tables) = (computed[sequence], &tables[sequence]);
            sequences.push(SequenceRows { rows: first..first + rows as usize, start, tables });
            first += rows as usize;
        }
        let ends: Vec<usize> = sequences.iter().map(|sequence| sequence.rows.end - 1).collect();
        let params = SamplingParams::default();
        let draws: Vec<SampleRow<'_>> = (0..ends.len()).map(|row| SampleRow::new(row, &params, 0)).collect();
        let step_description =
            StepDescription { sequences: &described, logits_rows: ends.len(), sampled_rows: ends.len() };
        let declared = kernel_costs::<T>(&spec, &options, bench.device().properties(), &step_description);
        // Launched, recorded, replayed.
        for time in 0..3 {
            interpreter.clear_counters();
            backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &ends }).unwrap();
            backend.sample(&draws).unwrap();
            let place = format!("{name} {} {determinism:?}, step {number}, time {time}", T::NAME);
            assert_as_counted(&declared, &interpreter.counters(), &place);
        }
        step.iter().for_each(|(sequence, rows)| computed[*sequence] += rows);
    }
}

device_test! {
    fn every_launch_moves_what_its_account_says() {
        common::on_one_schedule(|bench| {
            for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
                follows_its_cost_model::<bf16>(bench, "gqa9", determinism);
                follows_its_cost_model::<f16>(bench, "gqa2-d128", determinism);
            }
            follows_its_cost_model::<bf16>(bench, "nobias", Determinism::Fast);
        });
    }
}

/// The published 3B, 7B and 15B.
fn published() -> Vec<ModelSpec> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/configs");
    let spec = |size: &str| {
        let json = std::fs::read(directory.join(format!("starcoder2-{size}.json"))).unwrap();
        ModelSpec::from_config(&Config::parse(&json, "config.json").unwrap()).unwrap()
    };
    ["3b", "7b", "15b"].map(spec).to_vec()
}

fn h200() -> Properties {
    GpuSpec::h200().properties
}

/// What `rows` decoding sequences at position `start` cost.
fn decode(spec: &ModelSpec, determinism: Determinism, rows: usize, start: u32) -> Vec<KernelCost> {
    let options = CudaOptions {
        page_size: NonZeroU32::new(64).unwrap(),
        pages: 4096,
        max_rows: 512,
        max_sequences: 64,
        determinism,
    };
    let sequences = vec![SequenceStep { rows: 1, start }; rows];
    let step = StepDescription { sequences: &sequences, logits_rows: rows, sampled_rows: rows };
    kernel_costs::<bf16>(spec, &options, &h200(), &step)
}

/// Products and attention itself; norms and merges have FLOPs that `Counts` does not count: a LayerNorm 7 an element.
fn counted_flops(launches: &[KernelCost], normed: usize) -> u64 {
    let counts = |launch: &&KernelCost| !matches!(launch.family, "norm" | "sample") && !launch.kernel.contains("merge");
    let of = |launch: &KernelCost| {
        let norm = if launch.family == "gemv_normed" { 7 * normed as u64 } else { 0 };
        launch.work.flops - norm
    };
    launches.iter().filter(counts).map(of).sum()
}

#[test]
fn a_step_costs_what_the_counts_say() {
    for spec in published() {
        let counts = spec.counts();
        for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
            for start in [0, 1000, 4095, 9000] {
                let place = format!("{} layers, {determinism:?}, position {start}", spec.layers.len());
                let one = decode(&spec, determinism, 1, start);
                assert_eq!(counted_flops(&one, spec.hidden_size), counts.flops_per_token(start.into()), "{place}");
                let two = decode(&spec, determinism, 2, start);
                assert_eq!(
                    counted_flops(&two, 2 * spec.hidden_size),
                    2 * counts.flops_per_token(start.into()),
                    "{place}"
                );
                // Bytes of products, norms and rows of the embedding are those of weights and so many a row more.
                let read = |launches: &[KernelCost]| -> u64 {
                    let weights = |launch: &&KernelCost| !matches!(launch.part, Part::Attention | Part::Sample);
                    launches.iter().filter(weights).map(|launch| launch.work.bytes_read).sum()
                };
                // Rotations are one row's for both, as they stand at one position.
                let rotations = (spec.layers.len() * spec.head_dim * 4) as u64;
                let weights = 2 * read(&one) - read(&two) - rotations;
                let hidden = spec.hidden_size as u64;
                assert_eq!(weights, counts.weight_bytes_per_token(2) - 2 * hidden, "{place}");
                // Attention reads the cache once: what it reads more with every position, while none is hidden.
                if start < 4095 && determinism == Determinism::Fast {
                    let read = |launches: &[KernelCost]| -> u64 {
                        let attention = |l: &&KernelCost| l.part == Part::Attention && !l.kernel.contains("merge");
                        launches.iter().filter(attention).map(|launch| launch.work.bytes_read).sum()
                    };
                    // Within a page, so that the tables are as long.
                    let next = decode(&spec, determinism, 1, start + 1);
                    assert_eq!(read(&next) - read(&one), counts.kv_bytes_per_token(2), "{place}");
                }
            }
        }
    }
}

#[test]
fn a_step_of_no_rows_launches_nothing() {
    let spec = &published()[0];
    assert_eq!(decode(spec, Determinism::Fast, 0, 0), []);
}
