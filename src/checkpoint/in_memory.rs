//! A checkpoint that lies in no file: its tensors are made in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use memmap2::MmapMut;

use super::error::shown;
use super::generation_config::GenerationConfig;
use super::mapping::Mapping;
use super::rename::Renaming;
use super::source::ModelSource;
use super::{Checkpoint, CheckpointError, Config, Dtype, ExpectedTensor, Stored, Tensor, WeightFile};

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
        let mapping = Arc::new(Mapping::of_memory(map, file.clone()));
        let mut stored = BTreeMap::new();
        for (tensor, range) in tensors.iter().zip(ranges) {
            let (name, shape) = (tensor.name.as_str().into(), tensor.shape.as_slice().into());
            let made = Tensor { name, dtype, shape, range, mapping: mapping.clone() };
            if stored.insert(tensor.name.clone(), Stored::Usable(made)).is_some() {
                return Err(CheckpointError::Tensor {
                    file,
                    tensor: shown(&tensor.name),
                    found: "two of this name".to_owned(),
                    expected: "one".to_owned(),
                    advice: "give each tensor a name of its own",
                });
            }
        }
        Ok(Checkpoint {
            source,
            config,
            generation_config: GenerationConfig::default(),
            files: vec![WeightFile { name: name.to_owned(), bytes: mapping.bytes().len() as u64 }],
            tensors: stored,
            renaming: Renaming::default(),
            contested: BTreeMap::new(),
            absent: BTreeMap::new(),
        })
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
