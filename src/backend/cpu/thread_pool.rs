//! The threads of the CPU backend: the caller's own and workers, which share the tasks of one parallel region after
//! another.
//!
//! A forward pass is some hundred short regions, so a region must cost no more than a microsecond when every thread has a
//! core, and not much more than one thread alone would take when other processes have the cores. For the first, waiting
//! threads spin for some microseconds before they sleep. For the second there are three measures:
//!
//! * The caller works too, and the end of a region waits for tasks, not for threads (see `parallel_region`).
//! * Tasks go to whoever is free.
//! * A thread that lost its core while it held a task makes the others wait for a slice of the scheduler's time. Then a
//!   worker rests for a while ([`Rest`]): such waits cannot be avoided, but they can be kept rare.

use std::any::Any;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::parallel_region::{Job, ParallelRegion, Share};

/// The threads of one backend.
pub(crate) struct ThreadPool {
    region: Arc<ParallelRegion>,
    workers: Vec<Worker>,
    /// Workers that rest.
    resting: usize,
}

struct Worker {
    /// `None` once it was joined.
    thread: Option<JoinHandle<()>>,
    rest: Rest,
}

/// A region's times.
struct Times {
    caller: Share,
    /// The worker that finished last.
    worker: usize,
    last: Share,
    /// When the caller went on.
    ended: Instant,
}

impl ThreadPool {
    /// A pool of `size` threads, of which one is whoever calls. The error is the operating system's.
    pub(crate) fn new(size: NonZeroUsize) -> std::io::Result<ThreadPool> {
        let region = Arc::new(ParallelRegion::new(size.get() - 1));
        let mut pool = ThreadPool { region, workers: Vec::new(), resting: 0 };
        for index in 0..size.get() - 1 {
            let region = pool.region.clone();
            let thread = std::thread::Builder::new().name(format!("rigel-cpu-{}", index + 1));
            let thread = Some(thread.spawn(move || region.work(index))?);
            pool.workers.push(Worker { thread, rest: Rest::default() });
        }
        Ok(pool)
    }

    /// Number of threads.
    pub(crate) fn size(&self) -> usize {
        self.workers.len() + 1
    }

    /// A parallel region: calls `body(thread, task)` for each task of `0..tasks` once, on any thread of the pool, whose
    /// index is below [`ThreadPool::size`], and returns when all are done. Tasks begin in ascending order, and take about as
    /// long as each other: a thread that takes many times as long is thought to have lost its core. What a region wrote is
    /// seen by the next.
    ///
    /// Exclusive, since two regions at once would use the same indices. A panic of `body` is passed on once the region
    /// has ended.
    pub(crate) fn parallel_for(&mut self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        if let Some(region) = self.run(tasks, body) {
            self.judge(region);
        }
    }

    /// [`ThreadPool::parallel_for`] whose tasks may take any time.
    pub(crate) fn parallel_for_uneven(&mut self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        self.run(tasks, body);
    }

