//! Bad input: one line on stderr, exit code 2, nothing on stdout, no panic.

use serde_json::json;

use crate::common::{Copy, rigel, rigel_env};

#[track_caller]
fn refused(args: &[&str], needle: &str) {
    let run = rigel(args);
    assert!(run.error(2).contains(needle), "{args:?}: {}", run.stderr);
    assert_eq!(run.stdout, b"", "{args:?}");
}

#[test]
fn parameters_out_of_range() {
    for (option, value, needle) in [
        ("--temperature", "nan", "--temperature is NaN; expected"),
        ("--temperature", "-1", "--temperature is -1; expected"),
        ("--temperature", "inf", "--temperature is inf; expected"),
        ("--top-p", "-0.5", "--top-p is -0.5; expected"),
        ("--top-p", "NaN", "--top-p is NaN; expected"),
        ("--top-p", "1.5", "--top-p is 1.5; expected"),
        ("--min-p", "-0.5", "--min-p is -0.5; expected"),
        ("--repetition-penalty", "0", "--repetition-penalty is 0; expected"),
        ("--frequency-penalty", "2.5", "--frequency-penalty is 2.5; expected"),
        ("--presence-penalty", "-3", "--presence-penalty is -3; expected"),
        ("--logit-bias", "5=inf", "--logit-bias is inf for token 5; expected"),
        ("--logit-bias", "5", "expected a token id, '=' and a number"),
        ("--logit-bias", "-5=1", "--logit-bias"),
        ("--min-tokens", "-1", "--min-tokens"),
        ("--top-k", "-3", "--top-k"),
        ("--seed", "x", "--seed"),
        ("--max-new-tokens", "-1", "--max-new-tokens"),
        ("--max-new-tokens", "99999999999", "--max-new-tokens"),
        ("--logprobs", "-1", "--logprobs"),
        ("--logprobs", "1025", "expected a whole number from 0 to 1024"),
        ("--logit-bias", "99999=1", "--logit-bias names the id 99999; expected an id below the vocabulary size"),
        ("--stop", "", "--stop is empty"),
        ("--stop-token-ids", "1,x", "--stop-token-ids"),
        ("--stop-token-ids", "99999999", "99999999"),
        ("--threads", "0", "--threads"),
        ("--device", "tpu", "--device"),
        ("--dtype", "f32", "--dtype"),
        ("--dtype", "bf16", "dtype BF16: the CPU uses weights as they are stored; leave"),
        ("--device", "cuda", "device cuda: "),
    ] {
        refused(&["generate", option, value, "x"], needle);
    }
}

#[test]
fn arguments_that_make_no_sense() {
    refused(&["generate"], "<PROMPT>");
    refused(&["generate", ""], "the prompt is empty");
    refused(&["generate", "--frobnicate", "x"], "--frobnicate");
    refused(&["generate", "x", "y"], "unexpected argument");
    refused(&["generate", "--token-ids", "f", "x"], "cannot be used with");
    refused(&["generate", "x", "--file", "f"], "cannot be used with");
    let twice = "--file is given twice, as a and as b; give one of them; see `rigel generate --help`";
    refused(&["generate", "--file", "a", "-f", "b"], twice);
    refused(&["generate", "--prompts", "a", "--jsonl", "b"], "--prompts is given twice, as a and as b");
    refused(&["score", "--text", "a", "--text", "b"], "--text is given twice, as a and as b");
    refused(&["infill", "--at", "a:1:1", "--at", "b:1:1"], "--at is given twice, as a:1:1 and as b:1:1");
    refused(&["respond"], "no instruction; give <INSTRUCTION>, or pipe one in");
    refused(&["tokenize"], "no text; give <TEXT>, or pipe one in");
    refused(&["detokenize"], "no ids; give <IDS>, or pipe them in");
    refused(&["score"], "--text");
    refused(&["frobnicate"], "frobnicate");
    refused(&["generate", "--token-ids", "/nonexistent/prompts.jsonl"], "/nonexistent/prompts.jsonl");
    refused(&["score", "--text", "/nonexistent/text"], "/nonexistent/text");
    // A directory opens, and cannot be read.
    refused(&["score", "--text", env!("CARGO_MANIFEST_DIR")], "directory");
}

#[test]
fn models_that_are_not_there() {
    refused(&["inspect", "--model", "/nonexistent/model"], "/nonexistent/model");
    let empty = tempfile::tempdir().unwrap();
    refused(&["inspect", "--model", empty.path().to_str().unwrap()], "config.json");
    let run = rigel_env(&["generate", "--model", "bigcode/starcoder2-3b", "x"], "HF_HOME", empty.path());
    let line = run.error(2);
    assert!(line.contains("bigcode/starcoder2-3b") && line.contains("download"), "{line}");
}

#[test]
fn broken_checkpoints() {
    type Break = fn(&Copy);
    let cases: [(&str, Break); 10] = [
        ("model.safetensors", |copy| {
            let bytes = std::fs::read(copy.path("model.safetensors")).unwrap();
            copy.write("model.safetensors", &bytes[..bytes.len() / 2]);
        }),
        ("model.safetensors", |copy| copy.write("model.safetensors", [0xff; 64])),
        ("model.safetensors", |copy| copy.write("model.safetensors", b"")),
        ("model.safetensors", |copy| copy.remove("model.safetensors")),
        ("config.json", |copy| copy.write("config.json", "{\"hidden_size\": ")),
        ("hidden_size", |copy| copy.edit("config.json", |config| config["hidden_size"] = json!(0))),
        ("sliding_window", |copy| copy.edit("config.json", |config| config["sliding_window"] = json!(0))),
        ("model_type", |copy| copy.edit("config.json", |config| config["model_type"] = json!("gpt2"))),
        ("mlp.c_fc", |copy| copy.edit("config.json", |config| config["intermediate_size"] = json!(1000))),
        ("tokenizer.json", |copy| copy.write("tokenizer.json", "{}")),
    ];
    for (needle, breaks) in cases {
        let copy = Copy::of_nano();
        breaks(&copy);
        refused(&["generate", "--model", copy.model(), "x"], needle);
    }
}

#[test]
fn weights_without_numbers_fail_while_running() {
    let copy = Copy::of_nano();
    let mut bytes = std::fs::read(copy.path("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + length..].fill(0xff);
    copy.write("model.safetensors", bytes);
    let run = rigel(&["generate", "--model", copy.model(), "x"]);
    assert!(run.error(1).contains("not finite"), "{}", run.stderr);
}
