//! [`Determinism::BatchInvariant`] on CUDA: a row's logits have the same bits whatever it is computed with, in
//! whichever pieces, on whichever pages. Each test computes one sequence in one piece, alone, and then in other ways.

use crate::common;
use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};

use half::{bf16, f16};
use rigel::backend::cuda::Device;
use rigel::backend::cuda::kernels::Element;
use rigel::backend::cuda::model::{CudaBackend, CudaOptions};
use rigel::backend::{self, Backend, BackendHooks, Batch, Determinism, SequenceRows, Token};
use rigel::checkpoint::{Checkpoint, ModelSource};
use rigel::engine::{Completion, Engine, EngineBuilder, Request, Speculation};
use rigel::kv::{BlockTable, PageId, PrefixCache};
use rigel::model::ModelSpec;
use rigel::sampling::SamplingParams;
use rigel::text::TokenId;

const PAGES: u32 = 96;
const MAX_ROWS: usize = 128;
const MAX_SEQUENCES: usize = 80;
/// Positions of the sequence that is compared: more than a window of any of the checkpoints, and than a tile of keys.
const POSITIONS: usize = 75;

type Open<'a> = &'a dyn Fn(u32, Determinism) -> Box<dyn Backend>;

/// bf16 with a window of 24, heads of 64 and groups of 9; f16 without a window, heads of 128 and groups of 2.
fn on_each_model(device: &Device, check: &dyn Fn(Open<'_>, &str)) {
    let golden = |name: &str| common::root().join("tests/goldens").join(name);
    let source = |name: &str| ModelSource::directory(golden(name)).unwrap();
    check(&|page, determinism| backend::<bf16>(device, &source("gqa9"), page, determinism), "gqa9 bf16");
    check(&|page, determinism| backend::<f16>(device, &source("gqa2-d128"), page, determinism), "gqa2-d128 f16");
}

fn backend<T: Element>(
    device: &Device,
    source: &ModelSource,
    page_size: u32,
    determinism: Determinism,
) -> Box<dyn Backend> {
    let checkpoint = Checkpoint::open(source).unwrap();
    let mut spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
    spec.untie_stored_head(&checkpoint);
    let options = CudaOptions {
        page_size: NonZeroU32::new(page_size).unwrap(),
        pages: PAGES,
        max_rows: MAX_ROWS,
        max_sequences: MAX_SEQUENCES,
        determinism,
    };
    let mut backend = CudaBackend::<T>::new(device, &checkpoint, spec, &options, &mut |_| {}).unwrap();
    // A slot that is read before it is written shows.
    backend.poison(0, &(0..PAGES).map(PageId).collect::<Vec<_>>()).unwrap();
    Box::new(backend)
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn tokens(&mut self, count: usize, spec: &ModelSpec) -> Vec<TokenId> {
        (0..count).map(|_| TokenId(self.below(spec.vocab_size) as u32)).collect()
    }
}

/// A sequence on its way.
#[derive(Clone)]
struct Sequence {
    tokens: Vec<TokenId>,
    computed: usize,
    /// Of all its blocks, from the first on.
    pages: Vec<PageId>,
}

/// The bits of logits, by sequence and position.
type Found = BTreeMap<(usize, usize), Vec<u32>>;

/// A backend, sequences, and pages that nobody has yet, in no order.
struct World<'a> {
    backend: &'a mut dyn Backend,
    sequences: Vec<Sequence>,
    free: Vec<PageId>,
    found: Found,
}

