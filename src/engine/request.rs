//! What is asked of the engine.

use std::sync::Arc;
use std::time::Duration;

use crate::kv::{CacheGeometry, OutOfPages};
use crate::model::ModelSpec;
use crate::sampling::{InvalidParam, LogitsProcessor, SamplingParams};
use crate::text::{SpecialOutput, StopText, TextError, TokenId};

/// One prompt and what to do with it.
///
/// Later versions may have more fields: begin with [`Request::new`] or [`super::Engine::request`], and change what is
/// to differ through the setters, or with `Request { max_tokens: 64, ..Request::new(prompt) }`.
///
/// ```
/// use rigel::engine::Request;
/// use rigel::sampling::SamplingParams;
/// use rigel::text::TokenId;
///
/// let sampling = SamplingParams::default().temperature(0.8).top_p(0.95).seed(7);
/// let request = Request::new(vec![TokenId(40)]).max_tokens(64).stop("\n\n").sampling(sampling);
/// # assert_eq!((request.max_tokens, request.stop, request.sampling.seed), (64, vec!["\n\n".to_owned()], 7));
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt's token ids, taken as they are.
    pub prompt: Vec<TokenId>,
    /// Samples of the prompt, at least 1. Sample `i` draws with the seed `sampling.seed + i` (wrapping), and is what a
    /// request with that seed and one sample gives.
    pub n: u32,
    /// The most tokens to generate; 0 computes the prompt alone (see [`Request::prompt_logprobs`]). A request whose
    /// prompt and `max_tokens` together exceed the model's positions is refused
    /// ([`RequestError::TooManyTokens`]), and never cut in silence. [`super::Engine::request`], like the command line,
    /// asks for no more than there is room for.
    pub max_tokens: u32,
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation. They may span tokens, and they are looked for in the text *with* special tokens,
    /// whatever [`Request::special_output`] shows: `<file_sep>` stops at that token. One that begins inside a special
    /// token's text counts as well (`sep>`), and the whole token is dropped with it. Those that are complete within
    /// [`SamplingParams::min_tokens`] tokens are ordinary text.
    pub stop: Vec<String>,
    /// Tokens that end the generation, beside the end-of-sequence tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether generation continues after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Which tokens are end-of-sequence tokens.
    pub eos: EosTokens,
    /// Whether the text keeps the stop string or the stop token's text; special tokens only if they are shown.
    pub stop_text: StopText,
    /// Whether the text shows special tokens. They always count for [`Request::stop`].
    pub special_output: SpecialOutput,
    /// Report the log-probability of each token generated, and of this many best ones.
    pub logprobs: Option<usize>,
    /// Report the same for the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
    /// Requests share the keys and values of a common beginning only where this is equal: it keeps tenants apart, who
    /// could otherwise tell from the time to the first token what others ask.
    pub cache_salt: Option<String>,
    /// From the call of `generate` on, the time after which the request ends with [`super::FinishReason::Deadline`].
    pub timeout: Option<Duration>,
    /// Changes the logits of each token before it is chosen.
    pub processor: Option<Arc<dyn LogitsProcessor>>,
}

/// Which tokens are end-of-sequence tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EosTokens {
    /// For plain completions: those of generation_config.json, else of config.json, else the tokenizer's; as in
    /// transformers.
    #[default]
    Completion,
    /// For an assistant's turn: those of generation_config.json, of config.json and of the tokenizer together. A chat
    /// fine-tune often names its end of turn in one of the three alone; vLLM and llama.cpp stop at the tokenizer's,
    /// too.
    Chat,
}

/// The most samples of one prompt.
pub const MAX_SAMPLES: u32 = 1024;

/// The most best tokens whose log-probabilities a request may ask for at each position.
pub const MAX_LOGPROBS: usize = 1024;

impl Request {
    /// A greedy request for up to 256 tokens.
    pub fn new(prompt: Vec<TokenId>) -> Request {
        Request {
            prompt,
            n: 1,
            max_tokens: 256,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            eos: EosTokens::Completion,
            stop_text: StopText::Exclude,
            special_output: SpecialOutput::Skip,
            logprobs: None,
            prompt_logprobs: None,
            cache_salt: None,
            timeout: None,
            processor: None,
        }
    }

    /// Sets [`Request::max_tokens`].
    pub fn max_tokens(mut self, max_tokens: u32) -> Request {
        self.max_tokens = max_tokens;
        self
    }

    /// Sets [`Request::sampling`].
    pub fn sampling(mut self, sampling: SamplingParams) -> Request {
        self.sampling = sampling;
        self
    }

    /// Adds a text to [`Request::stop`].
    pub fn stop(mut self, stop: impl Into<String>) -> Request {
        self.stop.push(stop.into());
        self
    }

    /// Sets [`Request::n`].
    pub fn n(mut self, samples: u32) -> Request {
        self.n = samples;
        self
    }

