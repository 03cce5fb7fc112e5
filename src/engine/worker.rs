//! The step loop, on its own thread: takes requests from the queue, runs each to its end, one step after another.

use std::any::Any;
use std::num::NonZeroU32;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use crate::backend::{Backend, BackendError, Batch, SequenceRows};
use crate::kv::{BlockTable, PagePool};

use super::event::Failure;
use super::sequence::Sequence;

pub(super) struct Worker {
    backend: Box<dyn Backend>,
    queue: Receiver<Sequence>,
    pool: PagePool,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    pub(super) fn new(backend: Box<dyn Backend>, queue: Receiver<Sequence>, stopping: Arc<AtomicBool>) -> Worker {
        let pool = PagePool::new(backend.cache().pages);
        Worker { backend, queue, pool, stopping }
    }

    /// Runs until the engine is dropped, or a step panics: then the request gets the panic's message, and those in
    /// the queue end as they are dropped with it.
    pub(super) fn run(mut self) {
        while let Ok(mut sequence) = self.queue.recv() {
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            if sequence.is_cancelled() {
                continue;
            }
            // The state that a panic may leave torn (backend, pool) is dropped with the worker.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_to_end(&mut sequence))) {
                sequence.fail(Failure::Panicked { message: panic_message(&*panic) });
                return;
            }
        }
    }

    fn run_to_end(&mut self, sequence: &mut Sequence) {
        let window = self.backend.spec().window;
        // A backend with pages of no positions has no cache at all; one position a page is the least.
        let page_size = NonZeroU32::new(self.backend.cache().page_size).unwrap_or(NonZeroU32::MIN);
        let mut blocks = BlockTable::new(page_size, window);
        sequence.start(Instant::now());
        while !sequence.has_ended() && !sequence.is_cancelled() && !self.stopping.load(Ordering::Relaxed) {
            if let Err(failure) = self.step(sequence, &mut blocks) {
                sequence.fail(failure);
            }
        }
        blocks.release(&mut self.pool);
    }

    /// Computes the next rows of the sequence and draws a token where they end it.
    fn step(&mut self, sequence: &mut Sequence, blocks: &mut BlockTable) -> Result<(), Failure> {
        let backend = &mut *self.backend;
        let rows = sequence.next_rows(backend.max_rows(), backend.max_logits_rows());
        let logits = sequence.logits_positions(&rows);
        // Positions fit u32: requests are checked against the model's positions.
        let (start, end) = (rows.start as u32, rows.end as u32);
        blocks.evict(start, &mut self.pool);
        blocks.reserve(end, &mut self.pool).map_err(|error| backend_failure(BackendError::Cache(error)))?;
        let sequence_rows =
            SequenceRows { rows: 0..rows.len(), start, first_block: blocks.first_block(), pages: blocks.pages() };
        let logits_rows: Vec<usize> = relative(&logits, rows.start).collect();
        backend
            .forward(&Batch {
                token_ids: &sequence.tokens()[rows.clone()],
                sequences: &[sequence_rows],
                logits_rows: &logits_rows,
            })
            .map_err(backend_failure)?;
        if let Some((top, targets)) = sequence.prompt_targets(&rows) {
            let found = backend.logprobs(&targets, top).map_err(backend_failure)?;
            let at =
                |(position, row): (u32, Result<_, _>)| row.map_err(|source| Failure::NotFinite { position, source });
            let logprobs = (start + 1..).zip(found).map(at).collect::<Result<Vec<_>, _>>()?;
            sequence.report_prompt(&rows, logprobs);
        }
        match sequence.sample_row(&rows, logits_rows.len().saturating_sub(1)) {
            None => sequence.advance(&rows, Instant::now()),
            Some(row) => {
                let mut sampled = backend.sample(std::slice::from_ref(&row)).map_err(backend_failure)?;
                let sampled = sampled.pop().ok_or(BackendError::MissingSample).map_err(backend_failure)?;
                let sampled = sampled.map_err(|error| Failure::sample(end, error))?;
                sequence.accept(&rows, sampled, Instant::now());
            }
        }
        Ok(())
    }
}

/// Positions as rows of a batch that begins at `start`.
fn relative(positions: &Range<usize>, start: usize) -> impl Iterator<Item = usize> {
    positions.clone().map(move |position| position - start)
}

fn backend_failure(error: BackendError) -> Failure {
    Failure::Backend(Arc::new(error))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
