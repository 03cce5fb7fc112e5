//! Operands and float64 references of matrix products, for the tests of `gemv` and `gemm`. Made once on the host,
//! before the schedules.

use std::ops::Range;

use half::bf16;
use rigel::backend::Determinism;
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::linear::{
    Epilogue, GemmAlgorithm, GemmShape, Head, LinearInputs, Projection, QkvOutputs, QkvProjection, QkvRows, QkvShape,
};
use rigel::backend::cuda::{Algorithms, Buffer, ComputeCapability, CudaError, Properties};
use rigel::model::WeightFormat;

use crate::common::{Bench, Half, Random, assert_close};

pub const EPILOGUES: [Epilogue; 2] = [Epilogue::BiasGelu, Epilogue::BiasResidual];

/// The operands of one product, and its sums in float64.
pub struct Case<T> {
    pub shape: GemmShape,
    pub x: Vec<T>,
    pub weights: Vec<T>,
    pub bias: Option<Vec<T>>,
    /// What the output holds before, for `BiasResidual`.
    pub residual: Vec<T>,
    /// `Σ x[m, k] weights[n, k]`, and the sum of the magnitudes.
    sums: Vec<(f64, f64)>,
}

/// A case's operands on the device.
pub struct Operands<T> {
    x: Buffer<T>,
    weights: Buffer<T>,
    bias: Option<Buffer<T>>,
}

impl<T: Half> Operands<T> {
    pub fn inputs(&self) -> LinearInputs<'_, T> {
        LinearInputs {
            x: self.x.view(),
            weights: self.weights.view().into(),
            bias: self.bias.as_ref().map(|bias| bias.view()),
        }
    }
}

impl<T: Half> Case<T> {
    pub fn new(shape: GemmShape, bias: BiasTerm, seed: u64) -> Case<T> {
        let mut random = Random(seed);
        let GemmShape { m: rows, n: columns, k: depth } = shape;
        let x: Vec<T> = random.elements(rows * depth, 0.0, 1.0);
        // Sums of about 1, where GELU bends.
        let weights: Vec<T> = random.elements(columns * depth, 0.0, 3.0 / (depth as f64).sqrt());
        let bias = (bias == BiasTerm::Present).then(|| random.elements(columns, 0.0, 1.0));
        let residual = random.elements(rows * columns, 0.0, 4.0);
        let widen = |values: &[T]| -> Vec<f64> { values.iter().map(|value| value.f64()).collect() };
        let (wide_x, wide_weights) = (widen(&x), widen(&weights));
        let mut sums = Vec::with_capacity(rows * columns);
        for row in wide_x.chunks(depth) {
            for column in wide_weights.chunks(depth) {
                let products = row.iter().zip(column).map(|(x, w)| x * w);
                sums.push(products.fold((0.0, 0.0), |(sum, of), p: f64| (sum + p, of + p.abs())));
            }
        }
        Case { shape, x, weights, bias, residual, sums }
    }

    pub fn bias_term(&self) -> BiasTerm {
        if self.bias.is_some() { BiasTerm::Present } else { BiasTerm::Absent }
    }

    pub fn upload(&self, bench: &Bench) -> Operands<T> {
        let bias = self.bias.as_ref().map(|bias| bench.upload(bias));
        Operands { x: bench.upload(&self.x), weights: bench.upload(&self.weights), bias }
    }

    /// Where the product goes: what a residual is added to, else poison.
    pub fn output(&self, bench: &Bench, epilogue: Epilogue) -> Buffer<T> {
        match epilogue {
            Epilogue::BiasResidual => bench.upload(&self.residual),
            Epilogue::BiasGelu => bench.poisoned(self.residual.len()),
        }
    }

    fn sum_and_bias(&self, index: usize) -> f64 {
        self.sums[index].0 + self.bias.as_ref().map_or(0.0, |bias| bias[index % self.shape.n].f64())
    }

