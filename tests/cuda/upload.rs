//! Weights on their way to the device: every element of the arena held against the checkpoint by a slow loop of its
//! own, whatever the dtypes, the shards, the pieces and the threads; and what stops an upload.

use crate::common;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::{Bench, Half};
use half::{bf16, f16};
use rigel::backend::cuda::layout::Layout;
use rigel::backend::cuda::upload::{Ring, Write, fill};
use rigel::backend::cuda::{CudaError, Device, LinearWeights, RopeTable, Slice, UploadError, Weights};
use rigel::backend::{BackendError, LoadProgress};
use rigel::checkpoint::{Checkpoint, CheckpointError, Config, Dtype, ModelSource};
use rigel::model::{ModelSpec, Network, random_checkpoint};
use rigel_interpreter::{DeviceProfile, Interpreter};

/// Pieces of every alignment against rows and tensors: one, a few, very many; more and fewer threads than those.
const RINGS: [Ring; 3] = [
    Ring { buffer_bytes: 1, readers: 3 },
    Ring { buffer_bytes: 10_000, readers: 2 },
    Ring { buffer_bytes: 8 << 20, readers: 8 },
];

fn goldens() -> PathBuf {
    common::root().join("tests/goldens")
}

/// Every checkpoint of `tests/goldens`.
fn all_goldens() -> Vec<String> {
    let entries = fs::read_dir(goldens()).unwrap().map(|entry| entry.unwrap());
    let directories = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<String> = directories.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 12, "{names:?}");
    names
}

/// The elements of a tensor, one at a time.
fn elements(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = checkpoint.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    let word = |bytes: &[u8]| u16::from_le_bytes(bytes.try_into().unwrap());
    match tensor.dtype() {
        Dtype::F32 => tensor.bytes().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect(),
        Dtype::F16 => tensor.bytes().chunks(2).map(|bytes| f16::from_bits(word(bytes)).to_f32()).collect(),
        Dtype::Bf16 => tensor.bytes().chunks(2).map(|bytes| bf16::from_bits(word(bytes)).to_f32()).collect(),
    }
}

/// The nearest `T`, by the half crate's conversion of one value.
fn rounded<T: Half>(value: f32) -> T {
    match T::DTYPE {
        Dtype::F16 => bytemuck::cast(f16::from_f32(value)),
        _ => bytemuck::cast(bf16::from_f32(value)),
    }
}

fn multiple_of_8(n: usize) -> usize {
    n.div_ceil(8) * 8
}

/// What a matrix on the device should hold: zeros, and what was put into it.
struct Expected<T> {
    columns: usize,
    elements: Vec<T>,
}

impl<T: Half> Expected<T> {
    fn zeros(rows: usize, columns: usize) -> Expected<T> {
        let columns = multiple_of_8(columns);
        Expected { columns, elements: vec![T::from_f64(0.0); multiple_of_8(rows) * columns] }
    }

    fn put(&mut self, row: usize, values: &[f32]) {
        for (column, value) in values.iter().enumerate() {
            self.elements[row * self.columns + column] = rounded(*value);
        }
    }

    fn matrix(values: &[f32], rows: usize, columns: usize) -> Expected<T> {
        assert_eq!(values.len(), rows * columns);
        let mut expected = Expected::zeros(rows, columns);
        for row in 0..rows {
            expected.put(row, &values[row * columns..][..columns]);
        }
        expected
    }

    fn vector(values: &[f32]) -> Expected<T> {
        let mut elements = vec![T::from_f64(0.0); multiple_of_8(values.len())];
        for (element, value) in elements.iter_mut().zip(values) {
            *element = rounded(*value);
        }
        Expected { columns: elements.len(), elements }
    }

