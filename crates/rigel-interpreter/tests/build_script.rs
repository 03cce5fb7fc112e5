//! This crate's build script from outside: run on a small project of its own, through a compiler that notes its calls.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Notes what it is to compile, then has the machine's own compiler do it.
const COMPILER: &str = r#"#!/bin/sh
for argument; do
    case "$argument" in */out/*) ;; *.cu | *.cpp) echo "$argument" >> "$(dirname "$0")/calls" ;; esac
done
exec c++ "$@"
"#;

/// The build script that cargo compiled and ran before these tests: it lies in a folder beside that of its output.
fn script() -> PathBuf {
    let output = Path::new(rigel_interpreter::LIBRARY).parent().and_then(Path::parent).expect("<crate>-<hash>/out/");
    let folders = fs::read_dir(output.parent().expect("the folder of all build scripts")).unwrap().flatten();
    let of_this_crate = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with("rigel-interpreter-"));
    let scripts = of_this_crate.map(|folder| folder.path().join("build-script-build")).filter(|path| path.is_file());
    // Those of earlier builds may lie there too.
    scripts.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).expect("cargo ran one")
}

struct Project(PathBuf);

impl Drop for Project {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const FILES: [(&str, &str); 9] = [
    ("kernels/ptx/ptx.cuh", "#include \"language.h\"\n"),
    ("kernels/one.cu", "#include \"ptx/ptx.cuh\"\nint one() { return kAnswer; }\n"),
    ("kernels/two.cu", "int two() { return 2; }\n"),
    ("kernels/conformance/three.cu", "#include \"ptx/ptx.cuh\"\nint three() { return kAnswer; }\n"),
    ("crates/rigel-interpreter/include/language.h", "#pragma once\nconstexpr int kAnswer = 42;\n"),
    ("crates/rigel-interpreter/planted/four.cu", "int four() { return 4; }\n"),
    (
        "crates/rigel-interpreter/cpp/hooks.cpp",
        "#include \"hooks.h\"\nextern \"C\" void __tsan_init() {}\nint hooks() { return kHooks; }\n",
    ),
    ("crates/rigel-interpreter/cpp/hooks.h", "constexpr int kHooks = 3;\n"),
    ("crates/rigel-interpreter/cpp/driver/api.cpp", "#include \"hooks.h\"\nint api() { return kHooks; }\n"),
];

const COMPILED: [&str; 6] = [
    "crates/rigel-interpreter/cpp/driver/api.cpp",
    "crates/rigel-interpreter/cpp/hooks.cpp",
    "crates/rigel-interpreter/planted/four.cu",
    "kernels/conformance/three.cu",
    "kernels/one.cu",
    "kernels/two.cu",
];

impl Project {
    fn new(name: &str) -> Project {
        let project = Project(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        let _ = fs::remove_dir_all(&project.0);
        for (name, text) in FILES {
            project.write(name, text);
        }
        fs::create_dir_all(project.0.join("out")).unwrap();
        fs::write(project.compiler(), COMPILER).unwrap();
        fs::set_permissions(project.compiler(), fs::Permissions::from_mode(0o755)).unwrap();
        project
    }

    fn compiler(&self) -> PathBuf {
        self.0.join("compiler")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn build(&self, variables: &[(&str, &str)]) -> Output {
        let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut command = Command::new(script());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("CXX", self.compiler());
        command.env("CARGO_MANIFEST_DIR", self.0.join("crates/rigel-interpreter")).env("OUT_DIR", self.0.join("out"));
        command
            .env("TARGET", &machine)
            .env("HOST", &machine)
            .env("OPT_LEVEL", "0")
            .env("DEBUG", "0")
            .env("NUM_JOBS", "2");
        command.envs(variables.iter().copied()).output().unwrap()
    }

    /// Builds, and says which files were compiled, by name.
    #[track_caller]
    fn compiled(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let output = self.build(variables);
        assert!(output.status.success(), "{output:?}");
        assert!(self.0.join("out/libcuda.so").is_file());
        self.calls()
    }

    fn calls(&self) -> Vec<String> {
        let noted = self.0.join("calls");
        let text = fs::read_to_string(&noted).unwrap_or_default();
        let _ = fs::remove_file(noted);
        let root = self.0.to_string_lossy().into_owned();
        let mut names: Vec<String> =
            text.lines().map(|path| path.strip_prefix(&root).unwrap().trim_start_matches('/').to_owned()).collect();
        names.sort();
        names
    }
}

#[test]
fn only_what_changed_is_compiled_again() {
    let project = Project::new("interpreter_only_what_changed");
    const NOTHING: [&str; 0] = [];
    assert_eq!(project.compiled(&[]), COMPILED);
    assert_eq!(project.compiled(&[]), NOTHING, "nothing has changed");
    project.write("kernels/two.cu", "int two() { return 3; }\n");
    assert_eq!(project.compiled(&[]), ["kernels/two.cu"]);
    project.write("crates/rigel-interpreter/include/language.h", "#pragma once\nconstexpr int kAnswer = 43;\n");
    assert_eq!(project.compiled(&[]), ["kernels/conformance/three.cu", "kernels/one.cu"], "who reaches the header");
    project.write("crates/rigel-interpreter/cpp/hooks.h", "constexpr int kHooks = 4;\n");
    assert_eq!(
        project.compiled(&[]),
        ["crates/rigel-interpreter/cpp/driver/api.cpp", "crates/rigel-interpreter/cpp/hooks.cpp"]
    );
    project.write("kernels/five.cu", "int five() { return 5; }\n");
    assert_eq!(project.compiled(&[]), ["kernels/five.cu"], "a new file");
    fs::remove_file(project.0.join("out/kernels-one.o")).unwrap();
    assert_eq!(project.compiled(&[]), ["kernels/one.cu"], "an object that was lost");
    assert_eq!(project.compiled(&[("CXXFLAGS", "-DOTHER")]).len(), COMPILED.len() + 1, "other flags");
    assert_eq!(project.compiled(&[("CXXFLAGS", "-DOTHER")]), NOTHING);
}

#[test]
fn what_the_compiler_says_is_shown() {
    let project = Project::new("interpreter_compiler_says");
    project.write("kernels/two.cu", "int two() { return undeclared; }\n");
    let output = project.build(&[]);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("two.cu: the host compiler failed"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("cargo::error=") && line.contains("undeclared")), "{said}");
    project.write("kernels/two.cu", "int two() { return 2; }\n");
    project.calls();
    assert_eq!(project.compiled(&[]), ["kernels/two.cu"], "the others were compiled before");
}

#[test]
fn every_folder_that_matters_is_watched() {
    let project = Project::new("interpreter_watched");
    let said = String::from_utf8(project.build(&[]).stdout).unwrap();
    for (name, _) in FILES {
        let path = project.0.join(name);
        let watched = |line: &str| line.strip_prefix("cargo::rerun-if-changed=").is_some_and(|at| path.starts_with(at));
        assert!(said.lines().any(watched), "{name} in {said}");
    }
}

#[test]
fn kernels_of_other_folders_are_compiled_in() {
    let project = Project::new("interpreter_other_folders");
    project.write("mine/six.cu", "#include \"ptx/ptx.cuh\"\nint six() { return kAnswer; }\n");
    project.compiled(&[]);
    let (mine, missing) = (project.0.join("mine"), project.0.join("missing"));
    let variable = "RIGEL_INTERPRETER_KERNELS";
    assert_eq!(project.compiled(&[(variable, mine.to_str().unwrap())]), ["mine/six.cu"]);
    let watched = String::from_utf8(project.build(&[(variable, mine.to_str().unwrap())]).stdout).unwrap();
    assert!(watched.contains(&format!("cargo::rerun-if-changed={}", mine.display())), "{watched}");
    for wrong in [missing.to_str().unwrap(), "mine"] {
        let output = project.build(&[(variable, wrong)]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && said.contains("is no folder; give absolute paths"), "{said}");
    }
}
