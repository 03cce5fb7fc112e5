//! `--help` and `--version`.

use crate::common::rigel;

const COMMANDS: [&str; 7] = ["generate", "respond", "infill", "score", "tokenize", "detokenize", "inspect"];

#[test]
fn every_command_has_help_with_examples() {
    for command in COMMANDS {
        for flag in ["-h", "--help"] {
            let mut narrow = crate::common::command(&[command, flag]);
            narrow.env("COLUMNS", "80");
            let run = crate::common::finish(narrow, None).ok();
            let help = run.text();
            assert!(help.contains("Examples:") && help.contains(&format!("\n  rigel {command} ")), "{command}: {help}");
            assert!(help.contains("--model"), "{command}");
            assert_eq!(run.stderr, "");
            let widest = help.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(80), "{command} {flag}: {widest:?} columns");
        }
    }
}

#[test]
fn the_program_names_its_commands_and_version() {
    let run = rigel(&["--help"]).ok();
    for command in COMMANDS {
        assert!(run.text().contains(&format!("\n  {command} ")), "{command}");
    }
    let version = rigel(&["--version"]).ok();
    assert_eq!(version.text(), format!("rigel {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(rigel(&[]).code, 2);
}
