//! Lanes as one AVX-512 register (F, BW and VL, which came together in every server since 2017).

use std::arch::x86_64::*;

use super::{Lanes, x86};

/// Sixteen `f32` in one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

#[inline(always)]
unsafe fn widen_bf16(bits: __m256i) -> Avx512 {
    // SAFETY: as `Lanes`: the caller has AVX-512.
    unsafe { Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))) }
}

// SAFETY of every block below: the caller promises AVX-512 F, BW and VL, and that the elements named in `Lanes` may
// be read or written; masked-out elements are not touched.
impl Lanes for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_maskz_loadu_ps(first(n), from)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the head of this block.
        unsafe { widen_bf16(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_first(from: *const u16, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { widen_bf16(_mm256_maskz_loadu_epi16(first(n), from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_f16_first(from: *const u16, n: usize) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the head of this block.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        // SAFETY: see the head of this block.
        unsafe { _mm512_mask_storeu_ps(to, first(n), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe { Avx512(_mm512_min_ps(self.0, other.0)) }
    }
    #[inline(always)]
    unsafe fn zero_where_below(self, x: Self, limit: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, limit.0);
            Avx512(_mm512_maskz_mov_ps(keep, self.0))
        }
    }
    #[inline(always)]
    unsafe fn add_exponent(self, n: Self) -> Self {
        // SAFETY: see the head of this block.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
            Avx512(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n)))
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { x86::sum(x86::fold(self.fold())) }
    }
    #[inline(always)]
    unsafe fn sum4([a, b, c, d]: [Self; 4], to: *mut f32) {
        // SAFETY: see the head of this block.
        unsafe {
            let four = [x86::fold(a.fold()), x86::fold(b.fold()), x86::fold(c.fold()), x86::fold(d.fold())];
            x86::sum4(four, to)
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { x86::largest(_mm256_max_ps(_mm512_castps512_ps256(self.0), self.upper())) }
    }
}

impl Avx512 {
    #[inline(always)]
    unsafe fn upper(self) -> __m256 {
        // SAFETY: as `Lanes`: the caller has AVX-512 F.
        unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))) }
    }
    #[inline(always)]
    unsafe fn fold(self) -> __m256 {
        // SAFETY: as `Lanes`: the caller has AVX-512 F.
        unsafe { _mm256_add_ps(_mm512_castps512_ps256(self.0), self.upper()) }
    }
}
