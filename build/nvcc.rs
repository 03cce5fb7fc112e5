//! Finds nvcc and turns one `.cu` into one fatbin, for build scripts. Knows nothing of what a kernel does or of
//! who embeds it.
//!
//! A `.cu` names its targets in its first lines: `// targets: sm_80 compute_80 sm_90`, where `sm_N` is machine code
//! and `compute_N` is PTX for GPUs that come later.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources::{for_each, key, make_once, reach};

/// Flags of every kernel. ptxas's report is kept for the tests.
const FLAGS: [&str; 5] = ["--fatbin", "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v"];

/// Releases have their kernels compressed, to about a sixth: the driver reads that, the interpreter, which tests run
/// on, does not.
fn compression() -> &'static str {
    if env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
        "--compress-mode=size"
    } else {
        "--no-compress"
    }
}

/// Local memory is an error, but where waits trap: the clock that they read costs registers.
const NO_LOCAL_MEMORY: [&str; 2] = ["-Xptxas=-warn-spills", "-Xptxas=-warn-lmem-usage"];

/// Machine code that only `RIGEL_CUDA_ARCHS` asks for, in files that name the first target: GPUs of these run that
/// target's code, and code of their own is scheduled for them. It doubles the time of a build.
const BESIDES: (&str, [&str; 2]) = ("sm_80", ["sm_86", "sm_89"]);

/// A note to ptxas, an error here: matrix instructions that wait for each other, a setmaxnreg that is ignored.
const LOSS: &str = "Potential Performance Loss";

/// A compiler that was found and answered with its version.
pub struct Nvcc {
    path: PathBuf,
    /// `13.0.88`
    pub version: String,
    /// After how many seconds a wait at an mbarrier traps: see `kernels/ptx/mbarrier_trap.cuh`.
    pub trap_seconds: Option<u32>,
}

impl Nvcc {
    /// The first nvcc of: `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, `/usr/local/cuda`, the wheels in `VIRTUAL_ENV`,
    /// the wheels in `<root>/.cuda` (tools/install-nvcc). `None` where there is none; an error where `NVCC` names
    /// something else or the compiler does not run.
    pub fn find(root: &Path) -> Result<Option<Nvcc>, String> {
        for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        if let Some(path) = env::var_os("NVCC").map(PathBuf::from) {
            if !path.is_file() {
                return Err(format!("NVCC={} is no file; unset it to search the usual places", path.display()));
            }
            return Nvcc::at(path).map(Some);
        }
        let homes =
            ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| PathBuf::from(home).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let virtual_env = env::var_os("VIRTUAL_ENV").map(PathBuf::from);
        let found = homes
            .chain(env::split_paths(&path).filter(|folder| !folder.as_os_str().is_empty()))
            .chain([PathBuf::from("/usr/local/cuda/bin")])
            .chain(virtual_env.iter().flat_map(|venv| wheels(venv)))
            .chain(wheels(&root.join(".cuda")))
            .map(|folder| folder.join("nvcc"))
            .find(|nvcc| nvcc.is_file());
        match found {
            Some(path) => Nvcc::at(path).map(Some),
            None => {
                // Only now: else every change of PATH, such as between a terminal and an editor, would build again.
                println!("cargo::rerun-if-env-changed=PATH");
                Ok(None)
            }
        }
    }

    fn at(path: PathBuf) -> Result<Nvcc, String> {
        println!("cargo::rerun-if-changed={}", path.display());
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .map_err(|error| format!("{} does not run: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // "Cuda compilation tools, release 13.0, V13.0.88"
        let version = text.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
        match version {
            Some(version) if output.status.success() => {
                Ok(Nvcc { path, version: version.to_owned(), trap_seconds: trap_seconds()? })
            }
            _ => Err(format!("{} --version answered: {}", path.display(), text.trim())),
        }
    }

    /// Compiles every source into `out/<name>.fatbin`, with ptxas's report beside it in `out/<name>.ptxas` and the
    /// time of each of nvcc's phases in `out/<name>.time`, as many at a time as cargo allows jobs. A source whose
    /// text, headers, targets, flags and compiler are those of the last time is left as it is. The error holds what
    /// nvcc said.
    pub fn compile(&self, sources: &[Source], include: &Path, out: &Path) -> Result<(), String> {
        fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
        for_each(sources, |source| self.compile_one(source, include, out))
    }

    fn compile_one(&self, source: &Source, include: &Path, out: &Path) -> Result<(), String> {
        let file = |extension: &str| out.join(&source.name).with_extension(extension);
        let fatbin = file("fatbin");
        let how = (FLAGS, compression(), NO_LOCAL_MEMORY, &source.targets, &self.version, self.trap_seconds);
        let key = key(&source.files, &how)?;
        make_once(&fatbin, &key, || {
            let mut command = Command::new(&self.path);
            match self.trap_seconds {
                Some(seconds) => {
                    let nanoseconds = u64::from(seconds) * 1_000_000_000;
                    command.args(FLAGS).arg(format!("-DRIGEL_MBARRIER_TRAP_NS={nanoseconds}u"))
                }
                None => command.args(FLAGS).args(NO_LOCAL_MEMORY),
            };
            command.arg(compression()).arg("--time").arg(file("time"));
            command.args(source.targets.iter().map(|target| generate_code(target)));
            command.arg("-I").arg(include).arg("-o").arg(&fatbin).arg(&source.path);
            let output = command.output().map_err(|error| format!("{} does not run: {error}", self.path.display()))?;
            let report = [output.stdout, output.stderr].concat();
            let report = String::from_utf8_lossy(&report);
            if !output.status.success() {
                return Err(format!("{}: nvcc failed\n{}", source.path.display(), without_notes(&report)));
            }
            let loss = report.lines().find(|line| line.contains(LOSS));
            if let Some(loss) = loss.filter(|_| self.trap_seconds.is_none()) {
                return Err(format!("{}: {loss}", source.path.display()));
            }
            let path = file("ptxas");
            fs::write(&path, &*report).map_err(|error| format!("{}: {error}", path.display()))
        })
    }
}

/// What `RIGEL_TRAP_MBARRIER` says: nothing or 0 for never. The kernels count nanoseconds in 32 bits.
fn trap_seconds() -> Result<Option<u32>, String> {
    println!("cargo::rerun-if-env-changed=RIGEL_TRAP_MBARRIER");
    match env::var("RIGEL_TRAP_MBARRIER").unwrap_or_default().as_str() {
        "" | "0" => Ok(None),
        seconds @ ("1" | "2" | "3" | "4") => Ok(seconds.parse().ok()),
        other => {
            Err(format!("RIGEL_TRAP_MBARRIER={other}: expected 0 (off) or the seconds that a wait may last, 1 to 4"))
        }
    }
}

/// `<venv>/lib/python3.*/site-packages/nvidia/cu13/bin`, where NVIDIA's wheels put nvcc.
fn wheels(venv: &Path) -> Vec<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).into_iter().flatten().flatten();
    pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin")).collect()
}

