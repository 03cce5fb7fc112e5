//! The synchronisation that [`super::parallel_region`] is built from: the standard library's. `model_check` compiles
//! that module a second time with loom's in this module's place.

use std::time::{Duration, Instant};

pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};

/// How long a waiting thread spins before it sleeps: longer than most waits where every thread has a core, and short
/// beside the time for which another process could use this one.
const SPIN: Duration = Duration::from_micros(5);
/// Looks at the condition between two looks at the clock.
const LOOKS: u32 = 16;

/// A cell that threads share; who may use it when is up to them.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Calls `f` with a pointer to read through.
    pub(super) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Calls `f` with a pointer to write through.
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Spins until `ready` for a while; returns `true` if it came.
pub(super) fn spin_until(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return false;
        }
    }
}
