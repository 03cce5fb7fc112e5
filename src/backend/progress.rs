//! How far the loading of weights has come.

use std::time::Duration;

/// How far the loading of weights into memory has come: a device's, or the process's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes there, or on their way to a device: at most a few buffers' worth of them.
    pub done_bytes: u64,
    /// Bytes that the weights take there.
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
        let at = |millis| LoadProgress { done_bytes: 500, total_bytes: 1000, elapsed: Duration::from_millis(millis) };
        assert_eq!(at(250).bytes_per_second(), 2000.0);
        assert_eq!(at(0).bytes_per_second(), 0.0);
    }
}
