//! Signals, and what is said while a run goes on.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{Work, busy, wait_for_records};
use crate::common::finish;

fn send(child: &Child, signal: &str) {
    let kill = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
}

#[test]
fn a_signal_finishes_what_is_computed_and_leaves_the_rest() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let work = busy(150);
        let child = work.command("out.jsonl", &["--max-seqs", "4"]).spawn().unwrap();
        wait_for_records(&work.path("out.jsonl"), 3);
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        // All 150 lines were read; four are computed at a time.
        let finishing = stderr.lines().find_map(|line| line.strip_prefix("finishing "));
        let finishing = finishing.unwrap_or_else(|| panic!("{stderr}"));
        let (number, rest) = finishing.split_once(' ').unwrap();
        assert!((1..=4).contains(&number.parse::<u32>().unwrap()), "{stderr}");
        assert!(rest.starts_with("request") && rest.ends_with("; once more to stop at once"), "{stderr}");
        let count = work.records("out.jsonl").len();
        assert!(count < 150, "the run was over before the signal");
        let expected =
            format!("error: stopped by SIG{signal} after {count} of 150 lines; the same command goes on from there");
        assert_eq!(stderr.lines().last().unwrap(), expected);
        assert!(!work.path("out.errors.jsonl").exists());
        let run = work.run("out.jsonl", &[]).ok();
        assert!(run.stderr.contains(&format!("150 of 150 lines, {count} of them by earlier runs")), "{}", run.stderr);
        assert_eq!(work.by_id("out.jsonl").len(), 150);
    }
}

#[test]
fn a_second_signal_stops_at_once() {
    for (second, code) in [("INT", 130), ("TERM", 143)] {
        let line = json!({"id": "a", "prompt": "def f(", "max_tokens": 2000, "ignore_eos": true});
        let work = Work::new(&[json!({"id": "b", "prompt": "x", "max_tokens": 1}), line]);
        let mut child = work.command("out.jsonl", &[]).spawn().unwrap();
        wait_for_records(&work.path("out.jsonl"), 1);
        send(&child, "INT");
        std::thread::sleep(Duration::from_millis(50));
        send(&child, second);
        // Another code, or none, if the long line was done before.
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(work.records("out.jsonl").len(), 1);
    }
}

/// As `nohup` begins a command.
#[test]
fn an_ignored_hangup_stays_ignored() {
    let work = busy(60);
    let batch = work.command("out.jsonl", &["--max-seqs", "4", "--max-in-flight", "8"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(batch.get_program()).args(batch.get_args());
    shell.env("CUDA_VISIBLE_DEVICES", "").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = shell.spawn().unwrap();
    wait_for_records(&work.path("out.jsonl"), 1);
    send(&child, "HUP");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(work.by_id("out.jsonl").len(), 60);
}

#[test]
fn a_run_without_a_terminal_says_how_far_it_is() {
    let mut lines = vec![json!({"id": "wrong", "prompt": 5})];
    let line = |i| json!({"id": i, "prompt": format!("def f{i}("), "max_tokens": 32, "ignore_eos": true});
    lines.extend((0..60).map(line));
    let work = Work::new(&lines);
    let run = finish(work.command("out.jsonl", &["--progress-every", "0.02"]), None);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let mut said = run.stderr.lines().filter(|line| line.ends_with(" left"));
    let first = said.next().unwrap_or_else(|| panic!("{}", run.stderr));
    assert!(first.contains(" of 61 lines, 1 failed, ") && first.contains(" tokens/s, "), "{first}");
    // None of it where nobody wants it.
    let quiet = finish(work.command("quiet.jsonl", &["--progress-every", "0.02", "-q"]), None);
    assert!(quiet.error(1).starts_with("1 failed: 1 invalid_request_error (line 1: prompt is 5; "), "{}", quiet.stderr);
    let wrong = work.run("x.jsonl", &["--progress-every", "0"]);
    assert!(wrong.error(2).contains("expected seconds, such as 60 or 0.5"), "{}", wrong.stderr);
}
