//! Text to token ids and back, over a Hugging Face tokenizer.json and the files beside it. Knows nothing of models, and
//! truncates nothing.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Token};

use super::{TextError, TokenId, TokenizerConfig};
use super::{added_tokens, byte_level, vocab_files};
use crate::checkpoint::{CheckpointError, ModelSource, json};

/// What `<|endoftext|>` and its like mean inside a text that is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are special tokens, as in transformers: each becomes its one id.
    Parse,
    /// They are ordinary characters. No special id ever comes out, so untrusted text cannot forge one.
    AsText,
}

/// What becomes of special tokens in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialOutput {
    /// They appear as their text (transformers' `skip_special_tokens=False`).
    Keep,
    /// They are left out (`skip_special_tokens=True`).
    Skip,
}

/// A tokenizer. Cheap to clone: clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// Splits special tokens off before encoding.
    parsing: tokenizers::Tokenizer,
    /// The same, taking special tokens as text; made at its first use, since it repeats the vocabulary in memory.
    literal: OnceLock<tokenizers::Tokenizer>,
    vocab_size: usize,
    byte_level: bool,
    eos: Option<TokenId>,
    bos: Option<TokenId>,
    /// What the post-processor makes of a text; `None` where the text's own ids are.
    around: Option<Vec<Piece>>,
}

