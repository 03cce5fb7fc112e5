//! One line of the output: the form of OpenAI's batches.

use rigel::openai::ResponseBody;
use serde::Serialize;

use super::digest::Digest;
use super::job::LineError;

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
        Record { id: record_id(custom_id), custom_id, response: Some(response), error: None, text }
    }

    /// A line that was not.
    pub fn failed(custom_id: &'a str, error: &'a LineError) -> Record<'a> {
        Record { id: record_id(custom_id), custom_id, response: None, error: Some(error), text: None }
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
        let record = serde_json::to_value(Record::failed("a", &error)).unwrap();
        assert_eq!(
            record,
            json!({"id": format!("batch_req_{}", key("a")), "custom_id": "a", "response": null,
                   "error": {"code": "invalid_json", "message": "odd"}})
        );
    }
}
