//! Causal grouped-query attention over the paged cache, with the sliding window.
//!
//! Each query goes over its visible keys in blocks of [`BLOCK`] positions that begin at multiples of `BLOCK` in the
//! sequence, with an online softmax: a block raises the running maximum, rescales what was summed so far, and adds
//! its own. Inside a block lane `l` of the sum of weights takes the positions `≡ l (mod 16)`, and values are added
//! in ascending order of position. All of that depends on the query's position alone, not on the rows that share
//! the tile, the pages or the chunk: the bits are the same in any company.
//!
//! What a query does not see never enters its arithmetic: not its value, and of its score only a comparison's worth
//! that is overwritten before use. A slot that holds NaN harms only those who see it.

// Loops over the constant sizes of a tile become registers; indices say which.
#![allow(clippy::needless_range_loop)]

use std::num::NonZeroU32;
use std::ops::Range;

use super::activation::exp;
use super::matmul::Accumulators;
use super::simd::{F32, LANES, Lanes};
use crate::kv::{PageId, first_visible};

/// Positions that one step of the online softmax takes.
pub(crate) const BLOCK: usize = 64;
/// The most queries (rows times heads) in a tile.
pub(crate) const MAX_QUERIES: usize = 48;

/// Neighbouring rows of one sequence and neighbouring query heads of one KV head, at most [`MAX_QUERIES`] together.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// Queries, rotated, f32 `[rows][heads][head_dim]`, rows `query_stride` apart.
    pub queries: *const f32,
    pub query_stride: usize,
    /// Results, as `queries`.
    pub out: *mut f32,
    pub out_stride: usize,
    pub rows: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Position of the first row.
    pub position: u32,
    pub window: Option<NonZeroU32>,
    /// Keys and values of this layer and KV head: f32 `[page][..][slot][head_dim]`, pages `page_stride` apart.
    pub keys: *const f32,
    pub values: *const f32,
    pub page_stride: usize,
    pub page_size: u32,
    /// As in [`BlockTable`](crate::kv::BlockTable).
    pub first_block: u32,
    pub pages: &'a [PageId],
}

/// One thread's working memory, see [`Scratch::floats`].
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    /// `[MAX_QUERIES][BLOCK]`
    weights: *mut f32,
    /// `[MAX_QUERIES][LANES]`
    sums: *mut f32,
    /// `[MAX_QUERIES]`
    max: *mut f32,
    /// `[MAX_QUERIES][head_dim]`
    acc: *mut f32,
}

impl Scratch {
    /// Elements that a thread needs.
    pub(crate) fn floats(head_dim: usize) -> usize {
        MAX_QUERIES * (BLOCK + LANES + 1 + head_dim)
    }

    /// # Safety
    /// `at` holds [`Scratch::floats`] elements.
    pub(crate) unsafe fn new(at: *mut f32) -> Scratch {
        // SAFETY: the four parts are those that `floats` adds up.
        unsafe {
            let sums = at.add(MAX_QUERIES * BLOCK);
            let max = sums.add(MAX_QUERIES * LANES);
            Scratch { weights: at, sums, max, acc: max.add(MAX_QUERIES) }
        }
    }
}

/// `out = softmax(queries · keysᵀ / √head_dim) · values` over each query's visible keys.
///
/// # Safety
/// As [`Lanes`]; `tile`'s pointers are as documented, every position that a row sees has its page in `tile.pages`
/// and was written; nobody writes the cache or touches `out` meanwhile; `scratch` is this thread's own.
#[inline(always)]
pub(crate) unsafe fn attend<L: Lanes>(tile: &Tile<'_>, scratch: Scratch) {
    let queries = tile.rows * tile.heads;
    let head_dim = tile.head_dim;
    let first = first_visible(tile.position, tile.window) as usize;
    let end = tile.position as usize + tile.rows;
    // SAFETY: the caller's promise; indices stay below `queries`, `BLOCK` and `head_dim`.
    unsafe {
        scratch.acc.write_bytes(0, queries * head_dim);
        scratch.sums.write_bytes(0, queries * LANES);
        for m in 0..queries {
            *scratch.max.add(m) = f32::NEG_INFINITY;
        }
        let mut block = first - first % BLOCK;
        while block < end {
            // Positions of this block that some row of the tile sees.
            let seen = first.max(block)..end.min(block + BLOCK);
            // Positions that no row sees stand at one that some row sees.
            let mut keys = [std::ptr::null::<f32>(); BLOCK];
            let mut values = [std::ptr::null::<f32>(); BLOCK];
            for (slot, (key, value)) in keys.iter_mut().zip(&mut values).enumerate() {
                let position = (block + slot).clamp(seen.start, seen.end - 1);
                let page = tile.pages[position / tile.page_size as usize - tile.first_block as usize];
                let at = page.0 as usize * tile.page_stride + position % tile.page_size as usize * head_dim;
                *key = tile.keys.add(at);
                *value = tile.values.add(at);
            }
            scores::<L>(tile, &keys, seen.start - block..seen.end - block, scratch.weights);
            for m in 0..queries {
                let (low, high) = visible(tile, m / tile.heads, block);
                if low < high {
                    online_softmax_step::<L>(scratch, m, low, high, head_dim);
                }
            }
            accumulate::<L>(tile, &values, block, scratch);
            block += BLOCK;
        }
        for m in 0..queries {
            let out = tile.out.add(m / tile.heads * tile.out_stride + m % tile.heads * head_dim);
            let total = L::splat(L::load(scratch.sums.add(m * LANES)).sum());
            let mut d = 0;
            while d < head_dim {
                let n = LANES.min(head_dim - d);
                L::load_first(scratch.acc.add(m * head_dim + d), n).div(total).store_first(out.add(d), n);
                d += LANES;
            }
        }
    }
}

