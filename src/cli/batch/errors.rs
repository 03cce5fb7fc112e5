//! The file of lines that failed, which is made with the first of them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::super::error::CliError;
use super::append::{AppendFile, Written};
use super::manifest::{Manifest, beside};
use super::record::Record;

/// The file, or where it would be.
pub struct ErrorsFile {
    path: PathBuf,
    file: Option<AppendFile>,
}

/// Where the errors of an output go: `out.errors.jsonl` for `out.jsonl` and for `out`.
pub fn errors_path(output: &Path) -> PathBuf {
    beside(&without_extension(output), ".errors.jsonl")
}

/// Where they went once. A file that is there is gone on with.
pub fn former_errors_path(output: &Path) -> PathBuf {
    beside(output, ".errors.jsonl")
}

fn without_extension(output: &Path) -> PathBuf {
    match output.extension() {
        Some(extension) if extension == "jsonl" => output.with_extension(""),
        _ => output.to_owned(),
    }
}

/// The output whose errors would go to the same file, where there is such an output.
pub fn output_with_the_same_errors(output: &Path) -> Option<PathBuf> {
    let stem = without_extension(output);
    let other = if stem == output { beside(output, ".jsonl") } else { stem };
    Manifest::path_of(&other).exists().then_some(other)
}

impl ErrorsFile {
    /// The errors of an output: the file that is there, to be repaired by [`AppendFile::repair`], or none yet.
    pub fn open(output: &Path) -> Result<ErrorsFile, CliError> {
        let former = former_errors_path(output);
        let path = if former.exists() { former } else { errors_path(output) };
        let file = if path.exists() { Some(AppendFile::open(path.clone())?) } else { None };
        Ok(ErrorsFile { path, file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_empty(&self) -> bool {
        self.file.as_ref().is_none_or(AppendFile::is_empty)
    }

    /// Cuts off a line that was not finished.
    pub fn repair(&mut self) -> Result<(), CliError> {
        self.file.as_mut().map_or(Ok(()), AppendFile::repair)
    }

    /// Gives every record to `each`, with the number of its line.
    pub fn each_record(&self, each: impl FnMut(u32, Written) -> Result<(), CliError>) -> Result<(), CliError> {
        self.file.as_ref().map_or(Ok(()), |file| file.each_record(each))
    }

    /// Writes a record.
    pub fn append(&mut self, record: &Record<'_>) -> Result<(), CliError> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(AppendFile::open(self.path.clone())?),
        };
        file.append(record)
    }

    /// Waits until the disk has every record.
    pub fn sync(&mut self) -> Result<(), CliError> {
        self.file.as_mut().map_or(Ok(()), AppendFile::sync)
    }

    /// Drops every record, and the file.
    pub fn clear(&mut self) -> Result<(), CliError> {
        self.file = None;
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(CliError::Write { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_named_after_the_output() {
        let named = |output: &str| errors_path(Path::new(output)).display().to_string();
        assert_eq!(named("a/out.jsonl"), "a/out.errors.jsonl");
        assert_eq!(named("out.json"), "out.json.errors.jsonl");
        assert_eq!(named("out"), "out.errors.jsonl");
        assert_eq!(named("a.b/out"), "a.b/out.errors.jsonl");
    }
}
