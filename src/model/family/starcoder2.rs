//! StarCoder2: LayerNorm, a plain MLP with GELU, biases everywhere but in the head, RoPE, one window for all layers.

use crate::checkpoint::{CheckpointError, Config};

use super::super::rope::Rope;
use super::super::spec::{
    Activation, Attention, Embedding, Head, Layer, Linear, Mlp, ModelSpec, Norm, NormKind, TensorRows, below,
};
use super::{LM_HEAD, activation};

/// The names of transformers' functions.
const ACTIVATIONS: [(&str, Activation); 7] = [
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_python", Activation::GeluErf),
];

pub(super) fn spec(config: &Config) -> Result<ModelSpec, CheckpointError> {
    let activation = activation(config, &ACTIVATIONS)?;
    let tokens = TensorRows::whole("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size]);
    let head = match config.tie_word_embeddings {
        true => tokens.clone(),
        false => TensorRows { tensor: LM_HEAD.to_owned(), ..tokens.clone() },
    };
    let eos_token_ids = below(&config.eos_token_ids, config.vocab_size);
    Ok(ModelSpec {
        family: config.family,
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        max_positions: config.max_position_embeddings,
        embedding: Embedding { tokens, positions: None, scale: 1.0 },
        ropes: vec![Rope { theta: config.rope_theta, factor: config.rope_factor }],
        layers: (0..config.num_hidden_layers).map(|index| layer(config, index, activation)).collect(),
        final_norm: norm(config, "model.norm"),
        head: Head { linear: Linear { weight: head, bias: None, format: None }, scale: 1.0 },
        chat_eos_token_ids: eos_token_ids.clone(),
        eos_token_ids,
    })
}

fn layer(config: &Config, index: usize, activation: Activation) -> Layer {
    let name = |module: &str| format!("model.layers.{index}.{module}");
    let linear = |module: &str, outputs, inputs| linear(config, &name(module), outputs, inputs);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    Layer {
        attention_norm: norm(config, &name("input_layernorm")),
        attention: Attention {
            window: config.sliding_window,
            rope: Some(0),
            scale: (config.head_dim as f32).sqrt().recip(),
            query_scale: None,
            query: linear("self_attn.q_proj", q, hidden),
            key: linear("self_attn.k_proj", kv, hidden),
            value: linear("self_attn.v_proj", kv, hidden),
            query_norm: None,
            key_norm: None,
            output: linear("self_attn.o_proj", hidden, q),
        },
        mlp_norm: norm(config, &name("post_attention_layernorm")),
        mlp: Mlp::Plain {
            up: linear("mlp.c_fc", inner, hidden),
            down: linear("mlp.c_proj", hidden, inner),
            activation,
        },
        residual_scale: 1.0,
    }
}

fn linear(config: &Config, module: &str, outputs: usize, inputs: usize) -> Linear {
    Linear {
        weight: TensorRows::whole(format!("{module}.weight"), &[outputs, inputs]),
        bias: config.use_bias.then(|| TensorRows::whole(format!("{module}.bias"), &[outputs])),
        format: None,
    }
}

/// The norms keep their biases where `use_bias` is false.
fn norm(config: &Config, module: &str) -> Norm {
    let vector = |part: &str| TensorRows::whole(format!("{module}.{part}"), &[config.hidden_size]);
    let eps = config.norm_epsilon as f32;
    Norm { kind: NormKind::LayerNorm, eps, weight: vector("weight"), bias: Some(vector("bias")) }
}

#[cfg(test)]
mod tests {
    use super::super::super::spec::tests::config;
    use super::*;

    #[test]
    fn activations_by_their_names_in_transformers() {
        let named = |name: &str| spec(&config(&format!(r#"{{"model_type":"starcoder2","hidden_act":"{name}"}}"#)));
        let activation = |name: &str| named(name).unwrap().layers[0].mlp.activation();
        for name in ["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"] {
            assert_eq!(activation(name), Some(Activation::GeluTanh), "{name}");
        }
        for name in ["gelu", "gelu_python"] {
            assert_eq!(activation(name), Some(Activation::GeluErf), "{name}");
        }
        // These are others: x sigmoid(1.702 x), and GELU clipped to ±10.
        for name in ["quick_gelu", "gelu_10", "silu", "GELU", ""] {
            let message = named(name).unwrap_err().to_string();
            let expected = "supported: gelu_pytorch_tanh, gelu_new, gelu_fast, gelu, ";
            let begin = format!("config.json: field hidden_act: {name:?} is not supported; {expected}");
            assert!(message.starts_with(&begin), "{message}");
        }
    }
}
