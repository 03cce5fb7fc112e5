//! From the dtypes of checkpoints to those of the device, many elements at a time.
//!
//! The loops have no branch in them, so that compilers vectorise them, and they are compiled for AVX2 as well as for
//! any machine: one core then converts about as fast as it can read memory.

use crate::checkpoint::Dtype;

/// Elements between two looks at whether all of them were in range.
const BLOCK: usize = 4096;

const SIGN: u32 = 0x8000_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;
/// The least magnitude, as an f32's bits, that rounds to an infinity of f16: 65520, midway between the largest f16,
/// 65504, and the next step.
const F16_OVERFLOW: u32 = 0x477f_f000;
/// 2^-14, the least magnitude that f16 holds with all of its bits.
const F16_NORMAL: u32 = 0x3880_0000;

/// A finite value that would have become infinite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OutOfRange {
    /// Its place among the elements given.
    pub element: usize,
    /// What it is.
    pub value: f32,
}

/// Converts `source`, little-endian elements of `from` at any address, to as many elements of `to`, F16 or BF16, at any
/// address: rounded to nearest, ties to even; infinities and NaN stay what they are.
///
/// # Errors
/// The first finite value whose rounding to f16 would be infinite.
pub(super) fn convert(from: Dtype, source: &[u8], to: Dtype, destination: &mut [u8]) -> Result<(), OutOfRange> {
    debug_assert_eq!(source.len() / from.size(), destination.len() / to.size());
    if from == to {
        destination.copy_from_slice(source);
        return Ok(());
    }
    let (destination, _) = destination.as_chunks_mut();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { convert_bits_avx2(from, source, to, destination) };
    }
    convert_bits(from, source, to, destination)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn convert_bits_avx2(from: Dtype, source: &[u8], to: Dtype, destination: &mut [[u8; 2]]) -> Result<(), OutOfRange> {
    convert_bits(from, source, to, destination)
}

/// [`convert`] to the bits of `to`, f16 or else bf16.
#[inline(always)]
fn convert_bits(from: Dtype, source: &[u8], to: Dtype, destination: &mut [[u8; 2]]) -> Result<(), OutOfRange> {
    let (from_f32, from_bf16) = (u32::from_le_bytes, |bytes| u32::from(u16::from_le_bytes(bytes)) << 16);
    let from_f16 = |bytes| widen_f16(u16::from_le_bytes(bytes));
    match (from, to) {
        (Dtype::F32, Dtype::F16) => each(source, destination, from_f32, round_to_f16, is_beyond_f16),
        (Dtype::Bf16, Dtype::F16) => each(source, destination, from_bf16, round_to_f16, is_beyond_f16),
        (Dtype::F16, Dtype::F16) => each(source, destination, from_f16, round_to_f16, is_beyond_f16),
        (Dtype::F32, _) => each(source, destination, from_f32, round_to_bf16, |_| false),
        (Dtype::Bf16, _) => each(source, destination, from_bf16, round_to_bf16, |_| false),
        (Dtype::F16, _) => each(source, destination, from_f16, round_to_bf16, |_| false),
    }
}

/// One loop: `widen` gives the bits of an f32, which `round` makes narrow and `is_beyond` refuses.
#[inline(always)]
fn each<const BYTES: usize>(
    source: &[u8],
    destination: &mut [[u8; 2]],
    widen: impl Fn([u8; BYTES]) -> u32,
    round: impl Fn(u32) -> u16,
    is_beyond: impl Fn(u32) -> bool,
) -> Result<(), OutOfRange> {
    let (source, _) = source.as_chunks::<BYTES>();
    for (block, (source, destination)) in source.chunks(BLOCK).zip(destination.chunks_mut(BLOCK)).enumerate() {
        let mut any_beyond = 0;
        for (bytes, narrow) in source.iter().zip(destination) {
            let wide = widen(*bytes);
            *narrow = round(wide).to_le_bytes();
            any_beyond |= u32::from(is_beyond(wide));
        }
        let beyond = if any_beyond == 0 { None } else { source.iter().position(|bytes| is_beyond(widen(*bytes))) };
        if let Some(element) = beyond {
            let value = f32::from_bits(widen(source[element]));
            return Err(OutOfRange { element: block * BLOCK + element, value });
        }
    }
    Ok(())
}

/// The f32 of the same value.
#[inline(always)]
fn widen_f16(bits: u16) -> u32 {
    let bits = u32::from(bits);
    // The exponent and the fraction in their places; the bias is 112 less than an f32's. A multiplication makes that up
    // for subnormal numbers too, which it normalises.
    let shifted = (bits & 0x7fff) << 13;
    let scaled = (f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23)).to_bits();
    let magnitude = if bits & 0x7fff >= 0x7c00 { shifted | INFINITY } else { scaled };
    magnitude | (bits & 0x8000) << 16
}

/// The upper half of the f32 `bits`, to nearest, ties to even. A carry out of the largest finite value gives infinity,
/// as it should.
#[inline(always)]
fn round_to_bf16(bits: u32) -> u16 {
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN with nothing in its upper half would have become an infinity; the quiet bit keeps it one.
    let quiet = bits >> 16 | 0x40;
    let is_nan = bits & MAGNITUDE > INFINITY;
    (if is_nan { quiet } else { rounded }) as u16
}

/// The f16 nearest to the f32 `bits`, ties to even.
#[inline(always)]
fn round_to_f16(bits: u32) -> u16 {
    let magnitude = bits & MAGNITUDE;
    // The bias is 112 less. A carry goes into the exponent, as it should.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    // Where f16 has fewer bits, an f32 addition rounds for it: a step of 0.5 is one of f16's smallest, 2^-24.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let infinite = if magnitude > INFINITY { 0x7e00 | magnitude >> 13 & 0x3ff } else { 0x7c00 };
    let finite = if magnitude < F16_NORMAL { subnormal } else { normal };
    let rounded = if magnitude >= F16_OVERFLOW { infinite } else { finite };
    (rounded | (bits & SIGN) >> 16) as u16
}

/// Whether the f32 `bits` is finite and [`round_to_f16`] makes an infinity of it.
#[inline(always)]
fn is_beyond_f16(bits: u32) -> bool {
    (F16_OVERFLOW..INFINITY).contains(&(bits & MAGNITUDE))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::*;
    use crate::backend::cuda::kernels::Element;

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

    /// The conversion as other machines have it, which must be the same.
    fn convert<T: Element>(from: Dtype, source: &[u8], destination: &mut [T]) -> Result<(), OutOfRange> {
        let converted = super::convert(from, source, T::DTYPE, bytemuck::cast_slice_mut(destination));
        if from == T::DTYPE {
            return converted;
        }
        let mut portable = vec![[0u8; 2]; destination.len()];
        assert_eq!(convert_bits(from, source, T::DTYPE, &mut portable), converted);
        if converted.is_ok() {
            assert!(portable.as_flattened() == bytemuck::cast_slice::<T, u8>(destination));
        }
        converted
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
