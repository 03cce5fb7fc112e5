//! A model's files from the hub into the cache.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::checkpoint::HubId;
use crate::checkpoint::hub::{cache_directory, is_commit};
use crate::host::free_disk_bytes;

use super::blob::{Fetched, Fetcher};
use super::client::{Client, Subject};
use super::error::HubError;
use super::listing::{self, Listing, RemoteFile};
use super::retry::until_done;
use super::selection::Wanted;
use super::settings::Settings;
use super::snapshot::Repository;

/// Files that are downloaded at a time.
const THREADS: usize = 4;

/// The branch that an id without a revision means.
const MAIN: &str = "main";

/// Names that a message shows.
const NAMES: usize = 4;

/// The Hugging Face hub, and the local cache that its models go to.
pub struct Hub {
    client: Client,
    cache: PathBuf,
}

/// What a pull will fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullPlan {
    /// The model, and the revision that was asked for.
    pub id: HubId,
    /// The commit that the revision is at.
    pub commit: String,
    /// The files that are wanted, smallest first.
    pub files: Vec<RemoteFile>,
    /// The model's other files: name, and length where the hub says it.
    pub left_out: Vec<(String, Option<u64>)>,
    /// Bytes of the wanted files that are not in the cache.
    pub missing_bytes: u64,
    /// The files were chosen by patterns: there may be too few of them for a model.
    by_patterns: bool,
}

/// What happens during a pull. Events come from several threads.
#[derive(Debug)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// So many bytes of a file are there, those of an earlier download included.
    Progress {
        /// The file.
        file: &'a RemoteFile,
        /// Bytes that are there.
        bytes: u64,
    },
    /// The file is there, whole.
    Done {
        /// The file.
        file: &'a RemoteFile,
    },
    /// Another process downloads the file.
    Waiting {
        /// The file.
        file: &'a RemoteFile,
    },
    /// A request failed and is made again.
    Retrying {
        /// The model or file.
        what: &'a str,
        /// Why.
        reason: &'a HubError,
        /// After so long.
        wait: Duration,
    },
}

impl Hub {
    /// The hub and the cache that the environment names, as huggingface_hub reads it.
    ///
    /// # Errors
    /// A variable that cannot be used, or that forbids the network; no directory for the cache.
    pub fn from_env() -> Result<Hub, HubError> {
        let settings = Settings::read(|name| std::env::var_os(name), std::env::home_dir())?;
        let cache = cache_directory().ok_or(HubError::NoCache)?;
        Ok(Hub { client: Client::new(settings)?, cache })
    }

    /// Asks for the files of `id` and chooses those that match one of the patterns (`*`, `?`); without patterns those
    /// that Rigel reads. Downloads none.
    ///
    /// # Errors
    /// No such model or revision, no access, nothing to fetch, a name that is unsafe; the network.
    pub fn plan(
        &self,
        id: &HubId,
        patterns: &[String],
        events: &(dyn Fn(PullEvent<'_>) + Sync),
    ) -> Result<PullPlan, HubError> {
        let (repo, revision) = (id.repo(), id.revision().unwrap_or(MAIN));
        let subject = Subject { repo, revision, file: None };
        let waiting = |reason: &HubError, wait| events(PullEvent::Retrying { what: repo, reason, wait });
        let Listing { commit, files: all } = until_done(|| listing::ask(&self.client, subject), waiting)?;
        if all.is_empty() {
            return Err(HubError::Empty { repo: repo.to_owned(), revision: revision.to_owned() });
        }
        let names: Vec<&str> = all.iter().map(|file| file.name.as_str()).collect();
        let wanted = Wanted::new(patterns);
        let nothing = |wanted: String| HubError::NothingToPull {
            repo: repo.to_owned(),
            count: names.len(),
            wanted,
            names: some(&names),
        };
        if let Some(pattern) = wanted.idle(&names) {
            return Err(nothing(pattern.to_owned()));
        }
        let (mut files, mut left_out) = (Vec::new(), Vec::new());
        for file in &all {
            if wanted.includes(&file.name, &names) {
                let subject = Subject { file: Some(&file.name), ..subject };
                let complete = || listing::complete(&self.client, subject, &commit, file);
                files.push(until_done(complete, waiting)?);
            } else {
                left_out.push((file.name.clone(), file.bytes));
            }
        }
        if files.is_empty() {
            return Err(nothing(wanted.describe()));
        }
        files.sort_by(|a, b| (a.bytes, &a.name).cmp(&(b.bytes, &b.name)));
        let repository = Repository::new(&self.cache, id);
        let missing = files.iter().map(|file| repository.missing_bytes(&commit, file));
        // A server names the lengths.
        let missing_bytes = missing.fold(0, u64::saturating_add);
        Ok(PullPlan { id: id.clone(), commit, files, left_out, missing_bytes, by_patterns: !patterns.is_empty() })
    }

    /// Fetches what is missing, and returns the snapshot's directory. A process that ends meanwhile leaves what the
    /// next pull resumes. Where patterns chose the files, the revision's reference stays at the commit that it names.
    ///
    /// # Errors
    /// A disk that is full; content that is not what the hub says; the network, the file system.
    pub fn pull(&self, plan: &PullPlan, events: &(dyn Fn(PullEvent<'_>) + Sync)) -> Result<PathBuf, HubError> {
        let PullPlan { id, commit, files, missing_bytes, .. } = plan;
        let repository = Repository::new(&self.cache, id);
        repository.create()?;
        if let Some(free) = free_disk_bytes(&self.cache).filter(|free| free < missing_bytes) {
            return Err(HubError::DiskFull { path: self.cache.clone(), needed: *missing_bytes, free });
        }
        let (revision, stopped) = (id.revision().unwrap_or(MAIN), AtomicBool::new(false));
        let fetcher = Fetcher {
            client: &self.client,
            repository: &repository,
            repo: id.repo(),
            revision,
            commit,
            events,
            stopped: &stopped,
        };
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let fetched = fetcher.fetch(file).and_then(|fetched| match fetched {
                    Fetched::Whole => repository.link(commit, file).map(|()| true),
                    Fetched::Stopped => Ok(false),
                });
                match fetched {
                    Ok(true) => events(PullEvent::Done { file }),
                    Ok(false) => return,
                    Err(error) => {
                        stopped.store(true, Ordering::Relaxed);
                        // The first one counts: what fails after it may fail because of it.
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..THREADS.min(files.len()) {
                scope.spawn(work);
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        // A commit is found by its own name.
        let is_the_commit = is_commit(revision) && commit.starts_with(&revision.to_ascii_lowercase());
        // Some files of a new commit are no reason to lose the whole model that the reference names.
        let stays = plan.by_patterns && repository.has_reference(revision);
        if !is_the_commit && !stays {
            repository.set_reference(revision, commit)?;
        }
        Ok(repository.snapshot(commit))
    }
}

/// The first names, and how many more there are.
fn some(names: &[&str]) -> String {
    let first = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