    /// Runs a region. Returns its times if both the caller and a worker did tasks.
    fn run(&mut self, tasks: usize, body: impl Fn(usize, usize) + Sync) -> Option<Times> {
        if tasks > 1 && self.resting > 0 {
            self.end_rests(Instant::now());
        }
        if tasks <= 1 || self.resting == self.workers.len() {
            (0..tasks).for_each(|task| body(0, task));
            return None;
        }
        let panic: Mutex<Option<Box<dyn Any + Send>>> = Mutex::new(None);
        let body = |thread, task| {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| body(thread, task))) {
                panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(payload);
            }
        };
        // SAFETY: `body` catches panics, may be called from any thread, and lives until the region was waited for;
        // `self` is borrowed exclusively, so there is one region at a time.
        unsafe { self.region.open(job(tasks, &body)) };
        let caller = self.region.help();
        let waited = !self.region.is_finished();
        self.region.wait();
        if let Some(payload) = panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            resume_unwind(payload);
        }
        let (caller, (worker, last)) = (caller?, self.region.last_worker()?);
        let ended = if waited { Instant::now() } else { caller.finished };
        Some(Times { caller, worker, last, ended })
    }

    /// [`ThreadPool::parallel_for`] over the rows `0..rows`, `rows_per_task` neighbours to a task.
    pub(crate) fn parallel_for_rows(&mut self, rows: usize, rows_per_task: usize, body: impl Fn(Range<usize>) + Sync) {
        self.parallel_for(rows.div_ceil(rows_per_task), |_, task| {
            body(task * rows_per_task..rows.min((task + 1) * rows_per_task));
        });
    }

    /// Lets the last worker rest if the caller waited too long for it. Or it for the caller: then the caller lost its core,
    /// and one thread fewer may leave it one.
    fn judge(&mut self, Times { caller, worker, last, ended }: Times) {
        let for_worker = ended - caller.finished;
        let for_caller = caller.finished.saturating_duration_since(last.finished);
        let late = for_worker > patience(caller) || for_caller > patience(last);
        if late && self.workers[worker].rest.begin(for_worker.max(for_caller), ended) {
            self.resting += 1;
            self.region.set_resting(worker, true);
            tracing::trace!("worker {worker} rests: {for_worker:?} waited for it, {for_caller:?} for the caller");
        }
    }

    /// Calls those back whose rest is over.
    fn end_rests(&mut self, now: Instant) {
        for (index, worker) in self.workers.iter_mut().enumerate() {
            if worker.rest.end(now) {
                self.resting -= 1;
                self.region.set_resting(index, false);
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.region.stop();
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A worker does not panic: see `parallel_for`.
                let _ = thread.join();
            }
        }
    }
}

fn job<F: Fn(usize, usize) + Sync>(tasks: usize, body: &F) -> Job {
    unsafe fn call<F: Fn(usize, usize)>(data: *const (), thread: usize, task: usize) {
        // SAFETY: `data` is the `body` below, which lives while the region is open.
        unsafe { (*data.cast::<F>())(thread, task) }
    }
    Job { tasks, data: std::ptr::from_ref(body).cast(), call: call::<F> }
}

/// Below any slice of a scheduler's time, above what a wake-up takes.
const MIN_WAIT: Duration = Duration::from_micros(500);

/// How long a thread that has done its share may wait for the last of the others before that one can be said to have lost
/// its core. With a core it needs a task's time at most, and tasks of one region differ by a small factor.
fn patience(share: Share) -> Duration {
    MIN_WAIT + 4 * share.busy / u32::try_from(share.done).unwrap_or(u32::MAX)
}

/// When a worker rests. Each rest is many times as long as the wait that led to it; a worker that comes late again soon
/// after is one whose core is taken for longer, and rests for twice as long. So waits take a small part of the time, and
/// a core that has become free is used again within [`MAX_REST`].
#[derive(Debug, Default)]
struct Rest {
    /// Of the last rest.
    length: Duration,
    /// `None` if it does not rest.
    until: Option<Instant>,
    /// When the last rest ended.
    ended: Option<Instant>,
}

/// A rest to the wait that led to it.
const REST_TO_WAIT: u32 = 8;
const MAX_REST: Duration = Duration::from_secs(1);

impl Rest {
    /// Begins at `now`; returns `false` if it had begun before.
    fn begin(&mut self, waited: Duration, now: Instant) -> bool {
        if self.until.is_some() {
            return false;
        }
        let again = self.ended.is_some_and(|ended| now.saturating_duration_since(ended) < self.length);
        let doubled = if again { 2 * self.length } else { Duration::ZERO };
        self.length = (REST_TO_WAIT * waited).max(doubled).min(MAX_REST);
        self.until = Some(now + self.length);
        true
    }

