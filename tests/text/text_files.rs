//! Tokenizer and chat template of a model directory, and of the bundled model.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use rigel::checkpoint::ModelSource;
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, Infill, RepoContext, SpecialOutput, SpecialTokens, TextError,
    TokenId, Tokenizer,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

fn nano() -> Tokenizer {
    Tokenizer::from_source(&ModelSource::nano()).expect("readable").expect("nano has a tokenizer")
}

fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelSource) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, content).expect("written");
    }
    let source = ModelSource::directory(folder.path()).expect("a directory");
    (folder, source)
}

fn nano_file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/rigel-nano/model").join(name))
        .expect("readable")
}

#[test]
fn nano_tokenizes_its_own_formats() {
    let t = nano();
    assert_eq!(t.eos(), t.id("<|endoftext|>"));
    let text = "def f(x):\n    return x + 42  # ½ 你好\n";
    for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
        let ids = t.encode(text, special).expect("encodes");
        assert_eq!(t.decode(&ids, SpecialOutput::Keep).expect("decodes"), text);
    }
    let infill = Infill::from_tokenizer(&t).expect("nano fills in code");
    let ids = infill.prompt(&t, "a", "b", &RepoContext::default()).expect("a prompt");
    assert_eq!(t.decode(&ids, SpecialOutput::Keep).expect("decodes"), "<fim_prefix>a<fim_suffix>b<fim_middle>");
    assert_eq!(infill.stop_token_ids(), ["<file_sep>", "<|endoftext|>"].map(|token| t.id(token).expect("special")));
}

#[test]
fn nano_speaks_the_instruct_template() {
    let template = ChatTemplate::from_source(&ModelSource::nano()).expect("nano has one");
    let prompt = template.render(&[ChatMessage::user("Sort.")], AddGenerationPrompt::Yes).expect("renders");
    assert!(prompt.ends_with("### Instruction\nSort.\n\n### Response\n"), "{prompt:?}");
    let ids = nano().encode(&prompt, SpecialTokens::Parse).expect("encodes");
    assert_eq!(ids.first().copied(), nano().bos());
}

#[test]
fn a_directory_without_tokenizer_has_none() {
    let (_folder, source) = directory(&[]);
    assert!(Tokenizer::from_source(&source).expect("no error").is_none());
}

