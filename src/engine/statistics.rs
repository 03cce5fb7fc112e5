//! What an engine has done so far.

use std::sync::{Mutex, PoisonError};

use super::sequence::Sequence;

/// Counts of an engine, since it was built unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Sequences (samples of requests) that are computed at this moment.
    pub running: usize,
    /// Sequences that wait for room at this moment, those that were preempted among them.
    pub waiting: usize,
    /// Forward passes.
    pub steps: u64,
    /// Rows computed for prompts, and for what a preempted sequence had computed before.
    pub prefill_rows: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Sequences that came to their end.
    pub finished: u64,
    /// Sequences that failed.
    pub failed: u64,
    /// Sequences that were cancelled.
    pub cancelled: u64,
    /// Of these, sequences whose prompt was computed in part.
    pub cancelled_in_prefill: u64,
    /// Sequences that ended because their time was up.
    pub expired: u64,
    /// Times that a sequence gave up its pages to an older one, to be computed again later.
    pub preemptions: u64,
    /// Sequences that found their beginning in the cache, those that were preempted among them.
    pub prefix_hits: u64,
    /// Tokens that need not be computed because of that.
    pub prefix_tokens: u64,
    /// Forward passes of a sequence that verified drafted tokens.
    pub verifications: u64,
    /// Tokens drafted.
    pub drafted_tokens: u64,
    /// Tokens drafted that were those that the model chose.
    pub accepted_tokens: u64,
    /// Pages of the cache, of all its groups.
    pub pages: u32,
    /// Of these, pages that no sequence uses at this moment.
    pub pages_available: u32,
}

impl Statistics {
    /// The part of the drafted tokens that the model chose too; none where none were drafted.
    pub fn acceptance_rate(&self) -> Option<f64> {
        (self.drafted_tokens > 0).then(|| self.accepted_tokens as f64 / self.drafted_tokens as f64)
    }
}

impl Statistics {
    /// Counts a sequence that is taken out because nobody waits for it, or because another sample of its request failed.
    pub(super) fn count_closed(&mut self, sequence: &Sequence) {
        if sequence.output.is_cancelled() {
            self.cancelled += 1;
            self.cancelled_in_prefill += u64::from(sequence.computed() > 0 && !sequence.has_prompt());
        } else {
            self.failed += 1;
        }
    }

    /// Adds what [`Statistics::count_closed`] counted elsewhere.
    pub(super) fn add_closed(&mut self, counted: &Statistics) {
        self.cancelled += counted.cancelled;
        self.cancelled_in_prefill += counted.cancelled_in_prefill;
        self.failed += counted.failed;
    }
}

/// The numbers as of the last step, for whoever asks.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<Statistics>);

impl Board {
    pub(super) fn post(&self, statistics: Statistics) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }

    pub(super) fn read(&self) -> Statistics {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
