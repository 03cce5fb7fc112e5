//! What an output file belongs to: model, input and parameters, in a file beside it. A run that differs in any of them
//! is refused, so that one output never mixes two.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use rigel::sampling::SamplingParams;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::error::CliError;
use super::super::sampling_args::GenerationOptions;
use super::input::as_it_was;

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
    /// `--id-field`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id_field: Option<String>,
    /// `--ordered`.
    #[serde(default)]
    ordered: bool,
    /// `--logprobs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logprobs: Option<u8>,
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
    /// The sum of [`line_hash`](super::digest::line_hash) over the shard's lines. Outputs of older versions have
    /// none, or one over the lines of all shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_sum: Option<String>,
}

/// What of a run's options is compared besides those for plain lines.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEntry {
    pub seed: u64,
    pub shard: String,
    pub context: Option<u32>,
    pub id_field: Option<String>,
    pub ordered: bool,
    pub logprobs: Option<u8>,
}

impl Manifest {
    pub fn new(model: ModelEntry, input: InputEntry, run: RunEntry, plain: &GenerationOptions) -> Manifest {
        let RunEntry { seed, shard, context, id_field, ordered, logprobs } = run;
        Manifest {
            rigel_batch: FORMAT,
            rigel: env!("CARGO_PKG_VERSION").to_owned(),
            model,
            input,
            seed,
            shard,
            context,
            id_field,
            ordered,
            logprobs,
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

    /// What the output belongs to, of the input.
    pub fn input(&self) -> &InputEntry {
        &self.input
    }

    /// Refuses this run where `earlier`, which began the output, differs in anything but the input.
    pub fn check_options(&self, earlier: &Manifest, output: &Path) -> Result<(), CliError> {
        let Some((what, before, now)) = self.difference(earlier) else { return Ok(()) };
        Err(refusal(output, &what, before, now, "give the same to go on, or another output file"))
    }

    /// Returns `true` if the input is that of `earlier`, whatever its name is, or if it differs from that in lines of
    /// other shards alone.
    pub fn has_input_of(&self, earlier: &Manifest) -> bool {
        let (now, before) = (&self.input, &earlier.input);
        let has_same_lines = now.line_sum.is_some() && now.line_sum == before.line_sum && self.shard == earlier.shard;
        (now.digest == before.digest && now.bytes == before.bytes) || has_same_lines
    }

    /// Refuses this run, whose input is not that of `earlier`.
    pub fn refuse_input(&self, earlier: &Manifest, output: &Path) -> CliError {
        let input = |m: &Manifest| {
            let InputEntry { name, bytes, lines, digest, .. } = &m.input;
            Some(format!("{name} ({lines} lines, {bytes} bytes, digest {})", short(digest)))
        };
        refusal(output, "the input", input(earlier), input(self), &as_it_was(&earlier.input.name))
    }

    /// What differs, and how: (what, earlier, now), where none is an option that was not given.
    fn difference(&self, earlier: &Manifest) -> Option<(String, Option<String>, Option<String>)> {
        fn text<T: ToString>(value: &Option<T>) -> Option<String> {
            value.as_ref().map(T::to_string)
        }
        let model = |m: &Manifest| Some(format!("{} (digest {})", m.model.name, short(&m.model.digest)));
        if self.rigel_batch != earlier.rigel_batch {
            let format = |m: &Manifest| Some(m.rigel_batch.to_string());
            return Some(("format".into(), format(earlier), format(self)));
        }
        if self.model.digest != earlier.model.digest {
            return Some(("the model".into(), model(earlier), model(self)));
        }
        if self.seed != earlier.seed {
            return Some(("--seed".into(), Some(earlier.seed.to_string()), Some(self.seed.to_string())));
        }
        if self.shard != earlier.shard {
            return Some(("--shard".into(), Some(earlier.shard.clone()), Some(self.shard.clone())));
        }
        if self.context != earlier.context {
            return Some(("--context".into(), text(&earlier.context), text(&self.context)));
        }
        if self.id_field != earlier.id_field {
            return Some(("--id-field".into(), text(&earlier.id_field), text(&self.id_field)));
        }
        if self.ordered != earlier.ordered {
            let flag = |ordered: bool| ordered.then(String::new);
            return Some(("--ordered".into(), flag(earlier.ordered), flag(self.ordered)));
        }
        if self.logprobs != earlier.logprobs {
            return Some(("--logprobs".into(), text(&earlier.logprobs), text(&self.logprobs)));
        }
        let names = self.plain.keys().chain(earlier.plain.keys());
        let given = |manifest: &Manifest, name: &str| given(manifest.plain.get(name));
        let differs = names.into_iter().find(|name| self.plain.get(*name) != earlier.plain.get(*name))?;
        Some((format!("--{differs}"), given(earlier, differs), given(self, differs)))
    }
}

/// An option's value as a message has it: none where it was not given, empty for a flag.
fn given(value: Option<&Value>) -> Option<String> {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(Value::Array(values)) if values.is_empty() => None,
        Some(Value::Bool(true)) => Some(String::new()),
        Some(value) => Some(value.to_string()),
    }
}

fn refusal(output: &Path, what: &str, before: Option<String>, now: Option<String>, advice: &str) -> CliError {
    let before = match before {
        None => format!("without {what}"),
        Some(value) if value.is_empty() => format!("with {what}"),
        Some(value) => format!("with {what} {value}"),
    };
    let now = match now {
        None => "none".to_owned(),
        Some(value) if value.is_empty() => "it".to_owned(),
        Some(value) => value,
    };
    CliError::Usage(format!("{}: begun {before}, and this run has {now}; {advice}", output.display()))
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
        let input = InputEntry {
            name: "in.jsonl".into(),
            bytes: 10,
            lines: 2,
            digest: "aabbccddeeff".into(),
            line_sum: Some("00".into()),
        };
        let run =
            RunEntry { seed: 7, shard: "1/1".into(), context: None, id_field: None, ordered: false, logprobs: None };
        Manifest::new(model, input, run, &options())
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
        assert!(manifest().check_options(&same, Path::new("out")).is_ok() && manifest().has_input_of(&same));
        let message = |change: fn(&mut Manifest)| {
            let mut other = manifest();
            change(&mut other);
            manifest().check_options(&other, Path::new("out")).unwrap_err().to_string()
        };
        assert!(message(|m| m.seed = 8).starts_with("out: begun with --seed 8, and this run has 7; "));
        assert!(message(|m| m.shard = "2/3".into()).contains("--shard 2/3"));
        assert!(message(|m| m.context = Some(9)).contains("begun with --context 9, and this run has none"));
        assert!(message(|m| m.id_field = Some("a".into())).contains("begun with --id-field a, and this run has none"));
        assert!(message(|m| m.logprobs = Some(3)).contains("begun with --logprobs 3, and this run has none"));
        assert!(message(|m| m.ordered = true).contains("begun with --ordered, and this run has none"));
        assert!(message(|m| m.model.digest = "x".into()).contains("the model nano (digest x)"));
        let plain = message(|m| drop(m.plain.insert("max-new-tokens".into(), json!(9))));
        assert!(plain.contains("--max-new-tokens 9, and this run has 8"), "{plain}");
        let plain = message(|m| drop(m.plain.insert("max-new-tokens".into(), Value::Null)));
        assert!(plain.contains("begun without --max-new-tokens, and this run has 8"), "{plain}");
        let stop = message(|m| drop(m.plain.insert("stop".into(), json!([]))));
        assert!(stop.contains("begun without --stop, and this run has [\"x\"]"), "{stop}");
        let flag = message(|m| drop(m.plain.insert("ignore-eos".into(), json!(true))));
        assert!(flag.contains("begun with --ignore-eos, and this run has none"), "{flag}");
    }

