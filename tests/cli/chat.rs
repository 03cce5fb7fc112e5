//! `rigel chat`, from a pipe.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Copy, command, rigel, rigel_stdin};

/// The greedy answer to a conversation, by way of `rigel batch`.
fn expected(turns: &[(&str, &str)], max_tokens: u32) -> String {
    let dir = tempfile::tempdir().unwrap();
    let messages: Vec<Value> = turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    // What `respond` stops at, too: the token `###`.
    let end = rigel(&["tokenize", "--json", "###"]).ok().json()["token_ids"].clone();
    let line = json!({"messages": messages, "max_tokens": max_tokens, "stop_token_ids": end});
    std::fs::write(dir.path().join("in"), line.to_string()).unwrap();
    let mut batch = command(&["batch", "-q"]);
    batch.arg(dir.path().join("in")).arg(dir.path().join("out"));
    crate::common::finish(batch, None).ok();
    let record: Value = serde_json::from_slice(&std::fs::read(dir.path().join("out")).unwrap()).unwrap();
    record["text"].as_str().unwrap().trim_end().to_owned()
}

const FIRST: &str = "Write a function that adds two numbers.";
const SECOND: &str = "Now a class that counts\nthe lines of a file.";

#[test]
fn the_conversation_so_far_is_part_of_the_prompt() {
    let input = format!("{FIRST}\n\"\"\"\n{SECOND}\n\"\"\"\n/reset\n\n{FIRST}\n");
    let run = rigel_stdin(&["chat", "-n", "30"], input).ok();
    let first = expected(&[("user", FIRST)], 30);
    let second = expected(&[("user", FIRST), ("assistant", &first), ("user", SECOND)], 30);
    assert!(!first.is_empty());
    assert_ne!(second, expected(&[("user", SECOND)], 30), "the conversation does not matter to this model");
    assert_eq!(run.text(), format!("{first}\n{second}\n{first}\n"));
    assert!(run.stderr.contains("the conversation is forgotten"), "{}", run.stderr);
}

#[test]
fn a_conversation_is_saved_as_a_body() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let input = format!("{FIRST}\n/save {0}\n/save {0}\n/nonsense\n/quit\nnever said\n", file.display());
    let run = rigel_stdin(&["chat", "-n", "8"], input).ok();
    let answer = expected(&[("user", FIRST)], 8);
    assert_eq!(run.text(), format!("{answer}\n"));
    let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        saved,
        json!({"model": "nano", "messages": [
            {"role": "user", "content": FIRST}, {"role": "assistant", "content": answer}]})
    );
    // A file that is there is not written over, a wrong command is said, and both leave the conversation alone.
    assert!(run.stderr.contains("saved to ") && run.stderr.contains("error: "), "{}", run.stderr);
    assert!(run.stderr.contains("/nonsense is no command; /help lists them"), "{}", run.stderr);
    let help = rigel_stdin(&["chat"], "/help\n").ok();
    for command in ["/reset", "/save", "/help", "/quit", "\"\"\""] {
        assert!(help.text().contains(command), "{command}");
    }
    assert_eq!(rigel_stdin(&["chat"], "").ok().text(), "");
}

#[test]
fn a_long_conversation_loses_its_oldest_exchange() {
    // 2048 positions: three of these do not fit.
    let long = "x = 1; ".repeat(120);
    let input = format!("{long}\n{long}\n{long}\n{long}\n");
    let run = rigel_stdin(&["chat", "-n", "4"], input).ok();
    assert!(run.stderr.contains("dropped: the model has 2048 positions"), "{}", run.stderr);
    assert!(!run.stderr.contains("error"), "{}", run.stderr);
    // One that is too long by itself is said, and the next message is answered.
    let input = format!("{}\n{FIRST}\n", "x = 1; ".repeat(1000));
    let run = rigel_stdin(&["chat", "-n", "4"], input);
    assert_eq!(run.code, 1);
    assert!(run.stderr.starts_with("error: the prompt has "), "{}", run.stderr);
    assert!(run.stderr.ends_with("error: 1 message was not answered\n"), "{}", run.stderr);
    assert_eq!(run.text(), format!("{}\n", expected(&[("user", FIRST)], 4)));
    // Nor does it cost what was said before.
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("chat.json");
    let input = format!("{FIRST}\n{}\n/save {}\n", "x = 1; ".repeat(1000), saved.display());
    assert_eq!(rigel_stdin(&["chat", "-n", "4"], input).code, 1);
    let chat: serde_json::Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    assert_eq!(chat["messages"].as_array().unwrap().len(), 2, "{chat}");
    assert_eq!(chat["messages"][0]["content"], FIRST);
}

