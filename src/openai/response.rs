//! The bodies of responses.

use serde::Serialize;

use super::{ChatLogprobs, CompletionLogprobs, Identity, Output};

/// Which build answered; the same requests to the same build on the same device get the same answers.
const FINGERPRINT: &str = concat!("rigel-", env!("CARGO_PKG_VERSION"));

/// A response of either endpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ResponseBody {
    /// Of `/v1/completions`.
    Completion(CompletionResponse),
    /// Of `/v1/chat/completions`.
    Chat(ChatResponse),
}

impl ResponseBody {
    /// The text of the first choice; none where there is no choice.
    pub fn text(&self) -> Option<&str> {
        match self {
            ResponseBody::Completion(response) => response.choices.first().map(|choice| choice.text.as_str()),
            ResponseBody::Chat(response) => response.choices.first().map(|choice| choice.message.content.as_str()),
        }
    }

    /// Tokens of prompts and completions.
    pub fn usage(&self) -> Usage {
        match self {
            ResponseBody::Completion(response) => response.usage,
            ResponseBody::Chat(response) => response.usage,
        }
    }
}

/// The response of an endpoint with choices of `C`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Response<C> {
    /// `cmpl-…` or `chatcmpl-…`.
    pub id: String,
    /// `text_completion` or `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who answered.
    pub model: String,
    /// The build that answered.
    pub system_fingerprint: &'static str,
    /// The samples: those of the first prompt, then of the second, ….
    pub choices: Vec<C>,
    /// Tokens.
    pub usage: Usage,
}

/// The response of `/v1/completions`.
pub type CompletionResponse = Response<CompletionChoice>;

/// The response of `/v1/chat/completions`.
pub type ChatResponse = Response<ChatChoice>;

impl ResponseBody {
    pub(super) fn completion(model: &str, identity: Identity, choices: Vec<CompletionChoice>, usage: Usage) -> Self {
        ResponseBody::Completion(Response::new("cmpl", "text_completion", model, identity, choices, usage))
    }

    pub(super) fn chat(model: &str, identity: Identity, choices: Vec<ChatChoice>, usage: Usage) -> Self {
        ResponseBody::Chat(Response::new("chatcmpl", "chat.completion", model, identity, choices, usage))
    }
}

impl<C> Response<C> {
    fn new(
        prefix: &str,
        object: &'static str,
        model: &str,
        identity: Identity,
        choices: Vec<C>,
        usage: Usage,
    ) -> Response<C> {
        let Identity { id, created } = identity;
        Response {
            id: format!("{prefix}-{id}"),
            object,
            created,
            model: model.to_owned(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        }
    }
}

/// One sample of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Its place in the list.
    pub index: usize,
    /// The text, after the prompt's where `echo` asked for it.
    pub text: String,
    /// Where they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Its place in the list.
    pub index: usize,
    /// The answer.
    pub message: AssistantMessage,
    /// Where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
}

/// The assistant's turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The answer; never null.
    pub content: String,
    /// Never anything.
    pub refusal: Option<()>,
}

impl AssistantMessage {
    /// A turn with this text.
    pub fn new(content: String) -> AssistantMessage {
        AssistantMessage { role: "assistant", content, refusal: None }
    }
}

/// How many tokens a call took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Of all prompts, each counted once however many samples it had.
    pub prompt_tokens: usize,
    /// Of all samples.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
}

impl Usage {
    pub(super) fn of(outputs: &[Output]) -> Usage {
        let prompt_tokens = outputs.iter().map(|output| output.prompt_tokens).sum();
        let completion_tokens =
            outputs.iter().flat_map(|output| &output.samples).map(|sample| sample.token_ids.len()).sum();
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}
