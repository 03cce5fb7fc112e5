//! The driver's library: whether there is one and which CUDA it supports. Asked before anything else, because cudarc
//! panics where the library or one of its functions is missing.

use cudarc::driver::sys;

use super::error::{CudaError, Naming};
pub use super::versions::CudaVersion;

/// The CUDA that the kernels are compiled with (tools/install-nvcc) and whose functions are called. Driver 580 is the
/// first to support it.
pub const NEEDED: CudaVersion = CudaVersion { major: 13, minor: 0 };

/// The CUDA version that the installed driver supports. Needs no GPU.
///
/// # Errors
/// [`CudaError::NoDriver`] where there is no driver.
pub fn version() -> Result<CudaVersion, CudaError> {
    // SAFETY: opens and closes libcuda.so, the driver's own library, whose initialisers may be run at any time.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: every driver has this function; it writes one int to a live place and needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().named("cuDriverGetVersion")?;
    // 13000 is 13.0, 12080 is 12.8.
    let version = u32::try_from(version).unwrap_or(0);
    Ok(CudaVersion { major: version / 1000, minor: version % 1000 / 10 })
}

/// The same, or an error where that is too old for the kernels. After it, every function of [`NEEDED`] is there.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::OldDriver`].
pub fn check() -> Result<CudaVersion, CudaError> {
    let found = version()?;
    if found < NEEDED {
        return Err(CudaError::OldDriver { found, needed: NEEDED });
    }
    Ok(found)
}

/// How many GPUs the driver shows.
///
/// # Errors
/// [`CudaError::NoDevice`] for none, and those of [`check`].
pub fn device_count() -> Result<usize, CudaError> {
    check()?;
    match cudarc::driver::CudaContext::device_count() {
        Ok(count) if count > 0 => Ok(usize::try_from(count).unwrap_or(0)),
        Ok(_) => Err(CudaError::NoDevice),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(CudaError::NoDevice),
        // The library that a toolkit has for linking, found in place of the driver's.
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_STUB_LIBRARY => Err(CudaError::NoDriver),
        Err(error) => Err(error).named("cuInit"),
    }
}
