//! The run: lines to requests as the engine has room, events to records as lines are done.

use std::collections::{HashMap, VecDeque};
use std::io::BufRead;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rigel::engine::{Engine, Event, Failure, Generations, Request};
use rigel::host::counted;
use rigel::openai::{
    ApiError, Call, ChatBody, Collected, Collector, CompletionBody, Defaults, Identity, Output, ServedModel,
};

use super::super::error::CliError;
use super::super::lines::{Line, Lines};
use super::super::signals::Signal;
use super::digest::{Digest, line_hash};
use super::head::IdFields;
use super::input::{InputFile, as_it_was};
use super::job::{self, Form, Job, LineError};
use super::record::{LineName, key};
use super::sink::Sink;

/// Lines that may fail in the engine, one after the other, before the run ends: with so many it is not the lines.
const FAILURES_IN_A_ROW: u32 = 32;
/// How soon a signal is noticed, and how often the bar moves, where the engine has nothing to say.
const TICK: Duration = Duration::from_millis(100);

/// What is the same for every line.
pub struct Answering<'a> {
    pub served: &'a ServedModel,
    /// What plain lines take where they say nothing.
    pub plain: &'a Defaults,
    /// What OpenAI lines take.
    pub openai: &'a Defaults,
    pub ids: &'a IdFields,
    /// The run's seed, of which each line's is made.
    pub seed: u64,
}

/// Runs the lines that are open. Once `stop` is set, lines of which nothing is computed are left to the next run, and
/// those that are begun are finished.
///
/// # Errors
/// A file that cannot be read or written; an engine that answers no more. Lines in flight are then not recorded.
pub fn run<R: BufRead>(
    engine: &Engine,
    answering: &Answering<'_>,
    input: &InputFile,
    lines: Lines<R>,
    sink: &mut Sink,
    in_flight: NonZeroUsize,
    stop: &OnceLock<Signal>,
) -> Result<(), CliError> {
    let mut generations = engine.generations();
    let mut state = State {
        answering,
        input,
        lines,
        at_end: false,
        sink,
        in_flight: in_flight.get(),
        draining: false,
        ready: VecDeque::new(),
        requests: HashMap::new(),
        open: HashMap::new(),
        next_slot: 0,
        failures_in_a_row: 0,
        input_error: None,
    };
    let ended = state.run(&mut generations, stop);
    let State { sink, input_error, .. } = state;
    sink.sync()?;
    ended.and(input_error.map_or(Ok(()), Err))
}

struct State<'a, R> {
    answering: &'a Answering<'a>,
    input: &'a InputFile,
    lines: Lines<R>,
    /// The input was read to its end.
    at_end: bool,
    sink: &'a mut Sink,
    in_flight: usize,
    /// No more lines are begun.
    draining: bool,
    /// Requests of lines that were read: more than one where a line has several prompts.
    ready: VecDeque<(Slot, usize, Request)>,
    /// The line, and which of its prompts, of each request in flight.
    requests: HashMap<usize, (Slot, usize)>,
    open: HashMap<Slot, OpenLine>,
    next_slot: Slot,
    failures_in_a_row: u32,
    /// Why nothing more is read.
    input_error: Option<CliError>,
}

/// A line in flight.
type Slot = u64;

struct OpenLine {
    name: LineName,
    form: Form,
    call: Call,
    collectors: Vec<Collector>,
    outputs: Vec<Option<Output>>,
    /// Requests that have not ended.
    waiting: usize,
    /// Whether any of it has been computed.
    begun: bool,
    /// Tokens generated.
    tokens: u64,
    failure: Option<Failure>,
}

