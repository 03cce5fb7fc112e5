//! Who is computed next, and where: admission, chunks of prompts beside decoding, preemption. Pure bookkeeping over
//! sequences and pages; knows no backend and no thread.
//!
//! A step is planned in this order, while rows, logits rows and pages last:
//!
//! 1. every sequence that decodes, the oldest first, with the tokens drafted for it;
//! 2. chunks of the prompts that are being computed, the oldest first;
//! 3. waiting sequences, in the order in which they came, if their tokens fit the pages that are left.
//!
//! Where pages run out, the youngest running sequence gives up its own and waits again, at the head of the queue. The
//! oldest always goes on, and a request that could not run alone is refused when it comes, so all come to their end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use slotmap::SlotMap;

use crate::kv::{BlockTable, CacheGeometry, PageCache};

use super::draft::Speculation;
use super::sequence::Sequence;
use super::statistics::Statistics;

/// What one step may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepLimits {
    /// Rows.
    pub rows: usize,
    /// Rows of prompts.
    pub prompt_rows: usize,
    /// Rows whose logits are wanted.
    pub logits_rows: usize,
    /// Sequences.
    pub sequences: usize,
}

/// The rows of a step within which drafts are verified: as many as one reading of the weights serves.
const VERIFIED_ROWS: usize = 16;
/// A waiting sequence that found no room tries again when pages became available, and after so many steps.
const STEPS_TO_RETRY: u32 = 16;

/// How many waiting sequences a call to sweep may look at.
const SWEPT_EACH: usize = 1024;
/// How many that need no room yet one step passes over.
const MAX_PASSED: usize = 2048;

slotmap::new_key_type! {
    /// A sequence in the scheduler. No other one ever has the same.
    pub(super) struct SequenceId;
}

/// A waiting sequence that found no room.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    id: SequenceId,
    /// The group of the cache that had too few pages.
    group: usize,
    /// Pages of it that were available then.
    available: u32,
    /// Steps since.
    steps: u32,
}

/// One sequence's part of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub id: SequenceId,
    /// Positions to compute.
    pub rows: Range<usize>,
    /// How many of the last of them are drafted tokens, those of the sequence's lookup.
    pub drafted: usize,
}

pub(super) struct Scheduler {
    limits: StepLimits,
    speculation: Speculation,
    pub(super) cache: PageCache,
    /// Those that run and those that wait.
    sequences: SlotMap<SequenceId, Box<Sequence>>,
    /// Sequences that have come so far.
    arrivals: u64,
    /// The oldest first.
    running: Vec<SequenceId>,
    waiting: VecDeque<SequenceId>,
    /// Of live sequences, and of some that have ended.
    deadlines: BinaryHeap<Reverse<(Instant, SequenceId)>>,
    /// When the head of the queue found no room.
    blocked: Option<Blocked>,
    /// Was somebody preempted in this step?
    preempted: bool,
    /// Calls to sweep since all that wait were looked at.
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

    /// Puts the samples of a request at the end of the queue.
    pub(super) fn submit(&mut self, samples: impl IntoIterator<Item = Sequence>) {
        if self.deadlines.len() > 2 * self.sequences.len() + 64 {
            // Most of them are those of sequences that ended in time.
            self.deadlines.retain(|Reverse((_, id))| self.sequences.contains_key(*id));
        }
        let mut leader = None;
        for mut sequence in samples {
            sequence.arrival = self.arrivals;
            self.arrivals += 1;
            sequence.leader = leader;
            let deadline = sequence.deadline;
            let id = self.sequences.insert(Box::new(sequence));
            leader.get_or_insert(id);
            self.deadlines.extend(deadline.map(|deadline| Reverse((deadline, id))));
            self.waiting.push_back(id);
        }
    }

    /// Is there nothing to compute and nobody waiting?
    pub(super) fn is_idle(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The sequence, if it has not ended.
    pub(super) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.get_mut(id).map(|sequence| &mut **sequence)
    }

