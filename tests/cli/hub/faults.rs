//! What goes wrong between here and a hub: each is one line that says what, where, and what to do.

use super::server::{REPO, Reply, Request, Server, sha256};
use super::{Home, nano_files, weights};

/// The fault, so many times.
fn times(count: usize, mut fault: impl FnMut(&Request) -> Option<Reply>) -> impl FnMut(&Request) -> Option<Reply> {
    let mut left = count;
    move |request| {
        let reply = if left > 0 { fault(request) } else { None };
        left -= usize::from(reply.is_some());
        reply
    }
}

fn asks_for_the_list(request: &Request) -> bool {
    request.path.starts_with("/api/")
}

/// The end of a pull whose list is answered so.
#[track_caller]
fn refused_list(code: i32, reply: Reply, needle: &str) {
    let server = Server::with_fault(&nano_files(), move |seen| asks_for_the_list(seen).then(|| reply.clone()));
    let home = Home::new();
    let run = home.pull(&server, &["o/m"]);
    let line = run.error(code);
    assert!(line.contains(needle), "{line}");
    assert!(line.contains(REPO), "{line}");
    assert!(!home.model().exists());
}

#[test]
fn no_access() {
    let error = |status, code: &str| Reply::status(status).with("X-Error-Code", code);
    // As the hub answers whoever has no token, for a name that is mistyped.
    let unknown = Reply::status(401).with("X-Error-Message", "Invalid username or password.");
    for reply in [unknown, error(401, "RepoNotFound"), error(404, "RepoNotFound"), Reply::status(404)] {
        refused_list(2, reply, "has no such model (check the name), or it is private: set HF_TOKEN");
    }
    refused_list(2, error(404, "RevisionNotFound"), "has no revision main of it; expected a branch, a tag, a commit");
    refused_list(
        2,
        Reply::status(403),
        "refuses access (HTTP 403); accept the licence on the model's page if there is one",
    );
}

#[test]
fn a_token_that_is_no_use() {
    let invalid = Reply::status(401).with("X-Error-Message", "Invalid credentials in Authorization header");
    let hidden = Reply::status(404).with("X-Error-Code", "RepoNotFound");
    for (reply, needle) in [
        (invalid, "refuses access (HTTP 401); the token is not valid: check HF_TOKEN"),
        (hidden, "or it is private: the token in use may not read it"),
    ] {
        let server = Server::with_fault(&nano_files(), move |_| Some(reply.clone()));
        let run = Home::new().pull_with_token(&server, &["o/m"], Some("hf_secret"));
        assert!(run.error(2).contains(needle) && !run.stderr.contains("hf_secret"), "{run:?}");
    }
}