    /// How far f32 sums may be from those in float64: each of `depth` additions rounds the sum so far, which is no
    /// larger than the sum of the magnitudes; tensor cores cut off where they could round.
    fn slack(&self, index: usize) -> f64 {
        2f64.powi(-20) * (self.sums[index].1 + 4.0)
    }

    fn expected(&self, epilogue: Epilogue) -> Vec<f64> {
        let one = |index| {
            let x = self.sum_and_bias(index);
            match epilogue {
                Epilogue::BiasGelu => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                }
                Epilogue::BiasResidual => x + self.residual[index].f64(),
            }
        };
        (0..self.sums.len()).map(one).collect()
    }

    /// Whether a kernel with the other GELU, `x Φ(x)` by the error function, would leave the bounds of
    /// [`Case::check`].
    pub fn tells_gelus_apart(&self) -> bool {
        let normal = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        // Φ(x) - Φ(0) by Simpson's rule, 100 intervals.
        let distribution = |x: f64| {
            let step = x / 100.0;
            let inner = (1..100).map(|i| normal(f64::from(i) * step) * if i % 2 == 1 { 4.0 } else { 2.0 });
            0.5 + (normal(0.0) + inner.sum::<f64>() + normal(x)) * step / 3.0
        };
        self.expected(Epilogue::BiasGelu).into_iter().enumerate().any(|(index, expected)| {
            let x = self.sum_and_bias(index);
            let bound = expected.abs() * T::ROUNDING * 1.001 + 2f64.powi(-25) + self.slack(index);
            (x * distribution(x) - expected).abs() > bound + expected.abs() * T::ROUNDING
        })
    }

    /// Computes the product by `algorithm` and compares it, its bytes and its bank conflicts.
    pub fn check(&self, bench: &Bench, projection: &Projection<T>, epilogue: Epilogue, algorithm: GemmAlgorithm) {
        let operands = self.upload(bench);
        let mut out = self.output(bench, epilogue);
        bench.run(self.shape.work(&WeightFormat::dense(T::DTYPE), epilogue, self.bias_term()), || {
            projection.launch_with(algorithm, &bench.stream, self.shape, operands.inputs(), out.view_mut())
        });
        let place = format!("{epilogue:?} {} {:?} {algorithm:?}", T::NAME, self.shape);
        assert_close(&bench.download(out.view()), &self.expected(epilogue), |i| self.slack(i), &place);
        no_conflicts(bench, &place);
    }

    /// Bits of `rows`, computed by `algorithm` with no other row beside them, where no residual is added.
    pub fn bits_of(
        &self,
        bench: &Bench,
        projection: &Projection<T>,
        operands: &Operands<T>,
        rows: Range<usize>,
        algorithm: GemmAlgorithm,
    ) -> Vec<u16> {
        let GemmShape { n: columns, k: depth, .. } = self.shape;
        let shape = GemmShape { m: rows.len(), ..self.shape };
        let x = bench.upload(&self.x[rows.start * depth..rows.end * depth]);
        let mut out = bench.poisoned::<T>(rows.len() * columns);
        let inputs = LinearInputs { x: x.view(), ..operands.inputs() };
        projection.launch_with(algorithm, &bench.stream, shape, inputs, out.view_mut()).unwrap();
        bench.download(out.view()).into_iter().map(|value| bytemuck::cast(value)).collect()
    }

    /// The same for logits.
    pub fn check_logits(&self, bench: &Bench, head: &Head<T>, algorithm: GemmAlgorithm) {
        let operands = self.upload(bench);
        let LinearInputs { x, weights, .. } = operands.inputs();
        let mut out = bench.stream.alloc::<f32>(self.sums.len()).unwrap();
        bench.stream.fill_bytes(out.view_mut(), 0xff).unwrap();
        bench.run(self.shape.logits_work(&WeightFormat::dense(T::DTYPE)), || {
            head.launch_with(algorithm, &bench.stream, self.shape, x, weights, out.view_mut())
        });
        let place = format!("logits {} {:?} {algorithm:?}", T::NAME, self.shape);
        for (index, found) in bench.stream.download(out.view()).unwrap().into_iter().enumerate() {
            let error = (f64::from(found) - self.sums[index].0).abs(); // NaN is within no bound
            let (expected, bound) = (self.sums[index].0, self.slack(index));
            assert!(error <= bound, "{place}, element {index}: {found}, expected {expected} ± {bound:e}");
        }
        no_conflicts(bench, &place);
    }
}

