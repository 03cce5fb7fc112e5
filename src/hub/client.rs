//! Requests to the hub: redirects, the token, and what a status means.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::error::HubError;
use super::retry::{Again, Failure, is_temporary};
use super::settings::Settings;
use super::url::{host, redirect};

const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Without a byte for so long, a connection is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// What a message shows of a server's reason, in characters.
const MAX_REASON: usize = 120;
/// The hub's reason where it does not know the token; it names no code then.
const INVALID_TOKEN: &str = "Invalid credentials in Authorization header";

/// An HTTP client that knows the hub.
pub(super) struct Client {
    agent: Agent,
    settings: Settings,
}

/// What a request is about, for messages.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub repo: &'a str,
    pub revision: &'a str,
    pub file: Option<&'a str>,
}

/// A successful answer.
pub(super) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
    /// The host that sent it.
    pub host: String,
}

impl Subject<'_> {
    /// The file, or the model.
    pub fn what(&self) -> String {
        self.file.map_or_else(|| self.repo.to_owned(), |file| format!("{}/{file}", self.repo))
    }
}

impl Client {
    pub fn new(settings: Settings) -> Result<Client, HubError> {
        let mut config = Agent::config_builder()
            .user_agent(concat!("rigel/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here: the token must not go along.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .timeout_per_write(Some(READ_TIMEOUT));
        if let Some(roots) = certificates(&settings)? {
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Client { agent: config.build().new_agent(), settings })
    }

    /// The hub's host, for messages.
    pub fn host(&self) -> String {
        self.settings.endpoint.host()
    }

    /// The address of a path of the hub.
    pub fn url(&self, path: &str) -> String {
        self.settings.endpoint.join(path)
    }

    /// The content at `url`, from the byte `from` on if that is not 0.
    pub fn get(&self, subject: Subject<'_>, url: &str, from: u64) -> Result<Reply, Failure> {
        let (response, uri) = self.send(subject, Method::GET, url, from, Follow::Everywhere)?;
        let status = response.status().as_u16();
        if !(200..300).contains(&status) {
            return Err(self.refusal(subject, &uri, status, response.headers()));
        }
        let (parts, body) = response.into_parts();
        Ok(Reply { status, headers: parts.headers, body, host: host(&uri) })
    }

    /// The hub's own headers for `url`. A redirect to another server is an answer, too: it says what is there.
    pub fn head(&self, subject: Subject<'_>, url: &str) -> Result<HeaderMap, Failure> {
        let (response, uri) = self.send(subject, Method::HEAD, url, 0, Follow::OnTheHub)?;
        let status = response.status().as_u16();
        match status {
            200..400 => Ok(response.into_parts().0.headers),
            _ => Err(self.refusal(subject, &uri, status, response.headers())),
        }
    }

    /// Sends a request and follows redirects; the last answer, whatever its status, and where it is from.
    fn send(
        &self,
        subject: Subject<'_>,
        method: Method,
        url: &str,
        from: u64,
        follow: Follow,
    ) -> Result<(Response<Body>, Uri), Failure> {
        let answer = |host: String, found: String| HubError::Answer {
            what: subject.what(),
            host,
            found,
            expected: "a file or a redirect to one",
        };
        let mut uri: Uri = url.parse().map_err(|_| answer(self.host(), "no address".to_owned()))?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(uri.clone());
            // Bytes as they are stored: what is hashed and resumed.
            request = request.header(ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = &self.settings.token
                && self.settings.endpoint.is_same_origin(&uri)
            {
                request = request.header(AUTHORIZATION, token.authorization());
            }
            let request = request.body(()).map_err(|_| answer(host(&uri), "no address".to_owned()))?;
            let response = self.agent.run(request).map_err(|error| unreachable(subject, &uri, error))?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(LOCATION).cloned(),
                _ => None,
            };
            let Some(location) = location else { return Ok((response, uri)) };
            let target = location.to_str().ok().and_then(|location| redirect(&uri, location));
            let target = target.ok_or_else(|| answer(host(&uri), "a redirect to no https address".to_owned()))?;
            if follow == Follow::OnTheHub && !self.settings.endpoint.is_same_origin(&target) {
                return Ok((response, uri));
            }
            uri = target;
        }
        Err(answer(host(&uri), format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    /// What an answer that is no success means.
    fn refusal(&self, subject: Subject<'_>, uri: &Uri, status: u16, headers: &HeaderMap) -> Failure {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (repo, hub) = (subject.repo.to_owned(), host(uri));
        let other = |again| {
            let reason: String = text("x-error-message").chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
            let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
            Failure { error: HubError::Status { what: subject.what(), host: hub.clone(), status, reason }, again }
        };
        if is_temporary(status) {
            let asked = text(RETRY_AFTER.as_str()).trim().parse().ok().map(Duration::from_secs);
            return other(asked.map_or(Again::Later, Again::After));
        }
        if !self.settings.endpoint.is_same_origin(uri) {
            // A signed address is good for a while: the next request gets a new one.
            return other(if status == 403 { Again::Later } else { Again::Never });
        }
        let has_token = self.settings.token.is_some();
        let is_token_invalid = status == 401 && text("x-error-message") == INVALID_TOKEN;
        match (status, text("x-error-code")) {
            (401 | 403, "GatedRepo") => HubError::Gated { page: self.url(&repo), repo },
            (404, "RevisionNotFound") => {
                HubError::NoRevision { repo, host: hub, revision: subject.revision.to_owned() }
            }
            // The hub does not tell strangers apart what is private and what is not there: without a token it answers
            // 401 for both, and names no code.
            (401 | 404, "RepoNotFound" | "") if subject.file.is_none() && !is_token_invalid => {
                let token = if has_token { "the token in use may not read it" } else { "set HF_TOKEN" };
                HubError::NotFound { repo, host: hub, token }
            }
            (401 | 403, _) => {
                let token = match (is_token_invalid, has_token) {
                    (true, _) => "the token is not valid: check HF_TOKEN, or the file that `hf auth login` wrote",
                    (false, true) => "check the token (HF_TOKEN, or the file `hf auth login` wrote)",
                    (false, false) => "accept the licence on the model's page if there is one, and set HF_TOKEN",
                };
                HubError::Refused { repo, host: hub, status, token }
            }
            _ => return other(Again::Never),
        }
        .into()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    Everywhere,
    OnTheHub,
}

/// No answer at all.
fn unreachable(subject: Subject<'_>, uri: &Uri, error: ureq::Error) -> Failure {
    use std::io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable};
    use ureq::{Error, Timeout};
    let (mut reason, again) = match error {
        Error::HostNotFound => ("the host is not found".to_owned(), Again::Reconnect),
        Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
            (format!("no connection within {} seconds", CONNECT_TIMEOUT.as_secs()), Again::Reconnect)
        }
        Error::Timeout(_) => (format!("no answer within {} seconds", READ_TIMEOUT.as_secs()), Again::Later),
        Error::Io(error) => match error.kind() {
            AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkUnreachable => {
                (error.to_string(), Again::Reconnect)
            }
            // A certificate does not get better.
            std::io::ErrorKind::InvalidData => (error.to_string(), Again::Never),
            _ => (error.to_string(), Again::Later),
        },
        error => (error.to_string(), Again::Never),
    };
    if reason.contains("certificate") {
        reason.push_str(" (SSL_CERT_FILE names a file of certificates to trust)");
    }
    Failure { error: HubError::Network { what: subject.what(), host: host(uri), reason }, again }
}

/// The certificates that the environment names.
fn certificates(settings: &Settings) -> Result<Option<RootCerts>, HubError> {
    let Some(path) = &settings.certificates else { return Ok(None) };
    let wrong = |found: String| HubError::Setting {
        name: path.display().to_string(),
        found,
        expected: "a file of certificates in PEM (SSL_CERT_FILE)",
    };
    let bytes = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(Some(RootCerts::Specific(Arc::new(certificates))))
}
