//! Inputs that are odd, and lines that fail.

use serde_json::{Value, json};

use super::{Work, chat, completion};
use crate::common::{Copy, rigel, tokenize};

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
    assert!(last.starts_with("error: 8 failed: 1 invalid_json (line 3: "), "{last}");
    assert!(last.contains("4 invalid_request_error (line 5: temperature is \"hot\"; expected a number)"), "{last}");
    // No retry would help them as they are.
    assert!(last.ends_with("correct these lines and give --retry-failed to do them again"), "{last}");
    assert!(run.stderr.contains("10 of 10 lines, 8 failed"), "{}", run.stderr);
    let answered = work.by_id("out.jsonl");
    assert_eq!(answered.keys().map(String::as_str).collect::<Vec<_>>(), ["line-2", "ok"]);
    let failed = work.by_id("out.errors.jsonl");
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
    assert_eq!(work.by_id("out.errors.jsonl"), failed);
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
    let failed = work.by_id("out.errors.jsonl");
    let said =
        |id: &str| (failed[id]["error"]["message"].as_str().unwrap(), failed[id]["error"]["param"].as_str().unwrap());
    assert_eq!(failed.len(), 2);
    assert_eq!(said("line-1"), ("id is 1.5; expected text or an integer", "id"));
    assert_eq!(said("line-2"), ("custom_id is true; expected text or an integer", "custom_id"));
}

#[test]
fn ids_have_to_differ() {
    let a = |id: &str| json!({"id": id, "prompt": "x"});
    let work = Work::new(&[a("a"), a("b"), a("b"), a("a")]);
    let run = work.run("out.jsonl", &[]);
    assert!(run.error(2).contains("in.jsonl:3: the id \"b\" is that of line 2, too"), "{}", run.stderr);
    assert!(!work.path("out.jsonl").exists());
    let work = Work::new(&[a("line-2"), json!({"prompt": "x"})]);
    let run = work.run("out.jsonl", &[]);
    assert!(run.error(2).contains("in.jsonl:2: the line has no id, so it is called \"line-2\""), "{}", run.stderr);
    let work = Work::new(&[json!({"prompt": "x"}), a("line-1")]);
    let run = work.run("out.jsonl", &[]);
    assert!(run.error(2).contains("in.jsonl:2: the id is \"line-1\", and that is what line 1"), "{}", run.stderr);
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
    let errors = work.by_id("out.errors.jsonl");
    let message = |id: &str| errors[id]["error"]["message"].as_str().unwrap().to_owned();
    assert!(message("n").contains("n is 4000000000; expected an integer from 1 to 1024"), "{}", message("n"));
    assert!(message("both").contains("1200 samples"), "{}", message("both"));
    assert!(message("cut").contains("truncate_prompt_tokens"), "{}", message("cut"));
    assert!(message("nothing").contains("not finite"), "{}", message("nothing"));
    assert_eq!(work.by_id("out.jsonl").keys().collect::<Vec<_>>(), ["good"]);
}

#[test]
fn plain_lines_take_text_and_token_ids() {
    let prompt = "def add(a, b):\n";
    let work = Work::new(&[
        json!({"id": "prompt", "prompt": prompt, "max_tokens": 4}),
        json!({"id": "text", "text": prompt, "max_tokens": 4}),
        json!({"id": "ids", "token_ids": tokenize(prompt), "max_tokens": 4}),
    ]);
    // By the name that the option had, and by vLLM's.
    work.run("out.jsonl", &["-q", "--max-sequences", "2"]).ok();
    work.run("other.jsonl", &["-q", "--max-num-seqs", "2"]).ok();
    let records = work.by_id("out.jsonl");
    assert_eq!(records["text"]["text"], records["prompt"]["text"]);
    assert_eq!(records["ids"]["text"], records["prompt"]["text"]);
    let both = Work::new(&[json!({"prompt": "x", "text": "y"})]);
    assert!(
        both.run("out.jsonl", &["-q"])
            .error(1)
            .contains("line 1: both prompt and text; give the prompt in one of them")
    );
}

