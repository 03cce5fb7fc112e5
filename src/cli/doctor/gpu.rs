//! Kernels, driver, GPUs and the switches for them.

#![cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "without the feature nothing of it is found"))]

use serde::Serialize;

use super::text::Finding;

/// What was found on the way to a GPU, and whether models run on the first: the one that the device auto takes.
#[derive(Debug, Default, Serialize)]
pub(super) struct GpuReport {
    kernels: Kernels,
    driver: Option<Driver>,
    gpus: Vec<Gpu>,
    switches: Vec<Setting>,
    #[serde(skip)]
    pub(super) usable: bool,
    /// Why there is a GPU that cannot be used.
    #[serde(skip)]
    pub(super) problems: Vec<String>,
    /// All of it for people.
    #[serde(skip)]
    pub(super) findings: Vec<Finding>,
}

/// What was compiled in.
#[derive(Debug, Default, Serialize)]
struct Kernels {
    nvcc: Option<&'static str>,
    targets: Vec<&'static str>,
    names: Vec<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct Driver {
    /// Of the kernel module, such as 580.95.05.
    release: Option<String>,
    cuda: Option<String>,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Gpu {
    ordinal: usize,
    name: String,
    compute_capability: String,
    sm_count: u32,
    memory_bytes: u64,
    free_bytes: Option<u64>,
    problem: Option<String>,
}

/// A variable that switches something off, or chooses it by name.
#[derive(Debug, Serialize)]
struct Setting {
    variable: &'static str,
    value: String,
    set: bool,
}

#[cfg(not(feature = "cuda"))]
pub(super) fn find() -> GpuReport {
    let lines = [
        "none: built without the feature cuda",
        "build it again with the feature (--features cuda), or default features",
    ];
    let findings = vec![Finding::new("kernels", lines.map(str::to_owned).to_vec())];
    GpuReport { findings, ..GpuReport::default() }
}

#[cfg(feature = "cuda")]
pub(super) use cuda::find;

#[cfg(feature = "cuda")]
mod cuda {
    use std::collections::BTreeMap;
    use std::fs;

    use rigel::backend::cuda::{
        CudaError, Device, Image, Properties, Switches, driver, images, mbarrier_trap_seconds, nvcc_version,
        properties, runs_on,
    };
    use rigel::host::Size;

    use super::super::super::version;
    use super::super::text::wrapped;
    use super::{Driver, Finding, Gpu, GpuReport, Kernels, Setting};

    pub(in super::super) fn find() -> GpuReport {
        let mut report = GpuReport {
            kernels: Kernels {
                nvcc: nvcc_version(),
                targets: version::targets(images()),
                names: images().iter().map(|image| image.name).collect(),
            },
            findings: vec![kernels(nvcc_version(), images())],
            ..GpuReport::default()
        };
        report.look_for_driver();
        // Without a driver there is nothing to add: its line says what to do.
        if driver::check().is_ok() {
            report.look_for_gpus();
        }
        report.list_switches();
        report
    }

    impl GpuReport {
        fn look_for_driver(&mut self) {
            // The driver API names the CUDA that it supports, the kernel module its own release.
            let text = fs::read_to_string("/proc/driver/nvidia/version").ok();
            let release = text.as_deref().and_then(release_number).map(str::to_owned);
            let named = release.as_ref().map_or(String::new(), |number| format!("{number}, "));
            let cuda = driver::version().ok().map(|version| version.to_string());
            let (finding, problem) = match driver::check() {
                Ok(version) => (Finding::new("driver", vec![format!("{named}supports CUDA {version}")]), None),
                Err(error) => (Finding::amiss("driver", &format!("{named}{error}")), Some(error)),
            };
            // Whoever has a driver has a GPU; one without is another matter.
            self.problems.extend(problem.iter().filter(|error| !is_absence(error)).map(ToString::to_string));
            self.driver = Some(Driver { release, cuda, problem: problem.map(|error| error.to_string()) });
            self.findings.push(finding);
        }

        fn look_for_gpus(&mut self) {
            let count = match driver::device_count() {
                Ok(count) => count,
                Err(error) => {
                    self.problems.extend(Some(&error).filter(|error| !is_absence(error)).map(ToString::to_string));
                    return self.findings.push(Finding::amiss("gpu", &error));
                }
            };
            for ordinal in 0..count {
                let subject = format!("gpu {ordinal}");
                let properties = match properties(ordinal) {
                    Ok(properties) => properties,
                    Err(error) => {
                        self.findings.push(Finding::amiss(subject.clone(), &error));
                        self.judge(ordinal, &Some(error));
                        continue;
                    }
                };
                let (lines, free_bytes, problem) = match open(ordinal) {
                    Ok((lines, free)) => {
                        (lines, Some(free), images().is_empty().then_some(CudaError::BuiltWithoutKernels))
                    }
                    Err(error) => (Finding::amiss("", &error).lines, None, Some(error)),
                };
                self.findings.push(Finding::new(subject, [describe(&properties), lines].concat()));
                self.judge(ordinal, &problem);
                self.gpus.push(Gpu {
                    ordinal,
                    name: properties.name,
                    compute_capability: properties.compute_capability.to_string(),
                    sm_count: properties.sm_count,
                    memory_bytes: properties.memory_bytes,
                    free_bytes,
                    problem: problem.map(|error| error.to_string()),
                });
            }
        }

        /// The first GPU is the one that models run on.
        fn judge(&mut self, ordinal: usize, problem: &Option<CudaError>) {
            if ordinal == 0 {
                self.usable = problem.is_none();
                self.problems.extend(problem.iter().map(|error| format!("gpu 0 cannot be used: {error}")));
            }
        }

        /// What is set to find out which part is at fault: each variable, as it is now.
        fn list_switches(&mut self) {
            let errors = Switches::env_errors();
            let mut lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            if let Ok(switches) = Switches::from_env() {
                for (switch, value) in switches.settings() {
                    let set = value != switch.values[0];
                    let shown = if set { " (set)" } else { "" };
                    let assigned = format!("{}={value}", switch.variable);
                    lines.push(format!("{assigned:<36}  {}{shown}", switch.effect));
                    self.switches.push(Setting { variable: switch.variable, value, set });
                }
            }
            if let Some(seconds) = mbarrier_trap_seconds() {
                let trap =
                    format!("this build's kernels trap where they wait at an mbarrier for more than {seconds} s");
                lines.push(trap);
            }
            // Of a GPU that cannot be opened with them, the first is the problem already.
            let known = |error: &String| self.problems.iter().any(|problem| problem.contains(error));
            let more: Vec<String> = errors.iter().map(ToString::to_string).filter(|error| !known(error)).collect();
            self.problems.extend(more);
            self.findings.push(Finding::new("switches", lines));
        }
    }

    /// Whether an error says that there is no GPU, and not that one cannot be used.
    fn is_absence(error: &CudaError) -> bool {
        matches!(error, CudaError::NoDriver | CudaError::NoDevice)
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

    /// 580.95.05 of `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build …`.
    fn release_number(version: &str) -> Option<&str> {
        let is_release = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
        version.lines().next()?.split_whitespace().find(is_release)
    }

    fn describe(properties: &Properties) -> Vec<String> {
        let Properties { name, compute_capability, sm_count, shared_bytes, l2_bytes, memory_bytes, .. } = properties;
        let (memory, shared, l2) = (Size(*memory_bytes), Size((*shared_bytes).into()), Size(*l2_bytes));
        vec![
            format!("{name}, compute capability {compute_capability}, {memory} of memory"),
            format!("{sm_count} SMs with {shared} of shared memory for a block, {l2} of L2 cache"),
        ]
    }

    /// Opens the GPU and loads every kernel that is for its generation onto it. What is said of that, and its free
    /// bytes.
    fn open(ordinal: usize) -> Result<(Vec<String>, u64), CudaError> {
        let device = Device::open(ordinal)?;
        let (free, _) = device.memory()?;
        let found = device.properties().compute_capability;
        // Where there is none at all, the first says what it was compiled for.
        let own = images().iter().enumerate().filter(|(index, image)| *index == 0 || runs_on(image.name, found));
        let loaded: Result<Vec<_>, CudaError> =
            own.map(|(_, image)| Ok((device.module(image.name)?.target().to_string(), image.name))).collect();
        let loaded = together(loaded?.into_iter());
        let mut lines = vec![format!("{} free", Size(free))];
        lines.extend(loaded.iter().flat_map(|(target, names)| wrapped(&format!("loads {names} as {target}"))));
        Ok((lines, free))
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
                sm_count: 132,
                shared_bytes: 232_448,
                l2_bytes: 50 << 20,
                memory_bytes: 140 << 30,
                algorithms: rigel::backend::cuda::Algorithms::default(),
            };
            assert_eq!(
                describe(&properties),
                [
                    "NVIDIA H200, compute capability 9.0, 140 GiB of memory",
                    "132 SMs with 227 KiB of shared memory for a block, 50.0 MiB of L2 cache"
                ]
            );
        }
    }
}
