//! Which files of a model are fetched.

/// What Rigel reads beside the weights, and what Hugging Face's tokenizers read in its place.
const TEXT_FILES: [&str; 12] = [
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// The weights in one file: taken before shards, as transformers does.
const SINGLE: &str = "model.safetensors";
const SHARD: &str = "model-?????-of-?????.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What [`Wanted::WhatRigelReads`] is called in messages.
const WHAT_RIGEL_READS: &str = "one that Rigel reads (config.json, the tokenizer's files, *.safetensors)";

/// The files that are wanted.
pub(super) enum Wanted<'a> {
    /// What Rigel reads.
    WhatRigelReads,
    /// Those that match one of the patterns.
    Matching(&'a [String]),
}

impl<'a> Wanted<'a> {
    /// Files that match one of the patterns; without patterns, what Rigel reads.
    pub fn new(patterns: &'a [String]) -> Wanted<'a> {
        if patterns.is_empty() { Wanted::WhatRigelReads } else { Wanted::Matching(patterns) }
    }

    /// The first pattern that no name matches.
    pub fn idle(&self, names: &[&str]) -> Option<&'a str> {
        let Wanted::Matching(patterns) = self else { return None };
        let idle = |pattern: &&String| !names.iter().any(|name| matches(pattern, name));
        patterns.iter().find(idle).map(String::as_str)
    }

    /// Whether the file `name` is wanted, `names` being all that there are.
    pub fn includes(&self, name: &str, names: &[&str]) -> bool {
        match self {
            Wanted::Matching(patterns) => patterns.iter().any(|pattern| matches(pattern, name)),
            Wanted::WhatRigelReads => TEXT_FILES.iter().any(|text| matches(text, name)) || is_weights(name, names),
        }
    }

    /// What it is, in messages.
    pub fn describe(&self) -> String {
        match self {
            Wanted::WhatRigelReads => WHAT_RIGEL_READS.to_owned(),
            Wanted::Matching(patterns) => patterns.join(" or "),
        }
    }
}

/// Whether these are the weights: one file, else shards by their usual names, else all safetensors that there are.
fn is_weights(name: &str, names: &[&str]) -> bool {
    if names.contains(&SINGLE) {
        return name == SINGLE;
    }
    if name == INDEX {
        return true;
    }
    let shards = if names.iter().any(|name| matches(SHARD, name)) { SHARD } else { "*.safetensors" };
    !name.contains('/') && matches(shards, name)
}

/// Whether `name` is `pattern`, in which `*` stands for any characters, slashes too, and `?` for one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on if the characters after the last star do not match: one character further.
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                (p, n) = (at + 1, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&'static str], patterns: &[&str]) -> Vec<&'static str> {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let wanted = Wanted::new(&patterns);
        names.iter().copied().filter(|name| wanted.includes(name, names)).collect()
    }

    #[test]
    fn what_rigel_reads() {
        let others =
            [".gitattributes", "README.md", "pytorch_model.bin", "model.gguf", "onnx/model.onnx", "x/config.json"];
        let text = ["config.json", "tokenizer.json", "vocab.json", "additional_chat_templates/default.jinja"];
        let all = |weights: &[&'static str]| [&others, &text[..], weights].concat();
        let kept = |weights: &[&'static str]| [&text[..], weights].concat();
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX];
        let single = [SINGLE, "model.fp16.safetensors"];
        assert_eq!(chosen(&all(&shards), &[]), kept(&shards));
        // The single file comes first: the shards are the same weights again.
        assert_eq!(chosen(&all(&[&shards[..], &single].concat()), &[]), kept(&[SINGLE]));
        // Another layout of the same weights beside the shards.
        assert_eq!(chosen(&all(&[&shards[..], &["consolidated.safetensors"]].concat()), &[]), kept(&shards));
        assert_eq!(chosen(&all(&["weights.safetensors", "x/y.safetensors"]), &[]), kept(&["weights.safetensors"]));
        assert_eq!(chosen(&others, &[]), [""; 0]);
    }

    #[test]
    fn patterns_override() {
        let names = ["config.json", "a.gguf", "b/c.gguf", "README.md"];
        assert_eq!(chosen(&names, &["*.gguf"]), ["a.gguf", "b/c.gguf"]);
        assert_eq!(chosen(&names, &["?.gguf", "README*"]), ["a.gguf", "README.md"]);
        assert_eq!(chosen(&names, &["*"]), names);
        let patterns = ["*.json".to_owned(), "*.bin".to_owned()];
        assert_eq!(Wanted::new(&patterns).idle(&names), Some("*.bin"));
        assert_eq!(Wanted::new(&[]).idle(&names), None);
    }

    #[test]
    fn stars_and_question_marks() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYcZ", false),
            ("*a", "aaa", true),
            ("a?", "aé", true),
            ("**", "x", true),
            ("[a]", "a", false),
            ("[a]", "[a]", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        // As many stars as there are must not take forever.
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
        assert!(!matches(&format!("{}b", "a*".repeat(40)), &"a".repeat(2000)));
    }
}
