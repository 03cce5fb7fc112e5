//! What a checkpoint is that is not the plain weights of a network: told from the names of its tensors, from the files
//! in its directory, or from a file's first bytes. One table for each, one message a mark: what it is, what to do.

use serde_json::Value;

use super::error::shown;
use super::json;
use super::source::ModelSource;
use super::{CONFIG, SINGLE};

/// The file that makes a directory an adapter's.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// A form of weights that another program made.
#[derive(Debug, PartialEq)]
pub(super) struct Mark {
    /// Components of tensors' names, between dots, that give it away. An item that ends in `*` is the beginning of one.
    parts: &'static [&'static str],
    /// What the checkpoint is.
    pub what: &'static str,
    /// What to do about it.
    pub advice: &'static str,
}

const MERGE: &str =
    "merge the adapter first: load it with PEFT, call `merge_and_unload()`, and save the result with `save_pretrained`";
const UNQUANTIZED: &str = "use the model that this one was quantised from, in F32, F16 or BF16";

/// The first that fits counts.
const MARKS: [Mark; 12] = [
    // PEFT: `q_proj.base_layer.weight` and `q_proj.lora_A.default.weight` in place of `q_proj.weight`.
    Mark {
        parts: &["lora_*", "base_layer", "modules_to_save", "ia3_l", "hada_*", "lokr_*", "oft_*"],
        what: "a fine-tune whose adapter (LoRA) is not merged",
        advice: MERGE,
    },
    Mark {
        parts: &["absmax", "nested_absmax", "quant_map", "nested_quant_map", "quant_state", "SCB", "weight_format"],
        what: "weights quantised with bitsandbytes",
        advice: UNQUANTIZED,
    },
    Mark { parts: &["g_idx"], what: "weights quantised with GPTQ", advice: UNQUANTIZED },
    Mark { parts: &["qweight", "qzeros"], what: "weights quantised with AWQ or GPTQ", advice: UNQUANTIZED },
    Mark {
        parts: &["weight_packed", "weight_shape", "weight_zero_point"],
        what: "weights quantised with compressed-tensors (llm-compressor)",
        advice: UNQUANTIZED,
    },
    Mark {
        parts: &["weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale", "weight_scales"],
        what: "weights quantised to 8 bits or fewer (FP8, compressed-tensors, ModelOpt or EETQ)",
        advice: UNQUANTIZED,
    },
    Mark { parts: &["W_q"], what: "weights quantised with HQQ", advice: UNQUANTIZED },
    Mark { parts: &["codebooks", "codes"], what: "weights quantised with AQLM", advice: UNQUANTIZED },
    Mark { parts: &["_data", "_scale"], what: "weights quantised with Quanto", advice: UNQUANTIZED },
    Mark {
        parts: &["_weight_qdata", "_weight_scale", "_weight_scale_and_zero", "_weight_zero_point"],
        what: "weights quantised with TorchAO",
        advice: UNQUANTIZED,
    },
    // MLX packs a matrix into U32 `weight`, with a scale and a bias for each group.
    Mark { parts: &["scales", "biases"], what: "weights quantised with MLX", advice: UNQUANTIZED },
    Mark {
        parts: &["_flat_param", "_flat_params", "flat_param"],
        what: "a shard of FSDP's own layout",
        advice: "save the full state dict (FullStateDictConfig) with `save_pretrained`",
    },
];

impl Mark {
    fn fits(&self, name: &str) -> bool {
        let is =
            |part: &str, wanted: &str| wanted.strip_suffix('*').map_or(part == wanted, |begin| part.starts_with(begin));
        name.split('.').any(|part| self.parts.iter().any(|wanted| is(part, wanted)))
    }

    /// The first mark that one of `names` carries, and that name.
    pub fn of_tensors<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<(&'static Mark, &'a str)> {
        MARKS.iter().find_map(|mark| Some((mark, names.clone().find(|name| mark.fits(name))?)))
    }
}

