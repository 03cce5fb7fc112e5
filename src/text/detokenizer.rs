//! Token ids to text, one at a time, never splitting a character. Knows nothing of stop strings or engines.

use super::{SpecialOutput, TokenId, Tokenizer};

/// Turns a stream of ids into a stream of text.
///
/// With a byte-level tokenizer (StarCoder2's and most code models') the pieces concatenate to exactly
/// [`String::from_utf8_lossy`] over the bytes of all tokens, which is [`Tokenizer::decode`] of all ids: bytes wait
/// until their character is complete, at most three of them, and what cannot become UTF-8 comes out as U+FFFD.
///
/// With any other decoder the text of a token may depend on its neighbours; the newest tokens are then decoded again
/// together with those before them, and the difference comes out. Text that ends in U+FFFD waits for up to
/// [`MAX_UNDECIDED`] tokens. The pieces concatenate to the decoding of all ids as long as that decoder only ever adds
/// to the end of its text; where it takes back a character that was already handed out (ByteFallback does, when an
/// invalid byte follows a complete character made of byte tokens), the text handed out stays.
///
/// An id without a token adds nothing (a model's logits may be wider than its tokenizer).
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    special: SpecialOutput,
    state: State,
}

/// Tokens that may wait for the rest of a character when the decoder is not byte-level. A character is at most 4
/// bytes, so at most 4 byte tokens; more is not UTF-8.
pub const MAX_UNDECIDED: usize = 4;

#[derive(Debug, Clone)]
enum State {
    /// Decoding is concatenation of bytes.
    Bytes(Utf8Stream),
    /// Decoding is a function of a whole list: `ids[..done]` are handed out and kept as context, the rest waits.
    Window { ids: Vec<u32>, done: usize },
}

impl Detokenizer {
    /// At the beginning of a text.
    pub fn new(tokenizer: Tokenizer, special: SpecialOutput) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes(Utf8Stream::default())
        } else {
            State::Window { ids: Vec::new(), done: 0 }
        };
        Self { tokenizer, special, state }
    }

    /// The same text so far, going on with special tokens left out. None may have been pushed yet.
    pub(super) fn skipping(&self) -> Self {
        Self { special: SpecialOutput::Skip, ..self.clone() }
    }

    /// The text that this id decides, possibly empty.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.special == SpecialOutput::Skip && self.tokenizer.is_special(id) {
            return String::new();
        }
        match &mut self.state {
            State::Bytes(text) => text.push(&self.tokenizer.token_bytes(id).unwrap_or_default()),
            State::Window { ids, done } => {
                ids.push(id.0);
                let text = undecided(&self.tokenizer, self.special, ids, *done);
                let waits = text.ends_with(char::REPLACEMENT_CHARACTER) && ids.len() - *done < MAX_UNDECIDED;
                if text.is_empty() || waits {
                    return String::new();
                }
                // The tokens just handed out are context enough for the next ones.
                ids.drain(..*done);
                *done = ids.len();
                text
            }
        }
    }

    /// The ids have ended: the rest, where an unfinished character is U+FFFD.
    pub fn finish(&mut self) -> String {
        match &mut self.state {
            State::Bytes(text) => text.finish(),
            State::Window { ids, done } => {
                let text = undecided(&self.tokenizer, self.special, ids, *done);
                *done = ids.len();
                text
            }
        }
    }
}

/// Bytes to text as they come: the pieces concatenate to [`String::from_utf8_lossy`] of all bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Utf8Stream {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// The text that these bytes decide: all but an unfinished last character.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        // Only an end that more bytes could complete is undecided; an invalid sequence is U+FFFD whatever follows.
        let unfinished = self.pending.utf8_chunks().last().map_or(0, |last| {
            let invalid = last.invalid();
            match std::str::from_utf8(invalid) {
                Err(e) if e.error_len().is_none() => invalid.len(),
                _ => 0,
            }
        });
        let rest = self.pending.split_off(self.pending.len() - unfinished);
        let decided = std::mem::replace(&mut self.pending, rest);
        String::from_utf8_lossy(&decided).into_owned()
    }

    /// The bytes have ended: an unfinished character is U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// What `ids[done..]` add to the text of `ids[..done]`.
