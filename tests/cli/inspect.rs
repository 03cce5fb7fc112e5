//! `rigel inspect`.

use std::path::Path;

use serde_json::Value;

use crate::common::{Copy, nano, rigel};

/// The header of nano's weights.
fn header() -> serde_json::Map<String, Value> {
    let bytes = std::fs::read(nano().join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header.remove("__metadata__");
    header
}

#[test]
fn numbers_are_those_of_the_files() {
    let record = rigel(&["inspect", "--json"]).ok().json();
    let elements = |tensor: &Value| tensor["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
    let parameters: u64 = header().values().map(elements).collect::<Vec<u64>>().iter().sum();
    assert_eq!(record["parameters"], parameters);
    let config: Value = serde_json::from_slice(&std::fs::read(nano().join("config.json")).unwrap()).unwrap();
    for (field, key) in [
        ("vocab_size", "vocab_size"),
        ("hidden_size", "hidden_size"),
        ("layers", "num_hidden_layers"),
        ("heads", "num_attention_heads"),
        ("kv_heads", "num_key_value_heads"),
        ("intermediate_size", "intermediate_size"),
        ("max_positions", "max_position_embeddings"),
        ("window", "sliding_window"),
    ] {
        assert_eq!(record[field], config[key], "{field}");
    }
    let size = std::fs::metadata(nano().join("model.safetensors")).unwrap().len();
    assert_eq!(record["files"][0]["bytes"], size);
    assert_eq!(record["files"][0]["name"], "model.safetensors");
}

#[test]
fn weights_are_not_read() {
    // A file of the right length whose weights are all NaN is as good.
    let copy = Copy::of_nano();
    let weights = copy.path("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + length..].fill(0xff);
    std::fs::write(&weights, bytes).unwrap();
    let mut changed = rigel(&["inspect", "--json", "--model", copy.model()]).ok().json();
    let mut bundled = rigel(&["inspect", "--json"]).ok().json();
    for record in [&mut changed, &mut bundled] {
        record.as_object_mut().unwrap().remove("source");
    }
    assert_eq!(changed, bundled);
}

#[test]
fn the_table_names_what_it_shows() {
    let run = rigel(&["inspect"]).ok();
    for row in ["family", "parameters", "window", "layers", "stored", "file", "KV cache a token"] {
        assert!(run.text().lines().any(|line| line.starts_with(row)), "{row}: {}", run.text());
    }
}

#[cfg(feature = "cuda")]
#[test]
fn weights_on_a_gpu_are_padded_and_in_two_bytes() {
    let golden = |name: &str| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
        rigel(&["inspect", "--json", "--model", directory.to_str().unwrap()]).ok().json()["gpu_weights"].clone()
    };
    // nano's sizes are multiples of 128: no padding. It is stored in BF16.
    assert!(rigel(&["inspect"]).ok().text().contains("\nweights on a GPU   "));
    let record = rigel(&["inspect", "--json"]).ok().json();
    let parameters = record["parameters"].as_u64().unwrap();
    assert_eq!(record["gpu_weights"], serde_json::json!({"dtype": "BF16", "bytes": 2 * parameters}));
    // F16 stays, F32 becomes BF16.
    assert_eq!(golden("gqa2-d128")["dtype"], "F16");
    assert_eq!(golden("mha")["dtype"], "BF16");
    // By hand: vocabulary 131 as 136, MLP 61 as 64, hidden 40, 2 heads and 1 of 64 wide, 2 layers, no biases, an untied
    // head; vectors of 40 elements in places of 128.
    let layer = (4 * 64 * 40 + 40 * 128 + 2 * 64 * 40) + 4 * 128;
    let place = |elements: u64| elements.next_multiple_of(128);
    let bytes = 2 * (2 * place(136 * 40) + 2 * layer + 2 * 128);
    assert_eq!(golden("nobias-theta"), serde_json::json!({"dtype": "BF16", "bytes": bytes}));
}
