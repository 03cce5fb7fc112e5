//! How much room a disk has.

use std::path::Path;

/// Bytes that the file system of `path` has left for this user; `None` where there is no such path or the system does
/// not say.
#[cfg(unix)]
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let answer = rustix::fs::statvfs(path).ok()?;
    Some(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Bytes that the file system of `path` has left for this user; `None`: this system is not asked.
#[cfg(not(unix))]
pub fn free_disk_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_room_and_nothing_has_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(free_disk_bytes(directory.path()).is_some_and(|bytes| bytes > 0), cfg!(unix));
        assert_eq!(free_disk_bytes(&directory.path().join("absent")), None);
    }
}