/// The slots of the block at `block` that row `row` of the tile sees; empty where the first is not below the second.
#[inline(always)]
fn visible(tile: &Tile<'_>, row: usize, block: usize) -> (usize, usize) {
    let position = tile.position + row as u32;
    let first = first_visible(position, tile.window) as usize;
    (first.max(block) - block, (position as usize + 1).min(block + BLOCK).saturating_sub(block))
}

/// Unscaled scores of every query against the keys of a block that some row sees, and against neighbours up to a
/// multiple of four slots, whose scores mean nothing.
#[inline(always)]
unsafe fn scores<L: Lanes>(tile: &Tile<'_>, keys: &[*const f32; BLOCK], seen: Range<usize>, to: *mut f32) {
    let queries = tile.rows * tile.heads;
    let mut m = 0;
    while m < queries {
        // SAFETY: the caller's promise; the queries taken exist.
        unsafe {
            m += match (L::WIDE, queries - m) {
                (true, 6..) => score_rows::<L, 6, 4>(tile, m, keys, seen.clone(), to),
                (true, 3..) => score_rows::<L, 3, 4>(tile, m, keys, seen.clone(), to),
                (false, 3..) => score_rows::<L, 3, 2>(tile, m, keys, seen.clone(), to),
                (_, _) => score_rows::<L, 1, 4>(tile, m, keys, seen.clone(), to),
            };
        }
    }
}

#[inline(always)]
unsafe fn score_rows<L: Lanes, const M: usize, const N: usize>(
    tile: &Tile<'_>,
    first: usize,
    keys: &[*const f32; BLOCK],
    seen: Range<usize>,
    to: *mut f32,
) -> usize {
    // SAFETY: the caller's promise; every pointer in `keys` is to a key.
    unsafe {
        let mut x = [tile.queries; M];
        for (i, x) in x.iter_mut().enumerate() {
            let m = first + i;
            *x = tile.queries.add(m / tile.heads * tile.query_stride + m % tile.heads * tile.head_dim);
        }
        let mut n = seen.start / N * N;
        while n < seen.end {
            let mut w = [std::ptr::null::<u8>(); N];
            for (i, w) in w.iter_mut().enumerate() {
                *w = keys[n + i].cast();
            }
            let mut acc = Accumulators::<L, M, N>::zero();
            acc.add::<F32>(x, w, 0, tile.head_dim);
            acc.sum(to.add(first * BLOCK + n), BLOCK);
            n += N;
        }
    }
    M
}

/// One step of query `m`'s online softmax: scores at `low..high` of the block become weights (0 elsewhere), the
/// running maximum and sum take them in, and what was accumulated is rescaled.
#[inline(always)]
unsafe fn online_softmax_step<L: Lanes>(scratch: Scratch, m: usize, low: usize, high: usize, head_dim: usize) {
    // SAFETY: the caller's promise; `m` is a query, `low..high` lies in the block.
    unsafe {
        let weights = scratch.weights.add(m * BLOCK);
        for slot in (0..low).chain(high..BLOCK) {
            *weights.add(slot) = f32::NEG_INFINITY;
        }
        let scale = L::splat(1.0 / (head_dim as f32).sqrt());
        let before = *scratch.max.add(m);
        let mut max = L::splat(before);
        for slot in (0..BLOCK).step_by(LANES) {
            let score = L::load(weights.add(slot)).mul(scale);
            score.store(weights.add(slot));
            max = score.max(max);
        }
        let max = max.largest();
        *scratch.max.add(m) = max;
        let mut sums = L::load(scratch.sums.add(m * LANES));
        if max != before {
            let shrink = exp(L::splat(before).sub(L::splat(max)));
            sums = sums.mul(shrink);
            let acc = scratch.acc.add(m * head_dim);
            let mut d = 0;
            while d < head_dim {
                let n = LANES.min(head_dim - d);
                L::load_first(acc.add(d), n).mul(shrink).store_first(acc.add(d), n);
                d += LANES;
            }
        }
        for slot in (0..BLOCK).step_by(LANES) {
            let weight = exp(L::load(weights.add(slot)).sub(L::splat(max)));
            weight.store(weights.add(slot));
            sums = sums.add(weight);
        }
        sums.store(scratch.sums.add(m * LANES));
    }
}

