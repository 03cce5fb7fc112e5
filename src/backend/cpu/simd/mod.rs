//! Sixteen `f32` lanes, whatever registers the machine has for them: the only vocabulary of the CPU kernels. Knows
//! instructions, not models.
//!
//! Every kernel is written once over [`Lanes`] and compiled once for each instruction set. Lane counts, operation
//! orders and the tree of [`Lanes::sum`] are the same everywhere, so AVX2 and AVX-512 give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use crate::checkpoint::Dtype;
use crate::model::WeightFormat;

/// Number of lanes.
pub(crate) const LANES: usize = 16;

/// Sixteen `f32`.
///
/// # Safety
/// Every function needs a processor with the implementation's instructions, and pays off only inside a function
/// compiled for them: these are all inlined. Pointers need no alignment; `load` and `store` touch sixteen elements,
/// the `_first` forms exactly `n <= 16` of them.
pub(crate) trait Lanes: Copy {
    /// Whether 24 accumulators stay in registers beside their operands (else 6).
    const WIDE: bool;

    /// Asks for the cache line at `at`, which need not exist, in the L1.
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of x86-64; a prefetch never faults.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast())
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// [`Lanes::prefetch`], in the L2.
    #[inline(always)]
    unsafe fn prefetch_second(at: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as `prefetch`.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast())
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Lanes from `n` on are 0.
    unsafe fn load_first(from: *const f32, n: usize) -> Self;
    /// Little-endian bf16, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn load_bf16_first(from: *const u16, n: usize) -> Self;
    /// Little-endian IEEE half, widened.
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_f16_first(from: *const u16, n: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_first(self, to: *mut f32, n: usize);

    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the machine can.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where either is NaN.
    unsafe fn min(self, other: Self) -> Self;
    /// `self`, but 0 where `x < limit`.
    unsafe fn zero_where_below(self, x: Self, limit: Self) -> Self;
    /// Adds the integer in the low bits of `n` to the exponents: `self * 2^n` while the result is normal.
    unsafe fn add_exponent(self, n: Self) -> Self;

    /// The sum of the lanes, always as the same tree: lane `l` and `l + 8`, then `+ 4`, `+ 2`, `+ 1`.
    unsafe fn sum(self) -> f32;
    /// [`Lanes::sum`] of four at once.
    unsafe fn sum4(four: [Self; 4], to: *mut f32);
    /// The largest lane.
    unsafe fn largest(self) -> f32;
}

/// How the weights of a row are stored: in groups that are decoded together, one behind the other.
///
/// # Safety
/// As [`Lanes`].
pub(crate) trait Weight: Copy {
    /// The format that it is.
    const FORMAT: WeightFormat;
    /// Weights of a group: whole lanes. Dense weights have no groups of their own: any number will do.
    const GROUP: usize = LANES;
    /// Bytes of a group.
    const GROUP_BYTES: usize;

    /// Bytes of `n` weights from the start of a group on: of whole groups, or up to the end of a row.
    #[inline(always)]
    fn bytes(n: usize) -> usize {
        if Self::GROUP_BYTES.is_multiple_of(Self::GROUP) {
            n * (Self::GROUP_BYTES / Self::GROUP)
        } else {
            n.div_ceil(Self::GROUP) * Self::GROUP_BYTES
        }
    }

    /// Bytes to the group of a row's weight `k`, a multiple of sixteen, and the weight's place in it.
    #[inline(always)]
    fn place(k: usize) -> (usize, usize) {
        let within = if Self::GROUP == LANES { 0 } else { k % Self::GROUP };
        (Self::bytes(k - within), within)
    }

    /// Sixteen weights of a group, from weight `within` on, a multiple of sixteen; widened.
    unsafe fn load<L: Lanes>(group: *const u8, within: usize) -> L;
    /// The first `n` of them, widened; 0 in the other lanes.
    unsafe fn load_first<L: Lanes>(group: *const u8, within: usize, n: usize) -> L;
}

/// IEEE single.
#[derive(Clone, Copy)]
pub(crate) struct F32;
/// IEEE half.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// The upper half of an IEEE single.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

macro_rules! dense {
    ($weight:ty, $dtype:expr, $bits:ty, $load:ident, $load_first:ident) => {
        impl Weight for $weight {
            const FORMAT: WeightFormat = WeightFormat::dense($dtype);
            const GROUP_BYTES: usize = LANES * size_of::<$bits>();
            #[inline(always)]
            unsafe fn load<L: Lanes>(group: *const u8, within: usize) -> L {
                // SAFETY: the caller's promise.
                unsafe { L::$load(group.cast::<$bits>().add(within)) }
            }
            #[inline(always)]
            unsafe fn load_first<L: Lanes>(group: *const u8, within: usize, n: usize) -> L {
                // SAFETY: the caller's promise.
                unsafe { L::$load_first(group.cast::<$bits>().add(within), n) }
            }
        }
    };
}

dense!(F32, Dtype::F32, f32, load, load_first);
dense!(F16, Dtype::F16, u16, load_f16, load_f16_first);
dense!(Bf16, Dtype::Bf16, u16, load_bf16, load_bf16_first);
