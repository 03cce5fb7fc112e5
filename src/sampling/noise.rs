//! The counter-based generator behind every draw: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
//! numbers: as easy as 1, 2, 3", SC 2011).
//!
//! Tokens are sampled by an exponential race: each kept token gets an exponential variate `e` and the largest `p / e`
//! wins, so token `i` wins with probability `p_i`. The variate is a pure function of (seed, position, token id):
//! sampling needs no state and no order of tokens, and a GPU thread per token computes what a loop computes here.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox4x32 with ten rounds: 128 random bits for a 128-bit counter and a 64-bit key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product = [0, 1].map(|i| u64::from(MULTIPLIERS[i]) * u64::from(counter[2 * i]));
        counter = [
            (product[1] >> 32) as u32 ^ counter[1] ^ key[0],
            product[1] as u32,
            (product[0] >> 32) as u32 ^ counter[3] ^ key[1],
            product[0] as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The logarithm of the exponential variate of `token` at `position` under `seed`.
///
/// `position` is that of the token being sampled, counted from the start of the prompt. Four neighbouring ids share
/// one Philox block. The uniform lies in (0, 1): `(bits >> 8 + 1/2) / 2^24`, rounded to f32 but not up to 1, where the
/// variate would be 0 and its token would win whatever its probability.
pub fn log_exponential(seed: u64, position: u32, token: u32) -> f32 {
    let block = philox4x32([token / 4, position, 0, 0], [seed as u32, (seed >> 32) as u32]);
    log_exponential_of(block[(token % 4) as usize])
}

fn log_exponential_of(bits: u32) -> f32 {
    const BELOW_1: f32 = 1.0 - f32::EPSILON / 2.0;
    let uniform = ((bits >> 8) as f32 + 0.5) * (1.0 / (1 << 24) as f32);
    (-uniform.min(BELOW_1).ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of Random123, the authors' own implementation (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_variate_is_positive_and_finite() {
        for bits in [0, 0xff, 0x100, 0x7fff_ffff, 0x8000_0000, 0xffff_feff, 0xffff_ff00, 0xffff_ffff] {
            let log = log_exponential_of(bits);
            assert!((-16.64..2.86).contains(&log), "{bits:#x}: {log}");
        }
    }

    #[test]
    fn variates_are_exponential() {
        let n = 100_000;
        let (mut mean, mut mean_square) = (0.0, 0.0);
        for i in 0..n {
            let e = f64::from(log_exponential(7, i / 1000, i % 1000).exp());
            assert!(e.is_finite() && e > 0.0);
            mean += e / f64::from(n);
            mean_square += e * e / f64::from(n);
        }
        // Mean 1 and second moment 2; standard errors 1/316 and sqrt(20)/316.
        assert!((mean - 1.0).abs() < 0.015, "{mean}");
        assert!((mean_square - 2.0).abs() < 0.07, "{mean_square}");
    }
}
