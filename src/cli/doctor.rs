//! `rigel doctor`: what this binary can do on this machine, and what to do about what is missing.

use clap::Args;
use rigel::host::AvailableMemory;

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
        let (on_gpu, usable) = gpu::findings();
        let findings = [vec![cpu(), memory(rigel::host::available_memory())], on_gpu, vec![models(usable)]].concat();
        findings.iter().flat_map(Finding::to_lines).try_for_each(|line| out.line(&line))
    }
}

/// One thing that was looked at: what it is, then what to do about it where it is amiss.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    subject: String,
    lines: Vec<String>,
}

impl Finding {
    fn new(subject: impl Into<String>, lines: Vec<String>) -> Finding {
        Finding { subject: subject.into(), lines }
    }

    /// Errors say what is wrong, a semicolon, what to do.
    #[cfg(feature = "cuda")]
    fn amiss(subject: impl Into<String>, error: &impl ToString) -> Finding {
        Finding::new(subject, error.to_string().split("; ").map(str::to_owned).collect())
    }

    /// The subject stands before the first line alone.
    fn to_lines(&self) -> Vec<String> {
        let subjects = std::iter::once(self.subject.as_str()).chain(std::iter::repeat(""));
        subjects.zip(&self.lines).map(|(subject, line)| format!("{subject:<8}  {line}")).collect()
    }
}

fn cpu() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Finding::new("cpu", vec![format!("{}, {threads} threads", std::env::consts::ARCH)])
}

/// What the CPU has for weights and cache.
fn memory(available: Option<AvailableMemory>) -> Finding {
    let line = match available {
        Some(AvailableMemory { bytes, limit }) => {
            format!("{:.1} GiB left in {limit}", bytes as f64 / (1u64 << 30) as f64)
        }
        None => "not known: the system does not say".to_owned(),
    };
    Finding::new("memory", vec![line])
}