impl<R: BufRead> State<'_, R> {
    /// Until every line is done; with `stop`, or where the input cannot be read on, until those that are begun are.
    fn run(&mut self, generations: &mut Generations<'_>, stop: &OnceLock<Signal>) -> Result<(), CliError> {
        loop {
            if !self.draining && (stop.get().is_some() || self.input_error.is_some()) {
                self.drain(generations);
            }
            while generations.running() < self.in_flight
                && let Some((slot, part, request)) = self.next_request(stop)?
            {
                match generations.submit(request) {
                    Ok(number) => drop(self.requests.insert(number, (slot, part))),
                    Err(error) => drop(self.event(slot, part, Event::Failed(Failure::Refused(error.into())))?),
                }
            }
            if generations.is_idle() && self.ready.is_empty() && (self.draining || self.input_error.is_none()) {
                return Ok(());
            }
            if let Some((number, event)) = generations.next_within(TICK)
                && let Some(&(slot, part)) = self.requests.get(&number)
                && self.event(slot, part, event)? == Goes::Ended
            {
                self.requests.remove(&number);
            }
            self.sink.progress.tick();
        }
    }

    /// Takes back what nothing was computed of, and says how much is left. Where the output is ordered, what comes
    /// after a line that was taken back could not be written, and is taken back, too.
    fn drain(&mut self, generations: &mut Generations<'_>) {
        self.draining = true;
        let not_begun = self.open.values().filter(|line| !line.begun).map(|line| line.name.number);
        let first = if self.sink.is_batch_invariant() { not_begun.min() } else { None };
        let stays = |line: &OpenLine| line.begun && first.is_none_or(|first| line.name.number < first);
        self.open.retain(|_, line| stays(line));
        let open = &self.open;
        self.ready.retain(|(slot, ..)| open.contains_key(slot));
        self.requests.retain(|number, (slot, _)| {
            let stays = open.contains_key(slot);
            if !stays {
                generations.cancel(*number);
            }
            stays
        });
        if self.input_error.is_none() && !self.open.is_empty() {
            let requests = counted(self.open.len(), "request");
            self.sink.progress.note(&format!("finishing {requests}; once more to stop at once"));
        }
    }

    /// The next request; none at the input's end, with `stop`, when draining, and where as many lines are held as may
    /// be.
    fn next_request(&mut self, stop: &OnceLock<Signal>) -> Result<Option<(Slot, usize, Request)>, CliError> {
        while self.ready.is_empty() {
            let held = self.sink.waiting();
            // Lines that fail as they are read, or that are recorded already, bring no request, and may be millions.
            if self.at_end
                || stop.get().is_some()
                || self.draining
                || self.input_error.is_some()
                || (held > 0 && held + self.open.len() >= self.in_flight)
            {
                return Ok(None);
            }
            match self.read_line() {
                Ok(true) => {}
                Ok(false) => self.at_end = true,
                Err(Ended::Input(error)) => self.input_error = Some(error),
                Err(Ended::Output(error)) => return Err(error),
            }
            self.sink.progress.tick();
        }
        Ok(self.ready.pop_front())
    }

    /// Reads a line and makes its requests ready, or its error a record. False at the end.
    fn read_line(&mut self) -> Result<bool, Ended> {
        // Exit code 1: lines were run before.
        let next = self.lines.next().map_err(|error| Ended::Input(self.input.error(error)))?;
        let Some((number, line)) = next else { return Ok(false) };
        if !self.sink.ledger().is_open(number) {
            return Ok(true);
        }
        let custom_id = self.answering.ids.id(number, line);
        if !self.sink.ledger().knows(&custom_id, number) {
            return Err(Ended::Input(CliError::Failed(format!(
                "{} changed while it was read: line {number} has another id; {}",
                self.input.path().display(),
                as_it_was(self.input.path().display())
            ))));
        }
        let name = LineName { hash: line_hash(number, line), custom_id, number };
        self.sink.begin(number);
        match prepare(self.answering, &name.custom_id, line) {
            Ok((call, form)) => self.open(name, call, form),
            Err(error) => self.sink.failed(&name, &error).map_err(Ended::Output)?,
        }
        Ok(true)
    }

    fn open(&mut self, name: LineName, mut call: Call, form: Form) {
        let slot = self.next_slot;
        self.next_slot += 1;
        let requests = std::mem::take(&mut call.requests);
        let budget = requests.iter().map(|request| u64::from(request.max_tokens) * u64::from(request.n)).sum();
        self.sink.progress.begun(budget);
        let collectors = requests.iter().map(|request| Collector::new(request.prompt.len(), request.n)).collect();
        let (outputs, waiting) = (requests.iter().map(|_| None).collect(), requests.len());
        self.ready.extend(requests.into_iter().enumerate().map(|(part, request)| (slot, part, request)));
        let (begun, tokens, failure) = (false, 0, None);
        self.open.insert(slot, OpenLine { name, form, call, collectors, outputs, waiting, begun, tokens, failure });
    }

    /// Something came of one of a line's requests.
    fn event(&mut self, slot: Slot, part: usize, event: Event) -> Result<Goes, CliError> {
        // Each event belongs to a request given out before, of a line in flight.
        let Some(line) = self.open.get_mut(&slot) else { return Ok(Goes::Ended) };
        line.begun = true;
        if matches!(event, Event::Token(_)) {
            line.tokens += 1;
            self.sink.progress.token();
        }
        match line.collectors[part].push(event) {
            Collected::More => return Ok(Goes::On),
            Collected::Done(output) => line.outputs[part] = Some(output),
            Collected::Failed(failure) => line.failure = Some(failure),
        }
        line.waiting -= 1;
        if line.waiting == 0
            && let Some(line) = self.open.remove(&slot)
        {
            self.close(line)?;
        }
        Ok(Goes::Ended)
    }

    /// Records a line whose requests have all ended.
    fn close(&mut self, line: OpenLine) -> Result<(), CliError> {
        let OpenLine { name, form, call, outputs, tokens, failure, .. } = line;
        self.sink.progress.ended(tokens);
        match failure {
            None => {
                self.failures_in_a_row = 0;
                let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
                let identity = Identity { id: key(&name.custom_id), created };
                let outputs = outputs.into_iter().flatten().collect();
                let body = call.response(self.answering.served, identity, outputs);
                self.sink.answered(&name, &body, form != Form::OpenAi)
            }
            // The engine takes nothing more; the line is done again by the next run.
            Some(failure @ (Failure::EngineStopped | Failure::Panicked { .. })) => Err(failure.into()),
            Some(failure) => {
                // A request's own parameters may leave nothing to sample from; a backend fails for everybody.
                let in_the_engine = matches!(failure, Failure::Backend(_));
                self.failures_in_a_row = if in_the_engine { self.failures_in_a_row + 1 } else { 0 };
                self.sink.failed(&name, &form.name_field(ApiError::from(failure.clone()).into()))?;
                if self.failures_in_a_row >= FAILURES_IN_A_ROW {
                    return Err(failure.into());
                }
                Ok(())
            }
        }
    }
}

