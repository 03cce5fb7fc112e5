//! Random weights. Each element depends only on its name and index, so the bits are the same here, on a GPU
//! (`kernels/random.cu`) and in PyTorch (`tools/peers`), given the seed.

use rayon::prelude::*;

use super::spec::ModelSpec;
use crate::checkpoint::{Checkpoint, CheckpointError, Config, Dtype, ExpectedTensor};

/// Elements that one thread makes at a time.
const PIECE: usize = 1 << 16;

/// A checkpoint in memory of the network that `config` describes, with random weights of `dtype`, made by all threads.
/// The same weights as [`Uniform::of_tensor`] has for each of its tensors, each rounded to `dtype`.
///
/// # Errors
/// A network that is not supported; no memory.
pub fn random_checkpoint(config: Config, dtype: Dtype, seed: u32) -> Result<Checkpoint, CheckpointError> {
    let tensors = ModelSpec::from_config(&config)?.tensors();
    let name = random_name(&config);
    Checkpoint::in_memory(config, &name, dtype, &tensors, |tensor: &ExpectedTensor, bytes: &mut [u8]| {
        Uniform::of_tensor(seed, &tensor.name).fill(dtype, bytes);
    })
}

/// Name of a random network in messages.
pub(crate) fn random_name(config: &Config) -> String {
    format!("random weights of {}", config.file)
}

/// A uniform distribution over `centre - range ..= centre + range`, and its stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uniform {
    /// Stream id; streams of different seeds are unrelated.
    pub seed: u32,
    /// Its mean.
    pub centre: f32,
    /// The largest distance from it.
    pub range: f32,
}

impl Uniform {
    /// The stream of the checkpoint's tensor `name` in the network of `seed`. Norms have gains about 1, biases are
    /// small, and matrices have a standard deviation of 0.02, that of the models before their training.
    pub fn of_tensor(seed: u32, name: &str) -> Uniform {
        let (centre, range) = if name.ends_with(".bias") {
            (0.0, 0.02)
        } else if name.ends_with("norm.weight") {
            (1.0, 0.1)
        } else {
            (0.0, 0.035)
        };
        Uniform { seed: seed ^ fnv1a(name.as_bytes()), centre, range }
    }

    /// The element at `index`, counted row by row. To be rounded to the tensor's dtype, to nearest even.
    ///
    /// The upper 24 bits of the mixed index are a fraction `u` of 1; `centre + range (2 u - 1)`, product and sum
    /// rounded by themselves.
    pub fn value(&self, index: u32) -> f32 {
        let bits = mix(index ^ mix(self.seed));
        // Exact, all three: 24 bits fit, and so does the difference.
        let centred = 2.0 * ((bits >> 8) as f32 * (1.0 / (1 << 24) as f32)) - 1.0;
        self.centre + self.range * centred
    }

    /// Writes the elements from `first` on into `bytes`, little-endian, rounded to `dtype`.
    pub fn write(&self, dtype: Dtype, first: u32, bytes: &mut [u8]) {
        let values = (0..).map(|place: u32| self.value(first.wrapping_add(place)));
        match dtype {
            Dtype::F32 => {
                let (elements, _) = bytes.as_chunks_mut();
                elements.iter_mut().zip(values).for_each(|(element, value)| *element = value.to_le_bytes());
            }
            Dtype::F16 => {
                let (elements, _) = bytes.as_chunks_mut();
                let halves = values.map(half::f16::from_f32);
                elements.iter_mut().zip(halves).for_each(|(element, value)| *element = value.to_le_bytes());
            }
            Dtype::Bf16 => {
                let (elements, _) = bytes.as_chunks_mut();
                let halves = values.map(half::bf16::from_f32);
                elements.iter_mut().zip(halves).for_each(|(element, value)| *element = value.to_le_bytes());
            }
        }
    }

    /// [`Uniform::write`] from the first element on, by all threads.
    pub fn fill(&self, dtype: Dtype, bytes: &mut [u8]) {
        let pieces = bytes.par_chunks_mut(PIECE * dtype.size()).enumerate();
        // Indices of 2^32 and more come round to the beginning.
        pieces.for_each(|(piece, bytes)| self.write(dtype, (piece * PIECE) as u32, bytes));
    }
}

/// 32 bits well mixed, one to one: `lowbias32` of Chris Wellons' search for such functions
/// (<https://nullprogram.com/blog/2018/07/31/>).
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ x >> 16
}

