//! The header of a safetensors file: which tensors it holds, and where.
//!
//! A file is 8 bytes of header length `n` (u64, little-endian), `n` bytes of JSON
//! `{name: {dtype, shape, data_offsets: [begin, end]}}`, and the data. Offsets count from the end of the header, and
//! the tensors cover the data without overlap or gap
//! (<https://github.com/huggingface/safetensors#format>, whose reader enforces the same).
//!
//! The `safetensors` crate's reader takes a tensor of an unknown dtype for a broken file, keeps the last of two
//! tensors with one name, and mostly does not name the tensor at fault; so the header is read here, and the crate
//! serves for what its dtypes weigh. Untrusted bytes: nothing is allocated beyond a small multiple of the header's
//! own length.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize as _;
use serde::de::{self, Deserializer as _, MapAccess, Visitor};
use serde_json::Value;

use super::error::{CheckpointError, DOWNLOAD_AGAIN, shown, shown_shape, shown_value};
use super::json::{malformed, refuse_lfs_pointer};
use super::marks;

/// The longest header that the format allows its readers to accept, in bytes (the `safetensors` crate's limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HeaderEntry {
    pub name: String,
    /// The dtype's name in the header.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Where the data lies, counted from the start of the file. Inside the file.
    pub range: Range<usize>,
}

/// A header entry as written; offsets count from the end of the header.
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// What a header entry looks like, for messages.
const ENTRY: &str = r#"an entry such as {"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}"#;

impl RawEntry {
    fn from_value(value: &Value) -> Option<RawEntry> {
        let shape = value.get("shape")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        let [begin, end] = value.get("data_offsets")?.as_array()?.as_slice() else { return None };
        Some(RawEntry {
            dtype: value.get("dtype")?.as_str()?.to_owned(),
            shape,
            data_offsets: (begin.as_u64()?, end.as_u64()?),
        })
    }
}

/// Reads and checks the header of the file whose content is `bytes`. `file` is its path, for messages.
///
/// # Errors
/// A file that is no safetensors file, is cut short, or whose entries contradict each other, the file's length or
/// their own shapes.
pub(super) fn read_header(bytes: &[u8], file: &str) -> Result<Vec<HeaderEntry>, CheckpointError> {
    refuse_lfs_pointer(bytes, file, "a safetensors file")?;
    let broken = |found: String, expected: &str| match marks::of_content(bytes) {
        Some((found, advice)) => CheckpointError::File {
            file: file.to_owned(),
            found: found.to_owned(),
            expected: "a safetensors file".to_owned(),
            advice,
        },
        None => CheckpointError::File {
            file: file.to_owned(),
            found,
            expected: expected.to_owned(),
            advice: DOWNLOAD_AGAIN,
        },
    };
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(broken(
            format!("{} bytes", bytes.len()),
            "a safetensors file, which begins with 8 bytes of header length",
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        return Err(broken(
            format!("a header length of {length} in a file of {} bytes", bytes.len()),
            "a header that ends inside the file",
        ));
    }
    if length > MAX_HEADER_BYTES {
        return Err(broken(format!("a header length of {length}"), "at most 100000000 bytes of header"));
    }
    // Fits: it is no more than the length of a slice.
    let (header, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(header).map_err(|error| {
        broken(
            format!("header bytes that are not UTF-8 at offset {}", LENGTH_BYTES + error.valid_up_to()),
            "a JSON header",
        )
    })?;
    let raw = match parse_entries(text) {
        Ok(raw) => raw,
        Err(Fault::Entry { tensor, found }) => return Err(bad_tensor(file, &tensor, found, ENTRY.to_owned())),
        Err(Fault::Header(error)) if error.is_data() => {
            return Err(broken("a header that is no JSON object".to_owned(), "safetensors' JSON header"));
        }
        Err(Fault::Header(error)) => {
            let found = format!("a header with {}", malformed(text, &error, error.column()));
            return Err(broken(found, "safetensors' JSON header"));
        }
    };
    check_entries(raw, LENGTH_BYTES + header.len(), data.len(), file)
}

/// What is wrong with a header.
enum Fault {
    Header(serde_json::Error),
    /// The first entry that is of another form.
    Entry {
        tensor: String,
        found: String,
    },
}

fn parse_entries(text: &str) -> Result<Vec<(String, RawEntry)>, Fault> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut fault = None;
    match deserializer.deserialize_map(Entries(&mut fault)).and_then(|entries| deserializer.end().map(|()| entries)) {
        Ok(entries) => Ok(entries),
        Err(error) => Err(fault.unwrap_or(Fault::Header(error))),
    }
}

/// Reads the header's object in order, so that a name given twice is seen twice. The first entry of another form is
/// left in the reference.
struct Entries<'a>(&'a mut Option<Fault>);

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<(String, RawEntry)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<de::IgnoredAny>()?;
            } else {
                let value = map.next_value::<Value>()?;
                let Some(entry) = RawEntry::from_value(&value) else {
                    *self.0 = Some(Fault::Entry { tensor: name, found: shown_value(&value) });
                    return Err(de::Error::custom("an entry of another form"));
                };
                entries.push((name, entry));
            }
        }
        Ok(entries)
    }
}

