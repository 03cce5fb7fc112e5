//! A parallel region: tasks that a caller and its workers take from one counter, and the barrier at its end.
//!
//! The barrier waits for the tasks that were taken, not for threads. A worker that sleeps, or has lost its core to
//! another process, and holds no task delays nobody; it need not even notice that there was a region. This is safe
//! since what a region lends (its [`Job`]) is looked at by those alone who hold one of its tasks, and the region ends
//! when no task is held.
//!
//! Waiting threads spin for a few microseconds, then sleep. `model_check` tries the interleavings of this file's
//! atomics.

use super::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, UnsafeCell, fence, spin_until};

/// The work of one region.
#[derive(Clone, Copy)]
pub(super) struct Job {
    /// Number of tasks.
    pub(super) tasks: usize,
    /// The first argument of `call`.
    pub(super) data: *const (),
    /// Does the task of that number, as the thread of that index: the caller is 0, worker `i` is `i + 1`. Must not
    /// unwind.
    pub(super) call: unsafe fn(data: *const (), thread: usize, task: usize),
}

/// Apart from its neighbours by two cache lines, since CPUs fetch lines in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// One region after the other, of one caller and a fixed number of workers.
pub(super) struct ParallelRegion {
    tasks: Padded<Tasks>,
    /// Tasks of the open region that are not done.
    unfinished: Padded<AtomicUsize>,
    caller: Padded<Sleeper>,
    workers: Box<[Padded<Sleeper>]>,
    stopped: AtomicBool,
}

struct Tasks {
    /// Tasks of the open region that nobody has taken. Whoever lowers it has taken one.
    untaken: AtomicUsize,
    /// Written by the caller while no task is held, read by threads that hold one.
    job: UnsafeCell<Job>,
}

// SAFETY: what `Job::data` points to is used under the contract of `ParallelRegion::open`; all else is atomics and
// locks.
unsafe impl Send for ParallelRegion {}
// SAFETY: as above; `job` is written and read as documented there.
unsafe impl Sync for ParallelRegion {}

impl ParallelRegion {
    pub(super) fn new(workers: usize) -> ParallelRegion {
        unsafe fn nothing(_: *const (), _: usize, _: usize) {}
        ParallelRegion {
            tasks: Padded(Tasks {
                untaken: AtomicUsize::new(0),
                job: UnsafeCell::new(Job { tasks: 0, data: std::ptr::null(), call: nothing }),
            }),
            unfinished: Padded(AtomicUsize::new(0)),
            caller: Padded(Sleeper::new()),
            workers: (0..workers).map(|_| Padded(Sleeper::new())).collect(),
            stopped: AtomicBool::new(false),
        }
    }

    /// The caller begins a region and wakes the workers that sleep.
    ///
    /// # Safety
    /// One thread at a time is the caller. It opens the next region after [`ParallelRegion::wait`] for this one. Until
    /// then `job.call` may be called with `job.data` from any thread.
    pub(super) unsafe fn open(&self, job: Job) {
        // SAFETY: no task is held (the caller's promise), so nobody reads.
        self.tasks.0.job.with_mut(|slot| unsafe { *slot = job });
        self.unfinished.0.store(job.tasks, Ordering::Relaxed);
        // Release: whoever takes a task sees the two writes above.
        self.tasks.0.untaken.store(job.tasks, Ordering::Release);
        fence(Ordering::SeqCst); // for `Sleeper::wake`
        // The caller takes one itself.
        for Padded(worker) in self.workers.iter().take(job.tasks.saturating_sub(1)) {
            worker.wake();
        }
    }

    /// The caller does tasks of the region it opened until none is left to take.
    pub(super) fn help(&self) {
        self.run_tasks(0);
    }

    /// The barrier: the caller waits until every task is done, and sees what the tasks wrote.
    pub(super) fn wait(&self) {
        // Acquire: pairs with the release of each thread's last task.
        let finished = || self.unfinished.0.load(Ordering::Acquire) == 0;
        if !spin_until(finished) {
            self.caller.0.sleep_until(finished);
        }
    }

    /// The caller lets all workers return from [`ParallelRegion::work`].
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // for `Sleeper::wake`
        for Padded(worker) in &self.workers {
            worker.wake();
        }
    }

    /// What worker `index` does all its life.
    pub(super) fn work(&self, index: usize) {
        let stopped = || self.stopped.load(Ordering::Relaxed);
        let wanted = || stopped() || self.tasks.0.untaken.load(Ordering::Relaxed) > 0;
        loop {
            if !spin_until(wanted) {
                self.workers[index].0.sleep_until(wanted);
            }
            if stopped() {
                return;
            }
            self.run_tasks(index + 1);
        }
    }

    /// Does tasks as `thread` until none is left to take.
    fn run_tasks(&self, thread: usize) {
        let mut done = 0;
        while let Some((job, task)) = self.take() {
            // SAFETY: this thread holds the task, so the region is not over: the promise of `open`.
            unsafe { (job.call)(job.data, thread, task) };
            done += 1;
        }
        // Release: the caller, when it sees zero, sees what the tasks of all threads wrote.
        if done > 0 && self.unfinished.0.fetch_sub(done, Ordering::AcqRel) == done && thread != 0 {
            fence(Ordering::SeqCst); // for `Sleeper::wake`
            self.caller.0.wake();
        }
    }

    /// Takes a task of the region that is open at this moment. A thread that looked at an earlier one takes it all the
    /// same.
    fn take(&self) -> Option<(Job, usize)> {
        let untaken = &self.tasks.0.untaken;
        let mut left = untaken.load(Ordering::Relaxed);
        while left > 0 {
            // Acquire: the job that `open` wrote, which other takers' exchanges hand on.
            match untaken.compare_exchange_weak(left, left - 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    // SAFETY: it was written before, and stays while this task is held.
                    let job = self.tasks.0.job.with(|job| unsafe { *job });
                    return Some((job, job.tasks - left));
                }
                Err(now) => left = now,
            }
        }
        None
    }
}

/// Where one thread sleeps until others have made a condition true.
///
/// A wake-up is never lost: the sleeper announces itself and then looks at the condition, the waker makes it true and
/// then looks for the announcement, each with a fence in between, so that one of them sees the other.
struct Sleeper {
    /// Written under the lock.
    asleep: AtomicBool,
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Sleeper {
    fn new() -> Sleeper {
        Sleeper { asleep: AtomicBool::new(false), mutex: Mutex::new(()), condvar: Condvar::new() }
    }

    fn sleep_until(&self, ready: impl Fn() -> bool) {
        let mut guard = self.lock();
        loop {
            self.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if ready() {
                break;
            }
            guard = self.condvar.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the thread if it sleeps. The condition was made true before, with a `SeqCst` fence in between.
    fn wake(&self) {
        if self.asleep.load(Ordering::Relaxed) {
            // The sleeper holds the lock from its announcement until it waits: now it waits, or is awake.
            let guard = self.lock();
            let asleep = self.asleep.load(Ordering::Relaxed);
            // So that a thread that is slow to wake up is called once.
            self.asleep.store(false, Ordering::Relaxed);
            drop(guard);
            if asleep {
                self.condvar.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // Nobody panics while holding the lock, so that it may as well be poisoned.
        self.mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
