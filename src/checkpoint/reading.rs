//! Weight files read into memory of this process, by several threads at once.

use std::fs::{File, Metadata};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut};

use super::error::CheckpointError;
use crate::host;

/// Bytes that a thread reads at a time: a large request of any disk or network file system.
const CHUNK: usize = 8 << 20;
/// Threads that read: as many requests as it takes to keep a fast disk or a far server busy, whatever the cores.
pub(super) const THREADS: usize = 6;

/// Reads the weight files of a checkpoint, and says how far it has come.
pub(super) struct Reader<'a> {
    done: u64,
    total: u64,
    report: &'a mut dyn FnMut(u64, u64),
    reported: Instant,
}

/// Between two reports: often enough for a progress bar.
pub(super) const REPORT_EVERY: Duration = Duration::from_millis(100);

impl<'a> Reader<'a> {
    /// Of files with `total` bytes together, the weights of `model`.
    ///
    /// # Errors
    /// [`CheckpointError::OutOfMemory`] where that is more than this process can have.
    pub fn new(total: u64, model: &str, report: &'a mut dyn FnMut(u64, u64)) -> Result<Reader<'a>, CheckpointError> {
        match host::available_memory() {
            Some(available) if total > available.bytes => Err(CheckpointError::OutOfMemory {
                model: model.to_owned(),
                needed: total,
                left: available.bytes,
                limit: available.limit,
            }),
            _ => Ok(Reader { done: 0, total, report, reported: Instant::now() }),
        }
    }

    /// The whole content of `opened`, in memory that nothing else has.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; a file that changes while it is read.
    pub fn read(&mut self, opened: &File, metadata: &Metadata, file: &str) -> Result<Mmap, CheckpointError> {
        let io = |source| CheckpointError::Io { file: file.to_owned(), source };
        let length = usize::try_from(metadata.len()).map_err(|_| io(io::ErrorKind::OutOfMemory.into()))?;
        let mut map = MmapMut::map_anon(length).map_err(io)?;
        // Refused where the system has no large pages: then small ones do.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let changed = || CheckpointError::File {
            file: file.to_owned(),
            found: "that the file changed while it was read".to_owned(),
            expected: format!("a file of {length} bytes that nobody writes to"),
            advice: "wait for its download or copy to end, and start again",
        };
        match self.fill(opened, &mut map) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
            result => result.map_err(io)?,
        }
        let after = opened.metadata().map_err(io)?;
        // Where the system has no such time, the length alone tells.
        if after.len() != metadata.len() || after.modified().ok() != metadata.modified().ok() {
            return Err(changed());
        }
        map.make_read_only().map_err(io)
    }

    /// Reads `bytes` from the beginning of the file.
    fn fill(&mut self, file: &File, bytes: &mut [u8]) -> io::Result<()> {
        let threads = THREADS.min(bytes.len().div_ceil(CHUNK));
        let chunks = Mutex::new(bytes.chunks_mut(CHUNK).enumerate());
        let failed = AtomicBool::new(false);
        let (sender, chunks_read) = mpsc::channel();
        let read = |sender: mpsc::Sender<io::Result<u64>>| {
            while !failed.load(Ordering::Relaxed) {
                let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, chunk)) = next else { return };
                let result = read_exact_at(file, chunk, index as u64 * CHUNK as u64);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                // The receiver lives until all threads have ended.
                let _ = sender.send(result.map(|()| chunk.len() as u64));
            }
        };
        thread::scope(|scope| {
            for number in 0..threads {
                let (sender, read) = (sender.clone(), &read);
                let builder = thread::Builder::new().name("rigel-read".to_owned());
                match builder.spawn_scoped(scope, move || read(sender)) {
                    Ok(_) => {}
                    // Those that there are will do.
                    Err(_) if number > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            drop(sender);
            let mut result = Ok(());
            for chunk in &chunks_read {
                match chunk {
                    Ok(bytes) => self.done += bytes,
                    Err(error) => result = Err(error),
                }
                if self.done == self.total || self.reported.elapsed() >= REPORT_EVERY {
                    self.reported = Instant::now();
                    (self.report)(self.done, self.total);
                }
            }
            result
        })
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        match file.seek_read(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(file: &File, metadata: &Metadata, report: &mut dyn FnMut(u64, u64)) -> Result<Mmap, CheckpointError> {
        Reader::new(metadata.len(), "a test", report).unwrap().read(file, metadata, "a.safetensors")
    }

    #[test]
    fn several_threads_read_every_byte_to_its_place() {
        let content: Vec<u8> = (0..2 * CHUNK + 12_345).map(|i| (i * 31 + i / 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let metadata = file.metadata().unwrap();
        let mut reports = Vec::new();
        let map = read(&file, &metadata, &mut |done, total| reports.push((done, total))).unwrap();
        assert!(map[..] == content[..]);
        // One a chunk at the most, and the last one whatever the time between them.
        assert!((1..=3).contains(&reports.len()), "{reports:?}");
        assert!(reports.iter().all(|(_, total)| *total == content.len() as u64));
        assert_eq!(reports.last().unwrap().0, content.len() as u64);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_an_error() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 1000]).unwrap();
        let before = file.metadata().unwrap();
        // Cut short, or grown, by somebody else between the look at its length and the reading.
        for length in [999, 1001] {
            file.set_len(length).unwrap();
            let message = read(&file, &before, &mut |_, _| {}).unwrap_err().to_string();
            assert_eq!(
                message,
                "a.safetensors: found that the file changed while it was read, expected a file of 1000 bytes that nobody \
                 writes to; wait for its download or copy to end, and start again"
            );
        }
    }

    #[test]
    fn what_cannot_be_held_is_not_begun() {
        let message = Reader::new(1 << 60, "the 99b", &mut |_, _| {}).err().map(|error| error.to_string());
        // Where the system says how much memory it has.
        assert_eq!(message.is_some(), host::available_memory().is_some());
        if let Some(message) = message {
            assert!(message.starts_with("the 99b: its weights take 1.00 EiB, and "), "{message}");
        }
    }
}
