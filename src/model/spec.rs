//! [`ModelSpec`]: everything about a network that a backend or an engine may ask.

use std::num::NonZeroU32;

use crate::checkpoint::{Checkpoint, CheckpointError, Config, Family};

use super::names;
use super::rope::Rope;

/// How activations are normalised before attention, MLP and head.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Norm {
    /// The formula.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: f32,
}

/// Formula of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`, biased variance.
    LayerNorm,
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
}

/// What the network is: its shapes and the choices that its family leaves open.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelSpec {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding and of the head; every token id is below it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width of the MLP's inner activations.
    pub intermediate_size: usize,
    /// The norms, all alike.
    pub norm: Norm,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether q, k, v, o and both MLP matrices have biases. The norms always do, the head never.
    pub bias: bool,
    /// The rotary embedding.
    pub rope: Rope,
    /// Keys a query sees, itself included: `q - k <= W - 1`. `None`: all.
    pub window: Option<NonZeroU32>,
    /// Positions that the model was made for: prompt and answer together.
    pub max_positions: usize,
    /// Whether the head is the embedding matrix.
    pub tied_head: bool,
    /// Ids that end a text, each below `vocab_size`. Empty where the checkpoint names none that can be: then the
    /// tokenizer's own end-of-text token is meant.
    pub eos_token_ids: Vec<u32>,
    /// Ids that end an assistant's turn as far as the checkpoint says: those of generation_config.json and those of
    /// config.json, each below `vocab_size`, in ascending order. Chat fine-tunes often name their end of turn in one of
    /// these files or in the tokenizer's alone.
    pub chat_eos_token_ids: Vec<u32>,
}

impl ModelSpec {
    /// The network of an open checkpoint; end ids from generation_config.json before config.json, as transformers has
    /// it.
    ///
    /// # Errors
    /// An activation function that is not supported.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<ModelSpec, CheckpointError> {
        let mut spec = ModelSpec::from_config(checkpoint.config())?;
        // Older generation_config.json of the published models say 50256, beyond the vocabulary: such a model would
        // never stop.
        let generation = below(&checkpoint.generation_config().eos_token_ids, spec.vocab_size);
        spec.chat_eos_token_ids.extend(&generation);
        spec.chat_eos_token_ids.sort_unstable();
        spec.chat_eos_token_ids.dedup();
        if !generation.is_empty() {
            spec.eos_token_ids = generation;
        }
        Ok(spec)
    }

    /// Unties the head of a checkpoint whose config.json says that it is tied, where the file carries an
    /// `lm_head.weight` that is not a copy of the embedding: the weights are then used as they are stored, as
    /// transformers 5 does, and a warning says so. Reads both matrices up to their first difference, and no byte of
    /// a checkpoint without `lm_head.weight`.
    pub fn untie_stored_head(&mut self, checkpoint: &Checkpoint) {
        let stored = [names::EMBED_TOKENS, names::LM_HEAD].map(|name| checkpoint.tensor(name));
        if let (true, [Some(embedding), Some(head)]) = (self.tied_head, stored)
            && (embedding.dtype(), embedding.shape(), embedding.bytes()) != (head.dtype(), head.shape(), head.bytes())
        {
            tracing::warn!(
                "{}: config.json ties the head to the embedding, but {} is stored and differs: using it as stored",
                checkpoint.source(),
                names::LM_HEAD
            );
            self.tied_head = false;
        }
    }

    /// The network that `config` describes.
    ///
    /// # Errors
    /// An activation function that is not supported.
    pub fn from_config(config: &Config) -> Result<ModelSpec, CheckpointError> {
        let activation = match config.hidden_act.as_str() {
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "gelu" | "gelu_python" => Activation::GeluErf,
            other => {
                return Err(CheckpointError::Unsupported {
                    file: config.file.clone(),
                    field: "hidden_act",
                    found: format!("{:?}", other.chars().take(64).collect::<String>()),
                    supported: "gelu_pytorch_tanh, gelu_new, gelu_fast, gelu".to_owned(),
                });
            }
        };
        let Family::StarCoder2 = config.family;
        let eos_token_ids = below(&config.eos_token_ids, config.vocab_size);
        Ok(ModelSpec {
            family: config.family,
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            intermediate_size: config.intermediate_size,
            norm: Norm { kind: NormKind::LayerNorm, eps: config.norm_epsilon as f32 },
            activation,
            bias: config.use_bias,
            rope: Rope { theta: config.rope_theta, factor: config.rope_factor },
            window: config.sliding_window,
            max_positions: config.max_position_embeddings,
            tied_head: config.tie_word_embeddings,
            chat_eos_token_ids: eos_token_ids.clone(),
            eos_token_ids,
        })
    }

    /// Query heads that share a key/value head: query head `h` reads key/value head `h / group_size`.
    pub fn group_size(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Frequencies of the rotary embedding, f32 `[head_dim / 2]`.
    pub fn inv_freq(&self) -> Vec<f32> {
        self.rope.inv_freq(self.head_dim)
    }
}

