//! `rigel tokenize` and `rigel detokenize`.

use serde_json::{Value, json};

use crate::common::{Copy, detokenize, ids, rigel, rigel_stdin, tokenize};

#[test]
fn there_and_back() {
    for text in
        ["", " ", "def f(x):\n\treturn x  # 12½\r\n", "日本語 🙂 é", "<fim_prefix>a<|endoftext|>", "\n\n", "\u{feff}x"]
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
fn what_is_piped_in_needs_no_dash() {
    let text = "\u{feff}def f():\n";
    let printed = rigel_stdin(&["tokenize"], text).ok();
    assert_eq!(printed.text(), rigel_stdin(&["tokenize", "-"], text).ok().text());
    assert_eq!(rigel_stdin(&["detokenize"], printed.text()).ok().text(), text);
    // Windows' pipes mark what they carry; ids are no text.
    assert_eq!(rigel_stdin(&["detokenize"], format!("\u{feff}{}", printed.text())).ok().text(), text);
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

/// nano with a post-processor that puts `<|endoftext|>` before every text.
fn with_bos() -> Copy {
    let copy = Copy::of_nano();
    copy.edit("tokenizer.json", |json| {
        let bos = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        json["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [bos, text("A")], "pair": [text("A"), text("B")],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        });
    });
    copy
}

/// Ids from transformers 4.57.1 and 5.24.
#[test]
fn a_post_processor_s_tokens_stand_around_prompts() {
    let copy = with_bos();
    let run = |args: &[&str]| rigel(&[args, &["--model", copy.model()]].concat()).ok();
    assert_eq!(run(&["tokenize", "def f"]).text(), "0 444 320\n");
    assert_eq!(rigel(&["tokenize", "def f"]).ok().text(), "444 320\n");
    assert_eq!(run(&["tokenize", "--no-special", "def f"]).text(), "0 444 320\n");
    // A template writes its own.
    let chat = ["tokenize", "--chat", "def f"];
    assert_eq!(run(&chat).text(), rigel(&chat).ok().text());
    let prompt = |args: &[&str]| ids(&run(args).json()["prompt_token_ids"]);
    assert_eq!(prompt(&["generate", "--json", "-q", "-n", "1", "def f"]), [0, 444, 320]);
    assert_eq!(prompt(&["generate", "--json", "-q", "-n", "1", ""]), [0]);
    assert!(rigel(&["generate", "-n", "1", ""]).error(2).contains("empty"));
    let given = crate::common::file("{\"token_ids\":[444,320]}\n");
    assert_eq!(
        prompt(&["generate", "--json", "-q", "-n", "1", "--token-ids", given.path().to_str().unwrap()]),
        [444, 320]
    );
    let text = crate::common::file("def f");
    let scored = run(&["score", "--json", "--text", text.path().to_str().unwrap()]).json();
    assert_eq!((ids(&scored["token_ids"]), &scored["logprobs"][0]), (vec![0, 444, 320], &Value::Null));
    // The same prompt as when its format is written out.
    let (prefix, suffix) = (crate::common::file("def f"), crate::common::file("x"));
    let [prefix, suffix] = [&prefix, &suffix].map(|file| file.path().to_str().unwrap());
    let infill = ["--prefix-file", prefix, "--suffix-file", suffix];
    let infilled = prompt(&[&["infill", "--json", "-q", "-n", "1"], &infill[..]].concat());
    assert_eq!(
        infilled,
        prompt(&["generate", "--json", "-q", "-n", "1", "<fim_prefix>def f<fim_suffix>x<fim_middle>"])
    );
}

/// What a model says does not change with a field that only chats read.
#[test]
fn a_chat_template_is_nothing_to_those_who_do_not_chat() {
    let generate = ["generate", "-q", "-n", "12", "def f"];
    let expected = rigel(&generate).ok().text().to_owned();
    let copy = Copy::of_nano();
    let with = |args: &[&str]| rigel(&[args, &["--model", copy.model()]].concat());
    for (template, message) in [
        (json!([{"name": "tool_use", "template": "T"}]), "\"tool_use\""),
        (json!({"rag": "R"}), "\"rag\""),
        (json!(7), "field `chat_template`: found 7"),
        (json!("{% for %}"), "the chat template does not parse"),
    ] {
        copy.edit("tokenizer_config.json", |config| config["chat_template"] = template.clone());
        assert_eq!(with(&generate).ok().text(), expected);
        for command in [&["respond", "x"][..], &["tokenize", "--chat", "x"]] {
            let said = with(command).error(2).to_owned();
            assert!(said.contains(message) && said.contains("tokenizer_config.json"), "{said}");
        }
        let line = crate::common::file(
            "{\"id\":\"a\",\"prompt\":\"def f\",\"max_tokens\":2}\n{\"id\":\"b\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n",
        );
        let out = copy.path("out.jsonl");
        let run = with(&["batch", "-q", line.path().to_str().unwrap(), out.to_str().unwrap()]);
        let (done, failed) =
            (std::fs::read_to_string(&out).unwrap(), std::fs::read_to_string(copy.path("out.errors.jsonl")));
        let failed = failed.unwrap_or_else(|e| panic!("{e}: {}", run.stderr));
        assert!(done.contains("\"custom_id\":\"a\"") && !done.contains("\"custom_id\":\"b\""), "{done}");
        assert!(failed.contains("\"custom_id\":\"b\"") && failed.contains("tokenizer_config.json"), "{failed}");
        for name in ["out.jsonl", "out.errors.jsonl", "out.jsonl.manifest.json"] {
            copy.remove(name);
        }
    }
    copy.edit("tokenizer_config.json", |config| {
        config["chat_template"] = json!({"default": config["chat_template"].clone()})
    });
    copy.edit("tokenizer_config.json", |config| {
        config["chat_template"]["default"] = json!("{{ messages[0].content }}")
    });
    assert_eq!(with(&["tokenize", "--chat", "def f"]).ok().text(), "444 320\n");
}

/// 12 greedy tokens of transformers on the same files: GPT2Tokenizer from vocab.json and merges.txt gives this prompt
/// the ids that tokenizer.json gives it.
#[test]
fn a_model_may_have_vocab_json_and_merges_txt() {
    let copy = Copy::of_nano();
    let json: Value = serde_json::from_slice(&std::fs::read(copy.path("tokenizer.json")).unwrap()).unwrap();
    let line = |pair: &Value| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    copy.write("vocab.json", json["model"]["vocab"].to_string());
    copy.write("merges.txt", json["model"]["merges"].as_array().unwrap().iter().map(line).collect::<String>());
    copy.remove("tokenizer.json");
    let text = rigel(&["generate", "-q", "-n", "12", "def f", "--model", copy.model()]).ok();
    assert_eq!(text.text().trim_end(), "ibonacci_memoization(n):");
    copy.remove("merges.txt");
    let said = rigel(&["generate", "-q", "-n", "12", "def f", "--model", copy.model()]).error(2).to_owned();
    assert!(said.contains("merges.txt: is missing"), "{said}");
}

/// Less address space than a chat template's whole stack: the parser's is as large as the template needs, and a
/// rendering gets less.
#[cfg(target_os = "linux")]
#[test]
fn a_chat_template_needs_little_memory() {
    let expected = rigel(&["tokenize", "--chat", "x"]).ok().text().to_owned();
    let run = |kib: u32| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("ulimit -v {kib} && exec \"$0\" tokenize --chat x"), env!("CARGO_BIN_EXE_rigel")]);
        command.output().unwrap()
    };
    let output = run(300 << 10);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_no_id_is_said() {
    assert!(rigel(&["detokenize", "5", "x"]).error(2).starts_with("the 2nd id is `x`"));
    assert!(rigel(&["detokenize", "-1"]).error(2).starts_with("the 1st id is `-1`"));
    assert!(rigel(&["detokenize", "99999999"]).error(2).contains("99999999"));
    assert!(rigel_stdin(&["detokenize", "-"], "1 2.5").error(2).starts_with("stdin: the 2nd id is `2.5`"));
    assert!(rigel_stdin(&["tokenize", "-"], b"a\xc3").error(2).contains("byte 1 is not valid UTF-8"));
}

#[test]
fn tokens_are_shown_with_their_text_or_counted() {
    let text = "def f():\n\té\u{80}";
    let tokens = tokenize(text);
    let run = rigel_stdin(&["tokenize", "--pieces", "-"], text).ok();
    let lines: Vec<(u64, &str)> = run
        .text()
        .lines()
        .map(|line| line.split_once('\t').map(|(id, piece)| (id.parse().unwrap(), piece)).unwrap())
        .collect();
    assert_eq!(lines.iter().map(|(id, _)| *id).collect::<Vec<_>>(), tokens);
    assert_eq!(lines[..2], [(444, "\"def\""), (320, "\" f\"")]);
    // Line breaks are written out, and bytes that are no text have a name.
    assert!(lines.iter().all(|(_, piece)| piece.starts_with('"') || piece.starts_with("bytes:")), "{lines:?}");
    let json = rigel_stdin(&["tokenize", "--pieces", "--json", "-"], text).ok().json();
    assert_eq!(ids(&json["token_ids"]), tokens);
    assert_eq!((json["pieces"].as_array().unwrap().len(), &json["pieces"][1]), (tokens.len(), &json!(" f")));
    assert_eq!(rigel_stdin(&["tokenize", "--count", "-"], text).ok().text(), format!("{}\n", tokens.len()));
    let count = rigel_stdin(&["tokenize", "--count", "--json", "-"], text).ok().json();
    assert_eq!(count, json!({"count": tokens.len()}));
    assert!(rigel(&["tokenize", "--pieces", "--count", "x"]).error(2).contains("cannot be used with"));
}

#[test]
fn the_help_s_example_is_code() {
    let help = rigel(&["detokenize", "--help"]).ok();
    let example =
        help.text().lines().find_map(|line| line.trim().strip_prefix("rigel detokenize 4")).unwrap().to_owned();
    assert_eq!(rigel(&["detokenize", &format!("4{example}")]).ok().text(), "def f():\n    return x");
}
