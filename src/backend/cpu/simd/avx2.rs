//! Lanes as two AVX registers (AVX2, FMA, F16C).

use std::arch::x86_64::*;

use super::{LANES, Lanes, x86};

/// Lanes 0–7 and 8–15.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Copies `n` elements into zeroed lanes: AVX2 has no masked load of 16-bit elements.
#[inline(always)]
unsafe fn padded<T: Copy + Default>(from: *const T, n: usize) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    // SAFETY: the caller promises `n <= 16` readable elements; bytes need no alignment.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), out.as_mut_ptr().cast(), n * size_of::<T>()) };
    out
}

#[inline(always)]
unsafe fn widen_bf16(from: *const u16) -> __m256 {
    // SAFETY: as `Lanes`: the caller has AVX2 and promises eight elements.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
}

#[inline(always)]
unsafe fn add_exponent(a: __m256, n: __m256) -> __m256 {
    // SAFETY: as `Lanes`: the caller has AVX2.
    unsafe {
        let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n))
    }
}

// SAFETY of every block below: the caller promises AVX2, FMA and F16C, and that the elements named in `Lanes` may be
// read or written.
impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Self::load(padded(from, n).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(widen_bf16(from), widen_bf16(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_bf16_first(from: *const u16, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Self::load_bf16(padded(from, n).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: see the head of this block.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            Avx2(low, _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_first(from: *const u16, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Self::load_f16(padded(from, n).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: see the head of this block.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn zero_where_below(self, x: Self, limit: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe {
            Avx2(
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.0, limit.0), self.0),
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x.1, limit.1), self.1),
            )
        }
    }
    #[inline(always)]
    unsafe fn add_exponent(self, n: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx2(add_exponent(self.0, n.0), add_exponent(self.1, n.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { x86::sum(self.fold()) }
    }
    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4], to: *mut f32) {
        // SAFETY: see the head of this block.
        unsafe { x86::sum4([a.fold(), b.fold(), c.fold(), d.fold()], to) }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { x86::largest(_mm256_max_ps(self.0, self.1)) }
    }
}

impl Avx2 {
    #[inline(always)]
    unsafe fn fold(self) -> __m128 {
        // SAFETY: as `Lanes`: the caller has AVX2.
        unsafe { x86::fold(_mm256_add_ps(self.0, self.1)) }
    }
}
