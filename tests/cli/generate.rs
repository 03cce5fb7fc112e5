//! `rigel generate`.

use std::io::Read;

use serde_json::{Value, json};

use crate::common::{Copy, command, detokenize, file, ids, path, rigel, rigel_env, rigel_stdin, tokenize};

const PROMPT: &str = "def add(a, b):\n";

/// 32 greedy tokens after [`PROMPT`], whatever the model thinks of its end.
fn reference() -> Value {
    rigel(&["generate", "--json", "--ignore-eos", "-n", "32", PROMPT]).ok().json()
}

#[test]
fn json_has_its_documented_fields() {
    let run = rigel(&["generate", "--json", "-n", "8", PROMPT]).ok();
    let record = run.json();
    let keys: Vec<&String> = record.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 5, "{keys:?}");
    assert_eq!(ids(&record["prompt_token_ids"]), tokenize(PROMPT));
    let new = ids(&record["token_ids"]);
    assert!((1..=8).contains(&new.len()));
    assert!(record["text"].is_string());
    assert!(["stop", "length"].contains(&record["finish_reason"].as_str().unwrap()));
    let timings = &record["timings"];
    assert_eq!(timings["prompt_tokens"], json!(tokenize(PROMPT).len()));
    assert_eq!(timings["completion_tokens"], json!(new.len()));
    let seconds = |field: &str| timings[field].as_f64().unwrap();
    for field in ["queued", "prefill", "decode", "time_to_first_token"] {
        assert!(seconds(field) >= 0.0, "{field}");
    }
    assert!((seconds("queued") + seconds("prefill") - seconds("time_to_first_token")).abs() < 1e-6);
    assert!(timings["prefill_rate"].is_f64());
    assert_eq!(timings["decode_rate"].is_f64(), new.len() > 1);
    assert_eq!(timings.as_object().unwrap().len(), 8);
}

#[test]
fn streams_the_text_of_the_json() {
    let record = reference();
    let stream = rigel(&["generate", "--ignore-eos", "-n", "32", PROMPT]).ok();
    assert_eq!(stream.text(), record["text"].as_str().unwrap());
    let line = stream.stderr;
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(
        line.contains("32 new tokens") && line.contains("first token after") && line.contains("tokens/s"),
        "{line}"
    );
    // Device, instruction set and threads.
    let device = line.split_once(", on cpu (").unwrap_or_else(|| panic!("{line}")).1;
    let isa = device.split(", ").next().unwrap();
    assert!(["avx512", "avx2", "portable"].contains(&isa) && device.trim_end().ends_with(')'), "{line}");
    let quiet = rigel(&["generate", "--quiet", "--ignore-eos", "-n", "32", PROMPT]).ok();
    assert_eq!((quiet.stdout, quiet.stderr.as_str()), (stream.stdout, ""));
}

#[test]
fn a_context_beyond_the_model_s_positions_is_capped_with_a_warning() {
    let run = rigel(&["generate", "--quiet", "--context", "100000", "-n", "1", PROMPT]).ok();
    let expected = "warning: a context of 100000 was asked for and the model has 2048 positions: using as many\n";
    assert_eq!(run.stderr, expected);
}

#[test]
fn an_instruction_set_that_there_is_not_is_bad_input() {
    let run = rigel_env(&["generate", "x"], "RIGEL_CPU_ISA", std::path::Path::new("foo"));
    let line = run.error(2);
    assert!(line.starts_with("RIGEL_CPU_ISA=foo: this machine has portable"), "{line}");
}

#[test]
fn echo_puts_the_prompt_first() {
    let text = reference()["text"].as_str().unwrap().to_owned();
    let args = ["generate", "--echo", "--ignore-eos", "-n", "32"];
    let echoed = format!("{PROMPT}{text}");
    assert_eq!(rigel(&[&args[..], &[PROMPT]].concat()).ok().text(), echoed);
    assert_eq!(rigel(&[&args[..], &["--json", PROMPT]].concat()).ok().json()["text"], json!(echoed));
    // Ids are echoed as the text they stand for.
    let prompts = file(json!({"token_ids": tokenize(PROMPT)}).to_string());
    let run = rigel(&[&args[..], &["--json", "--token-ids", path(&prompts)]].concat()).ok();
    assert_eq!(run.json()["text"], json!(echoed));
}

