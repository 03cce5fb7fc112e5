//! Whole checkpoints, written with the `safetensors` crate's own serializer.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{Dtype as StDtype, TensorView, serialize};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;

const CONFIG_JSON: &str = r#"{"model_type":"starcoder2","hidden_size":64,"num_attention_heads":4,"eos_token_id":0}"#;

type Stock = BTreeMap<String, (StDtype, Vec<usize>, Vec<u8>)>;

fn file_of(tensors: &Stock) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("the test made matching sizes"))
    });
    serialize(views, None).expect("the test made valid tensors")
}

fn stock(names: &[&str]) -> Stock {
    let tensor = |name: &&str| (name.to_string(), (StDtype::F32, vec![2, 3], name.bytes().cycle().take(24).collect()));
    names.iter().map(tensor).collect()
}

fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    root
}

fn open(root: &Path) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(&ModelSource::directory(root).unwrap())
}

fn expect(name: &str, shape: &[usize]) -> ExpectedTensor {
    ExpectedTensor { name: name.to_owned(), shape: shape.to_vec() }
}

fn index_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let map: BTreeMap<_, _> = entries.iter().copied().collect();
    serde_json::to_vec(&serde_json::json!({ "metadata": {}, "weight_map": map })).unwrap()
}

#[test]
fn a_single_file_is_read_where_it_lies() {
    let tensors = stock(&["b", "a"]);
    let weights = file_of(&tensors);
    let root = directory(&[(CONFIG, CONFIG_JSON.as_bytes()), (SINGLE, &weights)]);
    let checkpoint = open(root.path()).unwrap();
    assert_eq!(checkpoint.files(), [WeightFile { name: SINGLE.to_owned(), bytes: weights.len() as u64 }]);
    assert_eq!(checkpoint.tensors().map(Tensor::name).collect::<Vec<_>>(), ["a", "b"]);
    let tensor = checkpoint.tensor("a").unwrap().clone();
    assert_eq!((tensor.dtype(), tensor.shape(), tensor.bytes()), (Dtype::F32, &[2, 3][..], &tensors["a"].2[..]));
    assert_eq!(checkpoint.generation_config().eos_token_ids, [0u32; 0]);
    // A handle outlives its checkpoint, and the file's name in the directory.
    drop(checkpoint);
    drop(root);
    assert_eq!(tensor.bytes(), &tensors["a"].2[..]);
}

