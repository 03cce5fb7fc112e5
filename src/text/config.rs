//! tokenizer_config.json, special_tokens_map.json and added_tokens.json: what they say, each field read where it is
//! asked for, so that a field nobody asks for never matters. Knows nothing of ids' meaning.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TextError;
use crate::checkpoint::{ModelSource, json};

pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// The single-token fields that transformers calls special tokens, in its order.
const SPECIAL_FIELDS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const TOKENIZER_CLASS: &str = "tokenizer_class";
const ADDED_TOKENS_DECODER: &str = "added_tokens_decoder";
/// The field of transformers 5 before that of the versions before it.
const EXTRA_FIELDS: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// What the files beside the vocabulary say, as raw JSON. Empty where they are absent.
///
/// As in transformers, special_tokens_map.json and added_tokens.json count only where tokenizer_config.json has no
/// `added_tokens_decoder`; the first then overrides the fields of tokenizer_config.json.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerConfig {
    config: JsonFile,
    special_tokens_map: JsonFile,
    added_tokens: JsonFile,
}

/// One of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct JsonFile {
    origin: String,
    fields: Map<String, Value>,
    /// Why it could not be read as a JSON object, if it could not.
    unreadable: Option<String>,
}

/// Tokens whose ids a file states.
#[derive(Debug)]
pub(super) struct TokensWithIds<'a> {
    /// Sorted by id.
    pub tokens: Vec<(u32, AddedToken)>,
    /// The file, for messages.
    pub origin: &'a str,
    /// Whether the file states the tokens' flags; else those that the vocabulary has count.
    pub with_flags: bool,
}

/// A special token that a field names.
#[derive(Debug)]
pub(super) struct NamedToken {
    /// The field's name; `None` in the list of additional ones.
    pub field: Option<String>,
    pub token: AddedToken,
}

impl TokenizerConfig {
    /// Reads the files of a model. Content that is not a JSON object is no error here but where it is needed: the
    /// vocabulary may well be whole without it.
    ///
    /// # Errors
    /// [`TextError::Source`] if a file is there and cannot be read.
    pub fn from_source(source: &ModelSource) -> Result<Self, TextError> {
        let file = |name: &str| {
            let origin = source.describe(name);
            Ok::<_, TextError>(match source.read(name)? {
                None => JsonFile { origin, ..JsonFile::default() },
                Some(bytes) => match json_object(&bytes, &origin) {
                    Ok(fields) => JsonFile { origin, fields, unreadable: None },
                    Err(error) => JsonFile { origin, fields: Map::new(), unreadable: Some(error.to_string()) },
                },
            })
        };
        Ok(Self {
            config: file(TOKENIZER_CONFIG)?,
            special_tokens_map: file(SPECIAL_TOKENS_MAP)?,
            added_tokens: file(ADDED_TOKENS)?,
        })
    }

    /// Parses the bytes of tokenizer_config.json and special_tokens_map.json, each with its name for messages; `None`
    /// for a file that is absent.
    ///
    /// # Errors
    /// [`TextError::Source`] or [`TextError::InvalidFile`] if one is not a JSON object. Its fields are checked where
    /// they are asked for.
    pub fn from_bytes(
        tokenizer_config: Option<(&[u8], &str)>,
        special_tokens_map: Option<(&[u8], &str)>,
    ) -> Result<Self, TextError> {
        let file = |bytes: Option<(&[u8], &str)>| match bytes {
            None => Ok(JsonFile::default()),
            Some((bytes, origin)) => json_object(bytes, origin).map(|fields| JsonFile {
                origin: origin.to_owned(),
                fields,
                unreadable: None,
            }),
        };
        let (config, special_tokens_map) = (file(tokenizer_config)?, file(special_tokens_map)?);
        Ok(Self { config, special_tokens_map, added_tokens: JsonFile::default() })
    }

    /// The text of a special token by its field name, such as `eos_token`; where no file has the field, the default of
    /// the `tokenizer_class` (`<|endoftext|>` for GPT2Tokenizer). `None` also for an unusable value.
    pub fn special(&self, field: &str) -> Option<&str> {
        match self.named_value(field) {
            Some((value, _)) => token_text(value),
            None => self.class_default(field),
        }
    }