/// `sm_90a` → machine code of compute_90a; `compute_80` → its PTX.
fn generate_code(target: &str) -> String {
    let number = target.trim_start_matches("sm_").trim_start_matches("compute_");
    format!("-gencode=arch=compute_{number},code={target}")
}

/// What went wrong, without ptxas's lines on what went well.
fn without_notes(report: &str) -> String {
    let notes = ["ptxas info", "    0 bytes stack frame"];
    report.lines().filter(|line| !notes.iter().any(|note| line.starts_with(note))).collect::<Vec<_>>().join("\n")
}

/// One `.cu` and what it is compiled for.
pub struct Source {
    /// File name without `.cu`.
    pub name: String,
    path: PathBuf,
    /// Of the targets that the file names, those that are wanted.
    pub targets: Vec<String>,
    /// The file, then every header that it reaches by `#include "…"`.
    files: BTreeSet<PathBuf>,
}

impl Source {
    /// Every `.cu` directly in `folder`, by name; headers are looked up in `include`. Has cargo watch each of the
    /// files (not the folder: cargo would watch all that lies below it).
    pub fn all(folder: &Path, include: &Path) -> Result<Vec<Source>, String> {
        let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
        paths.sort();
        let sources: Vec<Source> =
            paths.into_iter().map(|path| Source::read(path, include)).collect::<Result<_, _>>()?;
        for file in sources.iter().flat_map(|source| &source.files).collect::<BTreeSet<_>>() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        Ok(sources)
    }

    fn read(path: PathBuf, include: &Path) -> Result<Source, String> {
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let line =
            text.lines().take_while(|line| line.starts_with("//")).find_map(|line| line.strip_prefix("// targets:"));
        let targets: Vec<String> = line.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let known = |target: &String| {
            let number = target.strip_prefix("sm_").or_else(|| target.strip_prefix("compute_"));
            number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        };
        if targets.is_empty() || !targets.iter().all(known) {
            let path = path.display();
            return Err(format!(
                "{path}: its first lines must name targets, as in: // targets: sm_80 compute_80 sm_90"
            ));
        }
        let files = reach(&path, &[include])?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Source { name, path, targets, files })
    }

    /// Every group with the targets that `RIGEL_CUDA_ARCHS` names (`sm_90,sm_90a`), of those that a file names and of
    /// [`BESIDES`], and without the sources that are left with none. Where it is not set, what the files name. A name
    /// that fits no source of any group is an error.
    pub fn wanted<const N: usize>(groups: [Vec<Source>; N]) -> Result<[Vec<Source>; N], String> {
        println!("cargo::rerun-if-env-changed=RIGEL_CUDA_ARCHS");
        let Some(wanted) = env::var("RIGEL_CUDA_ARCHS").ok().filter(|wanted| !wanted.is_empty()) else {
            return Ok(groups);
        };
        let groups = groups.map(|mut sources| {
            for source in sources.iter_mut().filter(|source| source.targets.iter().any(|target| target == BESIDES.0)) {
                source.targets.extend(BESIDES.1.map(str::to_owned));
            }
            sources
        });
        let wanted: BTreeSet<&str> = wanted.split([',', ' ']).filter(|target| !target.is_empty()).collect();
        let named: BTreeSet<&String> = groups.iter().flatten().flat_map(|source| &source.targets).collect();
        if let Some(unknown) = wanted.iter().find(|target| !named.iter().any(|name| name == *target)) {
            let named: Vec<&str> = named.into_iter().map(String::as_str).collect();
            return Err(format!(
                "RIGEL_CUDA_ARCHS: no kernel is written for {unknown}; there are: {}",
                named.join(" ")
            ));
        }
        Ok(groups.map(|mut sources| {
            sources.iter_mut().for_each(|source| source.targets.retain(|target| wanted.contains(target.as_str())));
            sources.retain(|source| !source.targets.is_empty());
            sources
        }))
    }
}
