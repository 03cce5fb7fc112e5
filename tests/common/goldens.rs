//! What the parity tests of both backends share: the values in `tests/goldens` (made by `tools/goldens`, whose README
//! describes every field), engines to hold against them, and checkpoints changed in one place.

// Each test binary uses its part.
#![allow(dead_code)]

// The kernel tests' helpers, which some binaries have beside these, have it too.
#[allow(clippy::duplicate_mod)]
mod root;

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use rigel::backend::Device;
use rigel::checkpoint::ModelSource;
use rigel::engine::{Completion, Engine, Generation, Request};
use rigel::text::TokenId;
use root::root;
use serde::Deserialize;

/// The recorded values of one checkpoint.
#[derive(Deserialize)]
pub struct Golden {
    pub half: Half,
    pub sequences: Vec<Scored>,
    pub greedy: Vec<Greedy>,
}

/// Where the values named `logprobs_half` come from.
#[derive(Deserialize)]
pub struct Half {
    pub dtype: String,
    pub attention: String,
}

/// A sequence and the log-probabilities of its tokens, in float32 and in half precision.
#[derive(Deserialize)]
pub struct Scored {
    pub name: String,
    pub ids: Vec<TokenId>,
    pub logprobs: Vec<Option<f32>>,
    pub logprobs_half: Vec<Option<f32>>,
    pub next_top_ids: Vec<[TokenId; 5]>,
    pub next_top_logprobs: Vec<[f32; 5]>,
}

/// A prompt and its greedy continuation in float32.
#[derive(Deserialize)]
pub struct Greedy {
    pub name: String,
    pub prompt: Vec<TokenId>,
    pub ids: Vec<TokenId>,
    pub logprobs: Vec<f32>,
    pub logprobs_half: Vec<f32>,
    pub margins: Vec<f32>,
}

fn goldens() -> PathBuf {
    root().join("tests/goldens")
}

pub fn read_golden(name: &str) -> Golden {
    let path = goldens().join(format!("{name}.json"));
    serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The random checkpoints of `index.json`: names and directories.
pub fn random_checkpoints() -> Vec<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Index {
        checkpoints: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        checkpoint: String,
    }
    let index: Index = serde_json::from_slice(&fs::read(goldens().join("index.json")).unwrap()).unwrap();
    index.checkpoints.into_iter().map(|e| (e.checkpoint.clone(), goldens().join(e.checkpoint))).collect()
}

/// The bundled model: name and directory.
pub fn nano() -> (String, PathBuf) {
    ("nano".to_owned(), root().join("crates/rigel-nano/model"))
}

/// Every checkpoint with a golden.
pub fn checkpoints() -> Vec<(String, PathBuf)> {
    random_checkpoints().into_iter().chain([nano()]).collect()
}

/// How the engine cuts its work.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub page_size: u32,
    pub prefill_chunk: u32,
}

/// No sequence of the goldens is longer than the chunk.
pub const WHOLE: Cut = Cut { page_size: 64, prefill_chunk: 512 };

pub fn engine(directory: &Path, device: Device, cut: Cut) -> Engine {
    Engine::builder()
        .source(ModelSource::directory(directory).unwrap())
        .device(device)
        .page_size(NonZeroU32::new(cut.page_size).unwrap())
        .prefill_chunk(NonZeroU32::new(cut.prefill_chunk).unwrap())
        .build()
        .unwrap()
}

/// Hands all requests over before it waits for the first: an engine that batches may run them together.
pub fn run(engine: &Engine, requests: impl IntoIterator<Item = Request>) -> Vec<Completion> {
    let started: Vec<Generation> = requests.into_iter().map(|request| engine.generate(request).unwrap()).collect();
    started.into_iter().map(|generation| generation.wait().unwrap()).collect()
}

