//! `rigel completions` and `rigel man`: what a shell and `man` want to know of the command line, from its own parser.

use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man as Page;

use super::error::CliError;
use super::output::Output;
use super::parser;

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  rigel completions bash > ~/.local/share/bash-completion/completions/rigel
  rigel completions zsh > ~/.zfunc/_rigel
  rigel completions fish > ~/.config/fish/completions/rigel.fish";

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut parser(), "rigel", &mut script);
        out.text(&String::from_utf8_lossy(&script))
    }
}

const MAN_EXAMPLES: &str = "\
Examples:
  rigel man | man -l -
  rigel man bench model | man -l -
  rigel man --out ~/.local/share/man/man1";

/// Print a manual page
///
/// Prints the page of rigel, or of one of its commands, in roff; with --out it writes a file for each command.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub struct Man {
    /// The command, such as generate or bench model
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write every page into this folder, as rigel.1, rigel-generate.1 …; made where it is not there
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

impl Man {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let mut root = parser();
        root.build();
        if let Some(folder) = &self.out {
            std::fs::create_dir_all(folder).map_err(|source| CliError::Write { path: folder.clone(), source })?;
            return write_pages(&root, folder);
        }
        let mut command = &root;
        for name in &self.command {
            command = command.find_subcommand(name).ok_or_else(|| {
                let found = command.get_bin_name().unwrap_or("rigel");
                CliError::Usage(format!("{found} has no command {name:?}; `{found} --help` lists them"))
            })?;
        }
        out.text(&page(command))
    }
}

/// The page of each command that help shows.
fn write_pages(command: &clap::Command, folder: &Path) -> Result<(), CliError> {
    let path = folder.join(format!("{}.1", file_name(command)));
    std::fs::write(&path, page(command)).map_err(|source| CliError::Write { path, source })?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    shown.into_iter().try_for_each(|command| write_pages(command, folder))
}

/// `rigel-bench-model`.
fn file_name(command: &clap::Command) -> String {
    command.get_bin_name().unwrap_or("rigel").replace(' ', "-")
}

fn page(command: &clap::Command) -> String {
    let mut roff = Vec::new();
    // Writing into memory does not fail.
    let _ = Page::new(command.clone()).title(file_name(command)).render(&mut roff);
    line_by_line(&String::from_utf8_lossy(&roff))
}

/// The page, whose examples and tables keep their lines: roff would fill them like prose.
fn line_by_line(page: &str) -> String {
    let mut is_table = false;
    let mut lines = Vec::new();
    for line in page.lines() {
        if line.starts_with(".SH") {
            if is_table {
                lines.push(".fi");
            }
            is_table = line == ".SH EXTRA";
            lines.push(line);
            if is_table {
                lines.push(".nf");
            }
        } else {
            lines.push(line);
        }
    }
    if is_table {
        lines.push(".fi");
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_keep_their_lines() {
        let page = line_by_line(".SH NAME\na\n.SH EXTRA\nExamples:\n  b\n.SH VERSION\nc\n");
        assert_eq!(page, ".SH NAME\na\n.SH EXTRA\n.nf\nExamples:\n  b\n.fi\n.SH VERSION\nc\n");
        assert_eq!(line_by_line(".SH EXTRA\na\n"), ".SH EXTRA\n.nf\na\n.fi\n");
    }
}