#[test]
fn stdin_is_taken_byte_for_byte() {
    for text in ["  x = 1\n\n", "\t", "é\r\n", " a"] {
        let record = rigel_stdin(&["generate", "--json", "-n", "1", "-"], text).ok().json();
        assert_eq!(detokenize(&ids(&record["prompt_token_ids"])), text);
    }
    let bad = rigel_stdin(&["generate", "-"], b"abc\xff\xfe");
    assert!(bad.error(2).starts_with("stdin: byte 3 is not valid UTF-8"), "{}", bad.stderr);
    assert!(rigel_stdin(&["generate", "-"], b"").error(2).contains("the prompt is empty"));
}

#[test]
fn special_tokens_are_parsed_unless_told_otherwise() {
    let prompt = |args: &[&str]| {
        let args = [&["generate", "--json", "-n", "1"], args, &["<fim_prefix>x"]].concat();
        ids(&rigel(&args).ok().json()["prompt_token_ids"])
    };
    assert_eq!(prompt(&[])[0], 1);
    let plain = prompt(&["--no-special"]);
    assert!(!plain.contains(&1) && detokenize(&plain) == "<fim_prefix>x", "{plain:?}");
}

#[test]
fn stop_texts_end_the_text_wherever_tokens_end() {
    let record = reference();
    let text = record["text"].as_str().unwrap();
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    assert!(chars.len() > 8, "{text:?}");
    // A text from the middle of the completion, three characters long.
    let (start, end) = (chars[chars.len() / 2].0, chars[chars.len() / 2 + 3].0);
    let stop = &text[start..end];
    let args = ["generate", "--ignore-eos", "-n", "32", "--stop", "\u{1}never\u{1}", "--stop", stop];
    let expected = &text[..text.find(stop).unwrap()];
    assert_eq!(rigel(&[&args[..], &[PROMPT]].concat()).ok().text(), expected);
    let stopped = rigel(&[&args[..], &["--json", PROMPT]].concat()).ok().json();
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(expected), &json!("stop")));
    let (all, some) = (ids(&record["token_ids"]), ids(&stopped["token_ids"]));
    assert_eq!(some, all[..some.len()]);
}

#[test]
fn biases_penalties_and_the_least_number_of_tokens_reach_the_sampler() {
    let generated = |args: &[&str]| {
        let record = rigel(&[&["generate", "--json", "-n", "5"], args, &[PROMPT]].concat()).ok().json();
        ids(&record["token_ids"])
    };
    assert_eq!(generated(&["--logit-bias", "70=1000"]), [70; 5]);
    // Whichever of two leads loses 4 the first time and 2 each time after, until the other leads.
    let two = ["--logit-bias", "70=1000", "--logit-bias", "80=1000"];
    let both = generated(&[&two[..], &["--frequency-penalty", "2", "--presence-penalty", "2"]].concat());
    assert!(both.contains(&70) && both.contains(&80) && both.iter().all(|id| [70, 80].contains(id)), "{both:?}");
    assert_ne!(generated(&two), both, "the penalties change nothing");
    // The end-of-sequence token at once, or after three others.
    assert_eq!(generated(&["--logit-bias", "0=1000"]), [0]);
    let held = generated(&["--logit-bias", "0=1000", "--min-tokens", "3"]);
    assert!(held.len() == 4 && held[..3].iter().all(|id| *id != 0) && held[3] == 0, "{held:?}");
}

#[test]
fn stop_token_ids_end_the_generation() {
    let all = ids(&reference()["token_ids"]);
    let stop = all[all.len() / 2];
    let first = all.iter().position(|id| *id == stop).unwrap();
    let list = format!("{stop},4");
    let args = ["generate", "--json", "--ignore-eos", "-n", "32", "--stop-token-ids", &list, PROMPT];
    let record = rigel(&args).ok().json();
    let stopped = ids(&record["token_ids"]);
    assert!(stopped.len() <= first + 1 && stopped == all[..stopped.len()], "{stopped:?}");
    assert_eq!(record["finish_reason"], "stop");
}

