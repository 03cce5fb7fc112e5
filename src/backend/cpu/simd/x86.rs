//! The end of the summation tree, shared by AVX2 and AVX-512.

use std::arch::x86_64::*;

/// Eight lanes to four: `l` and `l + 4`.
///
/// # Safety
/// AVX.
#[inline(always)]
pub(super) unsafe fn fold(a: __m256) -> __m128 {
    // SAFETY: the caller has AVX.
    unsafe { _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a)) }
}

/// Four lanes to one: `l` and `l + 2`, then `l + 1`.
///
/// # Safety
/// SSE, which every x86-64 has.
#[inline(always)]
pub(super) unsafe fn sum(a: __m128) -> f32 {
    // SAFETY: SSE is part of x86-64.
    unsafe {
        let pair = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps::<1>(pair, pair)))
    }
}

/// [`sum`] of four at once, the same additions.
///
/// # Safety
/// SSE, which every x86-64 has; `to` has room for four.
#[inline(always)]
pub(super) unsafe fn sum4([a, b, c, d]: [__m128; 4], to: *mut f32) {
    // SAFETY: SSE is part of x86-64; the caller promises `to`.
    unsafe {
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
        let odd = _mm_shuffle_ps::<0b11_01_11_01>(ab, cd);
        _mm_storeu_ps(to, _mm_add_ps(even, odd));
    }
}

/// The largest of eight lanes.
///
/// # Safety
/// AVX.
#[inline(always)]
pub(super) unsafe fn largest(a: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps::<1>(a, a)))
    }
}
