//! The one reader of a model's JSON files, as tolerant as Python's `json` module, which wrote most of them; and an
//! object read field by field, each failure naming file, field, what was found and what was expected.
//!
//! Knows nothing of models. serde's derived readers are not used for these files because their errors name neither
//! the field nor the value.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::{Map, Value};

use super::error::{CheckpointError, DOWNLOAD_AGAIN, shown, shown_value};

/// The largest JSON configuration file that is read, in bytes. The published ones are a few kilobytes.
pub(super) const MAX_JSON_BYTES: u64 = 16 << 20;

/// Fails where `bytes` is a git-lfs pointer: the text file that stands for a large file in a clone made without lfs.
pub(super) fn refuse_lfs_pointer(bytes: &[u8], file: &str, expected: &str) -> Result<(), CheckpointError> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(CheckpointError::File {
            file: file.to_owned(),
            found: "a git-lfs pointer".to_owned(),
            expected: expected.to_owned(),
            advice: "run `git lfs pull` in the clone",
        });
    }
    Ok(())
}

/// Checks that `bytes` may be text of JSON at all, and returns it without its byte order mark.
fn json_text<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str, CheckpointError> {
    refuse_lfs_pointer(bytes, file, "JSON")?;
    let mut advice = DOWNLOAD_AGAIN;
    let found = if bytes.len() as u64 > MAX_JSON_BYTES {
        format!("{} bytes", bytes.len())
    } else if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        advice = "save it as UTF-8";
        "UTF-16 text".to_owned()
    } else {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                let text = text.strip_prefix('\u{feff}').unwrap_or(text);
                if !text.trim_ascii().is_empty() {
                    return Ok(text);
                }
                "an empty file".to_owned()
            }
            Err(error) => format!("bytes that are not UTF-8 at offset {}", error.valid_up_to()),
        }
    };
    let expected = format!("JSON of at most {MAX_JSON_BYTES} bytes");
    Err(CheckpointError::File { file: file.to_owned(), found, expected, advice })
}

/// The value in `bytes`, the content of `file` (a path for messages), read as Python's `json` module reads it: `NaN`,
/// `Infinity`, `-Infinity` and numbers beyond f64 (`1e999`) are values, the last of equal keys counts, half a surrogate
/// pair is a character (U+FFFD here). A byte order mark is skipped.
///
/// A number that is not finite fails every type check, and messages show the number as written. Other numbers are the
/// f64 nearest to their text, or integers; [`integer`] reads an integer however it is written.
///
/// # Errors
/// Malformed JSON, more than 16 MiB, or nesting deeper than 127 levels.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Value, CheckpointError> {
    let text = json_text(bytes, file)?;
    let standard = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // Only a file that is no standard JSON is looked through for what Python knows beyond it.
    let rewritten = Rewritten::new(text);
    let error = match rewritten.edits.is_empty() {
        true => standard,
        false => match serde_json::from_str(&rewritten.text) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        },
    };
    let column = rewritten.original_column(error.line(), error.column());
    Err(CheckpointError::File {
        file: file.to_owned(),
        found: malformed(text, &error, column),
        expected: "JSON".to_owned(),
        advice: "correct it or download the file again",
    })
}

/// What is wrong with `text`, without the parser's own words.
pub(super) fn malformed(text: &str, error: &serde_json::Error, column: usize) -> String {
    let line = error.line();
    let place = format!("line {line}, column {column}");
    if error.is_eof() {
        return format!("JSON that ends too early (at {place})");
    }
    if error.to_string().starts_with("recursion limit") {
        return format!("JSON that is nested deeper than 127 levels (at {place})");
    }
    // The column counts bytes and may lie inside a character.
    let near = text.split('\n').nth(line.saturating_sub(1)).unwrap_or_default();
    let start = (0..=column.saturating_sub(1).min(near.len())).rev().find(|&start| near.is_char_boundary(start));
    let near: String = near[start.unwrap_or_default()..].trim_end().chars().take(24).collect();
    format!("malformed JSON at {place} (near `{}`)", shown(&near))
}

