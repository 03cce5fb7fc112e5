//! `rigel pull`, `list` and `remove`, against a hub on this machine.

mod faults;
mod list;
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::{Run, command, finish, nano, rigel};
use server::{COMMIT, REPO, Server, git_hash, sha256};

/// A cache, and the environment of a user who has nothing else.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Home {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    fn model(&self) -> PathBuf {
        self.cache().join("models--o--m")
    }

    fn snapshot(&self) -> PathBuf {
        self.model().join("snapshots").join(COMMIT)
    }

    fn blob(&self, hash: &str) -> PathBuf {
        self.model().join("blobs").join(hash)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"] {
            command.env_remove(name);
        }
        for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"] {
            command.env_remove(name);
        }
        // The servers are on this machine.
        command.env("NO_PROXY", "*").env("HF_HOME", self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        finish(self.command(args), None)
    }

    fn pull(&self, server: &Server, args: &[&str]) -> Run {
        self.pull_with_token(server, args, None)
    }

    fn pull_with_token(&self, server: &Server, args: &[&str], token: Option<&str>) -> Run {
        let mut command = self.command(&[&["pull"], args].concat());
        command.env("HF_ENDPOINT", server.endpoint());
        if let Some(token) = token {
            command.env("HF_TOKEN", token);
        }
        finish(command, None)
    }
}

/// nano, as a model on the hub: files that Rigel reads and others.
fn nano_files() -> Vec<(&'static str, Vec<u8>)> {
    let read = |name: &'static str| (name, std::fs::read(nano().join(name)).unwrap());
    let mut files: Vec<_> =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
            .map(read)
            .into();
    files.push(("README.md", b"# m\n".to_vec()));
    files.push(("pytorch_model.bin", vec![7; 3000]));
    files.push(("onnx/model.onnx", vec![8; 100]));
    files
}

fn weights() -> Vec<u8> {
    std::fs::read(nano().join("model.safetensors")).unwrap()
}

#[track_caller]
fn assert_names(folder: &Path, expected: &[&str]) {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, expected);
}

