//! The engine against a backend that only keeps books: it stores token ids in pages as a model stores keys, and
//! its next token is a hash of the ids that the window shows. A page freed too early, a row at a wrong position or
//! a chunk cut wrongly changes the text.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use rigel::backend::{Backend, BackendError, Batch};
use rigel::engine::{Engine, Event, Failure, FinishReason, Generation, Request, RequestError, StopCause};
use rigel::kv::{CacheGeometry, first_visible};
use rigel::model::ModelSpec;
use rigel::sampling::SamplingParams;
use rigel::text::TokenId;

const VOCAB: usize = 97;

fn spec(window: Option<u32>) -> ModelSpec {
    let json = serde_json::json!({
        "model_type": "starcoder2", "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64,
        "max_position_embeddings": 300, "sliding_window": window, "eos_token_id": 96, "bos_token_id": 96,
    });
    let config = rigel::checkpoint::Config::parse(json.to_string().as_bytes(), "config.json").unwrap();
    ModelSpec::from_config(&config).unwrap()
}

/// What one forward pass should do besides the arithmetic.
type Hook = Box<dyn FnMut(&Batch<'_>) + Send>;

struct Ledger {
    spec: ModelSpec,
    cache: CacheGeometry,
    max_rows: usize,
    slots: Vec<Option<u32>>,
    logits: Vec<f32>,
    poisoned_logits: bool,
    hook: Hook,
}

impl Ledger {
    fn new(window: Option<u32>, page_size: u32, max_rows: usize) -> Ledger {
        let spec = spec(window);
        let pages = CacheGeometry::pages_for_sequence(
            page_size,
            spec.max_positions as u32,
            window.map(|w| NonZeroU32::new(w).unwrap()),
            max_rows as u32,
        );
        Ledger {
            spec,
            cache: CacheGeometry { page_size, pages },
            max_rows,
            slots: vec![None; (page_size * pages) as usize],
            logits: Vec::new(),
            poisoned_logits: false,
            hook: Box::new(|_| {}),
        }
    }

    fn engine(self) -> Engine {
        Engine::with_backend(Box::new(self), None, "nowhere/tokenizer.json".into()).unwrap()
    }
}

/// The model: what follows the ids that the last of them sees.
fn next_token(seen: impl Iterator<Item = u32>) -> u32 {
    // Never 96, which ends a generation.
    seen.fold(17u32, |hash, id| hash.wrapping_mul(31).wrapping_add(id + 1)) % (VOCAB as u32 - 1)
}

fn expected(prompt: &[u32], new: usize, window: Option<u32>) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..new {
        let first = first_visible(ids.len() as u32 - 1, window.map(|w| NonZeroU32::new(w).unwrap())) as usize;
        ids.push(next_token(ids[first..].iter().copied()));
    }
    ids.split_off(prompt.len())
}

impl Backend for Ledger {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn cache(&self) -> CacheGeometry {
        self.cache
    }
    fn max_rows(&self) -> usize {
        self.max_rows
    }
    fn max_logits_rows(&self) -> usize {
        3
    }
    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        (self.hook)(batch);
        assert!(batch.token_ids.len() <= self.max_rows && batch.logits_rows.len() <= self.max_logits_rows());
        self.logits.clear();
        for sequence in batch.sequences {
            let slot = |position: u32| {
                let block = position / self.cache.page_size - sequence.first_block;
                let page = sequence.pages[block as usize];
                (page.0 * self.cache.page_size + position % self.cache.page_size) as usize
            };
            for (position, row) in (sequence.start..).zip(sequence.rows.clone()) {
                self.slots[slot(position)] = Some(batch.token_ids[row].0);
                if batch.logits_rows.contains(&row) {
                    let visible = first_visible(position, self.spec.window)..=position;
                    let token = next_token(visible.map(|p| self.slots[slot(p)].unwrap()));
                    let fill = if self.poisoned_logits { f32::NAN } else { 0.0 };
                    let mut logits = vec![fill; VOCAB];
                    logits[token as usize] = 10.0;
                    self.logits.extend(logits);
                }
            }
        }
        Ok(())
    }
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.logits[row * VOCAB..][..VOCAB])
    }
}

fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

fn raw(ids: &[TokenId]) -> Vec<u32> {
    ids.iter().map(|t| t.0).collect()
}

fn prompt(len: u32) -> Vec<u32> {
    (0..len).map(|i| i * i % 89).collect()
}

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
    assert_eq!(engine.eos_token_ids(), [TokenId(96)]);
    // At temperature 1000 every token is about as likely: 96 comes soon.
    let sampling = SamplingParams { temperature: 1000.0, seed: 1, ..Default::default() };
    let request = Request { sampling, max_tokens: 290, ..Request::new(ids(&prompt(9))) };
    let stopped = engine.generate(request.clone()).unwrap().wait().unwrap();
    assert_eq!(stopped.reason, FinishReason::Stop(StopCause::Eos(TokenId(96))));
    assert_eq!(stopped.token_ids.last(), Some(&TokenId(96)));
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
    // One row of the cancelled prompt, four of the other and its two further tokens.
    assert_eq!(gate.forwards.load(Ordering::SeqCst), 1 + 4 + 2);
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
        assert!(matches!(failure, Failure::NotFinite { position: 3, .. }), "{failure}");
    }
}

#[test]
fn a_panic_in_the_step_fails_every_request_with_one_event() {
    let mut ledger = Ledger::new(None, 16, 16);
    let gate = Arc::new(Gate::default());
    let mut hold = gate.hook();
    ledger.hook = Box::new(move |batch| {
        hold(batch);
        panic!("a planted bug");
    });
    let engine = ledger.engine();
    let [first, second]: [Generation; 2] = [(); 2].map(|()| engine.generate(Request::new(ids(&[1]))).unwrap());
    gate.open();
    let events: Vec<Event> = first.collect();
    assert!(matches!(&events[..], [Event::Failed(Failure::Panicked { message })] if message == "a planted bug"));
    assert!(matches!(second.wait(), Err(Failure::EngineStopped)));
    let late = engine.generate(Request::new(ids(&[1]))).unwrap();
    assert!(matches!(late.wait(), Err(Failure::EngineStopped)));
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