fn no_conflicts(bench: &Bench, place: &str) {
    if let Some(counted) = bench.last_launch() {
        let multiplied = counted.matrix_instructions + counted.warpgroup_instructions;
        assert!(multiplied > 0, "{place}: no MMA instructions");
        assert_eq!(counted.matrix_load_conflicts, 0, "{place}: bank conflicts of ldmatrix");
        assert_eq!(counted.matrix_store_conflicts, 0, "{place}: bank conflicts of stmatrix");
    }
}

/// Whether the last rows of a step are padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    None,
    LastRows,
}

/// Rows, depth, query and key heads, elements of a head, slots of a page.
pub const fn qkv(rows: usize, depth: usize, heads: [usize; 2], head_dim: usize, page_size: usize) -> QkvShape {
    QkvShape { rows, k: depth, heads: heads[0], kv_heads: heads[1], head_dim, page_size }
}

/// A product with query, key and value weights: its rows are those of several sequences, in pages of their own.
pub struct QkvCase<T> {
    shape: QkvShape,
    product: Case<T>,
    positions: Vec<u32>,
    row_pages: Vec<u32>,
    rotations: Vec<f32>,
    pages: usize,
    padding: Padding,
}

impl<T: Half> QkvCase<T> {
    /// Each shape without padding and with its last rows as padding; the third shape has no bias.
    pub fn with_each_padding(shapes: &[QkvShape]) -> Vec<QkvCase<T>> {
        let shapes = shapes.iter().enumerate();
        shapes
            .flat_map(|(index, shape)| {
                let bias = if index == 2 { BiasTerm::Absent } else { BiasTerm::Present };
                [Padding::None, Padding::LastRows].map(|padding| QkvCase::new(*shape, bias, padding, index as u64))
            })
            .collect()
    }

    pub fn new(shape: QkvShape, bias: BiasTerm, padding: Padding, seed: u64) -> QkvCase<T> {
        let QkvShape { rows, k: depth, heads, kv_heads, head_dim, page_size } = shape;
        let columns = (heads + 2 * kv_heads) * head_dim;
        let product = Case::new(GemmShape { m: rows, n: columns, k: depth }, bias, seed);
        let mut random = Random(seed ^ 0x51);

        // Sequences that start at 0, at the edges of pages and in between; no position twice.
        let (mut positions, mut blocks) = (Vec::new(), Vec::new());
        let mut sequence = 0;
        while positions.len() < rows {
            let base = sequence * (rows + 3 * page_size).next_multiple_of(page_size);
            let start = base + [0, page_size - 1, page_size, 1, page_size + page_size / 2][sequence % 5];
            let len = [1, 2, page_size + 1, 7][sequence % 4].min(rows - positions.len());
            for position in start..start + len {
                positions.push(position as u32);
                blocks.push((sequence, position / page_size));
            }
            sequence += 1;
        }
        let table_rows = positions.iter().max().map_or(1, |most| *most as usize + 1);
        // Each block in a page of its own, in no order; some pages are nobody's.
        let mut distinct = blocks.clone();
        distinct.dedup();
        let pages = distinct.len() + 2;
        let mut order: Vec<u32> = (0..pages as u32).collect();
        for last in (1..pages).rev() {
            order.swap(last, random.bits() as usize % (last + 1));
        }
        let page_of = |block| order[distinct.iter().position(|it| it == block).unwrap()];
        let mut row_pages: Vec<u32> = blocks.iter().map(page_of).collect();
        if padding == Padding::LastRows {
            for row in rows - rows.div_ceil(3)..rows {
                // Any page that the cache does not have, any position.
                row_pages[row] = if row % 2 == 0 { u32::MAX } else { pages as u32 };
                positions[row] = if row % 2 == 0 { u32::MAX } else { table_rows as u32 };
            }
        }
        // Turns by any angle: the kernel knows nothing of frequencies.
        let angles = (0..table_rows * head_dim / 2).map(|_| 4.0 * random.uniform());
        let rotations = angles.flat_map(|angle: f64| [angle.cos() as f32, angle.sin() as f32]).collect();
        QkvCase { shape, product, positions, row_pages, rotations, pages, padding }
    }

