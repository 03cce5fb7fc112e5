//! Whole models in llama-bench's words: prompts (`pp512`) and generation (`tg128`, `tg128 @ d4096`) in tokens a second,
//! and shares of the limit.
//!
//! | file | what it holds |
//! |---|---|
//! | `runner` | one backend and the sequences that it is driven with |
//! | `cost` | what a test must move and compute, and the least time that takes |

mod cost;
mod runner;

use std::fmt;
use std::time::Instant;

pub use cost::Costs;
use runner::Runner;

use super::report::{Ceilings, Limit, Row, Suite};
use super::times::Times;
use crate::backend::{Backend, BackendError};

/// One test: a prompt, or generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// What is timed.
    pub work: TestWork,
    /// Positions that each sequence holds before.
    pub depth: u32,
    /// Sequences.
    pub batch: u32,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestWork {
    /// A prompt of so many tokens, logits of the last: `pp512`.
    Prompt(u32),
    /// So many tokens, one a step, each drawn greedily: `tg128`.
    Generate(u32),
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            TestWork::Prompt(tokens) => write!(f, "pp{tokens}")?,
            TestWork::Generate(tokens) => write!(f, "tg{tokens}")?,
        }
        if self.depth > 0 { write!(f, " @ d{}", self.depth) } else { Ok(()) }
    }
}

impl Test {
    /// Tokens of each sequence that are timed.
    pub fn tokens(&self) -> u32 {
        match self.work {
            TestWork::Prompt(tokens) | TestWork::Generate(tokens) => tokens,
        }
    }

    /// The tests of llama-bench's arguments: each prompt at each depth, one sequence at a time, then each generation at
    /// each depth and batch. Numbers that are 0 stand for no test.
    pub fn all(prompts: &[u32], generations: &[u32], depths: &[u32], batches: &[u32]) -> Vec<Test> {
        let mut tests = Vec::new();
        for &depth in depths {
            for &tokens in prompts.iter().filter(|tokens| **tokens > 0) {
                tests.push(Test { work: TestWork::Prompt(tokens), depth, batch: 1 });
            }
        }
        for &depth in depths {
            for &tokens in generations.iter().filter(|tokens| **tokens > 0) {
                let of_batch = |batch: &u32| Test { work: TestWork::Generate(tokens), depth, batch: *batch };
                tests.extend(batches.iter().filter(|batch| **batch > 0).map(of_batch));
            }
        }
        tests
    }
}

/// A model on a device, ready to be measured.
pub struct ModelBench {
    runner: Runner,
    costs: Costs,
    name: String,
    ceilings: Ceilings,
}

impl ModelBench {
    /// Of `backend`, which `costs` describes; `name` is what the model is called.
    pub fn new(backend: Box<dyn Backend>, costs: Costs, name: String, ceilings: Ceilings) -> ModelBench {
        ModelBench { runner: Runner::new(backend), costs, name, ceilings }
    }

    /// Runs `test` once for warming up and `repetitions` times for its row, in which [`Times`] are those of the whole
    /// test. A test that does not fit says why in its row.
    ///
    /// # Errors
    /// What the backend says of work that it was given.
    pub fn measure(&mut self, test: Test, repetitions: u32) -> Result<Row, BackendError> {
        let mut row = Row::new(Suite::Model, test.to_string()).size("batch", test.batch);
        row.model = Some(self.name.clone());
        row.tokens = u64::from(test.tokens()) * u64::from(test.batch);
        let cost = self.costs.of(&self.runner.steps(test), &self.ceilings);
        (row.bytes, row.flops) = (cost.bytes, cost.flops);
        if let Err(why) = self.runner.check(test) {
            row.missing = Some(why);
            return Ok(row);
        }
        let mut samples = Vec::new();
        for repetition in 0..=repetitions.max(1) {
            self.runner.begin(test)?;
            let start = Instant::now();
            self.runner.run(test)?;
            // The first loads kernels and records steps.
            if repetition > 0 {
                samples.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        row.times = Times::of(samples);
        if let (Some(times), Some(least)) = (row.times, cost.min_us) {
            row.of_limit = Some(least / times.median_us);
            row.limit = Some(if cost.by_bytes_us >= cost.by_flops_us { Limit::Bytes } else { Limit::Flops });
            let shares = [("of_bytes_limit", cost.by_bytes_us), ("of_flops_limit", cost.by_flops_us)];
            let shares = shares.into_iter().filter(|(_, us)| *us > 0.0);
            row.values.extend(shares.map(|(name, us)| (name.to_owned(), us / times.median_us)));
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        let tests = Test::all(&[512], &[128, 0], &[0, 4096], &[1, 64]);
        let names: Vec<(String, u32)> = tests.iter().map(|test| (test.to_string(), test.batch)).collect();
        let expected = [
            ("pp512", 1),
            ("pp512 @ d4096", 1),
            ("tg128", 1),
            ("tg128", 64),
            ("tg128 @ d4096", 1),
            ("tg128 @ d4096", 64),
        ];
        assert_eq!(names, expected.map(|(name, batch)| (name.to_owned(), batch)));
    }
}
