//! `rigel list`: the models that are on this machine.

use clap::Args;
use rigel::bench::table::Table;
use rigel::checkpoint::hub::{cache_directory, cached_models};
use rigel::checkpoint::{Checkpoint, CheckpointError, HubId, ModelSource};
use rigel::host::Size;
use rigel::model::Description;
use serde::Serialize;

use super::error::CliError;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel list
  rigel list --json | jq -r '.models[] | select(.runs) | .id'";

/// Digits of a commit that a table shows.
const COMMIT_DIGITS: usize = 8;

/// List the models in the Hugging Face cache
///
/// Prints each model's revisions, their size on disk, and whether Rigel runs them, judged by config.json and the
/// headers of the weights.
#[cfg_attr(feature = "hub", doc = "`rigel pull` fetches models, `rigel remove` removes them.")]
#[cfg_attr(not(feature = "hub"), doc = "`rigel remove` removes models.")]
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct List {
    /// Print a JSON object: the cache, and for each revision of a model id, commit, refs, bytes, path, model_type,
    /// complete, runs, and why not
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// A revision of a model.
#[derive(Debug, Serialize)]
struct Record {
    id: String,
    /// None: the bundled model, or one of which nothing is whole.
    commit: Option<String>,
    refs: Vec<String>,
    bytes: u64,
    path: Option<String>,
    /// What fetches its files; None where the hub has no such name.
    #[serde(skip)]
    hub_id: Option<HubId>,
    #[serde(flatten)]
    verdict: Verdict,
}

/// Whether Rigel runs it.
#[derive(Debug, Serialize)]
struct Verdict {
    model_type: Option<String>,
    /// Whether all files are there; None where that is not known, as for a network whose weights are not looked at.
    complete: Option<bool>,
    runs: bool,
    /// Why not.
    error: Option<String>,
    /// `model_type` is why not.
    #[serde(skip)]
    is_other_network: bool,
}

#[derive(Debug, Serialize)]
struct Listing {
    cache: Option<String>,
    models: Vec<Record>,
}

impl List {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let listing = Listing { cache: cache_directory().map(|path| path.display().to_string()), models: records()? };
        if self.json {
            return out.json(&listing);
        }
        let mut table = Table::new(&["model", "revision", ">size", "runs"]);
        for Record { id, commit, refs, bytes, hub_id, verdict, .. } in &listing.models {
            let commit = commit.as_deref().map(|commit| commit.get(..COMMIT_DIGITS).unwrap_or(commit));
            let revision = match (commit, refs.is_empty()) {
                (None, _) => "-".to_owned(),
                (Some(commit), true) => commit.to_owned(),
                (Some(commit), false) => format!("{commit} ({})", refs.join(", ")),
            };
            table.row([id.clone(), revision, Size(*bytes).to_string(), verdict.word(hub_id.as_ref())]);
        }
        out.text(&table.to_string())?;
        match &listing.cache {
            Some(cache) => out.line(&format!("\ncache: {cache}")),
            None => Ok(()),
        }
    }
}

impl Verdict {
    fn of(source: &ModelSource) -> Verdict {
        let json = source.config_json().ok();
        let config = json.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
        let model_type = config.and_then(|config| Some(config.get("model_type")?.as_str()?.to_owned()));
        let described = Checkpoint::open(source).and_then(|checkpoint| Description::of(&checkpoint));
        let error = described.err();
        let complete = match error {
            None => Some(true),
            Some(CheckpointError::MissingFile { .. }) => Some(false),
            // The first fault hides what else there may be.
            Some(_) => None,
        };
        let is_other_network = matches!(error, Some(CheckpointError::Unsupported { field: "model_type", .. }));
        let runs = error.is_none();
        let error = error.and_then(|error| CliError::from(error).line());
        Verdict { model_type, complete, runs, error, is_other_network }
    }

    /// What the table says.
    fn word(&self, hub_id: Option<&HubId>) -> String {
        match (&self.error, &self.model_type) {
            (None, _) => "yes".to_owned(),
            (Some(_), _) if self.complete == Some(false) => match hub_id {
                Some(id) if cfg!(feature = "hub") => format!("no: incomplete; `rigel pull {id}` fetches the rest"),
                _ => "no: incomplete".to_owned(),
            },
            (Some(_), Some(model_type)) if self.is_other_network => format!("no: {model_type} is not supported"),
            (Some(error), _) => format!("no: {error}"),
        }
    }
}

fn records() -> Result<Vec<Record>, CliError> {
    let mut records: Vec<Record> = nano().into_iter().collect();
    for model in cached_models()? {
        for snapshot in &model.snapshots {
            records.push(Record {
                id: model.id.clone(),
                commit: Some(snapshot.commit.clone()),
                refs: snapshot.refs.clone(),
                bytes: snapshot.bytes,
                path: Some(snapshot.path.display().to_string()),
                hub_id: model.hub_id(snapshot),
                verdict: Verdict::of(&model.source(snapshot)),
            });
        }
        if model.snapshots.is_empty() {
            let error = Some("no file is whole".to_owned());
            records.push(Record {
                hub_id: HubId::parse(&model.id),
                id: model.id,
                commit: None,
                refs: Vec::new(),
                bytes: model.bytes,
                path: Some(model.path.display().to_string()),
                verdict: Verdict {
                    model_type: None,
                    complete: Some(false),
                    runs: false,
                    error,
                    is_other_network: false,
                },
            });
        }
    }
    Ok(records)
}

/// The bundled model; `None` in a program without it.
fn nano() -> Option<Record> {
    let nano = ModelSource::nano();
    let opened = Checkpoint::open(&nano).ok()?;
    Some(Record {
        id: "nano".to_owned(),
        commit: None,
        refs: Vec::new(),
        bytes: opened.files().iter().map(|file| file.bytes).sum(),
        path: None,
        hub_id: None,
        verdict: Verdict::of(&nano),
    })
}
