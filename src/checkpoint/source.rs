//! Where a model's files come from: a directory, the local Hugging Face cache, or the binary itself.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::CONFIG;
use super::bundled;
use super::error::{CheckpointError, shown};
use super::hub::{self, HubId};
use super::json::MAX_JSON_BYTES;
use super::loading::Loader;
use super::mapping::Mapping;
use super::marks;

/// The name of the bundled model.
pub(super) const NANO: &str = "nano";

/// The largest file that [`ModelSource::read`] reads, in bytes. The largest published tokenizer.json are about 30 MB.
const MAX_READ_BYTES: u64 = 256 << 20;

/// Where a model's files come from.
#[derive(Debug, Clone)]
pub struct ModelSource {
    pub(super) place: Place,
}

/// The place itself; what can be read there is `ModelSource`'s.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Bundled,
    /// In memory, under a name for messages: there are no files.
    Memory {
        name: String,
    },
    Directory {
        path: PathBuf,
        hub_id: Option<HubId>,
    },
    /// A config.json without weights: a published network's, or a file by itself.
    Shape {
        name: String,
        /// Where it comes from, for messages.
        file: String,
        json: Cow<'static, [u8]>,
    },
}

impl ModelSource {
    /// The small checkpoint of the crate `rigel-nano`, part of the program with the cargo feature `nano` (a default).
    /// Without the feature [`CheckpointError::NoBundledModel`] is the answer to every attempt to read it.
    pub fn nano() -> ModelSource {
        ModelSource { place: Place::Bundled }
    }

    /// A checkpoint that is in no file; `name` is for messages.
    pub(crate) fn in_memory(name: &str) -> ModelSource {
        ModelSource { place: Place::Memory { name: name.to_owned() } }
    }

    /// A snapshot in the Hugging Face cache.
    pub(super) fn snapshot(hub_id: Option<HubId>, path: PathBuf) -> ModelSource {
        ModelSource { place: Place::Directory { path, hub_id } }
    }

    /// Whether this is a config.json alone: shapes, without weights or a tokenizer.
    pub fn is_shape(&self) -> bool {
        matches!(self.place, Place::Shape { .. })
    }

    /// What tables call the model: the last part of its id or path, without the revision.
    pub fn short_name(&self) -> String {
        let path = match &self.place {
            Place::Bundled => return NANO.to_owned(),
            Place::Memory { name } => return name.clone(),
            Place::Directory { hub_id: Some(id), .. } => Path::new(id.repo()),
            Place::Directory { path, .. } => path,
            Place::Shape { name, .. } => Path::new(name),
        };
        let stem = match &self.place {
            Place::Shape { .. } if path.extension().is_some_and(|extension| extension == "json") => path.file_stem(),
            Place::Shape { .. } => return self.to_string(),
            _ => path.file_name(),
        };
        // `.` and `..` have no name, and `config.json` says nothing.
        let named = stem.filter(|stem| *stem != "config").map(|stem| stem.to_string_lossy().into_owned());
        named.unwrap_or_else(|| {
            let folder = fs::canonicalize(path).ok();
            let folder = folder.as_deref().map(|full| if full.is_dir() { full } else { full.parent().unwrap_or(full) });
            let name = folder.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
            name.unwrap_or_else(|| self.to_string())
        })
    }