/// What the adapter in the directory is one of, if there is one: `an adapter (LORA) of bigcode/starcoder2-3b`.
pub(super) fn adapter(source: &ModelSource) -> Option<String> {
    if !source.file_names().iter().any(|name| name == ADAPTER_CONFIG) {
        return None;
    }
    let bytes = source.read_up_to(ADAPTER_CONFIG, json::MAX_JSON_BYTES).ok().flatten();
    let config = bytes.and_then(|bytes| json::parse(&bytes, ADAPTER_CONFIG).ok()).unwrap_or_default();
    let text = |field: &str| config.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(shown);
    let kind = text("peft_type").map_or_else(String::new, |kind| format!(" ({kind})"));
    Some(format!("an adapter{kind} of {}", text("base_model_name_or_path").as_deref().unwrap_or("another model")))
}

/// Files by their names, and what a directory with one is; `*` stands for any characters, once. The first that fits
/// counts.
const FILES: [(&str, &str); 15] = [
    ("*.gguf", "GGUF files ({}) are not supported; use the model's safetensors"),
    ("*.ggml", "GGML files ({}) are not supported; use the model's safetensors"),
    (
        "consolidated*",
        "{} has the names of its author's own code (Mistral's or Meta's layout), which are not supported; use the files \
         of the same model in Hugging Face's layout (model*.safetensors)",
    ),
    (
        "model.safetensors.index.*.json",
        "{} is the index of a variant; rename it to model.safetensors.index.json to use that variant",
    ),
    ("model.*-of-*.safetensors", "{} is a shard of a variant, whose index is not there; download that too"),
    ("model.*.safetensors", "{} is a variant of the weights; rename it to model.safetensors to use that variant"),
    ("*.distcp", "{} is a shard of FSDP's own layout; save the full state dict with `save_pretrained`"),
    ("zero_to_fp32.py", "a DeepSpeed ZeRO checkpoint; join its parts with {}, and save the result as safetensors"),
    ("*mp_rank_*", "{} is a part of a DeepSpeed or Megatron checkpoint; save the whole model with `save_pretrained`"),
    ("tf_model.h5", "{} holds weights of TensorFlow; use the model's safetensors"),
    ("flax_model.msgpack", "{} holds weights of Flax; use the model's safetensors"),
    ("*.onnx", "{} is an ONNX model, which is not supported; use the model's safetensors"),
    ("weights*.npz", "{} holds weights of MLX, which are not supported; use the model's safetensors"),
    ("snapshots", "this is a model's folder in the Hugging Face cache; give the hub id, or a folder inside {}"),
    ("checkpoint-*", "checkpoints of a training are in the folders inside, such as {}; give one of them"),
];

/// The same where nothing else says what the directory is: a trainer leaves such files beside weights of any kind.
const PICKLES: [(&str, &str); 2] = [
    ("*.pth", "{} holds pickled PyTorch weights; use the model's safetensors, or save it with `save_pretrained`"),
    ("*.pt", "{} holds pickled PyTorch weights; use the model's safetensors, or save it with `save_pretrained`"),
];

/// A trainer's own state, which holds no weights.
const TRAINING_STATE: [&str; 4] = ["optimizer*", "scheduler*", "rng_state*", "training_args*"];

/// What a directory without config.json or without usable weights is, and what to do, judging by the names in it.
pub(super) fn of_files(source: &ModelSource) -> Option<String> {
    if let Some(adapter) = adapter(source) {
        return Some(format!("this is {adapter}, not a whole model; {MERGE}"));
    }
    of_names(&FILES, source)
}

/// What a directory is in which nothing else than pickles may hold weights.
pub(super) fn of_pickles(source: &ModelSource) -> Option<String> {
    of_names(&PICKLES, source)
}

fn of_names(files: &[(&str, &str)], source: &ModelSource) -> Option<String> {
    let mut names = source.file_names();
    names.retain(|name| name != SINGLE && !TRAINING_STATE.iter().any(|pattern| matches(pattern, name)));
    files.iter().find_map(|(pattern, message)| {
        let name = names.iter().find(|name| matches(pattern, name))?;
        Some(message.replacen("{}", &shown(name), 1))
    })
}

/// Whether `name` is `pattern`, in which each `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((begin, rest)) => name.strip_prefix(begin).is_some_and(|name| {
            // All places where the rest may begin; names and patterns are short.
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
        }),
    }
}

/// Bytes that are enough for [`of_content`].
pub(super) const CONTENT_BYTES: usize = 512;

