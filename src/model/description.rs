//! Description of a checkpoint for people (`rigel inspect`), from headers alone.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;

use crate::checkpoint::{Checkpoint, CheckpointError, Config, Family, ModelSource, WeightFile};

use super::counts::Counts;
use super::rope::Rope;
use super::spec::{Activation, ModelSpec, NormKind, Part};

/// Tensors of one dtype.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StoredDtype {
    /// The dtype's safetensors name.
    pub dtype: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes they take.
    pub bytes: u64,
}

/// The network of a [`ModelSpec`] in a few numbers; where layers differ, those of the first one, and the widest window.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Network {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Intermediate size of the MLP.
    pub intermediate_size: usize,
    /// The norms.
    pub norm: NormSummary,
    /// The MLP's activation; `None` in a network without layers.
    pub activation: Option<Activation>,
    /// Whether matrices have biases.
    pub bias: bool,
    /// The rotary embedding; `None` where there is none.
    pub rope: Option<Rope>,
    /// Keys a query sees, itself included; `None`: all.
    pub window: Option<NonZeroU32>,
    /// Positions that the model was made for.
    pub max_positions: usize,
    /// Whether the head is the embedding matrix.
    pub tied_head: bool,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Ids that end an assistant's turn as far as the checkpoint says.
    pub chat_eos_token_ids: Vec<u32>,
}

/// A norm's formula.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct NormSummary {
    /// The formula.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
}

impl Network {
    /// The summary of `spec`.
    pub fn of(spec: &ModelSpec) -> Network {
        let has_bias = |part: Part<'_>| matches!(part, Part::Linear(linear) if linear.bias.is_some());
        Network {
            family: spec.family,
            vocab_size: spec.vocab_size,
            hidden_size: spec.hidden_size,
            layers: spec.layers.len(),
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            intermediate_size: spec.intermediate_size(),
            norm: NormSummary { kind: spec.final_norm.kind, eps: spec.final_norm.eps },
            activation: spec.layers.first().and_then(|layer| layer.mlp.activation()),
            bias: spec.layers.first().is_some_and(|layer| layer.parts().into_iter().any(has_bias)),
            rope: spec.ropes.first().copied(),
            window: spec.window(),
            max_positions: spec.max_positions,
            tied_head: spec.tied_head(),
            eos_token_ids: spec.eos_token_ids.clone(),
            chat_eos_token_ids: spec.chat_eos_token_ids.clone(),
        }
    }
}

/// Description of a checkpoint. Serialises to one JSON object.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Description {
    /// Hub id or path.
    pub source: String,
    /// Shapes and choices of the network.
    #[serde(flatten)]
    pub network: Network,
    #[serde(skip)]
    spec: ModelSpec,
    /// All parameters, exactly.
    pub parameters: u64,
    /// Parameters of one layer, exactly.
    pub parameters_per_layer: u64,
    /// Stored tensors by dtype, unused ones included.
    pub stored: Vec<StoredDtype>,
    /// Bytes of weights, as stored, that one decoded token reads.
    pub weight_bytes_per_token: u64,
    /// Bytes of keys and values that one token adds to an f32 cache (the CPU backend's).
    pub kv_bytes_per_token_f32: u64,
    /// The same for a 16-bit cache.
    pub kv_bytes_per_token_bf16: u64,
    /// The weight files.
    pub files: Vec<WeightFile>,
    /// Names of tensors that the network does not use.
    pub unused_tensors: Vec<String>,
    /// Other facts worth knowing before using the checkpoint.
    pub notices: Vec<String>,
}

impl Description {
    /// Describes `checkpoint` after checking that it has the tensors its config.json calls for.
    ///
    /// # Errors
    /// An unsupported network; a missing, misshaped or unusable tensor.
    pub fn of(checkpoint: &Checkpoint) -> Result<Description, CheckpointError> {
        let spec = ModelSpec::from_checkpoint(checkpoint)?;
        let unused_tensors = checkpoint.check(&spec.tensors())?;
        let counts = spec.counts();
        Ok(Description {
            source: checkpoint.source().to_string(),
            parameters: counts.parameters,
            parameters_per_layer: counts.layer,
            stored: stored_dtypes(checkpoint),
            weight_bytes_per_token: stored_bytes_per_token(checkpoint, &spec, &unused_tensors),
            kv_bytes_per_token_f32: counts.kv_bytes_per_token(4),
            kv_bytes_per_token_bf16: counts.kv_bytes_per_token(2),
            files: checkpoint.files().to_vec(),
            unused_tensors,
            notices: checkpoint.notices(),
            network: Network::of(&spec),
            spec,
        })
    }

    /// Describes the network of a config.json alone: there are no files, and bytes are those of 16-bit weights.
    ///
    /// # Errors
    /// No config.json, or an unsupported network.
    pub fn of_shape(source: &ModelSource) -> Result<Description, CheckpointError> {
        let config = Config::parse(&source.config_json()?, &source.describe("config.json"))?;
        let spec = ModelSpec::from_config(&config)?;
        let counts = spec.counts();
        Ok(Description {
            source: source.to_string(),
            parameters: counts.parameters,
            parameters_per_layer: counts.layer,
            stored: Vec::new(),
            weight_bytes_per_token: counts.weight_bytes_per_token(2),
            kv_bytes_per_token_f32: counts.kv_bytes_per_token(4),
            kv_bytes_per_token_bf16: counts.kv_bytes_per_token(2),
            files: Vec::new(),
            unused_tensors: Vec::new(),
            notices: vec!["a shape without weights: bytes of weights are those of 16-bit ones".to_owned()],
            network: Network::of(&spec),
            spec,
        })
    }

