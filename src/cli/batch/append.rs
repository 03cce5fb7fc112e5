//! A file of JSON lines that only grows, held by one process at a time.
//!
//! A record is one write of a whole line. What a killed process leaves is whole lines and perhaps the beginning of
//! one more, which [`AppendFile::repair`] cuts off. The file is synced as records come, at most once a second, and at
//! the end: a power failure may cost the last records, whose lines are then done again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::super::error::CliError;
use super::super::lines::{Line, Lines};

/// A sync takes milliseconds, in which no record is written.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The file.
pub struct AppendFile {
    path: PathBuf,
    file: File,
    /// Bytes of the file; once repaired, of whole lines.
    length: u64,
    last_sync: Option<Instant>,
    /// Whether some records may not be on disk yet.
    unsynced: bool,
}

/// What is read of a record.
#[derive(Debug, Deserialize)]
pub struct Written {
    pub custom_id: String,
    /// Of a line that failed.
    pub error: Option<WrittenError>,
    /// Of a line that failed; records of older versions have neither.
    pub line: Option<u32>,
    pub line_digest: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct WrittenError {
    pub code: String,
    pub message: String,
}

impl AppendFile {
    /// Opens the file, or makes it, for this process alone, and changes nothing in it.
    pub fn open(path: PathBuf) -> Result<AppendFile, CliError> {
        let error = |source| CliError::Write { path: path.clone(), source };
        match std::fs::metadata(&path) {
            // Not opened: a pipe would wait for its other end.
            Ok(metadata) if !metadata.is_file() => {
                let found = path.display();
                return Err(CliError::Usage(format!(
                    "{found} is not a regular file; give the name of one to write to"
                )));
            }
            Ok(_) => {}
            Err(source) if source.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(error(source)),
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let found = path.display();
                return Err(CliError::Failed(format!(
                    "{found} is being written by another process; wait for it, or give another output file"
                )));
            }
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        let length = file.metadata().map_err(error)?.len();
        Ok(AppendFile { path, file, length, last_sync: None, unsynced: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Cuts off a line that was not finished. To be called before anything is read or written.
    pub fn repair(&mut self) -> Result<(), CliError> {
        self.cut_unfinished().map_err(|source| CliError::Write { path: self.path.clone(), source })
    }

    /// Gives every record to `each`, with the number of its line.
    pub fn each_record(&self, mut each: impl FnMut(u32, Written) -> Result<(), CliError>) -> Result<(), CliError> {
        let error = |source| CliError::Read { origin: self.path.display().to_string(), source };
        // A handle of its own, at the file's start.
        let mut lines = Lines::of_any_length(BufReader::new(File::open(&self.path).map_err(error)?.take(self.length)));
        while let Some((number, line)) = lines.next().map_err(error)? {
            let record = match line {
                Line::Bytes(bytes) => {
                    serde_json::from_slice::<Written>(bytes).map_err(|_| "no object with a custom_id")
                }
                Line::TooLong => Err("the line is too long"),
            };
            match record {
                Ok(record) => each(number, record)?,
                Err(reason) => {
                    let place = format!("{}:{number}", self.path.display());
                    let message = format!("not a record of rigel batch ({reason}); give another output file");
                    return Err(CliError::Usage(message).at(place));
                }
            }
        }
        Ok(())
    }

    /// Writes a record.
    pub fn append(&mut self, record: &impl Serialize) -> Result<(), CliError> {
        let line = line_of(record).map_err(|source| CliError::Write { path: self.path.clone(), source })?;
        self.append_line(&line)
    }

    /// Writes a record's line.
    pub fn append_line(&mut self, line: &[u8]) -> Result<(), CliError> {
        let error = |source| CliError::Write { path: self.path.clone(), source };
        if let Err(source) = self.file.write_all(line) {
            // Where the disk is full, part of the line may be there; the next run would cut it off, too.
            let _ = self.file.set_len(self.length);
            return Err(error(source));
        }
        self.length += line.len() as u64;
        self.unsynced = true;
        let fresh = self.last_sync.is_some_and(|last| last.elapsed() < SYNC_EVERY);
        if fresh { Ok(()) } else { self.sync() }
    }

    /// Waits until the disk has every record.
    pub fn sync(&mut self) -> Result<(), CliError> {
        if self.unsynced {
            self.file.sync_data().map_err(|source| CliError::Write { path: self.path.clone(), source })?;
            self.last_sync = Some(Instant::now());
            self.unsynced = false;
        }
        Ok(())
    }

    /// Finds the end of the last whole line and cuts off what follows it.
    fn cut_unfinished(&mut self) -> std::io::Result<()> {
        const STEP: u64 = 64 << 10;
        let end = self.file.metadata()?.len();
        let (mut whole, mut chunk) = (end, Vec::new());
        while whole > 0 {
            let start = whole.saturating_sub(STEP);
            chunk.resize((whole - start) as usize, 0);
            self.file.seek(SeekFrom::Start(start))?;
            self.file.read_exact(&mut chunk)?;
            match chunk.iter().rposition(|byte| *byte == b'\n') {
                Some(index) => {
                    whole = start + index as u64 + 1;
                    break;
                }
                None => whole = start,
            }
        }
        if whole < end {
            self.file.set_len(whole)?;
            self.file.sync_data()?;
        }
        self.length = whole;
        Ok(())
    }
}

/// A record as it is written.
pub fn line_of(record: &impl Serialize) -> std::io::Result<Vec<u8>> {
    // Our own records: string keys, numbers, strings, lists.
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn opened(path: PathBuf) -> AppendFile {
        let mut file = AppendFile::open(path).unwrap();
        file.repair().unwrap();
        file
    }

    fn ids(file: &AppendFile) -> Vec<(u32, String)> {
        let mut ids = Vec::new();
        file.each_record(|number, record| {
            ids.push((number, record.custom_id));
            Ok(())
        })
        .unwrap();
        ids
    }

    fn expected(names: &[&str]) -> Vec<(u32, String)> {
        (1..).zip(names.iter().map(|name| (*name).to_owned())).collect()
    }

    #[test]
    fn a_torn_line_is_cut_off_wherever_it_was_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        // The last record is longer than what is read at a time.
        let records = [json!({"custom_id": "a"}), json!({"custom_id": "b", "x": "y".repeat(200_000)})];
        let whole: String = records.iter().map(|record| format!("{record}\n")).collect();
        let first = records[0].to_string().len() + 1;
        for cut in (0..first + 40).chain([first + 70_000, whole.len() - 1]) {
            std::fs::write(&path, &whole.as_bytes()[..cut]).unwrap();
            let mut file = opened(path.clone());
            let names: &[&str] = if cut < first { &[] } else { &["a"] };
            assert_eq!(ids(&file), expected(names), "{cut}");
            file.append(&json!({"custom_id": "c"})).unwrap();
            assert_eq!(ids(&file), expected(&[names, &["c"]].concat()), "{cut}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(ids(&opened(path)), expected(&["a", "b"]));
    }

    #[test]
    fn a_record_of_any_length_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = opened(dir.path().join("out.jsonl"));
        let long = "y".repeat(super::super::super::lines::MAX_LINE + 1);
        file.append(&json!({"custom_id": "long", "x": long})).unwrap();
        file.append(&json!({"custom_id": "short"})).unwrap();
        assert_eq!(ids(&file), expected(&["long", "short"]));
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let held = AppendFile::open(path.clone()).unwrap();
        let refused = AppendFile::open(path.clone()).err().unwrap();
        assert!(refused.to_string().contains("another process"), "{refused}");
        drop(held);
        assert!(AppendFile::open(path).is_ok());
    }

    #[test]
    fn foreign_lines_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, "{\"custom_id\":\"a\"}\n{\"text\":\"b\"}\n").unwrap();
        let error = AppendFile::open(path).unwrap().each_record(|_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("out.jsonl:2: not a record"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        for path in ["/dev/null", "/dev"] {
            let refused = AppendFile::open(path.into()).err().unwrap().to_string();
            assert!(refused.starts_with(&format!("{path} is not a regular file; ")), "{refused}");
        }
    }
}
