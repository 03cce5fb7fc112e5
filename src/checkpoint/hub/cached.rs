//! The models that the local Hugging Face cache holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::error::CheckpointError;
use super::super::source::ModelSource;
use super::{HubId, cache_directory, commits, present, referenced};

/// Folders in a snapshot are not nested deeper.
const MAX_K: usize = 16;

/// A model in the local Hugging Face cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedModel {
    /// `ORG/NAME`, or the name alone of the hub's oldest models.
    pub id: String,
    /// Its directory in the cache.
    pub path: PathBuf,
    /// Its snapshots, by commit.
    pub snapshots: Vec<CachedSnapshot>,
    /// Bytes on disk: all snapshots, files that are not whole, and what no snapshot refers to.
    pub bytes: u64,
}

/// One revision of a cached model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CachedSnapshot {
    /// The commit's hash.
    pub commit: String,
    /// Branches and tags at this commit, sorted.
    pub refs: Vec<String>,
    /// The directory with its files.
    pub path: PathBuf,
    /// Bytes of its files; snapshots may share them.
    pub bytes: u64,
}

impl CachedModel {
    /// The hub id of one of its snapshots: with the commit, except for that of `main`. `None` for a model whose name is
    /// no `ORG/NAME`.
    pub fn hub_id(&self, snapshot: &CachedSnapshot) -> Option<HubId> {
        let id = HubId::parse(&self.id)?;
        if snapshot.refs.iter().any(|name| name == "main") {
            return Some(id);
        }
        id.at(&snapshot.commit)
    }

    /// The files of one of its snapshots.
    pub fn source(&self, snapshot: &CachedSnapshot) -> ModelSource {
        ModelSource::snapshot(self.hub_id(snapshot), snapshot.path.clone())
    }

    /// The snapshot that `revision` names: a branch or tag, a commit, or the beginning of one.
    pub fn find(&self, revision: &str) -> Option<&CachedSnapshot> {
        let named = |snapshot: &&CachedSnapshot| snapshot.refs.iter().any(|name| name == revision);
        let commits: Vec<String> = self.snapshots.iter().map(|snapshot| snapshot.commit.clone()).collect();
        self.snapshots.iter().find(named).or_else(|| {
            let commit = super::by_commit(&commits, revision)?;
            self.snapshots.iter().find(|snapshot| snapshot.commit == commit)
        })
    }
}

/// The models in the local Hugging Face cache, by name; none where there is no cache.
///
/// # Errors
/// A directory that may not be read.
pub fn cached_models() -> Result<Vec<CachedModel>, CheckpointError> {
    cache_directory().map_or(Ok(Vec::new()), |cache| cached_models_in(&cache))
}

pub(super) fn cached_models_in(cache: &Path) -> Result<Vec<CachedModel>, CheckpointError> {
    let mut models = Vec::new();
    for entry in present(fs::read_dir(cache), cache)?.into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = name.strip_prefix("models--").map(|id| id.replacen("--", "/", 1)) else { continue };
        if entry.path().is_dir() {
            models.push(model(id, entry.path())?);
        }
    }
    models.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(models)
}

fn model(id: String, path: PathBuf) -> Result<CachedModel, CheckpointError> {
    let mut refs = BTreeMap::<String, Vec<String>>::new();
    for name in files(&path.join("refs"))? {
        let name = name.to_string_lossy().replace('\\', "/");
        if let Some(commit) = referenced(&path, &name)? {
            refs.entry(commit).or_default().push(name);
        }
    }
    let folder = path.join("snapshots");
    let snapshots = commits(&folder)?.into_iter().map(|commit| {
        let path = folder.join(&commit);
        let mut refs = refs.remove(&commit).unwrap_or_default();
        refs.sort();
        let mut targets = BTreeMap::new();
        for name in files(&path)? {
            let file = path.join(name);
            // A link to nothing takes no room.
            if let Ok(metadata) = fs::metadata(&file) {
                targets.insert(fs::canonicalize(&file).unwrap_or(file), metadata.len());
            }
        }
        Ok(CachedSnapshot { commit, refs, path, bytes: targets.values().sum() })
    });
    let snapshots = snapshots.collect::<Result<_, CheckpointError>>()?;
    let mut bytes = 0;
    for folder in ["blobs", "snapshots"].map(|folder| path.join(folder)) {
        let lengths = files(&folder)?.into_iter().filter_map(|name| fs::symlink_metadata(folder.join(name)).ok());
        bytes += lengths.filter(fs::Metadata::is_file).map(|metadata| metadata.len()).sum::<u64>();
    }
    Ok(CachedModel { id, path, snapshots, bytes })
}

