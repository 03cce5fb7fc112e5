//! The model that answers: from a checked body to requests of the engine.

use std::sync::{Arc, OnceLock};

use super::call::{Call, Format};
use super::{ApiError, ChatBody, CompletionBody, ErrorKind, Options, PromptBody};
use crate::checkpoint::ModelSource;
use crate::engine::{Engine, EosTokens, Request};
use crate::text::{
    AddGenerationPrompt, ChatTemplate, Infill, RepoContext, SpecialOutput, SpecialTokens, TokenId, TokenNames,
    Tokenizer,
};

/// What it takes to turn bodies into requests, and samples into responses: names, tokenizer, template, positions.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// The name in responses.
    pub name: String,
    tokenizer: Option<Tokenizer>,
    /// Made when the first log-probabilities are written: it takes a look at every token.
    names: Arc<OnceLock<TokenNames>>,
    /// Why there is no tokenizer, for bodies that need one.
    no_tokenizer: String,
    source: ModelSource,
    /// Read when the first body needs it; else why there is none.
    template: Arc<OnceLock<Result<ChatTemplate, String>>>,
    positions: usize,
    vocab_size: usize,
}

/// The most samples of all prompts of one body together: what is held of a body in flight stays small.
const MAX_SAMPLES_OF_A_BODY: usize = 1024;

impl ServedModel {
    /// The model that `engine` runs, whose files are at `source`, under the name `name`. A model without tokenizer or
    /// without a usable chat template is fine until a body needs them.
    pub fn new(engine: &Engine, source: &ModelSource, name: impl Into<String>) -> ServedModel {
        let (tokenizer, no_tokenizer) = match engine.tokenizer() {
            Ok(tokenizer) => (Some(tokenizer.clone()), String::new()),
            Err(error) => (None, error.to_string()),
        };
        ServedModel {
            name: name.into(),
            tokenizer,
            names: Arc::default(),
            no_tokenizer,
            source: source.clone(),
            template: Arc::default(),
            positions: positions(engine),
            vocab_size: engine.spec().vocab_size,
        }
    }

    /// The requests of a completion's body: one a prompt. Where the body has no seed, the samples of all prompts draw
    /// with `seed`, `seed + 1`, …; where it has one, each prompt draws as it does alone.
    ///
    /// `max_tokens` shrinks to what the prompt leaves of the model's positions.
    ///
    /// # Errors
    /// Text without a tokenizer, a suffix without infill tokens, a prompt that has no room.
    pub fn completion(&self, body: CompletionBody, seed: u64) -> Result<Call, ApiError> {
        let CompletionBody { prompts, suffix, max_tokens, echo, logprobs, mut options } = body;
        let samples = prompts.len().saturating_mul(options.n as usize);
        if samples > MAX_SAMPLES_OF_A_BODY {
            let message = format!(
                "{} prompts with n {} are {samples} samples; expected at most {MAX_SAMPLES_OF_A_BODY} in one body",
                prompts.len(),
                options.n
            );
            return Err(ApiError::invalid(message).of("prompt"));
        }
        if suffix.is_some() && options.truncate_prompt_tokens.is_some() {
            let message =
                "truncate_prompt_tokens would cut the infill prompt's first tokens off; leave it out with suffix";
            return Err(ApiError::invalid(message).of("truncate_prompt_tokens"));
        }
        let infill = match &suffix {
            Some(suffix) => {
                let infill = Infill::from_tokenizer(self.tokenizer()?).map_err(|e| ApiError::from(e).of("suffix"))?;
                // The middle ends where the next file or the end of all would begin.
                options.stop_token_ids.extend(infill.stop_token_ids());
                Some((infill, suffix))
            }
            None => None,
        };
        let (mut requests, mut echoes, mut added_before) = (Vec::new(), Vec::new(), Vec::new());
        for (index, prompt) in prompts.into_iter().enumerate() {
            // What the tokenizer puts around a text counts as its tokens, and is never cut off. Ids are taken as they
            // are.
            let is_text = matches!(prompt, PromptBody::Text(_));
            let added =
                if is_text && infill.is_none() { self.tokenizer()?.with_special_tokens(Vec::new()).len() } else { 0 };
            let (ids, text) = match (prompt, &infill) {
                (PromptBody::Text(text), Some((infill, suffix))) => {
                    (infill.prompt(self.tokenizer()?, &text, suffix, &RepoContext::default())?, Some(text))
                }
                (PromptBody::Text(text), None) => (self.tokenizer()?.encode(&text, SpecialTokens::Parse)?, Some(text)),
                (PromptBody::TokenIds(ids), _) => (ids, None),
            };
            if let Some(limit) = options.truncate_prompt_tokens.filter(|limit| *limit as usize <= added && added > 0) {
                let message = format!(
                    "truncate_prompt_tokens is {limit}; expected more than the {added} that the tokenizer puts around a text"
                );
                return Err(ApiError::invalid(message).of("truncate_prompt_tokens"));
            }
            let (mut ids, whole) = truncated(ids, added, &options);
            if echo {
                echoes.push(match text {
                    Some(text) if whole => text,
                    _ => self.tokenizer()?.decode(&ids, SpecialOutput::Keep)?,
                });
                added_before.push(if added > 0 { self.tokenizer()?.special_tokens_before() } else { 0 });
            }
            if added > 0 {
                ids = self.tokenizer()?.with_special_tokens(ids);
            }
            // As many as there are samples before this prompt's own.
            let samples_before = (index as u64).wrapping_mul(u64::from(options.n));
            let mut request =
                self.request("prompt", ids, Some(max_tokens), &options, seed.wrapping_add(samples_before))?;
            request.logprobs = logprobs;
            request.prompt_logprobs = logprobs.filter(|_| echo);
            requests.push(request);
        }
        let format = Format::Completion { echoes: echo.then_some(echoes), added_before, logprobs: logprobs.is_some() };
        Ok(Call::new(requests, format, &options))
    }

