//! `rigel respond`.

use std::path::Path;

use serde_json::Value;

use crate::common::{Copy, ids, nano, rigel, rigel_stdin};

const INSTRUCTION: &str = "Write a function that adds two numbers.";

fn chat_ids() -> Vec<u64> {
    ids(&rigel(&["tokenize", "--json", "--chat", INSTRUCTION]).ok().json()["token_ids"])
}

#[test]
fn the_prompt_is_the_chat_template() {
    let record = rigel(&["respond", "--json", "-q", "--max-new-tokens", "8", INSTRUCTION]).ok().json();
    assert_eq!(ids(&record["prompt_token_ids"]), chat_ids());
    let text = record["text"].as_str().unwrap();
    assert!(!text.contains("###") && text.trim_end() == text, "{text:?}");
    let printed = rigel_stdin(&["respond", "-q", "--max-new-tokens", "8", "-"], INSTRUCTION).ok();
    assert_eq!(printed.text(), format!("{text}\n"));
}

#[test]
fn a_prefix_begins_the_answer() {
    let args = ["respond", "--json", "-q", "--max-new-tokens", "4", "--response-prefix", "-- here .", INSTRUCTION];
    let record = rigel(&args).ok().json();
    assert!(record["text"].as_str().unwrap().starts_with("-- here ."), "{record}");
    assert!(ids(&record["prompt_token_ids"]).len() > chat_ids().len());
}

#[test]
fn max_length_counts_prompt_and_answer() {
    let prompt = chat_ids().len();
    for length in [1, prompt] {
        let run = rigel(&["respond", "--max-length", &length.to_string(), INSTRUCTION]);
        assert!(run.error(2).contains(&format!("--max-length {length}")), "{}", run.stderr);
    }
    // One token fits; it is no answer.
    let length = (prompt + 1).to_string();
    let run = rigel(&["respond", "--json", "-q", "--max-length", &length, INSTRUCTION]).ok();
    assert_eq!(ids(&run.json()["token_ids"]).len(), 1);
    if run.json()["finish_reason"] == "length" {
        assert!(run.stderr.starts_with("warning: ") && run.stderr.contains("--max-length"), "{}", run.stderr);
    }
    let both = rigel(&["respond", "--max-length", "9", "--max-new-tokens", "9", INSTRUCTION]);
    assert!(both.error(2).contains("cannot be used with"));
}

#[test]
fn a_base_model_cannot_respond() {
    let copy = Copy::of_nano();
    copy.edit("tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    if copy.path("chat_template.jinja").exists() {
        copy.remove("chat_template.jinja");
    }
    assert!(rigel(&["respond", "--model", copy.model(), "x"]).error(2).contains("chat template"));
    assert!(rigel(&["tokenize", "--chat", "--model", copy.model(), "x"]).error(2).contains("chat template"));
}

/// `respond` of transformers 4.39, float32, on nano: made by tools/goldens.
#[test]
fn answers_are_those_of_transformers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/respond.json");
    let Ok(bytes) = std::fs::read(&file) else {
        println!("SKIPPED answers_are_those_of_transformers: {} is absent", file.display());
        return;
    };
    let goldens: Value = serde_json::from_slice(&bytes).unwrap();
    let model = nano();
    for case in goldens["cases"].as_array().unwrap() {
        let field = |name: &str| case[name].as_str().unwrap_or("").to_owned();
        let length = case["max_length"].as_u64().unwrap_or(256).to_string();
        let args = [
            "respond",
            "--json",
            "-q",
            "--model",
            model.to_str().unwrap(),
            "--max-length",
            &length,
            "--response-prefix",
            &field("response_prefix"),
            &field("instruction"),
        ];
        let record = rigel(&args).ok().json();
        assert_eq!(record["text"].as_str().unwrap(), field("response"), "{}", field("instruction"));
    }
}