#[test]
fn misspelt_fields_are_named_before_anything_runs() {
    let lines = [
        json!({"prompt": "x", "max_token": 1, "task": "mine"}),
        json!({"prompt": "x", "max_tokens": 1, "temprature": 3}),
        json!({"prompt": "x", "max_token": 1, "max_tokens": 1}),
        completion("a", json!({"prompt": "x", "max_token": 1, "max_tokens": 1})),
    ];
    let work = Work::new(&lines);
    let run = work.run("out.jsonl", &["-n", "1"]).ok();
    let warnings: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 2, "{}", run.stderr);
    assert!(
        warnings[0]
            .ends_with("max_token is no field and is ignored (2 lines, from line 1 on); did you mean max_tokens?")
    );
    assert!(warnings[1].ends_with("temprature is no field and is ignored (line 2); did you mean temperature?"));
    let quiet = work.run("other.jsonl", &["-n", "1", "-q"]).ok();
    assert!(quiet.stderr.is_empty(), "{}", quiet.stderr);
}

#[test]
fn messages_have_a_role_and_content() {
    let line = |id: &str, message: Value| json!({"id": id, "messages": [message], "max_tokens": 1});
    let work = Work::new(&[
        line("role", json!({"role": "sytem", "content": "x"})),
        line("none", json!({"role": "user"})),
        line("null", json!({"role": "user", "content": null})),
        line("good", json!({"role": "user", "content": "x"})),
    ]);
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    let errors = work.by_id("out.errors.jsonl");
    let said = |id: &str| errors[id]["error"]["message"].as_str().unwrap();
    assert!(said("role").starts_with("messages[0].role is \"sytem\"; expected \"system\""), "{}", said("role"));
    assert!(said("none").starts_with("messages[0].content is missing; expected a string"), "{}", said("none"));
    assert!(said("null").starts_with("messages[0].content is null; expected a string"), "{}", said("null"));
    assert_eq!((&errors["none"]["line"], errors.len()), (&json!(2), 3));
}

#[test]
fn files_that_cannot_be_are_refused_by_name() {
    let work = Work::new(&[json!({"prompt": "x"})]);
    let input = work.path("in.jsonl");
    let output = work.path("out.jsonl");
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    assert!(rigel(&["batch", "-", output]).error(2).contains("-: the input is read twice, so it must be a file"));
    assert!(rigel(&["batch", input, "-"]).error(2).contains("-: a stopped run goes on from its output"));
    if cfg!(unix) {
        for device in ["/dev/stdout", "/dev/null"] {
            let run = rigel(&["batch", input, device]);
            assert!(run.error(2).ends_with("is not a regular file; give the name of one to write to"), "{run:?}");
        }
    }
    assert_eq!(std::fs::read_dir(work.dir.path()).unwrap().count(), 1);
    let run = work.run("nodir/out.jsonl", &[]);
    let message = run.error(2);
    assert!(message.contains("nodir/out.jsonl: ") && message.contains("; make the folder "), "{message}");
    assert!(message.ends_with("nodir, or give another path"), "{message}");
    std::fs::create_dir(work.path("folder")).unwrap();
    assert!(
        work.run("folder", &[]).error(2).ends_with("folder is not a regular file; give the name of one to write to")
    );
    assert!(work.run("in.jsonl/out.jsonl", &[]).error(2).contains("in.jsonl/out.jsonl: "));
}