    /// The product that it is.
    pub fn gemm_shape(&self) -> GemmShape {
        self.product.shape
    }

    /// Computes it by `algorithm` and compares queries, keys, values, what of the cache is left alone, and bytes.
    pub fn check(&self, bench: &Bench, projection: &QkvProjection<T>, algorithm: GemmAlgorithm) {
        let QkvShape { rows, heads, kv_heads, head_dim, page_size, .. } = self.shape;
        let stream = &bench.stream;
        let operands = self.product.upload(bench);
        let device_rows = [stream.upload(&self.positions).unwrap(), stream.upload(&self.row_pages).unwrap()];
        let rotations = stream.upload(&self.rotations).unwrap();
        let cache = self.pages * kv_heads * page_size * head_dim;
        let mut queries = bench.poisoned::<T>(rows * heads * head_dim);
        let (mut keys, mut values) = (bench.poisoned::<T>(cache), bench.poisoned::<T>(cache));
        let mut launch = || {
            let [positions, row_pages] = &device_rows;
            let rows =
                QkvRows { positions: positions.view(), row_pages: row_pages.view(), rotations: rotations.view() };
            let out = QkvOutputs { queries: queries.view_mut(), keys: keys.view_mut(), values: values.view_mut() };
            projection.launch_with(algorithm, stream, self.shape, operands.inputs(), rows, out)
        };
        match self.padding {
            Padding::None => {
                bench.run(self.shape.work(&WeightFormat::dense(T::DTYPE), self.product.bias_term()), launch)
            }
            // Fewer bytes than declared.
            Padding::LastRows => launch().unwrap(),
        }
        let place = format!("{} {:?} {algorithm:?}", T::NAME, self.shape);
        let (found_queries, found_keys, found_values) =
            (bench.download(queries.view()), bench.download(keys.view()), bench.download(values.view()));

        // What is expected where; all else of the cache stays poison.
        let columns = self.product.shape.n;
        let (mut expected_queries, mut slack_of_queries) = (Vec::new(), Vec::new());
        let mut written = [vec![false; cache], vec![false; cache]];
        for row in 0..rows {
            for column in 0..columns {
                let index = row * columns + column;
                let (head, d) = (column / head_dim, column % head_dim);
                let is_value = head >= heads + kv_heads;
                let expected = if is_value { self.product.sum_and_bias(index) } else { self.rotated(row, column) };
                // A rotation adds up the errors of both elements.
                let slack = 1.5 * (self.product.slack(index) + self.product.slack(index ^ 1));
                if head < heads {
                    expected_queries.push(expected);
                    slack_of_queries.push(slack);
                    continue;
                }
                let page = self.row_pages[row] as usize;
                if page >= self.pages {
                    continue;
                }
                let kv_head = (head - heads) % kv_heads;
                let slot = self.positions[row] as usize % page_size;
                let element = ((page * kv_heads + kv_head) * page_size + slot) * head_dim + d;
                let found = if is_value { found_values[element] } else { found_keys[element] }.f64();
                let bound = expected.abs() * T::ROUNDING * 1.001 + 2f64.powi(-25) + slack;
                assert!(
                    (found - expected).abs() <= bound,
                    "{place}, cached of row {row}, column {column}: {found}, expected {expected} ± {bound:e}"
                );
                let written = &mut written[usize::from(is_value)][element];
                assert!(!*written, "{place}: two rows in one slot");
                *written = true;
            }
        }
        assert_close(&found_queries, &expected_queries, |i| slack_of_queries[i], &format!("{place}, queries"));
        for (what, found, written) in [("keys", found_keys, &written[0]), ("values", found_values, &written[1])] {
            let poison: T = bytemuck::cast(0xffffu16);
            let bits = |value: T| -> u16 { bytemuck::cast(value) };
            let stray = (0..cache).find(|i| !written[*i] && bits(found[*i]) != bits(poison));
            assert_eq!(stray, None, "{place}: {what} written where no row is");
        }
    }

