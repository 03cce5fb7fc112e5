//! Checkpoints as they are found in the field: nano with one thing changed. What it is decides, not what it is called.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};

use crate::common::{Copy, Run, rigel};

/// nano's 12 greedy tokens after `def f`; transformers says the same.
const TEXT: &str = "ibonacci_memoization(n):";

/// Name, dtype, shape, data.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn generate(copy: &Copy, more: &[&str]) -> Run {
    rigel(&[&["generate", "-n", "12", "--model", copy.model()], more, &["def f"]].concat())
}

/// The model runs and says what nano says; the warnings.
#[track_caller]
fn runs(copy: &Copy) -> String {
    let run = generate(copy, &["-q"]).ok();
    assert_eq!(run.text().trim_end(), TEXT, "{}", run.stderr);
    run.stderr
}

/// The message of a model that does not run.
#[track_caller]
fn refused(copy: &Copy) -> String {
    generate(copy, &[]).error(2).to_owned()
}

fn tensors(copy: &Copy) -> Tensors {
    let bytes = std::fs::read(copy.path("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    file.tensors().into_iter().map(tensor).collect()
}

fn write(copy: &Copy, name: &str, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    copy.write(name, serialize(views, None).unwrap());
}

/// nano with other names.
fn renamed(change: impl Fn(&str) -> String) -> Copy {
    let copy = Copy::of_nano();
    let changed = tensors(&copy).into_iter().map(|(name, tensor)| (change(&name), tensor)).collect();
    write(&copy, "model.safetensors", &changed);
    copy
}

/// nano with this field in a JSON file.
fn with(file: &str, field: &str, value: Value) -> Copy {
    let copy = Copy::of_nano();
    copy.edit(file, |object| object[field] = value);
    copy
}

/// nano in two shards, and its index.
fn sharded(change: impl FnOnce(&mut Value)) -> Copy {
    let copy = Copy::of_nano();
    let whole = tensors(&copy);
    copy.remove("model.safetensors");
    let mut index = json!({"metadata": {}, "weight_map": {}});
    for (shard, file) in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate() {
        let part: Tensors = whole
            .iter()
            .enumerate()
            .filter(|(n, _)| n % 2 == shard)
            .map(|(_, (k, v))| (k.clone(), v.clone()))
            .collect();
        write(&copy, file, &part);
        for name in part.keys() {
            index["weight_map"][name] = json!(file);
        }
    }
    change(&mut index);
    copy.write("model.safetensors.index.json", index.to_string());
    copy
}

#[test]
fn dense_weights_run_under_a_leftover_quantization_config() {
    for label in [
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
        json!({"quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": false}),
        json!("gptq"),
    ] {
        let warning = runs(&with("config.json", "quantization_config", label));
        assert!(warning.contains("config.json speaks of quantised weights"), "{warning}");
        assert_eq!(warning.lines().count(), 1, "{warning}");
    }
}

#[test]
fn an_index_entry_that_nobody_needs_is_nothing() {
    assert_eq!(runs(&sharded(|_| ())), "");
    for shard in ["model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors"] {
        assert_eq!(runs(&sharded(|index| index["weight_map"]["lm_head.weight"] = json!(shard))), "");
    }
    let copy = sharded(|_| ());
    copy.remove("model-00002-of-00002.safetensors");
    assert!(refused(&copy).contains("model-00002-of-00002.safetensors is missing; copy"));
}

/// As transformers has it, `model.safetensors` is taken before an index that is there too, whatever that says.
#[test]
fn a_stale_index_beside_the_weights_is_not_looked_at() {
    let copy = Copy::of_nano();
    copy.write("model.safetensors.index.json", "{\"weight_map\": {\"x\": \"gone.safetensors\"}");
    assert_eq!(runs(&copy), "");
    let mut partly = tensors(&copy);
    partly.remove("model.norm.weight");
    write(&copy, "model.safetensors", &partly);
    let message = refused(&copy);
    assert!(
        message.contains("tensor model.norm.weight: found no such tensor among the 66 that are there"),
        "{message}"
    );
    assert!(message.ends_with("delete model.safetensors to use its shards"), "{message}");
}

#[test]
fn a_common_prefix_is_left_out_with_one_notice() {
    for prefix in ["_orig_mod.", "_fsdp_wrapped_module.", "module.", "base_model.model.", "student."] {
        let warning = runs(&renamed(|name| format!("{prefix}{name}")));
        assert!(warning.contains("tensors are read without") && warning.contains(prefix), "{warning}");
        assert_eq!(warning.lines().count(), 1, "{warning}");
    }
    let inside =
        |name: &str| name.replace(".self_attn.", "._fsdp_wrapped_module.self_attn._checkpoint_wrapped_module.");
    let warning = runs(&renamed(inside));
    assert!(warning.contains("without `_fsdp_wrapped_module.`, without `_checkpoint_wrapped_module.`"), "{warning}");
}

#[test]
fn the_network_without_a_head_is_the_model() {
    let copy = renamed(|name| name.strip_prefix("model.").unwrap().to_owned());
    let warning = runs(&copy);
    assert!(warning.contains("tensors are read with `model.` put before them"), "{warning}");
    let inspected = rigel(&["inspect", "--json", "--model", copy.model()]).ok().json();
    assert_eq!(inspected["unused_tensors"], json!([]));
    assert_eq!(inspected["notices"], json!(["tensors are read with `model.` put before them"]));
}

#[test]
fn generation_config_is_judged_when_it_is_asked_for() {
    const FILE: &str = "generation_config.json";
    for (field, value) in [
        ("top_k", json!(-1)),
        ("top_k", json!("many")),
        ("top_p", json!([])),
        ("max_length", json!(1e20)),
        ("max_new_tokens", json!(-5)),
        ("pad_token_id", json!(-1)),
        ("bos_token_id", json!("<s>")),
        ("temperature", json!("hot")),
        ("do_sample", json!(1)),
        ("eos_token_id", json!([0, -1])),
        ("eos_token_id", json!(0.0)),
    ] {
        assert_eq!(runs(&with(FILE, field, value)), "", "{field}");
    }
    let asked = generate(&with(FILE, "temperature", json!("hot")), &["--generation-config"]);
    assert!(asked.error(2).contains("generation_config.json: field temperature: found \"hot\", expected a number"));
    for (content, needle) in [
        ("{\n  \"do_sample\": true.\n}", "found malformed JSON at line 2, column 20 (near `.`)"),
        ("", "found an empty file"),
        ("[]", "found [], expected a JSON object"),
    ] {
        let copy = Copy::of_nano();
        copy.write(FILE, content);
        let warning = runs(&copy);
        assert!(warning.contains(needle) && warning.lines().count() == 1, "{warning}");
        assert!(generate(&copy, &["--generation-config"]).error(2).contains(needle));
    }
    let copy = Copy::of_nano();
    copy.write(FILE, "{\"eos_token_id\": 0, \"temperature\": NaN, \"top_p\": Infinity}");
    assert_eq!(runs(&copy), "");
}

#[test]
fn config_is_read_as_python_writes_it() {
    let copy = Copy::of_nano();
    let config = std::fs::read_to_string(copy.path("config.json")).unwrap();
    let floats = config.replace("\"hidden_size\": 256", "\"hidden_size\": 256.0").replace("128", "128.0");
    for text in [
        format!("\u{feff}{config}"),
        config.replacen('{', "{\"loss\": NaN, \"bos_token_id\": -Infinity, \"hidden_size\": 7,", 1),
        floats.clone(),
        config.replace("0.02", "{\"a\": [NaN, 1e999]}"),
    ] {
        copy.write("config.json", text);
        assert_eq!(runs(&copy), "");
    }
    assert_ne!(floats, config);
    let copy = with("config.json", "layer_types", json!(["full_attention", "x", -1]));
    assert_eq!(runs(&copy), "");
}

/// All in transformers: the first by its formula, the last because nano's choices are not that close.
#[test]
fn activations_of_other_names() {
    for name in ["gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu", "gelu_python"] {
        assert_eq!(runs(&with("config.json", "hidden_act", json!(name))), "", "{name}");
    }
    let message = refused(&with("config.json", "hidden_act", json!("silu")));
    assert!(
        message.contains("hidden_act: \"silu\" is not supported; supported: gelu_pytorch_tanh, gelu_new"),
        "{message}"
    );
}

#[test]
fn rope_scaling_linear_and_by_one() {
    // transformers 5.23, float32, 12 greedy tokens.
    let scaled = "ib_bbox(self, i, i,";
    for (field, kind) in [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")] {
        let copy = with("config.json", field, json!({kind: "linear", "factor": 2.0}));
        assert_eq!(generate(&copy, &["-q"]).ok().text().trim_end(), scaled);
        for unscaled in ["linear", "dynamic", "yarn", "llama3", "default"] {
            runs(&with("config.json", field, json!({kind: unscaled, "factor": 1.0})));
        }
        let message = refused(&with("config.json", field, json!({kind: "yarn", "factor": 4.0})));
        assert!(message.contains("rope type \"yarn\" with factor 4.0 is not supported"), "{message}");
    }
}

#[test]
fn weights_in_f64_are_narrowed() {
    let copy = Copy::of_nano();
    let mut wide = tensors(&copy);
    for (dtype, _, data) in wide.values_mut() {
        let values =
            data.chunks_exact(2).map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16));
        (*dtype, *data) = (Dtype::F64, values.flat_map(|x| f64::from(x).to_le_bytes()).collect());
    }
    write(&copy, "model.safetensors", &wide);
    assert_eq!(runs(&copy), "");
    let inspected = rigel(&["inspect", "--json", "--model", copy.model()]).ok().json();
    let nano = rigel(&["inspect", "--json"]).ok().json();
    assert_eq!(inspected["stored"][0]["dtype"], "F64");
    assert_eq!(
        inspected["weight_bytes_per_token"].as_u64(),
        nano["weight_bytes_per_token"].as_u64().map(|bytes| 2 * bytes)
    );
}