    /// The checkpoint in the directory `path`.
    ///
    /// # Errors
    /// The path does not exist, is not a directory, or may not be looked at.
    pub fn directory(path: impl Into<PathBuf>) -> Result<ModelSource, CheckpointError> {
        let path = path.into();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(ModelSource::snapshot(None, path)),
            Ok(_) => {
                let (found, advice) = marks::of_model_file(&first_bytes(&path));
                Err(CheckpointError::NotADirectory { path: path.display().to_string(), found, advice })
            }
            Err(error) if hub::is_absent(&error) => {
                Err(CheckpointError::NoSuchDirectory { path: format!("\"{}\"", shown(&path.to_string_lossy())) })
            }
            Err(source) => Err(CheckpointError::Io { file: path.display().to_string(), source }),
        }
    }

    /// The whole content of the text file `name`, such as `tokenizer.json`; `None` where there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read, is no regular file, or is larger than 256 MiB; a link to nothing, which an
    /// interrupted download leaves in the Hugging Face cache.
    pub fn read(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
        self.read_up_to(name, MAX_READ_BYTES)
    }

    pub(super) fn read_up_to(&self, name: &str, limit: u64) -> Result<Option<Cow<'static, [u8]>>, CheckpointError> {
        let path = match &self.place {
            Place::Bundled => return Ok(bundled::file(name)?.map(Cow::Borrowed)),
            Place::Memory { .. } => return Ok(None),
            Place::Shape { json, .. } => return Ok((name == CONFIG).then(|| json.clone())),
            Place::Directory { path, .. } => path.join(name),
        };
        let wrong = |found: String| CheckpointError::File {
            file: self.describe(name),
            found,
            expected: format!("a text file of at most {limit} bytes"),
            advice: "replace it by the model's own file",
        };
        if !self.has(name)? {
            return Ok(None);
        }
        let io = |source| CheckpointError::Io { file: self.describe(name), source };
        // Asked for before the file is opened: opening a pipe would wait for its writer.
        let metadata = fs::metadata(&path).map_err(io)?;
        if !metadata.is_file() {
            return Err(wrong("something that is not a regular file".to_owned()));
        }
        let mut bytes = Vec::new();
        if metadata.len() <= limit {
            // One byte more than allowed, to notice a file that grows.
            File::open(&path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
        }
        let length = metadata.len().max(bytes.len() as u64);
        if length > limit { Err(wrong(format!("{length} bytes"))) } else { Ok(Some(Cow::Owned(bytes))) }
    }

    /// The content of config.json.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn config_json(&self) -> Result<Cow<'static, [u8]>, CheckpointError> {
        let missing =
            || CheckpointError::MissingFile { file: self.describe(CONFIG), advice: marks::without_config(self) };
        self.read_up_to(CONFIG, MAX_JSON_BYTES)?.ok_or_else(missing)
    }

    /// Whether the file `name` is there.
    ///
    /// # Errors
    /// A link to nothing; a directory that may not be searched.
    pub(super) fn has(&self, name: &str) -> Result<bool, CheckpointError> {
        let path = match &self.place {
            Place::Bundled => return Ok(bundled::file(name)?.is_some()),
            Place::Memory { .. } => return Ok(false),
            Place::Shape { .. } => return Ok(name == CONFIG),
            Place::Directory { path, .. } => path.join(name),
        };
        match fs::metadata(&path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CheckpointError::Io { file: self.describe(name), source: error })
            }
            Err(_) if fs::symlink_metadata(&path).is_ok() => Err(CheckpointError::MissingFile {
                file: format!("the target of the link {}", self.describe(name)),
                advice: self.how_to_get(name),
            }),
            Err(_) => Ok(false),
        }
    }

    /// The weight file `name`, mapped or read. The caller has made sure that the name stays inside the directory.
    pub(super) fn load(&self, name: &str, loader: &mut Loader<'_>) -> Result<Mapping, CheckpointError> {
        let file = self.describe(name);
        let mapping = match &self.place {
            Place::Bundled => bundled::file(name)?.map(|bytes| Mapping::of_static(bytes, file.clone())),
            Place::Directory { path, .. } if self.has(name)? => Some(match loader {
                Loader::Mmap => Mapping::open(&path.join(name), file.clone())?,
                Loader::Read(reader) => Mapping::read(&path.join(name), file.clone(), reader)?,
            }),
            Place::Directory { .. } | Place::Memory { .. } | Place::Shape { .. } => None,
        };
        mapping.ok_or_else(|| CheckpointError::MissingFile { file, advice: self.how_to_get(name) })
    }

    /// Bytes of the file `name`; 0 where there is none, and of the bundled model, whose files are in memory.
    pub(super) fn file_bytes(&self, name: &str) -> u64 {
        match &self.place {
            Place::Bundled | Place::Memory { .. } | Place::Shape { .. } => 0,
            Place::Directory { path, .. } => fs::metadata(path.join(name)).map_or(0, |metadata| metadata.len()),
        }
    }

    /// Names of the files in the directory, sorted; for the message about a directory without usable weights.
    pub(super) fn file_names(&self) -> Vec<String> {
        self.names_in(".")
    }

    /// Names of the files in a folder of the directory, sorted; for messages.
    pub(crate) fn names_in(&self, folder: &str) -> Vec<String> {
        let Place::Directory { path, .. } = &self.place else { return Vec::new() };
        let entries = fs::read_dir(path.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The path of the file `name`, for messages.
    pub fn describe(&self, name: &str) -> String {
        match &self.place {
            Place::Shape { file, .. } if name == CONFIG => file.clone(),
            Place::Bundled | Place::Memory { .. } | Place::Shape { .. } => format!("{self}/{name}"),
            Place::Directory { path, .. } => path.join(name).display().to_string(),
        }
    }

    /// What to do about the file `name` that is not there.
    pub(super) fn how_to_get(&self, name: &str) -> String {
        match &self.place {
            Place::Bundled => "rebuild rigel from a complete source tree".to_owned(),
            Place::Memory { .. } | Place::Shape { .. } => format!("use a model with a {name}"),
            Place::Directory { hub_id: Some(id), .. } => format!("download it with `{}`", id.download_command()),
            Place::Directory { .. } => {
                format!("copy {name} from the model's repository, or check that this is a Hugging Face checkpoint")
            }
        }
    }
}

/// The first bytes of the file at `path`; none where it is no regular file or cannot be read.
pub(super) fn first_bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if path.is_file()
        && let Ok(file) = File::open(path)
    {
        // What cannot be read is not looked at: the path is no directory all the same.
        let _ = file.take(marks::CONTENT_BYTES as u64).read_to_end(&mut bytes);
    }
    bytes
}

