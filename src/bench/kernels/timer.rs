//! Times of launches on a GPU's own clock.

use std::time::{Duration, Instant};

use crate::backend::cuda::kernels::ceilings::Ceilings;
use crate::backend::cuda::{Buffer, CudaError, Event, Stream};

/// Launches that take less are timed many at once, replayed from a recording: an event's resolution is half a
/// microsecond, and a launch from the host takes some.
const SHORT_US: f64 = 200.0;
/// How long a recording of short launches should take.
const RECORDING_US: f64 = 1000.0;
/// The most launches of a recording.
const MAX_RECORDED: usize = 2048;
/// Samples that are given to the stream at once. The host waits for them together, so that it never delays one.
const TOGETHER: usize = 8;
/// How long the clock is looked at.
const CLOCK_NS: u64 = 20_000;
/// A clock that moves by more than this share marks what was measured meanwhile.
pub const STEADY_CLOCK: f64 = 0.05;

/// What is launched: the same work on one of several sets of inputs.
pub trait Launches {
    /// How many sets there are, at least 1.
    fn sets(&self) -> usize;

    /// Gives the launch on set number `set` to the stream.
    ///
    /// # Errors
    /// Those of the launch.
    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError>;
}

/// Samples of one launch, and the clock around them.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    /// Microseconds of one launch, each a mean where launches were recorded.
    pub us: Vec<f64>,
    /// GHz before the first and after the last.
    pub clock: [f64; 2],
    /// Launches of a recording; 1 where they were timed one by one.
    pub recorded: usize,
}

/// Times launches on one stream.
pub struct Timer {
    stream: Stream,
    ceilings: Ceilings,
    passed: Buffer<u64>,
}

impl Timer {
    /// On a stream of its own use.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(stream: Stream) -> Result<Timer, CudaError> {
        let ceilings = Ceilings::load(stream.device())?;
        let passed = stream.zeroed(4)?;
        Ok(Timer { stream, ceilings, passed })
    }

    /// The stream.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The kernels that ceilings are measured with.
    pub fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }

    /// Runs `work` for about `budget`, warm-up apart, one set of inputs after the other, and at least three times.
    ///
    /// # Errors
    /// Those of the launches.
    pub fn time(&mut self, work: &mut dyn Launches, budget: Duration) -> Result<Samples, CudaError> {
        let sets = work.sets().max(1);
        let us = self.warm_up(work, sets)?;
        let enough = |us: &[f64], began: Instant| us.len() >= 3 && began.elapsed() >= budget;
        let mut samples = Vec::new();
        self.look_at_clock(0)?;
        let recorded = if us < SHORT_US {
            // Whole rounds over the sets.
            let rounds = (RECORDING_US / us.max(0.1) / sets as f64).ceil().max(1.0) as usize;
            let count = (rounds * sets).min(MAX_RECORDED.next_multiple_of(sets));
            let stream = self.stream.clone();
            let record = || (0..count).try_for_each(|index| work.launch(&stream, index % sets));
            let graph = self.stream.capture(record)?;
            graph.upload()?;
            graph.launch()?;
            let began = Instant::now();
            while !enough(&samples, began) {
                self.sample(&mut samples, count, |_| graph.launch())?;
            }
            count
        } else {
            let began = Instant::now();
            let mut next = 0;
            while !enough(&samples, began) {
                self.sample(&mut samples, 1, |stream| {
                    next = (next + 1) % sets;
                    work.launch(stream, next)
                })?;
            }
            1
        };
        self.look_at_clock(1)?;
        let passed = self.stream.download(self.passed.view())?;
        let clock = [0, 1].map(|at| passed[2 * at] as f64 / passed[2 * at + 1].max(1) as f64);
        Ok(Samples { us: samples, clock, recorded })
    }

    /// Loads the kernels and lets the clock rise; about how long one launch takes, in microseconds.
    fn warm_up(&self, work: &mut dyn Launches, sets: usize) -> Result<f64, CudaError> {
        let stream = &self.stream;
        for set in 0..sets {
            work.launch(stream, set)?;
        }
        stream.synchronize()?;
        let start = stream.record()?;
        for set in 0..sets {
            work.launch(stream, set)?;
        }
        let end = stream.record()?;
        Ok(f64::from(start.milliseconds_until(&end)?) * 1e3 / sets as f64)
    }

    /// Adds some samples of what `launch` gives to the stream, which is `count` launches.
    fn sample(
        &self,
        samples: &mut Vec<f64>,
        count: usize,
        mut launch: impl FnMut(&Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let mut events: Vec<Event> = vec![self.stream.record()?];
        for _ in 0..TOGETHER {
            launch(&self.stream)?;
            events.push(self.stream.record()?);
        }
        // The first may have waited for the host.
        for pair in events[1..].windows(2) {
            samples.push(f64::from(pair[0].milliseconds_until(&pair[1])?) * 1e3 / count as f64);
        }
        Ok(())
    }

    fn look_at_clock(&mut self, at: usize) -> Result<(), CudaError> {
        let short = CudaError::CopyLength { from: 4, into: self.passed.len() };
        let passed = self.passed.slice_mut(2 * at..2 * at + 2).ok_or(short)?;
        self.ceilings.wait_and_count(&self.stream, CLOCK_NS, passed)
    }
}

/// What to say of a clock, in GHz before and after, that moved by more than [`STEADY_CLOCK`].
pub fn clock_mark([before, after]: [f64; 2]) -> Option<String> {
    let moved = after / before - 1.0;
    if before <= 0.0 || moved.abs() <= STEADY_CLOCK {
        return None;
    }
    Some(format!("the clock moved by {:.0} %, from {before:.2} to {after:.2} GHz", moved * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_moves_is_marked() {
        assert_eq!(clock_mark([1.98, 2.05]), None);
        assert_eq!(clock_mark([2.0, 1.5]).unwrap(), "the clock moved by -25 %, from 2.00 to 1.50 GHz");
        assert_eq!(clock_mark([2.0, 2.2]).unwrap(), "the clock moved by 10 %, from 2.00 to 2.20 GHz");
        assert_eq!(clock_mark([0.0, 2.2]), None);
    }
}
