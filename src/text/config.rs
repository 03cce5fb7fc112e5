//! tokenizer_config.json and special_tokens_map.json: which strings the special tokens are, and the chat template.
//! Knows nothing of ids.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TextError;
use crate::checkpoint::ModelSource;

pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The single-string fields that transformers calls special tokens, in its order.
const SPECIAL_FIELDS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What tokenizer_config.json says, as far as text needs it. Empty when the file is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    special: BTreeMap<&'static str, String>,
    additional: Vec<String>,
    chat_template: Option<String>,
}

impl TokenizerConfig {
    /// Reads the two files of a model.
    ///
    /// # Errors
    /// [`TextError::Source`] if one cannot be read, and those of [`from_bytes`](Self::from_bytes).
    pub fn from_source(source: &ModelSource) -> Result<Self, TextError> {
        const MAP: &str = "special_tokens_map.json";
        let (config, map) = (source.read(TOKENIZER_CONFIG)?, source.read(MAP)?);
        let (config_origin, map_origin) = (source.describe(TOKENIZER_CONFIG), source.describe(MAP));
        Self::from_bytes(
            config.as_deref().map(|json| (json, config_origin.as_str())),
            map.as_deref().map(|json| (json, map_origin.as_str())),
        )
    }

    /// Parses the two files' bytes; `None` for a file that is absent. A special token that tokenizer_config.json does
    /// not name (or names as null) is taken from special_tokens_map.json.
    ///
    /// # Errors
    /// Malformed JSON, or a field that is neither a string, a `{"content": string}` object nor null.
    pub fn from_bytes(
        tokenizer_config: Option<(&[u8], &str)>,
        special_tokens_map: Option<(&[u8], &str)>,
    ) -> Result<Self, TextError> {
        let mut config = Self::default();
        if let Some((json, origin)) = tokenizer_config {
            let value = parse(json, origin)?;
            config.fill_special(&value, origin)?;
            config.chat_template = chat_template(&value["chat_template"], origin)?;
        }
        if let Some((json, origin)) = special_tokens_map {
            config.fill_special(&parse(json, origin)?, origin)?;
        }
        Ok(config)
    }

    /// The text of a special token by its field name, such as `eos_token`.
    pub fn special(&self, field: &str) -> Option<&str> {
        self.special.get(field).map(String::as_str)
    }

    /// The named special tokens that are set, as (field, text): the variables of a chat template.
    pub fn specials(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.special.iter().map(|(field, text)| (*field, text.as_str()))
    }

    /// `additional_special_tokens`, in the file's order.
    pub fn additional_special_tokens(&self) -> &[String] {
        &self.additional
    }

    /// `chat_template`: the string itself, or the one named "default" of a list of named templates.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    fn fill_special(&mut self, file: &Value, origin: &str) -> Result<(), TextError> {
        for field in SPECIAL_FIELDS {
            if !self.special.contains_key(field)
                && let Some(text) = token_text(&file[field], field, origin)?
            {
                self.special.insert(field, text);
            }
        }
        let additional = &file["additional_special_tokens"];
        if self.additional.is_empty() && !additional.is_null() {
            const FIELD: &str = "additional_special_tokens";
            let list = additional.as_array().ok_or_else(|| invalid(additional, FIELD, origin, "a list of tokens"))?;
            for token in list {
                self.additional.extend(token_text(token, FIELD, origin)?);
            }
        }
        Ok(())
    }
}

fn parse(json: &[u8], origin: &str) -> Result<Value, TextError> {
    let malformed = |reason: String| TextError::InvalidFile { file: origin.to_owned(), reason };
    let value: Value = serde_json::from_slice(json).map_err(|e| malformed(format!("malformed JSON: {e}")))?;
    if !value.is_object() {
        return Err(malformed(format!("found {}, expected a JSON object", shortened(&value))));
    }
    Ok(value)
}

/// A token is written as its text, or as a serialised `AddedToken` whose `content` is the text.
fn token_text(value: &Value, field: &str, origin: &str) -> Result<Option<String>, TextError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        _ => match value["content"].as_str() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(invalid(value, field, origin, "a string or an object with a `content` string")),
        },
    }
}

fn chat_template(value: &Value, origin: &str) -> Result<Option<String>, TextError> {
    const FIELD: &str = "chat_template";
    match value {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default").map(|entry| &entry["template"]);
            match default.and_then(Value::as_str) {
                Some(template) => Ok(Some(template.to_owned())),
                None => Err(invalid(value, FIELD, origin, "one named \"default\" with a `template` string")),
            }
        }
        _ => Err(invalid(value, FIELD, origin, "a string or a list of named templates")),
    }
}

fn invalid(found: &Value, field: &str, origin: &str, expected: &'static str) -> TextError {
    TextError::InvalidField { file: origin.to_owned(), field: field.to_owned(), found: shortened(found), expected }
}

/// A JSON value for an error message: one line, at most 60 characters.
fn shortened(value: &Value) -> String {
    const MAX_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<TokenizerConfig, TextError> {
        TokenizerConfig::from_bytes(Some((json.as_bytes(), "tokenizer_config.json")), None)
    }

    #[test]
    fn tokens_are_strings_or_objects() {
        let c = config(
            r#"{"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": false},
                "pad_token": null, "additional_special_tokens": ["<a>", {"content": "<b>"}]}"#,
        )
        .expect("well formed");
        assert_eq!(c.special("bos_token"), Some("<s>"));
        assert_eq!(c.special("eos_token"), Some("</s>"));
        assert_eq!(c.special("pad_token"), None);
        assert_eq!(c.additional_special_tokens(), ["<a>", "<b>"]);
    }

    #[test]
    fn the_map_fills_what_the_config_leaves_open() {
        let c = TokenizerConfig::from_bytes(
            Some((br#"{"bos_token": "<s>"}"#, "a")),
            Some((br#"{"bos_token": "<other>", "eos_token": {"content": "</s>"}}"#, "b")),
        )
        .expect("well formed");
        assert_eq!((c.special("bos_token"), c.special("eos_token")), (Some("<s>"), Some("</s>")));
    }

    #[test]
    fn a_list_of_templates_means_the_default_one() {
        let c = config(
            r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
        );
        assert_eq!(c.expect("well formed").chat_template(), Some("D"));
        let e = config(r#"{"chat_template": [{"name": "rag", "template": "R"}]}"#).expect_err("no default");
        assert!(e.to_string().contains("field `chat_template`") && e.to_string().contains("\"default\""), "{e}");
    }

    #[test]
    fn wrong_types_name_file_and_field() {
        for (json, needle) in [
            (r#"{"eos_token": 0}"#, "field `eos_token`: found 0, expected a string"),
            (r#"{"chat_template": 3}"#, "field `chat_template`: found 3"),
            (r#"{"additional_special_tokens": "x"}"#, "field `additional_special_tokens`: found \"x\""),
            ("[]", "expected a JSON object"),
            ("{", "malformed JSON"),
        ] {
            let message = config(json).expect_err(json).to_string();
            assert!(message.starts_with("tokenizer_config.json: ") && message.contains(needle), "{message}");
        }
    }
}
