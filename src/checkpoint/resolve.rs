//! From what a user calls a model to where its files are.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use super::error::{CheckpointError, shown};
use super::hub::{self, HubId};
use super::json::{MAX_JSON_BYTES, Object};
use super::marks;
use super::published;
use super::source::{ModelSource, NANO, Place, first_bytes};

impl ModelSource {
    /// Finds `model`, the first of these that there is:
    ///
    /// * a checkpoint directory, or a config.json by itself: a shape without weights ([`is_shape`](Self::is_shape));
    /// * `nano`, the bundled model;
    /// * `3b`, `7b`, `15b` or `starcoder2-3b` …, in letters of any case: the shape of a published network;
    /// * a hub id `ORG/NAME` or `ORG/NAME@REVISION` in the local Hugging Face cache.
    ///
    /// # Errors
    /// Nothing of that name; for a hub id the message says the command that downloads it. A path or a cache that may
    /// not be read.
    pub fn resolve(model: &str) -> Result<ModelSource, CheckpointError> {
        ModelSource::resolve_in(model, hub::cache_directory().as_deref())
    }

    fn resolve_in(model: &str, cache: Option<&Path>) -> Result<ModelSource, CheckpointError> {
        match fs::metadata(model) {
            Ok(metadata) if metadata.is_dir() => return ModelSource::directory(model),
            Ok(_) => return ModelSource::config_file(Path::new(model)),
            Err(error) if hub::is_absent(&error) => {}
            Err(source) => return Err(CheckpointError::Io { file: shown(model), source }),
        }
        if model == NANO {
            Ok(ModelSource::nano())
        } else if let Some(network) = published::find(model) {
            Ok(ModelSource::published(network))
        } else if let Some(id) = HubId::parse(model) {
            let path = hub::snapshot(&id, cache)?;
            Ok(ModelSource::snapshot(Some(id), path))
        } else if let Some(id) = hub::of_url(model) {
            Err(CheckpointError::HubAddress { url: shown(model), id: id.to_string() })
        } else {
            Err(CheckpointError::NoSuchModel { model: format!("\"{}\"", shown(model)) })
        }
    }

    /// The same for what needs the shapes only: the hub id of a published network need not be in the cache.
    ///
    /// # Errors
    /// As for [`ModelSource::resolve`].
    pub fn resolve_shape(model: &str) -> Result<ModelSource, CheckpointError> {
        match (ModelSource::resolve(model), published::find_repo(model)) {
            (Err(CheckpointError::NotInCache { .. }), Some(network)) => Ok(ModelSource::published(network)),
            (resolved, _) => resolved,
        }
    }

    fn published((name, json): (&'static str, &'static str)) -> ModelSource {
        let (json, name) = (Cow::Borrowed(json.as_bytes()), name.to_owned());
        ModelSource { place: Place::Shape { file: format!("{name} (bundled)"), name, json } }
    }

    /// The shape in a file by itself.
    fn config_file(path: &Path) -> Result<ModelSource, CheckpointError> {
        let shown_path = path.display().to_string();
        let Some(json) = read_config(path) else {
            let (found, advice) = marks::of_model_file(&first_bytes(path));
            return Err(CheckpointError::NotADirectory { path: shown_path, found, advice });
        };
        Ok(ModelSource { place: Place::Shape { name: shown_path.clone(), file: shown_path, json: Cow::Owned(json) } })
    }
}

