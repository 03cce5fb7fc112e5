//! Weight files that are mapped or read (`--no-mmap`), locked (`--mlock`), and changed meanwhile.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::Value;

use crate::common::{Copy, Run, command, finish, rigel};

const WEIGHTS: &str = "model.safetensors";

/// `rigel generate` that is given one prompt at a time, so that its files can be changed in between.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(options: &[&str]) -> Running {
        let args =
            [&["generate", "--device", "cpu", "--quiet", "--json", "--threads", "2", "--token-ids", "-"], options]
                .concat();
        let mut command = command(&args);
        command.stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout }
    }

    /// The tokens generated after a prompt; `None` where the process has ended instead.
    fn tokens(&mut self) -> Option<Value> {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(b"{\"token_ids\":[444,320]}\n").unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str::<Value>(&line).unwrap()["token_ids"].clone())
    }

    /// stderr and the exit status.
    fn end(mut self) -> (String, ExitStatus) {
        drop(self.child.stdin.take());
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (stderr, self.child.wait().unwrap())
    }
}

/// Leaves the file its first page.
fn truncate(copy: &Copy) {
    OpenOptions::new().write(true).open(copy.path(WEIGHTS)).unwrap().set_len(4096).unwrap();
}

#[test]
fn a_mapped_file_that_is_truncated_ends_the_process_with_its_name() {
    let copy = Copy::of_nano();
    let mut running = Running::start(&["--model", copy.model()]);
    assert!(running.tokens().is_some());
    truncate(&copy);
    assert_eq!(running.tokens(), None);
    let (stderr, status) = running.end();
    let expected = format!(
        "error: {}: a page of this file can no longer be read: the file was truncated or replaced in place, or its disk or \
         server failed; run the command again, with --no-mmap if the file may change again\n",
        copy.path(WEIGHTS).display()
    );
    assert_eq!(stderr, expected);
    // SIGBUS is 7 on Linux and 10 elsewhere.
    let signal = if cfg!(target_os = "linux") { 7 } else { 10 };
    assert_eq!((status.code(), status.signal()), (Some(128 + signal), None));
}

#[test]
fn a_sigbus_that_somebody_sends_still_ends_the_process_as_such() {
    let copy = Copy::of_nano();
    let mut running = Running::start(&["--model", copy.model()]);
    assert!(running.tokens().is_some());
    // Rust's own handler, which this one passes on to, takes the first for a fault that comes again, and lets go.
    let ended = (0..500).any(|_| {
        let _ = Command::new("kill").args(["-BUS", &running.child.id().to_string()]).status().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        running.child.try_wait().unwrap().is_some()
    });
    assert!(ended);
    let (stderr, status) = running.end();
    assert_eq!((stderr.as_str(), status.code()), ("", None), "{status}");
}

#[test]
fn weights_that_were_read_do_not_care_what_becomes_of_the_file() {
    let copy = Copy::of_nano();
    let mut running = Running::start(&["--no-mmap", "--model", copy.model()]);
    let before = running.tokens().unwrap();
    truncate(&copy);
    assert_eq!(running.tokens(), Some(before.clone()));
    copy.write(WEIGHTS, vec![0xff; 1 << 20]);
    copy.remove(WEIGHTS);
    assert_eq!(running.tokens(), Some(before));
    let (stderr, status) = running.end();
    assert_eq!((stderr.as_str(), status.code()), ("", Some(0)));
}

#[test]
fn the_text_is_the_same_mapped_read_and_locked() {
    let copy = Copy::of_nano();
    let text = |options: &[&str]| {
        let args = ["generate", "--quiet", "--device", "cpu", "-n", "8", "--model", copy.model(), "def f"];
        rigel(&[&args[..], options].concat()).ok().text().to_owned()
    };
    let mapped = text(&[]);
    assert!(!mapped.is_empty());
    for options in [&["--no-mmap"][..], &["--mlock"], &["--no-mmap", "--mlock"]] {
        assert_eq!(text(options), mapped, "{options:?}");
    }
    // The bundled model is part of the program.
    let bundled = rigel(&["generate", "--quiet", "--no-mmap", "--mlock", "-n", "8", "def f"]).ok();
    assert_eq!((bundled.text(), bundled.stderr.as_str()), (mapped.as_str(), ""));
}

/// `rigel generate` of `copy` in a shell that sets `limit` first.
fn limited(limit: &str, copy: &Copy, options: &[&str]) -> Run {
    let args =
        ["generate", "--quiet", "--device", "cpu", "-n", "4", "--threads", "1", "--model", copy.model(), "def f"];
    let rigel = command(&[&args[..], options].concat());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{limit} && exec $UNPRIVILEGED \"$0\" \"$@\"")])
        .arg(rigel.get_program())
        .args(rigel.get_args());
    shell.env("CUDA_VISIBLE_DEVICES", "").env_remove("RUST_LOG");
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(shell, None)
}

#[test]
fn a_refused_lock_is_a_warning_that_says_what_to_raise() {
    // Root is not bound by the limit, unless it gives that right away.
    const GIVEN_AWAY: &str = "if command -v setpriv > /dev/null && [ $(id -u) = 0 ]; then UNPRIVILEGED='setpriv \
                              --bounding-set=-ipc_lock'; fi; ulimit -l 0";
    let run = limited(GIVEN_AWAY, &Copy::of_nano(), &["--mlock"]).ok();
    assert!(!run.text().is_empty());
    if run.stderr.is_empty() {
        return eprintln!("a_refused_lock…: the refusal is skipped, this user may lock what it likes");
    }
    assert!(run.stderr.starts_with("warning: 0 B of ") && run.stderr.lines().count() == 1, "{}", run.stderr);
    assert!(run.stderr.contains("raise RLIMIT_MEMLOCK, now 0 B: `ulimit -l unlimited`"), "{}", run.stderr);
}

#[test]
#[cfg(target_os = "linux")]
fn memory_for_weights_that_are_read_is_checked_before_and_the_limit_is_named() {
    let copy = Copy::of_nano();
    let enough = limited("ulimit -v 600000", &copy, &["--no-mmap"]).ok();
    assert_eq!(enough.stderr, "");
    // A terabyte that takes no room on the disk.
    OpenOptions::new().write(true).open(copy.path(WEIGHTS)).unwrap().set_len(1 << 40).unwrap();
    let begin = format!("{}: its weights take 1.00 TiB, and ", copy.model());
    for (limit, named) in [
        ("true", "left in this "),
        ("ulimit -v 600000", "left in this process's address space (ulimit -v); map them, or"),
    ] {
        let run = limited(limit, &copy, &["--no-mmap"]);
        let line = run.error(1);
        assert!(line.starts_with(&begin) && line.contains(named), "{line}");
    }
}

#[test]
fn what_cannot_be_mapped_cannot_be_read_either() {
    let copy = Copy::of_nano();
    copy.write(WEIGHTS, "");
    let args = ["generate", "--device", "cpu", "--no-mmap", "--model", copy.model(), "x"];
    assert!(rigel(&args).error(2).contains("found an empty file, expected a safetensors file"));
    copy.remove(WEIGHTS);
    assert!(rigel(&args).error(2).contains("model.safetensors is missing"));
}
