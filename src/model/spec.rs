//! [`ModelSpec`]: the network as data. A family ([`family`](super::family)) writes it down once; tensors, counts,
//! memory plans, cost models and both backends are folds over it.

use std::num::NonZeroU32;

use crate::checkpoint::{Checkpoint, CheckpointError, Config, Family};

use super::family;
use super::rope::Rope;
use super::weight_format::WeightFormat;

/// A network: sizes shared by all layers, and every matrix, norm and rope table in forward order.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding and of the head; every token id is below it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Query heads of every layer.
    pub heads: usize,
    /// Key/value heads of every layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Context length, prompt and completion together.
    pub max_positions: usize,
    /// From token ids to the residual stream.
    pub embedding: Embedding,
    /// Rope tables, referenced by layers.
    pub ropes: Vec<Rope>,
    /// The transformer blocks, first to last.
    pub layers: Vec<Layer>,
    /// The norm before the output head.
    pub final_norm: Norm,
    /// From the residual stream to logits.
    pub head: Head,
    /// Ids that end a text, each below `vocab_size`. Empty if the checkpoint names none; then the tokenizer's
    /// end-of-text token applies.
    pub eos_token_ids: Vec<u32>,
    /// Ids that end an assistant's turn: those of generation_config.json and config.json, each below `vocab_size`,
    /// ascending. Chat fine-tunes often name their end of turn in only one of these files or in the tokenizer.
    pub chat_eos_token_ids: Vec<u32>,
}

/// Rows of a stored tensor. Several linears may be rows of one tensor (a fused QKV matrix, stacked experts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRows {
    /// The checkpoint's name for the tensor.
    pub tensor: String,
    /// The tensor's whole shape. Its last dimension is a row's length, those before it count rows; a vector's elements
    /// are rows of one element.
    pub shape: Vec<usize>,
    /// The first row used.
    pub first: usize,
    /// Number of rows used.
    pub rows: usize,
}

/// A norm's formula and weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// The formula.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
    /// Weights, `[width]`.
    pub weight: TensorRows,
    /// Biases, `[width]`; RMSNorm has none.
    pub bias: Option<TensorRows>,
}

/// Formula of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, biased variance.
    LayerNorm,
    /// `x / sqrt(mean(x²) + eps) * weight`.
    RmsNorm,
}

/// A linear layer: `y = x · Wᵀ + b`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `[outputs, inputs]`, row-major.
    pub weight: TensorRows,
    /// `[outputs]`
    pub bias: Option<TensorRows>,
    /// Weight format. `None` for dense weights in the backend's dtype.
    pub format: Option<WeightFormat>,
}

/// The MLP's activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`, which config.json calls `gelu_pytorch_tanh`, `gelu_new`,
    /// `gelu_fast`, `gelu_accurate` or `gelu_python_tanh`: one formula in the different roundings of transformers.
    GeluTanh,
    /// `0.5 x (1 + erf(x / √2))`, which config.json calls `gelu` or `gelu_python`.
    GeluErf,
    /// `x / (1 + exp(-x))`, which config.json calls `silu` or `swish`.
    Silu,
}

/// From token ids to the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// `[vocab_size, hidden_size]`
    pub tokens: TensorRows,
    /// Learned position embeddings, `[max_positions, hidden_size]`.
    pub positions: Option<TensorRows>,
    /// Scale of the sum; 1 for most networks.
    pub scale: f32,
}

/// One transformer block: `h += scale * attention(norm(h))`, then `h += scale * mlp(norm(h))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The norm before attention.
    pub attention_norm: Norm,
    /// Attention.
    pub attention: Attention,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
    /// Scale of each addition to the residual stream; 1 for most networks.
    pub residual_scale: f32,
}

