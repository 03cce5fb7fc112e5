//! Checkpoints of random weights, written as Hugging Face writes them: to load from where no real one is at hand.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::shapes::Shapes;
use crate::backend::{LoadProgress, LoadStage};
use crate::checkpoint::{CheckpointError, Dtype, ExpectedTensor, ModelSource};
use crate::host::{Size, free_disk_bytes};
use crate::model::Uniform;

/// Bytes that one thread makes and writes at a time.
const PIECE_BYTES: usize = 4 << 20;
/// What tokenizers are made of, as far as a checkpoint has them.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// A checkpoint to be written: config.json, and weights in shards. Its values are those of
/// [`random_checkpoint`](crate::model::random_checkpoint).
#[derive(Debug, Clone)]
pub struct Synthetic<'a> {
    /// The network.
    pub shapes: &'a Shapes,
    /// Of every tensor.
    pub dtype: Dtype,
    /// Another seed, other weights.
    pub seed: u32,
    /// The most bytes of tensors in one file, but for a tensor that is larger by itself.
    pub shard_bytes: u64,
    /// Whose tokenizer it gets.
    pub tokenizer: Option<ModelSource>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of weights.
    pub bytes: u64,
    /// Weight files.
    pub shards: usize,
}

/// Why no checkpoint was written. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntheticError {
    /// The directory is there already.
    #[error("{path} exists; give a directory that does not, or remove it")]
    Exists {
        /// Its path.
        path: String,
    },
    /// The disk is too full.
    #[error(
        "{path}: {} are needed and {} are free on the disk; make room, or give another directory",
        Size(*.needed),
        Size(*.free)
    )]
    DiskFull {
        /// Where it was to be.
        path: String,
        /// What it takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// Its path.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] CheckpointError),
    /// Whoever was told of the progress wanted no more.
    #[error("stopped; nothing is left of it")]
    Stopped,
}

/// A tensor and where its bytes lie among those of its file's tensors.
type Placed = (ExpectedTensor, Range<u64>);

/// A weight file.
#[derive(Debug, Clone, PartialEq)]
struct Shard {
    name: String,
    /// Its length in bytes and the JSON that comes first, padded to 8 bytes.
    header: Vec<u8>,
    tensors: Vec<Placed>,
    /// Bytes of the tensors.
    bytes: u64,
}

/// What one thread writes at once: elements of one tensor.
struct Piece {
    shard: usize,
    /// Where in the file.
    offset: u64,
    uniform: Uniform,
    first: u32,
    bytes: usize,
}

