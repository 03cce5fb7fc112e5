//! The bytes of one weight file: a read-only memory map of it, or of memory that was made in its place, or a slice that
//! is part of the program.

use std::fs::File;
use std::path::Path;

use super::error::{CheckpointError, DOWNLOAD_AGAIN};

/// A weight file's bytes, and its path for messages.
pub(super) struct Mapping {
    file: String,
    content: Content,
}

enum Content {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Mapping {
    /// Maps the file at `path`. Reads nothing.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], or an empty file.
    pub fn open(path: &Path, file: String) -> Result<Mapping, CheckpointError> {
        let io = |source| CheckpointError::Io { file: file.clone(), source };
        // Asked for before the file is opened: opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(io)?;
        let found = if !metadata.is_file() {
            "something that is not a regular file"
        } else if metadata.len() == 0 {
            "an empty file"
        } else {
            let opened = File::open(path).map_err(io)?;
            // SAFETY: the map is private to this process's view and read-only. Its bytes are only ever read as u8 or as
            // plain numbers, for which every bit pattern is valid, so another process that rewrites the file in place
            // changes results but breaks no type. One that truncates the file makes a later read of the lost pages
            // raise SIGBUS, which ends this process; nothing short of copying the file prevents that. Hugging Face's
            // downloader does neither: it writes aside and renames, which leaves a mapped file as it was.
            let map = unsafe { memmap2::Mmap::map(&opened) }.map_err(io)?;
            return Ok(Mapping { file, content: Content::Mapped(map) });
        };
        let expected = "a safetensors file".to_owned();
        Err(CheckpointError::File { file, found: found.to_owned(), expected, advice: DOWNLOAD_AGAIN })
    }

    /// Bytes that are part of the program.
    pub fn of_static(bytes: &'static [u8], file: String) -> Mapping {
        Mapping { file, content: Content::Static(bytes) }
    }

    /// Bytes that are in no file.
    pub fn of_memory(map: memmap2::Mmap, file: String) -> Mapping {
        Mapping { file, content: Content::Mapped(map) }
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map,
            Content::Static(bytes) => bytes,
        }
    }

    /// Path of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }
}
