//! The progress bar of weights on their way into memory, to a GPU, or to a file.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressState};
use rigel::backend::{LoadProgress, LoadStage};

use super::bars::style;

const BAR: &str = "{msg} {bar:32} {bytes}/{total_bytes} at {rate}";
/// What is loaded sooner gets no bar.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Whether the bar may be shown; it is only where stderr is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBar {
    /// Where loading takes a while.
    Shown,
    /// Never: `--quiet`.
    Hidden,
}

impl LoadBar {
    /// [`LoadBar::Hidden`] for `--quiet`.
    pub fn unless(quiet: bool) -> LoadBar {
        if quiet { LoadBar::Hidden } else { LoadBar::Shown }
    }

    /// What draws it: a function for every piece of news, the bar gone with the last one or with the function. What is
    /// read and then uploaded has a bar for each.
    pub fn drawer(self) -> impl FnMut(LoadProgress) + Send + 'static {
        let mut bar = None;
        move |progress| {
            let LoadProgress { stage, done_bytes, total_bytes, elapsed, .. } = progress;
            let done = done_bytes >= total_bytes;
            if self == LoadBar::Shown && bar.is_none() && elapsed >= AT_ONCE && !done {
                bar = Some(new_bar(message(stage), total_bytes, elapsed));
            }
            let Some(shown) = &bar else { return };
            shown.set_position(done_bytes);
            if done {
                shown.finish_and_clear();
                bar = None;
            }
        }
    }
}

fn message(stage: LoadStage) -> &'static str {
    match stage {
        LoadStage::Read => "reading weights",
        LoadStage::Write => "writing weights",
        _ => "loading weights",
    }
}

fn new_bar(what: &'static str, total_bytes: u64, elapsed: Duration) -> ProgressBar {
    // Hidden by itself where stderr is no terminal.
    ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr())
        .with_elapsed(elapsed)
        .with_message(what)
        // Where loading fails, the error alone stays.
        .with_finish(ProgressFinish::AndClear)
        .with_style(style(BAR).with_key("rate", write_rate))
}

/// Over all of the time so far, in the units that links are sold by.
fn write_rate(state: &ProgressState, out: &mut dyn std::fmt::Write) {
    // Nowhere to report a failure to, and the bar is drawn again.
    let _ = write!(out, "{}", rate(state.pos(), state.elapsed()));
}

fn rate(bytes: u64, elapsed: Duration) -> String {
    format!("{:.1} GB/s", bytes as f64 / elapsed.as_secs_f64().max(1e-9) / 1e9)
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
    fn a_rate_is_in_gigabytes() {
        assert_eq!(rate(64_300_000_000, Duration::from_secs(2)), "32.1 GB/s");
        assert_eq!(rate(0, Duration::ZERO), "0.0 GB/s");
    }
}
