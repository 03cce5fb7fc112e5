//! The bodies of `/v1/completions` and `/v1/chat/completions`, checked field by field. Nothing here needs a model.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, integer, shown, token_ids};
use super::options::{Defaults, Options, count_of_logprobs, one_of};
use crate::text::{ChatMessage, TokenId};

/// One prompt of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptBody {
    /// Text, in which special tokens written out are those tokens.
    Text(String),
    /// Token ids, taken as they are: nothing is put before them.
    TokenIds(Vec<TokenId>),
}

/// The body of `/v1/completions`.
#[derive(Debug, Clone)]
pub struct CompletionBody {
    /// `prompt`: a string, a list of them, a list of token ids, or a list of such lists.
    pub prompts: Vec<PromptBody>,
    /// `suffix`: text after the gap that is to be filled. An empty one is none.
    pub suffix: Option<String>,
    /// `max_tokens`.
    pub max_tokens: u32,
    /// `echo`: put the prompt before the completion.
    pub echo: bool,
    /// `logprobs`: log-probabilities of the tokens and of this many best ones.
    pub logprobs: Option<usize>,
    /// What both bodies may say.
    pub options: Options,
}

/// The body of `/v1/chat/completions`.
#[derive(Debug, Clone)]
pub struct ChatBody {
    /// `messages`.
    pub messages: Vec<ChatMessage>,
    /// `max_completion_tokens`, or `max_tokens`; none is all that the prompt leaves.
    pub max_tokens: Option<u32>,
    /// `logprobs` and `top_logprobs`: log-probabilities of the tokens and of this many best ones.
    pub logprobs: Option<usize>,
    /// `add_generation_prompt`: whether the prompt ends with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// What both bodies may say.
    pub options: Options,
}

impl CompletionBody {
    /// Reads a body.
    ///
    /// # Errors
    /// The first field with a value that cannot be used, under its name.
    pub fn read(body: Value, defaults: &Defaults) -> Result<CompletionBody, ApiError> {
        let mut fields = Fields::of(body)?;
        let options = Options::read(&mut fields, defaults)?;
        let prompts = prompts(&mut fields)?;
        let max_tokens = one_of(
            ("max_tokens", fields.natural("max_tokens")?),
            ("max_completion_tokens", fields.natural("max_completion_tokens")?),
        )?;
        let n = i128::from(options.n);
        fields.refuse("best_of", "ask for n samples and choose among them", |value| integer(value) == Some(n))?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let suffix = fields.text("suffix")?.filter(|suffix| !suffix.is_empty());
        if suffix.is_some() && echo {
            return Err(ApiError::invalid("echo cannot go with suffix; leave echo out").of("echo"));
        }
        if suffix.is_some() && prompts.iter().any(|prompt| matches!(prompt, PromptBody::TokenIds(_))) {
            return Err(ApiError::invalid("suffix needs prompts of text, and there are token ids").of("suffix"));
        }
        // `false` is what chat's clients say.
        let own = fields.read("logprobs", "an integer from 0 to 100", |value| match value {
            Value::Bool(false) => Some(None),
            value => integer(value).and_then(|count| u32::try_from(count).ok()).map(Some),
        })?;
        let logprobs = match own {
            Some(count) => count.map(|count| count_of_logprobs("logprobs", count)).transpose()?,
            None => defaults.logprobs,
        };
        let max_tokens = max_tokens.unwrap_or(defaults.max_tokens);
        Ok(CompletionBody { prompts, suffix, max_tokens, echo, logprobs, options })
    }
}

fn prompts(fields: &mut Fields) -> Result<Vec<PromptBody>, ApiError> {
    const EXPECTED: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let Some(value) = fields.take("prompt") else {
        return Err(ApiError::invalid(format!("prompt is missing; expected {EXPECTED}")).of("prompt"));
    };
    let read = match &value {
        Value::String(text) => Some(vec![PromptBody::Text(text.clone())]),
        Value::Array(values) => match values.first() {
            None => None,
            Some(Value::String(_)) => {
                values.iter().map(|v| v.as_str().map(|text| PromptBody::Text(text.to_owned()))).collect()
            }
            Some(Value::Array(_)) => {
                values.iter().map(|v| v.as_array().and_then(|ids| token_ids(ids)).map(PromptBody::TokenIds)).collect()
            }
            Some(_) => token_ids(values).map(|ids| vec![PromptBody::TokenIds(ids)]),
        },
        _ => None,
    };
    read.ok_or_else(|| ApiError::field("prompt", shown(&value), EXPECTED))
}