/// Checks entries against each other and against the data's length, and turns their offsets into file offsets.
fn check_entries(
    mut raw: Vec<(String, RawEntry)>,
    data_start: usize,
    data_bytes: usize,
    file: &str,
) -> Result<Vec<HeaderEntry>, CheckpointError> {
    raw.sort_by_key(|(_, entry)| entry.data_offsets);
    if let Some(name) = first_duplicate(&raw) {
        return Err(bad_tensor(file, name, "two entries".to_owned(), "one entry".to_owned()));
    }
    let mut covered = 0;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let (begin, end) = entry.data_offsets;
        let offsets = || format!("data offsets {begin}..{end}");
        if begin > end {
            return Err(bad_tensor(file, &name, offsets(), "an end at or after the begin".to_owned()));
        }
        if end > data_bytes as u64 {
            let expected = format!("offsets inside the {data_bytes} bytes of data that the file has");
            return Err(bad_tensor(file, &name, offsets(), expected));
        }
        if begin != covered {
            let fault = if begin < covered { "which overlap the tensor before" } else { "which leave a gap before it" };
            let found = format!("{}, {fault}", offsets());
            return Err(bad_tensor(file, &name, found, format!("a begin at {covered}")));
        }
        covered = end;
        let shape = check_size(&name, &entry, file)?;
        // Both fit: they are at most the length of a slice.
        let range = data_start + begin as usize..data_start + end as usize;
        entries.push(HeaderEntry { name, dtype: entry.dtype, shape, range });
    }
    if covered != data_bytes as u64 {
        return Err(CheckpointError::File {
            file: file.to_owned(),
            found: format!("{data_bytes} bytes of data"),
            expected: format!("the {covered} that its header describes"),
            advice: DOWNLOAD_AGAIN,
        });
    }
    Ok(entries)
}

fn first_duplicate(raw: &[(String, RawEntry)]) -> Option<&str> {
    let mut names = HashSet::with_capacity(raw.len());
    raw.iter().map(|(name, _)| name.as_str()).find(|name| !names.insert(*name))
}

/// Checks that the entry's bytes are as many as its shape and dtype need, where the dtype is known; returns the shape.
fn check_size(name: &str, entry: &RawEntry, file: &str) -> Result<Vec<usize>, CheckpointError> {
    let dims: Option<Vec<usize>> = entry.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let elements = entry.shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let (Some(dims), Some(elements)) = (dims, elements) else {
        let found = format!("a shape of {} dimensions whose product overflows", entry.shape.len());
        return Err(bad_tensor(file, name, found, "a shape that fits the file".to_owned()));
    };
    let Some(bits) = dtype_bits(&entry.dtype) else { return Ok(dims) };
    let found = entry.data_offsets.1 - entry.data_offsets.0;
    let needed = u128::from(elements) * bits as u128;
    if needed != u128::from(found) * 8 {
        let expected = format!("{} for {} of shape {}", needed.div_ceil(8), shown(&entry.dtype), shown_shape(&dims));
        return Err(bad_tensor(file, name, format!("{found} bytes"), expected));
    }
    Ok(dims)
}

/// Bits of one element of the dtype of this name, where the `safetensors` crate knows it.
fn dtype_bits(name: &str) -> Option<usize> {
    let name = de::value::StrDeserializer::<de::value::Error>::new(name);
    safetensors::Dtype::deserialize(name).ok().map(|dtype| dtype.bitsize())
}

