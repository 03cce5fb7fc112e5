//! The CUDA backend, a whole model at a time: against the CPU backend on ragged batches, and against itself where two
//! ways must give the same bits. How close it is to transformers is `cuda_parity`'s business.

use crate::common;
use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use half::{bf16, f16};
use rigel::backend::cpu::{CpuBackend, CpuOptions};
use rigel::backend::cuda::kernels::Element;
use rigel::backend::cuda::model::{self, CudaBackend, CudaOptions, DRIVER_BYTES, pages_within};
use rigel::backend::cuda::{Arguments, Device, Launch};
use rigel::backend::{self, Backend, BackendError, BackendHooks, Batch, Determinism, SequenceRows, Token};
use rigel::checkpoint::{Config, Dtype};
use rigel::engine::{Engine, Failure, Request};
use rigel::kv::{BlockTable, BlockTables, CacheGeometry, PageCache, PageId, PrefixCache};
use rigel::model::ModelSpec;
use rigel::sampling::{LogitsContext, LogitsProcessor, SampleError, SampleRow, SamplingParams, TokenHistory};
use rigel::text::TokenId;
use rigel_interpreter::{DeviceProfile, Interpreter};

const PAGE_SIZE: NonZeroU32 = NonZeroU32::new(16).unwrap();
const PAGES: u32 = 40;
const MAX_ROWS: usize = 48;
const MAX_SEQUENCES: usize = 5;

fn options() -> CudaOptions {
    CudaOptions {
        page_size: PAGE_SIZE,
        pages: PAGES,
        max_rows: MAX_ROWS,
        max_sequences: MAX_SEQUENCES,
        determinism: Determinism::Fast,
    }
}

fn cuda<T: Element>(device: &Device, name: &str) -> CudaBackend<T> {
    cuda_with(device, name, &options())
}

fn cuda_with<T: Element>(device: &Device, name: &str, options: &CudaOptions) -> CudaBackend<T> {
    let (checkpoint, spec) = common::golden(name);
    CudaBackend::new(device, &checkpoint, spec, options, &mut |_| {}).unwrap()
}

fn cpu(name: &str) -> CpuBackend {
    let (checkpoint, spec) = common::golden(name);
    let options = CpuOptions { threads: None, page_size: PAGE_SIZE, pages: PAGES, max_rows: MAX_ROWS };
    CpuBackend::new(&checkpoint, spec, options).unwrap()
}

/// Sequences of a test, with the pages that they hold.
struct Sequences {
    tokens: Vec<Vec<TokenId>>,
    computed: Vec<usize>,
    tables: Vec<BlockTables>,
    pages: PageCache,
}

/// How many rows of which sequence a step computes.
type StepRows<'a> = &'a [(usize, usize)];

impl Sequences {
    fn new(spec: &ModelSpec, cache: &CacheGeometry, lengths: &[usize]) -> Sequences {
        let pages = PageCache::new(cache, PrefixCache::Off);
        let token = |sequence: usize, i: usize| TokenId(((sequence * 131 + i * i * 7 + i) % spec.vocab_size) as u32);
        Sequences {
            tokens: lengths.iter().enumerate().map(|(s, len)| (0..*len).map(|i| token(s, i)).collect()).collect(),
            computed: vec![0; lengths.len()],
            tables: lengths.iter().map(|_| BlockTables::new(&pages)).collect(),
            pages,
        }
    }

    /// Computes the next rows of some sequences; logits of every row, by (sequence, position).
    fn step(&mut self, backend: &mut dyn Backend, rows: StepRows<'_>) -> BTreeMap<(usize, usize), Vec<f32>> {
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        for &(sequence, count) in rows {
            let start = self.computed[sequence];
            self.tables[sequence].evict(start as u32, &mut self.pages);
            self.tables[sequence].reserve((start + count) as u32, &mut self.pages).unwrap();
            places.push((sequence, start, ids.len()..ids.len() + count));
            ids.extend_from_slice(&self.tokens[sequence][start..start + count]);
            self.computed[sequence] += count;
        }
        let rows = |(sequence, start, rows): &(usize, usize, std::ops::Range<usize>)| SequenceRows {
            rows: rows.clone(),
            start: *start as u32,
            tables: self.tables[*sequence].as_slice(),
        };
        let sequences: Vec<SequenceRows<'_>> = places.iter().map(rows).collect();
        let logits_rows: Vec<usize> = (0..ids.len()).collect();
        backend
            .forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &logits_rows })
            .unwrap();
        let mut found = BTreeMap::new();
        for (sequence, start, rows) in places {
            for (row, position) in rows.zip(start..) {
                found.insert((sequence, position), backend.logits(row).unwrap().to_vec());
            }
        }
        found
    }
}

