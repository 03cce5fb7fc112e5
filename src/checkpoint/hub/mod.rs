//! The local Hugging Face cache: where it is, and which snapshot a hub id names. Looks at files only; downloads
//! nothing.
//!
//! Layout (huggingface_hub): `<cache>/models--<org>--<name>/refs/<revision>` holds a commit hash;
//! `snapshots/<commit>/` holds the files, as links into `blobs/`.

mod cached;
mod id;
mod remove;

pub use cached::{CachedModel, CachedSnapshot, cached_models};
pub use id::HubId;
pub use remove::Removal;

pub(crate) use id::{is_commit, of_url};

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{CheckpointError, shown};

/// A file with a commit hash is not longer.
const MAX_REF_BYTES: u64 = 256;

/// The cache's directory, decided as huggingface_hub decides it: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE` (its old
/// name), else `hub` in Hugging Face's directory (`HF_HOME`). It need not exist. `None` where nothing says where the
/// user's home is.
pub fn cache_directory() -> Option<PathBuf> {
    cache_directory_in(|name| std::env::var_os(name), std::env::home_dir())
}

pub(super) fn cache_directory_in(env: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let var = |name| path_variable(&env, name, home.as_deref());
    var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(home_in(&env, home)?.join("hub")))
}

/// Hugging Face's own directory, where the token is, too: `HF_HOME`, else `huggingface` in `XDG_CACHE_HOME` or
/// `~/.cache`.
pub(crate) fn home_in(env: &impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let var = |name| path_variable(env, name, home.as_deref());
    var("HF_HOME")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(home.as_ref()?.join(".cache/huggingface")))
}

/// The path in an environment variable; `~` is the user's home.
pub(crate) fn path_variable(
    env: &impl Fn(&str) -> Option<OsString>,
    name: &str,
    home: Option<&Path>,
) -> Option<PathBuf> {
    let path = PathBuf::from(env(name).filter(|value| !value.is_empty())?);
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(path),
    }
}

/// Whether the error says that there is nothing at a path, as opposed to something that cannot be looked at.
pub(super) fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename | InvalidInput)
}

/// `None` where there is nothing at the path.
fn present<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, CheckpointError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(unreadable(path, source)),
    }
}

fn unreadable(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Io { file: path.display().to_string(), source }
}

/// The snapshot of `id` in `cache`: the one that the revision names, as a reference or as a commit. Without a revision
/// the one of `main`, else the newest.
///
/// # Errors
/// [`CheckpointError::NotInCache`], which says the command that downloads it; a directory that may not be read.
pub(super) fn snapshot(id: &HubId, cache: Option<&Path>) -> Result<PathBuf, CheckpointError> {
    let missing =
        |looked: String| CheckpointError::NotInCache { id: id.to_string(), looked, command: id.download_command() };
    let cache = cache.ok_or_else(|| missing("no home directory; HF_HOME says where it is".to_owned()))?;
    let repository = cache.join(id.folder());
    let found = present(fs::metadata(&repository), &repository)?;
    if !found.is_some_and(|metadata| metadata.is_dir()) {
        return Err(missing(format!("looked in {}", shown(&cache.to_string_lossy()))));
    }
    let snapshots = repository.join("snapshots");
    let commits = commits(&snapshots)?;
    let named = referenced(&repository, id.revision().unwrap_or("main"))?.filter(|commit| commits.contains(commit));
    let commit = match id.revision() {
        None => named.or_else(|| newest(&snapshots, &commits)),
        Some(revision) => named.or_else(|| by_commit(&commits, revision)),
    };
    let folder = shown(&repository.to_string_lossy());
    match (commit, id.revision()) {
        (Some(commit), _) => Ok(snapshots.join(commit)),
        (None, Some(revision)) if !commits.is_empty() => {
            Err(missing(format!("{folder} holds no snapshot of revision {revision}")))
        }
        (None, _) => Err(missing(format!("{folder} holds no snapshot"))),
    }
}

/// The commit that the reference `name` holds; `None` where there is none, or a file that cannot be one.
fn referenced(repository: &Path, name: &str) -> Result<Option<String>, CheckpointError> {
    let path = repository.join("refs").join(name);
    let metadata = present(fs::metadata(&path), &path)?;
    if metadata.is_none_or(|metadata| !metadata.is_file() || metadata.len() > MAX_REF_BYTES) {
        return Ok(None);
    }
    let text = present(fs::read(&path), &path)?.unwrap_or_default();
    Ok(String::from_utf8(text).ok().map(|text| text.trim().to_owned()))
}

