//! One GPU: what it is, its memory, its loaded kernels.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use cudarc::driver::{CudaContext, result};

use super::driver;
use super::error::{CudaError, Naming};
use super::image::{Image, images};
use super::module::Module;
use super::pinned::PinnedMemory;
use super::stream::Stream;
use super::switches::{Algorithms, Switches};
use super::versions::ComputeCapability;

/// The kernels use Ampere's asynchronous copies and bf16 MMA instructions.
const OLDEST: ComputeCapability = ComputeCapability { major: 8, minor: 0 };

/// What the driver says about a GPU, and which algorithms were chosen for it by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Its generation.
    pub compute_capability: ComputeCapability,
    /// How many SMs it has.
    pub sm_count: u32,
    /// Bytes of shared memory that one block may have at the most, with the opt-in that [`Stream`] makes.
    pub shared_bytes: u32,
    /// Bytes of L2.
    pub l2_bytes: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// What runs there by name instead of by rule; of an opened [`Device`], those of its [`Switches`].
    pub algorithms: Algorithms,
}

impl Properties {
    /// Whether the kernels run on it, or why not.
    ///
    /// # Errors
    /// [`CudaError::OldDevice`].
    pub fn check(&self) -> Result<(), CudaError> {
        if self.compute_capability < OLDEST {
            return Err(CudaError::OldDevice { name: self.name.clone(), found: self.compute_capability });
        }
        Ok(())
    }
}

/// Reads the properties of one GPU without taking any of its memory, also of one that is too old.
///
/// # Errors
/// As for [`driver::device_count`], and [`CudaError::NoSuchDevice`].
pub fn properties(ordinal: usize) -> Result<Properties, CudaError> {
    let count = driver::device_count()?;
    let handle = i32::try_from(ordinal).ok().filter(|_| ordinal < count);
    let handle = handle.ok_or(CudaError::NoSuchDevice { ordinal, count })?;
    let device = result::device::get(handle).named("cuDeviceGet")?;
    let number = |attribute: Attribute| -> Result<u32, CudaError> {
        // SAFETY: `device` came from cuDeviceGet above.
        let value = unsafe { result::device::get_attribute(device, attribute) }.named("cuDeviceGetAttribute")?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.named("cuDeviceTotalMem")?;
    Ok(Properties {
        name: result::device::get_name(device).named("cuDeviceGetName")?,
        compute_capability: ComputeCapability {
            major: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        },
        sm_count: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        memory_bytes: memory as u64,
        algorithms: Algorithms::default(),
    })
}

/// One GPU, opened. Clones share it; it is closed with the last of its streams, buffers and kernels.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    properties: Properties,
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
    switches: Switches,
    /// Whether kernels are launched to start early: until the driver refuses that.
    launches_early: AtomicBool,
    /// What the graph of each capture in progress must keep alive, by capture id.
    recorded: Mutex<HashMap<u64, Vec<Arc<PinnedMemory>>>>,
}

impl Device {
    /// Opens GPU number `ordinal`, counted from 0, with the switches of the environment.
    ///
    /// # Errors
    /// One each for: a switch with a wrong value, no driver, a driver too old, no GPU, no such GPU, a GPU too old, an
    /// algorithm that does not run on it.
    pub fn open(ordinal: usize) -> Result<Device, CudaError> {
        Device::open_with(ordinal, Switches::from_env()?)
    }

    /// The same with these switches, whatever the environment says.
    ///
    /// # Errors
    /// As for [`Device::open`].
    pub fn open_with(ordinal: usize, switches: Switches) -> Result<Device, CudaError> {
        let mut properties = properties(ordinal)?;
        properties.check()?;
        switches.algorithms.check_device(&properties)?;
        properties.algorithms = switches.algorithms;
        let context = CudaContext::new(ordinal).named("cuDevicePrimaryCtxRetain")?;
        // SAFETY: the events would order uses of one buffer on several streams; `Stream` asks its caller to do that
        // with `Event`s, and recorded graphs cannot hold cudarc's.
        unsafe { context.disable_event_tracking() };
        if context.has_async_alloc() {
            keep_freed_memory(&context)?;
        }
        let (modules, recorded) = (Mutex::default(), Mutex::default());
        let launches_early = AtomicBool::new(switches.programmatic_launch);
        Ok(Device(Arc::new(Inner { context, properties, modules, switches, launches_early, recorded })))
    }

    /// Opens the first GPU, where this build has kernels for it.
    ///
    /// # Errors
    /// [`CudaError::BuiltWithoutKernels`], and those of [`Device::open`].
    pub fn first() -> Result<Device, CudaError> {
        if images().is_empty() { Err(CudaError::BuiltWithoutKernels) } else { Device::open(0) }
    }

    /// What it was opened with.
    pub fn switches(&self) -> &Switches {
        &self.0.switches
    }

    /// Whether kernels are launched to start before the kernel ahead has ended.
    pub(super) fn launches_early(&self) -> bool {
        self.0.launches_early.load(Ordering::Relaxed)
    }

