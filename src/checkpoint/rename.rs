//! Tensor names as training tools write them, back to the names that Hugging Face's classes have: a common prefix and
//! the wrappers' own components are left out, a missing `model.` is put in.
//!
//! Where the embedding is stands for the rest: its name says what is before all names. Whether every tensor is there
//! is not asked here.

use std::collections::{HashMap, HashSet};

/// Components that wrappers put between others: torch.compile, FSDP, activation checkpointing.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// The last components of the embedding's name; every network has one.
const EMBEDDING: &str = "embed_tokens.weight";
/// What Hugging Face's class with a head calls the network below the head.
const BASE: &str = "model.";
/// How names begin in a checkpoint of that network alone.
const BARE: [&str; 3] = ["embed_tokens.", "layers.", "norm."];

/// How stored names become expected ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Renaming {
    /// Wrappers that occur.
    wrappers: Vec<&'static str>,
    /// What names begin with once the wrappers are gone.
    prefix: String,
    /// Whether `model.` is missing.
    bare: bool,
}

impl Renaming {
    /// Looks at all stored names. Nothing is renamed in a checkpoint that has the embedding by its expected name and no
    /// wrappers, or that has no embedding, or more than one.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Renaming {
        let (mut wrappers, mut embeddings) = (Vec::new(), Vec::new());
        for name in names {
            // Most names hold no underscore in front of a component.
            for wrapper in WRAPPERS {
                if !wrappers.contains(&wrapper) && name.split('.').any(|part| part == wrapper) {
                    wrappers.push(wrapper);
                }
            }
            if name.ends_with(EMBEDDING) {
                embeddings.push(unwrapped(name));
            }
        }
        let prefixes: Vec<&str> = embeddings.iter().filter_map(|name| name.strip_suffix(EMBEDDING)).collect();
        let at_component = |prefix: &&str| prefix.is_empty() || prefix.ends_with('.');
        let mut prefixes: Vec<&str> = prefixes.into_iter().filter(at_component).collect();
        // Two shards may hold the same tensor.
        prefixes.sort_unstable();
        prefixes.dedup();
        let (prefix, bare) = match prefixes[..] {
            [prefix] => match prefix.strip_suffix(BASE).filter(at_component) {
                Some(prefix) => (prefix, false),
                None => (prefix, true),
            },
            _ => ("", false),
        };
        let (prefix, bare) = if prefixes.contains(&BASE) { ("", false) } else { (prefix, bare) };
        Renaming { wrappers, prefix: prefix.to_owned(), bare }
    }

    /// Whether no name changes.
    pub fn is_identity(&self) -> bool {
        self.wrappers.is_empty() && self.prefix.is_empty() && !self.bare
    }

    /// The name that is expected in place of `name`.
    pub fn apply(&self, name: &str) -> String {
        let name = if self.wrappers.is_empty() { name.to_owned() } else { unwrapped(name) };
        let name = name.strip_prefix(&self.prefix).unwrap_or(&name);
        match self.bare && BARE.iter().any(|begin| name.starts_with(begin)) {
            true => format!("{BASE}{name}"),
            false => name.to_owned(),
        }
    }

    /// What is done, in words that follow "tensors are read"; `None` where nothing is.
    pub fn described(&self) -> Option<String> {
        let mut parts: Vec<String> = self.wrappers.iter().map(|wrapper| format!("without `{wrapper}.`")).collect();
        if !self.prefix.is_empty() {
            parts.push(format!("without the prefix `{}`", super::error::shown(&self.prefix)));
        }
        if self.bare {
            parts.push(format!("with `{BASE}` put before them"));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    /// The new names of `names`, in their order. A name stays as it is where its new one is that of another; equal
    /// names, of a tensor that is stored twice, stay equal.
    pub fn apply_all<'a>(&self, names: &[&'a str]) -> Vec<String> {
        let mut taken: HashSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut renamed: HashMap<&'a str, String> = HashMap::new();
        let mut rename = |name: &&'a str| {
            let new = renamed.entry(name).or_insert_with(|| {
                let new = self.apply(name);
                if new != *name && !taken.insert(new.clone()) { (*name).to_owned() } else { new }
            });
            new.clone()
        };
        names.iter().map(&mut rename).collect()
    }
}

