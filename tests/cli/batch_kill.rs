//! `rigel batch` killed at random moments and run again, until it is done: each line is in the output or the errors
//! once, and the answers are those of a run that nobody killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Kills, over as many runs as that takes; the last run is then left to end.
const KILLS: u32 = 100;
/// The longest that a process lives, unless it is done before.
const LIFE: Duration = Duration::from_millis(500);
const LINES: usize = 150;

fn batch(dir: &Path, output: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigel"));
    command.env("CUDA_VISIBLE_DEVICES", "").env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.args(["batch", "--max-in-flight", "6", "--seed", "11"]).arg(dir.join("in.jsonl")).arg(dir.join(output));
    command
}

/// Greedy and sampled lines, both endpoints, long and short, and every tenth a wrong one.
fn input() -> String {
    let line = |i: usize| match i % 10 {
        0 => "nonsense".to_owned(),
        1..=3 => {
            json!({"id": format!("greedy-{i}"), "prompt": format!("def f{i}("), "max_tokens": 4 + i % 30}).to_string()
        }
        4..=6 => json!({"custom_id": format!("sampled-{i}"), "url": "/v1/completions",
            "body": {"prompt": format!("class C{i}"), "max_tokens": 30, "n": 2, "logprobs": 2}})
        .to_string(),
        _ => json!({"custom_id": format!("chat-{i}"), "url": "/v1/chat/completions", "body": {"seed": i,
            "messages": [{"role": "user", "content": format!("Write a function f{i}.")}], "max_tokens": 20}})
        .to_string(),
    };
    (0..LINES).map(|i| line(i) + "\n").collect()
}

/// The records of a file by id; each line whole, each id once, without the time of day.
fn records(path: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut record: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if let Some(body) = record["response"].get_mut("body") {
            body["created"].take();
        }
        let id = record["custom_id"].as_str().unwrap().to_owned();
        assert!(found.insert(id.clone(), record).is_none(), "{id} is there twice");
    }
    found
}

/// xorshift64* (Vigna, 2016).
struct Random(u64);

impl Random {
    /// Below `limit`.
    fn duration(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let fraction = (self.0.wrapping_mul(0x2545f4914f6cdd1d) >> 11) as f64 / (1u64 << 53) as f64;
        limit.mul_f64(fraction)
    }
}

#[test]
fn whenever_it_is_killed_every_line_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("in.jsonl"), input()).unwrap();
    let start = Instant::now();
    assert_eq!(batch(dir, "whole.jsonl").status().unwrap().code(), Some(1));
    let alone = start.elapsed();
    let (whole, errors) = (records(&dir.join("whole.jsonl")), records(&dir.join("whole.errors.jsonl")));
    assert_eq!((whole.len(), errors.len()), (LINES - LINES / 10, LINES / 10));

    let mut random = Random(0x9e3779b97f4a7c15);
    let (mut kills, mut runs, mut torn) = (0, 0, 0);
    while kills < KILLS {
        let output = format!("killed-{runs}.jsonl");
        let path = dir.join(&output);
        let mut kills_of_run = 0;
        loop {
            let mut child = batch(dir, &output).spawn().unwrap();
            let deadline = Instant::now() + random.duration(LIFE);
            let spared = kills + kills_of_run >= KILLS;
            let ended = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if !spared && Instant::now() >= deadline {
                    break None;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            match ended {
                // Lines failed: done, as far as it goes.
                Some(status) => {
                    assert_eq!(status.code(), Some(1));
                    break;
                }
                None => {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    kills_of_run += 1;
                }
            }
            // Sometimes the kill meets a write; to be sure of it, some of them are made to.
            if kills_of_run % 7 == 3 {
                let bytes = std::fs::read(&path).unwrap_or_default();
                if let Some(cut) = bytes.len().checked_sub(20) {
                    std::fs::write(&path, &bytes[..cut]).unwrap();
                    torn += 1;
                }
            }
        }
        assert_eq!(records(&path), whole, "{output}");
        assert_eq!(records(&dir.join(format!("killed-{runs}.errors.jsonl"))), errors, "{output}");
        kills += kills_of_run;
        runs += 1;
        assert!(start.elapsed() < Duration::from_secs(600), "{kills} kills in {runs} runs");
    }
    println!(
        "{kills} kills in {runs} runs, {torn} lines torn; {alone:.1?} for a run alone, {:.1?} in all",
        start.elapsed()
    );
    assert!(torn > 0);
}
