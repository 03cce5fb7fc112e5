//! `--help` and `--version`.

use crate::common::{Run, command, finish, rigel};

const COMMANDS: [&str; 9] =
    ["generate", "respond", "chat", "infill", "batch", "score", "tokenize", "detokenize", "inspect"];

/// `rigel` in a terminal of this many columns.
fn help(args: &[&str], columns: &str) -> String {
    let mut command = command(args);
    command.env("COLUMNS", columns);
    let run: Run = finish(command, None).ok();
    assert_eq!(run.stderr, "");
    run.text().to_owned()
}

fn examples(help: &str) -> &str {
    &help[help.find("Examples:").unwrap_or_else(|| panic!("no examples in {help}"))..]
}

#[test]
fn every_command_has_help_with_examples() {
    for command in COMMANDS {
        for flag in ["-h", "--help"] {
            let narrow = help(&[command, flag], "80");
            assert!(examples(&narrow).contains(&format!("\n  rigel {command} ")), "{narrow}");
            assert!(narrow.contains("--model"), "{command}");
            let widest = narrow.lines().map(|line| line.chars().count()).max();
            assert!(widest <= Some(80), "{command} {flag}: {widest:?} columns");
            // Lines set by hand are not broken.
            assert_eq!(examples(&narrow), examples(&help(&[command, flag], "100")));
        }
    }
}

#[test]
fn no_help_is_broken_by_a_terminal_s_width() {
    let mut commands = vec![vec![]];
    let mut seen = 0;
    while let Some(command) = commands.pop() {
        for flag in ["-h", "--help"] {
            let arguments = [&command[..], &[flag.to_owned()]].concat();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let [narrow, wide] = ["80", "100"].map(|columns| (columns, help(&arguments, columns)));
            for (columns, text) in [&narrow, &wide] {
                let widest = text.lines().map(|line| line.chars().count()).max();
                assert!(widest <= columns.parse().ok(), "{command:?} {flag}: {widest:?} of {columns} columns");
            }
            if narrow.1.contains("Examples:") {
                assert_eq!(examples(&narrow.1), examples(&wide.1), "{command:?} {flag}");
            }
            if flag == "-h" {
                let subcommands = narrow.1.lines().skip_while(|line| *line != "Commands:").skip(1);
                let names = subcommands.take_while(|line| !line.is_empty()).filter_map(|line| {
                    // Below 80 columns a text may go on in the next line, further to the right.
                    line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split(' ').next()
                });
                let names = names.filter(|name| *name != "help").map(str::to_owned);
                commands.extend(names.map(|name| [&command[..], &[name]].concat()));
            }
        }
        seen += 1;
    }
    assert!(seen >= 22, "{seen}");
}

#[test]
fn the_program_names_its_commands_and_version() {
    let program = help(&["--help"], "80");
    for command in COMMANDS {
        assert!(program.contains(&format!("\n  {command} ")), "{command}");
    }
    assert_eq!(examples(&program), examples(&help(&["--help"], "100")));
    let short = rigel(&["-V"]).ok();
    assert_eq!(short.text(), format!("rigel {}\n", env!("CARGO_PKG_VERSION")));
    let long = rigel(&["--version"]).ok();
    let long = long.text().strip_prefix(short.text().trim_end()).unwrap();
    assert!(long.starts_with(" (commit ") && long.ends_with(")\n") && long.contains(", cpu "), "{long}");
    assert!(long.contains(", kernels by nvcc ") || long.contains(", no GPU kernels, "), "{long}");
    assert_eq!(rigel(&[]).code, 2);
}