#[test]
fn what_was_pulled_runs_and_is_laid_out_as_hugging_face_has_it() {
    let (home, server) = (Home::new(), Server::new(&nano_files()));
    let run = home.pull(&server, &["o/m"]).ok();
    assert_eq!(run.text(), format!("{}\n", home.snapshot().display()));
    assert!(run.stderr.contains("o/m, commit 0123456: 5 files, "), "{}", run.stderr);
    let left_out =
        "left out 3 files, 3.03 KiB, that Rigel does not read: pytorch_model.bin, onnx/model.onnx, README.md; ";
    assert!(run.stderr.contains(left_out), "{}", run.stderr);
    assert_names(
        &home.snapshot(),
        &["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
    );
    assert_eq!(std::fs::read_to_string(home.model().join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    for (name, hash) in [
        ("model.safetensors", sha256(&weights())),
        ("config.json", git_hash(&std::fs::read(nano().join("config.json")).unwrap())),
    ] {
        let target = std::fs::read_link(home.snapshot().join(name)).unwrap();
        assert_eq!(target, Path::new("../../blobs").join(hash));
    }
    assert_eq!(std::fs::read_dir(home.model().join("blobs")).unwrap().count(), 5);

    let generated = home.run(&["generate", "-q", "-n", "8", "--model", "o/m", "def f"]).ok();
    assert_eq!(generated.text(), rigel(&["generate", "-q", "-n", "8", "def f"]).ok().text());
    // The same again asks for the list alone.
    let before = server.seen().len();
    let again = home.pull(&server, &["o/m"]).ok();
    assert!(again.stderr.contains("5 files, all of them there before"), "{}", again.stderr);
    assert_eq!(server.seen().len(), before + 1);
}

#[test]
fn the_commands_have_help_that_fits_a_terminal() {
    for name in ["pull", "list", "remove"] {
        let mut command = command(&[name, "--help"]);
        command.env("COLUMNS", "80");
        let run = finish(command, None).ok();
        assert!(run.text().contains(&format!("Examples:\n  rigel {name}")), "{}", run.text());
        let widest = run.text().lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(80), "{name}: {widest:?} columns");
    }
}

#[test]
fn revisions_are_kept_apart() {
    let (home, server) = (Home::new(), Server::new(&nano_files()));
    home.pull(&server, &["o/m@refs/pr/7", "-q"]).ok();
    assert!(server.seen()[0].path.starts_with("/api/models/o/m/revision/refs%2Fpr%2F7?"), "{:?}", server.seen()[0]);
    assert_eq!(std::fs::read_to_string(home.model().join("refs/refs/pr/7")).unwrap(), COMMIT);
    home.pull(&server, &["o/m", "--revision", "v1", "-q"]).ok();
    // A commit needs no reference.
    home.pull(&server, &[&format!("o/m@{}", &COMMIT[..10]), "-q"]).ok();
    assert_names(&home.model().join("refs"), &["refs", "v1"]);
    for model in ["o/m@refs/pr/7", "o/m@v1", "o/m@012345678"] {
        home.run(&["tokenize", "--model", model, "x"]).ok();
    }
    let missing = home.run(&["tokenize", "--model", "o/m@v2", "x"]);
    assert!(missing.error(2).contains("no snapshot of revision v2"), "{missing:?}");
    assert!(missing.error(2).ends_with("download it with `rigel pull o/m --revision v2`"), "{missing:?}");
    let both = home.pull(&server, &["o/m@v1", "--revision", "v2"]);
    assert!(both.error(2).contains("two revisions"), "{both:?}");
}

#[test]
fn patterns_choose_files_in_folders_too() {
    let (home, server) = (Home::new(), Server::new(&nano_files()));
    let run = home.pull(&server, &["o/m", "--include", "*.onnx", "--include", "READ??.md"]).ok();
    assert_names(&home.snapshot(), &["README.md", "onnx"]);
    assert_eq!(std::fs::read(home.snapshot().join("onnx/model.onnx")).unwrap(), vec![8; 100]);
    assert!(!run.stderr.contains("left out"), "{}", run.stderr);
    let none = home.pull(&server, &["o/m", "--include", "*.onnx", "--include", "*.gguf"]);
    assert!(
        none.error(2).starts_with("--include: o/m: none of its 8 files is *.gguf; it has config.json,"),
        "{none:?}"
    );
    let gguf = Server::new(&[("a.gguf", vec![1])]);
    let nothing = home.pull(&gguf, &["o/m"]);
    let line = nothing.error(2);
    assert!(
        line.contains("none of its 1 files is one that Rigel reads") && line.ends_with("--include GLOB fetches others")
    );
}

#[test]
fn chosen_files_leave_a_reference_where_it_is() {
    let (home, server) = (Home::new(), Server::new(&nano_files()));
    let reference = |name: &str| std::fs::read_to_string(home.model().join("refs").join(name)).unwrap();
    let older = "f".repeat(40);
    std::fs::create_dir_all(home.model().join("refs")).unwrap();
    std::fs::write(home.model().join("refs/main"), &older).unwrap();
    let run = home.pull(&server, &["o/m", "--include", "*.md"]).ok();
    assert_eq!(run.text(), format!("{}\n", home.snapshot().display()));
    assert_names(&home.snapshot(), &["README.md"]);
    assert_eq!(reference("main"), older);
    // Where there is none, the files are found by it.
    home.pull(&server, &["o/m@v1", "--include", "*.md"]).ok();
    assert_eq!(reference("v1"), COMMIT);
    // The whole model moves it.
    home.pull(&server, &["o/m"]).ok();
    assert_eq!(reference("main"), COMMIT);
}

#[test]
fn a_list_without_hashes_is_completed_by_headers() {
    let (home, server) = (Home::new(), Server::new(&nano_files()).bare());
    home.pull(&server, &["o/m"]).ok();
    assert!(home.blob(&sha256(&weights())).is_file());
    let heads = server.seen().iter().filter(|seen| seen.method == "HEAD").count();
    assert_eq!(heads, 5);
    // The hub itself says it: nothing at the second server is asked for its headers.
    assert!(server.seen().iter().all(|seen| !seen.at_cdn || seen.method == "GET"));
}

#[test]
fn the_token_stays_with_the_hub() {
    let (home, server) = (Home::new(), Server::new(&nano_files()));
    home.pull_with_token(&server, &["o/m"], Some("hf_secret")).ok();
    let seen = server.seen();
    assert!(seen.iter().any(|request| request.at_cdn));
    for request in seen {
        let expected = (!request.at_cdn).then_some("Bearer hf_secret");
        assert_eq!(request.header("authorization"), expected, "{request:?}");
    }
    // Out of the file that Hugging Face's own login writes.
    let home = Home::new();
    std::fs::write(home.dir.path().join("token"), "hf_file\n").unwrap();
    let server = Server::new(&nano_files());
    home.pull(&server, &["o/m"]).ok();
    assert_eq!(server.seen()[0].header("authorization"), Some("Bearer hf_file"));
}

#[test]
fn ids_are_checked_before_anything_is_asked() {
    let home = Home::new();
    for (model, needle) in [
        ("3b", "\"3b\" is no hub id; give bigcode/starcoder2-3b"),
        ("https://huggingface.co/o/m/tree/v1", "is an address; give o/m@v1"),
        ("o/m@../x", "expected ORG/NAME or ORG/NAME@REVISION"),
        ("https://huggingface.co/datasets/o/m", "expected ORG/NAME or ORG/NAME@REVISION"),
    ] {
        let run = home.run(&["pull", model]);
        assert!(run.error(2).contains(needle), "{run:?}");
    }
    let mut offline = home.command(&["pull", "o/m"]);
    offline.env("HF_HUB_OFFLINE", "1");
    assert!(finish(offline, None).error(2).starts_with("HF_HUB_OFFLINE is set"));
    let mut endpoint = home.command(&["pull", "o/m"]);
    endpoint.env("HF_ENDPOINT", "example");
    assert!(finish(endpoint, None).error(2).starts_with("HF_ENDPOINT is no address of a hub"));
    let bad = home.run(&["generate", "--model", "https://huggingface.co/o/m", "x"]);
    assert_eq!(bad.error(2), "https://huggingface.co/o/m is an address; give o/m");
    assert!(home.run(&["generate", "--model", REPO, "x"]).error(2).ends_with("download it with `rigel pull o/m`"));
}
