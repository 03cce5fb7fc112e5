//! A JSON object read field by field, each failure naming the field, what was found and what was expected. serde's
//! derived readers are not used for bodies because their errors name neither the field nor the value.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;
use crate::text::TokenId;

/// The fields of a body that were not read yet.
pub(super) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// The fields of `body`, which must be an object.
    pub fn of(body: Value) -> Result<Fields, ApiError> {
        match body {
            Value::Object(map) => Ok(Fields { map }),
            other => Err(ApiError::invalid(format!("the body is {}; expected a JSON object", shown(&other)))),
        }
    }

    /// The value of a field; none where it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        super::known::tests::TAKEN.with_borrow_mut(|taken| taken.insert(name.to_owned()));
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Returns `true` if the field is there, if only as null.
    pub fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A field's value as a message shows it, where it has one. The field stays to be read.
    pub fn shown(&self, name: &str) -> Option<String> {
        self.map.get(name).map(shown)
    }

    /// The value of a field, which `read` has to make something of.
    pub fn read<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| ApiError::field(name, shown(&value), expected))
    }

    /// A number. One that is beyond an f32 is infinite: whoever knows the field's range refuses it.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        self.read(name, "a number", |value| value.as_f64().map(|number| number as f32))
    }

    /// An integer from 0 that a u32 holds.
    pub fn natural(&mut self, name: &str) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let expected = match integer(&value) {
            Some(number) if number > i128::from(u32::MAX) => "an integer of at most 4294967295",
            _ => "an integer of at least 0",
        };
        natural(&value).map(Some).ok_or_else(|| ApiError::field(name, shown(&value), expected))
    }

    /// An integer of the range, which `expected` describes.
    pub fn integer(
        &mut self,
        name: &str,
        expected: &str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, ApiError> {
        self.read(name, expected, |value| integer(value).filter(|number| range.contains(number)))
    }

    /// `true` or `false`.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.read(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A string, or a list of strings.
    pub fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        self.read(name, "a string or a list of strings", |value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(values) => values.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => None,
        })
    }

    /// A list of token ids.
    pub fn token_ids(&mut self, name: &str) -> Result<Option<Vec<TokenId>>, ApiError> {
        self.read(name, "a list of token ids", |value| value.as_array().and_then(|values| token_ids(values)))
    }

    /// Refuses a known field, unless its value asks for nothing: null, false, empty, or what `idle` lets pass.
    pub fn refuse(&mut self, name: &str, advice: &str, idle: impl FnOnce(&Value) -> bool) -> Result<(), ApiError> {
        let Some(value) = self.take(name) else { return Ok(()) };
        let nothing = match &value {
            Value::Bool(flag) => !flag,
            Value::Array(values) => values.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if nothing || idle(&value) { Ok(()) } else { Err(ApiError::unsupported(name, shown(&value), advice)) }
    }
}

/// The integer that a number stands for, whether it is written 8 or 8.0: JSON has one type of number, many languages
/// write no other, and JSON Schema calls both integers.
pub fn integer(value: &Value) -> Option<i128> {
    let whole = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    // Below 2^64 no integer that a float holds is beyond an i128; NaN and infinity are no JSON.
    let float = || value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 2f64.powi(64)).map(|n| n as i128);
    whole.or_else(float)
}

fn natural(value: &Value) -> Option<u32> {
    integer(value).and_then(|number| u32::try_from(number).ok())
}

/// The token ids of a JSON list that holds nothing else: integers from 0 that a u32 holds, written 8 or 8.0.
pub fn token_ids(values: &[Value]) -> Option<Vec<TokenId>> {
    values.iter().map(|value| natural(value).map(TokenId)).collect()
}

/// A value for a message: its JSON text, cut where it is long.
pub fn shown(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of(value).unwrap()
    }

    #[test]
    fn null_is_absent_and_wrong_types_are_named() {
        let mut f = fields(json!({"a": null, "b": "x", "c": 1e300, "d": -1, "e": ["a", 1], "f": [1, -2]}));
        assert_eq!(f.number("a").unwrap(), None);
        assert_eq!(f.number("absent").unwrap(), None);
        assert_eq!(f.number("b").unwrap_err().to_string(), "b is \"x\"; expected a number");
        assert_eq!(f.shown("c").as_deref(), Some("1e+300"));
        assert_eq!(f.number("c").unwrap(), Some(f32::INFINITY));
        assert_eq!(f.natural("d").unwrap_err().to_string(), "d is -1; expected an integer of at least 0");
        assert!(f.texts("e").is_err() && f.token_ids("f").is_err());
        assert!(Fields::of(json!([1])).is_err());
    }

    #[test]
    fn integers_may_be_written_as_floats() {
        let read = |text: &str| integer(&serde_json::from_str(text).unwrap());
        for (text, expected) in [
            ("8", 8),
            ("8.0", 8),
            ("8e0", 8),
            ("80e-1", 8),
            ("-3.0", -3),
            ("-0.0", 0),
            ("-0", 0),
            ("4294967295.0", 4294967295),
            ("18446744073709551615", u64::MAX.into()),
            ("-9223372036854775808", i64::MIN.into()),
            ("9007199254740993", 9007199254740993),
        ] {
            assert_eq!(read(text), Some(expected), "{text}");
        }
        for text in ["8.5", "1e300", "-1e300", "18446744073709551616", "5e-324", "true", "\"8\"", "null", "[8]", "{}"] {
            assert_eq!(read(text), None, "{text}");
        }
        let mut f = fields(json!({"a": 8.0, "b": 8.5, "c": 4294967296.0, "d": [1.0, 2], "e": [1.5]}));
        assert_eq!(f.natural("a").unwrap(), Some(8));
        assert_eq!(f.natural("b").unwrap_err().to_string(), "b is 8.5; expected an integer of at least 0");
        assert_eq!(
            f.natural("c").unwrap_err().to_string(),
            "c is 4294967296.0; expected an integer of at most 4294967295"
        );
        assert_eq!(f.token_ids("d").unwrap(), Some(vec![TokenId(1), TokenId(2)]));
        assert!(f.token_ids("e").is_err());
    }

    #[test]
    fn what_asks_for_nothing_is_not_refused() {
        for nothing in [json!(null), json!(false), json!([]), json!({})] {
            assert!(fields(json!({"x": nothing})).refuse("x", "leave it out", |_| false).is_ok());
        }
        assert!(fields(json!({"x": 0})).refuse("x", "leave it out", |value| value == 0).is_ok());
        let error = fields(json!({"x": [1]})).refuse("x", "leave it out", |_| false).unwrap_err();
        assert_eq!(error.to_string(), "x is [1], and x is not supported; leave it out");
        assert_eq!(error.kind.code(), Some("unsupported_parameter"));
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let text = shown(&json!("é".repeat(100)));
        assert_eq!(text.chars().count(), 61);
    }
}