/// Whether more is to come of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goes {
    On,
    Ended,
}

/// Why no more lines are read.
enum Ended {
    /// What is begun can still be recorded.
    Input(CliError),
    /// Nothing can be recorded.
    Output(CliError),
}

/// The seed of a line that has none: of the run's seed and the line's id, so that neither order nor shard matters.
fn derived_seed(run: u64, custom_id: &str) -> u64 {
    let mut digest = Digest::new();
    digest.part(&run.to_le_bytes());
    digest.part(custom_id.as_bytes());
    digest.mixed()
}

/// A line's call, and how the line is written.
fn prepare(answering: &Answering<'_>, custom_id: &str, line: Line<'_>) -> Result<(Call, Form), LineError> {
    let job = job::job(line, answering.ids)?;
    let form = job.form();
    let call = call(answering, job, derived_seed(answering.seed, custom_id));
    let call = call.map_err(|error| form.name_field(error.into()))?;
    if call.stream {
        let error = ApiError::invalid("stream is true; a batch does not stream: leave it out").of("stream");
        return Err(error.into());
    }
    Ok((call, form))
}

/// The call of a job; `seed` is for one that names none.
fn call(answering: &Answering<'_>, job: Job, seed: u64) -> Result<Call, ApiError> {
    let Answering { served, plain, openai, .. } = answering;
    match job {
        Job::Completion(body) => served.completion(CompletionBody::read(body, openai)?, seed),
        Job::Chat(body) => served.chat(ChatBody::read(body, openai)?, seed),
        Job::PlainPrompt { body, .. } => served.completion(CompletionBody::read(body, plain)?, seed),
        Job::PlainChat(body) => served.chat(ChatBody::read(body, plain)?, seed),
    }
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
