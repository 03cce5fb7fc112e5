//! One tensor of a checkpoint: a handle on bytes of a mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;

/// The element types that Rigel computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The dtype of this safetensors name.
    pub(super) fn from_name(name: &str) -> Option<Dtype> {
        match name {
            "F32" => Some(Dtype::F32),
            "F16" => Some(Dtype::F16),
            "BF16" => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

/// The name that safetensors headers use.
impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        })
    }
}

/// A tensor in a mapped file. Owns its share of the mapping: no lifetime, no copy, cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    pub(super) name: Arc<str>,
    pub(super) dtype: Dtype,
    pub(super) shape: Arc<[usize]>,
    /// Byte range in the mapping; lies inside it and is as long as shape and dtype say.
    pub(super) range: Range<usize>,
    pub(super) mapping: Arc<Mapping>,
}

impl Tensor {
    /// The checkpoint's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Lengths of the dimensions, outermost first; row-major.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, little-endian, row-major, where they lie in the file: not aligned to anything.
    pub fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[self.range.clone()]
    }

    /// Path of the file that holds it, for messages.
    pub fn file(&self) -> &str {
        self.mapping.file()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} {:?} in {})", self.name, self.dtype, self.shape, self.file())
    }
}

/// A tensor whose dtype Rigel does not compute with: known by its header entry alone, an error only if it is needed.
#[derive(Debug, Clone)]
pub struct OpaqueTensor {
    /// The checkpoint's name for it.
    pub name: String,
    /// The header's name of its dtype, such as `I32`.
    pub dtype: String,
    /// Lengths of the dimensions.
    pub shape: Vec<usize>,
    /// Bytes it takes in the file.
    pub bytes: u64,
    /// Path of the file that holds it.
    pub file: String,
}
