//! `rigel batch`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Copy, Run, command, finish, rigel, rigel_stdin, tokenize};

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
fn lines_that_fail_are_recorded_and_the_rest_goes_on() {
    let long = vec![40; 3000];
    let mut text = String::from(
        "\n{\"prompt\":\"def f(\",\"max_tokens\":2}\nnonsense\n{\"custom_id\":\"u\",\"url\":\"/v1/x\",\"body\":{}}\n",
    );
    for line in [
        completion("t", json!({"prompt": "x", "temperature": "hot"})),
        completion("l", json!({"prompt": long})),
        completion("i", json!({"prompt": [99_999_999]})),
        completion("s", json!({"prompt": "x", "stream": true})),
        chat("w", json!({"messages": [{"role": "system", "content": "x"}]})),
        json!({"id": "e"}),
        completion("ok", json!({"prompt": "def g(", "max_tokens": 2})),
    ] {
        text += &format!("{line}\n");
    }
    let work = Work::of_text(&text);
    let run = work.run("out.jsonl", &[]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: some lines failed: ") && last.contains("--retry-failed"), "{last}");
    assert!(run.stderr.contains("10 of 10 lines, 8 failed"), "{}", run.stderr);
    let answered = work.by_id("out.jsonl");
    assert_eq!(answered.keys().map(String::as_str).collect::<Vec<_>>(), ["line-2", "ok"]);
    let failed = work.by_id("out.jsonl.errors.jsonl");
    let codes: Vec<(&str, &str)> =
        failed.iter().map(|(id, record)| (id.as_str(), record["error"]["code"].as_str().unwrap())).collect();
    assert_eq!(
        codes,
        [
            ("e", "invalid_line"),
            ("i", "invalid_request_error"),
            ("l", "context_length_exceeded"),
            ("line-3", "invalid_json"),
            ("s", "invalid_request_error"),
            ("t", "invalid_request_error"),
            ("u", "invalid_url"),
            ("w", "invalid_request_error"),
        ]
    );
    assert!(failed.values().all(|record| record["response"].is_null()));
    assert_eq!(failed["t"]["error"]["param"], "temperature");
    assert!(failed["w"]["error"]["message"].as_str().unwrap().contains("System messages are not allowed"));
    // The same command has nothing left to do, and still says that lines failed.
    let before = std::fs::read(work.path("out.jsonl")).unwrap();
    assert_eq!(work.run("out.jsonl", &[]).code, 1);
    assert_eq!(std::fs::read(work.path("out.jsonl")).unwrap(), before);
    assert_eq!(work.by_id("out.jsonl.errors.jsonl"), failed);
}

#[test]
fn an_input_of_another_kind_is_one_line() {
    let refused = |name: &str, content: &[u8], expected: &str| {
        let work = Work { dir: tempfile::tempdir().unwrap() };
        std::fs::write(work.path(name), content).unwrap();
        let run = rigel(&["batch", work.path(name).to_str().unwrap(), work.path("out.jsonl").to_str().unwrap()]);
        let message = run.error(2);
        assert!(message.contains(name) && message.contains(expected), "{message}");
        assert!(!work.path("out.jsonl").exists());
    };
    let array = json!([{"prompt": "a"}, {"prompt": "b"}]);
    refused("in.json", array.to_string().as_bytes(), "a JSON array; write one object a line");
    refused("in.json", serde_json::to_string_pretty(&array).unwrap().as_bytes(), "a JSON array");
    let pretty = serde_json::to_string_pretty(&json!({"messages": [{"role": "user", "content": "a"}]})).unwrap();
    refused("in.json", pretty.as_bytes(), "JSON over several lines");
    let utf_16: Vec<u8> = "\u{feff}{\"prompt\":\"a\"}\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused("in.jsonl", &utf_16, "UTF-16, as Windows PowerShell writes it; save it as UTF-8");
    refused("in.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0", "gzip; unpack it");
    refused("nano.gguf", b"GGUF\x03\0\0\0", "GGUF, a model's weights");
    refused("in.csv", b"id,prompt\n1,def f\n", "a table (CSV)");
    refused("in.txt", b"def f(\ndef g(\n", "plain text; write each prompt as an object");
}

#[test]
fn ids_of_another_type_fail_their_line_alone() {
    let work = Work::of_text(
        "\u{feff}{\"id\":1.5,\"prompt\":\"x\"}\n{\"custom_id\":true,\"prompt\":\"x\"}\n\u{feff}\n\
         {\"id\":7.0,\"prompt\":\"x\",\"max_tokens\":2.0,\"top_p\":0}\n",
    );
    assert_eq!(work.run("out.jsonl", &[]).code, 1);
    assert_eq!(work.by_id("out.jsonl").keys().collect::<Vec<_>>(), ["7"]);
    let failed = work.by_id("out.jsonl.errors.jsonl");
    let said =
        |id: &str| (failed[id]["error"]["message"].as_str().unwrap(), failed[id]["error"]["param"].as_str().unwrap());
    assert_eq!(failed.len(), 2);
    assert_eq!(said("line-1"), ("id is 1.5; expected text or an integer", "id"));
    assert_eq!(said("line-2"), ("custom_id is true; expected text or an integer", "custom_id"));
}

#[test]
fn failed_lines_are_retried_on_request_and_never_recorded_twice() {
    let work = Work::new(&mixed(6));
    work.run("out.jsonl", &["-q"]).ok();
    let whole = work.by_id("out.jsonl");
    // As if two lines had failed in the engine.
    let text = std::fs::read_to_string(work.path("out.jsonl")).unwrap();
    let (kept, lost): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| !line.contains("\"custom_id\":\"c0\"") && !line.contains("\"custom_id\":\"m5\""));
    assert_eq!(lost.len(), 2);
    let lines = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    std::fs::write(work.path("out.jsonl"), lines(&kept)).unwrap();
    let error = |id: &str| {
        json!({"id": "x", "custom_id": id, "response": null, "error": {"code": "server_error", "message": "y"}})
            .to_string()
    };
    std::fs::write(work.path("out.jsonl.errors.jsonl"), lines(&[&error("c0"), &error("m5")])).unwrap();
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    assert_eq!(work.records("out.jsonl").len(), 4);
    let run = work.run("out.jsonl", &["--retry-failed"]).ok();
    assert!(run.stderr.starts_with("6 of 6 lines, 4 of them by earlier runs, "), "{}", run.stderr);
    assert_eq!(work.by_id("out.jsonl"), whole);
    assert_eq!(work.records("out.jsonl.errors.jsonl").len(), 0);
    // A record in both files is one too many.
    std::fs::write(work.path("out.jsonl.errors.jsonl"), lines(&[&error("c0")])).unwrap();
    let twice = work.run("out.jsonl", &[]);
    assert!(twice.error(2).contains("out.jsonl.errors.jsonl:1: custom_id \"c0\" is there twice"), "{}", twice.stderr);
}

