//! Stop strings over a stream of text pieces. Knows nothing of tokens: a stop string may begin in one piece and end
//! three pieces later.

use super::TextError;

/// Whether the text that is handed out ends before or after the stop string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopText {
    /// The text ends where the stop string begins.
    #[default]
    Exclude,
    /// The stop string is the end of the text.
    Include,
}

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopOutcome {
    /// No stop yet. `text` is now certain not to be part of one; the rest is held back.
    Continue {
        /// Newly decided text, possibly empty.
        text: String,
    },
    /// A stop string is complete. What followed it in the same piece is dropped.
    Stopped {
        /// The last newly decided text, possibly empty.
        text: String,
        /// Which stop string, as an index into the list given to [`StopMatcher::new`].
        stop: usize,
    },
}

/// Watches a stream of text for stop strings.
///
/// **Which stop wins:** the one that is complete first, that is, at the smallest byte position of the text; of those
/// complete at the same position the longest (the one that begins leftmost), and of equal strings the first given.
/// This does not depend on how the text is cut into pieces, and never waits: with the stops `abcd` and `bc`, the text
/// `abc` stops at `bc`, whatever comes next.
///
/// **What is held back:** the longest end of the text so far that begins some stop string, and no more. It is shorter
/// than the longest stop string and begins at a character boundary.
///
/// Time is proportional to bytes of text × number of stops (Knuth–Morris–Pratt, one automaton a stop).
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    stop_text: StopText,
    held: String,
    stopped: Option<usize>,
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
        Ok(Self { stops, stop_text, held: String::new(), stopped: None })
    }

    /// Takes the next piece of text. After a stop, every further piece gives the same stop and no text.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if let Some(stop) = self.stopped {
            return StopOutcome::Stopped { text: String::new(), stop };
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            if let Some(stop) = self.step(byte) {
                let end = before + i + 1;
                let cut = match self.stop_text {
                    StopText::Exclude => end - self.stops[stop].pattern.len(),
                    StopText::Include => end,
                };
                self.stopped = Some(stop);
                let mut text = std::mem::take(&mut self.held);
                text.truncate(cut);
                return StopOutcome::Stopped { text, stop };
            }
        }
        let hold = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        // A stop's first byte starts a character, so the text's equal byte does: the cut is at a character boundary.
        let rest = self.held.split_off(self.held.len() - hold);
        StopOutcome::Continue { text: std::mem::replace(&mut self.held, rest) }
    }

    /// The stream has ended: what was held back is ordinary text after all. Empty after a stop.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
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
}

/// Knuth–Morris–Pratt over bytes for one pattern.
#[derive(Debug, Clone)]
struct Automaton {
    pattern: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of `pattern[..=n]` that is also its suffix.
    fallback: Vec<usize>,
    /// Bytes of the pattern that the text so far ends with.
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

    /// Whether `byte` completes the pattern. Not called again after it has.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        if self.pattern[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.pattern.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops.iter().map(|s| s.to_string()).collect(), StopText::Exclude).expect("no stop is empty")
    }

    fn go_on(text: &str) -> StopOutcome {
        StopOutcome::Continue { text: text.to_owned() }
    }

    fn stopped(text: &str, stop: usize) -> StopOutcome {
        StopOutcome::Stopped { text: text.to_owned(), stop }
    }

    #[test]
    fn a_stop_may_span_pieces_and_is_held_back() {
        let mut m = matcher(&["\n```"]);
        assert_eq!(m.push("x = 1\n"), go_on("x = 1"));
        assert_eq!(m.push("``"), go_on(""));
        assert_eq!(m.push("x\n"), go_on("\n``x"));
        assert_eq!(m.push("```python"), stopped("", 0));
        assert_eq!(m.push("more"), stopped("", 0));
        assert_eq!(m.finish(), "");
    }

    #[test]
    fn what_is_held_comes_out_at_the_end() {
        let mut m = matcher(&["###"]);
        assert_eq!(m.push("a##"), go_on("a"));
        assert_eq!(m.finish(), "##");
    }

    #[test]
    fn the_first_complete_stop_wins_and_then_the_longest() {
        assert_eq!(matcher(&["abcd", "bc"]).push("abcd"), stopped("a", 1));
        assert_eq!(matcher(&["bc", "abc"]).push("xabc"), stopped("x", 1));
        assert_eq!(matcher(&["b", "b"]).push("ab"), stopped("a", 0));
        assert_eq!(matcher(&["abc", "ab"]).push("abc"), stopped("", 1));
    }

    #[test]
    fn the_stop_can_be_part_of_the_text() {
        let mut m = StopMatcher::new(vec!["END".to_owned()], StopText::Include).expect("not empty");
        assert_eq!(m.push("a E"), go_on("a "));
        assert_eq!(m.push("ND b"), stopped("END", 0));
    }

    #[test]
    fn an_empty_stop_is_refused() {
        let error = StopMatcher::new(vec!["a".to_owned(), String::new()], StopText::Exclude).expect_err("empty");
        assert!(matches!(error, TextError::EmptyStop { index: 1 }), "{error}");
    }

    #[test]
    fn no_stops_hold_nothing() {
        let mut m = matcher(&[]);
        assert_eq!(m.push("abc"), go_on("abc"));
        assert_eq!(m.finish(), "");
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
            let text = pieces.concat();
            let stop_text = if include { StopText::Include } else { StopText::Exclude };
            let mut m = StopMatcher::new(stops.clone(), stop_text).expect("none is empty");
            let (mut out, mut seen, mut stop) = (String::new(), 0, None);
            for piece in &pieces {
                seen += piece.len();
                match m.push(piece) {
                    StopOutcome::Continue { text: t } => {
                        out.push_str(&t);
                        // Held back is exactly the longest end of the text that begins a stop.
                        let so_far = &text[..seen];
                        let hold = stops.iter()
                            .flat_map(|s| (1..s.len()).filter(|n| so_far.as_bytes().ends_with(&s.as_bytes()[..*n])))
                            .max().unwrap_or(0);
                        prop_assert_eq!(out.len(), seen - hold);
                    }
                    StopOutcome::Stopped { text: t, stop: s } => {
                        out.push_str(&t);
                        stop = Some(s);
                        break;
                    }
                }
            }
            let expected = search(&text, &stops);
            prop_assert_eq!(stop, expected.map(|(_, _, i)| i));
            match expected {
                Some((start, end, _)) => prop_assert_eq!(out, &text[..if include { end } else { start }]),
                None => prop_assert_eq!(out + &m.finish(), text),
            }
        }
    }
}
