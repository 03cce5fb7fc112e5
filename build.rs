//! Compiles `kernels/*.cu` with nvcc into one fatbin a file and writes `$OUT_DIR/images.rs`, the table that
//! `src/backend/cuda/image.rs` embeds them by, and `$OUT_DIR/constants.rs`, the constants that launchers share with
//! them. Where there is no nvcc the table is empty and the crate builds without GPU kernels; `RIGEL_REQUIRE_NVCC=1`
//! makes that an error, for releases and CI.

#[path = "build/commit.rs"]
mod commit;
#[path = "build/constants.rs"]
mod constants;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/sources.rs"]
mod sources;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nvcc::{Nvcc, Source};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            message.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let folder =
        |variable: &str| env::var_os(variable).map(PathBuf::from).ok_or(format!("cargo did not set {variable}"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR")?, folder("OUT_DIR")?);
    for watched in ["build.rs", "build", "src/backend/cuda/kernels", "kernels/conformance"] {
        // A new kernel comes with a new launcher: watching the launchers finds it.
        println!("cargo::rerun-if-changed={watched}");
    }
    commit::announce(&root);
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-env-changed=RIGEL_REQUIRE_NVCC");
    let required = env::var_os("RIGEL_REQUIRE_NVCC").is_some_and(|value| value != "0" && !value.is_empty());
    let kernels = root.join("kernels");
    write(&out.join("constants.rs"), &constants::constants(&[kernels.clone(), kernels.join("common")])?)?;
    let table = match Nvcc::find(&root)? {
        Some(nvcc) => {
            let conformance = kernels.join("conformance");
            let all = [Source::all(&kernels, &kernels)?, Source::all(&conformance, &kernels)?];
            let [sources, conformance] = Source::wanted(all)?;
            nvcc.compile(&sources, &kernels, &out)?;
            // Tests read these from where they lie (tests/kernels/conformance.rs); the binary has none of them.
            nvcc.compile(&conformance, &kernels, &out.join("conformance"))?;
            table(Some(&nvcc), &sources, &out)
        }
        None if required => return Err(format!("RIGEL_REQUIRE_NVCC is set, but there is no nvcc; {HOW_TO_GET}")),
        None => {
            println!("cargo::warning=no nvcc: building without GPU kernels, for the CPU only; {HOW_TO_GET}");
            table(None, &[], &out)
        }
    };
    write(&out.join("images.rs"), &table)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

const HOW_TO_GET: &str = "run tools/install-nvcc (300 MB from PyPI into .cuda/, no root), or set NVCC or CUDA_HOME";

/// The Rust source of the table.
fn table(nvcc: Option<&Nvcc>, sources: &[Source], out: &Path) -> String {
    let version = nvcc.map(|nvcc| nvcc.version.as_str());
    let seconds = nvcc.and_then(|nvcc| nvcc.trap_seconds);
    let mut text = format!("pub(super) const NVCC: Option<&str> = {version:?};\n");
    text.push_str(&format!("pub(super) const MBARRIER_TRAP_SECONDS: Option<u32> = {seconds:?};\n"));
    text.push_str("pub(super) static IMAGES: &[Image] = &[\n");
    for Source { name, targets, .. } in sources {
        let fatbin = out.join(name).with_extension("fatbin");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "    image!({name:?}, &{targets:?}, {fatbin:?}),");
    }
    text.push_str("];\n");
    text
}
