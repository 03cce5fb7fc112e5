//! `build.rs` from outside: compiled by itself, run on a folder of its own with a compiler that only notes how it was
//! called.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

/// What it shares with the interpreter's build script (crates/rigel-interpreter/tests/build_script.rs).
#[path = "../../build/sources.rs"]
mod sources;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Answers as nvcc does, notes the arguments of every compilation, and fails on a source that says so.
const COMPILER: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ "$1" = --version ]; then echo "Cuda compilation tools, release 13.0, V13.0.88"; exit; fi
echo "$@" >> "$here/calls"
for source; do :; done
if [ -n "$RENDEZVOUS" ]; then
    touch "$here/begun-$$"
    tries=0
    while [ "$(ls "$here" | grep -c ^begun-)" -lt 2 ]; do
        tries=$((tries + 1))
        if [ $tries -gt "$RENDEZVOUS" ]; then echo "nothing else is compiled meanwhile" >&2; exit 3; fi
        sleep 0.05
    done
fi
if grep -q BROKEN "$source"; then
    echo "ptxas info    : 0 bytes gmem" >&2
    echo "$source(3): error: identifier \"x\" is undefined" >&2
    exit 2
fi
while [ "$1" != -o ]; do shift; done
echo fatbin > "$2"
"#;

/// The build script, compiled once for all tests.
fn script() -> &'static Path {
    static SCRIPT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = SCRIPT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("build-script");
        let rustc = Path::new(env!("CARGO")).with_file_name("rustc");
        let source = Path::new(ROOT).join("build.rs");
        let status = Command::new(rustc).args(["--edition", "2024", "-o"]).arg(&path).arg(source).status().unwrap();
        assert!(status.success(), "build.rs does not compile by itself");
        (folder, path)
    });
    path
}

/// A project of two kernels that share a header.
struct Project(TempDir);

