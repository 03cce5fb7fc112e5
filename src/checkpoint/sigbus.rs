//! SIGBUS, which a mapped file raises when pages of it are gone: truncated by somebody, or lost by a disk or a server.
//! The process cannot go on, but it can say which file it was.
//!
//! A handler may call next to nothing and take no lock, so all that it needs is laid out before: a list of slots that
//! only grows, each with the address range of a mapping and the text about it, in atomics. A slot whose mapping is gone
//! holds an empty range and is used again.

/// From here on a SIGBUS from a mapped weight file ends the process with a line on stderr, `error: FILE: …; ADVICE`,
/// and the exit code 128 + SIGBUS, 135 on Linux. Any other SIGBUS goes to the handler that was there before.
///
/// For programs: a library that embeds this one leaves signals to its program. The handler is installed with the first
/// file that is mapped, or now if there is one. A second call does nothing. Where there is no SIGBUS, nothing happens:
/// on Windows a mapped file cannot be truncated.
pub fn name_files_on_sigbus(advice: &'static str) {
    imp::name_files(advice);
}

pub(super) use imp::NamedRange;

#[cfg(not(unix))]
mod imp {
    use std::ops::Range;

    /// Nothing.
    pub(in super::super) struct NamedRange;

    impl NamedRange {
        pub fn new(_: Range<*const u8>, _: &str) -> NamedRange {
            NamedRange
        }
    }

    pub fn name_files(_: &'static str) {}
}

#[cfg(unix)]
mod imp {
    use std::ops::Range;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};
    use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

    /// Bytes of a text; a longer path loses its beginning.
    const TEXT: usize = 1024;

    const WHAT: &str = "a page of this file can no longer be read: the file was truncated or replaced in place, or its disk \
                        or server failed";

    /// The range of a mapping, and what to say about it. Written under the lock, read by the handler at any time.
    struct Slot {
        start: AtomicUsize,
        /// `start` where there is no mapping.
        end: AtomicUsize,
        length: AtomicUsize,
        text: [AtomicU8; TEXT],
        /// Set before the slot is put into the list, and then never.
        next: *const Slot,
    }

    // SAFETY: `next` is written before the slot is shared and points to a slot that is never freed; the rest is atomic.
    unsafe impl Send for Slot {}
    // SAFETY: as above.
    unsafe impl Sync for Slot {}

    /// The last slot that was made; slots are never freed.
    static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
    /// Slots without a mapping. Whoever holds the lock may write slots.
    static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
    /// What to do, once names were asked for.
    static ADVICE: OnceLock<&'static str> = OnceLock::new();
    /// What was done about SIGBUS before.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
    static INSTALL: Once = Once::new();

