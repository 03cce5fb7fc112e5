//! What all progress bars share.

use std::time::Duration;

use indicatif::{ProgressDrawTarget, ProgressStyle};

/// What is shown of a command that takes a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// `--quiet`.
    Nothing,
    /// Bars where stderr is a terminal, else a line each time that this much time has passed.
    Bars { else_every: Duration },
}

impl Show {
    /// Where bars are drawn. Hidden by itself where stderr is no terminal.
    pub fn target(self) -> ProgressDrawTarget {
        match self {
            Show::Nothing => ProgressDrawTarget::hidden(),
            Show::Bars { .. } => ProgressDrawTarget::stderr(),
        }
    }
}

/// The style of a template. Templates are constants that a test runs through; without one a bar looks plainer.
pub fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
