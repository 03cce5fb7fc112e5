//! The scheduler: admission, chunked prefill beside decode, preemption. Pure bookkeeping over sequences and KV pages;
//! it knows neither the backend nor threads.
//!
//! A step is planned in this order, until its budget of rows, logits rows and pages is spent:
//!
//! 1. decoding sequences, oldest first, each with its drafted tokens;
//! 2. prefill chunks of running sequences, oldest first;
//! 3. waiting sequences in arrival order, if the remaining pages hold their tokens.
//!
//! When pages run out, the youngest running sequence is preempted and returns to the head of the queue. The oldest
//! sequence always makes progress, and a request that does not fit the cache alone is refused on submission, so every
//! request finishes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use slotmap::SlotMap;

use crate::kv::{BlockTable, CacheGeometry, PageCache};

use super::draft::Speculation;
use super::sequence::Sequence;
use super::statistics::Statistics;

/// Budget of one step.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepLimits {
    /// Rows in total.
    pub rows: usize,
    /// Rows of prompts (prefill).
    pub prompt_rows: usize,
    /// Rows with logits.
    pub logits_rows: usize,
    /// Sequences.
    pub sequences: usize,
}

/// Most rows of a step that verifies drafts: up to here the weights are read once for all of them.
const VERIFIED_ROWS: usize = 16;
/// Steps after which the blocked head of the queue tries again, even if no page was freed meanwhile.
const STEPS_TO_RETRY: u32 = 16;

/// Waiting sequences that one sweep may visit.
const MAX_SWEPT: usize = 1024;
/// Waiting sequences that one step may skip because they are not ready.
const MAX_SKIPPED: usize = 2048;

slotmap::new_key_type! {
    /// Identifies a sequence in the scheduler; never reused.
    pub(super) struct SequenceId;
}

/// The head of the queue, when it did not get the pages it needs.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    id: SequenceId,
    /// The cache group that was short of pages.
    group: usize,
    /// Pages available in that group at the time.
    available: u32,
    /// Steps since then.
    steps: u32,
}

/// One sequence's share of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub id: SequenceId,
    /// Positions to compute.
    pub rows: Range<usize>,
    /// How many of the last rows are drafted tokens (taken from the sequence's lookup).
    pub drafted: usize,
}

pub(super) struct Scheduler {
    limits: StepLimits,
    speculation: Speculation,
    pub(super) cache: PageCache,
    /// Running and waiting sequences.
    sequences: SlotMap<SequenceId, Box<Sequence>>,
    /// Number of sequences submitted so far; the next arrival number.
    arrivals: u64,
    /// Oldest first.
    running: Vec<SequenceId>,
    waiting: VecDeque<SequenceId>,
    /// Deadlines of live sequences, and of some that have already ended.
    deadlines: BinaryHeap<Reverse<(Instant, SequenceId)>>,
    /// Set while the head of the queue is short of pages.
    blocked: Option<Blocked>,
    /// Whether this step preempted a sequence.
    preempted: bool,
    /// Sweeps since all waiting sequences were last visited.
    unswept: usize,
    /// The step planned last.
    parts: Vec<Part>,
    pub(super) statistics: Statistics,
}

impl Scheduler {
    pub(super) fn new(limits: StepLimits, cache: PageCache, speculation: Speculation) -> Scheduler {
        let statistics =
            Statistics { pages: cache.pages(), pages_available: cache.available(), ..Statistics::default() };
        Scheduler {
            limits,
            speculation,
            cache,
            sequences: SlotMap::with_key(),
            arrivals: 0,
            running: Vec::new(),
            waiting: VecDeque::new(),
            deadlines: BinaryHeap::new(),
            blocked: None,
            preempted: false,
            unswept: 0,
            parts: Vec::new(),
            statistics,
        }
    }

    /// Appends the samples of a request to the queue.
    pub(super) fn submit(&mut self, samples: impl IntoIterator<Item = Sequence>) {
        if self.deadlines.len() > 2 * self.sequences.len() + 64 {
            // Most deadlines belong to sequences that ended in time.
            self.deadlines.retain(|Reverse((_, id))| self.sequences.contains_key(*id));
        }
        let mut parent = None;
        for mut sequence in samples {
            sequence.arrival = self.arrivals;
            self.arrivals += 1;
            sequence.parent = parent;
            let deadline = sequence.deadline;
            let id = self.sequences.insert(Box::new(sequence));
            parent.get_or_insert(id);
            self.deadlines.extend(deadline.map(|deadline| Reverse((deadline, id))));
            self.waiting.push_back(id);
        }
    }

