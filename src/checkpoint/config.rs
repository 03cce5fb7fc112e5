//! config.json: the numbers that say what the network is, with Hugging Face's defaults, checked before anything else
//! is opened.
//!
//! Keys that Hugging Face's own code does not read are ignored here too, whatever their values: the published 7B
//! carries `activation_function`, an old 15B revision a stray `rms_norm_eps`, and transformers does not look at
//! `layer_types` of a StarCoder2. What the numbers mean for the forward pass is said one floor up, in `model`.

use std::num::NonZeroU32;

use serde_json::Value;

use super::error::{CheckpointError, shown, shown_value};
use super::json::Object;

/// The network families that Rigel runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Family {
    /// `model_type: "starcoder2"`.
    StarCoder2,
}

impl Family {
    /// Every family, by the `model_type` that selects it.
    const ALL: [(&'static str, Family); 1] = [("starcoder2", Family::StarCoder2)];

    /// The family's `model_type` in config.json.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::StarCoder2 => "starcoder2",
        }
    }
}

/// config.json, parsed and checked. Fields carry the file's names.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// From `model_type`.
    pub family: Family,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP's inner activations.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head, even. Explicit in the file, or `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Name of the MLP's activation function.
    pub hidden_act: String,
    /// Added to the variance in the norms.
    pub norm_epsilon: f64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Divisor of the rotary embedding's frequencies: the `factor` of the rope type `linear`; 1 for no scaling.
    pub rope_factor: f64,
    /// Keys a query sees, itself included (`q - k <= W - 1`); `None` for all.
    pub sliding_window: Option<NonZeroU32>,
    /// Whether the linear layers have biases. The norms always have theirs.
    pub use_bias: bool,
    /// Whether the embedding matrix is the output head too.
    pub tie_word_embeddings: bool,
    /// Ids that end a text; may hold ids at or above `vocab_size`.
    pub eos_token_ids: Vec<u32>,
    /// What the file says about a quantisation of the weights, if anything: `quant_method "gptq"`. For messages: the
    /// tensors decide whether the weights are quantised.
    pub quantization: Option<String>,
    /// `dtype` or `torch_dtype`, for information: the tensors' own dtypes rule.
    pub dtype: Option<String>,
    /// Path of the file, for messages.
    pub file: String,
}

/// The largest size that a field may give. Products of two of them fit a u64.
const MAX_SIZE: u32 = 1 << 31;
/// The most layers; the names of their tensors are made from this number alone, before any file is looked at.
const MAX_LAYERS: u32 = 10_000;
/// The widest head; a table of this size is made from the number alone.
const MAX_HEAD_DIM: u32 = 1 << 16;

// Defaults of transformers' `Starcoder2Config` (4.39 to 5.23) for keys that are absent.
const DEFAULT_VOCAB_SIZE: usize = 49152;
const DEFAULT_HIDDEN_SIZE: usize = 3072;
const DEFAULT_INTERMEDIATE_SIZE: usize = 12288;
const DEFAULT_LAYERS: usize = 30;
const DEFAULT_HEADS: usize = 24;
const DEFAULT_KV_HEADS: usize = 2;
const DEFAULT_MAX_POSITIONS: usize = 4096;
const DEFAULT_HIDDEN_ACT: &str = "gelu_pytorch_tanh";
const DEFAULT_NORM_EPSILON: f64 = 1e-5;
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_EOS: u32 = 50256;

impl Config {
    /// Reads `bytes`, the content of `file` (a path for messages).
    ///
    /// # Errors
    /// Malformed JSON; an unsupported `model_type` or rope type; a number that is 0, negative, not an
    /// integer or too large, or that does not divide another. Nothing larger than the file is allocated.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Config, CheckpointError> {
        let object = Object::parse(bytes, file)?;
        let family = family(&object, file)?;