/// FNV-1a of 32 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>).
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        // FNV's own test vectors.
        assert_eq!([b"".as_slice(), b"a", b"foobar"].map(fnv1a), [0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968]);
        // One to one, and 0 is its only fixed point among these; every bit of a difference reaches every bit half of
        // the time: the mean over single-bit changes of how many bits turn.
        assert_eq!(mix(0), 0);
        let turned: u32 =
            (0..32u32).flat_map(|bit| (1..200).map(move |x| (mix(x) ^ mix(x ^ 1 << bit)).count_ones())).sum();
        let mean = f64::from(turned) / f64::from(32 * 199);
        assert!((mean - 16.0).abs() < 0.2, "{mean}");
    }

    #[test]
    fn values_are_those_of_the_definition() {
        // From its definition in Python with integers and `struct`'s rounding to f32; tools/peers has it in PyTorch.
        for (seed, index, centre, range, bits) in [
            (0, 0, 0.0, 1.0, 0xbf80_0000),
            (1, 0, 0.0, 1.0, 0xbe9c_2adc),
            (7, 5, 1.0, 0.1, 0x3f72_f138),
            (0xdead_beef, u32::MAX, 0.0, 0.035, 0xbc72_8d38u32),
        ] {
            assert_eq!(Uniform { seed, centre, range }.value(index).to_bits(), bits, "{seed} {index}");
        }
        assert_eq!(Uniform::of_tensor(42, "model.layers.3.mlp.c_fc.weight").value(12_345).to_bits(), 0xbc36_ea46);
    }

    #[test]
    fn values_are_spread_evenly_about_their_centre() {
        let uniform = Uniform::of_tensor(7, "model.layers.3.mlp.c_fc.weight");
        let values: Vec<f64> = (0..100_000).map(|index| f64::from(uniform.value(index))).collect();
        assert!(values.iter().all(|value| value.abs() <= 0.035));
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!(mean.abs() < 3e-4 && (deviation - 0.035 / 3f64.sqrt()).abs() < 2e-4, "{mean} {deviation}");
        let same = (0..1000).filter(|index| uniform.value(*index) == uniform.value(index + 1)).count();
        assert_eq!(same, 0, "neighbours differ");
    }

    #[test]
    fn bytes_are_the_values_rounded_whoever_writes_them() {
        let uniform = Uniform { seed: 3, centre: 0.5, range: 2.0 };
        let elements = 2 * PIECE + 17;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let mut bytes = vec![0xff; elements * dtype.size()];
            uniform.fill(dtype, &mut bytes);
            let element = |index: usize| {
                let bytes = &bytes[index * dtype.size()..][..dtype.size()];
                match dtype {
                    Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
                    Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
                    Dtype::Bf16 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
                }
            };
            let step = match dtype {
                Dtype::F32 => 0.0,
                Dtype::F16 => 1.0 / 2048.0,
                Dtype::Bf16 => 1.0 / 256.0,
            };
            for index in (0..elements).step_by(97).chain([PIECE - 1, PIECE, elements - 1]) {
                let value = uniform.value(index as u32);
                assert!((element(index) - value).abs() <= value.abs() * step, "{dtype} {index}");
            }
        }
    }

    #[test]
    fn tensors_have_ranges_of_their_kind_and_streams_of_their_own() {
        let of = |name: &str| Uniform::of_tensor(1, name);
        for name in [
            "model.norm.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.1.post_attention_layernorm.weight",
        ] {
            assert_eq!((of(name).centre, of(name).range), (1.0, 0.1), "{name}");
        }
        for name in ["model.norm.bias", "model.layers.0.input_layernorm.bias", "model.layers.2.self_attn.q_proj.bias"] {
            assert_eq!((of(name).centre, of(name).range), (0.0, 0.02), "{name}");
        }
        for name in ["model.embed_tokens.weight", "lm_head.weight", "model.layers.2.mlp.c_proj.weight"] {
            assert_eq!((of(name).centre, of(name).range), (0.0, 0.035), "{name}");
        }
        assert_ne!(of("model.layers.2.mlp.c_proj.weight").value(0), of("model.layers.3.mlp.c_proj.weight").value(0));
        let other = Uniform::of_tensor(2, "model.layers.2.mlp.c_proj.weight");
        assert_ne!(of("model.layers.2.mlp.c_proj.weight").value(0), other.value(0));
    }
}
