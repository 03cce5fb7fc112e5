//! From the dtypes of checkpoints to those of the device, many elements at a time.
//!
//! The loops have no branch in them and work on blocks that stay in the first-level cache, so that compilers vectorise
//! them and memory is what bounds them.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::kernels::Element;
use crate::checkpoint::Dtype;

/// Elements that are converted together.
const BLOCK: usize = 1024;

/// The least magnitude, as an f32's bits, that rounds to an infinity of f16: 65520, midway between the largest f16,
/// 65504, and the next step.
const F16_OVERFLOW: u32 = 0x477f_f000;
const INFINITY: u32 = 0x7f80_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// A finite value that would have become infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OutOfRange {
    /// Its place among the elements given.
    pub element: usize,
    /// What it is.
    pub value: f32,
}

/// Converts `source`, little-endian elements of `from` at any address, to as many elements of `T`: rounded to nearest,
/// ties to even; infinities and NaN stay what they are. `source` is `destination.len() * from.size()` bytes.
///
/// # Errors
/// The first finite value whose rounding to f16 would be infinite.
pub(super) fn convert<T: Element>(from: Dtype, source: &[u8], destination: &mut [T]) -> Result<(), OutOfRange> {
    debug_assert_eq!(source.len(), destination.len() * from.size());
    if from == T::DTYPE {
        // Hosts of GPUs are little-endian.
        bytemuck::cast_slice_mut::<T, u8>(destination).copy_from_slice(source);
        return Ok(());
    }
    let mut wide = [0f32; BLOCK];
    let blocks = source.chunks(BLOCK * from.size()).zip(destination.chunks_mut(BLOCK));
    for (block, (source, destination)) in blocks.enumerate() {
        let wide = &mut wide[..destination.len()];
        widen(from, source, wide);
        if T::DTYPE == Dtype::F16 {
            if let Some(element) = first_beyond_f16(wide) {
                return Err(OutOfRange { element: block * BLOCK + element, value: wide[element] });
            }
            bytemuck::cast_slice_mut::<T, f16>(destination).convert_from_f32_slice(wide);
        } else {
            round_to_bf16(wide, bytemuck::cast_slice_mut(destination));
        }
    }
    Ok(())
}