impl<'a> World<'a> {
    fn new(backend: &'a mut dyn Backend, seed: u64) -> World<'a> {
        let (mut random, mut free) = (Random(seed), (0..PAGES).map(PageId).collect::<Vec<_>>());
        (1..free.len()).for_each(|i| free.swap(i, random.below(i + 1)));
        World { backend, sequences: Vec::new(), free, found: Found::new() }
    }

    fn add(&mut self, tokens: Vec<TokenId>) -> usize {
        self.sequences.push(Sequence { tokens, computed: 0, pages: Vec::new() });
        self.sequences.len() - 1
    }

    fn left(&self, sequence: usize) -> usize {
        self.sequences[sequence].tokens.len() - self.sequences[sequence].computed
    }

    /// Computes the next rows of some sequences, and keeps the logits of those rows that `wants` wants.
    fn step(&mut self, rows: &[(usize, usize)], mut wants: impl FnMut(usize) -> bool) {
        let page_size = self.backend.cache().page_size.get() as usize;
        let (mut ids, mut wanted) = (Vec::new(), Vec::new());
        for &(index, count) in rows {
            let sequence = &mut self.sequences[index];
            let end = sequence.computed + count;
            while sequence.pages.len() * page_size < end {
                sequence.pages.push(self.free.pop().expect("a free page"));
            }
            for position in sequence.computed..end {
                if wants(index) {
                    wanted.push((ids.len(), (index, position)));
                }
                ids.push(sequence.tokens[position]);
            }
        }
        let mut first = 0;
        let table = |index: usize| [BlockTable::from_pages(0, self.sequences[index].pages.clone())];
        let tables: Vec<[BlockTable; 1]> = rows.iter().map(|(index, _)| table(*index)).collect();
        let sequences: Vec<SequenceRows<'_>> = rows
            .iter()
            .zip(&tables)
            .map(|(&(index, count), tables)| {
                first += count;
                let start = self.sequences[index].computed as u32;
                SequenceRows { rows: first - count..first, start, tables }
            })
            .collect();
        let logits_rows: Vec<usize> = wanted.iter().map(|(row, _)| *row).collect();
        let batch = Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &logits_rows };
        self.backend.forward(&batch).unwrap();
        for (row, (_, place)) in wanted.into_iter().enumerate() {
            let bits = self.backend.logits(row).unwrap().iter().map(|logit| logit.to_bits()).collect();
            self.found.insert(place, bits);
        }
        rows.iter().for_each(|&(index, count)| self.sequences[index].computed += count);
    }

    /// Logits of every position of a sequence, computed alone in pieces of `chunk` rows.
    fn alone(backend: &mut dyn Backend, tokens: &[TokenId], chunk: usize, seed: u64) -> Vec<Vec<u32>> {
        let mut world = World::new(backend, seed);
        let sequence = world.add(tokens.to_vec());
        while world.left(sequence) > 0 {
            world.step(&[(sequence, chunk.min(world.left(sequence)))], |_| true);
        }
        world.found.into_values().collect()
    }
}

/// All of a sequence's logits that were found are those expected, and there are at least `at_least`.
fn assert_same(found: &Found, sequence: usize, expected: &[Vec<u32>], at_least: usize, what: &str) {
    let mut compared = 0;
    for (&(of, position), bits) in found {
        if of != sequence {
            continue;
        }
        assert!(bits.iter().all(|bits| f32::from_bits(*bits).is_finite()), "{what}: position {position} is not finite");
        let differing = bits.iter().zip(&expected[position]).filter(|(a, b)| a != b).count();
        assert!(differing == 0, "{what}: position {position} differs in {differing} of {} logits", bits.len());
        compared += 1;
    }
    assert!(compared >= at_least, "{what}: {compared} positions were compared, {at_least} expected");
}

fn assert_equal(found: &[Vec<u32>], expected: &[Vec<u32>], what: &str) {
    let found: Found = (0..).zip(found).map(|(position, bits)| ((0, position), bits.clone())).collect();
    assert_same(&found, 0, expected, expected.len(), what);
}