/// What stands for a number that is not finite, which serde's values do not have: a list in a list, which no field of
/// these files may be, so that each type check refuses it.
const NON_FINITE: [(&str, &str); 3] =
    [("NaN", r#"[["NaN"]]"#), ("Infinity", r#"[["Infinity"]]"#), ("-Infinity", r#"[["-Infinity"]]"#)];

/// `json`, a value's text, with the numbers that are not finite as they were written.
pub(super) fn with_non_finite(mut json: String) -> String {
    for (name, stand_in) in NON_FINITE {
        if json.contains(stand_in) {
            json = json.replace(stand_in, name);
        }
    }
    json
}

/// A text in which what Python's `json` accepts beyond the standard was replaced.
struct Rewritten<'a> {
    text: Cow<'a, str>,
    edits: Vec<Edit>,
}

/// A replacement: where in the rewritten text it ends (line from 1, column), and by how many bytes it and those before
/// it have moved the rest of the line.
struct Edit {
    line: usize,
    end: usize,
    shift: isize,
}

impl<'a> Rewritten<'a> {
    fn new(original: &'a str) -> Rewritten<'a> {
        let bytes = original.as_bytes();
        let (mut text, mut copied, mut edits) = (String::new(), 0, Vec::<Edit>::new());
        let (mut line, mut line_start) = (1, 0);
        let mut replace = |range: Range<usize>, with: &str, line: usize, line_start: usize| {
            text.push_str(&original[copied..range.start]);
            text.push_str(with);
            copied = range.end;
            // What comes before on this line is the last edit, if it is on this line.
            let before = edits.last().filter(|edit| edit.line == line).map_or(0, |edit| edit.shift);
            let shift = before + with.len() as isize - range.len() as isize;
            let end = (range.end - line_start).saturating_add_signed(shift);
            edits.push(Edit { line, end, shift });
        };
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'"' => at = string_end(bytes, at, |lone| replace(lone, "\\ufffd", line, line_start)),
                b'\n' => {
                    at += 1;
                    (line, line_start) = (line + 1, at);
                }
                _ if is_word(byte) => {
                    let length = bytes[at..].iter().take_while(|byte| is_word(**byte)).count();
                    let word = &original[at..at + length];
                    if let Some(stand_in) = non_finite(word) {
                        replace(at..at + length, stand_in, line, line_start);
                    }
                    at += length;
                }
                _ => at += 1,
            }
        }
        let text = match edits.is_empty() {
            true => Cow::Borrowed(original),
            false => {
                text.push_str(&original[copied..]);
                Cow::Owned(text)
            }
        };
        Rewritten { text, edits }
    }

    /// The column in the original text of a place in the rewritten one.
    fn original_column(&self, line: usize, column: usize) -> usize {
        column.saturating_add_signed(-shift_of(&self.edits, line, column))
    }
}

/// Bytes by which the replacements up to `column` of `line` have moved what follows them.
fn shift_of(edits: &[Edit], line: usize, column: usize) -> isize {
    let last = edits.iter().rev().find(|edit| edit.line == line && edit.end <= column);
    last.map_or(0, |edit| edit.shift)
}

/// Whether `byte` is part of a number or a bare word.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}

/// What stands for `word`, if it is a number that is not finite.
fn non_finite(word: &str) -> Option<&'static str> {
    let stand_in = |name| NON_FINITE.iter().find(|(known, _)| *known == name).map(|(_, stand_in)| *stand_in);
    let digits = word.strip_prefix('-').unwrap_or(word);
    if digits.starts_with(|c: char| c.is_ascii_digit()) {
        let too_large = word.parse().is_ok_and(f64::is_infinite);
        return stand_in(if word.starts_with('-') { "-Infinity" } else { "Infinity" }).filter(|_| too_large);
    }
    stand_in(word)
}

