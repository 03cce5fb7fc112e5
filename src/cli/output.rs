//! stdout: text as it comes, JSON a line at a time; and notes on stderr that do not run into it. A reader that closes
//! stdout ends the command in peace.

use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use super::error::CliError;

/// Where results go.
pub struct Output {
    writer: Box<dyn Write>,
    terminal: bool,
    /// What is written to stderr shows where stdout's text ends.
    shared: bool,
    /// Nothing was written after the last line break.
    at_line_start: bool,
}

impl Output {
    /// The process's stdout.
    pub fn stdout() -> Output {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let shared = terminal || shows_both();
        Output { writer: Box::new(stdout), terminal, shared, at_line_start: true }
    }

    /// Writes text at once, as it is.
    pub fn text(&mut self, text: &str) -> Result<(), CliError> {
        if text.is_empty() {
            return Ok(());
        }
        self.at_line_start = text.ends_with('\n');
        self.writer.write_all(text.as_bytes()).map_err(closed)?;
        self.flush()
    }

    /// Writes a line.
    pub fn line(&mut self, line: &str) -> Result<(), CliError> {
        self.text(&format!("{line}\n"))
    }

    /// Writes one JSON object as one line.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        // Our own records: string keys, numbers, strings, lists.
        let line = serde_json::to_string(value).map_err(|error| CliError::Stdout(error.into()))?;
        self.line(&line)
    }

    /// After text that is printed as it is: leaves a terminal's cursor at the start of a line, adds nothing to a
    /// file or a pipe.
    pub fn end_text(&mut self) -> Result<(), CliError> {
        if self.terminal && !self.at_line_start { self.text("\n") } else { Ok(()) }
    }

    /// Ends a line that was begun, wherever it goes.
    pub fn end_line(&mut self) -> Result<(), CliError> {
        if self.at_line_start { Ok(()) } else { self.text("\n") }
    }

    /// Whether a person reads it as it comes.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Prints to stderr, on a line of its own where stdout's text shows there, too. That nobody listens is no failure.
    pub fn note(&mut self, lines: &str) {
        let begin = if self.shared && !self.at_line_start { "\n" } else { "" };
        let _ = writeln!(std::io::stderr(), "{begin}{lines}");
        // The next note of the same place begins a line already; the next text of stdout does.
        self.at_line_start |= self.shared;
    }

    /// Hands everything on.
    pub fn flush(&mut self) -> Result<(), CliError> {
        self.writer.flush().map_err(closed)
    }
}

/// Whether stderr is the file or the pipe that stdout is, or a terminal that a reader of stdout may write to.
#[cfg(unix)]
fn shows_both() -> bool {
    use rustix::fs::{FileType, fstat};
    let (Ok(out), Ok(err)) = (fstat(std::io::stdout()), fstat(std::io::stderr())) else { return false };
    let piped = matches!(FileType::from_raw_mode(out.st_mode), FileType::Fifo | FileType::Socket);
    (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino) || (piped && std::io::stderr().is_terminal())
}

#[cfg(not(unix))]
fn shows_both() -> bool {
    false
}

fn closed(error: std::io::Error) -> CliError {
    if error.kind() == ErrorKind::BrokenPipe { CliError::StdoutClosed } else { CliError::Stdout(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Clone, Default)]
    struct Sink(Rc<RefCell<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Gone(ErrorKind);

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(self.0.into())
        }
    }

    fn written(terminal: bool, act: impl FnOnce(&mut Output)) -> String {
        let sink = Sink::default();
        let mut out = Output { writer: Box::new(sink.clone()), terminal, shared: false, at_line_start: true };
        act(&mut out);
        String::from_utf8(sink.0.take()).unwrap()
    }

    #[test]
    fn only_a_terminal_gets_a_last_line_break() {
        let end = |text: &'static str| {
            move |out: &mut Output| {
                out.text(text).unwrap();
                out.end_text().unwrap();
            }
        };
        assert_eq!(written(true, end("x")), "x\n");
        assert_eq!(written(true, end("x\n")), "x\n");
        assert_eq!(written(true, end("")), "");
        assert_eq!(written(false, end("x")), "x");
    }

    #[test]
    fn a_line_is_ended_once() {
        let end = |text: &'static str| {
            move |out: &mut Output| {
                out.text(text).unwrap();
                out.end_line().unwrap();
                out.end_line().unwrap();
            }
        };
        assert_eq!(written(false, end("x")), "x\n");
        assert_eq!(written(false, end("x\n")), "x\n");
        assert_eq!(written(false, end("")), "");
    }

    #[test]
    fn json_is_one_line() {
        assert_eq!(written(false, |out| out.json(&serde_json::json!({"a": "b\nc"})).unwrap()), "{\"a\":\"b\\nc\"}\n");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error = |kind| {
            let mut out = Output { writer: Box::new(Gone(kind)), terminal: false, shared: false, at_line_start: true };
            out.text("x").unwrap_err()
        };
        assert!(matches!(error(ErrorKind::BrokenPipe), CliError::StdoutClosed));
        assert!(matches!(error(ErrorKind::StorageFull), CliError::Stdout(_)));
    }
}
