//! Prompts as JSON lines, the one format of `generate`, `score` and `batch`: an object a line, with one of `prompt`,
//! `text` and `token_ids`. Its other fields are named here, and not read.

use std::fs::File;
use std::io::{BufRead, BufReader};

use rigel::engine::RequestError;
use rigel::openai::{option_fields, parse_object, shown, token_ids};
use rigel::text::TokenId;
use serde_json::{Map, Value};

use super::error::CliError;
use super::input::{STDIN, origin};
use super::kind;
use super::lines::{Line, Lines, MAX_LINE, filled, without_mark};
use super::missing_prompt::missing_prompt;

/// Fields that hold a prompt.
pub const FIELDS: [&str; 3] = ["prompt", "text", "token_ids"];

/// What a line may be, for messages.
const EXPECTED: &str = r#"expected {"prompt":"…"}, {"text":"…"} or {"token_ids":[…]}"#;

/// What one prompt was given as.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptInput {
    /// Text, to be tokenised.
    Text(String),
    /// Token ids, taken as they are.
    TokenIds(Vec<TokenId>),
}

/// Why an object has no prompt, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptError {
    /// The field that it is about.
    pub field: Option<&'static str>,
    /// What was found, and what was expected.
    pub message: String,
}

impl From<PromptError> for CliError {
    fn from(error: PromptError) -> CliError {
        CliError::Usage(error.message)
    }
}

/// The prompt of a line: `prompt` (text, or a list of token ids), `text`, or `token_ids`, and no two of them. A null is
/// no field.
pub fn prompt_of(object: &Map<String, Value>) -> Result<PromptInput, PromptError> {
    let Some((field, value)) = prompt_field(object)? else {
        // Whoever has such lines has another command for them.
        let hint = if ["messages", "body"].iter().any(|name| object.contains_key(*name)) {
            "; `rigel batch` reads lines with messages or a body"
        } else {
            ""
        };
        return Err(PromptError { field: None, message: missing_prompt(object, &FIELDS, EXPECTED) + hint });
    };
    let wrong = |found: &Value, expected: &str| PromptError {
        field: Some(field),
        message: format!("{field} is {}; expected {expected}", shown(found)),
    };
    match value {
        Value::String(text) if field != "token_ids" => Ok(PromptInput::Text(text.clone())),
        Value::Array(ids) if field != "text" => {
            let is_id = |id: &&Value| token_ids(std::slice::from_ref(*id)).is_some();
            match (token_ids(ids), ids.iter().find(|id| !is_id(id))) {
                (Some(ids), _) => Ok(PromptInput::TokenIds(ids)),
                (None, Some(text @ Value::String(_))) if field == "prompt" => {
                    let message = format!("prompt is a list with the text {}; give each text a line", shown(text));
                    Err(PromptError { field: Some(field), message })
                }
                (None, bad) => Err(wrong(bad.unwrap_or(value), "token ids, integers from 0 to 4294967295")),
            }
        }
        _ => Err(wrong(
            value,
            match field {
                "text" => "text",
                "token_ids" => "a list of token ids",
                _ => "text, or a list of token ids",
            },
        )),
    }
}

/// Makes the field `prompt` of a `text` or of `token_ids`, for readers that know no other. A `prompt` stays as it is:
/// they may take more forms of it. The field that the prompt was in; `None` if there is no prompt.
pub fn rename_to_prompt(object: &mut Map<String, Value>) -> Result<Option<&'static str>, PromptError> {
    let Some((field, _)) = prompt_field(object)? else { return Ok(None) };
    if field != "prompt" {
        if matches!(prompt_of(object)?, PromptInput::TokenIds(ids) if ids.is_empty()) {
            return Err(PromptError { field: Some(field), message: RequestError::EmptyPrompt.to_string() });
        }
        if let Some(value) = object.remove(field) {
            object.insert("prompt".to_owned(), value);
        }
    }
    Ok(Some(field))
}

/// The one field that holds the prompt, if there is any.
fn prompt_field(object: &Map<String, Value>) -> Result<Option<(&'static str, &Value)>, PromptError> {
    let mut given =
        FIELDS.iter().filter_map(|name| object.get(*name).filter(|value| !value.is_null()).map(|value| (*name, value)));
    let first = given.next();
    match (first, given.next()) {
        (Some((first, _)), Some((second, _))) => Err(PromptError {
            field: Some(second),
            message: format!("both {first} and {second}; give the prompt in one of them"),
        }),
        _ => Ok(first),
    }
}

/// A prompt, and where it was read.
#[derive(Debug)]
pub struct Prompt {
    /// The place for messages: `prompts.jsonl:3`.
    pub place: String,
    /// The line, counted from 1.
    pub line: u32,
    /// The bytes of the file up to here, this line included.
    pub bytes: u64,
    /// The prompt, or why the line has none, without the place.
    pub input: Result<PromptInput, CliError>,
    /// Fields of the line that would change an answer of `batch`, and are not read here.
    pub unread: Vec<&'static str>,
}

