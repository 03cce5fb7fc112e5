//! Which commit this is built from, for results that are to be traced to it.

use std::env;
use std::path::Path;
use std::process::Command;

/// Sets `RIGEL_COMMIT` for the crate: the variable of that name, else the commit that `cargo package` noted, else what
/// git says of `root` where it is a checkout.
/// Without optimisation nobody measures, and asking would rebuild everything after each commit: then, and where git has
/// no answer, it is not set.
pub fn announce(root: &Path) {
    println!("cargo::rerun-if-env-changed=RIGEL_COMMIT");
    if let Some(commit) = env::var("RIGEL_COMMIT").ok().filter(|commit| !commit.is_empty()) {
        println!("cargo::rustc-env=RIGEL_COMMIT={commit}");
        return;
    }
    if let Some(commit) = packaged(root) {
        println!("cargo::rustc-env=RIGEL_COMMIT={commit}");
        return;
    }
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") && root.join(".git").exists() {
        // What tells one state of the sources from another.
        for watched in [".git/HEAD", ".git/index", "src", "kernels"] {
            println!("cargo::rerun-if-changed={watched}");
        }
        let Some(commit) = git(root, &["rev-parse", "--short=12", "HEAD"]) else { return };
        let changed =
            git(root, &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
        let dirty = if changed { "-dirty" } else { "" };
        println!("cargo::rustc-env=RIGEL_COMMIT={commit}{dirty}");
    }
}

/// The first twelve digits of the commit in a package's `.cargo_vcs_info.json`: `{"git": {"sha1": "…"}}`.
fn packaged(root: &Path) -> Option<String> {
    let noted = std::fs::read_to_string(root.join(".cargo_vcs_info.json")).ok()?;
    let (_, rest) = noted.split_once("\"sha1\": \"")?;
    let commit = rest.get(..12).filter(|commit| commit.chars().all(|c| c.is_ascii_hexdigit()))?;
    let dirty = if noted.contains("\"dirty\": true") { "-dirty" } else { "" };
    Some(format!("{commit}{dirty}"))
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
