//! Why the GPU could not be used, and what to do about it: one line each.

use std::sync::OnceLock;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use super::versions::{ComputeCapability, CudaVersion};
use crate::host::Size;

/// What can go wrong between here and the GPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// No library of the driver was found.
    #[error("no CUDA driver: libcuda.so was not found; install NVIDIA's driver 580 or newer, or use the device cpu")]
    NoDriver,
    /// CUPTI, where it was asked for.
    #[error(transparent)]
    Cupti(#[from] CuptiError),
    /// The driver is older than the compiler that made the kernels.
    #[error(
        "the CUDA driver is too old: it supports CUDA {found}, the kernels need CUDA {needed}; install NVIDIA's driver \
         580 or newer"
    )]
    OldDriver {
        /// The CUDA version that the driver supports.
        found: CudaVersion,
        /// The one that the kernels were compiled with.
        needed: CudaVersion,
    },
    /// The driver sees no GPU.
    #[error("the CUDA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the device cpu")]
    NoDevice,
    /// There are fewer GPUs than asked for.
    #[error("there is no GPU {ordinal}: the driver sees {count}, counted from 0")]
    NoSuchDevice {
        /// The GPU that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is older than any that the kernels are written for.
    #[error("{name} has compute capability {found}; the kernels need 8.0 (Ampere) or newer; use the device cpu")]
    OldDevice {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        found: ComputeCapability,
    },
    /// The crate was built on a machine without nvcc.
    #[error("this binary was built without GPU kernels; build it again with nvcc (tools/install-nvcc fetches it)")]
    BuiltWithoutKernels,
    /// No such file among the kernels.
    #[error("no kernels/{image}.cu was compiled into this binary; there are: {known}")]
    UnknownImage {
        /// The image that was asked for.
        image: String,
        /// Those that there are.
        known: String,
    },
    /// The fatbin holds no code that the GPU can run.
    #[error(
        "kernels/{image}.cu was compiled for {targets}, and none of these runs on compute capability {device}; build \
         again with RIGEL_CUDA_ARCHS unset"
    )]
    NoCode {
        /// The image.
        image: String,
        /// What it was compiled for.
        targets: String,
        /// What the GPU is.
        device: ComputeCapability,
    },
    /// The fatbin is not what nvcc writes.
    #[error("kernels/{image}.cu: the compiled image is damaged: {reason}; build it again")]
    BadImage {
        /// The image.
        image: String,
        /// What was wrong, where.
        reason: String,
    },
    /// The image has no kernel of that name.
    #[error("kernels/{image}.cu has no kernel '{kernel}'")]
    UnknownKernel {
        /// The image.
        image: String,
        /// The kernel that was asked for.
        kernel: String,
    },
    /// A variable `RIGEL_CUDA_…` has a value that it does not take.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// An algorithm that was chosen by name cannot compute what it is asked for.
    #[error("{switch} cannot be used: {reason}; unset it or choose another")]
    Algorithm {
        /// The variable and its value.
        switch: String,
        /// Why not.
        reason: String,
    },
    /// The arguments of a launch are not the compiled kernel's parameters. A bug in the launcher.
    #[error("{kernel}: launched with arguments of {found:?} bytes, compiled with parameters of {expected:?}")]
    Arguments {
        /// The kernel.
        kernel: String,
        /// Sizes of the arguments given.
        found: Vec<usize>,
        /// Sizes of the compiled parameters.
        expected: Vec<usize>,
    },
    /// The grid, block, cluster or shared memory of a launch is not possible on this GPU.
    #[error("{kernel}: {what} is {found}; this GPU allows {allowed}")]
    LaunchLimit {
        /// The kernel.
        kernel: String,
        /// Which number.
        what: &'static str,
        /// What it was.
        found: u64,
        /// What it may be.
        allowed: String,
    },
    /// The driver refuses a launch, or what a kernel asks for before it.
    #[error("{kernel}: the driver refuses {what} ({answer}){instead}")]
    Refused {
        /// The kernel.
        kernel: String,
        /// What was requested.
        what: String,
        /// The driver's answer, by name and in words.
        answer: String,
        /// What to do about it, behind a semicolon, or nothing.
        instead: &'static str,
    },
    /// A launcher was given buffers or sizes that its kernel cannot take.
    #[error("{kernel}: {what} is {found}, expected {expected}")]
    Operand {
        /// The kernel.
        kernel: &'static str,
        /// Which buffer or size.
        what: &'static str,
        /// What it was.
        found: String,
        /// What the kernel takes.
        expected: String,
    },
    /// A copy between buffers of different lengths.
    #[error("a copy of {from} elements into {into}")]
    CopyLength {
        /// Elements of the source.
        from: usize,
        /// Elements of the destination.
        into: usize,
    },
    /// A stream in capture was asked for something that a graph cannot hold.
    #[error("{what} cannot be recorded into a graph; do it before or after")]
    WhileCapturing {
        /// What was asked.
        what: &'static str,
    },
    /// The GPU has not enough free memory.
    #[error("out of GPU memory: {} were needed, {} of {} are free", Size(*.needed), Size(*.free), Size(*.total))]
    OutOfMemory {
        /// Bytes that were asked for.
        needed: u64,
        /// Bytes that were free just after.
        free: u64,
        /// Bytes that the GPU has.
        total: u64,
    },
    /// A kernel failed while it ran, and the launch that started it was waited for. Comes with `RIGEL_CUDA_SYNC=1`
    /// alone.
    #[error("{kernel} failed: {answer}; this process cannot use the GPU any more{}", instead_of(.kernel))]
    KernelFailed {
        /// The kernel's name, or `a kernel of a CUDA graph`.
        kernel: String,
        /// The driver's answer, by name and in words.
        answer: String,
    },
    /// A kernel failed while it ran: one of those launched before `call`, which only brought the news.
    #[error(
        "a kernel of the work before failed ({call}: {answer}); this process cannot use the GPU any more; run again \
         with RIGEL_CUDA_SYNC=1 to learn which kernel"
    )]
    WorkFailed {
        /// What was asked of the driver.
        call: &'static str,
        /// Its answer, by name and in words.
        answer: String,
    },
    /// Any other answer of the driver.
    #[error("{call} failed: {answer}")]
    Driver {
        /// What was asked of the driver.
        call: &'static str,
        /// Its answer, by name and in words.
        answer: String,
    },
}