    /// From here on no kernel is launched so: the driver has refused it, for this reason.
    pub(super) fn stop_launching_early(&self, answer: &CudaError) {
        if self.0.launches_early.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                "the driver refuses programmatic dependent launch: {answer}; each kernel now starts once the kernel ahead \
                 has ended, as with RIGEL_CUDA_PDL=0"
            );
        }
    }

    /// Whether every launch and replay is waited for ([`Switches::synchronous`]), so that [`CudaError::KernelFailed`]
    /// comes from the launch that failed and names its kernel. Slow, for finding faults. A failed replay does not say
    /// which of its kernels it was: do not record while this is set.
    pub fn is_synchronous(&self) -> bool {
        self.0.switches.synchronous
    }

    /// Whether decode steps are captured as CUDA graphs: a switch may say no, and a replay would not name the kernel
    /// that fails.
    pub fn captures(&self) -> bool {
        self.0.switches.graphs && !self.is_synchronous()
    }

    /// The driver's number of it, counted from 0.
    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// What the GPU is.
    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    /// Bytes that this process can still allocate, and those that the GPU has: what is free, and what its own pool
    /// keeps of memory that was freed.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self.0.context.mem_get_info().named("cuMemGetInfo")?;
        let kept = match self.pool()? {
            None => 0,
            Some(pool) => {
                let reserved = pool_bytes(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
                reserved.saturating_sub(pool_bytes(pool, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?)
            }
        };
        Ok((free as u64 + kept, total as u64))
    }

    /// Gives memory that was freed back to the GPU, where its pool keeps it for this process alone. What was freed on a
    /// stream counts once the stream has come to it: synchronise first.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn release_freed_memory(&self) -> Result<(), CudaError> {
        let Some(pool) = self.pool()? else { return Ok(()) };
        // SAFETY: the pool is the device's own.
        unsafe { result::mem_pool::trim_to(pool, 0) }.named("cuMemPoolTrimTo")
    }

    /// The pool that buffers come from, where the driver has pools.
    fn pool(&self) -> Result<Option<sys::CUmemoryPool>, CudaError> {
        if !self.0.context.has_async_alloc() {
            return Ok(None);
        }
        self.0.context.bind_to_thread().named("cuCtxSetCurrent")?;
        default_pool(&self.0.context).map(Some)
    }

    /// A new stream: work on it runs in order, and beside that of other streams.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn stream(&self) -> Result<Stream, CudaError> {
        Ok(Stream::new(self.clone(), self.0.context.new_stream().named("cuStreamCreate")?))
    }

    /// The kernels of `kernels/<name>.cu`, loaded at the first call.
    ///
    /// # Errors
    /// [`CudaError::BuiltWithoutKernels`], [`CudaError::UnknownImage`], and those of `Module::load`.
    pub fn module(&self, name: &str) -> Result<Arc<Module>, CudaError> {
        // A panic elsewhere cannot leave the map half-changed.
        let mut modules = self.0.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(name) {
            return Ok(module.clone());
        }
        let image = *find_image(name)?;
        let module = Arc::new(Module::load(&self.0.context, &self.0.properties, image)?);
        modules.insert(image.name, module.clone());
        Ok(module)
    }

    /// Loads an image that is not part of this binary, such as a test's.
    ///
    /// # Errors
    /// Those of `Module::load`.
    pub fn load(&self, image: Image) -> Result<Module, CudaError> {
        Module::load(&self.0.context, &self.0.properties, image)
    }

    /// The graph of this capture will copy to or from `memory`.
    pub(super) fn keep_for_graph(&self, capture: u64, memory: Arc<PinnedMemory>) {
        // As above for a panic elsewhere.
        let mut recorded = self.0.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.entry(capture).or_default().push(memory);
    }

    /// What the captured graph must keep alive; taken when the capture ends.
    pub(super) fn kept_for_graph(&self, capture: u64) -> Vec<Arc<PinnedMemory>> {
        let mut recorded = self.0.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.remove(&capture).unwrap_or_default()
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.0.properties).finish()
    }
}

fn find_image(name: &str) -> Result<&'static Image, CudaError> {
    let all = images();
    if all.is_empty() {
        return Err(CudaError::BuiltWithoutKernels);
    }
    all.iter().find(|image| image.name == name).ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|image| image.name).collect();
        CudaError::UnknownImage { image: name.to_owned(), known: known.join(", ") }
    })
}

/// The driver's pool gives freed memory back at every synchronisation unless it is told to keep it.
fn keep_freed_memory(context: &CudaContext) -> Result<(), CudaError> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let pool = default_pool(context)?;
    // SAFETY: the pool is the device's own; this attribute is read from a u64, which outlives the call.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()) }
        .named("cuMemPoolSetAttribute")
}

fn default_pool(context: &CudaContext) -> Result<sys::CUmemoryPool, CudaError> {
    // SAFETY: the device is that of an open context.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }.named("cuDeviceGetDefaultMemPool")
}

/// One of a pool's counts of bytes.
fn pool_bytes(pool: sys::CUmemoryPool, attribute: sys::CUmemPool_attribute) -> Result<u64, CudaError> {
    let mut bytes = 0u64;
    // SAFETY: the pool is a device's own; the counts are written as a u64, which outlives the call.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }
        .named("cuMemPoolGetAttribute")?;
    Ok(bytes)
}
