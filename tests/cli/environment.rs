//! Variables of the environment that stand for options.

use crate::common::{rigel, rigel_env, rigel_envs};

/// All of them.
const VARIABLES: [&str; 11] = [
    "RIGEL_MODEL",
    "RIGEL_DEVICE",
    "RIGEL_DTYPE",
    "RIGEL_THREADS",
    "RIGEL_CONTEXT",
    "RIGEL_PREFILL_CHUNK",
    "RIGEL_MEMORY",
    "RIGEL_NO_MMAP",
    "RIGEL_MLOCK",
    "RIGEL_SPECULATION",
    "RIGEL_BATCH_INVARIANT",
];

const GENERATE: [&str; 5] = ["generate", "--quiet", "-n", "1", "x"];

#[test]
fn an_empty_variable_counts_as_unset() {
    let help = rigel(&["--help"]).ok();
    let unset = rigel(&GENERATE).ok();
    for name in VARIABLES {
        assert!(help.text().contains(name), "{name}");
        let run = rigel_env(&GENERATE, name, "").ok();
        assert_eq!((&run.stdout, run.stderr.as_str()), (&unset.stdout, ""), "{name}");
    }
    rigel_envs(&GENERATE, VARIABLES.map(|name| (name, ""))).ok();
}

#[test]
fn an_empty_option_is_an_error() {
    for arguments in [&["generate", "--model", "", "x"][..], &["generate", "--file", ""], &["inspect", "-m", ""]] {
        let run = rigel(arguments);
        assert!(run.error(2).starts_with("a value is required for '-"), "{run:?}");
    }
    // Also where a variable would have one.
    assert!(rigel_env(&["inspect", "--model", ""], "RIGEL_MODEL", "nano").error(2).contains("--model"));
}

#[test]
fn a_refused_value_is_said_to_come_from_its_variable() {
    let nowhere = [("RIGEL_MODEL", "/no/such/model")];
    for (variables, arguments, option) in [
        // Refused by the parser of the command line.
        ([("RIGEL_DEVICE", "gpuu")], &GENERATE[..], "--device"),
        ([("RIGEL_THREADS", "0")], &GENERATE, "--threads"),
        ([("RIGEL_CONTEXT", "-1")], &GENERATE, "--context"),
        // By whoever uses it.
        (nowhere, &GENERATE, "--model"),
        (nowhere, &["inspect"], "--model"),
        (nowhere, &["bench", "start"], "--model"),
        ([("RIGEL_DTYPE", "bf16")], &["generate", "--device", "cpu", "x"], "--dtype"),
        ([("RIGEL_MODEL", "3b")], &GENERATE, "--model"),
    ] {
        let [(variable, _)] = variables;
        let run = rigel_envs(arguments, variables);
        let expected = format!("; {option} comes from the environment variable {variable}");
        assert_eq!(run.error(2).matches(&expected).count(), 1, "{variables:?} {run:?}");
    }
    let run = rigel_env(&GENERATE, "RIGEL_CONTEXT", "99999999").ok();
    assert!(run.stderr.contains(": using as many; --context comes from the environment variable RIGEL_CONTEXT\n"));
    let run = rigel_env(&["generate", "--device", "cpu", "-q", "-n", "1", "x"], "RIGEL_THREADS", "9999").ok();
    assert!(run.stderr.ends_with("; --threads comes from the environment variable RIGEL_THREADS\n"), "{run:?}");
}

#[test]
fn a_variable_stands_back_where_an_option_excludes_its_own() {
    let dummy = ["bench", "model", "--device", "cpu", "--dummy-weights", "8b"];
    for name in ["RIGEL_MODEL", "RIGEL_CONTEXT"] {
        // What is left to refuse is the name of the shapes.
        let run = rigel_env(&dummy, name, "64");
        assert!(run.error(2).starts_with("no such model: \"8b\""), "{run:?}");
    }
    let both = rigel_env(&[&dummy[..], &["--model", "nano"]].concat(), "RIGEL_MODEL", "nano");
    let said = both.error(2);
    assert!(said.contains("cannot be used with") && !said.contains("RIGEL_MODEL"), "{said}");
}

