//! How keys and values are kept, as plain data.

use std::fmt;

use crate::checkpoint::Dtype;

/// How keys and values are kept in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvFormat {
    /// Every element as it is.
    Dense(Dtype),
}

impl KvFormat {
    /// Bytes of `vectors` keys or values of `head_dim` elements, one for each head and position.
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
