//! What an output file belongs to: model, input and parameters, in a file beside it. A run that differs in any of them
//! is refused, so that one output never mixes two.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use rigel::checkpoint::{Checkpoint, CheckpointError, ModelSource};
use rigel::sampling::SamplingParams;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::error::CliError;
use super::super::sampling_args::GenerationOptions;
use super::digest::Digest;

/// The version of the files' format.
const FORMAT: u32 = 1;

/// What is written beside the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    rigel_batch: u32,
    /// The version that began the output; not compared.
    rigel: String,
    model: ModelEntry,
    input: InputEntry,
    /// `--seed`.
    seed: u64,
    /// `--shard`.
    shard: String,
    /// `--context`.
    context: Option<u32>,
    /// What plain lines take where they say nothing, by option.
    plain: Map<String, Value>,
}

/// The model: its name, which is not compared, and what its files hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    pub name: String,
    pub digest: String,
}

/// The input: its name, which is not compared, and what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputEntry {
    pub name: String,
    pub bytes: u64,
    pub lines: u64,
    pub digest: String,
}

impl Manifest {
    pub fn new(
        model: ModelEntry,
        input: InputEntry,
        seed: u64,
        shard: impl std::fmt::Display,
        context: Option<u32>,
        plain: &GenerationOptions,
    ) -> Manifest {
        Manifest {
            rigel_batch: FORMAT,
            rigel: env!("CARGO_PKG_VERSION").to_owned(),
            model,
            input,
            seed,
            shard: shard.to_string(),
            context,
            plain: plain_options(plain),
        }
    }

    /// Where the manifest of an output file is.
    pub fn path_of(output: &Path) -> PathBuf {
        beside(output, ".manifest.json")
    }

    /// The manifest at `path`; none where there is no such file.
    pub fn read(path: &Path) -> Result<Option<Manifest>, CliError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CliError::Read { origin: path.display().to_string(), source }),
        };
        let manifest = serde_json::from_slice(&bytes)
            .map_err(|_| {
                CliError::Usage("not a manifest of this version's rigel batch; give another output file".into())
            })
            .map_err(|error| error.at(path.display().to_string()))?;
        Ok(Some(manifest))
    }

    /// Writes the manifest so that it is there whole or not at all, whenever the machine stops.
    pub fn write(&self, path: &Path) -> Result<(), CliError> {
        let error = |source| CliError::Write { path: path.to_owned(), source };
        let new = beside(path, ".new");
        // String keys and numbers alone.
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| error(e.into()))?;
        text.push(b'\n');
        let mut file = File::create(&new).map_err(error)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(error)?;
        fs::rename(&new, path).map_err(error)?;
        // The name, too. Not every file system lets a directory be synced.
        if let Some(directory) = path.parent() {
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            let _ = File::open(directory).and_then(|directory| directory.sync_all());
        }
        Ok(())
    }

    /// Refuses this run where `earlier`, which began the output, differs in what matters.
    pub fn continues(&self, earlier: &Manifest, output: &Path) -> Result<(), CliError> {
        let Some((what, before, now)) = self.difference(earlier) else { return Ok(()) };
        Err(CliError::Usage(format!(
            "{}: begun with {what} {before}, and this run has {now}; give the same to go on, or another output file",
            output.display()
        )))
    }

    /// What differs, and how: (what, earlier, now).
    fn difference(&self, earlier: &Manifest) -> Option<(String, String, String)> {
        let context = |manifest: &Manifest| manifest.context.map_or_else(|| "none".to_owned(), |n| n.to_string());
        let model = |m: &Manifest| format!("{} (digest {})", m.model.name, short(&m.model.digest));
        let input = |m: &Manifest| {
            let InputEntry { name, bytes, lines, digest } = &m.input;
            format!("{name} ({lines} lines, {bytes} bytes, digest {})", short(digest))
        };
        if self.rigel_batch != earlier.rigel_batch {
            return Some(("format".into(), earlier.rigel_batch.to_string(), self.rigel_batch.to_string()));
        }
        if self.model.digest != earlier.model.digest {
            return Some(("the model".into(), model(earlier), model(self)));
        }
        if self.input.digest != earlier.input.digest || self.input.bytes != earlier.input.bytes {
            return Some(("the input".into(), input(earlier), input(self)));
        }
        if self.seed != earlier.seed {
            return Some(("--seed".into(), earlier.seed.to_string(), self.seed.to_string()));
        }
        if self.shard != earlier.shard {
            return Some(("--shard".into(), earlier.shard.clone(), self.shard.clone()));
        }
        if self.context != earlier.context {
            return Some(("--context".into(), context(earlier), context(self)));
        }
        let names = self.plain.keys().chain(earlier.plain.keys());
        let shown = |manifest: &Manifest, name: &str| manifest.plain.get(name).unwrap_or(&Value::Null).to_string();
        let differs = names.into_iter().find(|name| self.plain.get(*name) != earlier.plain.get(*name))?;
        Some((format!("--{differs}"), shown(earlier, differs), shown(self, differs)))
    }
}

