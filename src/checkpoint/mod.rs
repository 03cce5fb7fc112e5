//! A Hugging Face checkpoint directory: config.json and safetensors over a memory map, checked, never copied.
//!
//! [`ModelSource`] finds the files (a directory, the local Hugging Face cache, or the bundled nano). [`Checkpoint`]
//! parses config.json and the headers of the weight files and maps them: opening 32 GB of shards reads a few pages of
//! each. [`Tensor`]s are handles on the mapped bytes, in their stored dtype, unaligned.
//!
//! Everything here reads files that may be damaged or hostile: every length is checked against the file before it is
//! used, nothing large is allocated on a file's word, and [`CheckpointError`] says in one line what is wrong. This
//! room does not know what the network computes; which tensors it needs is told to it ([`Checkpoint::check`]).

mod bundled;
mod config;
mod error;
mod generation_config;
mod hub;
mod in_memory;
mod index;
pub(crate) mod json;
mod mapping;
mod reading;
mod safetensors;
mod sigbus;
mod source;
mod tensor;

pub use config::{Config, Family};
pub use error::CheckpointError;
pub use generation_config::GenerationConfig;
pub use loading::{LockError, OpenOptions, WeightLoading};
pub use sigbus::name_files_on_sigbus;
pub use source::ModelSource;
pub use tensor::{Dtype, OpaqueTensor, Tensor};

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use error::{shown, shown_shape};
use index::ShardIndex;
use json::MAX_JSON_BYTES;
use loading::Loader;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A weight file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WeightFile {
    /// Its name in the checkpoint's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// A tensor that a network needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// The checkpoint's name for it.
    pub name: String,
    /// Lengths of the dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// An open checkpoint: configuration parsed, weight files mapped, their headers checked. No weight was read.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    source: ModelSource,
    config: Config,
    generation_config: GenerationConfig,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug, Clone)]
enum Stored {
    Usable(Tensor),
    Opaque(OpaqueTensor),
}

impl Stored {
    fn file(&self) -> &str {
        match self {
            Stored::Usable(tensor) => tensor.file(),
            Stored::Opaque(tensor) => &tensor.file,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Stored::Usable(tensor) => tensor.shape(),
            Stored::Opaque(tensor) => &tensor.shape,
        }
    }
}