/// The ids below the vocabulary size, each once, in order.
fn below(ids: &[u32], vocab_size: usize) -> Vec<u32> {
    let mut valid: Vec<u32> = ids.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
    valid.sort_unstable();
    valid.dedup();
    valid
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The published 3B, 7B and 15B.
    pub(crate) fn published() -> [ModelSpec; 3] {
        [
            include_str!("../../models/configs/starcoder2-3b.json"),
            include_str!("../../models/configs/starcoder2-7b.json"),
            include_str!("../../models/configs/starcoder2-15b.json"),
        ]
        .map(|json| ModelSpec::from_config(&Config::parse(json.as_bytes(), "config.json").unwrap()).unwrap())
    }

    fn from_json(json: &str) -> Result<ModelSpec, CheckpointError> {
        ModelSpec::from_config(&Config::parse(json.as_bytes(), "config.json")?)
    }

    #[test]
    fn the_published_models() {
        let [b3, b7, b15] = published();
        assert_eq!([&b3, &b7, &b15].map(ModelSpec::group_size), [12, 9, 12]);
        assert_eq!([&b3, &b7, &b15].map(|spec| spec.tied_head), [true, true, false]);
        for spec in [b3, b7, b15] {
            assert_eq!(spec.norm, Norm { kind: NormKind::LayerNorm, eps: 1e-5 });
            assert_eq!((spec.activation, spec.bias), (Activation::GeluTanh, true));
            assert_eq!((spec.window, spec.eos_token_ids.as_slice()), (NonZeroU32::new(4096), &[0][..]));
            assert_eq!(spec.inv_freq().len(), 64);
        }
    }

    #[test]
    fn end_ids_beyond_the_vocabulary_are_dropped() {
        let eos = |json: &str| from_json(json).unwrap().eos_token_ids;
        assert_eq!(eos(r#"{"model_type":"starcoder2","eos_token_id":50256}"#), [0u32; 0]);
        assert_eq!(eos(r#"{"model_type":"starcoder2"}"#), [0u32; 0]);
        assert_eq!(eos(r#"{"model_type":"starcoder2","eos_token_id":[7,50256,0,7,49152,49151]}"#), [0, 7, 49151]);
    }

    #[test]
    fn activations_by_their_names_in_transformers() {
        let named = |name: &str| from_json(&format!(r#"{{"model_type":"starcoder2","hidden_act":"{name}"}}"#));
        for name in ["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"] {
            assert_eq!(named(name).unwrap().activation, Activation::GeluTanh, "{name}");
        }
        for name in ["gelu", "gelu_python"] {
            assert_eq!(named(name).unwrap().activation, Activation::GeluErf, "{name}");
        }
        // These are others: x sigmoid(1.702 x), and GELU clipped to ±10.
        for name in ["quick_gelu", "gelu_10", "silu", "GELU", ""] {
            let message = named(name).unwrap_err().to_string();
            let expected = "supported: gelu_pytorch_tanh, gelu_new, gelu_fast, gelu";
            assert_eq!(message, format!("config.json: field hidden_act: {name:?} is not supported; {expected}"));
        }
    }
}