/// Why CUPTI cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CuptiError {
    /// No library was found.
    #[error("no CUPTI: looked for {looked}; give its path, or use events and see no gaps")]
    NotFound {
        /// Names and paths.
        looked: String,
    },
    /// The library has not the functions that are needed.
    #[error("{file}: {reason}; expected libcupti of CUDA 12 or 13")]
    NotCupti {
        /// Its path or name.
        file: String,
        /// What the loader said.
        reason: String,
    },
    /// The places of its records' fields are not known.
    #[error(
        "{file}: CUPTI version {found}; the records of 18 to 28 and 130000 to 130599 (CUDA 11.8 to 13.5) are known"
    )]
    UnknownVersion {
        /// Its path or name.
        file: String,
        /// CUPTI_API_VERSION.
        found: u32,
    },
    /// A call failed.
    #[error("{call} failed with CUptiResult {code}; is another profiler attached, or may only root profile?")]
    Call {
        /// The function.
        call: &'static str,
        /// A CUptiResult.
        code: u32,
    },
}

/// A variable with a value that it does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={found}: expected {}", listed(.allowed))]
pub struct SwitchError {
    pub(super) variable: &'static str,
    pub(super) found: String,
    pub(super) allowed: &'static [&'static str],
}

fn listed(values: &[&str]) -> String {
    match values {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

/// What a kernel that trapped left behind, in words: set by whoever loads kernels that leave it.
pub(super) static TRAP_RECORD: OnceLock<fn() -> Option<String>> = OnceLock::new();

/// Puts the name of a driver call on its failure.
pub(super) trait Naming<T> {
    fn named(self, call: &'static str) -> Result<T, CudaError>;
}

impl<T> Naming<T> for Result<T, DriverError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| {
            let answer = describe(error);
            if is_of_a_kernel(error) {
                CudaError::WorkFailed { call, answer }
            } else {
                CudaError::Driver { call, answer }
            }
        })
    }
}