fn play(backend: &mut dyn Backend, lengths: &[usize], steps: &[StepRows<'_>]) -> BTreeMap<(usize, usize), Vec<f32>> {
    let mut sequences = Sequences::new(backend.spec(), backend.cache(), lengths);
    steps.iter().flat_map(|step| sequences.step(backend, step)).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

/// Prompts in chunks that begin anywhere, an empty sequence's rows, single rows beside chunks, and decode alone, past
/// the window.
const LENGTHS: [usize; 4] = [62, 3, 40, 20];
const STEPS: [StepRows<'static>; 9] = [
    &[(0, 17), (1, 1), (2, 5)],
    &[(1, 1), (0, 1), (3, 0), (2, 30)],
    &[(0, 23), (2, 1)],
    &[(2, 1), (0, 1), (1, 1)],
    &[(0, 1), (3, 19), (2, 1)],
    &[(3, 1), (0, 1), (2, 1)],
    &[(0, 1)],
    &[(0, 16)],
    &[(0, 1), (2, 1)],
];

fn agrees_with_the_cpu<T: Element>(device: &Device, name: &str, determinism: Determinism) {
    let expected = play(&mut cpu(name), &LENGTHS, &STEPS);
    let options = CudaOptions { determinism, ..options() };
    let found = play(&mut cuda_with::<T>(device, name, &options), &LENGTHS, &STEPS);
    assert_eq!(found.len(), STEPS.iter().flat_map(|step| step.iter()).map(|(_, rows)| rows).sum::<usize>());
    let (mut total, mut count) = (0.0, 0);
    for (place, expected) in &expected {
        let (expected, found) = (log_softmax(expected), log_softmax(&found[place]));
        let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
        let mean = differences.sum::<f64>() / expected.len() as f64;
        // transformers' own half-precision forward is off by 0.03 on average; a wrong row by whole numbers.
        assert!(mean < 0.2, "{name}, sequence and position {place:?}: log-probabilities off by {mean} on average");
        (total, count) = (total + mean, count + 1);
    }
    let mean = total / f64::from(count);
    println!("{name} {}: log-probabilities off by {mean:.4} on average", T::NAME);
    assert!(mean < 0.06, "{name}: log-probabilities off by {mean} on average");
}

device_test! {
    fn ragged_batches_agree_with_the_cpu() {
        common::on_one_schedule(|bench| {
            // Windows of 24 and 33, groups of 9 and 12, heads of 64 and 128; f32 rounded; f16, without a window.
            for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
                agrees_with_the_cpu::<bf16>(bench.device(), "gqa9", determinism);
                agrees_with_the_cpu::<bf16>(bench.device(), "gqa12", determinism);
                agrees_with_the_cpu::<bf16>(bench.device(), "mha", determinism);
                agrees_with_the_cpu::<f16>(bench.device(), "gqa2-d128", determinism);
            }
        });
    }
}

device_test! {
    fn layers_with_different_windows_agree_with_the_cpu() {
        common::on_one_schedule(|bench| {
            for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
                let (checkpoint, mut spec) = common::golden("gqa9");
                // A window of 24, and none in the second layer. Of few positions, so that the window's pages are not
                // few.
                spec.layers[1].attention.window = None;
                spec.max_positions = 128;
                let options = CudaOptions { pages: 64, determinism, ..options() };
                let of_cpu = CpuOptions { threads: None, page_size: PAGE_SIZE, pages: 64, max_rows: MAX_ROWS };
                let mut cpu = CpuBackend::new(&checkpoint, spec.clone(), of_cpu).unwrap();
                let allocated = || bench.interpreter().map(Interpreter::allocated_bytes);
                let before = allocated();
                let load = CudaBackend::<bf16>::new(bench.device(), &checkpoint, spec, &options, &mut |_| {});
                let mut cuda = load.unwrap();
                let planned = cuda.memory_plan().bytes();
                assert_eq!(allocated(), before.map(|before| before + planned), "{}", cuda.memory_plan());
                assert_eq!(cuda.cache().groups.len(), 2);
                let (expected, found) = (play(&mut cpu, &LENGTHS, &STEPS), play(&mut cuda, &LENGTHS, &STEPS));
                for (place, expected) in &expected {
                    let (expected, found) = (log_softmax(expected), log_softmax(&found[place]));
                    let differences = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
                    let mean = differences.sum::<f64>() / expected.len() as f64;
                    assert!(mean < 0.2, "sequence and position {place:?}: log-probabilities off by {mean} on average");
                }
            }
        });
    }
}

device_test! {
    fn pages_that_were_exported_go_on_elsewhere() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<bf16>(bench.device(), "gqa9");
            let ids: Vec<TokenId> = (1..=21).map(TokenId).collect();
            let step = |backend: &mut CudaBackend<bf16>, start: usize, end: usize, pages: &[u32]| {
                let tables = table(pages);
                let rows = [SequenceRows { rows: 0..end - start, start: start as u32, tables: &tables }];
                let tokens = Token::known(&ids[start..end]);
                backend.forward(&Batch { tokens: &tokens, sequences: &rows, logits_rows: &[end - start - 1] }).unwrap();
                backend.logits(0).unwrap().to_vec()
            };
            step(&mut backend, 0, 20, &[3, 8]);
            let pages = [3, 8].map(|page| backend.export_page(0, PageId(page)).unwrap());
            assert!(pages.iter().all(|page| page.len() as u64 == backend.cache().groups[0].page_bytes));
            let expected = step(&mut backend, 20, 21, &[3, 8]);
            let all: Vec<PageId> = (0..PAGES).map(PageId).collect();
            backend.poison(0, &all).unwrap();
            backend.import_page(0, PageId(5), &pages[0]).unwrap();
            backend.import_page(0, PageId(0), &pages[1]).unwrap();
            assert!(step(&mut backend, 20, 21, &[5, 0]) == expected);
            assert_eq!(backend.export_page(0, PageId(5)).unwrap(), pages[0]);
            let error = backend.import_page(0, PageId(5), &pages[0][2..]).unwrap_err().to_string();
            assert!(error.starts_with("invalid batch: ") && error.contains(" bytes for a page of "), "{error}");
            assert!(backend.export_page(1, PageId(0)).is_err() && backend.export_page(0, PageId(PAGES)).is_err());
        });
    }
}

