//! Many requests with one consumer, which may stop waiting and may cancel single requests.

use std::collections::VecDeque;
use std::time::Duration;

use super::generation::BatchReceiver;
use super::{Engine, Event, Request, RequestError};

/// Requests that run together, with their events in order of arrival: the building block of
/// [`Engine::generate_all`](super::Engine::generate_all), for a loop of your own. Dropping it cancels the requests that
/// have not ended.
///
/// ```
/// # use rigel::engine::{Engine, Event, Request};
/// # use rigel::text::SpecialTokens;
/// # use std::time::Duration;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let engine = Engine::builder().model("nano").build()?;
/// let prompt = engine.tokenizer()?.encode_prompt("def fibonacci(n):", SpecialTokens::AsText)?;
/// let mut generations = engine.generations();
/// let number = generations.submit(Request { max_tokens: 8, ..Request::new(prompt) })?;
/// while !generations.is_idle() {
///     match generations.next_within(Duration::from_millis(100)) {
///         Some((of, Event::Token(token))) if of == number => print!("{}", token.text),
///         Some(_) => {}
///         None => { /* nothing came for a while */ }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Generations<'a> {
    engine: &'a Engine,
    receiver: BatchReceiver,
    /// Events taken and not yet returned.
    events: VecDeque<(usize, Event)>,
    next_number: usize,
}

impl<'a> Generations<'a> {
    pub(super) fn new(engine: &'a Engine, receiver: BatchReceiver) -> Generations<'a> {
        Generations { engine, receiver, events: VecDeque::new(), next_number: 0 }
    }

    /// Submits a request and returns at once with the number that identifies its events.
    ///
    /// # Errors
    /// As for [`Engine::generate`](super::Engine::generate).
    pub fn submit(&mut self, request: Request) -> Result<usize, RequestError> {
        let text = self.engine.check(&request)?;
        let number = self.next_number;
        self.next_number += 1;
        let sink = self.receiver.open(number, request.n);
        self.engine.submit(request, text, &sink);
        Ok(number)
    }

    /// Number of requests that have not ended.
    pub fn running(&self) -> usize {
        self.receiver.running()
    }

    /// Returns `true` if no request runs and every event has been returned.
    pub fn is_idle(&self) -> bool {
        self.receiver.running() == 0 && self.events.is_empty()
    }

    /// The next event and its request's number. `None` if none came within `timeout`, or at once if nothing runs.
    pub fn next_within(&mut self, timeout: Duration) -> Option<(usize, Event)> {
        if self.events.is_empty() && self.receiver.running() > 0 {
            self.receiver.take_within(timeout, &mut self.events);
        }
        self.events.pop_front()
    }

    /// Cancels a request; none of its events are returned any more. Does nothing if the request has ended.
    pub fn cancel(&mut self, number: usize) {
        self.receiver.cancel(number);
        self.events.retain(|(of, _)| *of != number);
    }
}
