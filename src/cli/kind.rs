//! Inputs that are no JSON lines at all, told by their first bytes: one message for the file, in place of one for each
//! of its lines.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use serde::de::IgnoredAny;

use super::error::CliError;
use super::lines::{BYTE_ORDER_MARK, MAX_LINE, without_mark};

/// What a file begins with, what it therefore is, and what to do.
const MAGIC: [(&[u8], &str); 17] = [
    (b"\x1f\x8b", "gzip; unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd; unpack it with unzstd"),
    (b"BZh", "bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "xz; unpack it with unxz"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or export its rows as JSON lines"),
    (b"PAR1", "Parquet; convert it, for example with pandas: to_json(\"in.jsonl\", orient=\"records\", lines=True)"),
    (b"ARROW1", "Arrow; convert it, for example with datasets: to_json(\"in.jsonl\")"),
    (b"GGUF", "GGUF, a model's weights; give a file of requests"),
    (b"\x80\x02", "a Python pickle; write its requests as JSON lines"),
    (b"\x80\x04", "a Python pickle; write its requests as JSON lines"),
    (b"SQLite format 3\0", "an SQLite database; export its rows as JSON lines"),
    (b"%PDF", "a PDF; give a file of requests"),
    (b"version https://git-lfs.github.com", "a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (b"<!DOCTYPE", "a web page; download the file itself"),
    (b"<!doctype", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
    (b"<?xml", "XML; convert it to JSON lines"),
];

const UTF_16: &str = "UTF-16, as Windows PowerShell writes it; save it as UTF-8 (PowerShell: Out-File -Encoding utf8)";
const UTF_32: &str = "UTF-32; save it as UTF-8";
const ARRAY: &str = "a JSON array; write one object a line, for example with: jq -c '.[]'";
const ARRAY_OF_TEXTS: &str =
    "a JSON array of texts; write one object a line, for example with: jq -c '.[] | {prompt: .}'";
const ARRAY_OF_IDS: &str =
    "a JSON array of numbers; write token ids as an object, for example with: jq -c '{prompt: .}'";
const PRETTY: &str = "JSON over several lines; write one object a line, for example with: jq -c .";

fn wrong(origin: &str, kind: &str) -> CliError {
    CliError::Usage(format!("expected JSON lines, one object a line; found {kind}")).at(origin)
}

/// Refuses what is read once, as stdin is, by its first bytes. How many these are is the writer's doing: nothing is
/// said that more of them could prove wrong.
pub fn check_head(origin: &str, head: &[u8]) -> Result<(), CliError> {
    if let Some(kind) = kind_of(head) {
        return Err(wrong(origin, kind));
    }
    if first_value_spans_lines(head) {
        return Err(wrong(origin, PRETTY));
    }
    Ok(())
}

/// Refuses a file with no object among the lines that it begins with.
pub fn check_objects(origin: &str, head: &[u8]) -> Result<(), CliError> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| without_mark(line).trim_ascii());
    let first = lines.clone().find(|line| !line.is_empty());
    match first {
        Some(first) if !lines.any(|line| line.starts_with(b"{")) => {
            Err(refuse_without_objects(Path::new(origin), &first[..first.len().min(1 << 10)]))
        }
        _ => Ok(()),
    }
}

/// Refuses a file whose first bytes are those of something else.
pub fn check_begin(path: &Path, file: &mut File) -> Result<(), CliError> {
    let error = |source| CliError::Read { origin: path.display().to_string(), source };
    let mut head = Vec::new();
    file.by_ref().take(4 << 10).read_to_end(&mut head).map_err(error)?;
    let origin = path.display().to_string();
    if let Some(kind) = kind_of(&head) {
        return Err(wrong(&origin, kind));
    }
    if head.trim_ascii_start().starts_with(b"{") || head.starts_with(BYTE_ORDER_MARK) {
        file.rewind().map_err(error)?;
        if first_value_spans_lines(&mut *file) {
            return Err(wrong(&origin, PRETTY));
        }
    }
    file.rewind().map_err(error)
}

