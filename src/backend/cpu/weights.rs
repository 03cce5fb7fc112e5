//! The model's weights as the forward pass uses them: matrices as views into the checkpoint's mapping in their
//! stored dtype, small vectors widened to f32.

use super::kernels::{Kernels, WeightKernels};
use super::matmul::{Epilogue, Matrix};
use crate::backend::{BackendError, check_tensors};
use crate::checkpoint::{Checkpoint, Dtype, Tensor};
use crate::model::{self, Activation, ModelSpec, TensorRows, WeightFormat};
use std::num::NonZeroU32;

/// A matrix and its bias.
pub(crate) struct Linear {
    tensor: Tensor,
    kernels: &'static WeightKernels,
    /// The first of the tensor's rows that the matrix has.
    first: usize,
    rows: usize,
    columns: usize,
    /// f32 `[rows]`
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// `[rows, columns]`, as stored.
    pub(crate) fn weight(&self) -> Matrix<'_> {
        let offset = |rows| self.kernels.format.bytes(rows, self.columns) as usize;
        let bytes = &self.tensor.bytes()[offset(self.first)..offset(self.first + self.rows)];
        Matrix { kernels: self.kernels, bytes, columns: self.columns }
    }

    /// Of the elements, as stored.
    pub(crate) fn dtype(&self) -> Dtype {
        self.tensor.dtype()
    }

    pub(crate) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }
}

/// A LayerNorm's weight and bias, f32 `[hidden_size]`.
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) eps: f32,
}

/// One transformer block.
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) window: Option<NonZeroU32>,
    pub(crate) output: Linear,
    pub(crate) mlp_norm: Norm,
    pub(crate) up: Linear,
    pub(crate) activation: Epilogue,
    pub(crate) down: Linear,
}

/// All of them.
pub(crate) struct Weights {
    pub(crate) embedding: Linear,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    /// The embedding again where the two are tied.
    pub(crate) head: Linear,
}

impl Weights {
    /// Views of the checkpoint's tensors, whose names, shapes and dtypes are checked first. Reads the small vectors
    /// alone. The network is one that [`check_network`](crate::backend::support::check_network) lets pass.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        kernels: &'static Kernels,
    ) -> Result<Weights, BackendError> {
        check_tensors(checkpoint, spec)?;
        let reader = Reader { checkpoint, kernels };
        Ok(Weights {
            embedding: reader.matrix(&spec.embedding.tokens)?,
            layers: spec.layers.iter().map(|layer| reader.layer(layer)).collect::<Result<_, BackendError>>()?,
            final_norm: reader.norm(&spec.final_norm)?,
            head: reader.linear(&spec.head.linear)?,
        })
    }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    kernels: &'static Kernels,
}

impl Reader<'_> {
    fn layer(&self, layer: &model::Layer) -> Result<Layer, BackendError> {
        let attention = &layer.attention;
        let model::Mlp::Plain { up, down, activation } = &layer.mlp else {
            return Err(BackendError::Unavailable("the MLP cannot be computed".to_owned()));
        };
        let activation = match activation {
            Activation::GeluTanh => Epilogue::GeluTanh,
            Activation::GeluErf => Epilogue::GeluErf,
            Activation::Silu => return Err(BackendError::Unavailable("SiLU cannot be computed".to_owned())),
        };
        Ok(Layer {
            attention_norm: self.norm(&layer.attention_norm)?,
            query: self.linear(&attention.query)?,
            key: self.linear(&attention.key)?,
            value: self.linear(&attention.value)?,
            window: attention.window,
            output: self.linear(&attention.output)?,
            mlp_norm: self.norm(&layer.mlp_norm)?,
            up: self.linear(up)?,
            activation,
            down: self.linear(down)?,
        })
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, BackendError> {
        // `check_tensors` found every tensor that the spec names.
        self.checkpoint
            .tensor(name)
            .ok_or_else(|| BackendError::Unavailable(format!("{}: tensor {name} is missing", self.checkpoint.source())))
    }

    fn weight_kernels(&self, tensor: &Tensor) -> Result<&'static WeightKernels, BackendError> {
        let dtype = tensor.dtype();
        let lack = || BackendError::Unavailable(format!("weights in {dtype} cannot be computed with"));
        self.kernels.of_format(WeightFormat::dense(dtype)).ok_or_else(lack)
    }

    fn vector(&self, rows: &TensorRows) -> Result<Vec<f32>, BackendError> {
        let tensor = self.tensor(&rows.tensor)?;
        let (size, kernels) = (tensor.dtype().size(), self.weight_kernels(tensor)?);
        let bytes = &tensor.bytes()[rows.first * size..(rows.first + rows.rows) * size];
        let mut wide = vec![0.0; rows.rows];
        // SAFETY: `bytes` holds as many elements of the dtype as `wide` does; the kernels are this machine's.
        unsafe { (kernels.widen)(bytes.as_ptr(), wide.len(), wide.as_mut_ptr()) };
        Ok(wide)
    }

    fn linear(&self, linear: &model::Linear) -> Result<Linear, BackendError> {
        let bias = linear.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Linear { bias, ..self.matrix(&linear.weight)? })
    }

    fn matrix(&self, rows: &TensorRows) -> Result<Linear, BackendError> {
        let tensor = self.tensor(&rows.tensor)?.clone();
        let kernels = self.weight_kernels(&tensor)?;
        Ok(Linear { tensor, kernels, first: rows.first, rows: rows.rows, columns: rows.columns(), bias: None })
    }

    fn norm(&self, norm: &model::Norm) -> Result<Norm, BackendError> {
        let bias = norm.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        Ok(Norm { weight: self.vector(&norm.weight)?, bias: bias.unwrap_or_default(), eps: norm.eps })
    }
}
