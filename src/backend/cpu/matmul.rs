//! GEMM with weights as stored: `out[row] = epilogue(x[row] · weightᵀ + bias)`.
//!
//! Each output is one dot product along k, always in the same order: lane `l` sums `k ≡ l (mod 16)` from first to last,
//! then the lanes are added in the tree order of [`Lanes::sum`]. Neither the number of rows that share a pass over the
//! weights nor the blocking changes any bit.

// Loops over the constant sizes of a tile become registers; the index relates them.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::activation::{gelu_erf, gelu_tanh};
use super::kernels::WeightKernels;
use super::simd::{LANES, Lanes, Weight};

/// Most weight rows in a block.
const MAX_NC: usize = 256;
/// Most activation rows of a micro-kernel: they share each load of weights.
const MAX_MR: usize = 6;

// More than MAX_MR rows: weights are reused many times and arithmetic is the limit, so reused data should stay in
// cache. For each block of MC rows, for each K block of KC, the micro-kernel runs over the rows of the block. In L1:
// the activations of a micro-kernel (24 KB). In L2: the weights of the K block and the partial sums (128 + 192 KB).

/// Weight rows in a block.
const NC: usize = 64;
/// Activation rows in a block.
const MC: usize = 48;
/// Elements of k in a K block.
const KC: usize = 1024;

// Up to MAX_MR rows: memory is the limit, and a block is read in storage order.

/// Bytes of a block read by a single row: long, because every read starts with a latency.
const STREAM_BYTES: usize = 2 << 20;
/// Bytes of a block read by more than one micro-kernel: the second finds them in L2.
const SHARED_BYTES: usize = 256 << 10;

/// Working memory of one thread.
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    /// Finished dot products, `[MAX_MR][MAX_NC]`.
    dots: *mut f32,
    /// Partial sums between K blocks, `[MC][NC][LANES]`.
    partial: *mut f32,
}

impl Scratch {
    /// Elements needed per thread.
    pub(crate) const FLOATS: usize = MAX_MR * MAX_NC + MC * NC * LANES;

    /// # Safety
    /// `at` holds [`Scratch::FLOATS`] elements.
    pub(crate) unsafe fn new(at: *mut f32) -> Scratch {
        // SAFETY: the two parts are those that `FLOATS` adds up.
        Scratch { dots: at, partial: unsafe { at.add(MAX_MR * MAX_NC) } }
    }
}

/// Applied to `x · weightᵀ + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// Store it.
    Store,
    /// Store its GELU (tanh approximation).
    GeluTanh,
    /// Store its GELU (exact, with erf).
    GeluErf,
    /// Add it to the output.
    Add,
}

/// A weight matrix as stored, `[rows, columns]`, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Kernels of its format.
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

/// A GEMM over all rows of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Gemm<'a> {
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
    pub epilogue: Epilogue,
}

// SAFETY: its pointers are followed by `gemm_block` alone, whose caller promises that accesses do not race.
unsafe impl Sync for Gemm<'_> {}

impl Gemm<'_> {
    /// Weight rows per block: as above, with at least two blocks per thread, in whole tiles.
    pub(crate) fn block_rows(&self, threads: usize) -> usize {
        let (fit, most) = match self.rows {
            0..=1 => (STREAM_BYTES / self.weight.row_bytes(), MAX_NC),
            2..=MAX_MR => (SHARED_BYTES / self.weight.row_bytes(), MAX_NC),
            _ => (NC, NC),
        };
        let fair = self.weight.rows().div_ceil(2 * threads);
        (fit.min(fair) / 8 * 8).clamp(8, most)
    }

    fn blocked(&self) -> bool {
        self.rows > MAX_MR
    }
}

