//! OpenAI's wire types, which server and batch share: bodies of `/v1/completions` and `/v1/chat/completions` to the
//! engine's [`Request`](crate::engine::Request)s, and what came of those to response bodies. Knows JSON; knows neither
//! HTTP nor files.
//!
//! | step | what | where |
//! |---|---|---|
//! | 0 | JSON text → a JSON object | [`parse_object`] |
//! | 1 | a JSON object → checked fields | [`CompletionBody`], [`ChatBody`], both with [`Options`] |
//! | 2 | fields → token ids and requests | [`ServedModel::completion`], [`ServedModel::chat`] → [`Call`] |
//! | 3 | events of a request → its samples | [`Collector`] → [`Output`] |
//! | 4 | samples → the response | [`Call::response`] → [`ResponseBody`] |
//! | at each | what is wrong, under the field's name | [`ApiError`] → [`ErrorBody`] |
//!
//! As clients need it: fields that are not known ([`is_known_field`]) are ignored, an explicit `null` is an absent
//! field, and a field that is known but not supported is refused by name, unless its value asks for nothing.

mod body;
mod call;
mod collector;
mod error;
mod fields;
mod json;
mod known;
mod logprobs;
mod model;
mod options;
mod response;

pub use body::{ChatBody, CompletionBody, PromptBody};
pub use call::{Call, Identity};
pub use collector::{Collected, Collector, Output, Sample};
pub use error::{ApiError, ErrorBody, ErrorKind, ErrorObject};
pub use fields::{integer, shown, token_ids};
pub use json::{check_begin, parse_object, syntax_error};
pub use known::{SYNONYMS, is_known_field, option_fields};
pub use logprobs::{ChatLogprobs, ChatToken, ChatTop, CompletionLogprobs, TopLogprobs};
pub use model::ServedModel;
pub use options::{Defaults, Options};
pub use response::{
    AssistantMessage, ChatChoice, ChatResponse, CompletionChoice, CompletionResponse, Response, ResponseBody, Usage,
};
