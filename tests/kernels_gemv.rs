//! `gemv` against float64 loops, and against itself with other rows beside a row.

mod common;

use common::{Bench, Half, Random, assert_close};
use half::{bf16, f16};
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::gemv::{Epilogue, Gemv, GemvInputs, GemvShape, MOST_ROWS};
use rigel::backend::cuda::{Buffer, CudaError};

/// Rows 1 to 16 with the edges of the tiles (2|3, 8|9); columns around tiles of 16 and 32; depths around a step of 32,
/// a slab of 128 and the 1024 of all warps, and the deepest that is quick enough here.
const SHAPES: [(usize, usize, usize); 16] = [
    (1, 1, 8),
    (1, 15, 24),
    (1, 16, 32),
    (2, 17, 40),
    (2, 33, 120),
    (3, 31, 128),
    (3, 32, 136),
    (4, 33, 1016),
    (7, 65, 1024),
    (8, 48, 1032),
    (9, 31, 264),
    (9, 1, 2056),
    (15, 32, 1024),
    (16, 33, 1160),
    (16, 96, 3072),
    (1, 40, 6144),
];

const EPILOGUES: [Epilogue; 3] = [Epilogue::Bias, Epilogue::BiasGelu, Epilogue::BiasResidual];

/// The operands of one product, on the host and on the device.
struct Case<T> {
    shape: GemvShape,
    x: Vec<T>,
    weights: Vec<T>,
    bias: Option<Vec<T>>,
    residual: Vec<T>,
    device: [Buffer<T>; 2],
    device_bias: Option<Buffer<T>>,
}

impl<T: Half> Case<T> {
    fn new(bench: &Bench, shape: GemvShape, bias: BiasTerm, seed: u64) -> Case<T> {
        let mut random = Random(seed);
        let GemvShape { rows, columns, depth } = shape;
        let x: Vec<T> = random.elements(rows * depth, 0.0, 1.0);
        // Sums of about 1, where GELU bends.
        let weights: Vec<T> = random.elements(columns * depth, 0.0, 3.0 / (depth as f64).sqrt());
        let bias = (bias == BiasTerm::Present).then(|| random.elements(columns, 0.0, 1.0));
        let residual = random.elements(rows * columns, 0.0, 4.0);
        let device = [bench.upload(&x), bench.upload(&weights)];
        let device_bias = bias.as_ref().map(|bias| bench.upload(bias));
        Case { shape, x, weights, bias, residual, device, device_bias }
    }

    fn inputs(&self) -> GemvInputs<'_, T> {
        let [x, weights] = &self.device;
        GemvInputs { x: x.view(), weights: weights.view(), bias: self.device_bias.as_ref().map(|bias| bias.view()) }
    }

    /// Where the product goes: what a residual is added to, else poison.
    fn output(&self, bench: &Bench, epilogue: Epilogue) -> Buffer<T> {
        match epilogue {
            Epilogue::BiasResidual => bench.upload(&self.residual),
            Epilogue::Bias | Epilogue::BiasGelu => bench.poisoned(self.residual.len()),
        }
    }

    /// Expected values, and how far f32 sums may be from them: each of `depth` additions rounds the sum so far, which
    /// is no larger than the sum of the magnitudes; tensor cores cut off where they could round.
    fn reference(&self, epilogue: Epilogue) -> (Vec<f64>, Vec<f64>) {
        let GemvShape { rows, columns, depth } = self.shape;
        let mut expected = Vec::with_capacity(rows * columns);
        let mut slack = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                let products =
                    (0..depth).map(|k| self.x[row * depth + k].f64() * self.weights[column * depth + k].f64());
                let (sum, magnitude) = products.fold((0.0, 0.0), |(sum, of), p: f64| (sum + p, of + p.abs()));
                let x = sum + self.bias.as_ref().map_or(0.0, |bias| bias[column].f64());
                let gelu = || {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                };
                expected.push(match epilogue {
                    Epilogue::Bias => x,
                    Epilogue::BiasGelu => gelu(),
                    Epilogue::BiasResidual => x + self.residual[row * columns + column].f64(),
                });
                slack.push(2f64.powi(-20) * (magnitude + 4.0));
            }
        }
        (expected, slack)
    }
}

fn multiplies<T: Half>(bench: &Bench, epilogue: Epilogue) {
    let gemv = Gemv::<T>::load(bench.device(), epilogue).unwrap();
    for (index, (rows, columns, depth)) in SHAPES.into_iter().enumerate() {
        let shape = GemvShape { rows, columns, depth };
        let bias = if index % 4 == 3 { BiasTerm::Absent } else { BiasTerm::Present };
        let case = Case::<T>::new(bench, shape, bias, index as u64);
        let mut out = case.output(bench, epilogue);
        bench.run(shape.work(epilogue, bias), || gemv.launch(&bench.stream, shape, case.inputs(), out.view_mut()));
        let (expected, slack) = case.reference(epilogue);
        let place = format!("{epilogue:?} {} {shape:?}", T::NAME);
        assert_close(&bench.download(out.view()), &expected, |i| slack[i], &place);
    }
}

device_test! {
    fn products_in_bf16_agree_with_float64() {
        common::on_every_schedule(|bench| EPILOGUES.into_iter().for_each(|e| multiplies::<bf16>(bench, e)));
    }
}

