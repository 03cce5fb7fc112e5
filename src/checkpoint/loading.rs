//! How weight files come to this process: mapped, or read; and kept there.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::mapping::Mapping;
use super::reading::Reader;
use super::source::ModelSource;
use super::{Checkpoint, CheckpointError, Stored};
use crate::host::{self, Size};

/// How weight files come to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightLoading {
    /// Mapped: read as they are used, in memory that processes share and that the system may take back. Where somebody
    /// truncates the file, or its disk or server fails, the process ends ([`name_files_on_sigbus`]); where somebody
    /// writes to it, results change.
    ///
    /// [`name_files_on_sigbus`]: super::name_files_on_sigbus
    #[default]
    Mmap,
    /// Read into memory of the process's own, all of it, at once: nothing that happens to the file later matters.
    Read,
}

/// How [`Checkpoint::open_with`] opens a checkpoint.
#[derive(Default)]
pub struct OpenOptions<'a> {
    /// How its weight files come to this process.
    pub weights: WeightLoading,
    /// Called on this thread with the bytes read so far and the bytes of all weight files, a few times a second and
    /// once when all are there; never for [`WeightLoading::Mmap`].
    pub on_read: Option<&'a mut dyn FnMut(u64, u64)>,
}

/// Weights that could not be locked into memory.
#[derive(Debug, thiserror::Error)]
#[error("{} of {} of weights are locked into memory: {reason}", Size(*.locked), Size(*.total))]
pub struct LockError {
    /// Bytes that are locked.
    pub locked: u64,
    /// Bytes of all weight files.
    pub total: u64,
    /// Why no more, and what to do.
    pub reason: String,
}

/// Opens weight files in one of the two ways.
pub(super) enum Loader<'a> {
    Mmap,
    Read(Reader<'a>),
}

impl<'a> Loader<'a> {
    /// For the files `names` of `source`.
    ///
    /// # Errors
    /// [`CheckpointError::OutOfMemory`].
    pub fn new<'n>(
        weights: WeightLoading,
        source: &ModelSource,
        names: impl Iterator<Item = &'n str>,
        report: &'a mut dyn FnMut(u64, u64),
    ) -> Result<Loader<'a>, CheckpointError> {
        match weights {
            WeightLoading::Mmap => Ok(Loader::Mmap),
            WeightLoading::Read => {
                let total = names.map(|name| source.file_bytes(name)).sum();
                Ok(Loader::Read(Reader::new(total, &source.to_string(), report)?))
            }
        }
    }
}

impl Checkpoint {
    /// A weight file that is mapped from a network file system, and the kind of that, such as `nfs4`. `None` where
    /// there is none, and where the system does not say.
    pub fn network_file(&self) -> Option<(&str, &str)> {
        self.mappings().into_iter().find_map(|mapping| Some((mapping.file(), mapping.network()?)))
    }

    /// The weight files that hold tensors to compute with.
    pub(super) fn mappings(&self) -> Vec<&Mapping> {
        distinct(self.tensors.values().filter_map(|stored| match stored {
            Stored::Usable(tensor) => Some(&tensor.mapping),
            Stored::Wide(tensor) => Some(&tensor.mapping),
            Stored::Opaque(_) => None,
        }))
    }

    /// Reads the weight files in as far as they are not in memory, and locks them there (mlock), of F64 tensors what
    /// they are narrowed to: the system then never takes their pages back. Returns how many bytes; the bundled model,
    /// being part of the program, has none.
    ///
    /// # Errors
    /// What is locked stays so. The limit is mostly RLIMIT_MEMLOCK. Files that are mapped and for which there is not
    /// enough memory are not begun with: no page could be taken back when it runs out.
    pub fn lock_weights(&self) -> Result<u64, LockError> {
        let mappings = distinct(self.tensors.values().filter_map(|stored| match stored {
            Stored::Usable(tensor) => Some(&tensor.mapping),
            Stored::Wide(tensor) => tensor.narrowed().map(|tensor| &tensor.mapping),
            Stored::Opaque(_) => None,
        }));
        let total = mappings.iter().map(|mapping| mapping.bytes().len() as u64).sum();
        let absent: u64 = mappings.iter().map(|mapping| mapping.absent_bytes()).sum();
        if let Some(available) = host::available_memory().filter(|available| absent > available.bytes) {
            let reason = format!(
                "{} of them are yet to be read, and {} are left in {}; use a smaller model, or raise that",
                Size(absent),
                Size(available.bytes),
                available.limit
            );
            return Err(LockError { locked: 0, total, reason });
        }
        let mut locked = 0;
        for mapping in mappings {
            match mapping.lock() {
                Ok(bytes) => locked += bytes,
                Err(error) => return Err(LockError { locked, total, reason: lock_reason(&error) }),
            }
        }
        Ok(locked)
    }
}

