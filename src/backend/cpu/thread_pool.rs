//! The threads of the CPU backend: the caller's own and workers, which share the tasks of one parallel region after
//! another.
//!
//! A forward pass is some hundred short regions, so a region must cost no more than a microsecond when every thread has
//! a core, and not much more than one thread alone would take when other processes have the cores. For the first,
//! waiting threads spin for some microseconds before they sleep. For the second the caller works too, tasks go to
//! whoever is free, and the end of a region waits for tasks, not for threads (see `parallel_region`): a thread that has
//! lost its core delays the others by the one task that it may hold.

use std::any::Any;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::parallel_region::{Job, ParallelRegion};

/// The threads of one backend.
pub(crate) struct ThreadPool {
    region: Arc<ParallelRegion>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// A pool of `size` threads, of which one is whoever calls. The error is the operating system's.
    pub(crate) fn new(size: NonZeroUsize) -> std::io::Result<ThreadPool> {
        let workers = size.get() - 1;
        let mut pool = ThreadPool { region: Arc::new(ParallelRegion::new(workers)), workers: Vec::new() };
        for index in 0..workers {
            let region = pool.region.clone();
            let thread = std::thread::Builder::new().name(format!("rigel-cpu-{}", index + 1));
            pool.workers.push(thread.spawn(move || region.work(index))?);
        }
        Ok(pool)
    }

    /// Number of threads.
    pub(crate) fn size(&self) -> usize {
        self.workers.len() + 1
    }

    /// A parallel region: calls `body(thread, task)` for each task of `0..tasks` once, on any thread of the pool, whose
    /// index is below [`ThreadPool::size`], and returns when all are done. Tasks begin in ascending order. What a
    /// region wrote is seen by the next. A single task is the caller's.
    ///
    /// Exclusive, since two regions at once would use the same indices. A panic of `body` is passed on once the region
    /// has ended.
    pub(crate) fn parallel_for(&mut self, tasks: usize, body: impl Fn(usize, usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|task| body(0, task));
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
        self.region.help();
        self.region.wait();
        if let Some(payload) = panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            resume_unwind(payload);
        }
    }

    /// [`ThreadPool::parallel_for`] over the rows `0..rows`, `rows_per_task` neighbours to a task.
    pub(crate) fn parallel_for_rows(&mut self, rows: usize, rows_per_task: usize, body: impl Fn(Range<usize>) + Sync) {
        self.parallel_for(rows.div_ceil(rows_per_task), |_, task| {
            body(task * rows_per_task..rows.min((task + 1) * rows_per_task));
        });
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.region.stop();
        for worker in self.workers.drain(..) {
            // A worker does not panic: see `parallel_for`.
            let _ = worker.join();
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
    fn a_region_ends_though_no_worker_ever_comes() {
        // What a worker without a core is to the caller: none of the three has a thread.
        let region = ParallelRegion::new(3);
        let ran = AtomicU32::new(0);
        let body = |thread: usize, _: usize| {
            assert_eq!(thread, 0);
            ran.fetch_add(1, Ordering::Relaxed);
        };
        for _ in 0..100 {
            // SAFETY: `body` outlives the region, and one thread opens them one after the other.
            unsafe { region.open(job(10, &body)) };
            region.help();
            region.wait();
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
}
