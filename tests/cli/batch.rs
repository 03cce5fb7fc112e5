//! `rigel batch`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Run, command, finish, rigel, rigel_stdin, tokenize};

mod input;
mod resume;
#[cfg(unix)]
mod signals;

/// A directory with an input, and the outputs of runs over it.
struct Work {
    dir: TempDir,
}

impl Work {
    fn new(lines: &[Value]) -> Work {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Work::of_text(&text)
    }

    fn of_text(text: &str) -> Work {
        let work = Work { dir: tempfile::tempdir().unwrap() };
        std::fs::write(work.path("in.jsonl"), text).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, output: &str, options: &[&str]) -> Command {
        let mut command = command(&["batch"]);
        command.args(options).arg(self.path("in.jsonl")).arg(self.path(output));
        command
    }

    /// `rigel batch OPTIONS in.jsonl OUTPUT`.
    fn run(&self, output: &str, options: &[&str]) -> Run {
        finish(self.command(output, options), None)
    }

    /// The records of a file, which has to hold whole lines alone.
    fn records(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{name}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The records by id, each id once, without the time of day.
    fn by_id(&self, name: &str) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for mut record in self.records(name) {
            if let Some(body) = record["response"].get_mut("body") {
                assert!(body["created"].take().as_u64().is_some());
            }
            let id = record["custom_id"].as_str().unwrap().to_owned();
            assert!(found.insert(id.clone(), record).is_none(), "{id} is there twice");
        }
        found
    }
}

fn completion(id: &str, body: Value) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/completions", "body": body})
}

fn chat(id: &str, body: Value) -> Value {
    json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body})
}

fn body(record: &Value) -> &Value {
    &record["response"]["body"]
}

fn text(record: &Value) -> &str {
    body(record)["choices"][0]["text"].as_str().unwrap()
}

/// Sampled, greedy, and both endpoints: enough for a run to be stopped in the middle of.
fn mixed(lines: usize) -> Vec<Value> {
    (0..lines)
        .map(|i| match i % 3 {
            0 => completion(&format!("c{i}"), json!({"prompt": format!("def f{i}("), "max_tokens": 12})),
            1 => json!({"id": format!("p{i}"), "prompt": format!("class C{i}"), "max_tokens": 12, "ignore_eos": true}),
            _ => chat(
                &format!("m{i}"),
                json!({"messages": [{"role": "user", "content": format!("Write f{i}.")}], "max_tokens": 12}),
            ),
        })
        .collect()
}

#[test]
fn each_form_of_line_is_answered() {
    let work = Work::new(&[
        completion("a", json!({"model": "nano", "prompt": "def add(a, b):\n", "temperature": 0, "max_tokens": 8})),
        chat("b", json!({"messages": [{"role": "user", "content": "Add."}], "temperature": 0, "max_tokens": 6})),
        json!({"prompt": "def add(a, b):\n", "max_tokens": 8}),
        json!({"id": 4, "prompt": tokenize("def add(a, b):\n")}),
        json!({"messages": [{"role": "user", "content": "Add."}]}),
    ]);
    let run = work.run("out.jsonl", &["-n", "6"]).ok();
    assert!(run.stdout.is_empty());
    assert!(run.stderr.starts_with("5 of 5 lines, ") && run.stderr.contains(" new tokens, "), "{}", run.stderr);
    let records = work.by_id("out.jsonl");
    assert_eq!(records.keys().map(String::as_str).collect::<Vec<_>>(), ["4", "a", "b", "line-3", "line-5"]);
    for (id, record) in &records {
        assert_eq!((&record["error"], &record["response"]["status_code"]), (&Value::Null, &json!(200)), "{id}");
        assert!(record["id"].as_str().unwrap().starts_with("batch_req_"));
        assert!(record["response"]["request_id"].is_string());
        let usage = &body(record)["usage"];
        let count = |field: &str| usage[field].as_u64().unwrap();
        assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));
        assert_eq!(body(record)["model"], "nano");
    }
    // The same as the commands for one prompt.
    let generated = rigel(&["generate", "--json", "-n", "8", "def add(a, b):\n"]).ok().json();
    assert_eq!(text(&records["a"]), generated["text"].as_str().unwrap());
    assert_eq!(body(&records["a"])["choices"][0]["finish_reason"], generated["finish_reason"]);
    assert_eq!(body(&records["a"])["object"], "text_completion");
    assert_eq!(records["line-3"]["text"], generated["text"]);
    let six = rigel(&["generate", "--json", "-n", "6", "def add(a, b):\n"]).ok().json();
    assert_eq!(records["4"]["text"], six["text"]);
    assert!(records["a"].get("text").is_none());
    let message = &body(&records["b"])["choices"][0]["message"];
    assert_eq!(
        (&message["role"], body(&records["b"])["object"].as_str()),
        (&json!("assistant"), Some("chat.completion"))
    );
    assert_eq!(records["line-5"]["text"], message["content"]);
    let prompt = tokenize("def add(a, b):\n").len();
    assert_eq!(body(&records["a"])["usage"]["prompt_tokens"], json!(prompt));
}

