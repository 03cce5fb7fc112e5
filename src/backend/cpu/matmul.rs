//! Matrix products with weights as they are stored: `out[row] = then(x[row] · weightᵀ + bias)`.
//!
//! Each output is one dot product along K, always in the same order: lane `l` adds up `k ≡ l (mod 16)` from the
//! first to the last, then the lanes are added as [`Lanes::sum`]'s tree. How many rows share a pass over the
//! weights, and how the outputs are cut into tiles and blocks, changes no bit of any of them.

// Loops over the constant sizes of a tile become registers; indices say which.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::activation::{gelu_erf, gelu_tanh};
use super::kernels::WeightKernels;
use super::simd::{LANES, Lanes, Weight};

/// The most weight rows in a block.
const MAX_BLOCK: usize = 256;
/// The most activation rows that share a load of weights.
const MAX_PANEL: usize = 6;

// More rows than a panel's: the same weights are used again and again, arithmetic is the limit, and what is used again
// should be near. For each group of rows in turn, for each stretch of K in turn, every panel of the group passes over
// that stretch of the block. Near are then a panel's activations (24 KB of first-level cache), the block's stretch
// and the group's unfinished sums (128 + 192 KB of L2).

/// Weight rows in a block.
const GROUP_BLOCK: usize = 64;
/// Activation rows in a group.
const GROUP: usize = 48;
/// Elements of K in a stretch.
const STRETCH: usize = 1024;

// Up to a panel of rows: memory is the limit, and a block is read in the order in which it lies there.

/// Bytes of a block that one row passes over: a long read, since each begins with a wait.
const STREAM_BYTES: usize = 2 << 20;
/// Bytes of a block that more than one panel may pass over: the second finds it in L2.
const SHARED_BYTES: usize = 256 << 10;

/// One thread's working memory for products.
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    /// Finished dot products, `[MAX_PANEL][MAX_BLOCK]`.
    dots: *mut f32,
    /// Sums that wait for the next stretch of K, `[GROUP][GROUP_BLOCK][LANES]`.
    partial: *mut f32,
}

impl Scratch {
    /// Elements that a thread needs.
    pub(crate) const FLOATS: usize = MAX_PANEL * MAX_BLOCK + GROUP * GROUP_BLOCK * LANES;

    /// # Safety
    /// `at` holds [`Scratch::FLOATS`] elements.
    pub(crate) unsafe fn new(at: *mut f32) -> Scratch {
        // SAFETY: the two parts are those that `FLOATS` adds up.
        Scratch { dots: at, partial: unsafe { at.add(MAX_PANEL * MAX_BLOCK) } }
    }
}

/// What becomes of `x · weightᵀ + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is stored.
    Store,
    /// Its GELU in the tanh form is stored.
    GeluTanh,
    /// Its GELU by definition, with erf, is stored.
    GeluErf,
    /// It is added to what is there.
    Add,
}

/// A weight matrix as it is stored, `[rows, columns]`, row after row.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Those of its format.
    pub kernels: &'static WeightKernels,
    /// Little-endian, of any alignment.
    pub bytes: &'a [u8],
    pub columns: usize,
}

impl Matrix<'_> {
    /// Bytes of one row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.kernels.format.bytes(1, self.columns) as usize
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

// SAFETY: its pointers are followed by `product_block` alone, whose caller promises that accesses do not race.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// Weight rows to a block: as above, but at least two blocks to a thread, and whole tiles.
    pub(crate) fn block_rows(&self, threads: usize) -> usize {
        let (fit, most) = match self.rows {
            0..=1 => (STREAM_BYTES / self.weight.row_bytes(), MAX_BLOCK),
            2..=MAX_PANEL => (SHARED_BYTES / self.weight.row_bytes(), MAX_BLOCK),
            _ => (GROUP_BLOCK, GROUP_BLOCK),
        };
        let fair = self.weight.rows().div_ceil(2 * threads);
        (fit.min(fair) / 8 * 8).clamp(8, most)
    }

    fn grouped(&self) -> bool {
        self.rows > MAX_PANEL
    }
}