    /// As [`Scheduler::get_mut`], to be read.
    pub(super) fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(id).map(|sequence| &**sequence)
    }

    /// A sequence's rows were given to the backend. Of rows with drafts it is not known yet which of them stand
    /// ([`Scheduler::advance`]).
    pub(super) fn given(&mut self, id: SequenceId, rows: Range<usize>, drafted: usize) {
        let Some(sequence) = self.get(id) else { return };
        let decodes = sequence.has_prompt() && rows.len() == 1 + drafted;
        if !decodes {
            self.statistics.prefill_rows += (rows.len() - drafted) as u64;
        }
        if drafted == 0 {
            self.advance(id, rows.end);
        }
    }

    /// The keys and values of a sequence's positions before `end` stand.
    pub(super) fn advance(&mut self, id: SequenceId, end: usize) {
        if let Some(sequence) = self.sequences.get_mut(id) {
            sequence.advance(end, &mut self.cache);
        }
    }

    /// A sequence of one of the two queues.
    fn sequence(&self, id: SequenceId) -> &Sequence {
        &self.sequences[id]
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        &mut self.sequences[id]
    }

    /// Takes a sequence out, with its pages.
    pub(super) fn remove(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(id) else { return };
        sequence.leave(&mut self.cache);
        match self.running.iter().position(|running| *running == id) {
            Some(at) => drop(self.running.remove(at)),
            None => self.waiting.retain(|waiting| *waiting != id),
        }
    }

    /// Takes out the sequences that nobody waits for any more. Where many wait, those are looked at when their turn comes,
    /// or when so many were cancelled that a walk over all of them pays.
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
        if self.waiting.len() <= SWEPT_EACH * self.unswept {
            self.unswept = 0;
            self.remove_where(closed);
        } else {
            let mut gone = self.running.clone();
            gone.retain(|id| closed(&mut self.sequences[*id]));
            gone.into_iter().for_each(|id| self.remove(id));
        }
        self.statistics.add_closed(&counted);
    }

    /// Takes out every sequence that `gone` says is to go.
    pub(super) fn remove_where(&mut self, mut gone: impl FnMut(&mut Sequence) -> bool) {
        let Scheduler { sequences, cache, running, waiting, .. } = self;
        let mut stays = |id: &SequenceId| {
            let leaves = gone(&mut sequences[*id]);
            if leaves && let Some(mut sequence) = sequences.remove(*id) {
                sequence.leave(cache);
            }
            !leaves
        };
        running.retain(&mut stays);
        waiting.retain(&mut stays);
    }

    /// Takes out the sequences whose time is up, each after `expire` was called with it. How many.
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
            // One walk for all of them.
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

    /// Are so few running that drafts are worth their rows, and may somebody draft? A draft continues what is known:
    /// tokens that are being drawn are to be waited for before the next step is planned.
    pub(super) fn speculates(&self) -> bool {
        self.speculation == Speculation::PromptLookup
            && 2 * self.running.len() <= VERIFIED_ROWS
            && self.running.iter().any(|id| self.sequence(*id).may_draft())
    }

    /// Plans the next step. Pages for all rows of it are reserved.
    pub(super) fn plan(&mut self) -> &[Part] {
        self.parts.clear();
        self.preempted = false;
        let mut room = self.limits;
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
        self.plan_decoding(decoding, &mut room);
        self.plan_prompts(computing, &mut room);
        if !self.preempted {
            scores |= self.admit(&mut room);
        }
        if scores {
            // Those whose prompts are scored come first: their logits rows are then the first ones.
            let Scheduler { parts, sequences, .. } = self;
            let scores = |part: &Part| sequences[part.id].is_scoring();
            parts.sort_by_key(|part| !scores(part));
        }
        &self.parts
    }

    fn plan_decoding(&mut self, decoding: Vec<SequenceId>, room: &mut StepLimits) {
        let speculates = self.speculates();
        let max_drafts = if speculates { (VERIFIED_ROWS / decoding.len().max(1)).saturating_sub(1) } else { 0 };
        let count = decoding.len();
        for (index, id) in decoding.into_iter().enumerate() {
            if room.rows.min(room.logits_rows).min(room.sequences) == 0 {
                break;
            }
            if self.gave_way(id) {
                continue;
            }
            // Drafts take nothing from those that come after.
            let spare = room.rows.min(room.logits_rows).saturating_sub(count - index);
            let drafted = self.draft_for(id, max_drafts.min(spare));
            let start = self.sequence(id).computed();
            let granted = self.make_room(id, start + 1 + drafted, start + 1);
            if let Some(end) = granted {
                self.add(id, start..end, end - start - 1, room);
            }
        }
    }

    /// How many tokens the sequence drafts, up to `most`; the tokens themselves stay with it.
    fn draft_for(&mut self, id: SequenceId, most: usize) -> usize {
        if most == 0 {
            return 0;
        }
        let sequence = self.sequence_mut(id);
        let most = most.min(sequence.max_drafts());
        if !sequence.takes_drafts() || sequence.drawing.is_some() || most == 0 {
            return 0;
        }
        let mut lookup = sequence.lookup.take().unwrap_or_default();
        let drafted = lookup.draft(sequence.tokens(), most).len();
        sequence.lookup = Some(lookup);
        drafted
    }

    fn plan_prompts(&mut self, computing: Vec<SequenceId>, room: &mut StepLimits) {
        for id in computing {
            if !self.gave_way(id) {
                self.plan_chunk(id, room);
            }
        }
    }

    /// Gives a sequence as many of its remaining rows as there is room for.
    fn plan_chunk(&mut self, id: SequenceId, room: &mut StepLimits) {
        let sequence = self.sequence(id);
        let start = sequence.computed();
        let mut end = start + sequence.remaining().min(room.rows).min(room.prompt_rows);
        // What needs logits is a run of rows at the end.
        let too_many = sequence.logits_positions(&(start..end)).len().saturating_sub(room.logits_rows);
        end -= too_many;
        if end == start || room.sequences == 0 {
            return;
        }
        if let Some(end) = self.make_room(id, end, start + 1) {
            room.prompt_rows -= end - start;
            self.add(id, start..end, 0, room);
        }
    }

    fn add(&mut self, id: SequenceId, rows: Range<usize>, drafted: usize, room: &mut StepLimits) {
        let sequence = self.sequence(id);
        room.logits_rows -= sequence.logits_positions(&rows).len();
        room.rows -= rows.len();
        room.sequences -= 1;
        self.parts.push(Part { id, rows, drafted });
    }

    /// Was it preempted for an older one since this step's planning began?
    fn gave_way(&self, id: SequenceId) -> bool {
        self.preempted && !self.running.contains(&id)
    }

    /// Reserves pages for the sequence's positions up to `end`, or at least up to `least`, and says how far it went.
    /// Frees what the window hides, and preempts younger ones where pages are short; none where it had to give way
    /// itself.
    fn make_room(&mut self, id: SequenceId, end: usize, least: usize) -> Option<usize> {
        let sequence = self.sequences.get_mut(id)?;
        // Positions fit u32.
        sequence.blocks.evict(sequence.computed() as u32, &mut self.cache);
        loop {
            let Scheduler { sequences, cache, running, .. } = &mut *self;
            let sequence = sequences.get_mut(id)?;
            let most = sequence.blocks.max_end(cache) as usize;
            if most >= least {
                let end = end.min(most);
                return sequence.blocks.reserve(end as u32, cache).is_ok().then_some(end);
            }
            let youngest = running.last().copied()?;
            self.preempt(youngest);
            if youngest == id {
                return None;
            }
        }
    }

    /// Takes a running sequence's pages and sends it back to the head of the queue.
    fn preempt(&mut self, id: SequenceId) {
        self.preempted = true;
        self.statistics.preemptions += 1;
        self.parts.retain(|part| part.id != id);
        self.running.retain(|running| *running != id);
        if let Some(sequence) = self.sequences.get_mut(id) {
            sequence.leave(&mut self.cache);
        }
        self.waiting.push_front(id);
    }

    /// Lets waiting sequences in, in their order. Is the prompt of one of them scored?
    fn admit(&mut self, room: &mut StepLimits) -> bool {
        let (mut at, mut scores) = (0, false);
        while room.rows.min(room.prompt_rows).min(room.sequences) > 0 && self.running.len() < self.limits.sequences {
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
            if sequence.drawing.is_some() || self.waits_for_leader(sequence) {
                // Others may pass: it needs no room yet.
                at += 1;
                if at == MAX_PASSED {
                    break;
                }
                continue;
            }
            if sequence.is_scoring() && room.logits_rows == 0 || !self.enter(id) {
                break;
            }
            self.waiting.remove(at);
            scores |= self.sequence(id).is_scoring();
            let arrival = self.sequence(id).arrival;
            let place = self.running.partition_point(|running| self.sequence(*running).arrival < arrival);
            self.running.insert(place, id);
            self.plan_chunk(id, room);
            if self.preempted {
                break;
            }
        }
        scores
    }

    /// Does its leader still compute the prompt that it will find in the cache, or report on it, which comes first?
    fn waits_for_leader(&self, sequence: &Sequence) -> bool {
        let Some(leader) = sequence.leader else { return false };
        let waits = |leader: &Sequence| leader.is_scoring() || self.cache.keeps_prefixes() && !leader.has_prompt();
        self.get(leader).is_some_and(waits)
    }

    /// Takes what the cache has of the sequence's beginning; false, and nothing taken, where there are not enough pages
    /// for the rest.
    fn enter(&mut self, id: SequenceId) -> bool {
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
        let found = sequence.enter(cache);
        if let Some(group) = short_group(sequence, cache, running.is_empty()) {
            sequence.leave(cache);
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

    /// A queued sequence's block tables.
    pub(super) fn tables(&self, id: SequenceId) -> &[BlockTable] {
        self.sequence(id).blocks.as_slice()
    }

    /// The parts of the step planned last.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The statistics, with what stands at this moment.
    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages_available: self.cache.available(),
            ..self.statistics
        }
    }
}

/// The first group of the cache that has too few pages for a sequence that has just [entered](Sequence::enter).
fn short_group(sequence: &Sequence, cache: &PageCache, is_alone: bool) -> Option<usize> {
    let (size, positions) = (cache.page_size().get(), sequence.positions_to_enter() as u32);
    sequence.blocks.as_slice().iter().zip(cache.pools()).position(|(table, pool)| {
        // Chunks are made to fit, so the least that it needs at once is what one row at a time needs.
        let all = CacheGeometry::pages_for_sequence(size, positions, pool.window(), 1);
        let needed = all.saturating_sub(table.pages().len() as u32);
        // Some are left for those that run, so that the newcomer is not sent away at once.
        let spare = if is_alone { 0 } else { (pool.pages() / 64).max(1) };
        pool.available() < needed + spare
    })
}

#[cfg(test)]
mod tests;
