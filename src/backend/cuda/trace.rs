//! When launches ran: [`LaunchTimes`], and the source of them that every driver has, an event behind each launch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::error::CudaError;
use super::event::Event;
use super::stream::Stream;

/// The name of what was no launch: a copy to or from the host.
pub const COPY: &str = "copy";

/// One launch that ran.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedLaunch {
    /// The kernel's name in the compiled image, or [`COPY`].
    pub kernel: String,
    /// When it began, in microseconds from the beginning of the first launch.
    pub start_us: f64,
    /// How long it took, in microseconds.
    pub us: f64,
}

/// Something that sees when launches run.
pub trait LaunchTimes {
    /// What it is, in a word, for results.
    fn name(&self) -> &'static str;

    /// Whether it sees when a launch begins, and not only when it ends.
    fn sees_gaps(&self) -> bool;

    /// Watches `stream` from here on, whose work so far is done.
    ///
    /// # Errors
    /// That of the driver.
    fn begin(&mut self, stream: &Stream) -> Result<(), CudaError>;

    /// Waits for the stream's work; what ran since `begin`, in order.
    ///
    /// # Errors
    /// Errors of submitted work.
    fn end(&mut self, stream: &Stream) -> Result<Vec<TimedLaunch>, CudaError>;
}

/// An event behind each launch and copy. A launch seems to last from the end of the one before to its own: gaps are
/// part of it, and kernels that would overlap do not. GraphCache are not replayed meanwhile: their launches would have
/// no events between them.
#[derive(Debug, Default)]
pub struct EventTimes;

impl LaunchTimes for EventTimes {
    fn name(&self) -> &'static str {
        "events"
    }

    fn sees_gaps(&self) -> bool {
        false
    }

    fn begin(&mut self, stream: &Stream) -> Result<(), CudaError> {
        stream.synchronize()?;
        stream.trace().begin(stream.record()?);
        Ok(())
    }

    fn end(&mut self, stream: &Stream) -> Result<Vec<TimedLaunch>, CudaError> {
        let marks = stream.trace().end();
        stream.synchronize()?;
        let Some(((_, first), behind)) = marks.split_first() else { return Ok(Vec::new()) };
        let mut launches = Vec::with_capacity(behind.len());
        let mut start_us = 0.0;
        for (kernel, event) in behind {
            let end_us = f64::from(first.milliseconds_until(event)?) * 1e3;
            launches.push(TimedLaunch { kernel: kernel.clone(), start_us, us: end_us - start_us });
            start_us = end_us;
        }
        Ok(launches)
    }
}

/// The events of a stream that is watched; nothing on all others.
#[derive(Debug, Default)]
pub(super) struct Trace {
    on: AtomicBool,
    /// The first stands ahead of all launches, each other one behind one.
    marks: Mutex<Vec<(String, Event)>>,
}

impl Trace {
    /// Whether launches are marked now.
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Puts an event behind what was given to `stream` last, where it is watched.
    pub(super) fn mark(&self, stream: &Stream, what: &str) -> Result<(), CudaError> {
        if !self.is_on() {
            return Ok(());
        }
        let event = stream.record()?;
        self.marks().push((what.to_owned(), event));
        Ok(())
    }

    fn begin(&self, first: Event) {
        *self.marks() = vec![(String::new(), first)];
        self.on.store(true, Ordering::Relaxed);
    }

    fn end(&self) -> Vec<(String, Event)> {
        self.on.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.marks())
    }

    fn marks(&self) -> std::sync::MutexGuard<'_, Vec<(String, Event)>> {
        // A panic elsewhere cannot leave the list half-changed.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
