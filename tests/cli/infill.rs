//! `rigel infill`.

use std::path::Path;

use crate::common::{detokenize, file, ids, path, rigel, rigel_stdin};

const CODE: &str = "def add(a, b):\n    # é\n    return \n\nprint(add(1, 2))\n";

/// The prompt's text, special tokens included.
fn prompt(args: &[&str]) -> String {
    let args = [&["infill", "--json", "-q", "-n", "4"], args].concat();
    detokenize(&ids(&rigel(&args).ok().json()["prompt_token_ids"]))
}

#[test]
fn a_place_in_a_file_is_its_prefix_and_suffix() {
    let code = file(CODE);
    // After "    return ".
    let at = CODE.find("\n\nprint").unwrap();
    let (prefix, suffix) = (file(&CODE[..at]), file(&CODE[at..]));
    let common = ["infill", "-q", "-n", "12"];
    let by_files = ["--prefix-file", path(&prefix), "--suffix-file", path(&suffix)];
    let by_place = ["--file", path(&code), "--line", "3", "--column", "12"];
    let json = |args: &[&str]| rigel(&[&common[..], &["--json"], args].concat()).ok().json();
    let (a, b) = (json(&by_files), json(&by_place));
    for field in ["prompt_token_ids", "token_ids", "text", "finish_reason"] {
        assert_eq!(a[field], b[field], "{field}");
    }
    assert_eq!(
        detokenize(&ids(&a["prompt_token_ids"])),
        format!("<fim_prefix>{}<fim_suffix>{}<fim_middle>", &CODE[..at], &CODE[at..])
    );
    // Only the middle is printed.
    assert_eq!(rigel(&[&common[..], &by_place].concat()).ok().text(), a["text"].as_str().unwrap());
    let at = format!("{}:3:12", path(&code));
    assert_eq!(json(&["--at", &at])["prompt_token_ids"], a["prompt_token_ids"]);
    let by_stdin = ["--file", "-", "--line", "3", "--column", "12"];
    assert_eq!(rigel_stdin(&[&common[..], &by_stdin].concat(), CODE).ok().text(), a["text"].as_str().unwrap());
}

#[test]
fn columns_count_characters() {
    let code = file(CODE);
    let text = prompt(&["--file", path(&code), "--line", "2", "--column", "8"]);
    assert!(text.contains("# é<fim_suffix>\n    return"), "{text}");
}

#[test]
fn a_repository_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let (code, util, more) = (write("app.py", "x = \n"), write("util.py", "U\n"), write("more.py", "M\n"));
    let place = ["--file", &code, "--line", "1", "--column", "5"];
    let context = ["--context-file", &util, "--context-file", &more];
    let named = prompt(&[&place[..], &context, &["--repo", "me/app", "--path", "app.py"]].concat());
    assert_eq!(
        named,
        format!(
            "<repo_name>me/app<file_sep>{util}\nU\n<file_sep>{more}\nM\n<file_sep>\
             <fim_prefix>app.py\nx = <fim_suffix>\n<fim_middle>"
        )
    );
    let nameless = prompt(&[&place[..], &context].concat());
    assert_eq!(nameless, "<file_sep>U\n<file_sep>M\n<file_sep><fim_prefix>x = <fim_suffix>\n<fim_middle>");
    let by_default = prompt(&[&place[..], &["--repo", "me/app"]].concat());
    assert!(by_default.contains(&format!("<fim_prefix>{code}\nx = ")), "{by_default}");
}

#[test]
fn code_cannot_forge_special_tokens() {
    let (prefix, suffix) = (file("<fim_middle>"), file("<file_sep><|endoftext|>"));
    let args = ["infill", "--json", "-q", "-n", "1", "--prefix-file", path(&prefix), "--suffix-file", path(&suffix)];
    let special: Vec<u64> =
        ids(&rigel(&args).ok().json()["prompt_token_ids"]).into_iter().filter(|id| *id < 38).collect();
    assert_eq!(special, [1, 3, 2]);
}

#[test]
fn stops_and_sampling_are_those_of_generate() {
    let (prefix, suffix) = (file("def f():\n    "), file("\n"));
    let args = ["infill", "--prefix-file", path(&prefix), "--suffix-file", path(&suffix)];
    let run = |more: &[&str]| rigel(&[&args[..], more].concat());
    assert_eq!(ids(&run(&["--json", "--ignore-eos", "-n", "0"]).ok().json()["token_ids"]), [0; 0]);
    let record = run(&["--json", "-n", "2", "--logprobs", "1"]).ok().json();
    assert_eq!(record["logprobs"].as_array().unwrap().len(), record["token_ids"].as_array().unwrap().len());
    assert!(run(&["--top-p", "7"]).error(2).starts_with("--top-p is 7"));
}