    /// The network.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Parameters and costs of the network.
    pub fn counts(&self) -> Counts {
        self.spec.counts()
    }
}

fn stored_dtypes(checkpoint: &Checkpoint) -> Vec<StoredDtype> {
    let usable = checkpoint.tensors().map(|tensor| (tensor.dtype().to_string(), tensor.bytes().len() as u64));
    let opaque = checkpoint.opaque_tensors().map(|tensor| (tensor.dtype.clone(), tensor.bytes));
    let mut by_dtype = BTreeMap::<String, (u64, u64)>::new();
    for (dtype, bytes) in usable.chain(opaque) {
        let total = by_dtype.entry(dtype).or_default();
        *total = (total.0 + 1, total.1 + bytes);
    }
    by_dtype.into_iter().map(|(dtype, (tensors, bytes))| StoredDtype { dtype, tensors, bytes }).collect()
}

/// [`Counts::parameters_read_per_token`] in the bytes of the dtypes that the tensors have.
fn stored_bytes_per_token(checkpoint: &Checkpoint, spec: &ModelSpec, unused: &[String]) -> u64 {
    let unused: HashSet<&str> = unused.iter().map(String::as_str).collect();
    let (embedding, tied) = (spec.embedding.tokens.tensor.as_str(), spec.tied_head());
    let read = |name: &str, bytes: u64, row: u64| match name {
        name if name == embedding && tied => bytes + row,
        name if name == embedding => row,
        name if unused.contains(name) => 0,
        _ => bytes,
    };
    let bytes = checkpoint.tensors().map(|tensor| {
        let row = spec.hidden_size * tensor.dtype().size();
        read(tensor.name(), tensor.bytes().len() as u64, row as u64)
    });
    // F64 is read as F32.
    let wide = checkpoint.opaque_tensors().filter(|tensor| checkpoint.dtype(&tensor.name).is_some());
    let wide = wide.map(|tensor| read(&tensor.name, tensor.bytes / 2, spec.hidden_size as u64 * 4));
    bytes.sum::<u64>() + wide.sum::<u64>()
}

/// `1234567` as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// One fact a line.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        let yes = |flag: bool| if flag { "yes" } else { "no" };
        let mut line = |what: &str, value: String| writeln!(f, "{what:<18} {value}");
        line("model", self.source.clone())?;
        line("family", self.spec.family.model_type().to_owned())?;
        line("parameters", format!("{} ({} a layer)", grouped(self.parameters), grouped(self.parameters_per_layer)))?;
        line("layers", network.layers.to_string())?;
        line("hidden", format!("{}, MLP {}", network.hidden_size, network.intermediate_size))?;
        line("heads", format!("{} query, {} key/value, {} wide", network.heads, network.kv_heads, network.head_dim))?;
        line("vocabulary", network.vocab_size.to_string())?;
        line("positions", network.max_positions.to_string())?;
        line("window", network.window.map_or_else(|| "none".to_owned(), |window| window.to_string()))?;
        line("rope theta", network.rope.map_or_else(|| "none".to_owned(), |rope| rope.theta.to_string()))?;
        line("biases", yes(network.bias).to_owned())?;
        line("tied head", yes(network.tied_head).to_owned())?;
        for stored in &self.stored {
            let bytes = grouped(stored.bytes);
            line("stored", format!("{bytes} bytes of {} in {} tensors", stored.dtype, stored.tensors))?;
        }
        line("weights a token", format!("{} bytes", grouped(self.weight_bytes_per_token)))?;
        let (wide, narrow) = (grouped(self.kv_bytes_per_token_f32), grouped(self.kv_bytes_per_token_bf16));
        line("KV cache a token", format!("{wide} bytes in f32, {narrow} in bf16"))?;
        for file in &self.files {
            line("file", format!("{} ({} bytes)", file.name, grouped(file.bytes)))?;
        }
        for name in &self.unused_tensors {
            line("not used", name.escape_debug().to_string())?;
        }
        for notice in &self.notices {
            line("notice", notice.clone())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_in_groups() {
        assert_eq!([0, 999, 1000, 15_957_889_024].map(grouped), ["0", "999", "1,000", "15,957,889,024"]);
    }

    #[cfg(feature = "nano")]
    #[test]
    fn nano_from_its_headers() {
        let checkpoint = Checkpoint::open(&ModelSource::nano()).unwrap();
        let description = Description::of(&checkpoint).unwrap();
        assert_eq!(description.unused_tensors, Vec::<String>::new());
        // Everything is bf16 and used, so the file's data is two bytes a parameter.
        let [stored] = &description.stored[..] else { panic!("{:?}", description.stored) };
        assert_eq!((stored.dtype.as_str(), stored.bytes), ("BF16", 2 * description.parameters));
        // The same number by two ways: from the stored tensors, and from the shapes.
        assert!(description.network.tied_head);
        assert_eq!(description.weight_bytes_per_token, description.counts().weight_bytes_per_token(2));
        let json = serde_json::to_value(&description).unwrap();
        assert_eq!(json["family"], "starcoder2");
        assert_eq!(json["vocab_size"], description.spec.vocab_size);
        assert_eq!(json["norm"]["kind"], "layer_norm");
        assert_eq!(json["files"][0]["name"], "model.safetensors");
        let text = description.to_string();
        assert!(text.contains("family             starcoder2\n"), "{text}");
        assert!(text.contains("window             128\n"), "{text}");
    }
}