impl CudaError {
    /// The driver's answer to a launch of `kernel`, or to what is asked for before it.
    pub(super) fn refused(kernel: &str, what: String, call: &'static str, error: DriverError) -> CudaError {
        let answer = describe(error);
        if is_of_a_kernel(error) {
            return CudaError::WorkFailed { call, answer };
        }
        CudaError::Refused { kernel: kernel.to_owned(), what, answer, instead: instead_of(kernel) }
    }

    /// Whether the context is lost: everything that is asked of the GPU from now on fails too.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, CudaError::KernelFailed { .. } | CudaError::WorkFailed { .. })
    }

    /// What synchronising right after `kernel` brought to light.
    pub(super) fn failed(kernel: String, error: DriverError) -> CudaError {
        let answer = describe(error);
        if is_of_a_kernel(error) {
            CudaError::KernelFailed { kernel, answer }
        } else {
            CudaError::Driver { call: "cuStreamSynchronize", answer }
        }
    }
}

/// Whether it may be that the driver does not know an attribute of a launch.
pub(super) fn is_of_the_attribute(error: DriverError) -> bool {
    matches!(error.0, CUresult::CUDA_ERROR_INVALID_VALUE | CUresult::CUDA_ERROR_NOT_SUPPORTED)
}

/// Whether it is a fault of a running kernel. The driver returns it from whatever call comes next, and from all after.
pub(super) fn is_of_a_kernel(error: DriverError) -> bool {
    matches!(
        error.0,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
    )
}

/// `CUDA_ERROR_INVALID_VALUE: invalid argument`, and advice where there is some.
fn describe(error: DriverError) -> String {
    let name = error.error_name().map_or_else(|_| format!("{:?}", error.0), |name| name.to_string_lossy().into_owned());
    let words = error.error_string().map_or(String::new(), |words| format!(": {}", words.to_string_lossy()));
    let advice = match error.0 {
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => " (the driver was updated: restart the machine)",
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => " (is the fabric manager running?)",
        _ => "",
    };
    // A trap's record is still there where the context is lost.
    let record = TRAP_RECORD.get().filter(|_| is_of_a_kernel(error)).and_then(|record| record());
    let trap = record.map_or(String::new(), |record| format!("; {record}"));
    format!("{name}{words}{advice}{trap}")
}

/// What to try where this kernel fails or is refused: the switch that takes another in its place. `""` if there is
/// none.
fn instead_of(kernel: &str) -> &'static str {
    const INSTEAD: [(&str, &str); 6] = [
        ("attention_decode_sm90", "; RIGEL_CUDA_ATTENTION_DECODE=sm80 takes another kernel"),
        ("attention_prefill_sm90", "; RIGEL_CUDA_ATTENTION_PREFILL=sm80 takes another kernel"),
        ("gemm_small_m_", "; RIGEL_CUDA_GEMM=sm80, or RIGEL_CUDA_GEMV=sm80 for up to 16 rows, takes another kernel"),
        ("gemm_sm90_", "; RIGEL_CUDA_GEMM=sm80, or RIGEL_CUDA_GEMV=sm80 for up to 16 rows, takes another kernel"),
        ("gemv_normed_", "; RIGEL_CUDA_GEMV=gemv takes other kernels"),
        ("gemv_", "; RIGEL_CUDA_GEMV=sm80 takes another kernel"),
    ];
    INSTEAD.iter().find(|(start, _)| kernel.starts_with(start)).map_or("", |(_, instead)| instead)
}
