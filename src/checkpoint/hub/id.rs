//! Names of models on the hub: `ORG/NAME`, and `ORG/NAME@REVISION`.

use std::fmt;
use std::str::FromStr;

use super::super::error::{CheckpointError, shown};
use super::super::published;

/// The longest revision, in bytes: what a file name may have.
const MAX_REVISION_BYTES: usize = 255;

/// The least digits of a commit hash that name a commit: as many as `rigel list` prints, less a few.
const MIN_COMMIT_DIGITS: usize = 6;

/// A model on the hub, and the revision of it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    repo: String,
    revision: Option<String>,
}

impl HubId {
    /// `ORG/NAME` or `ORG/NAME@REVISION`, by the hub's own rules for names; `None` for any other text. A revision is a
    /// branch, a tag, a commit or `refs/pr/N`.
    pub fn parse(text: &str) -> Option<HubId> {
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repo.split_once('/')?;
        if !is_name(org) || !is_name(name) || !revision.is_none_or(is_revision) {
            return None;
        }
        Some(HubId { repo: repo.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The same model at `revision`; `None` where that is no revision.
    pub fn at(&self, revision: &str) -> Option<HubId> {
        is_revision(revision).then(|| HubId { repo: self.repo.clone(), revision: Some(revision.to_owned()) })
    }

    /// `ORG/NAME`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// What stands behind the `@`; `None` means the branch `main`.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The name of the model's directory in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.repo.replace('/', "--"))
    }

    /// Hugging Face's command that downloads it.
    pub(crate) fn download_command(&self) -> String {
        match &self.revision {
            None => format!("hf download {}", self.repo),
            Some(revision) => format!("hf download {} --revision {revision}", self.repo),
        }
    }
}

/// As [`HubId::parse`]; the error says what to give.
impl FromStr for HubId {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<HubId, CheckpointError> {
        if let Some(id) = HubId::parse(text) {
            return Ok(id);
        }
        if let Some(id) = of_url(text) {
            return Err(CheckpointError::HubAddress { url: shown(text), id: id.to_string() });
        }
        let advice = match published::find(text) {
            Some((name, _)) => format!("give bigcode/{name}"),
            None => "expected ORG/NAME or ORG/NAME@REVISION, such as bigcode/starcoder2-3b".to_owned(),
        };
        Err(CheckpointError::NotAHubId { text: shown(text), advice })
    }
}

/// As [`HubId::parse`] reads it.
impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

fn is_name(name: &str) -> bool {
    let edge = |c: char| matches!(c, '-' | '.');
    (1..=96).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !name.starts_with(edge)
        && !name.ends_with(edge)
        && !name.contains("--")
        && !name.contains("..")
}

/// Git's rules for names of references, and none that is a path out of a directory.
fn is_revision(revision: &str) -> bool {
    revision.len() <= MAX_REVISION_BYTES
        && revision.bytes().all(|b| b.is_ascii_graphic() && !b"~^:?*[\\\"<>|".contains(&b))
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.'))
        && !revision.contains("..")
}

/// Whether `text` may be a commit's hash, or enough of its beginning.
pub(crate) fn is_commit(text: &str) -> bool {
    (MIN_COMMIT_DIGITS..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Pages of the hub that are nobody's models.
const NO_ORGS: [&str; 8] = ["api", "blog", "collections", "datasets", "docs", "models", "papers", "spaces"];

/// What to give in place of an address of the hub, such as `https://huggingface.co/ORG/NAME/tree/main`; `None` for what
/// is no address of a model.
pub(crate) fn of_url(text: &str) -> Option<HubId> {
    let path = match text.split_once("://") {
        Some(("hf", path)) => path,
        Some(("http" | "https", rest)) => rest.split_once('/')?.1,
        Some(_) => return None,
        None => ["huggingface.co/", "hf.co/"].iter().find_map(|host| text.strip_prefix(host))?,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let org = parts.next().filter(|org| !NO_ORGS.contains(org))?;
    let id = HubId::parse(&format!("{org}/{}", parts.next()?))?;
    Some(match (parts.next(), parts.next()) {
        (Some("tree" | "blob" | "resolve"), Some(revision)) if revision != "main" => id.at(revision).unwrap_or(id),
        _ => id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids() {
        for id in ["bigcode/starcoder2-3b", "a/b", "Org_1/Name.v0.1", "a/b@main", "a/b@refs/pr/7", "a/b@v1.0+cu@x"] {
            assert_eq!(HubId::parse(id).unwrap().to_string(), id);
        }
        for other in [
            "nano",
            "a/b/c",
            "/a",
            "a/",
            "./a",
            "../a",
            "~/a",
            "a/..",
            "a--b/c",
            "a b/c",
            "a/b.",
            "ä/b",
            "",
            "a/b@",
            "a/b@..",
            "a/b@../../x",
            "a/b@/x",
            "a/b@x/",
            "a/b@a b",
            "a/b@x/.git",
            "a/b@-x",
            "a/b@x:y",
            "@main",
        ] {
            assert_eq!(HubId::parse(other), None, "{other}");
        }
        let id = HubId::parse("o/m@v1").unwrap();
        assert_eq!((id.repo(), id.revision(), id.folder().as_str()), ("o/m", Some("v1"), "models--o--m"));
        assert_eq!(id.download_command(), "hf download o/m --revision v1");
    }

    #[test]
    fn what_is_no_id_says_what_to_give() {
        let message = |text: &str| text.parse::<HubId>().unwrap_err().to_string();
        assert_eq!(message("3B"), "\"3B\" is no hub id; give bigcode/starcoder2-3b");
        assert_eq!(message("https://hf.co/o/m"), "https://hf.co/o/m is an address; give o/m");
        assert!(message("a b/c").contains("expected ORG/NAME or ORG/NAME@REVISION"));
    }

    #[test]
    fn addresses_name_a_model() {
        for (url, id) in [
            ("https://huggingface.co/bigcode/starcoder2-3b", "bigcode/starcoder2-3b"),
            ("https://huggingface.co/o/m/tree/main", "o/m"),
            ("https://hub.example:8443/o/m/tree/v2?x=y", "o/m@v2"),
            ("huggingface.co/o/m/", "o/m"),
            ("hf.co/o/m#files", "o/m"),
            ("hf://o/m", "o/m"),
        ] {
            assert_eq!(of_url(url).unwrap().to_string(), id, "{url}");
        }
        for other in [
            "https://huggingface.co",
            "https://huggingface.co/bigcode",
            "a/b",
            "ftp:/x",
            "C:\\models",
            "s3://bucket/o/m",
            "ftp://huggingface.co/o/m",
            "https://huggingface.co/datasets/o/m",
            "https://huggingface.co/spaces/o/m/tree/main",
            "https://huggingface.co/api/models/o/m",
            "huggingface.co/models/x",
            "hf://datasets/o/m",
        ] {
            assert_eq!(of_url(other), None, "{other}");
        }
    }
}
