//! What clap has to say about the arguments, as one line in the words of this program.

use std::ffi::OsString;
use std::io::Write;
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::error::one_line;

/// Prints help and version as they are, and an error as one line. `arguments` are the process's, without its name.
pub fn report(error: &clap::Error, root: &clap::Command, arguments: &[OsString]) -> ExitCode {
    // Where a stream is closed, nobody is left to tell.
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            let _ = writeln!(std::io::stderr(), "{}", line(error, root, arguments));
            ExitCode::from(2)
        }
    }
}

/// clap's paragraphs as one line: what is wrong, the nearest name, and where help is.
fn line(error: &clap::Error, root: &clap::Command, arguments: &[OsString]) -> String {
    let command = command(root, arguments);
    let mut said = usage_line(&error.to_string());
    if let (Some(cause), Some(expected)) = (std::error::Error::source(error), expected(error)) {
        said = said.replacen(&cause.to_string(), &expected, 1);
    }
    if let Some(variable) = variable(error, command, arguments) {
        said.push_str(&format!("; it comes from the environment variable {variable}"));
    }
    format!("{said}; see `{} --help`", command.get_bin_name().unwrap_or("rigel"))
}

/// The command that the arguments name, down to `rigel bench model`; as much of it as there is.
fn command<'a>(root: &'a clap::Command, arguments: &[OsString]) -> &'a clap::Command {
    let mut command = root;
    for argument in arguments.iter().filter(|argument| !argument.to_string_lossy().starts_with('-')) {
        match command.find_subcommand(argument) {
            Some(found) => command = found,
            None => break,
        }
    }
    command
}

/// What is wrong, and the nearest name. Without clap's usage, and without its advice to write `-- -x` for every
/// unknown option.
fn usage_line(rendered: &str) -> String {
    let paragraphs =
        rendered.split("\n\n").take_while(|p| !p.starts_with("Usage:") && !p.starts_with("For more information"));
    let is_advice = |line: &&str| {
        let tip = line.trim_start();
        !(tip.starts_with("tip: to pass '-") && tip.contains("as a value, use '-- "))
    };
    let said =
        paragraphs.map(|paragraph| one_line(&paragraph.lines().filter(is_advice).collect::<Vec<_>>().join("\n")));
    said.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}

/// What a number should have been, where the standard library's parser refused it.
fn expected(error: &clap::Error) -> Option<String> {
    let cause = std::error::Error::source(error)?;
    if let Some(error) = cause.downcast_ref::<ParseIntError>() {
        return Some(match error.kind() {
            IntErrorKind::Zero => "expected a whole number of at least 1".to_owned(),
            IntErrorKind::PosOverflow => "expected a smaller whole number".to_owned(),
            _ => "expected a whole number".to_owned(),
        });
    }
    if cause.is::<ParseFloatError>() {
        return Some("expected a number".to_owned());
    }
    // clap's own ranges: `-1 is not in 0..=4294967295`.
    let (_, range) =
        cause.to_string().split_once(" is not in ").map(|(value, range)| (value.to_owned(), range.to_owned()))?;
    let (low, high) = range.split_once("..=").or_else(|| range.split_once(".."))?;
    Some(match high {
        "" => format!("expected a whole number of at least {low}"),
        high => format!("expected a whole number from {low} to {high}"),
    })
}

/// The environment variable that the refused value comes from; `None` if it was an argument.
fn variable(error: &clap::Error, command: &clap::Command, arguments: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
    let name = option.strip_prefix("--")?.split([' ', '=']).next()?;
    let argument = command.get_arguments().find(|argument| argument.get_long() == Some(name))?;
    let variable = argument.get_env()?;
    let from_there = std::env::var_os(variable).is_some_and(|found| found.to_string_lossy() == value.as_str());
    let is_given = arguments.iter().any(|given| {
        let given = given.to_string_lossy();
        let long = |name: &str| given == format!("--{name}") || given.starts_with(&format!("--{name}="));
        let short = argument.get_short().is_some_and(|short| {
            given.strip_prefix('-').is_some_and(|rest| !rest.starts_with('-') && rest.contains(short))
        });
        long(name) || argument.get_all_aliases().unwrap_or_default().into_iter().any(long) || short
    });
    (from_there && !is_given).then(|| variable.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn said(arguments: &[&str]) -> String {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let mut root = Cli::command();
        let error = root.try_get_matches_from_mut([vec!["rigel".into()], arguments.clone()].concat()).unwrap_err();
        root.build();
        line(&error, &root, &arguments)
    }

    #[test]
    fn usage_is_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <PROMPT>\n\n\
                        Usage: rigel generate <PROMPT>\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_line(rendered), "error: the following required arguments were not provided: <PROMPT>");
        let rendered = "error: odd\n\n  tip: even\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_line(rendered), "error: odd; tip: even");
        let rendered = "error: unexpected\n\n  tip: a similar argument exists: '--x'\n  tip: to pass '-f' as a value, use '-- -f'\n\nUsage: x\n";
        assert_eq!(usage_line(rendered), "error: unexpected; tip: a similar argument exists: '--x'");
    }

    #[test]
    fn numbers_are_named_in_words() {
        for (arguments, expected) in [
            (&["generate", "--threads", "0", "x"][..], "expected a whole number of at least 1"),
            (&["generate", "--context=-5", "x"], "expected a whole number of at least 1, such as 512 or 8k"),
            (&["generate", "--seed", "-1", "x"], "expected a whole number"),
            (&["generate", "--seed", "99999999999999999999", "x"], "expected a smaller whole number"),
            (&["generate", "-n", "5000000000", "x"], "expected a whole number"),
            (&["generate", "--top-p", "abc", "x"], "expected a number"),
            (&["generate", "--logprobs", "-1", "x"], "expected a whole number"),
            (&["bench", "model", "-p", "abc"], "expected a whole number"),
        ] {
            let said = said(arguments);
            assert!(said.contains(expected), "{said}");
            for foreign in ["type", "digit", "literal", "..=", "non-zero"] {
                assert!(!said.contains(foreign), "{said}");
            }
        }
    }

    #[test]
    fn help_is_that_of_the_command_at_fault() {
        assert!(said(&["bench", "model", "-p", "abc"]).ends_with("; see `rigel bench model --help`"));
        assert!(said(&["generate", "--foo", "x"]).ends_with("; see `rigel generate --help`"));
        assert!(said(&["no-such"]).ends_with("; see `rigel --help`"));
    }
}
