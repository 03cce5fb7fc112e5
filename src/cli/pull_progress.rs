//! How far a download is: bars on a terminal, a line now and then where stderr is none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar};
use rigel::host::Size;
use rigel::hub::PullEvent;

use super::bars::{Show, style};
use super::signals::note;

const TOTAL: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} at {decimal_bytes_per_sec}, {eta} left";
const FILE: &str = "  {msg} {bar:24} {binary_bytes}/{binary_total_bytes}";
/// Smaller files come and go too fast for a bar.
const MIN_BAR_BYTES: u64 = 8 << 20;

/// What shows a download; its methods are called from several threads.
pub struct PullProgress {
    show: Show,
    bars: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: Option<Total>,
    files: HashMap<String, File>,
}

struct Total {
    bar: ProgressBar,
    model: String,
    missing_bytes: u64,
    started: Instant,
    /// When a line was printed last.
    printed: Instant,
}

struct File {
    /// Bytes that were there before.
    before: u64,
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl PullProgress {
    pub fn new(show: Show) -> PullProgress {
        PullProgress { show, bars: MultiProgress::with_draw_target(show.target()), state: Mutex::default() }
    }

    /// The download of so many bytes begins.
    pub fn begin(&self, model: &str, missing_bytes: u64) {
        let now = Instant::now();
        let bar =
            self.bars.add(ProgressBar::new(missing_bytes).with_style(style(TOTAL)).with_message(model.to_owned()));
        let total = Total { bar, model: model.to_owned(), missing_bytes, started: now, printed: now };
        self.state().total = Some(total);
    }

    pub fn event(&self, event: PullEvent<'_>) {
        match event {
            PullEvent::Progress { file, bytes } => self.progress(&file.name, file.bytes, bytes),
            PullEvent::Done { file } => {
                if let Some(bar) = self.state().files.get_mut(&file.name).and_then(|file| file.bar.take()) {
                    bar.finish_and_clear();
                }
            }
            PullEvent::Waiting { file } => self.note(&format!("{}: another process downloads it; waiting", file.name)),
            PullEvent::Retrying { what, reason, wait } => {
                let when = if wait.is_zero() { "now".to_owned() } else { format!("in {} s", wait.as_secs_f64()) };
                self.note(&format!("{what}: {reason} (again {when})"));
            }
            // Events of later versions.
            _ => {}
        }
    }

    fn progress(&self, name: &str, all: u64, bytes: u64) {
        let mut state = self.state();
        let State { total, files } = &mut *state;
        let file = files.entry(name.to_owned()).or_insert_with(|| {
            let has_bar = all.saturating_sub(bytes) >= MIN_BAR_BYTES;
            let bar = || self.bars.add(ProgressBar::new(all).with_style(style(FILE)).with_message(name.to_owned()));
            File { before: bytes, bytes, bar: has_bar.then(bar) }
        });
        file.bytes = bytes;
        if let Some(bar) = &file.bar {
            bar.set_position(bytes);
        }
        let new: u64 = files.values().map(|file| file.bytes.saturating_sub(file.before)).sum();
        let (Some(total), Show::Bars { else_every }) = (total, self.show) else { return };
        total.bar.set_position(new);
        if self.bars.is_hidden() && total.printed.elapsed() >= else_every {
            total.printed = Instant::now();
            note(&total.line(new, total.started.elapsed()));
        }
    }

    /// Prints a line above the bars; none for `--quiet`.
    pub fn note(&self, line: &str) {
        match self.show {
            Show::Nothing => {}
            Show::Bars { .. } if self.bars.is_hidden() => note(line),
            // Where the terminal is gone there is nobody to tell.
            Show::Bars { .. } => drop(self.bars.println(line)),
        }
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        let mut state = self.state();
        let files = state.files.drain().filter_map(|(_, file)| file.bar);
        files.for_each(|bar| bar.finish_and_clear());
        if let Some(total) = state.total.take() {
            total.bar.finish_and_clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves bars that can still be drawn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Total {
    /// `bigcode/starcoder2-3b: 1.20 GiB of 5.64 GiB, 85.1 MB/s, 52 seconds left`
    fn line(&self, new: u64, elapsed: Duration) -> String {
        let Total { model, missing_bytes, .. } = self;
        let mut line = format!("{model}: {} of {}", Size(new), Size(*missing_bytes));
        let rate = new as f64 / elapsed.as_secs_f64();
        if new > 0 && rate.is_finite() {
            let left = Duration::from_secs_f64(missing_bytes.saturating_sub(new) as f64 / rate);
            line += &format!(", {:.1} MB/s, {} left", rate / 1e6, HumanDuration(left));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    use super::*;

    #[test]
    fn templates_are_templates() {
        for template in [TOTAL, FILE] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn lines_say_how_far_it_is() {
        let progress = PullProgress::new(Show::Nothing);
        progress.begin("o/m", 300 << 20);
        progress.progress("a", 100 << 20, 50 << 20);
        progress.progress("a", 100 << 20, 100 << 20);
        progress.progress("b", 250 << 20, 50 << 20);
        let state = progress.state();
        let new: u64 = state.files.values().map(|file| file.bytes - file.before).sum();
        assert_eq!(new, 50 << 20);
        let total = state.total.as_ref().unwrap();
        let line = total.line(new, Duration::from_secs(1));
        assert_eq!(line, "o/m: 50.0 MiB of 300 MiB, 52.4 MB/s, 5 seconds left");
        assert_eq!(total.line(0, Duration::ZERO), "o/m: 0 B of 300 MiB");
    }
}
