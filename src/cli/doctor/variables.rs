//! The variables of the environment that stand for options, and those of the hub: which are set, and what is wrong with
//! them.

use rigel::checkpoint::ModelSource;
use serde::Serialize;

use super::super::model_args::MODEL_VARIABLE;
use super::super::option_names::of_settings;
use super::super::{environment, parser, usage};
use super::text::{Finding, wrapped};

/// Variables of huggingface_hub. Their values are not shown: a token is a secret, and an address may hold one.
const HUB: [&str; 4] = ["HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH"];

/// A variable that is set.
#[derive(Debug, Serialize)]
pub(super) struct Variable {
    variable: String,
    /// None: it is not shown.
    value: Option<String>,
    /// What is wrong with the value, and what it should be.
    pub(super) problem: Option<String>,
}

/// The variables that are set. An empty one is not.
pub(super) fn find() -> Vec<Variable> {
    let options = environment::arguments(&parser()).into_iter().filter_map(|argument| {
        let value = environment::value(&argument)?.to_string_lossy().into_owned();
        let variable = argument.get_env()?.to_string_lossy().into_owned();
        let wrong = usage::wrong_value(&argument).or_else(|| missing_model(&variable, &value));
        Some(Variable {
            problem: wrong.map(|wrong| format!("{variable}={value}: {wrong}")),
            value: Some(value),
            variable,
        })
    });
    let mut found: Vec<Variable> = options.collect();
    found.sort_by(|a, b| a.variable.cmp(&b.variable));
    let problem = hub_problem();
    let of_hub = HUB.iter().filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    found.extend(of_hub.map(|name| {
        // The hub's messages begin with the variable.
        let is_of_this = |problem: &&String| problem.split(' ').next() == Some(*name);
        let problem = problem.as_ref().filter(is_of_this).cloned();
        Variable { variable: (*name).to_owned(), value: None, problem }
    }));
    found
}

/// Why the model that a variable names cannot be found.
fn missing_model(variable: &str, value: &str) -> Option<String> {
    // Shapes without weights are models of `rigel plan` and `rigel inspect`.
    let error = (variable == MODEL_VARIABLE).then(|| ModelSource::resolve_shape(value).err())??;
    Some(of_settings(&error.to_string()))
}

/// What is wrong with what the environment says of the hub.
#[cfg(feature = "hub")]
fn hub_problem() -> Option<String> {
    use rigel::hub::{Hub, HubError};
    match Hub::from_env() {
        Err(error @ HubError::Setting { .. }) => Some(error.to_string()),
        // To be offline is no fault.
        _ => None,
    }
}

#[cfg(not(feature = "hub"))]
fn hub_problem() -> Option<String> {
    None
}

/// The same for people; nothing where no variable is set.
pub(super) fn finding(variables: &[Variable]) -> Finding {
    let lines = variables.iter().flat_map(|Variable { variable, value, problem }| match (problem, value) {
        (Some(problem), _) => problem.split("; ").flat_map(wrapped).collect(),
        (None, Some(value)) => wrapped(&format!("{variable}={value}")),
        (None, None) => vec![format!("{variable} is set")],
    });
    Finding::new("settings", lines.collect())
}
