//! From the engine's thread to whoever asked: a mailbox of events that never blocks the step, the consumer's end of one
//! request ([`Generation`], which cancels when dropped) and that of many ([`Many`]).

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::event::{Completion, Event, Failure};

/// Where events wait for their consumer. Unbounded: a slow consumer costs memory, at most an event a token, and never a
/// step.
///
/// The engine's thread collects the events of a step first, where no consumer looks ([`Reply::send`]), and hands them
/// over together ([`Replies::flush`]): one lock and one call of the system a step, whatever number of requests a
/// consumer has.
#[derive(Debug, Default)]
struct Mailbox {
    collected: Collected,
    state: Mutex<State>,
    arrived: Condvar,
}

/// Events that are not handed over. In a cache line of its own: consumers write the one behind it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Collected(Mutex<Vec<Numbered>>);

/// An event with the number of its request, which tells the requests of one mailbox apart.
type Numbered = (usize, Event);

/// Locks what no code that can panic runs under.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Numbered>,
    waker: Option<Waker>,
    /// A thread waits for `arrived`, and was not told yet: telling costs a call of the system.
    waiting: bool,
}

impl Mailbox {
    /// Collects an event. Is it the first since the last were handed over?
    fn collect(&self, number: usize, event: Event) -> bool {
        let mut collected = lock(&self.collected.0);
        collected.push((number, event));
        collected.len() == 1
    }

    /// Hands over what was collected.
    fn flush(&self) {
        let mut collected = lock(&self.collected.0);
        if collected.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        state.events.extend(collected.drain(..));
        let (waker, waiting) = (state.waker.take(), std::mem::take(&mut state.waiting));
        drop(state);
        drop(collected);
        if waiting {
            self.arrived.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Lets go of the mailbox until something arrives.
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

/// The engine's end of a request, shared by its samples. Dropping it before a last event tells why the engine stopped.
#[derive(Debug)]
pub(super) struct Reply {
    mailbox: Arc<Mailbox>,
    replies: Replies,
    number: usize,
    cancelled: Arc<AtomicBool>,
    /// Samples that have not ended; 0 after a failure.
    open: AtomicU32,
}

impl Reply {
    /// Sends an event, if the last one was not sent before. It arrives with the next [`Replies::flush`].
    pub(super) fn send(&self, event: Event) {
        // Only one thread sends at a time, so nobody changes it in between.
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
            lock(&self.replies.unflushed).push(self.mailbox.clone());
        }
    }

    /// Nobody waits for more: the consumer is gone, or the last event was sent.
    pub(super) fn is_closed(&self) -> bool {
        self.is_cancelled() || self.open.load(Ordering::Relaxed) == 0
    }

    /// The consumer is gone.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if *self.open.get_mut() > 0 {
            self.send(Event::Failed(match self.replies.panicked.get() {
                Some(message) => Failure::Panicked { message: message.clone() },
                None => Failure::EngineStopped,
            }));
            // There may be no engine any more to do so.
            self.mailbox.flush();
        }
    }
}

/// Cancels a request when it is dropped, and tells the engine that there is something to sweep up.
#[derive(Debug)]
struct CancelOnDrop {
    cancelled: Arc<AtomicBool>,
    /// Cancellations of the engine so far.
    count: Arc<AtomicU32>,
    /// Samples whose end was not taken yet: with none left there is nothing to cancel.
    open: u32,
}

impl CancelOnDrop {
    /// An event was taken.
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

/// What an engine needs to open the two ends of requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Replies {
    /// Cancellations so far; wraps around.
    cancellations: Arc<AtomicU32>,
    /// The message of the panic that ended the engine's thread.
    panicked: Arc<OnceLock<String>>,
    /// Mailboxes with events that are not handed over.
    unflushed: Arc<Mutex<Vec<Arc<Mailbox>>>>,
}

impl Replies {
    /// Rises with each request that is dropped before its end; those dropped before it was read show as cancelled.
    pub(super) fn cancellations(&self) -> u32 {
        self.cancellations.load(Ordering::Acquire)
    }

    /// Requests that are dropped from now on without a last event fail with this message.
    pub(super) fn panicked(&self, message: String) {
        // One thread calls it, once.
        let _ = self.panicked.set(message);
    }

