//! Weight formats as plain data: what a backend allocates, moves and chooses kernels by.

use std::num::NonZeroU32;

use crate::checkpoint::Dtype;

/// Storage format of a weight matrix `[rows, columns]`: a code per weight, and numbers shared by groups of weights.
///
/// With code `q` and its value `C(q)`, a weight is `scale * (C(q) - zero)` or `scale * C(q) - min`. Without scales it
/// is `C(q)`: dense.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightFormat {
    /// The code.
    pub code: Code,
    /// Scales: the product of those of a weight's groups. K-quants have two, other formats one.
    pub scales: [Option<PerGroup>; 2],
    /// The offset.
    pub offsets: Offsets,
}

/// Meaning of a code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Code {
    /// A floating-point number.
    Float(Dtype),
    /// An unsigned integer of this many bits; signed formats are stored with half of the range added.
    Integer {
        /// Bits of a code.
        bits: u32,
    },
    /// An index into this code book.
    Book(&'static [f32; 16]),
}

/// The offset subtracted from codes or from scaled codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Offsets {
    /// A constant subtracted from every code: half of the range for signed integers, else 0.
    Fixed(u32),
    /// Zeros: a number per group, subtracted from codes.
    Zeros(PerGroup),
    /// Mins: the product of those of a weight's groups, subtracted from scaled codes.
    Mins([Option<PerGroup>; 2]),
}

/// Numbers shared by `rows` × `columns` weights, or by all weights if `None`. The last groups of a matrix may be
/// smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerGroup {
    /// Bits of a number.
    pub bits: u32,
    /// Outputs of a group.
    pub rows: Option<NonZeroU32>,
    /// Inputs of a group.
    pub columns: Option<NonZeroU32>,
}

impl Code {
    fn bits(self) -> u32 {
        match self {
            Code::Float(dtype) => 8 * dtype.size() as u32,
            Code::Integer { bits } => bits,
            Code::Book(_) => 4,
        }
    }
}

impl PerGroup {
    fn bits_of(self, rows: usize, columns: usize) -> u128 {
        let groups = |size: usize, group: Option<NonZeroU32>| match group {
            Some(group) => size.div_ceil(group.get() as usize) as u128,
            None => u128::from(size > 0),
        };
        u128::from(self.bits) * groups(rows, self.rows) * groups(columns, self.columns)
    }
}

impl WeightFormat {
    /// Dense weights of `dtype`.
    pub const fn dense(dtype: Dtype) -> WeightFormat {
        WeightFormat { code: Code::Float(dtype), scales: [None; 2], offsets: Offsets::Fixed(0) }
    }

    /// The dtype. `None` if quantised.
    pub fn dense_dtype(&self) -> Option<Dtype> {
        match *self {
            WeightFormat { code: Code::Float(dtype), scales: [None, None], offsets: Offsets::Fixed(0) } => Some(dtype),
            _ => None,
        }
    }

    /// Bytes of `rows` × `columns` weights with their shared numbers, without padding.
    pub fn bytes(&self, rows: usize, columns: usize) -> u64 {
        // In 128 bits: a matrix whose bytes just fit in u64 has more bits.
        let codes = u128::from(self.code.bits()) * rows as u128 * columns as u128;
        let offsets = match self.offsets {
            Offsets::Fixed(_) => [None; 2],
            Offsets::Zeros(zeros) => [Some(zeros), None],
            Offsets::Mins(mins) => mins,
        };
        let shared = self.scales.iter().chain(&offsets).flatten();
        let bits = codes + shared.map(|shared| shared.bits_of(rows, columns)).sum::<u128>();
        bits.div_ceil(8) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of `bits` bits for groups of `columns` inputs of one output; of all its inputs for 0.
    fn along(bits: u32, columns: u32) -> PerGroup {
        PerGroup { bits, rows: NonZeroU32::new(1), columns: NonZeroU32::new(columns) }
    }

    fn integer(bits: u32, scales: [Option<PerGroup>; 2], offsets: Offsets) -> WeightFormat {
        WeightFormat { code: Code::Integer { bits }, scales, offsets }
    }

    #[test]
    fn dense_weights_take_what_their_elements_take() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let format = WeightFormat::dense(dtype);
            assert_eq!((format.dense_dtype(), format.bytes(3, 7)), (Some(dtype), 21 * dtype.size() as u64));
            assert_eq!(format.bytes(0, 7), 0);
        }
    }

    #[test]
    fn quantised_weights_take_what_their_formats_say() {
        // GGUF's blocks: ggml-common.h.
        let q8_0 = integer(8, [Some(along(16, 32)), None], Offsets::Fixed(128));
        assert_eq!(q8_0.bytes(1, 32), 34);
        let q4_0 = integer(4, [Some(along(16, 32)), None], Offsets::Fixed(8));
        assert_eq!(q4_0.bytes(5, 64), 5 * 2 * 18);
        let two_levels = [Some(along(6, 32)), Some(along(16, 256))];
        assert_eq!(integer(4, two_levels, Offsets::Mins(two_levels)).bytes(3, 512), 3 * 2 * 144, "Q4_K");
        let q6_k = integer(6, [Some(along(8, 16)), Some(along(16, 256))], Offsets::Fixed(32));
        assert_eq!(q6_k.bytes(1, 256), 210);
        let iq4_nl = WeightFormat { code: Code::Book(&[0.0; 16]), ..q4_0 };
        assert_eq!(iq4_nl.bytes(1, 32), 18);
        // GPTQ: qweight, scales, qzeros.
        let gptq = integer(4, [Some(along(16, 128)), None], Offsets::Zeros(along(4, 128)));
        assert_eq!(gptq.bytes(64, 256), 64 * 256 / 2 + 2 * 64 * 2 + 64 * 2 / 2);
        // One scale an output, one a block of 128 x 128, one for all.
        let int8 = integer(8, [Some(along(32, 0)), None], Offsets::Fixed(128));
        assert_eq!(int8.bytes(10, 300), 10 * 300 + 10 * 4);
        let side = NonZeroU32::new(128);
        let block = PerGroup { bits: 32, rows: side, columns: side };
        let blocks = WeightFormat { scales: [Some(block), None], ..int8 };
        assert_eq!(blocks.bytes(200, 300), 200 * 300 + 2 * 3 * 4);
        let all = PerGroup { rows: None, columns: None, ..block };
        assert_eq!(WeightFormat { scales: [Some(all), None], ..int8 }.bytes(200, 300), 200 * 300 + 4);
        for format in [q8_0, q6_k, iq4_nl, gptq, int8, blocks] {
            assert_eq!(format.dense_dtype(), None);
        }
    }
}