#[test]
fn a_bad_option_is_one_error_before_any_line() {
    let work = Work::new(&[json!({"prompt": "x"}), json!({"prompt": "y"}), completion("a", json!({"prompt": "z"}))]);
    let copy = Copy::of_nano();
    copy.remove("tokenizer.json");
    let vocabulary = "names the id 99999; expected an id below the vocabulary size ";
    for (options, expected) in [
        (&["--stop-token-ids", "0,99999"][..], format!("--stop-token-ids {vocabulary}")),
        (&["--logit-bias", "0=1", "--logit-bias", "99999=1"], format!("--logit-bias {vocabulary}")),
        (&["--model", copy.model(), "--stop", "x"], "--stop needs the checkpoint's tokenizer".to_owned()),
        (&["--top-p", "1.5"], "--top-p is 1.5; expected".to_owned()),
    ] {
        let run = work.run("out.jsonl", options);
        assert!(run.error(2).starts_with(&expected), "{}", run.stderr);
        assert_eq!(std::fs::read_dir(work.dir.path()).unwrap().count(), 1, "{options:?}");
    }
}

#[test]
fn errors_name_the_field_that_the_line_has() {
    let work = Work::new(&[
        json!({"id": "ids", "token_ids": [1, 99_999_999]}),
        json!({"id": "none", "token_ids": []}),
        json!({"id": "empty", "text": ""}),
        json!({"id": "long", "token_ids": vec![40; 3000]}),
        json!({"id": "prompt", "prompt": [99_999_999]}),
        json!({"id": "near", "promt": "x"}),
        json!({"id": "other", "question": "x"}),
    ]);
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    let errors = work.by_id("out.errors.jsonl");
    let check = |id: &str, param: Option<&str>, message: &str| {
        let error = &errors[id]["error"];
        assert_eq!(error["param"].as_str(), param, "{error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{error}");
    };
    check("ids", Some("token_ids"), "token_ids[1] is 99999999; expected an id below the vocabulary size");
    check("none", Some("token_ids"), "the prompt is empty; give at least one token");
    check("empty", Some("text"), "the prompt is empty; give at least one token");
    check("long", Some("token_ids"), "the prompt has 3000 tokens");
    check("prompt", Some("prompt"), "prompt[0] is 99999999; expected");
    check("near", None, "no prompt, but promt; did you mean prompt?");
    check("other", None, "no prompt, but the field question; expected prompt, text, token_ids or messages");
    assert_eq!(errors.len(), 7);
}

/// The warnings of a run that ends well.
fn warnings(work: &Work, output: &str, options: &[&str]) -> Vec<String> {
    let run = work.run(output, options).ok();
    run.stderr.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect()
}

#[test]
fn options_that_no_line_heeds_are_a_warning() {
    let greedy = Work::new(&[json!({"prompt": "x", "max_tokens": 1}), json!({"prompt": "y", "max_tokens": 1})]);
    let idle = ["--top-k", "5", "--seed", "3", "--stop", "z"];
    let said = warnings(&greedy, "out.jsonl", &idle);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("warning: --top-k and --seed have no effect at temperature 0, and no line has another")
    );
    assert_eq!(warnings(&greedy, "quiet.jsonl", &[&idle[..], &["-q"]].concat()), [""; 0]);
    assert_eq!(warnings(&greedy, "warm.jsonl", &[&idle[..], &["--temperature", "1"]].concat()), [""; 0]);
    let warm = Work::new(&[
        json!({"prompt": "x", "max_tokens": 1}),
        json!({"prompt": "y", "max_tokens": 1, "temperature": 1}),
    ]);
    assert_eq!(warnings(&warm, "out.jsonl", &idle), [""; 0]);
    let bodies = Work::new(&[completion("a", json!({"prompt": "x", "max_tokens": 1}))]);
    let said = warnings(&bodies, "out.jsonl", &["-n", "5", "--seed", "3", "--logprobs", "1"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("warning: --max-new-tokens and --logprobs have no effect: every line has a body"));
}