    /// `columns` elements a row: those of all q heads, all k heads, all v heads. Row p of the first half of a q or k
    /// head goes to row 2p, row p of the second half to 2p + 1.
    fn qkv(spec: &ModelSpec, [q, k, v]: [Vec<f32>; 3], columns: usize) -> Expected<T> {
        let (d, half) = (spec.head_dim, spec.head_dim / 2);
        let mut expected = Expected::zeros((spec.heads + 2 * spec.kv_heads) * d, columns);
        for (first_head, heads, values) in [(0, spec.heads, &q), (spec.heads, spec.kv_heads, &k)] {
            assert_eq!(values.len(), heads * d * columns);
            for head in 0..heads {
                for p in 0..half {
                    let row = |row: usize| &values[(head * d + row) * columns..][..columns];
                    expected.put((first_head + head) * d + 2 * p, row(p));
                    expected.put((first_head + head) * d + 2 * p + 1, row(p + half));
                }
            }
        }
        assert_eq!(v.len(), spec.kv_heads * d * columns);
        for row in 0..spec.kv_heads * d {
            expected.put((spec.heads + spec.kv_heads) * d + row, &v[row * columns..][..columns]);
        }
        expected
    }
}

/// Compares the weights on the device with the checkpoint's, bit for bit.
fn check<T: Half>(bench: &Bench, weights: &Weights<T>, checkpoint: &Checkpoint, spec: &ModelSpec) {
    let get = |name: &str| elements(checkpoint, name);
    let network = Network::of(spec);
    let same = |slice: Slice<'_, T>, expected: &Expected<T>, what: &str| {
        let found = bench.download(slice);
        let bits = |elements: &[T]| bytemuck::cast_slice::<T, u16>(elements).to_vec();
        assert!(bits(&found) == bits(&expected.elements), "{what}");
        assert!(slice.alignment() == 256, "{what}");
    };
    let vector = |slice: Slice<'_, T>, name: &str| same(slice, &Expected::vector(&get(name)), name);
    let linear = |found: LinearWeights<'_, T>, name: &str, rows: usize, columns: usize| {
        let weight = format!("{name}.weight");
        let expected = Expected::matrix(&get(&weight), rows, columns);
        assert_eq!((found.rows, found.columns), (multiple_of_8(rows), expected.columns));
        same(found.weight.bytes.cast().unwrap(), &expected, &weight);
        assert_eq!(found.bias.is_some(), network.bias && name.starts_with("model.layers."), "{name}");
        if let Some(bias) = found.bias {
            vector(bias, &format!("{name}.bias"));
        }
    };
    let (vocab, hidden, inner) = (spec.vocab_size, spec.hidden_size, spec.intermediate_size());
    let embedding = Expected::matrix(&get("model.embed_tokens.weight"), vocab, hidden);
    same(weights.embedding(), &embedding, "embedding");
    assert_eq!(weights.layers().len(), spec.layers.len());
    for (index, layer) in weights.layers().enumerate() {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        vector(layer.attention_norm.weight, &name("input_layernorm.weight"));
        vector(layer.attention_norm.bias.unwrap(), &name("input_layernorm.bias"));
        let three = |what: &str| ["q", "k", "v"].map(|x| get(&name(&format!("self_attn.{x}_proj.{what}"))));
        same(layer.qkv.weight.bytes.cast().unwrap(), &Expected::qkv(spec, three("weight"), hidden), "qkv weight");
        assert_eq!(layer.qkv.rows, (spec.heads + 2 * spec.kv_heads) * spec.head_dim);
        assert_eq!(layer.qkv.bias.is_some(), network.bias);
        if let Some(bias) = layer.qkv.bias {
            let column = Expected::<T>::qkv(spec, three("bias"), 1);
            let elements = column.elements.chunks(column.columns).map(|row| row[0]).collect();
            same(bias, &Expected { columns: 1, elements }, "qkv bias");
        }
        linear(layer.o_proj, &name("self_attn.o_proj"), hidden, spec.heads * spec.head_dim);
        vector(layer.mlp_norm.weight, &name("post_attention_layernorm.weight"));
        vector(layer.mlp_norm.bias.unwrap(), &name("post_attention_layernorm.bias"));
        linear(layer.mlp[0], &name("mlp.c_fc"), inner, hidden);
        linear(layer.mlp[1], &name("mlp.c_proj"), hidden, inner);
    }
    vector(weights.final_norm().weight, "model.norm.weight");
    vector(weights.final_norm().bias.unwrap(), "model.norm.bias");
    if spec.tied_head() {
        same(weights.head().weight.bytes.cast().unwrap(), &embedding, "tied head");
        assert_eq!(weights.layout().head, weights.layout().embedding);
    } else {
        linear(weights.head(), "lm_head", vocab, hidden);
    }
    // What is in no slice is zero as well: then there are as many other elements in all as in the slices.
    let arena = bench.download(weights.arena().cast::<T>().unwrap());
    assert_eq!((size_of::<T>() * arena.len()) as u64, weights.layout().bytes());
    let tensors = spec.tensors();
    let nonzero = |value: &f32| rounded::<T>(*value).f64() != 0.0;
    let expected: usize = tensors.iter().map(|t| get(&t.name).iter().filter(|v| nonzero(v)).count()).sum();
    assert_eq!(arena.iter().filter(|value| value.f64() != 0.0).count(), expected);
}