impl Project {
    fn new() -> Project {
        let project = Project(tempfile::tempdir().unwrap());
        project.write("kernels/common/shared.cuh", "#pragma once\n");
        project.write("kernels/one.cu", "// targets: sm_80 compute_80\n#include \"common/shared.cuh\"\n");
        project.write("kernels/two.cu", "// What it is for.\n// targets: sm_90a\n");
        project.write("kernels/conformance/three.cu", "// targets: sm_80\n");
        project.write("out/.keep", "");
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// Puts the compiler where tools/install-nvcc does.
    fn with_compiler(self) -> Project {
        self.compiler_at(COMPILER_AT);
        self
    }

    fn compiler_at(&self, name: &str) {
        use std::os::unix::fs::PermissionsExt;
        self.write(name, COMPILER);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the script as cargo does, in an environment with these variables besides.
    fn build(&self, variables: &[(&str, &str)]) -> Build {
        let mut command = Command::new(script());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("NUM_JOBS", "2").env("CARGO_FEATURE_CUDA", "1");
        command.env("CARGO_MANIFEST_DIR", self.0.path()).env("OUT_DIR", self.path("out"));
        command.envs(variables.iter().copied());
        Build(command.output().unwrap())
    }

    /// The arguments of every compilation since the last call, one line each, in the order of their sources.
    fn calls(&self) -> Vec<String> {
        let noted = self.path(COMPILER_AT).with_file_name("calls");
        let mut calls: Vec<String> =
            fs::read_to_string(&noted).unwrap_or_default().lines().map(str::to_owned).collect();
        let _ = fs::remove_file(noted);
        calls.sort_by_key(|call| call.rsplit('/').next().map(str::to_owned));
        calls
    }

    fn table(&self) -> String {
        fs::read_to_string(self.path("out/images.rs")).unwrap()
    }
}

const COMPILER_AT: &str = ".cuda/lib/python3.11/site-packages/nvidia/cu13/bin/nvcc";

struct Build(Output);

impl Build {
    fn lines(&self, prefix: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.stdout).into_owned();
        text.lines().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    #[track_caller]
    fn ok(self) -> Build {
        assert!(self.0.status.success(), "{:?}", self.0);
        assert_eq!(self.lines("cargo::error="), Vec::<String>::new());
        self
    }

    /// The lines of the error that cargo shows.
    #[track_caller]
    fn failed(self) -> String {
        assert!(!self.0.status.success(), "{:?}", self.0);
        self.lines("cargo::error=").join("\n")
    }
}

/// Whether this machine has a toolkit where the script looks for one without being told.
fn toolkit_installed() -> bool {
    ["/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/bin/nvcc"].iter().any(|nvcc| Path::new(nvcc).exists())
}

#[test]
fn without_a_compiler_there_is_one_warning_and_an_empty_table() {
    if toolkit_installed() {
        return eprintln!("without_a_compiler…: skipped, this machine has a toolkit");
    }
    let project = Project::new();
    let warnings = project.build(&[]).ok().lines("cargo::warning=");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("for the CPU only; run tools/install-nvcc"), "{warnings:?}");
    assert!(project.table().contains("NVCC: Option<&str> = None") && !project.table().contains("image!"));

    let error = project.build(&[("RIGEL_REQUIRE_NVCC", "1")]).failed();
    assert!(error.starts_with("RIGEL_REQUIRE_NVCC is set, but there is no nvcc; run tools/install-nvcc"), "{error}");
    project.build(&[("RIGEL_REQUIRE_NVCC", "0")]).ok();
}

#[test]
fn without_the_feature_nothing_is_looked_for() {
    let project = Project::new().with_compiler();
    let mut command = Command::new(script());
    command.env_clear().env("CARGO_MANIFEST_DIR", project.0.path()).env("OUT_DIR", project.path("out"));
    let build = Build(command.env("RIGEL_REQUIRE_NVCC", "1").output().unwrap()).ok();
    assert!(build.lines("cargo::warning=").is_empty());
    assert!(project.calls().is_empty() && !project.path("out/images.rs").exists());
}

#[test]
fn each_file_is_compiled_for_the_targets_that_it_names() {
    let project = Project::new().with_compiler();
    assert!(project.build(&[]).ok().lines("cargo::warning=").is_empty());
    let calls = project.calls();
    assert_eq!(calls.len(), 3, "{calls:?}");
    let (one, three, two) = (&calls[0], &calls[1], &calls[2]);
    assert!(one.contains("-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_80,code=compute_80 -I"), "{one}");
    assert!(two.contains("-gencode=arch=compute_90a,code=sm_90a -I"), "{two}");
    assert!(three.ends_with("kernels/conformance/three.cu"), "{three}");
    let table = project.table();
    assert!(table.contains("Some(\"13.0.88\")"), "{table}");
    assert!(table.contains("image!(\"one\", &[\"sm_80\", \"compute_80\"]"), "{table}");
    assert!(table.contains("image!(\"two\", &[\"sm_90a\"]") && !table.contains("three"), "{table}");
}

#[test]
fn only_what_changed_is_compiled_again() {
    let project = Project::new().with_compiler();
    project.build(&[]).ok();
    assert_eq!(project.calls().len(), 3);
    project.build(&[]).ok();
    assert_eq!(project.calls(), Vec::<String>::new(), "nothing has changed");
    project.write("kernels/common/shared.cuh", "#pragma once\n// changed\n");
    project.build(&[]).ok();
    let calls = project.calls();
    assert!(calls.len() == 1 && calls[0].ends_with("kernels/one.cu"), "who includes the header: {calls:?}");
    fs::remove_file(project.path("out/two.fatbin")).unwrap();
    project.build(&[]).ok();
    let calls = project.calls();
    assert!(calls.len() == 1 && calls[0].ends_with("kernels/two.cu"), "{calls:?}");
}

#[test]
fn every_file_that_matters_is_watched() {
    let project = Project::new().with_compiler();
    let watched = project.build(&[]).ok().lines("cargo::rerun-if-changed=");
    for file in ["kernels/one.cu", "kernels/common/shared.cuh", "kernels/conformance/three.cu", COMPILER_AT] {
        assert!(watched.iter().any(|path| Path::new(path) == project.path(file)), "{file} in {watched:?}");
    }
}

#[test]
fn launchers_get_the_constants_of_the_kernels() {
    let project = Project::new();
    project.write("kernels/common/shared.cuh", "static constexpr uint32_t kVector = 8;  // elements\n");
    let kernel = r#"// targets: sm_80 compute_80
#include "common/shared.cuh"
static constexpr uint32_t kWarps = 4, kThreads = kWarps * 32;
static constexpr uint32_t kLast = 0xffffffffu;
static constexpr uint32_t kRowBytes = (kVector << 1) + kWarps;
static constexpr uint32_t kMemoryBytes = sizeof(Memory);
static constexpr uint32_t kMore = kMemoryBytes + 1;
template <uint32_t kDepth>
static constexpr uint32_t kRing = kDepth * 2;
template <uint32_t kDepth>
struct Tile {
    static constexpr uint32_t kInside = 1;
};
using Tile64x2 = Tile<64, kWarps>;
using Stages = Ring<kWarps>;
"#;
    project.write("kernels/one.cu", kernel);
    // Without a compiler, too.
    project.build(&[]).ok();
    let expected = "\
pub mod one {
    pub const WARPS: u32 = 4;
    pub const THREADS: u32 = WARPS * 32;
    pub const LAST: u32 = 0xffffffff;
    pub const ROW_BYTES: u32 = (super::shared::VECTOR << 1) + WARPS;
    pub const TILE64X2: [u32; 2] = [64, WARPS];
}
pub mod shared {
    pub const VECTOR: u32 = 8;
}
";
    assert_eq!(fs::read_to_string(project.path("out/constants.rs")).unwrap(), expected);
}

