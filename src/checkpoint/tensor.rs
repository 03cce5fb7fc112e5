//! One tensor of a checkpoint: a handle on bytes of a mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::MmapMut;
use rayon::prelude::*;

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

/// A tensor stored in F64: read as F32, into memory of its own, when it is first asked for.
#[derive(Clone)]
pub(super) struct WideTensor {
    /// As it is stored.
    pub(super) stored: OpaqueTensor,
    /// Byte range in the mapping; lies inside it and is as long as F64 and the shape say.
    pub(super) range: Range<usize>,
    pub(super) mapping: Arc<Mapping>,
    pub(super) narrowed: OnceLock<Option<Tensor>>,
}

impl fmt::Debug for WideTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stored.fmt(f)
    }
}

impl WideTensor {
    /// The tensor in F32, each element rounded to nearest even as torch does; `None` where memory for it cannot be had.
    pub(super) fn narrowed(&self) -> Option<&Tensor> {
        self.narrowed.get_or_init(|| self.narrow()).as_ref()
    }

    fn narrow(&self) -> Option<Tensor> {
        const ELEMENTS: usize = 1 << 16;
        let (wide, _) = self.mapping.bytes()[self.range.clone()].as_chunks::<8>();
        // A mapping is not empty.
        let mut map = MmapMut::map_anon((wide.len() * 4).max(1)).ok()?;
        let narrow = map[..wide.len() * 4].par_chunks_mut(4 * ELEMENTS);
        narrow.zip(wide.par_chunks(ELEMENTS)).for_each(|(narrow, wide)| {
            let (narrow, _) = narrow.as_chunks_mut::<4>();
            for (narrow, wide) in narrow.iter_mut().zip(wide) {
                *narrow = (f64::from_le_bytes(*wide) as f32).to_le_bytes();
            }
        });
        let mapping = Mapping::of_memory(map.make_read_only().ok()?, self.mapping.file().to_owned());
        Some(Tensor {
            name: self.stored.name.as_str().into(),
            dtype: Dtype::F32,
            shape: self.stored.shape.as_slice().into(),
            range: 0..wide.len() * 4,
            mapping: Arc::new(mapping),
        })
    }
}

/// A tensor whose dtype Rigel does not compute with: known by its header entry alone, an error only if it is needed and
/// cannot be narrowed as F64 can.
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
