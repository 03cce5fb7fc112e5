//! Counters and gauges of an engine.

use std::sync::{Mutex, PoisonError};

use super::sequence::Sequence;

/// Counters since the engine was built, and gauges where noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Gauge: running sequences (samples of requests).
    pub running: usize,
    /// Gauge: waiting sequences, preempted ones included.
    pub waiting: usize,
    /// Forward passes.
    pub steps: u64,
    /// Prompt rows computed, recomputation after preemption included.
    pub prefill_rows: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Sequences finished.
    pub finished: u64,
    /// Sequences failed.
    pub failed: u64,
    /// Sequences cancelled.
    pub cancelled: u64,
    /// Cancelled sequences whose prompt was partly computed.
    pub cancelled_in_prefill: u64,
    /// Sequences ended by their deadline.
    pub expired: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Sequences that started from a cached prefix, preempted ones included.
    pub prefix_hits: u64,
    /// Tokens taken from the prefix cache.
    pub prefix_tokens: u64,
    /// Forward passes of a sequence that verified drafts.
    pub verifications: u64,
    /// Tokens drafted.
    pub drafted_tokens: u64,
    /// Drafted tokens accepted.
    pub accepted_tokens: u64,
    /// Gauge: pages of all cache groups.
    pub pages: u32,
    /// Gauge: pages that no sequence references.
    pub pages_available: u32,
}

impl Statistics {
    /// Share of drafted tokens that were accepted. `None` if none were drafted.
    pub fn acceptance_rate(&self) -> Option<f64> {
        (self.drafted_tokens > 0).then(|| self.accepted_tokens as f64 / self.drafted_tokens as f64)
    }
}

impl Statistics {
    /// Counts a sequence removed because it was cancelled or because another sample of its request failed.
    pub(super) fn count_closed(&mut self, sequence: &Sequence) {
        if sequence.output.is_cancelled() {
            self.cancelled += 1;
            self.cancelled_in_prefill += u64::from(sequence.computed() > 0 && !sequence.has_prompt());
        } else {
            self.failed += 1;
        }
    }

    /// Adds the counts of [`Statistics::count_closed`].
    pub(super) fn add_closed(&mut self, counted: &Statistics) {
        self.cancelled += counted.cancelled;
        self.cancelled_in_prefill += counted.cancelled_in_prefill;
        self.failed += counted.failed;
    }
}

/// The statistics as of the last step, readable from any thread.
#[derive(Debug, Default)]
pub(super) struct StatisticsSnapshot(Mutex<Statistics>);

impl StatisticsSnapshot {
    pub(super) fn publish(&self, statistics: Statistics) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }

    pub(super) fn read(&self) -> Statistics {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