#[test]
fn logprobs_are_those_of_score() {
    let args = ["generate", "--json", "--ignore-eos", "-n", "24", "--logprobs", "5", PROMPT];
    let generated = rigel(&args).ok().json();
    let prompt = ids(&generated["prompt_token_ids"]);
    let new = ids(&generated["token_ids"]);
    let all = [prompt.clone(), new.clone()].concat();
    let all = json!({"token_ids": all}).to_string();
    let scored = rigel_stdin(&["score", "--json", "--token-ids", "-"], all).ok().json();
    for (index, id) in new.iter().enumerate() {
        let position = prompt.len() + index;
        let (a, b) = (&generated["logprobs"][index], &scored["logprobs"][position]);
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4, "token {index}: {a} and {b}");
        let (best, at) = (&generated["top"][index], &scored["top"][position - 1]);
        assert_eq!(best.as_array().unwrap().len(), 5);
        // Greedy: the token is the best.
        assert_eq!(best[0][0], json!(id));
        for rank in 0..5 {
            let (a, b) = (best[rank][1].as_f64().unwrap(), at[rank][1].as_f64().unwrap());
            assert!((a - b).abs() < 1e-4, "token {index}, rank {rank}: {a} and {b}");
        }
    }
}

#[test]
fn logprobs_without_json_are_a_table_on_stderr() {
    let plain = rigel(&["generate", "-q", "--ignore-eos", "-n", "4", PROMPT]).ok();
    let table = rigel(&["generate", "-q", "--ignore-eos", "-n", "4", "--logprobs", "2", PROMPT]).ok();
    assert_eq!(plain.stdout, table.stdout);
    assert_eq!(table.stderr.lines().count(), 5, "{}", table.stderr);
}

#[test]
fn prompts_from_json_lines_run_in_order() {
    let (first, second) = (tokenize("import os\n"), tokenize("class A"));
    let lines = format!("{}\n\n{}\n", json!({"token_ids": first}), json!({"token_ids": second, "id": "b"}));
    let prompts = file(&lines);
    let args = ["generate", "--ignore-eos", "-n", "6", "--token-ids"];
    let records = rigel(&[&args[..], &[path(&prompts), "--json"]].concat()).ok().json_lines();
    assert_eq!(records.len(), 2);
    assert_eq!(ids(&records[0]["prompt_token_ids"]), first);
    assert_eq!(ids(&records[1]["prompt_token_ids"]), second);
    let alone = rigel(&["generate", "--ignore-eos", "-n", "6", "--json", "class A"]).ok().json();
    assert_eq!(records[1]["token_ids"], alone["token_ids"]);
    let text = |index: usize| records[index]["text"].as_str().unwrap();
    // Parted as head and tail part files.
    let plain = rigel_stdin(&["generate", "--ignore-eos", "-n", "6", "--prompts", "-"], &lines).ok();
    let line = |text: &str| if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    assert_eq!(plain.text(), format!("==> stdin:1 <==\n{}\n==> stdin:3 <==\n{}", line(text(0)), line(text(1))));
}

#[test]
fn a_prompt_has_three_names_in_json_lines() {
    let prompt = tokenize("class A");
    let lines = [
        json!({"prompt": "class A", "max_tokens": 3, "custom_id": "x"}),
        json!({"text": "class A"}),
        json!({"token_ids": prompt}),
        json!({"prompt": prompt, "text": null}),
    ];
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    for flag in ["--prompts", "--jsonl", "--token-ids"] {
        let records = rigel_stdin(&["generate", "--json", "-q", "-n", "2", flag, "-"], &lines).ok().json_lines();
        assert_eq!(records.len(), 4);
        for record in records {
            assert_eq!(ids(&record["prompt_token_ids"]), prompt);
        }
    }
    let refused = |content: &[u8], needle: &str| {
        let run = rigel_stdin(&["generate", "--json", "--prompts", "-"], content);
        assert!(run.error(2).contains(needle), "{}", run.stderr);
    };
    refused(b"[{\"prompt\":\"a\"}]", "stdin: expected JSON lines, one object a line; found a JSON array");
    refused(b"\x1f\x8b\x08\0\0\0", "found gzip");
    refused(b"\n", "stdin has no prompts");
}

#[test]
fn a_line_without_a_prompt_is_said() {
    for (line, needle) in [
        ("{\"text\":\"a\",\"prompt\":\"b\"}", "both prompt and text"),
        ("{\"id\":1}", "no prompt, but the field id; expected {\"prompt\""),
        ("{}", "no prompt; expected {\"prompt\""),
        ("{\"id\":1,\"promt\":\"a\"}", "no prompt, but promt; did you mean prompt?"),
        ("{\"input\":\"a\"}", "no prompt, but the field input; expected {\"prompt\""),
        ("{\"messages\":[]}", "`rigel batch` reads lines with messages or a body"),
        ("def f():", "begins with \"def f():\"; expected {\"prompt\""),
    ] {
        for command in ["generate", "score"] {
            let run = rigel_stdin(&[command, "--json", "--prompts", "-"], line);
            assert_eq!((run.code, run.text()), (1, ""), "{}", run.stderr);
            let first = run.stderr.lines().next().unwrap();
            assert!(first.starts_with("error: stdin:1: ") && first.contains(needle), "{first}");
        }
    }
}

