//! CUPTI, NVIDIA's profiling library, where the machine has it: the only source that sees when each kernel of a CUDA
//! graph begins and ends, and so the gaps between them.
//!
//! Opened at run time like the driver. Of its records only those of kernels are read, and of those three fields, which
//! have stood at the same places from CUPTI 11.8 to 13.5 (`CUpti_ActivityKernel8` to `13` of cupti_activity.h); a
//! library of another version is refused.

use std::alloc::{self, Layout};
use std::env;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use super::error::{CudaError, CuptiError};
use super::stream::Stream;
use super::trace::{LaunchTimes, TimedLaunch};

/// CUPTI_API_VERSION of cupti_version.h: 18 is CUDA 11.8, 28 is 12.9; 13 has the CUDA version itself.
const KNOWN_VERSIONS: [std::ops::RangeInclusive<u32>; 2] = [18..=28, 130_000..=130_599];
/// CUPTI_ACTIVITY_KIND_KERNEL and _CONCURRENT_KERNEL.
const KERNEL_KINDS: [u32; 2] = [3, 10];
const CONCURRENT_KERNEL: u32 = 10;
/// CUPTI_ACTIVITY_FLAG_FLUSH_FORCED: buffers that are not full, too.
const FLUSH_FORCED: u32 = 1;
const SUCCESS: u32 = 0;
/// CUPTI_ERROR_MAX_LIMIT_REACHED: there is no record any more.
const NO_MORE: u32 = 12;
const BUFFER_BYTES: usize = 1 << 20;
const BUFFER_LAYOUT: Layout = match Layout::from_size_align(BUFFER_BYTES, 8) {
    Ok(layout) => layout,
    Err(_) => panic!("a buffer of whole words"),
};

type BufferRequested = extern "C" fn(*mut *mut u8, *mut usize, *mut usize);
type BufferCompleted = extern "C" fn(*mut c_void, u32, *mut u8, usize, usize);

/// The functions that are called.
#[derive(Clone, Copy)]
struct Functions {
    version: unsafe extern "C" fn(*mut u32) -> u32,
    register: unsafe extern "C" fn(BufferRequested, BufferCompleted) -> u32,
    enable: unsafe extern "C" fn(u32) -> u32,
    disable: unsafe extern "C" fn(u32) -> u32,
    flush: unsafe extern "C" fn(u32) -> u32,
    next: unsafe extern "C" fn(*mut u8, usize, *mut *mut u8) -> u32,
}

/// What the library calls back with arrives here: it has no place for a pointer of ours.
static COLLECTED: Mutex<Collected> = Mutex::new(Collected { next: None, kernels: Vec::new() });

struct Collected {
    next: Option<unsafe extern "C" fn(*mut u8, usize, *mut *mut u8) -> u32>,
    kernels: Vec<(String, KernelRecord)>,
}

/// The library at work, until it is dropped. One at a time.
pub struct Cupti {
    functions: Functions,
}

impl Cupti {
    /// Opens the library at `path`, or the first that is found where it usually lies, and has it watch all kernels from
    /// here on. Before the first use of the device it sees the most.
    ///
    /// # Errors
    /// [`CuptiError`].
    pub fn open(path: Option<&Path>) -> Result<Cupti, CuptiError> {
        let (library, file) = match path {
            Some(path) => (load(path)?, path.display().to_string()),
            None => find()?,
        };
        let functions = functions(&library, &file)?;
        let mut found = 0;
        // SAFETY: the function writes one number to a live place.
        check("cuptiGetVersion", unsafe { (functions.version)(&mut found) })?;
        if !KNOWN_VERSIONS.iter().any(|known| known.contains(&found)) {
            return Err(CuptiError::UnknownVersion { file, found });
        }
        *collected() = Collected { next: Some(functions.next), kernels: Vec::new() };
        // SAFETY: both callbacks have the types of cupti_activity.h and live as long as the process.
        check("cuptiActivityRegisterCallbacks", unsafe { (functions.register)(buffer_requested, buffer_completed) })?;
        // SAFETY: takes a number.
        check("cuptiActivityEnable", unsafe { (functions.enable)(CONCURRENT_KERNEL) })?;
        // Its threads may call back as long as the process lives: it stays loaded.
        std::mem::forget(library);
        Ok(Cupti { functions })
    }