    /// Sets [`Request::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Request {
        self.timeout = Some(timeout);
        self
    }

    /// Checks everything that needs no tokenizer, for a model of `spec` over a cache of `cache`.
    pub(super) fn check(&self, spec: &ModelSpec, cache: &CacheGeometry) -> Result<(), RequestError> {
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if self.n == 0 || self.n > MAX_SAMPLES {
            return Err(RequestError::Samples { n: self.n });
        }
        check_ids("prompt", self.prompt.iter(), spec)?;
        check_ids("stop_token_ids", self.stop_token_ids.iter(), spec)?;
        let SamplingParams { logit_bias, allowed_token_ids, banned_token_ids, .. } = &self.sampling;
        check_ids("logit_bias", logit_bias.iter().map(|(id, _)| id), spec)?;
        check_ids("allowed_token_ids", allowed_token_ids.iter().flatten(), spec)?;
        check_ids("banned_token_ids", banned_token_ids.iter(), spec)?;
        let positions = spec.max_positions;
        if self.prompt.len() > positions {
            return Err(RequestError::PromptTooLong { tokens: self.prompt.len(), positions });
        }
        if self.prompt.len().saturating_add(self.max_tokens as usize) > positions {
            return Err(RequestError::TooManyTokens {
                prompt: self.prompt.len(),
                max_tokens: self.max_tokens,
                positions,
            });
        }
        self.sampling.validate()?;
        for (field, found) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(found) = found.filter(|found| *found > MAX_LOGPROBS) {
                return Err(RequestError::TooManyLogprobs { field, found });
            }
        }
        // Positions fit u32: those of a model do.
        let computed = self.max_computed() as u32;
        cache.check_sequence(computed).map_err(|OutOfPages { needed, free: pages }| RequestError::LargerThanCache {
            positions: computed,
            needed,
            pages,
        })
    }
}

impl Request {
    /// Most positions of a sample that are computed; the last generated token is not.
    pub(super) fn max_computed(&self) -> usize {
        self.prompt.len() + (self.max_tokens as usize).saturating_sub(1)
    }
}

/// Checks that every id of a field is in the vocabulary.
fn check_ids<'a>(
    field: &'static str,
    ids: impl Iterator<Item = &'a TokenId>,
    spec: &ModelSpec,
) -> Result<(), RequestError> {
    let vocab_size = spec.vocab_size;
    match ids.enumerate().find(|(_, id)| id.0 as usize >= vocab_size) {
        None => Ok(()),
        Some((index, &token)) => Err(RequestError::TokenOutOfRange { field, index, token, vocab_size }),
    }
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is nothing to continue.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
    /// An id is not of the vocabulary.
    #[error("{field}[{index}] is {token}; expected an id below the vocabulary size {vocab_size}")]
    TokenOutOfRange {
        /// The request's field.
        field: &'static str,
        /// Index inside the field.
        index: usize,
        /// The id found.
        token: TokenId,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// The prompt alone has more tokens than there is room for.
    #[error("the prompt has {tokens} tokens; there is room for {positions}: shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's positions, or the context that was asked for where that is less.
        positions: usize,
    },
    /// The prompt and the tokens to generate have no room.
    #[error(
        "the prompt's {prompt} tokens and max_tokens {max_tokens} exceed the {positions} that there is room for: \
         lower max_tokens to {} or shorten the prompt", positions - prompt
    )]
    TooManyTokens {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: u32,
        /// The model's positions, or the context that was asked for where that is less.
        positions: usize,
    },
    /// The number of samples is not one that the engine takes.
    #[error("n is {n}; expected 1 to {MAX_SAMPLES} samples of a prompt")]
    Samples {
        /// The number found.
        n: u32,
    },
    /// Log-probabilities of too many tokens were asked for.
    #[error("{field} is {found}; expected at most {MAX_LOGPROBS} best tokens at each position")]
    TooManyLogprobs {
        /// The request's field.
        field: &'static str,
        /// The number found.
        found: usize,
    },
    /// The request alone would not fit the cache.
    #[error(
        "{positions} positions need {needed} pages of the cache, which has {pages}: lower max_tokens, shorten the \
         prompt, or give the engine more memory"
    )]
    LargerThanCache {
        /// Positions of prompt and completion.
        positions: u32,
        /// Pages that they need at once.
        needed: u32,
        /// Pages of the cache.
        pages: u32,
    },
    /// A sampling parameter is outside its range.
    #[error(transparent)]
    Sampling(#[from] InvalidParam),
    /// A prompt of text needs a tokenizer; from [`super::Engine::request`] alone.
    #[error(
        "{file} does not exist, nor do vocab.json and merges.txt: text needs the tokenizer; copy it from the model's \
         hub page, or give token ids"
    )]
    NoTokenizer {
        /// Where the tokenizer would be.
        file: String,
    },
    /// Stop texts need a tokenizer, and cannot be empty.
    #[error("stop texts need the checkpoint's tokenizer, and it has no tokenizer.json; use stop_token_ids")]
    StopWithoutTokenizer,
    /// A stop text is empty, or the tokenizer cannot be used for incremental text or gave up on a prompt.
    #[error(transparent)]
    Text(TextError),
}

impl From<TextError> for RequestError {
    fn from(error: TextError) -> Self {
        RequestError::Text(error)
    }
}
