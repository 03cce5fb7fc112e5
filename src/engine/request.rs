//! What is asked of the engine.

use crate::model::ModelSpec;
use crate::sampling::{InvalidParam, SamplingParams};
use crate::text::{SpecialOutput, StopText, TextError, TokenId};

/// One prompt and what to do with it.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt's token ids, taken as they are.
    pub prompt: Vec<TokenId>,
    /// The most tokens to generate; 0 computes the prompt alone (see [`Request::prompt_logprobs`]).
    pub max_tokens: u32,
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Texts that end the generation. They may span tokens.
    pub stop: Vec<String>,
    /// Tokens that end the generation, beside the end-of-sequence tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// Do the end-of-sequence tokens end the generation?
    pub ignore_eos: bool,
    /// Does the text keep the stop text or the stop token's text?
    pub stop_text: StopText,
    /// Does the text show special tokens?
    pub special_output: SpecialOutput,
    /// Report the log-probability of each token generated, and of this many best ones.
    pub logprobs: Option<usize>,
    /// Report the same for the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
}

impl Request {
    /// A greedy request for up to 256 tokens.
    pub fn new(prompt: Vec<TokenId>) -> Request {
        Request {
            prompt,
            max_tokens: 256,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            stop_text: StopText::Exclude,
            special_output: SpecialOutput::Skip,
            logprobs: None,
            prompt_logprobs: None,
        }
    }

    /// Checks everything that needs no tokenizer.
    pub(super) fn check(&self, spec: &ModelSpec) -> Result<(), RequestError> {
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        let vocab_size = spec.vocab_size;
        let ids = [("prompt", &self.prompt), ("stop_token_ids", &self.stop_token_ids)];
        for (field, ids) in ids {
            if let Some((index, &token)) = ids.iter().enumerate().find(|(_, t)| t.0 as usize >= vocab_size) {
                return Err(RequestError::TokenOutOfRange { field, index, token, vocab_size });
            }
        }
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
        Ok(())
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
    /// A sampling parameter is outside its range.
    #[error(transparent)]
    Sampling(#[from] InvalidParam),
    /// Stop texts need a tokenizer, and cannot be empty.
    #[error("stop texts need the checkpoint's tokenizer, and it has no tokenizer.json; use stop_token_ids")]
    StopWithoutTokenizer,
    /// A stop text is empty, or the tokenizer cannot be used for incremental text.
    #[error(transparent)]
    Text(TextError),
}