    /// All records so far, in the order of their starts.
    fn take(&self) -> Result<Vec<(String, KernelRecord)>, CuptiError> {
        // SAFETY: takes a number; calls `buffer_completed` for each buffer before it returns.
        check("cuptiActivityFlushAll", unsafe { (self.functions.flush)(FLUSH_FORCED) })?;
        let mut kernels = std::mem::take(&mut collected().kernels);
        kernels.sort_by_key(|(_, record)| record.start_ns);
        Ok(kernels)
    }
}

impl Drop for Cupti {
    fn drop(&mut self) {
        // SAFETY: takes a number. Where it fails there is nothing left to do.
        let _ = unsafe { (self.functions.disable)(CONCURRENT_KERNEL) };
    }
}

impl LaunchTimes for Cupti {
    fn name(&self) -> &'static str {
        "cupti"
    }

    fn sees_gaps(&self) -> bool {
        true
    }

    fn begin(&mut self, stream: &Stream) -> Result<(), CudaError> {
        stream.synchronize()?;
        self.take()?;
        Ok(())
    }

    fn end(&mut self, stream: &Stream) -> Result<Vec<TimedLaunch>, CudaError> {
        stream.synchronize()?;
        Ok(launches(&self.take()?))
    }
}

/// The launches that records in the order of their starts tell of.
fn launches(records: &[(String, KernelRecord)]) -> Vec<TimedLaunch> {
    let first = records.first().map_or(0, |(_, record)| record.start_ns);
    let us = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
    let launch = |(kernel, record): &(String, KernelRecord)| TimedLaunch {
        kernel: kernel.clone(),
        start_us: us(first, record.start_ns),
        us: us(record.start_ns, record.end_ns),
    };
    records.iter().map(launch).collect()
}

/// What is read of the record of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KernelRecord {
    start_ns: u64,
    end_ns: u64,
    /// The address of the kernel's name.
    name: usize,
}

/// Bytes of a record up to the end of the last field that is read.
const RECORD_BYTES: usize = 112;

impl KernelRecord {
    /// Of the first bytes of a record; none where it is not a kernel's.
    fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<KernelRecord> {
        let word = |offset: usize| u64::from_ne_bytes(std::array::from_fn(|index| bytes[offset + index]));
        let kind = u32::from_ne_bytes(std::array::from_fn(|index| bytes[index]));
        let name = usize::try_from(word(104)).ok()?;
        KERNEL_KINDS.contains(&kind).then_some(KernelRecord { start_ns: word(16), end_ns: word(24), name })
    }
}

/// A buffer for the library to write records into.
extern "C" fn buffer_requested(buffer: *mut *mut u8, size: *mut usize, max_records: *mut usize) {
    // SAFETY: the layout has a size; the library gives three live places. Of memory that cannot be had it gets none.
    unsafe {
        *buffer = alloc::alloc(BUFFER_LAYOUT);
        *size = if (*buffer).is_null() { 0 } else { BUFFER_BYTES };
        *max_records = 0;
    }
}

