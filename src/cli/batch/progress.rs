//! How far a run has come: a bar on a terminal, a line now and then where stderr is none, and a closing line.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressFinish};
use rigel::openai::Usage;

use super::super::bars::{Show, style};
use super::super::signals::note;

const BAR: &str = "{wide_bar} {msg}";
/// The bar's rate is over the last few seconds of the run, not over all of it.
const RATE_OVER: Duration = Duration::from_secs(5);
/// How often the bar is drawn anew.
const REDRAW: Duration = Duration::from_millis(200);

/// Counts of one run, and what shows them.
pub struct Progress {
    bar: ProgressBar,
    show: Show,
    started: Instant,
    /// Lines recorded by earlier runs.
    before: u64,
    total: u64,
    answered: u64,
    failed: u64,
    usage: Usage,
    work: Work,
    /// When something was shown last, and how many tokens there were.
    shown: Instant,
    window: (Instant, u64),
}

/// What is known of how long lines are.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    /// Tokens generated, those of unfinished lines included.
    tokens: u64,
    /// Lines that reached the engine, and the most tokens that they may have.
    begun: u64,
    budget: u64,
    /// Those of them that ended, and the tokens that they had.
    ended: u64,
    tokens_of_ended: u64,
}

impl Work {
    /// How many lines' work is done, counting parts of lines; none before there is a token or a line.
    fn lines_done(&self) -> Option<f64> {
        // While no line has ended, what lines may have is the best guess.
        let (lines, tokens) =
            if self.tokens_of_ended > 0 { (self.ended, self.tokens_of_ended) } else { (self.begun, self.budget) };
        let open_tokens = self.tokens.saturating_sub(self.tokens_of_ended) as f64;
        let of_open = if tokens == 0 { 0.0 } else { open_tokens * lines as f64 / tokens as f64 };
        // A line that is longer than others is no two lines.
        let open_lines = self.begun.saturating_sub(self.ended) as f64;
        let done = self.ended as f64 + of_open.min(open_lines);
        (done > 0.0).then_some(done)
    }
}