device_test! {
    fn products_in_f16_agree_with_float64() {
        common::on_every_schedule(|bench| EPILOGUES.into_iter().for_each(|e| multiplies::<f16>(bench, e)));
    }
}

/// The first `rows` rows of a case, computed with no other row beside them, have the bits that they have in the whole.
fn invariant<T: Half>(bench: &Bench, epilogue: Epilogue) {
    let gemv = Gemv::<T>::load(bench.device(), epilogue).unwrap();
    let whole = GemvShape { rows: MOST_ROWS, columns: 40, depth: 1416 };
    let case = Case::<T>::new(bench, whole, BiasTerm::Present, 99);
    let compute = |first: usize, rows: usize| -> Vec<u16> {
        let shape = GemvShape { rows, ..whole };
        let x = case.device[0].slice(first * whole.depth..(first + rows) * whole.depth).unwrap();
        let range = first * whole.columns..(first + rows) * whole.columns;
        let mut out = bench.upload(&case.residual[range]);
        gemv.launch(&bench.stream, shape, GemvInputs { x, ..case.inputs() }, out.view_mut()).unwrap();
        bench.download(out.view()).into_iter().map(|value| bytemuck::cast(value)).collect()
    };
    let all = compute(0, MOST_ROWS);
    for rows in [1, 2, 3, 8, 9, 15] {
        for first in [0, 1, MOST_ROWS - rows] {
            let range = first * whole.columns..(first + rows) * whole.columns;
            assert!(compute(first, rows) == all[range], "{epilogue:?} {}: rows {first}, {rows} of them", T::NAME);
        }
    }
}

device_test! {
    fn a_row_has_the_same_bits_with_any_rows_beside_it() {
        common::on_every_schedule(|bench| {
            for epilogue in EPILOGUES {
                invariant::<bf16>(bench, epilogue);
                invariant::<f16>(bench, epilogue);
            }
        });
    }
}

device_test! {
    fn products_follow_each_other_without_waiting_and_replay_as_a_graph() {
        common::on_every_schedule(|bench| {
            // x -> hidden (GELU) -> added to x: an MLP, three times over, with nothing between the launches.
            let up = GemvShape { rows: 3, columns: 256, depth: 64 };
            let down = GemvShape { rows: 3, columns: 64, depth: 256 };
            let (gelu, add) = (Gemv::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap(), Gemv::load(bench.device(), Epilogue::BiasResidual).unwrap());
            let (up_case, down_case) = (Case::new(bench, up, BiasTerm::Present, 1), Case::new(bench, down, BiasTerm::Present, 2));
            let stream = &bench.stream;
            let mut hidden = bench.poisoned::<bf16>(3 * 256);
            let mut step = |x: &mut Buffer<bf16>| -> Result<(), CudaError> {
                gelu.launch(stream, up, GemvInputs { x: x.view(), ..up_case.inputs() }, hidden.view_mut())?;
                add.launch(stream, down, GemvInputs { x: hidden.view(), ..down_case.inputs() }, x.view_mut())
            };
            let mut x = bench.upload(&up_case.x);
            for _ in 0..3 {
                step(&mut x).unwrap();
                stream.synchronize().unwrap();
            }
            let waited = bench.download(x.view());
            assert!(waited.iter().all(|value| value.is_finite()) && waited != up_case.x);

            stream.copy_from_host(&up_case.x, x.view_mut()).unwrap();
            for _ in 0..3 {
                step(&mut x).unwrap();
            }
            assert!(bench.download(x.view()) == waited, "launched one after the other");

            stream.copy_from_host(&up_case.x, x.view_mut()).unwrap();
            let graph = stream.capture(|| step(&mut x)).unwrap();
            graph.upload().unwrap();
            for _ in 0..3 {
                graph.launch().unwrap();
            }
            assert!(bench.download(x.view()) == waited, "replayed");
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        common::on_every_schedule(|bench| {
            let gemv = Gemv::<bf16>::load(bench.device(), Epilogue::Bias).unwrap();
            let shape = GemvShape { rows: 2, columns: 24, depth: 40 };
            let case = Case::<bf16>::new(bench, shape, BiasTerm::Present, 3);
            let mut out = case.output(bench, Epilogue::Bias);
            let mut refused = |shape, inputs| {
                let error = gemv.launch(&bench.stream, shape, inputs, out.view_mut()).unwrap_err();
                assert!(matches!(error, CudaError::Operand { .. }));
                error.to_string()
            };
            let rows = GemvShape { rows: MOST_ROWS + 1, ..shape };
            assert_eq!(refused(rows, case.inputs()), "gemv: rows is 17, expected 1 to 16");
            let depth = GemvShape { depth: 44, ..shape };
            assert_eq!(refused(depth, case.inputs()), "gemv: depth is 44, expected a multiple of 8");
            let columns = GemvShape { columns: 25, ..shape };
            assert_eq!(refused(columns, case.inputs()), "gemv: weights is 960, expected 25 x 40 elements");
            let long = bench.stream.zeroed::<bf16>(2 * 40 + 4).unwrap();
            let shifted = GemvInputs { x: long.slice(4..).unwrap(), ..case.inputs() };
            assert_eq!(refused(shape, shifted), "gemv: x is aligned to 8 bytes, expected aligned to 16");
        });
    }
}
