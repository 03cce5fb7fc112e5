//! Which device a model runs on.

use super::BackendError;
use super::cpu::Isa;
#[cfg(feature = "cuda")]
use super::cuda::{self, CudaError};
use crate::model::ModelSpec;

/// The requested device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// A GPU if this build supports one and one is present, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// The device a model runs on.
pub(super) enum Placement {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Device),
}

impl Device {
    /// The CPU instead of a GPU that was not requested by name and lacks kernels for this network.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there are GPUs in builds with them alone"))]
    pub(super) fn with_kernels(self, placement: Placement, spec: &ModelSpec) -> Placement {
        #[cfg(feature = "cuda")]
        if let (Device::Auto, Placement::Cuda(_), Some(lack)) = (self, &placement, cuda::model::lack(spec)) {
            tracing::warn!("using the CPU: {lack}");
            return Placement::Cpu;
        }
        placement
    }

    /// Resolves a requested device.
    pub(super) fn placement(self) -> Result<Placement, BackendError> {
        let placement = match self {
            Device::Cpu => Placement::Cpu,
            #[cfg(feature = "cuda")]
            Device::Cuda | Device::Auto => self.gpu()?.map_or(Placement::Cpu, Placement::Cuda),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda => return Err(BackendError::NoCudaFeature),
            #[cfg(not(feature = "cuda"))]
            Device::Auto => Placement::Cpu,
        };
        if matches!(placement, Placement::Cpu) {
            Isa::from_env()?;
        }
        Ok(placement)
    }
}

#[cfg(feature = "cuda")]
impl Device {
    /// Opens the GPU of this placement. `None` for the CPU.
    ///
    /// # Errors
    /// For [`Device::Cuda`], as for [`cuda::Device::first`]; for [`Device::Auto`], only errors in environment
    /// variables.
    pub fn gpu(self) -> Result<Option<cuda::Device>, BackendError> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda => cuda::Device::first().map(Some).map_err(BackendError::NoGpu),
            Device::Auto => cuda::Device::first().map(Some).or_else(|error| cpu_instead(error).map(|()| None)),
        }
    }
}

/// Falls back to the CPU, with a warning if a GPU is present but unusable. An invalid GPU environment variable is an
/// error: whoever set it wants the GPU.
#[cfg(feature = "cuda")]
fn cpu_instead(error: CudaError) -> Result<(), BackendError> {
    let no_gpu = |error: &CudaError| matches!(error, CudaError::NoDriver | CudaError::NoDevice);
    match error {
        CudaError::Switch(_) | CudaError::Algorithm { .. } => return Err(BackendError::NoGpu(error)),
        // Check for kernels first: without them it does not matter whether the GPU would do.
        CudaError::BuiltWithoutKernels if cuda::driver::device_count().is_err_and(|error| no_gpu(&error)) => {
            tracing::debug!("{error}");
        }
        error if no_gpu(&error) => tracing::debug!("{error}"),
        error => tracing::warn!("using the CPU: {error}"),
    }
    Ok(())
}