impl ChatBody {
    /// Reads a body.
    ///
    /// # Errors
    /// The first field with a value that cannot be used, under its name.
    pub fn read(body: Value, defaults: &Defaults) -> Result<ChatBody, ApiError> {
        let mut fields = Fields::of(body)?;
        refuse_unsupported(&mut fields)?;
        let options = Options::read(&mut fields, defaults)?;
        let messages = messages(&mut fields)?;
        let max_tokens = one_of(
            ("max_tokens", fields.natural("max_tokens")?),
            ("max_completion_tokens", fields.natural("max_completion_tokens")?),
        )?;
        let asked = fields.flag("logprobs")?;
        let top = fields.natural("top_logprobs")?.map(|n| count_of_logprobs("top_logprobs", n)).transpose()?;
        let logprobs = match (asked, top) {
            (None, None) => defaults.logprobs,
            (Some(true), top) => Some(top.unwrap_or(0)),
            (None | Some(false), None | Some(0)) => None,
            (None | Some(false), Some(n)) => {
                let message = format!("top_logprobs is {n} without logprobs; set logprobs to true");
                return Err(ApiError::invalid(message).of("top_logprobs"));
            }
        };
        let add_generation_prompt = fields.flag("add_generation_prompt")?.unwrap_or(true);
        let max_tokens = max_tokens.or(defaults.chat_max_tokens);
        Ok(ChatBody { messages, max_tokens, logprobs, add_generation_prompt, options })
    }
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    let never = |_: &Value| false;
    let is = |word: &'static str| move |value: &Value| value == word;
    for name in ["tools", "functions"] {
        fields.refuse(name, "describe them in a message", never)?;
    }
    fields.refuse("tool_choice", "there are no tools", |value| value == "none" || value == "auto")?;
    fields.refuse("function_call", "there are no functions", |value| value == "none" || value == "auto")?;
    fields.refuse("modalities", "answers are text", |value| value == &serde_json::json!(["text"]))?;
    fields.refuse("audio", "answers are text", never)?;
    fields.refuse("prediction", "leave it out", never)?;
    fields.refuse("reasoning_effort", "the model does not reason apart from its answer", is("none"))?;
    fields.refuse("verbosity", "ask for it in a message", is("medium"))?;
    fields.refuse("web_search_options", "leave it out", never)?;
    fields.refuse("store", "nothing is stored", never)?;
    fields.refuse("service_tier", "there is one tier", |value| value == "auto" || value == "default")?;
    fields.refuse("echo", "use /v1/completions", never)?;
    fields.refuse("continue_final_message", "use /v1/completions", never)?;
    fields.refuse("chat_template", "the model's own template is used", never)?;
    fields.refuse("chat_template_kwargs", "the model's own template is used", never)?;
    fields.refuse("documents", "put them into a message", never)
}

fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    const EXPECTED: &str = "a list of at least one {\"role\":…,\"content\":…}";
    let Some(value) = fields.take("messages") else {
        return Err(ApiError::invalid(format!("messages is missing; expected {EXPECTED}")).of("messages"));
    };
    match value {
        Value::Array(values) if !values.is_empty() => {
            values.into_iter().enumerate().map(|(index, value)| message(index, value)).collect()
        }
        value => Err(ApiError::field("messages", shown(&value), EXPECTED)),
    }
}

fn message(index: usize, value: Value) -> Result<ChatMessage, ApiError> {
    let place = format!("messages[{index}]");
    let Value::Object(_) = value else {
        return Err(ApiError::field(&place, shown(&value), "an object with role and content"));
    };
    let inside = |error: ApiError| {
        let param = error.param.as_ref().map_or_else(|| place.clone(), |field| format!("{place}.{field}"));
        ApiError { message: format!("{place}.{}", error.message), param: Some(param), kind: error.kind }
    };
    let mut fields = Fields::of(value)?;
    let role = fields.text("role").map_err(inside)?;
    let role = match role {
        Some(role) if ROLES.contains(&role.as_str()) => role,
        Some(role) => return Err(inside(ApiError::field("role", shown(&Value::String(role)), EXPECTED_ROLE))),
        None => return Err(inside(ApiError::invalid(format!("role is missing; expected {EXPECTED_ROLE}")).of("role"))),
    };
    for name in ["tool_calls", "function_call", "audio"] {
        fields.refuse(name, "put it into the content", |_| false).map_err(inside)?;
    }
    let content = content(&mut fields, &role).map_err(inside)?;
    Ok(ChatMessage::new(role, content))
}