#[test]
fn a_line_may_have_prompts_and_samples() {
    let work = Work::new(&[
        completion("many", json!({"prompt": ["def f(", "class A"], "n": 3, "max_tokens": 10, "seed": 5})),
        completion("second", json!({"prompt": "class A", "n": 3, "max_tokens": 10, "seed": 5})),
        completion("third", json!({"prompt": "class A", "max_tokens": 10, "seed": 7})),
        completion("one", json!({"prompt": "class A", "n": 2, "max_tokens": 10})),
    ]);
    work.run("out.jsonl", &["-q"]).ok();
    let records = work.by_id("out.jsonl");
    let texts = |id: &str| -> Vec<String> {
        let choices = body(&records[id])["choices"].as_array().unwrap();
        let indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (0..choices.len() as u64).collect::<Vec<_>>());
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    // Each prompt of a list draws as it does alone, and sample i as one with the seed + i.
    assert_eq!(texts("many").len(), 6);
    assert_eq!(texts("many")[3..], texts("second"));
    assert_eq!(texts("second")[2..], texts("third"));
    assert_ne!(texts("one")[0], texts("one")[1]);
    let prompts = tokenize("def f(").len() + tokenize("class A").len();
    assert_eq!(body(&records["many"])["usage"]["prompt_tokens"], json!(prompts));
}

#[test]
fn echo_and_log_probabilities_are_those_of_score() {
    const PROMPT: &str = "def add(a, b):\n    return a";
    let ids = tokenize(PROMPT);
    let work = Work::new(&[completion(
        "a",
        // lm-eval's request.
        json!({"model": "x", "prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
            "echo": true}),
    )]);
    work.run("out.jsonl", &["-q"]).ok();
    let record = &work.by_id("out.jsonl")["a"];
    let scored =
        rigel_stdin(&["score", "--json", "--token-ids", "-"], json!({"token_ids": ids}).to_string()).ok().json();
    let logprobs = &body(record)["choices"][0]["logprobs"];
    let list = |field: &str| logprobs[field].as_array().unwrap();
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(field).len(), ids.len() + 1, "{field}");
    }
    assert_eq!((&list("token_logprobs")[0], &list("top_logprobs")[0]), (&Value::Null, &Value::Null));
    let text = text(record);
    assert!(text.starts_with(PROMPT));
    let mut greedy = 0;
    for i in 0..ids.len() {
        let offset = list("text_offset")[i].as_u64().unwrap() as usize;
        assert!(text[offset..].starts_with(list("tokens")[i].as_str().unwrap()), "{i}");
        if i == 0 {
            continue;
        }
        let logprob = list("token_logprobs")[i].as_f64().unwrap();
        assert!((logprob - scored["logprobs"][i].as_f64().unwrap()).abs() < 1e-4, "{i}");
        let top = list("top_logprobs")[i].as_object().unwrap();
        let best = top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        let expected = scored["top"][i - 1][0].clone();
        assert!((best - expected[1].as_f64().unwrap()).abs() < 1e-4, "{i}");
        // lm-eval's test of greediness.
        assert_eq!(logprob == best, expected[0] == scored["token_ids"][i], "{i}");
        greedy += usize::from(logprob == best);
    }
    assert!(greedy > 0 && greedy < ids.len() - 1, "{greedy} of {} tokens", ids.len());
}

