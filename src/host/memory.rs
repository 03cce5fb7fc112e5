//! How much memory this process can still have: what the machine has left, and every limit that is set on the process.

use std::fmt;
use std::fs;
use std::path::Path;

use super::cgroup;

/// Memory that this process can still have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AvailableMemory {
    /// Bytes.
    pub bytes: u64,
    /// What allows no more.
    pub limit: MemoryLimit,
}

/// What bounds a process's memory. Displays as the end of "… bytes are left in".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryLimit {
    /// What the machine has.
    Machine,
    /// What its container may have: a limit of a memory cgroup, its own or one above it.
    Container,
    /// `ulimit -v`: address space, mapped files included.
    AddressSpace,
    /// `ulimit -d`: memory that can be written.
    Data,
    /// What the system promises to all processes together, where it overcommits nothing (`vm.overcommit_memory` 2).
    Commit,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryLimit::Machine => "this machine's memory",
            MemoryLimit::Container => "this container's limit (its memory cgroup)",
            MemoryLimit::AddressSpace => "this process's address space (ulimit -v)",
            MemoryLimit::Data => "this process's data limit (ulimit -d)",
            MemoryLimit::Commit => "the system's commit limit (vm.overcommit_memory is 2)",
        })
    }
}

/// Memory that this process can still have without another losing its own; `None` where the system does not say.
///
/// On Linux the least of MemAvailable, what every memory cgroup of the process leaves (limit − usage + inactive file
/// pages, versions 1 and 2), the limits on its address space and data, and the commit limit.
pub fn available_memory() -> Option<AvailableMemory> {
    #[cfg(any(target_os = "macos", windows))]
    {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        // 0 where the system could not be asked.
        let bytes = Some(system.available_memory()).filter(|bytes| *bytes > 0)?;
        Some(AvailableMemory { bytes, limit: MemoryLimit::Machine })
    }
    #[cfg(not(any(target_os = "macos", windows)))]
    available_below(Path::new("/"))
}

/// The same, by the files below `root`.
#[cfg_attr(any(target_os = "macos", windows), allow(dead_code))]
fn available_below(root: &Path) -> Option<AvailableMemory> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let (meminfo, status, limits) = (read("proc/meminfo"), read("proc/self/status"), read("proc/self/limits"));
    let commit = || {
        let strict = read("proc/sys/vm/overcommit_memory").trim() == "2";
        strict.then(|| Some(kibibytes(&meminfo, "CommitLimit:")?.saturating_sub(kibibytes(&meminfo, "Committed_AS:")?)))
    };
    let resource =
        |limit, used| Some(soft_limit(&limits, limit)?.saturating_sub(kibibytes(&status, used).unwrap_or(0)));
    let all = [
        (MemoryLimit::Machine, kibibytes(&meminfo, "MemAvailable:")),
        (MemoryLimit::Container, cgroup::available(root)),
        (MemoryLimit::AddressSpace, resource("Max address space", "VmSize:")),
        (MemoryLimit::Data, resource("Max data size", "VmData:")),
        (MemoryLimit::Commit, commit().flatten()),
    ];
    let known = all.into_iter().filter_map(|(limit, bytes)| Some(AvailableMemory { bytes: bytes?, limit }));
    known.min_by_key(|available| available.bytes)
}

/// Bytes that this process may lock into memory (RLIMIT_MEMLOCK); `None` where there is no limit, or none is known.
pub(crate) fn locked_memory_limit() -> Option<u64> {
    soft_limit(&fs::read_to_string("/proc/self/limits").ok()?, "Max locked memory")
}