/// What is below the directory and is no directory itself, as paths inside it. Links are not followed.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let path = directory.join(&folder);
        for entry in present(fs::read_dir(&path), &path)?.into_iter().flatten().flatten() {
            let name = folder.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < MAX_K => folders.push((name, depth + 1)),
                Ok(kind) if kind.is_dir() => {}
                _ => found.push(name),
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A cache with a model of two snapshots that share a blob.
    #[cfg(unix)]
    pub fn cache() -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--o--m");
        for folder in ["blobs", "refs/refs/pr", "snapshots/aaaaaaaa/nested", "snapshots/bbbbbbbb"] {
            fs::create_dir_all(model.join(folder)).unwrap();
        }
        for (blob, bytes) in [("one", 1), ("both", 10), ("two", 100), ("other.incomplete", 1000)] {
            fs::write(model.join("blobs").join(blob), vec![0; bytes]).unwrap();
        }
        for (link, target) in [
            ("aaaaaaaa/one.json", "../../blobs/one"),
            ("aaaaaaaa/nested/both.json", "../../../blobs/both"),
            ("aaaaaaaa/gone.json", "../../blobs/gone"),
            ("bbbbbbbb/both.json", "../../blobs/both"),
            ("bbbbbbbb/again.json", "../../blobs/both"),
            ("bbbbbbbb/two.json", "../../blobs/two"),
        ] {
            std::os::unix::fs::symlink(target, model.join("snapshots").join(link)).unwrap();
        }
        for (name, commit) in [("main", "bbbbbbbb"), ("v1", "aaaaaaaa"), ("refs/pr/1", "bbbbbbbb")] {
            fs::write(model.join("refs").join(name), commit).unwrap();
        }
        fs::create_dir_all(cache.path().join("models--gpt2/snapshots")).unwrap();
        fs::create_dir_all(cache.path().join("datasets--o--m/snapshots")).unwrap();
        fs::create_dir_all(cache.path().join(".locks/models--o--m")).unwrap();
        fs::write(cache.path().join("models--file"), "").unwrap();
        cache
    }

    #[cfg(unix)]
    #[test]
    fn models_have_snapshots_and_sizes() {
        let cache = cache();
        let models = cached_models_in(cache.path()).unwrap();
        let [gpt2, model] = &models[..] else { panic!("{models:?}") };
        assert_eq!((gpt2.id.as_str(), gpt2.bytes, gpt2.snapshots.len()), ("gpt2", 0, 0));
        assert_eq!((model.id.as_str(), model.bytes), ("o/m", 1111));
        let [first, second] = &model.snapshots[..] else { panic!("{model:?}") };
        assert_eq!((first.commit.as_str(), first.bytes), ("aaaaaaaa", 11));
        assert_eq!(first.refs, ["v1"]);
        assert_eq!((second.commit.as_str(), second.bytes), ("bbbbbbbb", 110));
        assert_eq!(second.refs, ["main", "refs/pr/1"]);
        assert_eq!(model.source(second).to_string(), "o/m");
        assert_eq!(model.source(first).to_string(), "o/m@aaaaaaaa");
        for (revision, commit) in [("main", "bbbbbbbb"), ("refs/pr/1", "bbbbbbbb"), ("aaaaaa", "aaaaaaaa")] {
            assert_eq!(model.find(revision).unwrap().commit, commit);
        }
        assert_eq!(model.find("v2"), None);
        assert!(cached_models_in(&cache.path().join("none")).unwrap().is_empty());
    }
}
