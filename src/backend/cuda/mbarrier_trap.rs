//! The records of waits that trapped, in builds with `RIGEL_TRAP_MBARRIER`: see `kernels/ptx/mbarrier_trap.cuh`.
//!
//! A trap ends the context, and with it printf's buffer and every copy from the device. So each module that traps has
//! its record in page-locked host memory, which stays readable. Errors of kernels ask for it ([`TRAP_RECORD`]).

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};

use super::error::{CudaError, Naming, TRAP_RECORD};
use super::launch::Launch;

/// `rigel_mbarrier_trap` of the kernels: the record's address, and a word that is 0.
const VARIABLE: &str = "rigel_mbarrier_trap";
/// Words of a record, as `mbarrier_trap.cuh` numbers them; the name's are behind the numbers.
const WORDS: usize = 21;
const NAME: usize = 13;

/// Where the kernels of one module report a trap, and what was launched of it.
pub(super) struct Watch {
    file: &'static str,
    record: &'static [AtomicU32; WORDS],
    /// The launches so far, each once.
    launched: Mutex<BTreeSet<Launched>>,
}

/// One launch. A record has all of it but the kernel.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Launched {
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    kernel: String,
}

/// Those of all modules that were loaded, also of such as are gone: a kernel may still run.
static WATCHES: Mutex<Vec<Arc<Watch>>> = Mutex::new(Vec::new());

/// Gives the module its record; nothing where its waits do not trap. The context is current on this thread.
pub(super) fn watch(module: sys::CUmodule, file: &'static str) -> Result<Option<Arc<Watch>>, CudaError> {
    let name = CString::new(VARIABLE).unwrap_or_default();
    // SAFETY: the handle is that of a loaded module.
    let variable = match unsafe { result::module::get_global(module, name) } {
        Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => return Ok(None),
        found => found.named("cuModuleGetGlobal")?.0,
    };
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
    // SAFETY: the memory is never freed, so that it may be read for as long as the process runs.
    let memory = unsafe { result::malloc_host(WORDS * 4, flags) }.named("cuMemHostAlloc")?;
    // SAFETY: the memory is large enough and aligned to pages; zeros are a whole value.
    let words = unsafe {
        memory.cast::<u8>().write_bytes(0, WORDS * 4);
        &*memory.cast::<[AtomicU32; WORDS]>()
    };
    // The address is the same on the device: with unified addressing, which every such device has.
    let value: [u64; 2] = [memory as u64, 0];
    // SAFETY: the variable has 16 bytes, in `mbarrier_trap.cuh`.
    unsafe { result::memcpy_htod_sync(variable, bytemuck::bytes_of(&value)) }.named("cuMemcpyHtoD")?;
    TRAP_RECORD.get_or_init(|| record);
    let watch = Arc::new(Watch { file, record: words, launched: Mutex::default() });
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner).push(watch.clone());
    Ok(Some(watch))
}

impl Watch {
    /// This kernel of the module is launched.
    pub(super) fn launched(&self, kernel: &str, launch: &Launch) {
        let mut launched = self.launched.lock().unwrap_or_else(PoisonError::into_inner);
        let Launch { grid, block, shared_bytes, .. } = *launch;
        launched.insert(Launched { grid, threads: block.iter().product(), shared_bytes, kernel: kernel.to_owned() });
    }

    fn read(&self) -> Option<Record> {
        let words = self.record.each_ref().map(|word| word.load(Ordering::Acquire));
        if words[0] == 0 {
            return None;
        }
        let [_, barrier, parity, x, y, z, grid_x, grid_y, grid_z, thread, threads, shared_bytes, milliseconds, ..] =
            words;
        let name: Vec<u8> = words[NAME..].iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b != 0).collect();
        let (block, grid) = ([x, y, z], [grid_x, grid_y, grid_z]);
        let launched = self.launched.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |it: &&Launched| (it.grid, it.threads, it.shared_bytes) == (grid, threads, shared_bytes);
        Some(Record {
            file: self.file,
            kernels: launched.iter().filter(fits).map(|it| it.kernel.clone()).collect(),
            name: String::from_utf8_lossy(&name).into_owned(),
            barrier,
            parity,
            block,
            grid,
            thread,
            threads,
            milliseconds,
        })
    }
}

/// What a wait that trapped said; `None` if none has.
fn record() -> Option<String> {
    let watches = WATCHES.lock().unwrap_or_else(PoisonError::into_inner);
    watches.iter().find_map(|watch| watch.read()).map(|record| record.to_string())
}

/// Where a thread waited for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    file: &'static str,
    /// Those that were launched with such a grid, block and shared memory: nearly always one.
    kernels: Vec<String>,
    name: String,
    barrier: u32,
    parity: u32,
    block: [u32; 3],
    grid: [u32; 3],
    thread: u32,
    threads: u32,
    milliseconds: u32,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { file, name, barrier, parity, block, grid, thread, threads, milliseconds, .. } = self;
        match &self.kernels[..] {
            [] => write!(f, "a kernel of kernels/{file}.cu")?,
            kernels => write!(f, "{}", kernels.join(" or "))?,
        }
        write!(
            f,
            " trapped: thread {thread} of {threads} in block {block:?} of {grid:?} waited {milliseconds} ms for the \
             mbarrier '{name}' at byte {barrier} of its shared memory to end a phase of parity {parity}"
        )
    }
}
