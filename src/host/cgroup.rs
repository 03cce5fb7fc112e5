//! What the process's memory cgroups leave: those of a container, a pod, a systemd slice. Both versions, and both at
//! once.
//!
//! Every cgroup from the process's own up to the root of the hierarchy may limit it, and each with what its other
//! members use. A container sees no further up than its own root, in one of two ways: its mount begins there (`root` of
//! the mount is then a prefix of the path in /proc/self/cgroup), or a cgroup namespace does (the path is then `/`).

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::mounts;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Bytes that the memory cgroups leave this process, by the files below `root`, `/` outside of tests: over the
/// hierarchy, the least of limit − usage + inactive file pages, which the kernel takes back first. `None` where nothing
/// limits.
pub(super) fn available(root: &Path) -> Option<u64> {
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read(root.join("proc/self/mountinfo")).ok()?;
    let mounts = String::from_utf8_lossy(&mounts);
    // A hybrid system has both; its memory controller is in one of them, and the files of the other are not there.
    [Version::V1, Version::V2].iter().filter_map(|version| version.available(root, &cgroups, &mounts)).min()
}

impl Version {
    fn available(self, root: &Path, cgroups: &str, mounts: &str) -> Option<u64> {
        let path = self.own_path(cgroups)?;
        let (mount_point, below) = self.directory(path, mounts)?;
        let below_root = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let top = below_root(&mount_point);
        let mut directory = top.join(below);
        let mut least = None;
        loop {
            least = [least, self.level(&directory)].into_iter().flatten().min();
            if directory == top || !directory.pop() || !self.counts_children(&directory) {
                return least;
            }
        }
    }

    /// The process's cgroup as /proc/self/cgroup names it: `0::PATH`, or `ID:memory,…:PATH`.
    fn own_path(self, cgroups: &str) -> Option<&str> {
        cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let matches = match self {
                Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
                Version::V2 => id == "0" && controllers.is_empty(),
            };
            matches.then_some(path)
        })
    }

    /// Where the hierarchy is mounted, and the path of the cgroup `path` below that.
    fn directory(self, path: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
        let all: Vec<mounts::Mount<'_>> = mounts::parse(mounts)
            .filter(|mount| match self {
                Version::V1 => mount.kind == "cgroup" && mount.options.split(',').any(|option| option == "memory"),
                Version::V2 => mount.kind == "cgroup2",
            })
            .collect();
        let within = all.iter().find_map(|mount| Some((mount, Path::new(path).strip_prefix(&mount.root).ok()?)));
        match within {
            // `..`: a cgroup outside of the process's namespace, which is nowhere below the mount point.
            Some((mount, below)) if below.components().all(|part| matches!(part, Component::Normal(_))) => {
                Some((mount.mount_point.clone().into(), below.to_owned()))
            }
            // A mount of another namespace: its top is all that can be found.
            _ => all.first().map(|mount| (mount.mount_point.clone().into(), PathBuf::new())),
        }
    }

    /// What one cgroup leaves; `None` where it has no limit.
    fn level(self, directory: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
        // `max` is no number: no limit.
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let stat = read("memory.stat").unwrap_or_default();
        let stat = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let (limits, usage, inactive) = match self {
            // Beyond `memory.high` nobody is killed, but everybody who allocates is put to sleep.
            Version::V2 => {
                ([number("memory.max"), number("memory.high")], number("memory.current"), stat("inactive_file "))
            }
            // Without a limit a number near 2^63. The second holds limits of ancestors that are out of sight.
            Version::V1 => (
                [number("memory.limit_in_bytes"), stat("hierarchical_memory_limit ")],
                number("memory.usage_in_bytes"),
                stat("total_inactive_file ").or_else(|| stat("inactive_file ")),
            ),
        };
        let limit = limits.into_iter().flatten().min().filter(|limit| *limit < NO_LIMIT)?;
        Some(limit.saturating_sub(usage.unwrap_or(0).saturating_sub(inactive.unwrap_or(0))))
    }

    /// Whether the cgroup's limit holds for its children as well: always, but for version 1 of old, where it was asked
    /// for.
    fn counts_children(self, directory: &Path) -> bool {
        let asked_for = || fs::read_to_string(directory.join("memory.use_hierarchy"));
        self == Version::V2 || !asked_for().is_ok_and(|text| text.trim() == "0")
    }
}

