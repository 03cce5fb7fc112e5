//! `rigel infill`: the code between a prefix and a suffix.

use clap::Args;
use rigel::engine::Engine;
use rigel::text::{ContextFile, Infill as InfillFormat, RepoContext};

use super::completion::{self, FormatArgs, JSON_HELP};
use super::error::CliError;
use super::input::{STDIN, read_text};
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::GenerationArgs;

const EXAMPLES: &str = "\
Examples:
  rigel infill --file src/sort.py --line 12 --column 5
  rigel infill --prefix-file before.py --suffix-file after.py
  rigel infill --file a.py --line 3 --column 1 --repo me/a --context-file b.py
  git show HEAD:app.py | rigel infill --file - --line 3 --column 1 --path app.py";

/// Fill in code between a prefix and a suffix
///
/// Prints the middle alone. The gap is given by two files, or by a place in one file. The generation ends where
/// the model ends the file, beside the stops given. Special tokens in the files are taken as plain text.
#[derive(Debug, Args)]
#[command(override_usage = "\
rigel infill [OPTIONS] --file <FILE> --line <L> --column <C>
       rigel infill [OPTIONS] --prefix-file <FILE> --suffix-file <FILE>")]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{JSON_HELP}"))]
pub struct Infill {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    gap: GapArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Where the gap is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Gap")]
struct GapArgs {
    /// Code before the gap; - is stdin
    #[arg(long, value_name = "FILE", requires = "suffix_file", conflicts_with = "file")]
    prefix_file: Option<String>,
    /// Code after the gap; - is stdin
    #[arg(long, value_name = "FILE", requires = "prefix_file", conflicts_with = "file")]
    suffix_file: Option<String>,
    /// File with the gap; - is stdin
    #[arg(long, value_name = "FILE", requires = "line", requires = "column")]
    file: Option<String>,
    /// Line of the gap, counted from 1
    #[arg(long, value_name = "L", requires = "file", allow_negative_numbers = true)]
    line: Option<usize>,
    /// Column of the gap in characters, counted from 1: the gap is before that character, and one past the last is
    /// the line's end
    #[arg(long, value_name = "C", requires = "file", allow_negative_numbers = true)]
    column: Option<usize>,
}

/// What the model sees of the repository.
#[derive(Debug, Args)]
#[command(next_help_heading = "Repository context")]
struct ContextArgs {
    /// Name of the repository; with it, files are shown under their paths, as in training
    #[arg(long, value_name = "NAME")]
    repo: Option<String>,
    /// Another file of the repository for the model to see; repeatable, in this order
    #[arg(long, value_name = "FILE")]
    context_file: Vec<String>,
    /// Path shown for the file with the gap [default: with --repo, that of --file]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
}

impl Infill {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let options = self.generation.options(&source)?;
        let context = self.context.read(self.gap.file.as_deref())?;
        let (prefix, suffix) = self.gap.read()?;
        let engine = self.model.engine(source, LoadBar::unless(self.format.quiet), Load::One)?;
        let tokenizer = engine.tokenizer()?;
        let format = InfillFormat::from_tokenizer(tokenizer)?;
        let prompt = format.prompt(tokenizer, &prefix, &suffix, &context)?;
        let mut request = options.request(&engine, prompt)?;
        let ends = format.stop_token_ids();
        request.stop_token_ids.extend(ends.into_iter().filter(|id| !(options.ignore_eos && is_eos(&engine, *id))));
        completion::run(&engine, request, "", &self.format, out)
    }
}

fn is_eos(engine: &Engine, id: rigel::text::TokenId) -> bool {
    engine.eos_token_ids().contains(&id)
}

impl GapArgs {
    /// The code before and after the gap.
    fn read(&self) -> Result<(String, String), CliError> {
        if let (Some(file), Some(line), Some(column)) = (&self.file, self.line, self.column) {
            let text = read_text(file)?;
            let at =
                offset(&text, line, column).map_err(|error| error.at(if file == STDIN { "stdin" } else { file }))?;
            let (prefix, suffix) = text.split_at(at);
            return Ok((prefix.to_owned(), suffix.to_owned()));
        }
        let (Some(prefix), Some(suffix)) = (&self.prefix_file, &self.suffix_file) else {
            return Err(CliError::Usage(
                "no gap; give --prefix-file and --suffix-file, or --file, --line and --column".into(),
            ));
        };
        if prefix == STDIN && suffix == STDIN {
            return Err(CliError::Usage("--prefix-file and --suffix-file are both -; stdin is read once".into()));
        }
        Ok((read_text(prefix)?, read_text(suffix)?))
    }
}

