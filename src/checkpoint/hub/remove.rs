//! Taking models out of the local Hugging Face cache.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::error::CheckpointError;
use super::cached::{CachedModel, CachedSnapshot, files};

/// What is to be removed, before it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// Files and directories, in the order in which they go: what refers to others first, so that a removal which is
    /// interrupted leaves nothing that refers to what is gone.
    pub paths: Vec<PathBuf>,
    /// Bytes that this frees.
    pub bytes: u64,
    /// Commits whose snapshots go.
    pub commits: Vec<String>,
}

impl CachedModel {
    /// Everything of this model.
    pub fn removal(&self) -> Removal {
        let mut paths = vec![self.path.clone()];
        // huggingface_hub's lock files have a directory beside the models.
        if let (Some(cache), Some(name)) = (self.path.parent(), self.path.file_name()) {
            paths.push(cache.join(".locks").join(name));
        }
        let commits = self.snapshots.iter().map(|snapshot| snapshot.commit.clone()).collect();
        Removal { paths, bytes: self.bytes, commits }
    }

    /// The snapshot that `revision` names, its references, and the blobs that no other snapshot refers to. Where a
    /// branch or tag is named and another one is at the same commit, the reference alone. `None` where nothing has that
    /// name; the only snapshot is the whole model.
    ///
    /// # Errors
    /// A directory that may not be read.
    pub fn removal_of(&self, revision: &str) -> Result<Option<Removal>, CheckpointError> {
        let Some(snapshot) = self.find(revision) else { return Ok(None) };
        let refs = self.path.join("refs");
        let is_ref = snapshot.refs.iter().any(|name| name == revision);
        if is_ref && snapshot.refs.len() > 1 {
            return Ok(Some(Removal { paths: vec![refs.join(revision)], bytes: 0, commits: Vec::new() }));
        }
        if self.snapshots.len() == 1 {
            return Ok(Some(self.removal()));
        }
        let mut blobs = self.blobs_of(snapshot)?;
        for other in self.snapshots.iter().filter(|other| *other != snapshot) {
            let kept = self.blobs_of(other)?;
            blobs.retain(|blob| !kept.contains(blob));
        }
        // Files that are no links lie in the snapshot itself.
        let own = files(&snapshot.path)?.into_iter().map(|name| snapshot.path.join(name));
        let bytes = own.chain(blobs.iter().cloned()).filter_map(|path| fs::symlink_metadata(path).ok());
        let bytes = bytes.filter(fs::Metadata::is_file).map(|metadata| metadata.len()).sum();
        let mut paths: Vec<PathBuf> = snapshot.refs.iter().map(|name| refs.join(name)).collect();
        paths.push(snapshot.path.clone());
        paths.extend(blobs);
        Ok(Some(Removal { paths, bytes, commits: vec![snapshot.commit.clone()] }))
    }

    /// The blobs of this model that the snapshot's links lead to. A link that leads elsewhere leads to nobody's blob.
    fn blobs_of(&self, snapshot: &CachedSnapshot) -> Result<BTreeSet<PathBuf>, CheckpointError> {
        let Ok(folder) = fs::canonicalize(self.path.join("blobs")) else { return Ok(BTreeSet::new()) };
        let targets =
            files(&snapshot.path)?.into_iter().filter_map(|name| fs::canonicalize(snapshot.path.join(name)).ok());
        Ok(targets.filter(|target| target.parent() == Some(&folder)).collect())
    }
}

impl Removal {
    /// Removes it. What is not there any more is no error.
    ///
    /// # Errors
    /// What the system does not let go.
    pub fn run(&self) -> Result<(), CheckpointError> {
        self.paths.iter().try_for_each(|path| match remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CheckpointError::NotRemoved { path: path.display().to_string(), source: error })
            }
            _ => Ok(()),
        })
    }
}

fn remove(path: &Path) -> io::Result<()> {
    // A link to a directory goes, and not what it leads to.
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::cached::{cached_models_in, tests::cache};
    use super::*;

    fn model(cache: &Path) -> CachedModel {
        cached_models_in(cache).unwrap().into_iter().find(|model| model.id == "o/m").unwrap()
    }

    #[test]
    fn blobs_go_with_the_last_snapshot_that_has_them() {
        let cache = cache();
        let root = cache.path().join("models--o--m");
        let removal = model(cache.path()).removal_of("v1").unwrap().unwrap();
        assert_eq!((removal.bytes, &removal.commits[..]), (1, &["aaaaaaaa".to_owned()][..]));
        removal.run().unwrap();
        for gone in ["refs/v1", "snapshots/aaaaaaaa", "blobs/one"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        for kept in ["refs/main", "snapshots/bbbbbbbb/both.json", "blobs/two", "blobs/other.incomplete"] {
            assert!(root.join(kept).exists(), "{kept}");
        }
        // Twice is no error.
        removal.run().unwrap();
        // Another reference holds the commit.
        let removal = model(cache.path()).removal_of("refs/pr/1").unwrap().unwrap();
        assert_eq!((removal.paths.len(), removal.bytes, removal.commits.len()), (1, 0, 0));
        removal.run().unwrap();
        assert!(root.join("snapshots/bbbbbbbb").exists() && !root.join("refs/refs/pr/1").exists());
        // The last snapshot is the model.
        model(cache.path()).removal_of("bbbbbbbb").unwrap().unwrap().run().unwrap();
        assert!(!root.exists() && !cache.path().join(".locks/models--o--m").exists());
        assert!(cache.path().join("models--gpt2").exists());
    }

    #[test]
    fn links_out_of_the_cache_lead_to_nothing_that_goes() {
        let cache = cache();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let link = cache.path().join("models--o--m/snapshots/aaaaaaaa/outside");
        std::os::unix::fs::symlink(outside.path(), link).unwrap();
        model(cache.path()).removal_of("aaaaaaaa").unwrap().unwrap().run().unwrap();
        model(cache.path()).removal().run().unwrap();
        assert!(outside.path().exists());
        assert_eq!(model_ids(cache.path()), ["gpt2"]);
    }

    fn model_ids(cache: &Path) -> Vec<String> {
        cached_models_in(cache).unwrap().into_iter().map(|model| model.id).collect()
    }
}
