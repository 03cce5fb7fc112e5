//! What the tests of attention share: a step of sequences over a paged cache that holds NaN wherever no row may look,
//! and the same attention as float64 loops over plain arrays.

use std::env;

use rigel::backend::cuda::Buffer;
use rigel::backend::cuda::kernels::paged::{AttentionInputs, CacheView, Heads, Sequence};
use rigel_interpreter::Interpreter;

use crate::common::{Bench, Half, Random};

/// A page that is not there.
const NO_PAGE: u32 = 0x00ff_ffff;

/// What a step is to be.
#[derive(Debug, Clone)]
pub struct Step {
    pub heads: Heads,
    pub window: Option<usize>,
    pub page_size: usize,
    /// Position of the first row and number of rows of each sequence.
    pub spans: Vec<(u32, u32)>,
}

/// A step on the host.
pub struct World<T> {
    pub step: Step,
    /// Rows of the step: of all sequences, with a row that belongs to none before each.
    pub rows: usize,
    pub sequences: Vec<Sequence>,
    queries: Vec<T>,
    /// Of each sequence, `[positions][kv heads][head_dim]`; what no row sees is there too.
    dense: Vec<[Vec<T>; 2]>,
    pages: usize,
    keys: Vec<T>,
    values: Vec<T>,
    tables: Vec<u32>,
}

impl<T: Half> World<T> {
    /// Contents depend on `seed`, the sequence's index, the position and the head alone: not on pages, window or rows
    /// of the step.
    pub fn new(step: Step, seed: u64) -> World<T> {
        let Step { heads, window, page_size, ref spans } = step;
        let page_elements = heads.kv * page_size * heads.dim;
        let nan = T::from_f64(f64::NAN);
        let mut random = Random(seed ^ 0x5eed);

        // Table entries in order, with one between any two sequences that leads out of the cache.
        let mut sequences = Vec::new();
        let mut blocks = Vec::new();
        let mut entries = 1;
        let mut rows = 0;
        for (start, length) in spans.iter().copied() {
            rows += 1;
            if length == 0 {
                sequences.push(Sequence::PADDING);
                continue;
            }
            let first_block = first_seen(start, window) / page_size;
            let end_block = (start as usize + length as usize).div_ceil(page_size);
            sequences.push(Sequence {
                first_row: rows as u32,
                rows: length,
                start,
                first_block: first_block as u32,
                table: entries as u32,
                unused: [0; 3],
            });
            rows += length as usize;
            blocks.extend(
                (first_block..end_block).map(|block| (sequences.len() - 1, block, entries + block - first_block)),
            );
            entries += end_block - first_block + 1;
        }
        // Pages in any order, some of them of no one.
        let pages = blocks.len() + 3;
        let mut order: Vec<u32> = (0..pages as u32).collect();
        for at in (1..pages).rev() {
            order.swap(at, (random.bits() % (at as u64 + 1)) as usize);
        }
        let mut tables = vec![NO_PAGE; entries];
        let (mut keys, mut values) = (vec![nan; pages * page_elements], vec![nan; pages * page_elements]);
        let contents = |index: usize, length: usize, salt: u64| -> Vec<T> {
            Random(seed.wrapping_mul(31) + index as u64 * 2 + salt).elements(length, 0.0, 1.0)
        };
        let dense: Vec<[Vec<T>; 2]> = (spans.iter().enumerate())
            .map(|(index, (start, length))| {
                let elements = (start + length) as usize * heads.kv * heads.dim;
                [contents(index, elements, 1000), contents(index, elements, 1001)]
            })
            .collect();
        for ((index, block, entry), page) in blocks.into_iter().zip(order) {
            tables[entry] = page;
            let Sequence { start, rows, .. } = sequences[index];
            let seen = first_seen(start, window)..(start + rows) as usize;
            for position in (block * page_size..(block + 1) * page_size).filter(|position| seen.contains(position)) {
                for head in 0..heads.kv {
                    let from = (position * heads.kv + head) * heads.dim;
                    let to = ((page as usize * heads.kv + head) * page_size + position % page_size) * heads.dim;
                    keys[to..to + heads.dim].copy_from_slice(&dense[index][0][from..from + heads.dim]);
                    values[to..to + heads.dim].copy_from_slice(&dense[index][1][from..from + heads.dim]);
                }
            }
        }
        // Rows of no sequence hold NaN.
        let mut queries = vec![nan; rows * heads.width()];
        for (index, sequence) in sequences.iter().enumerate() {
            for row in 0..sequence.rows as usize {
                let seed = seed.wrapping_mul(37) + ((index as u64) << 32) + u64::from(sequence.start) + row as u64;
                let at = (sequence.first_row as usize + row) * heads.width();
                // Scores of a standard deviation of 1.5: no weight is all, and none is nothing.
                let spread = 4.5;
                queries[at..at + heads.width()].copy_from_slice(&Random(seed).elements::<T>(
                    heads.width(),
                    0.0,
                    spread,
                ));
            }
        }
        World { step, rows, sequences, queries, dense, pages, keys, values, tables }
    }

