//! A config.json without weights: a file, a checkpoint's, or one of the published models'.

use std::borrow::Cow;
use std::path::Path;

use super::CONFIG;
use super::config::Config;
use super::error::{CheckpointError, DOWNLOAD_AGAIN};
use super::json::MAX_JSON_BYTES;
use super::source::ModelSource;

/// The published models' config.json, by the name of the model.
const PUBLISHED: [(&str, &str); 3] = [
    ("starcoder2-3b", include_str!("../../models/configs/starcoder2-3b.json")),
    ("starcoder2-7b", include_str!("../../models/configs/starcoder2-7b.json")),
    ("starcoder2-15b", include_str!("../../models/configs/starcoder2-15b.json")),
];

/// A config.json, as it was written and as it was read.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// What it says.
    pub config: Config,
    /// Its content, one JSON object.
    pub json: Cow<'static, [u8]>,
}

impl ConfigFile {
    /// Finds `what`: a file, the directory of a checkpoint, whose weights need not be there, a published model
    /// (`starcoder2-3b`, `-7b`, `-15b`), `nano`, or a hub id in the local Hugging Face cache.
    ///
    /// # Errors
    /// Nothing of that name; a file that cannot be read or that says what cannot be.
    pub fn find(what: &str) -> Result<ConfigFile, CheckpointError> {
        let path = Path::new(what);
        let (json, file) = if path.is_file() {
            (Cow::Owned(read(path)?), path.display().to_string())
        } else if let Some((name, json)) = PUBLISHED.iter().find(|(name, _)| *name == what && !path.exists()) {
            (Cow::Borrowed(json.as_bytes()), format!("{name}.json"))
        } else {
            let source = match ModelSource::resolve(what) {
                Err(CheckpointError::NoSuchDirectory { model }) => return Err(unknown(model)),
                other => other?,
            };
            let missing =
                || CheckpointError::MissingFile { file: source.describe(CONFIG), advice: source.how_to_get(CONFIG) };
            (source.read_up_to(CONFIG, MAX_JSON_BYTES)?.ok_or_else(missing)?, source.describe(CONFIG))
        };
        Ok(ConfigFile { config: Config::parse(&json, &file)?, json })
    }

    /// What to call the network: the name of the file, or of the directory that a config.json lies in.
    pub fn name(&self) -> String {
        let path = Path::new(&self.config.file);
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let parent = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        match parent {
            Some(parent) if stem == "config" => parent,
            _ => stem,
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let file = path.display().to_string();
    let io = |source| CheckpointError::Io { file: file.clone(), source };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_JSON_BYTES {
        let expected = format!("a config.json of at most {MAX_JSON_BYTES} bytes");
        let found = format!("{length} bytes");
        return Err(CheckpointError::File { file, found, expected, advice: DOWNLOAD_AGAIN });
    }
    std::fs::read(path).map_err(io)
}

fn unknown(model: String) -> CheckpointError {
    CheckpointError::NoSuchConfig { config: model, known: PUBLISHED.map(|(name, _)| name).join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_files_directories_and_published_models() {
        let found = |what: &str| ConfigFile::find(what).unwrap();
        for (name, layers) in [("starcoder2-3b", 30), ("starcoder2-7b", 32), ("starcoder2-15b", 40)] {
            let published = found(name);
            assert_eq!((published.config.num_hidden_layers, published.name().as_str()), (layers, name));
        }
        assert!(found("nano").config.num_hidden_layers < 30);
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("tiny");
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), r#"{"model_type":"starcoder2","num_hidden_layers":2}"#).unwrap();
        for path in [model.clone(), model.join("config.json")] {
            let file = found(path.to_str().unwrap());
            assert_eq!((file.config.num_hidden_layers, file.name().as_str()), (2, "tiny"));
        }
    }

    #[test]
    fn what_is_not_found_is_said_with_what_there_is() {
        let message = |what: &str| ConfigFile::find(what).unwrap_err().to_string();
        let said = message("starcoder2-16b");
        assert!(said.starts_with("no such configuration: \"starcoder2-16b\"; expected a config.json, "), "{said}");
        assert!(said.contains("starcoder2-3b, starcoder2-7b, starcoder2-15b"), "{said}");
        let directory = tempfile::tempdir().unwrap();
        let said = message(directory.path().to_str().unwrap());
        assert!(said.contains("config.json is missing"), "{said}");
        let file = directory.path().join("x.json");
        std::fs::write(&file, "[]").unwrap();
        assert!(message(file.to_str().unwrap()).contains("expected a JSON object"));
    }
}