    /// Stands for a mapping in the list, for as long as it lives; to be dropped before the mapping is undone.
    pub(in super::super) struct NamedRange(&'static Slot);

    fn free() -> MutexGuard<'static, Vec<&'static Slot>> {
        FREE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl NamedRange {
        /// Enters the mapped bytes `range` of `file`.
        pub fn new(range: Range<*const u8>, file: &str) -> NamedRange {
            let mut free = free();
            let slot = free.pop().unwrap_or_else(add_slot);
            let text = text(file);
            for (slot, byte) in slot.text.iter().zip(text.as_bytes()) {
                slot.store(*byte, Ordering::Relaxed);
            }
            slot.length.store(text.len(), Ordering::Relaxed);
            slot.start.store(range.start as usize, Ordering::Relaxed);
            // The text is there for whoever sees the end.
            slot.end.store(range.end as usize, Ordering::Release);
            drop(free);
            if ADVICE.get().is_some() {
                install();
            }
            NamedRange(slot)
        }
    }

    impl Drop for NamedRange {
        fn drop(&mut self) {
            let mut free = free();
            self.0.end.store(0, Ordering::Release);
            free.push(self.0);
        }
    }

    /// A slot in the list; the caller holds the lock.
    fn add_slot() -> &'static Slot {
        let slot = Box::leak(Box::new(Slot {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            text: [const { AtomicU8::new(0) }; TEXT],
            next: SLOTS.load(Ordering::Relaxed),
        }));
        SLOTS.store(slot, Ordering::Release);
        slot
    }

    /// The line without its end, one line whatever the file is called.
    fn text(file: &str) -> String {
        let mut name: String = file.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let room = TEXT - "error: …: ".len() - WHAT.len();
        if name.len() > room {
            let cut = (name.len() - room..).find(|at| name.is_char_boundary(*at)).unwrap_or(name.len());
            name = format!("…{}", &name[cut..]);
        }
        format!("error: {name}: {WHAT}")
    }

    pub fn name_files(advice: &'static str) {
        let _ = ADVICE.set(advice);
        if !SLOTS.load(Ordering::Acquire).is_null() {
            install();
        }
    }

    /// Installs the handler, once a process.
    fn install() {
        INSTALL.call_once(|| {
            // SAFETY: a sigaction is plain numbers, for which zeros are valid.
            let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: asks for the action alone, into a place of its type.
            if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) } != 0 {
                return tracing::debug!("no handler for SIGBUS: {}", std::io::Error::last_os_error());
            }
            // In its place before the handler can ask for it.
            let _ = PREVIOUS.set(previous);
            // SAFETY: as above.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
            // On the thread's signal stack where it has one: the handler before it may be that of a stack overflow.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: `action` is whole: a handler of three arguments, as its flags say, and a set that is emptied
            // here.
            let installed = unsafe {
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(libc::SIGBUS, &action, ptr::null_mut())
            };
            if installed != 0 {
                tracing::debug!("no handler for SIGBUS: {}", std::io::Error::last_os_error());
            }
        });
    }

    /// Is async-signal-safe: reads atomics, and calls write, pause, _exit, sigaction and raise alone.
    extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the system calls a handler with SA_SIGINFO with a valid siginfo, which has an address for SIGBUS.
        let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
        match find(address).filter(|_| is_of_a_file(code)) {
            Some(slot) => end(slot),
            None => pass_on(signal, info, context),
        }
    }

    /// Not sent by a process, and no broken memory.
    fn is_of_a_file(code: libc::c_int) -> bool {
        #[cfg(target_os = "linux")]
        let broken = code == libc::BUS_MCEERR_AR || code == libc::BUS_MCEERR_AO;
        #[cfg(not(target_os = "linux"))]
        let broken = false;
        code > 0 && !broken
    }

    /// The slot of the mapping that holds `address`.
    fn find(address: usize) -> Option<&'static Slot> {
        let mut next: *const Slot = SLOTS.load(Ordering::Acquire);
        // SAFETY: a pointer of the list is null or to a slot, and no slot is ever freed.
        while let Some(slot) = unsafe { next.as_ref() } {
            let end = slot.end.load(Ordering::Acquire);
            if address < end && slot.start.load(Ordering::Relaxed) <= address {
                return Some(slot);
            }
            next = slot.next;
        }
        None
    }

    /// Prints the slot's line and ends the process.
    fn end(slot: &Slot) -> ! {
        static SAID: AtomicBool = AtomicBool::new(false);
        if SAID.swap(true, Ordering::Relaxed) {
            // Another thread has found the same, and is about to end this one too.
            loop {
                // SAFETY: takes nothing, gives nothing.
                unsafe { libc::pause() };
            }
        }
        let length = slot.length.load(Ordering::Relaxed).min(TEXT);
        // One call, so that no other thread's output comes between; the system reads the text, which nobody writes
        // while its mapping lives.
        let advice = ADVICE.get().copied().unwrap_or("");
        let mut parts = [slot.text.as_ptr().cast::<u8>(), "; ".as_ptr(), advice.as_ptr(), "\n".as_ptr()]
            .map(|start| libc::iovec { iov_base: start.cast_mut().cast(), iov_len: 1 });
        parts[0].iov_len = length;
        parts[1].iov_len = if advice.is_empty() { 0 } else { 2 };
        parts[2].iov_len = advice.len();
        // SAFETY: each part is readable for its length: 1 is that of the last. Nothing runs after _exit.
        unsafe {
            libc::writev(libc::STDERR_FILENO, parts.as_ptr(), parts.len() as libc::c_int);
            libc::_exit(128 + libc::SIGBUS)
        }
    }

    /// Does what would have been done without this handler.
    fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let previous = PREVIOUS.get();
        match previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction) {
            // For a signal that a process sent; the system does not let the other kind be ignored.
            libc::SIG_IGN => {}
            libc::SIG_DFL => {
                // SAFETY: zeros are the default action without flags. The signal is blocked until this handler returns,
                // and then ends the process.
                unsafe {
                    let action: libc::sigaction = std::mem::zeroed();
                    libc::sigaction(signal, &action, ptr::null_mut());
                    libc::raise(signal);
                }
            }
            handler if previous.is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0) => {
                // SAFETY: the system had it as a handler of these three arguments.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            }
            handler => {
                // SAFETY: the system had it as a handler of the signal's number alone.
                let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// The text of whatever holds `address`.
        fn said(address: usize) -> Option<String> {
            let slot = find(address)?;
            let bytes = slot.text[..slot.length.load(Ordering::Relaxed)].iter();
            Some(String::from_utf8(bytes.map(|byte| byte.load(Ordering::Relaxed)).collect()).unwrap())
        }

        #[test]
        fn addresses_find_the_file_that_is_mapped_there() {
            // Where nothing is ever mapped, in this process or another: above the addresses of user space.
            const HIGH: usize = usize::MAX / 4 * 3;
            let range = |start: usize, bytes: usize| (start as *const u8)..((start + bytes) as *const u8);
            let one = NamedRange::new(range(HIGH, 0x1000), "one");
            let two = NamedRange::new(range(HIGH + 0x1000, 0x2000), "two\nlines");
            assert_eq!(said(HIGH).unwrap(), format!("error: one: {WHAT}"));
            assert_eq!(said(HIGH + 0xfff).unwrap(), format!("error: one: {WHAT}"));
            assert_eq!(said(HIGH + 0x1000).unwrap(), format!("error: two?lines: {WHAT}"));
            for outside in [0, HIGH - 1, HIGH + 0x3000] {
                assert_eq!(said(outside), None, "{outside:x}");
            }
            drop(one);
            assert_eq!(said(HIGH), None);
            assert!(said(HIGH + 0x2fff).is_some());
            drop(two);
            // Slots are used again.
            let three = NamedRange::new(range(HIGH, 0x10), "three");
            assert_eq!(said(HIGH).unwrap(), format!("error: three: {WHAT}"));
            drop(three);
            assert_eq!(said(HIGH), None);
        }

        #[test]
        fn a_long_path_keeps_its_end() {
            let text = text(&format!("{}/model.safetensors", "é".repeat(TEXT)));
            assert!(text.len() <= TEXT && text.len() > TEXT - 4, "{}", text.len());
            assert!(text.starts_with("error: …é") && text.contains("é/model.safetensors: a page "), "{text}");
        }
    }
}
