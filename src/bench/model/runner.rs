//! A backend driven as a test asks for it, without an engine: every sequence at the same position, pages of its own.

use std::num::NonZeroU32;

use crate::backend::{Backend, BackendError, Batch, SequenceRows, Token};
use crate::kv::{BlockTable, CacheGeometry, CacheGroup, PageId, first_visible};
use crate::sampling::{SampleRow, SamplingParams};
use crate::text::TokenId;

use super::cost::{Rows, Step};
use super::{Test, TestWork};

/// A backend, and what its sequences hold.
pub(super) struct Runner {
    backend: Box<dyn Backend>,
    /// Positions that every sequence of the last [`Runner::begin`] holds.
    held: u32,
}

/// Where the sequences of a test keep their keys and values in one group of the cache: a ring of pages each, as large
/// as the window and a step need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ring {
    window: Option<NonZeroU32>,
    /// Pages of each sequence.
    pages: u32,
}

impl Ring {
    /// The page of a block of a sequence.
    fn page(&self, sequence: u32, block: u32) -> PageId {
        PageId(sequence * self.pages + block % self.pages)
    }

    /// The pages of a sequence that the rows at `start ..= last` see.
    fn table(&self, page_size: NonZeroU32, sequence: u32, start: u32, last: u32) -> BlockTable {
        let first_block = first_visible(start, self.window) / page_size;
        let blocks = first_block..=last / page_size;
        BlockTable::from_pages(first_block, blocks.map(|block| self.page(sequence, block)).collect())
    }
}

impl Runner {
    pub fn new(backend: Box<dyn Backend>) -> Runner {
        Runner { backend, held: 0 }
    }

    /// Why the backend has no room for `test`, where it has none.
    pub fn check(&self, test: Test) -> Result<(), String> {
        let spec = self.backend.spec();
        let CacheGeometry { groups, page_size } = self.backend.cache();
        let end = u64::from(test.depth) + u64::from(test.tokens()) + 1;
        if end > spec.max_positions as u64 {
            return Err(format!("{end} positions; the model has room for {}", spec.max_positions));
        }
        let max_sequences = self.backend.max_sequences().min(self.backend.max_logits_rows());
        if test.batch as usize > max_sequences {
            return Err(format!("{} sequences; a step has room for {max_sequences}", test.batch));
        }
        for (ring, CacheGroup { pages, .. }) in self.rings(test).iter().zip(groups) {
            let needed = u64::from(ring.pages) * u64::from(test.batch);
            if needed > u64::from(*pages) {
                let tokens = |pages: u64| pages * u64::from(page_size.get());
                let (needed, there) = (tokens(needed), tokens((*pages).into()));
                return Err(format!("the cache needs room for {needed} tokens and has it for {there}"));
            }
        }
        Ok(())
    }

    /// The steps of `test`, for their cost.
    pub fn steps(&self, test: Test) -> Vec<Step> {
        match test.work {
            TestWork::Prompt(tokens) => {
                let chunk = self.chunk();
                let starts = (0..tokens).step_by(chunk as usize);
                let step = |start: u32| {
                    let rows = chunk.min(tokens - start);
                    let logits_rows = u32::from(start + rows == tokens);
                    Step { rows: Rows { rows, start: test.depth + start }, batch: test.batch, logits_rows }
                };
                starts.map(step).collect()
            }
            TestWork::Generate(tokens) => {
                let step = |index: u32| {
                    let rows = Rows { rows: 1, start: test.depth + index };
                    Step { rows, batch: test.batch, logits_rows: test.batch }
                };
                (0..tokens).map(step).collect()
            }
        }
    }

    /// Gives every sequence its past: one is computed, and its pages copied for the others.
    pub fn begin(&mut self, test: Test) -> Result<(), BackendError> {
        let rings = self.rings(test);
        self.held = 0;
        let chunk = self.chunk();
        while self.held < test.depth {
            let rows = chunk.min(test.depth - self.held);
            // The last row's logits, so that nothing of the past is still to be computed when time begins.
            let logits = rows as usize - 1;
            self.forward(&rings, 1, rows, &[logits])?;
            self.held += rows;
        }
        if test.depth > 0 {
            let blocks = test.depth.div_ceil(self.backend.cache().page_size.get());
            for (group, ring) in rings.iter().enumerate() {
                for block in 0..blocks.min(ring.pages) {
                    let page = self.backend.export_page(group, ring.page(0, block))?;
                    for sequence in 1..test.batch {
                        self.backend.import_page(group, ring.page(sequence, block), &page)?;
                    }
                }
            }
            // Behind the copies, on the same stream.
            self.backend.logits(0)?;
        }
        Ok(())
    }

