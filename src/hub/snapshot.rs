//! The parts of a model's directory in the cache, as huggingface_hub lays them out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::HubId;

use super::digest::BlobHash;
use super::error::HubError;
use super::listing::RemoteFile;

/// A model's directory in the cache.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    path: PathBuf,
    locks: PathBuf,
}

/// An error with the path that it is about.
pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> HubError + '_ {
    |source| HubError::Io { path: path.to_owned(), source }
}

impl Repository {
    pub fn new(cache: &Path, id: &HubId) -> Repository {
        Repository { path: cache.join(id.folder()), locks: cache.join(".locks").join(id.folder()) }
    }

    pub fn blob(&self, hash: &BlobHash) -> PathBuf {
        self.path.join("blobs").join(hash.hex())
    }

    /// The content of a blob that is not whole.
    pub fn partial(&self, hash: &BlobHash) -> PathBuf {
        self.path.join("blobs").join(format!("{}.incomplete", hash.hex()))
    }

    /// The file whose lock keeps others from the blob; huggingface_hub takes the same one.
    pub fn lock(&self, hash: &BlobHash) -> PathBuf {
        self.locks.join(format!("{}.lock", hash.hex()))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.path.join("snapshots").join(commit)
    }

    /// Whether the snapshot has the file, whole.
    pub fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        has_bytes(&self.snapshot(commit).join(&file.name), file.bytes)
    }

    /// Whether the content of the file is there, whole.
    pub fn is_there(&self, commit: &str, file: &RemoteFile) -> bool {
        self.has(commit, file) || has_bytes(&self.blob(&file.hash), file.bytes)
    }

    /// Bytes of the file that are still to come.
    pub fn missing_bytes(&self, commit: &str, file: &RemoteFile) -> u64 {
        if self.is_there(commit, file) {
            return 0;
        }
        let partial = fs::metadata(self.partial(&file.hash)).map_or(0, |metadata| metadata.len());
        file.bytes - if partial <= file.bytes { partial } else { 0 }
    }

    /// Makes the directories for blobs and locks.
    pub fn create(&self) -> Result<(), HubError> {
        [&self.path.join("blobs"), &self.locks]
            .into_iter()
            .try_for_each(|folder| fs::create_dir_all(folder).map_err(at(folder)))
    }

    /// Puts the blob into the snapshot under the file's name: a link, or the content where there are no links.
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<(), HubError> {
        if self.has(commit, file) {
            return Ok(());
        }
        let (blob, pointer) = (self.blob(&file.hash), self.snapshot(commit).join(&file.name));
        if let Some(folder) = pointer.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        // What an interrupted download or an older program left.
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&pointer)(error)),
            _ => {}
        }
        // From the file's folder up to the snapshot, and out of it and `snapshots`.
        let ups = "../".repeat(file.name.matches('/').count() + 2);
        match symlink(&format!("{ups}blobs/{}", file.hash.hex()), &pointer) {
            Ok(()) => Ok(()),
            // Another download of the same model was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => fs::copy(&blob, &pointer).map(|_| ()).map_err(at(&pointer)),
        }
    }

    /// Whether the reference `revision` is there.
    pub fn has_reference(&self, revision: &str) -> bool {
        self.path.join("refs").join(revision).is_file()
    }

    /// Makes the reference `revision` name the commit.
    pub fn set_reference(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.path.join("refs").join(revision);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        // Renamed, so that no reader sees half of it; by the process's number, so that two do not meet.
        let aside = self.path.join(format!(".ref-{}", std::process::id()));
        fs::write(&aside, commit).and_then(|()| fs::rename(&aside, &path)).map_err(at(&path))
    }
}

fn has_bytes(path: &Path, bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes)
}

#[cfg(unix)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &str, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target.replace('/', "\\"), link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn setting(name: &str) -> (tempfile::TempDir, Repository, RemoteFile) {
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new(cache.path(), &HubId::parse("o/m").unwrap());
        repository.create().unwrap();
        let hash = BlobHash::from_etag("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        (cache, repository, RemoteFile { name: name.to_owned(), bytes: 6, hash })
    }

    #[test]
    fn files_are_links_to_blobs() {
        let (cache, repository, file) = setting("a/b/hello.txt");
        assert_eq!(repository.missing_bytes(COMMIT, &file), 6);
        fs::write(repository.partial(&file.hash), "hel").unwrap();
        assert_eq!(repository.missing_bytes(COMMIT, &file), 3);
        fs::write(repository.blob(&file.hash), "hello\n").unwrap();
        assert_eq!(repository.missing_bytes(COMMIT, &file), 0);
        // A link to nothing, as an interrupted download of another program leaves it, gives way.
        let pointer = repository.snapshot(COMMIT).join("a/b/hello.txt");
        fs::create_dir_all(pointer.parent().unwrap()).unwrap();
        symlink("../nowhere", &pointer).unwrap();
        repository.link(COMMIT, &file).unwrap();
        assert_eq!(fs::read(&pointer).unwrap(), b"hello\n");
        assert!(repository.has(COMMIT, &file));
        let target = fs::read_link(&pointer).unwrap();
        assert_eq!(target, Path::new("../../../../blobs").join(file.hash.hex()));
        // Twice is the same.
        repository.link(COMMIT, &file).unwrap();
        assert!(cache.path().join("models--o--m/snapshots").join(COMMIT).is_dir());
    }

    #[test]
    fn references_may_be_paths() {
        let (cache, repository, _) = setting("x");
        for revision in ["main", "refs/pr/1"] {
            assert!(!repository.has_reference(revision));
            repository.set_reference(revision, "old").unwrap();
            repository.set_reference(revision, COMMIT).unwrap();
            let path = cache.path().join("models--o--m/refs").join(revision);
            assert_eq!(fs::read_to_string(&path).unwrap(), COMMIT);
            assert!(repository.has_reference(revision));
            let left = fs::read_dir(cache.path().join("models--o--m")).unwrap().flatten();
            assert!(left.into_iter().all(|entry| entry.path().is_dir()));
        }
    }
}