#[test]
fn the_compiler_is_looked_for_place_by_place() {
    const IN_WHEELS: &str = "lib/python3.12/site-packages/nvidia/cu13/bin/nvcc";
    let project = Project::new();
    let at = |name: &str| project.path(name).display().to_string();
    let (nvcc, home, path) = (at("own/nvcc"), at("home"), format!("{}:/usr/bin:/bin", at("path")));
    let (other_home, environment) = (at("other"), at("environment"));
    let variables = [
        ("NVCC", nvcc.as_str()),
        ("CUDA_HOME", &home),
        ("CUDA_PATH", &other_home),
        ("PATH", &path),
        ("VIRTUAL_ENV", &environment),
    ];
    let in_environment = format!("environment/{IN_WHEELS}");
    let places = ["own/nvcc", "home/bin/nvcc", "other/bin/nvcc", "path/nvcc", &in_environment, COMPILER_AT];
    places.iter().for_each(|place| project.compiler_at(place));
    for (index, place) in places.iter().enumerate() {
        if toolkit_installed() && index > 3 {
            return eprintln!("the_compiler_is_looked_for…: cut short, this machine has a toolkit");
        }
        // A source that changed, so that whoever is found has something to do.
        project.write("kernels/two.cu", &format!("// targets: sm_90a\n// {place}\n"));
        let watched = project.build(&variables[index.min(1)..]).ok().lines("cargo::rerun-if-changed=");
        assert!(watched.contains(&at(place)), "{place} in {watched:?}");
        let noted = project.path(place).with_file_name("calls");
        assert!(noted.is_file(), "{place} was not the one that compiled");
        fs::remove_file(project.path(place)).unwrap();
    }
}

#[test]
fn files_are_compiled_side_by_side() {
    // Each compilation waits for another to begin: for 20 s, and for half a second where none may.
    Project::new().with_compiler().build(&[("RENDEZVOUS", "400")]).ok();
    let error = Project::new().with_compiler().build(&[("RENDEZVOUS", "10"), ("NUM_JOBS", "1")]).failed();
    assert!(error.contains("nothing else is compiled meanwhile"), "as many as cargo allows: {error}");
}