/// The end of the string that begins at `start`; calls `lone` with each escape of half a surrogate pair.
fn string_end(bytes: &[u8], start: usize, mut lone: impl FnMut(Range<usize>)) -> usize {
    // The upper byte of the unit that is escaped at this place, as `\uXXXX`.
    let escaped = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u8::from_str_radix(std::str::from_utf8(&digits[..2]).ok()?, 16).ok()
    };
    let mut at = start + 1;
    loop {
        match bytes.get(at) {
            None => return at,
            Some(b'"') => return at + 1,
            Some(b'\\') => match (escaped(at), escaped(at + 6)) {
                (Some(0xd8..=0xdb), Some(0xdc..=0xdf)) => at += 12,
                (Some(0xd8..=0xdf), _) => {
                    lone(at..at + 6);
                    at += 6;
                }
                _ => at += 2,
            },
            Some(_) => at += 1,
        }
    }
}

/// The integer that `value` is, written `8` or `8.0`: JSON has one type of numbers.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    let exact = |x: &f64| x.fract() == 0.0 && (-(1i64 << 62) as f64..=(1i64 << 62) as f64).contains(x);
    value.as_i64().or_else(|| value.as_f64().filter(exact).map(|x| x as i64))
}

/// Whether `value` is an integer of any size.
fn is_integer(value: &Value) -> bool {
    value.as_f64().is_some_and(|x| x.fract() == 0.0)
}

/// The integer that `value` is, where a u32 holds it.
pub(crate) fn natural(value: &Value) -> Option<u32> {
    integer(value).and_then(|n| u32::try_from(n).ok())
}

/// A JSON object and the file it comes from.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Object {
    file: String,
    /// What a nested object's fields are prefixed with in messages, such as `rope_parameters.`.
    prefix: String,
    fields: Map<String, Value>,
}

