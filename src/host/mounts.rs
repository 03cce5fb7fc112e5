//! The table of mounts, /proc/self/mountinfo (proc_pid_mountinfo(5)): where a cgroup hierarchy is, and whether a file
//! is on a network file system.

#![cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux has the table"))]

use std::fs::Metadata;

/// File systems whose files are on another machine, or that other machines write to.
const NETWORK: [&str; 25] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "davfs",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "panfs",
    "pvfs2",
    "quobyte",
    "smb2",
    "smb3",
    "smbfs",
    "vboxsf",
    "vmhgfs",
    "wekafs",
];

/// The same among user-space file systems, which `fuse` and `fuse.ntfs-3g` are as well: the part after `fuse.`, or the
/// mount's source.
const NETWORK_FUSE: [&str; 23] = [
    "alluxio",
    "alluxio-fuse",
    "blobfuse",
    "blobfuse2",
    "ceph",
    "ceph-fuse",
    "curlftpfs",
    "gcsfuse",
    "glusterfs",
    "goofys",
    "gvfsd-fuse",
    "hdfs",
    "httpfs",
    "juicefs",
    "lizardfs",
    "mfs",
    "mountpoint-s3",
    "rclone",
    "s3fs",
    "seaweedfs",
    "sshfs",
    "vmhgfs-fuse",
    "weed",
];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    /// `major:minor` of its files' device.
    pub(super) device: &'a str,
    /// The directory of the file system that is seen at the mount point.
    pub(super) root: String,
    pub(super) mount_point: String,
    /// Such as `ext4` or `fuse.sshfs`.
    pub(super) kind: &'a str,
    /// What is mounted, such as `server:/export`.
    source: &'a str,
    /// Options of the file system: for a cgroup v1 hierarchy, its controllers.
    pub(super) options: &'a str,
}

/// The mounts of a table, in its order; lines that are none are skipped.
pub(super) fn parse(table: &str) -> impl Iterator<Item = Mount<'_>> {
    table.lines().filter_map(|line| {
        // Spaces within fields are escaped.
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let mut file_system = file_system.split(' ');
        Some(Mount {
            device: mount.next()?,
            root: unescaped(mount.next()?),
            mount_point: unescaped(mount.next()?),
            kind: file_system.next()?,
            source: file_system.next().unwrap_or(""),
            options: file_system.next().unwrap_or(""),
        })
    })
}

/// A field with its `\040` and the like as the characters that they are.
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Mount<'_> {
    fn is_network(&self) -> bool {
        let Some(fuse) = self.kind.strip_prefix("fuse") else { return NETWORK.contains(&self.kind) };
        // `JuiceFS:name`, `mountpoint-s3`, `user@host:/path` of an sshfs without a subtype.
        let name = fuse.strip_prefix('.').unwrap_or_else(|| self.source.split(':').next().unwrap_or(""));
        NETWORK_FUSE.contains(&name.to_ascii_lowercase().as_str())
    }
}

/// The kind of the network file system that the device `major:minor` is, such as `nfs4`.
fn network_kind(table: &str, device: &str) -> Option<String> {
    let mount = parse(table).find(|mount| mount.device == device)?;
    mount.is_network().then(|| mount.kind.to_owned())
}

/// The kind of the network file system that holds the file with this metadata, such as `nfs4` or `fuse.sshfs`. `None`
/// for a local one, and where the system has no table of mounts.
#[cfg(target_os = "linux")]
pub(crate) fn network_file_system(metadata: &Metadata) -> Option<String> {
    use std::os::linux::fs::MetadataExt;
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let device = metadata.st_dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // The whole table is ASCII but for names, which are not compared.
    network_kind(&String::from_utf8_lossy(&table), &device)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn network_file_system(_: &Metadata) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as they were recorded on several machines.
    const TABLE: &str = "\
23 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
120 23 0:53 / /mnt/models rw,relatime shared:64 master:2 - nfs4 10.0.0.4:/export/models rw,vers=4.2,rsize=1048576
121 23 0:54 / /mnt/My\\040Share rw,nosuid - cifs //nas/models rw,vers=3.1.1
122 23 0:55 / /home/ada/far rw,nosuid,nodev,relatime shared:70 - fuse.sshfs ada@far: rw,user_id=1000,group_id=1000
123 23 0:56 / /mnt/bucket rw,nosuid,nodev,noatime - fuse mountpoint-s3 rw,user_id=0,group_id=0
124 23 0:57 / /mnt/stick rw,nosuid,nodev,relatime - fuseblk /dev/sdb1 rw,user_id=0
125 23 0:58 / /mnt/merged rw,relatime - fuse.mergerfs a:b rw,user_id=0
126 23 0:59 / /mnt/jfs rw,relatime - fuse.juicefs JuiceFS:models rw,user_id=0
127 23 0:60 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs
128 23 0:61 / /lustre rw,flock - lustre 10.1.1.1@o2ib:/scratch rw
129 23 0:62 / /gpfs rw,relatime - gpfs gpfs0 rw
130 23 0:63 / /ceph rw,relatime - ceph 10.2.2.2:/ rw
not a mount";

    #[test]
    fn network_file_systems_are_told_from_local_ones() {
        let kind = |device| network_kind(TABLE, device);
        for (device, expected) in [
            ("0:53", "nfs4"),
            ("0:54", "cifs"),
            ("0:55", "fuse.sshfs"),
            ("0:56", "fuse"),
            ("0:59", "fuse.juicefs"),
            ("0:60", "9p"),
            ("0:61", "lustre"),
            ("0:62", "gpfs"),
            ("0:63", "ceph"),
        ] {
            assert_eq!(kind(device).as_deref(), Some(expected), "{device}");
        }
        // The disk, memory, an NTFS stick, a union of local disks, a device that is not in the table.
        for device in ["254:1", "0:28", "0:57", "0:58", "9:9"] {
            assert_eq!(kind(device), None, "{device}");
        }
    }

    #[test]
    fn names_are_unescaped() {
        let points: Vec<String> = parse(TABLE).map(|mount| mount.mount_point).collect();
        assert_eq!(points.len(), 13);
        assert_eq!(points[3], "/mnt/My Share");
        for (escaped, plain) in [("a\\011b", "a\tb"), ("\\134040", "\\040"), ("\\04", "\\04"), ("é\\", "é\\"), ("", "")]
        {
            assert_eq!(unescaped(escaped), plain);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_kernel_s_own_files_are_on_no_network() {
        assert_eq!(network_file_system(&std::fs::metadata("/proc/self/status").unwrap()), None);
    }
}