    /// Returns `true` if it ends at `now`.
    fn end(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
            self.ended = Some(now);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn pool(size: usize) -> ThreadPool {
        ThreadPool::new(NonZeroUsize::new(size).unwrap()).unwrap()
    }

    #[test]
    fn every_task_is_done_once_and_before_the_next_region() {
        for size in 1..=4 {
            let mut pool = pool(size);
            for tasks in [0, 1, 3, 100] {
                let done: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                for region in 0..50 {
                    pool.parallel_for(tasks, |thread, task| {
                        assert!(thread < size);
                        assert!(done.iter().all(|done| done.load(Ordering::Relaxed) >= region));
                        done[task].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn two_tasks_of_one_thread_are_never_under_way_at_once() {
        let mut pool = pool(3);
        let busy: [AtomicU32; 3] = Default::default();
        for _ in 0..200 {
            pool.parallel_for(20, |thread, _| {
                assert_eq!(busy[thread].fetch_add(1, Ordering::Relaxed), 0);
                std::hint::spin_loop();
                busy[thread].fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    #[test]
    fn a_panic_ends_the_region_for_all() {
        // On whatever thread: the others wait in their tasks until one has panicked.
        for panics_in_caller in [true, false] {
            let mut pool = pool(3);
            let panicked = AtomicU32::new(0);
            let region = catch_unwind(AssertUnwindSafe(|| {
                pool.parallel_for(8, |thread, _| {
                    if (thread == 0) == panics_in_caller {
                        panicked.fetch_add(1, Ordering::Relaxed);
                        panic!("on purpose");
                    }
                    while panicked.load(Ordering::Relaxed) == 0 {
                        std::thread::yield_now();
                    }
                })
            }));
            assert_eq!(region.unwrap_err().downcast_ref(), Some(&"on purpose"));
            let ran = AtomicU32::new(0);
            pool.parallel_for(3, |_, _| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.into_inner(), 3);
        }
    }

    #[test]
    fn a_region_ends_though_a_worker_never_comes() {
        let mut pool = pool(2);
        pool.region.set_resting(0, true);
        let ran = AtomicU32::new(0);
        for _ in 0..100 {
            pool.parallel_for(10, |thread, _| {
                assert_eq!(thread, 0);
                ran.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(ran.into_inner(), 1000);
    }

    #[test]
    fn pools_beside_each_other_all_go_on() {
        // Two engines in one process, with more threads than any machine of the tests has cores for both.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut pool = pool(8);
                    let ran = AtomicU32::new(0);
                    for _ in 0..100 {
                        pool.parallel_for(16, |_, _| {
                            ran.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    assert_eq!(ran.into_inner(), 1600);
                });
            }
        });
    }

    #[test]
    fn a_worker_that_keeps_the_caller_waiting_rests_and_comes_back() {
        let mut pool = pool(2);
        // The caller's task ends when the worker's has begun, and that takes much longer. On a machine that is busy with
        // other things the caller may be just as late: then once more.
        let region = |pool: &mut ThreadPool, uneven: bool| {
            let begun = AtomicU32::new(0);
            let start = Instant::now();
            let body = |thread: usize, _: usize| {
                if thread == 1 {
                    begun.store(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5) + 10 * start.elapsed());
                }
                while begun.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
            };
            if uneven { pool.parallel_for_uneven(2, body) } else { pool.parallel_for(2, body) }
        };
        for _ in 0..5 {
            region(&mut pool, true);
            assert_eq!(pool.resting, 0, "tasks that may take any time say nothing");
        }
        let rests = (0..1000).any(|_| {
            region(&mut pool, false);
            pool.resting == 1
        });
        assert!(rests);
        // Without the worker, then with it again.
        while pool.resting == 1 {
            pool.parallel_for(2, |_, _| {});
        }
        region(&mut pool, true);
    }

    #[test]
    fn a_late_worker_rests_for_longer_each_time_and_comes_back() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut rest = Rest::default();
        let mut now = start;
        for length in [24, 48, 96, 192, 384, 768, 1000, 1000] {
            assert!(rest.begin(ms(3), now));
            assert!(!rest.begin(ms(3), now), "rests already");
            assert!(!rest.end(now + ms(length - 1)));
            now += ms(length);
            assert!(rest.end(now), "after {length} ms");
            assert!(!rest.end(now));
            now += ms(1);
        }
        // It did its work for as long as it had rested: forgiven.
        now += ms(1000);
        assert!(rest.begin(ms(3), now));
        assert!(rest.end(now + ms(24)));
    }

    #[test]
    fn patience_is_some_tasks_time() {
        let us = Duration::from_micros;
        let share = |busy, done| Share { done, busy, finished: Instant::now() };
        assert_eq!(patience(share(us(10), 10)), us(504));
        assert_eq!(patience(share(us(2000), 2)), us(4500));
    }
}
