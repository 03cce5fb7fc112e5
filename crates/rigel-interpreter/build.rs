//! Compiles the interpreter, and with the host compiler every kernel file, into one library that stands in for the
//! driver's: `$OUT_DIR/libcuda.so`. A file is compiled again when it or a header that it reaches has changed.

#[path = "../../build/sources.rs"]
mod sources;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sources::{for_each, key, make_once, reach};

/// Flags of the kernel files. The sanitizers put calls before every load and store, which the interpreter answers
/// itself (cpp/hooks.cpp); no sanitizer library is linked. A call in tail position would hide the line it is on. Large
/// frames touch each of their pages, so that none steps over a stack's guard page.
const KERNEL_FLAGS: &[&str] = &[
    "-xc++",
    "-fsanitize=thread,alignment",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-optimize-sibling-calls",
    "-fstack-clash-protection",
    "-fno-strict-aliasing",
    "-fno-ipa-icf",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-exceptions",
    "-Wno-unknown-pragmas",
];

/// Folders of more kernel files to compile in, as in `PATH`.
const KERNELS_VARIABLE: &str = "RIGEL_INTERPRETER_KERNELS";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let root = here.ancestors().nth(2).expect("the crate lies in crates/").to_path_buf();
    let kernels = root.join("kernels");
    // Kernels that are not Rigel's, by the folders that hold them.
    println!("cargo::rerun-if-env-changed={KERNELS_VARIABLE}");
    let theirs: Vec<PathBuf> = env::var_os(KERNELS_VARIABLE)
        .iter()
        .flat_map(|folders| env::split_paths(folders).collect::<Vec<_>>())
        .collect();
    if let Some(missing) = theirs.iter().find(|folder| !folder.is_dir() || folder.is_relative()) {
        println!("cargo::error={KERNELS_VARIABLE}: {} is no folder; give absolute paths of folders", missing.display());
        std::process::exit(1);
    }
    let own = ["cpp", "include", "planted"].map(|folder| here.join(folder));
    let of_rigel = ["", "ptx", "common", "conformance"].map(|folder| kernels.join(folder));
    for watched in own.iter().chain(&of_rigel).chain(&theirs) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }

    let runtime = files_of(&[here.join("cpp"), here.join("cpp/driver")], "cpp");
    let mut objects = compile(compiler(&here).opt_level(3), &[], &runtime, &root, &out);
    let mut kernel_compiler = compiler(&here);
    kernel_compiler.opt_level(2).include(&kernels);
    let folders = [vec![kernels.clone(), kernels.join("conformance"), here.join("planted")], theirs].concat();
    objects.extend(compile(&kernel_compiler, KERNEL_FLAGS, &files_of(&folders, "cu"), &root, &out));

    // The name inside the library is the one that a program asks the loader for: who has loaded this library gets it in
    // place of the driver's, wherever it lies.
    let library = out.join("libcuda.so");
    let mut link = compiler(&here).get_compiler().to_command();
    link.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,--no-undefined", "-o"]).arg(&library).args(&objects);
    link.args(["-lpthread", "-ldl"]);
    let status = link.status().unwrap_or_else(|error| panic!("cannot run the host compiler's linker: {error}"));
    assert!(status.success(), "linking {} failed", library.display());
    println!("cargo::rustc-env=RIGEL_INTERPRETER_LIBRARY={}", library.display());
}

/// One object for each file, in `out`. `root` is the repository's. Ends the build with what the compiler said where it
/// fails.
fn compile(compiler: &cc::Build, flags: &[&str], files: &[PathBuf], root: &Path, out: &Path) -> Vec<PathBuf> {
    let tool = compiler.get_compiler();
    let include = ["crates/rigel-interpreter/include", "crates/rigel-interpreter/cpp", "kernels"];
    let include = include.map(|folder| root.join(folder));
    let object = |file: &Path| {
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy().replace(['/', '\\'], "-");
        out.join(name).with_extension("o")
    };
    let how = (tool.path(), version(tool.path()), tool.args(), flags);
    let compile_one = |file: &PathBuf| {
        let object = object(file);
        let key = key(&reach(file, &include.each_ref().map(|folder| folder.as_path()))?, &how)?;
        make_once(&object, &key, || {
            let mut command = tool.to_command();
            let output = command.args(flags).arg("-c").arg(file).arg("-o").arg(&object).output();
            let output = output.map_err(|error| format!("{}: {error}", tool.path().display()))?;
            let said = String::from_utf8_lossy(&output.stderr);
            if !output.status.success() {
                return Err(format!("{}: the host compiler failed\n{said}", file.display()));
            }
            said.lines().for_each(|line| println!("cargo::warning={line}"));
            Ok(())
        })
    };
    if let Err(message) = for_each(files, compile_one) {
        message.lines().for_each(|line| println!("cargo::error={line}"));
        std::process::exit(1);
    }
    files.iter().map(|file| object(file)).collect()
}

/// What the compiler says that it is; nothing where it does not say.
fn version(compiler: &Path) -> Vec<u8> {
    Command::new(compiler).arg("--version").output().map(|output| output.stdout).unwrap_or_default()
}

fn compiler(here: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include(here.join("include")).include(here.join("cpp"));
    // Line tables for the reports; all symbols but the driver's stay inside.
    build.pic(true).debug(true).flag("-fvisibility=hidden").flag("-fno-omit-frame-pointer");
    build.flag_if_supported("-Wno-psabi").cargo_warnings(true).warnings(true);
    build
}

/// The files of these folders with this extension, sorted; a folder that is not there holds none.
fn files_of(folders: &[PathBuf], extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == extension))
        .collect();
    found.sort();
    found
}