device_test! {
    fn chunks_have_the_bits_of_the_whole_on_any_pages() {
        common::on_one_schedule(|bench| {
            on_each_model(bench.device(), &|open, name| {
                let mut backend = open(16, Determinism::BatchInvariant);
                let tokens = Random(1).tokens(POSITIONS, backend.spec());
                let whole = World::alone(&mut *backend, &tokens, POSITIONS, 1);
                // One by one is decode: first launch by launch, then recorded, then replayed.
                for (seed, chunk) in [(2, 1), (3, 3), (4, 16)] {
                    let found = World::alone(&mut *backend, &tokens, chunk, seed);
                    assert_equal(&found, &whole, &format!("{name}, chunks of {chunk}"));
                }
                for (page_size, chunk) in [(64, 16), (32, POSITIONS)] {
                    let found = World::alone(&mut *open(page_size, Determinism::BatchInvariant), &tokens, chunk, 6);
                    assert_equal(&found, &whole, &format!("{name}, pages of {page_size}, chunks of {chunk}"));
                }
            });
        });
    }
}

device_test! {
    /// Products of many tiles, whose plans differ with the number of rows.
    fn the_bundled_model_has_the_bits_of_the_whole_in_chunks() {
        common::on_one_schedule(|bench| {
            let mut backend = backend::<bf16>(bench.device(), &ModelSource::nano(), 16, Determinism::BatchInvariant);
            let tokens = Random(1).tokens(35, backend.spec());
            let whole = World::alone(&mut *backend, &tokens, 35, 1);
            let mut world = World::new(&mut *backend, 2);
            let sequence = world.add(tokens);
            [17, 1, 1, 1, 4, 11].into_iter().for_each(|rows| world.step(&[(sequence, rows)], |_| true));
            assert_same(&world.found, sequence, &whole, 35, "nano bf16, chunks");
        });
    }
}

device_test! {
    /// Positions on both sides of the end of a split of batch-invariant attention (256), computed by whole tiles, by
    /// splits, and by several rows that are split together.
    fn positions_of_several_splits_have_the_bits_of_the_whole() {
        common::on_one_schedule(|bench| {
            let golden = common::root().join("tests/goldens/gqa2-d128");
            let source = ModelSource::directory(golden).unwrap();
            let mut backend = backend::<f16>(bench.device(), &source, 16, Determinism::BatchInvariant);
            let tokens = Random(1).tokens(300, backend.spec());
            let whole = World::alone(&mut *backend, &tokens, MAX_ROWS, 1);
            let mut world = World::new(&mut *backend, 2);
            let [a, b] = [tokens.clone(), tokens[..40].to_vec()].map(|tokens| world.add(tokens));
            world.step(&[(a, 121)], |_| true);
            world.step(&[(a, 127)], |_| true);
            // Few enough rows for splits to be computed apart, but for the last.
            for rows in [1, 5, 1, 1, 4, 1, 32] {
                world.step(&[(a, rows), (b, 1)], |_| true);
            }
            world.step(&[(b, 33), (a, 7)], |_| true);
            assert_same(&world.found, a, &whole, 300, "gqa2-d128 f16, the longer");
            assert_same(&world.found, b, &whole, 40, "gqa2-d128 f16, the shorter");
        });
    }
}

device_test! {
    /// With so many rows a block computes a whole tile, launch by launch and replayed.
    fn a_row_among_many_has_the_bits_of_one() {
        common::on_one_schedule(|bench| {
            let golden = common::root().join("tests/goldens/gqa9");
            let source = ModelSource::directory(golden).unwrap();
            let mut backend = backend::<bf16>(bench.device(), &source, 16, Determinism::BatchInvariant);
            let tokens = Random(1).tokens(5, backend.spec());
            let alone = World::alone(&mut *backend, &tokens, 1, 1);
            let mut world = World::new(&mut *backend, 2);
            let all: Vec<(usize, usize)> = (0..MAX_SEQUENCES).map(|_| (world.add(tokens.clone()), 1)).collect();
            (0..5).for_each(|_| world.step(&all, |_| true));
            (0..MAX_SEQUENCES).for_each(|of| assert_same(&world.found, of, &alone, 5, &format!("sequence {of}")));
        });
    }
}

