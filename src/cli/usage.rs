//! What clap has to say about the arguments, as one line in the words of this program.

use std::any::TypeId;
use std::error::Error as _;
use std::ffi::OsString;
use std::io::Write;
use std::num::{IntErrorKind, NonZeroU32, NonZeroU64, NonZeroUsize, ParseFloatError, ParseIntError};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

use super::error::one_line;
use super::nearest::nearest;
use super::numbers::Count;
use super::{environment, parser, running};

/// Prints help and version as they are, and an error as one line. `arguments` are the process's, without its name.
pub fn report(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
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
            let _ = writeln!(std::io::stderr(), "{}", line(error, arguments));
            ExitCode::from(2)
        }
    }
}

/// What is wrong with the value that the argument has from its variable, if it has one: `expected …`.
pub fn wrong_value(argument: &Arg) -> Option<String> {
    // A command of this argument alone: what is wrong with another one is not said in its place.
    let command = Command::new("rigel").arg(argument.clone());
    let error = command.try_get_matches_from(["rigel"]).err()?;
    let said = || error.source().map_or_else(|| "expected UTF-8 text".to_owned(), ToString::to_string);
    Some(expected(&error, Some(argument)).unwrap_or_else(said))
}

/// clap's paragraphs as one line: what is wrong, the nearest name, and where help is.
fn line(error: &clap::Error, arguments: &[OsString]) -> String {
    let mut root = parser();
    // Gives every command its whole name.
    root.build();
    let command = command(&root, arguments);
    let rendered = usage_line(&error.to_string());
    let mut said = rendered.clone();
    if let Some(expected) = expected(error, argument(error, command)) {
        said = match error.source() {
            Some(cause) => said.replacen(&cause.to_string(), &expected, 1),
            // In place of the list of values, and of clap's guess at the one that was meant.
            None => match said.split_once(" [possible values: ") {
                Some((value, _)) => format!("{value}: {expected}"),
                None => said,
            },
        };
    }
    if let Some(option) = nearest_option(error, command) {
        said.push_str(&format!("; did you mean --{option}?"));
    }
    said.push_str(&origins(&rendered, command, arguments));
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

/// What is wrong, and the nearest command. Without clap's usage, its guess at an option, which may be one that help
/// does not show, and its advice to write `-- -x` for every unknown option.
fn usage_line(rendered: &str) -> String {
    let paragraphs =
        rendered.split("\n\n").take_while(|p| !p.starts_with("Usage:") && !p.starts_with("For more information"));
    let is_advice = |line: &&str| {
        let tip = line.trim_start();
        let is_guess = tip.starts_with("tip: ") && tip.contains("similar argument");
        !(is_guess || tip.starts_with("tip: to pass '-") && tip.contains("as a value, use '-- "))
    };
    let said =
        paragraphs.map(|paragraph| one_line(&paragraph.lines().filter(is_advice).collect::<Vec<_>>().join("\n")));
    said.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The argument that the error is about.
fn argument<'a>(error: &clap::Error, command: &'a Command) -> Option<&'a Arg> {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidArg) else { return None };
    command.get_arguments().find(|argument| argument.to_string() == *name)
}

/// What a value should have been, where clap or the standard library's parser refused it.
fn expected(error: &clap::Error, argument: Option<&Arg>) -> Option<String> {
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue)
        && let [first @ .., last] = values.as_slice()
    {
        return Some(match first {
            [] => format!("expected {last}"),
            first => format!("expected {} or {last}", first.join(", ")),
        });
    }
    let cause = error.source()?;
    if let Some(error) = cause.downcast_ref::<ParseIntError>() {
        let (min, max) = argument.and_then(bounds).unwrap_or((0, u64::MAX));
        return Some(match error.kind() {
            IntErrorKind::PosOverflow => format!("expected a whole number of at most {max}"),
            _ => format!("expected a whole number of at least {min}"),
        });
    }
    if cause.is::<ParseFloatError>() {
        return Some("expected a number".to_owned());
    }
    // clap's own ranges: `-1 is not in 0..=4294967295`.
    let cause = cause.to_string();
    let (value, range) = cause.split_once(" is not in ")?;
    let (low, high) = range.split_once("..=").or_else(|| range.split_once(".."))?;
    Some(match argument.and_then(bounds) {
        // All that the type has: as other numbers of the type are refused.
        Some((min, max)) if (low, high) == (min.to_string().as_str(), max.to_string().as_str()) => {
            match value.starts_with('-') {
                true => format!("expected a whole number of at least {min}"),
                false => format!("expected a whole number of at most {max}"),
            }
        }
        _ if high.is_empty() => format!("expected a whole number of at least {low}"),
        _ => format!("expected a whole number from {low} to {high}"),
    })
}

/// The smallest and the largest value of the argument's type; `None` if it is no number.
fn bounds(argument: &Arg) -> Option<(u64, u64)> {
    fn of<T: Count + 'static>() -> (TypeId, (u64, u64)) {
        (TypeId::of::<T>(), (T::MIN, T::MAX))
    }
    let types = [of::<u32>(), of::<u64>(), of::<usize>(), of::<NonZeroU32>(), of::<NonZeroU64>(), of::<NonZeroUsize>()];
    let found = argument.get_value_parser().type_id();
    types.into_iter().find(|(id, _)| found == *id).map(|(_, bounds)| bounds)
}

