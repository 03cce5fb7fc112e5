//! What the name of an option's value says of the value: whether it names a file, a directory or a model. Shells
//! complete such a value accordingly, and nothing has an empty name.

use std::any::TypeId;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Arg, Command, ValueHint};

/// The parser with that knowledge, in all of its commands.
pub fn apply(command: Command) -> Command {
    command.mut_args(of_argument).mut_subcommands(apply)
}

fn of_argument(argument: Arg) -> Arg {
    let Some(kind) = Kind::of(&argument) else { return argument };
    let is_text = argument.get_value_parser().type_id() == TypeId::of::<String>();
    let argument = argument.value_hint(kind.hint());
    match kind {
        Kind::Other => argument,
        // Paths are never empty by their own parser.
        _ if is_text => argument.value_parser(NonEmptyStringValueParser::new()),
        _ => argument,
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    /// Either of them, or a name.
    Path,
    Program,
    /// A name that is no path.
    Name,
    /// A number, or text that may be empty.
    Other,
}

impl Kind {
    /// `None` for a flag, for a value without a name, and for one of a list.
    fn of(argument: &Arg) -> Option<Kind> {
        let parser = argument.get_value_parser();
        if !argument.get_action().takes_values() || parser.possible_values().is_some() {
            return None;
        }
        let name = argument.get_value_names()?.first()?.as_str();
        let has = |word: &str| name.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == word);
        let has_any = |words: &[&str]| words.iter().any(|word| has(word));
        Some(if has("CONFIG") || (has("MODEL") && argument.get_long().is_some()) {
            Kind::Path
        } else if has("DIR") {
            Kind::Directory
        } else if has_any(&["FILE", "IN", "OUT", "PATH", "RESULT"]) || parser.type_id() == TypeId::of::<PathBuf>() {
            Kind::File
        } else if has("PYTHON") {
            Kind::Program
        } else if has_any(&["MODEL", "NAME", "REVISION", "GLOB", "COMMAND"]) {
            Kind::Name
        } else {
            Kind::Other
        })
    }

    fn hint(self) -> ValueHint {
        match self {
            Kind::File => ValueHint::FilePath,
            Kind::Directory => ValueHint::DirPath,
            Kind::Path => ValueHint::AnyPath,
            Kind::Program => ValueHint::CommandName,
            Kind::Name | Kind::Other => ValueHint::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::super::parser;
    use super::*;

    #[test]
    fn a_value_s_name_says_what_it_is() {
        let kind = |name: &'static str| Kind::of(&Arg::new("x").long("x").value_name(name));
        for (name, expected) in [
            ("FILE", Kind::File),
            ("FILE:LINE:COLUMN", Kind::File),
            ("RESULT.json", Kind::File),
            ("DIR|ID", Kind::Directory),
            ("NAME|CONFIG|DIR|ID", Kind::Path),
            ("MODEL", Kind::Path),
            ("NAME", Kind::Name),
            ("N,..", Kind::Other),
            ("TEXT", Kind::Other),
        ] {
            assert_eq!(kind(name), Some(expected), "{name}");
        }
        let path = Arg::new("x").value_name("FIRST").value_parser(clap::value_parser!(PathBuf));
        assert_eq!(Kind::of(&path), Some(Kind::File));
        let device = Arg::new("x").long("x").value_name("DEVICE").value_parser(["auto", "cpu"]);
        assert_eq!(Kind::of(&device), None);
        assert_eq!(Kind::of(&Arg::new("x").long("x").action(clap::ArgAction::SetTrue)), None);
    }

    #[test]
    fn names_are_not_empty_and_texts_may_be() {
        let parse = |arguments: &[&str]| parser().try_get_matches_from([&["rigel"], arguments].concat());
        for arguments in [
            &["generate", "--model", "", "x"][..],
            &["generate", "--file", ""],
            &["generate", "--prompts", ""],
            &["score", "--text", ""],
            &["infill", "--at", ""],
            &["bench", "model", "--dummy-weights", ""],
            &["bench", "start", "-m", ""],
            &["bench", "kernels", "-m", ""],
            &["synth", "", "--out", "x"],
            &["remove", ""],
        ] {
            // Without its feature there is no such command.
            if cfg!(not(feature = "cuda")) && arguments[1] == "kernels" {
                continue;
            }
            let error = parse(arguments).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidValue, "{arguments:?}: {error}");
        }
        assert!(parse(&["respond", "x", "--response-prefix", ""]).is_ok());
        assert!(parse(&["generate", "x", "--stop", ""]).is_ok(), "refused later, with advice");
    }
}
