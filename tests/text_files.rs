//! Tokenizer and chat template of a model directory, and of the bundled model.

use std::path::Path;

use rigel::checkpoint::ModelSource;
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, Infill, RepoContext, SpecialOutput, SpecialTokens, TextError,
    Tokenizer,
};

fn nano() -> Tokenizer {
    Tokenizer::from_source(&ModelSource::nano()).expect("readable").expect("nano has a tokenizer")
}

fn directory(files: &[(&str, &str)]) -> (tempfile::TempDir, ModelSource) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).expect("written");
    }
    let source = ModelSource::directory(folder.path()).expect("a directory");
    (folder, source)
}

fn nano_file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano").join(name)).expect("readable")
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

#[test]
fn errors_name_the_file() {
    let tokenizer = nano_file("tokenizer.json");
    for (files, name, needle) in [
        (vec![("tokenizer.json", &tokenizer[..1000])], "tokenizer.json", "not a tokenizer"),
        (vec![("tokenizer.json", &tokenizer), ("tokenizer_config.json", "{")], "tokenizer_config.json", "malformed"),
        (
            vec![("tokenizer.json", &tokenizer), ("special_tokens_map.json", r#"{"eos_token": 1}"#)],
            "special_tokens_map.json",
            "`eos_token`",
        ),
        (
            vec![("tokenizer.json", &tokenizer), ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#)],
            "tokenizer.json",
            "`eos_token`",
        ),
    ] {
        let (folder, source) = directory(&files);
        let message = Tokenizer::from_source(&source).expect_err(needle).to_string();
        assert!(message.starts_with(&folder.path().join(name).display().to_string()), "{message}");
        assert!(message.contains(needle) && !message.contains('\n'), "{message}");
    }
}