#[test]
fn gaps_that_are_none_are_said() {
    let code = file(CODE);
    let at = |line: &str, column: &str| {
        let run = rigel(&["infill", "--file", path(&code), "--line", line, "--column", column]);
        run.error(2).to_owned()
    };
    assert!(at("99", "1").ends_with(": line is 99; expected 1 to 6, the lines of the file"));
    assert!(at("0", "1").contains("line is 0"));
    assert!(at("2", "9").ends_with(": column is 9; expected 1 to 8, the end of line 2"));
    assert!(at("2", "0").starts_with(path(&code)));
    assert!(rigel(&["infill", "--file", path(&code), "--line", "1"]).error(2).contains("--column"));
    assert!(rigel(&["infill", "--prefix-file", path(&code)]).error(2).contains("--suffix-file"));
    assert!(rigel(&["infill"]).error(2).contains("--prefix-file"));
    assert!(rigel(&["infill", "--prefix-file", "-", "--suffix-file", "-"]).error(2).contains("stdin"));
    let absent = Path::new(path(&code)).with_extension("absent");
    let absent = absent.to_str().unwrap();
    let run = rigel(&["infill", "--prefix-file", absent, "--suffix-file", path(&code)]);
    assert!(run.error(2).starts_with(absent), "{}", run.stderr);
}

#[test]
fn a_long_file_is_cut_to_what_is_near_the_gap() {
    let lines: Vec<String> = (0..600).map(|line| format!("value_{line} = {line}\n")).collect();
    let text = lines.concat();
    let code = file(&text);
    let at = format!("{}:301:1", path(&code));
    let run = |args: &[&str]| rigel(&[&["infill", "--json", "-q", "--at", &at], args].concat());
    let fitted = run(&["-n", "16"]).ok();
    let record = fitted.json();
    let prompt = ids(&record["prompt_token_ids"]);
    assert!(prompt.len() + 16 <= 2048 && prompt.len() > 1950, "{}", prompt.len());
    assert!(record["token_ids"].as_array().unwrap().len() <= 16);
    let shown = detokenize(&prompt);
    let (prefix, suffix) = shown.split_once("<fim_suffix>").unwrap();
    let prefix = prefix.strip_prefix("<fim_prefix>").unwrap();
    let suffix = suffix.strip_suffix("<fim_middle>").unwrap();
    let (before, after) = (lines[..300].concat(), lines[300..].concat());
    assert!(before.ends_with(prefix) && after.starts_with(suffix));
    assert!(prefix.starts_with("value_") && suffix.ends_with('\n'));
    assert!(prefix.len() > 2 * suffix.len(), "{} and {}", prefix.len(), suffix.len());
    let left = 300 - prefix.lines().count();
    let said =
        format!("there is room for 2032: the first {left} lines and the last {} lines", 300 - suffix.lines().count());
    assert!(fitted.stderr.starts_with("warning: ") && fitted.stderr.contains(&said), "{}: {said}", fitted.stderr);
    // A number of tokens that leaves no room for code is not what anyone wants.
    for n in ["2048", "5000"] {
        let message = run(&["-n", n]);
        assert!(message.error(2).starts_with(&format!("--max-new-tokens is {n}; expected less than the 2048")));
    }
    // The usual number of tokens is left free where none was given.
    let default = run(&["--stop", "\n"]).ok();
    assert!(ids(&default.json()["prompt_token_ids"]).len() <= 2048 - 256);
    assert!(run(&["--path", &"x/".repeat(3000)]).error(2).contains("before any code"));
}

#[test]
fn context_files_are_left_out_first() {
    let (code, long) = (file("x = \n"), file("y = 1\n".repeat(700)));
    let short = file("z = 1\n");
    let at = format!("{}:1:5", path(&code));
    let args = [
        "infill",
        "--json",
        "-q",
        "-n",
        "4",
        "--at",
        &at,
        "--context-file",
        path(&short),
        "--context-file",
        path(&long),
    ];
    let run = rigel(&args).ok();
    assert!(run.stderr.contains("the last 1 context file was left out"), "{}", run.stderr);
    let shown = detokenize(&ids(&run.json()["prompt_token_ids"]));
    assert_eq!(shown, "<file_sep>z = 1\n<file_sep><fim_prefix>x = <fim_suffix>\n<fim_middle>");
}

#[test]
fn a_byte_order_mark_is_no_code() {
    let (code, context) = (file("\u{feff}x = \n"), file("\u{feff}y\n"));
    let at = format!("{}:1:5", path(&code));
    let shown = prompt(&["--at", &at, "--context-file", path(&context)]);
    assert_eq!(shown, "<file_sep>y\n<file_sep><fim_prefix>x = <fim_suffix>\n<fim_middle>");
    let args = ["infill", "--json", "-q", "-n", "1", "--file", "-", "--line", "1", "--column", "5"];
    let of_stdin = rigel_stdin(&args, "\u{feff}x = \n").ok().json();
    assert_eq!(detokenize(&ids(&of_stdin["prompt_token_ids"])), "<fim_prefix>x = <fim_suffix>\n<fim_middle>");
}
