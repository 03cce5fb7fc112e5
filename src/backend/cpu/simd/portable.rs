//! Lanes as an array: what the compiler can vectorise on any machine.

use super::{LANES, Lanes};

/// Sixteen `f32` in an array.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Portable([f32; LANES]);

/// A fused multiply-add where it is one instruction: as a library call it would cost a hundred.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Portable {
    #[inline(always)]
    fn map2(self, other: Portable, f: impl Fn(f32, f32) -> f32) -> Portable {
        let mut out = self;
        for l in 0..LANES {
            out.0[l] = f(self.0[l], other.0[l]);
        }
        out
    }
}

#[inline(always)]
unsafe fn widen(from: *const u16, n: usize, f: impl Fn(u16) -> f32) -> Portable {
    let mut out = [0.0; LANES];
    for (l, lane) in out.iter_mut().enumerate().take(n) {
        // SAFETY: the caller promises `n` readable elements.
        *lane = f(u16::from_le(unsafe { from.add(l).read_unaligned() }));
    }
    Portable(out)
}

#[inline(always)]
fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Without branches, so that sixteen of them vectorise: the exponent is moved over by a multiplication, which is exact
/// and normalises subnormals; all ones are set again for infinity and NaN.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let scaled = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = (magnitude << 13) | 0x7f80_0000;
    let magnitude = if magnitude >= 0x7c00 { special } else { scaled };
    f32::from_bits(magnitude | u32::from(bits & 0x8000) << 16)
}

// SAFETY of every block below: the caller promises that the elements named in `Lanes` may be read or written; no
// special instruction is used.
impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Self::load_first(from, LANES) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        let mut out = [0.0; LANES];
        for (l, lane) in out.iter_mut().enumerate().take(n) {
            // SAFETY: see the head of this block.
            *lane = f32::from_bits(u32::from_le(unsafe { from.add(l).cast::<u32>().read_unaligned() }));
        }
        Portable(out)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the head of this block.
        unsafe { widen(from, LANES, from_bf16) }
    }
    #[inline(always)]
    unsafe fn load_bf16_first(from: *const u16, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { widen(from, n, from_bf16) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: see the head of this block.
        unsafe { widen(from, LANES, from_f16) }
    }
    #[inline(always)]
    unsafe fn load_f16_first(from: *const u16, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { widen(from, n, from_f16) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the head of this block.
        unsafe { self.store_first(to, LANES) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        for (l, lane) in self.0.iter().enumerate().take(n) {
            // SAFETY: see the head of this block.
            unsafe { to.add(l).write_unaligned(*lane) }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map2(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.map2(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.map2(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.map2(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut out = self;
        for l in 0..LANES {
            out.0[l] =
                if FUSED { self.0[l].mul_add(factor.0[l], addend.0[l]) } else { self.0[l] * factor.0[l] + addend.0[l] };
        }
        out
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.map2(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.map2(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn zero_where_below(self, x: Self, limit: Self) -> Self {
        let mut out = self;
        for l in 0..LANES {
            out.0[l] = if x.0[l] < limit.0[l] { 0.0 } else { self.0[l] };
        }
        out
    }
    #[inline(always)]
    unsafe fn add_exponent(self, n: Self) -> Self {
        self.map2(n, |a, n| f32::from_bits(a.to_bits().wrapping_add(n.to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut a = self.0;
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                a[l] += a[l + width];
            }
        }
        a[0]
    }
    #[inline(always)]
    unsafe fn sum4(four: [Self; 4], to: *mut f32) {
        for (i, lanes) in four.into_iter().enumerate() {
            // SAFETY: see the head of this block.
            unsafe { to.add(i).write_unaligned(lanes.sum()) }
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut a = self.0;
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                a[l] = if a[l] > a[l + width] { a[l] } else { a[l + width] };
            }
        }
        a[0]
    }
}
