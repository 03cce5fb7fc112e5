//! What the machine and its container give this process: memory, and the kind of a file system. Knows nothing of models.

mod cgroup;
mod memory;
mod mounts;

pub(crate) use memory::locked_memory_limit;
pub use memory::{AvailableMemory, MemoryLimit, available_memory};
pub(crate) use mounts::network_file_system;