        let size = |field: &str, default| Ok(object.size(field, MAX_SIZE)?.unwrap_or(default));
        let hidden_size: usize = size("hidden_size", DEFAULT_HIDDEN_SIZE)?;
        let num_attention_heads = size("num_attention_heads", DEFAULT_HEADS)?;
        let num_hidden_layers = object.size("num_hidden_layers", MAX_LAYERS)?.unwrap_or(DEFAULT_LAYERS);
        let (rope_theta, rope_factor) = rope(&object)?;
        let config = Config {
            family,
            vocab_size: size("vocab_size", DEFAULT_VOCAB_SIZE)?,
            hidden_size,
            intermediate_size: size("intermediate_size", DEFAULT_INTERMEDIATE_SIZE)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: size("num_key_value_heads", DEFAULT_KV_HEADS)?,
            head_dim: head_dim(&object, hidden_size, num_attention_heads)?,
            max_position_embeddings: size("max_position_embeddings", DEFAULT_MAX_POSITIONS)?,
            hidden_act: object.text("hidden_act")?.unwrap_or(DEFAULT_HIDDEN_ACT).to_owned(),
            norm_epsilon: object.positive("norm_epsilon")?.unwrap_or(DEFAULT_NORM_EPSILON),
            rope_theta,
            rope_factor,
            sliding_window: window(&object)?,
            use_bias: object.flag("use_bias")?.unwrap_or(true),
            // Absent means true: the published 3B and 7B rely on it.
            tie_word_embeddings: object.flag("tie_word_embeddings")?.unwrap_or(true),
            eos_token_ids: object.token_ids("eos_token_id")?.unwrap_or_else(|| vec![DEFAULT_EOS]),
            quantization: quantization(&object),
            // transformers writes `dtype` from 4.56 on, `torch_dtype` before.
            dtype: ["dtype", "torch_dtype"].iter().find_map(|field| object.get(field)?.as_str()).map(str::to_owned),
            file: file.to_owned(),
        };
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", config.num_attention_heads);
            return Err(object.wrong_as("num_key_value_heads", config.num_key_value_heads.to_string(), expected));
        }
        config.check_total(&object)?;
        Ok(config)
    }

    /// That all weights together could be addressed, so that no count made of these numbers overflows.
    fn check_total(&self, object: &Object) -> Result<(), CheckpointError> {
        let [vocab, hidden, inner, layers, heads, head_dim] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.head_dim,
        ]
        .map(|n| n as u128);
        // No term exceeds 2^31 * 2^47 * 2^14 * 8: a u128 holds the sum. As many KV heads as heads is the most.
        let layer = 4 * hidden * heads * head_dim + 2 * hidden * inner + 3 * heads * head_dim + inner + 6 * hidden;
        let parameters = 2 * vocab * hidden + layers * layer + 2 * hidden;
        let most = u128::from(u64::MAX >> 8);
        if parameters > most {
            return Err(object.wrong_as(
                "hidden_size",
                format!("{hidden}, which with the other sizes makes {parameters} parameters"),
                format!("sizes that make at most {most}"),
            ));
        }
        Ok(())
    }
}

fn family(object: &Object, file: &str) -> Result<Family, CheckpointError> {
    let model_type = object.text("model_type")?;
    let known = Family::ALL.iter().find(|(name, _)| Some(*name) == model_type);
    known.map(|(_, family)| *family).ok_or_else(|| CheckpointError::Unsupported {
        file: file.to_owned(),
        field: "model_type",
        found: model_type.map_or_else(|| "nothing".to_owned(), |name| format!("\"{}\"", shown(name))),
        supported: Family::ALL.map(|(name, _)| name).join(", "),
    })
}

fn quantization(object: &Object) -> Option<String> {
    // `quantization` is MLX's.
    let value = object.get("quantization_config").or(object.get("quantization"))?;
    Some(match value.get("quant_method").and_then(Value::as_str) {
        Some(method) => format!("quant_method \"{}\"", shown(method)),
        None => shown_value(value),
    })
}

fn window(object: &Object) -> Result<Option<NonZeroU32>, CheckpointError> {
    if object.is_null("sliding_window") {
        return Ok(None);
    }
    match object.size("sliding_window", MAX_SIZE) {
        Ok(window) => Ok(window.and_then(|w| NonZeroU32::new(w as u32))),
        Err(_) => {
            Err(object.wrong("sliding_window", format!("an integer from 1 to {MAX_SIZE}, or null for no window")))
        }
    }
}

