//! What is wrong with a body, or went wrong with its requests, as OpenAI's clients read it.

use serde::Serialize;

use crate::engine::{EngineError, Failure, RequestError};
use crate::text::TextError;

/// Whose fault it is, and what a client may do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The body is wrong: the same body fails again.
    InvalidRequest,
    /// A field that is known and not supported.
    Unsupported,
    /// The prompt has no room in the model's positions.
    ExceedsContext {
        /// Tokens of the prompt.
        n_prompt_tokens: usize,
        /// Positions that there is room for.
        n_ctx: usize,
    },
    /// The engine failed: the same body may succeed.
    Server,
}

impl ErrorKind {
    /// The error object's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::InvalidRequest | ErrorKind::Unsupported => "invalid_request_error",
            ErrorKind::ExceedsContext { .. } => "exceed_context_size_error",
            ErrorKind::Server => "server_error",
        }
    }

    /// The error object's `code`.
    pub fn code(self) -> Option<&'static str> {
        match self {
            ErrorKind::InvalidRequest | ErrorKind::Server => None,
            ErrorKind::Unsupported => Some("unsupported_parameter"),
            ErrorKind::ExceedsContext { .. } => Some("context_length_exceeded"),
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            ErrorKind::Server => 500,
            _ => 400,
        }
    }
}

/// Why there is no response to a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What is wrong, in one line.
    pub message: String,
    /// Whose fault it is.
    pub kind: ErrorKind,
    /// The body's field that it is about.
    pub param: Option<String>,
}

impl ApiError {
    /// A wrong body.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError { message: message.into(), kind: ErrorKind::InvalidRequest, param: None }
    }

    /// A failure of the engine.
    pub fn server(message: impl Into<String>) -> ApiError {
        ApiError { message: message.into(), kind: ErrorKind::Server, param: None }
    }

    /// The error, about the field `param`.
    pub fn of(self, param: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..self }
    }

    /// A field with a value that cannot be used.
    pub(super) fn field(name: &str, found: impl std::fmt::Display, expected: &str) -> ApiError {
        ApiError::invalid(format!("{name} is {found}; expected {expected}")).of(name)
    }

    /// A known field that cannot be had. `advice` says what to do without it.
    pub(super) fn unsupported(name: &str, found: impl std::fmt::Display, advice: &str) -> ApiError {
        ApiError {
            message: format!("{name} is {found}, and {name} is not supported; {advice}"),
            kind: ErrorKind::Unsupported,
            param: Some(name.to_owned()),
        }
    }

    /// The body of an HTTP response, `{"error":{…}}`.
    pub fn body(&self) -> ErrorBody<'_> {
        let (n_prompt_tokens, n_ctx) = match self.kind {
            ErrorKind::ExceedsContext { n_prompt_tokens, n_ctx } => (Some(n_prompt_tokens), Some(n_ctx)),
            _ => (None, None),
        };
        ErrorBody {
            error: ErrorObject {
                message: &self.message,
                kind: self.kind.as_str(),
                param: self.param.as_deref(),
                code: self.kind.code(),
                n_prompt_tokens,
                n_ctx,
            },
        }
    }
}

impl From<&RequestError> for ApiError {
    fn from(error: &RequestError) -> ApiError {
        let message = error.to_string();
        match error {
            RequestError::PromptTooLong { tokens, positions } => {
                let kind = ErrorKind::ExceedsContext { n_prompt_tokens: *tokens, n_ctx: *positions };
                ApiError { message, kind, param: Some("prompt".to_owned()) }
            }
            RequestError::TooManyTokens { .. } | RequestError::LargerThanCache { .. } => {
                ApiError::invalid(message).of("max_tokens")
            }
            RequestError::Samples { .. } => ApiError::invalid(message).of("n"),
            RequestError::EmptyPrompt => ApiError::invalid(message).of("prompt"),
            RequestError::TokenOutOfRange { field, .. } => ApiError::invalid(message).of(*field),
            RequestError::Sampling(invalid) => ApiError::invalid(message).of(invalid.name),
            RequestError::TooManyLogprobs { field, .. } => ApiError::invalid(message).of(*field),
            RequestError::NoTokenizer { .. } => ApiError::invalid(message).of("prompt"),
            RequestError::StopWithoutTokenizer | RequestError::Text(_) => ApiError::invalid(message).of("stop"),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        ApiError::invalid(error.to_string())
    }
}

impl From<EngineError> for ApiError {
    /// What the engine lacks for a body: its tokenizer.
    fn from(error: EngineError) -> ApiError {
        ApiError::invalid(error.to_string())
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        match failure {
            Failure::Refused(error) => ApiError::from(&*error),
            failure => ApiError::server(failure.to_string()),
        }
    }
}

/// `{"error":{…}}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorBody<'a> {
    /// What went wrong.
    pub error: ErrorObject<'a>,
}

/// What OpenAI's clients read of an error. `param` and `code` are there even where they are `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorObject<'a> {
    /// What is wrong, in one line.
    pub message: &'a str,
    /// [`ErrorKind::as_str`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that it is about.
    pub param: Option<&'a str>,
    /// [`ErrorKind::code`].
    pub code: Option<&'static str>,
    /// Where the prompt is too long: its tokens (llama.cpp's field).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_prompt_tokens: Option<usize>,
    /// Where the prompt is too long: the tokens that there is room for (llama.cpp's field).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_ctx: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_has_every_field_that_clients_read() {
        let error = ApiError::field("temperature", "\"hot\"", "a number");
        assert_eq!(
            serde_json::to_value(error.body()).unwrap(),
            json!({"error": {"message": "temperature is \"hot\"; expected a number", "type": "invalid_request_error",
                             "param": "temperature", "code": null}})
        );
    }

    #[test]
    fn a_prompt_too_long_is_llama_cpp_s_error() {
        let error = ApiError::from(&RequestError::PromptTooLong { tokens: 20, positions: 16 });
        let body = serde_json::to_value(error.body()).unwrap();
        assert_eq!(body["error"]["type"], "exceed_context_size_error");
        assert_eq!((&body["error"]["n_prompt_tokens"], &body["error"]["n_ctx"]), (&json!(20), &json!(16)));
        assert_eq!(error.kind.status(), 400);
    }

    #[test]
    fn the_engine_s_failures_are_the_server_s() {
        assert_eq!(ApiError::from(Failure::EngineStopped).kind.status(), 500);
        assert_eq!(ApiError::from(Failure::Refused(RequestError::EmptyPrompt.into())).param.as_deref(), Some("prompt"));
    }
}
