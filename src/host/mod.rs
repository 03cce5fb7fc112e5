//! What the machine and its container give this process: memory, room on a disk, and the kind of a file system; and how
//! sizes and counts are printed. Knows nothing of models.

mod cgroup;
mod disk;
mod memory;
mod mounts;
mod size;

pub use disk::free_disk_bytes;
pub(crate) use memory::locked_memory_limit;
pub use memory::{AvailableMemory, MemoryLimit, available_memory};
pub(crate) use mounts::network_file_system;
pub use size::{Size, counted};
