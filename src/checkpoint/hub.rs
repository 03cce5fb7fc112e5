//! Hub ids and the local Hugging Face cache. Looks at directories only; downloads nothing.
//!
//! Layout (huggingface_hub): `<cache>/models--<org>--<name>/refs/main` holds a commit hash;
//! `snapshots/<commit>/` holds the files, as links into `blobs/`.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::error::{CheckpointError, shown};

/// Whether `model` has the form of a hub id `org/name`, by the hub's own rules for names.
pub(super) fn is_hub_id(model: &str) -> bool {
    let part = |part: &str| {
        let edge = |c: char| matches!(c, '-' | '.');
        (1..=96).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && !part.starts_with(edge)
            && !part.ends_with(edge)
            && !part.contains("--")
            && !part.contains("..")
    };
    model.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The cache's directory, decided as huggingface_hub decides it: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE` (its old
/// name), else `hub` in `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME` or `~/.cache`.
pub(super) fn cache_directory(env: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let var = |name: &str| {
        let path = PathBuf::from(env(name).filter(|value| !value.is_empty())?);
        match (path.strip_prefix("~"), &home) {
            (Ok(rest), Some(home)) => Some(home.join(rest)),
            _ => Some(path),
        }
    };
    var("HF_HUB_CACHE")
        .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(var("HF_HOME")?.join("hub")))
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(home.as_ref()?.join(".cache/huggingface/hub")))
}

/// [`cache_directory`] of this process: where models are found by their hub id. `None` if there is no home directory and no
/// variable says another. It may not exist yet.
pub fn hub_cache_directory() -> Option<PathBuf> {
    cache_directory(|name| std::env::var_os(name), std::env::home_dir())
}

/// The snapshot of `id` (a valid hub id) in `cache`: the one that `refs/main` names, else the newest.
///
/// # Errors
/// [`CheckpointError::NotInCache`], which says the command that downloads it.
pub(super) fn snapshot(id: &str, cache: Option<&Path>) -> Result<PathBuf, CheckpointError> {
    let missing = |looked: String| CheckpointError::NotInCache { id: id.to_owned(), looked };
    let cache = cache.ok_or_else(|| missing("no home directory; HF_HOME says where it is".to_owned()))?;
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    if !repository.is_dir() {
        return Err(missing(format!("looked in {}", shown(&cache.to_string_lossy()))));
    }
    let snapshots = repository.join("snapshots");
    main_snapshot(&repository, &snapshots)
        .or_else(|| newest_directory(&snapshots))
        .ok_or_else(|| missing(format!("{} holds no snapshot", shown(&repository.to_string_lossy()))))
}

fn main_snapshot(repository: &Path, snapshots: &Path) -> Option<PathBuf> {
    let reference = repository.join("refs/main");
    // A commit hash; a file that cannot be one is not read.
    if fs::metadata(&reference).ok().is_none_or(|metadata| !metadata.is_file() || metadata.len() > 256) {
        return None;
    }
    let commit = fs::read_to_string(reference).ok()?;
    let commit = Path::new(commit.trim());
    let mut parts = commit.components();
    let one_name = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    Some(snapshots.join(commit)).filter(|directory| one_name && directory.is_dir())
}

fn newest_directory(snapshots: &Path) -> Option<PathBuf> {
    let directories = fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    // Named by hash: the name only makes the choice among equals repeatable.
    directories.max_by_key(|path| (fs::metadata(path).and_then(|metadata| metadata.modified()).ok(), path.clone()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn hub_ids() {
        for id in ["bigcode/starcoder2-3b", "a/b", "Org_1/Name.v0.1"] {
            assert!(is_hub_id(id), "{id}");
        }
        for other in ["nano", "a/b/c", "/a", "a/", "./a", "../a", "~/a", "a/..", "a--b/c", "a b/c", "a/b.", "ä/b", ""]
        {
            assert!(!is_hub_id(other), "{other}");
        }
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_puts_it() {
        let with = |vars: &[(&str, &str)]| {
            let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            cache_directory(env, Some(PathBuf::from("/home/u"))).unwrap()
        };
        assert_eq!(with(&[]), Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(with(&[("HF_HOME", "~/h")]), Path::new("/home/u/h/hub"));
        assert_eq!(with(&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/o")]), Path::new("/o"));
        assert_eq!(with(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(with(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")]), Path::new("/h/hub"));
        assert_eq!(cache_directory(|_| None, None), None);
    }

    #[test]
    fn snapshots_by_ref_then_by_age() {
        let cache = tempfile::tempdir().unwrap();
        let message = |id: &str| snapshot(id, Some(cache.path())).unwrap_err().to_string();
        assert!(message("o/m").contains("download it with `hf download o/m`"));
        assert!(message("o/m").contains(&format!("looked in {}", cache.path().display())));

        let repository = cache.path().join("models--o--m");
        fs::create_dir_all(repository.join("refs")).unwrap();
        assert!(message("o/m").contains("holds no snapshot"));

        for (commit, age) in [("old", 300), ("new", 100)] {
            let directory = repository.join("snapshots").join(commit);
            fs::create_dir_all(&directory).unwrap();
            let time = SystemTime::now() - Duration::from_secs(age);
            File::open(&directory).unwrap().set_modified(time).unwrap();
        }
        let found = || snapshot("o/m", Some(cache.path())).unwrap();
        assert!(found().ends_with("snapshots/new"));
        fs::write(repository.join("refs/main"), "old\n").unwrap();
        assert!(found().ends_with("snapshots/old"));
        // A ref to a snapshot that is not there, and one that tries to leave.
        for commit in ["absent", "../../../..", "/", "a/b", ""] {
            fs::write(repository.join("refs/main"), commit).unwrap();
            assert!(found().ends_with("snapshots/new"), "{commit}");
        }
    }
}