/// A layer's attention: `softmax(q · kᵀ * scale) · v` over the keys that a query sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Keys a query sees, its own included: `q - k <= W - 1`. `None` for full attention.
    pub window: Option<NonZeroU32>,
    /// Index into [`ModelSpec::ropes`]. `None` if queries and keys are not rotated.
    pub rope: Option<usize>,
    /// Scale of the scores; `1 / √head_dim` for most networks.
    pub scale: f32,
    /// Scale of queries that grows with the position.
    pub query_scale: Option<QueryScale>,
    /// `[heads * head_dim, hidden_size]`
    pub query: Linear,
    /// `[kv_heads * head_dim, hidden_size]`
    pub key: Linear,
    /// `[kv_heads * head_dim, hidden_size]`
    pub value: Linear,
    /// Norm of each query head before its rotation; weights `[head_dim]`.
    pub query_norm: Option<Norm>,
    /// Norm of each key head before its rotation; weights `[head_dim]`.
    pub key_norm: Option<Norm>,
    /// `[hidden_size, heads * head_dim]`
    pub output: Linear,
}

/// `1 + beta * ln(1 + floor(position / positions))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScale {
    /// Growth rate of the scale.
    pub beta: f32,
    /// Positions up to which the scale is 1.
    pub positions: u32,
}

/// A layer's MLP.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub enum Mlp {
    /// `down(activation(up(x)))`.
    Plain {
        /// `[intermediate, hidden_size]`
        up: Linear,
        /// `[hidden_size, intermediate]`
        down: Linear,
        /// Activation between the two.
        activation: Activation,
    },
    /// `down(activation(gate(x)) * up(x))`.
    Gated(GatedMlp),
    /// Mixture of experts: the `per_token` experts with the largest router probabilities, weighted by them.
    Experts {
        /// `[experts, hidden_size]`; a softmax over its outputs gives the probabilities.
        router: Linear,
        /// The experts, each a gated MLP of one width.
        experts: Vec<GatedMlp>,
        /// Experts per token.
        per_token: usize,
        /// Whether the probabilities of the chosen experts are normalised to a sum of 1.
        renormalize: bool,
    },
}

/// `down(activation(gate(x)) * up(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedMlp {
    /// `[intermediate, hidden_size]`
    pub gate: Linear,
    /// `[intermediate, hidden_size]`
    pub up: Linear,
    /// `[hidden_size, intermediate]`
    pub down: Linear,
    /// Activation of the gate.
    pub activation: Activation,
}

/// From the residual stream to logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// `[vocab_size, hidden_size]`; the embedding's rows where the two are tied.
    pub linear: Linear,
    /// Scale of the logits; 1 for most networks.
    pub scale: f32,
}

/// A matrix or a norm of a layer.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// A norm.
    Norm(&'a Norm),
    /// A linear layer.
    Linear(&'a Linear),
}

impl TensorRows {
    /// A whole tensor.
    pub fn whole(tensor: impl Into<String>, shape: &[usize]) -> TensorRows {
        let tensor = TensorRows { tensor: tensor.into(), shape: shape.to_vec(), first: 0, rows: 0 };
        TensorRows { rows: tensor.tensor_rows(), ..tensor }
    }

    /// Rows of the whole tensor.
    pub fn tensor_rows(&self) -> usize {
        if self.shape.len() < 2 {
            self.shape.iter().product()
        } else {
            self.shape[..self.shape.len() - 1].iter().product()
        }
    }

    /// Elements of a row.
    pub fn columns(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape.last().copied().unwrap_or(1) }
    }

    /// Elements of the rows used.
    pub fn elements(&self) -> u64 {
        self.rows as u64 * self.columns() as u64
    }
}

impl Linear {
    /// Outputs, rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.weight.rows
    }

    /// Inputs, columns of the matrix.
    pub fn inputs(&self) -> usize {
        self.weight.columns()
    }
}

impl GatedMlp {
    /// Its matrices, in the order of the forward pass.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl Mlp {
    /// Intermediate size; for experts, the total of those a token passes.
    pub fn intermediate_size(&self) -> usize {
        match self {
            Mlp::Plain { up, .. } => up.outputs(),
            Mlp::Gated(GatedMlp { up, .. }) => up.outputs(),
            Mlp::Experts { experts, per_token, .. } => {
                experts.first().map_or(0, |expert| expert.up.outputs()).saturating_mul(*per_token)
            }
        }
    }

    /// The activation function.
    pub fn activation(&self) -> Option<Activation> {
        match self {
            Mlp::Plain { activation, .. } => Some(*activation),
            Mlp::Gated(GatedMlp { activation, .. }) => Some(*activation),
            Mlp::Experts { experts, .. } => experts.first().map(|expert| expert.activation),
        }
    }