#[test]
fn rigel_cuda_archs_narrows_the_targets() {
    let project = Project::new().with_compiler();
    project.build(&[("RIGEL_CUDA_ARCHS", "sm_80")]).ok();
    let table = project.table();
    assert!(table.contains("image!(\"one\", &[\"sm_80\"]") && !table.contains("two"), "{table}");
    project.calls();
    project.build(&[("RIGEL_CUDA_ARCHS", "sm_90a, compute_80")]).ok();
    let calls = project.calls();
    assert!(calls[0].contains("code=compute_80 -I") && !calls[0].contains("code=sm_80"), "{calls:?}");
    assert!(project.table().contains("image!(\"two\", &[\"sm_90a\"]"));
    // Code for relatives of sm_80 is made where it is asked for, in files that have sm_80.
    project.build(&[("RIGEL_CUDA_ARCHS", "sm_80 sm_86 sm_90a")]).ok();
    let table = project.table();
    assert!(table.contains("image!(\"one\", &[\"sm_80\", \"sm_86\"]"), "{table}");
    assert!(table.contains("image!(\"two\", &[\"sm_90a\"]"), "{table}");
    assert!(project.calls()[0].contains("-gencode=arch=compute_86,code=sm_86"));
    let error = project.build(&[("RIGEL_CUDA_ARCHS", "sm_80,sm_70")]).failed();
    assert_eq!(
        error,
        "RIGEL_CUDA_ARCHS: no kernel is written for sm_70; there are: compute_80 sm_80 sm_86 sm_89 sm_90a"
    );
}

#[test]
fn a_package_knows_the_commit_it_was_made_from() {
    let commit = |info: &str, variables: &[(&str, &str)]| {
        let project = Project::new();
        project.write(".cargo_vcs_info.json", info);
        project.build(variables).ok().lines("cargo::rustc-env=RIGEL_COMMIT=")
    };
    let clean =
        "{\n  \"git\": {\n    \"sha1\": \"0123456789abcdef0123456789abcdef01234567\"\n  },\n  \"path_in_vcs\": \"\"\n}";
    assert_eq!(commit(clean, &[]), ["0123456789ab"]);
    let dirty = clean.replace("01234567\"\n", "01234567\",\n    \"dirty\": true\n");
    assert_eq!(commit(&dirty, &[]), ["0123456789ab-dirty"]);
    assert_eq!(commit(clean, &[("RIGEL_COMMIT", "v1")]), ["v1"]);
    assert_eq!(commit("{}", &[]), [""; 0]);
}

#[test]
fn rigel_trap_mbarrier_has_waits_trap_and_compiles_again() {
    let project = Project::new().with_compiler();
    let watched = project.build(&[("RIGEL_TRAP_MBARRIER", "0")]).ok().lines("cargo::rerun-if-env-changed=");
    assert!(watched.iter().any(|variable| variable == "RIGEL_TRAP_MBARRIER"), "{watched:?}");
    assert!(project.table().contains("MBARRIER_TRAP_SECONDS: Option<u32> = None"));
    let calls = project.calls();
    assert!(calls.len() == 3 && calls.iter().all(|call| !call.contains("-D")), "off by default: {calls:?}");

    project.build(&[("RIGEL_TRAP_MBARRIER", "2")]).ok();
    assert!(project.table().contains("MBARRIER_TRAP_SECONDS: Option<u32> = Some(2)"));
    let calls = project.calls();
    assert!(
        calls.len() == 3 && calls.iter().all(|call| call.contains(" -DRIGEL_MBARRIER_TRAP_NS=2000000000u ")),
        "{calls:?}"
    );
    project.build(&[]).ok();
    assert_eq!(project.calls().len(), 3, "back to waits that wait for ever");

    for wrong in ["5", "yes", "-1"] {
        let error = project.build(&[("RIGEL_TRAP_MBARRIER", wrong)]).failed();
        let expected = "expected 0 (off) or the seconds that a wait may last, 1 to 4";
        assert_eq!(error, format!("RIGEL_TRAP_MBARRIER={wrong}: {expected}"));
    }
}

