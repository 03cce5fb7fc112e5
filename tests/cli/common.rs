//! Running `rigel`, and copies of nano to break.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// What a run left.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// stdout, one JSON object a line.
    pub fn json_lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The only JSON object on stdout.
    pub fn json(&self) -> Value {
        let mut lines = self.json_lines();
        assert_eq!(lines.len(), 1, "{self:?}");
        lines.remove(0)
    }

    /// The run, which has to have ended well.
    #[track_caller]
    pub fn ok(self) -> Run {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// The message of a run that has to have ended with one line on stderr and this exit code.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        self.stderr.strip_prefix("error: ").unwrap_or_else(|| panic!("no `error: ` in {:?}", self.stderr)).trim_end()
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rigel"));
    // A GPU of this machine is not what these tests are about: the device auto is the CPU, or the interpreter.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
pub fn finish(mut command: Command, stdin: Option<&[u8]>) -> Run {
    if stdin.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap();
    if let (Some(bytes), Some(mut pipe)) = (stdin, child.stdin.take()) {
        // A command that fails early does not read to the end.
        let _ = pipe.write_all(bytes);
    }
    let output = child.wait_with_output().unwrap();
    let code = output.status.code().unwrap_or_else(|| panic!("killed: {}", output.status));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    Run { code, stdout: output.stdout, stderr }
}

/// `rigel` with these arguments.
pub fn rigel(args: &[&str]) -> Run {
    finish(command(args), None)
}

/// The same with bytes on stdin.
pub fn rigel_stdin(args: &[&str], stdin: impl AsRef<[u8]>) -> Run {
    finish(command(args), Some(stdin.as_ref()))
}

/// The same in an environment with one more variable.
pub fn rigel_env(args: &[&str], name: &'static str, value: impl AsRef<OsStr>) -> Run {
    rigel_envs(args, [(name, value)])
}

/// The same with several more.
pub fn rigel_envs<V: AsRef<OsStr>>(args: &[&str], variables: impl IntoIterator<Item = (&'static str, V)>) -> Run {
    let mut command = command(args);
    command.envs(variables);
    finish(command, None)
}

pub fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/rigel-nano/model")
}

/// A copy of nano that a test may change.
pub struct Copy {
    dir: TempDir,
}

impl Copy {
    pub fn of_nano() -> Copy {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(nano()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        Copy { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory, as an argument.
    pub fn model(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut value);
        self.write(name, value.to_string());
    }
}

/// A file with this content, deleted when dropped.
pub fn file(content: impl AsRef<[u8]>) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_ref()).unwrap();
    file
}

pub fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

pub fn ids(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// The ids of a text, as `rigel tokenize` sees them.
pub fn tokenize(text: &str) -> Vec<u64> {
    ids(&rigel_stdin(&["tokenize", "--json", "-"], text).ok().json()["token_ids"])
}

/// The text of ids, special tokens included, as `rigel detokenize` sees it.
pub fn detokenize(ids: &[u64]) -> String {
    let words: Vec<String> = ids.iter().map(u64::to_string).collect();
    rigel_stdin(&["detokenize", "-"], words.join(" ")).ok().text().to_owned()
}
