//! Inputs that are given twice. Of an option that sets something the last one counts, so that an alias of a shell can
//! be overridden; of two files nobody means one alone.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Options that say what a command reads, by their ids in the parser.
const INPUTS: [&str; 8] = ["at", "column", "file", "line", "prefix_file", "prompts", "suffix_file", "text"];

/// The command with every value of these options kept, for [`check`].
pub fn keep_inputs(command: Command) -> Command {
    command
        .mut_args(|argument| if is_input(&argument) { argument.action(ArgAction::Append) } else { argument })
        .mut_subcommands(keep_inputs)
}

/// That no input was given twice.
pub fn check(command: &mut Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let Some(command) = command.find_subcommand_mut(name) else { return Ok(()) };
    let twice = command.get_arguments().filter(|argument| is_input(argument)).find_map(|argument| {
        let mut values = matches.get_raw(argument.get_id().as_str())?;
        let (first, second) = (values.next()?.to_string_lossy(), values.next()?.to_string_lossy());
        let option = argument.get_long()?;
        Some(format!("--{option} is given twice, as {first} and as {second}; give one of them"))
    });
    match twice {
        Some(message) => Err(command.error(ErrorKind::ArgumentConflict, message)),
        None => check(command, matches),
    }
}

/// Positional arguments count themselves.
fn is_input(argument: &Arg) -> bool {
    argument.get_long().is_some() && INPUTS.contains(&argument.get_id().as_str())
}
