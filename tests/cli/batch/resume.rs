//! What a run goes on with, and what it refuses.

use serde_json::json;

use super::{Work, busy, mixed, wait_for_records};
use crate::common::{Copy, command, finish};

#[test]
fn failed_lines_are_retried_on_request_and_never_recorded_twice() {
    let work = Work::new(&mixed(6));
    work.run("out.jsonl", &["-q"]).ok();
    let whole = work.by_id("out.jsonl");
    // As if two lines had failed in the engine.
    let text = std::fs::read_to_string(work.path("out.jsonl")).unwrap();
    let (kept, lost): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| !line.contains("\"custom_id\":\"c0\"") && !line.contains("\"custom_id\":\"m5\""));
    assert_eq!(lost.len(), 2);
    let lines = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    std::fs::write(work.path("out.jsonl"), lines(&kept)).unwrap();
    let error = |id: &str| {
        json!({"id": "x", "custom_id": id, "response": null, "error": {"code": "server_error", "message": "y"}})
            .to_string()
    };
    std::fs::write(work.path("out.jsonl.errors.jsonl"), lines(&[&error("c0"), &error("m5")])).unwrap();
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    assert_eq!(work.records("out.jsonl").len(), 4);
    let run = work.run("out.jsonl", &["--retry-failed"]).ok();
    assert!(run.stderr.starts_with("6 of 6 lines, 4 of them by earlier runs, "), "{}", run.stderr);
    assert_eq!(work.by_id("out.jsonl"), whole);
    assert!(!work.path("out.jsonl.errors.jsonl").exists() && !work.path("out.errors.jsonl").exists());
    // A record in both files is one too many.
    std::fs::write(work.path("out.jsonl.errors.jsonl"), lines(&[&error("c0")])).unwrap();
    let twice = work.run("out.jsonl", &[]);
    assert!(twice.error(2).contains("out.jsonl.errors.jsonl:1: custom_id \"c0\" is there twice"), "{}", twice.stderr);
    // With every line answered, the error is dropped without a run.
    work.run("out.jsonl", &["-q", "--retry-failed"]).ok();
    assert!(!work.path("out.jsonl.errors.jsonl").exists());
    work.run("out.jsonl", &["-q"]).ok();
    assert_eq!(work.by_id("out.jsonl"), whole);
}

#[test]
fn another_run_is_refused_and_changes_nothing() {
    let work = Work::new(&mixed(3));
    work.run("out.jsonl", &["-q", "--seed", "1"]).ok();
    let files = || ["out.jsonl", "out.jsonl.manifest.json"].map(|name| std::fs::read(work.path(name)).unwrap());
    // Nothing failed, so nothing says so.
    assert_eq!(std::fs::read_dir(work.dir.path()).unwrap().count(), 3);
    let before = files();
    work.run("out.jsonl", &["-q", "--seed", "1", "--max-in-flight", "1"]).ok();
    let refused = |options: &[&str], needle: &str| {
        let run = work.run("out.jsonl", options);
        assert!(run.error(2).contains(needle), "{}", run.stderr);
        assert_eq!(files(), before);
    };
    refused(&[], "begun with --seed 1, and this run has 0");
    refused(&["--seed", "1", "-n", "3"], "begun without --max-new-tokens, and this run has 3");
    refused(&["--seed", "1", "--temperature", "0.5"], "begun with --temperature 0.0, and this run has 0.5");
    refused(&["--seed", "1", "--shard", "1/2"], "begun with --shard 1/1, and this run has 1/2");
    refused(&["--seed", "1", "--context", "64"], "begun without --context, and this run has 64");
    let copy = Copy::of_nano();
    copy.edit("config.json", |config| config["sliding_window"] = json!(64));
    refused(&["--seed", "1", "--model", copy.model()], "begun with the model nano");
    // A copy of the same model is the same model.
    let copy = Copy::of_nano();
    work.run("out.jsonl", &["-q", "--seed", "1", "--model", copy.model()]).ok();
    assert_eq!(files(), before);
    std::fs::write(work.path("in.jsonl"), "{\"prompt\":\"x\"}\n").unwrap();
    refused(&["--seed", "1"], "begun with the input ");
    refused(&["--seed", "1"], "; run again with a new output file, or with ");
    refused(&["--seed", "1"], "in.jsonl as it was");
}

