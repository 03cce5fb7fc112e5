//! The run: lines to requests as the engine has room, events to records as lines are done.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::BufRead;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rigel::engine::{Engine, Event, Failure, Request};
use rigel::openai::{
    ApiError, Call, ChatBody, Collected, Collector, CompletionBody, Defaults, Identity, Output, ServedModel,
};

use super::super::error::CliError;
use super::append::AppendFile;
use super::digest::Digest;
use super::job::{self, Job, LineError};
use super::ledger::Ledger;
use super::lines::{Line, Lines};
use super::progress::Progress;
use super::record::{Record, key};

/// Lines that may fail in the engine, one after the other, before the run ends: with so many it is not the lines.
const FAILURES_IN_A_ROW: u32 = 32;

/// Where records go.
pub struct Sink {
    pub output: AppendFile,
    pub errors: AppendFile,
    pub ledger: Ledger,
    pub progress: Progress,
}

/// What is the same for every line.
pub struct Answering<'a> {
    pub served: &'a ServedModel,
    /// What plain lines take where they say nothing.
    pub plain: &'a Defaults,
    /// What OpenAI lines take.
    pub openai: &'a Defaults,
    /// The run's seed, of which each line's is made.
    pub seed: u64,
}

/// Runs the lines that are open. Returns early, with what is in flight done, once `draining` is set.
///
/// # Errors
/// A file that cannot be read or written; an engine that answers no more. Lines in flight are then not recorded.
pub fn run<R: BufRead>(
    engine: &Engine,
    answering: &Answering<'_>,
    lines: Lines<R>,
    sink: &mut Sink,
    in_flight: NonZeroUsize,
    draining: &AtomicBool,
) -> Result<(), CliError> {
    // Requests are taken and events handed over by the same thread, never one inside the other.
    let state = RefCell::new(State {
        answering,
        lines,
        sink,
        draining,
        ready: VecDeque::new(),
        requests: HashMap::new(),
        open: HashMap::new(),
        next_request: 0,
        next_slot: 0,
        failures_in_a_row: 0,
        input_error: None,
        fatal: None,
    });
    let requests = std::iter::from_fn(|| state.borrow_mut().next_request());
    engine.generate_all(in_flight, requests, |index, event| state.borrow_mut().event(index, event));
    let State { sink, fatal, input_error, .. } = state.into_inner();
    sink.output.sync()?;
    sink.errors.sync()?;
    fatal.or(input_error).map_or(Ok(()), Err)
}

struct State<'a, R> {
    answering: &'a Answering<'a>,
    lines: Lines<R>,
    sink: &'a mut Sink,
    draining: &'a AtomicBool,
    /// Requests of lines that were read: more than one where a line has several prompts.
    ready: VecDeque<(Slot, usize, Request)>,
    /// The line, and which of its prompts, of each request in flight.
    requests: HashMap<usize, (Slot, usize)>,
    open: HashMap<Slot, OpenLine>,
    next_request: usize,
    next_slot: Slot,
    failures_in_a_row: u32,
    /// Why nothing more is read.
    input_error: Option<CliError>,
    /// Why nothing more can be recorded.
    fatal: Option<CliError>,
}

/// A line in flight.
type Slot = u64;

struct OpenLine {
    custom_id: String,
    plain: bool,
    call: Call,
    collectors: Vec<Collector>,
    outputs: Vec<Option<Output>>,
    waiting: usize,
    failure: Option<Failure>,
}