#[test]
fn shards_are_joined_and_a_single_file_comes_first() {
    let index = index_of(&[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let (one, two) = (file_of(&stock(&["a"])), file_of(&stock(&["b", "extra"])));
    let root = directory(&[
        (CONFIG, CONFIG_JSON.as_bytes()),
        (GENERATION_CONFIG, br#"{"eos_token_id":50256}"#),
        (INDEX, &index),
        ("1.safetensors", &one),
        ("2.safetensors", &two),
        ("unlisted.safetensors", b"never opened"),
    ]);
    let checkpoint = open(root.path()).unwrap();
    assert_eq!(checkpoint.files().len(), 2);
    assert_eq!(checkpoint.tensors().map(Tensor::name).collect::<Vec<_>>(), ["a", "b", "extra"]);
    assert!(checkpoint.tensor("b").unwrap().file().ends_with("2.safetensors"));
    assert_eq!(checkpoint.generation_config().eos_token_ids, [50256]);

    fs::write(root.path().join(SINGLE), file_of(&stock(&["only"]))).unwrap();
    assert_eq!(open(root.path()).unwrap().tensors().map(Tensor::name).collect::<Vec<_>>(), ["only"]);
}

#[test]
fn shards_that_do_not_belong_together() {
    let one = file_of(&stock(&["a"]));
    let opened = |index: &[(&str, &str)], two: Option<&[u8]>| {
        let index = index_of(index);
        let mut files = vec![(CONFIG, CONFIG_JSON.as_bytes()), (INDEX, &index), ("1.safetensors", &one)];
        files.extend(two.map(|bytes| ("2.safetensors", bytes)));
        let root = directory(&files);
        (open(root.path()), root)
    };
    let message = |index: &[(&str, &str)], two: Option<&[u8]>| {
        let (opened, _root) = opened(index, two);
        let checked = opened.and_then(|checkpoint| checkpoint.check(&[expect("a", &[2, 3]), expect("b", &[2, 3])]));
        checked.unwrap_err().to_string()
    };
    let both = [("a", "1.safetensors"), ("b", "2.safetensors")];
    let missing = message(&both, None);
    assert!(missing.contains("2.safetensors is missing; copy 2.safetensors from the model's repository"), "{missing}");
    let absent = message(&both, Some(&file_of(&stock(&["c"]))));
    assert!(absent.contains("tensor b: found no such tensor among the 2 that are there (a, c), expected"), "{absent}");
    let none = message(&[("a", "3.safetensors"), ("b", "4.safetensors")], None);
    assert!(none.contains("3.safetensors is missing; copy"), "{none}");
    let leaving = message(&[("a", "../1.safetensors")], None);
    assert!(leaving.contains("field weight_map.a: found \"../1.safetensors\""), "{leaving}");
    // Two shards have it and the index names a third place, or none.
    let ab = file_of(&stock(&["a", "b"]));
    for index in [
        &[("x", "1.safetensors"), ("b", "2.safetensors")][..],
        &[both[1], ("a", "3.safetensors"), ("x", "1.safetensors")],
    ] {
        let twice = message(index, Some(&ab));
        assert!(twice.contains("1.safetensors: tensor a: found a second one in "), "{twice}");
    }
}

/// What the index says about tensors that nobody needs is nothing; of two copies it decides; a tensor that lies
/// elsewhere than it says is taken from where it lies.
#[test]
fn the_index_says_which_shard_counts_and_not_what_must_exist() {
    let stock_of = |name: &str, fill: u8| -> Stock {
        [(name.to_owned(), (StDtype::F32, vec![2, 3], vec![fill; 24]))].into_iter().collect()
    };
    let (first, mut second) = (stock_of("a", 1), stock_of("a", 2));
    second.extend(stock_of("b", 3));
    let (first, second) = (file_of(&first), file_of(&second));
    let expected = [expect("a", &[2, 3]), expect("b", &[2, 3])];
    let values = |index: &[(&str, &str)]| {
        let index = index_of(index);
        let files =
            [(CONFIG, CONFIG_JSON.as_bytes()), (INDEX, &index), ("1.safetensors", &first), ("2.safetensors", &second)];
        let root = directory(&files);
        let checkpoint = open(root.path()).unwrap();
        let unused = checkpoint.check(&expected).unwrap();
        (checkpoint.tensor("a").unwrap().bytes()[0], checkpoint.tensor("b").unwrap().bytes()[0], unused)
    };
    let (one, two) = ("1.safetensors", "2.safetensors");
    assert_eq!(values(&[("a", one), ("b", two)]), (1, 3, vec![]));
    assert_eq!(values(&[("a", two), ("b", two), ("x", one)]), (2, 3, vec![]));
    // A tied head or an old rotary buffer in the index alone, in a shard that is there or in one that is not.
    assert_eq!(values(&[("a", one), ("b", two), ("lm_head.weight", two)]), (1, 3, vec![]));
    assert_eq!(values(&[("a", one), ("b", two), ("rotary_emb.inv_freq", "3.safetensors")]), (1, 3, vec![]));
    // `b` lies in the second, whatever the index says.
    assert_eq!(values(&[("a", two), ("b", one)]), (2, 3, vec![]));
}

#[test]
fn names_of_training_tools_are_read_in_every_way() {
    let network = ["model.embed_tokens.weight", "model.norm.weight"];
    let expected = network.map(|name| expect(name, &[2, 3]));
    for (prefix, notice) in [
        ("", None),
        ("module.", Some("tensors are read without the prefix `module.`")),
        ("_orig_mod.", Some("tensors are read without `_orig_mod.`")),
    ] {
        let stored = network.map(|name| format!("{prefix}{name}"));
        let tensors = stock(&stored.each_ref().map(String::as_str));
        let weights = file_of(&tensors);
        let index = index_of(&stored.each_ref().map(|name| (name.as_str(), "1.safetensors")));
        let single = directory(&[(CONFIG, CONFIG_JSON.as_bytes()), (SINGLE, &weights)]);
        let sharded = directory(&[(CONFIG, CONFIG_JSON.as_bytes()), (INDEX, &index), ("1.safetensors", &weights)]);
        for root in [single, sharded] {
            let checkpoint = open(root.path()).unwrap();
            assert_eq!(checkpoint.check(&expected).unwrap(), Vec::<String>::new());
            assert_eq!(checkpoint.tensors().map(Tensor::name).collect::<Vec<_>>(), network);
            assert_eq!(checkpoint.tensor(network[1]).unwrap().bytes(), &tensors[&stored[1]].2[..]);
            assert_eq!(checkpoint.notices(), Vec::from_iter(notice.map(str::to_owned)));
        }
    }
    // A shard that is not there is named by what it holds under the expected name.
    let index = index_of(&[
        ("module.model.norm.weight", "2.safetensors"),
        ("module.model.embed_tokens.weight", "1.safetensors"),
    ]);
    let weights = file_of(&stock(&["module.model.embed_tokens.weight"]));
    let root = directory(&[(CONFIG, CONFIG_JSON.as_bytes()), (INDEX, &index), ("1.safetensors", &weights)]);
    let message = open(root.path()).unwrap().check(&expected).unwrap_err().to_string();
    assert!(message.contains("2.safetensors is missing; copy"), "{message}");
}

#[test]
fn the_form_of_other_weights_is_named() {
    let of = |config: &str, names: &[&str]| {
        let root = directory(&[(CONFIG, config.as_bytes()), (SINGLE, &file_of(&stock(names)))]);
        let message = open(root.path()).unwrap().check(&[expect("a.weight", &[2, 3])]).unwrap_err().to_string();
        message.strip_prefix(&format!("{}: ", root.path().display())).unwrap_or(&message).to_owned()
    };
    let quantized = CONFIG_JSON.replacen('{', r#"{"quantization_config":{"quant_method":"gptq"},"#, 1);
    assert_eq!(
        of(CONFIG_JSON, &["a.qweight", "a.g_idx"]),
        "weights quantised with GPTQ, such as a.g_idx; use the model that this one was quantised from, in F32, F16 or BF16"
    );
    let message = of(&quantized, &["a.qweight", "a.g_idx"]);
    assert!(message.contains("GPTQ, such as a.g_idx (config.json: quant_method \"gptq\"); use"), "{message}");
    let message = of(&quantized, &["b"]);
    assert!(
        message.starts_with(
            "quantised weights, which are not supported (config.json: quant_method \"gptq\"; tensor a.weight: found no \
             such tensor among the 1 that are there (b)); use"
        ),
        "{message}"
    );
    let message = of(CONFIG_JSON, &["a.base_layer.weight", "a.lora_A.default.weight"]);
    assert!(message.starts_with("a fine-tune whose adapter (LoRA) is not merged, such as a.base_layer.weight; merge"));
}

/// The label of a quantisation, marks beside the plain weights, an adapter's files, and a generation_config.json that
/// cannot be read are notices, not errors.
#[test]
fn what_does_not_matter_is_noted() {
    let quantized = CONFIG_JSON.replacen('{', r#"{"quantization_config":{"load_in_4bit":true},"#, 1);
    let weights = file_of(&stock(&["a", "a.lora_A.weight"]));
    let root = directory(&[
        (CONFIG, quantized.as_bytes()),
        (GENERATION_CONFIG, b"{\"do_sample\": true.}"),
        (SINGLE, &weights),
        ("adapter_config.json", br#"{"base_model_name_or_path": "o/m", "peft_type": "LORA"}"#),
    ]);
    let checkpoint = open(root.path()).unwrap();
    assert_eq!(checkpoint.check(&[expect("a", &[2, 3])]).unwrap(), ["a.lora_A.weight"]);
    let notices = checkpoint.notices();
    let begins = [
        "adapter_config.json says that an adapter (LORA) of o/m is in the same directory: it is not applied; merge",
        "a.lora_A.weight is of a fine-tune whose adapter (LoRA) is not merged: it is not used; merge",
        "config.json speaks of quantised weights ({\"load_in_4bit\":true}), but all tensors are there unquantised",
    ];
    assert_eq!(notices.len(), 4, "{notices:?}");
    for (notice, begin) in notices.iter().zip(begins) {
        assert!(notice.starts_with(begin), "{notice}");
    }
    assert!(notices[3].contains("generation_config.json: found malformed JSON at line 1"), "{}", notices[3]);
}

#[test]
fn f64_is_read_as_the_nearest_f32() {
    // Rounds up, down, to even both ways, to 0, to infinity.
    let values = [0.1, -1.0 / 3.0, 1.0 + f64::powi(2.0, -24), 1.0 + 3.0 * f64::powi(2.0, -24), 1e-60, -1e60, f64::NAN];
    let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut tensors = stock(&["b"]);
    tensors.insert("a".to_owned(), (StDtype::F64, vec![7, 1], data));
    let root = directory(&[(CONFIG, CONFIG_JSON.as_bytes()), (SINGLE, &file_of(&tensors))]);
    let checkpoint = open(root.path()).unwrap();
    assert_eq!(checkpoint.check(&[expect("a", &[7, 1]), expect("b", &[2, 3])]).unwrap(), Vec::<String>::new());
    assert_eq!(
        (checkpoint.dtype("a"), checkpoint.dtype("b"), checkpoint.dtype("c")),
        (Some(Dtype::F32), Some(Dtype::F32), None)
    );
    // torch: `torch.tensor(values, dtype=torch.float64).float()`.
    let bits = [0x3dcccccd, 0xbeaaaaabu32, 0x3f800000, 0x3f800002, 0, 0xff800000, 0x7fc00000];
    let tensor = checkpoint.tensor("a").unwrap();
    assert_eq!((tensor.dtype(), tensor.shape(), tensor.name()), (Dtype::F32, &[7, 1][..], "a"));
    assert_eq!(tensor.bytes(), bits.map(u32::to_le_bytes).concat());
    assert!(std::ptr::eq(tensor, checkpoint.tensor("a").unwrap()), "narrowed once");
    assert_eq!(checkpoint.opaque_tensors().map(|tensor| tensor.dtype.as_str()).collect::<Vec<_>>(), ["F64"]);
}

#[test]
fn missing_files_say_what_to_do() {
    let message = |files: &[(&str, &[u8])]| open(directory(files).path()).unwrap_err().to_string();
    assert!(message(&[]).contains("config.json is missing; copy config.json from the model's repository"));
    let config = (CONFIG, CONFIG_JSON.as_bytes());
    // An adapter's directory is named as one before and after a config.json was found for it.
    let adapter: [(&str, &[u8]); 2] = [
        ("adapter_config.json", br#"{"base_model_name_or_path":"bigcode/starcoder2-3b","peft_type":"LORA"}"#),
        ("adapter_model.safetensors", b""),
    ];
    for message in [message(&adapter), message(&[config, adapter[0], adapter[1]])] {
        assert!(
            message
                .contains("is missing; this is an adapter (LORA) of bigcode/starcoder2-3b, not a whole model; merge")
        );
    }
    assert!(message(&[("q4.gguf", b"")]).contains("config.json is missing; GGUF files (q4.gguf) are not supported"));
    assert!(
        message(&[config, ("model.fp16.safetensors", b"")]).contains("model.fp16.safetensors is a variant of the weig")
    );
    assert!(
        message(&[config, (SINGLE, b"PK\x03\x04and so on")]).contains("found a zip archive (as PyTorch's .bin and")
    );
    assert!(message(&[config]).contains("model.safetensors is missing; copy model.safetensors from"));
    let bin = message(&[config, ("pytorch_model-00001-of-00002.bin", b"")]);
    assert!(bin.contains("only PyTorch weights are there (pytorch_model-00001-of-00002.bin); convert them"), "{bin}");
    assert!(message(&[config, ("q4.gguf", b"")]).contains("GGUF files (q4.gguf) are not supported"));
    assert!(message(&[config, ("model-1.safetensors", b"")]).contains("model-1.safetensors is there, but not model.s"));
    assert!(message(&[config, (SINGLE, b"")]).contains("model.safetensors: found an empty file, expected a safeten"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    assert!(message(&[config, (SINGLE, pointer)]).contains("model.safetensors: found a git-lfs pointer, expected a"));
    assert!(message(&[(CONFIG, pointer)]).contains("config.json: found a git-lfs pointer, expected JSON; run `git"));
}

#[test]
fn check_names_the_tensor_at_fault() {
    let mut tensors = stock(&["a", "b", "lm_head.weight"]);
    tensors.insert("q".to_owned(), (StDtype::I32, vec![2], vec![0; 8]));
    let weights = file_of(&tensors);
    let root = directory(&[(CONFIG, CONFIG_JSON.as_bytes()), (SINGLE, &weights)]);
    let checkpoint = open(root.path()).unwrap();
    assert_eq!(checkpoint.check(&[expect("b", &[2, 3]), expect("a", &[2, 3])]).unwrap(), ["lm_head.weight", "q"]);
    assert!(checkpoint.tensor("q").is_none());
    let opaque = checkpoint.opaque_tensors().next().unwrap();
    assert_eq!((opaque.name.as_str(), opaque.dtype.as_str(), opaque.bytes), ("q", "I32", 8));

    let message = |name: &str, shape: &[usize]| checkpoint.check(&[expect(name, shape)]).unwrap_err().to_string();
    let absent = message("c", &[7]);
    assert!(
        absent.contains(
            ": tensor c: found no such tensor among the 4 that are there (a, b, lm_head.weight, …), expected shape [7] in \
             F32, F16 or BF16; "
        ),
        "{absent}"
    );
    let shape = message("a", &[3, 2]);
    assert!(shape.contains("model.safetensors: tensor a: found shape [2, 3], expected shape [3, 2] in F32"), "{shape}");
    assert!(message("q", &[2]).contains("tensor q: found dtype I32, expected shape [2] in F32, F16 or BF16; use the"));
}

/// Opening must not read the weights: this file is 32 GB long, of which only the header was ever written.
#[test]
fn a_file_larger_than_memory_opens_from_its_header() {
    use std::io::Write as _;
    let (rows, columns) = (1 << 20, 1 << 14);
    let data: u64 = rows * columns * 2;
    let header = format!(r#"{{"w":{{"dtype":"BF16","shape":[{rows},{columns}],"data_offsets":[0,{data}]}}}}"#);
    let root = directory(&[(CONFIG, CONFIG_JSON.as_bytes())]);
    let mut file = fs::File::create(root.path().join(SINGLE)).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    if let Err(error) = file.set_len(8 + header.len() as u64 + data) {
        eprintln!("SKIPPED a_file_larger_than_memory_opens_from_its_header: no sparse files here ({error})");
        return;
    }
    let checkpoint = open(root.path()).unwrap();
    let tensor = checkpoint.tensor("w").unwrap();
    assert_eq!((tensor.bytes().len() as u64, tensor.bytes()[1 << 33]), (data, 0));
}

#[cfg(feature = "nano")]
#[test]
fn the_bundled_checkpoint_opens_from_static_memory() {
    let checkpoint = Checkpoint::open(&ModelSource::nano()).unwrap();
    assert_eq!(checkpoint.config().head_dim, 128);
    let weights = ModelSource::nano().read(SINGLE).unwrap().unwrap();
    let inside = weights.as_ptr_range();
    let (mut bytes, mut tensors) = (0, 0);
    for tensor in checkpoint.tensors() {
        let range = tensor.bytes().as_ptr_range();
        assert!(inside.start <= range.start && range.end <= inside.end, "{tensor:?}");
        assert_eq!(tensor.dtype(), Dtype::Bf16);
        bytes += tensor.bytes().len();
        tensors += 1;
    }
    assert!(bytes < weights.len() && bytes + 100_000 > weights.len(), "{bytes} of {}", weights.len());
    assert!(tensors > 16, "{tensors} tensors");
    assert_eq!(checkpoint.files()[0].bytes, weights.len() as u64);
    assert_eq!(checkpoint.source().to_string(), "nano (bundled)");
}

fn any_tensor() -> impl Strategy<Value = (StDtype, Vec<usize>, Vec<u8>)> {
    let dtype = prop::sample::select(vec![StDtype::F32, StDtype::F16, StDtype::BF16, StDtype::I64, StDtype::U8]);
    (dtype, prop::collection::vec(0usize..5, 0..4)).prop_flat_map(|(dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (Just(dtype), Just(shape), prop::collection::vec(any::<u8>(), bytes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What the `safetensors` crate writes is read back byte for byte, from one file or from shards.
    #[test]
    fn valid_checkpoints_round_trip(
        tensors in prop::collection::btree_map("[a-z.é\"\\\\ ]{1,12}", any_tensor(), 1..12),
        shards in 1usize..4,
    ) {
        let mut parts = vec![Stock::new(); shards];
        for (n, (name, tensor)) in tensors.iter().enumerate() {
            parts[n % shards].insert(name.clone(), tensor.clone());
        }
        parts.retain(|part| !part.is_empty());
        let root = directory(&[(CONFIG, CONFIG_JSON.as_bytes())]);
        if parts.len() == 1 {
            fs::write(root.path().join(SINGLE), file_of(&tensors)).unwrap();
        } else {
            let names: Vec<String> = (0..parts.len()).map(|n| format!("m-{n}.safetensors")).collect();
            let mut index = Vec::new();
            for (part, file) in parts.iter().zip(&names) {
                fs::write(root.path().join(file), file_of(part)).unwrap();
                index.extend(part.keys().map(|name| (name.as_str(), file.as_str())));
            }
            fs::write(root.path().join(INDEX), index_of(&index)).unwrap();
        }
        let checkpoint = open(root.path()).unwrap();
        prop_assert_eq!(checkpoint.tensors().count() + checkpoint.opaque_tensors().count(), tensors.len());
        for (name, (dtype, shape, data)) in &tensors {
            match checkpoint.tensor(name) {
                Some(tensor) => {
                    prop_assert_eq!(tensor.dtype().to_string(), dtype.to_string());
                    prop_assert_eq!(tensor.shape(), &shape[..]);
                    prop_assert_eq!(tensor.bytes(), &data[..]);
                }
                None => {
                    let opaque = checkpoint.opaque_tensors().find(|tensor| tensor.name == *name).unwrap();
                    prop_assert_eq!(&opaque.dtype, &dtype.to_string());
                    prop_assert_eq!(&opaque.shape, shape);
                    prop_assert_eq!(opaque.bytes, data.len() as u64);
                }
            }
        }
    }

    /// A field that nobody reads changes nothing, whatever it is and whatever it is called.
    #[test]
    fn fields_that_nobody_reads_change_nothing(
        fields in prop::collection::vec((field_name(), any_json()), 1..6),
        generation in prop::collection::vec((field_name(), any_json()), 1..6),
    ) {
        let weights = file_of(&stock(&["model.embed_tokens.weight"]));
        let with = |base: &str, read: &[&str], fields: &[(String, String)]| {
            let fields = fields.iter().filter(|(name, _)| !read.contains(&name.as_str()));
            let fields: String = fields.map(|(name, value)| format!("{}:{value},", serde_json::json!(name))).collect();
            base.replacen('{', &format!("{{{fields}"), 1)
        };
        let config = with(CONFIG_JSON, &READ_OF_CONFIG, &fields);
        let generation = with(r#"{"eos_token_id":[3,5]}"#, &["eos_token_id"], &generation);
        let root = directory(&[
            (CONFIG, config.as_bytes()),
            (GENERATION_CONFIG, generation.as_bytes()),
            (SINGLE, &weights),
        ]);
        let checkpoint = open(root.path()).map_err(|error| TestCaseError::fail(format!("{error}: {config} {generation}")))?;
        let mut sound = Config::parse(CONFIG_JSON.as_bytes(), &checkpoint.config().file).unwrap();
        // These are notes about the weights and decide nothing.
        sound.dtype.clone_from(&checkpoint.config().dtype);
        sound.quantization.clone_from(&checkpoint.config().quantization);
        prop_assert_eq!(checkpoint.config(), &sound);
        prop_assert_eq!(&checkpoint.generation_config().eos_token_ids, &[3, 5]);
        prop_assert!(checkpoint.generation_config().fault().is_none());
    }
}

/// The fields of config.json that the network depends on.
const READ_OF_CONFIG: [&str; 18] = [
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "hidden_act",
    "norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_bias",
    "tie_word_embeddings",
    "eos_token_id",
];

/// Names of published configurations, and others.
fn field_name() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "pad_token_id",
        "layer_types",
        "do_sample",
        "dtype",
        "torch_dtype",
        "initializer_range",
        "quantization_config",
        "top_k",
        "top_p",
        "temperature",
        "max_length",
        "min_p",
        "use_cache",
        "transformers_version",
        "activation_function",
        "rms_norm_eps",
        "hidden_act",
        "rope_theta",
        "eos_token_id",
        "mlp_type",
        "norm_type",
    ]);
    prop_oneof![3 => known.prop_map(str::to_owned), 1 => "[a-z_]{1,12}"]
}

/// The text of a JSON value, of Python's kind.
fn any_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            "null",
            "true",
            "false",
            "NaN",
            "Infinity",
            "-Infinity",
            "-1",
            "1e20",
            "1e999",
            "0.5",
            "{}"
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|n| n.to_string()),
        "[a-z \\\\\"]{0,8}".prop_map(|text| serde_json::json!(text).to_string()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(inner, 0..4).prop_map(|items| {
                let fields = items.iter().enumerate().map(|(n, item)| format!("\"k{n}\":{item}"));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}
