//! Token ids to the text that is handed out, up to a stop string. Knows nothing of engines.

use super::detokenizer::{Detokenizer, Utf8Stream};
use super::stop::{Heed, Piece, StopMatcher, StopText};
use super::{SpecialOutput, TextError, TokenId, Tokenizer};

/// Texts at which a generation ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopStrings {
    /// The texts. They may span tokens, and they are looked for in the text *with* special tokens, whether those are
    /// shown or not: `<file_sep>` stops at that token.
    pub stop: Vec<String>,
    /// Whether the text keeps the stop string.
    pub stop_text: StopText,
    /// A stop string that is complete within so many tokens is ordinary text; one that begins there and ends later
    /// stops.
    pub min_tokens: u32,
}

/// What a token led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopOutcome {
    /// No stop yet. `text` is now certain not to be part of one; the rest is held back.
    Continue {
        /// Newly decided text, possibly empty.
        text: String,
    },
    /// A stop string is complete. What follows it is dropped.
    Stopped {
        /// The last newly decided text, possibly empty.
        text: String,
        /// Which stop string, as an index into [`StopStrings::stop`].
        stop: usize,
    },
}

/// Turns a stream of ids into a stream of text that ends at a stop string.
///
/// Without a stop the pieces concatenate to what a [`Detokenizer`] gives. Stop strings are looked for in the text with
/// special tokens, as transformers does, while [`SpecialOutput`] decides what is handed out:
///
/// * The stop that is complete first wins, of those complete at the same place the longest, of equal ones the first
///   given. This does not depend on how the text is cut into tokens, and never waits: with the stops `abcd` and `bc`,
///   the text `abc` stops at `bc`, whatever comes next.
/// * A stop string may begin or end inside a special token's text (`sep>` stops at `<file_sep>`). With
///   [`StopText::Exclude`], one that begins there drops the whole token, even where special tokens are shown. With
///   [`StopText::Include`] the text goes up to the stop's end, without the special tokens that are hidden.
/// * Text that may be the beginning of a stop string is held back until that is decided, and no other.
/// * Where the decoder is byte-level, a stop string is found in the bytes of the tokens; so U+FFFD in a stop string
///   means that character, not bytes that are no UTF-8.
///
/// Time is proportional to bytes of text × number of stops.
#[derive(Debug, Clone)]
pub struct TextStream {
    source: Source,
    special: SpecialOutput,
    stops: StopMatcher,
    min_tokens: u32,
    tokens: u32,
    /// What the matcher let go.
    text: Utf8Stream,
    stopped: Option<usize>,
}

/// Ids to pieces.
#[derive(Debug, Clone)]
enum Source {
    /// Decoding is concatenation of bytes.
    Bytes(Tokenizer),
    /// Decoding is not.
    Text {
        tokenizer: Tokenizer,
        searched: Detokenizer,
        /// From the first token on that is searched and not shown.
        shown: Option<Detokenizer>,
    },
}

impl TextStream {
    /// At the beginning of a text.
    ///
    /// # Errors
    /// [`TextError::EmptyStop`] if a stop string is empty.
    pub fn new(tokenizer: Tokenizer, special: SpecialOutput, stops: StopStrings) -> Result<Self, TextError> {
        let StopStrings { stop, stop_text, min_tokens } = stops;
        let stops = StopMatcher::new(stop, stop_text)?;
        let source = if tokenizer.is_byte_level() {
            Source::Bytes(tokenizer)
        } else {
            let searched = if stops.is_empty() { special } else { SpecialOutput::Keep };
            Source::Text { searched: Detokenizer::new(tokenizer.clone(), searched), tokenizer, shown: None }
        };
        Ok(Self { source, special, stops, min_tokens, tokens: 0, text: Utf8Stream::default(), stopped: None })
    }

