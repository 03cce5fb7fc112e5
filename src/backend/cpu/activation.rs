//! `exp` and GELU on lanes.

use super::simd::Lanes;

/// Below this, `exp` is 0 (the true value is under the smallest normal `f32`).
const EXP_LOWEST: f32 = -87.33;
/// From here on, `exp` stays at about 2.4e38 in place of overflowing.
const EXP_HIGHEST: f32 = 88.37;

/// `e^x` within about 2 ulp: 0 below -87.33, held at `e^88.37` above, NaN for NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; the polynomial for `e^r` is Cephes' `expf` (Moshier, public domain).
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        // `max` and `min` return their argument where one is NaN: a NaN passes through both.
        let clamped = L::splat(EXP_HIGHEST).min(L::splat(EXP_LOWEST).max(x));
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
        let magic = L::splat(12_582_912.0);
        let shifted = clamped.mul_add(L::splat(std::f32::consts::LOG2_E), magic);
        let n = shifted.sub(magic);
        let r = n.mul_add(L::splat(-0.693_359_4), clamped);
        let r = n.mul_add(L::splat(2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            p = p.mul_add(r, L::splat(c));
        }
        let e = p.mul_add(r.mul(r), r).add(L::splat(1.0));
        e.add_exponent(shifted).zero_where_below(x, L::splat(EXP_LOWEST))
    }
}

/// GELU in its tanh form, `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, as `x / (1 + e^(-2u))`, which keeps its
/// relative accuracy where tanh comes near -1.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let x2 = x.mul(x);
        let scale = -2.0 * 0.797_884_560_802_865_4; // -2 √(2/π)
        let minus_2u = x.mul(x2.mul_add(L::splat((scale * 0.044_715) as f32), L::splat(scale as f32)));
        x.div(exp(minus_2u).add(L::splat(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::cpu::kernels::{Isa, Kernels};
    use crate::backend::cpu::simd::LANES;

    fn elementwise(isa: Isa, x: [f32; LANES]) -> ([f32; LANES], [f32; LANES]) {
        let (mut exp, mut gelu) = ([0.0; LANES], [0.0; LANES]);
        // SAFETY: sixteen elements each; `isa` is available.
        unsafe { (Kernels::new(isa).unwrap().elementwise)(x.as_ptr(), exp.as_mut_ptr(), gelu.as_mut_ptr()) };
        (exp, gelu)
    }

    /// Distance in units of the last place of the exact value, rounded to f32.
    fn ulps(found: f32, exact: f64) -> f64 {
        let ulp = f64::from(f32::from_bits((exact.abs() as f32).to_bits() + 1)) - f64::from(exact.abs() as f32);
        (f64::from(found) - exact).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulps() {
        for isa in Isa::available() {
            let mut worst: f64 = 0.0;
            for i in -87_000..88_000 {
                let x = i as f32 * 0.001 + 1e-5;
                worst = worst.max(ulps(elementwise(isa, [x; LANES]).0[3], f64::from(x).exp()));
            }
            assert!(worst <= 2.0, "{isa:?}: {worst} ulps");
        }
    }

    #[test]
    fn exp_at_the_edges() {
        for isa in Isa::available() {
            let exp = |x| elementwise(isa, [x; LANES]).0[0];
            assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
            assert_eq!(exp(-1000.0).to_bits(), 0);
            assert_eq!(exp(0.0), 1.0);
            assert_eq!(exp(-0.0), 1.0);
            assert!(exp(f32::INFINITY) > 2.3e38);
            assert!(exp(f32::NAN).is_nan());
        }
    }

    #[test]
    fn gelu_agrees_with_its_formula() {
        for isa in Isa::available() {
            for i in -12_000..12_000 {
                let x = i as f32 * 0.001;
                let found = f64::from(elementwise(isa, [x; LANES]).1[7]);
                let wide = f64::from(x);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
                let exact = wide / (1.0 + (-2.0 * u).exp());
                assert!(
                    (found - exact).abs() <= 1e-5 * exact.abs() + 1e-30,
                    "{isa:?} gelu({x}) = {found}, not {exact}"
                );
                assert!((found - 0.5 * wide * (1.0 + u.tanh())).abs() <= 3e-7 * wide.abs().max(1e-30));
            }
            assert!(elementwise(isa, [f32::NAN; LANES]).1[0].is_nan());
            assert_eq!(elementwise(isa, [f32::INFINITY; LANES]).1[0], f32::INFINITY);
        }
    }
}
