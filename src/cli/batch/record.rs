//! One line of the output: the form of OpenAI's batches.

use rigel::openai::ResponseBody;
use serde::Serialize;

use super::digest::{Digest, hex};
use super::job::LineError;

/// Which line of the input, and what it was.
#[derive(Debug, Clone)]
pub struct LineName {
    pub custom_id: String,
    pub number: u32,
    /// [`line_hash`](super::digest::line_hash).
    pub hash: u128,
}

/// A line of the output, or of the errors.
#[derive(Debug, Serialize)]
pub struct Record<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<&'a LineError>,
    /// Of plain lines: the first choice's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// Of failed lines: where the line is.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    /// Of failed lines: what the line was, so that a run over a corrected input can tell that nothing else was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    line_digest: Option<String>,
}

#[derive(Debug, Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: String,
    body: &'a ResponseBody,
}

impl<'a> Record<'a> {
    /// A line that was answered. `plain` lines have their text at hand.
    pub fn answered(custom_id: &'a str, body: &'a ResponseBody, plain: bool) -> Record<'a> {
        let text = if plain { body.text() } else { None };
        let response = Response { status_code: 200, request_id: format!("req_{}", key(custom_id)), body };
        Record {
            id: record_id(custom_id),
            custom_id,
            response: Some(response),
            error: None,
            text,
            line: None,
            line_digest: None,
        }
    }

    /// A line that was not.
    pub fn failed(name: &'a LineName, error: &'a LineError) -> Record<'a> {
        let LineName { custom_id, number, hash } = name;
        Record {
            id: record_id(custom_id),
            custom_id,
            response: None,
            error: Some(error),
            text: None,
            line: Some(*number),
            line_digest: Some(hex(*hash)),
        }
    }
}

fn record_id(custom_id: &str) -> String {
    format!("batch_req_{}", key(custom_id))
}

/// What names of a line's record, request and response are made of: the same each time that the line is done.
pub fn key(custom_id: &str) -> String {
    let mut digest = Digest::new();
    digest.update(custom_id.as_bytes());
    digest.hex()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_failed_line_has_a_null_response() {
        let error = LineError { code: "invalid_json".into(), message: "odd".into(), param: None };
        let name = LineName { custom_id: "a".into(), number: 7, hash: 255 };
        let record = serde_json::to_value(Record::failed(&name, &error)).unwrap();
        assert_eq!(
            record,
            json!({"id": format!("batch_req_{}", key("a")), "custom_id": "a", "response": null,
                   "error": {"code": "invalid_json", "message": "odd"}, "line": 7,
                   "line_digest": format!("{:032x}", 255)})
        );
    }
}