#[test]
fn answers_that_stay_the_same_are_not_asked_for_again() {
    for status in [451, 501, 505] {
        let reason = move |_: &Request| Some(Reply::status(status).with("X-Error-Message", "not here"));
        let server = Server::with_fault(&nano_files(), reason);
        let run = Home::new().pull(&server, &["o/m"]);
        assert!(run.error(1).ends_with(&format!("answers HTTP {status}: not here")), "{run:?}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[test]
fn a_gated_model_says_where_to_accept_its_licence() {
    for status in [401, 403] {
        let gated = move |seen: &Request| {
            (!asks_for_the_list(seen)).then(|| Reply::status(status).with("X-Error-Code", "GatedRepo"))
        };
        let server = Server::with_fault(&nano_files(), gated);
        let home = Home::new();
        let run = home.pull_with_token(&server, &["o/m"], Some("hf_secret"));
        let page = format!("accept its licence on {}/o/m, then set HF_TOKEN", server.endpoint());
        assert!(run.error(2).contains(&page) && !run.stderr.contains("hf_secret"), "{run:?}");
    }
}

#[test]
fn answers_that_are_not_a_hub_s() {
    let page = Reply { status: 200, body: b"<html>".to_vec(), ..Reply::default() };
    refused_list(1, page, "answers something else, expected the JSON object of a model");
    refused_list(
        1,
        Reply::status(302).with("Location", "file:///etc/passwd"),
        "answers a redirect to no https address",
    );
    refused_list(1, Reply::status(307).with("Location", "/api/again"), "more than 10 redirects");
}

#[test]
fn names_that_lead_out_of_the_directory() {
    for name in ["../evil.json", "/tmp/evil.json", "a/../../evil.json"] {
        let home = Home::new();
        let run = home.pull(&Server::new(&[("config.json", b"{}".to_vec()), (name, vec![1])]), &["o/m"]);
        let needle = format!("o/m has a file called {name:?}, which is no safe name; nothing was downloaded");
        assert!(run.error(2).starts_with(&needle), "{run:?}");
        assert!(!home.cache().exists());
    }
}

#[test]
fn a_model_without_files() {
    let run = Home::new().pull(&Server::new(&[]), &["o/m"]);
    assert!(run.error(2).starts_with("o/m has no files at revision main"), "{run:?}");
}

#[test]
fn no_server() {
    let home = Home::new();
    let mut command = home.command(&["pull", "o/m"]);
    // Nothing listens there, and no other test gets this port: it takes privileges.
    command.env("HF_ENDPOINT", "http://127.0.0.1:1");
    let run = crate::common::finish(command, None);
    let line = run.error(1);
    assert!(line.starts_with("o/m: 127.0.0.1:1: ") && line.contains("check the network"), "{line}");
}

#[test]
fn servers_that_recover_are_asked_again() {
    for status in [503, 429, 408, 520] {
        let fault = times(2, move |_| Some(Reply::status(status).with("Retry-After", "0")));
        let server = Server::with_fault(&nano_files(), fault);
        let home = Home::new();
        let run = home.pull(&server, &["o/m"]).ok();
        assert!(run.stderr.contains(&format!("answers HTTP {status}; try again later (again now)")), "{}", run.stderr);
        assert!(home.snapshot().join("model.safetensors").is_file());
    }
    // One that does not is not asked forever; one that wants patience for an hour is not waited for.
    for (wait, asked) in [("0", 5), ("3600", 1)] {
        let server = Server::with_fault(&nano_files(), move |_| Some(Reply::status(503).with("Retry-After", wait)));
        let run = Home::new().pull(&server, &["-q", "o/m"]);
        assert!(run.error(1).contains("answers HTTP 503"), "{run:?}");
        assert_eq!(server.seen().len(), asked);
    }
}

#[test]
fn a_cut_connection_is_resumed() {
    let all = weights();
    let half = all.len() / 2;
    let body = all.clone();
    let cut = move |seen: &Request| {
        (seen.at_cdn && seen.from() == 0).then(|| Reply {
            status: 200,
            body: body.clone(),
            cut: Some(half),
            ..Reply::default()
        })
    };
    let (home, server) = (Home::new(), Server::with_fault(&nano_files(), cut));
    let run = home.pull(&server, &["o/m"]).ok();
    assert!(run.stderr.contains("the connection ended after"), "{}", run.stderr);
    let starts: Vec<usize> = server.content_requests("model.safetensors").iter().map(Request::from).collect();
    assert_eq!(starts.len(), 2);
    // What the cut left of the last packets may be missing.
    assert!(starts[0] == 0 && (1..=half).contains(&starts[1]), "{starts:?}");
    assert_eq!(std::fs::read(home.snapshot().join("model.safetensors")).unwrap(), all);
}

#[test]
fn an_earlier_download_is_resumed_and_checked_as_a_whole() {
    let all = weights();
    let partial = |home: &Home| home.blob(&format!("{}.incomplete", sha256(&all)));
    let prepared = |bytes: &[u8]| {
        let home = Home::new();
        std::fs::create_dir_all(home.model().join("blobs")).unwrap();
        std::fs::write(partial(&home), bytes).unwrap();
        home
    };
    let pulled = |bytes: &[u8], server: &Server| {
        let home = prepared(bytes);
        home.pull(server, &["o/m"]).ok();
        assert_eq!(std::fs::read(home.snapshot().join("model.safetensors")).unwrap(), all);
        assert!(!partial(&home).exists());
        server.content_requests("model.safetensors").iter().map(Request::from).collect::<Vec<_>>()
    };
    assert_eq!(pulled(&all[..1000], &Server::new(&nano_files())), [1000]);
    assert!(pulled(&all, &Server::new(&nano_files())).is_empty());
    // More than the file has, and bytes of another file: both begin anew.
    assert_eq!(pulled(&[&all[..], b"more"].concat(), &Server::new(&nano_files())), [0]);
    assert_eq!(pulled(&vec![0; 1000], &Server::new(&nano_files())), [1000, 0]);
    // A server that knows no ranges.
    let whole = all.clone();
    let ignores =
        move |seen: &Request| (seen.at_cdn).then(|| Reply { status: 200, body: whole.clone(), ..Reply::default() });
    assert_eq!(pulled(&all[..1000], &Server::with_fault(&nano_files(), ignores)), [1000]);
}

#[test]
fn content_with_another_hash_is_removed() {
    let body = vec![1; weights().len()];
    let wrong =
        move |seen: &Request| seen.at_cdn.then(|| Reply { status: 200, body: body.clone(), ..Reply::default() });
    let (home, server) = (Home::new(), Server::with_fault(&nano_files(), wrong));
    let run = home.pull(&server, &["-q", "o/m"]);
    let line = run.error(1);
    assert!(
        line.starts_with("o/m/model.safetensors: the content from ") && line.contains(" has the SHA-256 "),
        "{line}"
    );
    assert!(line.contains(&format!("expected {}", sha256(&weights()))), "{line}");
    let hash = sha256(&weights());
    for gone in [home.blob(&hash), home.blob(&format!("{hash}.incomplete")), home.snapshot().join("model.safetensors")]
    {
        assert!(!gone.exists(), "{}", gone.display());
    }
    // Nothing names the revision before it is whole.
    assert!(!home.model().join("refs/main").exists());
}

#[test]
fn lengths_that_are_not_those_of_the_list() {
    let all = weights();
    let body = all.clone();
    let announced = move |seen: &Request| {
        let length = (body.len() + 10).to_string();
        seen.at_cdn
            .then(|| Reply { status: 200, body: body.clone(), ..Reply::default() }.with("Content-Length", length))
    };
    let run = Home::new().pull(&Server::with_fault(&nano_files(), announced), &["-q", "o/m"]);
    let needle = format!("sends {} bytes, expected {}", all.len() + 10, all.len());
    assert!(run.error(1).contains(&needle), "{run:?}");
    // Without an announcement: the connection's end is the content's.
    let longer = [&all[..], b"more"].concat();
    let chunked = move |seen: &Request| {
        seen.at_cdn.then(|| {
            let body = [format!("{:x}\r\n", longer.len()).as_bytes(), &longer, b"\r\n0\r\n\r\n"].concat();
            Reply { status: 200, body, ..Reply::default() }.with("Transfer-Encoding", "chunked")
        })
    };
    let run = Home::new().pull(&Server::with_fault(&nano_files(), chunked), &["-q", "o/m"]);
    assert!(run.error(1).contains(&format!("expected {}", all.len())), "{run:?}");
}

#[cfg(unix)]
#[test]
fn an_interrupted_pull_goes_on() {
    use std::io::Read as _;
    use std::time::Duration;

    // The second server sends half and then waits for ever.
    let all = weights();
    let body = all.clone();
    let stuck = times(1, move |seen: &Request| {
        let half = body[..body.len() / 2].to_vec();
        let length = body.len().to_string();
        seen.at_cdn
            .then(|| Reply { status: 200, body: half, stays: true, ..Reply::default() }.with("Content-Length", length))
    });
    let (home, server) = (Home::new(), Server::with_fault(&nano_files(), stuck));
    let mut command = home.command(&["pull", "o/m"]);
    command.env("HF_ENDPOINT", server.endpoint());
    let mut child = command.spawn().unwrap();
    let partial = home.blob(&format!("{}.incomplete", sha256(&all)));
    while std::fs::metadata(&partial).map_or(0, |metadata| metadata.len()) < all.len() as u64 / 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: a signal to a child that was not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("stopped; the same command goes on from here"), "{said}");
    assert!(!home.model().join("refs/main").exists());
    home.pull(&server, &["o/m"]).ok();
    let starts: Vec<usize> = server.content_requests("model.safetensors").iter().map(Request::from).collect();
    assert_eq!(starts, [0, all.len() / 2]);
    assert_eq!(std::fs::read(home.snapshot().join("model.safetensors")).unwrap(), all);
}

#[test]
fn two_pulls_at_once_fetch_each_file_once() {
    let (home, server) = (Home::new(), Server::new(&nano_files()));
    let spawn = || {
        let mut command = home.command(&["pull", "-q", "o/m"]);
        command.env("HF_ENDPOINT", server.endpoint());
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| spawn()).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(server.content_requests("model.safetensors").len(), 1);
    assert_eq!(std::fs::read(home.snapshot().join("model.safetensors")).unwrap(), weights());
}