/// `name` without the wrappers' components.
fn unwrapped(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of a small network, each made by `change`, as they are read.
    fn read_from(change: impl Fn(&str) -> String) -> (Vec<String>, Option<String>) {
        let stored: Vec<String> = EXPECTED.iter().map(|name| change(name)).collect();
        let stored: Vec<&str> = stored.iter().map(String::as_str).collect();
        let renaming = Renaming::of(stored.iter().copied());
        assert_eq!(renaming.is_identity(), renaming.described().is_none());
        (renaming.apply_all(&stored), renaming.described())
    }

    const EXPECTED: [&str; 4] =
        ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.bias", "lm_head.weight"];

    #[test]
    fn names_of_training_tools_are_read_as_the_classes_have_them() {
        for prefix in [
            "_orig_mod.",
            "_fsdp_wrapped_module.",
            "module.",
            "base_model.model.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "_forward_module.",
            "language_model.",
            "a.b.model.",
            "model.",
        ] {
            let (names, described) = read_from(|name| format!("{prefix}{name}"));
            assert_eq!(names, EXPECTED, "{prefix}");
            assert!(described.is_some(), "{prefix}");
        }
        let inside = |wrapper: &str| {
            read_from(|name| name.replace("layers.0.", &format!("layers.0.{wrapper}.")).replace("self_attn", wrapper))
        };
        for wrapper in WRAPPERS {
            let (names, described) = inside(wrapper);
            assert_eq!(names[1], "model.layers.0.q_proj.weight");
            assert_eq!(described.unwrap(), format!("without `{wrapper}.`"));
        }
    }

    #[test]
    fn the_network_without_its_head_gets_its_name() {
        let cut = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
        let (names, described) = read_from(cut);
        assert_eq!(names, EXPECTED);
        assert_eq!(described.unwrap(), "with `model.` put before them");
        let (names, described) = read_from(|name| format!("module.{}", cut(name)));
        assert_eq!(names, EXPECTED);
        assert_eq!(described.unwrap(), "without the prefix `module.`, with `model.` put before them");
        // What belongs to no network keeps its name.
        let renaming = Renaming::of(["embed_tokens.weight", "score.weight"].into_iter());
        assert_eq!(renaming.apply_all(&["score.weight", "norm.weight"]), ["score.weight", "model.norm.weight"]);
    }

    #[test]
    fn names_stay_where_they_are_expected_or_unclear() {
        assert_eq!(read_from(str::to_owned), (EXPECTED.map(str::to_owned).to_vec(), None));
        for names in [
            &["draft.model.embed_tokens.weight", "main.model.embed_tokens.weight"][..],
            &["model.embed_tokens.weight", "draft.model.embed_tokens.weight"],
            &["transformer.wte.weight"],
            &["xembed_tokens.weight"],
            &[],
        ] {
            assert!(Renaming::of(names.iter().copied()).is_identity(), "{names:?}");
        }
        // A tensor that two shards hold is one name still.
        let names = ["module.model.embed_tokens.weight", "module.lm_head.weight", "module.model.embed_tokens.weight"];
        assert_eq!(
            Renaming::of(names.into_iter()).apply_all(&names),
            ["model.embed_tokens.weight", "lm_head.weight", "model.embed_tokens.weight"]
        );
        // Not two tensors of one name.
        let names = ["module.model.embed_tokens.weight", "module.lm_head.weight", "lm_head.weight"];
        let renaming = Renaming::of(names.into_iter());
        assert_eq!(
            renaming.apply_all(&names),
            ["model.embed_tokens.weight", "module.lm_head.weight", "lm_head.weight"]
        );
    }
}
