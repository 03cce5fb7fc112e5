//! Compiles the interpreter, and with the host compiler every kernel file, into one library that stands in for the
//! driver's: `$OUT_DIR/libcuda.so`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Flags of the kernel files. The sanitizers put calls before every load and store, which the interpreter answers
/// itself (cpp/hooks.cpp); no sanitizer library is linked. A call in tail position would hide the line it is on.
const KERNEL_FLAGS: &[&str] = &[
    "-xc++",
    "-fsanitize=thread,alignment",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-optimize-sibling-calls",
    "-fno-strict-aliasing",
    "-fno-ipa-icf",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-exceptions",
    "-Wno-unknown-pragmas",
];

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = here.parent().expect("the crate lies in kernels/").to_path_buf();
    for watched in ["", "ptx", "common", "conformance", "interpreter/cpp", "interpreter/include", "interpreter/planted"]
    {
        println!("cargo::rerun-if-changed={}", kernels.join(watched).display());
    }

    let runtime = sources(&[here.join("cpp"), here.join("cpp/driver")], "cpp");
    let mut objects = compiler(&here).opt_level(3).files(runtime).compile_intermediates();
    let mut kernel_compiler = compiler(&here);
    kernel_compiler.opt_level(2).include(&kernels);
    for flag in KERNEL_FLAGS {
        kernel_compiler.flag(flag);
    }
    let kernel_files = sources(&[kernels.clone(), kernels.join("conformance"), here.join("planted")], "cu");
    objects.extend(kernel_compiler.files(kernel_files).compile_intermediates());

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

fn compiler(here: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").include(here.join("include")).include(here.join("cpp"));
    // Line tables for the reports; all symbols but the driver's stay inside.
    build.pic(true).debug(true).flag("-fvisibility=hidden").flag("-fno-omit-frame-pointer");
    build.flag_if_supported("-Wno-psabi").cargo_warnings(true).warnings(true);
    build
}

/// The files of these folders with this extension, sorted; a folder that is not there holds none.
fn sources(folders: &[PathBuf], extension: &str) -> Vec<PathBuf> {
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
