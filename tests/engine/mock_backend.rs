//! The engine against a backend that only keeps books (`common/ledger.rs`): every token that comes out is compared with
//! the one that the books say, whatever company a request had, whatever was preempted, shared, drafted or cancelled.

#[path = "../common/ledger.rs"]
mod ledger;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ledger::{EOS, Hook, Ledger, VOCAB, expected, expected_of, expected_of_windows, ids, prompt, raw};
use proptest::prelude::*;
use rigel::backend::{BackendError, Token};
use rigel::engine::{
    Completion, Engine, EngineOptions, Event, Failure, FinishReason, Generation, Generations, Request, RequestError,
    Speculation, Statistics, StopCause,
};
use rigel::kv::PrefixCache;
use rigel::sampling::{LogitsContext, LogitsProcessor, SamplingParams};
use rigel::text::TokenId;

#[test]
fn chunks_pages_and_windows_do_not_change_the_tokens() {
    for window in [None, Some(1), Some(7), Some(8), Some(33), Some(1000)] {
        for page_size in [1, 8, 16] {
            for max_rows in [1, 5, 64] {
                for len in [1, 8, 50] {
                    let prompt = prompt(len);
                    let engine = Ledger::new(window, page_size, max_rows).engine();
                    let request = Request { max_tokens: 60, ..Request::new(ids(&prompt)) };
                    // Twice: the second takes the pages that the first gave back.
                    for _ in 0..2 {
                        let completion = engine.generate(request.clone()).unwrap().wait().unwrap();
                        assert_eq!(
                            raw(&completion.token_ids),
                            expected(&prompt, 60, window),
                            "window {window:?}, page size {page_size}, {max_rows} rows, prompt {len}"
                        );
                        assert_eq!(completion.reason, FinishReason::Length);
                        assert_eq!(completion.timings.completion_tokens, 60);
                    }
                }
            }
        }
    }
}

#[test]
fn prompt_logprobs_are_those_of_each_token() {
    let prompt = prompt(20);
    let engine = Ledger::new(Some(6), 4, 8).engine();
    let request = Request { max_tokens: 0, prompt_logprobs: Some(2), ..Request::new(ids(&prompt)) };
    let completion = engine.generate(request).unwrap().wait().unwrap();
    assert_eq!(completion.token_ids, []);
    assert_eq!(completion.prompt.len(), 20);
    assert_eq!(completion.prompt[0].logprob, None);
    let best = 10.0 - ((VOCAB - 1) as f32 + 10f32.exp()).ln();
    for (i, token) in completion.prompt.iter().enumerate() {
        assert_eq!(token.id.0, prompt[i]);
        let next = expected(&prompt[..=i], 1, Some(6))[0];
        assert_eq!(token.top.len(), 2);
        assert_eq!(token.top[0].0.0, next);
        assert!((token.top[0].1 - best).abs() < 1e-5);
        if i + 1 < prompt.len() {
            let hit = prompt[i + 1] == next;
            let logprob = completion.prompt[i + 1].logprob.unwrap();
            assert!((logprob - if hit { best } else { best - 10.0 }).abs() < 1e-5);
        }
    }
}

#[test]
fn prompt_logprobs_go_on_into_generation() {
    let prompt = prompt(10);
    let engine = Ledger::new(None, 4, 4).engine();
    let request = Request { max_tokens: 5, prompt_logprobs: Some(0), logprobs: Some(1), ..Request::new(ids(&prompt)) };
    let completion = engine.generate(request).unwrap().wait().unwrap();
    assert_eq!(completion.prompt.len(), 10);
    assert_eq!(raw(&completion.token_ids), expected(&prompt, 5, None));
    assert_eq!(completion.logprobs.len(), 5);
    assert_eq!(completion.logprobs[4].top[0].0, completion.token_ids[4]);
    assert_eq!(completion.logprobs[4].target, Some(completion.logprobs[4].top[0].1));
}

#[test]
fn stop_tokens_end_it_and_are_reported() {
    let prompt = prompt(9);
    let all = expected(&prompt, 30, None);
    let stop = all[12];
    let end = all.iter().position(|&t| t == stop).unwrap();
    let engine = Ledger::new(None, 16, 16).engine();
    let request = Request { stop_token_ids: ids(&[stop]), max_tokens: 30, ..Request::new(ids(&prompt)) };
    let completion = engine.generate(request).unwrap().wait().unwrap();
    assert_eq!(raw(&completion.token_ids), all[..=end]);
    assert_eq!(completion.reason, FinishReason::Stop(StopCause::Token(TokenId(stop))));
}

#[test]
fn eos_ends_it_unless_ignored() {
    let engine = Ledger::new(None, 16, 16).engine();
    assert_eq!(engine.eos_token_ids(), [TokenId(EOS)]);
    // At temperature 1000 every token is about as likely: the end comes soon.
    let sampling = SamplingParams { temperature: 1000.0, seed: 1, ..Default::default() };
    let request = Request { sampling, max_tokens: 290, ..Request::new(ids(&prompt(9))) };
    let stopped = engine.generate(request.clone()).unwrap().wait().unwrap();
    assert_eq!(stopped.reason, FinishReason::Stop(StopCause::Eos(TokenId(EOS))));
    assert_eq!(stopped.token_ids.last(), Some(&TokenId(EOS)));
    let ignored = engine.generate(Request { ignore_eos: true, ..request }).unwrap().wait().unwrap();
    assert_eq!(ignored.reason, FinishReason::Length);
    assert_eq!(ignored.token_ids.len(), 290);
    assert_eq!(ignored.token_ids[..stopped.token_ids.len()], stopped.token_ids);
}

