//! What can go wrong with a command: one line on stderr, and an exit code.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rigel::backend::BackendError;
use rigel::bench::document::DocumentError;
use rigel::bench::report::ReportError;
use rigel::bench::synthetic::SyntheticError;
use rigel::checkpoint::CheckpointError;
use rigel::engine::{EngineError, Failure, RequestError};
use rigel::sampling::InvalidParam;
use rigel::text::TextError;

use super::option_names;
use super::running;
use super::signals::Signal;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Arguments that cannot be acted on. The text says what was found and what to give.
    #[error("{0}")]
    Usage(String),
    /// A file, or stdin, cannot be read.
    #[error("{origin}: {source}")]
    Read { origin: String, source: std::io::Error },
    /// A file cannot be written.
    #[error("{}: {}", .path.display(), unwritable(.path, .source))]
    Write { path: PathBuf, source: std::io::Error },
    /// The command ran and did not do all that it was asked to. The text says what to do.
    #[error("{0}")]
    Failed(String),
    /// A signal ended the run before its work was done. The text says what is left.
    #[error("stopped by {} {message}", .signal.name())]
    Stopped { signal: Signal, message: String },
    /// Text was expected.
    #[error("{origin}: byte {offset} is not valid UTF-8; give UTF-8 text, or token ids")]
    NotUtf8 { origin: String, offset: usize },
    /// An error, and the input it belongs to.
    #[error("{place}: {source}")]
    At { place: String, source: Box<CliError> },
    /// A sampling parameter out of its range, under its option's name.
    #[error("--{} is {}; expected {}", .0.name.replace('_', "-"), .0.found, .0.expected)]
    Sampling(InvalidParam),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Text(#[from] TextError),
    /// A download.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] rigel::hub::HubError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A result of a bench.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The page made of them.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A checkpoint of random weights.
    #[error(transparent)]
    Synthetic(#[from] SyntheticError),
    #[error(transparent)]
    Request(RequestError),
    #[error(transparent)]
    Failure(#[from] Failure),
    /// stdout takes no more, and its reader still has it open.
    #[error("stdout: {0}")]
    Stdout(std::io::Error),
    /// The reader of stdout has gone (`| head`): nothing is wrong.
    #[error("stdout is closed")]
    StdoutClosed,
}

impl From<BackendError> for CliError {
    fn from(error: BackendError) -> Self {
        CliError::Engine(error.into())
    }
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Sampling(invalid) => CliError::Sampling(invalid),
            error => match option_names::of_request(&error) {
                Some(message) => CliError::Usage(message),
                None => CliError::Request(error),
            },
        }
    }
}

impl CliError {
    /// The error, after the place in the input where it was found.
    pub fn at(self, place: impl Into<String>) -> CliError {
        match self {
            // These have nothing to do with the input.
            CliError::StdoutClosed | CliError::Stdout(_) => self,
            error => CliError::At { place: place.into(), source: Box::new(error) },
        }
    }

    /// Whether any other prompt of a file would meet the error, too.
    pub fn ends_all(&self) -> bool {
        match self {
            CliError::At { source, .. } => source.ends_all(),
            CliError::StdoutClosed | CliError::Stdout(_) | CliError::Engine(_) => true,
            CliError::Failure(failure) => !matches!(failure, Failure::Sampling { .. } | Failure::Refused(_)),
            _ => false,
        }
    }

    /// 2 for bad input, 1 for what failed while running, 0 where the reader had enough, 128 + n for a signal.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            CliError::StdoutClosed => 0,
            CliError::At { source, .. } => source.code(),
            CliError::Stopped { signal, .. } => signal.exit_code(),
            CliError::Write { source, .. }
            | CliError::Report(ReportError::Write { source, .. })
            | CliError::Synthetic(SyntheticError::Write { source, .. })
                if is_bad_path(source) =>
            {
                2
            }
            CliError::Failure(_) | CliError::Stdout(_) | CliError::Write { .. } | CliError::Failed(_) => 1,
            CliError::Report(ReportError::Write { .. }) => 1,
            CliError::Checkpoint(CheckpointError::NotRemoved { .. }) => 1,
            #[cfg(feature = "hub")]
            CliError::Hub(error) => {
                if error.is_bad_input() {
                    2
                } else {
                    1
                }
            }
            CliError::Synthetic(SyntheticError::DiskFull { .. } | SyntheticError::Write { .. }) => 1,
            CliError::Engine(EngineError::Thread { .. }) => 1,
            CliError::Engine(EngineError::Checkpoint(CheckpointError::OutOfMemory { .. })) => 1,
            CliError::Engine(EngineError::Backend(error)) => match error {
                BackendError::Checkpoint(_)
                | BackendError::Variable(_)
                | BackendError::NoCudaFeature
                | BackendError::DtypeOnCpu { .. } => 2,
                #[cfg(feature = "cuda")]
                BackendError::NoGpu(_) => 2,
                _ => 1,
            },
            _ => 2,
        }
    }

    /// The line for stderr, with the causes that the message does not name itself; none where there is nothing to
    /// say.
    pub fn line(&self) -> Option<String> {
        if matches!(self, CliError::StdoutClosed) {
            return None;
        }
        let mut line = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.contains(&text) {
                line = format!("{line}: {text}");
            }
            cause = error.source();
        }
        Some(option_names::of_settings(&without_numbers(&one_line(&line))))
    }

    /// [`CliError::line`] as a command ends with it: it names the variables of the environment that set the options at
    /// fault.
    pub fn line_with_origins(&self) -> Option<String> {
        let line = self.line()?;
        let origins = match self {
            // These may be about the model, by whatever name it has.
            CliError::Usage(_) | CliError::Checkpoint(_) | CliError::Text(_) | CliError::Engine(_) => {
                running::origins_and_model(&line)
            }
            _ => running::origins(&line),
        };
        Some(line + &origins)
    }
}