#[test]
fn fields_that_batch_would_read_are_a_warning() {
    let lines = "{\"id\":1,\"prompt\":\"x\",\"max_tokens\":3,\"seed\":1}\n{\"prompt\":\"y\",\"n\":2,\"seed\":null}\n";
    let run = rigel_stdin(&["generate", "--json", "-q", "-n", "1", "--prompts", "-"], lines).ok();
    assert_eq!(run.json_lines().len(), 2);
    // Once.
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.starts_with("warning: stdin:1: ignoring max_tokens, seed: "), "{}", run.stderr);
    assert!(run.stderr.contains("`rigel batch`"), "{}", run.stderr);
    let none = "{\"id\":1,\"prompt\":\"x\",\"note\":1,\"seed\":null}";
    assert_eq!(rigel_stdin(&["generate", "--json", "-q", "-n", "1", "--prompts", "-"], none).ok().stderr, "");
}

#[test]
fn a_byte_order_mark_is_no_prompt() {
    let args = ["generate", "--json", "-q", "-n", "1"];
    for more in [&[][..], &["-"], &["--file", "-"]] {
        let record = rigel_stdin(&[&args[..], more].concat(), "\u{feff}x = 1\n").ok().json();
        assert_eq!(detokenize(&ids(&record["prompt_token_ids"])), "x = 1\n", "{more:?}");
    }
}

#[test]
fn a_prompt_may_be_a_file_or_piped_in() {
    let prompt = |run: crate::common::Run| detokenize(&ids(&run.ok().json()["prompt_token_ids"]));
    let args = ["generate", "--json", "-q", "-n", "1"];
    let code = file("\u{feff}x = 1\n");
    for flag in ["--file", "-f"] {
        assert_eq!(prompt(rigel(&[&args[..], &[flag, path(&code)]].concat())), "x = 1\n");
    }
    assert_eq!(prompt(rigel_stdin(&args, "piped")), "piped");
    assert!(rigel_stdin(&args, "").error(2).contains("give <PROMPT>, --file FILE or --prompts FILE"));
    assert!(rigel(&[&args[..], &["-f", path(&code), "x"]].concat()).error(2).contains("cannot be used with"));
    // The name of a file is a prompt, and probably not what was meant.
    let run = rigel(&[&args[..], &[path(&code)]].concat()).ok();
    assert!(run.stderr.starts_with("warning: ") && run.stderr.contains(&format!("--file {}", path(&code))), "{run:?}");
    assert_eq!(detokenize(&ids(&run.json()["prompt_token_ids"])), path(&code));
}

#[test]
fn the_closing_line_says_why_in_words() {
    let said = |args: &[&str]| rigel(&[&["generate", "-n", "3", "x"], args].concat()).ok().stderr;
    assert!(said(&["--logit-bias", "0=1000"]).contains(" (end of sequence)"), "{}", said(&["--logit-bias", "0=1000"]));
    let special = said(&["--logit-bias", "6=1000", "--stop-token-ids", "6"]);
    assert!(special.contains(" (stop: <file_sep>)"), "{special}");
    let text = said(&["--logit-bias", "70=1000", "--stop-token-ids", "70"]);
    assert!(text.contains(&format!(" (stop: {:?})", detokenize(&[70]))), "{text}");
    assert!(said(&["--ignore-eos"]).contains(" (length)"));
}

#[test]
fn a_stop_of_a_backslash_and_an_n_is_a_warning() {
    let said = |stop: &str| rigel(&["generate", "-q", "-n", "1", "--stop", stop, "x"]).ok().stderr;
    assert!(said("\\ndef ").starts_with("warning: --stop '\\ndef ' has a backslash and an n"), "{}", said("\\n"));
    assert_eq!(said("\ndef "), "");
}

