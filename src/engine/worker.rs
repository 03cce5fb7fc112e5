//! The engine's thread: receives requests, plans and runs steps, delivers tokens.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use crate::backend::{Backend, BackendError};
use crate::sampling::{SampleError, Sampled, TokenLogprobs};
use crate::text::TokenId;

use super::event::Failure;
use super::generation::EventSinks;
use super::output::Verdict;
use super::scheduler::{Scheduler, SequenceId};
use super::sequence::Sequence;
use super::statistics::{Statistics, StatisticsSnapshot};
use super::step::Step;

/// The samples of one request.
pub(super) type Submission = Vec<Sequence>;

/// State shared by the engine and its thread.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Set when the engine is dropped; the thread stops before the next step.
    pub(super) stopping: AtomicBool,
    pub(super) statistics: StatisticsSnapshot,
    pub(super) sinks: EventSinks,
}

pub(super) struct Worker {
    backend: Box<dyn Backend>,
    queue: Receiver<Submission>,
    scheduler: Scheduler,
    step: Step,
    /// Samples started and not finished.
    in_flight: Vec<PendingSamples>,
    shared: Arc<Shared>,
    /// Cancellations already swept.
    cancellations: u32,
}

/// Tokens being sampled for one sequence: the next one, and one after each draft.
#[derive(Debug)]
struct PendingSamples {
    id: SequenceId,
    drafted: usize,
}