/// The prompts of a file, each line read when it is asked for. Blank lines are skipped.
pub struct Prompts {
    origin: String,
    lines: Lines<Box<dyn BufRead>>,
    /// Bytes of the file, where it is one.
    size: Option<u64>,
}

impl Prompts {
    /// Opens a file, or stdin where `path` is `-`, and refuses what is no JSON lines at all.
    pub fn open(path: &str) -> Result<Prompts, CliError> {
        let error = |source| CliError::Read { origin: origin(path), source };
        let (reader, size): (Box<dyn BufRead>, _) = if path == STDIN {
            (Box::new(BufReader::new(std::io::stdin())), None)
        } else {
            let file = File::open(path).map_err(error)?;
            let size = file.metadata().ok().filter(|metadata| metadata.is_file()).map(|metadata| metadata.len());
            (Box::new(BufReader::with_capacity(1 << 16, file)), size)
        };
        Prompts::new(origin(path), reader, size)
    }

    fn new(origin: String, mut reader: Box<dyn BufRead>, size: Option<u64>) -> Result<Prompts, CliError> {
        let head = filled(&mut reader).map_err(|source| CliError::Read { origin: origin.clone(), source })?;
        kind::check_head(&origin, head)?;
        if size.is_some() {
            kind::check_objects(&origin, head)?;
        }
        Ok(Prompts { origin, lines: Lines::new(reader), size })
    }

    /// The file's name for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Bytes of the file; none where that is not known, as of stdin.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    fn next_prompt(&mut self) -> Result<Option<Prompt>, CliError> {
        let error = |source| CliError::Read { origin: self.origin.clone(), source };
        let Some((line, content)) = self.lines.next().map_err(error)? else { return Ok(None) };
        let (input, unread) = match content {
            Line::TooLong => {
                let message = format!("the line is longer than {} MiB; shorten the prompt", MAX_LINE >> 20);
                (Err(CliError::Usage(message)), Vec::new())
            }
            Line::Bytes(bytes) => parse(bytes),
        };
        Ok(Some(Prompt { place: format!("{}:{line}", self.origin), line, bytes: self.lines.bytes(), input, unread }))
    }
}

impl Iterator for Prompts {
    /// An error of the file ends it; that of a line is [`Prompt::input`].
    type Item = Result<Prompt, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_prompt().transpose()
    }
}

