//! Pages of mapped weight files that are not in memory, read before they are used.
//!
//! A token needs all weights. Where a file is not in the page cache, the first token would bring it in one page fault
//! after the other; read in order, by several threads, it comes as fast as the disk gives it, and progress can be told.
//! Takes no memory but the page cache, which the system gives to whoever needs it.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::Checkpoint;
use super::mapping::Mapping;
use super::reading::{REPORT_EVERY, THREADS};
use crate::host::{self, Size};

/// Bytes that are looked at and read at a time: one page of them stands for all.
const CHUNK: usize = 4 << 20;

impl Checkpoint {
    /// Reads mapped weights that are not in memory, and calls `report` on this thread with the bytes of them that are
    /// and the bytes that there were to read, a few times a second and once when all are there. Does nothing, and does
    /// not call `report`, where all are in memory, where memory cannot hold them, and where the system does not say.
    pub fn read_ahead(&self, report: &mut dyn FnMut(u64, u64)) {
        let mappings = self.mappings();
        let of = |mapping| Mapping::absent_chunks(mapping, CHUNK).into_iter().map(move |range| (mapping, range));
        let chunks: Vec<(&Mapping, Range<usize>)> = mappings.into_iter().flat_map(of).collect();
        let total = chunks.iter().map(|(_, range)| range.len() as u64).sum();
        match host::available_memory() {
            Some(available) if total > available.bytes => {
                let (total, left) = (Size(total), Size(available.bytes));
                tracing::debug!("{total} of weights are not read ahead: {left} are left in {}", available.limit);
            }
            _ => read(&chunks, total, report),
        }
    }
}

fn read(chunks: &[(&Mapping, Range<usize>)], total: u64, report: &mut dyn FnMut(u64, u64)) {
    let next = AtomicUsize::new(0);
    let (sender, chunks_read) = mpsc::channel();
    let work = |sender: mpsc::Sender<u64>| {
        while let Some((mapping, range)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            mapping.touch(range.clone());
            // The receiver lives until all threads have ended.
            let _ = sender.send(range.len() as u64);
        }
    };
    thread::scope(|scope| {
        for _ in 0..THREADS.min(chunks.len()) {
            let (sender, work) = (sender.clone(), &work);
            let builder = thread::Builder::new().name("rigel-read".to_owned());
            // Where the system gives no thread, fewer do, and without any the pages come as they are used.
            if builder.spawn_scoped(scope, move || work(sender)).is_err() {
                break;
            }
        }
        drop(sender);
        let (mut done, mut reported) = (0, Instant::now());
        for bytes in chunks_read {
            done += bytes;
            if done == total || reported.elapsed() >= REPORT_EVERY {
                reported = Instant::now();
                report(done, total);
            }
        }
    });
}

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod testing {
    use std::fs::File;
    use std::path::Path;

    /// Drops the file's pages from the page cache, but for the few that some process has touched in a mapping. `false`
    /// where the file system keeps more of them.
    pub(crate) fn drop_pages(path: &Path) -> bool {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        // SAFETY: nobody writes to the file.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        super::super::mapping::absent_bytes(&map) + (1 << 20) > map.len() as u64
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use ::safetensors::tensor::{Dtype, TensorView, serialize};

    use super::testing::drop_pages;
    use super::*;
    use crate::checkpoint::ModelSource;

    /// A checkpoint of two files of three and a bit and of less than one chunk.
    fn written() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(root.path().join(name), bytes).unwrap();
        write("config.json", br#"{"model_type":"starcoder2"}"#);
        write("model.safetensors.index.json", br#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#);
        let file = |name: &str, elements: usize| {
            let data = vec![7u8; 4 * elements];
            serialize([(name, TensorView::new(Dtype::F32, vec![elements], &data).unwrap())], None).unwrap()
        };
        write("1.safetensors", &file("a", 3_200_000));
        write("2.safetensors", &file("b", 900_000));
        root
    }

    #[test]
    fn what_is_not_in_memory_is_read_and_told_of_and_what_is_there_is_not() {
        let root = written();
        let source = ModelSource::directory(root.path()).unwrap();
        // Before the pages are dropped: reading the headers reads far ahead by itself.
        let checkpoint = Checkpoint::open(&source).unwrap();
        let names = ["1.safetensors", "2.safetensors"];
        if !names.iter().all(|name| drop_pages(&root.path().join(name))) {
            return eprintln!("what_is_not_in_memory…: skipped, this file system drops no pages when asked to");
        }
        let absent = || checkpoint.mappings().into_iter().map(Mapping::absent_bytes).sum::<u64>();
        assert!(absent() > 12 << 20);
        let mut reports = Vec::new();
        checkpoint.read_ahead(&mut |done, total| reports.push((done, total)));
        assert_eq!(absent(), 0);
        let total: u64 = checkpoint.files().iter().map(|file| file.bytes).sum();
        assert_eq!(reports.last(), Some(&(total, total)));
        assert!(reports.is_sorted());

        checkpoint.read_ahead(&mut |done, total| panic!("{done} of {total} are read again"));
    }

    #[cfg(feature = "nano")]
    #[test]
    fn what_is_part_of_the_program_or_was_read_is_not_read_ahead() {
        let nano = Checkpoint::open(&ModelSource::nano()).unwrap();
        nano.read_ahead(&mut |_, _| panic!("there is no file"));
    }
}
