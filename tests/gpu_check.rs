//! tools/gpu-check: what it packs can run away from the sources, and it says what is wrong with a pack.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Python's answer to code that may import the tool's modules.
fn python(code: &str) -> String {
    let paths = "import sys; sys.path[:0] = ['tools', 'tools/peers']; ";
    let output = Command::new("python3").args(["-B", "-c", &format!("{paths}{code}")]).current_dir(ROOT).output();
    let output = output.expect("python3, which tools/install-nvcc needs, too");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn packed_tests_find_their_files_by_the_variable() {
    let folders = python("from gpu_check.pack import TESTS; print(*TESTS)");
    let unpacked = python("from gpu_check.pack import INTERPRETER_ONLY; print(*INTERPRETER_ONLY)");
    let unpacked: Vec<&str> = unpacked.split_whitespace().map(|module| module.trim_end_matches("::")).collect();
    let mut files = Vec::new();
    for folder in folders.split_whitespace().chain(["common"]) {
        let entries = fs::read_dir(Path::new(ROOT).join("tests").join(folder)).unwrap();
        files.extend(entries.map(|entry| entry.unwrap().path()));
    }
    files.retain(|file| !file.ends_with("common/root.rs") && !file.ends_with("common/ledger.rs"));
    files.retain(|file| !unpacked.iter().any(|module| file.file_stem().unwrap() == *module));
    assert!(files.len() > 30, "{files:?}");
    for file in files {
        let (text, file) = (fs::read_to_string(&file).unwrap(), file.display());
        for place in ["CARGO_MANIFEST_DIR", "OUT_DIR", "CARGO_BIN_EXE"] {
            assert!(!text.contains(place), "{file} names {place}: away from here it is not there; use common::root()");
        }
    }
}

#[test]
fn everything_that_is_to_be_packed_exists() {
    let data = python("from gpu_check.pack import DATA; print(*DATA)");
    for path in data.split_whitespace() {
        assert!(Path::new(ROOT).join(path).exists(), "{path}");
    }
    // What the stages name.
    for file in ["parity.py", "generate.py", "kernels.py", "report.py"] {
        assert!(Path::new(ROOT).join("tools/peers").join(file).exists(), "{file}");
    }
}

#[test]
fn the_runner_does_what_its_own_tests_say() {
    let output = Command::new("python3").arg("tools/gpu_check/test_run.py").current_dir(ROOT).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A pack whose programs are scripts.
fn pack(folder: &Path) {
    for name in ["gpu-check", "gpu_check", "peers"] {
        fs::create_dir_all(folder.join("tools")).unwrap();
        copy(&Path::new(ROOT).join("tools").join(name), &folder.join("tools").join(name));
    }
    program(&folder.join("bin/rigel"), "#!/bin/sh\necho rigel 0.1.0\n");
    program(&folder.join("bin/tests/kernels"), "#!/bin/sh\necho 'norm::layer_norm: test'\n");
    let manifest = json!({
        "schema": "rigel-gpu-check-1",
        "commit": "0123456789ab",
        "files": {"bin/rigel": fs::metadata(folder.join("bin/rigel")).unwrap().len()},
        "tests": {"kernels": ["norm::layer_norm"]},
        "ignored": {},
    });
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
}

fn check(folder: &Path) -> Output {
    let mut command = Command::new(folder.join("tools/gpu-check"));
    // A Python that has no peers: it is tried, and its absence said.
    command.args(["run", "--stage", "profile", "--budget", "1", "--python", "/nowhere/python"]);
    command.output().expect("it starts")
}

#[test]
fn what_is_wrong_with_a_pack_is_one_line() {
    let refused = |folder: &Path, part: &str| {
        let output = check(folder);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part) && error.lines().count() == 1, "{error}");
    };
    refused(Path::new(ROOT), "is a checkout, no pack");

    let folder = tempfile::tempdir().unwrap();
    pack(folder.path());
    let said = String::from_utf8(check(folder.path()).stdout).unwrap();
    assert!(said.contains("pack of commit 0123456789ab: 1 files whole; rigel 0.1.0 starts; 1 test binaries"), "{said}");
    assert!(said.contains("no peers: "), "{said}");

    program(&folder.path().join("bin/tests/kernels"), "#!/bin/sh\necho 'norm::rms_norm: test'\n");
    refused(folder.path(), "has other tests than the manifest says");
    program(&folder.path().join("bin/tests/kernels"), "#!/bin/sh\nexit 127\n");
    refused(folder.path(), "bin/tests/kernels does not start here");
    program(&folder.path().join("bin/rigel"), "#!/bin/sh\n");
    refused(folder.path(), "unpack the archive again");
    fs::write(folder.path().join("manifest.json"), "{\"schema\": \"other\"}").unwrap();
    refused(folder.path(), "expected 'rigel-gpu-check-1'");
}

/// Binary and beginning of a test's name, of every check; and what every check says to do.
fn checks() -> Vec<(String, String, String)> {
    let code = "from gpu_check.checks import CHECKS; \
                print(*['|'.join([b, s, c.otherwise]) for c in CHECKS for b, s in c.tests], sep='\\n')";
    let split = |line: &str| {
        let mut parts = line.splitn(3, '|').map(str::to_owned);
        (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap())
    };
    python(code).lines().map(split).collect()
}

#[test]
fn every_check_has_its_tests_and_they_are_packed() {
    let packed = python("from gpu_check.pack import TESTS; print(*TESTS)");
    let checks = checks();
    assert!(checks.len() > 15, "{checks:?}");
    for (binary, start, _) in checks {
        assert!(packed.split_whitespace().any(|name| name == binary), "{binary} is not packed");
        let (module, function) = start.split_once("::").expect("a module");
        let text = fs::read_to_string(Path::new(ROOT).join(format!("tests/{binary}/{module}.rs"))).unwrap();
        assert!(text.contains(&format!("fn {function}")), "{binary} has no test {start}…");
    }
}

#[cfg(feature = "cuda")]
#[test]
fn what_a_check_says_to_set_can_be_set() {
    use rigel::backend::cuda::SWITCHES;
    let measured = fs::read_to_string(Path::new(ROOT).join("tools/gpu_check/measure.py")).unwrap();
    let texts: Vec<String> = checks().into_iter().map(|(.., otherwise)| otherwise).chain([measured]).collect();
    let mut seen = 0;
    for text in texts {
        for word in text.split(|c: char| c.is_whitespace() || ",;:()\"".contains(c)) {
            let Some((variable, value)) = word.split_once('=').filter(|(name, _)| name.starts_with("RIGEL_CUDA_"))
            else {
                continue;
            };
            let switch = SWITCHES.iter().find(|switch| switch.variable == variable);
            let switch = switch.unwrap_or_else(|| panic!("{word}: there is no such variable"));
            let percent =
                switch.values.contains(&"0 to 100") && value.parse::<u32>().is_ok_and(|percent| percent <= 100);
            assert!(switch.values.contains(&value) || percent, "{word}: it takes {:?}", switch.values);
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen}");
}
