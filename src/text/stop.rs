//! Stop strings over a stream of pieces. Knows nothing of tokens: a stop string may begin in one piece and end three
//! pieces later, and what is searched need not be what is handed out.

use std::collections::VecDeque;

use super::TextError;

/// Whether the text that is handed out ends before or after the stop string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopText {
    /// The text ends where the stop string begins. A stop string that begins inside a special token's text drops the
    /// whole token: half a special token is not text.
    #[default]
    Exclude,
    /// The stop string is the end of the text. Special tokens in it are hidden where the text hides them.
    Include,
}

/// A piece of text, as stop strings see it and as it is handed out: the two differ where special tokens are hidden.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    /// What stop strings are looked for in. Bytes, since a character may span pieces.
    pub searched: &'a [u8],
    /// What is handed out of it.
    pub shown: &'a [u8],
    /// So many bytes at the end of `searched` are the text of a special token.
    pub special: usize,
}

/// Whether a stop string completed by this piece counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heed {
    Yes,
    /// It is ordinary text (`min_tokens`).
    No,
}

/// Watches a stream of pieces for stop strings.
///
/// **Which stop wins:** the one that is complete first, that is, at the smallest byte position of the searched text; of
/// those complete at the same position the longest (the one that begins leftmost), and of equal strings the first
/// given. This does not depend on how the text is cut into pieces, and never waits: with the stops `abcd` and `bc`, the
/// text `abc` stops at `bc`, whatever comes next.
///
/// **What is held back:** what is shown of the longest end of the searched text so far that begins some stop string,
/// and no more; where that end begins inside a special token, the whole token.
///
/// Time is proportional to bytes of text × number of stops (Knuth–Morris–Pratt, one automaton a stop).
#[derive(Debug, Clone)]
pub(super) struct StopMatcher {
    stops: Vec<Automaton>,
    stop_text: StopText,
    /// Pieces that are not handed out whole.
    held: VecDeque<HeldPiece>,
    /// Searched bytes of `held`.
    searched: usize,
}

impl StopMatcher {
    /// A matcher for these strings; with an empty list everything passes through at once.
    ///
    /// # Errors
    /// [`TextError::EmptyStop`] if one of them is empty.
    pub fn new(stops: Vec<String>, stop_text: StopText) -> Result<Self, TextError> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(TextError::EmptyStop { index });
        }
        let stops = stops.into_iter().map(|stop| Automaton::new(stop.into_bytes())).collect();
        Ok(Self { stops, stop_text, held: VecDeque::new(), searched: 0 })
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Takes the next piece and appends to `out` the shown bytes that are now certain. Returns the stop string that is
    /// complete, as an index into the list given to [`StopMatcher::new`]; what follows it in the piece is dropped, and
    /// nothing may be pushed after it.
    pub fn push(&mut self, piece: Piece<'_>, heed: Heed, out: &mut Vec<u8>) -> Option<usize> {
        if self.stops.is_empty() {
            out.extend_from_slice(piece.shown);
            return None;
        }
        let before = self.searched;
        self.searched += piece.searched.len();
        self.held.push_back(HeldPiece::new(piece));
        for (i, byte) in piece.searched.iter().enumerate() {
            if let Some(stop) = self.step(*byte)
                && heed == Heed::Yes
            {
                let end = before + i + 1;
                match self.stop_text {
                    StopText::Exclude => self.release(end - self.stops[stop].pattern.len(), Edge::Begin, out),
                    StopText::Include => self.release(end, Edge::End, out),
                }
                self.held.clear();
                self.searched = 0;
                return Some(stop);
            }
        }
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        self.release(self.searched - hold, Edge::Begin, out);
        None
    }

    /// Searched bytes of the pieces that are not handed out whole.
    #[cfg(test)]
    pub fn held_bytes(&self) -> usize {
        self.held.iter().map(|piece| piece.searched).sum()
    }

    /// The stream has ended: what was held back is ordinary text after all.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(self.searched, Edge::End, out);
    }

    /// Advances every automaton by one byte; the winner among the stops that this byte completes.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut winner: Option<usize> = None;
        for i in 0..self.stops.len() {
            let complete = self.stops[i].step(byte);
            if complete && winner.is_none_or(|w| self.stops[i].pattern.len() > self.stops[w].pattern.len()) {
                winner = Some(i);
            }
        }
        winner
    }

    /// Hands out what is shown of the first `bytes` searched bytes that are held.
    fn release(&mut self, mut bytes: usize, edge: Edge, out: &mut Vec<u8>) {
        while let Some(front) = self.held.front_mut() {
            if front.searched > bytes {
                front.release(front.shown_at(bytes, edge), out);
                return;
            }
            front.release(front.shown.len(), out);
            bytes -= front.searched;
            self.searched -= front.searched;
            self.held.pop_front();
        }
    }
}

