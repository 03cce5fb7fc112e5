//! What a compiled C++ or CUDA file depends on, and work on many of them at once, for build scripts.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// `file`, then every header behind its `#include "…"` lines, and behind theirs: beside the file that names it or in
/// one of the `include` folders. A header that is in none is the compiler's own, or the compiler's to complain about.
///
/// # Errors
/// A file that cannot be read.
pub fn reach(file: &Path, include: &[&Path]) -> Result<BTreeSet<PathBuf>, String> {
    let mut files = BTreeSet::new();
    add(file, include, &mut files)?;
    Ok(files)
}

fn add(file: &Path, include: &[&Path], files: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    if !files.insert(file.to_owned()) {
        return Ok(());
    }
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let beside = file.parent().into_iter();
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix("#include \"") else { continue };
        let Some(header) = rest.split('"').next() else { continue };
        let mut places = beside.clone().chain(include.iter().copied()).map(|folder| folder.join(header));
        if let Some(found) = places.find(|path| path.is_file()) {
            add(&found, include, files)?;
        }
    }
    Ok(())
}

/// Changes when the text of one of `files` does, or `how` they are compiled.
///
/// # Errors
/// A file that cannot be read.
pub fn key(files: &BTreeSet<PathBuf>, how: &impl Hash) -> Result<String, String> {
    let mut hasher = DefaultHasher::new();
    how.hash(&mut hasher);
    for file in files {
        let text = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        (file, text).hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Makes `product` unless it was made under the same key before: the key is kept beside it, in `<product>.key`.
///
/// # Errors
/// That of `make`, or a key that cannot be written.
pub fn make_once(product: &Path, key: &str, make: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let mut stamp = product.as_os_str().to_owned();
    stamp.push(".key");
    if product.is_file() && fs::read_to_string(&stamp).is_ok_and(|last| last == key) {
        return Ok(());
    }
    // First, so that what is left of a failed attempt does not pass for the last product when its key comes back.
    let _ = fs::remove_file(&stamp);
    make()?;
    fs::write(&stamp, key).map_err(|error| format!("{}: {error}", Path::new(&stamp).display()))
}

/// Calls `work` for each item, as many at a time as cargo allows jobs.
///
/// # Errors
/// Those of every call that failed, a line each.
pub fn for_each<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), String> + Sync) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).min(items.len());
    let share = || -> Vec<String> {
        let mine = std::iter::from_fn(|| items.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.filter_map(|item| work(item).err()).collect()
    };
    let errors: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(share)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|_| vec!["a worker panicked".into()]))
            .collect()
    });
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}
