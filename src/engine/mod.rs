//! The generation loop: [`Engine`], [`Request`], [`Event`]. The only owner of a loop that generates tokens, for the
//! command line, for batches, for servers and for a program that embeds it. Knows pages and tokens, not devices.
//!
//! An [`Engine`] runs its steps on a thread of its own. [`Engine::generate`] hands a [`Request`] over and returns at
//! once with a [`Generation`]: iterate over it (blocking) or poll it as a stream (no runtime is assumed); drop it
//! and the request is cancelled at its next step. Requests come at any time from any thread, and are computed
//! together: each step decodes a token of every sequence that runs, and computes chunks of prompts beside them.
//! [`Engine::generate_all`] runs a list of requests of any length.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod`, `builder` | the engine and its builder |
//! | `request`, `event`, `generation`, `generations` | requests, events and their delivery |
//! | `complete` | text in, text out |
//! | `worker` | the step loop |
//! | `scheduler` | admission, chunked prefill, preemption |
//! | `sequence`, `output` | one sample: its tokens and pages; its text, stops and events |
//! | `step` | a planned step in the form the backend takes |
//! | `draft` | prompt lookup drafts |
//! | `statistics` | counts |
//!
//! A step by step account, with a picture, is in docs/engine.md.
//!
//! ```
//! use rigel::engine::{Engine, Event};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().model("nano").build()?;
//! // The whole text at once …
//! println!("{}", engine.complete("def fibonacci(n):")?.text);
//! // … or each piece as it comes.
//! let request = engine.request("def fibonacci(n):")?.max_tokens(16);
//! for event in engine.generate(request)? {
//!     match event {
//!         Event::Token(token) => print!("{}", token.text),
//!         Event::Finished(finish) => println!("{}", finish.text),
//!         Event::Failed(error) => return Err(error.into()),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod builder;
mod complete;
mod draft;
mod event;
mod generation;
mod generations;
mod output;
mod request;
mod scheduler;
mod sequence;
mod statistics;
mod step;
mod worker;

pub use builder::{EngineBuilder, EngineError, EngineOptions};
pub use draft::{PromptLookup, Speculation};
pub use event::{Completion, Event, Failure, Finish, FinishReason, PromptToken, StopCause, Timings, Token};
pub use generation::Generation;
pub use generations::Generations;
pub use request::{EosTokens, MAX_LOGPROBS, MAX_SAMPLES, Request, RequestError};
pub use statistics::Statistics;

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::backend::{Backend, DeviceInfo};
use crate::kv::{CacheGeometry, PageCache};
use crate::model::ModelSpec;
use crate::text::{TextStream, TokenId, Tokenizer};

use generation::EventSink;
use output::text_stream;
use scheduler::{Scheduler, StepLimits};
use sequence::Sequence;
use worker::{Shared, Submission, Worker};

/// What requests are checked against.
#[derive(Debug)]
struct Limits {
    spec: ModelSpec,
    cache: CacheGeometry,
    tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer, for those who ask for it.
    tokenizer_origin: String,
    /// Tokens that end a generation unless `ignore_eos`: the checkpoint's, else the tokenizer's.
    eos_token_ids: Arc<[TokenId]>,
    /// Tokens that end an assistant's turn unless `ignore_eos`: the checkpoint's and the tokenizer's.
    chat_eos_token_ids: Arc<[TokenId]>,
}