impl Synthetic<'_> {
    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.shapes.spec.counts().parameters * self.dtype.size() as u64
    }

    /// Writes it to the directory `out`, which must not exist, by all threads: aside first, then renamed, so that it is
    /// there whole or not at all. `progress` is called after each piece, by the thread that wrote it.
    ///
    /// # Errors
    /// [`SyntheticError`].
    pub fn write(
        &self,
        out: &Path,
        progress: &(dyn Fn(LoadProgress) -> ControlFlow<()> + Sync),
    ) -> Result<Written, SyntheticError> {
        if out.exists() {
            return Err(SyntheticError::Exists { path: out.display().to_string() });
        }
        let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|source| wrong(parent, source))?;
        self.check_space(parent, out)?;
        let aside = Aside::new(out)?;
        let write = |name: &str, content: &[u8]| {
            let path = aside.path.join(name);
            fs::write(&path, content).map_err(|source| wrong(&path, source))
        };
        write("config.json", &self.config())?;
        if let Some(source) = &self.tokenizer {
            for name in TOKENIZER_FILES {
                if let Some(content) = source.read(name)? {
                    write(name, &content)?;
                }
            }
        }
        let shards = self.shards();
        if shards.len() > 1 {
            write("model.safetensors.index.json", &index(&shards))?;
        }
        for shard in &shards {
            let path = aside.path.join(&shard.name);
            let create = || -> io::Result<()> {
                let mut file = File::create(&path)?;
                file.write_all(&shard.header)?;
                file.set_len(shard.header.len() as u64 + shard.bytes)
            };
            create().map_err(|source| wrong(&path, source))?;
        }
        self.fill(&aside.path, &shards, progress)?;
        aside.rename(out)?;
        Ok(Written { bytes: shards.iter().map(|shard| shard.bytes).sum(), shards: shards.len() })
    }

    fn check_space(&self, parent: &Path, out: &Path) -> Result<(), SyntheticError> {
        let needed = self.bytes();
        match free_disk_bytes(parent) {
            Some(free) if free < needed => {
                Err(SyntheticError::DiskFull { path: out.display().to_string(), needed, free })
            }
            _ => Ok(()),
        }
    }

    /// The network's config.json, with the dtype that is written.
    fn config(&self) -> Vec<u8> {
        // It was parsed as an object before.
        let mut config: Map<String, Value> = serde_json::from_str(&self.shapes.json).unwrap_or_default();
        let dtype = match self.dtype {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        };
        config.remove("dtype");
        config.insert("torch_dtype".to_owned(), dtype.into());
        format!("{:#}\n", Value::Object(config)).into_bytes()
    }

    /// The tensors in their order, a new file where the next does not fit.
    fn shards(&self) -> Vec<Shard> {
        let mut groups: Vec<(Vec<Placed>, u64)> = Vec::new();
        for tensor in self.shapes.spec.tensors() {
            let bytes = (tensor.shape.iter().product::<usize>() * self.dtype.size()) as u64;
            if groups.last().is_none_or(|(tensors, end)| !tensors.is_empty() && end + bytes > self.shard_bytes) {
                groups.push((Vec::new(), 0));
            }
            if let Some((tensors, end)) = groups.last_mut() {
                tensors.push((tensor, *end..*end + bytes));
                *end += bytes;
            }
        }
        let count = groups.len();
        let shard = |(number, (tensors, bytes)): (usize, (Vec<Placed>, u64))| {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            Shard { name, header: header(&tensors, self.dtype), tensors, bytes }
        };
        groups.into_iter().enumerate().map(shard).collect()
    }

    fn pieces(&self, shards: &[Shard]) -> Vec<Piece> {
        let size = self.dtype.size();
        let of_tensor = |shard: usize, tensor: &ExpectedTensor, range: &Range<u64>| {
            let uniform = Uniform::of_tensor(self.seed, &tensor.name);
            let start = shards[shard].header.len() as u64 + range.start;
            let bytes = (range.end - range.start) as usize;
            let piece = move |at: usize| Piece {
                shard,
                offset: start + at as u64,
                uniform,
                // Indices of 2^32 and more come round to the beginning.
                first: (at / size) as u32,
                bytes: PIECE_BYTES.min(bytes - at),
            };
            (0..bytes).step_by(PIECE_BYTES).map(piece)
        };
        let of_shard = |(number, shard): (usize, &Shard)| {
            shard.tensors.iter().flat_map(|(tensor, range)| of_tensor(number, tensor, range)).collect::<Vec<_>>()
        };
        shards.iter().enumerate().flat_map(of_shard).collect()
    }

    /// Makes and writes all elements.
    fn fill(
        &self,
        directory: &Path,
        shards: &[Shard],
        progress: &(dyn Fn(LoadProgress) -> ControlFlow<()> + Sync),
    ) -> Result<(), SyntheticError> {
        let (begin, done, total_bytes) = (Instant::now(), AtomicU64::new(0), self.bytes());
        self.pieces(shards).par_iter().try_for_each_init(Vec::new, |buffer: &mut Vec<u8>, piece| {
            buffer.resize(piece.bytes, 0);
            piece.uniform.write(self.dtype, piece.first, buffer);
            let path = directory.join(&shards[piece.shard].name);
            let write = || -> io::Result<()> {
                // A file of its own for each piece, since all write at once and each at its own place.
                let mut file = OpenOptions::new().write(true).open(&path)?;
                file.seek(SeekFrom::Start(piece.offset))?;
                file.write_all(buffer)
            };
            write().map_err(|source| wrong(&path, source))?;
            let done_bytes = done.fetch_add(piece.bytes as u64, Ordering::Relaxed) + piece.bytes as u64;
            match progress(LoadProgress { stage: LoadStage::Write, done_bytes, total_bytes, elapsed: begin.elapsed() })
            {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(SyntheticError::Stopped),
            }
        })
    }
}

