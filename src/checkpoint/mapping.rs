//! The bytes of one weight file: a read-only memory map of it, a copy of it in memory, memory that was made in its
//! place, or a slice that is part of the program.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::Path;

use super::error::{CheckpointError, DOWNLOAD_AGAIN};
use super::reading::Reader;
use super::sigbus::NamedRange;
use crate::host;

/// A weight file's bytes, and its path for messages.
pub(super) struct Mapping {
    file: String,
    content: Content,
}

enum Content {
    File {
        /// Dropped before the map: fields are in their order.
        _named: NamedRange,
        map: memmap2::Mmap,
        /// The kind of the network file system that holds the file.
        network: Option<String>,
    },
    Memory(memmap2::Mmap),
    Static(&'static [u8]),
}

impl Mapping {
    /// Maps the file at `path`. Reads nothing.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], or an empty file.
    pub fn open(path: &Path, file: String) -> Result<Mapping, CheckpointError> {
        let (opened, metadata) = open(path, &file)?;
        // SAFETY: the map is private to this process's view and read-only. Its bytes are only ever read as u8 or as
        // plain numbers, for which every bit pattern is valid, so another process that rewrites the file in place
        // changes results but breaks no type. One that truncates the file, or a server or disk that loses it, makes a
        // later read of the lost pages raise SIGBUS, which ends this process (`name_files_on_sigbus` says of which
        // file); `WeightLoading::Read` copies the file and is immune. Hugging Face's downloader does neither: it writes
        // aside and renames, which leaves a mapped file as it was.
        let map = unsafe { memmap2::Mmap::map(&opened) }
            .map_err(|source| CheckpointError::Io { file: file.clone(), source })?;
        let _named = NamedRange::new(map.as_ptr_range(), &file);
        let network = host::network_file_system(&metadata);
        Ok(Mapping { file, content: Content::File { _named, map, network } })
    }

    /// Reads the whole file at `path` into memory of this process: nothing that happens to the file later matters.
    ///
    /// # Errors
    /// As for [`Mapping::open`]; no address space; a file that changes while it is read.
    pub fn read(path: &Path, file: String, reader: &mut Reader<'_>) -> Result<Mapping, CheckpointError> {
        let (opened, metadata) = open(path, &file)?;
        let map = reader.read(&opened, &metadata, &file)?;
        Ok(Mapping { file, content: Content::Memory(map) })
    }

    /// Bytes that are part of the program.
    pub fn of_static(bytes: &'static [u8], file: String) -> Mapping {
        Mapping { file, content: Content::Static(bytes) }
    }

    /// Bytes that are in no file.
    pub fn of_memory(map: memmap2::Mmap, file: String) -> Mapping {
        Mapping { file, content: Content::Memory(map) }
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.content {
            Content::File { map, .. } | Content::Memory(map) => map,
            Content::Static(bytes) => bytes,
        }
    }

    /// Path of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The kind of the network file system that the bytes are mapped from, such as `nfs4`.
    pub fn network(&self) -> Option<&str> {
        match &self.content {
            Content::File { network, .. } => network.as_deref(),
            Content::Memory(_) | Content::Static(_) => None,
        }
    }

    /// Reads all pages in and keeps them in memory for as long as this lives. Returns how many bytes; none of a slice
    /// of the program.
    ///
    /// # Errors
    /// The system's: mostly RLIMIT_MEMLOCK.
    pub fn lock(&self) -> io::Result<u64> {
        match &self.content {
            Content::File { map, .. } | Content::Memory(map) => {
                #[cfg(unix)]
                {
                    map.lock()?;
                    Ok(map.len() as u64)
                }
                #[cfg(not(unix))]
                {
                    let _ = map;
                    Err(io::ErrorKind::Unsupported.into())
                }
            }
            Content::Static(_) => Ok(0),
        }
    }

    /// Ranges of up to `chunk` bytes that are not in memory, as far as one page of each tells; none where that is not
    /// known. Asks the system once a chunk, which for all of a large file takes milliseconds.
    pub fn absent_chunks(&self, chunk: usize) -> Vec<Range<usize>> {
        match &self.content {
            #[cfg(target_os = "linux")]
            Content::File { map, .. } => {
                let ranges = (0..map.len()).step_by(chunk).map(|start| start..map.len().min(start + chunk));
                ranges.filter(|range| is_absent(map, range.start + range.len() / 2)).collect()
            }
            _ => {
                let _ = chunk;
                Vec::new()
            }
        }
    }

    /// Brings the pages of `range` into memory.
    pub fn touch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Content::File { map, .. } = &self.content {
            // Asks for all of them before the first is waited for; where that is refused, each is waited for.
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        // No page is smaller.
        for byte in self.bytes().get(range).unwrap_or_default().iter().step_by(4096) {
            std::hint::black_box(*byte);
        }
    }

    /// Bytes that locking has yet to bring into memory; 0 where that is not known.
    pub fn absent_bytes(&self) -> u64 {
        match &self.content {
            #[cfg(target_os = "linux")]
            Content::File { map, .. } => absent_bytes(map),
            // Memory was written when it was made.
            _ => 0,
        }
    }
}

/// Whether the page that holds the byte at `offset`, which lies within the mapping, is not in memory.
#[cfg(target_os = "linux")]
fn is_absent(map: &memmap2::Mmap, offset: usize) -> bool {
    let page = rustix::param::page_size();
    let mut state = [0u8];
    let start = map.as_ptr().wrapping_add(offset / page * page);
    // SAFETY: the range is one page of a live mapping, which begins at a page, and `state` has a byte for it.
    let done = unsafe { libc::mincore(start.cast_mut().cast(), 1, state.as_mut_ptr()) };
    done == 0 && state[0] & 1 == 0
}

/// The pages of a mapping that are not in memory, in bytes.
#[cfg(target_os = "linux")]
pub(super) fn absent_bytes(map: &memmap2::Mmap) -> u64 {
    let page = rustix::param::page_size();
    let mut pages = vec![0u8; map.len().div_ceil(page)];
    // SAFETY: the range is that of a live mapping, which begins at a page, and `pages` has a byte for each of its
    // pages.
    let done = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
    let absent = pages.iter().filter(|page| **page & 1 == 0).count() * page;
    if done == 0 { absent as u64 } else { 0 }
}

/// The regular, non-empty file at `path`.
fn open(path: &Path, file: &str) -> Result<(File, Metadata), CheckpointError> {
    let io = |source| CheckpointError::Io { file: file.to_owned(), source };
    // Asked for before the file is opened: opening a pipe would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(io)?;
    let found = if !metadata.is_file() {
        "something that is not a regular file"
    } else if metadata.len() == 0 {
        "an empty file"
    } else {
        let opened = File::open(path).map_err(io)?;
        let metadata = opened.metadata().map_err(io)?;
        return Ok((opened, metadata));
    };
    let expected = "a safetensors file".to_owned();
    Err(CheckpointError::File { file: file.to_owned(), found: found.to_owned(), expected, advice: DOWNLOAD_AGAIN })
}