fn load<T: Half>(
    bench: &Bench,
    ring: Ring,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
) -> Result<Weights<T>, UploadError> {
    Weights::load_through(ring, &bench.stream, checkpoint, spec, &mut |_| {})
}

device_test! {
    fn every_element_is_the_checkpoint_s_in_its_place() {
        common::on_every_schedule(|bench| {
            for (index, name) in all_goldens().iter().enumerate() {
                let (checkpoint, spec) = common::golden(name);
                // All rings and all checkpoints in each dtype; the combinations in turns.
                let ring = |turn: usize| RINGS[(index + turn) % RINGS.len()];
                check(bench, &load::<bf16>(bench, ring(0), &checkpoint, &spec).unwrap(), &checkpoint, &spec);
                check(bench, &load::<f16>(bench, ring(1), &checkpoint, &spec).unwrap(), &checkpoint, &spec);
            }
        });
    }
}

device_test! {
    fn pieces_and_threads_make_no_difference() {
        common::on_every_schedule(|bench| {
            let (checkpoint, spec) = common::golden("nobias-theta");
            let arena = |ring| {
                let weights = load::<bf16>(bench, ring, &checkpoint, &spec).unwrap();
                bench.download(weights.arena().cast::<bf16>().unwrap())
            };
            let expected = arena(Ring::default());
            for buffer_bytes in [0, 256, 300, 4096, 4097, 1 << 17, usize::MAX / 2] {
                for readers in [0, 1, 2, 7] {
                    assert!(arena(Ring { buffer_bytes, readers }) == expected, "{buffer_bytes} {readers}");
                }
            }
        });
    }
}

device_test! {
    fn a_model_that_is_part_of_the_program_is_uploaded_like_any_other() {
        common::on_every_schedule(|bench| {
            let checkpoint = Checkpoint::open(&ModelSource::nano()).unwrap();
            let spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
            let weights = Weights::<bf16>::load(&bench.stream, &checkpoint, &spec, &mut |_| {}).unwrap();
            check(bench, &weights, &checkpoint, &spec);
        });
    }
}

device_test! {
    fn as_many_bytes_are_allocated_as_the_layout_says() {
        if common::skipped_on_a_gpu("as_many_bytes_are_allocated_as_the_layout_says", "a device of any memory size") {
            return;
        }
        let interpreter = Interpreter::load();
        for name in all_goldens() {
            let (checkpoint, spec) = common::golden(&name);
            let bytes = Layout::new(&spec, Dtype::Bf16).bytes();
            // A device with exactly that many bytes has room for them, one with a byte less has not.
            for (memory, fits) in [(bytes, true), (bytes - 1, false)] {
                interpreter.set_device(DeviceProfile::Memory { bytes: memory });
                let device = Device::open(0).unwrap();
                let stream = device.stream().unwrap();
                let loaded = Weights::<bf16>::load(&stream, &checkpoint, &spec, &mut |_| {});
                assert_eq!(loaded.is_ok(), fits, "{name}: {memory} bytes");
                let Err(error) = loaded else { continue };
                let UploadError::Cuda(CudaError::OutOfMemory { needed, .. }) = error else { panic!("{error}") };
                assert_eq!(needed, bytes);
                let line = BackendError::from(error).to_string();
                let expected = format!("out of memory: {} for the weights on the GPU; ", rigel::host::Size(bytes));
                assert!(line.starts_with(&expected), "{line}");
                let total = format!("of its {} are free", rigel::host::Size(memory));
                assert!(line.contains(&total) && line.lines().count() == 1, "{line}");
            }
        }
    }
}