#[test]
fn a_file_that_is_not_ours_stays_as_it_is() {
    let work = Work::new(&mixed(1));
    // No line break at its end: it is not cut, either.
    std::fs::write(work.path("notes.txt"), "first\nsecond").unwrap();
    let run = work.run("notes.txt", &[]);
    assert!(run.error(2).contains("no output of rigel batch"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(work.path("notes.txt")).unwrap(), "first\nsecond");
    assert!(work.run("in.jsonl", &[]).error(2).contains("is the input, too"));
    // Errors of an earlier output would be taken for lines that are done.
    std::fs::write(work.path("new.errors.jsonl"), "{\"custom_id\":\"line-1\"}\nx").unwrap();
    assert!(work.run("new", &[]).error(2).contains("no output of rigel batch"));
    assert_eq!(std::fs::read_to_string(work.path("new.errors.jsonl")).unwrap(), "{\"custom_id\":\"line-1\"}\nx");
    assert!(!work.path("new.manifest.json").exists());
    // The input by the name of another file that would be written.
    std::fs::copy(work.path("in.jsonl"), work.path("x.errors.jsonl")).unwrap();
    let mut twisted = command(&["batch", "--retry-failed"]);
    twisted.arg(work.path("x.errors.jsonl")).arg(work.path("x"));
    assert!(finish(twisted, None).error(2).contains("is the input, too"));
    let absent = finish(
        {
            let mut command = command(&["batch", "absent.jsonl"]);
            command.arg(work.path("out.jsonl"));
            command
        },
        None,
    );
    assert!(absent.error(2).contains("absent.jsonl: "), "{}", absent.stderr);
    assert!(work.run(".", &[]).code != 0);
}

#[test]
fn a_torn_last_line_is_done_again() {
    let work = Work::new(&mixed(9));
    work.run("out.jsonl", &["-q"]).ok();
    let (whole, bytes) = (work.by_id("out.jsonl"), std::fs::read(work.path("out.jsonl")).unwrap());
    for cut in [1, 2, 50, bytes.len() - 1] {
        std::fs::write(work.path("out.jsonl"), &bytes[..bytes.len() - cut]).unwrap();
        work.run("out.jsonl", &["-q"]).ok();
        assert_eq!(work.by_id("out.jsonl"), whole, "{cut}");
    }
    // Killed before the first line, and before the output was made.
    std::fs::write(work.path("out.jsonl"), "").unwrap();
    work.run("out.jsonl", &["-q"]).ok();
    assert_eq!(work.by_id("out.jsonl"), whole);
    std::fs::remove_file(work.path("out.jsonl")).unwrap();
    work.run("out.jsonl", &["-q"]).ok();
    assert_eq!(work.by_id("out.jsonl"), whole);
}

#[test]
fn an_output_has_one_writer() {
    let work = busy(2000);
    let mut child = work.command("out.jsonl", &["--max-in-flight", "4"]).spawn().unwrap();
    wait_for_records(&work.path("out.jsonl"), 1);
    let second = work.run("out.jsonl", &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(second.error(1).contains("is being written by another process"), "{}", second.stderr);
}

#[test]
fn a_corrected_input_is_taken_where_only_failed_lines_differ() {
    let lines = |second: &str, third: &str, fourth: &str| {
        format!("{{\"id\":\"a\",\"prompt\":\"x\",\"max_tokens\":2}}\n{second}\n{third}\n{fourth}\n")
    };
    let (hot, cold) =
        ("{\"id\":\"b\",\"prompt\":\"x\",\"temperature\":\"hot\"}", "{\"id\":\"b\",\"prompt\":\"x\",\"max_tokens\":3}");
    let (nonsense, sense) = ("nonsense", "{\"id\":\"c\",\"prompt\":\"y\",\"max_tokens\":2}");
    let (fourth, changed) = ("{\"prompt\":\"z\",\"max_tokens\":2}", "{\"prompt\":\"other\",\"max_tokens\":2}");
    let work = Work::of_text(&lines(hot, nonsense, fourth));
    let run = work.run("out.jsonl", &[]);
    assert_eq!((run.code, work.records("out.errors.jsonl").len()), (1, 2), "{}", run.stderr);
    let answered = work.by_id("out.jsonl");
    let write = |text: &str| std::fs::write(work.path("in.jsonl"), text).unwrap();
    // A line that was answered is not to change under its answer.
    write(&lines(cold, sense, changed));
    let run = work.run("out.jsonl", &["--retry-failed"]);
    assert!(run.error(2).contains("in lines that did not fail"), "{}", run.stderr);
    write(&lines(cold, sense, fourth));
    let run = work.run("out.jsonl", &[]);
    assert!(run.error(2).contains("if lines that failed were corrected, --retry-failed takes them"), "{}", run.stderr);
    assert_eq!(work.records("out.errors.jsonl").len(), 2);
    let run = work.run("out.jsonl", &["--retry-failed"]).ok();
    assert!(run.stderr.starts_with("4 of 4 lines, 2 of them by earlier runs, "), "{}", run.stderr);
    let records = work.by_id("out.jsonl");
    assert_eq!(records.keys().collect::<Vec<_>>(), ["a", "b", "c", "line-4"]);
    assert!(answered.iter().all(|(id, record)| records[id] == *record));
    assert!(!work.path("out.errors.jsonl").exists());
    // From here on the corrected input is the output's.
    work.run("out.jsonl", &["-q"]).ok();
    write(&lines(hot, nonsense, fourth));
    assert!(work.run("out.jsonl", &["--retry-failed"]).error(2).contains("begun with the input"));
}

#[test]
fn a_corrected_input_is_taken_by_every_shard() {
    let good = |id: &str| format!("{{\"id\":\"{id}\",\"prompt\":\"x\",\"max_tokens\":2}}");
    let wrong = |id: &str| format!("{{\"id\":\"{id}\",\"prompt\":5}}");
    let lines = |lines: [String; 6]| lines.map(|line| line + "\n").concat();
    let rest = || (good("c"), good("d"), good("e"), good("f"));
    let input = |a: String, b: String| {
        let (c, d, e, f) = rest();
        lines([a, b, c, d, e, f])
    };
    let work = Work::of_text(&input(wrong("a"), wrong("b")));
    let run = |shard: u32, options: &[&str]| {
        let shard_option = format!("{shard}/3");
        work.run(&format!("part{shard}.jsonl"), &[options, &["-q", "--shard", shard_option.as_str()]].concat())
    };
    let write = |text: &str| std::fs::write(work.path("in.jsonl"), text).unwrap();
    assert_eq!([1, 2, 3].map(|shard| run(shard, &[]).code), [1, 1, 0]);
    // One line is corrected: a failure of the first shard. The others see no other input.
    write(&input(good("a"), wrong("b")));
    assert!(run(1, &[]).error(2).contains("--retry-failed takes them"));
    assert_eq!([2, 3].map(|shard| run(shard, &[]).code), [1, 0]);
    run(1, &["--retry-failed"]).ok();
    assert_eq!(run(2, &["--retry-failed"]).code, 1);
    assert_eq!(work.records("part2.errors.jsonl").len(), 1);
    // A line that was answered is not to change under its answer, and is no matter of the other shards.
    let (c, _, e, f) = rest();
    write(&lines([good("a"), good("b"), c, wrong("d"), e, f]));
    assert!(run(1, &["--retry-failed"]).error(2).contains("begun with the input"));
    run(2, &["--retry-failed"]).ok();
    write(&input(good("a"), good("b")));
    for shard in 1..=3 {
        run(shard, &["--retry-failed"]).ok();
        run(shard, &[]).ok();
    }
    let parts = [1, 2, 3].map(|shard| work.by_id(&format!("part{shard}.jsonl")).into_keys().collect::<Vec<_>>());
    assert_eq!(parts, [["a", "d"], ["b", "e"], ["c", "f"]]);
    assert!([1, 2].iter().all(|shard| !work.path(&format!("part{shard}.errors.jsonl")).exists()));
}

#[test]
fn errors_stay_where_a_retry_does_not_begin() {
    let good = "{\"id\":\"a\",\"prompt\":\"x\",\"max_tokens\":2}";
    let work = Work::of_text(&format!("{good}\n{{\"id\":\"b\",\"prompt\":5}}\n"));
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    let files = || {
        ["out.jsonl", "out.errors.jsonl", "out.jsonl.manifest.json"].map(|name| std::fs::read(work.path(name)).unwrap())
    };
    let before = files();
    let write = |prompt: &str| {
        let text = format!("{good}\n{{\"id\":\"b\",\"prompt\":{prompt},\"max_tokens\":2}}\n");
        std::fs::write(work.path("in.jsonl"), text).unwrap();
    };
    // The line as it was, corrected, and corrected otherwise: the device fails each time.
    for prompt in [None, Some("6"), Some("\"y\"")] {
        if let Some(prompt) = prompt {
            write(prompt);
        }
        let mut retry = work.command("out.jsonl", &["-q", "--retry-failed", "--device", "cuda"]);
        retry.env_remove("LD_PRELOAD");
        let run = finish(retry, None);
        assert!(run.error(2).contains("--device cuda"), "{}", run.stderr);
        assert!(files() == before);
    }
    work.run("out.jsonl", &["-q", "--retry-failed"]).ok();
    assert_eq!(work.by_id("out.jsonl").len(), 2);
    assert!(!work.path("out.errors.jsonl").exists());
    work.run("out.jsonl", &["-q"]).ok();
}

#[test]
fn two_outputs_do_not_share_their_errors() {
    let work = Work::of_text("nonsense\n{\"prompt\":\"x\",\"max_tokens\":1}\n");
    assert_eq!(work.run("out.jsonl", &["-q"]).code, 1);
    let run = work.run("out", &[]);
    assert!(run.error(2).contains("out would share "), "{}", run.stderr);
    assert!(!work.path("out").exists() && work.records("out.errors.jsonl").len() == 1);
}

/// Lines so long that the input is read in many pieces while they are done.
fn busy_and_long(lines: usize) -> Work {
    let note = "x".repeat(4000);
    let line =
        |i| json!({"id": format!("{i}"), "prompt": "def f(", "max_tokens": 16, "ignore_eos": true, "note": note});
    Work::new(&(0..lines).map(line).collect::<Vec<_>>())
}

#[test]
fn an_input_that_changes_while_it_is_read_costs_no_line() {
    let work = busy_and_long(1000);
    let child = work.command("out.jsonl", &["--max-in-flight", "4"]).spawn().unwrap();
    wait_for_records(&work.path("out.jsonl"), 3);
    std::fs::OpenOptions::new().write(true).open(work.path("in.jsonl")).unwrap().set_len(100_000).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.contains("in.jsonl changed while it was read: ") && last.contains(" 100000 now"), "{stderr}");
    assert!(
        last.contains("; run again with a new output file, or with ") && last.ends_with("in.jsonl as it was"),
        "{last}"
    );
    assert!(!stderr.contains("the same command"), "{stderr}");
    assert!(!stderr.contains("failed") && !work.path("out.errors.jsonl").exists(), "{stderr}");
    assert!(work.by_id("out.jsonl").len() < 1000);
}
