//! `rigel respond`.

use std::path::Path;

use serde_json::Value;

use crate::common::{Copy, ids, rigel, rigel_stdin};

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
fn an_instruction_may_be_piped_in() {
    for more in [&[][..], &["-"]] {
        for mark in ["", "\u{feff}"] {
            let args = [&["respond", "--json", "-q", "--max-new-tokens", "1"], more].concat();
            let record = rigel_stdin(&args, format!("{mark}{INSTRUCTION}")).ok().json();
            assert_eq!(ids(&record["prompt_token_ids"]), chat_ids(), "{more:?}");
        }
    }
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

/// What the model card's `respond` returns under transformers 4.39 (float32, on the bundled model with a window wider
/// than its positions, since 4.39 has none there): `tests/goldens/respond.json`, made by tools/goldens.
#[test]
fn answers_are_those_of_transformers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/respond.json");
    let goldens: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let copy = Copy::of_nano();
    copy.edit("config.json", |config| {
        for (key, value) in goldens["config_overrides"].as_object().unwrap() {
            config[key] = value.clone();
        }
    });
    let length = goldens["max_length"].to_string();
    let (mut equal, mut refused) = (0, 0);
    for case in goldens["cases"].as_array().unwrap() {
        let [instruction, prefix] = ["instruction", "response_prefix"].map(|name| case[name].as_str().unwrap());
        let args = ["respond", "--json", "-q", "--model", copy.model(), "--max-length", &length];
        let run = rigel(&[&args[..], &["--response-prefix", prefix, "--", instruction]].concat());
        if instruction.trim().is_empty() {
            // transformers writes about nothing.
            assert!(run.error(2).starts_with("the instruction is empty"), "{}", run.stderr);
            continue;
        }
        if case["error"].is_string() {
            assert!(run.error(2).contains("--max-length"), "{}", run.stderr);
            refused += 1;
            continue;
        }
        let record = run.ok().json();
        assert_eq!(ids(&record["prompt_token_ids"]), ids(&case["prompt_ids"]), "{instruction}");
        let (found, expected) = (ids(&record["token_ids"]), ids(&case["generated_ids"]));
        let margins = case["margins"].as_array().unwrap();
        let differ = (0..expected.len()).find(|&i| found.get(i) != Some(&expected[i]));
        match differ {
            None => {
                assert_eq!(record["text"].as_str().unwrap(), case["response"].as_str().unwrap(), "{instruction}");
                equal += 1;
            }
            // Two tokens so near to each other may change places.
            Some(i) => assert!(margins[i].as_f64().unwrap() <= 1e-2, "{instruction}: token {i}"),
        }
    }
    assert!(equal >= 10 && refused >= 1, "{equal} answers compared, {refused} refused");
}

#[test]
fn an_answer_ends_at_the_end_of_any_file() {
    let args = |model: &str| rigel(&["respond", "--json", "-q", "--model", model, INSTRUCTION]).ok().json();
    let copy = Copy::of_nano();
    let whole = ids(&args(copy.model())["token_ids"]);
    // A token that the answer has, made the end in one file alone.
    let end = whole[4];
    let taken = whole.iter().position(|id| *id == end).unwrap() + 1;
    assert!(taken < whole.len());
    for file in ["generation_config.json", "config.json"] {
        let copy = Copy::of_nano();
        copy.edit(file, |config| config["eos_token_id"] = end.into());
        let record = args(copy.model());
        assert_eq!(ids(&record["token_ids"]), whole[..taken], "{file}");
        assert_eq!(record["finish_reason"], "stop");
    }
}

#[test]
fn the_options_of_generate_count() {
    let base = ["respond", "--json", "-q", "-n", "16"];
    let run = |more: &[&str]| rigel(&[&base[..], more, &[INSTRUCTION]].concat()).ok();
    let greedy = run(&[]);
    let sampled = |seed: &str| run(&["--temperature", "1.5", "--seed", seed]).json()["token_ids"].clone();
    assert_eq!(sampled("1"), sampled("1"));
    assert!(sampled("1") != greedy.json()["token_ids"] || sampled("2") != greedy.json()["token_ids"]);
    let idle = run(&["--seed", "3"]);
    assert_eq!(idle.json()["token_ids"], greedy.json()["token_ids"]);
    assert!(idle.stderr.starts_with("warning: --seed has no effect at temperature 0"), "{}", idle.stderr);
    // A stop is cut from the answer.
    let text = greedy.json()["text"].as_str().unwrap().to_owned();
    let stop = text.trim().char_indices().nth(4).map(|(at, _)| &text.trim()[at..]).unwrap();
    let stop: String = stop.chars().take(3).collect();
    let stopped = run(&["--stop", &stop]).json();
    assert_eq!(stopped["text"].as_str().unwrap(), text[..text.find(&stop).unwrap()].trim_end(), "{stop:?} in {text:?}");
    assert_eq!(stopped["finish_reason"], "stop");
    let logprobs = run(&["--logprobs", "1"]).json();
    assert_eq!(logprobs["logprobs"].as_array().unwrap().len(), logprobs["token_ids"].as_array().unwrap().len());
}

#[test]
fn nothing_is_no_instruction() {
    for nothing in ["", " \n"] {
        assert!(rigel(&["respond", nothing]).error(2).starts_with("the instruction is empty"));
    }
    assert!(rigel_stdin(&["respond", "-"], "\n").error(2).starts_with("the instruction is empty"));
}