/// Adds every query's weights times the values that it sees, several queries at a time: first the positions that some
/// of them see before the others, then those that all see, then those that some see after the others; so each query's
/// own positions come in ascending order.
#[inline(always)]
unsafe fn accumulate<L: Lanes>(tile: &Tile<'_>, values: &[*const f32; BLOCK], block: usize, scratch: Scratch) {
    let queries = tile.rows * tile.heads;
    let mut first = 0;
    while first < queries {
        let together = match (L::WIDE, queries - first) {
            (true, 6..) => 6,
            (_, 3..) => 3,
            (_, _) => 1,
        };
        let ranges = |m: usize| visible(tile, (first + m) / tile.heads, block);
        let (mut low, mut high) = (0, BLOCK);
        for m in 0..together {
            low = low.max(ranges(m).0);
            high = high.min(ranges(m).1);
        }
        if low >= high {
            // Nothing in common: each on its own.
            (low, high) = (BLOCK, BLOCK);
        }
        // SAFETY: the caller's promise; every slot used is in its query's visible range.
        unsafe {
            let weights = scratch.weights.add(first * BLOCK);
            let acc = scratch.acc.add(first * tile.head_dim);
            for common in [Common::Before, Common::In, Common::After] {
                if common == Common::In && together > 1 {
                    match (L::WIDE, together) {
                        (true, 6) => weighted::<L, 6, 4>(weights, values, low..high, acc, tile.head_dim),
                        (true, _) => weighted::<L, 3, 8>(weights, values, low..high, acc, tile.head_dim),
                        (false, _) => weighted::<L, 3, 2>(weights, values, low..high, acc, tile.head_dim),
                    }
                    continue;
                }
                for m in 0..together {
                    let (from, to) = ranges(m);
                    let slots = match common {
                        Common::Before => from..low.min(to),
                        Common::In => low..high,
                        Common::After => high.max(from)..to,
                    };
                    let (weights, acc) = (weights.add(m * BLOCK), acc.add(m * tile.head_dim));
                    weighted::<L, 1, 4>(weights, values, slots, acc, tile.head_dim);
                }
            }
        }
        first += together;
    }
}

/// A part of the positions that neighbouring queries see, as they stand to those that all of them see.
#[derive(Clone, Copy, PartialEq)]
enum Common {
    Before,
    In,
    After,
}

/// `acc[m] += Σ weights[m][slot] values[slot]` over `slots` in ascending order, `M` queries and `D` lane vectors
/// of a value at a time.
#[inline(always)]
unsafe fn weighted<L: Lanes, const M: usize, const D: usize>(
    weights: *const f32,
    values: &[*const f32; BLOCK],
    slots: Range<usize>,
    acc: *mut f32,
    head_dim: usize,
) {
    if slots.is_empty() {
        return;
    }
    let mut d = 0;
    // SAFETY: the caller's promise; `d` and the lanes after it stay below `head_dim`.
    unsafe {
        while d + D * LANES <= head_dim {
            let mut sums = [[L::splat(0.0); D]; M];
            for m in 0..M {
                for i in 0..D {
                    sums[m][i] = L::load(acc.add(m * head_dim + d + i * LANES));
                }
            }
            for slot in slots.clone() {
                let value = values[slot].add(d);
                let mut v = [L::splat(0.0); D];
                for i in 0..D {
                    v[i] = L::load(value.add(i * LANES));
                }
                for m in 0..M {
                    let weight = L::splat(*weights.add(m * BLOCK + slot));
                    for i in 0..D {
                        sums[m][i] = weight.mul_add(v[i], sums[m][i]);
                    }
                }
            }
            for m in 0..M {
                for i in 0..D {
                    sums[m][i].store(acc.add(m * head_dim + d + i * LANES));
                }
            }
            d += D * LANES;
        }
        while d < head_dim {
            let n = LANES.min(head_dim - d);
            for m in 0..M {
                let mut sum = L::load_first(acc.add(m * head_dim + d), n);
                for slot in slots.clone() {
                    let weight = L::splat(*weights.add(m * BLOCK + slot));
                    sum = weight.mul_add(L::load_first(values[slot].add(d), n), sum);
                }
                sum.store_first(acc.add(m * head_dim + d), n);
            }
            d += LANES;
        }
    }
}
