//! `rigel score`.

use serde_json::{Value, json};

use crate::common::{file, ids, path, rigel, rigel_stdin, tokenize};

const TEXT: &str = "def add(a, b):\n    return a + b\n";

#[test]
fn json_has_its_documented_fields() {
    let line = json!({"token_ids": tokenize(TEXT)}).to_string();
    let record = rigel_stdin(&["score", "--json", "--token-ids", "-"], line).ok().json();
    let tokens = tokenize(TEXT);
    assert_eq!(record.as_object().unwrap().len(), 4);
    assert_eq!(ids(&record["token_ids"]), tokens);
    let logprobs = record["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]), (tokens.len(), &Value::Null));
    let logprobs: Vec<f64> = logprobs[1..].iter().map(|l| l.as_f64().unwrap()).collect();
    assert!(logprobs.iter().all(|l| *l <= 0.0));
    let perplexity = (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp();
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
}

#[test]
fn text_is_scored_like_its_ids() {
    let by_ids =
        rigel_stdin(&["score", "--json", "--token-ids", "-"], json!({"token_ids": tokenize(TEXT)}).to_string());
    let whole = file(TEXT);
    let lines = file(json!({"text": TEXT}).to_string());
    for args in [["--text", path(&whole)], ["--text", path(&lines)], ["--token-ids", path(&lines)]] {
        assert_eq!(rigel(&["score", "--json", args[0], args[1]]).ok().json(), by_ids.json());
    }
}

#[test]
fn a_single_token_has_no_perplexity() {
    let record = rigel_stdin(&["score", "--json", "--token-ids", "-"], "{\"token_ids\":[40]}").ok().json();
    assert_eq!((&record["logprobs"], &record["perplexity"]), (&json!([null]), &Value::Null));
    assert_eq!(record["top"].as_array().unwrap().len(), 1);
}

#[test]
fn prints_a_line_a_text() {
    let lines = file("{\"text\":\"x = 1\"}\n{\"token_ids\":[40]}\n");
    let run = rigel(&["score", "--token-ids", path(&lines)]).ok();
    let printed: Vec<&str> = run.text().lines().collect();
    assert_eq!(printed.len(), 2);
    assert!(printed[0].contains("perplexity") && printed[0].starts_with(&format!("{}:1: ", path(&lines))));
    assert!(printed[1].ends_with("mean logprob -, perplexity -"));
    assert_eq!(run.stderr, "");
}

#[test]
fn a_bad_line_leaves_what_came_before() {
    let lines = "{\"token_ids\":[40,41]}\n{\"token_ids\":[40,-1]}\n";
    let run = rigel_stdin(&["score", "--json", "--token-ids", "-"], lines);
    assert!(run.error(2).starts_with("stdin:2: "), "{}", run.stderr);
    assert_eq!(run.json_lines().len(), 1);
    let empty = rigel_stdin(&["score", "--json", "--text", "-"], "");
    assert!(empty.error(2).contains("the prompt is empty"));
}