/// `2>&1`: the closing line is a line of its own.
#[test]
#[cfg(unix)]
fn notes_do_not_run_into_the_text() {
    let together = |args: &[&str]| {
        let both = tempfile::NamedTempFile::new().unwrap();
        let mut command = command(args);
        // One offset for both, as the shell has it.
        let file = std::fs::OpenOptions::new().append(true).open(both.path()).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        assert!(command.status().unwrap().success());
        std::fs::read_to_string(both.path()).unwrap()
    };
    let args = ["generate", "-n", "2", "--logit-bias", "70=1000", "x"];
    let text = detokenize(&[70, 70]);
    let both = together(&args);
    assert!(both.starts_with(&format!("{text}\n1 prompt token, 2 new tokens (length)")), "{both}");
    // Apart, nothing is added to either.
    let apart = rigel(&args).ok();
    assert_eq!(apart.text(), text);
    assert!(apart.stderr.starts_with("1 prompt token"), "{}", apart.stderr);
}

#[test]
fn a_bad_line_is_said_and_the_rest_goes_on() {
    for (bad, needle) in [
        ("{\"token_ids\":[5,99999999]}", "prompts.jsonl:2: token 2 of the prompt has the id 99999999"),
        ("{\"token_ids\":[]}", "prompts.jsonl:2: the prompt is empty"),
        ("{\"token_ids\":\"x\"}", "prompts.jsonl:2: "),
        ("nonsense", "prompts.jsonl:2: "),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let prompts = dir.path().join("prompts.jsonl");
        std::fs::write(&prompts, format!("{{\"token_ids\":[40,41]}}\n{bad}\n{{\"token_ids\":[40]}}\n")).unwrap();
        let args = ["generate", "--json", "-q", "-n", "1", "--token-ids", prompts.to_str().unwrap()];
        let run = rigel(&args);
        assert_eq!((run.code, run.json_lines().len()), (1, 2), "{}", run.stderr);
        let said: Vec<&str> = run.stderr.lines().collect();
        assert_eq!(said.len(), 2, "{}", run.stderr);
        assert!(said[0].starts_with("error: ") && said[0].contains(needle), "{}", run.stderr);
        assert_eq!(said[1], "error: 1 of 3 lines could not be continued");
        // Of what fails there is no header.
        let text = rigel(&["generate", "-q", "-n", "1", "--prompts", prompts.to_str().unwrap()]);
        let headers = text.text().matches("==> ").count();
        assert!(text.code == 1 && headers == 2 && !text.text().contains("jsonl:2 <=="), "{text:?}");
    }
}

#[test]
fn the_positions_are_the_end() {
    // nano has 2048 of them.
    let prompt = |tokens: usize| file(json!({"token_ids": vec![40; tokens]}).to_string());
    let generate = |tokens: usize, more: &[&str]| {
        let prompts = prompt(tokens);
        rigel(&[&["generate", "--json", "--quiet", "--ignore-eos", "--token-ids", path(&prompts)], more].concat())
    };
    let silent = generate(2040, &[]).ok();
    assert_eq!((ids(&silent.json()["token_ids"]).len(), silent.stderr.as_str()), (8, ""));
    let told = generate(2040, &["-n", "9"]).ok();
    assert_eq!(ids(&told.json()["token_ids"]).len(), 8);
    assert!(told.stderr.starts_with("warning: ") && told.stderr.contains("--max-new-tokens 9"), "{}", told.stderr);
    let refused = |tokens: usize, needle: &str| {
        let run = generate(tokens, &[]);
        assert!(run.code == 1 && run.stderr.starts_with("error: ") && run.stderr.contains(needle), "{run:?}");
    };
    refused(2048, "shorten the prompt");
    assert_eq!(ids(&generate(2048, &["-n", "0"]).ok().json()["token_ids"]), [0; 0]);
    refused(2049, "2049 tokens");
}