/// A copy of a golden checkpoint with one element of a tensor replaced, in the tensor's own dtype.
fn with_element(name: &str, tensor: &str, element: usize, value: f32) -> (tempfile::TempDir, String) {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(goldens().join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let (checkpoint, _) = common::open(copy.path());
    let stored = checkpoint.tensor(tensor).unwrap();
    let (file, dtype) = (stored.file().to_owned(), stored.dtype());
    let mut bytes = fs::read(&file).unwrap();
    let start = {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        8 + length + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
    };
    drop(checkpoint);
    let at = start + element * dtype.size();
    match dtype {
        Dtype::F32 => bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
        Dtype::Bf16 => bytes[at..at + 2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        Dtype::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
    }
    fs::write(&file, bytes).unwrap();
    (copy, file)
}

device_test! {
    fn a_value_beyond_f16_is_refused_by_name_and_place() {
        common::on_every_schedule(|bench| {
            // In a matrix and in a vector, in F32 and in BF16, in rows that move and rows that do not.
            for (name, tensor, columns, element, value) in [
                ("mha", "model.layers.1.mlp.c_proj.weight", 203, 203 * 77 + 202, 65520.0f32),
                ("mha", "model.layers.1.self_attn.q_proj.weight", 128, 128 * 33 + 1, -1e30),
                ("mha", "model.layers.0.self_attn.k_proj.bias", 1, 70, 70000.0),
                ("gqa12", "model.norm.weight", 1, 71, 131072.0),
            ] {
                let (copy, file) = with_element(name, tensor, element, value);
                let (checkpoint, spec) = common::open(copy.path());
                for ring in RINGS {
                    let error = load::<f16>(bench, ring, &checkpoint, &spec).err().expect("it does not fit");
                    assert!(matches!(error, UploadError::Checkpoint(CheckpointError::Tensor { .. })), "{error}");
                    let (row, column) = (element / columns, element % columns);
                    let place = if columns == 1 { format!("[{row}]") } else { format!("[{row}, {column}]") };
                    assert_eq!(
                        error.to_string(),
                        format!(
                            "{file}: tensor {tensor}: found {value} at {place}, expected magnitudes up to 65504, the \
                             largest of F16; use the dtype bf16"
                        )
                    );
                    assert!(matches!(BackendError::from(error), BackendError::Checkpoint(_)));
                }
                check(bench, &load::<bf16>(bench, RINGS[1], &checkpoint, &spec).unwrap(), &checkpoint, &spec);
            }
        });
    }
}

device_test! {
    fn what_is_no_number_stays_none() {
        common::on_every_schedule(|bench| {
            for value in [f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
                let (copy, _) = with_element("mha", "model.norm.bias", 5, value);
                let (checkpoint, spec) = common::open(copy.path());
                let b = load::<bf16>(bench, RINGS[1], &checkpoint, &spec).unwrap();
                let h = load::<f16>(bench, RINGS[1], &checkpoint, &spec).unwrap();
                let b = bench.download(b.final_norm().bias.unwrap())[5].to_f32();
                let h = bench.download(h.final_norm().bias.unwrap())[5].to_f32();
                for found in [b, h] {
                    assert!(if value.is_nan() { found.is_nan() } else { found == value }, "{value}: {found}");
                }
            }
        });
    }
}

device_test! {
    fn a_checkpoint_that_is_not_the_network_s_is_refused() {
        common::on_every_schedule(|bench| {
            let (checkpoint, _) = common::golden("gqa9");
            let refused = |spec: &ModelSpec| {
                let error = load::<bf16>(bench, RINGS[0], &checkpoint, spec).err().expect("it is another network");
                assert!(matches!(error, UploadError::Checkpoint(_)));
                error.to_string()
            };
            let changed = |change: &dyn Fn(&mut Config)| {
                let mut config = checkpoint.config().clone();
                change(&mut config);
                ModelSpec::from_config(&config).unwrap()
            };
            let more = refused(&changed(&|config| config.num_hidden_layers = 3));
            assert!(more.contains("tensor model.layers.2.input_layernorm.weight: found no such tensor"), "{more}");
            let wider = refused(&changed(&|config| config.intermediate_size = 204));
            assert!(wider.contains("mlp.c_fc.weight: found shape [203, 72], expected shape [204, 72]"), "{wider}");
        });
    }
}

device_test! {
    fn progress_counts_to_the_end() {
        common::on_every_schedule(|bench| {
            let (checkpoint, spec) = common::golden("gqa12");
            let total = Layout::new(&spec, Dtype::Bf16).bytes();
            for ring in RINGS {
                let mut seen: Vec<LoadProgress> = Vec::new();
                let weights =
                    Weights::<bf16>::load_through(ring, &bench.stream, &checkpoint, &spec, &mut |p| seen.push(p));
                drop(weights.unwrap());
                assert!(seen.iter().all(|progress| progress.total_bytes == total && progress.done_bytes <= total));
                assert!(seen.windows(2).all(|two| {
                    two[0].done_bytes <= two[1].done_bytes && two[0].elapsed <= two[1].elapsed
                }));
                assert_eq!(seen.last().map(|progress| progress.done_bytes), Some(total));
            }
        });
    }
}

/// `fill` of 10,000 words in pieces of 64, which `write` makes.
fn fill_words(
    bench: &Bench,
    readers: usize,
    write: &Write<'_, u32>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Vec<u32>, UploadError> {
    let mut words = bench.stream.alloc::<u32>(10_000)?;
    fill(&bench.stream, &mut words, Ring { buffer_bytes: 256, readers }, write, progress)?;
    Ok(bench.stream.download(words.view())?)
}

fn count(range: Range<usize>, piece: &mut [u32]) -> Result<(), UploadError> {
    for (word, value) in piece.iter_mut().zip(range) {
        *word = value as u32;
    }
    Ok(())
}

device_test! {
    fn a_reader_that_panics_or_fails_ends_the_upload_and_the_next_one_works() {
        common::on_every_schedule(|bench| {
            let counted: Vec<u32> = (0..10_000).collect();
            for readers in [1, 2, 5] {
                for bad in [0, 5000, 9999] {
                    let panicked = fill_words(bench, readers, &|range, piece| {
                        assert!(!range.contains(&bad), "a planted panic");
                        count(range, piece)
                    }, &mut |_| {});
                    let message = panicked.unwrap_err().to_string();
                    assert_eq!(message, "a thread that reads weights failed: a planted panic");
                    let failed = fill_words(bench, readers, &|range, piece| {
                        if range.contains(&bad) {
                            return Err(CudaError::CopyLength { from: 1, into: 2 }.into());
                        }
                        count(range, piece)
                    }, &mut |_| {});
                    assert_eq!(failed.unwrap_err().to_string(), "a copy of 1 elements into 2");
                }
                assert!(fill_words(bench, readers, &count, &mut |_| {}).unwrap() == counted);
            }
        });
    }
}

device_test! {
    fn a_progress_callback_that_panics_leaves_no_thread_behind() {
        common::on_every_schedule(|bench| {
            let slow = |range: Range<usize>, piece: &mut [u32]| {
                std::thread::sleep(Duration::from_millis(2));
                count(range, piece)
            };
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                fill_words(bench, 3, &slow, &mut |_| panic!("a planted panic"))
            }));
            // Were a reader still waiting, this would not have been reached.
            assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"a planted panic"));
            assert_eq!(fill_words(bench, 3, &count, &mut |_| {}).unwrap()[9999], 9999);
        });
    }
}

