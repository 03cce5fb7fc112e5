//! Matrix products with weights as they are stored: `out[row] = then(x[row] · weightᵀ + bias)`.
//!
//! Each output is one dot product along K, always in the same order: lane `l` adds up `k ≡ l (mod 16)` from the
//! first to the last, then the lanes are added as [`Lanes::sum`]'s tree. How many rows share a pass over the
//! weights, and how the outputs are cut into tiles and blocks, changes no bit of any of them.

use std::ops::Range;

use super::activation::gelu_tanh;
use super::simd::{Bf16, Element, F16, F32, LANES, Lanes};
use crate::checkpoint::Dtype;

/// The most weight rows in a block.
pub(crate) const MAX_BLOCK: usize = 256;
/// The most activation rows that share one pass over a block.
pub(crate) const MAX_PANEL: usize = 6;

/// What becomes of `x · weightᵀ + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is stored.
    Store,
    /// Its GELU is stored.
    Gelu,
    /// It is added to what is there.
    Add,
}

/// A weight matrix as it is stored, `[rows, columns]`, row after row.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub dtype: Dtype,
    /// Little-endian, of any alignment.
    pub bytes: &'a [u8],
    pub columns: usize,
}

impl Matrix<'_> {
    /// Bytes of one row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.columns * self.dtype.size()
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }
}

/// One matrix product over all rows of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// Activations, f32 `[rows, weight.columns]`, rows `x_stride` apart.
    pub x: *const f32,
    pub x_stride: usize,
    pub rows: usize,
    pub weight: Matrix<'a>,
    /// f32 `[weight.rows()]`
    pub bias: Option<&'a [f32]>,
    /// Results, f32 `[rows, weight.rows()]`, rows `out_stride` apart.
    pub out: *mut f32,
    pub out_stride: usize,
    pub then: Then,
}

/// Computes outputs `block` (weight rows) of every activation row.
///
/// # Safety
/// As [`Lanes`]; `product.x` and `product.out` are as documented and disjoint, nobody else touches
/// `out[.., block]` meanwhile; `block` lies inside the weight's rows and is no longer than [`MAX_BLOCK`]; `dots`
/// holds `MAX_PANEL * MAX_BLOCK`.
#[inline(always)]
pub(crate) unsafe fn product_block<L: Lanes>(product: &Product<'_>, block: Range<usize>, dots: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match product.weight.dtype {
            Dtype::F32 => panels::<L, F32>(product, block, dots),
            Dtype::F16 => panels::<L, F16>(product, block, dots),
            Dtype::Bf16 => panels::<L, Bf16>(product, block, dots),
        }
    }
}

#[inline(always)]
unsafe fn panels<L: Lanes, W: Element>(product: &Product<'_>, block: Range<usize>, dots: *mut f32) {
    let most = if L::WIDE { 6 } else { 3 };
    let mut row = 0;
    while row < product.rows {
        let m = most.min(product.rows - row);
        // SAFETY: the caller's promise; rows `row..row + m` exist.
        unsafe {
            match (L::WIDE, m) {
                (true, 1) => panel::<L, W, 1, 8>(product, row, block.clone(), dots),
                (true, 2) => panel::<L, W, 2, 8>(product, row, block.clone(), dots),
                (true, 3) => panel::<L, W, 3, 4>(product, row, block.clone(), dots),
                (true, 4) => panel::<L, W, 4, 4>(product, row, block.clone(), dots),
                (true, 5) => panel::<L, W, 5, 4>(product, row, block.clone(), dots),
                (true, _) => panel::<L, W, 6, 4>(product, row, block.clone(), dots),
                (false, 1) => panel::<L, W, 1, 4>(product, row, block.clone(), dots),
                (false, 2) => panel::<L, W, 2, 2>(product, row, block.clone(), dots),
                (false, _) => panel::<L, W, 3, 2>(product, row, block.clone(), dots),
            }
        }
        row += m;
    }
}

/// `M` activation rows against a block of weights, `N` weight rows at a time.
#[inline(always)]
unsafe fn panel<L: Lanes, W: Element, const M: usize, const N: usize>(
    product: &Product<'_>,
    row: usize,
    block: Range<usize>,
    dots: *mut f32,
) {
    let k = product.weight.columns;
    let stride = k * W::SIZE;
    // SAFETY: the caller's promise; weight rows stay inside `block`, activation rows inside `row..row + M`.
    unsafe {
        let weights = product.weight.bytes.as_ptr();
        let mut x = [product.x; M];
        for (m, x) in x.iter_mut().enumerate() {
            *x = product.x.add((row + m) * product.x_stride);
        }
        let mut n = block.start;
        while n + N <= block.end {
            let mut w = [weights; N];
            for (i, w) in w.iter_mut().enumerate() {
                *w = weights.add((n + i) * stride);
            }
            dot_tile::<L, W, M, N>(x, w, k, dots.add(n - block.start), MAX_BLOCK);
            n += N;
        }
        while n < block.end {
            dot_tile::<L, W, M, 1>(x, [weights.add(n * stride)], k, dots.add(n - block.start), MAX_BLOCK);
            n += 1;
        }
        for m in 0..M {
            finish::<L>(product, row + m, block.clone(), dots.add(m * MAX_BLOCK));
        }
    }
}

