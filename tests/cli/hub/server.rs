//! A hub on this machine: one server that knows the models and sends large files on to a second one, as the real one
//! does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use ring::digest;
use serde_json::{Value, json};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "o/m";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// It came to the second server.
    pub at_cdn: bool,
    pub method: String,
    pub path: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The first byte that is asked for.
    pub fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().unwrap())
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
    /// The connection stays open until the client goes.
    pub stays: bool,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// What stands for the hub's usual answer, where it returns one.
type Fault = Box<dyn FnMut(&Request) -> Option<Reply> + Send>;

struct State {
    files: Vec<(String, Vec<u8>, bool)>,
    cdn: Option<SocketAddr>,
    seen: Vec<Request>,
    fault: Fault,
    /// The list has names alone, as mirrors have it.
    bare: bool,
}

/// The two servers. They end with the process.
pub struct Server {
    hub: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves a model of these files; those named `*.safetensors` are large ones.
    pub fn new(files: &[(&str, Vec<u8>)]) -> Server {
        Server::with_fault(files, |_| None)
    }

    /// The same; `fault` is asked first.
    pub fn with_fault(
        files: &[(&str, Vec<u8>)],
        fault: impl FnMut(&Request) -> Option<Reply> + Send + 'static,
    ) -> Server {
        let file =
            |(name, content): &(&str, Vec<u8>)| ((*name).to_owned(), content.clone(), name.ends_with(".safetensors"));
        let state = State {
            files: files.iter().map(file).collect(),
            cdn: None,
            seen: Vec::new(),
            fault: Box::new(fault),
            bare: false,
        };
        let state = Arc::new(Mutex::new(state));
        let cdn = listen(state.clone(), true);
        state.lock().unwrap().cdn = Some(cdn);
        Server { hub: listen(state.clone(), false), state }
    }

    pub fn bare(self) -> Server {
        self.state.lock().unwrap().bare = true;
        self
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// Everything that was asked for.
    pub fn seen(&self) -> Vec<Request> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Requests for the content of a file, at the server that has it.
    pub fn content_requests(&self, name: &str) -> Vec<Request> {
        let is_large = name.ends_with(".safetensors");
        self.seen().into_iter().filter(|seen| seen.path.ends_with(name) && seen.at_cdn == is_large).collect()
    }
}

fn listen(state: Arc<Mutex<State>>, at_cdn: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            // A client that goes away in the middle is part of the tests.
            thread::spawn(move || drop(answer(stream, &state, at_cdn)));
        }
    });
    address
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, at_cdn: bool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let request = Request { at_cdn, method, path, headers };
    let reply = {
        let mut state = state.lock().unwrap();
        state.seen.push(request.clone());
        let faulty = (state.fault)(&request);
        faulty.unwrap_or_else(|| state.usual(&request))
    };
    let mut head = format!("HTTP/1.1 {} Reason\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| ["Content-Length", "Transfer-Encoding"].contains(name)) {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    }
    // Whoever stays sends no more and does not go.
    if !reply.stays {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    reader.read_to_end(&mut Vec::new()).map(|_| ())
}

impl State {
    fn usual(&self, request: &Request) -> Reply {
        let path = request.path.as_str();
        let resolve = format!("/{REPO}/resolve/{COMMIT}/");
        if request.at_cdn {
            return self.content(path.trim_start_matches("/cdn/"), request.from());
        }
        if path.starts_with(&format!("/api/models/{REPO}/revision/")) {
            let body = self.listing().to_string().into_bytes();
            return Reply { status: 200, body, ..Reply::default() };
        }
        let Some(name) = path.strip_prefix(&resolve) else {
            return Reply::status(404).with("X-Error-Code", "RepoNotFound");
        };
        let Some((_, content, is_large)) = self.files.iter().find(|(n, _, _)| n == name) else {
            return Reply::status(404).with("X-Error-Code", "EntryNotFound");
        };
        if !is_large {
            return self.content(name, request.from()).with("ETag", format!("\"{}\"", git_hash(content)));
        }
        Reply::status(302)
            .with("Location", format!("http://{}/cdn/{name}", self.cdn.unwrap()))
            .with("X-Linked-Etag", format!("\"{}\"", sha256(content)))
            .with("X-Linked-Size", content.len().to_string())
    }

    fn content(&self, name: &str, from: usize) -> Reply {
        let (_, content, _) = self.files.iter().find(|(n, _, _)| n == name).unwrap();
        let body = content[from..].to_vec();
        match from {
            0 => Reply { status: 200, body, ..Reply::default() },
            _ => Reply { status: 206, body, ..Reply::default() }
                .with("Content-Range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())),
        }
    }

    fn listing(&self) -> Value {
        let sibling = |(name, content, is_large): &(String, Vec<u8>, bool)| {
            let size = content.len();
            match (self.bare, is_large) {
                (true, _) => json!({"rfilename": name}),
                (false, false) => json!({"rfilename": name, "size": size, "blobId": git_hash(content)}),
                (false, true) => {
                    let lfs = json!({"sha256": sha256(content), "size": size, "pointerSize": 134});
                    json!({"rfilename": name, "size": size, "blobId": git_hash(b"pointer"), "lfs": lfs})
                }
            }
        };
        json!({"id": REPO, "sha": COMMIT, "siblings": self.files.iter().map(sibling).collect::<Vec<_>>()})
    }
}

fn hex(digest: digest::Digest) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(content: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, content))
}

pub fn git_hash(content: &[u8]) -> String {
    let blob = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &blob))
}
