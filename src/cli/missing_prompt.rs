//! What is said of a line without a prompt: the field that was meant for one, or the fields that are there.

use serde_json::{Map, Value};

use super::nearest::nearest;

/// What other programs call the prompt: the other name, and the field's.
const SYNONYMS: [(&str, &str); 3] =
    [("input_ids", "token_ids"), ("inputs", "prompt"), ("prompt_token_ids", "token_ids")];

/// Why an object that has none of `fields` is no line; `expected` says what would be one.
pub fn missing_prompt(object: &Map<String, Value>, fields: &[&'static str], expected: &str) -> String {
    // A null is no field.
    let names: Vec<&str> = object.keys().map(String::as_str).filter(|name| !fields.contains(name)).collect();
    if let Some((name, field)) = SYNONYMS.iter().find(|(name, _)| names.contains(name)) {
        return format!("no prompt, but {name}, which is called {field} here");
    }
    let near = names.iter().find_map(|name| Some((name, nearest(name, fields.iter().copied())?)));
    match (near, names.as_slice()) {
        (Some((name, field)), _) => format!("no prompt, but {}; did you mean {field}?", cut(name)),
        (None, []) => format!("no prompt; {expected}"),
        (None, [name]) => format!("no prompt, but the field {}; {expected}", cut(name)),
        (None, names) => format!("no prompt, but the fields {}; {expected}", listed(names)),
    }
}

/// A few of the names.
fn listed(names: &[&str]) -> String {
    const LIMIT: usize = 5;
    let shown: Vec<String> = names.iter().take(LIMIT).map(|name| cut(name)).collect();
    let more = if names.len() > LIMIT { ", …" } else { "" };
    shown.join(", ") + more
}

/// A name in one line, without the end of one that would fill it.
fn cut(name: &str) -> String {
    const LIMIT: usize = 40;
    let shown: String = name.escape_debug().take(LIMIT).collect();
    if name.escape_debug().nth(LIMIT).is_some() { shown + "…" } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_field_that_was_meant_is_named_or_those_that_are_there() {
        let said = |object: Value| {
            missing_prompt(object.as_object().unwrap(), &["prompt", "text", "token_ids"], "expected more")
        };
        assert_eq!(said(json!({"id": 1, "promt": "x"})), "no prompt, but promt; did you mean prompt?");
        assert_eq!(said(json!({"Text": "x"})), "no prompt, but Text; did you mean text?");
        let called = "no prompt, but input_ids, which is called token_ids here";
        assert_eq!(said(json!({"input_ids": [1], "promt": "x"})), called);
        assert_eq!(said(json!({})), "no prompt; expected more");
        assert_eq!(said(json!({"prompt": null})), "no prompt; expected more");
        assert_eq!(said(json!({"input": "x", "text": null})), "no prompt, but the field input; expected more");
        let many = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6});
        assert_eq!(said(many), "no prompt, but the fields a, b, c, d, e, …; expected more");
        let long = said(json!({"a\nb": 1, "x".repeat(1000): 2}));
        assert!(long.contains("a\\nb") && long.lines().count() == 1 && long.len() < 200, "{long}");
    }
}