#[test]
fn a_suffix_is_filled_as_infill_fills_it() {
    let (prefix, suffix) = ("def add(a, b):\n    ", "\n    return c\n");
    let work = Work::new(&[json!({"id": "a", "prompt": prefix, "suffix": suffix, "max_tokens": 16})]);
    work.run("out.jsonl", &["-q"]).ok();
    std::fs::write(work.path("prefix"), prefix).unwrap();
    std::fs::write(work.path("suffix"), suffix).unwrap();
    let [prefix, suffix] = ["prefix", "suffix"].map(|name| work.path(name).to_str().unwrap().to_owned());
    let args = ["infill", "--json", "-q", "-n", "16", "--prefix-file", &prefix, "--suffix-file", &suffix];
    let filled = rigel(&args).ok().json();
    let record = &work.by_id("out.jsonl")["a"];
    assert_eq!(body(record)["usage"]["prompt_tokens"], json!(filled["prompt_token_ids"].as_array().unwrap().len()));
    assert_eq!(record["text"], filled["text"]);
}

#[test]
fn neither_order_nor_shards_nor_company_change_an_answer() {
    let lines = mixed(24);
    let work = Work::new(&lines);
    work.run("whole.jsonl", &["-q"]).ok();
    let whole = work.by_id("whole.jsonl");
    work.run("alone.jsonl", &["-q", "--max-in-flight", "1"]).ok();
    assert_eq!(work.by_id("alone.jsonl"), whole);
    let mut parts = BTreeMap::new();
    for i in 1..=3 {
        let name = format!("part{i}.jsonl");
        work.run(&name, &["-q", "--shard", &format!("{i}/3")]).ok();
        let part = work.by_id(&name);
        assert_eq!(part.len(), 8);
        parts.extend(part);
    }
    assert_eq!(parts, whole);
    let mut reversed = lines;
    reversed.reverse();
    let reversed = Work::new(&reversed);
    reversed.run("out.jsonl", &["-q"]).ok();
    assert_eq!(reversed.by_id("out.jsonl"), whole);
    // The run's seed is part of every line's that has none and draws; greedy lines do not care.
    reversed.run("other.jsonl", &["-q", "--seed", "1"]).ok();
    let other = reversed.by_id("other.jsonl");
    let changed = whole.keys().filter(|id| whole[*id] != other[*id]).count();
    assert!((8..=16).contains(&changed), "{changed} of 16 sampled lines");
    assert!(whole.keys().filter(|id| id.starts_with('p')).all(|id| whole[id] == other[id]));
    assert!(work.run("x.jsonl", &["--shard", "4/3"]).error(2).contains("i/n"));
}

/// Lines that keep a run busy for a while.
fn busy(lines: usize) -> Work {
    let line = |i| json!({"id": format!("{i}"), "prompt": format!("def f{i}("), "max_tokens": 32, "ignore_eos": true});
    Work::new(&(0..lines).map(line).collect::<Vec<_>>())
}

fn wait_for_records(path: &Path, count: usize) {
    let start = Instant::now();
    while std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count()) < count {
        assert!(start.elapsed() < Duration::from_secs(60), "no {count} records in {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The most memory that a process had, in kilobytes, asked for until it ends.
#[cfg(target_os = "linux")]
fn peak_memory(mut child: Child) -> (u64, i32) {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(code) = child.try_wait().unwrap() {
            return (peak, code.code().unwrap());
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kilobytes.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_input() {
    let peak = |lines: usize| {
        let padding = "x".repeat(400);
        let line = |i| format!("{{\"id\":\"request-{i}\",\"prompt\":\"a\",\"max_tokens\":1,\"note\":\"{padding}\"}}\n");
        let work = Work::of_text(&(0..lines).map(line).collect::<String>());
        let (peak, code) = peak_memory(work.command("out.jsonl", &["-q"]).spawn().unwrap());
        assert_eq!(code, 0);
        assert_eq!(work.by_id("out.jsonl").len(), lines);
        peak
    };
    let (small, large) = (peak(2_000), peak(20_000));
    println!("peak memory: {small} kB for 2,000 lines, {large} kB for 20,000");
    // The bound is 17 bytes a line, twice over while ids are read; the longer input alone is 9 MB longer.
    assert!(large < small + 2_000, "{small} kB for 2,000 lines, {large} kB for 20,000");
}
