//! The hash that the hub names a file by: SHA-256 of a large one's content, git's of a small one.

use std::fmt::Write as _;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// A file's hash, and its name among the blobs of the cache: hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum BlobHash {
    /// SHA-256 of the content.
    Sha256(String),
    /// Git's hash of a blob: SHA-1 of `blob`, the length, a zero byte, and the content.
    Git(String),
}

impl BlobHash {
    /// The hash in an ETag, which may be quoted and marked as weak; `None` where it is of neither kind.
    pub fn from_etag(etag: &str) -> Option<BlobHash> {
        let digits = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_ascii_lowercase();
        let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        match digits.len() {
            64 if is_hex => Some(BlobHash::Sha256(digits)),
            40 if is_hex => Some(BlobHash::Git(digits)),
            _ => None,
        }
    }

    /// The digits.
    pub fn hex(&self) -> &str {
        match self {
            BlobHash::Sha256(digits) | BlobHash::Git(digits) => digits,
        }
    }

    /// The hash function, for messages.
    pub fn algorithm(&self) -> &'static str {
        match self {
            BlobHash::Sha256(_) => "SHA-256",
            BlobHash::Git(_) => "git hash",
        }
    }

    /// A hasher for a content of `bytes` bytes.
    pub fn hasher(&self, bytes: u64) -> Hasher {
        Hasher(match self {
            BlobHash::Sha256(_) => Context::new(&SHA256),
            BlobHash::Git(_) => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {bytes}\0").as_bytes());
                context
            }
        })
    }
}

/// A hash of content that comes in pieces.
#[derive(Clone)]
pub(super) struct Hasher(Context);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of everything so far.
    pub fn hex(&self) -> String {
        let mut hex = String::new();
        for byte in self.0.clone().finish().as_ref() {
            // A String takes everything.
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `git hash-object` and `sha256sum`.
    #[test]
    fn hashes_are_git_s_and_sha256() {
        let hello = [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ];
        for digits in hello {
            let hash = BlobHash::from_etag(digits).unwrap();
            let mut hasher = hash.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.hex(), digits);
        }
        let empty = BlobHash::from_etag("\"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\"").unwrap();
        assert_eq!(empty.hasher(0).hex(), empty.hex());
    }

    #[test]
    fn etags() {
        let digits = "ce013625030ba8dba906f756967f9e9ca394464a";
        for etag in [digits.to_owned(), format!("\"{digits}\""), format!("W/\"{}\"", digits.to_uppercase())] {
            assert_eq!(BlobHash::from_etag(&etag), Some(BlobHash::Git(digits.to_owned())), "{etag}");
        }
        for other in ["", "abc", "../../x", &"g".repeat(40), &"a".repeat(41)] {
            assert_eq!(BlobHash::from_etag(other), None, "{other}");
        }
    }
}