device_test! {
    fn company_changes_no_bit() {
        common::on_one_schedule(|bench| {
            on_each_model(bench.device(), &|open, name| {
                let mut backend = open(16, Determinism::BatchInvariant);
                let spec = backend.spec().clone();
                let tokens = Random(1).tokens(POSITIONS, &spec);
                let whole = World::alone(&mut *backend, &tokens, POSITIONS, 1);
                for seed in 0..2 {
                    let mut random = Random(seed);
                    let mut world = World::new(&mut *backend, seed);
                    let subject = world.add(tokens.clone());
                    for _ in 0..random.below(7) + 1 {
                        let company = 1 + random.below(90);
                        let company = random.tokens(company, &spec);
                        world.add(company);
                    }
                    while world.left(subject) > 0 {
                        // Any number of rows of any of them, in any order.
                        let mut rows = Vec::new();
                        let mut room = MAX_ROWS;
                        for sequence in 0..world.sequences.len() {
                            let wanted = [0, 1, 1, 1, 2, 5, 14, 33][random.below(8)];
                            let count = wanted.min(world.left(sequence)).min(room);
                            room -= count;
                            rows.insert(random.below(rows.len() + 1), (sequence, count));
                        }
                        world.step(&rows, |sequence| sequence == subject || random.below(2) == 0);
                    }
                    assert_same(&world.found, subject, &whole, POSITIONS, &format!("{name}, company {seed}"));
                }
            });
        });
    }
}

device_test! {
    fn recorded_steps_of_several_sequences_have_the_bits_of_one() {
        common::on_one_schedule(|bench| {
            on_each_model(bench.device(), &|open, name| {
                let mut backend = open(16, Determinism::BatchInvariant);
                let spec = backend.spec().clone();
                let tokens = [1, 2, 3].map(|seed| Random(seed).tokens(POSITIONS, &spec));
                let alone = tokens.each_ref().map(|tokens| World::alone(&mut *backend, tokens, POSITIONS, 1));
                let mut world = World::new(&mut *backend, 7);
                let sequences = tokens.map(|tokens| world.add(tokens));
                world.step(&[(0, 60), (1, 9), (2, 30)], |_| true);
                // Buckets of 4 and 2 rows, in turn, each from its third time on a replay.
                for _ in 0..4 {
                    world.step(&[(2, 1), (0, 1), (1, 1)], |_| true);
                    world.step(&[(1, 1), (2, 1)], |_| true);
                }
                for (sequence, computed) in sequences.into_iter().zip([64, 17, 38]) {
                    let what = format!("{name}, sequence {sequence}");
                    assert_same(&world.found, sequence, &alone[sequence], computed, &what);
                }
            });
        });
    }
}

device_test! {
    fn rows_on_pages_that_another_sequence_computed_have_the_bits_of_their_own() {
        common::on_one_schedule(|bench| {
            on_each_model(bench.device(), &|open, name| {
                let mut backend = open(16, Determinism::BatchInvariant);
                let spec = backend.spec().clone();
                let first = Random(1).tokens(POSITIONS, &spec);
                let second = [&first[..48], &Random(2).tokens(POSITIONS - 48, &spec)].concat();
                let expected = [&first, &second].map(|tokens| World::alone(&mut *backend, tokens, POSITIONS, 1));
                let mut world = World::new(&mut *backend, 3);
                let (a, b) = (world.add(first), world.add(second));
                // The pages come from chunks and from decode.
                for rows in [17, 1, 1, 30, 1, 3] {
                    world.step(&[(a, rows)], |_| true);
                }
                world.sequences[b].pages = world.sequences[a].pages[..3].to_vec();
                world.sequences[b].computed = 48;
                world.step(&[(b, 2), (a, 1)], |_| true);
                world.step(&[(a, 4), (b, 1)], |_| true);
                world.step(&[(b, 20)], |_| true);
                assert_same(&world.found, a, &expected[0], 58, &format!("{name}, the first"));
                assert_same(&world.found, b, &expected[1], 23, &format!("{name}, the second"));
            });
        });
    }
}

