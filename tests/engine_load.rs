//! Ten thousand random requests through the engine on nano, over caches far too small for them: prompts that begin
//! alike, every kind of sampling, samples, stops, log-probabilities, deadlines, bad requests, and consumers that leave;
//! with and without a queue that is computed late, and drafts. All come to their end, each answer has the bits of the
//! answer that the request gets alone, no page leaks, and whoever reads a page that was freed reads NaN.

use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rigel::backend::cpu::{CpuBackend, CpuOptions};
use rigel::backend::{Backend, BackendError, BackendHooks, Batch, DeviceInfo, SequenceRows, Token};
use rigel::checkpoint::{Checkpoint, ModelSource};
use rigel::engine::{
    Completion, Engine, EngineOptions, FinishReason, Generation, Request, RequestError, Speculation, Statistics,
};
use rigel::kv::{BlockTable, CacheGeometry, PageId, PrefixCache};
use rigel::model::ModelSpec;
use rigel::sampling::{SampleError, SampleRow, Sampled, SamplingParams};
use rigel::text::{SpecialTokens, TokenId, Tokenizer};

const PAGE_SIZE: u32 = 8;
/// Requests of each engine, and how many different ones they are drawn from.
const REQUESTS: usize = 2_700;
const KINDS: usize = 260;
/// Requests that are under way at once.
const AT_ONCE: usize = 40;

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// The CPU behind a queue that does nothing before it has to: a forward pass that was given runs when its draws are
/// asked for or pages are filled, when the engine has long gone on.
struct Late {
    inside: CpuBackend,
    given: Option<Given>,
    /// Tokens of the last draws.
    drawn: Vec<TokenId>,
    under_way: Option<Vec<Result<Sampled, SampleError>>>,
}

/// A step that was given and is not computed.
struct Given {
    token_ids: Vec<TokenId>,
    sequences: Vec<(Range<usize>, u32, Vec<BlockTable>)>,
    logits_rows: Vec<usize>,
}

impl Late {
    fn new(inside: CpuBackend) -> Late {
        Late { inside, given: None, drawn: Vec::new(), under_way: None }
    }

    fn catch_up(&mut self) -> Result<(), BackendError> {
        let Some(Given { token_ids, sequences, logits_rows }) = self.given.take() else { return Ok(()) };
        let sequences: Vec<SequenceRows<'_>> = sequences
            .iter()
            .map(|(rows, start, tables)| SequenceRows { rows: rows.clone(), start: *start, tables })
            .collect();
        let tokens = Token::known(&token_ids);
        self.inside.forward(&Batch { tokens: &tokens, sequences: &sequences, logits_rows: &logits_rows })
    }
}

impl Backend for Late {
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
        self.catch_up()?;
        let token = |token: &Token| match *token {
            Token::Known(id) => id,
            Token::Sampled(at) => self.drawn[at as usize],
        };
        let owned = |s: &SequenceRows<'_>| (s.rows.clone(), s.start, s.tables.to_vec());
        self.given = Some(Given {
            token_ids: batch.tokens.iter().map(token).collect(),
            sequences: batch.sequences.iter().map(owned).collect(),
            logits_rows: batch.logits_rows.to_vec(),
        });
        Ok(())
    }
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError> {
        assert!(self.under_way.is_none(), "draws were started and not finished");
        self.catch_up()?;
        let drawn = self.inside.sample(rows)?;
        self.drawn = drawn.iter().map(|drawn| drawn.as_ref().map_or(TokenId(0), |drawn| drawn.token)).collect();
        self.under_way = Some(drawn);
        Ok(())
    }
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        Ok(self.under_way.take().unwrap_or_default())
    }
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        self.catch_up()?;
        self.inside.logits(row)
    }
    fn hooks(&mut self) -> Option<&mut dyn BackendHooks> {
        Some(self)
    }
    fn is_asynchronous(&self) -> bool {
        true
    }
}

impl BackendHooks for Late {
    fn poison(&mut self, group: usize, pages: &[PageId]) -> Result<(), BackendError> {
        self.catch_up()?;
        self.inside.poison(group, pages)
    }
}

/// Does the backend of a test have a queue?
#[derive(Debug, Clone, Copy, PartialEq)]
enum Queue {
    None,
    Late,
}