/// Computes outputs `block` (weight rows) of every activation row. `next` is the weight row where this thread probably
/// continues; only prefetching depends on it.
///
/// # Safety
/// As [`Lanes`]; `W` is the weight's format; `gemm.x` and `gemm.out` are as documented and disjoint, nobody else
/// touches `out[.., block]` meanwhile; `block` lies inside the weight's rows, is not empty and no longer than
/// [`Gemm::block_rows`] said; `scratch` is this thread's own.
#[inline(always)]
pub(crate) unsafe fn gemm_block<L: Lanes, W: Weight>(
    gemm: &Gemm<'_>,
    block: Range<usize>,
    next: usize,
    scratch: Scratch,
) {
    let k = gemm.weight.columns;
    let (group, kc) = if gemm.blocked() { (MC, KC) } else { (MAX_MR, k) };
    let mut first = 0;
    while first < gemm.rows {
        let last = gemm.rows.min(first + group);
        let mut start = 0;
        while start < k {
            let end = k.min(start + kc);
            // What follows this K block: the next one, or the first one for the next MC rows, or that of the next
            // block.
            let ahead = match (end < k, last < gemm.rows) {
                (true, _) => (block.start, end),
                (false, true) => (block.start, 0),
                (false, false) => (next, 0),
            };
            let k_block = KBlock { block: block.clone(), start, end, ahead, group: first..last };
            let mut row = first;
            while row < last {
                // SAFETY: the caller's promise; the rows taken exist.
                unsafe {
                    row += match (L::WIDE, last - row) {
                        (true, 6..) => micro_kernel::<L, W, 6, 4>(gemm, row, &k_block, scratch),
                        (true, 4..) => micro_kernel::<L, W, 4, 4>(gemm, row, &k_block, scratch),
                        (true, 2..) => micro_kernel::<L, W, 2, 4>(gemm, row, &k_block, scratch),
                        (true, _) => micro_kernel::<L, W, 1, 2>(gemm, row, &k_block, scratch),
                        (false, 3..) => micro_kernel::<L, W, 3, 2>(gemm, row, &k_block, scratch),
                        (false, _) => micro_kernel::<L, W, 1, 2>(gemm, row, &k_block, scratch),
                    };
                }
            }
            start = end;
        }
        first = last;
    }
}

/// A block of rows and a K block of weights.
struct KBlock {
    block: Range<usize>,
    start: usize,
    end: usize,
    /// Weight row and element where the next pass begins, for prefetching.
    ahead: (usize, usize),
    /// Activation rows.
    group: Range<usize>,
}

/// `M` activation rows times a K block of weights, `N` weight rows at a time. Returns `M`.
#[inline(always)]
unsafe fn micro_kernel<L: Lanes, W: Weight, const M: usize, const N: usize>(
    gemm: &Gemm<'_>,
    row: usize,
    k_block: &KBlock,
    scratch: Scratch,
) -> usize {
    let k = gemm.weight.columns;
    let stride = W::bytes(k);
    let KBlock { start, end, ref block, .. } = *k_block;
    let blocked = gemm.blocked();
    // This micro-kernel's share of the prefetches for the next pass: bytes `from..to` of each weight row.
    let ahead = k_block.ahead.0 * stride + W::bytes(k_block.ahead.1);
    let bytes = W::bytes(end - start);
    let from = bytes * (row - k_block.group.start) / k_block.group.len();
    let to = bytes * (row + M - k_block.group.start) / k_block.group.len();
    // SAFETY: the caller's promise; weight rows stay inside `block`, activation rows inside `row..row + M`. A prefetch
    // may point anywhere.
    unsafe {
        let weights = gemm.weight.bytes.as_ptr();
        let mut x = [gemm.x; M];
        for (m, x) in x.iter_mut().enumerate() {
            *x = gemm.x.add((row + m) * gemm.x_stride);
        }
        let mut n = block.start;
        while n < block.end {
            // Past the end of the block, the last row again; its results are not used.
            let mut w = [weights; N];
            for (i, w) in w.iter_mut().enumerate() {
                *w = weights.add((n + i).min(block.end - 1) * stride);
            }
            let at = n - block.start;
            let partial = scratch.partial.add(((row - k_block.group.start) * NC + at * M) * LANES);
            let mut acc = Accumulators::<L, M, N>::zero();
            if start > 0 {
                acc.load(partial);
            }
            // The weights of the next tile. Unblocked, they follow in memory as one run.
            let (next, next_stride) = match (n + N < block.end, blocked) {
                (true, true) => ((n + N) * stride + W::bytes(start), stride),
                (true, false) => ((n + N) * stride, W::bytes(KC)),
                (false, true) => (block.start * stride + W::bytes(start), stride),
                (false, false) => (ahead, W::bytes(KC)),
            };
            if blocked {
                for i in 0..N {
                    let mut line = from;
                    while line < to {
                        L::prefetch_second(weights.wrapping_add(ahead + (at + i) * stride + line));
                        line += 64;
                    }
                }
            }
            let next = weights.wrapping_add(next);
            if blocked {
                acc.add_ahead::<W, false>(x, w, start..end, next, next_stride);
            } else {
                acc.add_ahead::<W, true>(x, w, start..end, next, next_stride);
            }
            if end < k {
                acc.store(partial);
            } else {
                acc.sum(scratch.dots.add(at), MAX_NC);
            }
            n += N;
        }
        if end == k {
            for m in 0..M {
                finish::<L>(gemm, row + m, block.clone(), scratch.dots.add(m * MAX_NC));
            }
        }
    }
    M
}