    /// What is timed.
    pub fn run(&mut self, test: Test) -> Result<(), BackendError> {
        let rings = self.rings(test);
        match test.work {
            TestWork::Prompt(tokens) => self.prompt(&rings, tokens),
            TestWork::Generate(tokens) => self.generate(&rings, test.batch, tokens),
        }
    }

    /// One prompt in chunks; done when the token behind it is drawn.
    fn prompt(&mut self, rings: &[Ring], tokens: u32) -> Result<(), BackendError> {
        let chunk = self.chunk();
        let mut left = tokens;
        while left > 0 {
            let rows = chunk.min(left);
            left -= rows;
            let last = [rows as usize - 1];
            self.forward(rings, 1, rows, if left == 0 { &last } else { &[] })?;
            self.held += rows;
        }
        let params = SamplingParams::default();
        self.backend.sample(&draws(1, &params, self.held)).map(|_| ())
    }

    /// `steps` tokens of each of `batch` sequences: on an asynchronous device, the next step is given to it before the
    /// tokens of the one before have come back, as the engine does it.
    fn generate(&mut self, rings: &[Ring], batch: u32, steps: u32) -> Result<(), BackendError> {
        let params = SamplingParams::default();
        let every: Vec<usize> = (0..batch as usize).collect();
        if !self.backend.is_asynchronous() {
            for _ in 0..steps {
                self.forward(rings, batch, 1, &every)?;
                self.held += 1;
                self.backend.sample(&draws(batch, &params, self.held))?;
            }
            return Ok(());
        }
        let sampled: Vec<Token> = (0..batch).map(Token::Sampled).collect();
        for step in 0..steps {
            let parts = Parts::new(self, rings, batch, 1);
            let sequences = parts.sequences();
            let tokens = if step == 0 { &parts.tokens } else { &sampled };
            self.backend.forward(&Batch { tokens, sequences: &sequences, logits_rows: &every })?;
            self.held += 1;
            if step > 0 {
                self.backend.finish_sampling()?;
            }
            self.backend.start_sampling(&draws(batch, &params, self.held))?;
        }
        self.backend.finish_sampling().map(|_| ())
    }

    fn forward(&mut self, rings: &[Ring], batch: u32, rows: u32, logits: &[usize]) -> Result<(), BackendError> {
        let parts = Parts::new(self, rings, batch, rows);
        let sequences = parts.sequences();
        self.backend.forward(&Batch { tokens: &parts.tokens, sequences: &sequences, logits_rows: logits })
    }

    /// Rows of a chunk of a prompt.
    fn chunk(&self) -> u32 {
        u32::try_from(self.backend.max_rows()).unwrap_or(u32::MAX).max(1)
    }

    /// One for each group of the cache.
    fn rings(&self, test: Test) -> Vec<Ring> {
        let CacheGeometry { page_size, groups } = self.backend.cache();
        let most = match test.work {
            TestWork::Prompt(_) => self.chunk(),
            TestWork::Generate(_) if test.depth > 0 => self.chunk().min(test.depth),
            TestWork::Generate(_) => 1,
        };
        let end = test.depth.saturating_add(test.tokens()).saturating_add(1);
        let ring = |&CacheGroup { window, .. }: &CacheGroup| Ring {
            window,
            pages: CacheGeometry::pages_for_sequence(page_size.get(), end, window, most),
        };
        groups.iter().map(ring).collect()
    }
}

/// A batch, and what it borrows.
struct Parts {
    tokens: Vec<Token>,
    /// Of each sequence, one for each group of the cache.
    tables: Vec<Vec<BlockTable>>,
    rows: u32,
    start: u32,
}

impl Parts {
    /// The next `rows` rows of each of `batch` sequences.
    fn new(runner: &Runner, rings: &[Ring], batch: u32, rows: u32) -> Parts {
        let (spec, page_size) = (runner.backend.spec(), runner.backend.cache().page_size);
        let start = runner.held;
        let table = |sequence, ring: &Ring| ring.table(page_size, sequence, start, start + rows - 1);
        // Ids that follow no pattern of the embedding's rows.
        let id = |row: u32| Token::Known(TokenId(((start + row) as u64 * 7919 % spec.vocab_size as u64) as u32));
        Parts {
            tokens: (0..batch).flat_map(|_| (0..rows).map(id)).collect(),
            tables: (0..batch).map(|sequence| rings.iter().map(|ring| table(sequence, ring)).collect()).collect(),
            rows,
            start,
        }
    }