#[test]
fn refuses_what_cannot_be_run() {
    let engine = Ledger::new(None, 16, 16).engine();
    let refused = |request| engine.generate(request).unwrap_err();
    assert!(matches!(refused(Request::new(vec![])), RequestError::EmptyPrompt));
    assert!(matches!(
        refused(Request::new(ids(&[1, 97]))),
        RequestError::TokenOutOfRange { field: "prompt", index: 1, .. }
    ));
    assert!(matches!(
        refused(Request::new(ids(&[0; 301]))),
        RequestError::PromptTooLong { tokens: 301, positions: 300 }
    ));
    assert!(matches!(
        refused(Request { max_tokens: 2, ..Request::new(ids(&[0; 299])) }),
        RequestError::TooManyTokens { positions: 300, .. }
    ));
    assert!(matches!(
        refused(Request { max_tokens: u32::MAX, ..Request::new(ids(&[0])) }),
        RequestError::TooManyTokens { .. }
    ));
    let sampling = SamplingParams { top_p: f32::NAN, ..Default::default() };
    assert!(matches!(refused(Request { sampling, ..Request::new(ids(&[0])) }), RequestError::Sampling(_)));
    assert!(matches!(
        refused(Request { stop: vec!["x".into()], ..Request::new(ids(&[0])) }),
        RequestError::StopWithoutTokenizer
    ));
    // And nothing of that harmed the engine: a prompt as long as the model still runs.
    assert!(matches!(refused(Request { n: 0, ..Request::new(ids(&[0])) }), RequestError::Samples { n: 0 }));
    assert!(matches!(
        refused(Request { prompt_logprobs: Some(5000), ..Request::new(ids(&[0])) }),
        RequestError::TooManyLogprobs { field: "prompt_logprobs", found: 5000 }
    ));
    let banned = SamplingParams { banned_token_ids: ids(&[3, 500]), ..Default::default() };
    assert!(matches!(
        refused(Request { sampling: banned, ..Request::new(ids(&[0])) }),
        RequestError::TokenOutOfRange { field: "banned_token_ids", index: 1, .. }
    ));
    let whole = Request { max_tokens: 0, ..Request::new(ids(&[5; 300])) };
    assert_eq!(engine.generate(whole).unwrap().wait().unwrap().timings.prompt_tokens, 300);
}

/// Lets the test hold the step between forwards.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    forwards: AtomicUsize,
}

