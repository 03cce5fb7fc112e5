//! The bar over a file of texts.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState};

use super::super::bars::style;

const BAR: &str = "{wide_bar} {msg}, {left} left";
/// Where nobody knows how much there is.
const COUNT: &str = "{spinner} {msg}";

/// How far a file is scored: in bytes, of which long texts have more than short ones.
pub struct Progress {
    bar: ProgressBar,
    texts: usize,
    tokens: usize,
    /// Bytes of the texts that are done.
    done: u64,
}

impl Progress {
    /// Over so many bytes, if that is known. Hidden by itself where stderr is no terminal.
    pub fn new(bytes: Option<u64>) -> Progress {
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr());
        bar.set_style(style(if bytes.is_some() { BAR } else { COUNT }).with_key("left", write_left));
        Progress { bar, texts: 0, tokens: 0, done: 0 }
    }

    /// Of the text that ends at byte `end`, the part `done / all` is computed.
    pub fn part(&self, end: u64, done: usize, all: usize) {
        let bytes = end.saturating_sub(self.done) as f64 * done as f64 / all.max(1) as f64;
        self.bar.set_position(self.done + bytes as u64);
        self.bar.set_message(format!("{} texts, {} tokens", self.texts, self.tokens + done));
    }

    /// The text that ends at byte `end` is done.
    pub fn text(&mut self, end: u64, tokens: usize) {
        self.texts += 1;
        self.tokens += tokens;
        self.done = end;
        self.part(end, 0, 1);
    }

    /// Lets something else be written to the terminal.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    pub fn close(self) {
        self.bar.finish_and_clear();
    }
}

/// The time that is left; unknown before anything was done.
fn write_left(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    // Nowhere to report a failure to, and the bar is drawn again.
    let _ = if state.pos() == 0 { write!(out, "…") } else { write!(out, "{:.0?}", state.eta()) };
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    use super::*;

    #[test]
    fn the_templates_are_such() {
        for template in [BAR, COUNT] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn bytes_go_with_the_tokens_of_a_text() {
        let mut progress = Progress::new(Some(300));
        progress.part(100, 5, 10);
        assert_eq!(progress.bar.position(), 50);
        progress.text(100, 10);
        assert_eq!(progress.bar.position(), 100);
        progress.part(300, 30, 40);
        assert_eq!((progress.bar.position(), progress.bar.message().as_str()), (250, "1 texts, 40 tokens"));
    }
}