/// The prompt of a line, and [`Prompt::unread`].
fn parse(line: &[u8]) -> (Result<PromptInput, CliError>, Vec<&'static str>) {
    let wrong = |message: String| CliError::Usage(message.replace("expected a JSON object", EXPECTED));
    let object = match parse_object(without_mark(line)) {
        Ok(object) => object,
        Err(error) => return (Err(wrong(error.message)), Vec::new()),
    };
    let is_given = |name: &&&str| object.get(**name).is_some_and(|value| !value.is_null());
    let unread = option_fields().iter().filter(is_given).copied().collect();
    (prompt_of(&object).map_err(CliError::from), unread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prompts(text: &[u8]) -> Vec<(u32, Result<PromptInput, String>)> {
        let reader = Box::new(std::io::Cursor::new(text.to_vec()));
        let prompts = Prompts::new("f".into(), reader, None).unwrap();
        let read = |prompt: Result<Prompt, CliError>| {
            let Prompt { place, line, input, .. } = prompt.unwrap();
            assert_eq!(place, format!("f:{line}"));
            (line, input.map_err(|error| error.to_string()))
        };
        prompts.map(read).collect()
    }

    fn of(object: Value) -> Result<PromptInput, PromptError> {
        prompt_of(object.as_object().unwrap())
    }

    fn ids(ids: &[u32]) -> PromptInput {
        PromptInput::TokenIds(ids.iter().copied().map(TokenId).collect())
    }

    #[test]
    fn a_prompt_has_three_names() {
        let text = PromptInput::Text("a\nb".into());
        assert_eq!(of(json!({"prompt": "a\nb"})).unwrap(), text);
        assert_eq!(of(json!({"text": "a\nb", "prompt": null, "id": 7, "max_tokens": 3})).unwrap(), text);
        assert_eq!(of(json!({"prompt": [1, 2.0]})).unwrap(), ids(&[1, 2]));
        assert_eq!(of(json!({"token_ids": [4294967295u32]})).unwrap(), ids(&[u32::MAX]));
        assert_eq!(of(json!({"token_ids": []})).unwrap(), ids(&[]));
    }

    #[test]
    fn what_is_no_prompt_is_named() {
        let said = |object: Value| {
            let error = of(object).unwrap_err();
            (error.field, error.message)
        };
        for (object, field, message) in [
            (json!({}), None, "no prompt; expected {\"prompt\":\"…\"}, {\"text\":\"…\"} or {\"token_ids\":[…]}"),
            (json!({"text": "a", "prompt": "b"}), Some("text"), "both prompt and text; give the prompt in one of them"),
            (
                json!({"text": "a", "token_ids": [1]}),
                Some("token_ids"),
                "both text and token_ids; give the prompt in one of them",
            ),
            (json!({"text": 7}), Some("text"), "text is 7; expected text"),
            (json!({"text": [1]}), Some("text"), "text is [1]; expected text"),
            (json!({"prompt": 7}), Some("prompt"), "prompt is 7; expected text, or a list of token ids"),
            (json!({"prompt": ["a"]}), Some("prompt"), "prompt is a list with the text \"a\"; give each text a line"),
            (json!({"token_ids": "x"}), Some("token_ids"), "token_ids is \"x\"; expected a list of token ids"),
            (
                json!({"token_ids": [1, -2]}),
                Some("token_ids"),
                "token_ids is -2; expected token ids, integers from 0 to 4294967295",
            ),
            (
                json!({"prompt": [1.5]}),
                Some("prompt"),
                "prompt is 1.5; expected token ids, integers from 0 to 4294967295",
            ),
            (
                json!({"token_ids": [4294967296u64]}),
                Some("token_ids"),
                "token_ids is 4294967296; expected token ids, integers from 0 to 4294967295",
            ),
        ] {
            assert_eq!(said(object), (field, message.to_owned()));
        }
    }

    #[test]
    fn other_names_become_prompt() {
        let renamed =
            |mut object: Value| rename_to_prompt(object.as_object_mut().unwrap()).map(|found| (found, object));
        assert_eq!(renamed(json!({"text": "a", "id": 1})).unwrap(), (Some("text"), json!({"prompt": "a", "id": 1})));
        assert_eq!(renamed(json!({"token_ids": [1]})).unwrap(), (Some("token_ids"), json!({"prompt": [1]})));
        // More forms than here are for a body's reader.
        assert_eq!(renamed(json!({"prompt": ["a", "b"]})).unwrap(), (Some("prompt"), json!({"prompt": ["a", "b"]})));
        assert_eq!(renamed(json!({"messages": []})).unwrap(), (None, json!({"messages": []})));
        assert_eq!(renamed(json!({"text": 7})).unwrap_err().field, Some("text"));
        let empty = renamed(json!({"token_ids": []})).unwrap_err();
        assert!(empty.field == Some("token_ids") && empty.message.starts_with("the prompt is empty"), "{empty:?}");
        assert!(renamed(json!({"text": "a", "prompt": "b"})).is_err());
    }

    #[test]
    fn a_line_without_a_prompt_says_which_command_reads_it() {
        let said = |object: Value| of(object).unwrap_err().message;
        assert!(said(json!({"messages": []})).ends_with("; `rigel batch` reads lines with messages or a body"));
        assert!(!said(json!({"input": "x"})).contains("rigel batch"));
    }

    #[test]
    fn fields_that_are_not_read_are_named() {
        let unread = |line: &str| parse(line.as_bytes()).1;
        assert_eq!(unread(r#"{"prompt":"a","seed":1,"max_tokens":3,"id":7,"note":"x"}"#), ["max_tokens", "seed"]);
        assert_eq!(unread(r#"{"prompt":"a","seed":null}"#), [""; 0]);
        assert_eq!(unread(r#"{"seed":1"#), [""; 0]);
    }

    #[test]
    fn lines_are_read_one_by_one() {
        let read = prompts(
            b"\xef\xbb\xbf{\"token_ids\":[1,2]}\n\n{\"text\":\"a\",\"id\":7}\r\nx\n{\"text\":\"\xff\"}\n{\"prompt\":\"b\"",
        );
        assert_eq!(read[0], (1, Ok(ids(&[1, 2]))));
        assert_eq!(read[1], (3, Ok(PromptInput::Text("a".into()))));
        let message = |index: usize| read[index].1.as_ref().unwrap_err().as_str();
        assert!(message(2).starts_with("begins with \"x\"; expected {\"prompt\""), "{}", message(2));
        assert!(message(3).starts_with("not UTF-8 at column 10"), "{}", message(3));
        assert!(message(4).starts_with("not valid JSON: it ends early"), "{}", message(4));
        assert_eq!(read.len(), 5);
    }

    #[test]
    fn bytes_count_what_was_read() {
        let text = b"{\"text\":\"a\"}\n\n{\"text\":\"b\"}";
        let prompts = Prompts::new("f".into(), Box::new(std::io::Cursor::new(text.to_vec())), None).unwrap();
        let bytes: Vec<u64> = prompts.map(|prompt| prompt.unwrap().bytes).collect();
        assert_eq!(bytes, [13, text.len() as u64]);
    }
}
