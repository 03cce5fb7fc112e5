//! Networks to measure without a checkpoint: by the name of a published one, or by a config.json.

use std::fs;
use std::path::Path;

use crate::checkpoint::{CheckpointError, Config};
use crate::model::ModelSpec;

/// The published networks that are part of this program, by name, smallest first.
pub const PUBLISHED: [(&str, &str); 3] = [
    ("starcoder2-3b", include_str!("../../models/configs/starcoder2-3b.json")),
    ("starcoder2-7b", include_str!("../../models/configs/starcoder2-7b.json")),
    ("starcoder2-15b", include_str!("../../models/configs/starcoder2-15b.json")),
];

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

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShapesError {
    /// Neither a published one nor a file.
    #[error("no network \"{text}\": give starcoder2-3b, -7b or -15b, a config.json, or a folder that holds one")]
    Unknown {
        /// What was asked for.
        text: String,
    },
    /// A file that cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// Its path.
        file: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// One that is no configuration.
    #[error(transparent)]
    Config(#[from] CheckpointError),
}

impl Shapes {
    /// The network of this name, config.json, or folder with a config.json. `starcoder2-` and what stands before it may
    /// be left out of a published name.
    ///
    /// # Errors
    /// [`ShapesError`].
    pub fn resolve(text: &str) -> Result<Shapes, ShapesError> {
        let path = Path::new(text);
        if path.exists() {
            let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
            let shown = file.display().to_string();
            let bytes = fs::read(&file).map_err(|source| ShapesError::Read { file: shown.clone(), source })?;
            return Shapes::parse(&called(path, &file), &bytes, &shown);
        }
        let short = text.strip_prefix("bigcode/").unwrap_or(text);
        let named = |(name, _): &&(&str, &str)| *name == short || name.strip_prefix("starcoder2-") == Some(short);
        match PUBLISHED.iter().find(named) {
            Some((name, json)) => Shapes::parse(name, json.as_bytes(), name),
            None => Err(ShapesError::Unknown { text: text.to_owned() }),
        }
    }

    /// All published networks.
    ///
    /// # Errors
    /// None: they are tested.
    pub fn published() -> Result<Vec<Shapes>, ShapesError> {
        PUBLISHED.iter().map(|(name, json)| Shapes::parse(name, json.as_bytes(), name)).collect()
    }

    /// The network that the content of a config.json describes; `file` is its path, for messages.
    ///
    /// # Errors
    /// [`ShapesError::Config`].
    pub fn parse(name: &str, bytes: &[u8], file: &str) -> Result<Shapes, ShapesError> {
        let config = Config::parse(bytes, file)?;
        let spec = ModelSpec::from_config(&config)?;
        // It was parsed: it is UTF-8.
        let json = String::from_utf8_lossy(bytes).into_owned();
        Ok(Shapes { name: name.to_owned(), json, config, spec })
    }
}

/// The folder's name for a config.json, the file's own for another.
fn called(asked: &Path, file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if stem != "config" {
        return stem;
    }
    let folder = if asked.is_dir() { Some(asked) } else { asked.parent() };
    let folder = folder.and_then(|folder| folder.canonicalize().ok());
    folder.and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())).unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_several_names() {
        for text in ["starcoder2-7b", "7b", "bigcode/starcoder2-7b"] {
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
        assert_eq!(Shapes::published().unwrap().len(), 3);
        assert!(matches!(Shapes::resolve("8b"), Err(ShapesError::Unknown { .. })));
        assert!(matches!(Shapes::resolve(directory.path().to_str().unwrap()), Err(ShapesError::Read { .. })));
    }
}