/// The names of the snapshots, sorted.
fn commits(snapshots: &Path) -> Result<Vec<String>, CheckpointError> {
    let Some(entries) = present(fs::read_dir(snapshots), snapshots)? else { return Ok(Vec::new()) };
    let directories = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// The commit that is `text`, or the only one that begins so.
fn by_commit(commits: &[String], text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let mut named = commits.iter().filter(|commit| is_commit(&text) && commit.starts_with(&text));
    named.next().filter(|_| named.next().is_none()).cloned()
}

fn newest(snapshots: &Path, commits: &[String]) -> Option<String> {
    let modified = |commit: &&String| fs::metadata(snapshots.join(commit)).and_then(|found| found.modified()).ok();
    // Named by hash: the name only makes the choice among equals repeatable.
    commits.iter().max_by_key(|commit| (modified(commit), (*commit).clone())).cloned()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_cache_is_where_huggingface_hub_puts_it() {
        let with = |vars: &[(&str, &str)]| {
            let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            cache_directory_in(env, Some(PathBuf::from("/home/u"))).unwrap()
        };
        assert_eq!(with(&[]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(with(&[("HF_HOME", "~/h")]), Path::new("/home/u/h/hub"));
        assert_eq!(with(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/o")]), Path::new("/o"));
        assert_eq!(with(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(with(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache_directory_in(|_| None, None), None);
    }

    #[test]
    fn snapshots_by_ref_then_by_age() {
        let cache = tempfile::tempdir().unwrap();
        let id = HubId::parse("o/m").unwrap();
        let message = || snapshot(&id, Some(cache.path())).unwrap_err().to_string();
        assert!(message().contains("download it with `hf download o/m`"));
        assert!(message().contains(&format!("looked in {}", cache.path().display())));

        let repository = cache.path().join("models--o--m");
        fs::create_dir_all(repository.join("refs")).unwrap();
        assert!(message().contains("holds no snapshot"));

        for (commit, age) in [("old", 300), ("new", 100)] {
            let directory = repository.join("snapshots").join(commit);
            fs::create_dir_all(&directory).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            File::open(&directory).unwrap().set_modified(time).unwrap();
        }
        let found = || snapshot(&id, Some(cache.path())).unwrap();
        assert!(found().ends_with("snapshots/new"));
        fs::write(repository.join("refs/main"), "old\n").unwrap();
        assert!(found().ends_with("snapshots/old"));
        // A ref to a snapshot that is not there, and one that tries to leave.
        for commit in ["absent", "../../../..", "/", "a/b", ""] {
            fs::write(repository.join("refs/main"), commit).unwrap();
            assert!(found().ends_with("snapshots/new"), "{commit}");
        }
    }

    #[test]
    fn revisions_are_references_or_commits() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--o--m");
        let commits = ["1111111aaaaaaa", "1111111bbbbbbb", "2222222ccccccc"];
        for commit in commits {
            fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        }
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        fs::write(repository.join("refs/main"), commits[0]).unwrap();
        fs::write(repository.join("refs/v1"), commits[1]).unwrap();
        fs::write(repository.join("refs/refs/pr/7"), commits[2]).unwrap();
        let find = |id: &str| snapshot(&HubId::parse(id).unwrap(), Some(cache.path()));
        for (id, commit) in [
            ("o/m", commits[0]),
            ("o/m@main", commits[0]),
            ("o/m@v1", commits[1]),
            ("o/m@refs/pr/7", commits[2]),
            ("o/m@2222222ccccccc", commits[2]),
            ("o/m@222222", commits[2]),
        ] {
            assert_eq!(find(id).unwrap(), repository.join("snapshots").join(commit), "{id}");
        }
        // Two commits begin so; too short; no reference of that name.
        for id in ["o/m@1111111", "o/m@2222", "o/m@v2"] {
            let message = find(id).unwrap_err().to_string();
            let revision = id.split_once('@').unwrap().1;
            assert!(message.contains(&format!("holds no snapshot of revision {revision}")), "{message}");
            assert!(message.ends_with(&format!("`hf download o/m --revision {revision}`")), "{message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_cache_that_cannot_be_read_is_said() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--o--m");
        std::os::unix::fs::symlink("models--o--m", &repository).unwrap();
        let message = snapshot(&HubId::parse("o/m").unwrap(), Some(cache.path())).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{} cannot be read: ", repository.display())), "{message}");
    }
}