    /// The named special tokens that are set, as (field, text): the variables of a chat template.
    pub fn specials(&self) -> Vec<(String, String)> {
        let named = self.named_tokens().into_iter().filter_map(Result::ok);
        named.filter_map(|named| Some((named.field?, named.token.content))).collect()
    }

    /// `extra_special_tokens` (a list) or `additional_special_tokens`, in the file's order, without unusable entries.
    pub fn additional_special_tokens(&self) -> Vec<&str> {
        self.extra_values().into_iter().filter_map(|(value, _)| token_text(value)).collect()
    }

    /// `tokenizer_class`.
    ///
    /// # Errors
    /// [`TextError::InvalidField`] if it is not a string.
    pub fn tokenizer_class(&self) -> Result<Option<&str>, TextError> {
        match self.config.get(TOKENIZER_CLASS) {
            None => Ok(None),
            Some(Value::String(class)) => Ok(Some(class)),
            Some(_) => Err(self.config.invalid(TOKENIZER_CLASS, "the name of a class of transformers")),
        }
    }

    /// Takes `class` as the `tokenizer_class` where tokenizer_config.json names none.
    pub(super) fn assume_class(&mut self, class: &str) {
        if self.config.get(TOKENIZER_CLASS).is_none() {
            self.config.fields.insert(TOKENIZER_CLASS.to_owned(), class.into());
        }
    }

