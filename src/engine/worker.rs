//! The step loop, on its own thread: takes requests in, has steps planned and computed, hands tokens out.

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
use super::generation::Replies;
use super::output::Verdict;
use super::scheduler::{Scheduler, SequenceId};
use super::sequence::Sequence;
use super::statistics::{Board, Statistics};
use super::step::Step;

/// The samples of one request.
pub(super) type Submission = Vec<Sequence>;

/// What the engine and its thread share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Set when the engine is dropped: the thread ends before its next step.
    pub(super) stopping: AtomicBool,
    pub(super) board: Board,
    pub(super) replies: Replies,
}

pub(super) struct Worker {
    backend: Box<dyn Backend>,
    queue: Receiver<Submission>,
    scheduler: Scheduler,
    step: Step,
    /// Draws that were started and not finished.
    draws: Vec<Draw>,
    shared: Arc<Shared>,
    /// Cancellations that were swept up.
    cancellations: u32,
}

/// Tokens that are being drawn for one sequence: the next one, and one after each draft.
#[derive(Debug)]
struct Draw {
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
        Worker { backend, queue, scheduler, step: Step::default(), draws: Vec::new(), shared, cancellations: 0 }
    }

    /// Runs until the engine is dropped, or a step panics. Then every request that is dropped with it ends with the
    /// panic's message, and so do those that come later. The state that the panic may have torn (backend, pages) goes
    /// with the worker.
    pub(super) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        // What was sent before stands.
        self.shared.replies.flush();
        if let Err(panic) = served {
            self.shared.replies.panicked(panic_message(&*panic));
            let statistics = self.scheduler.statistics();
            self.shared.board.post(Statistics { running: 0, waiting: 0, ..statistics });
        }
        // Who waits hears of it before the backend lets go of its memory.
        let Worker { backend, queue, scheduler, .. } = self;
        drop(scheduler);
        drop(queue);
        drop(backend);
    }

    fn serve(&mut self) {
        loop {
            if self.scheduler.is_idle() {
                // Those whose tokens these are have ended.
                self.finish_draws();
                self.shared.replies.flush();
                self.shared.board.post(self.scheduler.statistics());
                let Ok(submission) = self.queue.recv() else { return };
                self.scheduler.submit(submission);
            }
            // Before the queue is emptied: whoever cancelled by now was sent before.
            let cancellations = self.shared.replies.cancellations();
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
            self.shared.replies.flush();
            self.shared.board.post(self.scheduler.statistics());
        }
    }

    /// Ends what nobody waits for any more, and those whose time is up.
    fn sweep(&mut self, cancellations: u32) {
        if cancellations != self.cancellations {
            self.cancellations = cancellations;
            self.scheduler.sweep_closed();
        }
        let now = Instant::now();
        let late = self.scheduler.remove_late(now, |sequence| sequence.output.expire(now));
        self.scheduler.statistics.expired += late;
    }

    /// Plans a step and computes it. Where the backend is asynchronous, the tokens drawn in the step before are looked at
    /// while this one is computed.
    fn step(&mut self) {
        let waiting_for_draws = !self.draws.is_empty();
        // Of drafts it is not known yet which of them stand.
        if self.scheduler.speculates() || self.draws.iter().any(|draw| draw.drafted > 0) {
            self.finish_draws();
        }
        self.scheduler.plan();
        self.step.take(&mut self.scheduler);
        if self.step.parts.iter().any(|part| part.scores > 0) {
            // Log-probabilities cannot be asked for while draws are under way. Some of the step may end with them.
            self.finish_draws();
            self.step.take(&mut self.scheduler);
        }
        if self.step.is_empty() {
            // All that runs waited for the tokens that were being drawn.
            assert!(waiting_for_draws, "no sequence can go on");
            self.finish_draws();
            return;
        }
        if let Err(error) = self.compute() {
            self.fail_step(error);
        }
    }

    fn compute(&mut self) -> Result<(), BackendError> {
        self.poison_forgotten()?;
        self.step.run(&mut *self.backend, &self.scheduler)?;
        self.scheduler.statistics.steps += 1;
        for part in &self.step.parts {
            self.scheduler.given(part.id, part.positions.clone(), part.drafted);
        }
        self.finish_draws();
        self.score_prompts()?;
        self.start_draws()?;
        if !self.backend.is_asynchronous() {
            self.finish_draws();
        }
        Ok(())
    }

    /// Has pages that nobody may read any more filled with NaN, where somebody watches for them.
    fn poison_forgotten(&mut self) -> Result<(), BackendError> {
        let cache = &mut self.scheduler.cache;
        for group in 0..cache.pools().len() {
            let forgotten = cache.take_forgotten(group);
            if !forgotten.is_empty()
                && let Some(hooks) = self.backend.hooks()
            {
                hooks.poison(group, &forgotten)?;
            }
        }
        Ok(())
    }

    /// Asks for the log-probabilities of the step's prompt rows, and ends those that wanted no more.
    fn score_prompts(&mut self) -> Result<(), BackendError> {
        let (mut targets, mut most): (Vec<Option<TokenId>>, usize) = (Vec::new(), 0);
        for part in self.step.parts.iter().filter(|part| part.scores > 0) {
            let Some(sequence) = self.scheduler.get_mut(part.id) else { continue };
            // Those that score come first, so the logits rows before are all of their like.
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
        for part in self.step.parts.iter().filter(|part| !part.draws) {
            let Some(sequence) = self.scheduler.get_mut(part.id) else { continue };
            if sequence.request.max_tokens == 0 && sequence.has_prompt() {
                sequence.output.prompt_done(now);
                self.scheduler.statistics.finished += 1;
                self.scheduler.remove(part.id);
            }
        }
        Ok(())
    }

    /// Has the step's tokens drawn.
    fn start_draws(&mut self) -> Result<(), BackendError> {
        let mut rows = Vec::with_capacity(self.step.parts.len());
        self.draws.clear();
        let mut places = Vec::with_capacity(self.step.parts.len());
        for part in self.step.parts.iter().filter(|part| part.draws) {
            let Some(sequence) = self.scheduler.get(part.id) else { continue };
            places.push(rows.len() as u32);
            for ahead in 0..=part.drafted {
                rows.push(sequence.sample_row(part.logits.end - 1 - part.drafted + ahead, ahead));
            }
            self.draws.push(Draw { id: part.id, drafted: part.drafted });
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.backend.start_sampling(&rows)?;
        drop(rows);
        for (draw, place) in self.draws.iter().zip(places) {
            if let Some(sequence) = self.scheduler.get_mut(draw.id) {
                sequence.drawing = Some(place);
            }
        }
        Ok(())
    }

    /// Waits for the tokens that are being drawn, and hands them out.
    fn finish_draws(&mut self) {
        if self.draws.is_empty() {
            return;
        }
        let found = self.backend.finish_sampling();
        let draws = std::mem::take(&mut self.draws);
        let wanted: usize = draws.iter().map(|draw| draw.drafted + 1).sum();
        let found =
            found.and_then(|found| if found.len() == wanted { Ok(found) } else { Err(BackendError::MissingSample) });
        match found {
            Ok(found) => {
                let (mut found, now) = (found.into_iter(), Instant::now());
                let mut failed = false;
                for draw in &draws {
                    failed |= self.accept(draw, found.by_ref().take(draw.drafted + 1), now);
                }
                if failed {
                    // With one sample of a request the others end.
                    self.scheduler.sweep_closed();
                }
            }
            Err(error) => self.fail(draws.iter().map(|draw| draw.id), error),
        }
        self.draws = draws;
        self.draws.clear();
        // Before the next draws are given: nobody waits for the host then.
        self.shared.replies.flush();
    }

    /// Hands a sequence what was drawn for it: the next token, and one after each draft, which stand as long as the
    /// drafts before them were right. Did the request fail?
    fn accept(
        &mut self,
        draw: &Draw,
        mut found: impl Iterator<Item = Result<Sampled, SampleError>>,
        now: Instant,
    ) -> bool {
        let Some(sequence) = self.scheduler.get_mut(draw.id) else {
            found.for_each(drop);
            return false;
        };
        sequence.drawing = None;
        let (mut tokens, mut accepted) = (0, 0);
        let mut outcome = Outcome::GoesOn;
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
            let right = index < draw.drafted && drafted == Some(sampled.token);
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
        // What comes after the last draft that was right is computed again.
        let computed = sequence.tokens().len() - 1;
        if draw.drafted > 0
            && let Some(lookup) = &mut sequence.lookup
        {
            lookup.verified(draw.drafted, accepted, computed + 1);
        }
        let statistics = &mut self.scheduler.statistics;
        statistics.completion_tokens += tokens;
        if draw.drafted > 0 {
            statistics.verifications += 1;
            statistics.drafted_tokens += draw.drafted as u64;
            statistics.accepted_tokens += accepted as u64;
        }
        match outcome {
            Outcome::GoesOn if draw.drafted > 0 => self.scheduler.advance(draw.id, computed),
            Outcome::GoesOn => {}
            Outcome::Ended => {
                statistics.finished += 1;
                self.scheduler.remove(draw.id);
            }
            Outcome::Failed => {
                statistics.failed += 1;
                self.scheduler.remove(draw.id);
            }
        }
        outcome == Outcome::Failed
    }

    /// The step could not be computed: those of it fail. Tokens that were being drawn were given before it, and stand if
    /// they can be had.
    fn fail_step(&mut self, error: BackendError) {
        self.finish_draws();
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
        // What the device was to write into them may not be there.
        self.scheduler.cache.forget_idle();
        self.scheduler.sweep_closed();
    }
}

/// How a sequence took its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    GoesOn,
    Ended,
    Failed,
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
