//! Which device a model runs on.

use super::BackendError;
use super::cpu::Isa;
#[cfg(feature = "cuda")]
use super::cuda::{self, CudaError};
use crate::model::ModelSpec;

/// Where a model is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// A GPU where this build has a backend for it and there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// Where a model runs.
pub(super) enum Placement {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Device),
}

impl Device {
    /// The CPU in place of a GPU that was not asked for by name and has no kernels for this network.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there are GPUs in builds with them alone"))]
    pub(super) fn with_kernels(self, placement: Placement, spec: &ModelSpec) -> Placement {
        #[cfg(feature = "cuda")]
        if let (Device::Auto, Placement::Cuda(_), Some(lack)) = (self, &placement, cuda::model::lack(spec)) {
            tracing::warn!("using the CPU: {lack}");
            return Placement::Cpu;
        }
        placement
    }

    /// Where the model is to run: the device asked for, or for [`Device::Auto`] a GPU if there is one.
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
    /// The GPU that a model so placed takes, opened; none where it takes the CPU.
    ///
    /// # Errors
    /// For [`Device::Cuda`]: those of [`cuda::Device::first`]; for [`Device::Auto`] of these what is wrong with a switch.
    pub fn gpu(self) -> Result<Option<cuda::Device>, BackendError> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda => cuda::Device::first().map(Some).map_err(BackendError::NoGpu),
            Device::Auto => cuda::Device::first().map(Some).or_else(|error| cpu_instead(error).map(|()| None)),
        }
    }
}

/// That the CPU may be taken, since there is no GPU; where there is one that cannot be used, a warning says why. Who has
/// set a switch for the GPU wants the GPU: what is wrong with the switch is an error.
#[cfg(feature = "cuda")]
fn cpu_instead(error: CudaError) -> Result<(), BackendError> {
    let no_gpu = |error: &CudaError| matches!(error, CudaError::NoDriver | CudaError::NoDevice);
    match error {
        CudaError::Switch(_) | CudaError::Algorithm { .. } => return Err(BackendError::NoGpu(error)),
        // Kernels are looked for first: whether a GPU would have run them is yet to be asked.
        CudaError::BuiltWithoutKernels if cuda::driver::device_count().is_err_and(|error| no_gpu(&error)) => {
            tracing::debug!("{error}");
        }
        error if no_gpu(&error) => tracing::debug!("{error}"),
        error => tracing::warn!("using the CPU: {error}"),
    }
    Ok(())
}
