//! Signals that ask the process to end: Ctrl-C (SIGINT), `kill`, Slurm, systemd and `docker stop` (SIGTERM), a terminal
//! that was closed (SIGHUP).

use std::io::Write;

use super::error::CliError;

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    #[cfg_attr(not(unix), allow(dead_code, reason = "without signals, every request to end is Ctrl-C"))]
    Terminate,
    #[cfg_attr(not(unix), allow(dead_code, reason = "without signals, every request to end is Ctrl-C"))]
    Hangup,
}

impl Signal {
    pub fn name(self) -> &'static str {
        match self {
            Signal::Interrupt => "SIGINT",
            Signal::Terminate => "SIGTERM",
            Signal::Hangup => "SIGHUP",
        }
    }

    /// 128 and the signal's number, as a shell reports a process that the signal ended.
    pub fn exit_code(self) -> u8 {
        128 + match self {
            Signal::Hangup => 1,
            Signal::Interrupt => 2,
            Signal::Terminate => 15,
        }
    }

    /// Ends the process.
    pub fn exit(self) -> ! {
        std::process::exit(self.exit_code().into())
    }
}

/// From here on none of the signals ends the process: each of them calls `each`, on a thread of its own, with how many
/// have come. To be called once a process.
///
/// A SIGHUP that was ignored when the process began stays ignored: that is what `nohup` does. An ignored SIGINT does
/// not: a shell script ignores it for every background job, and whoever sends one nevertheless means it.
pub fn on_signal(each: impl FnMut(Signal, u32) + Send + 'static) -> Result<(), CliError> {
    imp::listen(each).map_err(|error| CliError::Failed(format!("no handler for signals: {error}")))
}

/// Prints a line to stderr; that nobody listens there is no failure.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(unix)]
mod imp {
    use std::io;
    use std::mem::MaybeUninit;
    use std::ptr;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    use super::Signal;

    pub fn listen(mut each: impl FnMut(Signal, u32) + Send + 'static) -> io::Result<()> {
        let mut numbers = vec![SIGINT, SIGTERM];
        if !is_ignored(SIGHUP) {
            numbers.push(SIGHUP);
        }
        let mut signals = Signals::new(numbers)?;
        let listen = move || {
            for (number, count) in signals.forever().zip(1..) {
                let signal = match number {
                    SIGTERM => Signal::Terminate,
                    SIGHUP => Signal::Hangup,
                    _ => Signal::Interrupt,
                };
                each(signal, count);
            }
        };
        std::thread::Builder::new().name("rigel-signals".into()).spawn(listen).map(drop)
    }

    fn is_ignored(number: i32) -> bool {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: without a new action the call changes nothing, and writes the present one to `action`.
        let asked = unsafe { libc::sigaction(number, ptr::null(), action.as_mut_ptr()) };
        // SAFETY: written above, and zeroed before that: a `sigaction` is integers and pointers.
        asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
mod imp {
    use super::Signal;

    pub fn listen(mut each: impl FnMut(Signal, u32) + Send + 'static) -> Result<(), ctrlc::Error> {
        let mut count = 0;
        ctrlc::set_handler(move || {
            count += 1;
            each(Signal::Interrupt, count);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shell_s() {
        for (signal, code) in [(Signal::Hangup, 129), (Signal::Interrupt, 130), (Signal::Terminate, 143)] {
            assert_eq!(signal.exit_code(), code, "{}", signal.name());
        }
    }
}
