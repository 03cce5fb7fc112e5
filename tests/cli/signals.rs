//! Signals to commands that wait; those of `batch` and `synth` are with their commands.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::command;

#[test]
fn chat_ends_with_the_signal_s_code() {
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let mut child = command(&["chat", "-q", "-n", "2"]).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        stdin.write_all(b"x\n").unwrap();
        // Where there is an answer, the handler is there, too.
        let mut answer = String::new();
        BufReader::new(stdout).read_line(&mut answer).unwrap();
        // A Ctrl-C during the answer would end the answer alone, so one may not be enough.
        let status = loop {
            let _ = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
            std::thread::sleep(Duration::from_millis(100));
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
        };
        assert_eq!(status.code(), Some(code), "{signal}");
        drop(stdin);
    }
}
