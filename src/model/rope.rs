//! The frequencies of the rotary embedding.

/// Rotary position embedding of queries and keys over the whole head, first half against second (GPT-NeoX style).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Divisor of the frequencies: the factor of linear scaling; 1 for none.
    pub factor: f64,
}

impl Rope {
    /// `1 / theta^(2p / head_dim) / factor` for the pairs `p` of a head, f32 `[head_dim / 2]`.
    ///
    /// Rounded where Hugging Face rounds, `1.0 / (theta ** (arange(0, dim, 2).float() / dim))`: torch casts the base
    /// and the exponent to f32, and the power and its reciprocal are f32. The power is taken in f64 and rounded once,
    /// so it is the f32 nearest to the true one; torch's own may miss that by one unit in the last place. The factor
    /// divides what was rounded, in f32.
    pub fn inv_freq(self, head_dim: usize) -> Vec<f32> {
        let base = f64::from(self.theta as f32);
        (0..head_dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / head_dim as f32;
                1.0 / base.powf(f64::from(exponent)) as f32 / self.factor as f32
            })
            .collect()
    }

    /// Cosine and sine of the angle by which `position` turns a pair of the frequency `inv_freq`.
    ///
    /// The angle is `position as f32 * inv_freq` rounded to f32, as Hugging Face computes it; its cosine and sine are
    /// taken in f64 and rounded once.
    pub fn rotation(position: u32, inv_freq: f32) -> (f32, f32) {
        let (sin, cos) = f64::from(position as f32 * inv_freq).sin_cos();
        (cos as f32, sin as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `a` is at most one representable f32 from `b` (both positive).
    fn within_one_ulp(a: f32, b: f32) -> bool {
        a.to_bits().abs_diff(b.to_bits()) <= 1
    }

    #[test]
    fn spot_values_of_the_published_models() {
        // reference/starcoder2.md §2, computed with torch; digits beyond f32 as printed there.
        let expected: [(f64, &[(usize, f32)]); 3] = [
            (1e5, &[(0, 1.0), (1, 0.83536255), (32, 0.003_162_277_6), (63, 1.197_085_e-5)]),
            (999_999.442_035_881_3, &[(0, 1.0), (1, 0.805_842_2), (63, 1.240_938_4e-6)]),
            (1e6, &[(0, 1.0), (1, 0.80584216), (32, 0.001)]),
        ];
        for (theta, values) in expected {
            let inv_freq = Rope { theta, factor: 1.0 }.inv_freq(128);
            assert_eq!(inv_freq.len(), 64);
            for &(pair, value) in values {
                assert!(within_one_ulp(inv_freq[pair], value), "{theta} {pair}: {} {value}", inv_freq[pair]);
            }
        }
    }

    #[test]
    fn every_frequency_follows_the_formula() {
        for (theta, head_dim) in [(1e5, 128), (999_999.442_035_881_3, 128), (1e4, 64), (5e5, 2)] {
            let inv_freq = Rope { theta, factor: 1.0 }.inv_freq(head_dim);
            for (pair, &value) in inv_freq.iter().enumerate() {
                let exact = theta.powf(-2.0 * pair as f64 / head_dim as f64);
                // The f32 exponent carries 2^-24 of relative error, which the logarithm of theta magnifies.
                let bound = (2.0 + theta.ln()) * 2f64.powi(-24);
                assert!((f64::from(value) / exact - 1.0).abs() < bound, "{theta} {pair}: {value} {exact}");
            }
        }
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        // transformers 5.23's rotary embedding of a Starcoder2Config with head_dim 128, rope_theta 10000 and factor 2
        // or 3, pairs 0, 1, 2, 32 and 63.
        let expected = [
            (2.0, [0.5, 0.43298218, 0.3749471, 0.005, 5.773_909_7e-5]),
            (3.0, [0.33333334, 0.28865477, 0.24996473, 0.003_333_333_2, 3.849_273e-5]),
        ];
        for (factor, values) in expected {
            let inv_freq = Rope { theta: 1e4, factor }.inv_freq(128);
            for (pair, value) in [0, 1, 2, 32, 63].into_iter().zip(values) {
                assert!(within_one_ulp(inv_freq[pair], value), "{factor} {pair}: {} {value}", inv_freq[pair]);
            }
        }
    }
}
