//! One line of the input: what it asks for.

use serde::Serialize;
use serde_json::{Map, Value};

use rigel::openai::{ApiError, parse_object, shown};

use super::super::lines::{Line, without_mark};
use super::super::missing_prompt::missing_prompt;
use super::super::prompts::{self, PromptError, rename_to_prompt};
use super::head::IdFields;

/// What a line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// An OpenAI line with the url `/v1/completions`.
    Completion(Value),
    /// An OpenAI line with the url `/v1/chat/completions`.
    Chat(Value),
    /// A plain line with a prompt, which the line has in the field `written` and the body in `prompt`.
    PlainPrompt { body: Value, written: &'static str },
    /// A plain line with messages.
    PlainChat(Value),
}

impl Job {
    pub fn form(&self) -> Form {
        match self {
            Job::Completion(_) | Job::Chat(_) => Form::OpenAi,
            Job::PlainPrompt { written, .. } => Form::Plain(written),
            Job::PlainChat(_) => Form::Plain(MESSAGES),
        }
    }
}

/// How a line is written, and so how its answer and its errors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As OpenAI has it.
    OpenAi,
    /// A plain line with its prompt in this field.
    Plain(&'static str),
}

impl Form {
    /// The error with the prompt's field as the line names it: readers of bodies know `prompt` alone.
    pub fn name_field(self, mut error: LineError) -> LineError {
        const READ: &str = "prompt";
        let Form::Plain(field) = self else { return error };
        if error.param.as_deref() != Some(READ) || field == READ {
            return error;
        }
        // `prompt is …` and `prompt[2] is …` are about the field, `the prompt has …` is about what is in it.
        let of_field = error.message.strip_prefix(READ).filter(|rest| rest.starts_with([' ', '[']));
        if let Some(rest) = of_field.filter(|_| field != MESSAGES) {
            error.message = format!("{field}{rest}");
        }
        error.param = Some(field.to_owned());
        error
    }
}

/// Why a line has no response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// A word for programs.
    pub code: String,
    /// What is wrong, in one line.
    pub message: String,
    /// The field that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
}

impl LineError {
    pub fn new(code: &str, message: impl Into<String>) -> LineError {
        LineError { code: code.to_owned(), message: message.into(), param: None }
    }
}

impl From<PromptError> for LineError {
    fn from(error: PromptError) -> LineError {
        let PromptError { field, message } = error;
        LineError { param: field.map(str::to_owned), ..LineError::new("invalid_line", message) }
    }
}

impl From<ApiError> for LineError {
    fn from(error: ApiError) -> LineError {
        let code = error.kind.code().unwrap_or(error.kind.as_str()).to_owned();
        LineError { code, message: error.message, param: error.param }
    }
}

/// Whether a line begins as a JSON object does.
pub fn is_object(line: Line<'_>) -> bool {
    matches!(line, Line::Bytes(bytes) if without_mark(bytes).trim_ascii_start().starts_with(b"{"))
}

/// What a line may be, for messages.
const EXPECTED: &str = "expected prompt, text, token_ids or messages, or url and body";

/// What a line asks for.
pub fn job(line: Line<'_>, ids: &IdFields) -> Result<Job, LineError> {
    ids.written_id(line)?;
    // Read whole above, so there are bytes.
    let Line::Bytes(bytes) = line else { return Err(LineError::new("line_too_long", "the line is too long")) };
    let mut fields = parse_object(without_mark(bytes)).map_err(malformed)?;
    if OPENAI_FIELDS.iter().any(|name| given(&fields, name)) {
        return openai(&mut fields);
    }
    fields.remove("custom_id");
    fields.remove("id");
    match (rename_to_prompt(&mut fields)?, given(&fields, MESSAGES)) {
        (Some(written), false) => Ok(Job::PlainPrompt { body: Value::Object(fields), written }),
        (None, true) => Ok(Job::PlainChat(Value::Object(fields))),
        (Some(_), true) => Err(LineError::new("invalid_line", "both a prompt and messages; give one of them")),
        (None, false) => {
            let [prompt, text, token_ids] = prompts::FIELDS;
            let message = missing_prompt(&fields, &[prompt, text, token_ids, MESSAGES], EXPECTED);
            Err(LineError::new("invalid_line", message))
        }
    }
}

