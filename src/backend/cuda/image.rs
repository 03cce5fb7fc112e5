//! The compiled kernels that are part of this binary: a table that build.rs writes.

use super::target::{self, Target};
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

impl Image {
    /// What of it a GPU of this generation runs; `None` if nothing does.
    pub(super) fn target(&self, device: ComputeCapability) -> Option<Target> {
        // build.rs checked the names.
        target::choose(self.targets.iter().filter_map(|name| name.parse().ok()), device)
    }

    /// Whether the fatbin is as long as its header says: the driver reads what the header says.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        const MAGIC: u32 = 0xba55_ed50;
        // Magic, version and header size of 16 bits each, bytes behind the header.
        let (head, _) = self.fatbin.split_first_chunk::<16>().ok_or(format!("it has {} bytes", self.fatbin.len()))?;
        let [m0, m1, m2, m3, _, _, h0, h1, body @ ..] = *head;
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        if magic != MAGIC {
            return Err(format!("it starts with {magic:#x}, not with a fatbin's {MAGIC:#x}"));
        }
        let length = u64::from_le_bytes(body).saturating_add(u16::from_le_bytes([h0, h1]).into());
        if length > self.fatbin.len() as u64 {
            return Err(format!("it has {} bytes, its header says {length}", self.fatbin.len()));
        }
        Ok(())
    }
}

/// Whether the kernel file `name` is in this binary, with code that a GPU of this generation runs: a file of
/// instructions that one generation alone has holds none for others.
pub fn runs_on(name: &str, device: ComputeCapability) -> bool {
    images().iter().any(|image| image.name == name && image.target(device).is_some())
}

/// After how many seconds a wait at an mbarrier traps; `None` if this build's waits never do.
pub fn mbarrier_trap_seconds() -> Option<u32> {
    MBARRIER_TRAP_SECONDS
}

/// The version of the nvcc that compiled them, such as `13.0.88`.
pub fn nvcc_version() -> Option<&'static str> {
    NVCC
}