    /// The request of a chat's body. Where the body has no seed, its samples draw with `seed`, `seed + 1`, ….
    ///
    /// `max_tokens` is what the prompt leaves of the model's positions, and shrinks to that where it is more.
    ///
    /// # Errors
    /// A model without a usable chat template, messages that the template refuses, a prompt that has no room.
    pub fn chat(&self, body: ChatBody, seed: u64) -> Result<Call, ApiError> {
        let ChatBody { messages, max_tokens, logprobs, add_generation_prompt, options } = body;
        let template =
            self.template.get_or_init(|| ChatTemplate::from_source(&self.source).map_err(|error| error.to_string()));
        let template = template.as_ref().map_err(|error| ApiError::invalid(error).of("messages"))?;
        let add = if add_generation_prompt { AddGenerationPrompt::Yes } else { AddGenerationPrompt::No };
        let text = template.render(&messages, add).map_err(|error| ApiError::from(error).of("messages"))?;
        // A template writes its own special tokens.
        let (ids, _) = truncated(self.tokenizer()?.encode(&text, SpecialTokens::Parse)?, 0, &options);
        let mut request = self.request("messages", ids, max_tokens, &options, seed)?;
        request.eos = EosTokens::Chat;
        request.logprobs = logprobs;
        Ok(Call::new(vec![request], Format::Chat { logprobs: logprobs.is_some() }, &options))
    }

    /// The tokenizer, for those who cannot do without.
    fn tokenizer(&self) -> Result<&Tokenizer, ApiError> {
        self.tokenizer.as_ref().ok_or_else(|| ApiError::invalid(&self.no_tokenizer))
    }

    /// The tokenizer, where there is one.
    pub(super) fn maybe_tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Names of tokens.
    pub(super) fn names(&self) -> &TokenNames {
        self.names.get_or_init(|| TokenNames::new(self.tokenizer.clone(), self.vocab_size))
    }

    /// `field` is what the prompt was made of.
    fn request(
        &self,
        field: &str,
        prompt: Vec<TokenId>,
        max_tokens: Option<u32>,
        options: &Options,
        seed: u64,
    ) -> Result<Request, ApiError> {
        let room = self.positions.saturating_sub(prompt.len());
        if prompt.len() > self.positions || (room == 0 && max_tokens != Some(0)) {
            let (tokens, positions) = (prompt.len(), self.positions);
            return Err(ApiError {
                message: format!(
                    "the prompt has {tokens} tokens, and there is room for {positions}, prompt and completion \
                     together: shorten the prompt"
                ),
                kind: ErrorKind::ExceedsContext { n_prompt_tokens: tokens, n_ctx: positions },
                param: Some(field.to_owned()),
            });
        }
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let mut sampling = options.sampling.clone();
        sampling.seed = options.seed.unwrap_or(seed);
        Ok(Request {
            max_tokens: max_tokens.map_or(room, |asked| asked.min(room)),
            sampling,
            n: options.n,
            stop: options.stop.clone(),
            stop_token_ids: options.stop_token_ids.clone(),
            ignore_eos: options.ignore_eos,
            stop_text: options.stop_text,
            special_output: options.special_output,
            cache_salt: options.cache_salt.clone(),
            ..Request::new(prompt)
        })
    }
}

/// The most positions of one request: the model's, or what the cache holds where that is less.
fn positions(engine: &Engine) -> usize {
    // Positions of a model fit u32.
    let fits = |positions: usize| engine.cache().check_sequence(positions as u32).is_ok();
    let (mut fit, mut too_many) = (0, engine.spec().max_positions + 1);
    while too_many - fit > 1 {
        let middle = fit + (too_many - fit) / 2;
        if fits(middle) { fit = middle } else { too_many = middle }
    }
    fit
}

/// The prompt's last tokens, where it is to be cut, and whether they are all of it; `added` is how many tokens will be
/// put around them.
fn truncated(mut ids: Vec<TokenId>, added: usize, options: &Options) -> (Vec<TokenId>, bool) {
    let keep = options.truncate_prompt_tokens.map_or(usize::MAX, |keep| (keep as usize).saturating_sub(added));
    let cut = ids.len().saturating_sub(keep);
    ids.drain(..cut);
    (ids, cut == 0)
}