fn wrong(path: &Path, source: io::Error) -> SyntheticError {
    SyntheticError::Write { path: path.display().to_string(), source }
}

/// A safetensors header: 8 bytes of length, then JSON.
fn header(tensors: &[Placed], dtype: Dtype) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for (tensor, range) in tensors {
        let entry = json!({
            "dtype": dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [range.start, range.end],
        });
        entries.insert(tensor.name.clone(), entry);
    }
    let mut json = Value::Object(entries).to_string();
    json.push_str(&" ".repeat(json.len().next_multiple_of(8) - json.len()));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

/// model.safetensors.index.json
fn index(shards: &[Shard]) -> Vec<u8> {
    let names = |shard: &Shard| {
        let file = shard.name.clone();
        shard.tensors.iter().map(move |(tensor, _)| (tensor.name.clone(), file.clone())).collect::<Vec<_>>()
    };
    let map: BTreeMap<String, String> = shards.iter().flat_map(names).collect();
    let total: u64 = shards.iter().map(|shard| shard.bytes).sum();
    format!("{:#}\n", json!({"metadata": {"total_size": total}, "weight_map": map})).into_bytes()
}

/// A directory beside the one that is wanted, removed unless it is renamed to it.
struct Aside {
    path: PathBuf,
    keep: bool,
}