#[test]
fn an_id_field_that_lines_lack_is_a_warning() {
    let line = |field: &str, id: &str| json!({field: id, "prompt": "x", "max_tokens": 1});
    let none = Work::new(&[line("taskid", "a"), line("taskid", "b")]);
    let said = warnings(&none, "out.jsonl", &["--id-field", "task_id"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].ends_with("in.jsonl: no line has the field task_id of --id-field; did you mean taskid?"),
        "{said:?}"
    );
    let some = Work::new(&[line("task_id", "a"), line("id", "b"), line("other", "c")]);
    let said = warnings(&some, "out.jsonl", &["--id-field", "task_id"]);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("2 of 3 lines, from line 2 on, have no field task_id of --id-field"), "{said:?}");
    assert_eq!(some.by_id("out.jsonl").into_keys().collect::<Vec<_>>(), ["a", "b", "line-3"]);
    let all = Work::new(&[line("task_id", "a"), line("task_id", "b")]);
    assert_eq!(warnings(&all, "out.jsonl", &["--id-field", "task_id"]), [""; 0]);
}

#[test]
fn an_input_without_lines_is_done() {
    let work = Work::of_text("\n \n");
    let run = work.run("out.jsonl", &[]).ok();
    assert!(run.stderr.ends_with("in.jsonl has no lines; there is nothing to do\n"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(work.path("out.jsonl")).unwrap(), "");
    let work = Work::new(&[json!({"prompt": "x"})]);
    let run = work.run("out.jsonl", &["--shard", "2/2"]).ok();
    assert!(run.stderr.contains("has no line of this shard"), "{}", run.stderr);
}

#[test]
fn an_ordered_output_has_the_order_of_the_input() {
    let line = |i: usize| {
        json!({"task_id": format!("HumanEval/{i}"), "prompt": format!("def f{i}("), "test": "x",
        "max_tokens": 1 + (40 - i) % 40, "ignore_eos": true})
    };
    let work = Work::new(&(0..40).map(line).collect::<Vec<_>>());
    let run = work.run("out.jsonl", &["--ordered", "--id-field", "task_id"]).ok();
    assert!(!run.stderr.contains("warning"), "{}", run.stderr);
    let ids = |name: &str| -> Vec<String> {
        work.records(name).iter().map(|record| record["custom_id"].as_str().unwrap().to_owned()).collect()
    };
    let expected: Vec<String> = (0..40).map(|i| format!("HumanEval/{i}")).collect();
    assert_eq!(ids("out.jsonl"), expected);
    // Short lines overtake long ones otherwise.
    work.run("unordered.jsonl", &["-q", "--id-field", "task_id"]).ok();
    let mut unordered = ids("unordered.jsonl");
    assert_ne!(unordered, expected);
    unordered.sort();
    let mut sorted = expected;
    sorted.sort();
    assert_eq!(unordered, sorted);
    let other = work.run("out.jsonl", &["--ordered"]);
    assert!(other.error(2).contains("begun with --id-field task_id, and this run has none"), "{}", other.stderr);
}

#[test]
fn plain_lines_may_all_have_log_probabilities() {
    let work = Work::new(&[
        json!({"id": "plain", "prompt": "def f(", "max_tokens": 2}),
        json!({"id": "none", "prompt": "def f(", "max_tokens": 2, "logprobs": false}),
        json!({"id": "chat", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
        completion("openai", json!({"prompt": "def f(", "max_tokens": 2, "temperature": 0})),
    ]);
    work.run("out.jsonl", &["-q", "--logprobs", "3"]).ok();
    let records = work.by_id("out.jsonl");
    let logprobs = |id: &str| &records[id]["response"]["body"]["choices"][0]["logprobs"];
    assert_eq!(logprobs("plain")["token_logprobs"].as_array().unwrap().len(), 2);
    assert!(logprobs("plain")["top_logprobs"][0].as_object().unwrap().len() >= 3);
    assert_eq!(logprobs("chat")["content"][0]["top_logprobs"].as_array().unwrap().len(), 3);
    assert!(logprobs("none").is_null() && logprobs("openai").is_null());
    assert!(work.run("out.jsonl", &[]).error(2).contains("begun with --logprobs 3, and this run has none"));
}