    /// Its matrices, in the order of the forward pass.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Mlp::Plain { up, down, .. } => vec![up, down],
            Mlp::Gated(mlp) => mlp.linears().to_vec(),
            Mlp::Experts { router, experts, .. } => {
                std::iter::once(router).chain(experts.iter().flat_map(GatedMlp::linears)).collect()
            }
        }
    }
}

impl Layer {
    /// Norms and matrices, in the order of the forward pass.
    pub fn parts(&self) -> Vec<Part<'_>> {
        let Attention { query, key, value, query_norm, key_norm, output, .. } = &self.attention;
        let mut parts = vec![Part::Norm(&self.attention_norm)];
        parts.extend([query, key, value].map(Part::Linear));
        parts.extend([query_norm, key_norm].into_iter().flatten().map(Part::Norm));
        parts.extend([Part::Linear(output), Part::Norm(&self.mlp_norm)]);
        parts.extend(self.mlp.linears().into_iter().map(Part::Linear));
        parts
    }
}

impl ModelSpec {
    /// The network of an open checkpoint. End-of-sequence ids of generation_config.json take precedence over
    /// config.json, as in transformers.
    ///
    /// # Errors
    /// An activation function that is not supported.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<ModelSpec, CheckpointError> {
        let mut spec = ModelSpec::from_config(checkpoint.config())?;
        // The published models' older generation_config.json says 50256, which is beyond the vocabulary; the model
        // would never stop.
        let generation = below(&checkpoint.generation_config().eos_token_ids, spec.vocab_size);
        spec.chat_eos_token_ids.extend(&generation);
        spec.chat_eos_token_ids.sort_unstable();
        spec.chat_eos_token_ids.dedup();
        if !generation.is_empty() {
            spec.eos_token_ids = generation;
        }
        Ok(spec)
    }

    /// The network that `config` describes.
    ///
    /// # Errors
    /// An activation function that is not supported.
    pub fn from_config(config: &Config) -> Result<ModelSpec, CheckpointError> {
        family::spec(config)
    }

    /// Unties the head if config.json says it is tied but the checkpoint has an `lm_head.weight` that differs from the
    /// embedding. The weights are then used as stored, as transformers 5 does, with a warning. Reads both matrices up
    /// to their first difference, and nothing if there is no `lm_head.weight`.
    pub fn untie_stored_head(&mut self, checkpoint: &Checkpoint) {
        let stored = [self.embedding.tokens.tensor.as_str(), family::LM_HEAD].map(|name| checkpoint.tensor(name));
        if let (true, [Some(embedding), Some(head)]) = (self.tied_head(), stored)
            && (embedding.dtype(), embedding.shape(), embedding.bytes()) != (head.dtype(), head.shape(), head.bytes())
        {
            tracing::warn!(
                "{}: config.json ties the head to the embedding, but {} is stored and differs: using it as stored",
                checkpoint.source(),
                family::LM_HEAD
            );
            self.untie_head();
        }
    }

    /// Makes the head a matrix of its own, `lm_head.weight`.
    pub fn untie_head(&mut self) {
        self.head.linear.weight.tensor = family::LM_HEAD.to_owned();
    }

    /// Whether the head is the embedding matrix.
    pub fn tied_head(&self) -> bool {
        self.head.linear.weight == self.embedding.tokens
    }

    /// The distinct windows of the layers, in order of first layer. Layers of one window share cache pages.
    pub fn windows(&self) -> Vec<Option<NonZeroU32>> {
        let mut windows = Vec::new();
        for layer in &self.layers {
            if !windows.contains(&layer.attention.window) {
                windows.push(layer.attention.window);
            }
        }
        windows
    }

    /// The widest window. `None` if a layer has full attention.
    pub fn window(&self) -> Option<NonZeroU32> {
        let windows = self.layers.iter().map(|layer| layer.attention.window);
        windows.reduce(|widest, window| widest.zip(window).map(|(a, b)| a.max(b))).flatten()
    }

    /// Sets the same window for every layer.
    pub fn set_window(&mut self, window: Option<NonZeroU32>) {
        self.layers.iter_mut().for_each(|layer| layer.attention.window = window);
    }

    /// The largest intermediate size.
    pub fn intermediate_size(&self) -> usize {
        self.layers.iter().map(|layer| layer.mlp.intermediate_size()).max().unwrap_or(0)
    }

    /// Query heads that share a key/value head: query head `h` reads key/value head `h / group_size`.
    pub fn group_size(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// The ids below the vocabulary size, each once, in order.
pub(super) fn below(ids: &[u32], vocab_size: usize) -> Vec<u32> {
    let mut valid: Vec<u32> = ids.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
    valid.sort_unstable();
    valid.dedup();
    valid
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn config(json: &str) -> Config {
        Config::parse(json.as_bytes(), "config.json").unwrap()
    }

    /// The configurations of the published 3B, 7B and 15B.
    pub(crate) fn published_configs() -> [Config; 3] {
        [
            include_str!("../../models/configs/starcoder2-3b.json"),
            include_str!("../../models/configs/starcoder2-7b.json"),
            include_str!("../../models/configs/starcoder2-15b.json"),
        ]
        .map(config)
    }

    /// The published 3B, 7B and 15B.
    pub(crate) fn published() -> [ModelSpec; 3] {
        published_configs().map(|config| ModelSpec::from_config(&config).unwrap())
    }

    #[test]
    fn the_published_models() {
        let [b3, b7, b15] = published();
        assert_eq!([&b3, &b7, &b15].map(ModelSpec::group_size), [12, 9, 12]);
        assert_eq!([&b3, &b7, &b15].map(ModelSpec::tied_head), [true, true, false]);
        assert_eq!([&b3, &b7, &b15].map(|spec| spec.layers.len()), [30, 32, 40]);
        assert_eq!([&b3, &b7, &b15].map(ModelSpec::intermediate_size), [12_288, 18_432, 24_576]);
        for spec in [b3, b7, b15] {
            assert_eq!((spec.window(), spec.eos_token_ids.as_slice()), (NonZeroU32::new(4096), &[0][..]));
            assert_eq!(spec.ropes.len(), 1);
            for layer in &spec.layers {
                assert_eq!((layer.attention_norm.kind, layer.attention_norm.eps), (NormKind::LayerNorm, 1e-5));
                assert_eq!((layer.attention.rope, layer.attention.scale), (Some(0), 128f32.sqrt().recip()));
                assert_eq!(layer.mlp.activation(), Some(Activation::GeluTanh));
                assert!(layer.parts().iter().all(|part| match part {
                    Part::Norm(norm) => norm.bias.is_some(),
                    Part::Linear(linear) => linear.bias.is_some(),
                }));
            }
        }
    }

    #[test]
    fn windows_are_listed_once_and_the_widest_is_known() {
        let [mut spec, ..] = published();
        let window = |n| NonZeroU32::new(n);
        spec.layers[3].attention.window = window(8192);
        assert_eq!(spec.window(), window(8192));
        assert_eq!(spec.windows(), [window(4096), window(8192)]);
        spec.layers[7].attention.window = None;
        assert_eq!(spec.window(), None);
        assert_eq!(spec.windows(), [window(4096), window(8192), None]);
        spec.set_window(window(24));
        assert_eq!((spec.window(), spec.windows()), (window(24), vec![window(24)]));
    }

    #[test]
    fn rows_of_tensors() {
        let vector = TensorRows::whole("v", &[7]);
        assert_eq!((vector.rows, vector.columns(), vector.elements()), (7, 1, 7));
        let stacked = TensorRows::whole("experts", &[4, 10, 3]);
        assert_eq!((stacked.rows, stacked.columns(), stacked.elements()), (40, 3, 120));
        let second = TensorRows { first: 10, rows: 10, ..stacked };
        assert_eq!((second.columns(), second.elements()), (3, 30));
    }

    #[test]
    fn end_ids_beyond_the_vocabulary_are_dropped() {
        let eos = |json: &str| ModelSpec::from_config(&config(json)).unwrap().eos_token_ids;
        assert_eq!(eos(r#"{"model_type":"starcoder2","eos_token_id":50256}"#), [0u32; 0]);
        assert_eq!(eos(r#"{"model_type":"starcoder2"}"#), [0u32; 0]);
        assert_eq!(eos(r#"{"model_type":"starcoder2","eos_token_id":[7,50256,0,7,49152,49151]}"#), [0, 7, 49151]);
    }
}