/// nano with other windows, those of its layers in turn, and `pages` pages for the keys and values of the widest.
fn engine(windows: &[Option<u32>], pages: u32, queue: Queue, options: EngineOptions) -> Engine {
    let source = ModelSource::nano();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let mut spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
    spec.untie_stored_head(&checkpoint);
    for (layer, window) in spec.layers.iter_mut().zip(windows.iter().cycle()) {
        layer.attention.window = window.and_then(NonZeroU32::new);
    }
    spec.max_positions = 400;
    let page_size = NonZeroU32::new(PAGE_SIZE).unwrap();
    let cpu = CpuOptions { threads: None, page_size, pages, max_rows: 64 };
    let backend = CpuBackend::new(&checkpoint, spec, cpu).unwrap();
    let backend: Box<dyn Backend> = match queue {
        Queue::None => Box::new(backend),
        Queue::Late => Box::new(Late::new(backend)),
    };
    Engine::with_backend(backend, Tokenizer::from_source(&source).unwrap(), String::new(), options).unwrap()
}

/// The different requests, each with the one that it is when nothing cuts it short.
fn kinds(engine: &Engine, random: &mut Random) -> Vec<Request> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/ledger.rs")).unwrap();
    let text = engine.tokenizer().unwrap().encode(&text, SpecialTokens::AsText).unwrap();
    let beginnings: Vec<usize> = (0..12).map(|_| random.below(text.len() - 200)).collect();
    let sampling = |random: &mut Random| SamplingParams {
        temperature: *random.pick(&[0.0, 0.0, 0.3, 0.8, 1.5]),
        top_k: *random.pick(&[0, 0, 3, 40]),
        top_p: *random.pick(&[1.0, 0.9, 0.5]),
        min_p: *random.pick(&[0.0, 0.0, 0.05]),
        repetition_penalty: *random.pick(&[1.0, 1.0, 1.0, 1.3]),
        frequency_penalty: *random.pick(&[0.0, 0.0, 0.0, 0.5]),
        presence_penalty: *random.pick(&[0.0, 0.0, 0.0, -0.4]),
        logit_bias: if random.one_in(6) { vec![(TokenId(random.below(4096) as u32), 6.0)] } else { Vec::new() },
        banned_token_ids: if random.one_in(6) { vec![TokenId(random.below(300) as u32)] } else { Vec::new() },
        min_tokens: *random.pick(&[0, 0, 4]),
        seed: random.next(),
        ..SamplingParams::default()
    };
    let kind = |random: &mut Random| {
        let start = *random.pick(&beginnings);
        let (most, max_tokens) = (*random.pick(&[12, 30, 90]), *random.pick(&[10, 30, 70]));
        let len = 1 + random.below(most);
        let mut prompt = text[start..start + len].to_vec();
        if random.one_in(3) {
            // Begins alike, and ends otherwise.
            let last = prompt.len() - 1;
            prompt[last] = TokenId(random.below(4096) as u32);
        }
        Request {
            n: if random.one_in(12) { 3 } else { 1 },
            max_tokens: if random.one_in(20) { 0 } else { 1 + random.below(max_tokens) as u32 },
            sampling: sampling(random),
            stop: if random.one_in(4) { vec!["\n\n".into(), "self".into()] } else { Vec::new() },
            ignore_eos: random.one_in(2),
            logprobs: if random.one_in(3) { Some(random.below(4)) } else { None },
            prompt_logprobs: if random.one_in(25) { Some(random.below(3)) } else { None },
            cache_salt: random.pick(&[None, None, Some("a".to_owned())]).clone(),
            ..Request::new(prompt)
        }
    };
    (0..KINDS).map(|_| kind(random)).collect()
}

/// Everything of a completion but its times, floats as their bits.
fn bits(completion: &Completion) -> String {
    let float = |logprob: Option<f32>| logprob.map(f32::to_bits);
    let best = |top: &[(TokenId, f32)]| top.iter().map(|(id, l)| (id.0, l.to_bits())).collect::<Vec<_>>();
    let prompt: Vec<_> = completion.prompt.iter().map(|t| (t.id.0, float(t.logprob), best(&t.top))).collect();
    let logprobs: Vec<_> = completion.logprobs.iter().map(|t| (float(t.target), best(&t.top))).collect();
    let ids: Vec<u32> = completion.token_ids.iter().map(|id| id.0).collect();
    format!("{prompt:?} {ids:?} {logprobs:?} {:?} {:?}", completion.text, completion.reason)
}

/// A request under way.
struct Running {
    kind: usize,
    generation: Generation,
    /// Whether it may end early with what there is.
    timed: bool,
}

struct Outcome {
    statistics: Statistics,
    dropped: usize,
    refused: usize,
    expired: usize,
}