    fn sequences(&self) -> Vec<SequenceRows<'_>> {
        let rows = self.rows as usize;
        let sequence = |(index, tables)| {
            let rows = index * rows..(index + 1) * rows;
            SequenceRows { rows, start: self.start, tables }
        };
        self.tables.iter().map(Vec::as_slice).enumerate().map(sequence).collect()
    }
}

/// Greedy draws from the first `count` logits rows.
fn draws(count: u32, params: &SamplingParams, position: u32) -> Vec<SampleRow<'_>> {
    (0..count as usize).map(|logits_row| SampleRow::new(logits_row, params, position)).collect()
}

#[cfg(all(test, feature = "nano"))]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::backend::cpu::{CpuBackend, CpuOptions};
    use crate::checkpoint::{Checkpoint, ModelSource};
    use crate::model::ModelSpec;

    /// nano with a window of 24 positions and pages of 8.
    fn runner(pages: u32) -> Runner {
        runner_with(pages, |spec| spec.set_window(NonZeroU32::new(24)))
    }

    fn runner_with(pages: u32, windows: impl FnOnce(&mut ModelSpec)) -> Runner {
        let checkpoint = Checkpoint::open(&ModelSource::nano()).unwrap();
        let mut spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
        windows(&mut spec);
        let options =
            CpuOptions { threads: NonZeroUsize::new(2), page_size: NonZeroU32::new(8).unwrap(), pages, max_rows: 16 };
        Runner::new(Box::new(CpuBackend::new(&checkpoint, spec, options).unwrap()))
    }

    fn generate(tokens: u32, depth: u32, batch: u32) -> Test {
        Test { work: TestWork::Generate(tokens), depth, batch }
    }

    #[test]
    fn copied_pasts_are_the_one_that_was_computed() {
        let two_windows = |spec: &mut ModelSpec| {
            spec.set_window(NonZeroU32::new(24));
            spec.layers[1].attention.window = NonZeroU32::new(40);
        };
        // Before, at and past the window, with a past that ends inside a page.
        for (depth, two) in [(5, false), (24, false), (77, false), (77, true)] {
            let test = generate(3, depth, 3);
            let new = || if two { runner_with(96, two_windows) } else { runner(64) };
            let mut runner = new();
            runner.begin(test).unwrap();
            let rings = runner.rings(test);
            for _ in 0..3 {
                runner.forward(&rings, 3, 1, &[0, 1, 2]).unwrap();
                runner.held += 1;
                let logits: Vec<Vec<f32>> = (0..3).map(|row| runner.backend.logits(row).unwrap().to_vec()).collect();
                assert!(logits[0] == logits[1] && logits[0] == logits[2], "depth {depth}");
            }
            // The same tokens in one go, with no copy.
            let mut alone = new();
            let whole = Test { work: TestWork::Prompt(depth + 3), depth: 0, batch: 1 };
            alone.begin(whole).unwrap();
            alone.run(whole).unwrap();
            assert!(alone.backend.logits(0).unwrap() == runner.backend.logits(2).unwrap(), "depth {depth}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_before_anything_runs() {
        let runner = runner(20);
        assert_eq!(runner.check(generate(8, 100, 2)), Ok(()));
        // Rings of 6 pages: 23 positions before, and 16 rows of a chunk.
        let why = runner.check(generate(8, 100, 4)).unwrap_err();
        assert_eq!(why, "the cache needs room for 192 tokens and has it for 160");
        let why = runner.check(generate(8, 100, 17)).unwrap_err();
        assert_eq!(why, "17 sequences; a step has room for 16");
        let why = runner.check(generate(8, 100_000, 1)).unwrap_err();
        assert!(why.starts_with("100009 positions; the model has room for "), "{why}");
    }

    #[test]
    fn steps_cover_the_test() {
        let runner = runner(20);
        let steps = runner.steps(Test { work: TestWork::Prompt(40), depth: 8, batch: 1 });
        let found: Vec<_> = steps.iter().map(|step| (step.rows.start, step.rows.rows, step.logits_rows)).collect();
        assert_eq!(found, [(8, 16, 0), (24, 16, 0), (40, 8, 1)]);
        let steps = runner.steps(generate(2, 8, 3));
        let found: Vec<_> = steps.iter().map(|step| (step.rows.start, step.rows.rows, step.logits_rows)).collect();
        assert_eq!(found, [(8, 1, 3), (9, 1, 3)]);
    }
}