/// Refuses a file none of whose lines begins as an object. `line` is its first that is not blank.
pub fn refuse_without_objects(path: &Path, line: &[u8]) -> CliError {
    let line = String::from_utf8_lossy(line);
    let line = line.trim();
    let wrong = |kind: &str| wrong(&path.display().to_string(), kind);
    // The line may be cut, so it is not parsed.
    if let Some(inside) = line.strip_prefix('[') {
        return wrong(match inside.trim_start().chars().next() {
            Some('"') => ARRAY_OF_TEXTS,
            Some('0'..='9') => ARRAY_OF_IDS,
            _ => ARRAY,
        });
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_table = ["csv", "tsv"].iter().any(|known| extension.eq_ignore_ascii_case(known));
    if is_table || is_header(line) {
        return wrong("a table (CSV); write each row as an object: {\"prompt\":\"…\"}");
    }
    wrong("plain text; write each prompt as an object: {\"prompt\":\"…\"}")
}

fn kind_of(head: &[u8]) -> Option<&'static str> {
    if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(*kind);
    }
    // A safetensors file: the length of its header in 8 bytes, and a JSON object.
    if let [.., 0, 0, 0, b'{'] = head.get(..9).unwrap_or_default() {
        return Some("safetensors, a model's weights; give a file of requests");
    }
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some(UTF_32),
        // With a byte order mark, or an ASCII character of two bytes.
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [1..=0x7f, 0, 1..=0x7f, 0, ..] | [0, 1..=0x7f, 0, 1..=0x7f, ..] => {
            return Some(UTF_16);
        }
        _ => {}
    }
    let text = head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(head).trim_ascii_start();
    match text {
        // An array of anything else may be a line that fails.
        [b'[', inside @ ..] if inside.trim_ascii_start().starts_with(b"{") => Some(ARRAY),
        [b'{' | b'[', ..] => None,
        text if text.contains(&0) => Some("binary data; give a file of requests"),
        _ => None,
    }
}

/// Whether the file's first value ends in a later line than it begins in.
fn first_value_spans_lines(input: impl Read) -> bool {
    // What is longer than a line may be would not be read either.
    let mut reader = BufReader::new(input.take(MAX_LINE as u64));
    let mut start = [0; BYTE_ORDER_MARK.len()];
    if reader.read_exact(&mut start).is_err() {
        return false;
    }
    let start: &[u8] = if start == BYTE_ORDER_MARK { &[] } else { &start };
    let mut counted = LineBreaks { reader: start.chain(reader), seen: 0, started: false };
    let mut values = serde_json::Deserializer::from_reader(&mut counted).into_iter::<IgnoredAny>();
    let is_whole = matches!(values.next(), Some(Ok(_)));
    is_whole && counted.seen > 0
}

/// Counts line breaks after the first byte that is not blank.
struct LineBreaks<R> {
    reader: R,
    seen: usize,
    started: bool,
}

impl<R: Read> Read for LineBreaks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        // The parser of a reader takes no byte beyond a value's last.
        let one = buffer.len().min(1);
        let count = self.reader.read(&mut buffer[..one])?;
        for byte in &buffer[..count] {
            self.started |= !byte.is_ascii_whitespace();
            self.seen += usize::from(self.started && *byte == b'\n');
        }
        Ok(count)
    }
}

