//! Runs the steps that are profiled: one prefill, and decode steps behind prompts of the depth asked for.

use std::num::NonZeroU32;
use std::ops::Range;

use super::super::report::Ceilings;
use super::timeline::{Mismatch, Step, Timeline};
use crate::backend::cuda::kernels::Element;
use crate::backend::cuda::model::cost_model::{KernelCost, SequenceStep, StepDescription, kernel_costs};
use crate::backend::cuda::model::{CudaBackend, CudaOptions};
use crate::backend::cuda::trace::LaunchTimes;
use crate::backend::{Backend, BackendError, Batch, Determinism, SequenceRows, Token};
use crate::kv::{BlockTables, CacheGeometry, OutOfPages, PageCache, PrefixCache};
use crate::model::ModelSpec;
use crate::sampling::{SampleRow, SamplingParams};
use crate::text::TokenId;

/// Positions of a page.
const PAGE_SIZE: NonZeroU32 = NonZeroU32::new(64).unwrap();
/// A bucket's first step loads its kernels, the second records it; the third is the first of those that follow.
const WARM_UP: usize = 3;
/// Steps that are watched; the one of the middle duration is shown.
const WATCHED: usize = 5;

/// Why a profile failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// A size that the model has no room for.
    #[error("{what} is {found}; expected {expected}")]
    Size {
        /// Which.
        what: &'static str,
        /// As given.
        found: usize,
        /// What would do.
        expected: String,
    },
    /// The model.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The source of times.
    #[error(transparent)]
    Cuda(#[from] crate::backend::cuda::CudaError),
    /// Other launches ran than the step has.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}

impl From<OutOfPages> for ProfileError {
    fn from(error: OutOfPages) -> Self {
        ProfileError::Backend(error.into())
    }
}

/// What is profiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Rows of the prefill.
    pub prefill: usize,
    /// Sequences of the decode step.
    pub batch: usize,
    /// Positions that each of them has in the cache.
    pub depth: usize,
    /// Which kernels may be chosen between.
    pub determinism: Determinism,
}

impl Plan {
    /// Sizes of a backend that the plan runs on, checked before anything is loaded.
    ///
    /// # Errors
    /// A size of 0, or one beyond the model's positions.
    pub fn options(&self, spec: &ModelSpec) -> Result<CudaOptions, ProfileError> {
        let most = spec.max_positions;
        let sizes = [
            ("--prefill", self.prefill, 1..=most),
            ("--batch", self.batch, 1..=1024),
            ("--depth", self.depth, 0..=most.saturating_sub(1)),
        ];
        for (what, found, allowed) in sizes {
            if !allowed.contains(&found) {
                let expected = format!("{} to {}", allowed.start(), allowed.end());
                return Err(ProfileError::Size { what, found, expected });
            }
        }
        // One graph for each power of two: one of them has room for the batch.
        let max_sequences = self.batch.next_power_of_two();
        let max_rows = self.prefill.max(max_sequences);
        // Positions fit 32 bits in any configuration.
        let pages = |positions: usize, rows: usize| {
            CacheGeometry::pages_for_sequence(PAGE_SIZE.get(), positions as u32, spec.window(), rows as u32)
        };
        let decode = self.batch as u32 * pages(self.depth + 1, max_rows);
        Ok(CudaOptions {
            page_size: PAGE_SIZE,
            pages: decode.max(pages(self.prefill, self.prefill)),
            max_rows,
            max_sequences,
            determinism: self.determinism,
        })
    }
}

/// Profiles one prefill and one decode step on a backend made with [`Plan::options`].
///
/// # Errors
/// That of the device; launches that are not those of the step.
pub fn profile<T: Element>(
    backend: &mut CudaBackend<T>,
    plan: &Plan,
    times: &mut dyn LaunchTimes,
    ceilings: &Ceilings,
) -> Result<[Timeline; 2], ProfileError> {
    let options = plan.options(backend.spec())?;
    let mut sequences = Sequences::new(backend.spec(), backend.cache(), plan.batch);
    let whole = [Rows { sequence: 0, start: 0, rows: plan.prefill }];
    let prefill = Step::Prefill { rows: plan.prefill };
    let prefill = watch(backend, &mut sequences, &whole, prefill, &options, times, ceilings)?;
    sequences.release();

    for sequence in 0..plan.batch {
        for start in (0..plan.depth).step_by(options.max_rows) {
            let rows = options.max_rows.min(plan.depth - start);
            sequences.run(backend, &[Rows { sequence, start, rows }], Logits::None)?;
        }
    }
    let next: Vec<Rows> = (0..plan.batch).map(|sequence| Rows { sequence, start: plan.depth, rows: 1 }).collect();
    let decode = Step::Decode { batch: plan.batch, depth: plan.depth };
    let decode = watch(backend, &mut sequences, &next, decode, &options, times, ceilings)?;
    Ok([prefill, decode])
}