/// A part of what a post-processor returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Text,
    Special(TokenId),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.inner.vocab_size).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a model: tokenizer.json, else vocab.json with merges.txt, and the added and special tokens of
    /// tokenizer_config.json, special_tokens_map.json and added_tokens.json ([`TokenizerConfig`] says which count).
    /// `None` if there is neither.
    ///
    /// A file of these three that is not a JSON object, and a special token that is unusable, are a warning each: the
    /// vocabulary alone mostly suffices.
    ///
    /// # Errors
    /// [`TextError::Source`] if a file cannot be read, and those of [`with_config`](Self::with_config). Without
    /// tokenizer.json: one of the two files missing or malformed, or a `tokenizer_class` other than GPT2Tokenizer and
    /// Qwen2Tokenizer.
    pub fn from_source(source: &ModelSource) -> Result<Option<Self>, TextError> {
        const FILE: &str = "tokenizer.json";
        let json = source.read(FILE)?;
        let mut config = TokenizerConfig::from_source(source)?;
        let tokenizer = match &json {
            Some(json) => Self::with_config(json, &source.describe(FILE), &config)?,
            None => {
                config.assume_class(vocab_files::DEFAULT_CLASS);
                let Some(json) = vocab_files::tokenizer_json(source, &config)? else { return Ok(None) };
                let origin = source.describe(vocab_files::VOCAB);
                let (mut backend, untrained) = backend(&json, &origin, &config)?;
                add_bos_and_eos(&mut backend, &config, &origin)?;
                Self::new(backend, &untrained, &origin, &config)?
            }
        };
        config.unreadable().for_each(|problem| tracing::warn!("{problem}; going on without the file"));
        Ok(Some(tokenizer))
    }

    /// A tokenizer from tokenizer.json alone: it knows no eos and no bos. `origin` names the file in errors.
    ///
    /// # Errors
    /// [`TextError::InvalidTokenizer`] if the bytes are not a fast tokenizer's JSON.
    pub fn from_bytes(tokenizer_json: &[u8], origin: &str) -> Result<Self, TextError> {
        Self::with_config(tokenizer_json, origin, &TokenizerConfig::default())
    }

    /// A tokenizer from tokenizer.json, with the added and special tokens of `config`. They get the ids that
    /// transformers gives them: their own where the vocabulary has them, else the next free ones.
    ///
    /// # Errors
    /// [`TextError::InvalidTokenizer`] if the bytes are not a fast tokenizer's JSON; [`TextError::IdClash`] where
    /// `config` states another id for a token; [`TextError::InvalidField`] for a malformed list of such ids.
    pub fn with_config(tokenizer_json: &[u8], origin: &str, config: &TokenizerConfig) -> Result<Self, TextError> {
        let (backend, untrained) = backend(tokenizer_json, origin, config)?;
        Self::new(backend, &untrained, origin, config)
    }

    fn new(
        parsing: tokenizers::Tokenizer,
        untrained: &[String],
        origin: &str,
        config: &TokenizerConfig,
    ) -> Result<Self, TextError> {
        let vocab_size = parsing.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let special_id = |field: &str| {
            let token = config.special(field)?;
            if untrained.iter().any(|untrained| untrained == token) {
                tracing::warn!("{origin}: its vocabulary lacks the `{field}` of the files beside it, {token:?}");
                return None;
            }
            parsing.token_to_id(token).map(TokenId)
        };
        let (eos, bos) = (special_id("eos_token"), special_id("bos_token"));
        let byte_level = is_byte_level(parsing.get_decoder());
        let around = match parsing.get_post_processor() {
            None => None,
            Some(processor) => guarded(|| pieces(processor))
                .map_err(|reason| TextError::InvalidTokenizer { file: origin.to_owned(), reason })?,
        };
        Ok(Self {
            inner: Arc::new(Inner { parsing, literal: OnceLock::new(), vocab_size, byte_level, eos, bos, around }),
        })
    }

    /// The ids of a prompt that is to be completed: those of [`encode`](Self::encode), and around them the special
    /// tokens that tokenizer.json's post-processor adds (transformers' `tokenizer(text)`, the completions of vLLM).
    /// StarCoder2's adds none; others put a bos first. A rendered chat template has its own: use
    /// [`encode`](Self::encode) for it.
    ///
    /// # Errors
    /// As for [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>, TextError> {
        Ok(self.with_special_tokens(self.encode(text, special)?))
    }

    /// `ids`, the whole of a prompt, with the special tokens around them that the post-processor adds.
    pub fn with_special_tokens(&self, ids: Vec<TokenId>) -> Vec<TokenId> {
        let Some(pieces) = &self.inner.around else { return ids };
        let piece = |piece: &Piece| match piece {
            Piece::Text => ids.clone(),
            Piece::Special(id) => vec![*id],
        };
        pieces.iter().flat_map(piece).collect()
    }

    /// How many tokens the post-processor puts before a prompt.
    pub fn special_tokens_before(&self) -> usize {
        let pieces = self.inner.around.as_deref().unwrap_or_default();
        pieces.iter().take_while(|piece| **piece != Piece::Text).count()
    }

    /// The ids of `text`, and nothing else: no bos, no eos, no truncation (`add_special_tokens=False`).
    /// [`encode_prompt`](Self::encode_prompt) is for prompts.
    ///
    /// Characters that a byte-level vocabulary cannot write are dropped, as in transformers: StarCoder2's lacks 14
    /// byte tokens, of which valid UTF-8 reaches only F1 (U+40000–7FFFF).
    ///
    /// # Errors
    /// [`TextError::Encode`], also for a run of more than half a million white-space characters; with
    /// [`SpecialTokens::AsText`] also [`TextError::SpecialFromText`], when the vocabulary would write part of the text
    /// as a special token even so (an `unk_token` that is special).
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<TokenId>, TextError> {
        let run = longest_white_space(text);
        if run > MAX_WHITE_SPACE {
            let found = format!("found {run} white-space characters in a row, expected at most {MAX_WHITE_SPACE}");
            return Err(TextError::Encode(found));
        }
        let tokenizer = match special {
            SpecialTokens::Parse => &self.inner.parsing,
            SpecialTokens::AsText => self.inner.literal.get_or_init(|| {
                let mut literal = self.inner.parsing.clone();
                literal.set_encode_special_tokens(true);
                literal
            }),
        };
        let encoding = guarded(|| tokenizer.encode_fast(text, false)).map_err(TextError::Encode)?;
        let ids: Vec<TokenId> = encoding.get_ids().iter().copied().map(TokenId).collect();
        if special == SpecialTokens::AsText {
            // A word of the vocabulary that a file names as a special token, such as a pad token `!`, stays a word.
            let is_word = |token: &str, id: TokenId| {
                guarded(|| tokenizer.encode_fast(token, false)).is_ok_and(|encoding| encoding.get_ids() == [id.0])
            };
            // Each id once: there may be as many as characters.
            let special: BTreeSet<u32> = ids.iter().filter(|id| self.is_special(**id)).map(|id| id.0).collect();
            for id in special.into_iter().map(TokenId) {
                let token = tokenizer.id_to_token(id.0).unwrap_or_default();
                if !is_word(&token, id) {
                    return Err(TextError::SpecialFromText { token, id });
                }
            }
        }
        Ok(ids)
    }

    /// The text of `ids`, as transformers' `decode` with `clean_up_tokenization_spaces=False`. Byte sequences that
    /// are not UTF-8 become U+FFFD, as [`String::from_utf8_lossy`] has it.
    ///
    /// # Errors
    /// [`TextError::UnknownId`] for an id without a token; [`TextError::Decode`].
    pub fn decode(&self, ids: &[TokenId], special: SpecialOutput) -> Result<String, TextError> {
        if let Some(&id) = ids.iter().find(|id| !self.contains(**id)) {
            return Err(TextError::UnknownId { id, vocab_size: self.inner.vocab_size });
        }
        self.decode_known(bytemuck::cast_slice(ids), special)
    }

    /// As [`decode`](Self::decode), where ids without a token decode to nothing.
    pub(super) fn decode_known(&self, ids: &[u32], special: SpecialOutput) -> Result<String, TextError> {
        guarded(|| self.inner.parsing.decode(ids, special == SpecialOutput::Skip)).map_err(TextError::Decode)
    }

    /// The id of a token by its text in the vocabulary, such as `<fim_prefix>`.
    pub fn id(&self, token: &str) -> Option<TokenId> {
        self.inner.parsing.token_to_id(token).map(TokenId)
    }

    /// One more than the largest id. The model's logits may be wider (padded), and ids between may be unused.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Whether some token has this id.
    pub fn contains(&self, id: TokenId) -> bool {
        self.inner.parsing.id_to_token(id.0).is_some()
    }

    /// The end-of-sequence id, if the files beside the vocabulary name one that has an id without being named.
    pub fn eos(&self) -> Option<TokenId> {
        self.inner.eos
    }

    /// The beginning-of-sequence id, if the files beside the vocabulary name one. That alone does not put it before a
    /// prompt ([`encode_prompt`](Self::encode_prompt)).
    pub fn bos(&self) -> Option<TokenId> {
        self.inner.bos
    }

    /// Whether this is a special token, one that [`SpecialOutput::Skip`] leaves out.
    pub fn is_special(&self, id: TokenId) -> bool {
        let added = self.inner.parsing.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id.0).is_some_and(|token| added.is_special_token(&token.content))
    }

    /// The bytes that this token adds to a text; they need not be UTF-8 by themselves. A special token's are its
    /// text. `None` for an id without a token. Where the decoder is not byte-level, a token's text may depend on its
    /// neighbours; these are the bytes of its text when it stands alone.
    pub fn token_bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        let token = self.inner.parsing.id_to_token(id.0)?;
        if self.inner.byte_level {
            return Some(byte_level::bytes_of(&token));
        }
        Some(self.decode_known(&[id.0], SpecialOutput::Keep).map_or_else(|_| token.into_bytes(), String::into_bytes))
    }

    /// Whether decoding is concatenation of [`token_bytes`](Self::token_bytes).
    pub(super) fn is_byte_level(&self) -> bool {
        self.inner.byte_level
    }
}