/// Computes outputs `block` (weight rows) of every activation row. `next` is the weight row where the thread will
/// probably go on; nothing but time depends on it.
///
/// # Safety
/// As [`Lanes`]; `W` is the weight's format; `product.x` and `product.out` are as documented and disjoint, nobody else
/// touches `out[.., block]` meanwhile; `block` lies inside the weight's rows, is not empty and no longer than
/// [`Product::block_rows`] said; `scratch` is this thread's own.
#[inline(always)]
pub(crate) unsafe fn product_block<L: Lanes, W: Weight>(
    product: &Product<'_>,
    block: Range<usize>,
    next: usize,
    scratch: Scratch,
) {
    let k = product.weight.columns;
    let (group, stretch) = if product.grouped() { (GROUP, STRETCH) } else { (MAX_PANEL, k) };
    let mut first = 0;
    while first < product.rows {
        let last = product.rows.min(first + group);
        let mut start = 0;
        while start < k {
            let end = k.min(start + stretch);
            // What comes after this stretch: the next one, or the first one for the next group or of the next block.
            let ahead = match (end < k, last < product.rows) {
                (true, _) => (block.start, end),
                (false, true) => (block.start, 0),
                (false, false) => (next, 0),
            };
            let pass = Pass { block: block.clone(), start, end, ahead, group: first..last };
            let mut row = first;
            while row < last {
                // SAFETY: the caller's promise; the rows taken exist.
                unsafe {
                    row += match (L::WIDE, last - row) {
                        (true, 6..) => panel::<L, W, 6, 4>(product, row, &pass, scratch),
                        (true, 4..) => panel::<L, W, 4, 4>(product, row, &pass, scratch),
                        (true, 2..) => panel::<L, W, 2, 4>(product, row, &pass, scratch),
                        (true, _) => panel::<L, W, 1, 2>(product, row, &pass, scratch),
                        (false, 3..) => panel::<L, W, 3, 2>(product, row, &pass, scratch),
                        (false, _) => panel::<L, W, 1, 2>(product, row, &pass, scratch),
                    };
                }
            }
            start = end;
        }
        first = last;
    }
}

/// A group of rows over a stretch of a block.
struct Pass {
    block: Range<usize>,
    start: usize,
    end: usize,
    /// Weight row and element where the pass after this one begins.
    ahead: (usize, usize),
    /// Activation rows.
    group: Range<usize>,
}

/// `M` activation rows against a stretch of a block of weights, `N` weight rows at a time. Returns `M`.
#[inline(always)]
unsafe fn panel<L: Lanes, W: Weight, const M: usize, const N: usize>(
    product: &Product<'_>,
    row: usize,
    pass: &Pass,
    scratch: Scratch,
) -> usize {
    let k = product.weight.columns;
    let stride = W::bytes(k);
    let Pass { start, end, ref block, .. } = *pass;
    let grouped = product.grouped();
    // The share of the next pass's weights that this panel asks for: bytes `from..to` of each row's stretch.
    let ahead = pass.ahead.0 * stride + W::bytes(pass.ahead.1);
    let bytes = W::bytes(end - start);
    let from = bytes * (row - pass.group.start) / pass.group.len();
    let to = bytes * (row + M - pass.group.start) / pass.group.len();
    // SAFETY: the caller's promise; weight rows stay inside `block`, activation rows inside `row..row + M`. A prefetch
    // may point anywhere.
    unsafe {
        let weights = product.weight.bytes.as_ptr();
        let mut x = [product.x; M];
        for (m, x) in x.iter_mut().enumerate() {
            *x = product.x.add((row + m) * product.x_stride);
        }
        let mut n = block.start;
        while n < block.end {
            // Beyond the block the last row again, for results that nobody reads.
            let mut w = [weights; N];
            for (i, w) in w.iter_mut().enumerate() {
                *w = weights.add((n + i).min(block.end - 1) * stride);
            }
            let at = n - block.start;
            let partial = scratch.partial.add(((row - pass.group.start) * GROUP_BLOCK + at * M) * LANES);
            let mut acc = Accumulators::<L, M, N>::zero();
            if start > 0 {
                acc.load(partial);
            }
            // The weights of the next tile. Ungrouped, they are the next in memory, whose rows are as one.
            let (next, next_stride) = match (n + N < block.end, grouped) {
                (true, true) => ((n + N) * stride + W::bytes(start), stride),
                (true, false) => ((n + N) * stride, W::bytes(STRETCH)),
                (false, true) => (block.start * stride + W::bytes(start), stride),
                (false, false) => (ahead, W::bytes(STRETCH)),
            };
            if grouped {
                for i in 0..N {
                    let mut line = from;
                    while line < to {
                        L::prefetch_second(weights.wrapping_add(ahead + (at + i) * stride + line));
                        line += 64;
                    }
                }
            }
            let next = weights.wrapping_add(next);
            if grouped {
                acc.add_ahead::<W, false>(x, w, start..end, next, next_stride);
            } else {
                acc.add_ahead::<W, true>(x, w, start..end, next, next_stride);
            }
            if end < k {
                acc.store(partial);
            } else {
                acc.sum(scratch.dots.add(at), MAX_BLOCK);
            }
            n += N;
        }
        if end == k {
            for m in 0..M {
                finish::<L>(product, row + m, block.clone(), scratch.dots.add(m * MAX_BLOCK));
            }
        }
    }
    M
}

