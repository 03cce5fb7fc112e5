//! `rigel tokenize` and `rigel detokenize`.

use serde_json::json;

use crate::common::{Copy, detokenize, ids, rigel, rigel_stdin, tokenize};

#[test]
fn there_and_back() {
    for text in ["", " ", "def f(x):\n\treturn x  # 12½\r\n", "日本語 🙂 é", "<fim_prefix>a<|endoftext|>", "\n\n"]
    {
        assert_eq!(detokenize(&tokenize(text)), text);
    }
}

#[test]
fn ids_are_printed_on_one_line() {
    let plain = rigel(&["tokenize", "a b c"]).ok();
    let words: Vec<u64> = plain.text().trim_end().split(' ').map(|word| word.parse().unwrap()).collect();
    assert_eq!(words, tokenize("a b c"));
    assert!(plain.text().ends_with('\n') && plain.stderr.is_empty());
    // Commas and spaces both part the ids that come back.
    let list = words.iter().map(u64::to_string).collect::<Vec<_>>();
    assert_eq!(rigel(&["detokenize", &list.join(",")]).ok().text(), "a b c");
    let spread: Vec<&str> = ["detokenize"].into_iter().chain(list.iter().map(String::as_str)).collect();
    assert_eq!(rigel(&spread).ok().text(), "a b c");
    assert_eq!(rigel(&["detokenize", "--json", &list.join(" ")]).ok().json(), json!({"text": "a b c"}));
}

#[test]
fn special_tokens_are_parsed_unless_told_otherwise() {
    assert_eq!(tokenize("<|endoftext|>"), [0]);
    let plain = ids(&rigel(&["tokenize", "--json", "--no-special", "<|endoftext|>"]).ok().json()["token_ids"]);
    assert!(!plain.contains(&0));
    assert_eq!(detokenize(&plain), "<|endoftext|>");
    assert_eq!(rigel(&["detokenize", "--skip-special", "0", "1"]).ok().text(), "");
}

#[test]
fn chat_renders_one_user_turn() {
    let run = rigel(&["tokenize", "--json", "--chat", "Sort a list."]).ok();
    let text = detokenize(&ids(&run.json()["token_ids"]));
    assert!(text.starts_with("<|endoftext|>") && text.ends_with("### Response\n"), "{text}");
    assert!(text.contains("### Instruction\nSort a list.\n\n"), "{text}");
}

#[test]
fn no_weights_are_needed() {
    let copy = Copy::of_nano();
    copy.remove("model.safetensors");
    copy.remove("config.json");
    let args = ["--model", copy.model()];
    let run = rigel(&[&["tokenize", "--json", "--chat", "x = 1"], &args[..]].concat()).ok();
    assert!(!ids(&run.json()["token_ids"]).is_empty());
    assert_eq!(rigel_stdin(&[&["detokenize", "-"], &args[..]].concat(), "0").ok().text(), "<|endoftext|>");
}

#[test]
fn what_is_no_id_is_said() {
    assert!(rigel(&["detokenize", "5", "x"]).error(2).contains("id 2 is `x`"));
    assert!(rigel(&["detokenize", "-1"]).error(2).contains("id 1 is `-1`"));
    assert!(rigel(&["detokenize", "99999999"]).error(2).contains("99999999"));
    assert!(rigel_stdin(&["detokenize", "-"], "1 2.5").error(2).starts_with("stdin: id 2"));
    assert!(rigel_stdin(&["tokenize", "-"], b"a\xc3").error(2).contains("byte 1 is not valid UTF-8"));
}
