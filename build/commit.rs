//! Which commit this is built from, for results and bug reports that are to be traced to it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What cargo writes into a packaged crate.
const VCS_INFO: &str = ".cargo_vcs_info.json";

/// Sets `RIGEL_COMMIT` for the crate: the variable of that name, else what git says of `root` where it is a checkout,
/// else what cargo noted when it packaged the crate. Of a checkout without optimisation nobody measures, and asking
/// would rebuild everything after each commit: then, and where nobody has an answer, it is not set.
pub fn announce(root: &Path) {
    println!("cargo::rerun-if-env-changed=RIGEL_COMMIT");
    let given = env::var("RIGEL_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = match given {
        Some(commit) => Some(commit),
        None if !root.join(".git").exists() => packaged(&root.join(VCS_INFO)),
        None if env::var("PROFILE").is_ok_and(|profile| profile == "release") => checked_out(root),
        None => None,
    };
    if let Some(commit) = commit {
        println!("cargo::rustc-env=RIGEL_COMMIT={commit}");
    }
}

fn checked_out(root: &Path) -> Option<String> {
    // What tells one state of the sources from another.
    for watched in [".git/HEAD", ".git/index", "src", "kernels"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let commit = git(root, &["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(root, &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    Some(dirty(commit, changed))
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commit of `{"git": {"sha1": "…", "dirty": true}, …}`, shortened as git shortens it.
fn packaged(file: &Path) -> Option<String> {
    if !file.exists() {
        return None;
    }
    println!("cargo::rerun-if-changed={VCS_INFO}");
    let text = fs::read_to_string(file).ok()?;
    let after =
        |name: &str| Some(text.split_once(&format!("\"{name}\""))?.1.trim_start().strip_prefix(':')?.trim_start());
    let sha: String = after("sha1")?.strip_prefix('"')?.chars().take_while(char::is_ascii_hexdigit).take(12).collect();
    (sha.len() == 12).then(|| dirty(sha, after("dirty").is_some_and(|value| value.starts_with("true"))))
}

fn dirty(commit: String, changed: bool) -> String {
    if changed { commit + "-dirty" } else { commit }
}