#[test]
fn ids_have_to_differ() {
    let a = |id: &str| json!({"id": id, "prompt": "x"});
    let work = Work::new(&[a("a"), a("b"), a("b"), a("a")]);
    let run = work.run("out.jsonl", &[]);
    assert!(run.error(2).contains("in.jsonl:3: custom_id \"b\" is that of line 2, too"), "{}", run.stderr);
    assert!(!work.path("out.jsonl").exists());
    let work = Work::new(&[a("line-2"), json!({"prompt": "x"})]);
    assert!(work.run("out.jsonl", &[]).error(2).contains("custom_id \"line-2\" is that of line 1"));
}

#[test]
fn another_run_is_refused_and_changes_nothing() {
    let work = Work::new(&mixed(3));
    work.run("out.jsonl", &["-q", "--seed", "1"]).ok();
    let files = || {
        ["out.jsonl", "out.jsonl.manifest.json", "out.jsonl.errors.jsonl"]
            .map(|name| std::fs::read(work.path(name)).unwrap())
    };
    let before = files();
    work.run("out.jsonl", &["-q", "--seed", "1", "--max-in-flight", "1"]).ok();
    let refused = |options: &[&str], needle: &str| {
        let run = work.run("out.jsonl", options);
        assert!(run.error(2).contains(needle), "{}", run.stderr);
        assert_eq!(files(), before);
    };
    refused(&[], "begun with --seed 1, and this run has 0");
    refused(&["--seed", "1", "-n", "3"], "begun with --max-new-tokens null, and this run has 3");
    refused(&["--seed", "1", "--temperature", "0.5"], "begun with --temperature 0.0, and this run has 0.5");
    refused(&["--seed", "1", "--shard", "1/2"], "begun with --shard 1/1, and this run has 1/2");
    refused(&["--seed", "1", "--context", "64"], "--context none, and this run has 64");
    let copy = Copy::of_nano();
    copy.edit("config.json", |config| config["sliding_window"] = json!(64));
    refused(&["--seed", "1", "--model", copy.model()], "begun with the model nano");
    // A copy of the same model is the same model.
    let copy = Copy::of_nano();
    work.run("out.jsonl", &["-q", "--seed", "1", "--model", copy.model()]).ok();
    assert_eq!(files(), before);
    std::fs::write(work.path("in.jsonl"), "{\"prompt\":\"x\"}\n").unwrap();
    refused(&["--seed", "1"], "begun with the input ");
}