impl<R: BufRead> State<'_, R> {
    /// The next request; none at the input's end, when draining, and when the run cannot go on.
    fn next_request(&mut self) -> Option<Request> {
        if self.fatal.is_some() {
            return None;
        }
        while self.ready.is_empty() {
            if self.input_error.is_some() || self.draining.load(Ordering::Relaxed) {
                return None;
            }
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => return None,
                // What is in flight can still be recorded.
                Err(error) => self.input_error = Some(error),
            }
        }
        let (slot, part, request) = self.ready.pop_front()?;
        self.requests.insert(self.next_request, (slot, part));
        self.next_request += 1;
        Some(request)
    }

    /// Reads a line and makes its requests ready, or its error a record. False at the end.
    fn read_line(&mut self) -> Result<bool, CliError> {
        // Exit code 1: lines were run before.
        let error = |source: std::io::Error| CliError::Failed(format!("the input cannot be read on: {source}"));
        let Some((number, line)) = self.lines.next().map_err(error)? else { return Ok(false) };
        if !self.sink.ledger.is_open(number) {
            return Ok(true);
        }
        let custom_id = job::custom_id(number, line);
        if !self.sink.ledger.knows(&custom_id, number) {
            return Err(CliError::Failed(format!(
                "line {number} of the input has changed while it was read; run the same command on an input at rest"
            )));
        }
        match prepare(self.answering, &custom_id, line) {
            Ok((call, plain)) => self.open(custom_id, call, plain),
            Err(error) => self.sink.failed(&custom_id, &error)?,
        }
        Ok(true)
    }

    fn open(&mut self, custom_id: String, mut call: Call, plain: bool) {
        let slot = self.next_slot;
        self.next_slot += 1;
        let requests = std::mem::take(&mut call.requests);
        let collectors = requests.iter().map(|request| Collector::new(request.prompt.len(), request.n)).collect();
        let (outputs, waiting) = (requests.iter().map(|_| None).collect(), requests.len());
        self.ready.extend(requests.into_iter().enumerate().map(|(part, request)| (slot, part, request)));
        self.open.insert(slot, OpenLine { custom_id, plain, call, collectors, outputs, waiting, failure: None });
    }

    fn event(&mut self, index: usize, event: Event) {
        if self.fatal.is_some() {
            return;
        }
        if matches!(event, Event::Token(_)) {
            self.sink.progress.token();
        }
        // Each event belongs to a request given out before, of a line in flight.
        let Some(&(slot, part)) = self.requests.get(&index) else { return };
        let Some(line) = self.open.get_mut(&slot) else { return };
        match line.collectors[part].push(event) {
            Collected::More => return,
            Collected::Done(output) => line.outputs[part] = Some(output),
            Collected::Failed(failure) => line.failure = Some(failure),
        }
        self.requests.remove(&index);
        line.waiting -= 1;
        if line.waiting > 0 {
            return;
        }
        let Some(line) = self.open.remove(&slot) else { return };
        if let Err(error) = self.close(line) {
            self.fatal = Some(error);
        }
    }

    /// Records a line whose requests have all ended.
    fn close(&mut self, line: OpenLine) -> Result<(), CliError> {
        let OpenLine { custom_id, plain, call, outputs, failure, .. } = line;
        match failure {
            None => {
                self.failures_in_a_row = 0;
                let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
                let identity = Identity { id: key(&custom_id), created };
                let outputs = outputs.into_iter().flatten().collect();
                let body = call.response(self.answering.served, identity, outputs);
                self.sink.output.append(&Record::answered(&custom_id, &body, plain))?;
                self.sink.record(&custom_id)?;
                self.sink.progress.answered(body.usage());
                Ok(())
            }
            // The engine takes nothing more; the line is done again by the next run.
            Some(failure @ (Failure::EngineStopped | Failure::Panicked { .. })) => Err(failure.into()),
            Some(failure) => {
                // A request's own parameters may leave nothing to draw from; a backend fails for everybody.
                let in_the_engine = matches!(failure, Failure::Backend(_));
                self.failures_in_a_row = if in_the_engine { self.failures_in_a_row + 1 } else { 0 };
                self.sink.failed(&custom_id, &ApiError::from(failure.clone()).into())?;
                if self.failures_in_a_row >= FAILURES_IN_A_ROW {
                    return Err(failure.into());
                }
                Ok(())
            }
        }
    }
}

impl Sink {
    fn failed(&mut self, custom_id: &str, error: &LineError) -> Result<(), CliError> {
        self.errors.append(&Record::failed(custom_id, error))?;
        self.record(custom_id)?;
        self.progress.failed();
        Ok(())
    }

    fn record(&mut self, custom_id: &str) -> Result<(), CliError> {
        // Each line is read once, so this cannot happen.
        self.ledger.record(custom_id).map_err(|error| CliError::Failed(format!("custom_id {custom_id:?} {error}")))
    }
}

/// The seed of a line that has none: of the run's seed and the line's id, so that neither order nor shard matters.
fn derived_seed(run: u64, custom_id: &str) -> u64 {
    let mut digest = Digest::new();
    digest.part(&run.to_le_bytes());
    digest.part(custom_id.as_bytes());
    digest.mixed()
}

/// A line's call, and whether the line is a plain one.
fn prepare(answering: &Answering<'_>, custom_id: &str, line: Line<'_>) -> Result<(Call, bool), LineError> {
    let Answering { served, plain, openai, seed } = answering;
    let seed = derived_seed(*seed, custom_id);
    let (call, is_plain) = match job::job(line)? {
        Job::Completion(body) => (served.completion(CompletionBody::read(body, openai)?, seed)?, false),
        Job::Chat(body) => (served.chat(ChatBody::read(body, openai)?, seed)?, false),
        Job::PlainPrompt(body) => (served.completion(CompletionBody::read(body, plain)?, seed)?, true),
        Job::PlainChat(body) => (served.chat(ChatBody::read(body, plain)?, seed)?, true),
    };
    if call.stream {
        let error = ApiError::invalid("stream is true; a batch does not stream: leave it out").of("stream");
        return Err(error.into());
    }
    Ok((call, is_plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_depend_on_run_and_id() {
        let mut seeds = std::collections::HashSet::new();
        for run in [0, 1, u64::MAX] {
            for id in ["a", "b", "line-1", "line-11", ""] {
                assert!(seeds.insert(derived_seed(run, id)));
                assert_eq!(derived_seed(run, id), derived_seed(run, id));
            }
        }
    }
}