/// The `tokenizers` crate's tokenizer of tokenizer.json, with the tokens of `config` added, and those of them that only
/// their name has added.
fn backend(
    json: &[u8],
    origin: &str,
    config: &TokenizerConfig,
) -> Result<(tokenizers::Tokenizer, Vec<String>), TextError> {
    const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
    let invalid = |reason: String| TextError::InvalidTokenizer { file: origin.to_owned(), reason };
    let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
    let mut backend = guarded(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(|reason| invalid(explained(json, origin, reason)))?;
    // tokenizer.json may carry the truncation and padding of the training run; transformers resets both as well.
    backend.with_truncation(None).map_err(|e| invalid(e.to_string()))?;
    backend.with_padding(None);
    let untrained = added_tokens::add(&mut backend, config, origin)?;
    // Unusable, it is as good as absent: it is about text that spells special tokens out.
    backend.set_encode_special_tokens(config.flag("split_special_tokens").unwrap_or(false));
    Ok((backend, untrained))
}

/// `add_bos_token` and `add_eos_token` of tokenizer_config.json, which count where there is no tokenizer.json.
fn add_bos_and_eos(
    backend: &mut tokenizers::Tokenizer,
    config: &TokenizerConfig,
    origin: &str,
) -> Result<(), TextError> {
    let named = |switch: &str, field: &str| {
        if !config.flag(switch)? {
            return Ok(None);
        }
        let token = config.special(field).and_then(|token| Some((token, backend.token_to_id(token)?)));
        token.map(Some).ok_or_else(|| TextError::InvalidFile {
            file: config.origin().to_owned(),
            reason: format!("`{switch}` asks for a token that `{field}` does not name; name it there"),
        })
    };
    let (bos, eos) = (named("add_bos_token", "bos_token")?, named("add_eos_token", "eos_token")?);
    if bos.or(eos).is_some() {
        let processor: PostProcessorWrapper = serde_json::from_value(vocab_files::post_processor(bos, eos))
            .map_err(|e| TextError::InvalidTokenizer { file: origin.to_owned(), reason: e.to_string() })?;
        backend.with_post_processor(Some(processor));
    }
    Ok(())
}

/// What `processor` puts around a text; `None` if nothing.
fn pieces(processor: &PostProcessorWrapper) -> tokenizers::Result<Option<Vec<Piece>>> {
    // An id that no token has stands for the text.
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let processed = processor.process(text, None, true)?;
    let piece = |id: &u32| if *id == TEXT { Piece::Text } else { Piece::Special(TokenId(*id)) };
    let pieces: Vec<Piece> = processed.get_ids().iter().map(piece).collect();
    Ok((pieces != [Piece::Text]).then_some(pieces))
}

/// Why `bytes`, the content of the file `origin`, are no tokenizer, in other words than `reason`, the crate's, where
/// those are of its own types.
fn explained(bytes: &[u8], origin: &str, reason: String) -> String {
    let json = match json::parse(bytes, origin) {
        Ok(json) => json,
        Err(CheckpointError::File { found, advice, .. }) => return format!("found {found} ({advice})"),
        Err(_) => return reason,
    };
    if !json.is_object() {
        return format!("found {}, expected a JSON object", json_kind(&json));
    }
    fn reads<T: serde::de::DeserializeOwned>(section: &serde_json::Value) -> bool {
        guarded(|| Ok(serde_json::from_value::<T>(section.clone())?)).is_ok()
    }
    type Reads = fn(&serde_json::Value) -> bool;
    let sections: [(&str, Reads); 5] = [
        ("model", reads::<tokenizers::ModelWrapper>),
        ("normalizer", reads::<Option<tokenizers::NormalizerWrapper>>),
        ("pre_tokenizer", reads::<Option<tokenizers::PreTokenizerWrapper>>),
        ("post_processor", reads::<Option<PostProcessorWrapper>>),
        ("decoder", reads::<Option<DecoderWrapper>>),
    ];
    let missing = serde_json::Value::Null;
    match sections.iter().find(|(name, reads)| !reads(json.get(name).unwrap_or(&missing))) {
        Some((name, _)) => format!("its `{name}` is of a form that is not known"),
        None if ["expected ", "missing field", "unknown "].iter().any(|words| reason.contains(words)) => {
            "its fields are of a form that is not known".to_owned()
        }
        None => reason,
    }
}

fn json_kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::String(_) => "a text",
        serde_json::Value::Number(_) => "a number",
        _ => "no object",
    }
}

