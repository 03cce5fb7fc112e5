//! model.safetensors.index.json: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use super::error::{CheckpointError, DOWNLOAD_AGAIN, shown, shown_value};
use super::json::Object;

/// The index of a sharded checkpoint.
#[derive(Debug, PartialEq)]
pub(super) struct ShardIndex {
    /// Shard file name by tensor name.
    weight_map: BTreeMap<String, String>,
}

impl ShardIndex {
    /// Reads `bytes`, the content of `file` (a path for messages). Every shard name is a relative path that stays
    /// inside the checkpoint's directory. That is decided on the names alone: in the Hugging Face cache the shards
    /// themselves are links that lead out of it, by design.
    pub fn parse(bytes: &[u8], file: &str) -> Result<ShardIndex, CheckpointError> {
        let broken = |found: String, expected: &str| CheckpointError::File {
            file: file.to_owned(),
            found,
            expected: expected.to_owned(),
            advice: DOWNLOAD_AGAIN,
        };
        let object = Object::parse(bytes, file)?;
        let Some(Value::Object(fields)) = object.get("weight_map") else {
            return Err(object.wrong("weight_map", "an object that names each tensor's shard"));
        };
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in fields {
            let Value::String(shard) = shard else {
                return Err(CheckpointError::Field {
                    file: file.to_owned(),
                    field: format!("weight_map.{}", shown(tensor)),
                    found: shown_value(shard),
                    expected: "the name of a file".to_owned(),
                });
            };
            weight_map.insert(tensor.clone(), shard.clone());
        }
        let index = ShardIndex { weight_map };
        if index.weight_map.is_empty() {
            return Err(broken("an empty weight_map".to_owned(), "at least one tensor"));
        }
        for (tensor, shard) in &index.weight_map {
            if !stays_inside(shard) {
                return Err(CheckpointError::Field {
                    file: file.to_owned(),
                    field: format!("weight_map.{}", shown(tensor)),
                    found: format!("\"{}\"", shown(shard)),
                    expected: "the name of a file inside the checkpoint's directory".to_owned(),
                });
            }
        }
        Ok(index)
    }

    /// The shards' file names, each once, sorted.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// The shard that the index names for `tensor`.
    pub fn shard(&self, tensor: &str) -> Option<&str> {
        self.weight_map.get(tensor).map(String::as_str)
    }

    /// Each tensor's name and its shard, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &str)> {
        self.weight_map.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str()))
    }
}

/// Whether the path `name`, taken relative to a directory, names something below that directory on any operating
/// system: no root, no drive, no `..`, no backslash.
fn stays_inside(name: &str) -> bool {
    let foreign = |c: char| c.is_control() || matches!(c, '\\' | ':');
    !name.is_empty()
        && !name.ends_with('/')
        && !name.contains(foreign)
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_published_style_index() {
        let json = br#"{"metadata":{"total_size":12},"weight_map":{"b":"model-2.safetensors","a":"model-1.safetensors",
            "c":"model-1.safetensors"}}"#;
        let index = ShardIndex::parse(json, "i.json").unwrap();
        assert_eq!(Vec::from_iter(index.shards()), ["model-1.safetensors", "model-2.safetensors"]);
        assert_eq!(index.tensors().next(), Some(("a", "model-1.safetensors")));
    }

    #[test]
    fn shard_names_may_not_leave_the_directory() {
        let outside = [
            "../w.safetensors",
            "/etc/passwd",
            "a/../../w",
            "..",
            "",
            ".",
            "a/",
            "./w",
            "C:w",
            "C:\\\\w",
            "a\\\\..\\\\..\\\\w",
            "\\\\\\\\host\\\\share",
            "w\\u0000",
        ];
        for name in outside {
            let json = format!(r#"{{"weight_map":{{"t":"{name}"}}}}"#);
            let message = ShardIndex::parse(json.as_bytes(), "i.json").unwrap_err().to_string();
            assert!(message.starts_with("i.json: field weight_map.t: found \""), "{message}");
            assert!(message.contains("expected the name of a file inside the checkpoint's directory"), "{message}");
        }
        assert!(stays_inside("model-00001-of-00007.safetensors"));
        assert!(stays_inside("part/..model.safetensors"));
    }

    #[test]
    fn what_is_no_index() {
        let message = |json: &str| ShardIndex::parse(json.as_bytes(), "i.json").unwrap_err().to_string();
        assert!(message("{}").contains("field weight_map: found nothing, expected an object"));
        assert!(message(r#"{"weight_map":{}}"#).contains("found an empty weight_map"));
        assert!(
            message(r#"{"weight_map":{"a":1}}"#).contains("field weight_map.a: found 1, expected the name of a file")
        );
        assert!(message("{\"weight_map\"").contains("found JSON that ends too early"));
        assert!(message("").contains("found an empty file"));
    }
}