    /// Hands over every event that was sent.
    pub(super) fn flush(&self) {
        // Wakers are foreign code: none runs under the lock.
        let unflushed = std::mem::take(&mut *lock(&self.unflushed));
        unflushed.iter().for_each(|mailbox| mailbox.flush());
    }

    /// Both ends of a request of `samples` samples.
    pub(super) fn open(&self, samples: u32) -> (Arc<Reply>, Generation) {
        let mailbox = Arc::new(Mailbox::default());
        let (reply, cancel) = self.open_in(&mailbox, 0, samples);
        (reply, Generation { mailbox, cancel })
    }

    /// A consumer's end for many requests.
    pub(super) fn open_many(&self) -> Many {
        Many { replies: self.clone(), mailbox: Arc::default(), running: HashMap::new(), arrived: VecDeque::new() }
    }

    fn open_in(&self, mailbox: &Arc<Mailbox>, number: usize, samples: u32) -> (Arc<Reply>, CancelOnDrop) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let reply = Reply {
            mailbox: mailbox.clone(),
            replies: self.clone(),
            number,
            cancelled: cancelled.clone(),
            open: AtomicU32::new(samples),
        };
        (Arc::new(reply), CancelOnDrop { cancelled, count: self.cancellations.clone(), open: samples })
    }
}

/// The events of one request: a blocking [`Iterator`], and a [`futures_core::Stream`] for any async runtime.
///
/// It ends after the [`Event::Finished`] of each sample, or one [`Event::Failed`]. Dropping it before that cancels the
/// request.
#[derive(Debug)]
pub struct Generation {
    mailbox: Arc<Mailbox>,
    cancel: CancelOnDrop,
}

impl Generation {
    /// Collects the rest of the events of the first sample, and drops those of others; an error where the request
    /// failed.
    pub fn wait(self) -> Result<Completion, Failure> {
        // A request has at least one sample; without a Finished it failed.
        self.wait_all()?.into_iter().next().ok_or(Failure::EngineStopped)
    }

