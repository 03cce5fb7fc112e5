//! The real StarCoder2 tokenizer against vectors that Hugging Face's made, read in place from the shared data folder
//! (`../shared/data` beside the repository, or `$RIGEL_SHARED/data`). Each test says so when the data is absent.

use std::path::PathBuf;

use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, Detokenizer, Infill, RepoContext, SpecialOutput, SpecialTokens,
    TokenId, Tokenizer, TokenizerConfig,
};
use serde_json::Value;

/// bos and eos as in the published tokenizer_config.json (reference §3).
const CONFIG: &str = r#"{"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}"#;

const TEMPLATE: &str = include_str!("../data/starcoder2_instruct_template.jinja");

fn data(test: &str, name: &str) -> Option<Vec<u8>> {
    let shared = std::env::var_os("RIGEL_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let path = shared.join("data").join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {test}: {} is absent", path.display());
            None
        }
        Err(e) => panic!("{}: {e}", path.display()),
    }
}

fn config() -> TokenizerConfig {
    TokenizerConfig::from_bytes(Some((CONFIG.as_bytes(), "tokenizer_config.json")), None).expect("well formed")
}

fn tokenizer(test: &str) -> Option<Tokenizer> {
    let json = data(test, "starcoder2-tokenizer.json")?;
    Some(Tokenizer::with_config(&json, "starcoder2-tokenizer.json", &config()).expect("a tokenizer"))
}

fn ids(list: &[u32]) -> Vec<TokenId> {
    list.iter().copied().map(TokenId).collect()
}

fn streamed(tokenizer: &Tokenizer, ids: &[TokenId]) -> String {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), SpecialOutput::Keep);
    let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn the_vectors_of_hugging_face() {
    const NAME: &str = "the_vectors_of_hugging_face";
    const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
    let (Some(t), Some(inp), Some(out)) =
        (tokenizer(NAME), data(NAME, "starcoder2-tokenizer.inp"), data(NAME, "starcoder2-tokenizer.out"))
    else {
        return;
    };
    let (inp, out) = (String::from_utf8(inp).expect("UTF-8"), String::from_utf8(out).expect("UTF-8"));
    // llama.cpp's format: a separator line after each text, and one line of ids for each. (The reference counts 47:
    // the empty text after the last separator as well.)
    let texts = inp.strip_suffix(SEPARATOR).expect("ends with a separator").split(SEPARATOR).collect::<Vec<_>>();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((texts.len(), lines.len()), (46, 46));
    for (text, line) in texts.iter().zip(lines) {
        let expected: Vec<TokenId> = line.split_whitespace().map(|id| TokenId(id.parse().expect("a number"))).collect();
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            assert_eq!(t.encode(text, special).expect("encodes"), expected, "{text:?}");
            assert_eq!(t.encode_prompt(text, special).expect("encodes"), expected, "{text:?}");
        }
        assert_eq!(t.decode(&expected, SpecialOutput::Keep).expect("decodes"), *text);
        assert_eq!(streamed(&t, &expected), *text);
    }
}

#[test]
fn vocabulary_and_special_tokens() {
    let Some(t) = tokenizer("vocabulary_and_special_tokens") else { return };
    assert_eq!(t.vocab_size(), 49_152);
    assert_eq!((t.eos(), t.bos()), (Some(TokenId(0)), Some(TokenId(0))));
    let names =
        ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"];
    for (id, name) in (0..).map(TokenId).zip(names) {
        assert_eq!(t.id(name), Some(id));
        assert_eq!(t.token_bytes(id), Some(name.as_bytes().to_vec()));
    }
    let special = (0..49_152).filter(|id| t.is_special(TokenId(*id)));
    assert_eq!(special.collect::<Vec<_>>(), (0..38).collect::<Vec<_>>());
    assert_eq!(t.id("###"), Some(TokenId(1502)));
    assert_eq!(t.token_bytes(TokenId(7207)).as_deref(), Some(&b" ###"[..]));
    assert!(t.decode(&[TokenId(49_152)], SpecialOutput::Keep).is_err());
}

/// The fields of the published tokenizer_config.json, which nano's repeats, list the added tokens and name special
/// ones: tokenizer.json has them all, so nothing changes.
#[test]
fn the_published_config_adds_nothing() {
    const NAME: &str = "the_published_config_adds_nothing";
    let (Some(plain), Some(json)) = (tokenizer(NAME), data(NAME, "starcoder2-tokenizer.json")) else { return };
    let published = include_bytes!("../../crates/rigel-nano/model/tokenizer_config.json");
    let published = TokenizerConfig::from_bytes(Some((published, "tokenizer_config.json")), None).expect("an object");
    let t = Tokenizer::with_config(&json, "starcoder2-tokenizer.json", &published).expect("a tokenizer");
    assert_eq!((t.vocab_size(), t.eos(), t.bos()), (plain.vocab_size(), plain.eos(), plain.bos()));
    assert!((0..49_152).map(TokenId).all(|id| t.is_special(id) == plain.is_special(id)));
    let text = "<file_sep>a.py\ndef f(x):\n    return 12  # <|endoftext|> <fim_pad>\n";
    for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
        assert_eq!(t.encode(text, special).expect("encodes"), plain.encode(text, special).expect("encodes"));
    }
}