/// Version 1 says "no limit" as the largest number of whole pages below 2^63; no machine has a quarter of that.
const NO_LIMIT: u64 = 1 << 61;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::memory::testing::tree;

    const MIB: u64 = 1 << 20;
    const V2_MOUNT: &str = "/sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate";
    const V1_MOUNT: &str = "/sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime master:18 - cgroup cgroup rw,memory";
    const V1_NONE: &str = "9223372036854771712\n";

    fn mount(root: &str, rest: &str) -> String {
        format!("23 1 254:1 / / rw - ext4 /dev/vda1 rw\n1196 1195 0:30 {root} {rest}\n")
    }

    /// What is left by these files, each a path and a content.
    fn left(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        let all = [&[("proc/self/cgroup", cgroup), ("proc/self/mountinfo", mounts)], files].concat();
        available(tree(&all).path())
    }

    #[test]
    fn docker_on_version_2_sees_its_own_cgroup_as_the_root() {
        let files = [
            ("sys/fs/cgroup/memory.max", "536870912\n"),
            ("sys/fs/cgroup/memory.high", "max\n"),
            ("sys/fs/cgroup/memory.current", "104857600\n"),
            (
                "sys/fs/cgroup/memory.stat",
                "anon 20971520\nfile 83886080\ninactive_file 62914560\nactive_file 20971520\n",
            ),
        ];
        // 512 − 100 + 60 MiB.
        assert_eq!(left("0::/\n", &mount("/", V2_MOUNT), &files), Some(472 * MIB));
        let unlimited = [&[("sys/fs/cgroup/memory.max", "max\n")], &files[1..]].concat();
        assert_eq!(left("0::/\n", &mount("/", V2_MOUNT), &unlimited), None);
    }

    #[test]
    fn docker_on_version_1_mounts_its_own_cgroup() {
        let path = "/docker/3a4f1c0e";
        let cgroup = format!("12:pids:{path}\n11:cpu,cpuacct:{path}\n4:memory:{path}\n1:name=systemd:{path}\n");
        let files = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "314572800\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "cache 209715200\ninactive_file 1048576\nhierarchical_memory_limit 1073741824\ntotal_inactive_file 104857600\n",
            ),
        ];
        // 1024 − 300 + 100 MiB.
        assert_eq!(left(&cgroup, &mount(path, V1_MOUNT), &files), Some(824 * MIB));
        // Without --memory.
        let unlimited = [("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_NONE), files[1]];
        assert_eq!(left(&cgroup, &mount(path, V1_MOUNT), &unlimited), None);
    }

    #[test]
    fn kubernetes_on_version_1_counts_the_limit_of_a_pod_that_is_out_of_sight() {
        let path = "/kubepods/burstable/pod7e0b/9c1d";
        let cgroup = format!("11:hugetlb:{path}\n7:memory:{path}\n");
        let files = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_NONE),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "104857600\n"),
            ("sys/fs/cgroup/memory/memory.stat", "hierarchical_memory_limit 2147483648\ntotal_inactive_file 0\n"),
        ];
        assert_eq!(left(&cgroup, &mount(path, V1_MOUNT), &files), Some(1948 * MIB));
    }

    #[test]
    fn kubernetes_on_version_2_counts_the_pod_and_its_other_containers() {
        let cgroup = "0::/kubepods.slice/kubepods-burstable.slice/pod1.slice/cri-containerd-a.scope\n";
        let pod = "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/pod1.slice";
        let at = |name: &str| format!("{pod}/{name}");
        let in_container = |name: &str| format!("{pod}/cri-containerd-a.scope/{name}");
        let files = [
            (in_container("memory.max"), "4294967296\n"),
            (in_container("memory.current"), "1073741824\n"),
            (in_container("memory.stat"), "inactive_file 0\n"),
            (at("memory.max"), "6442450944\n"),
            // A neighbour in the pod has taken 4 GiB.
            (at("memory.current"), "5368709120\n"),
            (at("memory.stat"), "anon 5\ninactive_file 536870912\n"),
            ("sys/fs/cgroup/kubepods.slice/memory.max".to_owned(), "max\n"),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, content)| (name.as_str(), *content)).collect();
        // The container would have 3 GiB, the pod has 6 − 5 + 0.5.
        assert_eq!(left(cgroup, &mount("/", V2_MOUNT), &files), Some(1536 * MIB));
        // The same where the container's mount begins at the pod.
        let pod_root = "/kubepods.slice/kubepods-burstable.slice/pod1.slice";
        let moved: Vec<(String, &str)> =
            files.iter().map(|(name, content)| (name.replace(&format!("{pod_root}/"), "/"), *content)).collect();
        let moved: Vec<(&str, &str)> = moved.iter().map(|(name, content)| (name.as_str(), *content)).collect();
        assert_eq!(left(cgroup, &mount(pod_root, V2_MOUNT), &moved), Some(1536 * MIB));
    }

    #[test]
    fn a_systemd_slice_limits_its_services_and_high_counts_as_max() {
        let cgroup = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1f.scope\n";
        let files = [
            ("sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/run-r1f.scope/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/user-1000.slice/memory.max", "8589934592\n"),
            ("sys/fs/cgroup/user.slice/user-1000.slice/memory.high", "2147483648\n"),
            ("sys/fs/cgroup/user.slice/user-1000.slice/memory.current", "1073741824\n"),
        ];
        assert_eq!(left(cgroup, &mount("/", V2_MOUNT), &files), Some(1024 * MIB));
        assert_eq!(left(cgroup, &mount("/", V2_MOUNT), &files[..2]), Some(8192 * MIB), "no usage to be read");
    }

    #[test]
    fn a_hybrid_system_has_its_memory_controller_in_version_1() {
        let cgroup = "9:name=systemd:/\n4:memory:/jobs/a\n0::/\n";
        let mounts = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let mut files = vec![
            ("sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes", V1_NONE),
            ("sys/fs/cgroup/memory/jobs/a/memory.use_hierarchy", "1"),
            ("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "3221225472"),
            ("sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "1073741824"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_NONE),
            ("sys/fs/cgroup/unified/cgroup.procs", "1\n"),
        ];
        assert_eq!(left(cgroup, mounts, &files), Some(2048 * MIB));
        // Old kernels: `jobs` limits itself alone.
        files.push(("sys/fs/cgroup/memory/jobs/memory.use_hierarchy", "0\n"));
        assert_eq!(left(cgroup, mounts, &files), None);
    }

    #[test]
    fn usage_beyond_the_limit_leaves_nothing() {
        let files = [("sys/fs/cgroup/memory.max", "1000"), ("sys/fs/cgroup/memory.current", "5000")];
        assert_eq!(left("0::/", &mount("/", V2_MOUNT), &files), Some(0));
    }

    #[test]
    fn a_cgroup_outside_of_the_namespace_is_judged_by_what_can_be_seen() {
        let files = [("sys/fs/cgroup/memory.max", "1000"), ("sys/fs/cgroup/../memory.max", "1")];
        for (path, root) in [("/../other", "/"), ("/", "/../.."), ("/a", "/b")] {
            assert_eq!(left(&format!("0::{path}"), &mount(root, V2_MOUNT), &files), Some(1000), "{path} {root}");
        }
    }

    #[test]
    fn odd_files_are_no_limit() {
        for (cgroup, mounts) in
            [("", ""), ("0::/", ""), ("", V2_MOUNT), ("memory", "- - -"), ("0::/", "1 2 3 - cgroup2")]
        {
            assert_eq!(left(cgroup, mounts, &[("sys/fs/cgroup/memory.max", "7")]), None, "{cgroup} {mounts}");
        }
        let odd = [("sys/fs/cgroup/memory.max", "many"), ("sys/fs/cgroup/memory.stat", "inactive_file\n")];
        assert_eq!(left("0::/", &mount("/", V2_MOUNT), &odd), None);
        assert_eq!(available(Path::new("/no/such/directory")), None);
    }

    #[test]
    fn mount_points_may_hold_spaces_and_paths_colons() {
        let files = [("odd place/a:b/memory.max", "4096")];
        assert_eq!(left("0::/a:b", &mount("/", "/odd\\040place rw - cgroup2 x rw"), &files), Some(4096));
    }
}