/// The option that an unknown one was meant to be, by the name that help shows.
fn nearest_option(error: &clap::Error, command: &Command) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(found)) = error.get(ContextKind::InvalidArg) else { return None };
    let found = found.strip_prefix("--")?;
    let names: Vec<(&str, &str)> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .filter_map(|argument| Some((argument.get_long()?, argument)))
        .flat_map(|(long, argument)| {
            let aliases = argument.get_all_aliases().unwrap_or_default();
            std::iter::once(long).chain(aliases).map(move |name| (name, long))
        })
        .collect();
    let nearest = nearest(found, names.iter().map(|(name, _)| *name))?;
    names.iter().find(|(name, _)| *name == nearest).map(|(_, long)| (*long).to_owned())
}

/// The variables that are at fault: without one of them clap says something else, or nothing.
pub fn variables_at_fault(error: &clap::Error, arguments: &[OsString]) -> Vec<OsString> {
    let root = parser();
    let found = at_fault(&usage_line(&error.to_string()), command(&root, arguments), arguments);
    found.into_iter().filter_map(|argument| argument.get_env()).map(OsString::from).collect()
}

/// The arguments whose variables are.
fn at_fault<'a>(rendered: &str, command: &'a Command, arguments: &[OsString]) -> Vec<&'a Arg> {
    let program = OsString::from("rigel");
    let is_at_fault = |argument: &&Arg| {
        let without = environment::without(parser(), &|variable| argument.get_env() == Some(variable));
        match without.try_get_matches_from(std::iter::once(&program).chain(arguments)) {
            Ok(_) => true,
            Err(error) => usage_line(&error.to_string()) != rendered,
        }
    };
    let set = command.get_arguments().filter(|argument| environment::value(argument).is_some());
    set.filter(is_at_fault).collect()
}

/// What is said of them; empty if there are none.
fn origins(rendered: &str, command: &Command, arguments: &[OsString]) -> String {
    let found = at_fault(rendered, command, arguments).into_iter();
    let named = found.filter_map(|argument| argument.get_long().zip(argument.get_env()));
    named.map(|(option, variable)| running::origin(option, &variable.to_string_lossy())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(arguments: &[&str]) -> String {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let error = parser().try_get_matches_from([vec!["rigel".into()], arguments.clone()].concat()).unwrap_err();
        line(&error, &arguments)
    }

    #[test]
    fn usage_is_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <PROMPT>\n\n\
                        Usage: rigel generate <PROMPT>\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_line(rendered), "error: the following required arguments were not provided: <PROMPT>");
        let rendered = "error: odd\n\n  tip: even\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_line(rendered), "error: odd; tip: even");
        let rendered = "error: unexpected\n\n  tip: a similar argument exists: '--x'\n  tip: to pass '-f' as a value, use '-- -f'\n\nUsage: x\n";
        assert_eq!(usage_line(rendered), "error: unexpected");
    }

    #[test]
    fn numbers_are_named_in_words() {
        for (arguments, expected) in [
            (&["generate", "--threads", "0", "x"][..], "expected a whole number of at least 1"),
            (&["generate", "--context=-5", "x"], "expected a whole number of at least 1, such as 512 or 8k"),
            (&["generate", "--seed", "-1", "x"], "expected a whole number of at least 0"),
            (
                &["generate", "--seed", "99999999999999999999", "x"],
                "expected a whole number of at most 18446744073709551615",
            ),
            (&["generate", "-n", "5000000000", "x"], "expected a whole number of at most 4294967295"),
            (&["generate", "--top-k", "-3", "x"], "expected a whole number of at least 0"),
            (&["generate", "--top-k", "5000000000", "x"], "expected a whole number of at most 4294967295"),
            (&["generate", "--stop-token-ids", "1,x", "x"], "expected a whole number of at least 0"),
            (&["generate", "--top-p", "abc", "x"], "expected a number"),
            (&["generate", "--logprobs", "-1", "x"], "expected a whole number of at least 0"),
            (&["bench", "model", "-p", "abc"], "expected a whole number of at least 0"),
            (&["bench", "start", "-r", "0"], "expected a whole number of at least 1"),
            (&["batch", "--logprobs", "21", "a", "b"], "expected a whole number from 0 to 20"),
        ] {
            let said = said(arguments);
            assert!(said.contains(expected), "{said}");
            for foreign in ["type", "digit", "literal", "..=", "non-zero"] {
                assert!(!said.contains(foreign), "{said}");
            }
        }
    }

    #[test]
    fn values_are_listed_in_words() {
        let said = said(&["generate", "--device", "gpuu", "x"]);
        assert!(
            said.contains("invalid value 'gpuu' for '--device <DEVICE>': expected auto, cpu or cuda; see "),
            "{said}"
        );
    }

    #[test]
    fn only_options_that_help_shows_are_proposed() {
        for (arguments, option) in [
            (&["generate", "--modle", "x"][..], "--model"),
            (&["generate", "--max-newtokens", "4", "x"], "--max-new-tokens"),
            // By a hidden name, and under the one that help shows.
            (&["generate", "--max-num-batched-token", "4", "x"], "--prefill-chunk"),
            (&["generate", "--repeat-penalti", "1.1", "x"], "--repetition-penalty"),
        ] {
            let said = said(arguments);
            assert!(said.contains(&format!("; did you mean {option}?; see ")), "{said}");
        }
        for arguments in [&["generate", "--top-q", "5", "x"][..], &["synth", "--device", "cpu"], &["list", "--foo"]] {
            let said = said(arguments);
            assert!(!said.contains("tip") && !said.contains("did you mean"), "{said}");
        }
    }

    #[test]
    fn help_is_that_of_the_command_at_fault() {
        assert!(said(&["bench", "model", "-p", "abc"]).ends_with("; see `rigel bench model --help`"));
        assert!(said(&["generate", "--foo", "x"]).ends_with("; see `rigel generate --help`"));
        assert!(said(&["no-such"]).ends_with("; see `rigel --help`"));
    }
}
