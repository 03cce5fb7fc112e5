//! What can go wrong between here and the hub, said in one line each: what, where, what to do.

use std::io;
use std::path::PathBuf;

use super::retry::is_temporary;
use crate::host::Size;

/// Why a model could not be downloaded. Every message is a single line; none holds the token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The environment forbids the network.
    #[error("{variable} is set, so nothing is downloaded; unset it, or copy the model to this machine")]
    Offline {
        /// The variable.
        variable: &'static str,
    },
    /// An environment variable, or the file with the token, holds what cannot be used. The value is not shown.
    #[error("{name} {found}; expected {expected}")]
    Setting {
        /// The variable, or the file.
        name: String,
        /// What is wrong with it.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The hub has no such model, or does not show it to whoever asks.
    #[error("{repo}: {host} has no such model (check the name), or it is private: {token}")]
    NotFound {
        /// `ORG/NAME`.
        repo: String,
        /// The hub's host.
        host: String,
        /// What to do about the token.
        token: &'static str,
    },
    /// The model has no such revision.
    #[error("{repo}: {host} has no revision {revision} of it; expected a branch, a tag, a commit or refs/pr/N")]
    NoRevision {
        /// `ORG/NAME`.
        repo: String,
        /// The hub's host.
        host: String,
        /// What was requested.
        revision: String,
    },
    /// The model's licence has to be accepted first.
    #[error("{repo} is gated: accept its licence on {page}, then set HF_TOKEN to a token of that account")]
    Gated {
        /// `ORG/NAME`.
        repo: String,
        /// The model's page.
        page: String,
    },
    /// The hub does not accept the token, or asks for one.
    #[error("{repo}: {host} refuses access (HTTP {status}); {token}")]
    Refused {
        /// `ORG/NAME`.
        repo: String,
        /// The host that refuses.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What to do about the token.
        token: &'static str,
    },
    /// Any other answer that is no success.
    #[error("{what}: {host} answers HTTP {status}{reason}{}", advice(*.status))]
    Status {
        /// `ORG/NAME`, or a file of it.
        what: String,
        /// The host that answers.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The server's reason, behind a colon; may be empty.
        reason: String,
    },
    /// No connection, or a connection that broke too often.
    #[error("{what}: {host}: {reason}; check the network, and run it again: what is there already is kept")]
    Network {
        /// `ORG/NAME`, or a file of it.
        what: String,
        /// The host.
        host: String,
        /// What happened.
        reason: String,
    },
    /// An answer that is not one of a hub.
    #[error("{what}: {host} answers {found}, expected {expected}; check HF_ENDPOINT")]
    Answer {
        /// `ORG/NAME`, or a file of it.
        what: String,
        /// The host.
        host: String,
        /// What came.
        found: String,
        /// What should have come.
        expected: &'static str,
    },
    /// A file's name that would lead out of the model's directory.
    #[error(
        "{repo} has a file called {name}, which is no safe name; nothing was downloaded: report the model to the hub"
    )]
    UnsafeName {
        /// `ORG/NAME`.
        repo: String,
        /// The name, quoted and shortened.
        name: String,
    },
    /// A model without files.
    #[error("{repo} has no files at revision {revision}; check the name, or give another revision")]
    Empty {
        /// `ORG/NAME`.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// A model none of whose files are wanted.
    #[error("{repo}: none of its {count} files is {wanted}; it has {names}")]
    NothingToPull {
        /// `ORG/NAME`.
        repo: String,
        /// How many files it has.
        count: usize,
        /// What would have been fetched.
        wanted: String,
        /// Some of the files.
        names: String,
    },
    /// Content that is not what the hub says it is.
    #[error(
        "{file}: the content from the hub has the {algorithm} {found}, expected {expected}: it was removed; run it again"
    )]
    Hash {
        /// The file.
        file: String,
        /// The hash function.
        algorithm: &'static str,
        /// The content's hash.
        found: String,
        /// The hash that the hub names.
        expected: String,
    },
    /// A server that sends another number of bytes than the hub says.
    #[error("{file}: {host} sends {found} bytes, expected {expected}: run it again, or check HF_ENDPOINT")]
    Length {
        /// The file.
        file: String,
        /// The host.
        host: String,
        /// Bytes that came or were announced.
        found: u64,
        /// Bytes that the hub says the file has.
        expected: u64,
    },
    /// Too little room for what is missing.
    #[error("{}: {} are needed, {} are free; free some, or set HF_HOME to a directory on a larger disk", .path.display(), Size(*.needed), Size(*.free))]
    DiskFull {
        /// The cache.
        path: PathBuf,
        /// Bytes that are still to come.
        needed: u64,
        /// Bytes that the disk has left.
        free: u64,
    },
    /// The cache's directory is not known.
    #[error("no home directory; set HF_HOME to the directory that the models are to be kept in")]
    NoCache,
    /// The operating system would not let a file of the cache be written or read.
    #[error("{}: {source}; what was downloaded is kept", .path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// What to do about a status; nothing where the next answer will be the same.
fn advice(status: u16) -> &'static str {
    if is_temporary(status) { "; try again later" } else { "" }
}

impl HubError {
    /// Whether the request is at fault, so that the same one fails again.
    pub fn is_bad_input(&self) -> bool {
        use HubError::*;
        match self {
            Offline { .. } | Setting { .. } | NotFound { .. } | NoRevision { .. } | Gated { .. } | Refused { .. } => {
                true
            }
            Empty { .. } | NothingToPull { .. } | NoCache | UnsafeName { .. } => true,
            Status { .. } | Network { .. } | Answer { .. } | Hash { .. } | Length { .. } => false,
            DiskFull { .. } | Io { .. } => false,
        }
    }
}
