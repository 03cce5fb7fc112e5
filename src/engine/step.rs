//! A planned step as the backend takes it.

use std::ops::Range;
use std::time::Instant;

use crate::backend::{Backend, BackendError, Batch, SequenceRows, Token};
use crate::text::TokenId;

use super::draft::PromptLookup;
use super::scheduler::{Part, Scheduler, SequenceId};

/// The arrays of a step. Their memory is kept from step to step.
#[derive(Debug, Default)]
pub(super) struct Step {
    tokens: Vec<Token>,
    logits_rows: Vec<usize>,
    pub(super) parts: Vec<StepPart>,
}

/// One sequence's part of a step, and what is wanted of it.
#[derive(Debug)]
pub(super) struct StepPart {
    pub id: SequenceId,
    /// Positions.
    pub positions: Range<usize>,
    pub drafted: usize,
    /// Its logits rows.
    pub logits: Range<usize>,
    /// Is a token to be drawn from the last of them, and from those of its drafts?
    pub draws: bool,
    /// How many of them, from the first on, score prompt tokens.
    pub scores: usize,
}

impl Step {
    /// Takes over what the scheduler planned.
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
                // Behind the known tokens come drafts, or the one that is being drawn.
                let token = known.get(position).or_else(|| drafts.get(position - known.len()).filter(|_| drafted > 0));
                self.tokens.push(match (token, sequence.drawing) {
                    (Some(token), _) => Token::Known(*token),
                    (None, Some(place)) => Token::Sampled(place),
                    // A row without a token is not planned.
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
                draws: sequence.draws_after(&rows),
                scores,
                positions: rows,
            });
        }
    }

    /// Is there anything to compute?
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Gives the step to the backend.
    pub(super) fn run(&self, backend: &mut dyn Backend, scheduler: &Scheduler) -> Result<(), BackendError> {
        let mut first_row = 0;
        let sequences: Vec<SequenceRows<'_>> = self
            .parts
            .iter()
            .map(|part| {
                let rows = first_row..first_row + part.positions.len();
                first_row = rows.end;
                // Positions fit u32.
                SequenceRows { rows, start: part.positions.start as u32, tables: scheduler.tables(part.id) }
            })
            .collect();
        backend.forward(&Batch { tokens: &self.tokens, sequences: &sequences, logits_rows: &self.logits_rows })
    }
}