    #[test]
    fn another_input_is_refused() {
        let changes: [fn(&mut Manifest); 2] = [|m| m.input.digest = "x".into(), |m| m.input.bytes = 11];
        for change in changes {
            let mut other = manifest();
            other.input.line_sum = Some("01".into());
            change(&mut other);
            assert!(!manifest().has_input_of(&other));
            let message = manifest().refuse_input(&other, Path::new("out")).to_string();
            assert!(message.starts_with("out: begun with the input in.jsonl (2 lines, 1"), "{message}");
            assert!(message.ends_with("; run again with a new output file, or with in.jsonl as it was"), "{message}");
        }
    }

    #[test]
    fn an_input_with_the_same_lines_in_the_shard_is_taken() {
        let mut other = manifest();
        (other.input.digest, other.input.bytes) = ("x".into(), 11);
        assert!(manifest().has_input_of(&other));
        other.shard = "1/2".into();
        assert!(!manifest().has_input_of(&other));
        // Nothing is known of the lines.
        let (mut now, mut before) = (manifest(), manifest());
        (now.input.line_sum, before.input.line_sum, before.input.digest) = (None, None, "x".into());
        assert!(!now.has_input_of(&before));
    }

    #[test]
    fn a_manifest_of_an_older_version_is_read() {
        let mut older = serde_json::to_value(manifest()).unwrap();
        older.as_object_mut().unwrap().remove("ordered");
        older["input"].as_object_mut().unwrap().remove("line_sum");
        let older: Manifest = serde_json::from_value(older).unwrap();
        assert!(manifest().check_options(&older, Path::new("out")).is_ok() && manifest().has_input_of(&older));
    }
}