device_test! {
    fn verified_rows_have_the_bits_of_decoded_ones_also_after_rejected_ones() {
        common::on_one_schedule(|bench| {
            on_each_model(bench.device(), &|open, name| {
                let mut backend = open(16, Determinism::BatchInvariant);
                let spec = backend.spec().clone();
                let tokens = [1, 2].map(|seed| Random(seed).tokens(POSITIONS, &spec));
                let expected = tokens.each_ref().map(|tokens| World::alone(&mut *backend, tokens, 31, 1));
                let mut world = World::new(&mut *backend, 3);
                let [a, b] = tokens.clone().map(|tokens| world.add(tokens));
                world.step(&[(a, 40), (b, 20)], |_| true);
                for turn in 0..4 {
                    // Guesses, of which the first two are right: their logits count, and the rest is computed again.
                    for sequence in [a, b] {
                        let Sequence { tokens, computed, .. } = &mut world.sequences[sequence];
                        tokens[*computed + 2..*computed + 5].fill(TokenId(turn));
                    }
                    world.step(&[(a, 5), (b, 5)], |_| true);
                    for sequence in [a, b] {
                        world.sequences[sequence].tokens.clone_from(&tokens[sequence]);
                        world.sequences[sequence].computed -= 3;
                    }
                    let computed = [a, b].map(|sequence| world.sequences[sequence].computed);
                    world.found.retain(|(sequence, position), _| *position < computed[*sequence]);
                    // Two right ones, and one beside a longer chunk.
                    world.step(&[(b, 2), (a, 1)], |_| true);
                }
                assert_same(&world.found, a, &expected[0], 52, &format!("{name}, the first"));
                assert_same(&world.found, b, &expected[1], 36, &format!("{name}, the second"));
            });
        });
    }
}

device_test! {
    fn the_fastest_arithmetic_does_not_have_these_properties() {
        common::on_one_schedule(|bench| {
            on_each_model(bench.device(), &|open, name| {
                let mut backend = open(16, Determinism::Fast);
                let tokens = Random(1).tokens(20, backend.spec());
                let whole = World::alone(&mut *backend, &tokens, 20, 1);
                for chunk in [1, 7] {
                    assert!(World::alone(&mut *backend, &tokens, chunk, 2) != whole, "{name}, chunks of {chunk}");
                }
            });
        });
    }
}

/// What the mode costs, for docs/performance.md: bytes and MMA instructions of one decode step of the bundled
/// model, every sequence at position 100.
#[test]
#[ignore = "prints numbers; run with --ignored --nocapture"]
fn what_a_decode_step_costs() {
    common::on_one_schedule(|bench| {
        let Some(interpreter) = bench.interpreter() else { return };
        for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
            let (checkpoint, spec) = {
                let checkpoint = Checkpoint::open(&ModelSource::nano()).unwrap();
                let spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
                (checkpoint, spec)
            };
            let page_size = NonZeroU32::new(64).unwrap();
            let options = CudaOptions { page_size, pages: 128, max_rows: 64, max_sequences: 64, determinism };
            let mut backend =
                CudaBackend::<bf16>::new(bench.device(), &checkpoint, spec, &options, &mut |_| {}).unwrap();
            backend.poison(0, &(0..128).map(PageId).collect::<Vec<_>>()).unwrap();
            let table = |i: u32| [BlockTable::from_pages(0, vec![PageId(2 * i), PageId(2 * i + 1)])];
            let tables: Vec<[BlockTable; 1]> = (0..64).map(table).collect();
            for count in [1, 16, 64] {
                let rows = |i: usize| SequenceRows { rows: i..i + 1, start: 100, tables: &tables[i] };
                let sequences: Vec<SequenceRows<'_>> = (0..count).map(rows).collect();
                let (ids, logits_rows) = (vec![TokenId(5); count], (0..count).collect::<Vec<_>>());
                interpreter.clear_counters();
                let batch = Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &logits_rows };
                backend.forward(&batch).unwrap();
                backend.logits(0).unwrap();
                let (mut bytes, mut of_attention, mut instructions, mut of_warpgroups) = (0, 0, 0, 0);
                for launch in interpreter.counters() {
                    let moved = launch.bytes_read + launch.bytes_written;
                    bytes += moved;
                    instructions += launch.matrix_instructions;
                    of_warpgroups += launch.warpgroup_instructions;
                    if launch.kernel.starts_with("attention") {
                        of_attention += moved;
                    }
                }
                println!(
                    "{determinism:?}, {count} sequences: {bytes} bytes ({of_attention} of attention), {instructions} \
                         MMA instructions of warps, {of_warpgroups} of warpgroups"
                );
            }
        }
    });
}

