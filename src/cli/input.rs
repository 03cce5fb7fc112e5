//! What a command reads: stdin or a file, byte for byte, and JSON lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use rigel::openai::{self, shown, token_ids};
use rigel::text::TokenId;
use serde_json::Value;

use super::error::CliError;

/// The name that stands for stdin.
pub const STDIN: &str = "-";

/// What some editors put at a file's start.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The name under which messages speak of a file argument.
fn origin(path: &str) -> String {
    if path == STDIN { "stdin".to_owned() } else { path.to_owned() }
}

fn open(path: &str) -> Result<Box<dyn BufRead>, CliError> {
    if path == STDIN {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let file = File::open(path).map_err(|source| CliError::Read { origin: origin(path), source })?;
    Ok(Box::new(BufReader::new(file)))
}

/// All of a file, or of stdin where `path` is `-`, byte for byte.
pub fn read_text(path: &str) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|source| CliError::Read { origin: origin(path), source })?;
    utf8(bytes, &origin(path))
}

/// An argument as it is, or stdin where it is `-`.
pub fn text_or_stdin(argument: String) -> Result<String, CliError> {
    if argument == STDIN { read_text(STDIN) } else { Ok(argument) }
}

fn utf8(bytes: Vec<u8>, origin: &str) -> Result<String, CliError> {
    String::from_utf8(bytes)
        .map_err(|error| CliError::NotUtf8 { origin: origin.to_owned(), offset: error.utf8_error().valid_up_to() })
}

/// What one prompt was given as.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptInput {
    /// Text, to be tokenised.
    Text(String),
    /// Token ids, taken as they are.
    TokenIds(Vec<TokenId>),
}

/// A prompt, and the place it was read from (`prompts.jsonl:3`).
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    pub place: String,
    pub input: PromptInput,
}

/// Prompts from a file of JSON lines, one object a line: `{"token_ids":[…]}` or `{"text":"…"}`. Other keys are
/// ignored, blank lines are skipped, and a line is read when it is asked for.
pub struct JsonLines {
    origin: String,
    reader: Box<dyn BufRead>,
    line: usize,
    /// A line that was read ahead.
    pending: Option<Vec<u8>>,
}

impl JsonLines {
    /// Opens a file, or stdin where `path` is `-`.
    pub fn open(path: &str) -> Result<JsonLines, CliError> {
        Ok(JsonLines { origin: origin(path), reader: open(path)?, line: 0, pending: None })
    }

    /// The next line, its line break included; none at the end.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, CliError> {
        let line = match self.pending.take() {
            Some(line) => line,
            None => {
                let mut line = Vec::new();
                self.reader
                    .read_until(b'\n', &mut line)
                    .map_err(|source| CliError::Read { origin: self.origin.clone(), source })?;
                line
            }
        };
        self.line += 1;
        Ok(if line.is_empty() { None } else { Some(line) })
    }

    fn next_prompt(&mut self) -> Result<Option<Prompt>, CliError> {
        while let Some(line) = self.next_line()? {
            let place = format!("{}:{}", self.origin, self.line);
            let line = utf8(line, &place)?;
            if !line.trim_start_matches(BYTE_ORDER_MARK).trim().is_empty() {
                let input = parse_object(&line).map_err(|error| error.at(&place))?;
                return Ok(Some(Prompt { place, input }));
            }
        }
        Ok(None)
    }
}

impl Iterator for JsonLines {
    type Item = Result<Prompt, CliError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_prompt().transpose()
    }
}

fn parse_object(line: &str) -> Result<PromptInput, CliError> {
    const EXPECTED: &str = r#"expected {"token_ids":[…]} or {"text":"…"}"#;
    let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_end();
    let object = openai::parse_object(line.as_bytes());
    let mut object = object.map_err(|error| CliError::Usage(format!("{error}; {EXPECTED}")))?;
    let mut field = |name: &str| object.remove(name).filter(|value| !value.is_null());
    let wrong = |name: &str, value: &Value, expected: &str| {
        CliError::Usage(format!("{name} is {}; expected {expected}", shown(value)))
    };
    match (field("token_ids"), field("text")) {
        (Some(Value::Array(ids)), None) => {
            let ids = token_ids(&ids).ok_or_else(|| {
                let bad = ids.iter().find(|id| token_ids(std::slice::from_ref(*id)).is_none());
                wrong("token_ids", bad.unwrap_or(&Value::Null), "integers from 0 to 4294967295")
            })?;
            Ok(PromptInput::TokenIds(ids))
        }
        (Some(value), None) => Err(wrong("token_ids", &value, "a list of token ids")),
        (None, Some(Value::String(text))) => Ok(PromptInput::Text(text)),
        (None, Some(value)) => Err(wrong("text", &value, "a string")),
        (None, None) => Err(CliError::Usage(format!("neither `token_ids` nor `text`; {EXPECTED}"))),
        (Some(_), Some(_)) => Err(CliError::Usage(format!("both `token_ids` and `text`; {EXPECTED}"))),
    }
}