    /// Takes the next token. After a stop, every further one gives the same stop and no text.
    pub fn push(&mut self, id: TokenId) -> StopOutcome {
        if let Some(stop) = self.stopped {
            return StopOutcome::Stopped { text: String::new(), stop };
        }
        self.tokens = self.tokens.saturating_add(1);
        let (heed, mut out) = (self.heed(), Vec::new());
        let stop = match &mut self.source {
            Source::Bytes(tokenizer) => {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                let is_special = tokenizer.is_special(id);
                let hidden = is_special && self.special == SpecialOutput::Skip;
                let shown = if hidden { &[][..] } else { &bytes };
                let special = if is_special { bytes.len() } else { 0 };
                self.stops.push(Piece { searched: &bytes, shown, special }, heed, &mut out)
            }
            Source::Text { tokenizer, searched, shown } => {
                let is_special = tokenizer.is_special(id);
                let hides = self.special == SpecialOutput::Skip && !self.stops.is_empty();
                if hides && is_special && shown.is_none() {
                    *shown = Some(searched.skipping());
                }
                let text = searched.push(id);
                let shown = shown.as_mut().map(|shown| shown.push(id));
                // What comes before a special token's own text was left undecided by earlier tokens.
                let own = if is_special { tokenizer.token_bytes(id).unwrap_or_default() } else { Vec::new() };
                let special = if text.as_bytes().ends_with(&own) { own.len() } else { text.len() };
                let shown = shown.as_ref().unwrap_or(&text).as_bytes();
                self.stops.push(Piece { searched: text.as_bytes(), shown, special }, heed, &mut out)
            }
        };
        self.outcome(stop, &out)
    }

    /// The ids have ended: the rest, in which a stop string may still be complete.
    pub fn finish(&mut self) -> StopOutcome {
        if let Some(stop) = self.stopped {
            return StopOutcome::Stopped { text: String::new(), stop };
        }
        let (heed, mut out) = (self.heed(), Vec::new());
        if let Source::Text { searched, shown, .. } = &mut self.source {
            let text = searched.finish();
            let shown = shown.as_mut().map(Detokenizer::finish);
            let shown = shown.as_ref().unwrap_or(&text).as_bytes();
            let stop = self.stops.push(Piece { searched: text.as_bytes(), shown, special: 0 }, heed, &mut out);
            if stop.is_some() {
                return self.outcome(stop, &out);
            }
        }
        self.stops.finish(&mut out);
        StopOutcome::Continue { text: self.text.push(&out) + &self.text.finish() }
    }

    /// Whether a stop string that is complete now counts.
    fn heed(&self) -> Heed {
        if self.tokens > self.min_tokens { Heed::Yes } else { Heed::No }
    }