/// The fields that make a line one of OpenAI's.
pub const OPENAI_FIELDS: [&str; 3] = ["url", "body", "method"];
/// The field of a plain line that is a conversation, in place of a prompt
/// ([`prompts::FIELDS`](super::super::prompts::FIELDS)).
pub const MESSAGES: &str = "messages";

fn given(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).is_some_and(|value| !value.is_null())
}

fn openai(fields: &mut Map<String, Value>) -> Result<Job, LineError> {
    const URLS: &str = "expected /v1/completions or /v1/chat/completions";
    let invalid = |message: String| Err(LineError::new("invalid_line", message));
    match fields.get("method") {
        None | Some(Value::Null) => {}
        Some(Value::String(method)) if method == "POST" => {}
        Some(method) => return invalid(format!("method is {}; expected POST", shown(method))),
    }
    let body = match fields.remove("body") {
        Some(body @ Value::Object(_)) => body,
        None | Some(Value::Null) => return invalid("body is missing; expected an object".to_owned()),
        Some(body) => return invalid(format!("body is {}; expected an object", shown(&body))),
    };
    match fields.get("url") {
        Some(Value::String(url)) if url == "/v1/completions" => Ok(Job::Completion(body)),
        Some(Value::String(url)) if url == "/v1/chat/completions" => Ok(Job::Chat(body)),
        Some(url) if !url.is_null() => Err(LineError::new("invalid_url", format!("url is {}; {URLS}", shown(url)))),
        _ => Err(LineError::new("invalid_url", format!("url is missing; {URLS}"))),
    }
}

