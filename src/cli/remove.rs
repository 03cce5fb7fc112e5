//! `rigel remove`: takes a model out of the Hugging Face cache.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use clap::Args;
use rigel::checkpoint::hub::{CachedModel, Removal, cache_directory, cached_models};
use rigel::host::{Size, counted};

use super::error::CliError;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel remove bigcode/starcoder2-3b
  rigel remove bigcode/starcoder2-3b@v1.0 --yes";

/// Remove a model from the Hugging Face cache
///
/// With a revision, removes that one alone and keeps the files that another revision uses. Asks first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Remove {
    /// ORG/NAME, or ORG/NAME@REVISION: a branch, a tag, or a commit or its first digits, as `rigel list` shows them
    #[arg(value_name = "MODEL")]
    model: String,
    /// Remove without asking
    #[arg(long, short)]
    yes: bool,
}

impl Remove {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let (id, revision) = match self.model.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (self.model.as_str(), None),
        };
        let model = find(id)?;
        let removal = match revision {
            None => model.removal(),
            Some(revision) => model.removal_of(revision)?.ok_or_else(|| no_revision(&model, revision))?,
        };
        let what = match revision {
            None => describe_model(&self.model, &removal),
            Some(_) => describe_revision(&self.model, &removal),
        };
        if !self.yes && !ask(&what)? {
            return Err(CliError::Failed("nothing was removed".to_owned()));
        }
        removal.run()?;
        out.line(&format!("removed {what}"))
    }
}

fn find(id: &str) -> Result<CachedModel, CliError> {
    if id == "nano" {
        return Err(CliError::Usage("nano is part of this program; it cannot be removed".to_owned()));
    }
    let found = cached_models()?.into_iter().find(|model| model.id == id);
    found.ok_or_else(|| {
        let cache = cache_directory().map(|path| format!(" {}", path.display())).unwrap_or_default();
        CliError::Usage(format!("{id} is not in the Hugging Face cache{cache}; `rigel list` shows what is"))
    })
}

fn no_revision(model: &CachedModel, revision: &str) -> CliError {
    let names = model.snapshots.iter().flat_map(|snapshot| snapshot.refs.iter().chain([&snapshot.commit]));
    let names = names.map(String::as_str).collect::<Vec<_>>().join(", ");
    let has = if names.is_empty() { "none".to_owned() } else { names };
    CliError::Usage(format!("the cache has no revision {revision:?} of {}; it has {has}", model.id))
}

/// `bigcode/starcoder2-3b, 2 revisions, 11.3 GiB`, of a whole model. Without a revision there are files of a download
/// that did not end, or nothing.
fn describe_model(name: &str, removal: &Removal) -> String {
    match (removal.commits.len(), removal.bytes) {
        (0, 0) => format!("{name}, an empty folder: no revision and no file"),
        (0, bytes) => format!("{name}, {} of a download that did not end", Size(bytes)),
        (count, bytes) => format!("{name}, {}, {}", counted(count, "revision"), Size(bytes)),
    }
}

/// The same of one revision.
fn describe_revision(name: &str, removal: &Removal) -> String {
    match removal.commits.len() {
        0 => format!("the name {name}; another name has the same files, which stay"),
        count => format!("{name}, {}, {}", counted(count, "revision"), Size(removal.bytes)),
    }
}

/// Whether the user agrees.
fn ask(what: &str) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(CliError::Usage(
            "there is no terminal to ask on; give --yes to remove without being asked".to_owned(),
        ));
    }
    let failed = |source| CliError::Read { origin: "stdin".to_owned(), source };
    write!(io::stderr(), "remove {what}? [y/N] ").and_then(|()| io::stderr().flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