impl ContextArgs {
    fn read(&self, file: Option<&str>) -> Result<RepoContext, CliError> {
        // In training a repository either had its name and all paths, or none of them.
        let path_of = |path: &str| self.repo.is_some().then(|| path.to_owned());
        let mut files = Vec::with_capacity(self.context_file.len());
        for path in &self.context_file {
            if path == STDIN {
                return Err(CliError::Usage("--context-file is -; give a file, whose path the model sees".into()));
            }
            files.push(ContextFile { path: path_of(path), text: read_text(path)? });
        }
        let path = self.path.clone().or_else(|| file.filter(|file| *file != STDIN).and_then(path_of));
        Ok(RepoContext { repo_name: self.repo.clone(), files, path })
    }
}

/// The byte offset of a line and a column, both counted from 1, the column in characters. A line ends before its
/// `\n` or `\r\n`.
fn offset(text: &str, line: usize, column: usize) -> Result<usize, CliError> {
    let lines = text.split('\n').count();
    let content = line.checked_sub(1).and_then(|index| text.split('\n').nth(index));
    let Some(content) = content else {
        return Err(CliError::Usage(format!("--line is {line}; expected 1 to {lines}, the lines of the file")));
    };
    // Both are parts of `text`.
    let start = content.as_ptr() as usize - text.as_ptr() as usize;
    let content = content.strip_suffix('\r').unwrap_or(content);
    let end = content.chars().count() + 1;
    let starts = content.char_indices().map(|(index, _)| index).chain([content.len()]);
    match column.checked_sub(1).and_then(|index| starts.into_iter().nth(index)) {
        Some(index) => Ok(start + index),
        None => Err(CliError::Usage(format!("--column is {column}; expected 1 to {end}, the end of line {line}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "añb\n\r\nxy";
        let split = |line, column| {
            let at = offset(text, line, column).unwrap();
            (&text[..at], &text[at..])
        };
        assert_eq!(split(1, 1), ("", text));
        assert_eq!(split(1, 3), ("añ", "b\n\r\nxy"));
        assert_eq!(split(1, 4), ("añb", "\n\r\nxy"));
        assert_eq!(split(2, 1), ("añb\n", "\r\nxy"));
        assert_eq!(split(3, 3), (text, ""));
    }

    #[test]
    fn a_last_line_break_opens_a_line() {
        assert_eq!(offset("a\n", 2, 1).unwrap(), 2);
        assert_eq!(offset("", 1, 1).unwrap(), 0);
    }

    #[test]
    fn places_outside_the_file_are_named() {
        let error = |text, line, column| offset(text, line, column).unwrap_err().to_string();
        assert_eq!(error("a\nb", 3, 1), "--line is 3; expected 1 to 2, the lines of the file");
        assert_eq!(error("a\nb", 0, 1), "--line is 0; expected 1 to 2, the lines of the file");
        assert_eq!(error("añ\r\nb", 1, 4), "--column is 4; expected 1 to 3, the end of line 1");
        assert_eq!(error("a", 1, 0), "--column is 0; expected 1 to 2, the end of line 1");
    }

    #[test]
    fn paths_are_shown_with_the_repository_s_name() {
        let read = |repo: Option<&str>, path: Option<&str>, file| {
            let args =
                ContextArgs { repo: repo.map(str::to_owned), context_file: Vec::new(), path: path.map(str::to_owned) };
            args.read(file).unwrap().path
        };
        assert_eq!(read(None, None, Some("a.py")), None);
        assert_eq!(read(Some("r"), None, Some("a.py")).as_deref(), Some("a.py"));
        assert_eq!(read(Some("r"), Some("b.py"), Some("a.py")).as_deref(), Some("b.py"));
        assert_eq!(read(None, Some("b.py"), None).as_deref(), Some("b.py"));
        assert_eq!(read(Some("r"), None, Some(STDIN)), None);
    }
}
