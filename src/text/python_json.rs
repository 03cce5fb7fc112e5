//! `json.dumps` as Hugging Face's `tojson` filter calls it, for chat templates. Knows nothing of chats.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Containers inside containers beyond this are refused: Python's own limit is of the same kind (RecursionError).
const MAX_K: usize = 100;

/// The `tojson` filter of transformers' chat templates:
/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, without Jinja's HTML escapes.
pub(super) fn tojson(state: &State, value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => match v.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(v)?.min(MAX_K))),
        },
    };
    let (item, key) = match kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        Some(pair) => match pair.try_iter()?.collect::<Vec<_>>().as_slice() {
            [item, key] => (item.to_string(), key.to_string()),
            _ => return Err(invalid("tojson: separators must be a pair (item, key)")),
        },
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let mut dump = Dump { state, out: String::new(), paid: 0, indent, item, key, sort_keys, ensure_ascii };
    dump.value(&value, 0)?;
    Ok(dump.out)
}

struct Dump<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    /// Bytes of `out` that the template's fuel has paid for.
    paid: usize,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Dump<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // The same list may be nested in itself by reference many times over: what is written has to be paid for
        // while it is written.
        self.state.consume_fuel(1 + (self.out.len() - self.paid) as u64 / 4)?;
        self.paid = self.out.len();
        if depth > MAX_K {
            return Err(invalid(&format!("tojson: more than {MAX_K} levels deep")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container('[', ']', items, depth, |dump, item| dump.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut pairs = Vec::new();
                for key in value.try_iter()? {
                    pairs.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.container('{', '}', pairs, depth, |dump, (key, item)| {
                    dump.string(key);
                    dump.out.push_str(&dump.key.clone());
                    dump.value(item, depth + 1)
                })?;
            }
            kind => return Err(invalid(&format!("tojson: a value of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn container<T>(
        &mut self,
        open: char,
        close: char,
        items: Vec<T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A number as Python's `repr` writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // Both write the shortest digits that read back; they differ in the exponent's form: 1e16 is 1e+16 in Python.
    let text = format!("{float:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{}e{sign}{exponent:0>2}", digits.strip_suffix(".0").unwrap_or(digits))
        }
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        kind => Err(invalid(&format!("tojson: keys must be strings, found {kind}"))),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(expression: &str) -> Result<String, Error> {
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        env.set_fuel(Some(100_000));
        env.render_str(&format!("{{{{ {expression} }}}}"), ())
    }

    /// Right: what CPython 3.12's json.dumps prints for the same value and arguments.
    #[test]
    fn writes_what_python_writes() {
        for (expression, expected) in [
            (r#"{"b": [1, 2.0, true, none], "a": "x"}|tojson"#, r#"{"b": [1, 2.0, true, null], "a": "x"}"#),
            (r#"{"b": 1, "a": {}}|tojson(sort_keys=true)"#, r#"{"a": {}, "b": 1}"#),
            (r#"[1, [], {"k": 2}]|tojson(indent=2)"#, "[\n  1,\n  [],\n  {\n    \"k\": 2\n  }\n]"),
            (r#"[1, {"k": 2}]|tojson(separators=(",", ":"))"#, r#"[1,{"k":2}]"#),
            (r#""<a href='x'>&\"\\"|tojson"#, r#""<a href='x'>&\"\\""#),
            (r#""é😀\n\t"|tojson"#, r#""é😀\n\t""#),
            (r#""é😀"|tojson(ensure_ascii=true)"#, r#""\u00e9\ud83d\ude00""#),
            (
                "[0.1, 1e16, 1.5e-7, 0.0001, 1e-5, 1.5e300, 9.0, -3]|tojson",
                "[0.1, 1e+16, 1.5e-07, 0.0001, 1e-05, 1.5e+300, 9.0, -3]",
            ),
            ("{2: 1, true: 3}|tojson", r#"{"2": 1, "true": 3}"#),
        ] {
            assert_eq!(dumps(expression).expect(expression), expected);
        }
    }

    #[test]
    fn refuses_what_python_refuses() {
        assert!(dumps("missing|tojson").is_err());
        assert!(dumps("[1]|tojson(bogus=1)").is_err());
    }
}
