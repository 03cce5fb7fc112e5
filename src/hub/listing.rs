//! The files of a revision, as the hub lists them.

use std::io::Read as _;
use std::path::{Component, Path};

use serde::Deserialize;
use ureq::http::HeaderMap;

use super::client::{Client, Subject};
use super::digest::BlobHash;
use super::error::HubError;
use super::retry::{Again, Failure};
use super::url::{encode, encode_path};

/// A longer list of files is not one of a model.
const MAX_LISTING_BYTES: u64 = 64 << 20;
/// A longer file is not one of a model, but a number that breaks what adds it up: 1 PiB.
const MAX_FILE_BYTES: u64 = 1 << 50;
/// What a message shows of a name, in characters.
const SHOWN: usize = 80;

/// A file of a model on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteFile {
    /// Its path in the model's repository, parts between slashes. Never one that leads out of it.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    pub(super) hash: BlobHash,
}

/// A file before everything about it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedFile {
    pub name: String,
    pub bytes: Option<u64>,
    hash: Option<BlobHash>,
}

/// A revision: the commit that it is, and its files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<ListedFile>,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

/// A file that git keeps elsewhere: the blob's id is that of a pointer.
#[derive(Deserialize)]
struct Lfs {
    #[serde(alias = "oid")]
    sha256: Option<String>,
    size: Option<u64>,
}

/// Asks for the files of a revision.
pub(super) fn ask(client: &Client, subject: Subject<'_>) -> Result<Listing, Failure> {
    let path = format!("api/models/{}/revision/{}?blobs=true", subject.repo, encode(subject.revision));
    let reply = client.get(subject, &client.url(&path), 0)?;
    let mut bytes = Vec::new();
    let read = reply.body.into_reader().take(MAX_LISTING_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure {
        error: HubError::Network { what: subject.what(), host: reply.host.clone(), reason: error.to_string() },
        again: Again::Later,
    })?;
    Ok(parse(subject.repo, &reply.host, &bytes)?)
}

fn parse(repo: &str, host: &str, bytes: &[u8]) -> Result<Listing, HubError> {
    let answer = |found: &str| HubError::Answer {
        what: repo.to_owned(),
        host: host.to_owned(),
        found: found.to_owned(),
        expected: "the JSON object of a model with its commit and files",
    };
    if bytes.len() as u64 > MAX_LISTING_BYTES {
        return Err(answer("a list that is too long"));
    }
    let Answer { sha, siblings } = serde_json::from_slice(bytes).map_err(|_| answer("something else"))?;
    if sha.len() != 40 || !sha.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(answer("no commit hash"));
    }
    if let Some(sibling) = siblings.iter().find(|sibling| !is_safe(&sibling.rfilename)) {
        let name: String = sibling.rfilename.chars().take(SHOWN).collect();
        return Err(HubError::UnsafeName { repo: repo.to_owned(), name: format!("{name:?}") });
    }
    let file = |Sibling { rfilename, size, blob_id, lfs }: Sibling| {
        let (hash, bytes) = match lfs {
            Some(Lfs { sha256, size: stored }) => (sha256, stored.or(size)),
            None => (blob_id, size),
        };
        ListedFile { name: rfilename, bytes, hash: hash.and_then(|hash| BlobHash::from_etag(&hash)) }
    };
    let files: Vec<ListedFile> = siblings.into_iter().map(file).collect();
    if let Some(bytes) = files.iter().filter_map(|file| file.bytes).find(|bytes| *bytes > MAX_FILE_BYTES) {
        return Err(answer(&format!("a file of {bytes} bytes")));
    }
    Ok(Listing { commit: sha.to_ascii_lowercase(), files })
}

/// Whether `name` stays in its directory, on every system: parts between slashes, none of which means anything.
fn is_safe(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    name.split('/').all(part)
        && !name.chars().any(|c| c.is_control() || c == '\\' || (cfg!(windows) && c == ':'))
        && Path::new(name).components().all(|component| matches!(component, Component::Normal(_)))
}

/// The address of a file's content.
pub(super) fn content_url(client: &Client, repo: &str, commit: &str, name: &str) -> String {
    client.url(&format!("{repo}/resolve/{commit}/{}", encode_path(name)))
}

/// Asks for what the list did not say about a file: some mirrors say it in headers only.
pub(super) fn complete(
    client: &Client,
    subject: Subject<'_>,
    commit: &str,
    file: &ListedFile,
) -> Result<RemoteFile, Failure> {
    let ListedFile { name, bytes, hash } = file;
    if let (Some(bytes), Some(hash)) = (bytes, hash) {
        return Ok(RemoteFile { name: name.clone(), bytes: *bytes, hash: hash.clone() });
    }
    let headers = client.head(subject, &content_url(client, subject.repo, commit, name))?;
    from_headers(name, &headers).ok_or_else(|| {
        let (what, host, found) = (subject.what(), client.host(), "no length of a file or no hash".to_owned());
        HubError::Answer { what, host, found, expected: "a SHA-256 or a git hash as the ETag" }.into()
    })
}