impl Gate {
    fn hook(self: &Arc<Self>) -> Hook {
        let gate = self.clone();
        Box::new(move |_| {
            gate.forwards.fetch_add(1, Ordering::SeqCst);
            let mut open = gate.open.lock().unwrap();
            while !*open {
                open = gate.changed.wait(open).unwrap();
            }
            Ok(())
        })
    }
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

#[test]
fn dropping_a_generation_cancels_it_in_the_middle_of_its_prompt() {
    let gate = Arc::new(Gate::default());
    let mut ledger = Ledger::new(None, 16, 1);
    ledger.hook = gate.hook();
    let engine = ledger.engine();
    let long = engine.generate(Request { max_tokens: 1, ..Request::new(ids(&prompt(200))) }).unwrap();
    let next = engine.generate(Request { max_tokens: 3, ..Request::new(ids(&prompt(4))) }).unwrap();
    while gate.forwards.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    drop(long);
    gate.open();
    assert_eq!(raw(&next.wait().unwrap().token_ids), expected(&prompt(4), 3, None));
    // A row of the cancelled prompt (two, where the second was planned before the drop), four of the other and its two
    // further tokens.
    assert!(gate.forwards.load(Ordering::SeqCst) <= 2 + 4 + 2);
    let statistics = settled(&engine, 2);
    assert_eq!((statistics.cancelled, statistics.cancelled_in_prefill, statistics.finished), (1, 1, 1));
}

#[test]
fn a_cancelled_request_gives_its_pages_back() {
    let engine = Ledger::new(None, 16, 64).engine();
    for _ in 0..50 {
        let mut generation = engine.generate(Request { max_tokens: 90, ..Request::new(ids(&prompt(150))) }).unwrap();
        assert!(matches!(generation.next(), Some(Event::Token(_))));
    }
    let whole = engine.generate(Request { max_tokens: 100, ..Request::new(ids(&prompt(200))) }).unwrap();
    assert_eq!(raw(&whole.wait().unwrap().token_ids), expected(&prompt(200), 100, None));
}

#[test]
fn broken_logits_fail_the_request_and_not_the_engine() {
    let mut ledger = Ledger::new(None, 16, 16);
    ledger.poisoned_logits = true;
    let engine = ledger.engine();
    for _ in 0..2 {
        let failure = engine.generate(Request::new(ids(&[1, 2, 3]))).unwrap().wait().unwrap_err();
        assert!(matches!(failure, Failure::Sampling { position: 3, .. }), "{failure}");
    }
}

#[test]
fn a_panic_in_the_step_fails_every_request_with_one_event() {
    let mut ledger = Ledger::new(None, 16, 16);
    let gate = Arc::new(Gate::default());
    let mut hold = gate.hook();
    ledger.hook = Box::new(move |batch| {
        hold(batch)?;
        panic!("a planted bug");
    });
    let engine = ledger.engine();
    let early: [Generation; 2] = [(); 2].map(|()| engine.generate(Request::new(ids(&[1]))).unwrap());
    while gate.forwards.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    // It came while the step was running: it is in the queue when the step panics.
    let queued = engine.generate(Request { n: 2, ..Request::new(ids(&[1])) }).unwrap();
    gate.open();
    for generation in early.into_iter().chain([queued]) {
        let events: Vec<Event> = generation.collect();
        assert!(matches!(&events[..], [Event::Failed(Failure::Panicked { message })] if message == "a planted bug"));
    }
    let late = engine.generate(Request::new(ids(&[1]))).unwrap();
    assert!(matches!(late.wait(), Err(Failure::Panicked { .. })));
}

#[test]
fn dropping_the_engine_stops_it_before_its_next_step() {
    let gate = Arc::new(Gate::default());
    let mut ledger = Ledger::new(None, 16, 16);
    ledger.hook = gate.hook();
    let engine = ledger.engine();
    let [running, queued]: [Generation; 2] = [(); 2].map(|()| engine.generate(Request::new(ids(&[1]))).unwrap());
    while gate.forwards.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let dropping = std::thread::spawn(move || drop(engine));
    // The thread waits inside the first forward; give the drop time to set its flag before that goes on.
    std::thread::sleep(std::time::Duration::from_millis(50));
    gate.open();
    dropping.join().unwrap();
    assert!(matches!(running.wait(), Err(Failure::EngineStopped)));
    assert!(matches!(queued.wait(), Err(Failure::EngineStopped)));
    assert!(gate.forwards.load(Ordering::SeqCst) < 256);
}

/// How the engines of a test differ: asynchronous or not, with and without drafts, and a cache of beginnings.
#[derive(Debug, Clone, Copy)]
struct Ways {
    asynchronous: bool,
    speculation: Speculation,
    prefix_cache: PrefixCache,
}

fn all_ways() -> Vec<Ways> {
    let mut all = Vec::new();
    for asynchronous in [false, true] {
        for speculation in [Speculation::Off, Speculation::PromptLookup] {
            for prefix_cache in [PrefixCache::On, PrefixCache::Off] {
                all.push(Ways { asynchronous, speculation, prefix_cache });
            }
        }
    }
    all
}

fn engine_of(mut ledger: Ledger, ways: Ways, max_sequences: usize) -> Engine {
    ledger.asynchronous = ways.asynchronous;
    ledger.engine_with(EngineOptions {
        max_sequences: NonZeroUsize::new(max_sequences),
        prefix_cache: ways.prefix_cache,
        speculation: ways.speculation,
        poison_freed_pages: true,
        ..EngineOptions::default()
    })
}

/// The statistics once `ended` sequences have come to an end of whatever kind and the engine has nothing to do; it then
/// holds no page.
fn settled(engine: &Engine, ended: u64) -> Statistics {
    for _ in 0..10_000 {
        let statistics = engine.statistics();
        let Statistics { finished, failed, cancelled, expired, running, waiting, .. } = statistics;
        if finished + failed + cancelled + expired == ended && running + waiting == 0 {
            assert_eq!(statistics.pages_available, statistics.pages, "{statistics:?}");
            return statistics;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{ended} sequences were to end: {:?}", engine.statistics());
}

/// What a request of the company test asks for.
#[derive(Debug, Clone)]
struct Asked {
    len: u32,
    max_tokens: u32,
    start: u32,
    n: u32,
    temperature: f32,
    scored: bool,
    salt: bool,
    /// Dropped after so many events.
    dropped: Option<usize>,
}

impl Asked {
    fn request(&self) -> Request {
        // Few beginnings, so that they are shared.
        let prompt: Vec<u32> = (0..self.len).map(|i| (i * i + self.start) % 89).collect();
        Request {
            n: self.n,
            max_tokens: self.max_tokens,
            sampling: SamplingParams { temperature: self.temperature, seed: 5, ..SamplingParams::default() },
            prompt_logprobs: self.scored.then_some(1),
            logprobs: Some(2),
            cache_salt: self.salt.then(|| "salt".to_owned()),
            ..Request::new(ids(&prompt))
        }
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let numbers = (1u32..80, 0u32..60, 0u32..2, prop::sample::select(vec![1u32, 1, 1, 3]));
    let temperature = prop::sample::select(vec![0.0f32, 0.0, 3.0]);
    let scored = prop::sample::select(vec![false, false, false, true]);
    let dropped = prop::option::weighted(0.15, 0usize..20);
    (numbers, temperature, scored, any::<bool>(), dropped).prop_map(
        |((len, max_tokens, start, n), temperature, scored, salt, dropped)| Asked {
            len,
            max_tokens,
            start,
            n,
            temperature,
            scored,
            salt,
            dropped,
        },
    )
}

/// What each request gets alone: one at a time, nothing shared, drafted or short.
fn alone(windows: &[Option<u32>], variety: u32, requests: &[Asked]) -> Vec<Vec<Completion>> {
    let mut ledger = Ledger::with_windows(windows, 8, 64);
    ledger.variety = variety;
    let ways = Ways { asynchronous: false, speculation: Speculation::Off, prefix_cache: PrefixCache::Off };
    let engine = engine_of(ledger.with_pages(200), ways, 1);
    requests.iter().map(|asked| engine.generate(asked.request()).unwrap().wait_all().unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, ..ProptestConfig::default() })]

    /// Requests in random company over a cache that is too small for them: each gets what it gets alone, tokens and
    /// log-probabilities, and a greedy one what the books say.
    #[test]
    fn company_changes_nothing(
        windows in prop::collection::vec(prop::option::of(1u32..60), 1..3),
        page_size in 1u32..12,
        max_rows in 2usize..40,
        logits_rows in 1usize..20,
        room in 0.3f64..3.0,
        variety in prop::sample::select(vec![2u32, 5, EOS]),
        max_sequences in 1usize..12,
        requests in prop::collection::vec(asked(), 1..24),
        ways in prop::sample::select(all_ways()),
    ) {
        let expected = alone(&windows, variety, &requests);
        let mut ledger = Ledger::with_windows(&windows, page_size, max_rows);
        ledger.variety = variety;
        ledger.max_logits_rows = logits_rows;
        let engine = engine_of(ledger.with_room(room), ways, max_sequences);
        let mut running = Vec::new();
        let mut sequences = 0;
        for (asked, expected) in requests.iter().zip(expected) {
            match engine.generate(asked.request()) {
                Ok(generation) => {
                    sequences += u64::from(asked.n);
                    running.push((generation, asked, expected));
                }
                Err(RequestError::LargerThanCache { needed, pages, .. }) => prop_assert!(needed > pages),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
        for (generation, asked, expected) in running {
            if let Some(events) = asked.dropped {
                drop(generation.take(events).collect::<Vec<_>>());
                continue;
            }
            let found = generation.wait_all().unwrap();
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert_eq!(&found.token_ids, &expected.token_ids);
                prop_assert_eq!(&found.logprobs, &expected.logprobs);
                prop_assert_eq!(&found.prompt, &expected.prompt);
                prop_assert_eq!(&found.reason, &expected.reason);
            }
            if asked.temperature == 0.0 {
                let prompt = raw(&asked.request().prompt);
                let tokens = expected_of_windows(&prompt, asked.max_tokens as usize, &windows, variety);
                prop_assert_eq!(raw(&found[0].token_ids), tokens);
            }
        }
        let statistics = settled(&engine, sequences);
        prop_assert_eq!(statistics.failed, 0);
        prop_assert!(ways.prefix_cache == PrefixCache::On || statistics.prefix_hits == 0);
        prop_assert!(ways.speculation == Speculation::PromptLookup || statistics.drafted_tokens == 0);
    }
}

/// Runs all requests at once and collects each.
fn run_all(engine: &Engine, requests: &[Request]) -> Vec<Completion> {
    let running: Vec<Generation> = requests.iter().map(|request| engine.generate(request.clone()).unwrap()).collect();
    running.into_iter().map(|generation| generation.wait().unwrap()).collect()
}

#[test]
fn sequences_share_steps() {
    for ways in all_ways() {
        let mut ledger = Ledger::new(None, 8, 64);
        ledger.max_logits_rows = 16;
        // Speculation would finish in fewer.
        let ways = Ways { speculation: Speculation::Off, ..ways };
        let gate = Arc::new(Gate::default());
        ledger.hook = gate.hook();
        let engine = engine_of(ledger.with_pages(1000), ways, 16);
        let requests: Vec<Request> =
            (0..16).map(|i| Request { max_tokens: 20, ..Request::new(ids(&[i, 2, 3])) }).collect();
        let running: Vec<Generation> = requests.iter().map(|r| engine.generate(r.clone()).unwrap()).collect();
        gate.open();
        for (i, generation) in running.into_iter().enumerate() {
            assert_eq!(raw(&generation.wait().unwrap().token_ids), expected(&[i as u32, 2, 3], 20, None));
        }
        let forwards = gate.forwards.load(Ordering::SeqCst);
        // The first may have begun before the others came.
        assert!((20..=22).contains(&forwards), "{forwards} steps for 16 sequences of 20 tokens, {ways:?}");
    }
}

#[test]
fn chunks_of_a_prompt_go_beside_decoding() {
    let mut ledger = Ledger::new(None, 8, 4);
    ledger.max_logits_rows = 4;
    let steps: Arc<Mutex<Vec<Vec<usize>>>> = Arc::default();
    let gate = Arc::new(Gate::default());
    let (seen, mut hold) = (steps.clone(), gate.hook());
    ledger.hook = Box::new(move |batch| {
        seen.lock().unwrap().push(batch.sequences.iter().map(|sequence| sequence.rows.len()).collect());
        hold(batch)
    });
    let engine = ledger.with_pages(100).engine();
    let short = engine.generate(Request { max_tokens: 30, ..Request::new(ids(&[1])) }).unwrap();
    while gate.forwards.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let long = engine.generate(Request { max_tokens: 1, ..Request::new(ids(&prompt(30))) }).unwrap();
    gate.open();
    assert_eq!(raw(&short.wait().unwrap().token_ids), expected(&[1], 30, None));
    assert_eq!(raw(&long.wait().unwrap().token_ids), expected(&prompt(30), 1, None));
    // Three rows of the prompt beside one of the other, ten times.
    let steps = steps.lock().unwrap();
    assert_eq!(steps.iter().filter(|rows| **rows == [1, 3]).count(), 10, "{steps:?}");
}

#[test]
fn samples_share_their_prompt_and_draw_with_seeds_of_their_own() {
    for ways in all_ways() {
        let ledger = Ledger::new(None, 8, 64);
        let engine = engine_of(ledger.with_pages(200), ways, 8);
        let sampling = SamplingParams { temperature: 5.0, seed: u64::MAX - 1, ..Default::default() };
        let request = Request { n: 5, max_tokens: 12, sampling, ..Request::new(ids(&prompt(50))) };
        let together = engine.generate(request.clone()).unwrap().wait_all().unwrap();
        assert_eq!(together.len(), 5);
        let statistics = settled(&engine, 5);
        if ways.prefix_cache == PrefixCache::On {
            // Six whole pages of the prompt, for each sample but the first.
            assert_eq!((statistics.prefix_hits, statistics.prefix_tokens), (4, 4 * 48));
        }
        for (sample, completion) in (0..).zip(&together) {
            let seed = request.sampling.seed.wrapping_add(sample);
            let sampling = SamplingParams { seed, ..request.sampling.clone() };
            let alone = engine.generate(Request { n: 1, sampling, ..request.clone() }).unwrap().wait().unwrap();
            assert_eq!(alone.token_ids, completion.token_ids, "sample {sample}, {ways:?}");
        }
        assert!(together.windows(2).all(|pair| pair[0].token_ids != pair[1].token_ids));
        settled(&engine, 10);
    }
}

#[test]
fn a_beginning_is_computed_once_for_each_salt() {
    let engine = Ledger::new(None, 8, 64).with_pages(100).engine();
    let request = Request { max_tokens: 4, ..Request::new(ids(&prompt(41))) };
    let salted = Request { cache_salt: Some("tenant".into()), ..request.clone() };
    // Prompts to be scored are computed whole, and what is scored is right.
    let scored = Request { prompt_logprobs: Some(1), ..request.clone() };
    let mut done = Vec::new();
    for (request, from_cache) in [(&request, 0), (&request, 40), (&salted, 0), (&salted, 40), (&scored, 0)] {
        let before = settled(&engine, done.len() as u64).prefix_tokens;
        done.extend(run_all(&engine, std::slice::from_ref(request)));
        assert_eq!(settled(&engine, done.len() as u64).prefix_tokens - before, from_cache);
    }
    assert!(done.iter().all(|completion| completion.token_ids == done[0].token_ids));
    let scored = &done[4..];
    assert_eq!(scored[0].prompt.len(), 41);
    assert_eq!(scored[0].prompt[20].top[0].0.0, expected(&prompt(21), 1, None)[0]);
}

#[test]
fn the_youngest_gives_way_and_comes_back() {
    for ways in all_ways() {
        let mut ledger = Ledger::new(None, 4, 32);
        ledger.max_logits_rows = 32;
        // 75 pages would hold one request of all positions; three of 100 tokens at once need as many.
        let engine = engine_of(ledger.with_pages(40), ways, 8);
        let requests: Vec<Request> =
            (0..6).map(|i| Request { max_tokens: 80, ..Request::new(ids(&[i; 20])) }).collect();
        let completions = run_all(&engine, &requests);
        for (i, completion) in completions.iter().enumerate() {
            assert_eq!(raw(&completion.token_ids), expected(&[i as u32; 20], 80, None), "{ways:?}");
        }
        let statistics = settled(&engine, 6);
        assert!(statistics.preemptions > 0, "{statistics:?}");
    }
}

#[test]
fn a_request_larger_than_the_cache_is_refused_at_once() {
    let engine = Ledger::new(None, 4, 16).with_pages(10).engine();
    let refused = engine.generate(Request { max_tokens: 12, ..Request::new(ids(&[0; 30])) }).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "41 positions need 11 pages of the cache, which has 10: lower max_tokens, shorten the prompt, or give the \
         engine more memory"
    );
    let whole = engine.generate(Request { max_tokens: 11, ..Request::new(ids(&[7; 30])) }).unwrap();
    assert_eq!(raw(&whole.wait().unwrap().token_ids), expected(&[7; 30], 11, None));
    // With a window only what it shows needs room, however long the request is.
    let engine = Ledger::new(Some(9), 4, 16).with_pages(3).engine();
    let long = engine.generate(Request { max_tokens: 200, ..Request::new(ids(&[7; 90])) }).unwrap();
    assert_eq!(raw(&long.wait().unwrap().token_ids), expected(&[7; 90], 200, Some(9)));
}

#[test]
fn time_that_is_up_ends_a_request_with_what_there_is() {
    let mut ledger = Ledger::new(None, 8, 8);
    ledger.hook = Box::new(|_| {
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    });
    let engine = ledger.with_pages(100).engine();
    let timeout = Some(Duration::from_millis(40));
    let late = Request { max_tokens: 250, timeout, ..Request::new(ids(&[3])) };
    let at_once = Request { timeout: Some(Duration::ZERO), ..Request::new(ids(&[4])) };
    let in_time = Request { max_tokens: 3, timeout: Some(Duration::from_secs(3600)), ..Request::new(ids(&[5])) };
    let done = run_all(&engine, &[late, at_once, in_time]);
    assert_eq!(done[0].reason, FinishReason::Deadline);
    let tokens = done[0].token_ids.len();
    assert!((1..250).contains(&tokens), "{tokens}");
    assert_eq!(raw(&done[0].token_ids), expected(&[3], tokens, None));
    assert_eq!((&done[1].reason, done[1].token_ids.len()), (&FinishReason::Deadline, 0));
    assert_eq!((&done[2].reason, done[2].token_ids.len()), (&FinishReason::Length, 3));
    assert_eq!(settled(&engine, 3).expired, 2);
}

#[test]
fn a_backend_that_fails_takes_only_those_of_its_step() {
    for asynchronous in [false, true] {
        let mut ledger = Ledger::new(None, 8, 8);
        ledger.asynchronous = asynchronous;
        ledger.hook = Box::new(|batch| match batch.tokens.contains(&Token::Known(TokenId(77))) {
            true => Err(BackendError::Unavailable("a planted failure".into())),
            false => Ok(()),
        });
        let engine = ledger.with_pages(100).engine();
        let failed = engine.generate(Request::new(ids(&[1, 77]))).unwrap().wait().unwrap_err();
        assert!(failed.to_string().contains("a planted failure"), "{failed}");
        let request = Request { max_tokens: 5, ..Request::new(ids(&[1, 2])) };
        assert_eq!(raw(&run_all(&engine, &[request])[0].token_ids), expected(&[1, 2], 5, None));
        assert_eq!(settled(&engine, 2).failed, 1);
    }
}

#[test]
fn a_consumer_that_does_not_look_stalls_nobody() {
    let mut ledger = Ledger::new(None, 8, 8);
    ledger.max_logits_rows = 8;
    let engine = ledger.with_pages(200).engine();
    let asleep = engine.generate(Request { max_tokens: 250, ..Request::new(ids(&[9])) }).unwrap();
    for i in 0..20 {
        let request = Request { max_tokens: 40, ..Request::new(ids(&[i])) };
        assert_eq!(raw(&run_all(&engine, &[request])[0].token_ids), expected(&[i], 40, None));
    }
    assert_eq!(raw(&asleep.wait().unwrap().token_ids), expected(&[9], 250, None));
}

#[test]
fn a_list_of_requests_is_run_as_room_comes() {
    let mut ledger = Ledger::new(None, 8, 16);
    ledger.max_logits_rows = 16;
    let engine = ledger.with_pages(200).engine();
    let asked = std::cell::Cell::new(0usize);
    let requests = (0..200u32).map(|i| {
        asked.set(asked.get() + 1);
        let prompt = if i == 50 { vec![] } else { vec![i % 90, 1, 2] };
        Request { max_tokens: 1 + i % 7, ..Request::new(ids(&prompt)) }
    });
    let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); 200];
    let (mut ended, mut refused) = (0usize, 0);
    engine.generate_all(NonZeroUsize::new(5).unwrap(), requests, |number, event| match event {
        Event::Token(token) => tokens[number].push(token.id.0),
        Event::Finished(_) => {
            ended += 1;
            assert!(asked.get() <= ended + refused + 5, "{} asked for, {ended} ended", asked.get());
        }
        Event::Failed(Failure::Refused(error)) => {
            refused += 1;
            assert!(number == 50 && matches!(*error, RequestError::EmptyPrompt));
        }
        event => panic!("{event:?}"),
    });
    assert_eq!((ended, refused), (199, 1));
    for (i, tokens) in (0..200u32).zip(&tokens).filter(|(i, _)| *i != 50) {
        assert_eq!(*tokens, expected(&[i % 90, 1, 2], 1 + i as usize % 7, None));
    }
    settled(&engine, 199);
}