#[test]
fn a_base_model_has_no_chat_template() {
    let (folder, source) = directory(&[("tokenizer_config.json", r#"{"eos_token": "<|endoftext|>"}"#)]);
    let error = ChatTemplate::from_source(&source).expect_err("a base model");
    assert!(matches!(error, TextError::NoChatTemplate { .. }), "{error}");
    assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
}

#[test]
fn chat_template_jinja_wins() {
    let config = r#"{"chat_template": "config", "bos_token": "<s>"}"#;
    let render = |files: &[(&str, &str)]| {
        let (_folder, source) = directory(files);
        ChatTemplate::from_source(&source).and_then(|t| t.render(&[], AddGenerationPrompt::No)).expect("renders")
    };
    assert_eq!(render(&[("tokenizer_config.json", config)]), "config");
    let file = ("chat_template.jinja", "{{ bos_token }}file");
    assert_eq!(render(&[("tokenizer_config.json", config), file]), "<s>file");
}

/// What transformers 5.23 makes of directories of files: tools/goldens/tokenizer_files.py.
#[derive(Deserialize)]
struct Goldens {
    files: Map<String, Value>,
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    files: Map<String, Value>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Tokens {
        named: BTreeMap<String, Option<TokenId>>,
        special: Vec<TokenId>,
        added: BTreeMap<String, String>,
        ids: Vec<Vec<TokenId>>,
        prompt_ids: Vec<Vec<TokenId>>,
    },
    Chat {
        chat: String,
    },
    NoChat {
        chat_error: String,
    },
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../goldens/tokenizer_files.json")).expect("well formed")
}

impl Goldens {
    /// The directory of a case.
    fn directory(&self, changes: &Map<String, Value>) -> (tempfile::TempDir, ModelSource) {
        let mut files = self.files.clone();
        for (name, change) in changes {
            match (name.as_str(), change) {
                ("tokenizer.json", Value::Object(fields)) => {
                    let whole = files[name].as_object_mut().expect("an object");
                    fields.iter().for_each(|(field, value)| drop(whole.insert(field.clone(), value.clone())));
                }
                _ => drop(files.insert(name.clone(), change.clone())),
            }
        }
        let text = |content: &Value| content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        let files: Vec<(&str, String)> =
            files.iter().filter(|(_, v)| !v.is_null()).map(|(name, content)| (name.as_str(), text(content))).collect();
        directory(&files.iter().map(|(name, content)| (*name, content.as_str())).collect::<Vec<_>>())
    }
}

#[test]
fn files_mean_what_they_mean_in_transformers() {
    let goldens = goldens();
    assert!(goldens.cases.len() > 40);
    for case in &goldens.cases {
        let (name, (_folder, source)) = (&case.name, goldens.directory(&case.files));
        let t = Tokenizer::from_source(&source).expect(name).expect(name);
        let chat = || ChatTemplate::from_source(&source)?.render(&[ChatMessage::user("u")], AddGenerationPrompt::No);
        match &case.outcome {
            Outcome::Chat { chat: expected } => assert_eq!(&chat().expect(name), expected, "{name}"),
            Outcome::NoChat { chat_error } => {
                let error = chat().expect_err(name);
                assert!(matches!(error, TextError::NoDefaultTemplate { .. }), "{name}: {error}");
                // Both list the names that there are: ours with ", theirs with '.
                let (_, names) = chat_error.split_once('[').expect("a list");
                let names = names.trim_end_matches("].").replace('\'', "\"");
                assert!(error.to_string().contains(&names), "{name}: {error}, {names}");
            }
            Outcome::Tokens { named, special, added, ids, prompt_ids } => {
                for (field, found) in [("eos_token", t.eos()), ("bos_token", t.bos())] {
                    // A token that is new by its name alone ends or begins nothing here.
                    let untrained = name.as_str() == "named tokens that tokenizer.json lacks" && field == "bos_token";
                    assert_eq!(found, if untrained { None } else { named[field] }, "{name}: {field}");
                }
                let all = (0..t.vocab_size() as u32).map(TokenId);
                assert_eq!(&all.filter(|id| t.is_special(*id)).collect::<Vec<_>>(), special, "{name}");
                for (id, token) in added {
                    assert_eq!(t.id(token).map(|id| id.to_string()).as_ref(), Some(id), "{name}: {token}");
                }
                for (text, (ids, prompt_ids)) in goldens.texts.iter().zip(ids.iter().zip(prompt_ids)) {
                    assert_eq!(&t.encode(text, SpecialTokens::Parse).expect(name), ids, "{name}: {text:?}");
                    assert_eq!(
                        &t.encode_prompt(text, SpecialTokens::Parse).expect(name),
                        prompt_ids,
                        "{name}: {text:?}"
                    );
                    assert_eq!(&t.with_special_tokens(ids.clone()), prompt_ids, "{name}: {text:?}");
                    // Text that is not trusted never becomes one of the special tokens.
                    let literal = t.encode(text, SpecialTokens::AsText).expect(name);
                    let forged = literal.iter().filter(|id| special.contains(id) && Some(**id) != t.id("ret"));
                    assert_eq!(forged.count(), 0, "{name}: {text:?}");
                }
            }
        }
    }
}

/// tokenizer.json has the say where the files of its vocabulary are there as well.
#[test]
fn a_broken_vocabulary_beside_tokenizer_json_is_not_read() {
    let goldens = goldens();
    let changes = json!({"vocab.json": "{", "merges.txt": "a b c"});
    let (_folder, source) = goldens.directory(changes.as_object().expect("an object"));
    assert!(Tokenizer::from_source(&source).expect("not read").is_some());
}

#[test]
fn vocabulary_files_that_cannot_be_used_are_one_line() {
    let goldens = goldens();
    let merges = goldens.files["merges.txt"].as_str().expect("text");
    for (name, change, needle) in [
        ("merges.txt", Value::Null, "is missing, and vocab.json needs it"),
        ("vocab.json", Value::Null, "is missing, and merges.txt needs it"),
        ("vocab.json", json!("[1]"), "found [1], expected a JSON object"),
        ("vocab.json", json!({}), "found no token"),
        ("vocab.json", json!({"a": 0, "b": 0}), "id 0 belongs to more than one token"),
        ("vocab.json", json!({"a": -1}), "token \"a\": found -1, expected an id"),
        ("merges.txt", json!(format!("{merges}r e t\n")), "line 8: found \"r e t\", expected two tokens"),
        ("merges.txt", json!(format!("{merges}Ġ\n")), "line 8: found \"Ġ\", expected two tokens"),
        ("merges.txt", json!(format!("{merges}é e\n")), "line 8: found \"é e\", whose tokens, or what they make"),
        (
            "tokenizer_config.json",
            json!({"tokenizer_class": "RobertaTokenizer"}),
            "tokenizer_class \"RobertaTokenizer\"",
        ),
        ("tokenizer_config.json", json!({"tokenizer_class": 3}), "field `tokenizer_class`: found 3"),
        ("tokenizer_config.json", json!({"add_bos_token": true, "bos_token": null}), "`bos_token` does not name"),
    ] {
        // A class that can be built from these files, but where the case is about another.
        let mut files = json!({"tokenizer.json": null, "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}});
        files[name] = change;
        let (folder, source) = goldens.directory(files.as_object().expect("an object"));
        let message = Tokenizer::from_source(&source).expect_err(needle).to_string();
        assert!(message.starts_with(&folder.path().join(name).display().to_string()), "{message}");
        assert!(message.contains(needle) && !message.contains('\n'), "{message}");
    }
}

/// nano's vocabulary as its two files: what text without digits becomes is the same. (Only tokenizer.json isolates
/// digits; transformers' GPT2Tokenizer does not.)
#[test]
fn nano_without_tokenizer_json() {
    let json: Value = serde_json::from_str(&nano_file("tokenizer.json")).expect("JSON");
    let merges = json["model"]["merges"].as_array().expect("a list").iter();
    let line = |pair: &Value| format!("{} {}\n", pair[0].as_str().expect("text"), pair[1].as_str().expect("text"));
    let merges = "#version: 0.2\n".to_owned() + &merges.map(line).collect::<String>();
    let (vocab, config) = (json["model"]["vocab"].to_string(), nano_file("tokenizer_config.json"));
    let (_folder, source) =
        directory(&[("vocab.json", &vocab), ("merges.txt", &merges), ("tokenizer_config.json", &config)]);
    let t = Tokenizer::from_source(&source).expect("readable").expect("files");
    assert_eq!((t.vocab_size(), t.eos(), t.bos()), (nano().vocab_size(), nano().eos(), nano().bos()));
    for text in ["def f(self):\n    return self.x  # ½ 你好\n", "<fim_prefix>a<|endoftext|>", "\n\n\t  x"] {
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            assert_eq!(t.encode(text, special).expect("encodes"), nano().encode(text, special).expect("encodes"));
        }
    }
}

/// Files that tokenizer.json can do without are no error, until what they hold is asked for.
#[test]
fn files_that_are_not_needed_do_not_stop_a_tokenizer() {
    let tokenizer = nano_file("tokenizer.json");
    let expected = nano().encode("def f(x): <file_sep>", SpecialTokens::Parse).expect("encodes");
    for (name, content) in [
        ("tokenizer_config.json", ""),
        ("tokenizer_config.json", "{\"eos_token\": "),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "{"),
        ("special_tokens_map.json", r#"{"eos_token": 1}"#),
        ("added_tokens.json", "null"),
        (
            "tokenizer_config.json",
            r#"{"eos_token": "</s>", "pad_token": "[PAD]", "chat_template": [{"name": "tool_use"}]}"#,
        ),
    ] {
        let (_folder, source) = directory(&[("tokenizer.json", &tokenizer), (name, content)]);
        let t = Tokenizer::from_source(&source).expect(content).expect(content);
        assert_eq!(t.encode("def f(x): <file_sep>", SpecialTokens::Parse).expect("encodes"), expected);
        assert_eq!(t.eos(), None);
        let message = ChatTemplate::from_source(&source).expect_err(content).to_string();
        assert!(!message.contains('\n'), "{message}");
        if name == "tokenizer_config.json" {
            assert!(message.contains("tokenizer_config.json: "), "{message}");
            assert!(!message.contains("base model"), "{message}");
        }
    }
    // A byte order mark and Python's numbers.
    let config = format!(
        "\u{feff}{}",
        nano_file("tokenizer_config.json").replace("1000000000000000019884624838656", "Infinity")
    );
    let (_folder, source) =
        directory(&[("tokenizer.json", &format!("\u{feff}{tokenizer}")), ("tokenizer_config.json", &config)]);
    assert_eq!(Tokenizer::from_source(&source).expect("readable").expect("a tokenizer").eos(), nano().eos());
}

/// Fields of tokenizer_config.json that decide what text becomes. Every other one may hold anything.
const READ_FIELDS: [&str; 11] = [
    "added_tokens_decoder",
    "additional_special_tokens",
    "extra_special_tokens",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "split_special_tokens",
];

fn any_value() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(null),
        json!(0),
        json!(-1.5),
        json!(1e300),
        json!(true),
        json!(false),
        json!(""),
        json!("<file_sep>"),
        json!("GPT2Tokenizer"),
        json!("LlamaTokenizer"),
        json!("{% for %}"),
        json!([]),
        json!(["<new>", {"name": "default", "template": 3}]),
        json!({}),
        json!({"content": 1}),
        json!({"1": {"content": "<new>"}}),
        json!({"content": "<new>", "special": "yes"}),
    ])
}

/// Fields of published tokenizer_config.json files, and others.
fn any_field() -> impl Strategy<Value = String> {
    let known = [
        "add_prefix_space",
        "add_bos_token",
        "add_eos_token",
        "chat_template",
        "clean_up_tokenization_spaces",
        "model_max_length",
        "tokenizer_class",
        "vocab_size",
        "errors",
        "padding_side",
        "truncation_side",
        "legacy",
        "use_default_system_prompt",
        "processor_class",
        "auto_map",
        "name_or_path",
        "fast_tokenizer_files",
        "response_schema",
        "backend",
        "is_local",
        "max_length",
        "stride",
        "added_tokens",
        "eos_token_id",
        "image_token_index",
        "init_inputs",
        "tokenizer_file",
    ];
    prop_oneof![prop::sample::select(known.to_vec()).prop_map(str::to_owned), "[a-z_]{0,12}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// As in the published files of StarCoder2, whose fields all name tokens that the vocabulary has.
    #[test]
    fn fields_that_are_not_read_change_nothing(changes in prop::collection::vec((any_field(), any_value()), 1..4)) {
        let goldens = goldens();
        let text = "ret a  12 <file_sep> <|endoftext|>in";
        let outcome = |config: &Value| {
            let (_folder, source) = goldens.directory(&Map::from_iter([("tokenizer_config.json".to_owned(), config.clone())]));
            let t = Tokenizer::from_source(&source).expect("unread fields are no error").expect("a tokenizer");
            let ids = t.encode_prompt(text, SpecialTokens::Parse).expect("encodes");
            let literal = t.encode(text, SpecialTokens::AsText).expect("encodes");
            let texts = [SpecialOutput::Keep, SpecialOutput::Skip].map(|special| t.decode(&ids, special).expect("decodes"));
            // Looked for, whatever comes of it.
            let _ = ChatTemplate::from_source(&source).and_then(|t| t.render(&[], AddGenerationPrompt::No));
            (ids, literal, texts, t.eos(), t.bos(), t.vocab_size())
        };
        let config = json!({"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"});
        let mut changed = config.clone();
        for (field, value) in changes {
            // A string under a name that ends so is a token of the model's own.
            if !READ_FIELDS.contains(&field.as_str()) && !field.ends_with("_token") {
                changed[field] = value;
            }
        }
        prop_assert_eq!(outcome(&changed), outcome(&config));
    }

    /// The fields that are read, with anything in them: a tokenizer or one line that names the file, never a panic.
    #[test]
    fn fields_that_are_read_may_hold_anything(
        changes in prop::collection::vec((prop::sample::select(READ_FIELDS.to_vec()), any_value()), 1..4),
        with_tokenizer_json in any::<bool>(),
    ) {
        let goldens = goldens();
        let config = Value::Object(changes.into_iter().map(|(field, value)| (field.to_owned(), value)).collect());
        let mut files = Map::from_iter([("tokenizer_config.json".to_owned(), config)]);
        if !with_tokenizer_json {
            files.insert("tokenizer.json".to_owned(), Value::Null);
        }
        let (folder, source) = goldens.directory(&files);
        match Tokenizer::from_source(&source) {
            Ok(t) => {
                let t = t.expect("a tokenizer");
                let ids = t.encode_prompt("ret <new> <|endoftext|>", SpecialTokens::Parse).expect("encodes");
                t.decode(&ids, SpecialOutput::Skip).expect("decodes");
            }
            Err(error) => {
                let message = error.to_string();
                prop_assert!(message.contains(&folder.path().display().to_string()), "{}", message);
                prop_assert!(!message.contains('\n'), "{}", message);
            }
        }
    }
}

#[test]
fn errors_name_the_file() {
    let tokenizer = nano_file("tokenizer.json");
    for (files, name, needle) in [
        (vec![("tokenizer.json", &tokenizer[..1000])], "tokenizer.json", "not a tokenizer"),
        (
            vec![("tokenizer.json", &tokenizer), ("tokenizer_config.json", r#"{"added_tokens_decoder": [1]}"#)],
            "tokenizer_config.json",
            "field `added_tokens_decoder`: found [1]",
        ),
        (
            vec![("tokenizer.json", &tokenizer), ("added_tokens.json", r#"{"<file_sep>": 7}"#)],
            "added_tokens.json",
            "token \"<file_sep>\" is to have id 7, but in ",
        ),
    ] {
        let (folder, source) = directory(&files);
        let message = Tokenizer::from_source(&source).expect_err(needle).to_string();
        assert!(message.starts_with(&folder.path().join(name).display().to_string()), "{message}");
        assert!(message.contains(needle) && !message.contains('\n'), "{message}");
    }
}