/// Prompts from `score --text`: a file whose first line is an object of [`JsonLines`] is JSON lines, any other is one
/// prompt, whole.
pub fn text_prompts(path: &str) -> Result<Box<dyn Iterator<Item = Result<Prompt, CliError>>>, CliError> {
    let mut lines = JsonLines::open(path)?;
    let first = lines.next_line()?.unwrap_or_default();
    if std::str::from_utf8(&first).is_ok_and(|line| parse_object(line).is_ok()) {
        lines.line = 0;
        lines.pending = Some(first);
        return Ok(Box::new(lines));
    }
    let JsonLines { origin, mut reader, .. } = lines;
    let mut bytes = first;
    reader.read_to_end(&mut bytes).map_err(|source| CliError::Read { origin: origin.clone(), source })?;
    let input = PromptInput::Text(utf8(bytes, &origin)?);
    Ok(Box::new(std::iter::once(Ok(Prompt { place: origin, input }))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> JsonLines {
        JsonLines { origin: "f".into(), reader: Box::new(std::io::Cursor::new(text.to_vec())), line: 0, pending: None }
    }

    fn error(text: &[u8]) -> String {
        lines(text).find_map(Result::err).unwrap().to_string()
    }

    #[test]
    fn reads_objects_line_by_line() {
        let prompts: Vec<Prompt> =
            lines(b"\xef\xbb\xbf{\"token_ids\":[1,2.0]}\n\n{\"text\":\"a\\nb\",\"id\":7}\r\n{\"token_ids\":[]}")
                .map(Result::unwrap)
                .collect();
        let of = |line: usize, input| Prompt { place: format!("f:{line}"), input };
        assert_eq!(
            prompts,
            [
                of(1, PromptInput::TokenIds(vec![TokenId(1), TokenId(2)])),
                of(3, PromptInput::Text("a\nb".into())),
                of(4, PromptInput::TokenIds(vec![])),
            ]
        );
    }

    #[test]
    fn says_which_line_is_wrong() {
        let after_good = |bad: &str| error(format!("{{\"token_ids\":[1]}}\n{bad}\n").as_bytes());
        assert!(after_good("{\"token_ids\":[1,-2]}").starts_with("f:2: token_ids is -2; expected integers from 0"));
        assert!(after_good("{\"token_ids\":[1.5]}").starts_with("f:2: token_ids is 1.5; expected integers"));
        assert!(after_good("{\"token_ids\":[4294967296]}").starts_with("f:2: token_ids is 4294967296; "));
        assert!(after_good("{\"token_ids\":\"x\"}").starts_with("f:2: token_ids is \"x\"; expected a list"));
        assert!(after_good("{\"text\":7}").starts_with("f:2: text is 7; expected a string"));
        assert!(after_good("{\"token_ids\":[1]").starts_with("f:2: not valid JSON: it ends early"));
        assert!(after_good("{\"token_ids\":[1 2]}").contains("at column"));
        assert!(after_good("{}").starts_with("f:2: neither `token_ids` nor `text`; expected"));
        assert!(after_good("{\"token_ids\":[1],\"text\":\"a\"}").starts_with("f:2: both"));
        assert!(after_good("[1]").starts_with("f:2: a JSON array; "));
        assert!(error(b"{\"text\":\"\xff\"}").starts_with("f:1: byte 9 is not valid UTF-8"));
    }

    #[test]
    fn a_bad_line_leaves_those_before() {
        let mut lines = lines(b"{\"token_ids\":[1]}\nx\n");
        assert!(lines.next().unwrap().is_ok());
        assert!(lines.next().unwrap().is_err());
    }

    #[test]
    fn text_files_are_json_lines_or_one_prompt() {
        let dir = tempfile::tempdir().unwrap();
        let prompts = |content: &[u8]| {
            let path = dir.path().join("f");
            std::fs::write(&path, content).unwrap();
            let prompts: Result<Vec<Prompt>, CliError> = text_prompts(path.to_str().unwrap()).unwrap().collect();
            prompts.map(|prompts| prompts.into_iter().map(|prompt| prompt.input).collect::<Vec<_>>())
        };
        let text = |text: &str| PromptInput::Text(text.into());
        assert_eq!(prompts(b"def f():\n  pass\n").unwrap(), [text("def f():\n  pass\n")]);
        assert_eq!(prompts(b"{\n\"text\":1}").unwrap(), [text("{\n\"text\":1}")]);
        assert_eq!(prompts(b"").unwrap(), [text("")]);
        assert_eq!(prompts(b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n").unwrap(), [text("a"), text("b")]);
        assert!(prompts(b"{\"text\":\"a\"}\nx\n").is_err());
        assert!(text_prompts(dir.path().join("absent").to_str().unwrap()).is_err());
    }
}