/// The result of a call into the `tokenizers` crate, where a panic is an error like any other: the crate panics on
/// some files that contradict themselves, such as a `continuing_subword_prefix` longer than the tokens it begins.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing broken is seen afterwards: a call builds a new value, and of the tokenizer it changes a cache only, whose
    // entries are whole.
    match std::panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| e.to_string().replace(['\n', '\r'], " ")),
        Err(_) => {
            Err("the tokenizers library panicked, so the file contradicts itself; get the original file".to_owned())
        }
    }
}

/// White-space characters in a row. At a million, the lookahead of GPT-2's pattern overflows the stack of the regular
/// expression engine, and the `tokenizers` crate then takes the whole rest of the text as one word, without an error.
const MAX_WHITE_SPACE: usize = 500_000;

fn longest_white_space(text: &str) -> usize {
    if text.len() <= MAX_WHITE_SPACE {
        return 0; // cannot be too many, so not worth counting
    }
    let (mut longest, mut run) = (0, 0);
    for c in text.chars() {
        run = if c.is_whitespace() { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

fn is_byte_level(decoder: Option<&DecoderWrapper>) -> bool {
    match decoder {
        Some(DecoderWrapper::ByteLevel(_)) => true,
        Some(DecoderWrapper::Sequence(sequence)) => {
            matches!(sequence.get_decoders(), [DecoderWrapper::ByteLevel(_)])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn config(json: &str) -> TokenizerConfig {
        TokenizerConfig::from_bytes(Some((json.as_bytes(), "tokenizer_config.json")), None).expect("an object")
    }

    #[test]
    fn parses_or_quotes_special_tokens() {
        let t = testing::byte_level();
        let text = "a<|endoftext|><fim_prefix>b";
        let parsed = t.encode(text, SpecialTokens::Parse).expect("encodes");
        assert_eq!(parsed, [testing::byte_id(b'a'), TokenId(0), TokenId(1), testing::byte_id(b'b')]);
        let literal = t.encode(text, SpecialTokens::AsText).expect("encodes");
        assert!(literal.iter().all(|id| !t.is_special(*id)), "{literal:?}");
        assert_eq!(t.decode(&literal, SpecialOutput::Skip).expect("decodes"), text);
    }

    #[test]
    fn a_special_unk_token_cannot_be_smuggled_in() {
        let mut json = testing::byte_level_json();
        json["model"]["unk_token"] = "<|endoftext|>".into();
        let t = Tokenizer::from_bytes(json.to_string().as_bytes(), "t").expect("valid");
        // U+40000 begins with byte F1, which the vocabulary lacks.
        let error = t.encode("a\u{40000}", SpecialTokens::AsText).expect_err("unk");
        assert!(matches!(error, TextError::SpecialFromText { id: TokenId(0), .. }), "{error}");
    }

    #[test]
    fn a_word_that_is_named_as_a_special_token_stays_a_word_in_plain_text() {
        let json = testing::byte_level_json().to_string();
        let t = Tokenizer::with_config(json.as_bytes(), "t", &config(r#"{"pad_token": "ret"}"#)).expect("valid");
        let ret = t.id("ret").expect("in the vocabulary");
        assert!(t.is_special(ret) && !testing::byte_level().is_special(ret));
        assert_eq!(t.encode("ret", SpecialTokens::AsText).expect("encodes"), [ret]);
    }

    #[test]
    fn adds_and_truncates_nothing() {
        let mut json = testing::byte_level_json();
        json["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
        let t = Tokenizer::from_bytes(json.to_string().as_bytes(), "t").expect("valid");
        let ids = t.encode("xyzw", SpecialTokens::Parse).expect("encodes");
        assert_eq!(ids, b"xyzw".map(testing::byte_id));
        assert_eq!(t.encode("", SpecialTokens::Parse).expect("encodes"), []);
    }

    #[test]
    fn decodes_with_and_without_specials() {
        let t = testing::byte_level();
        let ids = [TokenId(0), testing::byte_id(b'h'), TokenId(2), testing::byte_id(b'i')];
        assert_eq!(t.decode(&ids, SpecialOutput::Keep).expect("decodes"), "<|endoftext|>h<fim_middle>i");
        assert_eq!(t.decode(&ids, SpecialOutput::Skip).expect("decodes"), "hi");
    }

    #[test]
    fn unknown_ids_are_errors() {
        let t = testing::byte_level();
        let beyond = TokenId(t.vocab_size() as u32);
        assert!(t.contains(TokenId(beyond.0 - 1)) && !t.contains(beyond));
        for id in [beyond, TokenId(u32::MAX)] {
            let error = t.decode(&[TokenId(0), id], SpecialOutput::Skip).expect_err("unknown");
            assert!(matches!(error, TextError::UnknownId { .. }) && error.to_string().contains(&id.to_string()));
            assert_eq!(t.token_bytes(id), None);
            assert!(!t.is_special(id));
        }
    }

    #[test]
    fn eos_and_bos_come_from_the_config() {
        let json = testing::byte_level_json().to_string();
        let c = config(r#"{"eos_token": {"content": "<|endoftext|>"}, "bos_token": "<fim_pad>"}"#);
        let t = Tokenizer::with_config(json.as_bytes(), "t", &c).expect("valid");
        assert_eq!((t.eos(), t.bos()), (Some(TokenId(0)), t.id("<fim_pad>")));
        let t = testing::byte_level();
        assert_eq!((t.eos(), t.bos()), (None, None));
        // One that the vocabulary lacks is added, as in transformers, but no model can have learnt to end with it. One
        // that is no token is passed over.
        let t = Tokenizer::with_config(json.as_bytes(), "t", &config(r#"{"eos_token": "</s>", "bos_token": 1}"#));
        let (t, next) = (t.expect("valid"), testing::byte_level().vocab_size() as u32);
        assert_eq!((t.eos(), t.bos(), t.id("</s>")), (None, None, Some(TokenId(next))));
        assert!(t.is_special(TokenId(next)));
    }

    #[test]
    fn ids_that_clash_are_named() {
        let json = testing::byte_level_json().to_string();
        let next = testing::byte_level().vocab_size();
        let message = |decoder: &str| {
            let config = config(&format!(r#"{{"added_tokens_decoder": {{{decoder}}}}}"#));
            let message = Tokenizer::with_config(json.as_bytes(), "dir/tokenizer.json", &config).expect_err(decoder);
            message.to_string()
        };
        assert_eq!(
            message(r#""7": {"content": "<file_sep>"}"#),
            "tokenizer_config.json: token \"<file_sep>\" is to have id 7, but in dir/tokenizer.json it has id 6; the two \
             files belong to different tokenizers: download both from the model's repository again"
        );
        assert!(
            message(r#""6": {"content": "<new>"}"#)
                .contains("to have id 6, but in dir/tokenizer.json id 6 is \"<file_sep>\"")
        );
        let gap = next + 5;
        let found = message(&format!(r#""{gap}": {{"content": "<new>"}}"#));
        assert!(
            found.contains(&format!("to have id {gap}, ")) && found.contains(&format!("gets, is {next};")),
            "{found}"
        );
    }

    #[test]
    fn a_post_processor_adds_to_prompts_alone() {
        let mut json = testing::byte_level_json();
        json["post_processor"] = vocab_files::post_processor(Some(("<fim_pad>", 4)), Some(("<|endoftext|>", 0)));
        let t = Tokenizer::from_bytes(json.to_string().as_bytes(), "t").expect("valid");
        let x = testing::byte_id(b'x');
        for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
            assert_eq!(t.encode("x", special).expect("encodes"), [x]);
            assert_eq!(t.encode_prompt("x", special).expect("encodes"), [TokenId(4), x, TokenId(0)]);
        }
        assert_eq!(t.encode_prompt("", SpecialTokens::AsText).expect("encodes"), [TokenId(4), TokenId(0)]);
        assert_eq!((t.special_tokens_before(), testing::byte_level().special_tokens_before()), (1, 0));
        let plain = testing::byte_level();
        assert_eq!(plain.encode_prompt("x", SpecialTokens::Parse).expect("encodes"), [x]);
    }

    #[test]
    fn malformed_files_are_one_line_errors() {
        let whole = testing::byte_level_json().to_string();
        let cases = ["", "{", "[]", "{}", r#"{"version":"9","model":{}}"#, &whole[..whole.len() / 2]];
        for json in cases {
            let error = Tokenizer::from_bytes(json.as_bytes(), "dir/tokenizer.json").expect_err(json);
            assert!(error.to_string().starts_with("dir/tokenizer.json: not a tokenizer"), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        assert!(Tokenizer::from_bytes(b"\xff\xfe", "t").is_err());
        let changed = |field: &str, value: serde_json::Value| {
            let mut json = testing::byte_level_json();
            json[field] = value;
            json.to_string()
        };
        for (json, needle) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 31\n".to_owned(), "run `git lfs pull`"),
            ("[]".to_owned(), "found a list, expected a JSON object"),
            (changed("model", 5.into()), "its `model` is of a form that is not known"),
            (changed("pre_tokenizer", serde_json::json!({"type": "X"})), "its `pre_tokenizer` is of a form"),
            (changed("added_tokens", serde_json::json!([{"id": -1}])), "of a form that is not known"),
        ] {
            let error = Tokenizer::from_bytes(json.as_bytes(), "t").expect_err(needle).to_string();
            assert!(error.contains(needle), "{error}");
            for word in ["untagged", "struct ", "u32", "invalid type"] {
                assert!(!error.contains(word), "{error}");
            }
        }
    }

    #[test]
    fn bytes_without_a_token_are_dropped() {
        let t = testing::byte_level();
        let ids = t.encode("a\u{40000}b", SpecialTokens::Parse).expect("encodes");
        let tail = [0x80u8; 3].map(testing::byte_id);
        assert_eq!(ids, [&[testing::byte_id(b'a')][..], &tail, &[testing::byte_id(b'b')]].concat());
    }

    /// Linear in the text: a megabyte of one character, of mixed code, and of spaces, none of them minutes.
    #[test]
    fn long_texts_round_trip() {
        let t = testing::byte_level();
        let code = "def f(x):\n    return x + 12345  # ½ ž 你好\n".repeat(20_000);
        for text in [code, "a".repeat(1 << 20), " ".repeat(MAX_WHITE_SPACE) + "x"] {
            let ids = t.encode(&text, SpecialTokens::AsText).expect("encodes");
            assert!(t.decode(&ids, SpecialOutput::Keep).expect("decodes") == text);
        }
    }

    #[test]
    fn white_space_without_end_is_refused_not_mistaken() {
        let t = testing::byte_level();
        // Right below the limit the last space still joins the word after it: [space] [x], not one word of all.
        let longest = t.encode(&("\n".repeat(MAX_WHITE_SPACE - 1) + " xy"), SpecialTokens::Parse).expect("encodes");
        let short = t.encode("\n\n xy", SpecialTokens::Parse).expect("encodes");
        assert_eq!(longest[longest.len() - 5..], short);
        let error = t.encode(&("\n".repeat(MAX_WHITE_SPACE + 1) + "x"), SpecialTokens::Parse).expect_err("too long");
        assert!(error.to_string().contains("500001 white-space characters"), "{error}");
    }

    /// Replaces the `n`-th value (in depth-first order, counted round) of a JSON document.
    fn mutate(json: &mut serde_json::Value, n: usize, with: &serde_json::Value) {
        fn children(v: &mut serde_json::Value) -> Vec<&mut serde_json::Value> {
            match v {
                serde_json::Value::Array(items) => items.iter_mut().collect(),
                serde_json::Value::Object(fields) => fields.values_mut().collect(),
                _ => Vec::new(),
            }
        }
        fn count(v: &mut serde_json::Value) -> usize {
            1 + children(v).into_iter().map(count).sum::<usize>()
        }
        fn put(v: &mut serde_json::Value, n: &mut usize, with: &serde_json::Value) {
            if *n == 0 {
                *v = with.clone();
            }
            let done = *n == 0;
            *n = n.wrapping_sub(1);
            if !done {
                children(v).into_iter().for_each(|child| {
                    if *n != usize::MAX {
                        put(child, n, with);
                    }
                });
            }
        }
        let total = count(json);
        put(json, &mut (n % total), with);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::json;
        prop::sample::select(vec![
            json!(null),
            json!(0),
            json!(-1),
            json!(1e300),
            json!(4294967295u32),
            json!(4294967296u64),
            json!(true),
            json!(""),
            json!("<|endoftext|>"),
            json!("ByteLevel"),
            json!("Metaspace"),
            json!("é"),
            json!([]),
            json!(["a", "b"]),
            json!({}),
            json!({"a": 1}),
        ])
    }

    proptest! {
        /// One or two wrong values anywhere in tokenizer.json: an error or a tokenizer, never a panic.
        #[test]
        fn mutated_files_do_not_panic(
            edits in prop::collection::vec((any::<usize>(), any_json()), 1..3),
            spare_vocabulary in any::<bool>(),
        ) {
            let mut json = testing::byte_level_json();
            let vocab = json["model"]["vocab"].take();
            for (n, with) in &edits {
                mutate(&mut json, *n, with);
            }
            // Most values are vocabulary entries; spare them half the time so that the rest is hit often.
            if let Some(model) = json.get_mut("model").and_then(|m| m.as_object_mut()) {
                model.insert("vocab".to_owned(), vocab);
            }
            if !spare_vocabulary {
                mutate(&mut json, edits[0].0, &edits[0].1);
            }
            if let Ok(t) = Tokenizer::from_bytes(json.to_string().as_bytes(), "t") {
                for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
                    if let Ok(ids) = t.encode("a<|endoftext|>  ret 12 é\u{40000}", special) {
                        let _ = t.decode(&ids, SpecialOutput::Skip);
                    }
                }
            }
        }

        /// Everything but the code points whose first byte the vocabulary lacks survives the round trip.
        #[test]
        fn encode_then_decode_is_identity(text in "[^\u{40000}-\u{7ffff}]{0,40}") {
            let t = testing::byte_level();
            let ids = t.encode(&text, SpecialTokens::AsText).expect("encodes");
            prop_assert_eq!(t.decode(&ids, SpecialOutput::Keep).expect("decodes"), text);
        }

        /// The crate's decoder is the independent source for our bytes of a token.
        #[test]
        fn decoding_is_the_concatenation_of_token_bytes(ids in testing::any_ids()) {
            let t = testing::byte_level();
            let bytes: Vec<u8> = ids.iter().filter_map(|id| t.token_bytes(*id)).flatten().collect();
            prop_assert_eq!(t.decode(&ids, SpecialOutput::Keep).expect("decodes"), String::from_utf8_lossy(&bytes));
        }
    }
}