device_test! {
    fn an_engine_gives_each_request_the_same_bits_in_any_company() {
        common::on_one_schedule(|_| {
            let engine = |change: fn(EngineBuilder) -> EngineBuilder| {
                let builder = Engine::builder()
                    .model(common::root().join("tests/goldens/gqa2").display().to_string())
                    .device(backend::Device::Cuda)
                    .determinism(Determinism::BatchInvariant)
                    .context(NonZeroU32::new(64).unwrap());
                change(builder).build().unwrap()
            };
            // Beginnings that are shared and repeat themselves, so that there is something to find and to draft.
            let prompt = |len: usize| (0..len).map(|i| TokenId([3, 7, 11, 7][i % 4] + 2 * (i as u32 / 24))).collect();
            let requests: Vec<Request> = [(5, 9, 0.0), (37, 7, 0.0), (30, 8, 0.8), (37, 6, 0.8), (18, 9, 0.0)]
                .into_iter()
                .map(|(len, max_tokens, temperature)| Request {
                    max_tokens,
                    sampling: SamplingParams { temperature, seed: 3, ..SamplingParams::default() },
                    logprobs: Some(2),
                    ignore_eos: true,
                    ..Request::new(prompt(len))
                })
                .collect();
            let bits = |completion: Completion| {
                let logprobs = completion.logprobs.into_iter();
                let logprobs: Vec<(u32, Vec<u32>)> = logprobs
                    .map(|l| (l.target.unwrap().to_bits(), l.top.iter().map(|(_, l)| l.to_bits()).collect()))
                    .collect();
                (completion.token_ids, logprobs)
            };
            let one_by_one = engine(|builder| {
                builder.max_sequences(NonZeroUsize::MIN).prefix_cache(PrefixCache::Off).speculation(Speculation::Off)
            });
            let alone: Vec<_> =
                requests.iter().map(|request| bits(one_by_one.generate(request.clone()).unwrap().wait().unwrap())).collect();
            drop(one_by_one);
            let crowded = engine(|builder| {
                builder
                    .max_sequences(NonZeroUsize::new(4).unwrap())
                    .prefill_chunk(NonZeroU32::new(7).unwrap())
                    .page_size(NonZeroU32::new(16).unwrap())
                    .poison_freed_pages()
            });
            // Twice: the second time their beginnings are in the cache.
            for _ in 0..2 {
                let running: Vec<_> =
                    requests.iter().map(|request| crowded.generate(request.clone()).unwrap()).collect();
                for (generation, alone) in running.into_iter().zip(&alone) {
                    assert_eq!(bits(generation.wait().unwrap()), *alone);
                }
            }
            let statistics = crowded.statistics();
            assert!(statistics.prefix_hits > 0 && statistics.drafted_tokens > 0, "{statistics:?}");
        });
    }
}