fn head_dim(object: &Object, hidden_size: usize, heads: usize) -> Result<usize, CheckpointError> {
    let explicit = if object.is_null("head_dim") { None } else { object.size("head_dim", MAX_HEAD_DIM)? };
    let (field, head_dim) = match explicit {
        Some(head_dim) => ("head_dim", head_dim),
        None if hidden_size.is_multiple_of(heads) => ("hidden_size / num_attention_heads", hidden_size / heads),
        None => {
            let expected = format!("a divisor of hidden_size ({hidden_size}), or an explicit head_dim");
            return Err(object.wrong_as("num_attention_heads", heads.to_string(), expected));
        }
    };
    // RoPE turns the halves of a head against each other.
    if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM as usize {
        return Err(object.wrong_as(field, head_dim.to_string(), format!("an even number up to {MAX_HEAD_DIM}")));
    }
    Ok(head_dim)
}

/// The base of the rotary embedding and the divisor of its frequencies. As in transformers 5, the old `rope_scaling`
/// stands for the whole of the new `rope_parameters` where it is there and not empty, and a `rope_theta` inside is
/// taken before that beside it.
fn rope(object: &Object) -> Result<(f64, f64), CheckpointError> {
    let (mut theta, mut factor) = (None, 1.0);
    for field in ["rope_scaling", "rope_parameters"] {
        if let Some(parameters) = object.object(field)?.filter(|parameters| !parameters.is_empty()) {
            factor = rope_factor(&parameters, field)?;
            theta = parameters.positive("rope_theta")?;
            break;
        }
    }
    Ok((theta.or(object.positive("rope_theta")?).unwrap_or(DEFAULT_ROPE_THETA), factor))
}

