//! A file that is not whole yet: `blobs/<hash>.incomplete`, whose bytes are the first ones of the content at any time,
//! so that a process which ends at any moment leaves what the next one resumes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use super::digest::Hasher;
use super::listing::RemoteFile;

const CHUNK_BYTES: usize = 256 << 10;

/// A file on its way, with the hash of what it has.
pub(super) struct PartialFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    hasher: Hasher,
    /// Some bytes are an earlier process's.
    resumed: bool,
}

/// What became of a stream of bytes.
#[derive(Debug)]
pub(super) enum Appended {
    /// The file is whole.
    Whole,
    /// The stream ended or broke before: the reason.
    Cut(io::Error),
    /// The stream has more bytes than the file. Nothing of it is kept.
    TooLong,
    /// The caller wants no more.
    Stopped,
}

impl PartialFile {
    /// Opens what an earlier download left, and hashes it; else an empty file.
    pub fn open(path: &Path, of: &RemoteFile) -> io::Result<PartialFile> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut partial =
            PartialFile { path: path.to_owned(), file, bytes: 0, hasher: of.hash.hasher(of.bytes), resumed: false };
        let length = partial.file.metadata()?.len();
        if length > of.bytes {
            partial.clear(of)?;
        } else if length > 0 {
            partial.resumed = true;
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                match partial.file.read(&mut chunk)? {
                    0 => break,
                    read => {
                        partial.hasher.update(&chunk[..read]);
                        partial.bytes += read as u64;
                    }
                }
            }
        }
        Ok(partial)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether some bytes are an earlier process's.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Starts over.
    pub fn clear(&mut self, of: &RemoteFile) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.bytes, self.hasher, self.resumed) = (0, of.hash.hasher(of.bytes), false);
        Ok(())
    }

    /// Appends what `stream` has, up to the length of the file; `progress` hears how many bytes there are, and says
    /// whether to go on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(
        &mut self,
        of: &RemoteFile,
        mut stream: impl Read,
        mut progress: impl FnMut(u64) -> bool,
    ) -> io::Result<Appended> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = match stream.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Appended::Cut(error)),
                // One more read after the last byte: a stream that goes on is another file's.
                Ok(0) if self.bytes == of.bytes => return Ok(Appended::Whole),
                Ok(0) => return Ok(Appended::Cut(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => read,
            };
            if self.bytes + read as u64 > of.bytes {
                self.clear(of)?;
                return Ok(Appended::TooLong);
            }
            self.file.write_all(&chunk[..read])?;
            self.hasher.update(&chunk[..read]);
            self.bytes += read as u64;
            if !progress(self.bytes) {
                return Ok(Appended::Stopped);
            }
        }
    }

    /// The hash of the content so far.
    pub fn hex(&self) -> String {
        self.hasher.hex()
    }

    /// Makes it the blob at `path`, safe on the disk.
    pub fn rename(self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, path)
    }

    /// Removes it.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::BlobHash;
    use super::*;

    fn remote(bytes: u64) -> RemoteFile {
        let hash = BlobHash::from_etag("ce013625030ba8dba906f756967f9e9ca394464a").unwrap();
        RemoteFile { name: "hello".to_owned(), bytes, hash }
    }

    #[test]
    fn bytes_are_kept_until_the_file_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, of) = (folder.path().join("x.incomplete"), remote(6));
        let mut first = PartialFile::open(&path, &of).unwrap();
        assert!(matches!(first.append(&of, &b"hel"[..], |_| true).unwrap(), Appended::Cut(_)));
        drop(first);
        let mut second = PartialFile::open(&path, &of).unwrap();
        assert_eq!((second.bytes(), second.is_resumed()), (3, true));
        let mut seen = Vec::new();
        let end = second.append(&of, &b"lo\n"[..], |bytes| {
            seen.push(bytes);
            true
        });
        assert!(matches!(end.unwrap(), Appended::Whole));
        assert_eq!((seen, second.hex().as_str()), (vec![6], of.hash.hex()));
        let blob = folder.path().join("x");
        second.rename(&blob).unwrap();
        assert_eq!(std::fs::read(&blob).unwrap(), b"hello\n");
        assert!(!path.exists());
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, of) = (folder.path().join("x"), remote(4));
        std::fs::write(&path, "older and longer").unwrap();
        let mut partial = PartialFile::open(&path, &of).unwrap();
        assert_eq!((partial.bytes(), partial.is_resumed()), (0, false));
        assert!(matches!(partial.append(&of, &b"hello"[..], |_| true).unwrap(), Appended::TooLong));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert!(matches!(partial.append(&of, &b"he"[..], |_| false).unwrap(), Appended::Stopped));
        assert_eq!(std::fs::read(&path).unwrap(), b"he");
        partial.remove().unwrap();
        assert!(!path.exists());
    }
}