device_test! {
    fn a_recorded_step_gives_the_bits_of_one_that_is_not() {
        common::on_one_schedule(|bench| {
            // Buckets of 1, 2 and 4 rows, each often enough to be recorded and replayed for other rows.
            let prompts: StepRows<'_> = &[(0, 6), (1, 7), (2, 8)];
            let three: StepRows<'_> = &[(0, 1), (1, 1), (2, 1)];
            let (one, two): (StepRows<'_>, StepRows<'_>) = (&[(2, 1)], &[(1, 1), (0, 1)]);
            let steps = [prompts, three, one, two, three, two, one, three, three, one, two];
            let lengths = [20; 3];
            let recorded = play(&mut cuda::<bf16>(bench.device(), "gqa9"), &lengths, &steps);
            // SAFETY: this process has no other thread that reads the environment.
            unsafe { std::env::set_var("RIGEL_CUDA_SYNC", "1") };
            let device = Device::open(0).unwrap();
            assert!(device.is_synchronous() && !bench.device().is_synchronous());
            let one_by_one = play(&mut cuda::<bf16>(&device, "gqa9"), &lengths, &steps);
            assert!(recorded == one_by_one);
        });
    }
}

device_test! {
    /// What graphs and lazily loaded modules take of the GPU is the driver's, and planned for as one number. The
    /// interpreter's driver takes nothing.
    fn graphs_of_every_bucket_fit_into_what_the_plan_leaves_the_driver() {
        common::on_one_schedule(|bench| {
            if bench.interpreter().is_some() {
                println!("graphs_of_every_bucket…: the interpreter's driver takes no memory, only a GPU can tell");
                return;
            }
            let (checkpoint, spec) = common::golden("gqa9");
            let options = CudaOptions { pages: 256, max_rows: 256, max_sequences: 256, ..options() };
            let (before, _) = bench.device().memory().unwrap();
            let mut backend = CudaBackend::<bf16>::new(bench.device(), &checkpoint, spec, &options, &mut |_| {}).unwrap();
            let tables: Vec<[BlockTable; 1]> = (0..256).map(|page| table(&[page])).collect();
            for rows in [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256] {
                let ids = vec![TokenId(5); rows];
                let row = |index: usize| SequenceRows { rows: index..index + 1, start: 0, tables: &tables[index] };
                let sequences: Vec<SequenceRows<'_>> = (0..rows).map(row).collect();
                // Launched, captured, replayed.
                for _ in 0..3 {
                    backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &[0] }).unwrap();
                }
            }
            backend.logits(0).unwrap();
            let (after, _) = bench.device().memory().unwrap();
            let planned = backend.memory_plan().bytes();
            let driver = (before - after).saturating_sub(planned);
            println!("the driver has taken {} MiB beside the {} MiB that are planned", driver >> 20, planned >> 20);
            assert!(driver <= DRIVER_BYTES, "the plan leaves it {} MiB, it has taken {} MiB", DRIVER_BYTES >> 20, driver >> 20);
        });
    }
}

/// Pages of the first blocks of a sequence, in a cache of one group.
fn table(pages: &[u32]) -> [BlockTable; 1] {
    [BlockTable::from_pages(0, pages.iter().copied().map(PageId).collect())]
}

/// One row of one sequence.
fn one_row<'a>(tokens: &'a [Token], start: u32, rows: &'a [SequenceRows<'a>; 1]) -> Batch<'a> {
    assert_eq!(rows[0].start, start);
    Batch { tokens, sequences: rows, logits_rows: &[0] }
}

device_test! {
    fn a_step_may_take_its_token_from_the_draw_before_it() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<bf16>(bench.device(), "gqa9");
            let tables = table(&[3]);
            let row = |start| [SequenceRows { rows: 0..1, start, tables: &tables }];
            let params = SamplingParams::default();
            let draw = |position| SampleRow::new(0, &params, position);
            let mut token = TokenId(5);
            // Twice with ids from the host, then the same with ids that stay on the device; the last are replays.
            let mut expected = Vec::new();
            for start in 0..6 {
                backend.forward(&one_row(&[Token::Known(token)], start, &row(start))).unwrap();
                token = backend.sample(&[draw(start + 1)]).unwrap().remove(0).unwrap().token;
                expected.push((token, backend.logits(0).unwrap().to_vec()));
            }
            for start in 0..6 {
                let token = if start == 0 { Token::Known(TokenId(5)) } else { Token::Sampled(0) };
                backend.forward(&one_row(&[token], start, &row(start))).unwrap();
                let drawn = backend.sample(&[draw(start + 1)]).unwrap().remove(0).unwrap().token;
                assert_eq!((drawn, backend.logits(0).unwrap().to_vec()), expected[start as usize], "position {start}");
            }
            let error = backend.forward(&one_row(&[Token::Sampled(1000)], 6, &row(6))).unwrap_err();
            assert_eq!(error.to_string(), "invalid batch: the token sampled for row 1000 of 48");
        });
    }
}

device_test! {
    fn draws_are_waited_for_and_not_the_step_behind_them() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<bf16>(bench.device(), "gqa9");
            let tables = table(&[3]);
            let row = |start| [SequenceRows { rows: 0..1, start, tables: &tables }];
            let params = SamplingParams { temperature: 1.0, seed: 4, ..SamplingParams::default() };
            let draw = |position| SampleRow { logprobs: Some(2), ..SampleRow::new(0, &params, position) };
            // The last steps are replays of a recording.
            const STEPS: u32 = 7;
            let (mut token, mut expected) = (TokenId(5), Vec::new());
            for start in 0..STEPS {
                backend.forward(&one_row(&[Token::Known(token)], start, &row(start))).unwrap();
                expected.push(backend.sample(&[draw(start + 1)]).unwrap().remove(0).unwrap());
                token = expected[start as usize].token;
            }
            if let Some(interpreter) = bench.interpreter() {
                interpreter.clear_counters();
            }
            assert!(backend.is_asynchronous());
            backend.forward(&one_row(&[Token::Known(TokenId(5))], 0, &row(0))).unwrap();
            backend.start_sampling(&[draw(1)]).unwrap();
            for start in 1..STEPS {
                backend.forward(&one_row(&[Token::Sampled(0)], start, &row(start))).unwrap();
                // The interpreter runs what somebody waits for, and what is ahead of it.
                let ran = |interpreter: &Interpreter, what: &str| {
                    interpreter.counters().iter().filter(|launch| launch.kernel.starts_with(what)).count()
                };
                if let Some(interpreter) = bench.interpreter() {
                    assert_eq!(ran(interpreter, ""), 0, "launches that ran before anybody waited, step {start}");
                }
                let drawn = backend.finish_sampling().unwrap().remove(0).unwrap();
                assert_eq!(drawn, expected[start as usize - 1], "step {start}");
                if let Some(interpreter) = bench.interpreter() {
                    assert_eq!((ran(interpreter, "embed"), ran(interpreter, "sample")), (1, 1), "step {start}");
                    interpreter.clear_counters();
                }
                backend.start_sampling(&[draw(start + 1)]).unwrap();
            }
            assert_eq!(backend.finish_sampling().unwrap().remove(0).unwrap(), expected[STEPS as usize - 1]);
        });
    }
}

