//! The generation loop: [`Engine`], [`Request`], [`Event`]. The only owner of a loop that generates tokens, for the
//! command line, for batches, for servers and for a program that embeds it. Knows pages and tokens, not devices.
//!
//! An [`Engine`] runs its steps on a thread of its own. [`Engine::generate`] hands a [`Request`] over and returns at
//! once with a [`Generation`]: iterate over it (blocking) or poll it as a stream (no runtime is assumed); drop it
//! and the request is cancelled at its next step.
//!
//! ```
//! use rigel::engine::{Engine, Event, Request};
//! use rigel::text::SpecialTokens;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().model("nano").build()?;
//! let prompt = engine.tokenizer()?.encode("def fibonacci(n):\n", SpecialTokens::AsText)?;
//! for event in engine.generate(Request { max_tokens: 16, ..Request::new(prompt) })? {
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
mod event;
mod generation;
mod request;
mod sequence;
mod worker;

pub use builder::{Device, EngineBuilder, EngineError};
pub use event::{Completion, Event, Failure, Finish, FinishReason, PromptToken, StopCause, Timings, Token};
pub use generation::Generation;
pub use request::{Request, RequestError};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::backend::Backend;
use crate::model::ModelSpec;
use crate::text::{TextError, TokenId, Tokenizer};

use sequence::Sequence;
use worker::Worker;

/// What requests are checked against; shared by the engine and its thread.
#[derive(Debug)]
struct Limits {
    spec: ModelSpec,
    tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer, for those who ask for it.
    tokenizer_origin: String,
    /// Tokens that end a generation unless `ignore_eos`: the checkpoint's, else the tokenizer's.
    eos_token_ids: Vec<TokenId>,
}

/// One model, ready to generate. Shared between threads by reference or [`Arc`].
///
/// Dropping the engine ends its thread; generations still running end with [`Failure::EngineStopped`].
#[derive(Debug)]
pub struct Engine {
    limits: Arc<Limits>,
    /// `None` only while dropping.
    requests: Option<Sender<Sequence>>,
    /// Set when the engine is dropped: the thread ends before its next step.
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts to describe an engine.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    fn start(limits: Limits, backend: Box<dyn Backend>) -> Result<Engine, EngineError> {
        let limits = Arc::new(limits);
        let (requests, queue) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(backend, queue, stopping.clone());
        let thread = std::thread::Builder::new()
            .name("rigel-engine".into())
            .spawn(move || worker.run())
            .map_err(|source| EngineError::Thread { source })?;
        Ok(Engine { limits, requests: Some(requests), stopping, thread: Some(thread) })
    }

    /// What the network is.
    pub fn spec(&self) -> &ModelSpec {
        &self.limits.spec
    }

    /// The checkpoint's tokenizer; an error where its directory has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        self.limits
            .tokenizer
            .as_ref()
            .ok_or_else(|| EngineError::NoTokenizer { file: self.limits.tokenizer_origin.clone() })
    }

    /// Tokens that end a generation unless [`Request::ignore_eos`].
    pub fn eos_token_ids(&self) -> &[TokenId] {
        &self.limits.eos_token_ids
    }

    /// Hands a request over and returns at once. What is wrong with the request itself is said here; what happens
    /// to it later comes as events.
    pub fn generate(&self, request: Request) -> Result<Generation, RequestError> {
        request.check(&self.limits.spec)?;
        let (sender, generation) = generation::channel();
        let sequence = Sequence::new(request, &self.limits, sender, Instant::now())?;
        // A send fails only when the thread is gone; the sequence drops with its sender, which ends the generation
        // with `Failure::EngineStopped`.
        if let Some(requests) = &self.requests {
            let _ = requests.send(sequence);
        }
        Ok(generation)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // The thread's own panics were reported to the generations they ended.
            let _ = thread.join();
        }
    }
}

impl From<TextError> for RequestError {
    fn from(error: TextError) -> Self {
        RequestError::Text(error)
    }
}