impl Progress {
    /// `before` of `total` lines are recorded already.
    pub fn new(before: u64, total: u64, show: Show) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(total), show.target())
            .with_finish(ProgressFinish::AndClear)
            .with_style(style(BAR));
        let now = Instant::now();
        Progress {
            bar,
            show,
            started: now,
            before,
            total,
            answered: 0,
            failed: 0,
            usage: Usage::default(),
            work: Work::default(),
            shown: now,
            window: (now, 0),
        }
    }

    /// The lines begin now: what came before, such as the model's loading, says nothing of their speed.
    pub fn start(&mut self) {
        let now = Instant::now();
        (self.started, self.shown, self.window) = (now, now, (now, 0));
    }

    /// A line reached the engine, which may generate so many tokens for it.
    pub fn begun(&mut self, max_tokens: u64) {
        self.work.begun += 1;
        self.work.budget += max_tokens;
    }

    /// One more token was generated.
    pub fn token(&mut self) {
        self.work.tokens += 1;
    }

    /// A line that had so many tokens ended in the engine.
    pub fn ended(&mut self, tokens: u64) {
        self.work.ended += 1;
        self.work.tokens_of_ended += tokens;
    }

    pub fn answered(&mut self, usage: Usage) {
        self.answered += 1;
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
    }

    pub fn failed(&mut self) {
        self.failed += 1;
    }

    /// Shows where the run is, if it is time to. To be called often.
    pub fn tick(&mut self) {
        let Show::Bars { else_every } = self.show else { return };
        let (now, as_lines) = (Instant::now(), self.bar.is_hidden());
        if now - self.shown < if as_lines { else_every } else { REDRAW } {
            return;
        }
        self.shown = now;
        let (since, tokens) = self.window;
        let rate = (self.work.tokens - tokens) as f64 / (now - since).as_secs_f64();
        let line = self.status(rate, now - self.started);
        if as_lines {
            note(&line);
        } else {
            self.bar.set_position(self.recorded());
            self.bar.set_message(line);
        }
        if as_lines || now - since >= RATE_OVER {
            self.window = (now, self.work.tokens);
        }
    }

    /// Prints a line, above the bar where there is one.
    pub fn note(&self, line: &str) {
        if self.bar.is_hidden() { note(line) } else { self.bar.println(line) }
    }

    /// Takes the bar away; the closing line.
    pub fn close(&self) -> String {
        self.bar.finish_and_clear();
        self.closing_line(self.started.elapsed())
    }

    fn recorded(&self) -> u64 {
        self.before + self.answered + self.failed
    }

    /// Where the run is after so much time, with `rate` tokens a second.
    fn status(&self, rate: f64, elapsed: Duration) -> String {
        let mut line = format!("{} of {} lines", self.recorded(), self.total);
        if self.failed > 0 {
            line += &format!(", {} failed", self.failed);
        }
        line += &format!(", {rate:.1} tokens/s, ");
        let lines = (self.total - self.before) as f64;
        match self.work.lines_done() {
            None => line += "… left",
            Some(done) => {
                // Lines that failed before they reached the engine took no time.
                let left = (lines - self.failed as f64 - done).max(0.0);
                let left = elapsed.mul_f64((left / done).min(1e9));
                line += &format!("{:#} left", HumanDuration(left));
            }
        }
        line
    }

    fn closing_line(&self, elapsed: Duration) -> String {
        let Progress { before, total, failed, usage, .. } = self;
        let mut line = format!("{} of {total} lines", self.recorded());
        if *before > 0 {
            line += &format!(", {before} of them by earlier runs");
        }
        if *failed > 0 {
            line += &format!(", {failed} failed");
        }
        let seconds = elapsed.as_secs_f64();
        let Usage { prompt_tokens, completion_tokens, .. } = usage;
        line += &format!(", {prompt_tokens} prompt tokens, {completion_tokens} new tokens, {seconds:.1} s");
        if *completion_tokens > 0 && seconds > 0.0 {
            line += &format!(", {:.1} tokens/s", *completion_tokens as f64 / seconds);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    use super::*;

    #[test]
    fn the_bar_s_template_is_one() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }

    #[test]
    fn the_closing_line_says_what_there_is_to_say() {
        let usage = Usage { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 };
        let mut progress = Progress::new(0, 3, Show::Nothing);
        progress.answered(usage);
        let two = Duration::from_secs(2);
        assert_eq!(progress.closing_line(two), "1 of 3 lines, 10 prompt tokens, 5 new tokens, 2.0 s, 2.5 tokens/s");
        let mut progress = Progress::new(7, 9, Show::Nothing);
        progress.failed();
        assert_eq!(
            progress.closing_line(two),
            "8 of 9 lines, 7 of them by earlier runs, 1 failed, 0 prompt tokens, 0 new tokens, 2.0 s"
        );
    }

    #[test]
    fn the_time_left_is_estimated_from_tokens() {
        let mut progress = Progress::new(10, 110, Show::Nothing);
        let minute = Duration::from_secs(60);
        assert_eq!(progress.status(0.0, minute), "10 of 110 lines, 0.0 tokens/s, … left");
        // Four lines of at most 100 tokens each; a quarter of their tokens is there, so one line's work of 100.
        (0..4).for_each(|_| progress.begun(100));
        (0..100).for_each(|_| progress.token());
        assert_eq!(progress.status(1.5, minute), "10 of 110 lines, 1.5 tokens/s, 2h left");
        // The first line that ends tells how long lines are: 50 tokens, so the work of two is done.
        progress.ended(50);
        progress.answered(Usage { prompt_tokens: 1, completion_tokens: 50, total_tokens: 51 });
        assert_eq!(progress.status(1.5, minute), "11 of 110 lines, 1.5 tokens/s, 49m left");
        // A line that failed when it was read is nothing to wait for.
        progress.failed();
        assert_eq!(progress.status(1.5, 2 * minute), "12 of 110 lines, 1 failed, 1.5 tokens/s, 2h left");
    }

    #[test]
    fn a_long_line_is_not_taken_for_many() {
        let mut work = Work { begun: 2, budget: 2000, ..Work::default() };
        assert_eq!(work.lines_done(), None);
        work.tokens = 10;
        (work.ended, work.tokens_of_ended) = (1, 1);
        assert_eq!(work.lines_done(), Some(2.0));
        work.tokens = 900;
        assert_eq!(work.lines_done(), Some(2.0));
    }
}
