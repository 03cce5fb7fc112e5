//! `rigel infill`: the code between a prefix and a suffix.

mod gap;

use clap::Args;
use rigel::engine::Engine;
use rigel::host::counted;
use rigel::text::{ContextFile, FittedPrompt, Infill as InfillFormat, RepoContext, TokenId};

use super::completion::{self, FormatArgs, JSON_HELP};
use super::error::CliError;
use super::input::{STDIN, read_text};
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::{DEFAULT_MAX_NEW_TOKENS, GenerationArgs};
use gap::{Gap, GapArgs};

const EXAMPLES: &str = "\
Examples:
  rigel infill --at src/sort.py:12:5
  rigel infill --prefix-file before.py --suffix-file after.py
  rigel infill --at a.py:3:1 --repo me/a --context-file b.py
  git show HEAD:app.py | rigel infill --file - --line 3 --column 1 --path app.py";

/// Fill in code between a prefix and a suffix
///
/// Prints the middle alone. The gap is given by two files, or by a place in one file. The generation ends where
/// the model ends the file, beside the stops given. Special tokens in the files are taken as plain text.
///
/// Of a file that is longer than the model's positions, what is nearest to the gap is kept: three quarters of the
/// room before it, a quarter after it, in whole lines, with --max-new-tokens left free. Context files are left out
/// first, the last one before the others. A warning says what was left out.
#[derive(Debug, Args)]
#[command(override_usage = "\
rigel infill [OPTIONS] --at <FILE:LINE:COLUMN>
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
        let gap = Gap::new(self.gap)?;
        let context = self.context.read(gap.file())?;
        let (prefix, suffix) = gap.read()?;
        let engine = self.model.engine(source, LoadBar::unless(self.format.quiet), Load::One)?;
        let tokenizer = engine.tokenizer()?;
        let format = InfillFormat::from_tokenizer(tokenizer)?;
        let room = room(options.max_new_tokens, engine.spec().max_positions)?;
        let fitted = format.fit(tokenizer, &prefix, &suffix, &context, room)?;
        if let Some(cut) = left_out(&fitted, &prefix, &suffix) {
            tracing::warn!(
                "the prompt has {} tokens and there is room for {room}: {cut} left out",
                fitted.whole_tokens
            );
        }
        let mut request = options.request(&engine, fitted.ids)?;
        let ends = format.stop_token_ids();
        request.stop_token_ids.extend(ends.into_iter().filter(|id| !(options.ignore_eos && is_eos(&engine, *id))));
        completion::run(&engine, request, "", &self.format, out)
    }
}

fn is_eos(engine: &Engine, id: TokenId) -> bool {
    engine.eos_token_ids().contains(&id)
}

/// Tokens that the prompt may have, the tokens to generate left free. Where their number was not said, it is the usual
/// one, or a quarter of few positions.
fn room(max_new_tokens: Option<u32>, positions: usize) -> Result<usize, CliError> {
    let new = match max_new_tokens {
        None => (DEFAULT_MAX_NEW_TOKENS as usize).min(positions / 4),
        Some(asked) => asked as usize,
    };
    positions.checked_sub(new).filter(|room| *room > 0).ok_or_else(|| {
        CliError::Usage(format!(
            "--max-new-tokens is {new}; expected less than the {positions} positions that there is room for, prompt and \
             completion together"
        ))
    })
}

/// What of the code is not in the prompt, in words with their verb; none where all of it is.
fn left_out(fitted: &FittedPrompt, prefix: &str, suffix: &str) -> Option<String> {
    // Lines where there are some, else a piece of one.
    let amount = |cut: &str| match cut.matches('\n').count() {
        0 => counted(cut.chars().count(), "character"),
        lines => counted(lines, "line"),
    };
    let before = &prefix[..fitted.prefix_cut];
    // A cut after a line break leaves out whole lines, the last of which may have no break.
    let after = suffix[suffix.len() - fitted.suffix_cut..].to_owned();
    let after = if after.ends_with('\n') || !after.contains('\n') { after } else { after + "\n" };
    let parts: Vec<String> = [
        (fitted.files_cut > 0).then(|| format!("the last {}", counted(fitted.files_cut, "context file"))),
        (!before.is_empty()).then(|| format!("the first {}", amount(before))),
        (!after.is_empty()).then(|| format!("the last {}", amount(&after))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (last, others) = parts.split_last()?;
    let verb = if others.is_empty() && last.contains(" 1 ") { "was" } else { "were" };
    Some(match others {
        [] => format!("{last} {verb}"),
        others => format!("{} and {last} {verb}", others.join(", ")),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_has_room() {
        assert_eq!(room(None, 2048).unwrap(), 1792);
        assert_eq!(room(None, 100).unwrap(), 75);
        assert_eq!(room(Some(48), 2048).unwrap(), 2000);
        assert_eq!(room(Some(0), 2048).unwrap(), 2048);
        for asked in [2048, 5000] {
            let message = room(Some(asked), 2048).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("--max-new-tokens is {asked}; expected less than the 2048")),
                "{message}"
            );
        }
    }

    #[test]
    fn what_was_left_out_is_counted() {
        let said = |prefix_cut, suffix_cut, files_cut| {
            let fitted = FittedPrompt { ids: Vec::new(), whole_tokens: 9, prefix_cut, suffix_cut, files_cut };
            left_out(&fitted, "a\nb\ncd", "ef\ng\nh")
        };
        assert_eq!(said(0, 0, 0), None);
        assert_eq!(said(4, 0, 0).unwrap(), "the first 2 lines were");
        assert_eq!(said(2, 0, 0).unwrap(), "the first 1 line was");
        assert_eq!(said(1, 0, 0).unwrap(), "the first 1 character was");
        assert_eq!(said(0, 3, 0).unwrap(), "the last 2 lines were");
        assert_eq!(said(0, 1, 0).unwrap(), "the last 1 character was");
        assert_eq!(said(4, 3, 1).unwrap(), "the last 1 context file, the first 2 lines and the last 2 lines were");
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