    /// Collects the rest of the events, one completion a sample, in their order; an error where the request failed.
    pub fn wait_all(self) -> Result<Vec<Completion>, Failure> {
        let mut samples: Vec<Gathered> = Vec::new();
        let mut prompt = Vec::new();
        let at = |samples: &mut Vec<Gathered>, sample: u32| {
            let sample = sample as usize;
            samples.resize_with(samples.len().max(sample + 1), Gathered::default);
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
        Ok(samples.into_iter().map(|Gathered(completion)| completion).collect())
    }

    /// Returns `true` if every event was given out.
    pub fn is_done(&self) -> bool {
        self.cancel.open == 0
    }

    /// The next event. `None` if none came within `timeout`, and at once if there will be no more.
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

/// A completion that is being collected.
struct Gathered(Completion);

impl Default for Gathered {
    fn default() -> Self {
        Gathered(Completion {
            prompt: Vec::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            reason: super::FinishReason::Length,
            timings: super::Timings::default(),
        })
    }
}

impl Gathered {
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
        // A waker is foreign code: it is cloned and dropped outside the lock.
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

/// The events of many requests, in the order in which they come. Dropping it cancels those that have not ended.
#[derive(Debug)]
pub(super) struct Many {
    replies: Replies,
    mailbox: Arc<Mailbox>,
    running: HashMap<usize, CancelOnDrop>,
    /// Empty between calls; its memory is used again.
    arrived: VecDeque<Numbered>,
}

impl Many {
    /// The engine's end of one more request.
    pub(super) fn open(&mut self, number: usize, samples: u32) -> Arc<Reply> {
        let (reply, cancel) = self.replies.open_in(&self.mailbox, number, samples);
        self.running.insert(number, cancel);
        reply
    }

    /// Requests that have not ended.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Cancels a request. What came of it and was not taken is dropped.
    pub(super) fn cancel(&mut self, number: usize) {
        self.running.remove(&number);
    }

    /// Waits until there are events of requests that run, and moves all of them to `events`, each with its request's number.
    pub(super) fn take(&mut self, events: &mut VecDeque<Numbered>) {
        // What comes of a cancelled request is none.
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

    /// As [`Many::take`], for at most `timeout`.
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

    /// Moves what arrived for requests that run to `events`.
    fn sort_out(&mut self, events: &mut VecDeque<Numbered>) {
        for (number, event) in self.arrived.drain(..) {
            // A request that was cancelled runs until the engine has seen that.
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
        let replies = Replies::default();
        let (reply, mut generation) = replies.open(1);
        reply.send(finished(0));
        reply.send(finished(0));
        replies.flush();
        assert!(reply.is_closed());
        drop(reply);
        assert!(matches!(generation.next(), Some(Event::Finished(_))));
        assert!(generation.next().is_none());
    }

    #[test]
    fn samples_are_collected_apart() {
        let replies = Replies::default();
        let (reply, generation) = replies.open(2);
        for event in [token(1, 7), token(0, 5), finished(1), token(0, 6), finished(0)] {
            assert!(!reply.is_closed());
            reply.send(event);
        }
        replies.flush();
        let texts: Vec<String> = generation.wait_all().unwrap().into_iter().map(|c| c.text).collect();
        assert_eq!(texts, ["56rest", "7rest"]);
    }

    #[test]
    fn a_failure_ends_every_sample() {
        let replies = Replies::default();
        let (reply, mut generation) = replies.open(3);
        reply.send(Event::Failed(Failure::EngineStopped));
        reply.send(finished(1));
        replies.flush();
        assert!(matches!(generation.next(), Some(Event::Failed(_))));
        assert!(generation.next().is_none());
    }

    #[test]
    fn waits_no_longer_than_was_said() {
        let replies = Replies::default();
        let (reply, mut generation) = replies.open(2);
        assert!(generation.next_within(Duration::from_millis(1)).is_none() && !generation.is_done());
        reply.send(finished(1));
        replies.flush();
        assert!(matches!(generation.next_within(Duration::ZERO), Some(Event::Finished(Finish { sample: 1, .. }))));
        let sender = std::thread::spawn(move || {
            reply.send(Event::Failed(Failure::EngineStopped));
            reply.send(finished(0));
            replies.flush();
        });
        assert!(matches!(generation.next_within(Duration::from_secs(60)), Some(Event::Failed(_))));
        sender.join().unwrap();
        // At once, and nothing of what came behind the end.
        assert!(generation.is_done() && generation.next_within(Duration::from_secs(3600)).is_none());
    }

    #[test]
    fn a_vanished_engine_is_a_failure() {
        let (reply, generation) = Replies::default().open(1);
        let consumer = std::thread::spawn(move || generation.wait());
        drop(reply);
        assert!(matches!(consumer.join().unwrap(), Err(Failure::EngineStopped)));
    }

    #[test]
    fn dropping_the_generation_cancels_what_has_not_ended() {
        let replies = Replies::default();
        let (reply, generation) = replies.open(1);
        assert!(!reply.is_cancelled());
        drop(generation);
        assert!(reply.is_cancelled());
        assert_eq!(replies.cancellations(), 1);
        let (reply, mut generation) = replies.open(1);
        reply.send(finished(0));
        replies.flush();
        generation.next();
        drop(generation);
        assert_eq!(replies.cancellations(), 1);
    }

    #[test]
    fn many_requests_share_a_mailbox() {
        let replies = Replies::default();
        let mut many = replies.open_many();
        let (first, second) = (many.open(10, 1), many.open(11, 2));
        second.send(finished(1));
        first.send(finished(0));
        replies.flush();
        let mut events = VecDeque::new();
        many.take(&mut events);
        assert_eq!(events.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [11, 10]);
        assert_eq!(many.running(), 1);
        drop(many);
        assert!(second.is_cancelled() && !first.is_cancelled());
        assert_eq!(replies.cancellations(), 1);
    }

    #[test]
    fn an_event_of_a_cancelled_request_ends_no_waiting() {
        let replies = Replies::default();
        let mut many = replies.open_many();
        let (first, second) = (many.open(0, 1), many.open(1, 1));
        many.cancel(0);
        first.send(token(0, 5));
        replies.flush();
        let mailbox = many.mailbox.clone();
        let engine = std::thread::spawn(move || {
            while !lock(&mailbox.state).events.is_empty() {
                std::thread::yield_now();
            }
            second.send(finished(0));
            replies.flush();
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
        let replies = Replies::default();
        let (reply, mut generation) = replies.open(1);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut generation).poll_next(&mut context).is_pending());
        reply.send(finished(0));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        replies.flush();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(matches!(Pin::new(&mut generation).poll_next(&mut context), Poll::Ready(Some(Event::Finished(_)))));
        assert!(matches!(Pin::new(&mut generation).poll_next(&mut context), Poll::Ready(None)));
    }
}
