//! A fatbin loaded into a device, and the kernels in it.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

use super::device::Properties;
use super::error::{CudaError, Naming};
use super::image::Image;
use super::mbarrier_trap::{self, Watch};
use super::target::Target;

/// A block's shared memory may grow to this without asking.
const SHARED_BYTES_WITHOUT_ASKING: u32 = 48 << 10;

/// One fatbin on one device.
pub struct Module {
    image: Image,
    target: Target,
    loaded: Arc<Loaded>,
}

/// The driver's handle, unloaded with its last kernel.
struct Loaded {
    handle: sys::CUmodule,
    context: Arc<CudaContext>,
    /// Where its waits report a trap, in builds that have such.
    watch: Option<Arc<Watch>>,
}

// SAFETY: a module's handle may be used from any thread that has its context current.
unsafe impl Send for Loaded {}
// SAFETY: the driver's calls on modules lock for themselves.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // An error here comes from earlier work and has been reported there.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the handle came from cuModuleLoadData, and every kernel of the module is gone.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

impl Module {
    /// Loads the fatbin: the code that this device runs, or PTX for the driver to compile.
    ///
    /// # Errors
    /// [`CudaError::NoCode`], [`CudaError::BadImage`], [`CudaError::Refused`], [`CudaError::Driver`].
    pub(super) fn load(context: &Arc<CudaContext>, device: &Properties, image: Image) -> Result<Module, CudaError> {
        let no_code = || CudaError::NoCode {
            image: image.name.to_owned(),
            targets: image.targets.join(", "),
            device: device.compute_capability,
        };
        image.check().map_err(|reason| CudaError::BadImage { image: image.name.to_owned(), reason })?;
        let target = image.target(device.compute_capability).ok_or_else(no_code)?;
        context.bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: the image is as long as a fatbin's header says, as checked above, and outlives the module.
        match unsafe { result::module::load_data(image.fatbin.as_ptr().cast()) } {
            Ok(handle) => {
                let watch = mbarrier_trap::watch(handle, image.name)?;
                let loaded = Arc::new(Loaded { handle, context: context.clone(), watch });
                Ok(Module { image, target, loaded })
            }
            Err(error) if error.0 == CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Err(no_code()),
            Err(error) => {
                let what = format!("to load its code for {target}");
                Err(CudaError::refused(&format!("kernels/{}.cu", image.name), what, "cuModuleLoadData", error))
            }
        }
    }

    /// What of the fatbin runs on this device.
    pub fn target(&self) -> Target {
        self.target
    }

    /// One of its kernels.
    ///
    /// # Errors
    /// [`CudaError::UnknownKernel`] where the compiled image has none of that name.
    pub fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let unknown = || CudaError::UnknownKernel { image: self.image.name.to_owned(), kernel: name.to_owned() };
        let symbol = std::ffi::CString::new(name).map_err(|_| unknown())?;
        self.loaded.context.bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: the handle is that of a loaded module.
        let handle = match unsafe { result::module::get_function(self.loaded.handle, symbol) } {
            Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => return Err(unknown()),
            found => found.named("cuModuleGetFunction")?,
        };
        let parameters = parameters(handle)?;
        Ok(Kernel {
            name: name.to_owned(),
            handle,
            parameters,
            target: self.target,
            shared_bytes: Mutex::new(SHARED_BYTES_WITHOUT_ASKING),
            module: self.loaded.clone(),
        })
    }

    /// Its kernels of these names, in their order.
    ///
    /// # Errors
    /// As for [`Module::kernel`].
    pub fn kernels(&self, names: impl IntoIterator<Item = String>) -> Result<Vec<Kernel>, CudaError> {
        names.into_iter().map(|name| self.kernel(&name)).collect()
    }
}

/// Bytes of each parameter of a function, in order, as it was compiled.
fn parameters(function: sys::CUfunction) -> Result<Vec<usize>, CudaError> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the handle is that of a function of a loaded module; both places are live.
        match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) }.result() {
            Ok(()) => sizes.push(size),
            // Behind the last one.
            Err(error) if error.0 == CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            Err(error) => return Err(error).named("cuFuncGetParamInfo"),
        }
    }
}

/// One function of a [`Module`], with the sizes of its compiled parameters.
pub struct Kernel {
    name: String,
    handle: sys::CUfunction,
    parameters: Vec<usize>,
    target: Target,
    /// What its blocks may have, as the driver was last told.
    shared_bytes: Mutex<u32>,
    module: Arc<Loaded>,
}

// SAFETY: as for `Loaded`: the handle belongs to the module, which it keeps.
unsafe impl Send for Kernel {}
// SAFETY: the driver's calls on functions lock for themselves.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of each of its parameters, in order.
    pub fn parameters(&self) -> &[usize] {
        &self.parameters
    }

    /// What of the fatbin it runs as.
    pub fn target(&self) -> Target {
        self.target
    }

    pub(super) fn handle(&self) -> sys::CUfunction {
        self.handle
    }

    pub(super) fn watch(&self) -> Option<&Watch> {
        self.module.watch.as_deref()
    }

    /// Lets its blocks have `bytes` of dynamic shared memory. The context is current on this thread.
    pub(super) fn allow_shared_bytes(&self, bytes: u32) -> Result<(), CudaError> {
        // Held over the call: of two threads, the one that wants less must not be the last to tell the driver.
        let mut allowed = self.shared_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes <= *allowed {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the handle is that of a function of a loaded module.
        unsafe { result::function::set_function_attribute(self.handle, attribute, value) }.map_err(|error| {
            let what = format!("{bytes} bytes of shared memory for a block");
            CudaError::refused(&self.name, what, "cuFuncSetAttribute", error)
        })?;
        *allowed = bytes;
        Ok(())
    }
}