/// Runs a step until it is warm, then a few times more, and gives the one of the middle duration. Each time it computes
/// the same positions.
fn watch<T: Element>(
    backend: &mut CudaBackend<T>,
    sequences: &mut Sequences,
    rows: &[Rows],
    step: Step,
    options: &CudaOptions,
    times: &mut dyn LaunchTimes,
    ceilings: &Ceilings,
) -> Result<Timeline, ProfileError> {
    let costs = costs_of::<T>(backend, options, rows);
    for _ in 0..WARM_UP {
        sequences.run(backend, rows, Logits::Last)?;
    }
    let mut timelines = Vec::with_capacity(WATCHED);
    for _ in 0..WATCHED {
        let stream = backend.stream().clone();
        times.begin(&stream)?;
        sequences.run(backend, rows, Logits::Last)?;
        let ran = times.end(&stream)?;
        timelines.push(Timeline::join(step, (times.name(), times.sees_gaps()), ran, &costs, ceilings)?);
    }
    timelines.sort_by(|a, b| a.wall_us().total_cmp(&b.wall_us()));
    Ok(timelines.swap_remove(WATCHED / 2))
}

fn costs_of<T: Element>(backend: &CudaBackend<T>, options: &CudaOptions, rows: &[Rows]) -> Vec<KernelCost> {
    let sequence = |rows: &Rows| SequenceStep { rows: rows.rows as u32, start: rows.start as u32 };
    let sequences: Vec<SequenceStep> = rows.iter().map(sequence).collect();
    let step = StepDescription { sequences: &sequences, logits_rows: rows.len(), sampled_rows: rows.len() };
    kernel_costs::<T>(backend.spec(), options, backend.stream().device().properties(), &step)
}

/// Rows of a sequence to be computed.
#[derive(Debug, Clone, Copy)]
struct Rows {
    sequence: usize,
    start: usize,
    rows: usize,
}

/// Of which rows logits are computed and tokens drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logits {
    None,
    /// Each sequence's last.
    Last,
}

/// The sequences and their pages.
struct Sequences {
    pages: PageCache,
    tables: Vec<BlockTables>,
    vocabulary: u64,
}

impl Sequences {
    fn new(spec: &ModelSpec, cache: &CacheGeometry, count: usize) -> Sequences {
        let pages = PageCache::new(cache, PrefixCache::Off);
        let tables = (0..count).map(|_| BlockTables::new(&pages)).collect();
        Sequences { pages, tables, vocabulary: spec.vocab_size as u64 }
    }

    fn release(&mut self) {
        for table in &mut self.tables {
            table.release(&mut self.pages);
        }
    }

    /// One forward pass, and the draws of its logits.
    fn run<T: Element>(
        &mut self,
        backend: &mut CudaBackend<T>,
        rows: &[Rows],
        logits: Logits,
    ) -> Result<(), ProfileError> {
        let mut ids = Vec::new();
        let mut ranges: Vec<Range<usize>> = Vec::with_capacity(rows.len());
        for &Rows { sequence, start, rows } in rows {
            let table = &mut self.tables[sequence];
            table.evict(start as u32, &mut self.pages);
            table.reserve((start + rows) as u32, &mut self.pages)?;
            ranges.push(ids.len()..ids.len() + rows);
            // Any tokens do: a step takes as long whatever they are.
            ids.extend((start..start + rows).map(|position| self.token(sequence, position)));
        }
        let sequences: Vec<SequenceRows<'_>> = rows
            .iter()
            .zip(&ranges)
            .map(|(rows, range)| SequenceRows {
                rows: range.clone(),
                start: rows.start as u32,
                tables: self.tables[rows.sequence].as_slice(),
            })
            .collect();
        let logits_rows: Vec<usize> = match logits {
            Logits::None => Vec::new(),
            Logits::Last => ranges.iter().map(|range| range.end - 1).collect(),
        };
        backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &logits_rows })?;
        let params = SamplingParams::default();
        let draw =
            |(logits_row, rows): (usize, &Rows)| SampleRow::new(logits_row, &params, (rows.start + rows.rows) as u32);
        if logits == Logits::Last {
            let draws: Vec<SampleRow<'_>> = rows.iter().enumerate().map(draw).collect();
            // A draw that fails tells of weights without sense, which take as long.
            backend.sample(&draws)?;
        }
        Ok(())
    }

    fn token(&self, sequence: usize, position: usize) -> TokenId {
        let mixed = (sequence as u64 * 7919 + position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        TokenId((mixed % self.vocabulary) as u32)
    }
}
