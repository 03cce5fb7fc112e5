//! Small tokenizers for this floor's unit tests, built in code.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{TokenId, Tokenizer};

/// Special tokens of the test vocabulary; the index is the id.
const SPECIALS: [&str; 7] =
    ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"];

/// Merges of the test vocabulary, in GPT-2's alphabet.
const MERGES: [(&str, &str); 6] = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("r", "e"), ("Ã", "©"), ("ä", "½"), ("re", "t")];

/// The bytes that StarCoder2's vocabulary lacks (reference §3).
fn missing(byte: u8) -> bool {
    matches!(byte, 0xC0 | 0xC1 | 0xF1 | 0xF5..=0xFF)
}

/// GPT-2's alphabet in the order of its encoder.py: printable bytes first.
fn alphabet() -> Vec<(u8, char)> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let (shown, hidden): (Vec<u8>, Vec<u8>) = (0..=255).partition(printable);
    let shifted = hidden.into_iter().zip('\u{100}'..);
    shown.into_iter().map(|b| (b, char::from(b))).chain(shifted).collect()
}

fn vocabulary() -> Vec<String> {
    let bytes = alphabet().into_iter().filter(|(b, _)| !missing(*b)).map(|(_, c)| c.to_string());
    let merged = MERGES.iter().map(|(a, b)| format!("{a}{b}"));
    SPECIALS.iter().map(|s| s.to_string()).chain(bytes).chain(merged).collect()
}

/// The tokenizer.json of a byte-level BPE with StarCoder2's pre-tokenizer, special tokens and missing bytes.
pub(super) fn byte_level_json() -> Value {
    let vocab: serde_json::Map<String, Value> =
        vocabulary().into_iter().enumerate().map(|(i, token)| (token, i.into())).collect();
    let added: Vec<Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(false)]},
        "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": MERGES.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>()},
    })
}

/// The byte-level tokenizer, without eos and bos.
pub(super) fn byte_level() -> Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        Tokenizer::from_bytes(byte_level_json().to_string().as_bytes(), "test tokenizer").expect("built above")
    });
    TOKENIZER.clone()
}

/// The id of a single byte's token; panics for the missing ones.
pub(super) fn byte_id(byte: u8) -> TokenId {
    let (_, c) = *alphabet().iter().find(|(b, _)| *b == byte).expect("every byte is in the alphabet");
    byte_level().id(&c.to_string()).expect("not one of the missing bytes")
}

/// Any ids of the byte-level vocabulary, specials among them; mostly not UTF-8.
pub(super) fn any_ids() -> impl Strategy<Value = Vec<TokenId>> {
    prop::collection::vec((0..byte_level().vocab_size() as u32).prop_map(TokenId), 0..40)
}

/// A sentencepiece-like tokenizer (Metaspace, byte fallback): one whose decoding is not a concatenation of bytes.
pub(super) fn metaspace() -> Tokenizer {
    let pieces = ["<s>", "▁a", "▁", "b", "▁foo", "<0xC3>", "<0xA9>", "<0xFF>", "é"];
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(i, p)| (p.to_string(), i.into())).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), "test tokenizer").expect("built above")
}