/// Who may speak: the roles of OpenAI's chats. What a template makes of each is the template's matter.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
const EXPECTED_ROLE: &str = "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"";

/// A message's text: a string, or parts of type text put together. An assistant's null is no text.
fn content(fields: &mut Fields, role: &str) -> Result<String, ApiError> {
    const EXPECTED: &str = "a string, or a list of {\"type\":\"text\",\"text\":…}";
    let part = |part: &Value| {
        let text = part.get("text").filter(|_| part.get("type").is_some_and(|kind| kind == "text"));
        text.and_then(Value::as_str).map(str::to_owned)
    };
    let is_there = fields.has("content");
    let text = fields.read("content", EXPECTED, |value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        _ => None,
    })?;
    match text {
        Some(text) => Ok(text),
        None if is_there && role == "assistant" => Ok(String::new()),
        None if is_there => Err(ApiError::field("content", "null", EXPECTED)),
        None => Err(ApiError::invalid(format!("content is missing; expected {EXPECTED}")).of("content")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn completion(body: Value) -> Result<CompletionBody, ApiError> {
        CompletionBody::read(body, &Defaults::openai())
    }

    fn chat(body: Value) -> Result<ChatBody, ApiError> {
        ChatBody::read(body, &Defaults::openai())
    }

    fn with(mut body: Value, name: &str, value: Value) -> Value {
        body[name] = value;
        body
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| PromptBody::Text(text.into());
        let ids = |ids: &[u32]| PromptBody::TokenIds(ids.iter().copied().map(TokenId).collect());
        let prompts = |prompt: Value| completion(json!({"prompt": prompt})).map(|body| body.prompts);
        assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
        assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(prompts(json!([1, 2])).unwrap(), [ids(&[1, 2])]);
        assert_eq!(prompts(json!([1.0, 2])).unwrap(), [ids(&[1, 2])]);
        assert_eq!(prompts(json!([[1, 2], [3]])).unwrap(), [ids(&[1, 2]), ids(&[3])]);
        for wrong in [json!([]), json!(["a", 1]), json!([1, "a"]), json!([[1], "a"]), json!([1.5]), json!(7)] {
            assert_eq!(prompts(wrong).unwrap_err().param.as_deref(), Some("prompt"));
        }
        assert!(completion(json!({})).unwrap_err().message.starts_with("prompt is missing"));
    }

    #[test]
    fn a_completion_s_own_fields_are_read() {
        let body = completion(json!({"prompt": "a"})).unwrap();
        assert_eq!((body.max_tokens, body.echo, body.logprobs, body.suffix), (16, false, None, None));
        let body = completion(json!({
            "prompt": "a", "suffix": null, "max_tokens": 0, "echo": true, "logprobs": 1, "best_of": 2, "n": 2
        }))
        .unwrap();
        assert_eq!((body.max_tokens, body.echo, body.logprobs), (0, true, Some(1)));
        assert_eq!(completion(json!({"prompt": "a", "suffix": ""})).unwrap().suffix, None);
        let floats = json!({"prompt": "a", "max_tokens": 8.0, "logprobs": 2.0, "n": 2.0, "best_of": 2.0});
        let body = completion(floats).unwrap();
        assert_eq!((body.max_tokens, body.logprobs, body.options.n), (8, Some(2), 2));
        for (name, value) in [
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(8.5)),
            ("max_tokens", json!(1e300)),
            ("logprobs", json!(1.5)),
            ("echo", json!("yes")),
            ("logprobs", json!(true)),
            ("logprobs", json!(101)),
            ("best_of", json!(2)),
            ("suffix", json!(1)),
        ] {
            let error = completion(with(json!({"prompt": "a"}), name, value)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{error}");
        }
        let ids = completion(json!({"prompt": [1], "suffix": "b"})).unwrap_err();
        assert_eq!(ids.param.as_deref(), Some("suffix"));
        let echo = completion(json!({"prompt": "a", "suffix": "b", "echo": true})).unwrap_err();
        assert_eq!(echo.param.as_deref(), Some("echo"));
    }

    #[test]
    fn log_probabilities_may_be_a_default() {
        let defaults = Defaults { logprobs: Some(3), ..Defaults::openai() };
        let messages = json!([{"role": "user", "content": "x"}]);
        let completion =
            |body: Value| CompletionBody::read(with(body, "prompt", json!("x")), &defaults).unwrap().logprobs;
        let chat = |body: Value| ChatBody::read(with(body, "messages", messages.clone()), &defaults).unwrap().logprobs;
        assert_eq!((completion(json!({})), chat(json!({}))), (Some(3), Some(3)));
        assert_eq!((completion(json!({"logprobs": 0})), chat(json!({"logprobs": true}))), (Some(0), Some(0)));
        let none = json!({"logprobs": false});
        assert_eq!((completion(none.clone()), chat(none)), (None, None));
    }

    #[test]
    fn messages_are_read() {
        let body = chat(json!({"messages": [
            {"role": "user", "content": "a", "name": "n"},
            {"role": "assistant", "content": null},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}
        ]}))
        .unwrap();
        let expected = [("user", "a"), ("assistant", ""), ("user", "bc")];
        assert_eq!(body.messages, expected.map(|(role, content)| ChatMessage::new(role, content)));
        assert_eq!((body.max_tokens, body.logprobs, body.add_generation_prompt), (None, None, true));
        let message = |value: Value| chat(json!({"messages": [value]})).unwrap_err();
        assert_eq!(message(json!({"content": "a"})).param.as_deref(), Some("messages[0].role"));
        assert_eq!(message(json!({"role": "user", "content": 1})).param.as_deref(), Some("messages[0].content"));
        let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]});
        assert!(message(image).message.starts_with("messages[0].content is "));
        assert_eq!(message(json!("a")).param.as_deref(), Some("messages[0]"));
        assert!(chat(json!({"messages": []})).is_err() && chat(json!({})).is_err());
    }

    #[test]
    fn a_chat_s_own_fields_are_read() {
        let base = || json!({"messages": [{"role": "user", "content": "a"}]});
        let body = with(with(base(), "max_completion_tokens", json!(5)), "logprobs", json!(true));
        let body = chat(with(body, "top_logprobs", json!(2.0))).unwrap();
        assert_eq!((body.max_tokens, body.logprobs), (Some(5), Some(2)));
        assert_eq!(chat(with(base(), "logprobs", json!(true))).unwrap().logprobs, Some(0));
        assert_eq!(chat(with(base(), "max_tokens", json!(7))).unwrap().max_tokens, Some(7));
        let two = chat(with(with(base(), "max_tokens", json!(7)), "max_completion_tokens", json!(8))).unwrap_err();
        assert!(two.message.contains("give one of them"), "{two}");
        for (name, value) in [
            ("tools", json!([{"type": "function"}])),
            ("tool_choice", json!("required")),
            ("functions", json!([{}])),
            ("modalities", json!(["audio"])),
            ("audio", json!({"voice": "x"})),
            ("reasoning_effort", json!("high")),
            ("store", json!(true)),
            ("service_tier", json!("flex")),
            ("echo", json!(true)),
            ("continue_final_message", json!(true)),
            ("chat_template", json!("{{x}}")),
            ("chat_template_kwargs", json!({"a": 1})),
            ("top_logprobs", json!(3)),
            ("logprobs", json!(3)),
        ] {
            let error = chat(with(base(), name, value)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{error}");
        }
        // What evalplus, Continue and openai-python send besides.
        let harmless = json!({"tools": [], "tool_choice": "none", "parallel_tool_calls": true, "user": "u",
            "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "modalities": ["text"], "audio": null});
        let mut body = base();
        body.as_object_mut().unwrap().extend(harmless.as_object().unwrap().clone());
        assert!(chat(body).is_ok());
    }
}
