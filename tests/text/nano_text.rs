//! The bundled model's tokenizer and chat template against Hugging Face's: ids, text and renderings recorded in
//! `tests/goldens/nano.json` by `tools/goldens`.

use rigel::checkpoint::ModelSource;
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, Detokenizer, SpecialOutput, SpecialTokens, TokenId, Tokenizer,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
    chat: Vec<Chat>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    #[serde(flatten)]
    decoded: Decoded,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<TokenId>,
    decoded: String,
    decoded_without_specials: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    text: Option<String>,
    ids: Option<Vec<TokenId>>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/goldens/nano.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_source(&ModelSource::nano()).unwrap().unwrap()
}

fn assert_decodes(tokenizer: &Tokenizer, expected: &Decoded) {
    let cases = [(SpecialOutput::Keep, &expected.decoded), (SpecialOutput::Skip, &expected.decoded_without_specials)];
    for (special, text) in cases {
        assert_eq!(&tokenizer.decode(&expected.ids, special).unwrap(), text, "{:?}", expected.ids);
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), special);
        let pieces: String = expected.ids.iter().map(|&id| detokenizer.push(id)).collect();
        assert_eq!(&(pieces + &detokenizer.finish()), text, "{:?}, one at a time", expected.ids);
    }
}

#[test]
fn encodes_and_decodes_as_hugging_face_does() {
    let (golden, tokenizer) = (golden(), tokenizer());
    assert!(golden.encode.len() > 100 && golden.decode.len() > 50);
    for case in &golden.encode {
        assert_eq!(tokenizer.encode(&case.text, SpecialTokens::Parse).unwrap(), case.decoded.ids, "{:?}", case.text);
        assert_decodes(&tokenizer, &case.decoded);
    }
    golden.decode.iter().for_each(|case| assert_decodes(&tokenizer, case));
}

#[test]
fn renders_conversations_as_hugging_face_does() {
    let (golden, tokenizer) = (golden(), tokenizer());
    let template = ChatTemplate::from_source(&ModelSource::nano()).unwrap();
    assert!(golden.chat.len() > 5);
    for chat in golden.chat {
        let messages: Vec<ChatMessage> = chat.messages.iter().map(|m| ChatMessage::new(&m.role, &m.content)).collect();
        let rendered = template.render(&messages, AddGenerationPrompt::Yes);
        match (chat.text, chat.error) {
            (Some(text), None) => {
                assert_eq!(rendered.unwrap(), text);
                assert_eq!(tokenizer.encode(&text, SpecialTokens::Parse).unwrap(), chat.ids.unwrap());
            }
            (None, Some(error)) => {
                let message = rendered.unwrap_err().to_string();
                assert!(message.contains(&error), "{message}");
            }
            _ => panic!("a golden has either a text or an error"),
        }
    }
}