/// One model, ready to generate. Shared between threads by reference or [`Arc`].
///
/// Dropping the engine ends its thread; generations still running end with [`Failure::EngineStopped`].
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    device: DeviceInfo,
    /// `None` only while dropping.
    requests: Option<Sender<Submission>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts to describe an engine.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    fn start(limits: Limits, backend: Box<dyn Backend>, options: &EngineOptions) -> Result<Engine, EngineError> {
        let (requests, queue) = channel();
        let shared = Arc::new(Shared::default());
        let device = backend.device();
        let mut cache = PageCache::new(&limits.cache, options.prefix_cache);
        if options.poison_freed_pages {
            cache.watch_freed();
        }
        let most = options.max_sequences.map_or(usize::MAX, NonZeroUsize::get);
        let (rows, logits_rows) = (backend.max_rows(), backend.max_logits_rows());
        let sequences = most.min(backend.max_sequences()).min(rows).min(logits_rows);
        let prompt_rows = options.prefill_chunk.map_or(rows, |chunk| rows.min(chunk.get() as usize));
        let limits_of_step = StepLimits { rows, prompt_rows, logits_rows, sequences };
        let scheduler = Scheduler::new(limits_of_step, cache, options.speculation);
        let worker = Worker::new(backend, queue, scheduler, shared.clone());
        let thread = std::thread::Builder::new()
            .name("rigel-engine".into())
            .spawn(move || worker.run())
            .map_err(|source| EngineError::Thread { source })?;
        Ok(Engine { limits, device, requests: Some(requests), shared, thread: Some(thread) })
    }

    /// What the network is.
    pub fn spec(&self) -> &ModelSpec {
        &self.limits.spec
    }

    /// The device that the model runs on: what [`Device::Auto`](crate::backend::Device::Auto) came to, and the dtype of
    /// the weights there.
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// The cache of keys and values.
    pub fn cache(&self) -> &CacheGeometry {
        &self.limits.cache
    }

    /// The checkpoint's tokenizer; an error where its directory has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        self.limits
            .tokenizer
            .as_ref()
            .ok_or_else(|| EngineError::NoTokenizer { file: self.limits.tokenizer_origin.clone() })
    }

    /// Tokens that end a generation with [`EosTokens::Completion`] unless [`Request::ignore_eos`].
    pub fn eos_token_ids(&self) -> &[TokenId] {
        &self.limits.eos_token_ids
    }

    /// Tokens that end a generation with [`EosTokens::Chat`] unless [`Request::ignore_eos`], in ascending order.
    pub fn chat_eos_token_ids(&self) -> &[TokenId] {
        &self.limits.chat_eos_token_ids
    }

    /// What the engine has done, as of its last step.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics.read()
    }

    /// Hands a request over and returns at once. What is wrong with the request itself is said here; what happens
    /// to it later comes as events.
    pub fn generate(&self, request: Request) -> Result<Generation, RequestError> {
        let text = self.check(&request)?;
        let (sink, generation) = self.shared.sinks.open(request.n);
        self.submit(request, text, &sink);
        Ok(generation)
    }

    /// Runs requests, up to `in_flight` of them at a time, and returns when all have ended. Every event comes to
    /// `on_event`, on the calling thread, with the number of its request: 0 for the first that `requests` gives. A
    /// request that is refused comes as [`Failure::Refused`].
    ///
    /// The next request is asked for when one has ended, so the list may be longer than memory. While `requests` is
    /// asked, events wait.
    pub fn generate_all(
        &self,
        in_flight: NonZeroUsize,
        requests: impl IntoIterator<Item = Request>,
        mut on_event: impl FnMut(usize, Event),
    ) {
        let mut requests = requests.into_iter().enumerate().fuse();
        let mut many = self.shared.sinks.open_batch();
        let mut events = VecDeque::new();
        loop {
            while many.running() < in_flight.get() {
                let Some((number, request)) = requests.next() else { break };
                match self.check(&request) {
                    Ok(text) => {
                        let sink = many.open(number, request.n);
                        self.submit(request, text, &sink);
                    }
                    Err(error) => on_event(number, Event::Failed(error.into())),
                }
            }
            if many.running() == 0 {
                return;
            }
            many.take(&mut events);
            events.drain(..).for_each(|(number, event)| on_event(number, event));
        }
    }

    /// For many requests at a time whose consumer has other things to do besides: see [`Generations`].
    pub fn generations(&self) -> Generations<'_> {
        Generations::new(self, self.shared.sinks.open_batch())
    }

    /// Checks a request, and makes what turns its tokens into text.
    fn check(&self, request: &Request) -> Result<Option<TextStream>, RequestError> {
        request.check(&self.limits.spec, &self.limits.cache)?;
        text_stream(request, &self.limits)
    }

    fn submit(&self, request: Request, text: Option<TextStream>, sink: &Arc<EventSink>) {
        let (request, now) = (Arc::new(request), Instant::now());
        let sample = |sample| Sequence::new(request.clone(), sample, &self.limits, text.clone(), sink.clone(), now);
        let samples = (0..request.n).map(sample).collect();
        // A send fails only when the thread is gone; the sequences drop with their sink, which says why.
        if let Some(requests) = &self.requests {
            let _ = requests.send(samples);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // The thread's own panics were reported to the generations they ended.
            let _ = thread.join();
        }
    }
}
