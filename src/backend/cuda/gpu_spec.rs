//! GPUs that are known by name, for plans on machines that have none.

use super::device::Properties;
use super::switches::Algorithms;
use super::versions::ComputeCapability;

/// A GPU by its data sheet.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuSpec {
    /// What it is called on a command line: `h200`.
    pub name: &'static str,
    /// What the driver says of it.
    pub properties: Properties,
    /// Bytes of its memory that can be read a second, by the data sheet.
    pub bytes_per_second: f64,
}

/// Of each GPU: its name, the driver's name for it, compute capability, SMs, KiB of shared memory that a
/// block may have, MiB of L2, MiB of memory as the driver counts them, GB/s.
type Row = (&'static str, &'static str, (u32, u32), u32, u32, u64, u64, f64);

const GPUS: [Row; 8] = [
    ("h200", "NVIDIA H200", (9, 0), 132, 227, 50, 143_771, 4800.0),
    ("h100", "NVIDIA H100 80GB HBM3", (9, 0), 132, 227, 50, 81_559, 3350.0),
    ("h100-pcie", "NVIDIA H100 PCIe", (9, 0), 114, 227, 50, 81_559, 2000.0),
    ("a100", "NVIDIA A100-SXM4-80GB", (8, 0), 108, 163, 40, 81_920, 2039.0),
    ("a100-40gb", "NVIDIA A100-SXM4-40GB", (8, 0), 108, 163, 40, 40_960, 1555.0),
    ("l40s", "NVIDIA L40S", (8, 9), 142, 99, 96, 46_068, 864.0),
    ("rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 128, 99, 72, 24_564, 1008.0),
    ("rtx3090", "NVIDIA GeForce RTX 3090", (8, 6), 82, 99, 6, 24_576, 936.0),
];

impl GpuSpec {
    /// All of them, the largest first.
    pub fn all() -> Vec<GpuSpec> {
        GPUS.iter().map(GpuSpec::of).collect()
    }

    fn of(&(name, driver, (major, minor), sm_count, shared, l2, memory, gigabytes): &Row) -> GpuSpec {
        GpuSpec {
            name,
            properties: Properties {
                name: driver.to_owned(),
                compute_capability: ComputeCapability { major, minor },
                sm_count,
                shared_bytes: shared << 10,
                l2_bytes: l2 << 20,
                memory_bytes: memory << 20,
                algorithms: Algorithms::default(),
            },
            bytes_per_second: gigabytes * 1e9,
        }
    }

    /// The largest, an H200: what is worked out for it where there is no GPU to ask.
    pub fn h200() -> GpuSpec {
        GpuSpec::of(&GPUS[0])
    }

    /// The one of this name, in any case.
    pub fn find(name: &str) -> Option<GpuSpec> {
        GpuSpec::all().into_iter().find(|gpu| gpu.name.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_found_by_name_and_take_the_kernels() {
        for gpu in GpuSpec::all() {
            assert!(gpu.properties.check().is_ok(), "{gpu:?}");
            assert_eq!(GpuSpec::find(&gpu.name.to_uppercase()), Some(gpu));
        }
        assert_eq!(GpuSpec::find("h300"), None);
        assert_eq!(GpuSpec::find("h200"), Some(GpuSpec::h200()));
    }
}
