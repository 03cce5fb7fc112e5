//! The device of a backend, as plain data for users and logs.

use std::fmt;

use super::cpu::Isa;
use crate::checkpoint::Dtype;
use crate::host::counted;

/// The device of a backend and the dtype of its weights. Displays as `cpu (avx512, 2 threads)` or `gpu 0 (NVIDIA H200,
/// bf16)`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceInfo {
    /// The CPU.
    #[non_exhaustive]
    Cpu {
        /// Instruction set of the kernels.
        isa: Isa,
        /// Number of threads.
        threads: usize,
        /// Dtype of the embedding, and usually of all matrices.
        dtype: Dtype,
    },
    /// An NVIDIA GPU.
    #[non_exhaustive]
    Cuda {
        /// Device ordinal.
        ordinal: usize,
        /// Name, such as `NVIDIA H200`.
        name: String,
        /// Compute capability, major and minor.
        compute_capability: (u32, u32),
        /// Bytes of its memory.
        memory_bytes: u64,
        /// Dtype of the weights there, [`Dtype::Bf16`] or [`Dtype::F16`].
        dtype: Dtype,
    },
    /// A backend of another crate.
    Other {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceInfo::Cpu { isa, threads, .. } => {
                write!(f, "cpu ({}, {})", isa.name(), counted(*threads, "thread"))
            }
            DeviceInfo::Cuda { ordinal, name, dtype, .. } => {
                write!(f, "gpu {ordinal} ({name}, {})", dtype.to_string().to_ascii_lowercase())
            }
            DeviceInfo::Other { name } => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_in_a_few_words() {
        let cpu = |threads| DeviceInfo::Cpu { isa: Isa::Avx512, threads, dtype: Dtype::F32 }.to_string();
        assert_eq!(cpu(2), "cpu (avx512, 2 threads)");
        assert_eq!(cpu(1), "cpu (avx512, 1 thread)");
        let gpu = DeviceInfo::Cuda {
            ordinal: 1,
            name: "NVIDIA H200".to_owned(),
            compute_capability: (9, 0),
            memory_bytes: 140 << 30,
            dtype: Dtype::Bf16,
        };
        assert_eq!(gpu.to_string(), "gpu 1 (NVIDIA H200, bf16)");
        assert_eq!(DeviceInfo::Other { name: "a test".to_owned() }.to_string(), "a test");
    }
}