#[test]
fn a_seed_is_a_sequence_of_draws() {
    let draw = |seed: &str| {
        let args = ["generate", "--json", "--ignore-eos", "-n", "24", "--temperature", "1.5", "--seed", seed, PROMPT];
        rigel(&args).ok().json()["token_ids"].clone()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn generation_config_counts_only_when_asked() {
    let copy = Copy::of_nano();
    copy.edit("generation_config.json", |config| {
        config["do_sample"] = json!(true);
        config["temperature"] = json!(1.5);
        config["top_k"] = json!(50);
    });
    let run = |args: &[&str]| {
        let common = ["generate", "--json", "--ignore-eos", "-n", "24", "--model", copy.model(), PROMPT];
        rigel(&[&common[..], args].concat()).ok().json()["token_ids"].clone()
    };
    let greedy = run(&[]);
    let options = run(&["--temperature", "1.5", "--top-k", "50", "--seed", "3"]);
    assert_eq!(ids(&greedy), ids(&reference()["token_ids"])[..24]);
    assert_ne!(options, greedy);
    assert_eq!(run(&["--generation-config", "--seed", "3"]), options);
    assert_eq!(run(&["--generation-config", "--temperature", "0"]), greedy);
    copy.edit("generation_config.json", |config| config["top_p"] = json!(7));
    let bad = rigel(&["generate", "--generation-config", "--model", copy.model(), PROMPT]);
    assert!(bad.error(2).contains("generation_config.json: top_p is 7"), "{}", bad.stderr);
}

#[test]
fn idle_options_are_a_warning() {
    let run = rigel(&["generate", "-q", "-n", "1", "--top-p", "0.9", PROMPT]).ok();
    assert!(run.stderr.starts_with("warning: --top-p has no effect"), "{}", run.stderr);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = command(&["generate", "--ignore-eos", "-n", "1024", PROMPT]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 10];
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_closed_stderr_is_no_error() {
    let mut child = command(&["generate", "--ignore-eos", "-n", "4", "--top-p", "0.5", PROMPT]).spawn().unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn ids_need_no_tokenizer() {
    let copy = Copy::of_nano();
    copy.remove("tokenizer.json");
    let prompts = file("{\"token_ids\":[40,41,42]}");
    let args = ["generate", "-q", "--model", copy.model(), "-n", "4", "--token-ids", path(&prompts)];
    let record = rigel(&[&args[..], &["--json"]].concat()).ok().json();
    assert!(!ids(&record["token_ids"]).is_empty());
    assert_eq!(record["text"], "");
    assert!(rigel(&["generate", "--model", copy.model(), "x"]).error(2).contains("tokenizer.json"));
    // The line is not at fault, and no model is loaded for it.
    copy.remove("model.safetensors");
    let run = rigel(&args);
    let said = run.error(2);
    assert!(said.contains("tokenizer.json does not exist") && said.ends_with("give --json to print token ids alone"));
    assert!(!said.contains(path(&prompts)), "{said}");
}

#[test]
fn a_stop_may_be_a_special_token() {
    let args = |stop: &str| {
        rigel(&["generate", "--json", "-q", "-n", "8", "--stop", stop, "--logit-bias", "6=100", "def f"]).ok().json()
    };
    let record = args("<file_sep>");
    assert_eq!((ids(&record["token_ids"]), &record["text"]), (vec![6], &json!("")));
    assert_eq!(record["finish_reason"], "stop");
    assert_eq!(ids(&args("<file_sep><file_sep>")["token_ids"]), [6, 6]);
}

#[test]
fn top_p_0_takes_the_best_token() {
    let greedy = rigel(&["generate", "--json", "-q", "-n", "8", PROMPT]).ok().json();
    let args = ["generate", "--json", "-q", "-n", "8", "--temperature", "5", "--top-p", "0", "--seed", "3", PROMPT];
    let run = rigel(&args).ok();
    assert_eq!((run.json()["token_ids"].clone(), run.stderr.as_str()), (greedy["token_ids"].clone(), ""));
}

#[test]
fn threads_beyond_the_cores_are_capped_with_a_warning() {
    let run = |args: &[&str]| {
        rigel(&[&["generate", "--device", "cpu", "--ignore-eos", "-q", "-n", "8", PROMPT], args].concat()).ok()
    };
    let default = run(&[]);
    assert_eq!(default.stderr, "");
    // So many threads no system starts.
    let capped = run(&["--threads", "1000000"]);
    assert_eq!(capped.stdout, default.stdout);
    assert!(capped.stderr.starts_with("warning: 1000000 threads were asked for"), "{}", capped.stderr);
    assert_eq!(run(&["--threads", "1"]).stderr, "");
}

#[test]
#[cfg(target_os = "linux")]
fn threads_are_capped_at_the_cores_of_the_affinity() {
    // Of a machine with many cores this process may use the first that it has.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let first = allowed.trim().split(['-', ',']).next().unwrap();
    let run = command(&["generate", "--device", "cpu", "--ignore-eos", "-q", "-n", "8", "--threads", "2", PROMPT]);
    let mut pinned = std::process::Command::new("taskset");
    pinned.args(["-c", first]).arg(run.get_program()).args(run.get_args()).env("CUDA_VISIBLE_DEVICES", "");
    let Ok(output) = pinned.env_remove("RUST_LOG").output() else {
        eprintln!("skipped: threads_are_capped_at_the_cores_of_the_affinity: no taskset");
        return;
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.starts_with("warning: 2 threads were asked for and this process may use 1 core:"), "{stderr}");
}