impl Object {
    /// Parses `bytes`, the content of `file`, which must be one JSON object.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Object, CheckpointError> {
        match parse(bytes, file)? {
            Value::Object(fields) => Ok(Object { file: file.to_owned(), prefix: String::new(), fields }),
            value => Err(CheckpointError::File {
                file: file.to_owned(),
                found: shown_value(&value),
                expected: "a JSON object".to_owned(),
                advice: DOWNLOAD_AGAIN,
            }),
        }
    }

    /// The file's path, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The error that `field` holds something else than `expected`.
    pub fn wrong(&self, field: &str, expected: impl Into<String>) -> CheckpointError {
        let found = self.fields.get(field).map_or_else(|| "nothing".to_owned(), shown_value);
        self.wrong_as(field, found, expected)
    }

    /// [`Object::wrong`] with other words for what was found.
    pub fn wrong_as(&self, field: &str, found: impl Into<String>, expected: impl Into<String>) -> CheckpointError {
        CheckpointError::Field {
            file: self.file.clone(),
            field: format!("{}{}", self.prefix, shown(field)),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The value of `field`, where it is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Whether `field` is there and null.
    pub fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    /// The object in `field`, or `None` where it is absent or null.
    pub fn object(&self, field: &str) -> Result<Option<Object>, CheckpointError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Object {
                file: self.file.clone(),
                prefix: format!("{}{field}.", self.prefix),
                fields: fields.clone(),
            })),
            Some(_) => Err(self.wrong(field, "an object or null")),
        }
    }

    /// The integer in `field`, from 1 to `max`; `None` where the field is absent. Null is an error.
    pub fn size(&self, field: &str, max: u32) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        match natural(value) {
            Some(n @ 1..) if n <= max => Ok(Some(n as usize)),
            _ => Err(self.wrong(field, format!("an integer from 1 to {max}"))),
        }
    }

    /// The integer in `field`, or `None` where it is absent or null.
    pub fn natural(&self, field: &str) -> Result<Option<u32>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        natural(value).map(Some).ok_or_else(|| self.wrong(field, format!("an integer from 0 to {} or null", u32::MAX)))
    }

    /// The token id or list of token ids in `field`; `None` where the field is absent, empty where it is null. Integers
    /// that are no u32 are left out: no token has such an id, and a model may name one as it may name ids beyond its
    /// vocabulary.
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>, CheckpointError> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        let ids = match value {
            Value::Null => &[],
            Value::Array(ids) => ids.as_slice(),
            id => std::slice::from_ref(id),
        };
        if !ids.iter().all(is_integer) {
            return Err(self.wrong(field, "a token id, a list of token ids, or null"));
        }
        Ok(Some(ids.iter().filter_map(natural).collect()))
    }

    /// The finite number in `field`; `None` where the field is absent. Null is an error.
    pub fn number(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(field, "a number")),
        }
    }

    /// The finite number in `field` that stays finite and above 0 as an f32; `None` where the field is absent.
    pub fn positive(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        match self.number(field)? {
            Some(x) if !(x as f32 > 0.0 && (x as f32).is_finite()) => {
                Err(self.wrong(field, "a number above 0 that an f32 holds"))
            }
            x => Ok(x),
        }
    }

    /// `true` or `false` in `field`; `None` where the field is absent. Null is an error.
    pub fn flag(&self, field: &str) -> Result<Option<bool>, CheckpointError> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(field, "true or false"))
    }

    /// The string in `field`, or `None` where it is absent or null.
    pub fn text(&self, field: &str) -> Result<Option<&str>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(field, "a string"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        parse(text.as_bytes(), "f.json").unwrap()
    }

    fn message(text: &str) -> String {
        parse(text.as_bytes(), "f.json").unwrap_err().to_string()
    }

    #[test]
    fn reads_what_python_writes() {
        // Each is the output of `json.dumps`, or accepted by `json.loads`.
        let nan = read(r#"[["NaN"]]"#);
        assert_eq!(read(r#"{"a": NaN, "b": [1, NaN]}"#), json!({"a": nan, "b": [1, nan]}));
        assert_eq!(read("NaN"), nan);
        let value = read("{\"a\": Infinity,\n\"b\": -Infinity, \"c\": 1e999, \"d\": -2e400, \"e\": 1e-999}");
        let shown = ["a", "b", "c", "d", "e"].map(|field| shown_value(&value[field]));
        assert_eq!(shown, ["Infinity", "-Infinity", "Infinity", "-Infinity", "0.0"]);
        // Not outside of a string only: these words stay text.
        assert_eq!(read(r#"{"NaN": "NaN \" Infinity", "x": NaN}"#)["NaN"], "NaN \" Infinity");
        assert_eq!(read("\u{feff}{\"a\":1}"), json!({"a": 1}));
        assert_eq!(read(r#"{"a": 1, "b": 2, "a": 3}"#), json!({"a": 3, "b": 2}));
        assert_eq!(
            read(r#"["\ud83c\udf89", "\ud83c x", "\udf89", "\\ud83c"]"#),
            json!(["🎉", "\u{fffd} x", "\u{fffd}", "\\ud83c"])
        );
        // transformers' VERY_LARGE_INTEGER, int(1e30).
        assert_eq!(read("1000000000000000019884624838656").as_f64(), Some(1e30));
        assert_eq!(read("999999.4420358813").to_string(), "999999.4420358813");
    }

    #[test]
    fn a_number_that_is_not_finite_has_no_type() {
        for word in ["NaN", "Infinity", "-Infinity", "1e999"] {
            let object = Object::parse(format!("{{\"x\": {word}}}").as_bytes(), "f.json").unwrap();
            let found =
                format!("f.json: field x: found {}, expected ", if word == "1e999" { "Infinity" } else { word });
            let errors = [
                object.object("x").map(drop),
                object.size("x", 9).map(drop),
                object.natural("x").map(drop),
                object.token_ids("x").map(drop),
                object.number("x").map(drop),
                object.positive("x").map(drop),
                object.flag("x").map(drop),
                object.text("x").map(drop),
            ];
            for error in errors {
                let message = error.unwrap_err().to_string();
                assert!(message.starts_with(&found), "{message}");
            }
        }
    }

    #[test]
    fn integers_are_read_however_they_are_written() {
        let texts = ["8", "8.0", "8e0", "-0.0", "0.8e1", "4294967295.0", "-3.0"];
        assert_eq!(texts.map(|text| integer(&read(text)).unwrap()), [8, 8, 8, 0, 8, 4_294_967_295, -3]);
        for other in ["8.5", "1e300", "\"8\"", "true", "null", "[8]", "NaN", "Infinity", "18446744073709551615"] {
            assert_eq!(integer(&read(other)), None, "{other}");
        }
        assert_eq!(["4294967295.0", "4294967296", "-1"].map(|text| natural(&read(text))), [Some(u32::MAX), None, None]);
        let object = Object::parse(br#"{"n": 8.0, "ids": [0, 5.0], "id": 7.0}"#, "f").unwrap();
        assert_eq!((object.size("n", 8).unwrap(), object.natural("n").unwrap()), (Some(8), Some(8)));
        assert_eq!(
            (object.token_ids("ids").unwrap(), object.token_ids("id").unwrap()),
            (Some(vec![0, 5]), Some(vec![7]))
        );
    }

    #[test]
    fn what_is_malformed_is_said_plainly() {
        // Meta's published generation_config.json of Llama 2.
        let meta = "{\n  \"do_sample\": true.\n}";
        assert_eq!(
            message(meta),
            "f.json: found malformed JSON at line 2, column 20 (near `.`), expected JSON; correct it or download the file \
             again"
        );
        // The place is that of the file, before and after what was replaced.
        assert!(message("{\"a\": NaN, \"b\": NaN, \"c\": nan}").contains("at line 1, column 28 (near `an}`)"));
        assert!(message("{\"a\": NaN,\n\"b\" 1}").contains("at line 2, column 5 (near `1}`)"));
        assert!(message("{\"é\": \"é\", é}").contains("malformed JSON at line 1, column "));
        assert!(message("{\"a\": [1,").contains("found JSON that ends too early (at line 1, column 9), expected JSON"));
        assert!(message("").starts_with("f.json: found an empty file, expected JSON of at most 16777216 bytes"));
        assert!(message("\u{feff} \n").contains("found an empty file"));
        assert!(
            message(&"[".repeat(100_000))
                .contains("found JSON that is nested deeper than 127 levels (at line 1, column 128)")
        );
        let utf16: Vec<u8> = [0xfeff].into_iter().chain("{}".encode_utf16()).flat_map(u16::to_le_bytes).collect();
        assert!(parse(&utf16, "f").unwrap_err().to_string().contains("found UTF-16 text, expected JSON of at most"));
        for other in ["nan", "-NaN", "+1", "NaNa", "{NaN: 1}", "[1,]", "01", "'a'", "1e999x", "{\"a\": true false}"] {
            assert!(message(other).contains("found malformed JSON at line 1"), "{other}: {}", message(other));
        }
    }

    /// A JSON value, with Python's words among its numbers, and its text.
    fn python_json() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1",
            "0.5",
            "null",
            "true",
            "\"x\\\\\"",
        ]);
        let leaf =
            prop_oneof![word.prop_map(str::to_owned), "[a-zN\"\\\\ ]{0,6}".prop_map(|text| json!(text).to_string())];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
                prop::collection::vec(inner, 0..4).prop_map(|items| {
                    let fields = items.iter().enumerate().map(|(n, item)| format!("\"NaN{n}\":\n{item}"));
                    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_text_is_read_and_shown_as_it_was(text in python_json()) {
            let value = parse(text.as_bytes(), "f").unwrap();
            let again = parse(with_non_finite(value.to_string()).as_bytes(), "f").unwrap();
            prop_assert_eq!(value, again);
        }

        /// No text makes the reader panic, and every message is one line.
        #[test]
        fn any_text_is_read_or_refused(text in r#"[\[\]{}":,\\uNaInfityed1\-.\n é]{0,40}"#) {
            if let Err(error) = parse(text.as_bytes(), "f") {
                prop_assert!(!error.to_string().contains('\n'), "{}", error);
            }
        }
    }
}