/// Sends all requests through a crowded engine, and compares each with what it gets alone.
fn run(windows: &[Option<u32>], seed: u64, pages: u32, queue: Queue, speculation: Speculation) -> Outcome {
    let mut random = Random(seed);
    let one_by_one = EngineOptions {
        max_sequences: Some(NonZeroUsize::MIN),
        prefix_cache: PrefixCache::Off,
        ..EngineOptions::default()
    };
    let alone_engine = engine(windows, 100, Queue::None, one_by_one);
    let kinds = kinds(&alone_engine, &mut random);
    let alone: Vec<Vec<Completion>> =
        kinds.iter().map(|kind| alone_engine.generate(kind.clone()).unwrap().wait_all().unwrap()).collect();
    drop(alone_engine);

    let crowded = EngineOptions {
        max_sequences: NonZeroUsize::new(12),
        prefill_chunk: NonZeroU32::new(24),
        speculation,
        poison_freed_pages: true,
        ..EngineOptions::default()
    };
    let engine = engine(windows, pages, queue, crowded);

    let mut running: Vec<Running> = Vec::new();
    let (mut dropped, mut refused, mut expired) = (0, 0, 0);
    for _ in 0..REQUESTS {
        let kind = random.below(kinds.len());
        let mut request = kinds[kind].clone();
        match random.below(40) {
            0 => {
                let bad = match random.below(3) {
                    0 => Request { prompt: vec![TokenId(4096)], ..request },
                    1 => Request { max_tokens: 4000, ..request },
                    _ => Request { sampling: SamplingParams { top_p: 7.0, ..request.sampling }, ..request },
                };
                assert!(engine.generate(bad).is_err());
                refused += 1;
                continue;
            }
            1 => request.timeout = Some(Duration::from_micros(random.below(20_000) as u64)),
            _ => {}
        }
        let timed = request.timeout.is_some();
        match engine.generate(request) {
            Ok(generation) => running.push(Running { kind, generation, timed }),
            Err(RequestError::LargerThanCache { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        while running.len() > AT_ONCE {
            if random.one_in(4) {
                // The oldest have begun to answer, those behind them are in their prompts or wait.
                let at = random.below(20);
                drop(running.remove(at).generation);
                dropped += 1;
            } else {
                let at = random.below(8);
                expired += finish(running.remove(at), &alone);
            }
        }
    }
    expired += running.into_iter().map(|running| finish(running, &alone)).sum::<usize>();
    Outcome { statistics: settled(&engine), dropped, refused, expired }
}

/// Compares a request's answer with the one that it gets alone. 1 where its time was up.
fn finish(running: Running, alone: &[Vec<Completion>]) -> usize {
    let found = running.generation.wait_all().unwrap();
    let expected = &alone[running.kind];
    assert_eq!(found.len(), expected.len());
    let mut expired = 0;
    for (found, expected) in found.iter().zip(expected) {
        if running.timed && found.reason == FinishReason::Deadline {
            assert!(expected.token_ids.starts_with(&found.token_ids), "request {}", running.kind);
            expired = 1;
        } else {
            assert_eq!(bits(found), bits(expected), "request {}", running.kind);
        }
    }
    expired
}

fn settled(engine: &Engine) -> Statistics {
    for _ in 0..10_000 {
        let statistics = engine.statistics();
        if statistics.running + statistics.waiting == 0 && statistics.pages_available == statistics.pages {
            return statistics;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the engine holds on to something: {:?}", engine.statistics());
}

#[test]
fn ten_thousand_requests_over_too_few_pages() {
    let mut total = Statistics::default();
    let (mut dropped, mut refused, mut expired) = (0, 0, 0);
    let engines: [(&[Option<u32>], u32, Queue, Speculation); 4] = [
        (&[Some(128)], 30, Queue::Late, Speculation::Off),
        (&[Some(40)], 20, Queue::None, Speculation::PromptLookup),
        (&[None], 32, Queue::Late, Speculation::PromptLookup),
        (&[Some(40), None], 64, Queue::Late, Speculation::PromptLookup),
    ];
    for (seed, (windows, pages, queue, speculation)) in (1..).zip(engines) {
        let outcome = run(windows, seed, pages, queue, speculation);
        let s = outcome.statistics;
        println!("windows {windows:?}, {pages} pages: {s:?}");
        total.finished += s.finished;
        total.cancelled += s.cancelled;
        total.cancelled_in_prefill += s.cancelled_in_prefill;
        total.preemptions += s.preemptions;
        total.prefix_hits += s.prefix_hits;
        total.accepted_tokens += s.accepted_tokens;
        assert_eq!(s.failed, 0);
        dropped += outcome.dropped;
        refused += outcome.refused;
        expired += outcome.expired;
    }
    println!("{total:?}, {dropped} dropped, {refused} refused, {expired} expired");
    assert!(total.preemptions >= 1_000, "{total:?}");
    assert!(total.cancelled >= 1_000 && total.cancelled_in_prefill >= 5, "{total:?}");
    assert!(total.prefix_hits >= 1_000, "{total:?}");
    assert!(total.accepted_tokens >= 1_000, "{total:?}");
    assert!(total.finished + total.cancelled >= 10_000, "{total:?}");
    assert!(refused >= 100 && expired >= 10, "{refused} refused, {expired} expired");
}