#[test]
fn a_file_that_is_not_ours_stays_as_it_is() {
    let work = Work::new(&mixed(1));
    // No line break at its end: it is not cut, either.
    std::fs::write(work.path("notes.txt"), "first\nsecond").unwrap();
    let run = work.run("notes.txt", &[]);
    assert!(run.error(2).contains("no output of rigel batch"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(work.path("notes.txt")).unwrap(), "first\nsecond");
    assert!(work.run("in.jsonl", &[]).error(2).contains("is the input, too"));
    // Errors of an earlier output would be taken for lines that are done.
    std::fs::write(work.path("new.errors.jsonl"), "{\"custom_id\":\"line-1\"}\nx").unwrap();
    assert!(work.run("new", &[]).error(2).contains("no output of rigel batch"));
    assert_eq!(std::fs::read_to_string(work.path("new.errors.jsonl")).unwrap(), "{\"custom_id\":\"line-1\"}\nx");
    assert!(!work.path("new.manifest.json").exists());
    // The input by the name of another file that would be written.
    std::fs::copy(work.path("in.jsonl"), work.path("x.errors.jsonl")).unwrap();
    let mut twisted = command(&["batch", "--retry-failed"]);
    twisted.arg(work.path("x.errors.jsonl")).arg(work.path("x"));
    assert!(finish(twisted, None).error(2).contains("is the input, too"));
    let absent = finish(
        {
            let mut command = command(&["batch", "absent.jsonl"]);
            command.arg(work.path("out.jsonl"));
            command
        },
        None,
    );
    assert!(absent.error(2).contains("absent.jsonl: "), "{}", absent.stderr);
    assert!(work.run(".", &[]).code != 0);
}

#[test]
fn a_line_that_asks_for_too_much_is_one_error() {
    let many: Vec<&str> = vec!["x"; 600];
    let lines = [
        json!({"id": "n", "prompt": "x", "n": 4_000_000_000u32}),
        json!({"id": "both", "prompt": many, "n": 2}),
        json!({"id": "cut", "prompt": "x", "suffix": "y", "truncate_prompt_tokens": 2}),
        json!({"id": "nothing", "prompt": "x", "max_tokens": 1, "allowed_token_ids": [0], "min_tokens": 1}),
        json!({"id": "good", "prompt": "x", "max_tokens": 1}),
    ];
    let work = Work::new(&lines);
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    let errors = work.by_id("out.jsonl.errors.jsonl");
    let message = |id: &str| errors[id]["error"]["message"].as_str().unwrap().to_owned();
    assert!(message("n").contains("n is 4000000000; expected an integer from 1 to 1024"), "{}", message("n"));
    assert!(message("both").contains("1200 samples"), "{}", message("both"));
    assert!(message("cut").contains("truncate_prompt_tokens"), "{}", message("cut"));
    assert!(message("nothing").contains("not finite"), "{}", message("nothing"));
    assert_eq!(work.by_id("out.jsonl").keys().collect::<Vec<_>>(), ["good"]);
}

#[test]
fn a_torn_last_line_is_done_again() {
    let work = Work::new(&mixed(9));
    work.run("out.jsonl", &["-q"]).ok();
    let (whole, bytes) = (work.by_id("out.jsonl"), std::fs::read(work.path("out.jsonl")).unwrap());
    for cut in [1, 2, 50, bytes.len() - 1] {
        std::fs::write(work.path("out.jsonl"), &bytes[..bytes.len() - cut]).unwrap();
        work.run("out.jsonl", &["-q"]).ok();
        assert_eq!(work.by_id("out.jsonl"), whole, "{cut}");
    }
    // Killed before the first line, and before the output was made.
    std::fs::write(work.path("out.jsonl"), "").unwrap();
    work.run("out.jsonl", &["-q"]).ok();
    assert_eq!(work.by_id("out.jsonl"), whole);
    std::fs::remove_file(work.path("out.jsonl")).unwrap();
    work.run("out.jsonl", &["-q"]).ok();
    assert_eq!(work.by_id("out.jsonl"), whole);
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

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn an_output_has_one_writer() {
    let work = busy(2000);
    let mut child = work.command("out.jsonl", &["--max-in-flight", "4"]).spawn().unwrap();
    wait_for_records(&work.path("out.jsonl"), 1);
    let second = work.run("out.jsonl", &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(second.error(1).contains("is being written by another process"), "{}", second.stderr);
}

#[test]
fn an_interrupt_finishes_what_is_in_flight() {
    let work = busy(150);
    let child = work.command("out.jsonl", &["--max-in-flight", "8"]).spawn().unwrap();
    wait_for_records(&work.path("out.jsonl"), 3);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("finishing what is in flight"), "{stderr}");
    let count = work.records("out.jsonl").len();
    assert!(count < 150, "the run was over before the interrupt");
    let last = stderr.lines().last().unwrap();
    assert_eq!(last, format!("error: stopped after {count} of 150 lines; the same command goes on from there"));
    let run = work.run("out.jsonl", &["--max-in-flight", "8"]).ok();
    assert!(run.stderr.contains(&format!("150 of 150 lines, {count} of them by earlier runs")), "{}", run.stderr);
    assert_eq!(work.by_id("out.jsonl").len(), 150);
}

#[test]
fn a_second_interrupt_stops_at_once() {
    let line = json!({"id": "a", "prompt": "def f(", "max_tokens": 2000, "ignore_eos": true});
    let work = Work::new(&[json!({"id": "b", "prompt": "x", "max_tokens": 1}), line]);
    let mut child = work.command("out.jsonl", &[]).spawn().unwrap();
    wait_for_records(&work.path("out.jsonl"), 1);
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(50));
    interrupt(&child);
    // 130 unless the long line was done before.
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(work.records("out.jsonl").len(), 1);
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