/// Rows read no slot that was never written, and none of another sequence.
fn poison_is_found<T: Element>(device: &Device) {
    let mut backend = cuda::<T>(device, "gqa9");
    let all: Vec<PageId> = (0..PAGES).map(PageId).collect();
    backend.poison(0, &all).unwrap();
    let found = play(&mut backend, &LENGTHS, &STEPS[..4]);
    assert!(found.values().flatten().all(|logit| logit.is_finite()));

    let tables = [table(&[3]), table(&[5])];
    let ids = [TokenId(70), TokenId(80)];
    let step = |backend: &mut CudaBackend<T>, start| {
        let rows = |s: usize| SequenceRows { rows: s..s + 1, start, tables: &tables[s] };
        let sequences = [rows(0), rows(1)];
        backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &[0, 1] }).unwrap();
        [0, 1].map(|row| backend.logits(row).unwrap().iter().all(|logit| logit.is_finite()))
    };
    assert_eq!(step(&mut backend, 0), [true, true]);
    backend.poison(0, &[PageId(4), PageId(5)]).unwrap();
    assert_eq!(step(&mut backend, 1), [true, false], "{}: the second sequence has lost its page", T::NAME);
    let error = backend.poison(0, &[PageId(PAGES)]).unwrap_err();
    assert_eq!(error.to_string(), format!("invalid batch: page {PAGES} of {PAGES}"));
}

device_test! {
    fn who_reads_a_page_that_was_poisoned_is_found_and_nobody_else_is_harmed() {
        common::on_one_schedule(|bench| {
            poison_is_found::<bf16>(bench.device());
            poison_is_found::<f16>(bench.device());
        });
    }
}

device_test! {
    fn tokens_and_log_probabilities_are_those_of_the_reference_sampler() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<f16>(bench.device(), "gqa9-d128");
            let spec = backend.spec().clone();
            let mut sequences = Sequences::new(&spec, backend.cache(), &[30, 4]);
            let logits = sequences.step(&mut backend, &[(0, 20), (1, 4)]);
            let logits: Vec<&Vec<f32>> = logits.values().collect();
            let prompt: Vec<TokenId> = (0..200).map(TokenId).collect();
            let mut history = TokenHistory::new(spec.vocab_size, &prompt);
            (0..60).for_each(|i| history.push(TokenId(i * i % 511)));
            let ids = |ids: &[u32]| ids.iter().map(|id| TokenId(*id)).collect::<Vec<_>>();
            let params = [
                SamplingParams::default(),
                SamplingParams { temperature: 0.7, seed: 3, ..SamplingParams::default() },
                SamplingParams { temperature: 1.3, top_k: 5, top_p: 0.9, min_p: 0.01, seed: 9, ..Default::default() },
                SamplingParams { repetition_penalty: 1.5, ..SamplingParams::default() },
                SamplingParams { frequency_penalty: 0.4, presence_penalty: -0.3, ..SamplingParams::default() },
                SamplingParams {
                    logit_bias: vec![(TokenId(516), 4.0), (TokenId(3), -2.5), (TokenId(60), 4.5), (TokenId(900), 1.0)],
                    banned_token_ids: ids(&[90, 3, 80, 90]),
                    temperature: 0.5,
                    top_k: 50,
                    ..SamplingParams::default()
                },
                SamplingParams { allowed_token_ids: Some(ids(&[500, 7, 31, 40, 700])), ..SamplingParams::default() },
                SamplingParams {
                    temperature: 0.9,
                    top_p: 0.8,
                    repetition_penalty: 1.2,
                    presence_penalty: 0.7,
                    logit_bias: vec![(TokenId(8), 3.0)],
                    allowed_token_ids: Some((0..516).step_by(2).map(TokenId).collect()),
                    ..SamplingParams::default()
                },
            ];
            let banned = [TokenId(7), TokenId(500)];
            // Fewer words than the vocabulary has.
            let mask = [0xaaaa_5555u32; 10];
            let rows: Vec<SampleRow<'_>> = (0..24)
                .map(|logits_row| SampleRow {
                    history: params[logits_row % 8].has_penalties().then_some(&history),
                    allowed_mask: (logits_row % 2 == 1).then_some(&mask[..]),
                    banned: if logits_row % 5 == 0 { &banned } else { &[] },
                    logprobs: (logits_row % 3 == 0).then_some(logits_row),
                    ..SampleRow::new(logits_row, &params[logits_row % 8], 10 + logits_row as u32)
                })
                .collect();
            let drawn = backend.sample(&rows).unwrap();
            for (row, drawn) in rows.iter().zip(drawn) {
                let (drawn, expected) = (drawn.unwrap(), rigel::sampling::sample(logits[row.logits_row], row).unwrap());
                assert_eq!(drawn.token, expected.token, "{row:?}");
                let (drawn, expected) = (drawn.logprobs, expected.logprobs);
                assert_eq!(drawn.is_some(), expected.is_some());
                let (Some(drawn), Some(expected)) = (drawn, expected) else { continue };
                assert!((drawn.target.unwrap() - expected.target.unwrap()).abs() < 1e-4);
                assert_eq!(drawn.top.len(), expected.top.len());
                for (drawn, expected) in drawn.top.iter().zip(&expected.top) {
                    assert!(drawn.0 == expected.0 && (drawn.1 - expected.1).abs() < 1e-4, "{drawn:?} {expected:?}");
                }
            }
            // Draws that are under way are not lost to others.
            backend.start_sampling(&rows[..2]).unwrap();
            assert!(backend.start_sampling(&rows[2..4]).is_err() && backend.logprobs(&[None], 3).is_err());
            let drawn = backend.finish_sampling().unwrap();
            let tokens = drawn.into_iter().map(|drawn| drawn.unwrap().token);
            let expected = rows[..2].iter().map(|row| rigel::sampling::sample(logits[row.logits_row], row).unwrap().token);
            assert!(tokens.eq(expected));
            assert_eq!(backend.finish_sampling().unwrap(), []);
            // More than the kernel's table of best tokens holds, and none.
            for top in [0, 5, 200] {
                let targets: Vec<Option<TokenId>> = (0..24).map(|row| (row % 7 != 0).then_some(TokenId(row))).collect();
                let found = backend.logprobs(&targets, top).unwrap();
                for ((found, target), logits) in found.into_iter().zip(targets).zip(&logits) {
                    let found = found.unwrap();
                    let expected = rigel::sampling::TokenLogprobs::from_logits(logits, target, top).unwrap();
                    assert_eq!(found.target.is_some(), target.is_some());
                    let close = |a: f32, b: f32| (a - b).abs() < 1e-4;
                    assert!(close(found.target.unwrap_or(0.0), expected.target.unwrap_or(0.0)));
                    assert_eq!(found.top.len(), top);
                    assert!(found.top.iter().zip(&expected.top).all(|(a, b)| a.0 == b.0 && close(a.1, b.1)));
                }
            }
        });
    }
}

