//! The command that runs: which options it has, and which of them the environment sets. Messages name no other option,
//! and say where a value that nobody typed comes from.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::environment;

static RUNNING: OnceLock<Running> = OnceLock::new();

#[derive(Debug)]
struct Running {
    /// Its long options.
    options: BTreeSet<String>,
    variables: Vec<Variable>,
}

/// An option that has its value from a variable.
#[derive(Debug)]
struct Variable {
    option: String,
    name: String,
    value: String,
}

/// What else in a message speaks of an option.
const PHRASES: [(&str, &str); 2] = [("threads", " threads were asked for"), ("context", "a context of ")];

/// Remembers the command that `matches` are of, once.
pub fn set(root: &Command, matches: &ArgMatches) {
    // A second call would be of the same command.
    let _ = RUNNING.set(Running::new(root, matches));
}

/// Whether the command has the option `--name`; all are had until a command is known.
pub fn has(name: &str) -> bool {
    RUNNING.get().is_none_or(|running| running.options.contains(name))
}

/// Of the options that the message speaks of, those that variables set: `; --context comes from the environment
/// variable RIGEL_CONTEXT`. Empty if there are none.
pub fn origins(message: &str) -> String {
    RUNNING.get().map_or_else(String::new, |running| running.origins(message, &[]))
}

/// The same of a message that may name the model, whose name is a word of it.
pub fn origins_and_model(message: &str) -> String {
    RUNNING.get().map_or_else(String::new, |running| running.origins(message, &["model"]))
}

/// What a message says of an option that a variable sets.
pub fn origin(option: &str, variable: &str) -> String {
    format!("; --{option} comes from the environment variable {variable}")
}

impl Running {
    /// What the arguments of the subcommand say that `matches` end in.
    fn new(root: &Command, matches: &ArgMatches) -> Running {
        let (mut command, mut matches) = (root, matches);
        while let Some((name, of_subcommand)) = matches.subcommand() {
            let Some(subcommand) = command.find_subcommand(name) else { break };
            (command, matches) = (subcommand, of_subcommand);
        }
        let mut running = Running { options: BTreeSet::new(), variables: Vec::new() };
        for argument in command.get_arguments() {
            let Some(option) = argument.get_long() else { continue };
            running.options.insert(option.to_owned());
            let (Some(variable), Some(value)) = (argument.get_env(), environment::value(argument)) else { continue };
            if matches.value_source(argument.get_id().as_str()) == Some(ValueSource::EnvVariable) {
                running.variables.push(Variable {
                    option: option.to_owned(),
                    name: variable.to_string_lossy().into_owned(),
                    value: value.to_string_lossy().into_owned(),
                });
            }
        }
        running
    }

    /// `named` are options that the message may speak of by their value.
    fn origins(&self, message: &str, named: &[&str]) -> String {
        let spoken_of = |variable: &&Variable| {
            let Variable { option, name, value } = variable;
            let by_phrase = PHRASES.iter().any(|(of, phrase)| of == option && message.contains(phrase));
            let by_value = named.contains(&option.as_str()) && has_word(message, value);
            // A message that names the variable has said it.
            !message.contains(name.as_str()) && (by_phrase || by_value || has_word(message, &format!("--{option}")))
        };
        self.variables.iter().filter(spoken_of).map(|variable| origin(&variable.option, &variable.name)).collect()
    }
}

/// Whether `word` is in the text, and not as a part of a longer word.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(is_part) && !after.starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::super::parser;
    use super::*;

    fn variable(option: &str, name: &str, value: &str) -> Variable {
        Variable { option: option.to_owned(), name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn a_command_has_its_own_options() {
        let of = |arguments: &[&str]| {
            let mut root = parser();
            let matches = root.try_get_matches_from_mut([&["rigel"], arguments].concat()).unwrap();
            Running::new(&root, &matches).options
        };
        let (generate, start) = (of(&["generate", "x"]), of(&["bench", "start"]));
        assert!(generate.contains("device") && generate.contains("no-mmap") && !generate.contains("repetitions"));
        assert!(start.contains("device") && start.contains("repetitions") && !start.contains("no-mmap"));
    }

    #[test]
    fn variables_are_named_where_their_option_is_spoken_of() {
        let variables = vec![
            variable("model", "RIGEL_MODEL", "x/y"),
            variable("threads", "RIGEL_THREADS", "99"),
            variable("memory", "RIGEL_MEMORY", "1m"),
        ];
        let running = Running { options: BTreeSet::new(), variables };
        let said = |message| running.origins(message, &["model"]);
        assert_eq!(said("no such model: \"x/y\""), "; --model comes from the environment variable RIGEL_MODEL");
        assert!(said("x/y/config.json: no JSON").ends_with(" RIGEL_MODEL"));
        assert_eq!(said("x/yz: no JSON"), "");
        assert!(said("99 threads were asked for and …").ends_with(" RIGEL_THREADS"));
        assert!(said("it needs more --memory, or …").ends_with(" RIGEL_MEMORY"));
        assert_eq!(said("--memory-of-others"), "");
        assert_eq!(said("RIGEL_MEMORY=1m: --memory"), "");
        assert_eq!(running.origins("x/y is stored in f32", &[]), "");
    }
}
