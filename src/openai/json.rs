//! JSON text to an object, with errors for people: what is wrong and where, never a parser's or a type's name.

use serde_json::{Map, Value};

use super::ApiError;

/// Reads one JSON object.
///
/// # Errors
/// What is wrong with the text and, where it is one place, at which column (bytes of the line, from 1).
pub fn parse_object(text: &[u8]) -> Result<Map<String, Value>, ApiError> {
    check_begin(text)?;
    serde_json::from_slice(text).map_err(|error| syntax_error(text, &error))
}

/// That the text is UTF-8 and begins as an object does.
pub fn check_begin(text: &[u8]) -> Result<(), ApiError> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let column = error.valid_up_to() + 1;
        ApiError::invalid(format!("not UTF-8 at column {column}; save the text as UTF-8"))
    })?;
    match text.trim_start().chars().next() {
        Some('{') => Ok(()),
        None => Err(ApiError::invalid("nothing there; expected a JSON object")),
        Some('[') => Err(ApiError::invalid("a JSON array; expected a JSON object")),
        Some(_) => Err(ApiError::invalid(format!("begins with {}; expected a JSON object", near(text.trim_start())))),
    }
}

/// What `error` has to say about `text`, which begins as an object and is UTF-8.
pub fn syntax_error(text: &[u8], error: &serde_json::Error) -> ApiError {
    // serde_json's own words, of which there is no list that a program can read, to what a user can act on.
    const REASONS: [(&str, &str); 16] = [
        ("EOF", "it ends early: a quote or a bracket is not closed"),
        ("control character", "a raw control character in a string; write it as \\n, \\t or \\u00…"),
        ("lone leading surrogate", "half a surrogate pair in an escape; write both halves, or the character itself"),
        (
            "unexpected end of hex escape",
            "half a surrogate pair in an escape; write both halves, or the character itself",
        ),
        ("invalid unicode code point", "an escape that is no character"),
        ("invalid escape", "an escape that JSON does not have; a backslash is written \\\\"),
        ("number out of range", "a number beyond the range of a 64-bit float"),
        ("key must be a string", "a key without double quotes"),
        ("trailing comma", "a comma before a closing bracket; take it out"),
        ("trailing characters", "text after the object's end"),
        ("recursion limit", "nested deeper than 128 levels"),
        ("expected `:`", "no colon after a key"),
        ("expected `,`", "no comma or closing bracket"),
        ("expected `\"`", "a key without double quotes"),
        ("expected", "no JSON value"),
        ("invalid number", "no JSON number"),
    ];
    let said = error.to_string();
    let reason = REASONS.iter().find(|(begin, _)| said.starts_with(begin)).map_or("no JSON", |(_, reason)| reason);
    if error.is_eof() {
        return ApiError::invalid(format!("not valid JSON: {reason}"));
    }
    let place = match error.line() {
        0 | 1 => format!("column {}", error.column()),
        line => format!("line {line} column {}", error.column()),
    };
    // Columns are bytes of a line, the one that the parser had just read.
    let line = text.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = String::from_utf8_lossy(line.get(error.column().saturating_sub(1)..).unwrap_or_default());
    let found = if rest.is_empty() { String::new() } else { format!(", at {}", near(&rest)) };
    ApiError::invalid(format!("not valid JSON at {place}: {reason}{found}"))
}

/// The beginning of a text, for a message.
fn near(text: &str) -> String {
    const LIMIT: usize = 20;
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LIMIT) {
        None => format!("{line:?}"),
        Some((end, _)) => format!("{:?}…", &line[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        parse_object(text.as_bytes()).unwrap_err().message
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        for (text, expected) in [
            ("", "nothing there; expected a JSON object"),
            ("[1]", "a JSON array; expected a JSON object"),
            ("def f():", "begins with \"def f():\"; expected a JSON object"),
            ("{\"a\": x}", "not valid JSON at column 7: no JSON value, at \"x}\""),
            ("{\"a\": NaN}", "not valid JSON at column 7: no JSON value, at \"NaN}\""),
            ("{\"a\": 1", "not valid JSON: it ends early: a quote or a bracket is not closed"),
            ("{\"a\": \"x", "not valid JSON: it ends early: a quote or a bracket is not closed"),
            ("{'a': 1}", "not valid JSON at column 2: a key without double quotes, at \"'a': 1}\""),
            ("{\"a\": 1,}", "not valid JSON at column 9: a comma before a closing bracket; take it out, at \"}\""),
            ("{\"a\": 1},", "not valid JSON at column 9: text after the object's end, at \",\""),
            ("{\"a\" 1}", "not valid JSON at column 6: no colon after a key, at \"1}\""),
            ("{\"a\": 1 \"b\": 2}", "not valid JSON at column 9: no comma or closing bracket, at \"\\\"b\\\": 2}\""),
            ("{\"a\": 1e999}", "not valid JSON at column 11: a number beyond the range of a 64-bit float, at \"9}\""),
            ("{\n\"a\": x}", "not valid JSON at line 2 column 6: no JSON value, at \"x}\""),
        ] {
            assert_eq!(message(text), expected, "{text}");
        }
        assert!(message("{\"a\": \"\u{1}\"}").contains("a raw control character"));
        assert!(message("{\"a\": \"\\ud800\"}").contains("half a surrogate pair"));
        assert!(message("{\"a\": \"\\x\"}").contains("a backslash is written \\\\"));
        assert!(message(&format!("{{\"a\":{}", "[".repeat(200))).contains("nested deeper than 128 levels"));
        let latin = parse_object(b"{\"a\": \"\xe9\"}").unwrap_err().message;
        assert_eq!(latin, "not UTF-8 at column 8; save the text as UTF-8");
    }

    /// Whatever is cut out of a body or put into it: no word of the parser's comes out.
    #[test]
    fn no_parser_s_words_come_out() {
        let body = r#"{"prompt": ["a\n", "é😀"], "max_tokens": -1.5e3, "echo": true, "stop": null, "x": {"y": []}}"#;
        let boundaries = (0..=body.len()).filter(|at| body.is_char_boundary(*at));
        for at in boundaries {
            for insert in ["", "x", "\"", "{", "}", "]", ",", ":", "\\", "\u{0}", "1e999", "nul", "-"] {
                let text = format!("{}{insert}{}", &body[..at], if insert.is_empty() { "" } else { &body[at..] });
                let Err(error) = parse_object(text.as_bytes()) else { continue };
                let words =
                    ["EOF", "expected value", "expected ident", "invalid type", "struct", "enum", "while parsing"];
                assert!(!words.iter().any(|word| error.message.contains(word)), "{error} of {text}");
                assert!(
                    !error.message.contains("no JSON,") && !error.message.ends_with(": no JSON"),
                    "{error} of {text}"
                );
            }
        }
    }
}
