//! A made-up checkpoint, bf16, with StarCoder2-3B's shapes and six of its layers: 1.45 GB, larger than any cache.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rigel::bench::shapes::Shapes;
use rigel::bench::synthetic::{Synthetic, SyntheticError};
use rigel::checkpoint::Dtype;

const CONFIG: &str = r#"{"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "hidden_size": 3072,
"num_hidden_layers": 6, "num_attention_heads": 24, "num_key_value_heads": 2, "intermediate_size": 12288,
"vocab_size": 49152, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 999999.4420358813,
"max_position_embeddings": 16384, "sliding_window": 4096, "norm_epsilon": 1e-05, "use_bias": true,
"tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0}"#;

/// The directory of the checkpoint, written if it is not there.
pub fn checkpoint_directory() -> Result<PathBuf, SyntheticError> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("synthetic-3b-6-layers");
    if !directory.exists() {
        let shapes = Shapes::parse("3b-6-layers", CONFIG.as_bytes(), "config.json").expect("a constant of this file");
        let synthetic =
            Synthetic { shapes: &shapes, dtype: Dtype::Bf16, seed: 0, shard_bytes: u64::MAX, tokenizer: None };
        synthetic.write(&directory, &|_| ControlFlow::Continue(()))?;
    }
    Ok(directory)
}
