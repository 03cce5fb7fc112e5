//! A checkpoint that lies in no file: its tensors are made in memory.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use memmap2::MmapMut;

use super::error::shown;
use super::generation_config::GenerationConfig;
use super::loading::OpenOptions;
use super::mapping::Mapping;
use super::safetensors::HeaderEntry;
use super::source::ModelSource;
use super::tensor_source::{TensorFile, TensorFiles, TensorSource};
use super::{Checkpoint, CheckpointError, Config, Dtype, ExpectedTensor};

/// Tensors begin at multiples of this many bytes, a cache line.
const ALIGNMENT: usize = 64;

impl Checkpoint {
    /// A checkpoint of `tensors`, all of `dtype`, in memory. `fill` is called once for each, in their order, with room
    /// for its elements, all zeros: little-endian, row-major. `name` is what messages call it.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] where the system has no address space for it; two tensors of one name.
    pub fn in_memory(
        config: Config,
        name: &str,
        dtype: Dtype,
        tensors: &[ExpectedTensor],
        mut fill: impl FnMut(&ExpectedTensor, &mut [u8]),
    ) -> Result<Checkpoint, CheckpointError> {
        let source = ModelSource::in_memory(name);
        let file = source.to_string();
        let no_room = || {
            let source = std::io::ErrorKind::OutOfMemory.into();
            CheckpointError::Io { file: file.clone(), source }
        };
        let mut ranges = Vec::with_capacity(tensors.len());
        let mut end = 0usize;
        for tensor in tensors {
            let elements = tensor.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
            let bytes = elements.and_then(|elements| elements.checked_mul(dtype.size())).ok_or_else(no_room)?;
            let start = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(no_room)?;
            end = start.checked_add(bytes).ok_or_else(no_room)?;
            ranges.push(start..end);
        }
        // Memory is taken as it is written, in large pages where the system has them. A mapping is not empty.
        let mut map = MmapMut::map_anon(end.max(1)).map_err(|_| no_room())?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        for (tensor, range) in tensors.iter().zip(&ranges) {
            fill(tensor, &mut map[range.clone()]);
        }
        let map = map.make_read_only().map_err(|source| CheckpointError::Io { file: file.clone(), source })?;
        let mut names = HashSet::new();
        if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
            return Err(CheckpointError::Tensor {
                file,
                tensor: shown(&twice.name),
                found: "two of this name".to_owned(),
                expected: "one".to_owned(),
                advice: "give each tensor a name of its own",
            });
        }
        let entry = |(tensor, range): (&ExpectedTensor, Range<usize>)| HeaderEntry {
            name: tensor.name.clone(),
            dtype: dtype.to_string(),
            shape: tensor.shape.clone(),
            range,
        };
        let entries = tensors.iter().zip(ranges).map(entry).collect();
        let mapping = Arc::new(Mapping::of_memory(map, file));
        let made = InMemory { source, config, name: name.to_owned(), mapping, entries };
        Checkpoint::read(&made, OpenOptions::default())
    }
}

/// Tensors that were made in memory.
struct InMemory {
    source: ModelSource,
    config: Config,
    name: String,
    mapping: Arc<Mapping>,
    entries: Vec<HeaderEntry>,
}

impl TensorSource for InMemory {
    fn model(&self) -> &ModelSource {
        &self.source
    }

    fn config(&self) -> Result<Config, CheckpointError> {
        Ok(self.config.clone())
    }

    fn generation_config(&self) -> Result<GenerationConfig, CheckpointError> {
        Ok(GenerationConfig::default())
    }

    fn open(&self, _: OpenOptions<'_>) -> Result<TensorFiles, CheckpointError> {
        let (name, mapping, entries) = (self.name.clone(), self.mapping.clone(), self.entries.clone());
        Ok(TensorFiles { files: vec![TensorFile { name, mapping, entries }], ..TensorFiles::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::parse(br#"{"model_type":"starcoder2"}"#, "config.json").unwrap()
    }

    fn tensor(name: &str, shape: &[usize]) -> ExpectedTensor {
        ExpectedTensor { name: name.to_owned(), shape: shape.to_vec() }
    }

    #[test]
    fn tensors_hold_what_they_were_filled_with() {
        let tensors = [tensor("b", &[3, 5]), tensor("a", &[7]), tensor("empty", &[0, 4])];
        let fill = |tensor: &ExpectedTensor, bytes: &mut [u8]| bytes.fill(tensor.name.as_bytes()[0]);
        let checkpoint = Checkpoint::in_memory(config(), "a test", Dtype::Bf16, &tensors, fill).unwrap();
        assert_eq!(checkpoint.tensor("b").unwrap().bytes(), [b'b'; 30]);
        assert_eq!(checkpoint.tensor("a").unwrap().bytes(), [b'a'; 14]);
        assert_eq!(checkpoint.tensor("a").unwrap().bytes().as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(checkpoint.tensor("empty").unwrap().bytes(), b"");
        assert_eq!(checkpoint.check(&tensors).unwrap(), Vec::<String>::new());
        assert_eq!(checkpoint.source().to_string(), "a test");
        assert!(checkpoint.source().read("tokenizer.json").unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let made = |tensors: &[ExpectedTensor]| {
            Checkpoint::in_memory(config(), "a test", Dtype::F32, tensors, |_, _| {}).unwrap_err().to_string()
        };
        assert!(made(&[tensor("a", &[usize::MAX, 8])]).starts_with("a test cannot be read: "));
        assert_eq!(
            made(&[tensor("a", &[1]), tensor("a", &[2])]),
            "a test: tensor a: found two of this name, expected one; give each tensor a name of its own"
        );
    }
}