#[test]
fn of_many_generations_one_is_cancelled_and_the_others_go_on() {
    // After three steps the engine waits for the consumer, so that there is something to cancel.
    let go = Arc::new(AtomicBool::new(false));
    let (mut ledger, may_go, mut steps) = (Ledger::new(None, 8, 8), go.clone(), 0);
    ledger.max_logits_rows = 8;
    ledger.hook = Box::new(move |_| {
        steps += 1;
        while steps > 3 && !may_go.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let engine = ledger.with_pages(200).engine();
    let mut generations = engine.generations();
    assert!(generations.is_idle() && generations.next_within(Duration::from_secs(60)).is_none());
    let submit = |generations: &mut Generations<'_>, first: u32, max_tokens: u32| {
        generations.submit(Request { max_tokens, ..Request::new(ids(&[first, 1])) })
    };
    let [short, long, other] =
        [(7, 20), (8, 250), (9, 30)].map(|(first, n)| submit(&mut generations, first, n).unwrap());
    assert!(matches!(generations.submit(Request::new(vec![])), Err(RequestError::EmptyPrompt)));
    let mut tokens = std::collections::HashMap::<usize, Vec<u32>>::new();
    let mut was_cancelled = false;
    while !generations.is_idle() {
        match generations.next_within(Duration::from_secs(60)) {
            Some((number, Event::Token(token))) => {
                assert!(number != long || !was_cancelled);
                tokens.entry(number).or_default().push(token.id.0);
                if number == long && !was_cancelled {
                    generations.cancel(long);
                    was_cancelled = true;
                    assert_eq!(generations.running(), 2);
                    go.store(true, Ordering::Relaxed);
                }
            }
            Some((number, Event::Finished(_))) => assert!(number == short || number == other),
            event => panic!("{event:?}"),
        }
    }
    assert!(was_cancelled);
    assert_eq!((&tokens[&short], &tokens[&other]), (&expected(&[7, 1], 20, None), &expected(&[9, 1], 30, None)));
    assert_eq!(settled(&engine, 3).cancelled, 1);
    // To drop them all is to cancel each.
    go.store(false, Ordering::Relaxed);
    submit(&mut generations, 7, 250).unwrap();
    drop(generations);
    go.store(true, Ordering::Relaxed);
    assert_eq!(settled(&engine, 4).cancelled, 2);
}

/// Forbids one token, and panics late in a text.
#[derive(Debug)]
struct Forbid(u32);

impl LogitsProcessor for Forbid {
    fn process(&self, context: &LogitsContext<'_>, logits: &mut [f32]) {
        assert_eq!(raw(context.prompt), [5]);
        assert!(context.output.len() < 30, "a planted bug");
        logits[self.0 as usize] = f32::NEG_INFINITY;
    }
}

#[test]
fn a_processor_changes_what_is_chosen_and_its_panic_is_its_requests_own() {
    for asynchronous in [false, true] {
        let mut ledger = Ledger::new(Some(1), 8, 8);
        ledger.asynchronous = asynchronous;
        let engine = ledger.with_pages(100).engine();
        // With a window of 1 the next token is that of the last alone: 48 away.
        let [plain, changed] = [None, Some(Forbid(53))].map(|forbid| Request {
            max_tokens: 20,
            processor: forbid.map(|forbid| Arc::new(forbid) as Arc<dyn LogitsProcessor>),
            ..Request::new(ids(&[5]))
        });
        let done = run_all(&engine, &[plain.clone(), changed.clone()]);
        assert_eq!(raw(&done[0].token_ids), [53, 5].repeat(10));
        // Without the best, all are equal, and the lowest is taken.
        assert_eq!(raw(&done[1].token_ids), [0, 48].repeat(10));
        let broken = engine.generate(Request { max_tokens: 60, ..changed }).unwrap();
        let failure = broken.wait().unwrap_err();
        assert!(failure.to_string().contains("a planted bug"), "{failure}");
        assert_eq!(raw(&run_all(&engine, &[plain])[0].token_ids), [53, 5].repeat(10));
        settled(&engine, 4);
    }
}

#[test]
fn drafts_are_accepted_where_a_text_repeats_itself_and_save_steps() {
    let mut ledger = Ledger::new(Some(2), 8, 32);
    ledger.variety = 3;
    ledger.max_logits_rows = 32;
    let forwards = Arc::new(AtomicUsize::new(0));
    let count = forwards.clone();
    ledger.hook = Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let ways = Ways { asynchronous: false, speculation: Speculation::PromptLookup, prefix_cache: PrefixCache::On };
    let engine = engine_of(ledger.with_pages(100), ways, 8);
    let sampled = SamplingParams { temperature: 0.01, seed: 3, ..Default::default() };
    for sampling in [SamplingParams::default(), sampled] {
        let before = forwards.load(Ordering::SeqCst);
        let request = Request { max_tokens: 200, sampling, ..Request::new(ids(&prompt(9))) };
        let done = engine.generate(request).unwrap().wait().unwrap();
        assert_eq!(raw(&done.token_ids), expected_of(&prompt(9), 200, Some(2), 3));
        let steps = forwards.load(Ordering::SeqCst) - before;
        assert!(steps < 60, "{steps} steps for 200 tokens that repeat themselves");
    }
    let statistics = settled(&engine, 2);
    assert!(statistics.acceptance_rate().unwrap() > 0.7, "{statistics:?}");
}

#[test]
fn penalties_and_limits_reach_the_sampler() {
    let engine = Ledger::new(Some(1), 8, 8).with_pages(100).engine();
    let run = |sampling: SamplingParams, max_tokens| {
        let request = Request { max_tokens, sampling, ..Request::new(ids(&[5])) };
        run_all(&engine, &[request]).remove(0)
    };
    let base = SamplingParams::default();
    assert_eq!(raw(&run(base.clone(), 4).token_ids), [53, 5, 53, 5]);
    // The best has logit 10, all others 0: after the sixth time, 10 - 6 * 1.9 is below them.
    let tokens = raw(&run(SamplingParams { frequency_penalty: 1.9, ..base.clone() }, 13).token_ids);
    assert_eq!(tokens[..12], [53, 5].repeat(6));
    assert_eq!(tokens[12], 0);
    let bias = SamplingParams { logit_bias: vec![(TokenId(EOS), 11.0)], ..base.clone() };
    let done = run(bias.clone(), 9);
    assert_eq!((done.reason, done.token_ids.len()), (FinishReason::Stop(StopCause::Eos(TokenId(EOS))), 1));
    assert_eq!(raw(&run(SamplingParams { min_tokens: 5, ..bias }, 9).token_ids), [53, 5, 53, 5, 53, EOS]);
    let allowed = SamplingParams { allowed_token_ids: Some(ids(&[8, 4])), ..base.clone() };
    assert_eq!(raw(&run(allowed, 3).token_ids), [4, 4, 4]);
    let banned = SamplingParams { banned_token_ids: ids(&[53, 0]), ..base };
    assert_eq!(raw(&run(banned, 2).token_ids), [1, 49]);
    assert_eq!(VOCAB, EOS as usize + 1);
}

#[test]
fn a_request_that_fills_the_cache_to_its_last_slot_runs() {
    for ways in all_ways() {
        for (prompt_len, max_tokens) in [(40, 0), (40, 1), (39, 2), (20, 21), (1, 40)] {
            let engine = engine_of(Ledger::new(None, 4, 16).with_pages(10), ways, 4);
            let request = Request { max_tokens, ..Request::new(ids(&prompt(prompt_len))) };
            // Two at once: the younger is sent away, with pages for all but its last token, and comes back.
            for completion in run_all(&engine, &[request.clone(), request]) {
                let tokens = expected(&prompt(prompt_len), max_tokens as usize, None);
                assert_eq!(raw(&completion.token_ids), tokens, "{prompt_len} + {max_tokens}, {ways:?}");
            }
            settled(&engine, 2);
        }
    }
}

#[test]
fn no_draft_stands_behind_a_prompt_that_is_being_scored() {
    for ways in all_ways() {
        let mut ledger = Ledger::new(None, 8, 32);
        ledger.max_logits_rows = 32;
        let engine = engine_of(ledger.with_pages(200), ways, 8);
        // One row is left after a first chunk of 32, and its token came before.
        let repeating: Vec<u32> = (0..33).map(|i| i % 4).collect();
        let scored = Request { prompt_logprobs: Some(1), max_tokens: 6, ..Request::new(ids(&repeating)) };
        for completion in run_all(&engine, &[scored.clone(), scored.clone(), scored]) {
            assert_eq!(completion.prompt.len(), 33);
            assert_eq!(raw(&completion.token_ids), expected(&repeating, 6, None));
            for (i, token) in completion.prompt.iter().enumerate() {
                assert_eq!(token.top[0].0.0, expected(&repeating[..=i], 1, None)[0], "{ways:?}");
            }
        }
        settled(&engine, 3);
    }
}

#[test]
fn drafts_end_well_when_a_crowd_comes() {
    for asynchronous in [false, true] {
        let mut ledger = Ledger::new(Some(2), 8, 64);
        ledger.variety = 3;
        ledger.max_logits_rows = 64;
        let gate = Arc::new(Gate::default());
        let mut hold = gate.hook();
        let steps = Arc::new(AtomicUsize::new(0));
        let count = steps.clone();
        // The crowd comes while drafts are being verified.
        ledger.hook =
            Box::new(move |batch| if count.fetch_add(1, Ordering::SeqCst) == 12 { hold(batch) } else { Ok(()) });
        let ways = Ways { asynchronous, speculation: Speculation::PromptLookup, prefix_cache: PrefixCache::On };
        let engine = engine_of(ledger.with_pages(2000), ways, 32);
        let request = |i: u32| Request { max_tokens: 150, ..Request::new(ids(&[i % 3, i % 2, 1, 0, 1])) };
        let start = |from, to| (from..to).map(|i| (i, engine.generate(request(i)).unwrap())).collect::<Vec<_>>();
        let mut running = start(0, 4);
        while gate.forwards.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        running.extend(start(4, 20));
        gate.open();
        for (i, generation) in running {
            let tokens = expected_of(&[i % 3, i % 2, 1, 0, 1], 150, Some(2), 3);
            assert_eq!(raw(&generation.wait().unwrap().token_ids), tokens);
        }
        assert!(settled(&engine, 20).accepted_tokens > 0);
    }
}

#[test]
fn a_scored_row_that_is_not_finite_fails_its_own_request() {
    let mut ledger = Ledger::new(None, 8, 64);
    ledger.max_logits_rows = 64;
    // The row of the token 77 has logits that are not finite.
    ledger.poisoned_token = Some(77);
    let engine = ledger.with_pages(100).engine();
    let mut broken = prompt(20);
    broken[7] = 77;
    let scored = |prompt: &[u32]| Request { prompt_logprobs: Some(1), max_tokens: 2, ..Request::new(ids(prompt)) };
    let [first, second]: [Generation; 2] =
        [scored(&broken), scored(&prompt(20))].map(|request| engine.generate(request).unwrap());
    let failure = first.wait().unwrap_err();
    assert!(matches!(failure, Failure::Sampling { position: 8, .. }), "{failure}");
    let second = second.wait().unwrap();
    for (i, token) in second.prompt.iter().enumerate() {
        assert_eq!(token.top[0].0.0, expected(&prompt(20)[..=i], 1, None)[0]);
    }
    settled(&engine, 2);
}

#[test]
fn a_failed_step_does_not_take_tokens_that_were_drawn_before_it() {
    let mut ledger = Ledger::new(None, 8, 8);
    ledger.asynchronous = true;
    ledger.max_logits_rows = 8;
    let gate = Arc::new(Gate::default());
    let mut hold = gate.hook();
    ledger.hook = Box::new(move |batch| {
        hold(batch)?;
        match batch.tokens.contains(&Token::Known(TokenId(77))) {
            true => Err(BackendError::Unavailable("a planted failure".into())),
            false => Ok(()),
        }
    });
    let engine = ledger.with_pages(100).engine();
    let last_token = engine.generate(Request { max_tokens: 1, ..Request::new(ids(&[1, 2])) }).unwrap();
    while gate.forwards.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let failing = engine.generate(Request::new(ids(&[77]))).unwrap();
    gate.open();
    assert_eq!(raw(&last_token.wait().unwrap().token_ids), expected(&[1, 2], 1, None));
    assert!(failing.wait().is_err());
    settled(&engine, 2);
}

#[test]
fn samples_go_on_without_their_first_and_end_with_it() {
    for ways in all_ways() {
        let mut ledger = Ledger::new(None, 8, 4);
        ledger.max_logits_rows = 4;
        let gate = Arc::new(Gate::default());
        ledger.hook = gate.hook();
        let engine = engine_of(ledger.with_pages(100), ways, 8);
        let many = Request { n: 4, max_tokens: 5, ..Request::new(ids(&prompt(30))) };
        let dropped = engine.generate(many.clone()).unwrap();
        let kept = engine.generate(many.clone()).unwrap();
        let late = engine.generate(Request { timeout: Some(Duration::from_millis(1)), ..many }).unwrap();
        while gate.forwards.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        drop(dropped);
        std::thread::sleep(Duration::from_millis(5));
        gate.open();
        for completion in kept.wait_all().unwrap() {
            assert_eq!(raw(&completion.token_ids), expected(&prompt(30), 5, None), "{ways:?}");
        }
        assert!(late.wait_all().unwrap().iter().all(|sample| sample.reason == FinishReason::Deadline));
        let statistics = settled(&engine, 12);
        assert_eq!((statistics.cancelled, statistics.finished, statistics.expired), (4, 4, 4));
    }
}

#[test]
fn a_generation_is_a_stream_for_any_runtime() {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::task::{Context, Poll, Wake, Waker};

    use futures_core::Stream;

    /// A runtime of one thread that sleeps until it is woken.
    struct Sleeper(std::thread::Thread);
    impl Wake for Sleeper {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Sleeper(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        let mut future = std::pin::pin!(future);
        loop {
            match future.as_mut().poll(&mut context) {
                Poll::Ready(value) => return value,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    let engine = Ledger::new(None, 8, 8).with_pages(100).engine();
    let mut generation = engine.generate(Request { max_tokens: 50, ..Request::new(ids(&[4, 5])) }).unwrap();
    let mut tokens = Vec::new();
    // Half of it as a stream, the rest as an iterator.
    while tokens.len() < 25 {
        match block_on(poll_fn(|context| Pin::new(&mut generation).poll_next(context))) {
            Some(Event::Token(token)) => tokens.push(token.id.0),
            event => panic!("{event:?}"),
        }
    }
    tokens.extend(generation.filter_map(|event| match event {
        Event::Token(token) => Some(token.id.0),
        _ => None,
    }));
    assert_eq!(tokens, expected(&[4, 5], 50, None));
}