#[test]
fn what_the_compiler_says_is_shown() {
    let project = Project::new().with_compiler();
    project.write("kernels/two.cu", "// targets: sm_90a\nBROKEN\n");
    let error = project.build(&[]).failed();
    assert!(error.contains("two.cu: nvcc failed"), "{error}");
    assert!(error.contains("two.cu(3): error: identifier \"x\" is undefined"), "{error}");
    assert!(!error.contains("ptxas info"), "{error}");
    project.write("kernels/two.cu", "// targets: sm_90a\n");
    project.build(&[]).ok();
}

#[test]
fn a_wrong_compiler_and_a_file_without_targets_are_named() {
    let project = Project::new().with_compiler();
    let error = project.build(&[("NVCC", "/nonexistent/nvcc")]).failed();
    assert_eq!(error, "NVCC=/nonexistent/nvcc is no file; unset it to search the usual places");
    let error = project.build(&[("NVCC", "/bin/true")]).failed();
    assert!(error.starts_with("/bin/true --version answered:"), "{error}");
    project.write("kernels/four.cu", "// No line on targets.\n");
    let error = project.build(&[]).failed();
    assert!(error.contains("four.cu: its first lines must name targets, as in: // targets: sm_80"), "{error}");
}

#[test]
fn a_file_reaches_the_headers_behind_its_headers() {
    let project = Project(tempfile::tempdir().unwrap());
    project.write(
        "a/file.cu",
        "#include \"beside.h\"\n  #include \"there.h\"\n#include <cmath>\n#include \"nowhere.h\"\n",
    );
    project.write("a/beside.h", "#include \"sub/deep.h\"\n");
    project.write("a/sub/deep.h", "#include \"beside.h\"\n// #include \"unused.h\"\n");
    // Beside the file that names it comes first, then the folders in their order.
    project.write("b/beside.h", "");
    project.write("b/there.h", "");
    project.write("c/there.h", "");
    project.write("c/unused.h", "");
    let files = sources::reach(&project.path("a/file.cu"), &[&project.path("b"), &project.path("c")]).unwrap();
    let expected = ["a/file.cu", "a/beside.h", "a/sub/deep.h", "b/there.h"].map(|name| project.path(name));
    // "beside.h" from a/sub is found in b: it is not beside it there.
    assert_eq!(files, BTreeSet::from(expected).into_iter().chain([project.path("b/beside.h")]).collect());
    let missing = project.path("a/none.cu");
    assert!(sources::reach(&missing, &[]).unwrap_err().starts_with(&missing.display().to_string()));
}

#[test]
fn a_key_changes_with_texts_names_and_how_they_are_compiled() {
    let project = Project(tempfile::tempdir().unwrap());
    project.write("one", "text");
    project.write("two", "text");
    let key =
        |names: &[&str], how: &str| sources::key(&names.iter().map(|name| project.path(name)).collect(), &how).unwrap();
    let before = key(&["one"], "-O2");
    assert_eq!(before, key(&["one"], "-O2"));
    for other in [key(&["one"], "-O3"), key(&["two"], "-O2"), key(&["one", "two"], "-O2")] {
        assert_ne!(before, other);
    }
    project.write("one", "texts");
    assert_ne!(before, key(&["one"], "-O2"));
    assert!(sources::key(&BTreeSet::from([project.path("three")]), &"").is_err());
}

