//! `rigel score`.

use serde_json::{Value, json};

use crate::common::{file, ids, path, rigel, rigel_stdin, tokenize};

const TEXT: &str = "def add(a, b):\n    return a + b\n";

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

fn mean(logprobs: &[f64]) -> f64 {
    logprobs.iter().sum::<f64>() / logprobs.len() as f64
}

#[test]
fn json_has_its_documented_fields() {
    let line = json!({"token_ids": tokenize(TEXT)}).to_string();
    let run = rigel_stdin(&["score", "--json", "--prompts", "-"], line).ok();
    let record = run.json();
    let tokens = tokenize(TEXT);
    assert_eq!(record.as_object().unwrap().len(), 6);
    assert_eq!((&record["line"], &record["bits_per_byte"]), (&json!(1), &Value::Null));
    assert_eq!(ids(&record["token_ids"]), tokens);
    let logprobs = record["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]), (tokens.len(), &Value::Null));
    let logprobs = numbers(&record["logprobs"]);
    assert!(logprobs.len() == tokens.len() - 1 && logprobs.iter().all(|l| *l <= 0.0));
    let perplexity = (-mean(&logprobs)).exp();
    assert!((record["perplexity"].as_f64().unwrap() / perplexity - 1.0).abs() < 1e-6); // f32 digits
    let top = record["top"].as_array().unwrap();
    assert_eq!(top.len(), tokens.len());
    for (position, best) in top.iter().enumerate() {
        let best = best.as_array().unwrap();
        assert_eq!(best.len(), 5);
        let values: Vec<f64> = best.iter().map(|entry| entry[1].as_f64().unwrap()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        // top[i] is about token i + 1.
        if let Some(next) = tokens.get(position + 1) {
            for entry in best.iter().filter(|entry| entry[0] == json!(next)) {
                assert!((entry[1].as_f64().unwrap() - logprobs[position]).abs() < 1e-6);
            }
            assert!(logprobs[position] <= values[0] + 1e-6);
        }
    }
    // The totals leave the lines alone.
    assert!(run.stderr.starts_with("total: 1 text, "), "{}", run.stderr);
}

#[test]
fn the_best_tokens_are_as_many_as_asked_for() {
    let text = file(TEXT);
    let record = |top: &str| rigel(&["score", "--json", "--top", top, "--text", path(&text)]).ok().json();
    let twenty = record("20");
    assert!(twenty["top"].as_array().unwrap().iter().all(|best| best.as_array().unwrap().len() == 20));
    let none = record("0");
    assert!(none.get("top").is_none());
    assert_eq!(none["logprobs"], twenty["logprobs"]);
    let refused = rigel(&["score", "--json", "--top", "21", "--text", path(&text)]);
    assert_eq!(refused.error(2), "--top is 21; expected 0 to 20");
}

#[test]
fn text_is_scored_like_its_ids() {
    let by_ids =
        rigel_stdin(&["score", "--json", "--token-ids", "-"], json!({"token_ids": tokenize(TEXT)}).to_string());
    let by_ids = by_ids.ok().json();
    let whole = file(TEXT);
    let lines = file(json!({"text": TEXT}).to_string());
    let prompts = file(json!({"prompt": TEXT, "id": "a"}).to_string());
    for args in [["--text", path(&whole)], ["--prompts", path(&lines)], ["--jsonl", path(&prompts)]] {
        let record = rigel(&["score", "--json", args[0], args[1]]).ok().json();
        for field in ["token_ids", "logprobs", "top", "perplexity"] {
            assert_eq!(record[field], by_ids[field], "{args:?} {field}");
        }
        // Bits of all tokens but the first over their bytes.
        let first = crate::common::detokenize(&ids(&record["token_ids"])[..1]).len();
        let bits = -numbers(&record["logprobs"]).iter().sum::<f64>() / std::f64::consts::LN_2;
        let expected = bits / (TEXT.len() - first) as f64;
        assert!((record["bits_per_byte"].as_f64().unwrap() / expected - 1.0).abs() < 1e-6, "{record}");
    }
}

#[test]
fn a_single_token_has_no_perplexity() {
    let record = rigel_stdin(&["score", "--json", "--prompts", "-"], "{\"token_ids\":[40]}").ok().json();
    assert_eq!((&record["logprobs"], &record["perplexity"]), (&json!([null]), &Value::Null));
    assert_eq!(record["top"].as_array().unwrap().len(), 1);
}

#[test]
fn prints_a_line_a_text_and_the_totals() {
    let lines = file("{\"text\":\"x = 1\"}\n{\"token_ids\":[40]}\n");
    let run = rigel(&["score", "--prompts", path(&lines)]).ok();
    let printed: Vec<&str> = run.text().lines().collect();
    assert_eq!(printed.len(), 3);
    assert!(printed[0].contains("bits per byte") && printed[0].starts_with(&format!("{}:1: ", path(&lines))));
    assert!(printed[1].ends_with(":2: 1 token, mean logprob -, perplexity -"), "{}", printed[1]);
    let tokens = tokenize("x = 1").len() + 1;
    assert!(printed[2].starts_with(&format!("total: 2 texts, {tokens} tokens, mean logprob -")), "{}", printed[2]);
    assert_eq!(run.stderr, "");
    // One text is its own total.
    let text = file("x = 1");
    assert_eq!(rigel(&["score", "--text", path(&text)]).ok().text().lines().count(), 1);
}

#[test]
fn the_totals_are_over_tokens() {
    let texts = ["x = 1", TEXT];
    let lines: String = texts.iter().map(|text| format!("{}\n", json!({"prompt": text}))).collect();
    let records = rigel_stdin(&["score", "--json", "--top", "0", "--prompts", "-"], &lines).ok().json_lines();
    let all: Vec<f64> = records.iter().flat_map(|record| numbers(&record["logprobs"])).collect();
    let run = rigel_stdin(&["score", "--prompts", "-"], &lines).ok();
    let total = run.text().lines().last().unwrap().to_owned();
    assert!(
        total.contains(&format!("mean logprob {:.4}, perplexity {:.4}", mean(&all), (-mean(&all)).exp())),
        "{total}"
    );
}

#[test]
fn a_bad_line_is_said_and_the_rest_goes_on() {
    let long = json!({"token_ids": vec![40; 2049]});
    let lines = format!(
        "{{\"token_ids\":[40,41]}}\n{{\"token_ids\":[40,-1]}}\nx\n{long}\n{{\"text\":\"a b\"}}\n{{\"text\":\"\"}}\n"
    );
    let run = rigel_stdin(&["score", "--json", "--top", "0", "--prompts", "-"], lines);
    assert_eq!(run.code, 1);
    let lines: Vec<Value> = run.json_lines().iter().map(|record| record["line"].clone()).collect();
    assert_eq!(lines, [1, 5]);
    let said: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(said.len(), 6, "{}", run.stderr);
    assert!(said[0].starts_with("error: stdin:2: token_ids is -1; expected"), "{}", said[0]);
    assert!(said[1].starts_with("error: stdin:3: begins with \"x\""), "{}", said[1]);
    assert!(said[2].starts_with("error: stdin:4: the text has 2049 tokens, and there is room for 2048; give --stride"));
    assert!(said[3].starts_with("error: stdin:6: the prompt is empty"), "{}", said[3]);
    assert!(said[4].starts_with("total: 2 texts, "), "{}", said[4]);
    assert_eq!(said[5], "error: 4 of 6 lines could not be scored");
    let empty = rigel_stdin(&["score", "--json", "--text", "-"], "");
    assert!(empty.error(2).contains("the prompt is empty"));
    assert!(rigel_stdin(&["score", "--prompts", "-"], "\n").error(2).contains("stdin has no prompts"));
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let of_stdin = rigel_stdin(&["score", "--json", "--text", "-"], format!("\u{feff}{TEXT}")).ok().json();
    assert_eq!(ids(&of_stdin["token_ids"]), tokenize(TEXT));
    let text = file(format!("\u{feff}{TEXT}"));
    let of_file = rigel(&["score", "--json", "--text", path(&text)]).ok().json();
    assert_eq!(
        (&of_file["token_ids"], &of_file["bits_per_byte"]),
        (&of_stdin["token_ids"], &of_stdin["bits_per_byte"])
    );
}

#[test]
fn text_and_json_lines_are_never_taken_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    for (name, content) in [
        ("a", "{\"prompt\":\"x\"}\n{\"prompt\":\"y\"}\n"),
        ("b", "\u{feff}{\"text\":\"x\"}\n"),
        ("c", "{\"txet\": \"x\",}\n"),
        ("d.jsonl", "x\n"),
    ] {
        let path = write(name, content);
        let run = rigel(&["score", "--text", &path]);
        let said = run.error(2);
        assert!(
            said.starts_with(&path) && said.contains(&format!("give --prompts {path}, or `--text - < {path}`")),
            "{said}"
        );
    }
    // Whoever insists gets all bytes as one text, and hears of it.
    let lines = "{\"prompt\":\"x\"}\n";
    let run = rigel_stdin(&["score", "--json", "--text", "-"], lines).ok();
    assert_eq!(ids(&run.json()["token_ids"]), tokenize(lines));
    assert!(run.stderr.starts_with("warning: stdin looks like JSON lines"), "{}", run.stderr);
    // JSON that is no line is text.
    let pretty = write("e.json", "{\n  \"prompt\": 1\n}\n");
    assert_eq!(rigel(&["score", "--json", "--text", &pretty]).ok().stderr, "");
    // A prompt on several lines is no JSON lines.
    assert!(rigel(&["score", "--prompts", &pretty]).error(2).contains("found JSON over several lines"));
}

/// Against scoring each window by itself.
#[test]
fn a_stride_scores_each_token_once() {
    let text = "for i in range(10):\n    print(i, i * i)\n".repeat(8);
    let tokens = tokenize(&text);
    assert!(tokens.len() > 130, "{}", tokens.len());
    let (context, stride) = (64, 40);
    let score = |ids: &[u64]| {
        let line = json!({"token_ids": ids}).to_string();
        rigel_stdin(&["score", "--json", "--prompts", "-"], line).ok().json()
    };
    let whole = file(&text);
    let args = ["score", "--json", "--context", "64", "--text", path(&whole)];
    let run = rigel(&[&args[..], &["--stride", "40"]].concat()).ok();
    let strided = run.json();
    let (mut start, mut counted) = (0, 0);
    let (mut logprobs, mut top) = (Vec::new(), Vec::new());
    while counted < tokens.len() {
        let end = tokens.len().min(start + context);
        let window = score(&tokens[start..end]);
        let list = |field: &str| window[field].as_array().unwrap().clone();
        logprobs.extend(list("logprobs").split_off(counted - start));
        // What follows a token is told by the window that has the follower.
        top.truncate(counted.saturating_sub(1));
        top.extend(list("top").split_off(top.len() - start));
        (counted, start) = (end, start + stride);
    }
    assert_eq!(ids(&strided["token_ids"]), tokens);
    assert_eq!((strided["logprobs"].as_array().unwrap().len(), &strided["logprobs"][0]), (tokens.len(), &Value::Null));
    let found = numbers(&strided["logprobs"]);
    let expected = numbers(&Value::Array(logprobs));
    assert_eq!(found.len(), tokens.len() - 1);
    for (index, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-4, "token {}: {a}, not {b}", index + 1);
    }
    for (index, (found, expected)) in strided["top"].as_array().unwrap().iter().zip(&top).enumerate() {
        let (a, b) = (&found[0], &expected[0]);
        assert!((a[1].as_f64().unwrap() - b[1].as_f64().unwrap()).abs() < 1e-4, "after token {index}: {a}, not {b}");
    }
    let perplexity = (-mean(&expected)).exp();
    assert!((strided["perplexity"].as_f64().unwrap() / perplexity - 1.0).abs() < 1e-3);
    // A text that fits is scored as without it, and one that does not is told of it.
    assert!(rigel(&args).error(2).contains("tokens, and there is room for 64; give --stride N"));
    for wrong in ["0", "64"] {
        assert!(
            rigel(&[&args[..], &["--stride", wrong]].concat())
                .error(2)
                .starts_with(&format!("--stride is {wrong}; expected"))
        );
    }
}
