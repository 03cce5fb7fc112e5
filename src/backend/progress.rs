//! How far the loading of weights has come.

use std::time::Duration;

/// What is done to the weights. Those that are read and then uploaded go through both stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoadStage {
    /// Read from their files: into memory of the process, or into the system's page cache where they are mapped.
    Read,
    /// Brought into the memory of a GPU.
    Upload,
    /// Written to files.
    Write,
}

/// How far weights have come on their way: into memory of the machine, of a GPU, or to files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// What is done to them.
    pub stage: LoadStage,
    /// Bytes there, or on their way to a device: at most a few buffers' worth of them.
    pub done_bytes: u64,
    /// Bytes that the weights take there; of mapped files, those that were not in memory.
    pub total_bytes: u64,
    /// Since the loading began.
    pub elapsed: Duration,
}

impl LoadProgress {
    /// Bytes a second so far; 0 at the very beginning.
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
