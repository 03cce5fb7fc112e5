//! One file's content into the blobs of the cache: locked, resumed, checked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ureq::http::HeaderMap;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};

use super::client::{Client, Subject};
use super::error::HubError;
use super::listing::{RemoteFile, content_url};
use super::partial::{Appended, PartialFile};
use super::pull::PullEvent;
use super::retry::{Again, Failure, Retries};
use super::snapshot::{Repository, at};
use crate::host::Size;

/// Between looks at a lock that another process holds, or at whether to go on waiting.
const POLL: Duration = Duration::from_millis(100);

/// What all downloads of a pull share.
pub(super) struct Fetcher<'a> {
    pub client: &'a Client,
    pub repository: &'a Repository,
    pub repo: &'a str,
    pub revision: &'a str,
    pub commit: &'a str,
    pub events: &'a (dyn Fn(PullEvent<'_>) + Sync),
    /// Another file has failed: nothing needs this one any more.
    pub stopped: &'a AtomicBool,
}

/// How the download of a file ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The blob is there.
    Whole,
    /// Another file's download failed.
    Stopped,
}

impl Fetcher<'_> {
    /// Downloads the content of `file` unless it is there.
    pub fn fetch(&self, file: &RemoteFile) -> Result<Fetched, HubError> {
        let is_there = || self.repository.is_there(self.commit, file);
        if is_there() {
            return Ok(Fetched::Whole);
        }
        let Some(_lock) = self.lock(file)? else { return Ok(Fetched::Stopped) };
        // Whoever had the lock may have fetched it.
        if is_there() {
            return Ok(Fetched::Whole);
        }
        let path = self.repository.partial(&file.hash);
        let mut partial = PartialFile::open(&path, file).map_err(at(&path))?;
        loop {
            if self.receive(&mut partial, file)? == Fetched::Stopped {
                return Ok(Fetched::Stopped);
            }
            let found = partial.hex();
            if found == file.hash.hex() {
                let blob = self.repository.blob(&file.hash);
                partial.rename(&blob).map_err(at(&blob))?;
                return Ok(Fetched::Whole);
            }
            let error = HubError::Hash {
                file: self.subject(file).what(),
                algorithm: file.hash.algorithm(),
                found,
                expected: file.hash.hex().to_owned(),
            };
            if !partial.is_resumed() {
                partial.remove().map_err(at(&path))?;
                return Err(error);
            }
            // What an earlier download left may be at fault: two that wrote it at once where locks do not work.
            (self.events)(PullEvent::Retrying { what: &file.name, reason: &error, wait: Duration::ZERO });
            partial.clear(file).map_err(at(&path))?;
        }
    }

    /// Makes requests until all bytes are there.
    fn receive(&self, partial: &mut PartialFile, file: &RemoteFile) -> Result<Fetched, HubError> {
        let mut retries = Retries::default();
        loop {
            let before = partial.bytes();
            let failure = match self.append(partial, file) {
                Ok(Appended::Stopped) => return Ok(Fetched::Stopped),
                Ok(_) => return Ok(Fetched::Whole),
                Err(failure) => failure,
            };
            if partial.bytes() > before {
                retries.reset();
            }
            let (wait, error) = retries.wait(failure)?;
            (self.events)(PullEvent::Retrying { what: &file.name, reason: &error, wait });
            if !self.sleep(wait) {
                return Ok(Fetched::Stopped);
            }
        }
    }

    /// One request for what is missing. A cut is a failure here.
    fn append(&self, partial: &mut PartialFile, file: &RemoteFile) -> Result<Appended, Failure> {
        let path = self.repository.partial(&file.hash);
        let progress = |bytes| {
            (self.events)(PullEvent::Progress { file, bytes });
            !self.stopped.load(Ordering::Relaxed)
        };
        let from = partial.bytes();
        progress(from);
        if from == file.bytes {
            return Ok(Appended::Whole);
        }
        let subject = self.subject(file);
        let url = content_url(self.client, self.repo, self.commit, &file.name);
        let reply = match self.client.get(subject, &url, from) {
            Err(Failure { error: error @ HubError::Status { status: 416, .. }, .. }) if from > 0 => {
                partial.clear(file).map_err(at(&path))?;
                return Err(Failure { error, again: Again::Later });
            }
            reply => reply?,
        };
        // A server that knows no ranges sends the whole file.
        if from > 0 && (reply.status != 206 || range_start(&reply.headers) != Some(from)) {
            partial.clear(file).map_err(at(&path))?;
            if reply.status == 206 {
                let (what, host) = (subject.what(), reply.host);
                let (found, expected) = ("another range than asked for".to_owned(), "the rest of the file");
                return Err(Failure { error: HubError::Answer { what, host, found, expected }, again: Again::Later });
            }
        }
        let host = reply.host;
        let wrong_length =
            |found| HubError::Length { file: subject.what(), host: host.clone(), found, expected: file.bytes };
        let announced = reply.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if let Some(announced) = announced.filter(|announced| partial.bytes().saturating_add(*announced) != file.bytes)
        {
            return Err(wrong_length(partial.bytes().saturating_add(announced)).into());
        }
        let stream = reply.body.into_reader();
        match partial.append(file, stream, progress).map_err(at(&path))? {
            Appended::Cut(reason) => {
                let (bytes, all) = (Size(partial.bytes()), Size(file.bytes));
                let reason = format!("the connection ended after {bytes} of {all}: {}", cause(&reason));
                Err(Failure { error: HubError::Network { what: subject.what(), host, reason }, again: Again::Later })
            }
            Appended::TooLong => Err(wrong_length(file.bytes.saturating_add(1)).into()),
            end => Ok(end),
        }
    }

    fn subject<'f>(&'f self, file: &'f RemoteFile) -> Subject<'f> {
        Subject { repo: self.repo, revision: self.revision, file: Some(&file.name) }
    }

    /// Keeps other downloads from the blob. `None` where nobody waits for it any more.
    fn lock(&self, file: &RemoteFile) -> Result<Option<File>, HubError> {
        let path = self.repository.lock(&file.hash);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(at(&path))?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                // A file system without locks: the hash says in the end whether two have met.
                Ok(()) => return Ok(Some(lock)),
                Err(TryLockError::Error(_)) => return Ok(Some(lock)),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                (self.events)(PullEvent::Waiting { file });
                told = true;
            }
            if !self.sleep(POLL) {
                return Ok(None);
            }
        }
    }

    /// Waits; `false` where there is nothing to wait for any more.
    fn sleep(&self, mut wait: Duration) -> bool {
        while !wait.is_zero() && !self.stopped.load(Ordering::Relaxed) {
            let slice = wait.min(POLL);
            thread::sleep(slice);
            wait -= slice;
        }
        !self.stopped.load(Ordering::Relaxed)
    }
}

/// Where the content of a partial answer begins.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// Why a stream ended, in words.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server closed it".to_owned(),
        io::ErrorKind::TimedOut => "nothing came for a while".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let start = |range: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, range.parse().unwrap());
            range_start(&headers)
        };
        assert_eq!(start("bytes 7-9/10"), Some(7));
        assert_eq!(start("bytes 7-9/*"), Some(7));
        for other in ["bytes */10", "7-9", "bytes x-9/10", ""] {
            assert_eq!(start(other), None, "{other}");
        }
    }
}
