//! Log-probabilities from mistral.rs' StarCoder2, on a CPU in float32. `correctness.py` builds this program and runs it:
//!
//!     peer CHECKPOINT SEQUENCES prompt|tokens
//!
//! SEQUENCES is a file of JSON, a list of lists of token ids. Printed is a list of as many lists, one shorter each: the
//! log-probability of every token but the first.

use std::sync::{Arc, Mutex};

use mistralrs::{
    CustomLogitsProcessor, DType, ModelDType, NormalLoaderType, NormalRequest, Request, RequestMessage, Response,
    SamplingParams, Tensor, TextModelBuilder,
};

type Error = Box<dyn std::error::Error>;

fn log_probability(logits: &[f64], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits[token as usize] - max - logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

/// Keeps the logits that the engine would sample from, and makes certain the token that the sequence has there.
fn follow(ids: &[u32], scores: Arc<Mutex<Vec<f64>>>) -> Arc<dyn CustomLogitsProcessor> {
    let ids = ids.to_vec();
    Arc::new(move |logits: &Tensor, _context: &[u32]| {
        let row: Vec<f64> = logits.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
        let mut scores = scores.lock().unwrap();
        let next = ids[scores.len() + 1];
        scores.push(log_probability(&row, next));
        let certain: Vec<f32> = (0..row.len()).map(|id| if id == next as usize { 0.0 } else { -1e9 }).collect();
        Tensor::new(certain, logits.device())?.reshape(logits.shape())
    })
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().collect();
    let [_, checkpoint, sequences, mode] = words.as_slice() else { panic!("expected 3 arguments") };
    let sequences: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(sequences)?)?;
    let model = TextModelBuilder::new(checkpoint)
        .with_loader_type(NormalLoaderType::Starcoder2)
        .with_dtype(ModelDType::F32)
        .with_force_cpu()
        .with_max_num_seqs(1)
        .with_prefix_cache_n(None)
        .build()
        .await?;
    let mut all = Vec::new();
    for (id, ids) in sequences.iter().enumerate() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(64);
        let scores = Arc::new(Mutex::new(Vec::new()));
        let last = ids.len() - 1;
        let prompt = if mode == "prompt" { &ids[..last] } else { &ids[..1] };
        let mut sampling = SamplingParams::neutral();
        sampling.max_len = Some(last);
        let message = RequestMessage::CompletionTokens(prompt.to_vec());
        let mut request = NormalRequest::new_simple(message, sampling, sender, id, None, None);
        if mode == "prompt" {
            request.return_raw_logits = true;
        } else {
            request.logits_processors = Some(vec![follow(ids, scores.clone())]);
        }
        model.inner().get_sender(None)?.send(Request::Normal(Box::new(request))).await?;
        match receiver.recv().await.ok_or("the engine has ended")? {
            Response::Raw { logits_chunks, .. } => {
                let rows = Tensor::cat(&logits_chunks, 0)?.to_dtype(DType::F64)?.to_vec2()?;
                let mut scores = scores.lock().unwrap();
                scores.extend(rows.iter().zip(&ids[1..]).map(|(row, next)| log_probability(row, *next)));
            }
            Response::CompletionDone(_) => (),
            other => return Err(format!("{:?}", other.as_result().err()).into()),
        }
        let scores = scores.lock().unwrap().clone();
        assert_eq!(scores.len(), last, "a score for every token but the first");
        all.push(scores);
    }
    println!("{}", serde_json::to_string(&all)?);
    Ok(())
}
