//! The families of networks: each is one file that makes a [`ModelSpec`] of a configuration, and one line in [`spec`].

mod starcoder2;

use crate::checkpoint::{CheckpointError, Config, Family};

use super::spec::{Activation, ModelSpec};

/// The output head of every family that does not tie it to the embedding.
pub(crate) const LM_HEAD: &str = "lm_head.weight";

/// The network that `config` describes, by its family.
pub(super) fn spec(config: &Config) -> Result<ModelSpec, CheckpointError> {
    match config.family {
        Family::StarCoder2 => starcoder2::spec(config),
    }
}

/// The activation functions that a family has, by the names that transformers gives them.
fn activation(config: &Config, names: &[(&str, Activation)]) -> Result<Activation, CheckpointError> {
    let found = config.hidden_act.as_str();
    names.iter().find(|(name, _)| *name == found).map(|(_, activation)| *activation).ok_or_else(|| {
        CheckpointError::Unsupported {
            file: config.file.clone(),
            field: "hidden_act",
            found: format!("{:?}", found.chars().take(64).collect::<String>()),
            supported: names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        }
    })
}
