//! The model's weights as the forward pass uses them: matrices as views into the checkpoint's mapping in their
//! stored dtype, small vectors widened to f32.

use super::kernels::Kernels;
use super::matmul::Matrix;
use crate::backend::{BackendError, check_tensors};
use crate::checkpoint::{Checkpoint, Tensor};
use crate::model::{ModelSpec, names};

/// A matrix and its bias.
pub(crate) struct Linear {
    weight: Tensor,
    columns: usize,
    /// f32 `[rows]`
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `[rows, columns]`, as stored.
    pub(crate) fn weight(&self) -> Matrix<'_> {
        Matrix { dtype: self.weight.dtype(), bytes: self.weight.bytes(), columns: self.columns }
    }

    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }
}

/// A LayerNorm's gain and shift, f32 `[hidden_size]`.
pub(crate) struct Norm {
    pub(crate) gain: Vec<f32>,
    pub(crate) shift: Vec<f32>,
}

/// One transformer block.
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_out: Linear,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp_in: Linear,
    pub(crate) mlp_out: Linear,
}

/// All of them.
pub(crate) struct Weights {
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    /// The embedding again where the two are tied.
    pub(crate) head: Linear,
}

impl Weights {
    /// Views of the checkpoint's tensors, whose names, shapes and dtypes are checked first. Reads the small vectors
    /// alone.
    pub(crate) fn new(checkpoint: &Checkpoint, spec: &ModelSpec, kernels: &Kernels) -> Result<Weights, BackendError> {
        check_tensors(checkpoint, spec)?;
        let reader = Reader { checkpoint, kernels, bias: spec.bias };
        let hidden = spec.hidden_size;
        let layer = |i| {
            Ok(Layer {
                attention_norm: reader.norm(&names::input_norm_weight(i), &names::input_norm_bias(i))?,
                query: reader.linear(&names::q_proj_weight(i), &names::q_proj_bias(i), hidden)?,
                key: reader.linear(&names::k_proj_weight(i), &names::k_proj_bias(i), hidden)?,
                value: reader.linear(&names::v_proj_weight(i), &names::v_proj_bias(i), hidden)?,
                attention_out: reader.linear(
                    &names::o_proj_weight(i),
                    &names::o_proj_bias(i),
                    spec.heads * spec.head_dim,
                )?,
                mlp_norm: reader.norm(&names::post_attention_norm_weight(i), &names::post_attention_norm_bias(i))?,
                mlp_in: reader.linear(&names::c_fc_weight(i), &names::c_fc_bias(i), hidden)?,
                mlp_out: reader.linear(&names::c_proj_weight(i), &names::c_proj_bias(i), spec.intermediate_size)?,
            })
        };
        let head = if spec.tied_head { names::EMBED_TOKENS } else { names::LM_HEAD };
        Ok(Weights {
            embedding: reader.unbiased(names::EMBED_TOKENS, hidden)?,
            layers: (0..spec.layers).map(layer).collect::<Result<_, BackendError>>()?,
            norm: reader.norm(names::FINAL_NORM_WEIGHT, names::FINAL_NORM_BIAS)?,
            head: reader.unbiased(head, hidden)?,
        })
    }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    kernels: &'a Kernels,
    bias: bool,
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<&Tensor, BackendError> {
        // `check_tensors` found every tensor that the spec names; this is a spec that does not name all it needs.
        self.checkpoint
            .tensor(name)
            .ok_or_else(|| BackendError::Unavailable(format!("{}: tensor {name} is missing", self.checkpoint.source())))
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>, BackendError> {
        let tensor = self.tensor(name)?;
        let n = tensor.bytes().len() / tensor.dtype().size();
        let mut wide = vec![0.0; n];
        // SAFETY: the tensor holds `n` elements of its dtype, `wide` as many; the kernels are this machine's.
        unsafe { self.kernels.widen(tensor.dtype(), tensor.bytes().as_ptr(), n, wide.as_mut_ptr()) };
        Ok(wide)
    }

    fn linear(&self, weight: &str, bias: &str, columns: usize) -> Result<Linear, BackendError> {
        let bias = if self.bias { Some(self.vector(bias)?) } else { None };
        Ok(Linear { bias, ..self.unbiased(weight, columns)? })
    }

    fn unbiased(&self, weight: &str, columns: usize) -> Result<Linear, BackendError> {
        Ok(Linear { weight: self.tensor(weight)?.clone(), columns, bias: None })
    }

    fn norm(&self, gain: &str, shift: &str) -> Result<Norm, BackendError> {
        Ok(Norm { gain: self.vector(gain)?, shift: self.vector(shift)? })
    }
}