#[test]
fn a_product_is_made_once_for_a_key_and_again_after_a_failure() {
    let project = Project(tempfile::tempdir().unwrap());
    let product = project.path("product");
    let made = AtomicUsize::new(0);
    let make = |key: &str| {
        made.store(0, Ordering::Relaxed);
        sources::make_once(&product, key, || {
            made.fetch_add(1, Ordering::Relaxed);
            fs::write(&product, key).map_err(|error| error.to_string())
        })
        .unwrap();
        made.load(Ordering::Relaxed)
    };
    assert_eq!([make("first"), make("first"), make("second"), make("second"), make("first")], [1, 0, 1, 0, 1]);
    // What a failed compiler leaves is not the product of the key before.
    let failed = sources::make_once(&product, "third", || {
        fs::write(&product, "half").unwrap();
        Err("it failed".to_owned())
    });
    assert_eq!(failed, Err("it failed".to_owned()));
    assert_eq!([make("first"), make("first")], [1, 0]);
    fs::remove_file(&product).unwrap();
    assert_eq!(make("first"), 1);
}

#[test]
fn each_item_is_worked_on_once_and_every_error_is_shown() {
    let items: Vec<usize> = (0..20).collect();
    let calls: Vec<AtomicUsize> = items.iter().map(|_| AtomicUsize::new(0)).collect();
    let work = |item: &usize| {
        calls[*item].fetch_add(1, Ordering::Relaxed);
        if item % 9 == 5 { Err(format!("item {item}")) } else { Ok(()) }
    };
    let errors = sources::for_each(&items, work).unwrap_err();
    assert_eq!(errors.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["item 5", "item 14"]));
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
    assert_eq!(sources::for_each(&[0usize; 0], work), Ok(()));
}

#[test]
fn the_commit_is_the_one_that_was_given_packaged_or_checked_out() {
    let project = Project::new();
    let commit = |variables: &[(&str, &str)]| project.build(variables).ok().lines("cargo::rustc-env=RIGEL_COMMIT=");
    let none: [&str; 0] = [];
    assert_eq!(commit(&[]), none);
    assert_eq!(commit(&[("RIGEL_COMMIT", "abc")]), ["abc"]);

    let packaged =
        "{\n  \"git\": {\n    \"sha1\": \"40b70d3ab8b0cc5d3a3c2e0d6a4b4a7b1f5e9d01\"\n  },\n  \"path_in_vcs\": \"\"\n}";
    project.write(".cargo_vcs_info.json", packaged);
    assert_eq!(commit(&[]), ["40b70d3ab8b0"]);
    assert_eq!(commit(&[("RIGEL_COMMIT", "abc")]), ["abc"]);
    project.write(".cargo_vcs_info.json", &packaged.replace("9d01\"", "9d01\", \"dirty\": true"));
    assert_eq!(commit(&[]), ["40b70d3ab8b0-dirty"]);
    for broken in ["{", "{\"git\": {\"sha1\": 7}}", "{\"git\": {\"sha1\": \"40b7\\nx\"}}"] {
        project.write(".cargo_vcs_info.json", broken);
        assert_eq!(commit(&[]), none, "{broken}");
    }

    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@b"];
        let command = Command::new("git").arg("-C").arg(project.path("")).args(identity).args(arguments).output();
        command.ok().filter(|output| output.status.success()).map(|output| String::from_utf8(output.stdout).unwrap())
    };
    if git(&["init"]).is_none() {
        return eprintln!("the_commit_is…: cut short, there is no git");
    }
    git(&["add", "kernels"]).unwrap();
    git(&["commit", "-m", "one"]).unwrap();
    let head = git(&["rev-parse", "--short=12", "HEAD"]).unwrap().trim().to_owned();
    // A checkout is asked for itself, and only where somebody may measure.
    assert_eq!(commit(&[]), none);
    assert_eq!(commit(&[("PROFILE", "release")]), [head.as_str()]);
    project.write("kernels/one.cu", "// targets: sm_80\n");
    assert_eq!(commit(&[("PROFILE", "release")]), [format!("{head}-dirty")]);
}
