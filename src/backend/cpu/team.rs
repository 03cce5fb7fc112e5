//! A team of threads that walks through one program together.
//!
//! A forward pass is some hundred short phases. Handing each to a thread pool and waiting for it would cost more
//! than a small model's arithmetic, so the whole team runs the whole pass ([`Team::run`]) and meets at the end of
//! each phase ([`Member::share`]). Within a phase, pieces go to whoever is free: a thread that lost its core to
//! another process delays the others by one piece at most.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Spins before a waiting thread gives its core away: a few microseconds, longer than most phases differ.
const SPINS: u32 = 4096;

/// The threads of one backend.
pub(crate) struct Team {
    /// `None` for a team of one, which is the calling thread.
    pool: Option<ThreadPool>,
    size: usize,
}

/// What the members of a running team share.
struct Shared {
    size: usize,
    /// Next piece of the phase that is under way.
    next: AtomicUsize,
    arrived: AtomicUsize,
    /// Phases ended so far.
    phase: AtomicUsize,
    /// A member panicked: nobody waits for it.
    broken: AtomicBool,
}

/// One thread of a running team.
pub(crate) struct Member<'a> {
    shared: &'a Shared,
    index: usize,
    phase: usize,
}

impl Team {
    /// A team of `size` threads. The error is the thread pool's.
    pub(crate) fn new(size: NonZeroUsize) -> Result<Team, rayon::ThreadPoolBuildError> {
        let size = size.get();
        let pool = match size {
            1 => None,
            _ => Some(ThreadPoolBuilder::new().num_threads(size).thread_name(|i| format!("rigel-cpu-{i}")).build()?),
        };
        Ok(Team { pool, size })
    }

    /// Number of threads.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Runs `program` on every thread of the team; returns when all are through. Every member must go through the
    /// same phases. Exclusive, since two programs at once would wait for each other's threads.
    pub(crate) fn run(&mut self, program: impl Fn(&mut Member<'_>) + Sync) {
        let shared = Shared {
            size: self.size,
            next: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        };
        match &self.pool {
            None => program(&mut Member { shared: &shared, index: 0, phase: 0 }),
            Some(pool) => {
                pool.broadcast(|context| program(&mut Member { shared: &shared, index: context.index(), phase: 0 }));
            }
        }
    }
}

impl Member<'_> {
    /// Which thread of the team this is.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// One phase: does the pieces `0..pieces` together with the others, each piece once, and returns when all of
    /// them are done. What was written in a phase is seen in the next.
    pub(crate) fn share(&mut self, pieces: usize, mut piece: impl FnMut(usize)) {
        loop {
            let next = self.shared.next.fetch_add(1, Ordering::Relaxed);
            if next >= pieces {
                break;
            }
            piece(next);
        }
        self.meet();
    }

    /// [`Member::share`] over the rows `0..rows`, `at_once` neighbours to a piece.
    pub(crate) fn share_rows(&mut self, rows: usize, at_once: usize, mut piece: impl FnMut(Range<usize>)) {
        self.share(rows.div_ceil(at_once), |i| piece(i * at_once..rows.min((i + 1) * at_once)));
    }

    fn meet(&mut self) {
        let shared = self.shared;
        self.phase += 1;
        // The last to arrive resets what the phase used, when nobody uses it any more, and opens the next phase.
        // Release and Acquire order all writes of this phase before all reads of the next.
        if shared.arrived.fetch_add(1, Ordering::AcqRel) + 1 == shared.size {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.next.store(0, Ordering::Relaxed);
            shared.phase.store(self.phase, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while shared.phase.load(Ordering::Acquire) < self.phase {
            if shared.broken.load(Ordering::Relaxed) {
                panic!("another thread of the CPU backend panicked");
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.broken.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_piece_is_done_once_and_before_the_next_phase() {
        for size in 1..=4 {
            let mut team = Team::new(NonZeroUsize::new(size).unwrap()).unwrap();
            for pieces in [0, 1, 3, 100] {
                let done: Vec<AtomicU32> = (0..pieces).map(|_| AtomicU32::new(0)).collect();
                team.run(|member| {
                    for phase in 0..50 {
                        member.share(pieces, |i| {
                            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) >= phase));
                            done[i].fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn a_panic_ends_the_run_for_all() {
        let mut team = Team::new(NonZeroUsize::new(3).unwrap()).unwrap();
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.run(|member| {
                member.share(1, |_| panic!("on purpose"));
                member.share(1, |_| {});
            })
        }));
        assert!(run.is_err());
        let ran = AtomicU32::new(0);
        team.run(|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 3);
    }
}