    fn outcome(&mut self, stop: Option<usize>, out: &[u8]) -> StopOutcome {
        let text = self.text.push(out);
        self.stopped = stop;
        match stop {
            None => StopOutcome::Continue { text },
            Some(stop) => StopOutcome::Stopped { text: text + &self.text.finish(), stop },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn stops(stop: &[&str]) -> StopStrings {
        StopStrings { stop: stop.iter().map(|s| s.to_string()).collect(), ..StopStrings::default() }
    }

    /// What comes of pushing ids: the text, the stop, and how many ids were taken.
    fn run(
        tokenizer: &Tokenizer,
        special: SpecialOutput,
        stops: StopStrings,
        ids: &[TokenId],
    ) -> (String, Option<usize>, usize) {
        let mut stream = TextStream::new(tokenizer.clone(), special, stops).expect("no stop is empty");
        let mut text = String::new();
        for (i, id) in ids.iter().enumerate() {
            match stream.push(*id) {
                StopOutcome::Continue { text: more } => text += &more,
                StopOutcome::Stopped { text: more, stop } => {
                    // It stays stopped.
                    let again = StopOutcome::Stopped { text: String::new(), stop };
                    assert_eq!((stream.push(*id), stream.finish()), (again.clone(), again));
                    return (text + &more, Some(stop), i + 1);
                }
            }
        }
        match stream.finish() {
            StopOutcome::Continue { text: more } => (text + &more, None, ids.len()),
            StopOutcome::Stopped { text: more, stop } => (text + &more, Some(stop), ids.len()),
        }
    }

    /// `a <file_sep> <file_sep> b`, as ids.
    fn two_files() -> (Tokenizer, Vec<TokenId>) {
        let t = testing::byte_level();
        let sep = t.id("<file_sep>").expect("in the vocabulary");
        (t, vec![testing::byte_id(b'a'), sep, sep, testing::byte_id(b'b')])
    }

    #[test]
    fn a_special_token_is_text_to_a_stop() {
        let (t, ids) = two_files();
        // The counts are transformers' (`stop_strings`, 5.23).
        for (stop, taken) in [("<file_sep>", 2), ("<file_sep><file_sep>", 3), ("sep>", 2), ("a<f", 2), ("><", 3)] {
            for special in [SpecialOutput::Keep, SpecialOutput::Skip] {
                assert_eq!(run(&t, special, stops(&[stop]), &ids).2, taken, "{stop}");
            }
        }
        assert_eq!(run(&t, SpecialOutput::Skip, stops(&["<repo_name>"]), &ids), ("ab".into(), None, 4));
    }

    #[test]
    fn a_stop_that_begins_inside_a_special_token_drops_all_of_it() {
        let (t, ids) = two_files();
        let text = |special, stop: &str| run(&t, special, stops(&[stop]), &ids).0;
        for special in [SpecialOutput::Keep, SpecialOutput::Skip] {
            assert_eq!(text(special, "sep>"), "a");
            assert_eq!(text(special, "a<file"), "");
        }
        assert_eq!(text(SpecialOutput::Keep, "><"), "a");
        assert_eq!(text(SpecialOutput::Keep, "sep>b"), "a<file_sep>");
        assert_eq!(text(SpecialOutput::Skip, "sep>b"), "a");
    }

    #[test]
    fn an_included_stop_ends_the_text_and_hides_what_is_hidden() {
        let (t, ids) = two_files();
        let included = |special, stop: &str| {
            run(&t, special, StopStrings { stop_text: StopText::Include, ..stops(&[stop]) }, &ids).0
        };
        assert_eq!(included(SpecialOutput::Keep, "><"), "a<file_sep><");
        assert_eq!(included(SpecialOutput::Keep, "sep>"), "a<file_sep>");
        assert_eq!(included(SpecialOutput::Skip, "a<file_sep>"), "a");
        assert_eq!(included(SpecialOutput::Skip, "sep>b"), "ab");
    }

    #[test]
    fn an_unfinished_character_before_a_hidden_stop_is_shown_as_one() {
        let t = testing::byte_level();
        let ids = [testing::byte_id(0xC3), TokenId(0)];
        let (text, stop, _) = run(&t, SpecialOutput::Skip, stops(&["<|endoftext|>"]), &ids);
        assert_eq!((text.as_str(), stop), ("\u{FFFD}", Some(0)));
    }

    #[test]
    fn stops_wait_for_min_tokens() {
        let (t, ids) = two_files();
        let run =
            |stop: &str, min_tokens| run(&t, SpecialOutput::Keep, StopStrings { min_tokens, ..stops(&[stop]) }, &ids);
        // As vLLM: the token that completes a stop is the one after `min_tokens` at the earliest.
        assert_eq!(run("<file_sep>", 1), ("a".into(), Some(0), 2));
        assert_eq!(run("<file_sep>", 2), ("a<file_sep>".into(), Some(0), 3));
        assert_eq!(run("<file_sep>", 3).1, None);
        // It may begin before.
        assert_eq!(run("<file_sep><file_sep>b", 3), ("a".into(), Some(0), 4));
        assert_eq!(run("b", 4).1, None);
    }

    #[test]
    fn other_decoders_stop_at_special_tokens() {
        let t = testing::metaspace();
        let ids = ["▁a", "▁foo", "<s>", "▁foo", "b"].map(|token| t.id(token).expect("in the vocabulary"));
        let run = |special, stop: &str| run(&t, special, stops(&[stop]), &ids);
        assert_eq!(run(SpecialOutput::Skip, "<s>"), ("a foo".into(), Some(0), 3));
        assert_eq!(run(SpecialOutput::Keep, "s> "), ("a foo".into(), Some(0), 4));
        assert_eq!(run(SpecialOutput::Skip, "> foo"), ("a foo".into(), Some(0), 4));
        assert_eq!(run(SpecialOutput::Skip, "b"), ("a foo foo".into(), Some(0), 5));
        assert_eq!(run(SpecialOutput::Skip, "x"), ("a foo foob".into(), None, 5));
    }

    /// Ids that stops and characters are made of; the first are special.
    fn pieces() -> Vec<TokenId> {
        let t = testing::byte_level();
        let special = ["<|endoftext|>", "<file_sep>"].map(|token| t.id(token).expect("in the vocabulary"));
        let merged = ["Ã©", "ret"].map(|token| t.id(token).expect("in the vocabulary"));
        [&special[..], &b"ab<e\xC3\xA9\xE4".map(testing::byte_id), &merged].concat()
    }

    fn any_stop() -> impl Strategy<Value = String> {
        let parts = ["a", "b", "é", "<", "e", "ret", "<file_sep>", "sep>", "<|end", "text|>", "<file_sep><"];
        prop::collection::vec(prop::sample::select(parts.to_vec()), 1..4).prop_map(|parts| parts.concat())
    }

    /// [`TextStream`]'s rule over all bytes at once.
    fn naive(t: &Tokenizer, special: SpecialOutput, stops: &StopStrings, ids: &[TokenId]) -> (String, Option<usize>) {
        let tokens: Vec<Vec<u8>> = ids.iter().map(|id| t.token_bytes(*id).expect("known")).collect();
        let all = tokens.concat();
        let ignored = tokens.iter().take(stops.min_tokens as usize).map(Vec::len).sum::<usize>();
        let found = (ignored + 1..=all.len()).find_map(|end| {
            let here = stops.stop.iter().enumerate().filter(|(_, stop)| all[..end].ends_with(stop.as_bytes()));
            let (i, stop) = here.max_by_key(|(i, stop)| (stop.len(), std::cmp::Reverse(*i)))?;
            Some((i, end - stop.len(), end))
        });
        let (mut shown, mut start) = (Vec::new(), 0);
        for (id, bytes) in ids.iter().zip(&tokens) {
            let is_special = t.is_special(*id);
            let cut = match found {
                None => all.len(),
                Some((_, begin, end)) if stops.stop_text == StopText::Exclude => {
                    assert!(begin < end);
                    if is_special && (start..start + bytes.len()).contains(&begin) { start } else { begin }
                }
                Some((_, _, end)) => end,
            };
            if !(is_special && special == SpecialOutput::Skip) {
                shown.extend_from_slice(&bytes[..cut.saturating_sub(start).min(bytes.len())]);
            }
            start += bytes.len();
        }
        (String::from_utf8_lossy(&shown).into_owned(), found.map(|(i, ..)| i))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn agrees_with_a_look_at_the_whole_text(
            ids in prop::collection::vec(prop::sample::select(pieces()), 0..14),
            stop in prop::collection::vec(any_stop(), 0..4),
            include in any::<bool>(),
            skip in any::<bool>(),
            min_tokens in prop::sample::select(vec![0, 0, 1, 3]),
        ) {
            let t = testing::byte_level();
            let special = if skip { SpecialOutput::Skip } else { SpecialOutput::Keep };
            let stop_text = if include { StopText::Include } else { StopText::Exclude };
            let stops = StopStrings { stop, stop_text, min_tokens };
            let (text, found, taken) = run(&t, special, stops.clone(), &ids);
            prop_assert_eq!((&text, found), (&naive(&t, special, &stops, &ids).0, naive(&t, special, &stops, &ids).1));
            if found.is_none() {
                prop_assert_eq!(&text, &t.decode(&ids, special).expect("known ids"));
            }
            // The rule of transformers: the first token after which the decoded text contains a stop. Of stops that
            // min_tokens holds back it knows nothing.
            if min_tokens == 0 {
                let contains = |n: usize| {
                    let text = t.decode(&ids[..n], SpecialOutput::Keep).expect("known ids");
                    stops.stop.iter().any(|stop| text.contains(stop))
                };
                prop_assert_eq!(found.map(|_| taken), (1..=ids.len()).find(|n| contains(*n)));
            }
        }

        /// What is held back is no more than a stop string and the token in which it begins.
        #[test]
        fn little_is_held(
            ids in prop::collection::vec(prop::sample::select(pieces()), 0..40),
            stop in prop::collection::vec(any_stop(), 1..4),
        ) {
            let longest = stop.iter().map(String::len).max().unwrap_or(0);
            let stops = StopStrings { stop, ..StopStrings::default() };
            let mut stream = TextStream::new(testing::byte_level(), SpecialOutput::Skip, stops).expect("none is empty");
            for id in ids {
                stream.push(id);
                prop_assert!(stream.stops.held_bytes() < longest + "<|endoftext|>".len());
            }
        }
    }
}
