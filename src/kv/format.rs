//! Storage formats of keys and values, as plain data.

use std::fmt;

use crate::checkpoint::Dtype;

/// Storage format of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvFormat {
    /// Unquantised elements.
    Dense(Dtype),
}

impl KvFormat {
    /// Bytes of `vectors` key or value vectors of `head_dim` elements.
    pub fn bytes(self, vectors: u64, head_dim: usize) -> u64 {
        match self {
            KvFormat::Dense(dtype) => vectors * head_dim as u64 * dtype.size() as u64,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvFormat::Dense(dtype) => dtype.fmt(f),
        }
    }
}