/// Leaves one token to choose: that many after the last one.
#[derive(Debug)]
struct After(u32);

impl LogitsProcessor for After {
    fn process(&self, context: &LogitsContext<'_>, logits: &mut [f32]) {
        let last = context.output.last().or(context.prompt.last()).expect("a token");
        let next = (last.0 + self.0) as usize;
        logits.iter_mut().enumerate().filter(|(id, _)| *id != next).for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
    }
}

#[derive(Debug)]
struct Panics;

impl LogitsProcessor for Panics {
    fn process(&self, _: &LogitsContext<'_>, _: &mut [f32]) {
        panic!("no grammar");
    }
}

device_test! {
    fn rows_that_the_kernel_is_not_written_for_go_to_the_host_alone() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<f16>(bench.device(), "gqa9-d128");
            let vocab_size = backend.spec().vocab_size;
            let logits = Sequences::new(backend.spec(), backend.cache(), &[20, 4]).step(&mut backend, &[(0, 20), (1, 4)]);
            let logits: Vec<&Vec<f32>> = logits.values().collect();
            let check = |rows: &[SampleRow<'_>], drawn: Vec<Result<rigel::sampling::Sampled, SampleError>>| {
                assert_eq!(rows.len(), drawn.len());
                for (row, drawn) in rows.iter().zip(drawn) {
                    let expected = rigel::sampling::sample(logits[row.logits_row], row);
                    assert_eq!(drawn.map(|drawn| drawn.token), expected.map(|drawn| drawn.token), "{row:?}");
                }
            };
            let prompt = [TokenId(9), TokenId(40)];
            let context = LogitsContext { prompt: &prompt, output: &[] };
            let greedy = SamplingParams::default();
            let drawn = SamplingParams { temperature: 0.8, top_k: 9, seed: 2, ..Default::default() };
            let twice = SamplingParams { logit_bias: vec![(TokenId(5), 0.1), (TokenId(5), 9.3)], ..drawn.clone() };
            let row = |logits_row: usize, params| SampleRow::new(logits_row, params, 20);
            let rows = [
                row(0, &greedy),
                SampleRow { processor: Some((&After(3), context)), ..row(1, &drawn) },
                SampleRow { processor: Some((&Panics, context)), ..row(2, &greedy) },
                row(3, &drawn),
                row(4, &twice),
                SampleRow { logprobs: Some(100), ..row(5, &drawn) },
                SampleRow { logprobs: Some(4), ..row(6, &drawn) },
            ];
            if let Some(interpreter) = bench.interpreter() {
                interpreter.clear_counters();
            }
            let found = backend.sample(&rows).unwrap();
            assert_eq!(found[1].as_ref().unwrap().token, TokenId(43));
            let panicked = SampleError::ProcessorPanicked { message: "no grammar".to_owned() };
            assert_eq!(found[2], Err(panicked));
            assert_eq!(found[5].as_ref().unwrap().logprobs.as_ref().unwrap().top.len(), 100);
            assert_eq!(found[6].as_ref().unwrap().logprobs.as_ref().unwrap().top.len(), 4);
            check(&rows, found);
            if let Some(interpreter) = bench.interpreter() {
                let counters = interpreter.counters();
                let of_kernel: Vec<u64> =
                    counters.iter().filter(|c| c.kernel == "sample_rows").map(|c| c.bytes_read).collect();
                // Three of the seven rows of logits, and little else.
                let (one, three) = (4 * vocab_size as u64, 12 * vocab_size as u64);
                assert!(of_kernel.len() == 1 && (three..three + one / 2).contains(&of_kernel[0]), "{of_kernel:?}");
            }
            // All of them.
            let rows = [&rows[1], &rows[2], &rows[1]].map(Clone::clone);
            check(&rows, backend.sample(&rows).unwrap());

            // Each row bans all tokens but one, and there is room for the bans of 47; and there are more rows than
            // logits rows.
            let bans: Vec<Vec<TokenId>> =
                (0..52).map(|but| (0..vocab_size as u32).filter(|id| *id != but).map(TokenId).collect()).collect();
            let rows: Vec<SampleRow<'_>> =
                bans.iter().enumerate().map(|(at, banned)| SampleRow { banned, ..row(at % 24, &greedy) }).collect();
            let found = backend.sample(&rows).unwrap();
            assert!(found.iter().enumerate().all(|(at, drawn)| drawn.as_ref().unwrap().token.0 == at as u32));
        });
    }
}

