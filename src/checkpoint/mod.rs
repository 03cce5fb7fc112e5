//! A Hugging Face checkpoint directory: config.json and safetensors over a memory map, checked, never copied.
//!
//! [`ModelSource`] finds the files (a directory, the local Hugging Face cache ([`hub`]), or the bundled nano).
//! [`Checkpoint`] parses config.json and the headers of the weight files and maps them: opening 32 GB of shards reads a
//! few pages of each. [`Tensor`]s are handles on the mapped bytes, in their stored dtype, unaligned; F64 alone is
//! narrowed to F32.
//!
//! Which form the tensors come in (safetensors, or memory) is a `TensorSource`'s affair.
//!
//! Everything here reads files that may be damaged or hostile: every length is checked against the file before it is
//! used, nothing large is allocated on a file's word, and [`CheckpointError`] says in one line what is wrong. This
//! room does not know what the network computes; which tensors it needs is told to it ([`Checkpoint::check`]).

mod bundled;
mod check;
mod config;
mod error;
mod generation_config;
pub mod hub;
mod in_memory;
mod index;
pub(crate) mod json;
mod loading;
mod mapping;
mod marks;
mod published;
pub(crate) mod read_ahead;
mod reading;
mod rename;
mod resolve;
mod safetensors;
mod sigbus;
mod source;
mod tensor;
mod tensor_source;

pub use config::{Config, Family};
pub use error::CheckpointError;
pub use generation_config::{GenerationConfig, SamplingSuggestions};
pub use hub::HubId;
pub use loading::{LockError, OpenOptions, WeightLoading};
pub use published::PUBLISHED;
pub use sigbus::name_files_on_sigbus;
pub use source::ModelSource;
pub use tensor::{Dtype, OpaqueTensor, Tensor};

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, OnceLock};

use index::ShardIndex;
use mapping::Mapping;
use rename::Renaming;
use safetensors::HeaderEntry;
use tensor::WideTensor;
use tensor_source::{TensorFile, TensorFiles, TensorSource};

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
///
/// Tensors have the names that Hugging Face's classes have for them, also where a training tool stored them under
/// others: a common prefix and wrappers' components are left out, a missing `model.` is put in.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    source: ModelSource,
    config: Config,
    generation_config: GenerationConfig,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Stored>,
    /// How the stored names became those of `tensors`.
    renaming: Renaming,
    /// Tensors of which two shards hold one, and the index names neither; and what the second shard is.
    contested: BTreeMap<String, String>,
    /// Tensors that the index expects in a shard that is not there.
    absent: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
enum Stored {
    Usable(Tensor),
    /// Boxed: rare, and large.
    Wide(Box<WideTensor>),
    Opaque(OpaqueTensor),
}

impl Stored {
    fn new(name: &str, entry: HeaderEntry, mapping: &Arc<Mapping>) -> Stored {
        let HeaderEntry { dtype, shape, range, .. } = entry;
        if let Some(dtype) = Dtype::from_name(&dtype) {
            return Stored::Usable(Tensor {
                name: name.into(),
                dtype,
                shape: shape.into(),
                range,
                mapping: mapping.clone(),
            });
        }
        let is_wide = dtype == "F64";
        let bytes = range.len() as u64;
        let (name, dtype, file) = (name.to_owned(), error::shown(&dtype), mapping.file().to_owned());
        let stored = OpaqueTensor { name, dtype, shape, bytes, file };
        match is_wide {
            true => Stored::Wide(Box::new(WideTensor {
                stored,
                range,
                mapping: mapping.clone(),
                narrowed: OnceLock::new(),
            })),
            false => Stored::Opaque(stored),
        }
    }

    fn file(&self) -> &str {
        match self {
            Stored::Usable(tensor) => tensor.file(),
            Stored::Wide(tensor) => &tensor.stored.file,
            Stored::Opaque(tensor) => &tensor.file,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Stored::Usable(tensor) => tensor.shape(),
            Stored::Wide(tensor) => &tensor.stored.shape,
            Stored::Opaque(tensor) => &tensor.shape,
        }
    }
}

impl Checkpoint {
    /// Opens the checkpoint at `source`: reads its JSON files, maps its weight files and checks their headers.
    ///
    /// Where both are there, `model.safetensors` is taken before the shards of `model.safetensors.index.json`, as
    /// transformers does. The index says which shards there are and, where two hold a tensor, which one counts; what it
    /// says about a tensor that nobody needs is not looked at.
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
    /// As for [`Checkpoint::open`]; weights that are to be read and do not fit the memory that this process can have.
    pub fn open_with(source: &ModelSource, options: OpenOptions<'_>) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::read(source, options)
    }

