//! The input file, which is read twice and may not change in between.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::error::CliError;

/// What would differ if the file had been written since, or if another file had its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where there are such.
    identity: Option<(u64, u64)>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            Some((metadata.dev(), metadata.ino()))
        };
        #[cfg(not(unix))]
        let identity = None;
        Stamp { bytes: metadata.len(), modified: metadata.modified().ok(), identity }
    }
}

/// The file, as it was when it was opened.
#[derive(Debug)]
pub struct InputFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl InputFile {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<InputFile, CliError> {
        const ONE: &str = "the input is read twice, so it must be a file";
        if path.as_os_str() == "-" {
            return Err(CliError::Usage(format!("-: {ONE}; write stdin to one, and give its name")));
        }
        let error = |source| CliError::Read { origin: path.display().to_string(), source };
        let metadata = std::fs::metadata(path).map_err(error)?;
        if !metadata.is_file() {
            // Not opened: a pipe would wait for its other end.
            return Err(CliError::Usage(format!("{} is not a regular file; {ONE}", path.display())));
        }
        let file = File::open(path).map_err(error)?;
        let stamp = Stamp::of(&file.metadata().map_err(error)?);
        Ok(InputFile { path: path.to_owned(), file, stamp })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, for a look at its beginning.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// To be read from the start again.
    pub fn rewind(&mut self) -> Result<(), CliError> {
        self.file.rewind().map_err(|source| CliError::Read { origin: self.path.display().to_string(), source })
    }

    /// Does the name still stand for the file that was opened, and was that not written since? An edited copy that took
    /// the file's name leaves what is read as it was, but the next run will find the copy.
    pub fn is_unchanged(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| Stamp::of(&metadata) == self.stamp)
    }

    /// What is wrong where reading failed: that the file changed, or the system's answer.
    pub fn error(&self, source: io::Error) -> CliError {
        let path = self.path.display();
        match source.get_ref().and_then(|error| error.downcast_ref::<Changed>()) {
            Some(changed) => {
                CliError::Failed(format!("{path} changed while it was read: {changed}; {}", as_it_was(&path)))
            }
            None => CliError::Failed(format!("{path}: {source}")),
        }
    }
}

/// What to do about an output whose input, called `name`, is another one now.
pub fn as_it_was(name: impl std::fmt::Display) -> String {
    format!("run again with a new output file, or with {name} as it was")
}

/// Reads the file, and fails once it was written: what was read until then is of one version.
impl Read for &InputFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.file).read(buffer)?;
        // After the bytes: what changes later shows at the next ones.
        let now = Stamp::of(&self.file.metadata()?);
        if now != self.stamp {
            return Err(io::Error::other(Changed { before: self.stamp.bytes, now: now.bytes }));
        }
        Ok(count)
    }
}

/// The file was written while it was read.
#[derive(Debug, thiserror::Error)]
struct Changed {
    before: u64,
    now: u64,
}

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Changed { before, now } = self;
        if before == now {
            write!(f, "its content was written again")
        } else {
            write!(f, "{before} bytes then, {now} now")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_while_it_is_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.jsonl");
        std::fs::write(&path, "first\nsecond\n").unwrap();
        let input = InputFile::open(&path).unwrap();
        let mut start = [0; 6];
        (&input).read_exact(&mut start).unwrap();
        assert!(&start == b"first\n" && input.is_unchanged());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8).unwrap();
        let error = input.error((&input).read(&mut start).unwrap_err()).to_string();
        assert!(error.contains("in.jsonl changed while it was read: 13 bytes then, 8 now; run again"), "{error}");
        assert!(!input.is_unchanged());
    }

    #[test]
    fn a_copy_in_the_file_s_place_is_noticed_and_the_file_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("in.jsonl"), dir.path().join("copy"));
        std::fs::write(&path, "first\n").unwrap();
        std::fs::write(&copy, "other\n").unwrap();
        let input = InputFile::open(&path).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        let mut text = String::new();
        (&input).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), input.is_unchanged()), ("first\n", !cfg!(unix)));
    }
}
