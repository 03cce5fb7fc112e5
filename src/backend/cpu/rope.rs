//! Rotary position embedding, half-rotation form: dimension `p` turns with dimension `p + head_dim / 2`.

use super::simd::{LANES, Lanes};
use crate::model::Rope;

/// Cosines and sines of one position, f32 `[head_dim / 2]` each: [`Rope::rotation`] of every pair.
pub(crate) fn angles(position: u32, inv_freq: &[f32], cos: &mut [f32], sin: &mut [f32]) {
    for ((inv_freq, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
        (*cos, *sin) = Rope::rotation(position, *inv_freq);
    }
}

/// `to[p] = x[p] cos[p] - x[p + half] sin[p]`, `to[p + half] = x[p + half] cos[p] + x[p] sin[p]` for `p < half`.
///
/// # Safety
/// As [`Lanes`]; `x` and `to` hold `2 * half` elements and are the same or disjoint; `cos` and `sin` hold `half`.
#[inline(always)]
pub(crate) unsafe fn rotate<L: Lanes>(x: *const f32, cos: *const f32, sin: *const f32, half: usize, to: *mut f32) {
    let whole = half - half % LANES;
    let tail = half - whole;
    // SAFETY: the caller's promise; every access is below `half` from its base.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            let (low, high) = (L::load(x.add(i)), L::load(x.add(half + i)));
            let (cos, sin) = (L::load(cos.add(i)), L::load(sin.add(i)));
            let (low, high) = turn(low, high, cos, sin);
            low.store(to.add(i));
            high.store(to.add(half + i));
        }
        if tail > 0 {
            let (low, high) = (L::load_first(x.add(whole), tail), L::load_first(x.add(half + whole), tail));
            let (cos, sin) = (L::load_first(cos.add(whole), tail), L::load_first(sin.add(whole), tail));
            let (low, high) = turn(low, high, cos, sin);
            low.store_first(to.add(whole), tail);
            high.store_first(to.add(half + whole), tail);
        }
    }
}

#[inline(always)]
unsafe fn turn<L: Lanes>(low: L, high: L, cos: L, sin: L) -> (L, L) {
    // SAFETY: as `Lanes`, the caller's promise.
    unsafe {
        let minus = L::splat(0.0).sub(high.mul(sin));
        (low.mul_add(cos, minus), high.mul_add(cos, low.mul(sin)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernels::{Isa, Kernels};
    use crate::backend::cpu::testing::Random;

    #[test]
    fn rotates_pairs_half_a_head_apart() {
        let mut random = Random(5);
        for half in [1, 2, 15, 16, 17, 32, 64] {
            let inv_freq: Vec<f32> = (0..half).map(|p| 1e5f32.powf(-(p as f32) / half as f32)).collect();
            for position in [0, 1, 255, 4097, 16383] {
                let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
                angles(position, &inv_freq, &mut cos, &mut sin);
                let x = random.units(2 * half);
                for isa in Isa::available() {
                    let rotate = Kernels::new(isa).unwrap().rotate;
                    let mut apart = vec![7.0; 2 * half];
                    let mut in_place = x.clone();
                    // SAFETY: buffers of a head and half a head; `isa` is available.
                    unsafe {
                        rotate(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), half, apart.as_mut_ptr());
                        rotate(in_place.as_ptr(), cos.as_ptr(), sin.as_ptr(), half, in_place.as_mut_ptr());
                    }
                    assert_eq!(apart, in_place);
                    for p in 0..half {
                        // As complex numbers: (x[p] + i x[p + half]) · e^(i angle), the angle rounded to f32.
                        let angle = f64::from(position as f32 * inv_freq[p]);
                        let (re, im) = (f64::from(x[p]), f64::from(x[p + half]));
                        let exact = (re * angle.cos() - im * angle.sin(), im * angle.cos() + re * angle.sin());
                        assert!((f64::from(apart[p]) - exact.0).abs() < 1e-6);
                        assert!((f64::from(apart[p + half]) - exact.1).abs() < 1e-6);
                    }
                }
            }
        }
    }
}
