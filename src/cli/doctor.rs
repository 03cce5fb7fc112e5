//! `rigel doctor`: what this binary can do on this machine, and what to do about what is missing.

use clap::Args;

use super::error::CliError;
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel doctor";

/// What this binary and this machine can do: kernels, driver, GPUs, memory
///
/// Prints what was compiled in and what was found, and under each thing that is missing what to do about it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {}

impl Doctor {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let findings = [vec![cpu()], gpu::findings()].concat();
        findings.iter().try_for_each(|finding| out.line(&finding.to_line()))
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    subject: String,
    text: String,
}

impl Finding {
    fn new(subject: impl Into<String>, text: impl Into<String>) -> Finding {
        Finding { subject: subject.into(), text: text.into() }
    }

    fn to_line(&self) -> String {
        format!("{:<8}  {}", self.subject, self.text)
    }
}

fn cpu() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Finding::new("cpu", format!("{}, {threads} threads; always there, --device cpu", std::env::consts::ARCH))
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::Finding;

    pub fn findings() -> Vec<Finding> {
        vec![Finding::new("kernels", "none: built without the feature cuda; build again with default features")]
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::fs;

    use rigel::backend::cuda::{CudaError, Device, Image, Properties, driver, images, nvcc_version, properties};

    use super::Finding;

    pub fn findings() -> Vec<Finding> {
        let mut findings = vec![kernels(nvcc_version(), images()), driver_found()];
        // Without a driver there is nothing to add: its line says what to do.
        if driver::check().is_ok() {
            findings.extend(gpus());
        }
        findings
    }

    /// What was compiled in.
    fn kernels(nvcc: Option<&str>, images: &[Image]) -> Finding {
        let Some(nvcc) = nvcc else {
            return Finding::new("kernels", format!("none: {}", CudaError::BuiltWithoutKernels));
        };
        let files: Vec<String> = images.iter().map(|i| format!("{} ({})", i.name, i.targets.join(" "))).collect();
        Finding::new("kernels", format!("nvcc {nvcc}: {}", files.join(", ")))
    }

    fn driver_found() -> Finding {
        // The driver API names the CUDA that it supports, the kernel module its own release.
        let release = fs::read_to_string("/proc/driver/nvidia/version").ok();
        let release = release.as_deref().and_then(release_number).map_or(String::new(), |number| format!("{number}, "));
        Finding::new(
            "driver",
            match (driver::version(), driver::check()) {
                (Ok(version), Ok(_)) => format!("{release}supports CUDA {version}"),
                (Ok(_), Err(error)) | (Err(error), _) => format!("{release}{error}"),
            },
        )
    }

    /// 580.95.05 of `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build …`.
    fn release_number(version: &str) -> Option<&str> {
        let is_release = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        version.lines().next()?.split_whitespace().find(is_release)
    }

    fn gpus() -> Vec<Finding> {
        match driver::device_count() {
            Ok(count) => (0..count).map(|ordinal| Finding::new(format!("gpu {ordinal}"), gpu(ordinal))).collect(),
            Err(error) => vec![Finding::new("gpu", error.to_string())],
        }
    }

    fn gpu(ordinal: usize) -> String {
        match properties(ordinal) {
            Ok(properties) => {
                let use_of_it = usable(ordinal).unwrap_or_else(|error| error.to_string());
                format!("{}; {use_of_it}", describe(&properties))
            }
            Err(error) => error.to_string(),
        }
    }

    fn describe(properties: &Properties) -> String {
        let Properties { name, compute_capability, multiprocessors, shared_bytes, l2_bytes, memory_bytes } = properties;
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        format!(
            "{name}, compute capability {compute_capability}, {:.1} GiB, {multiprocessors} multiprocessors with {} KiB \
             of shared memory for a block, {} MiB of L2",
            gib(*memory_bytes),
            shared_bytes >> 10,
            l2_bytes >> 20
        )
    }

    /// Opens the GPU and loads every kernel onto it.
    fn usable(ordinal: usize) -> Result<String, CudaError> {
        let device = Device::open(ordinal)?;
        let (free, _) = device.memory()?;
        let free = free as f64 / (1u64 << 30) as f64;
        let mut targets = Vec::new();
        for image in images() {
            targets.push(format!("{} as {}", image.name, device.module(image.name)?.target()));
        }
        if targets.is_empty() {
            return Err(CudaError::BuiltWithoutKernels);
        }
        Ok(format!("{free:.1} GiB free; runs {}", targets.join(", ")))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_release_is_found_in_either_driver_s_words() {
            let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root)\nGCC";
            let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n";
            assert_eq!(release_number(open), Some("580.95.05"));
            assert_eq!(release_number(closed), Some("550.54.15"));
            assert_eq!(release_number(""), None);
        }

        #[test]
        fn what_was_compiled_in_is_listed_or_its_absence_explained() {
            let image = Image { name: "norm", targets: &["sm_80", "compute_80"], fatbin: &[] };
            assert_eq!(kernels(Some("13.0.88"), &[image]).to_line(), "kernels   nvcc 13.0.88: norm (sm_80 compute_80)");
            assert!(kernels(None, &[]).text.contains("tools/install-nvcc"));
        }

        #[test]
        fn a_gpu_is_described_in_its_units() {
            let properties = Properties {
                name: "NVIDIA H200".to_owned(),
                compute_capability: rigel::backend::cuda::ComputeCapability { major: 9, minor: 0 },
                multiprocessors: 132,
                shared_bytes: 232_448,
                l2_bytes: 50 << 20,
                memory_bytes: 140 << 30,
            };
            assert_eq!(
                describe(&properties),
                "NVIDIA H200, compute capability 9.0, 140.0 GiB, 132 multiprocessors with 227 KiB of shared memory for \
                 a block, 50 MiB of L2"
            );
        }
    }
}
