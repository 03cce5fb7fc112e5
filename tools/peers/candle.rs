//! Log-probabilities from candle's StarCoder2, on a CPU in float32. `correctness.py` builds this program and runs it:
//!
//!     peer CHECKPOINT SEQUENCES prompt|tokens
//!
//! SEQUENCES is a file of JSON, a list of lists of token ids. Printed is a list of as many lists, one shorter each: the
//! log-probability of every token but the first.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::log_softmax;
use candle_transformers::models::starcoder2::{Config, Model};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn log_probability(logits: &Tensor, token: u32) -> Result<f64> {
    let table = log_softmax(&logits.flatten_all()?.to_dtype(DType::F64)?, D::Minus1)?;
    Ok(table.get(token as usize)?.to_scalar()?)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let [_, checkpoint, sequences, mode] = words.as_slice() else { panic!("expected 3 arguments") };
    let sequences: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(sequences)?)?;
    let config: Config = serde_json::from_slice(&std::fs::read(format!("{checkpoint}/config.json"))?)?;
    let file = format!("{checkpoint}/model.safetensors");
    // SAFETY: nobody writes the checkpoint while this program runs.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], DType::F32, &Device::Cpu)? };
    let mut model = Model::new(&config, weights)?;
    let mut scores = Vec::new();
    for ids in &sequences {
        model.clear_kv_cache();
        let mut found = Vec::new();
        for i in 0..ids.len() - 1 {
            // The model returns the logits of its last position alone. So a prompt's positions take a prompt each.
            let first = if mode == "prompt" { 0 } else { i };
            if mode == "prompt" {
                model.clear_kv_cache();
            }
            let logits = model.forward(&Tensor::new(&ids[first..=i], &Device::Cpu)?.unsqueeze(0)?, first)?;
            found.push(log_probability(&logits, ids[i + 1])?);
        }
        scores.push(found);
    }
    println!("{}", serde_json::to_string(&scores)?);
    Ok(())
}
