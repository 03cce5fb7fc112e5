//! Delivery of events from the engine's thread: a mailbox that never blocks a step, and the consumer's ends for one
//! request ([`Generation`], cancelled on drop) and for many ([`BatchReceiver`]).

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::event::{Completion, Event, Failure};

/// Events waiting for their consumer. Unbounded: a slow consumer costs memory, at most one event per token, but never
/// delays a step.
///
/// The engine's thread first collects a step's events in an outbox ([`EventSink::send`]) and then delivers them
/// together ([`EventSinks::flush`]): one lock and one system call per step and mailbox, however many requests the
/// consumer has.
#[derive(Debug, Default)]
struct Mailbox {
    outbox: Outbox,
    state: Mutex<State>,
    arrived: Condvar,
}

/// Events not yet delivered. On a cache line of its own, because consumers write the next one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Outbox(Mutex<Vec<Numbered>>);

/// An event and its request's number within the mailbox.
type Numbered = (usize, Event);

/// Locks a mutex that no panicking code holds.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Numbered>,
    waker: Option<Waker>,
    /// Whether a thread waits on `arrived` and has not been notified; notifying costs a system call.
    waiting: bool,
}

impl Mailbox {
    /// Adds an event to the outbox. Returns `true` if it was empty.
    fn collect(&self, number: usize, event: Event) -> bool {
        let mut outbox = lock(&self.outbox.0);
        outbox.push((number, event));
        outbox.len() == 1
    }