/// The file beside `path` whose name is longer by `suffix`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn short(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

fn plain_options(options: &GenerationOptions) -> Map<String, Value> {
    // Written out field by field: one that is added later has to be thought about here.
    let SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        allowed_token_ids,
        banned_token_ids,
        min_tokens,
        seed: _,
    } = &options.sampling;
    let value = json!({
        "max-new-tokens": options.max_new_tokens,
        "stop": options.stop,
        "stop-token-ids": options.stop_token_ids,
        "ignore-eos": options.ignore_eos,
        "temperature": temperature,
        "top-k": top_k,
        "top-p": top_p,
        "min-p": min_p,
        "repetition-penalty": repetition_penalty,
        "frequency-penalty": frequency_penalty,
        "presence-penalty": presence_penalty,
        "logit-bias": logit_bias,
        "allowed-token-ids": allowed_token_ids,
        "banned-token-ids": banned_token_ids,
        "min-tokens": min_tokens,
    });
    match value {
        Value::Object(map) => map,
        // The literal above is an object.
        _ => Map::new(),
    }
}

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
    // Few models have these, or need the vocabulary's; without them the digest is that of runs begun before they counted.
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

    fn options() -> GenerationOptions {
        GenerationOptions {
            max_new_tokens: Some(8),
            stop: vec!["x".into()],
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            sampling: SamplingParams::default(),
        }
    }

    fn manifest() -> Manifest {
        let model = ModelEntry { name: "nano".into(), digest: "00112233445566".into() };
        let input = InputEntry { name: "in.jsonl".into(), bytes: 10, lines: 2, digest: "aabbccddeeff".into() };
        Manifest::new(model, input, 7, "1/1", None, &options())
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = Manifest::path_of(&dir.path().join("out.jsonl"));
        assert!(path.ends_with("out.jsonl.manifest.json"));
        assert_eq!(Manifest::read(&path).unwrap(), None);
        manifest().write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), Some(manifest()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        assert!(Manifest::read(&path).unwrap_err().to_string().contains("not a manifest"));
    }

    #[test]
    fn what_differs_is_said_and_names_do_not_matter() {
        let mut same = manifest();
        same.model.name = "./nano".into();
        same.input.name = "elsewhere/in.jsonl".into();
        same.rigel = "9.9.9".into();
        assert!(manifest().continues(&same, Path::new("out")).is_ok());
        let message = |change: fn(&mut Manifest)| {
            let mut other = manifest();
            change(&mut other);
            manifest().continues(&other, Path::new("out")).unwrap_err().to_string()
        };
        assert!(message(|m| m.seed = 8).starts_with("out: begun with --seed 8, and this run has 7; "));
        assert!(message(|m| m.shard = "2/3".into()).contains("--shard 2/3"));
        assert!(message(|m| m.context = Some(9)).contains("--context 9, and this run has none"));
        assert!(message(|m| m.model.digest = "x".into()).contains("the model nano (digest x)"));
        assert!(message(|m| m.input.digest = "x".into()).contains("the input in.jsonl (2 lines, 10 bytes, digest x)"));
        assert!(message(|m| m.input.bytes = 11).contains("the input"));
        let plain = message(|m| drop(m.plain.insert("max-new-tokens".into(), json!(9))));
        assert!(plain.contains("--max-new-tokens 9, and this run has 8"), "{plain}");
        assert!(message(|m| drop(m.plain.insert("stop".into(), json!([])))).contains("--stop []"));
    }

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