device_test! {
    fn an_empty_destination_is_full_at_once() {
        common::on_every_schedule(|bench| {
            let mut nothing = bench.stream.alloc::<u32>(0).unwrap();
            let mut calls = 0;
            fill(&bench.stream, &mut nothing, Ring::default(), &count, &mut |_| calls += 1).unwrap();
            assert_eq!(calls, 1);
        });
    }
}

device_test! {
    fn the_rope_table_is_the_angles_of_every_position() {
        common::on_every_schedule(|bench| {
            for name in ["gqa2-d128", "nobias-theta", "gqa9"] {
                let (_, spec) = common::golden(name);
                for positions in [1, 2, 5000] {
                    let table = RopeTable::load(&bench.stream, &spec, positions).unwrap();
                    let pairs = spec.head_dim / 2;
                    assert_eq!(table.positions(), positions);
                    assert_eq!(RopeTable::bytes(&spec, positions), (table.view().len() * 4) as u64);
                    let found = bench.stream.download(table.view()).unwrap();
                    assert_eq!(found.len(), positions * pairs * 2);
                    let inv_freq = spec.ropes[0].inv_freq(spec.head_dim);
                    for position in 0..positions {
                        for pair in 0..pairs {
                            let angle = f64::from(position as f32 * inv_freq[pair]);
                            let at = (position * pairs + pair) * 2;
                            assert_eq!(found[at], angle.cos() as f32, "{name}: {position} {pair}");
                            assert_eq!(found[at + 1], angle.sin() as f32, "{name}: {position} {pair}");
                        }
                    }
                }
            }
        });
    }
}