#[test]
fn digits_and_spaces() {
    let Some(t) = tokenizer("digits_and_spaces") else { return };
    let vectors: [(&str, &[u32]); 4] = [
        (" 7\n", &[244, 60, 222]),
        ("  7", &[280, 60]),
        ("x = 10\n", &[125, 299, 244, 54, 53, 222]),
        ("\n```", &[222, 932]),
    ];
    for (text, expected) in vectors {
        assert_eq!(t.encode(text, SpecialTokens::Parse).expect("encodes"), ids(expected), "{text:?}");
    }
}

#[test]
fn bytes_without_a_token_are_dropped() {
    let Some(t) = tokenizer("bytes_without_a_token_are_dropped") else { return };
    let encoded = t.encode("a\u{40000}b", SpecialTokens::Parse).expect("encodes");
    assert_eq!(encoded, ids(&[102, 246, 246, 246, 103]));
    // Exactly 14 of the 256 bytes have no token of their own.
    let single: std::collections::BTreeSet<u8> = (38..49_152)
        .filter_map(|id| match t.token_bytes(TokenId(id)).as_deref() {
            Some([byte]) => Some(*byte),
            _ => None,
        })
        .collect();
    let missing: Vec<u8> = (0..=255).filter(|byte| !single.contains(byte)).collect();
    assert_eq!(missing, [0xC0, 0xC1, 0xF1, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD, 0xFE, 0xFF]);
}

#[test]
fn special_tokens_are_parsed_or_quoted() {
    let Some(t) = tokenizer("special_tokens_are_parsed_or_quoted") else { return };
    for id in (0..38).map(TokenId) {
        let name = t.decode(&[id], SpecialOutput::Keep).expect("decodes");
        assert_eq!(t.encode(&name, SpecialTokens::Parse).expect("encodes"), [id]);
        let literal = t.encode(&name, SpecialTokens::AsText).expect("encodes");
        assert!(literal.iter().all(|id| !t.is_special(*id)), "{name}: {literal:?}");
        assert_eq!(t.decode(&literal, SpecialOutput::Skip).expect("decodes"), name);
    }
}

#[test]
fn the_instruct_prompt_of_the_model_card() {
    let Some(t) = tokenizer("the_instruct_prompt_of_the_model_card") else { return };
    let template = ChatTemplate::new(TEMPLATE, &config(), "template").expect("parses");
    let user = ChatMessage::user(
        "Write a quicksort function in Python with type hints and a 'less_than' parameter for custom sorting criteria.",
    );
    let prompt = template.render(&[user], AddGenerationPrompt::Yes).expect("renders");
    let expected = ids(&[
        0, 4296, 904, 619, 3773, 1266, 648, 44433, 10633, 47349, 708, 45599, 10711, 5257, 26652, 480, 32740, 14829,
        391, 1275, 9410, 51, 222, 222, 1502, 21052, 222, 2553, 331, 8289, 3349, 686, 347, 5006, 642, 847, 27796, 480,
        331, 349, 2290, 100, 20954, 44, 3416, 456, 3137, 22326, 15296, 51, 222, 222, 1502, 5178, 222,
    ]);
    assert_eq!(t.encode(&prompt, SpecialTokens::Parse).expect("encodes"), expected);
    assert_eq!(expected.len(), 55);
}

#[test]
fn infill_prompt() {
    let Some(t) = tokenizer("infill_prompt") else { return };
    let infill = Infill::from_tokenizer(&t).expect("has the tokens");
    let prompt = infill.prompt(&t, "def f():", "return 1", &RepoContext::default()).expect("a prompt");
    assert_eq!(prompt, ids(&[1, 610, 315, 2284, 3, 620, 244, 54, 2]));
    assert_eq!(infill.stop_token_ids(), ids(&[6, 0]));
}

/// 563 prompts of the authors' evaluation with the ids that Hugging Face's tokenizer gave them.
#[test]
fn evaluation_prompts() {
    const NAME: &str = "evaluation_prompts";
    let (Some(t), Some(lines)) = (tokenizer(NAME), data(NAME, "evalplus-starcoder2-instruct.jsonl")) else { return };
    let mut count = 0;
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let value: Value = serde_json::from_slice(line).expect("JSON");
        let text = value["prompt"].as_str().expect("a prompt");
        let expected: Vec<TokenId> = serde_json::from_value(value["prompt_ids_no_bos"].clone()).expect("a list of ids");
        assert_eq!(t.encode(text, SpecialTokens::Parse).expect("encodes"), expected, "{}", value["task_id"]);
        assert_eq!(t.decode(&expected, SpecialOutput::Keep).expect("decodes"), text);
        assert_eq!(streamed(&t, &expected), text);
        count += 1;
    }
    assert_eq!(count, 563);
}
