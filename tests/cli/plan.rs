//! `rigel plan`.

use crate::common::{Copy, Run, nano, rigel};

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
    for key in ["sequences", "sequences_at_once", "max_sequences"] {
        assert_eq!(record[key], most, "{key}");
    }
    let why = "A sequence has up to 97 pages of 64 positions: the window of 4096 and a prompt's chunk.";
    assert!(text.text().contains(why), "{}", text.text());
    // A card with as much memory holds as many.
    let record = plan(&["--model", "15b", "--gpu", "a100-40gb", "--json"]).ok().json();
    let limit = record["limits"].as_array().unwrap().iter().find(|limit| limit["gpu"] == "a100-40gb").unwrap();
    assert_eq!((&limit["sequences_at_once"], &limit["fits"]), (&record["sequences_at_once"], &true.into()));
}

#[test]
fn every_card_has_a_plan_of_its_own() {
    let limits = |args: &[&str]| {
        let run = plan(&[&["--model", "15b", "--json"], args].concat());
        run.json()["limits"].as_array().unwrap().clone()
    };
    let asked_of_both = [limits(&[]), limits(&["--gpu", "h200"])];
    assert_eq!(asked_of_both[0], asked_of_both[1], "whichever GPU is asked for");
    let of = |limits: &[serde_json::Value], card: &str| {
        let limit = limits.iter().find(|limit| limit["gpu"] == card).unwrap();
        (
            limit["starts"].as_bool().unwrap(),
            limit["fits"].as_bool().unwrap(),
            limit["sequences_at_once"].as_u64().unwrap(),
        )
    };
    // As many as fit are planned for; where the weights do not, none starts.
    let (starts, fits, many) = of(&asked_of_both[0], "h100");
    assert!(starts && fits && many > 1);
    assert_eq!(of(&asked_of_both[0], "rtx4090"), (false, false, 0));
    // A number that is asked for is asked of all.
    let number = limits(&["--max-seqs", &(many + 1).to_string()]);
    let (starts, fits, at_once) = of(&number, "h100");
    assert!(starts && !fits && at_once <= many, "{at_once}");
    assert_eq!(of(&number, "h200"), (true, true, many + 1));
}

#[test]
fn more_memory_than_the_gpu_has_is_warned_of() {
    let run = plan(&["--model", "15b", "--memory", "200GiB"]).ok();
    let warning = "warning: --memory 200 GiB: NVIDIA H100 80GB HBM3 has 79.6 GiB: planned as if it had as much as was asked for\n";
    assert_eq!(run.stderr, warning);
    for row in ["| asked for ", "| the GPU has "] {
        assert!(run.text().contains(row), "{row}: {}", run.text());
    }
    let record = plan(&["--model", "15b", "--memory", "200GiB", "--json"]).ok().json();
    assert_eq!(
        (&record["memory_bytes"], &record["gpu_memory_bytes"]),
        (&(200u64 << 30).into(), &(81_559u64 << 20).into())
    );
    let run = plan(&["--model", "15b", "--memory", "70GiB"]).ok();
    assert!(
        run.stderr.is_empty() && run.text().contains("| there is ") && !run.text().contains("asked for"),
        "{run:?}"
    );
}

#[test]
fn no_message_names_an_option_that_plan_lacks() {
    let copy = Copy::of_nano();
    copy.edit("config.json", |config| config["num_attention_heads"] = 8.into());
    let config = copy.path("config.json");
    let run = plan(&["--model", config.to_str().unwrap()]);
    let line = run.error(1);
    assert!(line.starts_with("device cuda: head_dim is 32; the kernels take 64 or 128"), "{line}");
    assert!(!line.contains("--device"), "{line}");
}

#[test]
fn every_field_of_the_object_is_in_the_help() {
    let help = rigel(&["plan", "--help"]).ok();
    let (_, fields) = help.text().split_once("JSON object of --json:\n").unwrap();
    let listed = |field: &str| fields.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == field);
    let record = plan(&["--json"]).ok().json();
    for part in [&record, &record["cpu"], &record["limits"][0], &record["lines"][0]] {
        for field in part.as_object().unwrap().keys() {
            assert!(listed(field), "{field} is not in {fields}");
        }
    }
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
    let most = record["max_sequences"].as_u64().unwrap();
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