/// Each of `mappings` once, in their order.
fn distinct<'a>(mappings: impl Iterator<Item = &'a Arc<Mapping>>) -> Vec<&'a Mapping> {
    let mut seen = HashSet::new();
    mappings.filter(|mapping| seen.insert(Arc::as_ptr(mapping))).map(Arc::as_ref).collect()
}

/// Why memory could not be locked, and what to do.
fn lock_reason(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::Unsupported {
        return "this system cannot be asked to; it may move weights to disk".to_owned();
    }
    let limit = host::locked_memory_limit().map_or(String::new(), |bytes| format!(", now {}", Size(bytes)));
    format!(
        "{error}; raise RLIMIT_MEMLOCK{limit}: `ulimit -l unlimited` in a shell, LimitMEMLOCK= of a service, \
         --ulimit memlock=-1 of a container"
    )
}

#[cfg(test)]
mod tests {
    use ::safetensors::tensor::{Dtype, TensorView, serialize};

    use super::*;

    /// A checkpoint of two shards.
    fn written() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(root.path().join(name), bytes).unwrap();
        write("config.json", br#"{"model_type":"starcoder2"}"#);
        let index = r#"{"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}"#;
        write("model.safetensors.index.json", index.as_bytes());
        let data: Vec<u8> = (0..3000).map(|i| (i % 251) as u8).collect();
        let tensor =
            |name, start: usize| (name, TensorView::new(Dtype::F32, vec![250], &data[start..][..1000]).unwrap());
        write("1.safetensors", &serialize([tensor("a", 0), tensor("b", 1000)], None).unwrap());
        write("2.safetensors", &serialize([tensor("c", 2000)], None).unwrap());
        root
    }

    #[test]
    fn weights_that_were_read_outlive_their_file() {
        let directory = written();
        let source = ModelSource::directory(directory.path()).unwrap();
        let mut reports = Vec::new();
        let mut on_read = |done, total| reports.push((done, total));
        let options = OpenOptions { weights: WeightLoading::Read, on_read: Some(&mut on_read) };
        let read = Checkpoint::open_with(&source, options).unwrap();
        let mapped = Checkpoint::open(&source).unwrap();
        let bytes = |checkpoint: &Checkpoint| -> Vec<Vec<u8>> {
            checkpoint.tensors().map(|tensor| tensor.bytes().to_vec()).collect()
        };
        let before = bytes(&mapped);
        assert!(!before.is_empty() && before.concat().iter().any(|byte| *byte != 0));
        assert_eq!(bytes(&read), before);
        let total: u64 = read.files().iter().map(|file| file.bytes).sum();
        assert_eq!(reports.last(), Some(&(total, total)));
        for file in read.files() {
            // In place, as `cp` over it does.
            std::fs::write(directory.path().join(&file.name), vec![0xff; file.bytes as usize]).unwrap();
        }
        assert_ne!(bytes(&mapped), before, "a mapping sees what is written to its file");
        assert_eq!(bytes(&read), before);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn weights_are_locked_or_the_reason_says_what_to_raise() {
        let directory = written();
        let source = ModelSource::directory(directory.path()).unwrap();
        for weights in [WeightLoading::Mmap, WeightLoading::Read] {
            let checkpoint = Checkpoint::open_with(&source, OpenOptions { weights, on_read: None }).unwrap();
            let total: u64 = checkpoint.files().iter().map(|file| file.bytes).sum();
            match checkpoint.lock_weights() {
                Ok(locked) => {
                    assert_eq!(locked, total);
                    // No other test locks anything.
                    let status = std::fs::read_to_string("/proc/self/status").unwrap();
                    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
                    let kilobytes: u64 = locked.trim().trim_end_matches("kB").trim().parse().unwrap();
                    assert!(kilobytes * 1024 >= total, "{kilobytes} kB of {total} bytes");
                }
                Err(error) => assert!(error.to_string().contains("raise RLIMIT_MEMLOCK, now "), "{error}"),
            }
        }
    }

    #[cfg(feature = "nano")]
    #[test]
    fn the_bundled_model_has_nothing_to_lock_and_is_on_no_network() {
        let nano = Checkpoint::open(&ModelSource::nano()).unwrap();
        assert_eq!(nano.lock_weights().unwrap(), 0);
        assert_eq!(nano.network_file(), None);
    }

    #[test]
    fn a_refused_lock_names_the_limit() {
        let message = lock_reason(&io::ErrorKind::OutOfMemory.into());
        assert!(message.contains("raise RLIMIT_MEMLOCK"), "{message}");
        assert!(lock_reason(&io::ErrorKind::Unsupported.into()).starts_with("this system cannot"));
    }
}
