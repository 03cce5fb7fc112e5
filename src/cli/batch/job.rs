//! One line of the input: its id, and what it asks for.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use rigel::openai::{ApiError, check_begin, integer, parse_object, shown, syntax_error};

use super::lines::{Line, MAX_LINE, without_mark};

/// What a line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// An OpenAI line with the url `/v1/completions`.
    Completion(Value),
    /// An OpenAI line with the url `/v1/chat/completions`.
    Chat(Value),
    /// A plain line with a prompt.
    PlainPrompt(Value),
    /// A plain line with messages.
    PlainChat(Value),
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
    fn new(code: &str, message: impl Into<String>) -> LineError {
        LineError { code: code.to_owned(), message: message.into(), param: None }
    }
}

impl From<ApiError> for LineError {
    fn from(error: ApiError) -> LineError {
        let code = error.kind.code().unwrap_or(error.kind.as_str()).to_owned();
        LineError { code, message: error.message, param: error.param }
    }
}

/// The fields that name a line; everything else is passed over.
#[derive(Deserialize)]
struct Head {
    custom_id: Option<Value>,
    id: Option<Value>,
}

/// The id of a line: `custom_id`, else `id`, else `line-7`. A line that cannot be read has the last of these.
pub fn custom_id(number: u32, line: Line<'_>) -> String {
    read_id(line).ok().flatten().unwrap_or_else(|| format!("line-{number}"))
}

fn read_id(line: Line<'_>) -> Result<Option<String>, LineError> {
    let Line::Bytes(bytes) = line else {
        return Err(LineError::new("line_too_long", format!("the line is longer than {MAX_LINE} bytes; shorten it")));
    };
    let bytes = without_mark(bytes);
    check_begin(bytes).map_err(malformed)?;
    let head: Head = serde_json::from_slice(bytes).map_err(|error| {
        if error.is_data() {
            return LineError::new("invalid_line", "custom_id or id is there twice; give the line one id");
        }
        malformed(syntax_error(bytes, &error))
    })?;
    let custom_id = head.custom_id.map(|value| id("custom_id", &value)).transpose()?;
    custom_id.map_or_else(|| head.id.map(|value| id("id", &value)).transpose(), |id| Ok(Some(id)))
}

/// Text, or an integer however it is written.
fn id(field: &str, value: &Value) -> Result<String, LineError> {
    let text = match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) => integer(value).map(|number| number.to_string()),
        _ => None,
    };
    text.ok_or_else(|| LineError {
        param: Some(field.to_owned()),
        ..LineError::new("invalid_line", format!("{field} is {}; expected text or an integer", shown(value)))
    })
}

/// Whether a line begins as a JSON object does.
pub fn is_object(line: Line<'_>) -> bool {
    matches!(line, Line::Bytes(bytes) if without_mark(bytes).trim_ascii_start().starts_with(b"{"))
}

/// What a line asks for.
pub fn job(line: Line<'_>) -> Result<Job, LineError> {
    read_id(line)?;
    // Read whole above, so there are bytes.
    let Line::Bytes(bytes) = line else { return Err(LineError::new("line_too_long", "the line is too long")) };
    let mut fields = parse_object(without_mark(bytes)).map_err(malformed)?;
    let given = |fields: &Map<String, Value>, name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    if ["url", "body", "method"].iter().any(|name| given(&fields, name)) {
        return openai(&mut fields);
    }
    fields.remove("custom_id");
    fields.remove("id");
    match (given(&fields, "prompt"), given(&fields, "messages")) {
        (true, false) => Ok(Job::PlainPrompt(Value::Object(fields))),
        (false, true) => Ok(Job::PlainChat(Value::Object(fields))),
        (true, true) => Err(LineError::new("invalid_line", "both prompt and messages; give one of them")),
        (false, false) => Err(LineError::new(
            "invalid_line",
            "neither url and body nor prompt nor messages; expected {\"custom_id\":…,\"url\":…,\"body\":{…}} or \
             {\"prompt\":…}",
        )),
    }
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

fn malformed(error: ApiError) -> LineError {
    LineError::new("invalid_json", error.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(line: &str) -> String {
        custom_id(7, Line::Bytes(line.as_bytes()))
    }

    fn parse(value: Value) -> Result<Job, LineError> {
        job(Line::Bytes(value.to_string().as_bytes()))
    }

    #[test]
    fn every_line_has_an_id() {
        assert_eq!(id(r#"{"custom_id":"a","id":"b","prompt":"x"}"#), "a");
        assert_eq!(id(r#"{"id":"b","prompt":"x"}"#), "b");
        assert_eq!(id(r#"{"id":12,"prompt":"x"}"#), "12");
        assert_eq!(id(r#"{"id":-3,"prompt":"x"}"#), "-3");
        assert_eq!(id(r#"{"id":12.0,"prompt":"x"}"#), "12");
        assert_eq!(id(r#"{"custom_id":null,"prompt":"x"}"#), "line-7");
        for wrong in
            ["", "nonsense", "[1]", r#"{"id":[1]}"#, r#"{"id":1.5}"#, r#"{"id":"a","id":"b"}"#, "{\"id\":\"a\""]
        {
            assert_eq!(id(wrong), "line-7", "{wrong}");
        }
        assert_eq!(custom_id(9, Line::TooLong), "line-9");
        assert_eq!(id("\u{feff}{\"id\":\"b\"}"), "b");
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
        assert_eq!(
            parse(json!({"id": 1, "prompt": "x", "max_tokens": 3})).unwrap(),
            Job::PlainPrompt(json!({"prompt": "x", "max_tokens": 3}))
        );
        let messages = json!({"messages": [{"role": "user", "content": "x"}]});
        assert_eq!(parse(messages.clone()).unwrap(), Job::PlainChat(messages));
        assert_eq!(parse(json!({"prompt": "x", "messages": []})).unwrap_err().code, "invalid_line");
        assert_eq!(parse(json!({"text": "x"})).unwrap_err().code, "invalid_line");
    }

    #[test]
    fn what_is_no_json_is_said_with_its_column() {
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
