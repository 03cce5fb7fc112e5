//! Where a model's files come from: a directory, the local Hugging Face cache, or the binary itself.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::bundled;
use super::error::{CheckpointError, shown};
use super::hub;
use super::loading::Loader;
use super::mapping::Mapping;
use super::marks;

/// The name of the bundled model.
const NANO: &str = "nano";

/// The largest file that [`ModelSource::read`] reads, in bytes. The largest published tokenizer.json are about 30 MB.
const MAX_READ_BYTES: u64 = 256 << 20;

/// Where a model's files come from.
#[derive(Debug, Clone)]
pub struct ModelSource {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Bundled,
    /// In memory, under a name for messages: there are no files.
    Memory {
        name: String,
    },
    Directory {
        path: PathBuf,
        hub_id: Option<String>,
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

    /// Finds `model`: an existing directory, else a hub id `org/name` in the local Hugging Face cache, else `nano`, the
    /// bundled one.
    ///
    /// # Errors
    /// Nothing of that name; for a hub id the message says the command that downloads it.
    pub fn resolve(model: &str) -> Result<ModelSource, CheckpointError> {
        ModelSource::resolve_in(model, hub::hub_cache_directory().as_deref())
    }

    fn resolve_in(model: &str, cache: Option<&Path>) -> Result<ModelSource, CheckpointError> {
        if Path::new(model).exists() {
            ModelSource::directory(model)
        } else if hub::is_hub_id(model) {
            let path = hub::snapshot(model, cache)?;
            Ok(ModelSource { place: Place::Directory { path, hub_id: Some(model.to_owned()) } })
        } else if model == NANO {
            Ok(ModelSource::nano())
        } else {
            Err(CheckpointError::NoSuchDirectory { model: format!("\"{}\"", shown(model)) })
        }
    }

    /// The checkpoint in the directory `path`.
    ///
    /// # Errors
    /// The path does not exist or is not a directory.
    pub fn directory(path: impl Into<PathBuf>) -> Result<ModelSource, CheckpointError> {
        let path = path.into();
        if path.is_dir() {
            Ok(ModelSource { place: Place::Directory { path, hub_id: None } })
        } else if path.exists() {
            let (found, advice) = marks::of_model_file(&first_bytes(&path));
            Err(CheckpointError::NotADirectory { path: path.display().to_string(), found, advice })
        } else {
            Err(CheckpointError::NoSuchDirectory { model: format!("\"{}\"", shown(&path.to_string_lossy())) })
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

    /// Whether the file `name` is there.
    ///
    /// # Errors
    /// A link to nothing; a directory that may not be searched.
    pub(super) fn has(&self, name: &str) -> Result<bool, CheckpointError> {
        let path = match &self.place {
            Place::Bundled => return Ok(bundled::file(name)?.is_some()),
            Place::Memory { .. } => return Ok(false),
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
            Place::Directory { .. } | Place::Memory { .. } => None,
        };
        mapping.ok_or_else(|| CheckpointError::MissingFile { file, advice: self.how_to_get(name) })
    }

    /// Bytes of the file `name`; 0 where there is none, and of the bundled model, whose files are in memory.
    pub(super) fn file_bytes(&self, name: &str) -> u64 {
        match &self.place {
            Place::Bundled | Place::Memory { .. } => 0,
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
            Place::Bundled | Place::Memory { .. } => format!("{self}/{name}"),
            Place::Directory { path, .. } => path.join(name).display().to_string(),
        }
    }

    /// What to do about the file `name` that is not there.
    pub(super) fn how_to_get(&self, name: &str) -> String {
        match &self.place {
            Place::Bundled => "rebuild rigel from a complete source tree".to_owned(),
            Place::Memory { .. } => format!("use a model with a {name}"),
            Place::Directory { hub_id: Some(id), .. } => format!("download it with `hf download {id}`"),
            Place::Directory { .. } => {
                format!("copy {name} from the model's repository, or check that this is a Hugging Face checkpoint")
            }
        }
    }
}

/// The first bytes of the file at `path`; none where it is no regular file or cannot be read.
fn first_bytes(path: &Path) -> Vec<u8> {
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
            Place::Directory { hub_id: Some(id), .. } => f.write_str(id),
            Place::Directory { path, hub_id: None } => write!(f, "{}", path.display()),
        }
    }
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
        let file = model.join("config.json");
        assert!(message(file.to_str().unwrap()).contains("config.json is not a directory; give the directory that"));
        fs::write(&file, b"GGUF\x03").unwrap();
        assert!(
            message(file.to_str().unwrap()).contains("config.json is a GGUF file, which is not supported; use the mod")
        );
        fs::write(&file, "{}").unwrap();
        assert!(message("/no/such/model").starts_with("no such directory: \"/no/such/model\"; expected"));
        assert!(message("").starts_with("no such directory: \"\""));
        assert!(message("no-such/model").starts_with("no-such/model is neither a directory nor in the local Hugging"));
        assert!(message("no-such/model").ends_with("download it with `hf download no-such/model`"));

        let snapshot = root.path().join("models--o--m/snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        let source = ModelSource::resolve_in("o/m", Some(root.path())).unwrap();
        assert_eq!(source.to_string(), "o/m");
        assert_eq!(source.describe("config.json"), snapshot.join("config.json").display().to_string());

        assert_eq!(ModelSource::resolve_in("nano", None).unwrap().to_string(), "nano (bundled)");
    }

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
        let source = ModelSource::resolve_in("o/m", Some(root.path())).unwrap();
        assert_eq!(source.read("config.json").unwrap().as_deref(), Some(&b"{}"[..]));
        let message = source.read("tokenizer.json").unwrap_err().to_string();
        assert!(message.starts_with("the target of the link "), "{message}");
        assert!(message.ends_with("tokenizer.json is missing; download it with `hf download o/m`"), "{message}");
    }
}
