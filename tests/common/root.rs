//! Where tests find this repository's files.

use std::env;
use std::path::{Path, PathBuf};

/// Set where test binaries run away from their sources: a folder with what they read (`tools/gpu-check` packs one).
const VARIABLE: &str = "RIGEL_TEST_ROOT";

/// The root of the repository, or what stands for it.
pub fn root() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// Where build.rs left `kernels/conformance/<file>.cu`, compiled.
pub fn conformance_fatbin(file: &str) -> PathBuf {
    let folder = env::var_os(VARIABLE).map_or_else(|| PathBuf::from(env!("OUT_DIR")), PathBuf::from);
    Path::new(&folder).join("conformance").join(file).with_extension("fatbin")
}