fn undecided(tokenizer: &Tokenizer, special: SpecialOutput, ids: &[u32], done: usize) -> String {
    // These decoders map strings to strings and fail on no list of known tokens; if one does, the text goes missing
    // rather than the request.
    let decode = |ids: &[u32]| tokenizer.decode_known(ids, special).unwrap_or_default();
    let (before, whole) = (decode(&ids[..done]), decode(ids));
    match whole.strip_prefix(&before) {
        Some(added) => added.to_owned(),
        // The decoder changed its mind about text that is out already: keep to the new tokens.
        None => decode(&ids[done..]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn stream(tokenizer: &Tokenizer, special: SpecialOutput, ids: &[TokenId]) -> Vec<String> {
        let mut d = Detokenizer::new(tokenizer.clone(), special);
        let mut pieces: Vec<String> = ids.iter().map(|id| d.push(*id)).collect();
        pieces.push(d.finish());
        pieces
    }

    fn ids(bytes: &[u8]) -> Vec<TokenId> {
        bytes.iter().map(|b| testing::byte_id(*b)).collect()
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let t = testing::byte_level();
        assert_eq!(stream(&t, SpecialOutput::Keep, &ids("a😀é".as_bytes())), ["a", "", "", "", "😀", "", "é", ""]);
    }

    #[test]
    fn what_cannot_be_utf8_does_not_wait() {
        let t = testing::byte_level();
        // E4 BD could still become 你 (E4 BD A0); the byte 41 decides that it does not.
        assert_eq!(stream(&t, SpecialOutput::Keep, &ids(b"\xE4\xBDA")), ["", "", "\u{FFFD}A", ""]);
        // A lone continuation byte is decided at once; ED A0 (a surrogate) after its second byte.
        assert_eq!(stream(&t, SpecialOutput::Keep, &ids(b"\x80\xED\xA0")), ["\u{FFFD}", "", "\u{FFFD}\u{FFFD}", ""]);
        assert_eq!(stream(&t, SpecialOutput::Keep, &ids(b"x\xF0\x9F")), ["x", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn specials_are_shown_or_skipped() {
        let t = testing::byte_level();
        let list = [ids(b"\xC3"), vec![TokenId(0)], ids(b"\xA9")].concat();
        assert_eq!(stream(&t, SpecialOutput::Keep, &list).concat(), "\u{FFFD}<|endoftext|>\u{FFFD}");
        // Skipped means not there at all, as in transformers: the two bytes around it meet.
        assert_eq!(stream(&t, SpecialOutput::Skip, &list), ["", "", "é", ""]);
    }

    #[test]
    fn an_unknown_id_adds_nothing() {
        let t = testing::byte_level();
        assert_eq!(stream(&t, SpecialOutput::Keep, &[TokenId(u32::MAX)]).concat(), "");
    }

    #[test]
    fn other_decoders_see_their_context() {
        let t = testing::metaspace();
        let id = |token: &str| t.id(token).expect("in the vocabulary");
        // Alone, "▁foo" loses its leading space; in the stream only the first one does.
        let list = ["▁a", "▁foo", "<s>", "▁foo", "b"].map(id);
        assert_eq!(stream(&t, SpecialOutput::Skip, &list), ["a", " foo", "", " foo", "b", ""]);
        // Byte fallback: é from two tokens, then a byte that never becomes a character.
        let list = ["▁a", "<0xC3>", "<0xA9>", "▁foo", "<0xC3>"].map(id);
        assert_eq!(stream(&t, SpecialOutput::Skip, &list), ["a", "", "é", " foo", "", "\u{FFFD}"]);
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_lossy_text(list in testing::any_ids(), skip in any::<bool>()) {
            let t = testing::byte_level();
            let special = if skip { SpecialOutput::Skip } else { SpecialOutput::Keep };
            let shown = list.iter().filter(|id| !(skip && t.is_special(**id)));
            let bytes: Vec<u8> = shown.filter_map(|id| t.token_bytes(*id)).flatten().collect();
            let text = stream(&t, special, &list).concat();
            prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
            prop_assert_eq!(text, t.decode(&list, special).expect("known ids"));
        }

        /// Valid text cut into bytes comes out whole: no piece holds a replacement character.
        #[test]
        fn valid_text_is_never_split(text in "[aé你😀 ]{0,20}") {
            let t = testing::byte_level();
            let pieces = stream(&t, SpecialOutput::Keep, &ids(text.as_bytes()));
            prop_assert!(pieces.iter().all(|p| !p.contains(char::REPLACEMENT_CHARACTER)));
            prop_assert_eq!(pieces.concat(), text);
        }

        #[test]
        fn other_decoders_agree_with_decoding_everything(list in prop::collection::vec(0..5u32, 0..20)) {
            let t = testing::metaspace();
            let list: Vec<TokenId> = list.into_iter().map(TokenId).collect();
            for special in [SpecialOutput::Keep, SpecialOutput::Skip] {
                let whole = t.decode(&list, special).expect("known ids");
                prop_assert_eq!(stream(&t, special, &list).concat(), whole);
            }
        }
    }
}