/// The same values in f32: exact.
fn widen(from: Dtype, source: &[u8], wide: &mut [f32]) {
    match from {
        Dtype::F32 => {
            for (bytes, wide) in source.as_chunks().0.iter().zip(wide) {
                *wide = f32::from_le_bytes(*bytes);
            }
        }
        Dtype::Bf16 => {
            for (bytes, wide) in source.as_chunks().0.iter().zip(wide) {
                *wide = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        Dtype::F16 => {
            let mut aligned = [f16::ZERO; BLOCK];
            for (bytes, aligned) in source.as_chunks().0.iter().zip(&mut aligned) {
                *aligned = f16::from_le_bytes(*bytes);
            }
            aligned[..wide.len()].convert_to_f32_slice(wide);
        }
    }
}

/// The upper half, to nearest, ties to even. A carry out of the largest finite value gives infinity, as it should.
fn round_to_bf16(wide: &[f32], narrow: &mut [bf16]) {
    for (wide, narrow) in wide.iter().zip(narrow) {
        let bits = wide.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        // A NaN with nothing in its upper half would have become an infinity; the quiet bit keeps it one.
        let quiet = bits >> 16 | 0x40;
        let is_nan = bits & MAGNITUDE > INFINITY;
        *narrow = bf16::from_bits(if is_nan { quiet } else { rounded } as u16);
    }
}

fn first_beyond_f16(wide: &[f32]) -> Option<usize> {
    let beyond = |value: &f32| (F16_OVERFLOW..INFINITY).contains(&(value.to_bits() & MAGNITUDE));
    // All of them first, without a branch: the search is for the unlikely case.
    let any = wide.iter().fold(false, |any, value| any | beyond(value));
    if any { wide.iter().position(beyond) } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(values: &[f32], dtype: Dtype) -> Vec<u8> {
        let bytes = |value: &f32| match dtype {
            Dtype::F32 => value.to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }

    /// Values where rounding is hard: ties, neighbours of ties, carries, subnormals, the ends of the ranges.
    fn hard_values() -> Vec<f32> {
        let mut values = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE];
        for exponent in 0..=254u32 {
            for high in [0u32, 1, 0x3f, 0x7e, 0x7f] {
                for low in [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff] {
                    let value = f32::from_bits(exponent << 23 | high << 16 | low);
                    values.extend([value, -value]);
                }
            }
        }
        values
    }

    /// Held against the half crate's conversion of one value at a time.
    fn check(values: &[f32]) {
        let mut narrow = vec![bf16::ZERO; values.len()];
        convert(Dtype::F32, &bytes_of(values, Dtype::F32), &mut narrow).unwrap();
        for (value, narrow) in values.iter().zip(&narrow) {
            assert_eq!(narrow.to_bits(), bf16::from_f32(*value).to_bits(), "{value} {:08x}", value.to_bits());
        }
        let in_range: Vec<f32> = values.iter().copied().filter(|v| !v.is_finite() || v.abs() < 65520.0).collect();
        let mut narrow = vec![f16::ZERO; in_range.len()];
        convert(Dtype::F32, &bytes_of(&in_range, Dtype::F32), &mut narrow).unwrap();
        for (value, narrow) in in_range.iter().zip(&narrow) {
            let expected = f16::from_f32_const(*value);
            assert!(narrow.to_bits() == expected.to_bits() || value.is_nan() && narrow.is_nan(), "{value}");
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        check(&hard_values());
    }

    proptest! {
        #[test]
        fn rounding_of_any_bits(bits in prop::collection::vec(any::<u32>(), 0..3000)) {
            check(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
        }
    }

    #[test]
    fn nan_stays_nan_and_keeps_its_sign() {
        for bits in [0x7f80_0001u32, 0x7fbf_ffff, 0x7fc0_0000, 0x7fff_ffff, 0xff80_0001, 0xffff_ffff] {
            let source = bits.to_le_bytes();
            let (mut b, mut h) = ([bf16::ZERO], [f16::ZERO]);
            convert(Dtype::F32, &source, &mut b).unwrap();
            convert(Dtype::F32, &source, &mut h).unwrap();
            assert!(b[0].is_nan() && h[0].is_nan(), "{bits:08x}");
            assert_eq!((b[0].is_sign_negative(), h[0].is_sign_negative()), (bits >> 31 == 1, bits >> 31 == 1));
        }
    }

    #[test]
    fn all_halves_to_all_others() {
        let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (mut same_b, mut same_h) = (vec![bf16::ZERO; 1 << 16], vec![f16::ZERO; 1 << 16]);
        convert(Dtype::Bf16, &halves, &mut same_b).unwrap();
        convert(Dtype::F16, &halves, &mut same_h).unwrap();
        assert_eq!(bytemuck::cast_slice::<bf16, u8>(&same_b), halves);
        assert_eq!(bytemuck::cast_slice::<f16, u8>(&same_h), halves);

        let mut rounded = vec![bf16::ZERO; 1 << 16];
        convert(Dtype::F16, &halves, &mut rounded).unwrap();
        for (from, to) in same_h.iter().zip(&rounded) {
            let expected = bf16::from_f32(from.to_f32_const());
            assert!(to.to_bits() == expected.to_bits() || from.is_nan() && to.is_nan(), "{from:?} {to:?}");
        }
        for bits in 0..=u16::MAX {
            let from = bf16::from_bits(bits);
            let mut to = [f16::ZERO];
            let converted = convert(Dtype::Bf16, &bits.to_le_bytes(), &mut to);
            let expected = f16::from_f32_const(from.to_f32());
            if expected.is_infinite() && from.is_finite() {
                assert_eq!(converted, Err(OutOfRange { element: 0, value: from.to_f32() }));
            } else {
                assert_eq!(converted, Ok(()));
                assert!(to[0].to_bits() == expected.to_bits() || from.is_nan() && to[0].is_nan(), "{from:?}");
            }
        }
    }

    #[test]
    fn the_first_value_beyond_f16_is_found_wherever_it_is() {
        for at in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 2] {
            for value in [65520.0, -65520.0, 1e5, f32::MAX] {
                let mut values = vec![65519.996f32; 3 * BLOCK - 1];
                values[at] = value;
                values[3 * BLOCK - 2] = value;
                let mut narrow = vec![f16::ZERO; values.len()];
                let refused = convert(Dtype::F32, &bytes_of(&values, Dtype::F32), &mut narrow);
                assert_eq!(refused, Err(OutOfRange { element: at, value }));
            }
        }
    }

    #[test]
    fn any_address_will_do() {
        let values: Vec<f32> = (0..BLOCK + 3).map(|i| i as f32 * 0.37 - 100.0).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let bytes = bytes_of(&values, dtype);
            let mut results = Vec::new();
            for shift in 0..4 {
                let moved = [vec![0xa5; shift], bytes.clone()].concat();
                let (mut b, mut h) = (vec![bf16::ZERO; values.len()], vec![f16::ZERO; values.len()]);
                convert(dtype, &moved[shift..], &mut b).unwrap();
                convert(dtype, &moved[shift..], &mut h).unwrap();
                results.push((b, h));
            }
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}
