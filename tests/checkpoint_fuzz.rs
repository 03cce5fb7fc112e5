//! Damaged and hostile checkpoints: opening one never panics, never allocates much more than its headers are long,
//! and says what is wrong in one line.
//!
//! A fuzz target on stable Rust: a few thousand random damages each run, `RIGEL_FUZZ_CASES=1000000` for more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestRunner};
use rigel::checkpoint::{Checkpoint, ModelSource};
use rigel::model::{Description, ModelSpec};
use safetensors::tensor::{Dtype, TensorView, serialize};

/// The system's allocator, keeping books of what this thread has.
struct Bookkeeper;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn book(bytes: isize) {
    // Fails only while the thread ends, when nobody asks any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged; the books are thread-local cells that never allocate.
unsafe impl GlobalAlloc for Bookkeeper {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        book(layout.size() as isize);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        book(-(layout.size() as isize));
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Bookkeeper = Bookkeeper;

/// What `work` returns, and the most memory that it had at once.
fn peak_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

/// The files that are damaged, in the order of [`sound_files`].
const FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "model-1.safetensors",
    "model-2.safetensors",
];

/// A sound sharded checkpoint of a tiny network.
fn sound_files() -> [Vec<u8>; 5] {
    let config = r#"{"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "vocab_size": 11,
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 64, "sliding_window": 16,
        "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-05, "use_bias": true, "tie_word_embeddings": false,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_scaling": null,
        "layer_types": ["sliding_attention"], "eos_token_id": [0, 50256], "bos_token_id": 0, "dtype": "bfloat16"}"#;
    let generation = r#"{"eos_token_id": 0, "temperature": 0.2, "top_k": 50, "top_p": 0.95, "do_sample": true}"#;
    let parsed = rigel::checkpoint::Config::parse(config.as_bytes(), "config.json").unwrap();
    let tensors = ModelSpec::from_config(&parsed).unwrap().tensors();
    let mut weight_map = serde_json::Map::new();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let shards = [(FILES[3], first), (FILES[4], second)].map(|(file, tensors)| {
        let data: Vec<Vec<u8>> = tensors.iter().map(|t| vec![7; 2 * t.shape.iter().product::<usize>()]).collect();
        let views = tensors.iter().zip(&data).map(|(tensor, data)| {
            weight_map.insert(tensor.name.clone(), file.into());
            (tensor.name.as_str(), TensorView::new(Dtype::BF16, tensor.shape.clone(), data).unwrap())
        });
        serialize(views, None).unwrap()
    });
    let index = serde_json::json!({"metadata": {"total_size": 1234}, "weight_map": weight_map}).to_string();
    let [one, two] = shards;
    [config.into(), generation.into(), index.into(), one, two]
}

#[derive(Debug, Clone)]
enum Damage {
    FlipBit(Index, u8),
    Truncate(Index),
    Overwrite(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index, usize),
    /// A header length, where the file has one.
    Length(u64),
    /// Another value in place of a number, string or word of the JSON text; its stated length follows.
    Value(Index, &'static str),
}

/// Values that have broken readers before.
const VALUES: [&str; 24] = [
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "4.0",
    "1e999",
    "-1e-400",
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[0,18446744073709551615]",
    "\"../x\"",
    "\"model-1.safetensors\"",
    "\"F4\"",
    "\"\\ud800\"",
];

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    prop_oneof![
        1 => (at(), 0u8..8).prop_map(|(at, bit)| Damage::FlipBit(at, bit)),
        1 => at().prop_map(Damage::Truncate),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Overwrite(at, bytes)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (at(), at(), 1usize..64).prop_map(|(from, to, length)| Damage::Repeat(from, to, length)),
        1 => prop_oneof![any::<u64>(), 0u64..4096].prop_map(Damage::Length),
        4 => (at(), prop::sample::select(&VALUES[..])).prop_map(|(at, value)| Damage::Value(at, value)),
    ]
}

/// Where the JSON text of the file lies: after the length, for a weight file whose length is sound.
fn text_range(file: usize, bytes: &[u8]) -> std::ops::Range<usize> {
    if file < 3 {
        return 0..bytes.len();
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return 0..0 };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 { 0..0 } else { 8..8 + length as usize }
}

/// Byte ranges of the numbers, strings and words of JSON text.
fn values(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let end = match text[at] {
            b'"' => text[at + 1..].iter().position(|&b| b == b'"').map_or(text.len(), |n| at + n + 2),
            b if b.is_ascii_alphanumeric() || b == b'-' => {
                let more = |&b: &u8| !(b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'));
                text[at..].iter().position(more).map_or(text.len(), |n| at + n)
            }
            _ => {
                at += 1;
                continue;
            }
        };
        found.push(at..end);
        at = end;
    }
    found
}

