//! What this binary is: its version, the commit that it was built from, and what it computes with.

use std::sync::OnceLock;

use rigel::backend::cpu::Isa;
use rigel::bench::report::commit;

/// `0.2.0`
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `0.2.0 (commit 40b70d3ab8b0, kernels by nvcc 13.0.88 for sm_80 sm_90a, cpu avx512)`: what every report of a fault
/// needs.
pub fn long() -> &'static str {
    static LONG: OnceLock<String> = OnceLock::new();
    LONG.get_or_init(|| format!("{VERSION} (commit {}, {}, cpu {})", commit(), kernels(), isa()))
}

/// The instruction set of the CPU's kernels; what the variable says where it names none.
fn isa() -> &'static str {
    Isa::from_env().map_or("unknown", Isa::name)
}

#[cfg(feature = "cuda")]
fn kernels() -> String {
    use rigel::backend::cuda::{images, nvcc_version};
    match nvcc_version() {
        Some(nvcc) => format!("kernels by nvcc {nvcc} for {}", targets(images()).join(" ")),
        None => "no GPU kernels".to_owned(),
    }
}

/// What any of the kernels was compiled for, each once, in order.
#[cfg(feature = "cuda")]
pub fn targets(images: &[rigel::backend::cuda::Image]) -> Vec<&'static str> {
    let all: std::collections::BTreeSet<&str> = images.iter().flat_map(|image| image.targets).copied().collect();
    all.into_iter().collect()
}

#[cfg(not(feature = "cuda"))]
fn kernels() -> String {
    "no GPU kernels".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_names_commit_kernels_and_instruction_set() {
        let long = long();
        assert!(long.starts_with(&format!("{VERSION} (commit {}, ", commit())), "{long}");
        assert!(long.ends_with(')') && long.contains(", cpu "), "{long}");
        assert!(long.contains("kernels by nvcc ") || long.contains("no GPU kernels"), "{long}");
    }
}
