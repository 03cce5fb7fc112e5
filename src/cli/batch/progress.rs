//! How far a run has come: a bar on a terminal, and a closing line.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use rigel::openai::Usage;

const BAR: &str = "{wide_bar} {pos}/{len} lines, {msg}{eta} left";
/// The rate is over the last few seconds of the run, not over all of it.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Counts of one run, and the bar that shows them.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
    /// Lines recorded by earlier runs.
    before: u64,
    total: u64,
    answered: u64,
    failed: u64,
    usage: Usage,
    /// Tokens generated, those of unfinished lines included.
    tokens: u64,
    window: (Instant, u64),
}

impl Progress {
    /// `before` of `total` lines are recorded already.
    pub fn new(before: u64, total: u64, shown: bool) -> Progress {
        // Hidden by itself where stderr is no terminal.
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let mut bar = ProgressBar::with_draw_target(Some(total), target).with_finish(ProgressFinish::AndClear);
        // The template is a constant that a test runs through; without it the bar looks plainer.
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar = bar.with_style(style);
        }
        bar.set_position(before);
        // Lines of earlier runs say nothing of this one's speed.
        bar.reset_eta();
        let now = Instant::now();
        Progress {
            bar,
            started: now,
            before,
            total,
            answered: 0,
            failed: 0,
            usage: Usage::default(),
            tokens: 0,
            window: (now, 0),
        }
    }

    /// The bar, for those who print while it is shown.
    pub fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// One more token was generated.
    pub fn token(&mut self) {
        self.tokens += 1;
        let (since, count) = self.window;
        let elapsed = since.elapsed();
        if elapsed >= Duration::from_secs(1) {
            let rate = (self.tokens - count) as f64 / elapsed.as_secs_f64();
            self.bar.set_message(format!("{rate:.1} tokens/s, "));
        }
        if elapsed >= RATE_OVER {
            self.window = (Instant::now(), self.tokens);
        }
    }

    pub fn answered(&mut self, usage: Usage) {
        self.answered += 1;
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
        self.bar.inc(1);
    }

    pub fn failed(&mut self) {
        self.failed += 1;
        self.bar.inc(1);
    }

    /// Takes the bar away; the closing line.
    pub fn close(&self) -> String {
        self.bar.finish_and_clear();
        self.closing_line(self.started.elapsed())
    }

    fn closing_line(&self, elapsed: Duration) -> String {
        let Progress { before, total, answered, failed, usage, .. } = self;
        let recorded = before + answered + failed;
        let mut line = format!("{recorded} of {total} lines");
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
    use super::*;

    #[test]
    fn the_bar_s_template_is_one() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }

    #[test]
    fn the_closing_line_says_what_there_is_to_say() {
        let usage = Usage { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 };
        let mut progress = Progress::new(0, 3, false);
        progress.answered(usage);
        let two = Duration::from_secs(2);
        assert_eq!(progress.closing_line(two), "1 of 3 lines, 10 prompt tokens, 5 new tokens, 2.0 s, 2.5 tokens/s");
        let mut progress = Progress::new(7, 9, false);
        progress.failed();
        assert_eq!(
            progress.closing_line(two),
            "8 of 9 lines, 7 of them by earlier runs, 1 failed, 0 prompt tokens, 0 new tokens, 2.0 s"
        );
    }
}
