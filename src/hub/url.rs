//! Addresses: joining, encoding, and whether two belong to the same server.

use ureq::http::Uri;

/// The hub's address: `https://huggingface.co`, or a mirror's with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    base: String,
    uri: Uri,
}

impl Endpoint {
    /// `None` for what is no http or https address.
    pub fn parse(text: &str) -> Option<Endpoint> {
        let base = text.trim().trim_end_matches('/').to_owned();
        let uri: Uri = base.parse().ok()?;
        let known =
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
        (known && uri.query().is_none()).then_some(Endpoint { base, uri })
    }

    /// The address of `path`, whose parts are encoded already.
    pub fn join(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    /// Whether `uri` is on the hub's own server: its scheme, host and port. Nothing secret goes elsewhere.
    pub fn is_same_origin(&self, uri: &Uri) -> bool {
        origin(&self.uri) == origin(uri)
    }

    /// The host, for messages.
    pub fn host(&self) -> String {
        host(&self.uri)
    }
}

/// Host and port, for messages.
pub(super) fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    uri.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn origin(uri: &Uri) -> Option<(&str, String, u16)> {
    let scheme = uri.scheme_str()?;
    let usual = if scheme == "https" { 443 } else { 80 };
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(usual)))
}

/// Where a redirect from `base` to `location` leads; `None` for what is no http or https address, and from https to
/// http, which would show the request to the network.
pub(super) fn redirect(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = match location {
        location if location.contains("://") => location.to_owned(),
        location if location.starts_with("//") => format!("{scheme}:{location}"),
        location if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        location => {
            let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    let target: Uri = absolute.parse().ok()?;
    let target_scheme = target.scheme_str()?;
    let allowed = target_scheme == "https" || (target_scheme == "http" && scheme == "http");
    (allowed && target.host().is_some()).then_some(target)
}

/// `text` as one part of a path: everything but RFC 3986's unreserved characters as `%XX`.
pub(super) fn encode(text: &str) -> String {
    encode_but(text, b"")
}

/// The same for a path, whose slashes stay.
pub(super) fn encode_path(path: &str) -> String {
    encode_but(path, b"/")
}

fn encode_but(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let endpoint = Endpoint::parse("https://hub.example/mirror/").unwrap();
        assert_eq!(endpoint.join("api/models/o/m"), "https://hub.example/mirror/api/models/o/m");
        for same in ["https://hub.example/x", "https://HUB.example:443/"] {
            assert!(endpoint.is_same_origin(&same.parse().unwrap()), "{same}");
        }
        for other in ["http://hub.example/x", "https://hub.example:444/", "https://cdn.hub.example/", "/x"] {
            assert!(!endpoint.is_same_origin(&other.parse().unwrap()), "{other}");
        }
        for wrong in ["", "huggingface.co", "ftp://x", "https://", "http://a b", "https://x/?q=1"] {
            assert_eq!(Endpoint::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn redirects() {
        let base: Uri = "https://hub.example:8443/o/m/resolve/main/a.json?x=1".parse().unwrap();
        for (location, target) in [
            ("/o/n/a.json", Some("https://hub.example:8443/o/n/a.json")),
            ("b.json?y", Some("https://hub.example:8443/o/m/resolve/main/b.json?y")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("https://cdn.example/b?sign=%2F", Some("https://cdn.example/b?sign=%2F")),
            ("http://cdn.example/b", None),
            ("file:///etc/passwd", None),
            ("https://a b/", None),
        ] {
            assert_eq!(redirect(&base, location).map(|uri| uri.to_string()).as_deref(), target, "{location}");
        }
        let plain: Uri = "http://localhost:1/a".parse().unwrap();
        assert_eq!(redirect(&plain, "http://localhost:2/b").unwrap().to_string(), "http://localhost:2/b");
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("refs/pr/7"), "refs%2Fpr%2F7");
        assert_eq!(encode_path("a b/é+#.json"), "a%20b/%C3%A9%2B%23.json");
    }
}