#[test]
fn a_model_has_to_have_a_template() {
    let copy = Copy::of_nano();
    copy.edit("tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    let run = rigel(&["chat", "--model", copy.model()]);
    assert!(run.error(2).contains("chat template") && run.stderr.contains("rigel generate"), "{}", run.stderr);
}

#[test]
fn a_system_message_is_the_template_s_to_take() {
    let refused = rigel(&["chat", "--system", "Be brief."]);
    assert!(refused.error(2).contains("System messages are not allowed"), "{}", refused.stderr);
    let copy = Copy::of_nano();
    copy.edit("tokenizer_config.json", |config| {
        config["chat_template"] =
            json!("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:");
    });
    let run = |args: &[&str]| {
        let common = ["chat", "-q", "-n", "8", "--model", copy.model()];
        rigel_stdin(&[&common[..], args].concat(), "def f(x):\n").ok().text().to_owned()
    };
    let plain = rigel(&["generate", "-q", "-n", "8", "system: import os\nuser: def f(x):\nassistant:"]).ok();
    assert_eq!(run(&["--system", "import os"]), format!("{}\n", plain.text().trim_end()));
}

#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    // A template without headings, so that nothing ends the answer.
    let copy = Copy::of_nano();
    copy.edit("tokenizer_config.json", |config| {
        config["chat_template"] = json!("{% for m in messages %}{{ m['content'] }}\n{% endfor %}");
    });
    let mut child = command(&["chat", "--ignore-eos", "-n", "1900", "--model", copy.model()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    // A long answer: its first line is on its way before the interrupt.
    writeln!(stdin, "{FIRST}").unwrap();
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(!line.is_empty());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    writeln!(stdin, "/help\n/quit").unwrap();
    drop(stdin);
    let rest: Vec<String> = stdout.lines().map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(rest.iter().any(|line| line.starts_with("/reset ")), "{rest:?}");
    assert!(stderr.lines().any(|line| line == "stopped"), "{stderr}");
}

#[test]
fn an_answer_ends_at_the_tokenizer_s_end() {
    let copy = Copy::of_nano();
    copy.edit("tokenizer_config.json", |config| config["eos_token"] = "<file_sep>".into());
    let chat = |more: &[&str]| {
        let args = ["chat", "-q", "-n", "4", "--model", copy.model(), "--logit-bias", "6=100"];
        rigel_stdin(&[&args[..], more].concat(), "Hi\n").ok().stderr
    };
    assert!(!chat(&[]).contains("was cut"), "{}", chat(&[]));
    assert!(chat(&["--ignore-eos"]).contains("was cut"));
    // A stop that is a special token ends it as well.
    assert!(!chat(&["--ignore-eos", "--stop", "<file_sep>"]).contains("was cut"));
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_message() {
    let said = |input: &str| rigel_stdin(&["chat", "-q", "-n", "4"], input).ok().text().to_owned();
    assert_eq!(said("\u{feff}Hi\nGo on.\n"), said("Hi\nGo on.\n"));
}

#[test]
fn a_message_that_is_no_text_is_named_and_the_next_is_answered() {
    let input = [b"caf\xe9\n".as_slice(), FIRST.as_bytes(), b"\n\"\"\"a\n\xff\"\"\"\n"].concat();
    let run = rigel_stdin(&["chat", "-n", "4"], input);
    assert_eq!(run.code, 1);
    assert!(run.stderr.starts_with("error: stdin:1: byte 3 is not valid UTF-8"), "{}", run.stderr);
    assert!(run.stderr.contains("\nerror: stdin:4: byte 0 is not valid UTF-8"), "{}", run.stderr);
    assert!(run.stderr.ends_with("error: 2 messages were not answered\n"), "{}", run.stderr);
    assert_eq!(run.text(), format!("{}\n", expected(&[("user", FIRST)], 4)));
}
