//! [`TensorSource`]: a form that a model's weights come in, as named tensors and the configuration that belongs to
//! them. Nothing above `checkpoint` knows which form it was.

use std::sync::Arc;

use super::check;
use super::error::CheckpointError;
use super::index::ShardIndex;
use super::json::MAX_JSON_BYTES;
use super::loading::{Loader, OpenOptions};
use super::mapping::Mapping;
use super::safetensors::{self, HeaderEntry};
use super::{CONFIG, Config, GENERATION_CONFIG, GenerationConfig, INDEX, ModelSource, SINGLE};

/// Named tensors, and what belongs to them. Tokenizer and chat template are read from the [`ModelSource`].
pub(super) trait TensorSource {
    /// Where the model's files are, also for messages.
    fn model(&self) -> &ModelSource;

    /// The configuration of the network.
    fn config(&self) -> Result<Config, CheckpointError>;

    /// What the model suggests for sampling; empty fields where it suggests nothing.
    fn generation_config(&self) -> Result<GenerationConfig, CheckpointError>;

    /// Maps or reads what holds the tensors and parses the headers.
    fn open(&self, options: OpenOptions<'_>) -> Result<TensorFiles, CheckpointError>;
}

/// What holds a model's tensors.
#[derive(Default)]
pub(super) struct TensorFiles {
    /// Sorted by name.
    pub(super) files: Vec<TensorFile>,
    /// Which file holds which tensor, where something says so.
    pub(super) index: Option<ShardIndex>,
    /// Files that the index names and that are not there, sorted.
    pub(super) missing: Vec<String>,
}

/// A file of tensors: its header's entries and the bytes that they lie in.
pub(super) struct TensorFile {
    /// Its name in the model's directory.
    pub(super) name: String,
    pub(super) mapping: Arc<Mapping>,
    pub(super) entries: Vec<HeaderEntry>,
}

/// A Hugging Face directory: config.json, and safetensors in one file or in shards.
impl TensorSource for ModelSource {
    fn model(&self) -> &ModelSource {
        self
    }

    fn config(&self) -> Result<Config, CheckpointError> {
        if self.is_shape() {
            return Err(CheckpointError::NoWeights { model: self.to_string() });
        }
        Config::parse(&self.config_json()?, &self.describe(CONFIG))
    }

    fn generation_config(&self) -> Result<GenerationConfig, CheckpointError> {
        match self.read_up_to(GENERATION_CONFIG, MAX_JSON_BYTES) {
            Ok(None) => Ok(GenerationConfig::default()),
            Ok(Some(bytes)) => GenerationConfig::lenient(&bytes, &self.describe(GENERATION_CONFIG)),
            Err(fault) => GenerationConfig::unreadable(fault),
        }
    }

    fn open(&self, options: OpenOptions<'_>) -> Result<TensorFiles, CheckpointError> {
        let mut ignored = |_, _| {};
        let OpenOptions { weights, on_read } = options;
        let report = on_read.unwrap_or(&mut ignored);
        if self.has(SINGLE)? {
            let mut loader = Loader::new(weights, self, [SINGLE].into_iter(), report)?;
            let files = vec![TensorFile::open(self, SINGLE, &mut loader)?];
            return Ok(TensorFiles { files, ..TensorFiles::default() });
        }
        let Some(index) = self.read_up_to(INDEX, MAX_JSON_BYTES)? else { return Err(check::no_weights(self)) };
        let index = ShardIndex::parse(&index, &self.describe(INDEX))?;
        let mut loader = Loader::new(weights, self, index.shards().into_iter(), report)?;
        let (mut files, mut missing) = (Vec::new(), Vec::new());
        for name in index.shards() {
            match self.has(name)? {
                true => files.push(TensorFile::open(self, name, &mut loader)?),
                false => missing.push(name.to_owned()),
            }
        }
        Ok(TensorFiles { files, missing, index: Some(index) })
    }
}

impl TensorFile {
    /// Maps or reads the safetensors file `name` and parses its header.
    fn open(source: &ModelSource, name: &str, loader: &mut Loader<'_>) -> Result<TensorFile, CheckpointError> {
        let mapping = Arc::new(source.load(name, loader)?);
        let entries = safetensors::read_header(mapping.bytes(), mapping.file())?;
        Ok(TensorFile { name: name.to_owned(), mapping, entries })
    }
}