impl Aside {
    fn new(out: &Path) -> Result<Aside, SyntheticError> {
        let mut path = out.as_os_str().to_owned();
        path.push(".unfinished");
        let path = PathBuf::from(path);
        // What a run left that was killed.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(&path, error)),
            _ => {}
        }
        fs::create_dir(&path).map_err(|source| wrong(&path, source))?;
        Ok(Aside { path, keep: false })
    }

    fn rename(mut self, out: &Path) -> Result<(), SyntheticError> {
        fs::rename(&self.path, out).map_err(|source| wrong(out, source))?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.keep {
            // Nobody to tell: the failure that led here is what is reported.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::model::random_checkpoint;

    /// Matrices of more than a piece, and of odd sizes.
    fn shapes() -> Shapes {
        let json = r#"{"model_type":"starcoder2","vocab_size":5003,"hidden_size":511,"intermediate_size":77,
            "num_hidden_layers":2,"num_attention_heads":3,"num_key_value_heads":1,"head_dim":6,"dtype":"float32",
            "tie_word_embeddings":false}"#;
        Shapes::parse("odd", json.as_bytes(), "odd.json").unwrap()
    }

    fn synthetic(shapes: &Shapes, dtype: Dtype, shard_bytes: u64) -> Synthetic<'_> {
        Synthetic { shapes, dtype, seed: 11, shard_bytes, tokenizer: None }
    }

    fn go_on(_: LoadProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_opens_as_the_checkpoint_in_memory() {
        let root = tempfile::tempdir().unwrap();
        let shapes = shapes();
        // All in one; the embedding of 5.1 MB with what fits behind it, the rest of the layers, the head of 5.1 MB;
        // each tensor by itself: 16 a layer, two of the last norm, embedding and head.
        for (dtype, shard_bytes, shards) in
            [(Dtype::Bf16, u64::MAX, 1), (Dtype::F16, 5_200_000, 3), (Dtype::F32, 1, 36)]
        {
            let out = root.path().join(format!("deep/{dtype}"));
            let written = synthetic(&shapes, dtype, shard_bytes).write(&out, &go_on).unwrap();
            assert_eq!(written.shards, shards, "{dtype}");
            assert_eq!(written.bytes, shapes.spec.counts().parameters * dtype.size() as u64);
            let checkpoint = Checkpoint::open(&ModelSource::directory(&out).unwrap()).unwrap();
            assert_eq!(checkpoint.files().len(), shards);
            assert_eq!(checkpoint.check(&shapes.spec.tensors()).unwrap(), Vec::<String>::new());
            let expected = random_checkpoint(shapes.config.clone(), dtype, 11).unwrap();
            for tensor in expected.tensors() {
                let found = checkpoint.tensor(tensor.name()).unwrap();
                assert_eq!((found.dtype(), found.shape()), (dtype, tensor.shape()));
                assert!(found.bytes() == tensor.bytes(), "{dtype} {}", tensor.name());
            }
            let dtype_of_config = checkpoint.config().dtype.clone().unwrap();
            assert!(dtype_of_config.starts_with(if dtype == Dtype::Bf16 { "bfloat" } else { "float" }));
            assert!(checkpoint.config().dtype.as_deref() != Some("float32") || dtype == Dtype::F32);
            // Data begins at 8 bytes.
            let bytes = fs::read(out.join(&checkpoint.files()[0].name)).unwrap();
            assert!(u64::from_le_bytes(bytes[..8].try_into().unwrap()).is_multiple_of(8));
        }
        assert_eq!(names(&root.path().join("deep")), ["BF16", "F16", "F32"], "nothing is left aside");
    }

    #[test]
    fn a_shard_is_as_large_as_asked_for_or_one_tensor() {
        let shapes = shapes();
        let shards = synthetic(&shapes, Dtype::Bf16, 300_000).shards();
        assert!(shards.iter().all(|shard| shard.bytes <= 300_000 || shard.tensors.len() == 1));
        let all: Vec<_> = shards.iter().flat_map(|shard| &shard.tensors).map(|(tensor, _)| tensor.clone()).collect();
        assert_eq!(all, shapes.spec.tensors());
        assert_eq!(shards[0].name, format!("model-00001-of-{:05}.safetensors", shards.len()));
    }

    #[cfg(feature = "nano")]
    #[test]
    fn stopped_halfway_nothing_is_left_and_what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let shapes = shapes();
        let out = root.path().join("model");
        let seen = AtomicU64::new(0);
        let halfway = |progress: LoadProgress| {
            assert!(root.path().join("model.unfinished").is_dir() && !out.exists());
            seen.fetch_max(progress.done_bytes, Ordering::Relaxed);
            if progress.done_bytes * 2 > progress.total_bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let error = synthetic(&shapes, Dtype::Bf16, 1 << 20).write(&out, &halfway).unwrap_err();
        assert!(matches!(error, SyntheticError::Stopped) && seen.into_inner() > 0);
        assert_eq!(names(root.path()), Vec::<String>::new());

        // What a killed run left is no obstacle; what somebody has there is.
        fs::create_dir(root.path().join("model.unfinished")).unwrap();
        fs::write(root.path().join("model.unfinished/model.safetensors"), "half").unwrap();
        let tokenizer = Some(ModelSource::nano());
        Synthetic { tokenizer, ..synthetic(&shapes, Dtype::Bf16, u64::MAX) }.write(&out, &go_on).unwrap();
        assert_eq!(names(root.path()), ["model"]);
        assert!(names(&out).contains(&"tokenizer.json".to_owned()));
        let error = synthetic(&shapes, Dtype::Bf16, 1 << 20).write(&out, &go_on).unwrap_err().to_string();
        assert!(error.ends_with("model exists; give a directory that does not, or remove it"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn a_full_disk_is_said_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let json = r#"{"model_type":"starcoder2","num_hidden_layers":1000,"intermediate_size":200000000}"#;
        let shapes = Shapes::parse("huge", json.as_bytes(), "huge.json").unwrap();
        let error = synthetic(&shapes, Dtype::F32, u64::MAX).write(&root.path().join("huge"), &go_on).unwrap_err();
        assert!(matches!(error, SyntheticError::DiskFull { needed, free, .. } if needed > free), "{error}");
        assert_eq!(names(root.path()), Vec::<String>::new());
    }
}