/// Whether the line is names with commas or tabs between them.
fn is_header(line: &str) -> bool {
    let is_name = |field: &str| {
        let field = field.trim().trim_matches('"');
        !field.is_empty() && field.chars().all(|c| c.is_alphanumeric() || "_- ".contains(c))
    };
    let fields: Vec<&str> = line.split([',', '\t', ';']).collect();
    fields.len() > 1 && fields.into_iter().all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(content: &[u8]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.jsonl");
        std::fs::write(&path, content).unwrap();
        let mut file = File::open(&path).unwrap();
        match check_begin(&path, &mut file) {
            // The lines are read from the start.
            Ok(()) => assert_eq!(file.stream_position().unwrap(), 0),
            Err(error) => return Some(error.to_string()),
        }
        None
    }

    fn utf_16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(to_bytes).collect()
    }

    #[test]
    fn files_of_other_kinds_are_named() {
        let lines = "{\"prompt\":\"é\"}\n{\"prompt\":\"b\"}\n";
        let cases: [(&[u8], &str); 14] = [
            (b"\x1f\x8b\x08\0\0", "gzip; unpack it"),
            (b"GGUF\x03\0\0\0", "GGUF, a model's weights"),
            (b"PK\x03\x04....", "a zip archive or a spreadsheet"),
            (b"\x40\x01\0\0\0\0\0\0{\"__metadata__\":{}}", "safetensors"),
            (b"\x7fELF\x02\x01\x01\0\0\0", "binary data"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
            (b"<!DOCTYPE html>", "a web page"),
            (b"[{\"prompt\":\"a\"},{\"prompt\":\"b\"}]", "a JSON array"),
            (b"[\n  {\"prompt\":\"a\"},\n  {\"prompt\":\"b\"}\n]\n", "a JSON array"),
            (b"\xef\xbb\xbf[{\"prompt\":\"a\"}]", "a JSON array"),
            (b"{\n  \"prompt\": \"a\"\n}\n", "JSON over several lines"),
            (b"{\"messages\": [\n{\"role\":\"user\",\"content\":\"a\"}\n]}\n", "JSON over several lines"),
            (b"\xef\xbb\xbf\n{\r\n\"prompt\": \"a\"}", "JSON over several lines"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32"),
        ];
        for (content, expected) in cases {
            let message = found(content).unwrap_or_default();
            assert!(message.contains(&format!("one object a line; found {expected}")), "{message:?}, not {expected}");
            assert_eq!(message.lines().count(), 1);
        }
        for to_bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            for text in [format!("\u{feff}{lines}"), lines.to_owned()] {
                assert!(found(&utf_16(&text, to_bytes)).unwrap().contains("found UTF-16"));
            }
        }
    }

    #[test]
    fn files_of_lines_are_read_line_by_line() {
        for content in [
            "",
            "\n\n",
            "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n",
            "\u{feff}{\"prompt\":\"a\"}\n",
            "\n\n{\"prompt\":\"a\"}",
            "nonsense\n{\"prompt\":\"b\"}\n",
            "[1]\n{\"prompt\":\"b\"}\n",
            // A line that was cut off fails by itself.
            "{\"prompt\":\"a\n{\"prompt\":\"b\"}\n",
            "{\"prompt\":\"a\",\n{\"prompt\":\"b\"}\n",
            "{",
        ] {
            assert_eq!(found(content.as_bytes()), None, "{content}");
        }
    }

    #[test]
    fn a_pipe_is_told_by_its_first_bytes() {
        let of_pipe = |head: &[u8]| check_head("stdin", head).err().map(|error| error.to_string());
        assert_eq!(of_pipe(b"not json\n"), None, "an object may follow");
        let of_file = |head: &[u8]| check_objects("stdin", head).err().map(|error| error.to_string());
        let found = |head: &[u8]| of_pipe(head).or_else(|| of_file(head));
        for (head, expected) in [
            (&b"\x1f\x8b\x08\0\0"[..], "found gzip"),
            (b"{\n  \"prompt\": \"a\"\n}\n", "found JSON over several lines"),
            (b"[{\"prompt\":\"a\"}]", "found a JSON array"),
            (b"\xef\xbb\xbfdef f():\n    pass\n", "found plain text"),
            (b"prompt,id\nx,1\n", "found a table (CSV)"),
        ] {
            let message = found(head).unwrap_or_default();
            assert!(message.starts_with("stdin: ") && message.contains(expected), "{message:?}, not {expected}");
        }
        for head in [&b""[..], b"\n \n", b"{\"prompt\":\"a\"}\n", b"x\n{\"prompt\":\"a\"}\n", b"\xef\xbb\xbf\n{\"pro"] {
            assert_eq!(found(head), None);
        }
    }

    #[test]
    fn files_without_objects_are_tables_or_text() {
        let said = |name: &str, line: &str| refuse_without_objects(Path::new(name), line.as_bytes()).to_string();
        assert!(said("in.jsonl", "prompt,max_tokens").contains("a table (CSV)"));
        assert!(said("in.jsonl", "\"id\"\t\"prompt\"").contains("a table (CSV)"));
        assert!(said("in.csv", "def f(a, b):").contains("a table (CSV)"));
        assert!(said("in.txt", "def f(a, b):").contains("plain text"));
        assert!(said("in.jsonl", "[\"a\", \"b\"]").ends_with("jq -c '.[] | {prompt: .}'"));
        assert!(said("in.jsonl", "[1, 2]").ends_with("jq -c '{prompt: .}'"));
        assert!(
            said("in.jsonl", "[[1], [2]]")
                .ends_with("a JSON array; write one object a line, for example with: jq -c '.[]'")
        );
    }
}