/// Bytes of a line `name  123 kB` of /proc/meminfo or /proc/self/status.
fn kibibytes(table: &str, name: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The soft limit of a line `name  soft  hard  bytes` of /proc/self/limits; `None` where it is unlimited.
fn soft_limit(table: &str, name: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
pub(super) mod testing {
    use std::fs;

    /// A directory with these files, each a path and a content.
    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }
}

#[cfg(test)]
mod tests {
    use super::testing::tree;
    use super::*;

    const MEMINFO: &str = "MemTotal:       12342040 kB\nMemFree:          524288 kB\nMemAvailable:    8388608 kB\n\
                           CommitLimit:     6171020 kB\nCommitted_AS:    5171020 kB\n";
    const STATUS: &str =
        "Name:\trigel\nVmPeak:\t  400000 kB\nVmSize:\t  307200 kB\nVmLck:\t       0 kB\nVmData:\t  102400 kB\n";

    /// What /proc/self/limits looks like.
    fn limits(data: &str, address_space: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max cpu time              unlimited            unlimited            seconds   \n\
             Max data size             {data:<20} unlimited            bytes     \n\
             Max locked memory         8388608              8388608              bytes     \n\
             Max address space         {address_space:<20} unlimited            bytes     \n"
        )
    }

    fn available(files: &[(&str, &str)]) -> Option<(u64, MemoryLimit)> {
        available_below(tree(files).path()).map(|available| (available.bytes, available.limit))
    }

    #[test]
    fn the_tightest_limit_counts_and_is_named() {
        let none = limits("unlimited", "unlimited");
        let base = [("proc/meminfo", MEMINFO), ("proc/self/status", STATUS), ("proc/self/limits", none.as_str())];
        let with = |more: &[(&str, &str)]| available(&[&base[..], more].concat());
        assert_eq!(with(&[]), Some((8 << 30, MemoryLimit::Machine)));
        assert_eq!(with(&[("proc/sys/vm/overcommit_memory", "0\n")]), Some((8 << 30, MemoryLimit::Machine)));
        assert_eq!(with(&[("proc/sys/vm/overcommit_memory", "2\n")]), Some((1_000_000 << 10, MemoryLimit::Commit)));
        let container = |max| {
            with(&[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n"),
                ("sys/fs/cgroup/memory.max", max),
                ("sys/fs/cgroup/memory.current", "1073741824\n"),
                ("sys/fs/cgroup/memory.stat", "inactive_file 536870912\n"),
            ])
        };
        assert_eq!(container("2147483648\n"), Some((1536 << 20, MemoryLimit::Container)));
        // A container of more than the machine has left.
        assert_eq!(container("21474836480\n"), Some((8 << 30, MemoryLimit::Machine)));
        // 1 GiB of address space of which 300 MiB are used; 512 MiB of data of which 100 MiB are.
        let address_space = limits("unlimited", "1073741824");
        assert_eq!(with(&[("proc/self/limits", &address_space)]), Some((724 << 20, MemoryLimit::AddressSpace)));
        let data = limits("536870912", "1073741824");
        assert_eq!(with(&[("proc/self/limits", &data)]), Some((412 << 20, MemoryLimit::Data)));
        let used_up = limits("unlimited", "4096");
        assert_eq!(with(&[("proc/self/limits", &used_up)]), Some((0, MemoryLimit::AddressSpace)));
    }

    #[test]
    fn a_system_that_does_not_say_is_not_guessed_at() {
        assert_eq!(available(&[]), None);
        assert_eq!(
            available(&[("proc/meminfo", "MemAvailable: lots\n"), ("proc/self/limits", "Max data size\n")]),
            None
        );
        assert_eq!(available(&[("proc/meminfo", "MemTotal: 1 kB\n")]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_less_than_it_has() {
        let total = kibibytes(&fs::read_to_string("/proc/meminfo").unwrap(), "MemTotal:").unwrap();
        let available = available_memory().unwrap();
        assert!(available.bytes < total, "{available:?} of {total}");
        // This process has an address space, and the file is read as it is.
        assert!(kibibytes(&fs::read_to_string("/proc/self/status").unwrap(), "VmSize:").unwrap() > 1 << 20);
        assert!(fs::read_to_string("/proc/self/limits").unwrap().contains("Max address space "));
    }
}