/// What all that amounts to.
fn models(gpu: bool) -> Finding {
    let line = if gpu { "run on gpu 0; with --device cpu on the CPU" } else { "run on the CPU" };
    Finding::new("models", vec![line.to_owned()])
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::Finding;

    pub fn findings() -> (Vec<Finding>, bool) {
        let lines = ["none: built without the feature cuda", "build it again with default features"];
        (vec![Finding::new("kernels", lines.map(str::to_owned).to_vec())], false)
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::collections::BTreeMap;
    use std::fs;

    use rigel::backend::cuda::{
        CudaError, Device, Image, Properties, Switches, driver, images, mbarrier_trap_seconds, nvcc_version,
        properties, runs_on,
    };

    use super::Finding;

    /// What was found, and whether models run on the first GPU: the one that the device auto takes.
    pub fn findings() -> (Vec<Finding>, bool) {
        let mut findings = vec![kernels(nvcc_version(), images()), driver_found()];
        // Without a driver there is nothing to add: its line says what to do.
        let gpus = if driver::check().is_ok() { gpus() } else { Vec::new() };
        let usable = !images().is_empty() && gpus.first().is_some_and(|(_, usable)| *usable);
        findings.extend(gpus.into_iter().map(|(finding, _)| finding));
        findings.push(switches());
        (findings, usable)
    }

    /// What is set to find out which part is at fault: each variable, as it is now.
    fn switches() -> Finding {
        let switches = match Switches::from_env() {
            Ok(switches) => switches,
            Err(error) => return Finding::amiss("switches", &error),
        };
        let mut lines: Vec<String> = switches
            .settings()
            .into_iter()
            .map(|(switch, value)| {
                let set = if value == switch.values[0] { "" } else { " (set)" };
                format!("{:<36}  {}{set}", format!("{}={value}", switch.variable), switch.effect)
            })
            .collect();
        if let Some(seconds) = mbarrier_trap_seconds() {
            lines.push(format!("this build's kernels trap where they wait at an mbarrier for more than {seconds} s"));
        }
        Finding::new("switches", lines)
    }

    /// What was compiled in.
    fn kernels(nvcc: Option<&str>, images: &[Image]) -> Finding {
        let Some(nvcc) = nvcc else {
            return Finding::amiss("kernels", &CudaError::BuiltWithoutKernels);
        };
        let compiled = together(images.iter().map(|image| (image.targets.join(" "), image.name)));
        let mut lines = vec![format!("compiled by nvcc {nvcc}")];
        lines.extend(compiled.iter().flat_map(|(targets, names)| wrapped(&format!("{names} for {targets}"))));
        Finding::new("kernels", lines)
    }

    /// The names that share a key, in one text each.
    fn together<'a>(pairs: impl Iterator<Item = (String, &'a str)>) -> BTreeMap<String, String> {
        let mut groups = BTreeMap::<String, Vec<&str>>::new();
        pairs.for_each(|(key, name)| groups.entry(key).or_default().push(name));
        groups.into_iter().map(|(key, names)| (key, names.join(", "))).collect()
    }

    /// The text in lines that a terminal holds beside the subjects' column, cut between words.
    fn wrapped(text: &str) -> Vec<String> {
        const WIDTH: usize = 100;
        let mut lines: Vec<String> = Vec::new();
        for word in text.split(' ') {
            match lines.last_mut() {
                Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }

    fn driver_found() -> Finding {
        // The driver API names the CUDA that it supports, the kernel module its own release.
        let release = fs::read_to_string("/proc/driver/nvidia/version").ok();
        let release = release.as_deref().and_then(release_number).map_or(String::new(), |number| format!("{number}, "));
        match driver::check() {
            Ok(version) => Finding::new("driver", vec![format!("{release}supports CUDA {version}")]),
            Err(error) => Finding::amiss("driver", &format!("{release}{error}")),
        }
    }

    /// 580.95.05 of `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build …`.
    fn release_number(version: &str) -> Option<&str> {
        let is_release = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        version.lines().next()?.split_whitespace().find(is_release)
    }

    /// Each with whether its kernels load.
    fn gpus() -> Vec<(Finding, bool)> {
        match driver::device_count() {
            Ok(count) => (0..count).map(|ordinal| gpu(format!("gpu {ordinal}"), ordinal)).collect(),
            Err(error) => vec![(Finding::amiss("gpu", &error), false)],
        }
    }

    fn gpu(subject: String, ordinal: usize) -> (Finding, bool) {
        let properties = match properties(ordinal) {
            Ok(properties) => properties,
            Err(error) => return (Finding::amiss(subject, &error), false),
        };
        let (use_of_it, usable) = match usable(ordinal) {
            Ok(lines) => (lines, true),
            Err(error) => (Finding::amiss("", &error).lines, false),
        };
        (Finding::new(subject, [describe(&properties), use_of_it].concat()), usable)
    }

    fn describe(properties: &Properties) -> Vec<String> {
        let Properties { name, compute_capability, multiprocessors, shared_bytes, l2_bytes, memory_bytes, .. } =
            properties;
        vec![
            format!("{name}, compute capability {compute_capability}, {} of memory", gib(*memory_bytes)),
            format!(
                "{multiprocessors} multiprocessors with {} KiB of shared memory for a block, {} MiB of L2 cache",
                shared_bytes >> 10,
                l2_bytes >> 20
            ),
        ]
    }

    fn gib(bytes: u64) -> String {
        format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
    }

    /// Opens the GPU and loads every kernel that is for its generation onto it.
    fn usable(ordinal: usize) -> Result<Vec<String>, CudaError> {
        let device = Device::open(ordinal)?;
        let (free, _) = device.memory()?;
        let found = device.properties().compute_capability;
        // Where there is none at all, the first says what it was compiled for.
        let own = images().iter().enumerate().filter(|(index, image)| *index == 0 || runs_on(image.name, found));
        let loaded: Result<Vec<_>, CudaError> =
            own.map(|(_, image)| Ok((device.module(image.name)?.target().to_string(), image.name))).collect();
        let loaded = together(loaded?.into_iter());
        let mut lines = vec![format!("{} free", gib(free))];
        lines.extend(loaded.iter().flat_map(|(target, names)| wrapped(&format!("loads {names} as {target}"))));
        Ok(lines)
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
        fn long_lists_are_cut_between_words() {
            let text = ["kernel_name,"; 30].join(" ");
            let lines = wrapped(&text);
            assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= 100), "{lines:?}");
            assert_eq!(lines.join(" "), text);
        }

        #[test]
        fn what_was_compiled_in_is_listed_or_its_absence_explained() {
            let image = Image { name: "norm", targets: &["sm_80", "compute_80"], fatbin: &[] };
            let other = Image { name: "gemv", ..image };
            assert_eq!(
                kernels(Some("13.0.88"), &[image, other]).to_lines(),
                ["kernels   compiled by nvcc 13.0.88", "          norm, gemv for sm_80 compute_80"]
            );
            let missing = kernels(None, &[]).to_lines();
            assert_eq!(missing.len(), 2, "what is wrong, what to do");
            assert!(missing[1].contains("tools/install-nvcc"), "{missing:?}");
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
                algorithms: rigel::backend::cuda::Algorithms::default(),
            };
            assert_eq!(
                describe(&properties),
                [
                    "NVIDIA H200, compute capability 9.0, 140.0 GiB of memory",
                    "132 multiprocessors with 227 KiB of shared memory for a block, 50 MiB of L2 cache"
                ]
            );
        }
    }
}
