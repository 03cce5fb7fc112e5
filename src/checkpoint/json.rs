//! A JSON object read field by field, each failure naming file, field, what was found and what was expected.
//!
//! Knows nothing of models. serde's derived readers are not used for these files because their errors name neither
//! the field nor the value.

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

/// Checks that `bytes` may be text of JSON at all, and returns it.
pub(super) fn json_text<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str, CheckpointError> {
    refuse_lfs_pointer(bytes, file, "JSON")?;
    let found = if bytes.is_empty() {
        "an empty file".to_owned()
    } else if bytes.len() as u64 > MAX_JSON_BYTES {
        format!("{} bytes", bytes.len())
    } else {
        match std::str::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(error) => format!("bytes that are not UTF-8 at offset {}", error.valid_up_to()),
        }
    };
    let expected = format!("JSON of at most {MAX_JSON_BYTES} bytes");
    Err(CheckpointError::File { file: file.to_owned(), found, expected, advice: DOWNLOAD_AGAIN })
}

/// A JSON object and the file it comes from.
pub(super) struct Object<'a> {
    file: &'a str,
    /// What a nested object's fields are prefixed with in messages, such as `rope_parameters.`.
    prefix: String,
    fields: Map<String, Value>,
}

impl<'a> Object<'a> {
    /// Parses `bytes`, the content of `file`, which must be one JSON object.
    pub fn parse(bytes: &[u8], file: &'a str) -> Result<Object<'a>, CheckpointError> {
        let text = json_text(bytes, file)?;
        let found = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(fields)) => return Ok(Object { file, prefix: String::new(), fields }),
            Ok(value) => shown_value(&value),
            Err(error) => format!("malformed JSON ({error})"),
        };
        let expected = "a JSON object".to_owned();
        Err(CheckpointError::File { file: file.to_owned(), found, expected, advice: DOWNLOAD_AGAIN })
    }

    /// The error that `field` holds something else than `expected`.
    pub fn wrong(&self, field: &str, expected: impl Into<String>) -> CheckpointError {
        let found = self.fields.get(field).map_or_else(|| "nothing".to_owned(), shown_value);
        self.wrong_as(field, found, expected)
    }

    /// [`Object::wrong`] with other words for what was found.
    pub fn wrong_as(&self, field: &str, found: impl Into<String>, expected: impl Into<String>) -> CheckpointError {
        CheckpointError::Field {
            file: self.file.to_owned(),
            field: format!("{}{}", self.prefix, shown(field)),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The value of `field`, where it is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether `field` is there and null.
    pub fn is_null(&self, field: &str) -> bool {
        self.fields.get(field).is_some_and(Value::is_null)
    }

    /// The object in `field`, or `None` where it is absent or null.
    pub fn object(&self, field: &str) -> Result<Option<Object<'a>>, CheckpointError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => {
                Ok(Some(Object { file: self.file, prefix: format!("{}{field}.", self.prefix), fields: fields.clone() }))
            }
            Some(_) => Err(self.wrong(field, "an object or null")),
        }
    }

    /// The integer in `field`, from 1 to `max`; `None` where the field is absent. Null is an error.
    pub fn size(&self, field: &str, max: u32) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.fields.get(field) else { return Ok(None) };
        match value.as_u64() {
            Some(n @ 1..) if n <= u64::from(max) => Ok(Some(n as usize)),
            _ => Err(self.wrong(field, format!("an integer from 1 to {max}"))),
        }
    }

    /// The integer in `field`, or `None` where it is absent or null.
    pub fn natural(&self, field: &str) -> Result<Option<u32>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let n = value.as_u64().and_then(|n| u32::try_from(n).ok());
        n.map(Some).ok_or_else(|| self.wrong(field, format!("an integer from 0 to {} or null", u32::MAX)))
    }

    /// The token id or list of token ids in `field`; `None` where the field is absent, empty where it is null.
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>, CheckpointError> {
        let id = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.fields.get(field) {
            None => return Ok(None),
            Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.wrong(field, "a token id, a list of token ids, or null"))
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