    /// The checkpoint that a source of tensors holds.
    fn read(source: &dyn TensorSource, options: OpenOptions<'_>) -> Result<Checkpoint, CheckpointError> {
        let mut checkpoint = Checkpoint {
            source: source.model().clone(),
            config: source.config()?,
            generation_config: source.generation_config()?,
            files: Vec::new(),
            tensors: BTreeMap::new(),
            renaming: Renaming::default(),
            contested: BTreeMap::new(),
            absent: BTreeMap::new(),
        };
        let TensorFiles { files, index, missing } = source.open(options)?;
        // Which of the others are needed, `check` knows.
        if let (true, Some(name)) = (files.is_empty(), missing.first()) {
            return Err(checkpoint.missing_shard(name));
        }
        checkpoint.enter(files, index.as_ref());
        if let Some(index) = index.filter(|_| !missing.is_empty()) {
            let absent =
                index.tensors().filter(|(_, shard)| missing.binary_search_by(|name| name.as_str().cmp(shard)).is_ok());
            checkpoint.absent =
                absent.map(|(tensor, shard)| (checkpoint.renaming.apply(tensor), shard.to_owned())).collect();
        }
        Ok(checkpoint)
    }

    /// Enters the tensors of all weight files by the names that are expected.
    fn enter(&mut self, files: Vec<TensorFile>, index: Option<&ShardIndex>) {
        let stored: Vec<&str> = files.iter().flat_map(|file| &file.entries).map(|entry| entry.name.as_str()).collect();
        self.renaming = Renaming::of(stored.iter().copied());
        let mut renamed = match self.renaming.is_identity() {
            true => None,
            false => Some(self.renaming.apply_all(&stored).into_iter()),
        };
        for TensorFile { name: file, mapping, entries } in files {
            for mut entry in entries {
                let stored_name = std::mem::take(&mut entry.name);
                let chosen = index.and_then(|index| index.shard(&stored_name));
                let name = renamed.as_mut().and_then(Iterator::next).unwrap_or_else(|| stored_name.clone());
                let stored = Stored::new(&name, entry, &mapping);
                match self.tensors.entry(name) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(stored);
                    }
                    // Files come sorted: the one before has another name.
                    Entry::Occupied(mut first) => match chosen {
                        Some(shard) if shard == file => {
                            first.insert(stored);
                        }
                        Some(shard) if self.source.describe(shard) == first.get().file() => {}
                        _ => {
                            self.contested.insert(first.key().clone(), mapping.file().to_owned());
                        }
                    },
                }
            }
            self.files.push(WeightFile { name: file, bytes: mapping.bytes().len() as u64 });
        }
    }

    /// Where the checkpoint comes from.
    pub fn source(&self) -> &ModelSource {
        &self.source
    }

    /// config.json.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// generation_config.json; all fields empty where the file is absent or malformed.
    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation_config
    }

    /// The weight files, sorted by name.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The tensors stored in a dtype that Rigel computes with, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values().filter_map(|stored| match stored {
            Stored::Usable(tensor) => Some(tensor),
            Stored::Wide(_) | Stored::Opaque(_) => None,
        })
    }

    /// The tensors of all other dtypes, sorted by name; those in F64 too, which are narrowed when they are used.
    pub fn opaque_tensors(&self) -> impl Iterator<Item = &OpaqueTensor> {
        self.tensors.values().filter_map(|stored| match stored {
            Stored::Usable(_) => None,
            Stored::Wide(tensor) => Some(&tensor.stored),
            Stored::Opaque(tensor) => Some(tensor),
        })
    }

    /// The tensor called `name`, where it is there in a dtype that Rigel computes with. One that is stored in F64 is
    /// read and narrowed to F32 the first time, in memory that lives as long as the checkpoint or the tensor; `None`
    /// where that memory cannot be had.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.tensors.get(name)? {
            Stored::Usable(tensor) => Some(tensor),
            Stored::Wide(tensor) => tensor.narrowed(),
            Stored::Opaque(_) => None,
        }
    }

    /// The dtype that [`Checkpoint::tensor`] has of `name`; nothing is read for it.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        match self.tensors.get(name)? {
            Stored::Usable(tensor) => Some(tensor.dtype()),
            Stored::Wide(_) => Some(Dtype::F32),
            Stored::Opaque(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
