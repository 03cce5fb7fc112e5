//! What a model is, in one hash.

use rigel::checkpoint::{Checkpoint, CheckpointError, ModelSource};

use super::digest::Digest;

/// A hash of what the model is: its configuration, tokenizer and template as they are, and of each weight the name,
/// the shape, the dtype and three kilobytes. Reading 32 GB of weights would take longer than many a run.
pub fn model_digest(source: &ModelSource) -> Result<String, CheckpointError> {
    const FILES: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ];
    let mut digest = Digest::new();
    for name in FILES {
        digest.part(name.as_bytes());
        match source.read(name)? {
            Some(bytes) => digest.part(&bytes),
            None => digest.part(b""),
        }
    }
    // Few models have these, or need the vocabulary's; without them the digest is that of runs begun before they
    // counted.
    let vocabulary: &[&str] =
        if source.read("tokenizer.json")?.is_none() { &["vocab.json", "merges.txt"] } else { &[] };
    for name in ["added_tokens.json", "additional_chat_templates/default.jinja"].iter().chain(vocabulary) {
        if let Some(bytes) = source.read(name)? {
            digest.part(name.as_bytes());
            digest.part(&bytes);
        }
    }
    let checkpoint = Checkpoint::open(source)?;
    for tensor in checkpoint.tensors() {
        digest.part(format!("{} {:?} {:?}", tensor.name(), tensor.dtype(), tensor.shape()).as_bytes());
        for sample in samples(tensor.bytes()) {
            digest.part(sample);
        }
    }
    Ok(digest.hex())
}

/// A kilobyte of the beginning, the middle and the end.
fn samples(bytes: &[u8]) -> [&[u8]; 3] {
    const SIZE: usize = 1 << 10;
    let at = |start: usize| &bytes[start..bytes.len().min(start + SIZE)];
    [at(0), at(bytes.len() / 2), at(bytes.len().saturating_sub(SIZE))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn a_model_s_digest_sees_every_file() {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/rigel-nano/model");
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(nano).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        let digest = || model_digest(&ModelSource::directory(dir.path()).unwrap()).unwrap();
        let first = digest();
        assert_eq!(first, model_digest(&ModelSource::nano()).unwrap());
        let weights = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        let second = digest();
        assert_ne!(second, first);
        fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
        assert_ne!(digest(), second);
    }
}