/// The log-probabilities of each sequence's tokens and of the five best at each position.
pub fn score(engine: &Engine, sequences: &[Scored]) -> Vec<Completion> {
    let request = |s: &Scored| Request { max_tokens: 0, prompt_logprobs: Some(5), ..Request::new(s.ids.clone()) };
    let found = run(engine, sequences.iter().map(request));
    for (sequence, found) in sequences.iter().zip(&found) {
        assert_eq!(found.prompt.len(), sequence.ids.len(), "{}", sequence.name);
        for (token, expected) in found.prompt.iter().zip(&sequence.logprobs) {
            assert_eq!(token.logprob.is_some(), expected.is_some(), "{}", sequence.name);
            assert_eq!(token.top.len(), 5, "{}", sequence.name);
            // Said here, for a maximum over differences passes over NaN.
            let mut values = token.logprob.iter().chain(token.top.iter().map(|(_, logprob)| logprob));
            assert!(values.all(|logprob| logprob.is_finite()), "{}: {token:?}", sequence.name);
        }
    }
    found
}

/// The engine's own greedy continuations, as long as the recorded ones, with the log-probability of each token.
pub fn continue_greedily<'a>(engine: &Engine, greedy: impl IntoIterator<Item = &'a Greedy>) -> Vec<Completion> {
    let request = |g: &Greedy| Request {
        max_tokens: g.ids.len() as u32,
        ignore_eos: true,
        logprobs: Some(0),
        ..Request::new(g.prompt.clone())
    };
    run(engine, greedy.into_iter().map(request))
}

/// How many tokens the two begin with in common. They may part only where the reference's two best logits lie no
/// further apart than `clear`; after that, all that follows may differ.
pub fn agreement(found: &[TokenId], expected: &[TokenId], margins: &[f32], clear: f32, place: &str) -> usize {
    assert_eq!(found.len(), expected.len(), "{place}");
    let common = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
    if let Some(&margin) = margins.get(common) {
        let (found, expected) = (found[common], expected[common]);
        assert!(margin <= clear, "{place}: token {common} is {found:?}, expected {expected:?}, margin {margin}");
    }
    common
}

/// A change to a checkpoint's files that is a mistake an engine can make.
pub struct Mutation {
    pub name: &'static str,
    change: Box<dyn Fn(&Path) -> bool>,
}

impl Mutation {
    /// A changed copy of a golden checkpoint in a temporary folder; none where it has nothing to change.
    pub fn of(&self, checkpoint: &str) -> Option<tempfile::TempDir> {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(goldens().join(checkpoint)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
        (self.change)(copy.path()).then_some(copy)
    }
}

/// The window one wider and one narrower, another epsilon, and each bias of the second layer set to zero.
pub fn mutations() -> Vec<Mutation> {
    let mut all = vec![
        Mutation { name: "window + 1", change: Box::new(|directory| shift_window(directory, 1)) },
        Mutation { name: "window - 1", change: Box::new(|directory| shift_window(directory, -1)) },
        Mutation {
            name: "epsilon 1e-6",
            change: Box::new(|directory| {
                edit_config(directory, |config| config.insert("norm_epsilon".into(), 1e-6.into()).is_some())
            }),
        },
    ];
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
    all.extend(biases.map(|name| Mutation {
        name,
        change: Box::new(move |directory| zero_tensor(directory, &format!("model.layers.1.{name}"))),
    }));
    all
}

/// Did `edit` change anything?
fn edit_config(directory: &Path, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>) -> bool) -> bool {
    let path = directory.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let changed = edit(&mut config);
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    changed
}

fn shift_window(directory: &Path, offset: i64) -> bool {
    edit_config(directory, |config| {
        let window = config.get("sliding_window").and_then(|w| w.as_i64()).filter(|&w| w > 1);
        window.is_some_and(|window| config.insert("sliding_window".into(), (window + offset).into()).is_some())
    })
}

/// Fills one tensor with zeros, in whichever file holds it; false where none does (a checkpoint without biases).
fn zero_tensor(directory: &Path, tensor: &str) -> bool {
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
            return true;
        }
    }
    false
}
