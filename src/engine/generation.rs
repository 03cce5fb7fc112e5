//! The consumer's end of a request: a queue of events that never blocks the step, and cancels when dropped.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::event::{Completion, Event, Failure};

/// The events of one request: a blocking [`Iterator`], and a [`futures_core::Stream`] for any async runtime.
///
/// The last event is [`Event::Finished`] or [`Event::Failed`]. Dropping the generation cancels the request.
#[derive(Debug)]
pub struct Generation {
    shared: Arc<Shared>,
    ended: bool,
}

/// The engine's end. Dropping it before a last event sends [`Failure::EngineStopped`].
#[derive(Debug)]
pub(super) struct EventSender {
    shared: Arc<Shared>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Unbounded: a slow consumer costs memory, at most one event a token, and never a step.
    events: VecDeque<Event>,
    waker: Option<Waker>,
    /// The consumer is gone.
    cancelled: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn channel() -> (EventSender, Generation) {
    let shared = Arc::new(Shared::default());
    (EventSender { shared: shared.clone(), ended: false }, Generation { shared, ended: false })
}

fn is_last(event: &Event) -> bool {
    matches!(event, Event::Finished(_) | Event::Failed(_))
}

impl EventSender {
    pub(super) fn send(&mut self, event: Event) {
        if self.ended {
            return;
        }
        self.ended = is_last(&event);
        let mut state = self.shared.lock();
        state.events.push_back(event);
        let waker = state.waker.take();
        drop(state);
        self.shared.arrived.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.shared.lock().cancelled
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.send(Event::Failed(Failure::EngineStopped));
    }
}

impl Generation {
    /// Collects the rest of the events; an error where the request failed.
    pub fn wait(self) -> Result<Completion, Failure> {
        let (mut prompt, mut token_ids, mut logprobs, mut text) = (Vec::new(), Vec::new(), Vec::new(), String::new());
        for event in self {
            match event {
                Event::Prompt(tokens) => prompt.extend(tokens),
                Event::Token(token) => {
                    token_ids.push(token.id);
                    logprobs.extend(token.logprobs);
                    text.push_str(&token.text);
                }
                Event::Finished(finish) => {
                    text.push_str(&finish.text);
                    let (reason, timings) = (finish.reason, finish.timings);
                    return Ok(Completion { prompt, token_ids, logprobs, text, reason, timings });
                }
                Event::Failed(failure) => return Err(failure),
            }
        }
        // Only a generation whose last event was already taken gets here.
        Err(Failure::EngineStopped)
    }

    fn pop(&mut self, state: &mut State) -> Option<Event> {
        let event = state.events.pop_front()?;
        self.ended = is_last(&event);
        Some(event)
    }
}

impl Iterator for Generation {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let shared = self.shared.clone();
        let mut state = shared.lock();
        loop {
            if let Some(event) = self.pop(&mut state) {
                return Some(event);
            }
            state = shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl futures_core::Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let shared = self.shared.clone();
        let mut state = shared.lock();
        match self.pop(&mut state) {
            Some(event) => Poll::Ready(Some(event)),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.shared.lock().cancelled = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Finish, FinishReason, Timings};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    fn finished() -> Event {
        Event::Finished(Finish { reason: FinishReason::Length, text: "rest".into(), timings: Timings::default() })
    }

    #[test]
    fn ends_after_its_last_event() {
        let (mut sender, mut generation) = channel();
        sender.send(finished());
        sender.send(finished());
        drop(sender);
        assert!(matches!(generation.next(), Some(Event::Finished(_))));
        assert!(generation.next().is_none());
    }

    #[test]
    fn a_vanished_engine_is_a_failure() {
        let (sender, generation) = channel();
        let consumer = std::thread::spawn(move || generation.wait());
        drop(sender);
        assert!(matches!(consumer.join().unwrap(), Err(Failure::EngineStopped)));
    }

    #[test]
    fn dropping_the_generation_cancels() {
        let (sender, generation) = channel();
        assert!(!sender.is_cancelled());
        drop(generation);
        assert!(sender.is_cancelled());
    }

    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn wakes_a_pending_stream() {
        use futures_core::Stream;
        let (mut sender, mut generation) = channel();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut generation).poll_next(&mut context).is_pending());
        sender.send(finished());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(Pin::new(&mut generation).poll_next(&mut context), Poll::Ready(Some(Event::Finished(_)))));
        assert!(matches!(Pin::new(&mut generation).poll_next(&mut context), Poll::Ready(None)));
    }
}
