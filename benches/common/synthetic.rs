//! A made-up checkpoint, bf16, with StarCoder2-3B's shapes and six of its layers: 1.45 GB, larger than any cache.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = r#"{"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "hidden_size": 3072,
"num_hidden_layers": 6, "num_attention_heads": 24, "num_key_value_heads": 2, "intermediate_size": 12288,
"vocab_size": 49152, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 999999.4420358813,
"max_position_embeddings": 16384, "sliding_window": 4096, "norm_epsilon": 1e-05, "use_bias": true,
"tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16"}"#;

/// The directory of the checkpoint, written if it is not there.
pub fn checkpoint_directory() -> io::Result<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cpu-decode-3b-6-layers");
    let weights = directory.join("model.safetensors");
    if !weights.exists() {
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("config.json"), CONFIG)?;
        // Renamed when whole: an interrupted run leaves no half of it behind.
        let unfinished = directory.join("unfinished");
        write_weights(&unfinished)?;
        fs::rename(unfinished, weights)?;
    }
    Ok(directory)
}

/// Names and shapes of the checkpoint's tensors.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let (hidden, kv, inner, vocab) = (3072, 256, 12288, 49152);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    let mut pair = |name: String, weight: Vec<usize>| {
        tensors.push((format!("{name}.bias"), vec![weight[0]]));
        tensors.push((format!("{name}.weight"), weight));
    };
    for layer in 0..6 {
        let name = |part| format!("model.layers.{layer}.{part}");
        pair(name("input_layernorm"), vec![hidden]);
        pair(name("self_attn.q_proj"), vec![hidden, hidden]);
        pair(name("self_attn.k_proj"), vec![kv, hidden]);
        pair(name("self_attn.v_proj"), vec![kv, hidden]);
        pair(name("self_attn.o_proj"), vec![hidden, hidden]);
        pair(name("post_attention_layernorm"), vec![hidden]);
        pair(name("mlp.c_fc"), vec![inner, hidden]);
        pair(name("mlp.c_proj"), vec![hidden, inner]);
    }
    pair("model.norm".to_owned(), vec![hidden]);
    tensors
}

/// Random bf16 numbers, normal in size: no zeros, NaNs or subnormals that would be faster or slower than real ones.
fn write_weights(path: &Path) -> io::Result<()> {
    let mut header = serde_json::Map::new();
    let mut bytes = 0;
    for (name, shape) in tensors() {
        let end = bytes + 2 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [bytes, end]}));
        bytes = end;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..bytes.div_ceil(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Four bf16 of random sign and fraction with an exponent that makes them 1/128 to 1/32.
        let word = state & 0x807f_807f_807f_807f | 0x3c00_3c00_3c00_3c00 | (state >> 1) & 0x0080_0080_0080_0080;
        file.write_all(&word.to_le_bytes())?;
    }
    file.into_inner()?.set_len((8 + header.len() + bytes) as u64)
}