pub fn malformed(error: ApiError) -> LineError {
    LineError::new("invalid_json", error.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Job, LineError> {
        job(Line::Bytes(value.to_string().as_bytes()), &IdFields::default())
    }

    #[test]
    fn openai_lines() {
        let body = json!({"prompt": "x"});
        let line = |url: &str| json!({"custom_id": "a", "method": "POST", "url": url, "body": body});
        assert_eq!(parse(line("/v1/completions")).unwrap(), Job::Completion(body.clone()));
        assert_eq!(parse(line("/v1/chat/completions")).unwrap(), Job::Chat(body.clone()));
        assert_eq!(parse(json!({"url": "/v1/completions", "body": body})).unwrap(), Job::Completion(body.clone()));
        let wrong = parse(line("/v1/embeddings")).unwrap_err();
        assert_eq!(wrong.code, "invalid_url");
        assert!(wrong.message.contains("/v1/embeddings"), "{}", wrong.message);
        assert_eq!(parse(json!({"custom_id": "a", "body": {}})).unwrap_err().code, "invalid_url");
        for wrong in [
            json!({"url": "/v1/completions"}),
            json!({"url": "/v1/completions", "body": []}),
            json!({"url": "/v1/completions", "body": {}, "method": "GET"}),
        ] {
            assert_eq!(parse(wrong).unwrap_err().code, "invalid_line");
        }
    }

    #[test]
    fn plain_lines() {
        let plain = |written, body| Job::PlainPrompt { body, written };
        assert_eq!(
            parse(json!({"id": 1, "prompt": "x", "max_tokens": 3})).unwrap(),
            plain("prompt", json!({"prompt": "x", "max_tokens": 3}))
        );
        let messages = json!({"messages": [{"role": "user", "content": "x"}]});
        assert_eq!(parse(messages.clone()).unwrap(), Job::PlainChat(messages));
        assert_eq!(parse(json!({"prompt": "x", "messages": []})).unwrap_err().code, "invalid_line");
        assert_eq!(parse(json!({"stop": "x"})).unwrap_err().code, "invalid_line");
        assert_eq!(parse(json!({"text": "x", "n": 2})).unwrap(), plain("text", json!({"prompt": "x", "n": 2})));
        assert_eq!(parse(json!({"token_ids": [1, 2]})).unwrap(), plain("token_ids", json!({"prompt": [1, 2]})));
        assert_eq!(parse(json!({"prompt": null, "text": "x"})).unwrap(), plain("text", json!({"prompt": "x"})));
        let said = |value: Value| parse(value).unwrap_err().message;
        assert!(said(json!({"prompt": "x", "text": "y"})).starts_with("both prompt and text; give "));
        assert!(said(json!({"text": 5})).starts_with("text is 5; expected text"));
        assert!(said(json!({"token_ids": ["a"]})).starts_with("token_ids is \"a\"; expected token ids"));
        assert_eq!(said(json!({"id": 1, "message": []})), "no prompt, but message; did you mean messages?");
        let found = said(json!({"id": 1, "question": "x", "answer": "y"}));
        assert!(
            found.starts_with("no prompt, but the fields ")
                && found.ends_with("; expected prompt, text, token_ids or messages, or url and body"),
            "{found}"
        );
    }

    #[test]
    fn an_error_names_the_field_that_the_line_has() {
        let named = |form: Form, message: &str, param: &str| {
            let error = LineError { param: Some(param.to_owned()), ..LineError::new("invalid_request_error", message) };
            let LineError { message, param, .. } = form.name_field(error);
            (message, param.unwrap())
        };
        let of = |message: &str, param: &str| (message.to_owned(), param.to_owned());
        let ids = Form::Plain("token_ids");
        assert_eq!(named(ids, "prompt[2] is 9; expected", "prompt"), of("token_ids[2] is 9; expected", "token_ids"));
        assert_eq!(named(ids, "prompt is []; expected", "prompt"), of("token_ids is []; expected", "token_ids"));
        assert_eq!(named(ids, "the prompt has no room", "prompt"), of("the prompt has no room", "token_ids"));
        assert_eq!(named(ids, "n is 0; expected", "n"), of("n is 0; expected", "n"));
        let messages = Form::Plain(MESSAGES);
        assert_eq!(named(messages, "prompt[2] is 9; expected", "prompt"), of("prompt[2] is 9; expected", MESSAGES));
        for form in [Form::OpenAi, Form::Plain("prompt")] {
            assert_eq!(named(form, "prompt[2] is 9; expected", "prompt"), of("prompt[2] is 9; expected", "prompt"));
        }
    }

    #[test]
    fn what_is_no_json_is_said_with_its_column() {
        let job = |line: Line<'_>| super::job(line, &IdFields::default());
        let error = job(Line::Bytes(b"{\"prompt\": x}")).unwrap_err();
        assert_eq!((error.code.as_str(), error.message.contains("at column 12")), ("invalid_json", true), "{error:?}");
        assert_eq!(job(Line::Bytes(b"{\"prompt\":\"\xff\"}")).unwrap_err().code, "invalid_json");
        let said = |line: &str| {
            let error = job(Line::Bytes(line.as_bytes())).unwrap_err();
            (error.code, error.message, error.param)
        };
        let wrong_id = |field: &str, found: &str| {
            let message = format!("{field} is {found}; expected text or an integer");
            ("invalid_line".to_owned(), message, Some(field.to_owned()))
        };
        assert_eq!(said(r#"{"id":[1],"prompt":""}"#), wrong_id("id", "[1]"));
        assert_eq!(said(r#"{"id":1.5,"prompt":""}"#), wrong_id("id", "1.5"));
        assert_eq!(said(r#"{"custom_id":true,"id":1,"prompt":""}"#), wrong_id("custom_id", "true"));
        let twice = said(r#"{"id":1,"id":2,"prompt":""}"#);
        assert_eq!((twice.0.as_str(), twice.1.contains("there twice")), ("invalid_line", true), "{twice:?}");
        assert_eq!(said(r#"["a","b"]"#).1, "a JSON array; expected a JSON object");
        assert_eq!(said("def f():").1, "begins with \"def f():\"; expected a JSON object");
        assert_eq!(job(Line::TooLong).unwrap_err().code, "line_too_long");
    }
}