device_test! {
    fn a_step_finds_tokens_from_the_host_beside_those_of_the_device() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<bf16>(bench.device(), "gqa9");
            let tables = [3, 8, 5].map(|page| table(&[page]));
            let rows = |start: u32| [0, 1, 2].map(|at: usize| SequenceRows {
                rows: at..at + 1, start, tables: &tables[at],
            });
            let params = SamplingParams::default();
            let prompt = [TokenId(5)];
            let context = LogitsContext { prompt: &prompt, output: &[] };
            let draw = |logits_row, processor| SampleRow { processor, ..SampleRow::new(logits_row, &params, 1) };
            let ids = [TokenId(5), TokenId(6), TokenId(7)];
            let (first, second) = (rows(0), rows(1));
            fn batch<'a>(tokens: &'a [Token], sequences: &'a [SequenceRows<'a>]) -> Batch<'a> {
                Batch { tokens, sequences, logits_rows: &[0, 1, 2] }
            }
            let draws = [draw(0, None), draw(1, Some((&After(200) as &dyn LogitsProcessor, context))), draw(2, None)];
            // The first launches each shape, later ones replay.
            for _ in 0..3 {
                backend.forward(&batch(&Token::known(&ids), &first)).unwrap();
                backend.start_sampling(&draws).unwrap();
                // Before they are asked for, and in another order.
                backend.forward(&batch(&[1, 2, 0].map(Token::Sampled), &second)).unwrap();
                let tokens: Vec<TokenId> =
                    backend.finish_sampling().unwrap().into_iter().map(|drawn| drawn.unwrap().token).collect();
                assert_eq!(tokens[1], TokenId(205));
                let logits = [0, 1, 2].map(|row| backend.logits(row).unwrap().to_vec());
                backend.forward(&batch(&Token::known(&[tokens[1], tokens[2], tokens[0]]), &second)).unwrap();
                assert!(logits == [0, 1, 2].map(|row| backend.logits(row).unwrap().to_vec()));
            }
        });
    }
}

device_test! {
    fn what_is_planned_is_what_is_allocated() {
        common::on_one_schedule(|bench| {
            let Some(interpreter) = bench.interpreter() else { return };
            let few = options();
            let many = CudaOptions { max_sequences: 64, max_rows: 80, ..options() };
            let invariant = CudaOptions { determinism: Determinism::BatchInvariant, ..many.clone() };
            let cases = [("gqa9", &few), ("nobias-theta", &many), ("gqa2-d128", &few), ("gqa2-d128", &invariant)];
            for (name, options) in cases {
                let before = interpreter.allocated_bytes();
                let (checkpoint, spec) = common::golden(name);
                let load = CudaBackend::<bf16>::new(bench.device(), &checkpoint, spec, options, &mut |_| {});
                let mut backend = load.unwrap();
                let planned = backend.memory_plan().bytes();
                assert_eq!(interpreter.allocated_bytes() - before, planned, "{name}: {}", backend.memory_plan());
                // Nothing more is allocated by steps.
                play(&mut backend, &LENGTHS, &STEPS);
                assert_eq!(interpreter.allocated_bytes() - before, planned, "{name}, after steps");
                drop(backend);
                assert_eq!(interpreter.allocated_bytes(), before, "{name}, dropped");
            }
        });
    }
}

device_test! {
    fn as_many_pages_fit_as_the_memory_has_room_for_beside_all_else() {
        common::on_one_schedule(|bench| {
            let device = bench.device();
            for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
                let (checkpoint, spec) = common::golden("gqa9");
                let options = CudaOptions { max_sequences: 64, determinism, ..options() };
                let page = 2 * (spec.layers.len() * 16 * spec.kv_heads * spec.head_dim * 2) as u64;
                let load = CudaBackend::<bf16>::new(device, &checkpoint, spec.clone(), &options, &mut |_| {});
                let backend = load.unwrap();
                let rest = backend.memory_plan().bytes() - u64::from(PAGES) * page + (256 << 20);
                drop(backend);
                let pages = |memory, least| pages_within(device, &spec, &options, memory, least);
                assert_eq!(pages(Some(rest + 37 * page), 1).unwrap(), 37);
                assert_eq!(pages(Some(rest + 38 * page - 1), 37).unwrap(), 37);
                assert_eq!(pages(Some(rest), 0).unwrap(), 0);
                let (free, _) = device.memory().unwrap();
                let by_default = pages(None, 1).unwrap();
                // On a GPU others take and give memory meanwhile: a hundredth.
                let room = if bench.interpreter().is_some() { 0 } else { free / page / 100 };
                let near = |found: u32, expected: u64| u64::from(found).abs_diff(expected) <= room;
                assert!(near(by_default, (free - free / 10 - rest) / page), "{by_default} of {free} bytes");
                let most = pages(Some(u64::MAX), 1).unwrap();
                assert!(near(most, (free - rest) / page), "{most} pages of {free} bytes, no more than are free");
                for (memory, least) in [(rest + 5 * page, 6), (rest - 1, 0), (1000, 1)] {
                    let error = pages(Some(memory), least).unwrap_err().to_string();
                    let needed = rest + u64::from(least) * page;
                    assert!(error.starts_with(&format!("out of memory: {} for weights ", rigel::host::Size(needed))), "{error}");
                    for line in ["key/value cache", "activations", "logits", "attention workspace", "sampler", "driver"] {
                        assert!(error.contains(line), "{line}: {error}");
                    }
                    assert!(error.contains(" may be taken of the "), "{error}");
                }
                let options = CudaOptions { page_size: NonZeroU32::new(48).unwrap(), ..options.clone() };
                assert!(pages_within(device, &spec, &options, None, 1).is_err());
            }
        });
    }
}