/// What a file is that begins with `bytes` ("a GGUF file"), and what to do with it in place of weights.
pub(super) fn of_content(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    const SAFETENSORS: &str = "use the model's safetensors";
    const UNPACK: &str = "unpack it, and give the directory that holds config.json and the weights";
    const PYTORCH: &str = "use the model's safetensors, or load it in PyTorch and save it with `save_pretrained`";
    // The spaces of a page that is not what was asked for.
    let text = bytes.trim_ascii_start();
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let page = |tag: &str| text.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag.as_bytes()));
    Some(if begins(b"GGUF") {
        ("a GGUF file, which is not read yet", SAFETENSORS)
    } else if is_safetensors(bytes) {
        // The length of its header may look like another format.
        return None;
    } else if begins(b"lmgg") || begins(b"tjgg") || begins(b"fmgg") || begins(b"algg") {
        ("a GGML file, which is not supported", SAFETENSORS)
    } else if begins(b"PK\x03\x04") {
        ("a zip archive (as PyTorch's .bin and .pt files are)", PYTORCH)
    } else if matches!(bytes, [0x80, 2..=5, ..]) {
        ("a Python pickle (as old PyTorch files are)", PYTORCH)
    } else if begins(&[0x1f, 0x8b]) {
        ("a gzip file", UNPACK)
    } else if begins(b"\xfd7zXZ\0") || begins(b"BZh") || begins(&[0x28, 0xb5, 0x2f, 0xfd]) || begins(b"7z\xbc\xaf") {
        ("a compressed file", UNPACK)
    } else if bytes.get(257..262) == Some(b"ustar") {
        ("a tar archive", UNPACK)
    } else if begins(b"\x89HDF") {
        ("an HDF5 file (as TensorFlow's weights are)", SAFETENSORS)
    } else if begins(b"version https://git-lfs") {
        ("a git-lfs pointer", "run `git lfs pull` in the clone")
    } else if page("<!doctype") || page("<html") || page("<?xml") {
        ("a web page, not the file that it should be", "download the file again (a login may be needed)")
    } else {
        return None;
    })
}

/// Whether `bytes` begin as a safetensors file: 8 bytes of header length, and a JSON object.
fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && bytes[5..8] == [0; 3]
}

/// What the file is that was given as a model, and what to do: the end of the sentence "… is".
pub(super) fn of_model_file(bytes: &[u8]) -> (&'static str, &'static str) {
    const DIRECTORY: &str = "give the directory that holds config.json and the weights";
    if let Some(known) = of_content(bytes) {
        return known;
    }
    match is_safetensors(bytes) {
        true => ("a single safetensors file, not a directory", DIRECTORY),
        false => ("not a directory", DIRECTORY),
    }
}

