//! The dtype of weights on a GPU.

use crate::checkpoint::{Checkpoint, Config, Dtype};
use crate::model::ModelSpec;

/// The dtype of weights on a GPU. The CPU uses weights as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDtype {
    /// F16 where all matrices are stored in F16, else BF16.
    #[default]
    Auto,
    /// BF16: the range of F32, 8 bits of precision.
    Bf16,
    /// F16: 11 bits of precision, values up to 65504; larger ones are an error.
    F16,
}

impl WeightDtype {
    /// The dtype for a checkpoint's weights, F16 or BF16. Matrices decide; norms and biases follow.
    pub fn resolve(self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Dtype {
        match self {
            WeightDtype::Bf16 => Dtype::Bf16,
            WeightDtype::F16 => Dtype::F16,
            WeightDtype::Auto if matrix_dtypes(checkpoint, spec) == [Dtype::F16] => Dtype::F16,
            WeightDtype::Auto => Dtype::Bf16,
        }
    }

    /// The dtype of random weights for the network of `config`: the requested one, or F16 if `config` says so, else
    /// BF16.
    pub fn of_config(self, config: &Config) -> Dtype {
        match (self, config.dtype.as_deref()) {
            (WeightDtype::F16, _) | (WeightDtype::Auto, Some("float16")) => Dtype::F16,
            _ => Dtype::Bf16,
        }
    }

    /// As [`WeightDtype::resolve`], and logs a conversion: as a warning if nobody asked for it.
    pub fn resolve_and_log(self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Dtype {
        let dtype = self.resolve(checkpoint, spec);
        if let Some(line) = conversion(&matrix_dtypes(checkpoint, spec), dtype) {
            let source = checkpoint.source();
            match self {
                WeightDtype::Auto => tracing::warn!("{source} {line} (the dtype f16 keeps half precision)"),
                WeightDtype::Bf16 | WeightDtype::F16 => tracing::info!("{source} {line}, as asked"),
            }
        }
        dtype
    }
}

/// The conversion applied to matrices of the dtypes `stored`, if any.
fn conversion(stored: &[Dtype], dtype: Dtype) -> Option<String> {
    if stored.iter().all(|stored| *stored == dtype) {
        return None;
    }
    let names: Vec<String> = stored.iter().map(Dtype::to_string).collect();
    Some(format!("is stored in {}: rounding to {dtype} for the GPU", names.join(" and ")))
}

/// Dtypes of the network's matrices, sorted, without duplicates.
pub(super) fn matrix_dtypes(checkpoint: &Checkpoint, spec: &ModelSpec) -> Vec<Dtype> {
    let matrices = spec.tensors().into_iter().filter(|tensor| tensor.shape.len() == 2);
    let mut dtypes: Vec<Dtype> = matrices.filter_map(|tensor| checkpoint.dtype(&tensor.name)).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    dtypes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::ModelSource;

    fn golden(name: &str) -> (Checkpoint, ModelSpec) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        let checkpoint = Checkpoint::open(&ModelSource::directory(directory).unwrap()).unwrap();
        let spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
        (checkpoint, spec)
    }

    #[test]
    fn half_precision_checkpoints_keep_their_dtype_and_others_become_bf16() {
        // Their stored dtypes are those of the weights, whatever config.json says.
        for (name, stored, auto) in [
            ("gqa9", Dtype::Bf16, Dtype::Bf16),
            ("gqa2-d128", Dtype::F16, Dtype::F16),
            ("mha", Dtype::F32, Dtype::Bf16),
        ] {
            let (checkpoint, spec) = golden(name);
            assert_eq!(matrix_dtypes(&checkpoint, &spec), [stored], "{name}");
            assert_eq!(WeightDtype::Auto.resolve(&checkpoint, &spec), auto, "{name}");
            assert_eq!(WeightDtype::F16.resolve(&checkpoint, &spec), Dtype::F16);
            assert_eq!(WeightDtype::Bf16.resolve(&checkpoint, &spec), Dtype::Bf16);
        }
    }

    #[test]
    fn what_is_said_of_a_conversion() {
        assert_eq!(conversion(&[Dtype::Bf16], Dtype::Bf16), None);
        let said = |stored: &[Dtype], dtype| conversion(stored, dtype).unwrap();
        assert_eq!(said(&[Dtype::F32], Dtype::Bf16), "is stored in F32: rounding to BF16 for the GPU");
        assert_eq!(
            said(&[Dtype::F32, Dtype::F16, Dtype::Bf16], Dtype::Bf16),
            "is stored in F32 and F16 and BF16: rounding to BF16 for the GPU"
        );
        assert_eq!(said(&[Dtype::F32], Dtype::F16), "is stored in F32: rounding to F16 for the GPU");
    }
}