#[test]
fn an_adapter_is_named_with_its_base() {
    let config = r#"{"base_model_name_or_path": "bigcode/starcoder2-3b", "peft_type": "LORA", "r": 8}"#;
    // Beside full weights: the base model, with a warning.
    let copy = Copy::of_nano();
    copy.write("adapter_config.json", config);
    copy.write("adapter_model.safetensors", b"");
    let warning = runs(&copy);
    assert!(warning.contains("an adapter (LORA) of bigcode/starcoder2-3b is in the same directory: it is not applied"));
    // Alone.
    copy.remove("model.safetensors");
    let with_config = refused(&copy);
    copy.remove("config.json");
    for message in [with_config, refused(&copy)] {
        assert!(
            message.contains("this is an adapter (LORA) of bigcode/starcoder2-3b, not a whole model; merge"),
            "{message}"
        );
    }
}

#[test]
fn weights_in_other_forms_are_named() {
    const Q_PROJ: &str = "model.layers.0.self_attn.q_proj";
    let form = |parts: &[(&str, Dtype)]| {
        let copy = Copy::of_nano();
        let mut stored = tensors(&copy);
        stored.remove(&format!("{Q_PROJ}.weight")).unwrap();
        for (part, dtype) in parts {
            stored.insert(format!("{Q_PROJ}.{part}"), (*dtype, vec![2], vec![0; 2 * dtype.bitsize() / 8]));
        }
        write(&copy, "model.safetensors", &stored);
        let message = refused(&copy);
        // The rest of the message is the same for all.
        message.split(": ").nth(1).unwrap_or_default().to_owned()
    };
    use Dtype::{BF16, F8_E4M3, I8, I32, U8, U32};
    assert_eq!(
        form(&[("qweight", I32), ("qzeros", I32), ("scales", BF16), ("g_idx", I32)]),
        format!(
            "weights quantised with GPTQ, such as {Q_PROJ}.g_idx; use the model that this one was quantised from, in F32, \
             F16 or BF16"
        )
    );
    for (parts, needle) in [
        (
            &[("base_layer.weight", BF16), ("lora_A.default.weight", BF16), ("lora_B.default.weight", BF16)][..],
            "adapter (LoRA) is not merged",
        ),
        (&[("base_layer.weight", U8), ("base_layer.weight.absmax", U8), ("lora_A.default.weight", BF16)], "not merged"),
        (&[("qweight", I32), ("qzeros", I32), ("scales", BF16)], "AWQ or GPTQ"),
        (&[("weight", U8), ("weight.absmax", U8), ("weight.quant_map", BF16)], "bitsandbytes"),
        (&[("weight", I8), ("SCB", BF16), ("weight_format", U8)], "bitsandbytes"),
        (&[("weight", F8_E4M3), ("weight_scale", BF16)], "FP8"),
        (&[("weight_packed", I32), ("weight_scale", BF16), ("weight_shape", I32)], "compressed-tensors"),
        (&[("weight", U32), ("scales", BF16), ("biases", BF16)], "MLX"),
    ] {
        let message = form(parts);
        assert!(message.contains(needle) && message.contains(&format!("such as {Q_PROJ}.")), "{needle}: {message}");
    }
    // Without a mark: what is there instead.
    let copy = Copy::of_nano();
    let mut stored = tensors(&copy);
    stored.remove(&format!("{Q_PROJ}.weight")).unwrap();
    write(&copy, "model.safetensors", &stored);
    let message = refused(&copy);
    assert!(
        message.contains("q_proj.weight: found no such tensor among the 66 that are there (model.embed_tok"),
        "{message}"
    );
}