/// How a user would name the model: the hub id, the path, or that it is the bundled one.
impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Bundled => write!(f, "{NANO} (bundled)"),
            Place::Memory { name } => f.write_str(name),
            Place::Directory { hub_id: Some(id), .. } => id.fmt(f),
            Place::Shape { name, .. } => f.write_str(name),
            Place::Directory { path, hub_id: None } => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "nano")]
    #[test]
    fn the_bundled_model_has_its_files_and_no_others() {
        assert!(ModelSource::nano().read("config.json").unwrap().is_some());
        assert!(ModelSource::nano().read("chat_template.jinja").unwrap().is_none());
    }

    #[test]
    fn files_that_cannot_be_text() {
        let root = tempfile::tempdir().unwrap();
        let source = ModelSource::directory(root.path()).unwrap();
        fs::create_dir(root.path().join("config.json")).unwrap();
        let message = source.read("config.json").unwrap_err().to_string();
        assert!(message.contains("config.json: found something that is not a regular file"), "{message}");
        // A sparse file: its length alone must be enough to refuse it.
        File::create(root.path().join("big.json")).unwrap().set_len(1 << 32).unwrap();
        let message = source.read("big.json").unwrap_err().to_string();
        assert!(message.contains("big.json: found 4294967296 bytes, expected a text file of at most"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_dangling_ones_are_named() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = root.path().join("models--o--m/snapshots/abc");
        let blobs = root.path().join("models--o--m/blobs");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("1234"), "{}").unwrap();
        std::os::unix::fs::symlink("../../blobs/1234", snapshot.join("config.json")).unwrap();
        std::os::unix::fs::symlink("../../blobs/5678", snapshot.join("tokenizer.json")).unwrap();
        let source = ModelSource::snapshot(HubId::parse("o/m"), snapshot.clone());
        assert_eq!(source.read("config.json").unwrap().as_deref(), Some(&b"{}"[..]));
        let message = source.read("tokenizer.json").unwrap_err().to_string();
        assert!(message.starts_with("the target of the link "), "{message}");
        assert!(message.ends_with("tokenizer.json is missing; download it with `hf download o/m`"), "{message}");
    }
}
