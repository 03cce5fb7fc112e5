//! What a fatbin was compiled for, and which of it a GPU runs.

use std::fmt;
use std::str::FromStr;

use super::versions::ComputeCapability;

/// What code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Machine code, a cubin.
    Machine,
    /// PTX text, compiled by the driver when it is loaded.
    Ptx,
}

/// One target of a fatbin: `sm_80`, `sm_90a`, `compute_80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Machine code or PTX.
    pub form: Form,
    /// 90 of `sm_90a`.
    pub number: u32,
    /// Whether it is an `a` target.
    pub specific: bool,
}

impl Target {
    /// Machine code runs on its own minor version and later ones of the same major; PTX on everything later; an `a`
    /// target on its own GPU alone (PTX ISA, `.target`; CUDA programming guide, binary compatibility).
    pub fn runs_on(&self, device: ComputeCapability) -> bool {
        match (self.specific, self.form) {
            (true, _) => self.number == device.number(),
            (false, Form::Machine) => self.number / 10 == device.major && self.number <= device.number(),
            (false, Form::Ptx) => self.number <= device.number(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            Form::Machine => "sm",
            Form::Ptx => "compute",
        };
        write!(f, "{form}_{}{}", self.number, if self.specific { "a" } else { "" })
    }
}

/// A name that is no target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownTarget;

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(name: &str) -> Result<Target, UnknownTarget> {
        let (form, rest) = match (name.strip_prefix("sm_"), name.strip_prefix("compute_")) {
            (Some(rest), _) => (Form::Machine, rest),
            (None, Some(rest)) => (Form::Ptx, rest),
            (None, None) => return Err(UnknownTarget),
        };
        let (number, specific) = rest.strip_suffix('a').map_or((rest, false), |number| (number, true));
        Ok(Target { form, number: number.parse().map_err(|_| UnknownTarget)?, specific })
    }
}

/// The one that the driver picks for a GPU: machine code before PTX, an `a` target before a plain one, then the newest.
pub(super) fn choose(targets: impl IntoIterator<Item = Target>, device: ComputeCapability) -> Option<Target> {
    let rank = |target: &Target| (target.form == Form::Machine, target.specific, target.number);
    targets.into_iter().filter(|target| target.runs_on(device)).max_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SM_80: Target = Target { form: Form::Machine, number: 80, specific: false };
    const COMPUTE_80: Target = Target { form: Form::Ptx, number: 80, specific: false };
    const SM_90: Target = Target { form: Form::Machine, number: 90, specific: false };
    const SM_90A: Target = Target { form: Form::Machine, number: 90, specific: true };

    fn device(major: u32, minor: u32) -> ComputeCapability {
        ComputeCapability { major, minor }
    }

    fn chosen(targets: &[Target], device: ComputeCapability) -> Option<String> {
        choose(targets.iter().copied(), device).map(|target| target.to_string())
    }

    #[test]
    fn a_device_gets_its_newest_machine_code_before_ptx() {
        let general = [SM_80, COMPUTE_80, SM_90];
        for (major, minor, expected) in [
            (8, 0, "sm_80"),
            (8, 6, "sm_80"),
            (8, 9, "sm_80"),
            (9, 0, "sm_90"),
            (10, 0, "compute_80"),
            (12, 0, "compute_80"),
        ] {
            assert_eq!(chosen(&general, device(major, minor)).as_deref(), Some(expected), "{major}.{minor}");
        }
        assert_eq!(chosen(&general, device(7, 5)), None);
    }

    #[test]
    fn an_a_target_runs_on_its_own_architecture_alone() {
        assert_eq!(chosen(&[SM_90A], device(9, 0)).as_deref(), Some("sm_90a"));
        assert_eq!(chosen(&[SM_90, SM_90A], device(9, 0)).as_deref(), Some("sm_90a"));
        assert_eq!(chosen(&[SM_90A], device(8, 0)), None);
        assert_eq!(chosen(&[SM_90A], device(10, 0)), None);
    }

    fn target(name: &str) -> Target {
        name.parse().unwrap()
    }

    #[test]
    fn names_of_targets() {
        for name in ["sm_80", "sm_90a", "compute_80"] {
            assert_eq!(target(name).to_string(), name);
        }
        for name in ["", "sm_", "80", "sm_90b", "compute-80", "sm_a"] {
            assert_eq!(name.parse::<Target>(), Err(UnknownTarget), "{name}");
        }
    }

    /// The name of every kernel file and the targets of its `// targets:` line.
    fn kernel_files() -> Vec<(String, Vec<Target>)> {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap();
        let files =
            folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|it| it == "cu"));
        let read = |path: std::path::PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("// targets:")).unwrap();
            let targets: Vec<Target> = line.split_whitespace().map(target).collect();
            assert_eq!(targets.iter().map(Target::to_string).collect::<Vec<_>>().join(" "), line.trim(), "{path:?}");
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), targets)
        };
        files.map(read).collect()
    }

    /// Hopper's instructions run on 9.0 alone, on nothing that came later; everything else runs everywhere.
    #[test]
    fn every_gpu_has_code_of_the_general_kernels_and_9_0_alone_of_hopper_s() {
        const GPUS: [(u32, u32); 7] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];
        let all = |targets: &[Target]| {
            GPUS.map(|(major, minor)| chosen(targets, device(major, minor)).unwrap_or_else(|| "none".to_owned()))
        };
        let files = kernel_files();
        let (hopper, general): (Vec<_>, Vec<_>) = files.into_iter().partition(|(name, _)| name.ends_with("_sm90"));
        assert!(hopper.len() >= 4 && general.len() >= 10, "{hopper:?} {general:?}");
        for (name, targets) in hopper {
            let code = targets[0].to_string();
            assert!(code == "sm_90a" || code == "sm_90", "{name}: {code}");
            assert_eq!(all(&targets), ["none", "none", "none", "none", &code, "none", "none"], "{name}");
        }
        for (name, mut targets) in general {
            let expected = ["none", "sm_80", "sm_80", "sm_80", "sm_90", "compute_80", "compute_80"];
            assert_eq!(all(&targets), expected, "{name}");
            // As a release has it.
            targets.extend(["sm_86", "sm_89"].map(target));
            let expected = ["none", "sm_80", "sm_86", "sm_89", "sm_90", "compute_80", "compute_80"];
            assert_eq!(all(&targets), expected, "{name}");
        }
    }
}
