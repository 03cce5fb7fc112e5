//! `rigel plan`.

use crate::common::{Run, nano, rigel};

fn plan(args: &[&str]) -> Run {
    rigel(&[&["plan"], args].concat())
}

/// The answer: the first line.
fn answer(run: &Run) -> &str {
    run.text().lines().next().unwrap()
}

#[test]
fn the_15b_fits_80_gib_and_says_how() {
    let args = ["--model", "15b", "--memory", "80GiB", "--max-seqs", "64", "--context", "4096"];
    let record = plan(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(record["lines"][0]["what"], "weights");
    assert_eq!(record["lines"][0]["bytes"], 2 * 15_957_889_024u64);
    assert_eq!((&record["memory_bytes"], &record["fits"]), (&(80u64 << 30).into(), &true.into()));
    let lines: u64 = record["lines"].as_array().unwrap().iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(record["needed_bytes"], lines);
    assert_eq!(record["kv_bytes_per_token"], 81_920);
    assert_eq!((&record["sequences"], &record["sequences_at_once"]), (&64.into(), &64.into()));
    let text = plan(&args).ok();
    assert_eq!(answer(&text), "starts: yes, 64 sequences of 4096 positions at once");
    assert!(text.text().contains("| 31,915,778,048 | 29.7 GiB |"), "{}", text.text());
    for card in ["h200", "a100", "rtx4090"] {
        assert!(text.text().contains(card), "{card}");
    }
}

/// The number in `text` between `before` and `after`.
fn number(text: &str, before: &str, after: &str) -> String {
    let start = text.find(before).unwrap_or_else(|| panic!("no {before:?} in {text}")) + before.len();
    text[start..].split(after).next().unwrap().to_owned()
}

#[test]
fn without_a_number_the_answer_is_how_many_fit_and_one_more_does_not() {
    let args = ["--model", "15b", "--memory", "60GiB"];
    let text = plan(&args).ok();
    let most = number(answer(&text), "starts: yes, ", " sequences of 16384 positions at once");
    let with = |count: usize| plan(&[&args[..], &["--max-seqs", &count.to_string()]].concat());
    let most: usize = most.parse().unwrap();
    assert!((2..256).contains(&most), "{most}");
    assert_eq!(answer(&with(most).ok()), answer(&text));
    let more = with(most + 1);
    let expected = format!("starts: yes, {most} of {} sequences of 16384 positions at once", most + 1);
    assert_eq!(answer(&more), expected);
    more.error(1);
    // The same number wherever there is one.
    let record = plan(&[&args[..], &["--json"]].concat()).ok().json();
    for key in ["sequences", "sequences_at_once", "most_sequences"] {
        assert_eq!(record[key], most, "{key}");
    }
    let why = "A sequence has up to 97 pages of 64 positions: the window of 4096 and a prompt's chunk.";
    assert!(text.text().contains(why), "{}", text.text());
    // A card with as much memory holds as many.
    let record = plan(&["--model", "15b", "--gpu", "a100-40gb", "--json"]).ok().json();
    let limit = record["limits"].as_array().unwrap().iter().find(|limit| limit["gpu"] == "a100-40gb").unwrap();
    assert_eq!((&limit["sequences"], &limit["fits"]), (&record["sequences_at_once"], &true.into()));
}

#[test]
fn what_fits_is_said_per_card_and_for_the_cpu() {
    let text = plan(&["--model", "15b"]).ok();
    let row = |card: &str| text.text().lines().find(|line| line.starts_with(&format!("| {card} "))).unwrap().to_owned();
    assert!(row("rtx4090").ends_with("| no, weights too large |"), "{}", text.text());
    assert!(row("h200").contains("140 GiB"), "{}", text.text());
    let cpu = text.text().lines().find(|line| line.starts_with("On the CPU, one sequence takes ")).unwrap();
    // Published in f32, and used as stored.
    assert!(cpu.contains("weights 59.4 GiB, mapped, cache ") && text.text().contains("iB are left in this "), "{cpu}");
    let record = plan(&["--json"]).ok().json();
    let cpu = &record["cpu"];
    let bytes = |key: &str| cpu[key].as_u64().unwrap();
    assert_eq!(bytes("needed_bytes"), bytes("weight_bytes") + bytes("cache_bytes") + bytes("activation_bytes"));
    assert_eq!(cpu["fits"], bytes("needed_bytes") <= bytes("available_bytes"));
    // A small model fits more sequences than a step takes by default.
    let most = record["most_sequences"].as_u64().unwrap();
    assert!(most > 256, "{most}");
    assert_eq!(record["sequences"], 256);
    assert!(answer(&plan(&[]).ok()).ends_with(" at once; --max-seqs asks for more"));
}

#[test]
fn what_does_not_fit_exits_with_1_and_what_would() {
    let args = ["--model", "starcoder2-15b", "--memory", "40GiB", "--max-seqs", "500"];
    let run = plan(&args);
    assert!(answer(&run).starts_with("starts: yes, ") && answer(&run).contains(" of 500 sequences"), "{run:?}");
    let line = run.error(1);
    for part in ["does not fit: ", " > 40.0 GiB; what fits: ", " sequences of 16384 positions, or 500 sequences of "] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(line.contains("it runs all the same"), "{line}");
    // What it says would fit does.
    let sequences = number(line, "what fits: ", " sequences of 16384");
    plan(&["--model", "15b", "--memory", "40GiB", "--max-seqs", &sequences]).ok();
    let longest = number(line, "or 500 sequences of ", " positions; it");
    plan(&["--model", "15b", "--memory", "40GiB", "--max-seqs", "500", "--context", &longest]).ok();

    let run = plan(&["--model", "15b", "--memory", "10GiB"]);
    assert_eq!(answer(&run), "starts: no, weights 29.7 GiB > 10.0 GiB");
    let line = run.error(1);
    assert_eq!(line, "does not start: weights 29.7 GiB > 10.0 GiB; use a smaller model or a GPU with more memory");
}

#[test]
fn any_number_is_answered_at_once() {
    // Nobody is asked how long it took: counting one by one would not end.
    let refused = "--max-seqs is 99999999999; expected at most 65535, as many as a GPU's step takes";
    assert_eq!(plan(&["--max-seqs", "99999999999"]).error(2), refused);
    let run = plan(&["--model", "3b", "--max-seqs", "65535", "--prefill-chunk", "4294967295"]);
    assert!(answer(&run).starts_with("starts: no, ") && run.code == 1, "{run:?}");
    let run = plan(&["--model", "3b", "--context", "99999999"]).ok();
    assert_eq!(run.stderr, "warning: --context 99999999: the model has 16384 positions: planned for as many\n");
    assert!(answer(&run).contains(" sequences of 16384 positions at once"), "{run:?}");
}

#[test]
fn models_are_names_files_and_directories() {
    let nano = nano();
    let bundled = plan(&["--json"]).ok().json();
    for model in [nano.to_str().unwrap(), nano.join("config.json").to_str().unwrap()] {
        let record = plan(&["--json", "--model", model]).ok().json();
        assert_eq!(record["lines"], bundled["lines"], "{model}");
    }
    assert!(plan(&["--model", "16b"]).error(2).contains("no such model: \"16b\"; expected"));
    assert!(plan(&["--model", "no-such/model"]).error(2).ends_with("download it with `rigel pull no-such/model`"));
    assert!(plan(&["--memory", "lots"]).stderr.contains("expected a size above 0"));
    assert!(plan(&["--gpu", "h300"]).stderr.contains("h200"));
}
