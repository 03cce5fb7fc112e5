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
        // ln 2 in two parts; n times the first is exact.
        let r = n.mul_add(L::splat(-355.0 / 512.0), clamped);
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

/// Coefficients of `erfcx(a / √2) / 2 / t` in powers of `t = 1 / (1 + 0.3 a)`, the highest first. Least squares,
/// reweighted towards the smallest relative error: 3.5e-9 for `a` up to 13.4, past which `e^(-a²/2)` is 0 in f32.
const ERFCX: [f32; 10] = [
    -0.020_589_925,
    0.112_246_804,
    -0.227_752_16,
    0.191_143_1,
    -0.078_865_714,
    0.095_842_85,
    0.078_503_8,
    0.110_209_63,
    0.119_575_09,
    0.119_686_514,
];

/// GELU by its definition, `x Φ(x) = 0.5 x (1 + erf(x / √2))`, within a relative error of 1e-6 where the result is a
/// normal number.
///
/// `x Φ(x) = max(x, 0) - |x| Φ(-|x|)`, and `Φ(-a) = e^(-a²/2) erfcx(a / √2) / 2` keeps its relative accuracy where erf
/// comes near -1.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn gelu_erf<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let zero = L::splat(0.0);
        // Φ(-20) is 0 in f32. `min` and `max` return their argument where one is NaN: a NaN passes through.
        let a = L::splat(20.0).min(zero.sub(x).max(x));
        let t = L::splat(1.0).div(a.mul_add(L::splat(0.3), L::splat(1.0)));
        let mut p = L::splat(ERFCX[0]);
        for c in &ERFCX[1..] {
            p = p.mul_add(t, L::splat(*c));
        }
        // The square in two parts: what rounding took from it would be magnified by the exponential.
        let square = a.mul(a);
        let rest = a.mul_add(a, zero.sub(square));
        let e = exp(square.mul(L::splat(-0.5)));
        let e = e.mul(L::splat(-0.5)).mul_add(rest, e);
        zero.max(x).sub(e.mul(t).mul(p).mul(a))
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::cpu::kernels::{Isa, Kernels};
    use crate::backend::cpu::simd::LANES;

    /// `exp`, GELU in its tanh form and by its definition.
    fn elementwise(isa: Isa, x: [f32; LANES]) -> [[f32; LANES]; 3] {
        let mut out = [[0.0; LANES]; 3];
        // SAFETY: sixteen elements in, three times as many out; `isa` is available.
        unsafe { (Kernels::new(isa).unwrap().elementwise)(x.as_ptr(), out.as_mut_ptr().cast()) };
        out
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
                worst = worst.max(ulps(elementwise(isa, [x; LANES])[0][3], f64::from(x).exp()));
            }
            assert!(worst <= 2.0, "{isa:?}: {worst} ulps");
        }
    }

    #[test]
    fn exp_at_the_edges() {
        for isa in Isa::available() {
            let exp = |x| elementwise(isa, [x; LANES])[0][0];
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
                let found = f64::from(elementwise(isa, [x; LANES])[1][7]);
                let wide = f64::from(x);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
                let exact = wide / (1.0 + (-2.0 * u).exp());
                assert!(
                    (found - exact).abs() <= 1e-5 * exact.abs() + 1e-30,
                    "{isa:?} gelu({x}) = {found}, not {exact}"
                );
                assert!((found - 0.5 * wide * (1.0 + u.tanh())).abs() <= 3e-7 * wide.abs().max(1e-30));
            }
            assert!(elementwise(isa, [f32::NAN; LANES])[1][0].is_nan());
            assert_eq!(elementwise(isa, [f32::INFINITY; LANES])[1][0], f32::INFINITY);
        }
    }

    #[test]
    fn gelu_by_its_definition_agrees_with_f64() {
        // x erfc(-x / √2) / 2 by mpmath.
        let exact = [
            (-13.0, -7.952313719414898e-38),
            (-12.25, -1.0289750177951134e-33),
            (-9.5, -9.96978932159459e-21),
            (-7.0, -8.958687807200846e-12),
            (-5.5, -1.0444259356238256e-07),
            (-4.25, -4.542623454347133e-05),
            (-3.25, -0.001875331387769994),
            (-2.5, -0.015524163314440348),
            (-1.75, -0.07010352451167991),
            (-1.0, -0.15865525393145707),
            (-0.75, -0.16997051428265114),
            (-0.5, -0.15426876936299347),
            (-0.125, -0.05628272189623589),
            (-0.0078125, -0.0038819007432746673),
            (0.0078125, 0.003930599256725333),
            (0.375, 0.2423136625022714),
            (0.75, 0.5800294857173488),
            (1.5, 1.399789198096713),
            (2.75, 2.7418056511035998),
            (4.0, 3.9998733150326675),
            (6.5, 6.49999999973896),
            (11.0, 11.0),
        ];
        for isa in Isa::available() {
            let gelu = |x: f32| elementwise(isa, [x; LANES])[2][5];
            for (x, exact) in exact {
                let found = f64::from(gelu(x));
                assert!((found - exact).abs() <= 1e-6 * exact.abs(), "{isa:?} gelu({x}) = {found}, not {exact}");
            }
            for i in -20_000..20_000 {
                // Φ is symmetric, so that gelu(x) - gelu(-x) = x; and it is monotonic on each side of its minimum.
                let x = i as f32 * 0.001;
                assert!((gelu(x) - gelu(-x) - x).abs() <= 2e-7 * x.abs(), "{isa:?} {x}");
                let next = (i + 1) as f32 * 0.001;
                let rises = gelu(next) - gelu(x);
                let slack = 1e-6 * gelu(x).abs();
                assert!(if next <= -0.752 { rises <= slack } else { x < -0.75 || rises >= -slack }, "{isa:?} {x}");
            }
            assert_eq!([gelu(0.0), gelu(-0.0), gelu(-14.0), gelu(-1e30), gelu(f32::NEG_INFINITY)], [0.0; 5]);
            assert_eq!([gelu(20.5), gelu(1e30), gelu(f32::INFINITY)], [20.5, 1e30, f32::INFINITY]);
            assert!(gelu(f32::NAN).is_nan());
        }
    }
}
