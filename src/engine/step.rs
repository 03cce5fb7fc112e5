//! A planned step in the form the backend takes.

use std::ops::Range;
use std::time::Instant;

use crate::backend::{Backend, BackendError, Batch, SequenceRows, Token};
use crate::text::TokenId;

use super::draft::PromptLookup;
use super::scheduler::{Part, Scheduler, SequenceId};

/// Arrays of a step; the allocations are reused.
#[derive(Debug, Default)]
pub(super) struct Step {
    tokens: Vec<Token>,
    logits_rows: Vec<usize>,
    pub(super) parts: Vec<StepPart>,
}

/// One sequence's share of a step and what is wanted of it.
#[derive(Debug)]
pub(super) struct StepPart {
    pub id: SequenceId,
    /// Positions to compute.
    pub positions: Range<usize>,
    pub drafted: usize,
    /// Its logits rows.
    pub logits: Range<usize>,
    /// Whether a token is sampled from the last logits row, and from those of the drafts.
    pub samples: bool,
    /// How many of the logits rows, from the first on, score prompt tokens.
    pub scores: usize,
}

impl Step {
    /// Builds the arrays from the scheduler's plan.
    pub(super) fn take(&mut self, scheduler: &mut Scheduler) {
        self.tokens.clear();
        self.logits_rows.clear();
        self.parts.clear();
        let now = Instant::now();
        for index in 0..scheduler.parts().len() {
            let Part { id, rows, drafted } = scheduler.parts()[index].clone();
            let Some(sequence) = scheduler.get_mut(id) else { continue };
            sequence.output.start(now);
            let first_row = self.tokens.len();
            let known = sequence.tokens();
            let drafts = sequence.lookup.as_ref().map_or(&[][..], PromptLookup::last_draft);
            for position in rows.clone() {
                // After the known tokens come drafts, or the token in flight.
                let token = known.get(position).or_else(|| drafts.get(position - known.len()).filter(|_| drafted > 0));
                self.tokens.push(match (token, sequence.in_flight) {
                    (Some(token), _) => Token::Known(*token),
                    (None, Some(place)) => Token::Sampled(place),
                    // Never planned: every row has a token.
                    (None, None) => Token::Known(TokenId(0)),
                });
            }
            let scores = sequence.targets(&rows).len();
            let wanted = sequence.logits_positions(&rows);
            let first = self.logits_rows.len();
            self.logits_rows.extend(wanted.map(|position| first_row + position - rows.start));
            self.parts.push(StepPart {
                id,
                drafted,
                logits: first..self.logits_rows.len(),
                samples: sequence.samples_after(&rows),
                scores,
                positions: rows,
            });
        }
    }

    /// Returns `true` if there is nothing to compute.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Runs the forward pass.
    pub(super) fn run(&self, backend: &mut dyn Backend, scheduler: &Scheduler) -> Result<(), BackendError> {
        let mut first_row = 0;
        let sequences: Vec<SequenceRows<'_>> = self
            .parts
            .iter()
            .map(|part| {
                let rows = first_row..first_row + part.positions.len();
                first_row = rows.end;
                // Positions fit in u32.
                SequenceRows { rows, start: part.positions.start as u32, tables: scheduler.tables(part.id) }
            })
            .collect();
        backend.forward(&Batch { tokens: &self.tokens, sequences: &sequences, logits_rows: &self.logits_rows })
    }
}
