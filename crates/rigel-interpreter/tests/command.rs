//! The command that prints where the stand-in driver lies.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rigel-interpreter")).args(arguments).output().expect("it starts")
}

#[test]
fn it_prints_the_path_of_the_library_and_nothing_else() {
    let output = run(&[]);
    assert!(output.status.success() && output.stderr.is_empty());
    let path = String::from_utf8(output.stdout).unwrap();
    assert_eq!(path, format!("{}\n", rigel_interpreter::LIBRARY));
    assert!(std::path::Path::new(path.trim_end()).is_file());
}

#[test]
fn help_shows_how_to_use_it_and_other_arguments_are_refused() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("LD_PRELOAD=$(cargo run -q -p rigel-interpreter) rigel doctor"), "{help}");
    let refused = run(&["--path"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stdout.is_empty() && String::from_utf8(refused.stderr).unwrap().contains("found: --path"));
}