/// `M × N` dot products in progress, sixteen lanes each.
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

    /// Continues from what [`Accumulators::store`] saved.
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

    /// As [`Accumulators::add`], and prefetches as many weights from `ahead` on, KC elements of each of `N` rows
    /// `ahead_stride` bytes apart. With `FURTHER`, for whole rows, it also prefetches the following ones into L2: a
    /// core has few outstanding L1 misses and more for L2.
    #[inline(always)]
    unsafe fn add_ahead<W: Weight, const FURTHER: bool>(
        &mut self,
        x: [*const f32; M],
        w: [*const u8; N],
        k_block: Range<usize>,
        ahead: *const u8,
        ahead_stride: usize,
    ) {
        let lines_in_row = W::bytes(KC) / 64;
        let Range { start: mut k, end } = k_block;
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

/// Bias and epilogue over the outputs `block` of one row.
#[inline(always)]
unsafe fn finish<L: Lanes>(gemm: &Gemm<'_>, row: usize, block: Range<usize>, dots: *const f32) {
    // SAFETY: the caller's promise; `i < block.len()`.
    unsafe {
        let out = gemm.out.add(row * gemm.out_stride + block.start);
        let bias = gemm.bias.map(|bias| bias.as_ptr().add(block.start));
        let mut i = 0;
        while i < block.len() {
            let n = LANES.min(block.len() - i);
            let mut y = L::load_first(dots.add(i), n);
            if let Some(bias) = bias {
                y = y.add(L::load_first(bias.add(i), n));
            }
            match gemm.epilogue {
                Epilogue::Store => {}
                Epilogue::GeluTanh => y = gelu_tanh(y),
                Epilogue::GeluErf => y = gelu_erf(y),
                Epilogue::Add => y = L::load_first(out.add(i), n).add(y),
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
        fn run(&self, isa: Isa, rows: Range<usize>, block: Range<usize>, epilogue: Epilogue) -> Vec<f32> {
            let weight = Matrix {
                kernels: Kernels::new(isa).unwrap().of_format(WeightFormat::dense(self.dtype)).unwrap(),
                bytes: &self.bytes[1..1 + self.n * self.k * self.dtype.size()],
                columns: self.k,
            };
            let mut out = vec![7.0; rows.len() * self.n];
            let gemm = Gemm {
                x: self.x[rows.start * self.k..].as_ptr(),
                x_stride: self.k,
                rows: rows.len(),
                weight,
                bias: Some(&self.bias),
                out: out.as_mut_ptr(),
                out_stride: self.n,
                epilogue,
            };
            let mut scratch = vec![f32::NAN; Scratch::FLOATS];
            // SAFETY: buffers are as long as said; `isa` is available.
            unsafe {
                let scratch = Scratch::new(scratch.as_mut_ptr());
                (weight.kernels.gemm_block)(&gemm, block, self.n, scratch);
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
                            let stored = case.run(isa, 0..rows, block.clone(), Epilogue::Store);
                            let added = case.run(isa, 0..rows, block.clone(), Epilogue::Add);
                            let gelu = case.run(isa, 0..rows, block.clone(), Epilogue::GeluTanh);
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
                for (rows, n, k) in [(13, 21, 100), (7, 8, 16), (9, 5, 37), (50, 6, KC + 17), (4, 9, 2 * KC)] {
                    let case = Case::new(&mut random, dtype, rows, n, k);
                    for then in [Epilogue::Store, Epilogue::GeluTanh, Epilogue::GeluErf, Epilogue::Add] {
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
                for then in [Epilogue::Store, Epilogue::GeluTanh, Epilogue::GeluErf, Epilogue::Add] {
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