device_test! {
    fn what_does_not_fit_or_is_not_supported_is_said_before_anything_is_loaded() {
        common::on_one_schedule(|bench| {
            let refused = |device: &Device, change: &dyn Fn(&mut ModelSpec, &mut CudaOptions)| {
                let (checkpoint, mut spec) = common::golden("gqa9");
                let mut options = options();
                change(&mut spec, &mut options);
                let mut travelled = false;
                let result = CudaBackend::<bf16>::new(device, &checkpoint, spec, &options, &mut |_| travelled = true);
                assert!(!travelled);
                result.err().expect("refused").to_string()
            };
            let device = bench.device();
            let page_size = |size| NonZeroU32::new(size).unwrap();
            assert_eq!(
                refused(device, &|spec, _| spec.head_dim = 80),
                "device cuda: head_dim is 80; the kernels take 64 or 128; use the device cpu"
            );
            assert_eq!(
                refused(device, &|_, options| options.page_size = page_size(48)),
                "device cuda: the page size is 48; the kernels take a power of two of at least 16; use the device cpu"
            );
            assert_eq!(
                refused(device, &|spec, _| spec.hidden_size = 20_000),
                "device cuda: hidden_size is 20000; the kernels take at most 16384; use the device cpu"
            );
            let large = refused(device, &|_, options| options.pages = 1 << 26);
            assert!(large.starts_with("out of memory: ") && large.contains("key/value cache 1.00 TiB"), "{large}");
            if bench.interpreter().is_some() {
                let interpreter = Interpreter::load();
                interpreter.set_device(DeviceProfile::Memory { bytes: 100 << 20 });
                let small = refused(&Device::open(0).unwrap(), &|_, _| {});
                assert!(small.contains("are free on the GPU; a lower context"), "{small}");
            }
        });
    }
}

device_test! {
    fn a_batch_that_cannot_be_is_refused_and_harms_nothing() {
        common::on_one_schedule(|bench| {
            let mut backend = cuda::<bf16>(bench.device(), "gqa9");
            let tables = table(&[3]);
            let row = |start, rows| SequenceRows { rows, start, tables: &tables };
            let ids = vec![TokenId(1); 60];
            let mut refused = |ids: &[TokenId], sequences: &[SequenceRows<'_>], logits_rows: &[usize]| {
                let error = backend.forward(&Batch { tokens: &Token::known(ids), sequences, logits_rows }).unwrap_err();
                assert!(matches!(error, BackendError::InvalidBatch(_)));
                assert!(backend.logits(0).is_err(), "there are no logits");
                error.to_string()
            };
            assert_eq!(refused(&ids, &[row(0, 0..60)], &[]), "invalid batch: 60 rows, at most 48 are allowed");
            assert!(refused(&[TokenId(99_999)], &[row(0, 0..1)], &[]).contains("token id 99999"));
            assert!(refused(&ids[..1], &[row(16, 0..1)], &[]).contains("1 pages for 2 blocks"));
            assert!(refused(&ids[..1], &[row(0, 0..1)], &[1]).contains("logits of row 1 of 1"));
            let six: Vec<_> = (0..6).map(|_| row(0, 0..0)).collect();
            assert_eq!(refused(&[], &six, &[]), "invalid batch: 6 sequences, at most 5 are allowed");
            let good = Batch { tokens: &Token::known(&ids[..1]), sequences: &[row(0, 0..1)], logits_rows: &[0] };
            backend.forward(&good).unwrap();
            assert!(backend.logits(0).unwrap().iter().all(|logit| logit.is_finite()));
        });
    }
}

device_test! {
    fn an_activation_without_kernels_is_refused_by_name() {
        common::on_one_schedule(|bench| {
            let (checkpoint, _) = common::golden("gqa9");
            let mut config = checkpoint.config().clone();
            config.hidden_act = "gelu".to_owned();
            let spec = ModelSpec::from_config(&config).unwrap();
            let loaded = model::load(bench.device(), &checkpoint, spec, Dtype::Bf16, &options(), &mut |_| {});
            let error = loaded.err().unwrap().to_string();
            assert!(error.contains("hidden_act gelu") && error.contains("use the device cpu"), "{error}");
        });
    }
}

/// Has a kernel write a word past the end of its buffer.
fn fault(bench: &common::Bench) {
    let add = bench.device().load(common::conformance_image("device")).unwrap().kernel("device_add_one").unwrap();
    let (from, mut short) = (bench.stream.upload(&[1u32; 64]).unwrap(), bench.stream.zeroed::<u32>(63).unwrap());
    let arguments = Arguments::new().input(from.view()).output(&short.view_mut());
    // SAFETY: none: the interpreter is to notice.
    unsafe { bench.stream.launch(&add, &Launch::linear(2, 32), &arguments) }.unwrap();
    bench.stream.synchronize().unwrap_err();
}