    pub fn upload<'a>(&'a self, bench: &Bench) -> OnDevice<'a, T> {
        OnDevice {
            world: self,
            queries: bench.upload(&self.queries),
            keys: bench.upload(&self.keys),
            values: bench.upload(&self.values),
            sequences: bench.stream.upload(&self.sequences).unwrap(),
            tables: bench.stream.upload(&self.tables).unwrap(),
        }
    }

    /// The attention of every row of every sequence as float64 loops, with the given window, which may be another than
    /// the step's: positions that no row of the step sees have contents too.
    pub fn reference(&self, window: Option<usize>) -> Reference {
        let Heads { query, kv, dim } = self.step.heads;
        let width = query * dim;
        let mut expected = vec![f64::NAN; self.rows * width];
        let mut slack = vec![0.0; self.rows * width];
        let mut weights = Vec::new();
        for (sequence, [keys, values]) in self.sequences.iter().zip(&self.dense) {
            let [keys, values] = [keys, values].map(|half| half.iter().map(|x| x.f64()).collect::<Vec<f64>>());
            for row in 0..sequence.rows {
                let position = (sequence.start + row) as usize;
                let seen = first_seen(position as u32, window)..position + 1;
                for head in 0..query {
                    let at = ((sequence.first_row + row) as usize * query + head) * dim;
                    let q: Vec<f64> = self.queries[at..at + dim].iter().map(|x| x.f64()).collect();
                    let of = |position: usize| (position * kv + head / (query / kv)) * dim;
                    weights.clear();
                    weights.extend(seen.clone().map(|position| {
                        let key = &keys[of(position)..of(position) + dim];
                        q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()
                    }));
                    let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    weights.iter_mut().for_each(|weight| *weight = (*weight - most).exp());
                    let total: f64 = weights.iter().sum();
                    let (mut out, mut of_squares, mut of_magnitudes) = ([0.0; 128], [0.0; 128], [0.0; 128]);
                    for (weight, position) in weights.iter().zip(seen.clone()) {
                        for (d, value) in values[of(position)..of(position) + dim].iter().enumerate() {
                            let term = weight / total * value;
                            out[d] += term;
                            of_squares[d] += term * term;
                            of_magnitudes[d] += term.abs();
                        }
                    }
                    for d in 0..dim {
                        expected[at + d] = out[d];
                        // Weights are rounded to T before they meet the values: errors of no more than ROUNDING each,
                        // independent of each other; their sum is within 4 times the root of its squares but for one in
                        // billions (a uniform error has 1 / sqrt(3) of its largest as standard deviation). Before that
                        // f32 sums of up to 128 products of magnitude 4.5 make scores that are a little off.
                        let rounding = (4.0 * of_squares[d].sqrt()).min(of_magnitudes[d]) * T::ROUNDING;
                        slack[at + d] = rounding + 2f64.powi(-15) * of_magnitudes[d];
                    }
                }
            }
        }
        Reference { expected, slack, width }
    }
}

/// The first position that a row at `position` sees.
fn first_seen(position: u32, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position as usize + 1).saturating_sub(window))
}

/// A step on the device.
pub struct OnDevice<'a, T> {
    pub world: &'a World<T>,
    pub queries: Buffer<T>,
    keys: Buffer<T>,
    values: Buffer<T>,
    sequences: Buffer<Sequence>,
    tables: Buffer<u32>,
}

impl<T: Half> OnDevice<'_, T> {
    pub fn inputs(&self) -> AttentionInputs<'_, T> {
        let cache = CacheView {
            keys: self.keys.view(),
            values: self.values.view(),
            pages: self.world.pages,
            page_size: self.world.step.page_size,
        };
        AttentionInputs {
            queries: self.queries.view(),
            cache,
            sequences: self.sequences.view(),
            block_tables: self.tables.view(),
        }
    }
}

/// Expected outputs, `[rows][query heads * head_dim]`, NaN in rows of no sequence, and how far off they may be.
pub struct Reference {
    expected: Vec<f64>,
    slack: Vec<f64>,
    width: usize,
}

impl Reference {
    /// Whether a row's outputs are within their bounds, or where they are not.
    pub fn check_row<T: Half>(&self, found: &[T], row: usize) -> Result<(), String> {
        for index in row * self.width..(row + 1) * self.width {
            let (found, expected) = (found[index].f64(), self.expected[index]);
            let bound = expected.abs() * T::ROUNDING * 1.001 + 2f64.powi(-25) + self.slack[index];
            // Not so for NaN either.
            let is_close = (found - expected).abs() <= bound;
            if !is_close {
                let element = index % self.width;
                return Err(format!("row {row}, element {element}: {found}, expected {expected} ± {bound:e}"));
            }
        }
        Ok(())
    }

    /// Rows of the sequences that `takes` says yes to are as expected; all others are as they were poisoned.
    pub fn check<T: Half>(&self, world: &World<T>, found: &[T], takes: impl Fn(&Sequence) -> bool, place: &str) {
        assert_eq!(found.len(), self.expected.len());
        let mut written = vec![false; world.rows];
        for sequence in world.sequences.iter().filter(|sequence| takes(sequence)) {
            for row in sequence.first_row as usize..(sequence.first_row + sequence.rows) as usize {
                written[row] = true;
                if let Err(message) = self.check_row(found, row) {
                    panic!("{place}, {sequence:?}, {message}");
                }
            }
        }
        let untouched = found.chunks(self.width).zip(&written).filter(|(_, written)| !**written);
        for (row, _) in untouched {
            assert!(row.iter().all(|x| bytemuck::cast::<T, u16>(*x) == 0xffff), "{place}: a row of no one was written");
        }
    }
}

/// That no ldmatrix of the launches counted, of which some has one, met two rows in the same banks.
pub fn assert_no_bank_conflicts(place: &str) {
    if env::var("RIGEL_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        return;
    }
    let counters = Interpreter::load().counters();
    assert!(counters.iter().any(|launch| launch.matrix_load_rows > 0), "{place}: no ldmatrix");
    for launch in counters {
        let (kernel, rows) = (launch.kernel, launch.matrix_load_rows);
        assert_eq!(launch.matrix_load_conflicts, 0, "{place}: bank conflicts of {rows} rows in {kernel}");
    }
}

/// Bits of 16-bit elements, for exact comparison.
pub fn bits<T: Half>(values: &[T]) -> Vec<u16> {
    values.iter().map(|value| bytemuck::cast(*value)).collect()
}