/// A buffer comes back.
extern "C" fn buffer_completed(_context: *mut c_void, _stream: u32, buffer: *mut u8, _size: usize, valid: usize) {
    if buffer.is_null() {
        return;
    }
    let mut collected = collected();
    let mut record = std::ptr::null_mut();
    while let Some(next) = collected.next.filter(|_| valid > 0) {
        // SAFETY: the buffer holds `valid` bytes of records; `record` is null or the record before.
        match unsafe { next(buffer, valid, &mut record) } {
            SUCCESS => {}
            NO_MORE => break,
            _ => break,
        }
        let offset = (record as usize).wrapping_sub(buffer as usize);
        // The last record of a buffer may be a short one of another kind.
        if offset.saturating_add(RECORD_BYTES) > valid {
            continue;
        }
        // SAFETY: as many bytes lie inside the buffer, as compared above.
        let bytes = unsafe { &*record.cast::<[u8; RECORD_BYTES]>() };
        if let Some(kernel) = KernelRecord::parse(bytes).filter(|kernel| kernel.name != 0) {
            // SAFETY: the library's names end in a zero and live as long as it is loaded.
            let name = unsafe { CStr::from_ptr(kernel.name as *const c_char) }.to_string_lossy().into_owned();
            collected.kernels.push((name, kernel));
        }
    }
    // SAFETY: it came from `buffer_requested`.
    unsafe { alloc::dealloc(buffer, BUFFER_LAYOUT) };
}

fn collected() -> std::sync::MutexGuard<'static, Collected> {
    // A panic elsewhere cannot leave the list half-changed.
    COLLECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(call: &'static str, code: u32) -> Result<(), CuptiError> {
    if code == SUCCESS { Ok(()) } else { Err(CuptiError::Call { call, code }) }
}

fn load(path: &Path) -> Result<Library, CuptiError> {
    // SAFETY: a library that the user names, or NVIDIA's own: its initialisers may be run at any time.
    unsafe { Library::new(path) }
        .map_err(|error| CuptiError::NotCupti { file: path.display().to_string(), reason: said(&error) })
}

/// What the loader said: the error itself names the call alone.
fn said(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn functions(library: &Library, file: &str) -> Result<Functions, CuptiError> {
    let wrong = |error: libloading::Error| CuptiError::NotCupti { file: file.to_owned(), reason: said(&error) };
    // SAFETY: the types are those of cupti_activity.h and cupti_version.h, alike in all versions that are accepted.
    unsafe {
        Ok(Functions {
            version: *library.get(b"cuptiGetVersion\0").map_err(wrong)?,
            register: *library.get(b"cuptiActivityRegisterCallbacks\0").map_err(wrong)?,
            enable: *library.get(b"cuptiActivityEnable\0").map_err(wrong)?,
            disable: *library.get(b"cuptiActivityDisable\0").map_err(wrong)?,
            flush: *library.get(b"cuptiActivityFlushAll\0").map_err(wrong)?,
            next: *library.get(b"cuptiActivityGetNextRecord\0").map_err(wrong)?,
        })
    }
}

/// The first library of the usual places that loads.
fn find() -> Result<(Library, String), CuptiError> {
    let candidates = candidates(|name| env::var_os(name).map(PathBuf::from));
    let found = candidates.iter().find_map(|path| Some((load(path).ok()?, path.display().to_string())));
    let looked = || candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| CuptiError::NotFound { looked: looked() })
}