    /// `chat_template`: the string itself, or the one named "default" of a list or an object of named ones.
    ///
    /// # Errors
    /// [`TextError::InvalidField`] for any other form, [`TextError::NoDefaultTemplate`] if none has that name,
    /// [`TextError::InvalidFile`] if tokenizer_config.json is there and is not a JSON object.
    pub fn chat_template(&self) -> Result<Option<&str>, TextError> {
        const FIELD: &str = "chat_template";
        const EXPECTED: &str = "a template, or named templates as an object or a list of {\"name\", \"template\"}";
        if let Some(reason) = &self.config.unreadable {
            return Err(TextError::InvalidFile {
                file: self.config.origin.clone(),
                reason: format!("the chat template cannot be read: {}", self.config.without_origin(reason)),
            });
        }
        let invalid = || self.config.invalid(FIELD, EXPECTED);
        let named: Vec<(&str, &Value)> = match self.config.get(FIELD) {
            None => return Ok(None),
            Some(Value::String(template)) => return Ok(Some(template)),
            Some(Value::Object(named)) => named.iter().map(|(name, template)| (name.as_str(), template)).collect(),
            Some(Value::Array(named)) => {
                let entry = |entry: &'_ Value| entry["name"].as_str().is_some();
                if !named.iter().all(entry) {
                    return Err(invalid());
                }
                named.iter().map(|entry| (entry["name"].as_str().unwrap_or_default(), &entry["template"])).collect()
            }
            Some(_) => return Err(invalid()),
        };
        // Of two with one name the later counts, as in Python's dict.
        match named.iter().rev().find(|(name, _)| *name == DEFAULT_TEMPLATE) {
            Some((_, Value::String(template))) => Ok(Some(template)),
            Some(_) => Err(invalid()),
            None => Err(TextError::NoDefaultTemplate {
                file: self.config.origin.clone(),
                names: named.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// A switch of tokenizer_config.json, off where it is absent or null.
    pub(super) fn flag(&self, field: &str) -> Result<bool, TextError> {
        match self.config.get(field) {
            None => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(_) => Err(self.config.invalid(field, "true or false")),
        }
    }

    /// The path of tokenizer_config.json, for messages.
    pub(super) fn origin(&self) -> &str {
        &self.config.origin
    }

    /// The tokens that have ids: `added_tokens_decoder` of tokenizer_config.json, else those of added_tokens.json.
    ///
    /// # Errors
    /// [`TextError::InvalidField`].
    pub(super) fn tokens_with_ids(&self) -> Result<TokensWithIds<'_>, TextError> {
        let mut tokens = Vec::new();
        let (file, with_flags) = match self.config.get(ADDED_TOKENS_DECODER) {
            Some(Value::Object(decoder)) => {
                for (id, value) in decoder {
                    const EXPECTED: &str = "an object with `content` and flags, under an id";
                    let id = id.trim().parse().ok().zip(value.is_object().then_some(value));
                    let (id, value) = id.ok_or_else(|| self.config.invalid(ADDED_TOKENS_DECODER, EXPECTED))?;
                    let field = || format!("{ADDED_TOKENS_DECODER}.{id}");
                    tokens
                        .push((id, added_token(value, None).ok_or_else(|| self.config.wrong(&field(), value, TOKEN))?));
                }
                (&self.config, true)
            }
            Some(_) => return Err(self.config.invalid(ADDED_TOKENS_DECODER, "an object of tokens by id")),
            None => {
                let special: Vec<&str> = self.named_texts();
                for (content, id) in &self.added_tokens.fields {
                    let id = json::natural(id).ok_or_else(|| self.added_tokens.wrong(content, id, "a token id"))?;
                    tokens.push((id, AddedToken::from(content.as_str(), special.contains(&content.as_str()))));
                }
                (&self.added_tokens, false)
            }
        };
        tokens.sort_by_key(|(id, _)| *id);
        Ok(TokensWithIds { tokens, origin: &file.origin, with_flags })
    }

    /// Every special token that a field names, in transformers' order; the error where a field is unusable.
    pub(super) fn named_tokens(&self) -> Vec<Result<NamedToken, TextError>> {
        let mut tokens = Vec::new();
        let mut push = |field: Option<&str>, value: &Value, file: &JsonFile| {
            let token = added_token(value, Some(true))
                .ok_or_else(|| file.wrong(field.unwrap_or("additional_special_tokens"), value, TOKEN));
            tokens.push(token.map(|token| NamedToken { field: field.map(str::to_owned), token }));
        };
        for field in SPECIAL_FIELDS {
            match self.named_value(field) {
                Some((Value::Null, _)) => {}
                Some((value, file)) => push(Some(field), value, file),
                None => {
                    if let Some(text) = self.class_default(field) {
                        push(Some(field), &Value::from(text), &self.config);
                    }
                }
            }
        }
        // The model's own, such as `image_token`: a field of that ending that holds a token; others are no tokens.
        for file in self.files_of_names() {
            for (field, value) in &file.fields {
                let own = field.ends_with("_token") && !SPECIAL_FIELDS.contains(&field.as_str());
                if own && token_text(value).is_some() {
                    push(Some(field), value, file);
                }
            }
            if let Some(Value::Object(named)) = file.get(EXTRA_FIELDS[0]) {
                named.iter().for_each(|(field, value)| push(Some(field), value, file));
            }
        }
        for (value, file) in self.extra_values() {
            push(None, value, file);
        }
        for file in self.files_of_names() {
            for field in EXTRA_FIELDS {
                if file.get(field).is_some_and(|value| !value.is_array() && !value.is_object()) {
                    tokens.push(Err(file.invalid(field, "a list of tokens")));
                }
            }
        }
        tokens
    }

    /// One line for each file that is there and is not a JSON object.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = &str> {
        [&self.config, &self.special_tokens_map, &self.added_tokens].into_iter().filter_map(|f| f.unreadable.as_deref())
    }

    /// Texts of the special tokens that fields name.
    fn named_texts(&self) -> Vec<&str> {
        let named = SPECIAL_FIELDS.into_iter().filter_map(|field| self.special(field));
        named.chain(self.additional_special_tokens()).collect()
    }

    /// The files that name special tokens.
    fn files_of_names(&self) -> impl Iterator<Item = &JsonFile> {
        let map = self.config.get(ADDED_TOKENS_DECODER).is_none().then_some(&self.special_tokens_map);
        [&self.config].into_iter().chain(map)
    }

    /// The value of a field that names one token, null included, and the file that has the say.
    fn named_value(&self, field: &str) -> Option<(&Value, &JsonFile)> {
        let files: Vec<&JsonFile> = self.files_of_names().collect();
        files.into_iter().rev().find_map(|file| file.fields.get(field).map(|value| (value, file)))
    }

    /// The entries of the list of further special tokens: tokenizer_config.json's, then what special_tokens_map.json
    /// has beyond them.
    fn extra_values(&self) -> Vec<(&Value, &JsonFile)> {
        let mut values: Vec<(&Value, &JsonFile)> = Vec::new();
        for file in self.files_of_names() {
            let lists = EXTRA_FIELDS.iter().filter_map(|field| file.get(field)?.as_array()).filter(|l| !l.is_empty());
            for value in lists.take(1).flatten() {
                if !values.iter().any(|(known, _)| token_text(known) == token_text(value)) {
                    values.push((value, file));
                }
            }
        }
        values
    }

    /// What the `tokenizer_class` sets where no file does.
    fn class_default(&self, field: &str) -> Option<&'static str> {
        let class = self.config.get(TOKENIZER_CLASS).and_then(Value::as_str)?;
        let fields: &[&str] = match class.strip_suffix("Fast").unwrap_or(class) {
            "GPT2Tokenizer" => &["bos_token", "eos_token", "unk_token"],
            "Qwen2Tokenizer" => &["eos_token", "pad_token", "unk_token"],
            _ => &[],
        };
        fields.contains(&field).then_some("<|endoftext|>")
    }
}

/// The name of the template that is used where a conversation asks for none by name.
pub(super) const DEFAULT_TEMPLATE: &str = "default";

const TOKEN: &str = "a token: a string, or an object with `content` and flags";

impl JsonFile {
    /// The value of a field that is there and not null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn invalid(&self, field: &str, expected: &'static str) -> TextError {
        self.wrong(field, self.fields.get(field).unwrap_or(&Value::Null), expected)
    }

