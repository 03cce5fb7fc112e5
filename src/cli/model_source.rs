//! From a model's name to its files.

use rigel::checkpoint::ModelSource;

use super::error::CliError;

/// The model that `name` stands for, for what needs its weights or its tokenizer.
pub fn with_weights(name: &str) -> Result<ModelSource, CliError> {
    resolve(name, |name| format!("; `rigel synth {name} --out DIR` makes one of random weights"))
}

/// The same for commands that have `--dummy-weights`.
pub fn with_weights_or_dummy(name: &str) -> Result<ModelSource, CliError> {
    resolve(name, |name| format!(", or --dummy-weights {name}"))
}

fn resolve(name: &str, instead: impl Fn(&str) -> String) -> Result<ModelSource, CliError> {
    let source = ModelSource::resolve(name)?;
    match source.is_shape() {
        true => Err(CliError::Usage(format!("{name} is a shape without weights; give a checkpoint{}", instead(name)))),
        false => Ok(source),
    }
}
