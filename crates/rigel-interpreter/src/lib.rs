//! Runs Rigel's CUDA kernels on the CPU, under checks that hardware does not make.
//!
//! This crate builds a library that stands in for the CUDA driver: the same `.cu` files compiled by the host compiler,
//! with a model for each PTX instruction, behind the driver API's own entry points. A test calls [`Interpreter::load`]
//! first; whatever it then runs through the driver API (cudarc, Rigel's `backend::cuda`) runs here. It knows nothing of
//! models or tensors, and no program outside of tests uses it.
//!
//! A launch whose checks fail makes the next synchronisation return `CUDA_ERROR_LAUNCH_FAILED`; the text is in
//! [`Interpreter::reports`] and on stderr. See docs/interpreter.md for how to read it. Kernels of other projects are
//! compiled in from the folders that `RIGEL_INTERPRETER_KERNELS` names when this crate is built: see README.md.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The path of the stand-in library.
pub const LIBRARY: &str = env!("RIGEL_INTERPRETER_LIBRARY");

/// What the stand-in driver says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceProfile {
    /// Compute capability 7.5, which Rigel is too new for.
    Sm75,
    /// Compute capability 8.0: 108 SMs, 163 KiB of shared memory for a block.
    Sm80,
    /// Compute capability 8.6: 84 SMs, 99 KiB.
    Sm86,
    /// Compute capability 9.0: 132 SMs, 227 KiB. The default.
    Sm90,
    /// A driver that finds no device.
    NoDevice,
    /// A driver that reports this version (`12040` is CUDA 12.4) and refuses images of a newer toolkit.
    OldDriver { version: i32 },
    /// A library that is only there to link against: `cuInit` fails.
    StubLibrary,
    /// Compute capability 9.0 with this much memory, in bytes. The other profiles have 4 GiB.
    Memory { bytes: u64 },
}

/// When asynchronous copies move their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncPolicy {
    /// At the wait that they must be finished by. The default.
    Late = 0,
    /// When they are issued.
    Eager = 1,
    /// Each at either, drawn from the seed.
    Random = 2,
}

/// What one launch did to global memory, and more. Shared memory is not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchCounters {
    /// The kernel's name.
    pub kernel: String,
    /// Distinct bytes read: what a launch with a perfect cache moves from memory. Declared bytes are compared to these.
    pub bytes_read: u64,
    /// Distinct bytes written.
    pub bytes_written: u64,
    /// The sum over all reads; above `bytes_read` where data are read again and the caches must help.
    pub requested_read: u64,
    /// The sum over all writes.
    pub requested_written: u64,
    /// `mma.sync` instructions, counted once a warp.
    pub matrix_instructions: u64,
    /// Barriers opened.
    pub barriers: u64,
    /// Rows that `ldmatrix` read.
    pub matrix_load_rows: u64,
    /// Those of them that share banks with an earlier row of their matrix: each costs another pass.
    pub matrix_load_conflicts: u64,
    /// Rows that `stmatrix` wrote.
    pub matrix_store_rows: u64,
    /// Those of them that share banks with an earlier row of their matrix.
    pub matrix_store_conflicts: u64,
    /// `wgmma` instructions, counted once a warpgroup.
    pub warpgroup_instructions: u64,
    /// Whether it was launched with the attribute of programmatic dependent launch.
    pub programmatic: bool,
    /// The preferred shared-memory carve-out that it was launched with, in percent.
    pub carveout: Option<u32>,
    /// Whether it was launched into a recording, and ran as a node of a graph.
    pub recorded: bool,
}

#[repr(C)]
struct RawCounters {
    values: [u64; 14],
    kernel: [c_char; 128],
}

/// The loaded stand-in. One per process: settings and reports are shared by all of its threads.
pub struct Interpreter {
    library: Library,
}

/// Declares the control functions with the types that cpp/control.cpp gives them.
macro_rules! control {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, $($argument: $type),*) -> $result {
            // SAFETY: the symbol's type is as in cpp/control.cpp, which is built together with this file; the functions
            // take the interpreter's lock and accept any values, and pointers come from references of this file.
            unsafe {
                let function = self
                    .library
                    .get::<unsafe extern "C" fn($($type),*) -> $result>(concat!("rigel_interpreter_", stringify!($name)))
                    .unwrap_or_else(|error| panic!("the stand-in library is not of this build: {error}"));
                function($($argument),*)
            }
        }
    )*};
}

impl Interpreter {
    control! {
        play_device(compute_capability: u32) -> i32;
        play_driver(version: i32, init_result: i32) -> ();
        set_memory(bytes: u64) -> ();
        set_seed_raw(seed: u64) -> ();
        set_async_raw(policy: u32) -> ();
        launches() -> u64;
        counters_of(launch: u64, out: *mut RawCounters) -> i32;
        clear_counters_raw() -> ();
        allocated_bytes_raw() -> u64;
        report_count() -> u64;
        report_text(index: u64, text: *mut u8, capacity: u64) -> u64;
        forget_errors_raw() -> ();
        refuse_raw(call: *const c_char, error: i32) -> ();
    }

