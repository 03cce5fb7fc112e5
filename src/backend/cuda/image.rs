//! The compiled kernels that are part of this binary: a table that build.rs writes.

use std::sync::OnceLock;

use super::fatbin::{self, Target};
use super::versions::ComputeCapability;

/// One `kernels/<name>.cu`, compiled.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    /// File name without `.cu`.
    pub name: &'static str,
    /// What it was compiled for: `sm_80`, `compute_80`, …
    pub targets: &'static [&'static str],
    /// The fatbin, aligned as the driver reads it.
    pub fatbin: &'static [u8],
}

/// The driver reads headers of 8-byte words; a cubin's own sections are aligned to 128 bytes at most.
#[repr(C, align(128))]
#[allow(dead_code)]
struct Aligned<const N: usize>([u8; N]);

// Unused where the table is empty.
#[allow(unused_macros)]
macro_rules! image {
    ($name:literal, $targets:expr, $path:literal) => {{
        static FATBIN: Aligned<{ include_bytes!($path).len() }> = Aligned(*include_bytes!($path));
        Image { name: $name, targets: $targets, fatbin: &FATBIN.0 }
    }};
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Every kernel file in this binary, by name. Empty where it was built without nvcc.
pub fn images() -> &'static [Image] {
    IMAGES
}

/// Whether the kernel file `name` is in this binary, with code that a GPU of this generation runs: a file of instructions
/// that one generation alone has holds none for others. Launchers ask for every launch: the fatbins are read once.
pub fn runs_on(name: &str, device: ComputeCapability) -> bool {
    static TARGETS: OnceLock<Vec<(&str, Vec<Target>)>> = OnceLock::new();
    let targets = TARGETS.get_or_init(|| {
        let of = |image: &Image| {
            let entries = fatbin::entries(image.fatbin).unwrap_or_default();
            (image.name, entries.iter().map(|entry| entry.target).collect())
        };
        images().iter().map(of).collect()
    });
    targets.iter().any(|(of, targets)| *of == name && targets.iter().any(|target| target.runs_on(device)))
}

/// After how many seconds a wait at an mbarrier traps; `None` if this build's waits never do.
pub fn mbarrier_trap_seconds() -> Option<u32> {
    MBARRIER_TRAP_SECONDS
}

/// The version of the nvcc that compiled them, such as `13.0.88`.
pub fn nvcc_version() -> Option<&'static str> {
    NVCC
}
