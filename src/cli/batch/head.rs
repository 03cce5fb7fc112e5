//! What names a line: its ids, and the names of its other fields, read without making values of the rest.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use rigel::openai::{check_begin, integer, shown, syntax_error};

use super::super::lines::{Line, MAX_LINE, without_mark};
use super::job::{LineError, malformed};

/// The fields that a line's id is taken from: `--id-field`'s, `custom_id`, `id`, the first that is there.
#[derive(Debug, Clone, Default)]
pub struct IdFields {
    own: Option<String>,
}

impl IdFields {
    /// `own` goes before the fields that every run looks for.
    pub fn new(own: Option<String>) -> IdFields {
        IdFields { own }
    }

    /// `--id-field`.
    pub fn own(&self) -> Option<&str> {
        self.own.as_deref()
    }

    /// In the order in which they count.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.own().into_iter().chain(["custom_id", "id"])
    }

    /// The id of a line. A line that has none, or that cannot be read, is called `line-7` after its number.
    pub fn id(&self, number: u32, line: Line<'_>) -> String {
        self.written_id(line).ok().flatten().unwrap_or_else(|| IdFields::id_without(number))
    }

    /// What a line without an id is called.
    pub fn id_without(number: u32) -> String {
        format!("line-{number}")
    }

    /// The id that stands in a line; none where there is none.
    pub fn written_id(&self, line: Line<'_>) -> Result<Option<String>, LineError> {
        Ok(self.read(line, |_| {})?.map(|id| id.text))
    }

    /// The same, with its field. The line's fields that are no ids go to `other`, also where the line is wrong further
    /// on.
    pub fn read(&self, line: Line<'_>, other: impl FnMut(&str)) -> Result<Option<WrittenId>, LineError> {
        let Line::Bytes(bytes) = line else {
            let message = format!("the line is longer than {} MiB; shorten it", MAX_LINE >> 20);
            return Err(LineError::new("line_too_long", message));
        };
        let bytes = without_mark(bytes);
        check_begin(bytes).map_err(malformed)?;
        let names: Vec<&str> = self.names().collect();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let reader = HeadReader { names: &names, other };
        let found = reader.deserialize(&mut json).and_then(|found| json.end().map(|()| found)).map_err(|error| {
            if error.is_data() {
                let message = format!("{} is there twice; give the line one id", names.join(" or "));
                return LineError::new("invalid_line", message);
            }
            malformed(syntax_error(bytes, &error))
        })?;
        let first = names.iter().zip(found).find_map(|(name, value)| value.map(|value| (*name, value)));
        let written =
            |(name, value): (&str, Value)| id(name, &value).map(|text| WrittenId { text, field: name.to_owned() });
        first.map(written).transpose()
    }
}

/// An id that stands in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenId {
    pub text: String,
    /// The field that it stands in.
    pub field: String,
}

/// Text, or an integer however it is written.
fn id(field: &str, value: &Value) -> Result<String, LineError> {
    let text = match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) => integer(value).map(|number| number.to_string()),
        _ => None,
    };
    text.ok_or_else(|| LineError {
        param: Some(field.to_owned()),
        ..LineError::new("invalid_line", format!("{field} is {}; expected text or an integer", shown(value)))
    })
}

/// Reads an object: the values of `names`, each once and null for none, and the names of the others.
struct HeadReader<'a, F> {
    names: &'a [&'a str],
    other: F,
}

impl<'de, F: FnMut(&str)> DeserializeSeed<'de> for HeadReader<'_, F> {
    type Value = Vec<Option<Value>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str)> Visitor<'de> for HeadReader<'_, F> {
    type Value = Vec<Option<Value>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Vec<Option<Value>> = vec![None; self.names.len()];
        while let Some(place) = map.next_key_seed(Key { names: self.names, other: &mut self.other })? {
            let Some(place) = place else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if found[place].replace(map.next_value()?).is_some() {
                return Err(A::Error::custom("an id is there twice"));
            }
        }
        Ok(found.into_iter().map(|value| value.filter(|value| !value.is_null())).collect())
    }
}

/// Reads a name: its place among `names`, or none after it went to `other`.
struct Key<'a, F> {
    names: &'a [&'a str],
    other: &'a mut F,
}

impl<'de, F: FnMut(&str)> DeserializeSeed<'de> for Key<'_, F> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<F: FnMut(&str)> Visitor<'_> for Key<'_, F> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        let place = self.names.iter().position(|known| *known == name);
        if place.is_none() {
            (self.other)(name);
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(line: &str) -> String {
        IdFields::default().id(7, Line::Bytes(line.as_bytes()))
    }

    #[test]
    fn every_line_has_an_id() {
        assert_eq!(id(r#"{"custom_id":"a","id":"b","prompt":"x"}"#), "a");
        assert_eq!(id(r#"{"id":"b","custom_id":"a","prompt":"x"}"#), "a");
        assert_eq!(id(r#"{"id":"b","prompt":"x"}"#), "b");
        assert_eq!(id(r#"{"\u0069d":"b","prompt":"x"}"#), "b");
        assert_eq!(id(r#"{"id":12,"prompt":"x"}"#), "12");
        assert_eq!(id(r#"{"id":-3,"prompt":"x"}"#), "-3");
        assert_eq!(id(r#"{"id":12.0,"prompt":"x"}"#), "12");
        assert_eq!(id(r#"{"custom_id":null,"prompt":"x"}"#), "line-7");
        for wrong in [
            "",
            "nonsense",
            "[1]",
            r#"{"id":[1]}"#,
            r#"{"id":1.5}"#,
            r#"{"id":"a","id":"b"}"#,
            "{\"id\":\"a\"",
            r#"{"id":"a"} x"#,
        ] {
            assert_eq!(id(wrong), "line-7", "{wrong}");
        }
        assert_eq!(IdFields::default().id(9, Line::TooLong), "line-9");
        assert_eq!(id("\u{feff}{\"id\":\"b\"}"), "b");
    }

    #[test]
    fn an_id_field_of_one_s_own_goes_first() {
        let fields = IdFields::new(Some("task_id".into()));
        let id = |line: &str| fields.id(7, Line::Bytes(line.as_bytes()));
        assert_eq!(id(r#"{"id":"b","task_id":"HumanEval/0","prompt":"x"}"#), "HumanEval/0");
        assert_eq!(id(r#"{"id":"b","prompt":"x"}"#), "b");
        assert_eq!(id(r#"{"prompt":"x"}"#), "line-7");
    }

    #[test]
    fn the_other_names_are_given_out() {
        let mut names = Vec::new();
        let line = Line::Bytes(br#"{"prompt":{"id":1,"x":[{}]},"id":"a","max\u005ftokens":1}"#);
        let id = IdFields::default().read(line, |name| names.push(name.to_owned())).unwrap();
        assert_eq!(id, Some(WrittenId { text: "a".to_owned(), field: "id".to_owned() }));
        assert_eq!(names, ["prompt", "max_tokens"]);
    }
}
