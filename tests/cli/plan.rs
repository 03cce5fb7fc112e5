//! `rigel plan`.

use crate::common::{Run, nano, rigel};

fn plan(args: &[&str]) -> Run {
    rigel(&[&["plan"], args].concat())
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
    let text = plan(&args).ok();
    assert!(text.text().contains("31,915,778,048") && text.text().contains("\nfits; up to "), "{}", text.text());
    for card in ["h200", "a100", "rtx4090"] {
        assert!(text.text().contains(card), "{card}");
    }
}

#[test]
fn what_does_not_fit_exits_with_1_and_what_would() {
    let args = ["--model", "starcoder2-15b", "--memory", "40GiB", "--max-seqs", "500"];
    let run = plan(&args);
    assert!(run.text().contains("\ndoes not fit\n"), "{}", run.text());
    let line = run.error(1);
    for part in ["does not fit: ", " are missing; what fits: ", " sequences of 16384 positions, or 500 sequences of "] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert!(line.contains("it runs all the same"), "{line}");
    // What it says would fit does.
    let number = |before: &str, after: &str| {
        let start = &line[..line.find(after).unwrap()];
        start[start.rfind(before).unwrap() + before.len()..].to_owned()
    };
    let sequences = number("what fits: ", " sequences of 16384");
    plan(&["--model", "15b", "--memory", "40GiB", "--max-seqs", &sequences]).ok();
    let longest = number("500 sequences of ", " positions; it");
    plan(&["--model", "15b", "--memory", "40GiB", "--max-seqs", "500", "--context", &longest]).ok();

    let line = plan(&["--model", "15b", "--memory", "10GiB"]).error(1).to_owned();
    assert!(line.ends_with("no number of sequences fits: use a smaller model or a GPU with more memory"), "{line}");
}

#[test]
fn models_are_names_files_and_directories() {
    let nano = nano();
    let bundled = plan(&["--json"]).ok().json();
    for model in [nano.to_str().unwrap(), nano.join("config.json").to_str().unwrap()] {
        let record = plan(&["--json", "--model", model]).ok().json();
        assert_eq!(record["lines"], bundled["lines"], "{model}");
    }
    assert!(plan(&["--model", "16b"]).error(2).contains("starcoder2-3b, -7b or -15b"));
    assert!(plan(&["--model", "no-such/model"]).error(2).contains("hf download no-such/model"));
    assert!(plan(&["--memory", "lots"]).stderr.contains("expected a whole number above 0"));
    assert!(plan(&["--gpu", "h300"]).stderr.contains("h200"));
}