/// `dots[m * stride + n] = Σ_k x[m][k] w[n][k]` for `m < M`, `n < N`.
///
/// # Safety
/// As [`Lanes`]; every `x` holds `k` elements, every `w` `k` elements of `W`, and `dots` has room.
#[inline(always)]
pub(crate) unsafe fn dot_tile<L: Lanes, W: Element, const M: usize, const N: usize>(
    x: [*const f32; M],
    w: [*const u8; N],
    k: usize,
    dots: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[L::splat(0.0); N]; M];
        let whole = k - k % LANES;
        let mut i = 0;
        while i < whole {
            let mut b = [L::splat(0.0); N];
            for n in 0..N {
                b[n] = W::load::<L>(w[n].add(i * W::SIZE));
            }
            for m in 0..M {
                let a = L::load(x[m].add(i));
                for n in 0..N {
                    acc[m][n] = a.mul_add(b[n], acc[m][n]);
                }
            }
            i += LANES;
        }
        if whole < k {
            for m in 0..M {
                let a = L::load_first(x[m].add(whole), k - whole);
                for n in 0..N {
                    let b = W::load_first::<L>(w[n].add(whole * W::SIZE), k - whole);
                    acc[m][n] = a.mul_add(b, acc[m][n]);
                }
            }
        }
        for m in 0..M {
            let dots = dots.add(m * stride);
            let fours = N - N % 4;
            for n in (0..fours).step_by(4) {
                L::sum4([acc[m][n], acc[m][n + 1], acc[m][n + 2], acc[m][n + 3]], dots.add(n));
            }
            for n in fours..N {
                *dots.add(n) = acc[m][n].sum();
            }
        }
    }
}

/// Bias and what comes after, over the outputs `block` of one row.
#[inline(always)]
unsafe fn finish<L: Lanes>(product: &Product<'_>, row: usize, block: Range<usize>, dots: *const f32) {
    // SAFETY: the caller's promise; `i < block.len()`.
    unsafe {
        let out = product.out.add(row * product.out_stride + block.start);
        let bias = product.bias.map(|bias| bias.as_ptr().add(block.start));
        let mut i = 0;
        while i < block.len() {
            let n = LANES.min(block.len() - i);
            let mut y = L::load_first(dots.add(i), n);
            if let Some(bias) = bias {
                y = y.add(L::load_first(bias.add(i), n));
            }
            match product.then {
                Then::Store => {}
                Then::Gelu => y = gelu_tanh(y),
                Then::Add => y = L::load_first(out.add(i), n).add(y),
            }
            y.store_first(out.add(i), n);
            i += LANES;
        }
    }
}

/// Widens `n` stored elements to f32.
///
/// # Safety
/// As [`Lanes`]; `from` holds `n` elements of `dtype`, `to` has room for them.
#[inline(always)]
pub(crate) unsafe fn widen<L: Lanes>(dtype: Dtype, from: *const u8, n: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::F32 => widen_as::<L, F32>(from, n, to),
            Dtype::F16 => widen_as::<L, F16>(from, n, to),
            Dtype::Bf16 => widen_as::<L, Bf16>(from, n, to),
        }
    }
}

