//! What the engine reports of a request.

use std::time::Duration;

use crate::backend::BackendError;
use crate::sampling::{SampleError, TokenLogprobs};
use crate::text::TokenId;

use super::request::RequestError;

/// One thing that happened to a request.
///
/// Prompt events come first, in order. Then each sample ([`super::Request::n`]) has one event a token and one
/// [`Event::Finished`]; the last sample's is the last event. [`Event::Failed`] ends all samples at once, and is the
/// last event where it comes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// Log-probabilities of the next few tokens of the prompt, where [`super::Request::prompt_logprobs`] asks.
    Prompt(Vec<PromptToken>),
    /// A token was generated.
    Token(Token),
    /// A sample is done.
    Finished(Finish),
    /// The request cannot go on.
    Failed(Failure),
}

/// What the model made of one token of the prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// The token.
    pub id: TokenId,
    /// Its log-probability given those before it; none for the first.
    pub logprob: Option<f32>,
    /// The best tokens to follow it, with their log-probabilities, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// One token generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Which sample it belongs to, below [`super::Request::n`].
    pub sample: u32,
    /// The token. A token that ends the generation is reported too.
    pub id: TokenId,
    /// The text that this token decided: whole characters, and nothing that may yet turn out to be a stop text. It
    /// may be empty, and it may begin with what earlier tokens left undecided.
    pub text: String,
    /// Where [`super::Request::logprobs`] asks.
    pub logprobs: Option<TokenLogprobs>,
}

/// The end of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Which sample ended, below [`super::Request::n`].
    pub sample: u32,
    /// Why it ended.
    pub reason: FinishReason,
    /// The text that was still undecided.
    pub text: String,
    /// Where the time went.
    pub timings: Timings,
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model, or a stop of the request, ended it.
    Stop(StopCause),
    /// `max_tokens` were generated.
    Length,
    /// [`super::Request::timeout`] passed. What was generated until then stands.
    Deadline,
}

impl FinishReason {
    /// The wire's word for it: `stop` or `length`; `deadline`, which no wire has a word for.
    pub fn as_str(&self) -> &'static str {
        match self {
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Deadline => "deadline",
        }
    }
}

/// What stopped a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// An end-of-sequence token.
    Eos(TokenId),
    /// One of [`super::Request::stop_token_ids`].
    Token(TokenId),
    /// One of [`super::Request::stop`].
    Text(String),
}

/// Where a request's time went, and how many tokens it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// From the call of `generate` to the first step.
    pub queued: Duration,
    /// From the first step to the first token, or to the end of the prompt where none was asked for.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

impl Timings {
    /// From the call of `generate` to the first token.
    pub fn time_to_first_token(&self) -> Duration {
        self.queued + self.prefill
    }

    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> Option<f64> {
        rate(self.prompt_tokens, self.prefill)
    }

    /// Tokens a second after the first; none where there was no second token.
    pub fn decode_rate(&self) -> Option<f64> {
        rate(self.completion_tokens.saturating_sub(1), self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// Why a request could not go on.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The forward pass failed.
    #[error("the forward pass failed: {0}")]
    Backend(std::sync::Arc<BackendError>),
    /// No token can be chosen.
    #[error("at token {position}: {source}")]
    Sampling {
        /// Position of the token that was to be chosen.
        position: u32,
        /// What was found.
        source: SampleError,
    },
    /// The request was refused before it began; from [`super::Engine::generate_all`] and [`super::Engine::complete`]
    /// alone.
    #[error(transparent)]
    Refused(std::sync::Arc<RequestError>),
    /// The engine was dropped, or its thread ended, before the request was done.
    #[error("the engine stopped before the request was done")]
    EngineStopped,
    /// A bug: the step panicked. The engine takes no more requests.
    #[error("the engine's step panicked: {message}; please report it")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Failure {
        Failure::Refused(std::sync::Arc::new(error))
    }
}

/// One sample of a generation collected whole: [`super::Generation::wait`], [`super::Generation::wait_all`].
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Where `prompt_logprobs` asked: one entry a prompt token. In the first sample alone.
    pub prompt: Vec<PromptToken>,
    /// Tokens generated, the one that ended the generation included.
    pub token_ids: Vec<TokenId>,
    /// Where `logprobs` asked: one entry a token generated.
    pub logprobs: Vec<TokenLogprobs>,
    /// The text generated.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
    /// Where the time went.
    pub timings: Timings,
}
