//! Networks to measure without a checkpoint: by the name of a published one, by a config.json, or by a model that has
//! one.

use crate::checkpoint::{CheckpointError, Config, ModelSource, PUBLISHED};
use crate::model::ModelSpec;

/// A network's configuration, and what to call it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shapes {
    /// `starcoder2-15b`, or the name of the folder or file that it came from.
    pub name: String,
    /// Its config.json, as it was written.
    pub json: String,
    /// What that says.
    pub config: Config,
    /// What follows from that.
    pub spec: ModelSpec,
}

impl Shapes {
    /// The network that `text` names, as [`ModelSource::resolve_shape`] finds it.
    ///
    /// # Errors
    /// Nothing of that name; no configuration, or an unsupported one.
    pub fn resolve(text: &str) -> Result<Shapes, CheckpointError> {
        Shapes::of_source(&ModelSource::resolve_shape(text)?)
    }

    /// The network of a model, by its config.json alone.
    ///
    /// # Errors
    /// No configuration, or an unsupported one.
    pub fn of_source(source: &ModelSource) -> Result<Shapes, CheckpointError> {
        let json = source.config_json()?;
        Shapes::parse(&source.short_name(), &json, &source.describe("config.json"))
    }

    /// All published networks.
    ///
    /// # Errors
    /// None: they are tested.
    pub fn published() -> Result<Vec<Shapes>, CheckpointError> {
        PUBLISHED.iter().map(|(name, json)| Shapes::parse(name, json.as_bytes(), name)).collect()
    }

    /// The network that the content of a config.json describes; `file` is its path, for messages.
    ///
    /// # Errors
    /// Malformed or unsupported content.
    pub fn parse(name: &str, bytes: &[u8], file: &str) -> Result<Shapes, CheckpointError> {
        let config = Config::parse(bytes, file)?;
        let spec = ModelSpec::from_config(&config)?;
        // It was parsed: it is UTF-8.
        let json = String::from_utf8_lossy(bytes).into_owned();
        Ok(Shapes { name: name.to_owned(), json, config, spec })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn networks_have_several_names() {
        for text in ["starcoder2-7b", "7B", "bigcode/starcoder2-7b"] {
            let shapes = Shapes::resolve(text).unwrap();
            assert_eq!((shapes.name.as_str(), shapes.spec.hidden_size), ("starcoder2-7b", 4608));
        }
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("tiny");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), PUBLISHED[0].1).unwrap();
        fs::copy(folder.join("config.json"), folder.join("other.json")).unwrap();
        let name = |path: &Path| Shapes::resolve(path.to_str().unwrap()).unwrap().name;
        assert_eq!(name(&folder), "tiny");
        assert_eq!(name(&folder.join("config.json")), "tiny");
        assert_eq!(name(&folder.join("other.json")), "other");
        #[cfg(feature = "nano")]
        assert_eq!(Shapes::resolve("nano").unwrap().name, "nano");
        assert_eq!(Shapes::published().unwrap().len(), 3);
        assert!(matches!(Shapes::resolve("8b"), Err(CheckpointError::NoSuchModel { .. })));
        let missing = Shapes::resolve(directory.path().to_str().unwrap());
        assert!(matches!(missing, Err(CheckpointError::MissingFile { .. })), "{missing:?}");
    }
}