#[inline(always)]
unsafe fn widen_as<L: Lanes, W: Element>(from: *const u8, n: usize, to: *mut f32) {
    let mut i = 0;
    while i < n {
        let lanes = LANES.min(n - i);
        // SAFETY: the caller's promise; `i + lanes <= n`.
        unsafe { W::load_first::<L>(from.add(i * W::SIZE), lanes).store_first(to.add(i), lanes) };
        i += LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernels::{Isa, Kernels};
    use crate::backend::cpu::testing::{DTYPES, Random, stored};

    struct Case {
        x: Vec<f32>,
        bytes: Vec<u8>,
        wide: Vec<f32>,
        bias: Vec<f32>,
        dtype: Dtype,
        n: usize,
        k: usize,
    }

    impl Case {
        fn new(random: &mut Random, dtype: Dtype, rows: usize, n: usize, k: usize) -> Case {
            let (mut bytes, wide) = stored(&random.units(n * k), dtype);
            // One odd byte in front: nothing is aligned. NaN behind: nothing beyond the last row may be read.
            bytes.insert(0, 0xff);
            bytes.extend([0xff; 64]);
            Case { x: random.units(rows * k), bytes, wide, bias: random.units(n), dtype, n, k }
        }

        /// Outputs over `block`, 7.0 in the others and beforehand.
        fn run(&self, isa: Isa, rows: Range<usize>, block: Range<usize>, then: Then) -> Vec<f32> {
            let weight = Matrix {
                dtype: self.dtype,
                bytes: &self.bytes[1..1 + self.n * self.k * self.dtype.size()],
                columns: self.k,
            };
            let mut out = vec![7.0; rows.len() * self.n];
            let product = Product {
                x: self.x[rows.start * self.k..].as_ptr(),
                x_stride: self.k,
                rows: rows.len(),
                weight,
                bias: Some(&self.bias),
                out: out.as_mut_ptr(),
                out_stride: self.n,
                then,
            };
            let mut dots = vec![f32::NAN; MAX_PANEL * MAX_BLOCK];
            // SAFETY: buffers are as long as said; `isa` is available.
            unsafe { (Kernels::new(isa).unwrap().product_block)(&product, block, dots.as_mut_ptr()) };
            out
        }

        fn exact(&self, row: usize, n: usize) -> (f64, f64) {
            let mut dot = f64::from(self.bias[n]);
            let mut size = dot.abs();
            for i in 0..self.k {
                let term = f64::from(self.x[row * self.k + i]) * f64::from(self.wide[n * self.k + i]);
                dot += term;
                size += term.abs();
            }
            (dot, size)
        }
    }

    #[test]
    fn products_agree_with_f64_loops() {
        let mut random = Random(1);
        for isa in Isa::available() {
            for dtype in DTYPES {
                for k in [1, 15, 16, 17, 33, 64, 129] {
                    for n in [1, 3, 4, 7, 8, 9, 13, 16, 21] {
                        for rows in 1..=9 {
                            let case = Case::new(&mut random, dtype, rows, n, k);
                            let start = random.below(n);
                            let block = start..start + 1 + random.below(n - start);
                            let stored = case.run(isa, 0..rows, block.clone(), Then::Store);
                            let added = case.run(isa, 0..rows, block.clone(), Then::Add);
                            let gelu = case.run(isa, 0..rows, block.clone(), Then::Gelu);
                            for i in 0..rows * n {
                                if !block.contains(&(i % n)) {
                                    assert!([stored[i], added[i], gelu[i]] == [7.0; 3], "wrote outside its block");
                                    continue;
                                }
                                let (exact, size) = case.exact(i / n, i % n);
                                let near = |found: f32, exact: f64, size: f64| {
                                    let error = (f64::from(found) - exact).abs();
                                    assert!(error <= 1e-6 * (size + 1e-3), "{isa:?} {dtype} {rows}x{n}x{k}: {error}");
                                };
                                near(stored[i], exact, size);
                                near(added[i], 7.0 + exact, 7.0 + size);
                                let u = (2.0 / std::f64::consts::PI).sqrt() * (exact + 0.044715 * exact.powi(3));
                                near(gelu[i], 0.5 * exact * (1.0 + u.tanh()), 2.0 * size);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn an_output_has_the_same_bits_in_any_company() {
        let mut random = Random(2);
        for isa in Isa::available() {
            for dtype in DTYPES {
                for (rows, n, k) in [(13, 21, 100), (7, 8, 16), (9, 5, 37)] {
                    let case = Case::new(&mut random, dtype, rows, n, k);
                    for then in [Then::Store, Then::Gelu, Then::Add] {
                        let whole = case.run(isa, 0..rows, 0..n, then);
                        for row in 0..rows {
                            let last = row + 1 + random.below(rows - row);
                            for column in 0..n {
                                let block = random.below(column + 1)..column + 1 + random.below(n - column);
                                let part = case.run(isa, row..last, block, then);
                                assert_eq!(part[column].to_bits(), whole[row * n + column].to_bits());
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn avx2_and_avx512_give_the_same_bits() {
        if Isa::available().last() != Some(Isa::Avx512) {
            eprintln!("skipped: avx2_and_avx512_give_the_same_bits: this machine has no AVX-512");
            return;
        }
        let mut random = Random(3);
        for dtype in DTYPES {
            for (rows, n, k) in [(7, 13, 75), (1, 9, 16), (12, 16, 130)] {
                let case = Case::new(&mut random, dtype, rows, n, k);
                for then in [Then::Store, Then::Gelu, Then::Add] {
                    let [a, b] = [Isa::Avx2, Isa::Avx512].map(|isa| case.run(isa, 0..rows, 0..n, then));
                    assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }

    #[test]
    fn widening_is_exact_for_every_stored_value() {
        for isa in Isa::available() {
            let widen = Kernels::new(isa).unwrap().widen;
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let mut wide = vec![0.0f32; 1 << 16];
                // SAFETY: 65536 elements each.
                unsafe { widen(dtype, all.as_ptr(), 1 << 16, wide.as_mut_ptr()) };
                for (bits, wide) in (0..=u16::MAX).zip(wide) {
                    let expected = match dtype {
                        Dtype::F16 => half::f16::from_bits(bits).to_f32(),
                        _ => half::bf16::from_bits(bits).to_f32(),
                    };
                    assert!(wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan());
                }
            }
        }
    }
}