/// By how much the rope type of `parameters` divides every frequency.
fn rope_factor(parameters: &Object, field: &'static str) -> Result<f64, CheckpointError> {
    // An object without a type is what transformers calls default too.
    let named = parameters.text("rope_type")?.or(parameters.text("type")?);
    let rope_type = named.unwrap_or("default");
    let factor = |of: &Object| of.positive("factor").ok().flatten();
    let unscaled = match rope_type {
        // A factor that no type goes with was meant to change something.
        "default" => named.is_some() || factor(parameters).is_none_or(|factor| factor == 1.0),
        "linear" => {
            let found = parameters.positive("factor")?;
            return found.ok_or_else(|| parameters.wrong("factor", "a number above 0"));
        }
        // These stretch the lower frequencies by the factor, so that 1 changes none; yarn's scaling of attention is
        // that of the factor too, unless the file has another one.
        "dynamic" | "llama3" => factor(parameters) == Some(1.0),
        "yarn" => {
            let attention = parameters.get("attention_factor").map_or(Some(1.0), Value::as_f64);
            factor(parameters) == Some(1.0) && attention == Some(1.0)
        }
        _ => false,
    };
    if unscaled {
        return Ok(1.0);
    }
    Err(CheckpointError::Unsupported {
        file: parameters.file().to_owned(),
        field,
        found: match parameters.get("factor") {
            Some(factor) if named.is_none() => format!("factor {} without a rope type", shown_value(factor)),
            Some(factor) => format!("rope type \"{}\" with factor {}", shown(rope_type), shown_value(factor)),
            None => format!("rope type \"{}\"", shown(rope_type)),
        },
        supported: "\"default\" (no scaling), \"linear\", and others with factor 1".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({"model_type": "starcoder2", "vocab_size": 99, "hidden_size": 64, "intermediate_size": 100,
               "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
               "max_position_embeddings": 512, "hidden_act": "gelu_pytorch_tanh"})
    }

    fn parse(value: &Value) -> Result<Config, CheckpointError> {
        Config::parse(value.to_string().as_bytes(), "config.json")
    }

    fn with(field: &str, value: Value) -> Result<Config, CheckpointError> {
        let mut config = base();
        config[field] = value;
        parse(&config)
    }

    #[test]
    fn published_configs() {
        let parse = |text: &str| Config::parse(text.as_bytes(), "config.json").unwrap();
        let b3 = parse(include_str!("../../models/configs/starcoder2-3b.json"));
        let b7 = parse(include_str!("../../models/configs/starcoder2-7b.json"));
        let b15 = parse(include_str!("../../models/configs/starcoder2-15b.json"));
        let shape = |c: &Config| (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads);
        assert_eq!(shape(&b3), (3072, 30, 24, 2));
        assert_eq!(shape(&b7), (4608, 32, 36, 4));
        assert_eq!(shape(&b15), (6144, 40, 48, 4));
        assert_eq!((b3.rope_theta, b7.rope_theta, b15.rope_theta), (999999.4420358813, 1e6, 1e5));
        assert_eq!((b3.tie_word_embeddings, b7.tie_word_embeddings, b15.tie_word_embeddings), (true, true, false));
        assert_eq!((b3.dtype.as_deref(), b7.dtype.as_deref()), (None, Some("bfloat16")));
        for config in [b3, b7, b15] {
            assert_eq!(config.intermediate_size, 4 * config.hidden_size);
            assert_eq!((config.vocab_size, config.head_dim), (49152, 128));
            assert_eq!((config.max_position_embeddings, config.sliding_window), (16384, NonZeroU32::new(4096)));
            // `activation_function: "gelu"` of the 7B must not win over `hidden_act`.
            assert_eq!((config.hidden_act.as_str(), config.norm_epsilon), ("gelu_pytorch_tanh", 1e-5));
            assert_eq!(config.eos_token_ids, [0]);
            assert!(config.use_bias);
        }
    }

    #[test]
    fn absent_keys_take_the_class_defaults() {
        let config = parse(&json!({"model_type": "starcoder2"})).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers, config.num_key_value_heads), (3072, 30, 2));
        assert_eq!((config.max_position_embeddings, config.rope_theta), (4096, 10_000.0));
        assert_eq!((config.sliding_window, config.tie_word_embeddings, config.use_bias), (None, true, true));
        assert_eq!(config.eos_token_ids, [50256]);
        assert_eq!((config.norm_epsilon, config.hidden_act.as_str()), (1e-5, "gelu_pytorch_tanh"));
    }

    #[test]
    fn both_generations_of_keys() {
        let v5 = json!({"rope_type": "default", "rope_theta": 100000.0});
        assert_eq!(with("rope_parameters", v5.clone()).unwrap().rope_theta, 1e5);
        assert_eq!(with("rope_theta", json!(100000)).unwrap().rope_theta, 1e5);
        let mut both = base();
        both["rope_parameters"] = v5;
        both["rope_theta"] = json!(7.0);
        assert_eq!(parse(&both).unwrap().rope_theta, 1e5);
        both["rope_parameters"] = json!({"rope_type": "default"});
        assert_eq!(parse(&both).unwrap().rope_theta, 7.0);
        assert_eq!(with("rope_scaling", Value::Null).unwrap().rope_theta, 10_000.0);
        assert_eq!(with("dtype", json!("float16")).unwrap().dtype.as_deref(), Some("float16"));
        assert_eq!(with("torch_dtype", json!("float16")).unwrap().dtype.as_deref(), Some("float16"));
        assert_eq!(with("head_dim", Value::Null).unwrap().head_dim, 16);
        assert_eq!(with("head_dim", json!(128)).unwrap().head_dim, 128);
        assert_eq!(with("sliding_window", Value::Null).unwrap().sliding_window, None);
        assert_eq!(with("eos_token_id", json!([0, 5])).unwrap().eos_token_ids, [0, 5]);
        assert!(with("eos_token_id", Value::Null).unwrap().eos_token_ids.is_empty());
        // Stray keys that other code bases read.
        assert_eq!(with("rms_norm_eps", json!(1e-3)).unwrap().norm_epsilon, 1e-5);
        assert_eq!(with("activation_function", json!("gelu")).unwrap().hidden_act, "gelu_pytorch_tanh");
    }

    #[test]
    fn fields_that_nobody_reads_may_hold_anything() {
        let sound = parse(&base()).unwrap();
        for field in ["layer_types", "bos_token_id", "pad_token_id", "attention_dropout", "architectures", "auto_map"] {
            for value in
                [json!(-1), json!("x"), json!(["full_attention"]), json!({"a": [1e20]}), json!(2.5), Value::Null]
            {
                assert_eq!(with(field, value).unwrap(), sound, "{field}");
            }
        }
        for value in [json!(7), json!(["float32"]), json!({})] {
            assert_eq!(with("torch_dtype", value).unwrap(), sound);
        }
        let text = base().to_string().replacen('{', "{\"initializer_range\": NaN, \"z\": -Infinity,", 1);
        assert_eq!(Config::parse(text.as_bytes(), "config.json").unwrap(), sound);
    }

    #[test]
    fn integers_may_be_written_as_floats() {
        let text = base().to_string().replace(":64", ":64.0").replace(":2,", ":2.0,");
        assert_ne!(text, base().to_string());
        assert_eq!(Config::parse(text.as_bytes(), "config.json").unwrap(), parse(&base()).unwrap());
    }

    #[test]
    fn linear_rope_scaling_and_factors_that_change_nothing() {
        let factor = |field: &str, value: Value| with(field, value).map(|config| config.rope_factor);
        for (field, name) in [("rope_scaling", "type"), ("rope_scaling", "rope_type"), ("rope_parameters", "rope_type")]
        {
            assert_eq!(factor(field, json!({name: "linear", "factor": 2.0})).unwrap(), 2.0);
            assert_eq!(factor(field, json!({name: "linear", "factor": 4})).unwrap(), 4.0);
            assert_eq!(factor(field, json!({name: "default", "factor": 4})).unwrap(), 1.0);
            assert_eq!(factor(field, json!({"factor": 1})).unwrap(), 1.0);
            assert!(
                factor(field, json!({"factor": 4})).unwrap_err().to_string().contains("factor 4 without a rope type")
            );
            for kind in ["linear", "dynamic", "llama3", "yarn"] {
                assert_eq!(factor(field, json!({name: kind, "factor": 1.0})).unwrap(), 1.0, "{kind}");
                assert!(factor(field, json!({name: kind, "factor": "x"})).is_err(), "{kind}");
            }
            for kind in ["dynamic", "llama3", "yarn", "longrope", "su", "proportional"] {
                let message = factor(field, json!({name: kind, "factor": 8.0})).unwrap_err().to_string();
                let begin =
                    format!("config.json: field {field}: rope type \"{kind}\" with factor 8.0 is not supported");
                assert!(message.starts_with(&begin), "{message}");
            }
            // These have a factor for each frequency.
            assert!(factor(field, json!({name: "longrope", "factor": 1.0, "short_factor": [2.0]})).is_err());
            assert!(factor(field, json!({name: "yarn", "factor": 1.0, "attention_factor": 1.2})).is_err());
        }
        let message = factor("rope_scaling", json!({"type": "linear"})).unwrap_err().to_string();
        assert!(message.contains("field rope_scaling.factor: found nothing, expected a number above 0"), "{message}");
        let message = factor("rope_scaling", json!({"type": "linear", "factor": 0})).unwrap_err().to_string();
        assert!(message.contains("field rope_scaling.factor: found 0, expected a number above 0"), "{message}");
        let both = with("rope_parameters", json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})).unwrap();
        assert_eq!((both.rope_theta, both.rope_factor), (5e5, 2.0));
        // As transformers 5.23's Starcoder2Config has it: `rope_scaling` stands for the whole of `rope_parameters`.
        let mut both = base();
        both["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5.0});
        both["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
        both["rope_theta"] = json!(7.0);
        let rope = |config: Config| (config.rope_theta, config.rope_factor);
        assert_eq!(rope(parse(&both).unwrap()), (7.0, 2.0));
        both["rope_scaling"] = json!({});
        assert_eq!(rope(parse(&both).unwrap()), (5.0, 1.0));
    }

    #[test]
    fn impossible_numbers_are_named() {
        let sizes = [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "sliding_window",
            "head_dim",
        ];
        for field in sizes {
            for value in [json!(0), json!(-1), json!(2.5), json!("8"), json!(1u64 << 40), json!([1])] {
                let message = with(field, value.clone()).unwrap_err().to_string();
                let begin = format!("config.json: field {field}: found {value}, expected an integer from 1 to ");
                assert!(message.starts_with(&begin), "{message}");
            }
        }
        for field in ["norm_epsilon", "rope_theta"] {
            for value in [json!(0), json!(-1.0), json!("x"), json!(1e300), json!(1e-300), Value::Null] {
                let message = with(field, value.clone()).unwrap_err().to_string();
                assert!(message.starts_with(&format!("config.json: field {field}: found ")), "{message}");
            }
        }
        for field in ["use_bias", "tie_word_embeddings"] {
            let message = with(field, json!("yes")).unwrap_err().to_string();
            assert!(message.contains("found \"yes\", expected true or false"), "{message}");
        }
        assert!(with("num_hidden_layers", json!(2_000_000_000)).is_err());
    }

    #[test]
    fn heads_that_do_not_divide() {
        let message = with("num_attention_heads", json!(5)).unwrap_err().to_string();
        assert!(message.contains("num_attention_heads: found 5, expected a divisor of hidden_size (64)"), "{message}");
        let message = with("num_key_value_heads", json!(3)).unwrap_err().to_string();
        assert!(
            message.contains("num_key_value_heads: found 3, expected a divisor of num_attention_heads (4)"),
            "{message}"
        );
        let message = with("head_dim", json!(15)).unwrap_err().to_string();
        assert!(message.contains("head_dim: found 15, expected an even number"), "{message}");
        let message = with("num_attention_heads", json!(64)).unwrap_err().to_string();
        assert!(message.contains("hidden_size / num_attention_heads: found 1, expected an even"), "{message}");
    }

    #[test]
    fn sizes_that_overflow_together() {
        let mut config = base();
        for field in ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"] {
            config[field] = json!(1u64 << 31);
        }
        config["head_dim"] = json!(65536);
        config["num_hidden_layers"] = json!(10_000);
        let message = parse(&config).unwrap_err().to_string();
        assert!(message.contains("field hidden_size: found 2147483648, which with the other sizes makes"), "{message}");
    }

    #[test]
    fn what_is_not_supported_says_what_is() {
        let unsupported = |config: Result<Config, CheckpointError>| config.unwrap_err().to_string();
        assert_eq!(
            unsupported(with("model_type", json!("llama"))),
            "config.json: field model_type: \"llama\" is not supported; supported: starcoder2"
        );
        assert_eq!(
            unsupported(parse(&json!({}))),
            "config.json: field model_type: nothing is not supported; supported: starcoder2"
        );
        let yarn = json!({"rope_type": "yarn", "factor": 4.0});
        assert_eq!(
            unsupported(with("rope_scaling", yarn.clone())),
            "config.json: field rope_scaling: rope type \"yarn\" with factor 4.0 is not supported; supported: \"default\" \
             (no scaling), \"linear\", and others with factor 1"
        );
        assert!(unsupported(with("rope_parameters", yarn)).contains("rope type \"yarn\""));
    }

    #[test]
    fn a_quantisation_is_noted_and_the_tensors_decide() {
        let noted = |field: &str, value: Value| with(field, value).unwrap().quantization;
        let gptq = json!({"quant_method": "gptq", "bits": 4});
        assert_eq!(noted("quantization_config", gptq).as_deref(), Some("quant_method \"gptq\""));
        assert_eq!(noted("quantization_config", json!(4)).as_deref(), Some("4"));
        assert_eq!(noted("quantization", json!({"bits": 4})).as_deref(), Some("{\"bits\":4}"));
        assert_eq!(noted("quantization_config", Value::Null), None);
    }

    #[test]
    fn files_that_are_not_json_objects() {
        let message = |bytes: &[u8]| Config::parse(bytes, "dir/config.json").unwrap_err().to_string();
        assert!(message(b"").starts_with("dir/config.json: found an empty file, expected JSON"));
        assert!(message(b"{\"a\": ").starts_with("dir/config.json: found JSON that ends too early (at line 1"));
        assert!(message(b"[1, 2]").starts_with("dir/config.json: found [1,2], expected a JSON object"));
        assert!(message(b"{\"a\": \"\xff\"}").contains("bytes that are not UTF-8 at offset 7"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        let deep = [b"{\"a\":".as_slice(), &vec![b'['; 100_000]].concat();
        assert!(message(&deep).contains("nested deeper than 127 levels"));
    }
}