    /// Loads the stand-in, so that the process has it in place of a driver from here on. Must come before the first use
    /// of cudarc; later calls return the same one.
    ///
    /// # Panics
    /// When the library cannot be loaded: it is built with this crate, so that is a broken build.
    pub fn load() -> &'static Interpreter {
        static LOADED: OnceLock<Interpreter> = OnceLock::new();
        LOADED.get_or_init(|| {
            // SAFETY: the library is the one this crate built; its constructors only register kernels.
            let library = unsafe { Library::open(Some(LIBRARY), RTLD_NOW | RTLD_GLOBAL) }
                .unwrap_or_else(|error| panic!("cannot load the stand-in driver {LIBRARY}: {error}"));
            Interpreter { library }
        })
    }

    /// Chooses what is played. Takes effect for what is asked from here on: choose before opening a device.
    pub fn set_device(&self, profile: DeviceProfile) {
        const NO_RESULT: i32 = 0;
        const STUB_LIBRARY: i32 = 34; // CUDA_ERROR_STUB_LIBRARY
        let (capability, version, init, memory) = match profile {
            DeviceProfile::Sm75 => (75, 13000, NO_RESULT, 4 << 30),
            DeviceProfile::Sm80 => (80, 13000, NO_RESULT, 4 << 30),
            DeviceProfile::Sm86 => (86, 13000, NO_RESULT, 4 << 30),
            DeviceProfile::Sm90 => (90, 13000, NO_RESULT, 4 << 30),
            DeviceProfile::NoDevice => (0, 13000, NO_RESULT, 4 << 30),
            DeviceProfile::OldDriver { version } => (90, version, NO_RESULT, 4 << 30),
            DeviceProfile::StubLibrary => (90, 13000, STUB_LIBRARY, 4 << 30),
            DeviceProfile::Memory { bytes } => (90, 13000, NO_RESULT, bytes),
        };
        self.play_device(capability);
        self.play_driver(version, init);
        self.set_memory(memory);
    }

    /// Sets the seed of all shuffling: of blocks, warps, lanes and random copies. 0 keeps the natural order.
    pub fn set_seed(&self, seed: u64) {
        self.set_seed_raw(seed);
    }

    /// Sets when asynchronous copies move their bytes.
    pub fn set_async(&self, policy: AsyncPolicy) {
        self.set_async_raw(policy as u32);
    }

    /// Counters of every launch that has run since they were last cleared, oldest first.
    pub fn counters(&self) -> Vec<LaunchCounters> {
        (0..self.launches())
            .map(|launch| {
                let mut raw = RawCounters { values: [0; 14], kernel: [0; 128] };
                self.counters_of(launch, &raw mut raw);
                let name = raw.kernel.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
                let [bytes_read, bytes_written, requested_read, requested_written, rest @ ..] = raw.values;
                let [matrix_instructions, barriers, matrix_load_rows, matrix_load_conflicts, rest @ ..] = rest;
                let [matrix_store_rows, matrix_store_conflicts, warpgroup_instructions, rest @ ..] = rest;
                let [programmatic, carveout, recorded] = rest;
                LaunchCounters {
                    kernel: String::from_utf8(name).unwrap_or_default(), // kernels have C names
                    bytes_read,
                    bytes_written,
                    requested_read,
                    requested_written,
                    matrix_instructions,
                    barriers,
                    matrix_load_rows,
                    matrix_load_conflicts,
                    matrix_store_rows,
                    matrix_store_conflicts,
                    warpgroup_instructions,
                    programmatic: programmatic != 0,
                    // One more than the percentage; 0 for none.
                    carveout: carveout.checked_sub(1).map(|percent| percent as u32),
                    recorded: recorded != 0,
                }
            })
            .collect()
    }

    /// From here on the driver answers `call` with `error`, a `CUresult`; 0 ends that. `call` is an entry point
    /// (`cuGraphInstantiateWithFlags`), or `cluster`, `programmatic` or `carveout` for launches with that attribute.
    ///
    /// # Panics
    /// For a name with a zero byte.
    pub fn refuse(&self, call: &str, error: i32) {
        let call = CString::new(call).expect("a name has no zero byte");
        self.refuse_raw(call.as_ptr(), error);
    }

    /// Forgets all counters.
    pub fn clear_counters(&self) {
        self.clear_counters_raw();
    }

    /// Bytes of device memory that are allocated now, as asked for: nothing is rounded up, and what is kept for later
    /// by a real driver's pool is not counted. Memory that a stream frees counts until the stream has come there.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes_raw()
    }

    /// The texts of all failed checks, oldest first.
    pub fn reports(&self) -> Vec<String> {
        (0..self.report_count())
            .map(|index| {
                let mut text = vec![0; self.report_text(index, std::ptr::null_mut(), 0) as usize];
                self.report_text(index, text.as_mut_ptr(), text.len() as u64);
                String::from_utf8_lossy(&text).into_owned()
            })
            .collect()
    }

    /// Takes the reports, and with them the error that stays after a failed check, so that a test of planted bugs can
    /// go on with the next one. What is still queued in streams is dropped. On a GPU only a new process can do this.
    pub fn take_reports(&self) -> Vec<String> {
        let reports = self.reports();
        self.forget_errors_raw();
        reports
    }
}