/// `M × N` dot products under way, sixteen lanes each.
///
/// # Safety
/// As [`Lanes`], for every function.
pub(crate) struct Accumulators<L, const M: usize, const N: usize>([[L; N]; M]);

impl<L: Lanes, const M: usize, const N: usize> Accumulators<L, M, N> {
    #[inline(always)]
    pub(crate) unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        Accumulators([[unsafe { L::splat(0.0) }; N]; M])
    }

    /// Takes up what [`Accumulators::store`] put down.
    #[inline(always)]
    unsafe fn load(&mut self, from: *const f32) {
        for m in 0..M {
            for n in 0..N {
                // SAFETY: the caller's promise: `from` holds `M * N * LANES`.
                self.0[m][n] = unsafe { L::load(from.add((m * N + n) * LANES)) };
            }
        }
    }

    #[inline(always)]
    unsafe fn store(&self, to: *mut f32) {
        for m in 0..M {
            for n in 0..N {
                // SAFETY: the caller's promise: `to` has room for `M * N * LANES`.
                unsafe { self.0[m][n].store(to.add((m * N + n) * LANES)) }
            }
        }
    }

    /// Adds `x[m][k] w[n][k]` for `k` in `start..end`. `start` is a multiple of 16, and so is `end` unless it is the
    /// last; `x` and `w` hold `end` elements.
    #[inline(always)]
    pub(crate) unsafe fn add<W: Weight>(&mut self, x: [*const f32; M], w: [*const u8; N], start: usize, end: usize) {
        let whole = end - end % LANES;
        let mut k = start;
        // SAFETY: the caller's promise.
        unsafe {
            while k < whole {
                self.add_lanes::<W>(x, w, k, LANES);
                k += LANES;
            }
            if whole < end {
                self.add_lanes::<W>(x, w, whole, end - whole);
            }
        }
    }

    /// [`Accumulators::add`], asking for as many weights from `ahead` on, a stretch of each of `N` rows that are
    /// `ahead_stride` bytes apart. With `FURTHER`, which is for whole rows, it asks for as many behind those too, into
    /// L2: a core has room for few lines that are on their way to its first level, for more to its second.
    #[inline(always)]
    unsafe fn add_ahead<W: Weight, const FURTHER: bool>(
        &mut self,
        x: [*const f32; M],
        w: [*const u8; N],
        stretch: Range<usize>,
        ahead: *const u8,
        ahead_stride: usize,
    ) {
        let lines_in_row = W::bytes(STRETCH) / 64;
        let Range { start: mut k, end } = stretch;
        let whole = end - end % LANES;
        let mut line = 0;
        // SAFETY: the caller's promise; a prefetch may point anywhere.
        unsafe {
            while k < whole {
                for _ in 0..(N * LANES * W::GROUP_BYTES / W::GROUP).div_ceil(64) {
                    let at = ahead.wrapping_add(line / lines_in_row * ahead_stride + line % lines_in_row * 64);
                    L::prefetch(at);
                    if FURTHER {
                        L::prefetch_second(at.wrapping_add(N * W::bytes(end)));
                    }
                    line += 1;
                }
                self.add_lanes::<W>(x, w, k, LANES);
                k += LANES;
            }
            if whole < end {
                self.add_lanes::<W>(x, w, whole, end - whole);
            }
        }
    }

    /// `lanes` of them, from `k` on.
    #[inline(always)]
    unsafe fn add_lanes<W: Weight>(&mut self, x: [*const f32; M], w: [*const u8; N], k: usize, lanes: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut b = [L::splat(0.0); N];
            for n in 0..N {
                let (group, within) = W::place(k);
                let group = w[n].add(group);
                b[n] = if lanes == LANES { W::load(group, within) } else { W::load_first(group, within, lanes) };
            }
            for m in 0..M {
                let x = x[m].add(k);
                let a = if lanes == LANES { L::load(x) } else { L::load_first(x, lanes) };
                for n in 0..N {
                    self.0[m][n] = a.mul_add(b[n], self.0[m][n]);
                }
            }
        }
    }

    /// The dot products: `to[m * stride + n]`. `N` is a multiple of 4, or 2.
    #[inline(always)]
    pub(crate) unsafe fn sum(self, to: *mut f32, stride: usize) {
        for m in 0..M {
            let fours = N - N % 4;
            // SAFETY: the caller's promise: `to` has room.
            unsafe {
                let (acc, to) = (&self.0[m], to.add(m * stride));
                for n in (0..fours).step_by(4) {
                    L::sum4([acc[n], acc[n + 1], acc[n + 2], acc[n + 3]], to.add(n));
                }
                for n in fours..N {
                    *to.add(n) = acc[n].sum();
                }
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
                Then::GeluTanh => y = gelu_tanh(y),
                Then::GeluErf => y = gelu_erf(y),
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
/// As [`Lanes`]; `from` holds `n` elements, `to` has room for them.
#[inline(always)]
pub(crate) unsafe fn widen<L: Lanes, W: Weight>(from: *const u8, n: usize, to: *mut f32) {
    let mut i = 0;
    while i < n {
        let lanes = LANES.min(n - i);
        // SAFETY: the caller's promise; `i + lanes <= n`.
        unsafe {
            let (group, within) = W::place(i);
            W::load_first::<L>(from.add(group), within, lanes).store_first(to.add(i), lanes);
        }
        i += LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::kernels::{Isa, Kernels};
    use crate::backend::cpu::testing::{DTYPES, Random, stored};
    use crate::checkpoint::Dtype;
    use crate::model::WeightFormat;

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
                kernels: Kernels::new(isa).unwrap().of_format(WeightFormat::dense(self.dtype)).unwrap(),
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
            let mut scratch = vec![f32::NAN; Scratch::FLOATS];
            // SAFETY: buffers are as long as said; `isa` is available.
            unsafe {
                let scratch = Scratch::new(scratch.as_mut_ptr());
                (weight.kernels.product_block)(&product, block, self.n, scratch);
            }
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
                            let gelu = case.run(isa, 0..rows, block.clone(), Then::GeluTanh);
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
                for (rows, n, k) in [(13, 21, 100), (7, 8, 16), (9, 5, 37), (50, 6, STRETCH + 17), (4, 9, 2 * STRETCH)]
                {
                    let case = Case::new(&mut random, dtype, rows, n, k);
                    for then in [Then::Store, Then::GeluTanh, Then::GeluErf, Then::Add] {
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
                for then in [Then::Store, Then::GeluTanh, Then::GeluErf, Then::Add] {
                    let [a, b] = [Isa::Avx2, Isa::Avx512].map(|isa| case.run(isa, 0..rows, 0..n, then));
                    assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }

    #[test]
    fn widening_is_exact_for_every_stored_value() {
        for isa in Isa::available() {
            let kernels = Kernels::new(isa).unwrap();
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            for dtype in [Dtype::F16, Dtype::Bf16] {
                let mut wide = vec![0.0f32; 1 << 16];
                // SAFETY: 65536 elements each.
                unsafe {
                    (kernels.of_format(WeightFormat::dense(dtype)).unwrap().widen)(
                        all.as_ptr(),
                        1 << 16,
                        wide.as_mut_ptr(),
                    )
                };
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
