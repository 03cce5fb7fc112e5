//! Ctrl-C.

use std::io::Write;

use super::error::CliError;

/// The exit code of a process that SIGINT ended: 128 + 2.
const EXIT_CODE: i32 = 130;

/// From here on Ctrl-C does not end the process: it calls `each`, on a thread of its own, with how often it has come.
/// To be called once a process.
pub fn on_interrupt(mut each: impl FnMut(u32) + Send + 'static) -> Result<(), CliError> {
    let mut count = 0;
    ctrlc::set_handler(move || {
        count += 1;
        each(count);
    })
    .map_err(|error| CliError::Failed(format!("no handler for Ctrl-C: {error}")))
}

/// Ends the process as Ctrl-C does.
pub fn exit() -> ! {
    std::process::exit(EXIT_CODE)
}

/// Prints a line to stderr; that nobody listens there is no failure.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