impl Worker {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        queue: Receiver<Submission>,
        scheduler: Scheduler,
        shared: Arc<Shared>,
    ) -> Worker {
        Worker { backend, queue, scheduler, step: Step::default(), in_flight: Vec::new(), shared, cancellations: 0 }
    }

    /// Runs until the engine is dropped or a step panics. After a panic every open request, and every later one, fails
    /// with the panic's message. The worker is dropped with all state that the panic may have left inconsistent
    /// (backend, pages).
    pub(super) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        // Deliver what was sent before.
        self.shared.sinks.flush();
        if let Err(panic) = served {
            self.shared.sinks.panicked(panic_message(&*panic));
            let statistics = self.scheduler.statistics();
            self.shared.statistics.publish(Statistics { running: 0, waiting: 0, ..statistics });
        }
        // Consumers are told before the backend frees its memory.
        let Worker { backend, queue, scheduler, .. } = self;
        drop(scheduler);
        drop(queue);
        drop(backend);
    }

    fn serve(&mut self) {
        loop {
            if self.scheduler.is_idle() {
                // The sequences of these samples have ended.
                self.finish_sampling();
                self.shared.sinks.flush();
                self.shared.statistics.publish(self.scheduler.statistics());
                let Ok(submission) = self.queue.recv() else { return };
                self.scheduler.submit(submission);
            }
            // Read before the queue is drained: a request cancelled by now was submitted earlier.
            let cancellations = self.shared.sinks.cancellations();
            while let Ok(submission) = self.queue.try_recv() {
                self.scheduler.submit(submission);
            }
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            self.sweep(cancellations);
            if !self.scheduler.is_idle() {
                self.step();
            }
            self.shared.sinks.flush();
            self.shared.statistics.publish(self.scheduler.statistics());
        }
    }

    /// Removes cancelled sequences and those past their deadline.
    fn sweep(&mut self, cancellations: u32) {
        if cancellations != self.cancellations {
            self.cancellations = cancellations;
            self.scheduler.sweep_closed();
        }
        let now = Instant::now();
        let late = self.scheduler.remove_late(now, |sequence| sequence.output.expire(now));
        self.scheduler.statistics.expired += late;
    }

    /// Plans and computes one step. With an asynchronous backend, the tokens of the previous step are fetched while
    /// this one runs.
    fn step(&mut self) {
        let had_in_flight = !self.in_flight.is_empty();
        // The next step cannot be planned before the drafts are verified.
        if self.scheduler.speculates() || self.in_flight.iter().any(|pending| pending.drafted > 0) {
            self.finish_sampling();
        }
        self.scheduler.plan();
        self.step.take(&mut self.scheduler);
        if self.step.parts.iter().any(|part| part.scores > 0) {
            // Scoring needs sampling to be finished. That may end sequences of the step, so it is rebuilt.
            self.finish_sampling();
            self.step.take(&mut self.scheduler);
        }
        if self.step.is_empty() {
            // Every running sequence waited for its token in flight.
            assert!(had_in_flight, "no sequence can go on");
            self.finish_sampling();
            return;
        }
        if let Err(error) = self.compute() {
            self.fail_step(error);
        }
    }

    fn compute(&mut self) -> Result<(), BackendError> {
        self.poison_freed()?;
        self.step.run(&mut *self.backend, &self.scheduler)?;
        self.scheduler.statistics.steps += 1;
        for part in &self.step.parts {
            self.scheduler.on_submitted(part.id, part.positions.clone(), part.drafted);
        }
        self.finish_sampling();
        self.score_prompts()?;
        self.start_sampling()?;
        if !self.backend.is_asynchronous() {
            self.finish_sampling();
        }
        Ok(())
    }

    /// Fills freed pages with NaN when a test watches for reads of them.
    fn poison_freed(&mut self) -> Result<(), BackendError> {
        let cache = &mut self.scheduler.cache;
        for group in 0..cache.pools().len() {
            let freed = cache.take_freed(group);
            if !freed.is_empty()
                && let Some(hooks) = self.backend.hooks()
            {
                hooks.poison(group, &freed)?;
            }
        }
        Ok(())
    }

    /// Fetches the log-probabilities of the step's prompt rows, and ends sequences that want nothing more.
    fn score_prompts(&mut self) -> Result<(), BackendError> {
        let (mut targets, mut most): (Vec<Option<TokenId>>, usize) = (Vec::new(), 0);
        for part in self.step.parts.iter().filter(|part| part.scores > 0) {
            let Some(sequence) = self.scheduler.get_mut(part.id) else { continue };
            // Scoring sequences come first, so the logits rows before theirs are also scored rows.
            targets.resize(part.logits.start, None);
            targets.extend(sequence.targets(&part.positions));
            most = most.max(sequence.request.prompt_logprobs.unwrap_or(0));
        }
        if !targets.is_empty() {
            let mut found: Vec<_> = self.backend.logprobs(&targets, most)?.into_iter().map(Some).collect();
            for part in self.step.parts.iter().filter(|part| part.scores > 0) {
                let Some(sequence) = self.scheduler.get_mut(part.id) else { continue };
                let first = part.positions.end - part.scores;
                let of_part = found.get_mut(part.logits.start..part.logits.start + part.scores).unwrap_or_default();
                let rows: Result<Vec<TokenLogprobs>, Failure> = (first..)
                    .zip(of_part)
                    .map(|(row, found)| match found.take() {
                        Some(Ok(logprobs)) => Ok(logprobs),
                        Some(Err(source)) => Err(Failure::Sampling { position: row as u32 + 1, source: source.into() }),
                        None => Err(Failure::Backend(Arc::new(BackendError::MissingSample))),
                    })
                    .collect();
                match rows {
                    Ok(rows) => sequence.report_prompt(rows),
                    Err(failure) => {
                        sequence.output.fail(failure);
                        self.scheduler.statistics.failed += 1;
                        self.scheduler.remove(part.id);
                    }
                }
            }
        }
        let now = Instant::now();
        for part in self.step.parts.iter().filter(|part| !part.samples) {
            let Some(sequence) = self.scheduler.get_mut(part.id) else { continue };
            if sequence.request.max_tokens == 0 && sequence.has_prompt() {
                sequence.output.prompt_done(now);
                self.scheduler.statistics.finished += 1;
                self.scheduler.remove(part.id);
            }
        }
        Ok(())
    }

    /// Starts sampling the step's tokens.
    fn start_sampling(&mut self) -> Result<(), BackendError> {
        let mut rows = Vec::with_capacity(self.step.parts.len());
        self.in_flight.clear();
        let mut places = Vec::with_capacity(self.step.parts.len());
        for part in self.step.parts.iter().filter(|part| part.samples) {
            let Some(sequence) = self.scheduler.get(part.id) else { continue };
            places.push(rows.len() as u32);
            for ahead in 0..=part.drafted {
                rows.push(sequence.sample_row(part.logits.end - 1 - part.drafted + ahead, ahead));
            }
            self.in_flight.push(PendingSamples { id: part.id, drafted: part.drafted });
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.backend.start_sampling(&rows)?;
        drop(rows);
        for (pending, place) in self.in_flight.iter().zip(places) {
            if let Some(sequence) = self.scheduler.get_mut(pending.id) {
                sequence.in_flight = Some(place);
            }
        }
        Ok(())
    }

    /// Waits for the tokens in flight and delivers them.
    fn finish_sampling(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let found = self.backend.finish_sampling();
        let in_flight = std::mem::take(&mut self.in_flight);
        let wanted: usize = in_flight.iter().map(|pending| pending.drafted + 1).sum();
        let found =
            found.and_then(|found| if found.len() == wanted { Ok(found) } else { Err(BackendError::MissingSample) });
        match found {
            Ok(found) => {
                let (mut found, now) = (found.into_iter(), Instant::now());
                let mut failed = false;
                for pending in &in_flight {
                    failed |= self.accept(pending, found.by_ref().take(pending.drafted + 1), now);
                }
                if failed {
                    // When one sample fails, the other samples of its request end too.
                    self.scheduler.sweep_closed();
                }
            }
            Err(error) => self.fail(in_flight.iter().map(|pending| pending.id), error),
        }
        self.in_flight = in_flight;
        self.in_flight.clear();
        // Deliver before the next sampling starts, while nothing waits for the host.
        self.shared.sinks.flush();
    }

    /// Delivers the sampled tokens of one sequence: the next token, then one per draft as long as the drafts match.
    /// Returns `true` if the request failed.
    fn accept(
        &mut self,
        pending: &PendingSamples,
        mut found: impl Iterator<Item = Result<Sampled, SampleError>>,
        now: Instant,
    ) -> bool {
        let Some(sequence) = self.scheduler.get_mut(pending.id) else {
            found.for_each(drop);
            return false;
        };
        sequence.in_flight = None;
        let (mut tokens, mut accepted) = (0, 0);
        let mut outcome = Outcome::Continues;
        for (index, sampled) in found.by_ref().enumerate() {
            let sampled = match sampled {
                Ok(sampled) => sampled,
                Err(source) => {
                    let position = sequence.tokens().len() as u32;
                    sequence.output.fail(Failure::Sampling { position, source });
                    outcome = Outcome::Failed;
                    break;
                }
            };
            tokens += 1;
            let drafted = sequence.lookup.as_ref().and_then(|lookup| lookup.last_draft().get(index).copied());
            let right = index < pending.drafted && drafted == Some(sampled.token);
            accepted += usize::from(right);
            if sequence.accept(sampled, now) == Verdict::Ended {
                outcome = Outcome::Ended;
                break;
            }
            if !right {
                break;
            }
        }
        found.for_each(drop);
        // Positions after the last matching draft are computed again.
        let computed = sequence.tokens().len() - 1;
        if pending.drafted > 0
            && let Some(lookup) = &mut sequence.lookup
        {
            lookup.verified(pending.drafted, accepted, computed + 1);
        }
        let statistics = &mut self.scheduler.statistics;
        statistics.completion_tokens += tokens;
        if pending.drafted > 0 {
            statistics.verifications += 1;
            statistics.drafted_tokens += pending.drafted as u64;
            statistics.accepted_tokens += accepted as u64;
        }
        match outcome {
            Outcome::Continues if pending.drafted > 0 => self.scheduler.advance(pending.id, computed),
            Outcome::Continues => {}
            Outcome::Ended => {
                statistics.finished += 1;
                self.scheduler.remove(pending.id);
            }
            Outcome::Failed => {
                statistics.failed += 1;
                self.scheduler.remove(pending.id);
            }
        }
        outcome == Outcome::Failed
    }

    /// The forward pass failed: its sequences fail. Tokens of the previous step were submitted earlier and are still
    /// delivered if they can be fetched.
    fn fail_step(&mut self, error: BackendError) {
        self.finish_sampling();
        let parts = std::mem::take(&mut self.step.parts);
        self.fail(parts.iter().map(|part| part.id), error);
    }

    fn fail(&mut self, sequences: impl Iterator<Item = SequenceId>, error: BackendError) {
        let error = Arc::new(error);
        for id in sequences {
            if let Some(sequence) = self.scheduler.get_mut(id) {
                sequence.output.fail(Failure::Backend(error.clone()));
                self.scheduler.statistics.failed += 1;
                self.scheduler.remove(id);
            }
        }
        // The failed pass may not have written these pages.
        self.scheduler.cache.evict_cached();
        self.scheduler.sweep_closed();
    }
}

/// What happened to a sequence when its tokens were delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Continues,
    Ended,
    Failed,
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