/// The content of the file at `path` where that may be a config.json: an object with a `model_type`, or a malformed one
/// in a `.json`, which whoever parses it says.
fn read_config(path: &Path) -> Option<Vec<u8>> {
    if !path.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).ok()?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes).trim_ascii_start();
    if bytes.len() as u64 > MAX_JSON_BYTES || !text.starts_with(b"{") {
        return None;
    }
    let is_config = match Object::parse(&bytes, "") {
        Ok(object) => object.get("model_type").is_some(),
        // Several objects, one a line, are malformed, too.
        Err(_) => path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")),
    };
    is_config.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_directories_hub_ids_and_nano() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("model");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), "{}").unwrap();
        let source = ModelSource::resolve_in(model.to_str().unwrap(), None).unwrap();
        assert_eq!(source.to_string(), model.display().to_string());
        assert_eq!(source.read("config.json").unwrap().as_deref(), Some(&b"{}"[..]));
        assert_eq!(source.read("tokenizer.json").unwrap(), None);
        assert_eq!(source.describe("a.json"), model.join("a.json").display().to_string());

        let message = |model: &str| ModelSource::resolve_in(model, Some(root.path())).unwrap_err().to_string();
        let file = model.join("model.gguf");
        fs::write(&file, b"GGUF\x03").unwrap();
        assert!(
            message(file.to_str().unwrap())
                .contains("model.gguf is a GGUF file, which is not read yet; use the model's")
        );
        fs::write(&file, "text").unwrap();
        assert!(message(file.to_str().unwrap()).contains("model.gguf is not a directory; give the directory that"));
        assert!(message("/no/such/model").starts_with("no such model: \"/no/such/model\"; expected"));
        assert!(message("").starts_with("no such model: \"\""));
        assert!(message("8b").starts_with("no such model: \"8b\"; expected a checkpoint directory, a hub id"));
        assert_eq!(
            message("https://huggingface.co/o/m/tree/main"),
            "https://huggingface.co/o/m/tree/main is an address; give o/m"
        );
        assert!(message("no-such/model").starts_with("no-such/model is neither a directory nor in the local Hugging"));
        assert!(message("no-such/model").ends_with("download it with `hf download no-such/model`"));

        let snapshot = root.path().join("models--o--m/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        let source = ModelSource::resolve_in("o/m", Some(root.path())).unwrap();
        assert_eq!(source.to_string(), "o/m");
        assert_eq!(source.describe("config.json"), snapshot.join("config.json").display().to_string());
        assert_eq!(source.short_name(), "m");
        fs::create_dir_all(root.path().join("models--o--m/refs")).unwrap();
        fs::write(root.path().join("models--o--m/refs/v1"), "abc").unwrap();
        assert_eq!(ModelSource::resolve_in("o/m@v1", Some(root.path())).unwrap().to_string(), "o/m@v1");
        assert!(message("o/m@v2").ends_with("download it with `hf download o/m --revision v2`"));

        assert_eq!(ModelSource::resolve_in("nano", None).unwrap().to_string(), "nano (bundled)");
    }

    #[test]
    fn shapes_are_a_config_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("tiny");
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "other.json"] {
            fs::write(folder.join(name), "\u{feff} {\"model_type\": \"x\"}").unwrap();
        }
        let resolve = |text: &str| ModelSource::resolve_in(text, None).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        for (text, short) in [
            (at("config.json"), "tiny"),
            (at("other.json"), "other"),
            ("15B".to_owned(), "starcoder2-15b"),
            ("StarCoder2-3B".to_owned(), "starcoder2-3b"),
        ] {
            let source = resolve(&text);
            assert!(source.is_shape(), "{text}");
            assert_eq!(source.short_name(), short);
            assert!(source.read("config.json").unwrap().is_some() && source.read("tokenizer.json").unwrap().is_none());
            let message = super::super::Checkpoint::open(&source).unwrap_err().to_string();
            assert!(message.ends_with(" is a shape without weights; give a checkpoint"), "{message}");
        }
        assert_eq!(resolve(&at("other.json")).describe("config.json"), at("other.json"));
        assert_eq!(resolve(&at("")).short_name(), "tiny");
        assert!(!resolve(&at("")).is_shape());
        assert!(ModelSource::resolve_shape("bigcode/starcoder2-7b").is_ok());
    }

    #[test]
    fn other_objects_are_no_shape() {
        let root = tempfile::tempdir().unwrap();
        let resolve = |name: &str, content: &str| {
            let path = root.path().join(name);
            fs::write(&path, content).unwrap();
            ModelSource::resolve_in(path.to_str().unwrap(), None)
        };
        for (name, content) in [
            ("prompts.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n"),
            ("prompt.jsonl", "{\"prompt\": \"a\"}\n"),
            ("prompt.json", "{\"prompt\": \"a\"}"),
            ("main.c", "{ return 0; }"),
        ] {
            let message = resolve(name, content).unwrap_err().to_string();
            assert!(message.contains(&format!("{name} is not a directory; give the directory that")), "{message}");
        }
        // Cut short: whoever parses it says so.
        assert!(resolve("config.json", "{\"model_type\": \"starcoder2\",").unwrap().is_shape());
        assert!(resolve("tiny", "{\"model_type\": \"starcoder2\"}").unwrap().is_shape());
    }

    #[cfg(unix)]
    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_absent() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        let path = root.path().join("loop/model");
        let message = ModelSource::resolve_in(path.to_str().unwrap(), None).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{} cannot be read: ", path.display())), "{message}");
        let message = ModelSource::directory(path).unwrap_err().to_string();
        assert!(message.contains("cannot be read: "), "{message}");
    }
}
