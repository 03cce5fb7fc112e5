//! model.safetensors.index.json: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde::Deserialize;

use super::error::{CheckpointError, DOWNLOAD_AGAIN, shown};
use super::json::json_text;

/// The index of a sharded checkpoint.
#[derive(Debug, PartialEq, Deserialize)]
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
        let index: ShardIndex = serde_json::from_str(json_text(bytes, file)?).map_err(|error| {
            broken(
                format!("an index that does not parse: {}", shown(&error.to_string())),
                "{\"weight_map\": {tensor: shard}}",
            )
        })?;
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
        assert!(message("{}").contains("missing field `weight_map`"));
        assert!(message(r#"{"weight_map":{}}"#).contains("found an empty weight_map"));
        assert!(message(r#"{"weight_map":{"a":1}}"#).contains("invalid type: integer `1`, expected a string"));
        assert!(message("{\"weight_map\"").contains("does not parse: EOF"));
        assert!(message("").contains("found an empty file"));
    }
}