/// What lies at a place inside a piece.
#[derive(Debug, Clone, Copy)]
enum Edge {
    /// The beginning of a stop string, or of what may become one.
    Begin,
    /// The end of the text.
    End,
}

/// A piece that is not handed out whole.
#[derive(Debug, Clone)]
struct HeldPiece {
    /// Length of the searched text.
    searched: usize,
    shown: Vec<u8>,
    /// So many bytes at the end are the same in both.
    common: usize,
    /// So many bytes at the end of the searched text are a special token's.
    special: usize,
    /// Bytes of `shown` that are handed out.
    released: usize,
}

impl HeldPiece {
    fn new(Piece { searched, shown, special }: Piece<'_>) -> Self {
        let common = common_end(searched, shown);
        Self { searched: searched.len(), shown: shown.to_vec(), common, special, released: 0 }
    }

    /// How much is shown of the first `bytes` searched bytes, of which there are more. Where the two texts differ
    /// there is no place to cut at, and nothing is.
    fn shown_at(&self, bytes: usize, edge: Edge) -> usize {
        let bytes = match edge {
            Edge::Begin => bytes.min(self.searched - self.special),
            Edge::End => bytes,
        };
        let rest = self.searched - bytes;
        if rest <= self.common { self.shown.len() - rest } else { 0 }
    }

    fn release(&mut self, end: usize, out: &mut Vec<u8>) {
        if end > self.released {
            out.extend_from_slice(&self.shown[self.released..end]);
            self.released = end;
        }
    }
}

/// The bytes that both end with; not beginning inside a character where the two are different texts.
fn common_end(a: &[u8], b: &[u8]) -> usize {
    if a == b {
        return a.len();
    }
    let same = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let is_continuation = |byte: &&u8| **byte & 0xC0 == 0x80;
    same - b[b.len() - same..].iter().take_while(is_continuation).count()
}

/// Knuth–Morris–Pratt over bytes for one pattern.
#[derive(Debug, Clone)]
struct Automaton {
    pattern: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of `pattern[..=n]` that is also its suffix.
    fallback: Vec<usize>,
    /// Length of the longest proper prefix of the pattern that the text so far ends with.
    matched: usize,
}

impl Automaton {
    fn new(pattern: Vec<u8>) -> Self {
        let mut fallback = vec![0; pattern.len()];
        let mut length = 0;
        for i in 1..pattern.len() {
            while length > 0 && pattern[i] != pattern[length] {
                length = fallback[length - 1];
            }
            if pattern[i] == pattern[length] {
                length += 1;
            }
            fallback[i] = length;
        }
        Self { pattern, fallback, matched: 0 }
    }