    /// Delivers the outbox.
    fn flush(&self) {
        let mut outbox = lock(&self.outbox.0);
        if outbox.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        state.events.extend(outbox.drain(..));
        let (waker, waiting) = (state.waker.take(), std::mem::take(&mut state.waiting));
        drop(state);
        drop(outbox);
        if waiting {
            self.arrived.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Releases the lock until an event arrives.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.waiting = true;
        self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Mailbox::wait`], for at most `timeout`.
    fn wait_for<'a>(&'a self, mut state: MutexGuard<'a, State>, timeout: Duration) -> MutexGuard<'a, State> {
        state.waiting = true;
        self.arrived.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The engine's end of one request, shared by its samples. Dropping it before a final event reports why the engine
/// stopped.
#[derive(Debug)]
pub(super) struct EventSink {
    mailbox: Arc<Mailbox>,
    sinks: EventSinks,
    number: usize,
    cancelled: Arc<AtomicBool>,
    /// Samples not finished; 0 after a failure.
    open: AtomicU32,
}

impl EventSink {
    /// Sends an event unless a final one was sent. It is delivered by the next [`EventSinks::flush`].
    pub(super) fn send(&self, event: Event) {
        // Only the engine's thread sends, so the value cannot change in between.
        let open = self.open.load(Ordering::Relaxed);
        if open == 0 {
            return;
        }
        let left = match event {
            Event::Finished(_) => open - 1,
            Event::Failed(_) => 0,
            _ => open,
        };
        self.open.store(left, Ordering::Relaxed);
        if self.mailbox.collect(self.number, event) {
            lock(&self.sinks.unflushed).push(self.mailbox.clone());
        }
    }

    /// Returns `true` if no event is expected any more: the consumer is gone, or a final event was sent.
    pub(super) fn is_closed(&self) -> bool {
        self.is_cancelled() || self.open.load(Ordering::Relaxed) == 0
    }

    /// Returns `true` if the consumer is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for EventSink {
    fn drop(&mut self) {
        if *self.open.get_mut() > 0 {
            self.send(Event::Failed(match self.sinks.panicked.get() {
                Some(message) => Failure::Panicked { message: message.clone() },
                None => Failure::EngineStopped,
            }));
            // The engine may no longer exist to flush.
            self.mailbox.flush();
        }
    }
}

/// Cancels a request on drop and tells the engine that a sweep is due.
#[derive(Debug)]
struct CancelOnDrop {
    cancelled: Arc<AtomicBool>,
    /// The engine's cancellation count.
    count: Arc<AtomicU32>,
    /// Samples whose end the consumer has not seen; nothing is cancelled when it is 0.
    open: u32,
}

impl CancelOnDrop {
    /// Accounts for an event that was taken.
    fn take(&mut self, event: &Event) {
        self.open = match event {
            Event::Finished(_) => self.open.saturating_sub(1),
            Event::Failed(_) => 0,
            _ => self.open,
        };
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.open > 0 {
            self.cancelled.store(true, Ordering::Relaxed);
            self.count.fetch_add(1, Ordering::Release);
        }
    }
}

/// Creates both ends of requests.
#[derive(Debug, Clone, Default)]
pub(super) struct EventSinks {
    /// Number of cancellations; wraps around.
    cancellations: Arc<AtomicU32>,
    /// Message of the panic that ended the engine's thread.
    panicked: Arc<OnceLock<String>>,
    /// Mailboxes with undelivered events.
    unflushed: Arc<Mutex<Vec<Arc<Mailbox>>>>,
}

impl EventSinks {
    /// Number of requests dropped before their end. Requests counted here are already marked cancelled.
    pub(super) fn cancellations(&self) -> u32 {
        self.cancellations.load(Ordering::Acquire)
    }

    /// From now on, requests dropped without a final event fail with this message.
    pub(super) fn panicked(&self, message: String) {
        // Called once, by one thread.
        let _ = self.panicked.set(message);
    }

    /// Delivers every event that was sent.
    pub(super) fn flush(&self) {
        // Wakers are foreign code, so none runs under the lock.
        let unflushed = std::mem::take(&mut *lock(&self.unflushed));
        unflushed.iter().for_each(|mailbox| mailbox.flush());
    }

    /// Both ends of a request with `samples` samples.
    pub(super) fn open(&self, samples: u32) -> (Arc<EventSink>, Generation) {
        let mailbox = Arc::new(Mailbox::default());
        let (sink, cancel) = self.open_in(&mailbox, 0, samples);
        (sink, Generation { mailbox, cancel })
    }

    /// The consumer's end for many requests.
    pub(super) fn open_batch(&self) -> BatchReceiver {
        BatchReceiver {
            sinks: self.clone(),
            mailbox: Arc::default(),
            running: HashMap::new(),
            arrived: VecDeque::new(),
        }
    }

    fn open_in(&self, mailbox: &Arc<Mailbox>, number: usize, samples: u32) -> (Arc<EventSink>, CancelOnDrop) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let sink = EventSink {
            mailbox: mailbox.clone(),
            sinks: self.clone(),
            number,
            cancelled: cancelled.clone(),
            open: AtomicU32::new(samples),
        };
        (Arc::new(sink), CancelOnDrop { cancelled, count: self.cancellations.clone(), open: samples })
    }
}

/// The events of one request: a blocking [`Iterator`] and a [`futures_core::Stream`] for any async runtime.
///
/// Ends after one [`Event::Finished`] per sample, or one [`Event::Failed`]. Dropping it earlier cancels the request.
#[derive(Debug)]
pub struct Generation {
    mailbox: Arc<Mailbox>,
    cancel: CancelOnDrop,
}

impl Generation {
    /// Waits for the first sample to finish and drops the events of others.
    /// # Errors
    /// The request's failure.
    pub fn wait(self) -> Result<Completion, Failure> {
        // A request has at least one sample, so it failed if there is none.
        self.wait_all()?.into_iter().next().ok_or(Failure::EngineStopped)
    }

    /// Waits for all samples and returns one completion per sample, in order.
    /// # Errors
    /// The request's failure.
    pub fn wait_all(self) -> Result<Vec<Completion>, Failure> {
        let mut samples: Vec<PartialCompletion> = Vec::new();
        let mut prompt = Vec::new();
        let at = |samples: &mut Vec<PartialCompletion>, sample: u32| {
            let sample = sample as usize;
            samples.resize_with(samples.len().max(sample + 1), PartialCompletion::default);
            sample
        };
        for event in self {
            match event {
                Event::Prompt(tokens) => prompt.extend(tokens),
                Event::Token(token) => {
                    let sample = at(&mut samples, token.sample);
                    samples[sample].token(token);
                }
                Event::Finished(finish) => {
                    let sample = at(&mut samples, finish.sample);
                    samples[sample].finish(finish);
                }
                Event::Failed(failure) => return Err(failure),
            }
        }
        if let Some(first) = samples.first_mut() {
            first.0.prompt = prompt;
        }
        Ok(samples.into_iter().map(|PartialCompletion(completion)| completion).collect())
    }

    /// Returns `true` if every event has been taken.
    pub fn is_done(&self) -> bool {
        self.cancel.open == 0
    }

    /// The next event. `None` if none came within `timeout`, or at once if there will be no more.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now() + timeout;
        let mailbox = self.mailbox.clone();
        let mut state = lock(&mailbox.state);
        while !self.is_done() {
            if let Some(event) = self.pop(&mut state) {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = mailbox.wait_for(state, left);
        }
        None
    }

    fn pop(&mut self, state: &mut State) -> Option<Event> {
        let (_, event) = state.events.pop_front()?;
        self.cancel.take(&event);
        Some(event)
    }
}

/// A completion being collected.
struct PartialCompletion(Completion);

impl Default for PartialCompletion {
    fn default() -> Self {
        PartialCompletion(Completion {
            prompt: Vec::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            reason: super::FinishReason::Length,
            timings: super::Timings::default(),
        })
    }
}

impl PartialCompletion {
    fn token(&mut self, token: super::Token) {
        self.0.token_ids.push(token.id);
        self.0.logprobs.extend(token.logprobs);
        self.0.text.push_str(&token.text);
    }

    fn finish(&mut self, finish: super::Finish) {
        self.0.text.push_str(&finish.text);
        self.0.reason = finish.reason;
        self.0.timings = finish.timings;
    }
}

impl Iterator for Generation {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        if self.is_done() {
            return None;
        }
        let mailbox = self.mailbox.clone();
        let mut state = lock(&mailbox.state);
        loop {
            if let Some(event) = self.pop(&mut state) {
                return Some(event);
            }
            state = mailbox.wait(state);
        }
    }
}

impl futures_core::Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.is_done() {
            return Poll::Ready(None);
        }
        // A waker is foreign code: clone and drop it outside the lock.
        let (mailbox, waker) = (self.mailbox.clone(), context.waker().clone());
        let mut state = lock(&mailbox.state);
        match self.pop(&mut state) {
            Some(event) => Poll::Ready(Some(event)),
            None => {
                let before = state.waker.replace(waker);
                drop(state);
                drop(before);
                Poll::Pending
            }
        }
    }
}

/// The events of many requests in order of arrival. Dropping it cancels those that have not ended.
#[derive(Debug)]
pub(super) struct BatchReceiver {
    sinks: EventSinks,
    mailbox: Arc<Mailbox>,
    running: HashMap<usize, CancelOnDrop>,
    /// Empty between calls; the allocation is reused.
    arrived: VecDeque<Numbered>,
}

impl BatchReceiver {
    /// The engine's end of one more request.
    pub(super) fn open(&mut self, number: usize, samples: u32) -> Arc<EventSink> {
        let (sink, cancel) = self.sinks.open_in(&self.mailbox, number, samples);
        self.running.insert(number, cancel);
        sink
    }

    /// Number of requests that have not ended.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Cancels a request and drops its pending events.
    pub(super) fn cancel(&mut self, number: usize) {
        self.running.remove(&number);
    }

    /// Waits for events of running requests and moves all of them to `events`, each with its request's number.
    pub(super) fn take(&mut self, events: &mut VecDeque<Numbered>) {
        // Events of cancelled requests do not count.
        while events.is_empty() {
            let mut state = lock(&self.mailbox.state);
            while state.events.is_empty() {
                state = self.mailbox.wait(state);
            }
            std::mem::swap(&mut self.arrived, &mut state.events);
            drop(state);
            self.sort_out(events);
        }
    }

    /// As [`BatchReceiver::take`], for at most `timeout`.
    pub(super) fn take_within(&mut self, timeout: Duration, events: &mut VecDeque<Numbered>) {
        let deadline = Instant::now() + timeout;
        while events.is_empty() {
            let mut state = lock(&self.mailbox.state);
            while state.events.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return;
                }
                state = self.mailbox.wait_for(state, left);
            }
            std::mem::swap(&mut self.arrived, &mut state.events);
            drop(state);
            self.sort_out(events);
        }
    }

    /// Moves the events of running requests to `events`.
    fn sort_out(&mut self, events: &mut VecDeque<Numbered>) {
        for (number, event) in self.arrived.drain(..) {
            // A cancelled request keeps sending until the engine notices.
            let Some(cancel) = self.running.get_mut(&number) else { continue };
            if matches!(event, Event::Finished(_) | Event::Failed(_)) {
                cancel.take(&event);
                if cancel.open == 0 {
                    self.running.remove(&number);
                }
            }
            events.push_back((number, event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Finish, FinishReason, Timings, Token};
    use crate::text::TokenId;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    fn finished(sample: u32) -> Event {
        let timings = Timings::default();
        Event::Finished(Finish { sample, reason: FinishReason::Length, text: "rest".into(), timings })
    }

    fn token(sample: u32, id: u32) -> Event {
        Event::Token(Token { sample, id: TokenId(id), text: id.to_string(), logprobs: None })
    }

    #[test]
    fn ends_after_its_last_event() {
        let sinks = EventSinks::default();
        let (sink, mut generation) = sinks.open(1);
        sink.send(finished(0));
        sink.send(finished(0));
        sinks.flush();
        assert!(sink.is_closed());
        drop(sink);
        assert!(matches!(generation.next(), Some(Event::Finished(_))));
        assert!(generation.next().is_none());
    }

    #[test]
    fn samples_are_collected_apart() {
        let sinks = EventSinks::default();
        let (sink, generation) = sinks.open(2);
        for event in [token(1, 7), token(0, 5), finished(1), token(0, 6), finished(0)] {
            assert!(!sink.is_closed());
            sink.send(event);
        }
        sinks.flush();
        let texts: Vec<String> = generation.wait_all().unwrap().into_iter().map(|c| c.text).collect();
        assert_eq!(texts, ["56rest", "7rest"]);
    }

    #[test]
    fn a_failure_ends_every_sample() {
        let sinks = EventSinks::default();
        let (sink, mut generation) = sinks.open(3);
        sink.send(Event::Failed(Failure::EngineStopped));
        sink.send(finished(1));
        sinks.flush();
        assert!(matches!(generation.next(), Some(Event::Failed(_))));
        assert!(generation.next().is_none());
    }

    #[test]
    fn waits_no_longer_than_was_said() {
        let sinks = EventSinks::default();
        let (sink, mut generation) = sinks.open(2);
        assert!(generation.next_within(Duration::from_millis(1)).is_none() && !generation.is_done());
        sink.send(finished(1));
        sinks.flush();
        assert!(matches!(generation.next_within(Duration::ZERO), Some(Event::Finished(Finish { sample: 1, .. }))));
        let sender = std::thread::spawn(move || {
            sink.send(Event::Failed(Failure::EngineStopped));
            sink.send(finished(0));
            sinks.flush();
        });
        assert!(matches!(generation.next_within(Duration::from_secs(60)), Some(Event::Failed(_))));
        sender.join().unwrap();
        // At once, and nothing of what came behind the end.
        assert!(generation.is_done() && generation.next_within(Duration::from_secs(3600)).is_none());
    }

    #[test]
    fn a_vanished_engine_is_a_failure() {
        let (sink, generation) = EventSinks::default().open(1);
        let consumer = std::thread::spawn(move || generation.wait());
        drop(sink);
        assert!(matches!(consumer.join().unwrap(), Err(Failure::EngineStopped)));
    }

    #[test]
    fn dropping_the_generation_cancels_what_has_not_ended() {
        let sinks = EventSinks::default();
        let (sink, generation) = sinks.open(1);
        assert!(!sink.is_cancelled());
        drop(generation);
        assert!(sink.is_cancelled());
        assert_eq!(sinks.cancellations(), 1);
        let (sink, mut generation) = sinks.open(1);
        sink.send(finished(0));
        sinks.flush();
        generation.next();
        drop(generation);
        assert_eq!(sinks.cancellations(), 1);
    }

    #[test]
    fn many_requests_share_a_mailbox() {
        let sinks = EventSinks::default();
        let mut many = sinks.open_batch();
        let (first, second) = (many.open(10, 1), many.open(11, 2));
        second.send(finished(1));
        first.send(finished(0));
        sinks.flush();
        let mut events = VecDeque::new();
        many.take(&mut events);
        assert_eq!(events.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [11, 10]);
        assert_eq!(many.running(), 1);
        drop(many);
        assert!(second.is_cancelled() && !first.is_cancelled());
        assert_eq!(sinks.cancellations(), 1);
    }

    #[test]
    fn an_event_of_a_cancelled_request_ends_no_waiting() {
        let sinks = EventSinks::default();
        let mut many = sinks.open_batch();
        let (first, second) = (many.open(0, 1), many.open(1, 1));
        many.cancel(0);
        first.send(token(0, 5));
        sinks.flush();
        let mailbox = many.mailbox.clone();
        let engine = std::thread::spawn(move || {
            while !lock(&mailbox.state).events.is_empty() {
                std::thread::yield_now();
            }
            second.send(finished(0));
            sinks.flush();
        });
        let mut events = VecDeque::new();
        many.take_within(Duration::from_secs(60), &mut events);
        assert!(matches!(events.pop_front(), Some((1, Event::Finished(_)))));
        engine.join().unwrap();
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
        let sinks = EventSinks::default();
        let (sink, mut generation) = sinks.open(1);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut generation).poll_next(&mut context).is_pending());
        sink.send(finished(0));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        sinks.flush();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(Pin::new(&mut generation).poll_next(&mut context), Poll::Ready(Some(Event::Finished(_)))));
        assert!(matches!(Pin::new(&mut generation).poll_next(&mut context), Poll::Ready(None)));
    }
}
