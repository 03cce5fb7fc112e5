//! Progress of loading weights.

use std::time::Duration;

/// Stage of loading. Weights that are read and then uploaded go through both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadStage {
    /// Reading files, into process memory or into the page cache.
    Read,
    /// Uploading to GPU memory.
    Upload,
    /// Writing files.
    Write,
}

/// Progress of a loading stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// The stage.
    pub stage: LoadStage,
    /// Bytes done; of an upload, a few buffers may still be in transit.
    pub done_bytes: u64,
    /// Bytes in total; of mapped files, those that were not in memory.
    pub total_bytes: u64,
    /// Time since loading began.
    pub elapsed: Duration,
}

impl LoadProgress {
    /// Bytes per second so far; 0 at the start.
    pub fn bytes_per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.done_bytes as f64 / seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_bytes_over_seconds() {
        let at = |millis| LoadProgress {
            stage: LoadStage::Read,
            done_bytes: 500,
            total_bytes: 1000,
            elapsed: Duration::from_millis(millis),
        };
        assert_eq!(at(250).bytes_per_second(), 2000.0);
        assert_eq!(at(0).bytes_per_second(), 0.0);
    }
}