fn bad_tensor(file: &str, tensor: &str, found: String, expected: String) -> CheckpointError {
    CheckpointError::Tensor { file: file.to_owned(), tensor: shown(tensor), found, expected, advice: DOWNLOAD_AGAIN }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of this header and this many bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn message(header: &str, data: usize) -> String {
        read_header(&file(header, data), "w.safetensors").unwrap_err().to_string()
    }

    const AGAIN: &str = "; the file is damaged: download it again";

    #[test]
    fn reads_what_the_format_allows() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "empty":{"dtype":"F16","shape":[0,7],"data_offsets":[16,16]},
            "packed":{"dtype":"F4","shape":[4],"data_offsets":[16,18]},
            "future":{"dtype":"F9_X","shape":[5],"data_offsets":[18,19],"more":{"x":[1]}}}  "#;
        let bytes = file(header, 19);
        let entries = read_header(&bytes, "w").unwrap();
        let start = 8 + header.len();
        let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.dtype.as_str(), e.range.clone())).collect();
        assert_eq!(
            seen,
            [
                ("a", "F32", start..start + 4),
                ("b", "BF16", start + 4..start + 16),
                ("empty", "F16", start + 16..start + 16),
                ("packed", "F4", start + 16..start + 18),
                ("future", "F9_X", start + 18..start + 19),
            ]
        );
        assert_eq!(entries[1].shape, [2, 3]);
        assert_eq!(read_header(&file("{}", 0), "w").unwrap(), []);
    }

    #[test]
    fn short_files_and_wrong_lengths() {
        let message = |bytes: &[u8]| read_header(bytes, "w.safetensors").unwrap_err().to_string();
        assert!(message(b"abc").starts_with("w.safetensors: found 3 bytes, expected a safetensors file"));
        let mut bytes = file("{}", 0);
        bytes[0] = 200;
        assert_eq!(
            message(&bytes),
            format!(
                "w.safetensors: found a header length of 200 in a file of 10 bytes, \
                 expected a header that ends inside the file{AGAIN}"
            )
        );
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(message(&bytes).contains("found a header length of 18446744073709551615 in a file of 10 bytes"));
        assert_eq!(
            message(b"GGUF\x03\0\0\0\x43\0\0\0\0\0\0\0"),
            "w.safetensors: found a GGUF file, which is not read yet, expected a safetensors file; use the model's \
             safetensors"
        );
        assert!(message(b"<!DOCTYPE html><html></html>").contains("found a web page, not the file that it should be"));
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 31\n";
        assert!(message(pointer).ends_with("expected a safetensors file; run `git lfs pull` in the clone"));
    }

    #[test]
    fn headers_that_are_not_json() {
        let mut bytes = file("{\"a\":1}", 0);
        bytes[10] = 0xff;
        let error = read_header(&bytes, "w").unwrap_err().to_string();
        assert!(error.contains("header bytes that are not UTF-8 at offset 10"), "{error}");
        assert!(message("{\"a\"", 0).contains("found a header with JSON that ends too early (at line 1, column 4)"));
        assert!(message("[]", 0).contains("found a header that is no JSON object, expected safetensors' JSON header"));
        assert!(message("{} x", 0).contains("found a header with malformed JSON at line 1, column 4 (near `x`)"));
        for entry in [
            r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1]}"#,
            r#"{"dtype":5,"shape":[1],"data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":"x","data_offsets":[0,4]}"#,
            r#"{"dtype":"F32","shape":[1],"data_offsets":[0]}"#,
            "5",
        ] {
            let message = message(&format!(r#"{{"w.x":{entry}}}"#), 4);
            assert!(
                message.contains("tensor w.x: found ") && message.contains("expected an entry such as"),
                "{message}"
            );
            assert!(!message.contains("invalid ") && !message.contains("u64"), "{message}");
        }
    }

    #[test]
    fn offsets_and_sizes() {
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{a}}},
                   "b":{{"dtype":"F32","shape":[1],"data_offsets":{b}}}}}"#
            )
        };
        assert!(read_header(&file(&two("[0,4]", "[4,8]"), 8), "w").is_ok());
        assert_eq!(
            message(&two("[0,4]", "[4,8]"), 7),
            format!(
                "w.safetensors: tensor b: found data offsets 4..8, \
                 expected offsets inside the 7 bytes of data that the file has{AGAIN}"
            )
        );
        assert!(message(&two("[0,4]", "[4,18446744073709551615]"), 8).contains("expected offsets inside the 8 bytes"));
        assert!(message(&two("[0,4]", "[2,6]"), 8).contains("tensor b: found data offsets 2..6, which overlap"));
        assert!(message(&two("[0,4]", "[2,6]"), 8).contains(", expected a begin at 4; "));
        assert!(message(&two("[0,4]", "[5,9]"), 9).contains("data offsets 5..9, which leave a gap before it, exp"));
        assert!(
            message(&two("[0,4]", "[8,4]"), 8).contains("tensor b: found data offsets 8..4, expected an end at or")
        );
        assert!(message(&two("[0,4]", "[4,8]"), 9).contains("found 9 bytes of data, expected the 8 that its header"));
        assert!(
            message(&two("[0,4]", "[4,7]"), 7).contains("tensor b: found 3 bytes, expected 4 for F32 of shape [1]")
        );
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}}"#;
        assert!(message(huge, 4).contains("a shape of 3 dimensions whose product overflows"));
        let near = r#"{"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}}"#;
        assert!(message(near, 4).contains("found 4 bytes, expected 73786976294838206460 for F32"));
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                        "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(message(twice, 8).contains("tensor a: found two entries, expected one entry"));
    }
}