impl Checkpoint {
    /// Opens the checkpoint at `source`: reads its JSON files, maps its weight files and checks their headers.
    ///
    /// Where both are there, `model.safetensors` is taken before the shards of `model.safetensors.index.json`, as
    /// transformers does.
    ///
    /// # Errors
    /// A missing or broken file; see [`CheckpointError`]. Whether the tensors are those that the network needs is
    /// [`Checkpoint::check`]'s question.
    pub fn open(source: &ModelSource) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open_with(source, OpenOptions::default())
    }

    /// The same with options, such as weights that are read and not mapped.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; weights that are to be read and do not fit the memory that this process can have.
    pub fn open_with(source: &ModelSource, options: OpenOptions<'_>) -> Result<Checkpoint, CheckpointError> {
        let mut ignored = |_, _| {};
        let OpenOptions { weights, on_read } = options;
        let report = on_read.unwrap_or(&mut ignored);
        let Some(config) = source.read_up_to(CONFIG, MAX_JSON_BYTES)? else {
            let file = source.describe(CONFIG);
            return Err(CheckpointError::MissingFile { file, advice: source.how_to_get(CONFIG) });
        };
        let config = Config::parse(&config, &source.describe(CONFIG))?;
        let generation_config = match source.read_up_to(GENERATION_CONFIG, MAX_JSON_BYTES)? {
            Some(bytes) => GenerationConfig::parse(&bytes, &source.describe(GENERATION_CONFIG))?,
            None => GenerationConfig::default(),
        };
        let mut checkpoint = Checkpoint {
            source: source.clone(),
            config,
            generation_config,
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        if source.has(SINGLE)? {
            checkpoint.add_file(SINGLE, &mut Loader::new(weights, source, [SINGLE].into_iter(), report)?)?;
        } else if let Some(index) = source.read_up_to(INDEX, MAX_JSON_BYTES)? {
            let index = ShardIndex::parse(&index, &source.describe(INDEX))?;
            checkpoint.add_shards(&index, &mut Loader::new(weights, source, index.shards().into_iter(), report)?)?;
        } else {
            return Err(no_weights(source));
        }
        Ok(checkpoint)
    }

    /// Maps or reads one weight file and enters its tensors.
    fn add_file(&mut self, name: &str, loader: &mut Loader<'_>) -> Result<(), CheckpointError> {
        let mapping = Arc::new(self.source.load(name, loader)?);
        for entry in safetensors::read_header(mapping.bytes(), mapping.file())? {
            let vacant = match self.tensors.entry(entry.name) {
                Entry::Vacant(vacant) => vacant,
                Entry::Occupied(first) => {
                    return Err(CheckpointError::Tensor {
                        file: mapping.file().to_owned(),
                        tensor: shown(first.key()),
                        found: format!("a second one, after that in {}", first.get().file()),
                        expected: "each tensor in one shard".to_owned(),
                        advice: "the shards do not belong together: download them again",
                    });
                }
            };
            let stored = match Dtype::from_name(&entry.dtype) {
                Some(dtype) => Stored::Usable(Tensor {
                    name: vacant.key().as_str().into(),
                    dtype,
                    shape: entry.shape.into(),
                    range: entry.range,
                    mapping: mapping.clone(),
                }),
                None => Stored::Opaque(OpaqueTensor {
                    name: vacant.key().clone(),
                    dtype: shown(&entry.dtype),
                    shape: entry.shape,
                    bytes: entry.range.len() as u64,
                    file: mapping.file().to_owned(),
                }),
            };
            vacant.insert(stored);
        }
        self.files.push(WeightFile { name: name.to_owned(), bytes: mapping.bytes().len() as u64 });
        Ok(())
    }

    fn add_shards(&mut self, index: &ShardIndex, loader: &mut Loader<'_>) -> Result<(), CheckpointError> {
        for shard in index.shards() {
            self.add_file(shard, loader)?;
        }
        for (tensor, shard) in index.tensors() {
            let file = self.source.describe(shard);
            let found = match self.tensors.get(tensor) {
                Some(stored) if stored.file() == file => continue,
                Some(stored) => format!("it in {}", stored.file()),
                None => "no such tensor".to_owned(),
            };
            return Err(CheckpointError::Tensor {
                file,
                tensor: shown(tensor),
                found,
                expected: format!("it here, as {INDEX} says"),
                advice: "the shards do not belong together: download them again",
            });
        }
        Ok(())
    }

    /// Where the checkpoint comes from.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// config.json.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// generation_config.json; all fields empty where the file is absent.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// The weight files, sorted by name.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The tensors of a dtype that Rigel computes with, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values().filter_map(|stored| match stored {
            Stored::Usable(tensor) => Some(tensor),
            Stored::Opaque(_) => None,
        })
    }

    /// The tensors of all other dtypes, sorted by name.
    pub fn opaque_tensors(&self) -> impl Iterator<Item = &OpaqueTensor> {
        self.tensors.values().filter_map(|stored| match stored {
            Stored::Usable(_) => None,
            Stored::Opaque(tensor) => Some(tensor),
        })
    }

    /// The tensor called `name`, where it is there in a dtype that Rigel computes with.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.tensors.get(name) {
            Some(Stored::Usable(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// Checks that every expected tensor is there, with its shape and in a supported dtype. Returns the names of the
    /// tensors that nobody expects, sorted: worth a warning, no error (a tied checkpoint may carry `lm_head.weight`).
    ///
    /// # Errors
    /// The first expected tensor that is missing, misshaped, or of another dtype.
    pub fn check(&self, expected: &[ExpectedTensor]) -> Result<Vec<String>, CheckpointError> {
        for expected in expected {
            self.check_one(expected)?;
        }
        let mut names: Vec<&str> = expected.iter().map(|expected| expected.name.as_str()).collect();
        names.sort_unstable();
        let unexpected = self.tensors.keys().filter(|name| names.binary_search(&name.as_str()).is_err());
        Ok(unexpected.cloned().collect())
    }

    fn check_one(&self, expected: &ExpectedTensor) -> Result<(), CheckpointError> {
        let stored = self.tensors.get(&expected.name);
        let (found, advice) = match stored {
            None => ("no such tensor".to_owned(), "check that config.json and the weights belong together"),
            Some(stored) if stored.shape() != expected.shape => (
                format!("shape {}", shown_shape(stored.shape())),
                "check that config.json and the weights belong together",
            ),
            Some(Stored::Opaque(tensor)) => {
                (format!("dtype {}", tensor.dtype), "use the checkpoint that this one was quantised or converted from")
            }
            Some(Stored::Usable(_)) => return Ok(()),
        };
        Err(CheckpointError::Tensor {
            file: stored.map_or_else(|| self.source.to_string(), |stored| stored.file().to_owned()),
            tensor: expected.name.clone(),
            found,
            expected: format!("shape {} in F32, F16 or BF16", shown_shape(&expected.shape)),
            advice,
        })
    }
}

/// What to do about a checkpoint that has neither `model.safetensors` nor its index.
fn no_weights(source: &ModelSource) -> CheckpointError {
    let names = source.file_names();
    let with = |extension: &str| names.iter().find(|name| name.ends_with(extension));
    let advice = if let Some(shard) = with(".safetensors") {
        format!("{} is there, but not {INDEX}, which says what it holds: {}", shown(shard), source.how_to_get(INDEX))
    } else if let Some(bin) = names.iter().find(|name| name.starts_with("pytorch_model") && name.ends_with(".bin")) {
        // One process, all shards into one file; `clone` parts tensors that share memory, which safetensors refuses.
        format!(
            "only PyTorch weights are there ({}); convert them with: python3 -c 'import sys,glob,torch,\
             safetensors.torch as s; d=sys.argv[1]; w={{}}; [w.update(torch.load(f,map_location=\"cpu\",\
             weights_only=True)) for f in sorted(glob.glob(d+\"/pytorch_model*.bin\"))]; \
             s.save_file({{k:t.clone().contiguous() for k,t in w.items()}},d+\"/{SINGLE}\",{{\"format\":\"pt\"}})' '{}'",
            shown(bin),
            source.describe("").trim_end_matches(std::path::MAIN_SEPARATOR),
        )
    } else if let Some(gguf) = with(".gguf") {
        format!("GGUF files ({}) are not supported; use the model's safetensors", shown(gguf))
    } else {
        source.how_to_get(SINGLE)
    };
    CheckpointError::MissingFile { file: source.describe(SINGLE), advice }
}

#[cfg(test)]
mod tests;
