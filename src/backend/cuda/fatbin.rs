//! Reads the container that nvcc writes: which targets a fatbin holds, and which of them a GPU runs.
//!
//! Layout, little-endian, as nvcc 13.0 writes it with `--no-compress`: a header of 16 bytes (magic, version, header
//! size, bytes that follow), then entries, each with a header of its own and a cubin (ELF) or PTX text.

use std::fmt;

use super::versions::ComputeCapability;

const MAGIC: u32 = 0xba55_ed50;
const PTX: u16 = 1;
const CUBIN: u16 = 2;
/// Set in the flags of an entry for an `a` target, whose instructions run on that one architecture alone.
const ARCHITECTURE_SPECIFIC: u64 = 0x10_0000;

/// What an entry was compiled to.
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

/// One entry of a fatbin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub target: Target,
    /// A cubin or PTX text.
    pub code: &'a [u8],
}

/// The entries of `fatbin`. The error says what was wrong at which byte.
pub(super) fn entries(fatbin: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let short = || format!("it ends after {} bytes", fatbin.len());
    let magic = u32_at(fatbin, 0).ok_or_else(short)?;
    if magic != MAGIC {
        return Err(format!("it starts with {magic:#x}, not with a fatbin's {MAGIC:#x}"));
    }
    let header = usize::from(u16_at(fatbin, 6).ok_or_else(short)?);
    let body = usize::try_from(u64_at(fatbin, 8).ok_or_else(short)?).map_err(|_| short())?;
    let mut rest = header.checked_add(body).and_then(|end| fatbin.get(header..end)).ok_or_else(short)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let at = header + body - rest.len();
        let broken = || format!("the entry at byte {at} is longer than the file");
        let kind = u16_at(rest, 0).ok_or_else(broken)?;
        let header = u32_at(rest, 4).ok_or_else(broken)? as usize;
        let size = usize::try_from(u64_at(rest, 8).ok_or_else(broken)?).map_err(|_| broken())?;
        let compressed = u32_at(rest, 16).ok_or_else(broken)?;
        let number = u32_at(rest, 28).ok_or_else(broken)?;
        let flags = u64_at(rest, 40).ok_or_else(broken)?;
        let end = header.checked_add(size).filter(|end| *end > 0).ok_or_else(broken)?;
        let code = rest.get(header..end).ok_or_else(broken)?;
        let form = match kind {
            PTX => Some(Form::Ptx),
            CUBIN => Some(Form::Machine),
            _ => None, // options for the linker and the like
        };
        if let Some(form) = form {
            if compressed != 0 {
                return Err(format!("the entry at byte {at} is compressed; nvcc must be given --no-compress"));
            }
            let specific = flags & ARCHITECTURE_SPECIFIC != 0;
            entries.push(Entry { target: Target { form, number, specific }, code });
        }
        rest = &rest[end..];
    }
    Ok(entries)
}

/// The entry that the driver picks for a GPU: machine code before PTX, an `a` target before a plain one, then the
/// newest.
pub(super) fn choose<'a>(entries: &[Entry<'a>], device: ComputeCapability) -> Option<Entry<'a>> {
    let rank = |target: Target| (target.form == Form::Machine, target.specific, target.number);
    entries.iter().filter(|entry| entry.target.runs_on(device)).max_by_key(|entry| rank(entry.target)).copied()
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
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

    /// A fatbin as nvcc lays it out: a header, then one entry for each target, its code three bytes.
    fn fatbin(targets: &[Target]) -> Vec<u8> {
        let mut body = Vec::new();
        for target in targets {
            let mut header = [0u8; 64];
            let kind = if target.form == Form::Ptx { PTX } else { CUBIN };
            header[0..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&64u32.to_le_bytes());
            header[8..16].copy_from_slice(&3u64.to_le_bytes());
            header[28..32].copy_from_slice(&target.number.to_le_bytes());
            let flags = 17 | if target.specific { ARCHITECTURE_SPECIFIC } else { 0 };
            header[40..48].copy_from_slice(&flags.to_le_bytes());
            body.extend(header);
            body.extend(*b"abc");
        }
        let mut file = MAGIC.to_le_bytes().to_vec();
        file.extend(1u16.to_le_bytes());
        file.extend(16u16.to_le_bytes());
        file.extend((body.len() as u64).to_le_bytes());
        file.extend(body);
        file
    }

    fn chosen(targets: &[Target], device: ComputeCapability) -> Option<String> {
        let file = fatbin(targets);
        let entries = entries(&file).unwrap();
        assert!(entries.iter().all(|entry| entry.code == b"abc"));
        choose(&entries, device).map(|entry| entry.target.to_string())
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

    /// `sm_90a`, `compute_80`.
    fn target(name: &str) -> Target {
        let (form, rest) = match name.strip_prefix("sm_") {
            Some(rest) => (Form::Machine, rest),
            None => (Form::Ptx, name.strip_prefix("compute_").unwrap()),
        };
        Target { form, number: rest.trim_end_matches('a').parse().unwrap(), specific: rest.ends_with('a') }
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

    #[test]
    fn damage_is_an_error_at_every_length() {
        let whole = fatbin(&[SM_80, SM_90]);
        for length in 0..whole.len() {
            assert!(entries(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
        let mut wrong = whole.clone();
        wrong[0] = 0;
        assert!(entries(&wrong).unwrap_err().contains("not with a fatbin's"));
        let mut compressed = whole;
        compressed[16 + 16] = 1;
        assert!(entries(&compressed).unwrap_err().contains("--no-compress"));
    }
}
