//! Many requests at a time and one consumer, which may stop waiting and cancel single requests.

use std::collections::VecDeque;
use std::time::Duration;

use super::generation::Many;
use super::{Engine, Event, Request, RequestError};

/// Requests that run together, and their events in the order in which they come: what
/// [`Engine::generate_all`](super::Engine::generate_all) is made of, for a loop of one's own. Dropping it cancels the
/// requests that have not ended.
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
    many: Many,
    /// Events that were taken and not given out.
    events: VecDeque<(usize, Event)>,
    next_number: usize,
}

impl<'a> Generations<'a> {
    pub(super) fn new(engine: &'a Engine, many: Many) -> Generations<'a> {
        Generations { engine, many, events: VecDeque::new(), next_number: 0 }
    }

    /// Hands a request over and returns at once, with the number that its events come with.
    ///
    /// # Errors
    /// What is wrong with the request, as [`Engine::generate`](super::Engine::generate) has it.
    pub fn submit(&mut self, request: Request) -> Result<usize, RequestError> {
        let text = self.engine.check(&request)?;
        let number = self.next_number;
        self.next_number += 1;
        let reply = self.many.open(number, request.n);
        self.engine.submit(request, text, &reply);
        Ok(number)
    }

    /// Requests that have not ended.
    pub fn running(&self) -> usize {
        self.many.running()
    }

    /// Returns `true` if no request runs and every event was given out.
    pub fn is_idle(&self) -> bool {
        self.many.running() == 0 && self.events.is_empty()
    }

    /// The next event and its request's number. `None` if none came within `timeout`, and at once if nothing runs.
    pub fn next_within(&mut self, timeout: Duration) -> Option<(usize, Event)> {
        if self.events.is_empty() && self.many.running() > 0 {
            self.many.take_within(timeout, &mut self.events);
        }
        self.events.pop_front()
    }

    /// Cancels a request: no more of its events are given out. Does nothing if the request has ended.
    pub fn cancel(&mut self, number: usize) {
        self.many.cancel(number);
        self.events.retain(|(of, _)| *of != number);
    }
}