fn apply(file: usize, bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    match damage {
        Damage::FlipBit(at, bit) => *at.get_mut(&mut bytes[..]) ^= 1 << bit,
        Damage::Truncate(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Overwrite(at, new) => {
            let at = at.index(bytes.len());
            let end = bytes.len().min(at + new.len());
            bytes[at..end].copy_from_slice(&new[..end - at]);
        }
        Damage::Insert(at, new) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, new.iter().copied());
        }
        Damage::Repeat(from, to, length) => {
            let from = from.index(bytes.len());
            let copy = bytes[from..bytes.len().min(from + length)].to_vec();
            let to = to.index(bytes.len());
            bytes.splice(to..to, copy);
        }
        Damage::Length(length) => {
            if file >= 3 && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
        }
        Damage::Value(at, value) => {
            let text = text_range(file, bytes);
            let values = values(&bytes[text.clone()]);
            if values.is_empty() {
                return;
            }
            let span = at.get(&values);
            bytes.splice(text.start + span.start..text.start + span.end, value.bytes());
            if file >= 3 {
                let length = (text.len() - span.len() + value.len()) as u64;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
        }
    }
}

/// Opens what is in `root` and holds the result to this file's promises. `length` is the sum of the files' lengths.
fn open_and_judge(root: &std::path::Path, length: usize) -> Result<bool, TestCaseError> {
    let source = ModelSource::directory(root).unwrap();
    let (opened, peak) = peak_of(|| Checkpoint::open(&source));
    prop_assert!(peak < (1 << 18) + 32 * length, "opening {} bytes took {} of memory", length, peak);
    let result = opened.and_then(|checkpoint| {
        for tensor in checkpoint.tensors() {
            // In u128, because a tensor without bytes may have any shape.
            let elements = tensor.shape().iter().map(|&n| n as u128).product::<u128>();
            assert_eq!(tensor.bytes().len() as u128, elements * tensor.dtype().size() as u128, "{tensor:?}");
            // Every byte is there to be read.
            std::hint::black_box(tensor.bytes().iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
        }
        let (description, peak) = peak_of(|| Description::of(&checkpoint));
        // The most layers that a config may claim have the names of 160,000 tensors.
        assert!(peak < 96 << 20, "describing {length} bytes took {peak} of memory");
        let description = description?;
        assert!(description.network.eos_token_ids.iter().all(|&id| (id as usize) < description.network.vocab_size));
        std::hint::black_box((
            description.to_string(),
            description.counts(),
            description.network.rope.map(|rope| rope.inv_freq(description.network.head_dim)),
        ));
        Ok(())
    });
    match result {
        Ok(()) => Ok(true),
        Err(error) => {
            let message = error.to_string();
            prop_assert!(!message.contains(['\n', '\r', '\u{1b}']), "more than one line: {:?}", message);
            prop_assert!((20..1500).contains(&message.len()), "too short or too long: {:?}", message);
            Ok(false)
        }
    }
}

#[test]
fn damaged_checkpoints_are_refused_in_one_line() {
    let cases = std::env::var("RIGEL_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let sound = sound_files();
    let root = tempfile::tempdir().unwrap();
    let write_all = || {
        for (name, bytes) in FILES.iter().zip(&sound) {
            fs::write(root.path().join(name), bytes).unwrap();
        }
    };
    write_all();
    let length = sound.iter().map(Vec::len).sum();
    assert!(open_and_judge(root.path(), length).unwrap(), "the sound checkpoint opens");

    let strategy = (0..FILES.len(), prop::collection::vec(damage(), 1..4));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let (opened, refused) = (Cell::new(0u32), Cell::new(0u32));
    TestRunner::new(config)
        .run(&strategy, |(file, damages)| {
            let mut bytes = sound[file].clone();
            damages.iter().for_each(|damage| apply(file, &mut bytes, damage));
            fs::write(root.path().join(FILES[file]), &bytes).unwrap();
            let verdict = open_and_judge(root.path(), length + bytes.len());
            fs::write(root.path().join(FILES[file]), &sound[file]).unwrap();
            let count = if verdict? { &opened } else { &refused };
            count.set(count.get() + 1);
            Ok(())
        })
        .unwrap();
    // Were the damage always fatal in the first byte, little would have been tested.
    println!("{} opened, {} refused", opened.get(), refused.get());
    assert!(opened.get() * 50 > cases && refused.get() * 2 > cases);
}