fn from_headers(name: &str, headers: &HeaderMap) -> Option<RemoteFile> {
    let text = |names: [&str; 2]| names.iter().find_map(|name| headers.get(*name)?.to_str().ok());
    let bytes: u64 = text(["x-linked-size", "content-length"])?.parse().ok()?;
    Some(RemoteFile {
        name: name.to_owned(),
        bytes: Some(bytes).filter(|bytes| *bytes <= MAX_FILE_BYTES)?,
        hash: BlobHash::from_etag(text(["x-linked-etag", "etag"])?)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn parsed(answer: serde_json::Value) -> Result<Listing, String> {
        parse("o/m", "hub.example", answer.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_large_file_s_hash_is_not_that_of_its_pointer() {
        let (git, sha256) = ("a".repeat(40), "b".repeat(64));
        let siblings = json!([
            {"rfilename": "config.json", "size": 7, "blobId": git},
            {"rfilename": "w.safetensors", "size": 9, "blobId": git, "lfs": {"sha256": sha256, "size": 9, "pointerSize": 1}},
            {"rfilename": "unknown.json"},
        ]);
        let listing = parsed(json!({"sha": COMMIT, "siblings": siblings, "private": false})).unwrap();
        assert_eq!(listing.commit, COMMIT);
        let hashes: Vec<_> = listing.files.iter().map(|file| (file.bytes, file.hash.clone())).collect();
        assert_eq!(
            hashes,
            [(Some(7), Some(BlobHash::Git(git))), (Some(9), Some(BlobHash::Sha256(sha256))), (None, None)]
        );
    }

    #[test]
    fn other_answers_are_refused() {
        for answer in
            [json!([]), json!({"siblings": []}), json!({"sha": "main"}), json!({"sha": COMMIT, "siblings": 1})]
        {
            let message = parsed(answer).unwrap_err();
            assert!(message.starts_with("o/m: hub.example answers "), "{message}");
            assert!(
                message.ends_with("expected the JSON object of a model with its commit and files; check HF_ENDPOINT")
            );
        }
    }

    #[test]
    fn lengths_are_those_of_files() {
        let listed = |sibling: serde_json::Value| parsed(json!({"sha": COMMIT, "siblings": [sibling]}));
        assert_eq!(listed(json!({"rfilename": "x", "size": 1u64 << 50})).unwrap().files[0].bytes, Some(1 << 50));
        for bytes in [(1 << 50) + 1, u64::MAX] {
            for sibling in
                [json!({"rfilename": "x", "size": bytes}), json!({"rfilename": "x", "size": 1, "lfs": {"size": bytes}})]
            {
                let message = listed(sibling).unwrap_err();
                assert!(
                    message.starts_with(&format!("o/m: hub.example answers a file of {bytes} bytes, ")),
                    "{message}"
                );
            }
        }
    }

    #[test]
    fn names_stay_in_their_directory() {
        for name in ["a.json", "a/b/c.json", "..a/b..", "a b", "é"] {
            assert!(is_safe(name), "{name}");
        }
        for name in ["", "/etc/passwd", "../x", "a/../x", "a/..", "./a", "a//b", "a/", "a\\b", "a\0b", "a\nb"] {
            assert!(!is_safe(name), "{name}");
            let message = parsed(json!({"sha": COMMIT, "siblings": [{"rfilename": name}]})).unwrap_err();
            assert!(message.contains("which is no safe name") && message.lines().count() == 1, "{message}");
        }
    }

    #[test]
    fn headers_say_it_too() {
        let mut headers = HeaderMap::new();
        let set = |headers: &mut HeaderMap, name: &'static str, value: &str| {
            headers.insert(name, value.parse().unwrap());
        };
        set(&mut headers, "etag", &format!("\"{}\"", "a".repeat(40)));
        assert_eq!(from_headers("x", &headers), None);
        set(&mut headers, "content-length", "5");
        assert_eq!(from_headers("x", &headers).unwrap().hash, BlobHash::Git("a".repeat(40)));
        set(&mut headers, "x-linked-etag", &format!("\"{}\"", "b".repeat(64)));
        set(&mut headers, "x-linked-size", "500");
        let file = from_headers("x", &headers).unwrap();
        assert_eq!((file.bytes, file.hash), (500, BlobHash::Sha256("b".repeat(64))));
        set(&mut headers, "x-linked-size", &u64::MAX.to_string());
        assert_eq!(from_headers("x", &headers), None);
    }
}
