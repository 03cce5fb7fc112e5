//! vocab.json and merges.txt, the files of GPT-2's byte-level BPE from before tokenizer.json, made into a
//! tokenizer.json. Knows nothing of special tokens.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::config::{TOKENIZER_CONFIG, json_object};
use super::{TextError, TokenizerConfig};
use crate::checkpoint::ModelSource;

pub(super) const VOCAB: &str = "vocab.json";
pub(super) const MERGES: &str = "merges.txt";
/// What a model is taken to have that names no `tokenizer_class`; transformers maps starcoder2 and gpt_bigcode to it.
pub(super) const DEFAULT_CLASS: &str = "GPT2Tokenizer";

/// What text is split into before merges apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splitting {
    /// GPT-2's pattern. StarCoder2's own isolates digits as well, which only its tokenizer.json says.
    Gpt2,
    /// Qwen2's pattern, after Unicode's normalization form C.
    Qwen2,
}

/// Qwen2's pattern (`PRETOKENIZE_REGEX` of transformers' tokenization_qwen2.py).
const QWEN2_PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer.json that the two files of a model amount to, as transformers builds it for the `tokenizer_class` of
/// `config`: GPT2Tokenizer (also where no class is named) or Qwen2Tokenizer. `None` if both files are absent.
///
/// # Errors
/// One file without the other, another class, malformed files; one line each.
pub(super) fn tokenizer_json(source: &ModelSource, config: &TokenizerConfig) -> Result<Option<Vec<u8>>, TextError> {
    let (vocab, merges) = (source.read(VOCAB)?, source.read(MERGES)?);
    let (vocab, merges) = match (vocab, merges) {
        (None, None) => return Ok(None),
        (Some(vocab), Some(merges)) => (vocab, merges),
        (vocab, _) => {
            let (there, missing) = if vocab.is_some() { (VOCAB, MERGES) } else { (MERGES, VOCAB) };
            return Err(TextError::InvalidFile {
                file: source.describe(missing),
                reason: format!(
                    "is missing, and {there} needs it (there is no tokenizer.json); copy it, or tokenizer.json, from \
                     the model's repository"
                ),
            });
        }
    };
    let class = config.tokenizer_class()?.unwrap_or(DEFAULT_CLASS);
    let splitting = match class.strip_suffix("Fast").unwrap_or(class) {
        "GPT2Tokenizer" => Splitting::Gpt2,
        "Qwen2Tokenizer" => Splitting::Qwen2,
        _ => {
            return Err(TextError::InvalidFile {
                file: source.describe(TOKENIZER_CONFIG),
                reason: format!(
                    "tokenizer_class {class:?} is not one that is built from {VOCAB} and {MERGES} here (GPT2Tokenizer \
                     and Qwen2Tokenizer are); copy tokenizer.json from the model's repository, or have transformers \
                     write it with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
                ),
            });
        }
    };
    let vocab = vocabulary(&vocab, &source.describe(VOCAB))?;
    let merges = merges_of(&merges, &vocab, &source.describe(MERGES))?;
    let add_prefix_space = config.flag("add_prefix_space")?;
    let byte_level = |add_prefix_space: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex});
    let (normalizer, pre_tokenizer) = match splitting {
        Splitting::Gpt2 => (Value::Null, byte_level(add_prefix_space, true)),
        Splitting::Qwen2 => {
            let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated",
                "invert": false});
            let parts = [split, byte_level(add_prefix_space, false)];
            (json!({"type": "NFC"}), json!({"type": "Sequence", "pretokenizers": parts}))
        }
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": byte_level(true, true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges},
    });
    Ok(Some(json.to_string().into_bytes()))
}

/// The post-processor that puts one token before every text, after it, or both: (text, id).
pub(super) fn post_processor(before: Option<(&str, u32)>, after: Option<(&str, u32)>) -> Value {
    let special = |(token, _): (&str, u32)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let around = |name: &str| -> Vec<Value> {
        before.map(special).into_iter().chain([text(name)]).chain(after.map(special)).collect()
    };
    let ids: Map<String, Value> = before
        .into_iter()
        .chain(after)
        .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair: Vec<Value> = around("A").into_iter().chain(around("B")).collect();
    json!({"type": "TemplateProcessing", "single": around("A"), "pair": pair, "special_tokens": ids})
}

/// Token → id.
fn vocabulary(json: &[u8], origin: &str) -> Result<Map<String, Value>, TextError> {
    let invalid = |reason: String| TextError::InvalidFile { file: origin.to_owned(), reason };
    let mut vocab = json_object(json, origin)?;
    let mut seen = HashSet::new();
    for (token, value) in &mut vocab {
        let id = crate::checkpoint::json::natural(value)
            .ok_or_else(|| invalid(format!("token {token:?}: found {value}, expected an id")))?;
        if !seen.insert(id) {
            return Err(invalid(format!("id {id} belongs to more than one token, {token:?} among them")));
        }
        *value = id.into();
    }
    if vocab.is_empty() {
        return Err(invalid("found no token, expected an object of token ids by token".to_owned()));
    }
    Ok(vocab)
}

/// The pairs that merge, in order. The first line may be a header; blank lines, a missing last line end and Windows
/// line ends do not matter.
fn merges_of(text: &[u8], vocab: &Map<String, Value>, origin: &str) -> Result<Vec<[String; 2]>, TextError> {
    let invalid = |reason: String| TextError::InvalidFile { file: origin.to_owned(), reason };
    let text = std::str::from_utf8(text)
        .map_err(|e| invalid(format!("found bytes that are not UTF-8 at offset {}, expected text", e.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut merges = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        let wrong = |what: &str| {
            let shown: String = line.chars().take(60).collect();
            invalid(format!("line {}: found {shown:?}, {what}", index + 1))
        };
        let mut parts = line.split_whitespace();
        let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("expected two tokens with a space between them"));
        };
        if ![left, right].iter().all(|part| vocab.contains_key(*part)) || !vocab.contains_key(&format!("{left}{right}"))
        {
            return Err(wrong(
                "whose tokens, or what they make, are not in vocab.json; the files belong to different tokenizers",
            ));
        }
        merges.push([left.to_owned(), right.to_owned()]);
    }
    Ok(merges)
}