#[test]
fn an_option_s_own_value_is_nobody_else_s() {
    for (variable, value, arguments) in [
        ("RIGEL_MODEL", "/no/such/model", &["inspect", "--model", "/no/such/model"][..]),
        ("RIGEL_MODEL", "/no/such/model", &["inspect", "--model=/no/such/model"]),
        ("RIGEL_MODEL", "/no/such/model", &["inspect", "-m/no/such/model"]),
        ("RIGEL_THREADS", "0", &["generate", "--threads", "0", "x"]),
        // It is not what is wrong.
        ("RIGEL_THREADS", "1", &["generate", "--device", "gpuu", "x"]),
        ("RIGEL_MODEL", "nano", &["generate", "--prompts", "/no/such/file"]),
    ] {
        let run = rigel_env(arguments, variable, value);
        assert!(!run.error(2).contains(variable), "{run:?}");
    }
}

#[test]
fn the_last_word_is_the_option_s() {
    let inspected = rigel_env(&["inspect", "--json", "--model", "nano"], "RIGEL_MODEL", "3b").ok().json();
    assert_eq!(inspected["parameters"], rigel(&["inspect", "--json"]).ok().json()["parameters"]);
}

#[cfg(feature = "cuda")]
#[test]
fn plan_obeys_the_variables_of_its_options() {
    let plan = ["plan", "--model", "15b", "--json"];
    let given = ["--context", "4096", "--memory", "60GiB", "--prefill-chunk", "512", "--dtype", "f16"];
    let variables = [
        ("RIGEL_CONTEXT", "4k"),
        ("RIGEL_MEMORY", "60GiB"),
        ("RIGEL_PREFILL_CHUNK", "512"),
        ("RIGEL_DTYPE", "f16"),
        // It has no such options.
        ("RIGEL_THREADS", "0"),
        ("RIGEL_DEVICE", "gpuu"),
    ];
    let by_options = rigel(&[&plan[..], &given].concat()).ok().json();
    let by_variables = rigel_envs(&plan, variables).ok().json();
    for field in ["context", "memory_bytes", "prefill_chunk", "dtype", "lines", "sequences", "limits"] {
        assert_eq!(by_variables[field], by_options[field], "{field}");
    }
    assert_eq!((&by_options["context"], &by_options["prefill_chunk"]), (&4096.into(), &512.into()));
    assert_ne!(by_options["lines"], rigel(&plan).ok().json()["lines"]);
    let wrong = rigel_env(&plan, "RIGEL_MEMORY", "lots");
    assert!(wrong.error(2).contains("; --memory comes from the environment variable RIGEL_MEMORY; see"), "{wrong:?}");
    let hub = rigel_env(&["plan", "--json"], "RIGEL_MODEL", "3b").ok().json();
    assert_eq!(hub["model"], "starcoder2-3b");
}

#[test]
fn verbose_says_what_is_loaded() {
    let arguments = ["generate", "--device", "cpu", "--threads", "1", "--quiet", "-n", "1", "x"];
    assert_eq!(rigel(&arguments).ok().stderr, "");
    let verbose = rigel(&[&arguments[..], &["-v"]].concat()).ok();
    let lines: Vec<&str> = verbose.stderr.lines().collect();
    assert!(lines.iter().all(|line| line.starts_with("info: ")), "{lines:?}");
    for (part, count) in [
        ("info: model: nano", 1),
        ("iB of weights in 1 file, stored in ", 1),
        (" kernels, 1 thread", 1),
        ("info: a step has at most 1 sequence and ", 1),
        ("info: a sequence has at most 2048 positions; the cache has ", 1),
    ] {
        assert_eq!(lines.iter().filter(|line| line.contains(part)).count(), count, "{part}: {lines:?}");
    }
    assert!(rigel(&["inspect", "-v"]).ok().stderr.starts_with("info: model: nano"));
}