device_test! {
    fn after_a_kernel_has_failed_every_call_says_so_and_nothing_panics() {
        common::on_one_schedule(|bench| {
            // On a GPU the fault would be real, and the process not able to end the test cleanly.
            let test = "after_a_kernel_has_failed_every_call_says_so_and_nothing_panics";
            if common::skipped_on_a_gpu(test, "a fault that the interpreter plants") {
                return;
            }
            let mut backend = cuda::<bf16>(bench.device(), "gqa9");
            let tables = table(&[3]);
            let rows = [SequenceRows { rows: 0..1, start: 0, tables: &tables }];
            let batch = Batch { tokens: &[Token::Known(TokenId(1))], sequences: &rows, logits_rows: &[0] };
            backend.forward(&batch).unwrap();
            fault(bench);
            for _ in 0..2 {
                let failed = backend.forward(&batch).and_then(|()| backend.logits(0).map(|_| ()));
                let error = failed.unwrap_err();
                assert!(matches!(error, BackendError::Device(_)), "{error}");
                assert!(error.to_string().contains("RIGEL_CUDA_SYNC=1"), "{error}");
            }
            drop(backend);
            Interpreter::load().take_reports();
        });
    }
}

device_test! {
    fn an_engine_whose_gpu_has_failed_answers_each_request_with_the_error_and_ends() {
        common::on_one_schedule(|bench| {
            let test = "an_engine_whose_gpu_has_failed_answers_each_request_with_the_error_and_ends";
            if common::skipped_on_a_gpu(test, "a fault that the interpreter plants") {
                return;
            }
            let context = NonZeroU32::new(32).unwrap();
            let engine = Engine::builder().model("nano").device(backend::Device::Cuda).context(context).build().unwrap();
            let request = || Request { max_tokens: 3, ..Request::new(vec![TokenId(70), TokenId(80)]) };
            assert_eq!(engine.generate(request()).unwrap().wait().unwrap().token_ids.len(), 3);
            fault(bench);
            for _ in 0..2 {
                let failure = engine.generate(request()).unwrap().wait().unwrap_err();
                assert!(matches!(failure, Failure::Backend(_)), "{failure}");
                assert!(failure.to_string().contains("RIGEL_CUDA_SYNC=1"), "{failure}");
            }
            drop(engine);
            Interpreter::load().take_reports();
        });
    }
}

/// A network that the kernels take, of odd sizes otherwise.
const CONFIG: &str = r#"{"model_type":"starcoder2","vocab_size":301,"hidden_size":72,"intermediate_size":130,
    "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":64,"sliding_window":100,
    "max_position_embeddings":1000}"#;

fn config() -> Config {
    Config::parse(CONFIG.as_bytes(), "config.json").unwrap()
}

device_test! {
    fn what_is_planned_without_a_device_is_what_loading_allocates() {
        common::on_one_schedule(|bench| {
            let test = "what_is_planned_without_a_device_is_what_loading_allocates";
            let (Some(interpreter), false) =
                (bench.interpreter(), common::skipped_on_a_gpu(test, "a count of all allocations"))
            else {
                return;
            };
            let gpu = bench.device().properties().clone();
            let (free, _) = bench.device().memory().unwrap();
            let spec = ModelSpec::from_config(&config()).unwrap();
            for (sequences, context, chunk, determinism) in [
                (1, 1000, 2048, Determinism::Fast),
                (7, 300, 64, Determinism::Fast),
                (20, 64, 16, Determinism::BatchInvariant),
            ] {
                let asked = || {
                    let builder = Engine::builder().device(backend::Device::Cuda).dummy_weights(config(), 5);
                    let builder = builder.max_sequences(NonZeroUsize::new(sequences).unwrap()).determinism(determinism);
                    let context = NonZeroU32::new(context).unwrap();
                    builder.context(context).prefill_chunk(NonZeroU32::new(chunk).unwrap())
                };
                let plan = asked().backend_options().plan_gpu(&spec, &gpu, free - free / 10).unwrap();
                assert!(plan.fits(), "{plan:?}");
                // With all the pages, and with too little memory for two of them.
                let two_pages = 2 * 2 * (2 * 64 * 2 * 64 * 2);
                for (room, pages) in [(plan.needed(), plan.pages_for_all), (plan.needed() - 1, plan.pages_for_all - 1),
                    (plan.needed() - two_pages, plan.pages_for_all - 2)] {
                    let limited = asked().backend_options().plan_gpu(&spec, &gpu, room).unwrap();
                    assert_eq!(limited.pages, Some(pages));
                    let build = asked().memory(NonZeroU64::new(room).unwrap());
                    if pages < limited.min_pages {
                        assert!(build.build_backend().is_err() && !limited.starts());
                        continue;
                    }
                    let before = interpreter.allocated_bytes();
                    let backend = build.build_backend().unwrap();
                    assert_eq!((backend.cache().groups[0].pages, limited.fits()), (pages, pages == plan.pages_for_all));
                    let missing = u64::from(plan.pages_for_all - pages) * two_pages / 2;
                    assert_eq!(interpreter.allocated_bytes() - before, limited.memory.bytes() - missing);
                }
            }
        });
    }
}

device_test! {
    fn dummy_weights_are_one_network_on_either_device() {
        common::on_one_schedule(|_| {
            let logits = |device| {
                let builder = Engine::builder().device(device).dummy_weights(config(), 9);
                let mut backend = builder.max_sequences(NonZeroUsize::MIN).build_backend().unwrap();
                let token_ids: Vec<TokenId> = (0..20).map(|i| TokenId(i * 37 % 301)).collect();
                let sequence = SequenceRows { rows: 0..20, start: 0, tables: &table(&[0]) };
                let batch = Batch { tokens: &Token::known(&token_ids), sequences: &[sequence], logits_rows: &[19] };
                backend.forward(&batch).unwrap();
                backend.logits(0).unwrap().to_vec()
            };
            let (cpu, cuda) = (logits(backend::Device::Cpu), logits(backend::Device::Cuda));
            let spread = cpu.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
            let off = cpu.iter().zip(&cuda).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(off < 0.05 * spread, "logits up to {spread} are up to {off} apart");
        });
    }
}
