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

/// The response of `/v1/completions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who answered.
    pub model: String,
    /// The build that answered.
    pub system_fingerprint: &'static str,
    /// Samples of the first prompt, then of the second, ….
    pub choices: Vec<CompletionChoice>,
    /// Tokens.
    pub usage: Usage,
}

impl CompletionResponse {
    pub(super) fn new(model: &str, identity: Identity, choices: Vec<CompletionChoice>, usage: Usage) -> Self {
        let Identity { id, created } = identity;
        CompletionResponse {
            id: format!("cmpl-{id}"),
            object: "text_completion",
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

/// The response of `/v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// Who answered.
    pub model: String,
    /// The build that answered.
    pub system_fingerprint: &'static str,
    /// The samples.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
}

impl ChatResponse {
    pub(super) fn new(model: &str, identity: Identity, choices: Vec<ChatChoice>, usage: Usage) -> Self {
        let Identity { id, created } = identity;
        ChatResponse {
            id: format!("chatcmpl-{id}"),
            object: "chat.completion",
            created,
            model: model.to_owned(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
        }
    }
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
