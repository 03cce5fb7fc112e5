//! `rigel pull`: a model from the Hugging Face hub into its local cache.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rigel::checkpoint::HubId;
use rigel::host::{Size, counted};
use rigel::hub::{Hub, HubError, PullPlan};

use super::bars::Show;
use super::error::CliError;
use super::output::Output;
use super::pull_progress::PullProgress;
use super::signals;

const EXAMPLES: &str = "\
Examples:
  rigel pull bigcode/starcoder2-3b
  rigel pull bigcode/starcoder2-15b@main
  rigel pull ORG/NAME --include '*.json' --include 'README.md'

Environment, as Hugging Face's own tools read it:
  HF_HOME, HF_HUB_CACHE       where the cache is
  HF_TOKEN                    token for gated and private models
  HF_ENDPOINT                 another hub, such as a mirror
  HF_HUB_OFFLINE              1: download nothing
  HTTPS_PROXY, SSL_CERT_FILE  proxy, certificates to trust";

/// Where stderr is no terminal: how often a line says how far it is.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Names of files that were left out, in a note.
const NAMES: usize = 4;

/// Download a model from the Hugging Face hub
///
/// Downloads into the Hugging Face cache, where `--model ORG/NAME` and Hugging Face's own tools find the model. Fetches
/// what Rigel reads: config.json, tokenizer files, chat templates, safetensors. The same command resumes an interrupted
/// download; every file is checked against the hub's hash. Prints the directory.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Pull {
    /// ORG/NAME, or ORG/NAME@REVISION: a branch, a tag, a commit or refs/pr/N
    #[arg(value_name = "MODEL")]
    model: String,
    /// The revision [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Fetch the files that match, and no others: `*` stands for any characters, `?` for one. Repeatable
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Print errors only
    #[arg(long, short)]
    quiet: bool,
}

impl Pull {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let id = self.id()?;
        let hub = Hub::from_env()?;
        let show = if self.quiet { Show::Nothing } else { Show::Bars { else_every: LINE_EVERY } };
        let progress = Arc::new(PullProgress::new(show));
        let at_exit = progress.clone();
        // What was written is what the next pull resumes, at any moment.
        signals::on_signal(move |signal, _| {
            at_exit.clear();
            at_exit.note("stopped; the same command goes on from here");
            signal.exit();
        })?;
        let plan = hub.plan(&id, &self.include, &|event| progress.event(event)).map_err(|error| self.failed(error))?;
        progress.begin(id.repo(), plan.missing_bytes);
        let pulled = hub.pull(&plan, &|event| progress.event(event));
        progress.clear();
        let snapshot = pulled?;
        progress.note(&summary(&plan));
        if let (Some(line), true) = (left_out(&plan), self.include.is_empty()) {
            progress.note(&line);
        }
        out.line(&snapshot.display().to_string())
    }

    fn id(&self) -> Result<HubId, CliError> {
        let id: HubId = self.model.parse()?;
        match (&self.revision, id.revision()) {
            (None, _) => Ok(id),
            (Some(_), Some(_)) => Err(CliError::Usage(format!("{id} --revision: two revisions; give one"))),
            (Some(revision), None) => id.at(revision).ok_or_else(|| {
                CliError::Usage(format!("--revision {revision:?}: expected a branch, a tag, a commit or refs/pr/N"))
            }),
        }
    }

    fn failed(&self, error: HubError) -> CliError {
        match error {
            HubError::NothingToPull { .. } if self.include.is_empty() => {
                CliError::Usage(format!("{error}; --include GLOB fetches others"))
            }
            HubError::NothingToPull { .. } => CliError::Usage(format!("--include: {error}")),
            error => error.into(),
        }
    }
}

/// `bigcode/starcoder2-3b@main, commit 733247c: 7 files, 5.64 GiB, 4.20 GiB of them new`
fn summary(plan: &PullPlan) -> String {
    let PullPlan { id, commit, files, missing_bytes, .. } = plan;
    let all = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
    let (count, short) = (counted(files.len(), "file"), commit.get(..7).unwrap_or(commit));
    let new = match *missing_bytes {
        0 => "all of them there before".to_owned(),
        bytes if bytes == all => format!("{} downloaded", Size(all)),
        bytes => format!("{} of {} downloaded now", Size(bytes), Size(all)),
    };
    format!("{id}, commit {short}: {count}, {new}")
}

/// What was not fetched; `None` where that is nothing.
fn left_out(plan: &PullPlan) -> Option<String> {
    let others = &plan.left_out;
    if others.is_empty() {
        return None;
    }
    let mut others: Vec<_> = others.iter().collect();
    others.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), name));
    let bytes = others.iter().filter_map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
    let names: Vec<&str> = others.iter().take(NAMES).map(|(name, _)| name.as_str()).collect();
    let more = if others.len() > NAMES { ", …" } else { "" };
    let (count, size, names) = (counted(others.len(), "file"), Size(bytes), names.join(", "));
    Some(format!("left out {count}, {size}, that Rigel does not read: {names}{more}; --include GLOB fetches them"))
}