    /// The sums of `column` and its partner, turned.
    fn rotated(&self, row: usize, column: usize) -> f64 {
        let head_dim = self.shape.head_dim;
        let table_row = (self.positions[row] as usize).min(self.rotations.len() / head_dim - 1);
        let pair = table_row * head_dim + column % head_dim / 2 * 2;
        let (cos, sin) = (f64::from(self.rotations[pair]), f64::from(self.rotations[pair + 1]));
        let index = row * self.product.shape.n + column;
        let (own, partner) = (self.product.sum_and_bias(index), self.product.sum_and_bias(index ^ 1));
        if column.is_multiple_of(2) { own * cos - partner * sin } else { own * cos + partner * sin }
    }
}

/// Half of the epilogues with half of the cases, each by its algorithm: over two element types of different `turn`, all
/// with all.
pub fn multiplies<'a, T: Half>(
    bench: &Bench,
    cases: impl Iterator<Item = (GemmAlgorithm, &'a Case<T>)> + Clone,
    turn: usize,
) {
    let half = |of_epilogue: usize| cases.clone().skip((of_epilogue + turn) % 2).step_by(2);
    for (number, epilogue) in EPILOGUES.into_iter().enumerate() {
        let projection = Projection::<T>::load(bench.device(), epilogue).unwrap();
        half(number).for_each(|(algorithm, case)| case.check(bench, &projection, epilogue, algorithm));
    }
    let head = Head::<T>::load(bench.device()).unwrap();
    half(EPILOGUES.len()).for_each(|(algorithm, case)| case.check_logits(bench, &head, algorithm));
}

/// A device of so many SMs as an H100, of any generation.
pub fn properties(compute_capability: (u32, u32)) -> Properties {
    let (major, minor) = compute_capability;
    Properties {
        name: String::new(),
        compute_capability: ComputeCapability { major, minor },
        sm_count: 132,
        shared_bytes: 227 << 10,
        l2_bytes: 0,
        memory_bytes: 0,
        algorithms: Algorithms::default(),
    }
}

/// That a launch was refused for an operand, and with which words.
pub fn refusal(result: Result<(), CudaError>) -> String {
    let error = result.expect_err("a launch that is refused");
    assert!(matches!(error, CudaError::Operand { .. }), "{error}");
    error.to_string()
}

/// x -> hidden (GELU) -> added to x: an MLP of `rows` rows, three times over, with nothing between the launches.
pub fn an_mlp_is_the_same_however_launched(bench: &Bench, rows: usize, determinism: Determinism) {
    let up = GemmShape { m: rows, n: 256, k: 64 };
    let down = GemmShape { m: rows, n: 64, k: 256 };
    let (up_case, down_case) =
        (Case::<bf16>::new(up, BiasTerm::Present, 1), Case::<bf16>::new(down, BiasTerm::Present, 2));
    let load = |epilogue| Projection::<bf16>::load(bench.device(), epilogue).unwrap().with(determinism);
    let (gelu, add) = (load(Epilogue::BiasGelu), load(Epilogue::BiasResidual));
    let (up_operands, down_operands) = (up_case.upload(bench), down_case.upload(bench));
    let mut hidden = bench.poisoned::<bf16>(rows * 256);
    bench.assert_same_however_launched(&up_case.x, |x| {
        let inputs = LinearInputs { x: x.view(), ..up_operands.inputs() };
        gelu.launch(&bench.stream, up, inputs, hidden.view_mut())?;
        let inputs = LinearInputs { x: hidden.view(), ..down_operands.inputs() };
        add.launch(&bench.stream, down, inputs, x.view_mut())
    });
}
