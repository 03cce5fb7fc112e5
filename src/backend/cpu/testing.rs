//! What the tests of this module share: random numbers and storage formats.

use crate::checkpoint::Dtype;

/// A small deterministic generator (splitmix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to and excluding `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform, mean 0, standard deviation 1.
    pub(super) fn unit(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 12f32.sqrt()
    }

    pub(super) fn units(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
}

pub(super) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// The bytes of `values` in `dtype`, and the values that they stand for.
pub(super) fn stored(values: &[f32], dtype: Dtype) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    let mut rounded = Vec::new();
    for &value in values {
        match dtype {
            Dtype::F32 => {
                bytes.extend(value.to_le_bytes());
                rounded.push(value);
            }
            Dtype::F16 => {
                let value = half::f16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                rounded.push(value.to_f32());
            }
            Dtype::Bf16 => {
                let value = half::bf16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                rounded.push(value.to_f32());
            }
        }
    }
    (bytes, rounded)
}