    fn wrong(&self, field: &str, found: &Value, expected: &'static str) -> TextError {
        let (file, field) = (self.origin.clone(), field.escape_debug().to_string());
        TextError::InvalidField { file, field, found: shortened(found), expected }
    }

    /// A message without the file's name at its beginning.
    fn without_origin<'a>(&self, message: &'a str) -> &'a str {
        message.strip_prefix(&self.origin).map_or(message, |rest| rest.trim_start_matches([':', ' ']))
    }
}

/// The object in `bytes`, the content of `file`.
pub(super) fn json_object(bytes: &[u8], file: &str) -> Result<Map<String, Value>, TextError> {
    match json::parse(bytes, file)? {
        Value::Object(fields) => Ok(fields),
        value => Err(TextError::InvalidFile {
            file: file.to_owned(),
            reason: format!("found {}, expected a JSON object", shortened(&value)),
        }),
    }
}

/// A token is written as its text, or as an object whose `content` is the text.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The token that `value` writes, where it is one. `named` is what a flag `special` that is not there means for a token
/// that a field names; a named token is special whatever its flag says.
fn added_token(value: &Value, named: Option<bool>) -> Option<AddedToken> {
    let flag = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(flag) => flag.as_bool().map(Some),
    };
    let content = token_text(value)?;
    let special = named.unwrap_or(flag("special")?.unwrap_or(false));
    let token = AddedToken::from(content, special)
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false))
        .single_word(flag("single_word")?.unwrap_or(false));
    Some(match flag("normalized")? {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
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
    use serde_json::json;

    use super::*;

    fn config(json: &str) -> TokenizerConfig {
        TokenizerConfig::from_bytes(Some((json.as_bytes(), "tokenizer_config.json")), None).expect("an object")
    }

    fn problems(config: &TokenizerConfig) -> Vec<String> {
        config.named_tokens().into_iter().filter_map(|token| token.err().map(|e| e.to_string())).collect()
    }

    #[test]
    fn tokens_are_strings_or_objects() {
        let c = config(
            r#"{"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": false},
                "pad_token": null, "additional_special_tokens": ["<a>", {"content": "<b>"}]}"#,
        );
        assert_eq!(c.special("bos_token"), Some("<s>"));
        assert_eq!(c.special("eos_token"), Some("</s>"));
        assert_eq!(c.special("pad_token"), None);
        assert_eq!(c.additional_special_tokens(), ["<a>", "<b>"]);
        assert!(problems(&c).is_empty());
    }

    #[test]
    fn the_map_overrides_the_config_unless_that_lists_its_added_tokens() {
        let specials = |config: &str| {
            let map = br#"{"bos_token": "<other>", "eos_token": {"content": "</s>"}}"#;
            let c = TokenizerConfig::from_bytes(Some((config.as_bytes(), "a")), Some((map, "b"))).expect("objects");
            ["bos_token", "eos_token"].map(|field| c.special(field).map(str::to_owned))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(specials(r#"{"bos_token": "<s>"}"#), [some("<other>"), some("</s>")]);
        assert_eq!(specials(r#"{"bos_token": "<s>", "added_tokens_decoder": {}}"#), [some("<s>"), None]);
    }

    #[test]
    fn named_templates_mean_the_default_one() {
        for json in [
            r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
            r#"{"chat_template": {"tool_use": "T", "default": "D"}}"#,
            r#"{"chat_template": {"tool_use": 3, "default": "D"}}"#,
        ] {
            assert_eq!(config(json).chat_template().expect(json), Some("D"));
        }
        for json in [r#"{"chat_template": [{"name": "rag", "template": "R"}]}"#, r#"{"chat_template": {"rag": "R"}}"#] {
            let message = config(json).chat_template().expect_err("no default").to_string();
            assert!(message.contains("\"rag\"") && message.contains("\"default\""), "{message}");
        }
        assert_eq!(config(r#"{"chat_template": null}"#).chat_template().expect("none"), None);
        for json in [r#"{"chat_template": 3}"#, r#"{"chat_template": ["x"]}"#, r#"{"chat_template": {"default": 1}}"#] {
            let message = config(json).chat_template().expect_err(json).to_string();
            assert!(message.starts_with("tokenizer_config.json: field `chat_template`: found "), "{message}");
        }
    }

    #[test]
    fn wrong_types_name_file_and_field_where_they_are_asked_for() {
        for (json, needle) in [
            (r#"{"eos_token": 0}"#, "field `eos_token`: found 0, expected a token"),
            (r#"{"pad_token": {"content": "x", "lstrip": 1}}"#, "field `pad_token`: found {"),
            (r#"{"additional_special_tokens": "x"}"#, "field `additional_special_tokens`: found \"x\""),
            (r#"{"extra_special_tokens": [1]}"#, "field `additional_special_tokens`: found 1"),
        ] {
            let found = problems(&config(json));
            assert!(
                matches!(&found[..], [one] if one.starts_with("tokenizer_config.json: ") && one.contains(needle)),
                "{found:?}"
            );
        }
        for decoder in [
            json!(3),
            json!({"x": {"content": "a"}}),
            json!({"1": "a"}),
            json!({"1": {"content": 2}}),
            json!({"-1": {}}),
        ] {
            let c = config(&json!({"added_tokens_decoder": decoder}).to_string());
            let message = c.tokens_with_ids().expect_err("unusable").to_string();
            assert!(message.starts_with("tokenizer_config.json: field `added_tokens_decoder"), "{message}");
        }
        let message = config(r#"{"add_bos_token": "x"}"#).flag("add_bos_token").expect_err("a string").to_string();
        assert_eq!(message, "tokenizer_config.json: field `add_bos_token`: found \"x\", expected true or false");
        for json in ["[]", "{", ""] {
            let error = TokenizerConfig::from_bytes(Some((json.as_bytes(), "tokenizer_config.json")), None);
            assert!(error.expect_err(json).to_string().starts_with("tokenizer_config.json: "));
        }
    }

    #[test]
    fn classes_have_special_tokens_of_their_own() {
        let c = config(r#"{"tokenizer_class": "GPT2TokenizerFast", "bos_token": null}"#);
        assert_eq!(["bos_token", "eos_token", "pad_token"].map(|f| c.special(f)), [None, Some("<|endoftext|>"), None]);
        assert_eq!(config("{}").special("eos_token"), None);
    }
}