    /// Returns `true` if no sequence runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The sequence. `None` if it has ended.
    pub(super) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.get_mut(id).map(|sequence| &mut **sequence)
    }

    /// The sequence. `None` if it has ended.
    pub(super) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(id).map(|sequence| &**sequence)
    }

    /// Called when a sequence's rows have been submitted to the backend. Rows with drafts do not count as computed
    /// until the drafts are verified ([`Scheduler::advance`]).
    pub(super) fn on_submitted(&mut self, id: SequenceId, rows: Range<usize>, drafted: usize) {
        let Some(sequence) = self.get(id) else { return };
        let decodes = sequence.has_prompt() && rows.len() == 1 + drafted;
        if !decodes {
            self.statistics.prefill_rows += (rows.len() - drafted) as u64;
        }
        if drafted == 0 {
            self.advance(id, rows.end);
        }
    }

    /// Marks the positions before `end` as computed.
    pub(super) fn advance(&mut self, id: SequenceId, end: usize) {
        if let Some(sequence) = self.sequences.get_mut(id) {
            sequence.advance(end, &mut self.cache);
        }
    }

    /// The sequence, which must be running or waiting.
    fn sequence(&self, id: SequenceId) -> &Sequence {
        &self.sequences[id]
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        &mut self.sequences[id]
    }

    /// Removes a sequence and releases its pages.
    pub(super) fn remove(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(id) else { return };
        sequence.release(&mut self.cache);
        match self.running.iter().position(|running| *running == id) {
            Some(at) => drop(self.running.remove(at)),
            None => self.waiting.retain(|waiting| *waiting != id),
        }
    }

    /// Removes cancelled sequences. A long queue is not walked on every sweep: a waiting sequence is also checked on
    /// admission, and the walk happens once enough cancellations have accumulated to pay for it.
    pub(super) fn sweep_closed(&mut self) {
        self.unswept += 1;
        let mut counted = Statistics::default();
        let mut closed = |sequence: &mut Sequence| {
            let closed = sequence.output.is_closed();
            if closed {
                counted.count_closed(sequence);
            }
            closed
        };
        if self.waiting.len() <= MAX_SWEPT * self.unswept {
            self.unswept = 0;
            self.remove_where(closed);
        } else {
            let mut finished = self.running.clone();
            finished.retain(|id| closed(&mut self.sequences[*id]));
            finished.into_iter().for_each(|id| self.remove(id));
        }
        self.statistics.add_closed(&counted);
    }

    /// Removes every sequence for which `finished` returns `true`.
    pub(super) fn remove_where(&mut self, mut finished: impl FnMut(&mut Sequence) -> bool) {
        let Scheduler { sequences, cache, running, waiting, .. } = self;
        let mut stays = |id: &SequenceId| {
            let leaves = finished(&mut sequences[*id]);
            if leaves && let Some(mut sequence) = sequences.remove(*id) {
                sequence.release(cache);
            }
            !leaves
        };
        running.retain(&mut stays);
        waiting.retain(&mut stays);
    }

    /// Removes sequences past their deadline, after calling `expire` on each. Returns how many.
    pub(super) fn remove_late(&mut self, now: Instant, mut expire: impl FnMut(&mut Sequence)) -> u64 {
        let mut any = false;
        while let Some(&Reverse((deadline, id))) = self.deadlines.peek()
            && deadline <= now
        {
            self.deadlines.pop();
            any |= self.sequences.contains_key(id);
        }
        let mut late = 0;
        if any {
            // One walk removes all of them.
            self.remove_where(|sequence| {
                let is_late = sequence.deadline.is_some_and(|deadline| deadline <= now);
                if is_late {
                    expire(sequence);
                    late += 1;
                }
                is_late
            });
        }
        late
    }

    /// Returns `true` if the next step speculates: few sequences run and at least one can draft. Drafting needs the
    /// last token, so sampling in flight must be finished first.
    pub(super) fn speculates(&self) -> bool {
        self.speculation == Speculation::PromptLookup
            && 2 * self.running.len() <= VERIFIED_ROWS
            && self.running.iter().any(|id| self.sequence(*id).may_draft())
    }

    /// Plans the next step and reserves the pages of all its rows.
    pub(super) fn plan(&mut self) -> &[Part] {
        self.parts.clear();
        self.preempted = false;
        let mut budget = self.limits;
        let (mut decoding, mut computing) = (Vec::with_capacity(self.running.len()), Vec::new());
        let mut scores = false;
        for &id in &self.running {
            let sequence = self.sequence(id);
            match sequence.remaining() {
                0 => {}
                1 => decoding.push(id),
                _ => computing.push(id),
            }
            scores |= sequence.is_scoring();
        }
        self.plan_decoding(decoding, &mut budget);
        self.plan_prompts(computing, &mut budget);
        if !self.preempted {
            scores |= self.admit(&mut budget);
        }
        if scores {
            // Sequences that score their prompt come first, so their logits rows are contiguous from 0.
            let Scheduler { parts, sequences, .. } = self;
            let scores = |part: &Part| sequences[part.id].is_scoring();
            parts.sort_by_key(|part| !scores(part));
        }
        &self.parts
    }

    fn plan_decoding(&mut self, decoding: Vec<SequenceId>, budget: &mut StepLimits) {
        let speculates = self.speculates();
        let max_drafts = if speculates { (VERIFIED_ROWS / decoding.len().max(1)).saturating_sub(1) } else { 0 };
        let count = decoding.len();
        for (index, id) in decoding.into_iter().enumerate() {
            if budget.rows.min(budget.logits_rows).min(budget.sequences) == 0 {
                break;
            }
            if self.was_preempted(id) {
                continue;
            }
            // Drafts never take rows from the sequences behind this one.
            let spare = budget.rows.min(budget.logits_rows).saturating_sub(count - index);
            let drafted = self.draft_for(id, max_drafts.min(spare));
            let start = self.sequence(id).computed();
            let granted = self.reserve(id, start + 1 + drafted, start + 1);
            if let Some(end) = granted {
                self.add(id, start..end, end - start - 1, budget);
            }
        }
    }

    /// Returns how many tokens the sequence drafts, at most `max`. The tokens stay in the sequence's lookup.
    fn draft_for(&mut self, id: SequenceId, max: usize) -> usize {
        if max == 0 {
            return 0;
        }
        let sequence = self.sequence_mut(id);
        let max = max.min(sequence.max_drafts());
        if !sequence.takes_drafts() || sequence.in_flight.is_some() || max == 0 {
            return 0;
        }
        let mut lookup = sequence.lookup.take().unwrap_or_default();
        let drafted = lookup.draft(sequence.tokens(), max).len();
        sequence.lookup = Some(lookup);
        drafted
    }

    fn plan_prompts(&mut self, computing: Vec<SequenceId>, budget: &mut StepLimits) {
        for id in computing {
            if !self.was_preempted(id) {
                self.plan_chunk(id, budget);
            }
        }
    }

    /// Plans as many of the sequence's remaining rows as the budget allows.
    fn plan_chunk(&mut self, id: SequenceId, budget: &mut StepLimits) {
        let sequence = self.sequence(id);
        let start = sequence.computed();
        let mut end = start + sequence.remaining().min(budget.rows).min(budget.prompt_rows);
        // Rows that need logits are at the end of the chunk.
        let too_many = sequence.logits_positions(&(start..end)).len().saturating_sub(budget.logits_rows);
        end -= too_many;
        if end == start || budget.sequences == 0 {
            return;
        }
        if let Some(end) = self.reserve(id, end, start + 1) {
            budget.prompt_rows -= end - start;
            self.add(id, start..end, 0, budget);
        }
    }

    fn add(&mut self, id: SequenceId, rows: Range<usize>, drafted: usize, budget: &mut StepLimits) {
        let sequence = self.sequence(id);
        budget.logits_rows -= sequence.logits_positions(&rows).len();
        budget.rows -= rows.len();
        budget.sequences -= 1;
        self.parts.push(Part { id, rows, drafted });
    }

    /// Returns `true` if the sequence was preempted while this step was planned.
    fn was_preempted(&self, id: SequenceId) -> bool {
        self.preempted && !self.running.contains(&id)
    }

    /// Reserves pages for positions up to `end`, or at least up to `least`, and returns the end that was reached. Frees
    /// pages that have left the window and preempts younger sequences while pages are short. `None` if the sequence
    /// itself was preempted.
    fn reserve(&mut self, id: SequenceId, end: usize, least: usize) -> Option<usize> {
        let sequence = self.sequences.get_mut(id)?;
        // Positions fit in u32.
        sequence.blocks.evict(sequence.computed() as u32, &mut self.cache);
        loop {
            let Scheduler { sequences, cache, running, .. } = &mut *self;
            let sequence = sequences.get_mut(id)?;
            let max = sequence.blocks.max_end(cache) as usize;
            if max >= least {
                let end = end.min(max);
                return sequence.blocks.reserve(end as u32, cache).is_ok().then_some(end);
            }
            let youngest = running.last().copied()?;
            self.preempt(youngest);
            if youngest == id {
                return None;
            }
        }
    }

    /// Preempts a running sequence: releases its pages and moves it to the head of the queue.
    fn preempt(&mut self, id: SequenceId) {
        self.preempted = true;
        self.statistics.preemptions += 1;
        self.parts.retain(|part| part.id != id);
        self.running.retain(|running| *running != id);
        if let Some(sequence) = self.sequences.get_mut(id) {
            sequence.release(&mut self.cache);
        }
        self.waiting.push_front(id);
    }

    /// Admits waiting sequences in arrival order. Returns `true` if one of them scores its prompt.
    fn admit(&mut self, budget: &mut StepLimits) -> bool {
        let (mut at, mut scores) = (0, false);
        while budget.rows.min(budget.prompt_rows).min(budget.sequences) > 0
            && self.running.len() < self.limits.sequences
        {
            let Some(&id) = self.waiting.get(at) else { break };
            let sequence = self.sequence(id);
            if sequence.output.is_closed() {
                let mut counted = Statistics::default();
                counted.count_closed(sequence);
                self.statistics.add_closed(&counted);
                self.waiting.remove(at);
                self.remove(id);
                continue;
            }
            if sequence.in_flight.is_some() || self.waits_for_parent(sequence) {
                // Others may go ahead: this sequence is not ready for admission.
                at += 1;
                if at == MAX_SKIPPED {
                    break;
                }
                continue;
            }
            if sequence.is_scoring() && budget.logits_rows == 0 || !self.try_admit(id) {
                break;
            }
            self.waiting.remove(at);
            scores |= self.sequence(id).is_scoring();
            let arrival = self.sequence(id).arrival;
            let place = self.running.partition_point(|running| self.sequence(*running).arrival < arrival);
            self.running.insert(place, id);
            self.plan_chunk(id, budget);
            if self.preempted {
                break;
            }
        }
        scores
    }

    /// Returns `true` while the parent still computes the shared prompt, or scores it.
    fn waits_for_parent(&self, sequence: &Sequence) -> bool {
        let Some(parent) = sequence.parent else { return false };
        let waits = |parent: &Sequence| parent.is_scoring() || self.cache.keeps_prefixes() && !parent.has_prompt();
        self.get(parent).is_some_and(waits)
    }

    /// Admits the sequence with its cached prefix. Returns `false`, and takes nothing, if there are too few pages for
    /// the rest.
    fn try_admit(&mut self, id: SequenceId) -> bool {
        let Scheduler { sequences, cache, blocked, running, statistics, .. } = self;
        let sequence = &mut sequences[id];
        if let Some(blocked) = blocked
            && !running.is_empty()
            && blocked.id == id
            && cache.pools()[blocked.group].available() <= blocked.available
            && blocked.steps < STEPS_TO_RETRY
        {
            blocked.steps += 1;
            return false;
        }
        let found = sequence.admit(cache);
        if let Some(group) = short_group(sequence, cache, running.is_empty()) {
            sequence.release(cache);
            let available = cache.pools()[group].available();
            *blocked = Some(Blocked { id, group, available, steps: 0 });
            return false;
        }
        *blocked = None;
        if found > 0 {
            statistics.prefix_hits += 1;
            statistics.prefix_tokens += found as u64;
        }
        true
    }

    /// The block tables of a running or waiting sequence.
    pub(super) fn tables(&self, id: SequenceId) -> &[BlockTable] {
        self.sequence(id).blocks.as_slice()
    }

    /// The parts of the step planned last.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The statistics, with the current gauges.
    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages_available: self.cache.available(),
            ..self.statistics
        }
    }
}

/// The first cache group with too few pages for a sequence that was just [admitted](Sequence::admit). `None` if all
/// have enough.
fn short_group(sequence: &Sequence, cache: &PageCache, is_alone: bool) -> Option<usize> {
    let (size, positions) = (cache.page_size().get(), sequence.positions_to_admit() as u32);
    sequence.blocks.as_slice().iter().zip(cache.pools()).position(|(table, pool)| {
        // Chunks adapt to what is free, so only the pages for one row at a time are required.
        let all = CacheGeometry::pages_for_sequence(size, positions, pool.window(), 1);
        let needed = all.saturating_sub(table.pages().len() as u32);
        // Keep some pages for running sequences, so that the new one is not preempted right away.
        let spare = if is_alone { 0 } else { (pool.pages() / 64).max(1) };
        pool.available() < needed + spare
    })
}

#[cfg(test)]
mod tests;