/// Where the library may lie: where the loader looks, in the toolkit, and among the Python packages of an environment.
fn candidates(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    const NAMES: [&str; 2] = ["libcupti.so.13", "libcupti.so.12"];
    let mut folders: Vec<PathBuf> = vec![PathBuf::new()];
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| variable(name));
    folders.extend(toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("extras/CUPTI/lib64")));
    for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| variable(name)) {
        let versions = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
        let packages = versions.map(|entry| entry.path().join("site-packages/nvidia"));
        let packages = packages.filter(|path| path.is_dir());
        folders.extend(packages.flat_map(|nvidia| [nvidia.join("cu13/lib"), nvidia.join("cuda_cupti/lib")]));
    }
    folders.iter().flat_map(|folder| NAMES.map(|name| folder.join(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as the library lays it out: kind, two times, a name.
    fn record(kind: u32, start: u64, end: u64, name: u64) -> [u8; RECORD_BYTES] {
        let mut bytes = [0xee; RECORD_BYTES];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        for (offset, word) in [(16, start), (24, end), (104, name)] {
            bytes[offset..offset + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn a_record_of_a_kernel_is_read_and_no_other() {
        let expected = KernelRecord { start_ns: 1_700_000_000_000_000_000, end_ns: 1_700_000_000_000_004_200, name: 7 };
        for kind in [3, 10] {
            assert_eq!(KernelRecord::parse(&record(kind, expected.start_ns, expected.end_ns, 7)), Some(expected));
        }
        assert_eq!(KernelRecord::parse(&record(1, 0, 0, 7)), None, "a copy");
    }

    /// The library's walk over a buffer: records of one size, one behind the other.
    unsafe extern "C" fn next_of_160(buffer: *mut u8, valid: usize, record: *mut *mut u8) -> u32 {
        // SAFETY: the test's own buffer, of `valid` bytes.
        unsafe {
            let next = if (*record).is_null() { buffer } else { (*record).add(160) };
            if next as usize + 160 > buffer as usize + valid {
                return NO_MORE;
            }
            *record = next;
        }
        SUCCESS
    }

    #[test]
    fn a_buffer_of_records_becomes_launches() {
        let (mut buffer, mut size, mut most) = (std::ptr::null_mut(), 0, 1);
        buffer_requested(&mut buffer, &mut size, &mut most);
        assert_eq!((size, most, buffer as usize % 8), (BUFFER_BYTES, 0, 0));
        let names = [c"gemv", c"norm", c"copy"];
        let records = [(10, 5_000, 7_500, 0), (10, 1_000, 4_000, 1), (1, 0, 9_999, 2)];
        for (index, (kind, start, end, name)) in records.into_iter().enumerate() {
            let bytes = record(kind, start, end, names[name].as_ptr() as u64);
            // SAFETY: inside the buffer, which is larger than three records.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.add(160 * index), RECORD_BYTES) };
        }
        *collected() = Collected { next: Some(next_of_160), kernels: Vec::new() };
        buffer_completed(std::ptr::null_mut(), 0, buffer, size, 3 * 160);
        let mut kernels = std::mem::take(&mut collected().kernels);
        kernels.sort_by_key(|(_, record)| record.start_ns);
        let launch = |kernel: &str, start_us, us| TimedLaunch { kernel: kernel.to_owned(), start_us, us };
        assert_eq!(launches(&kernels), [launch("norm", 0.0, 3.0), launch("gemv", 4.0, 2.5)]);
    }

    #[test]
    fn the_usual_places_are_looked_at() {
        let home = tempfile::tempdir().unwrap();
        let package = home.path().join("lib/python3.12/site-packages/nvidia");
        std::fs::create_dir_all(&package).unwrap();
        let variable = |name: &str| match name {
            "CUDA_HOME" => Some(PathBuf::from("/toolkit")),
            "VIRTUAL_ENV" => Some(home.path().to_owned()),
            _ => None,
        };
        let places = candidates(variable);
        for place in ["libcupti.so.13", "/toolkit/extras/CUPTI/lib64/libcupti.so.12"] {
            assert!(places.contains(&PathBuf::from(place)), "{place}: {places:?}");
        }
        assert!(places.contains(&package.join("cu13/lib/libcupti.so.13")));
        assert!(places.contains(&package.join("cuda_cupti/lib/libcupti.so.12")));
    }

    #[test]
    fn another_library_is_no_cupti() {
        let error = Cupti::open(Some(Path::new("/nowhere/libcupti.so"))).err().unwrap().to_string();
        assert!(error.starts_with("/nowhere/libcupti.so: "), "{error}");
        let libc = Cupti::open(Some(Path::new("libc.so.6"))).err().unwrap().to_string();
        assert!(libc.contains("cuptiGetVersion") && libc.contains("expected libcupti"), "{libc}");
    }
}
