//! LayerNorm over one row.

use super::simd::{LANES, Lanes};

/// `out = (x - mean) / √(variance + eps) · weight + bias`, all f32 `[n]`; the variance is the biased one, of the
/// differences from the mean (PyTorch's `nn.LayerNorm`).
///
/// # Safety
/// As [`Lanes`]; `x`, `weight` and `bias` hold `n` elements, `out` has room for them.
#[inline(always)]
pub(crate) unsafe fn layer_norm<L: Lanes>(
    x: *const f32,
    weight: *const f32,
    bias: *const f32,
    eps: f32,
    n: usize,
    out: *mut f32,
) {
    let whole = n - n % LANES;
    let tail = n - whole;
    // SAFETY: the caller's promise; every access is below `n`.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            sum = sum.add(L::load(x.add(i)));
        }
        if tail > 0 {
            sum = sum.add(L::load_first(x.add(whole), tail));
        }
        let mean = sum.sum() / n as f32;

        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(LANES) {
            let d = L::load(x.add(i)).sub(L::splat(mean));
            squares = d.mul_add(d, squares);
        }
        if tail > 0 {
            // The mean in the used lanes alone: the others would add mean².
            let d = L::load_first(x.add(whole), tail).sub(L::load_first([mean; LANES].as_ptr(), tail));
            squares = d.mul_add(d, squares);
        }
        let scale = L::splat(1.0 / (squares.sum() / n as f32 + eps).sqrt());

        for i in (0..whole).step_by(LANES) {
            let unit = L::load(x.add(i)).sub(L::splat(mean)).mul(scale);
            unit.mul_add(L::load(weight.add(i)), L::load(bias.add(i))).store(out.add(i));
        }
        if tail > 0 {
            let unit = L::load_first(x.add(whole), tail).sub(L::splat(mean)).mul(scale);
            let weight = L::load_first(weight.add(whole), tail);
            unit.mul_add(weight, L::load_first(bias.add(whole), tail)).store_first(out.add(whole), tail);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::backend::cpu::kernels::{Isa, Kernels};
    use crate::backend::cpu::testing::Random;

    #[test]
    fn agrees_with_f64_loops() {
        let mut random = Random(4);
        for n in [1, 2, 15, 16, 17, 48, 100, 3072] {
            // A mean far from 0 shows a variance taken as E[x²] - E[x]².
            let x: Vec<f32> = random.units(n).iter().map(|x| x + 100.0).collect();
            let (weight, bias) = (random.units(n), random.units(n));
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
            let mut bits: Vec<Vec<u32>> = Vec::new();
            for isa in Isa::available() {
                let mut out = vec![0.0; n];
                let norm = Kernels::new(isa).unwrap().layer_norm;
                // SAFETY: `n` elements each; `isa` is available.
                unsafe { norm(x.as_ptr(), weight.as_ptr(), bias.as_ptr(), 1e-5, n, out.as_mut_ptr()) };
                for i in 0..n {
                    let unit = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                    let exact = unit * f64::from(weight[i]) + f64::from(bias[i]);
                    assert!((f64::from(out[i]) - exact).abs() < 1e-4, "{isa:?} n={n}: {} is not {exact}", out[i]);
                }
                if isa != Isa::Portable {
                    bits.push(out.iter().map(|x| x.to_bits()).collect());
                }
            }
            assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "instruction sets differ at n={n}");
        }
    }
}