/// Whether no disk would take the file: its path is at fault, not the writing.
fn is_bad_path(source: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        source.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::AlreadyExists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::InvalidFilename
    )
}

/// The system's answer, and what to do about a path that is at fault.
fn unwritable(path: &Path, source: &std::io::Error) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    match folder {
        Some(folder) if is_bad_path(source) => {
            format!("{source}; make the folder {}, or give another path", folder.display())
        }
        None if is_bad_path(source) => format!("{source}; give a path that can be written to"),
        _ => source.to_string(),
    }
}

/// The text without the numbers that the standard library puts behind the system's words: ` (os error 2)`.
fn without_numbers(text: &str) -> String {
    const BEGIN: &str = " (os error ";
    let mut parts = text.split(BEGIN);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => kept.push_str(rest),
            _ => kept.extend([BEGIN, part]),
        }
    }
    kept
}

/// The lines, trimmed, with spaces between them.
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_once() {
        let io = || std::io::Error::other("disk on fire");
        let named = CliError::Read { origin: "a.txt".into(), source: io() };
        assert_eq!(named.line().unwrap(), "a.txt: disk on fire");
        let nested = CliError::Usage("two\n  lines".into()).at("b.jsonl:3");
        assert_eq!(nested.line().unwrap(), "b.jsonl:3: two lines");
        assert_eq!(nested.code(), 2);
        assert_eq!(CliError::StdoutClosed.line(), None);
        assert_eq!(CliError::StdoutClosed.at("x").code(), 0);
        assert_eq!(CliError::Failure(Failure::EngineStopped).at("x").code(), 1);
    }

    #[test]
    fn a_path_that_nothing_can_be_written_to_is_bad_input() {
        use std::io::ErrorKind;
        let write = |path: &str, kind: ErrorKind| CliError::Write { path: path.into(), source: kind.into() };
        let folder = write("no/such/folder/out.jsonl", ErrorKind::NotFound);
        let said = folder.line().unwrap();
        assert_eq!(folder.code(), 2);
        assert!(said.starts_with("no/such/folder/out.jsonl: "), "{said}");
        assert!(said.ends_with("; make the folder no/such/folder, or give another path"), "{said}");
        let denied = write("out.jsonl", ErrorKind::PermissionDenied);
        assert_eq!(denied.code(), 2);
        assert!(denied.line().unwrap().ends_with("; give a path that can be written to"));
        let full = write("out.jsonl", ErrorKind::StorageFull);
        assert_eq!((full.code(), full.line().unwrap().contains(';')), (1, false));
        let report = |kind: ErrorKind| CliError::from(ReportError::Write { file: "a".into(), source: kind.into() });
        assert_eq!((report(ErrorKind::NotFound).code(), report(ErrorKind::StorageFull).code()), (2, 1));
    }

    #[test]
    fn the_system_s_words_have_no_numbers() {
        let source = std::io::Error::from_raw_os_error(2);
        assert!(source.to_string().contains("os error"));
        let said = CliError::Read { origin: "a.txt".into(), source }.line().unwrap();
        assert!(said.starts_with("a.txt: ") && !said.contains("os error") && !said.contains('('), "{said}");
        assert_eq!(without_numbers("a (os error 2): b (os error x) c (os error 13)"), "a: b (os error x) c");
    }

    #[test]
    fn parameters_are_named_as_options() {
        let params = rigel::sampling::SamplingParams { top_p: 1.5, ..Default::default() };
        let error = CliError::from(RequestError::Sampling(params.validate().unwrap_err()));
        assert!(error.line().unwrap().starts_with("--top-p is 1.5; expected"), "{error}");
    }
}