device_test! {
    fn tensors_take_256_bytes_each_at_the_least_and_none_twice() {
        // Of a network by hand, against a map of the arena.
        common::on_every_schedule(|bench| {
            let (checkpoint, spec) = common::golden("head-conflict");
            assert!(!spec.tied_head(), "its two matrices differ");
            let weights = load::<bf16>(bench, RINGS[1], &checkpoint, &spec).unwrap();
            let mut owners: HashMap<usize, &str> = HashMap::new();
            for part in weights.layout().parts() {
                for row in 0..part.rows {
                    for column in 0..part.columns {
                        let in_region = (part.row + row) * part.stride() + column;
                        let taken = owners.insert(part.region.offset / 2 + in_region, &part.tensor);
                        assert_eq!(taken, None, "{}", part.tensor);
                    }
                }
            }
            let parameters = spec.counts().parameters as usize;
            assert_eq!(owners.len(), parameters);
            assert!(owners.keys().all(|element| 2 * (*element as u64) < weights.layout().bytes()));
        });
    }
}

/// Odd sizes, with and without biases and a head of its own.
const ODD_CONFIGS: [&str; 3] = [
    r#"{"model_type":"starcoder2","vocab_size":51,"hidden_size":36,"intermediate_size":75,"num_hidden_layers":2,
        "num_attention_heads":6,"num_key_value_heads":3,"head_dim":10,"tie_word_embeddings":false}"#,
    r#"{"model_type":"starcoder2","vocab_size":1031,"hidden_size":7,"intermediate_size":1,"num_hidden_layers":1,
        "num_attention_heads":1,"num_key_value_heads":1,"head_dim":2,"use_bias":false}"#,
    r#"{"model_type":"starcoder2","vocab_size":3,"hidden_size":264,"intermediate_size":13,"num_hidden_layers":3,
        "num_attention_heads":4,"num_key_value_heads":1,"head_dim":6}"#,
];

fn random_weights_are_the_checkpoint_s<T: Half>(bench: &Bench) {
    for json in ODD_CONFIGS {
        let config = Config::parse(json.as_bytes(), "config.json").unwrap();
        let spec = ModelSpec::from_config(&config).unwrap();
        let checkpoint = random_checkpoint(config, T::DTYPE, 42).unwrap();
        let uploaded = Weights::<T>::load(&bench.stream, &checkpoint, &spec, &mut |_| {}).unwrap();
        let bits = |weights: &Weights<T>| {
            let arena = bench.download(weights.arena().cast::<T>().unwrap());
            bytemuck::cast_slice::<T, u16>(&arena).to_vec()
        };
        let random = bits(&Weights::<T>::random(&bench.stream, &spec, 42).unwrap());
        assert!(bits(&uploaded) == random, "{json}");
        let other = bits(&Weights::<T>::random(&bench.stream, &spec, 43).unwrap());
        let same = random.iter().zip(&other).filter(|(one, other)| one == other && **one != 0).count();
        assert!(same * 4 < random.len(), "{same} of {} elements of another seed are the same", random.len());
    }
}

device_test! {
    fn random_weights_made_on_the_device_are_those_of_a_checkpoint_in_memory() {
        common::on_one_schedule(|bench| {
            random_weights_are_the_checkpoint_s::<bf16>(bench);
            random_weights_are_the_checkpoint_s::<f16>(bench);
        });
    }
}