    /// Whether `byte` completes the pattern. The next occurrence may overlap this one.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        if self.pattern[self.matched] == byte {
            self.matched += 1;
        }
        let complete = self.matched == self.pattern.len();
        if complete {
            self.matched = self.fallback[self.matched - 1];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a piece led to: text, and the stop.
    type Step = (String, Option<usize>);

    fn matcher(stops: &[&str], stop_text: StopText) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), stop_text).expect("no stop is empty")
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("cut between characters")
    }

    fn push(m: &mut StopMatcher, piece: &str) -> Step {
        let mut out = Vec::new();
        let piece = Piece { searched: piece.as_bytes(), shown: piece.as_bytes(), special: 0 };
        let stop = m.push(piece, Heed::Yes, &mut out);
        (text(out), stop)
    }

    fn once(stops: &[&str], piece: &str) -> Step {
        push(&mut matcher(stops, StopText::Exclude), piece)
    }

    fn finish(m: &mut StopMatcher) -> String {
        let mut out = Vec::new();
        m.finish(&mut out);
        text(out)
    }

    fn go_on(text: &str) -> Step {
        (text.to_owned(), None)
    }

    fn stopped(text: &str, stop: usize) -> Step {
        (text.to_owned(), Some(stop))
    }

    #[test]
    fn a_stop_may_span_pieces_and_is_held_back() {
        let mut m = matcher(&["\n```"], StopText::Exclude);
        assert_eq!(push(&mut m, "x = 1\n"), go_on("x = 1"));
        assert_eq!(push(&mut m, "``"), go_on(""));
        assert_eq!(push(&mut m, "x\n"), go_on("\n``x"));
        assert_eq!(push(&mut m, "```python"), stopped("", 0));
        assert_eq!(finish(&mut m), "");
    }

    #[test]
    fn what_is_held_comes_out_at_the_end() {
        let mut m = matcher(&["###"], StopText::Exclude);
        assert_eq!(push(&mut m, "a##"), go_on("a"));
        assert_eq!(finish(&mut m), "##");
    }

    #[test]
    fn the_first_complete_stop_wins_and_then_the_longest() {
        assert_eq!(once(&["abcd", "bc"], "abcd"), stopped("a", 1));
        assert_eq!(once(&["bc", "abc"], "xabc"), stopped("x", 1));
        assert_eq!(once(&["b", "b"], "ab"), stopped("a", 0));
        assert_eq!(once(&["abc", "ab"], "abc"), stopped("", 1));
    }

    #[test]
    fn the_stop_can_be_part_of_the_text() {
        let mut m = matcher(&["END"], StopText::Include);
        assert_eq!(push(&mut m, "a E"), go_on("a "));
        assert_eq!(push(&mut m, "ND b"), stopped("END", 0));
    }

    #[test]
    fn an_empty_stop_is_refused() {
        let stops = vec!["a".to_owned(), String::new()];
        let error = StopMatcher::new(stops, StopText::Exclude).expect_err("empty");
        assert!(matches!(error, TextError::EmptyStop { index: 1 }), "{error}");
    }

    #[test]
    fn no_stops_hold_nothing() {
        let mut m = matcher(&[], StopText::Exclude);
        assert_eq!(push(&mut m, "abc"), go_on("abc"));
        assert_eq!(finish(&mut m), "");
    }

    #[test]
    fn a_stop_that_is_not_heeded_is_text_and_may_begin_the_next() {
        let mut m = matcher(&["aba"], StopText::Exclude);
        let mut out = Vec::new();
        let piece = Piece { searched: b"xaba", shown: b"xaba", special: 0 };
        assert_eq!(m.push(piece, Heed::No, &mut out), None);
        // The last "a" may begin another one.
        assert_eq!(text(out), "xab");
        assert_eq!(push(&mut m, "bax"), stopped("", 0));
    }

    #[test]
    fn pieces_that_differ_share_their_end() {
        assert_eq!(common_end(b"abc", b"abc"), 3);
        assert_eq!(common_end(b"xbc", b"bc"), 2);
        assert_eq!(common_end(b"abc", b""), 0);
        // C3 A9 and C5 A9: the second byte is the same, the character is not.
        assert_eq!(common_end("éa".as_bytes(), "ũa".as_bytes()), 1);
        // Where both are the same, bytes that are no characters are the same, too.
        assert_eq!(common_end(b"\xA9", b"\xA9"), 1);
    }

    /// The rule of [`StopMatcher`] by search over the whole text: smallest end, then longest, then first.
    fn search(text: &str, stops: &[String]) -> Option<(usize, usize, usize)> {
        (0..=text.len()).find_map(|end| {
            let here = stops.iter().enumerate().filter(|(_, s)| text.as_bytes()[..end].ends_with(s.as_bytes()));
            here.max_by_key(|(i, s)| (s.len(), std::cmp::Reverse(*i))).map(|(i, s)| (end - s.len(), end, i))
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_over_the_whole_text(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            include in any::<bool>(),
        ) {
            let whole = pieces.concat();
            let stop_text = if include { StopText::Include } else { StopText::Exclude };
            let mut m = StopMatcher::new(stops.clone(), stop_text).expect("none is empty");
            let (mut out, mut seen, mut stop) = (String::new(), 0, None);
            for piece in &pieces {
                seen += piece.len();
                let (more, found) = push(&mut m, piece);
                out.push_str(&more);
                stop = found;
                if stop.is_some() {
                    break;
                }
                // Held back is exactly the longest end of the text that begins a stop.
                let so_far = &whole[..seen];
                let hold = stops.iter()
                    .flat_map(|s| (1..s.len()).filter(|n| so_far.as_bytes().ends_with(&s.as_bytes()[..*n])))
                    .max().unwrap_or(0);
                prop_assert_eq!(out.len(), seen - hold);
            }
            let expected = search(&whole, &stops);
            prop_assert_eq!(stop, expected.map(|(_, _, i)| i));
            match expected {
                Some((start, end, _)) => prop_assert_eq!(out, &whole[..if include { end } else { start }]),
                None => prop_assert_eq!(out + &finish(&mut m), whole),
            }
        }
    }
}
