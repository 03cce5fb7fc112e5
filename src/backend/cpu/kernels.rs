//! The kernels, compiled once for each instruction set, and the choice among them at run time.

use std::ops::Range;

use super::attention::{self, Tile};
use super::matmul::{self, Gemm};
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Bf16, F16, F32, Portable, Weight};
use crate::backend::BackendError;
use crate::model::WeightFormat;

/// Names the instruction set to use in place of the best one.
pub const ISA_VARIABLE: &str = "RIGEL_CPU_ISA";

/// Instruction sets that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// What the compiler makes of plain loops; every machine has it.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VL.
    Avx512,
}

impl Isa {
    const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The name that `RIGEL_CPU_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Those that this machine has, the best one last.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| Kernels::new(*isa).is_some())
    }

    /// The one that kernels are taken of: the best that this machine has, or the one that `RIGEL_CPU_ISA` names.
    ///
    /// # Errors
    /// [`BackendError::Variable`] if the variable names none that this machine has.
    pub fn from_env() -> Result<Isa, BackendError> {
        let wanted = std::env::var_os(ISA_VARIABLE).map(|name| name.to_string_lossy().into_owned());
        Isa::choose(wanted.as_deref())
    }

    /// The best available one, or the one that `wanted` (the value of `RIGEL_CPU_ISA`) names.
    pub(crate) fn choose(wanted: Option<&str>) -> Result<Isa, BackendError> {
        let names = || Isa::available().map(Isa::name).collect::<Vec<_>>().join(", ");
        match wanted.filter(|name| !name.is_empty()) {
            None => Ok(Isa::available().last().unwrap_or(Isa::Portable)),
            Some(name) => Isa::available().find(|isa| isa.name() == name).ok_or_else(|| {
                BackendError::Variable(format!(
                    "{ISA_VARIABLE}={}: this machine has {}; set it to one of these, or unset it",
                    name.escape_debug(),
                    names()
                ))
            }),
        }
    }
}

type GemmBlock = unsafe fn(&Gemm<'_>, Range<usize>, usize, matmul::Scratch);
type Widen = unsafe fn(*const u8, usize, *mut f32);

/// Entry points of one weight format. Each is as unsafe as the kernel that it is named after.
pub(crate) struct WeightKernels {
    pub(crate) format: WeightFormat,
    /// [`gemm_block`](matmul::gemm_block)
    pub(crate) gemm_block: GemmBlock,
    /// [`widen`](matmul::widen)
    pub(crate) widen: Widen,
}

/// Entry points of one instruction set. Each is as unsafe as the kernel that it is named after.
pub(crate) struct Kernels {
    weights: [WeightKernels; 3],
    /// [`attend`](super::attention::attend)
    pub(crate) attend: unsafe fn(&Tile<'_>, attention::Scratch),
    /// [`layer_norm`](super::norm::layer_norm)
    pub(crate) layer_norm: unsafe fn(*const f32, *const f32, *const f32, f32, usize, *mut f32),
    /// [`rotate`](super::rope::rotate)
    pub(crate) rotate: unsafe fn(*const f32, *const f32, *const f32, usize, *mut f32),
    /// `exp` and both forms of GELU of 16 elements, one after the other, for tests.
    #[cfg(test)]
    pub(crate) elementwise: unsafe fn(*const f32, *mut f32),
}

macro_rules! compile {
    (@weight $module:ident, $weight:ty, $lanes:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            $(#[target_feature(enable = $features)])?
            unsafe fn gemm_block(gemm: &Gemm<'_>, block: Range<usize>, next: usize, scratch: matmul::Scratch) {
                // SAFETY: the caller's promise.
                unsafe { matmul::gemm_block::<$lanes, $weight>(gemm, block, next, scratch) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn widen(from: *const u8, n: usize, to: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { matmul::widen::<$lanes, $weight>(from, n, to) }
            }

            pub(super) const KERNELS: WeightKernels =
                WeightKernels { format: <$weight>::FORMAT, gemm_block, widen };
        }
    };
    ($module:ident, $lanes:ty $(, $features:literal)?) => {
        mod $module {
            use super::*;

            compile!(@weight f32_weights, F32, $lanes $(, $features)?);
            compile!(@weight f16_weights, F16, $lanes $(, $features)?);
            compile!(@weight bf16_weights, Bf16, $lanes $(, $features)?);

            $(#[target_feature(enable = $features)])?
            unsafe fn attend(tile: &Tile<'_>, scratch: attention::Scratch) {
                // SAFETY: the caller's promise, as for all below.
                unsafe { attention::attend::<$lanes>(tile, scratch) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn layer_norm(
                x: *const f32, weight: *const f32, bias: *const f32, eps: f32, n: usize, out: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { super::super::norm::layer_norm::<$lanes>(x, weight, bias, eps, n, out) }
            }

            $(#[target_feature(enable = $features)])?
            unsafe fn rotate(x: *const f32, cos: *const f32, sin: *const f32, half: usize, to: *mut f32) {
                // SAFETY: as above.
                unsafe { super::super::rope::rotate::<$lanes>(x, cos, sin, half, to) }
            }

            #[cfg(test)]
            $(#[target_feature(enable = $features)])?
            unsafe fn elementwise(x: *const f32, out: *mut f32) {
                use super::super::{activation, simd::{LANES, Lanes}};
                // SAFETY: as above.
                unsafe {
                    let x = <$lanes>::load(x);
                    activation::exp(x).store(out);
                    activation::gelu_tanh(x).store(out.add(LANES));
                    activation::gelu_erf(x).store(out.add(2 * LANES));
                }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                weights: [f32_weights::KERNELS, f16_weights::KERNELS, bf16_weights::KERNELS],
                attend,
                layer_norm,
                rotate,
                #[cfg(test)]
                elementwise,
            };
        }
    };
}

compile!(portable, Portable);
#[cfg(target_arch = "x86_64")]
compile!(avx2, Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
compile!(avx512, Avx512, "avx512f,avx512bw,avx512vl,avx2,fma,f16c");

impl Kernels {
    /// Those for weights of this format; `None` where there are none.
    pub(crate) fn of_format(&'static self, format: WeightFormat) -> Option<&'static WeightKernels> {
        self.weights.iter().find(|kernels| kernels.format == format)
    }

    /// The kernels for `isa`, unless this machine cannot run them.
    pub(crate) fn new(isa: Isa) -> Option<&'static Kernels> {
        match isa {
            Isa::Portable => Some(&portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                let has = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                has.then_some(&avx2::KERNELS)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                let has = Kernels::new(Isa::Avx2).is_some()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl");
                has.then_some(&avx512::KERNELS)
            }
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => None,
        }
    }
}
