//! Every interleaving of a parallel region's atomics, as far as loom's bound on preemptions goes: no lost wake-up (loom
//! reports threads that wait for ever), no task done twice or in the wrong region, no access to a job that is not
//! ordered.

mod sync {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};

    /// Never spins: every wait sleeps, which is what is to be checked.
    pub(super) fn spin_until(ready: impl Fn() -> bool) -> bool {
        ready()
    }
}

#[allow(clippy::duplicate_mod, reason = "compiled once with loom's atomics")]
#[path = "parallel_region.rs"]
mod parallel_region;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use parallel_region::{Job, ParallelRegion};

/// Runs `check` with a region and workers, over all interleavings with up to `preemptions` of them.
fn explore(workers: usize, preemptions: usize, check: impl Fn(&ParallelRegion) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let region = Arc::new(ParallelRegion::new(workers));
        let handles: Vec<_> = (0..workers)
            .map(|index| {
                let region = region.clone();
                loom::thread::spawn(move || region.work(index))
            })
            .collect();
        check(&region);
        region.stop();
        for handle in handles {
            handle.join().unwrap();
        }
    });
}

/// One region of `tasks`, each of which must be done once before `wait` returns, on memory that ends with the region.
fn run(region: &ParallelRegion, tasks: usize) {
    unsafe fn count(data: *const (), _: usize, task: usize) {
        // SAFETY: what `run` lent.
        let done = unsafe { &*data.cast::<Vec<AtomicUsize>>() };
        done[task].fetch_add(1, Ordering::Relaxed);
    }
    let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    // SAFETY: `done` lives until the region was waited for.
    unsafe { region.open(Job { tasks, data: (&raw const done).cast(), call: count }) };
    region.help();
    region.wait();
    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
}

#[test]
fn no_wake_up_is_lost_and_no_task_strays_into_another_region() {
    explore(1, 2, |region| {
        run(region, 2);
        run(region, 3);
    });
}

#[test]
fn two_workers_do_each_task_once() {
    explore(2, 1, |region| run(region, 2));
}
