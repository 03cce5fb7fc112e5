//! The variables of the environment that stand for options. An empty one counts as unset, whatever its option's type.

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::{Arg, Command};

/// The parser, which does not see variables that are set to nothing.
pub fn without_empty(command: Command) -> Command {
    without(command, &|variable| std::env::var_os(variable).is_some_and(|value| value.is_empty()))
}

/// The parser, which does not see the variables that `is_left_out` names.
pub fn without(command: Command, is_left_out: &dyn Fn(&OsStr) -> bool) -> Command {
    let leave_out = |argument: Arg| match argument.get_env() {
        Some(variable) if is_left_out(variable) => argument.env(Resettable::<clap::builder::OsStr>::Reset),
        _ => argument,
    };
    command.mut_args(leave_out).mut_subcommands(|command| without(command, is_left_out))
}

/// The value that the argument's variable sets it to.
pub fn value(argument: &Arg) -> Option<OsString> {
    std::env::var_os(argument.get_env()?).filter(|value| !value.is_empty())
}

/// The arguments of all commands that have a variable, each variable once.
pub fn arguments(root: &Command) -> Vec<Arg> {
    let mut found: Vec<Arg> = Vec::new();
    let mut commands = vec![root];
    while let Some(command) = commands.pop() {
        for argument in command.get_arguments().filter(|argument| argument.get_env().is_some()) {
            if found.iter().all(|other| other.get_env() != argument.get_env()) {
                found.push(argument.clone());
            }
        }
        commands.extend(command.get_subcommands());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::parser;
    use super::*;

    #[test]
    fn every_variable_is_listed_once_and_can_be_left_out() {
        let found = arguments(&parser());
        let count = |name: &str| found.iter().filter(|argument| argument.get_env() == Some(OsStr::new(name))).count();
        for name in ["RIGEL_MODEL", "RIGEL_DEVICE", "RIGEL_CONTEXT", "RIGEL_NO_MMAP"] {
            assert_eq!(count(name), 1, "{name}");
        }
        let left = arguments(&without(parser(), &|variable| variable == "RIGEL_MODEL"));
        assert_eq!(left.len(), found.len() - 1);
        assert!(left.iter().all(|argument| argument.get_env() != Some(OsStr::new("RIGEL_MODEL"))));
    }
}
