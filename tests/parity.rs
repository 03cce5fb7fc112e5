//! The CPU backend against Hugging Face transformers in float32: token log-probabilities, best tokens, and greedy
//! continuations far past the window, on every checkpoint of `tests/goldens` (made by `tools/goldens`).
//!
//! The last test turns this one on its head: a checkpoint changed in one place must fail it.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use rigel::checkpoint::ModelSource;
use rigel::engine::{Completion, Engine, Request};
use rigel::text::TokenId;
use serde::Deserialize;

/// Largest |Δ log-probability| allowed.
const TOLERANCE: f32 = 2e-3;
/// Greedy tokens must be equal where the reference's two best logits lie further apart than this.
const CLEAR_MARGIN: f32 = 1e-2;

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Scored>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Scored {
    name: String,
    ids: Vec<TokenId>,
    logprobs: Vec<Option<f32>>,
    next_top_ids: Vec<[TokenId; 5]>,
    next_top_logprobs: Vec<[f32; 5]>,
}

#[derive(Deserialize)]
struct Greedy {
    name: String,
    prompt: Vec<TokenId>,
    ids: Vec<TokenId>,
    margins: Vec<f32>,
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn read_golden(name: &str) -> Golden {
    let path = goldens().join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every checkpoint with a golden: the random ones of `index.json`, and the bundled model.
fn checkpoints() -> Vec<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Index {
        checkpoints: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        checkpoint: String,
    }
    let index: Index = serde_json::from_slice(&fs::read(goldens().join("index.json")).unwrap()).unwrap();
    let random = index.checkpoints.into_iter().map(|e| (e.checkpoint.clone(), goldens().join(e.checkpoint)));
    let nano = ("nano".to_owned(), Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano"));
    random.chain([nano]).collect()
}

/// How the engine cuts its work; the results may not depend on it.
#[derive(Debug, Clone, Copy)]
struct Cut {
    page_size: u32,
    prefill_chunk: u32,
}

const WHOLE: Cut = Cut { page_size: 64, prefill_chunk: 512 };

fn engine(directory: &Path, cut: Cut) -> Engine {
    Engine::builder()
        .source(ModelSource::directory(directory).unwrap())
        .page_size(NonZeroU32::new(cut.page_size).unwrap())
        .prefill_chunk(NonZeroU32::new(cut.prefill_chunk).unwrap())
        .build()
        .unwrap()
}

fn score(engine: &Engine, ids: &[TokenId]) -> Completion {
    let request = Request { max_tokens: 0, prompt_logprobs: Some(5), ..Request::new(ids.to_vec()) };
    engine.generate(request).unwrap().wait().unwrap()
}

/// The largest |Δ log-probability| over the sequence's tokens, and over the five best at each position.
fn largest_difference(expected: &Scored, found: &Completion) -> f32 {
    assert_eq!(found.prompt.len(), expected.ids.len());
    let mut largest = 0f32;
    for (i, token) in found.prompt.iter().enumerate() {
        assert_eq!(token.logprob.is_some(), expected.logprobs[i].is_some());
        if let (Some(found), Some(expected)) = (token.logprob, expected.logprobs[i]) {
            largest = largest.max((found - expected).abs());
        }
        assert_eq!(token.top.len(), 5);
        for (rank, &(id, logprob)) in token.top.iter().enumerate() {
            // By rank, not by id: tokens that tie may change places.
            largest = largest.max((logprob - expected.next_top_logprobs[i][rank]).abs());
            if let Some(place) = expected.next_top_ids[i].iter().position(|&other| other == id) {
                largest = largest.max((logprob - expected.next_top_logprobs[i][place]).abs());
            }
        }
    }
    largest
}

#[test]
fn log_probabilities_and_greedy_tokens_agree_with_transformers() {
    let (mut scored, mut greedy_tokens) = (0, 0);
    for (name, directory) in checkpoints() {
        let golden = read_golden(&name);
        let mut largest = 0f32;
        for cut in [WHOLE, Cut { page_size: 7, prefill_chunk: 5 }] {
            let engine = engine(&directory, cut);
            for sequence in &golden.sequences {
                let difference = largest_difference(sequence, &score(&engine, &sequence.ids));
                assert!(difference <= TOLERANCE, "{name}, {}, {cut:?}: off by {difference}", sequence.name);
                largest = largest.max(difference);
                scored += sequence.ids.len() - 1;
            }
            for greedy in &golden.greedy {
                let request = Request {
                    max_tokens: greedy.ids.len() as u32,
                    ignore_eos: true,
                    ..Request::new(greedy.prompt.clone())
                };
                let found = engine.generate(request).unwrap().wait().unwrap().token_ids;
                for (i, (found, expected)) in found.iter().zip(&greedy.ids).enumerate() {
                    // After a token that may rightly differ, so may all that follow.
                    if greedy.margins[i] <= CLEAR_MARGIN && found != expected {
                        break;
                    }
                    assert_eq!(found, expected, "{name}, {}, {cut:?}: token {i}", greedy.name);
                    greedy_tokens += 1;
                }
            }
        }
        println!("{name}: largest |Δ log-probability| {largest:.2e}");
    }
    assert!(scored > 2 * 2500 && greedy_tokens > 2000, "only {scored} tokens scored, {greedy_tokens} greedy");
}

/// A copy of a golden checkpoint in a temporary folder, to be changed.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(goldens().join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn edit_config(directory: &Path, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = directory.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
}

/// Fills one tensor with zeros, in whichever file holds it.
fn zero_tensor(directory: &Path, tensor: &str) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        if let Some(offsets) = json.get(tensor).and_then(|t| t["data_offsets"].as_array()) {
            let [begin, end] = [0, 1].map(|i| 8 + header + offsets[i].as_u64().unwrap() as usize);
            bytes[begin..end].fill(0);
            fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("no tensor {tensor} in {}", directory.display());
}

/// Does the changed checkpoint fail its golden by at least twice the tolerance?
fn is_caught(name: &str, directory: &Path) -> bool {
    let engine = engine(directory, WHOLE);
    let difference = |sequence: &Scored| largest_difference(sequence, &score(&engine, &sequence.ids));
    read_golden(name).sequences.iter().any(|sequence| difference(sequence) >= 2.0 * TOLERANCE)
}

#[test]
fn a_change_in_one_place_is_caught() {
    let caught_somewhere = |what: &str, change: &dyn Fn(&Path) -> bool| {
        let caught = checkpoints().iter().filter(|(name, _)| name != "nano").any(|(name, _)| {
            let copy = copy_of(name);
            change(copy.path()) && is_caught(name, copy.path())
        });
        assert!(caught, "{what}: no golden notices");
    };
    let window = |offset: i64| {
        move |directory: &Path| {
            let mut changed = false;
            edit_config(directory, |config| {
                if let Some(window) = config.get("sliding_window").and_then(|w| w.as_i64()).filter(|&w| w > 1) {
                    config.insert("sliding_window".into(), (window + offset).into());
                    changed = true;
                }
            });
            changed
        }
    };
    caught_somewhere("window + 1", &window(1));
    caught_somewhere("window - 1", &window(-1));
    caught_somewhere("epsilon 1e-6", &|directory| {
        edit_config(directory, |config| {
            config.insert("norm_epsilon".into(), 1e-6.into());
        });
        true
    });
    let biases = [
        "self_attn.q_proj.bias",
        "self_attn.k_proj.bias",
        "self_attn.v_proj.bias",
        "self_attn.o_proj.bias",
        "mlp.c_fc.bias",
        "mlp.c_proj.bias",
        "input_layernorm.bias",
        "post_attention_layernorm.bias",
    ];
    for bias in biases {
        caught_somewhere(bias, &|directory| {
            let config: serde_json::Value =
                serde_json::from_slice(&fs::read(directory.join("config.json")).unwrap()).unwrap();
            if config["use_bias"] == false && !bias.contains("layernorm") {
                return false;
            }
            zero_tensor(directory, &format!("model.layers.1.{bias}"));
            true
        });
    }
}