/// What to do about a directory without config.json.
pub(super) fn without_config(source: &ModelSource) -> String {
    of_files(source).or_else(|| of_pickles(source)).unwrap_or_else(|| source.how_to_get(CONFIG))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn marks_are_found_by_components_of_names() {
        let what =
            |names: &[&str]| Mark::of_tensors(names.iter().copied()).map(|(mark, name)| (mark.what, name.to_owned()));
        let found = |name: &str| what(&["model.norm.weight", name]).map(|(what, found)| (what, found == name));
        let q = "model.layers.0.self_attn.q_proj";
        for (suffix, needle) in [
            ("lora_A.default.weight", "not merged"),
            ("lora_magnitude_vector.default", "not merged"),
            ("base_layer.weight", "not merged"),
            ("weight.absmax", "bitsandbytes"),
            ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
            ("SCB", "bitsandbytes"),
            ("g_idx", "with GPTQ"),
            ("qweight", "AWQ or GPTQ"),
            ("weight_packed", "compressed-tensors"),
            ("weight_scale", "FP8"),
            ("weight_scale_inv", "FP8"),
            ("W_q", "HQQ"),
            ("codebooks", "AQLM"),
            ("weight._data", "Quanto"),
            ("_weight_qdata", "TorchAO"),
            ("biases", "MLX"),
        ] {
            let (what, named) = found(&format!("{q}.{suffix}")).unwrap();
            assert!(what.contains(needle) && named, "{suffix}: {what}");
        }
        // Published names that carry no mark.
        for name in ["model.layers.0.mlp.c_fc.bias", "lm_head.weight", "model.layers.3.self_attn.rotary_emb.inv_freq"] {
            assert_eq!(found(name), None);
        }
        // GPTQ has `qzeros` too, and an adapter may lie over quantised weights.
        assert!(what(&["a.qzeros", "a.g_idx"]).unwrap().0.contains("GPTQ"));
        assert!(what(&["a.base_layer.weight.absmax", "a.lora_A.default.weight"]).unwrap().0.contains("not merged"));
    }

    #[test]
    fn patterns_of_file_names() {
        assert!(matches("a*b*c", "a-b-bc") && matches("*", "") && matches("x", "x") && matches("*é", "éé"));
        assert!(!matches("a*b", "ac") && !matches("a*", "ba") && !matches("", "x") && !matches("a*ba", "aba-"));
    }

    #[test]
    fn directories_by_their_files() {
        let what = |files: &[&str]| {
            let root = tempfile::tempdir().unwrap();
            for name in files {
                fs::write(root.path().join(name), b"").unwrap();
            }
            let source = ModelSource::directory(root.path()).unwrap();
            of_files(&source).or_else(|| of_pickles(&source))
        };
        for (file, needle) in [
            ("starcoder2-Q4_K_M.gguf", "GGUF files (starcoder2-Q4_K_M.gguf) are not supported"),
            ("consolidated.safetensors", "consolidated.safetensors has the names of its author's own code"),
            ("consolidated.00.pth", "Meta's layout"),
            ("model.fp16.safetensors", "rename it to model.safetensors"),
            ("model.safetensors.index.fp16.json", "rename it to model.safetensors.index.json"),
            ("model.fp16-00001-of-00002.safetensors", "whose index is not there"),
            ("tf_model.h5", "TensorFlow"),
            ("model.onnx", "ONNX"),
            ("__0_0.distcp", "FSDP"),
            ("zero_to_fp32.py", "join its parts with zero_to_fp32.py"),
            ("snapshots", "give the hub id"),
            ("checkpoint-500", "such as checkpoint-500"),
            ("model.pt", "pickled PyTorch weights"),
        ] {
            let message = what(&[file, "README.md"]).unwrap_or_default();
            assert!(message.contains(needle), "{file}: {message}");
        }
        assert_eq!(what(&["README.md", "tokenizer.json", "model.safetensors"]), None);
        assert_eq!(what(&["pytorch_model.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"]), None);
    }

    #[test]
    fn an_adapter_names_its_base() {
        let root = tempfile::tempdir().unwrap();
        let source = ModelSource::directory(root.path()).unwrap();
        assert_eq!(adapter(&source), None);
        for (json, expected) in [
            (
                r#"{"base_model_name_or_path":"bigcode/starcoder2-3b","peft_type":"LORA","r":NaN}"#,
                "an adapter (LORA) of bigcode/starcoder2-3b",
            ),
            (r#"{"base_model_name_or_path":null}"#, "an adapter of another model"),
            ("{", "an adapter of another model"),
        ] {
            fs::write(root.path().join(ADAPTER_CONFIG), json).unwrap();
            assert_eq!(adapter(&source).as_deref(), Some(expected));
        }
        assert!(
            of_files(&source).unwrap().starts_with("this is an adapter of another model, not a whole model; merge")
        );
    }

    #[test]
    fn files_by_their_first_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, needle) in [
            (&b"GGUF\x03\0\0\0"[..], "GGUF"),
            (b"PK\x03\x04\0\0", "zip archive"),
            (b"\x80\x02\x8a\x0al", "pickle"),
            (&[0x1f, 0x8b, 8, 0], "gzip"),
            (&tar, "tar"),
            (b"  \n<!DOCTYPE html><html>", "web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        ] {
            assert!(of_content(bytes).unwrap().0.contains(needle));
            assert!(of_model_file(bytes).0.contains(needle));
        }
        for length in [b"\x10\0\0", b"\x80\x02\0", b"\x1f\x8b\0"] {
            assert_eq!(of_content(&[length, &b"\0\0\0\0\0{\"a\":{}}"[..]].concat()), None);
        }
        assert_eq!(of_model_file(b"\x10\0\0\0\0\0\0\0{\"a\":{}}").0, "a single safetensors file, not a directory");
        for bytes in [&b""[..], b"{", b"{\"model_type\"", &[0; 600]] {
            assert_eq!((of_content(bytes), of_model_file(bytes).0), (None, "not a directory"));
        }
    }
}