#[test]
fn files_in_place_of_a_directory_are_named() {
    let copy = Copy::of_nano();
    copy.write("x.gguf", b"GGUF\x03\0\0\0");
    copy.write("x.bin", b"PK\x03\x04\x14\0");
    copy.write("x.pt", b"\x80\x02}q\0.");
    copy.write("x.tar.gz", [0x1f, 0x8b, 8, 0]);
    for (file, needle) in [
        ("x.gguf", "is a GGUF file, which is not read yet; use the model's safetensors"),
        ("x.bin", "is a zip archive (as PyTorch's .bin and .pt files are)"),
        ("x.pt", "is a Python pickle"),
        ("x.tar.gz", "is a gzip file; unpack it"),
        (
            "model.safetensors",
            "is a single safetensors file, not a directory; give the directory that holds config.json",
        ),
        ("tokenizer.json", "is not a directory; give the directory that holds config.json"),
    ] {
        let path = copy.path(file);
        let run = rigel(&["generate", "--model", path.to_str().unwrap(), "x"]);
        assert!(run.error(2).contains(needle), "{}", run.stderr);
    }
    // The same under the name of the weights.
    copy.write("model.safetensors", b"GGUF\x03\0\0\0");
    assert!(
        refused(&copy).contains("model.safetensors: found a GGUF file, which is not read yet, expected a safetensors")
    );
}
