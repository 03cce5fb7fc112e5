//! `gemv_normed` gives the bits of the norm followed by `gemv`, in one launch.

use crate::common;
use crate::common::{Bench, Half, Random};
use half::{bf16, f16};
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::gemv_normed::{self, Matrix, NormedGemv, NormedRows};
use rigel::backend::cuda::kernels::linear::{
    Epilogue, GemmAlgorithm, GemmShape, Head, LinearInputs, Projection, QkvOutputs, QkvProjection, QkvRows, QkvShape,
};
use rigel::backend::cuda::kernels::norm::{Norm, NormShape, NormVariant, NormWeights};
use rigel::backend::cuda::{Buffer, CudaError};
use rigel::model::WeightFormat;

/// Rows, columns, width: one vector, a width that is padded, one warp and a part of the next, vectors of all four
/// kinds, the widths of the 3B and 15B, the widest.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 24, 8), (2, 16, 36), (1, 40, 264), (2, 24, 1032), (1, 16, 3072), (2, 8, 6144), (1, 8, 8192)];
const EPSILON: f32 = 1e-5;
const HIDDEN_ROWS: usize = 5;

/// Rows ahead of their norm, its weights, and a matrix.
struct Case<T> {
    shape: GemmShape,
    width: usize,
    hidden: Vec<T>,
    norm: [Vec<T>; 2],
    weights: Vec<T>,
    bias: Vec<T>,
}

struct OnDevice<T> {
    hidden: Buffer<T>,
    gather: Buffer<u32>,
    norm: [Buffer<T>; 2],
    weights: Buffer<T>,
    bias: Buffer<T>,
}

impl<T: Half> Case<T> {
    fn new(rows: usize, columns: usize, width: usize) -> Case<T> {
        let mut random = Random((rows * columns + width) as u64);
        let depth = width.next_multiple_of(8);
        let mut padded = |rows: usize, middle: f64, spread: f64| -> Vec<T> {
            let mut values = random.elements(rows * depth, middle, spread);
            values.chunks_mut(depth).for_each(|row| row[width..].fill(T::from_f64(0.0)));
            values
        };
        let (hidden, weights) = (padded(HIDDEN_ROWS, 0.3, 2.0), padded(columns, 0.0, 3.0 / (width as f64).sqrt()));
        let norm = [padded(1, 1.0, 0.3), padded(1, 0.0, 0.3)];
        let bias = random.elements(columns, 0.0, 1.0);
        Case { shape: GemmShape { m: rows, n: columns, k: depth }, width, hidden, norm, weights, bias }
    }

    fn upload(&self, bench: &Bench) -> OnDevice<T> {
        OnDevice {
            hidden: bench.upload(&self.hidden),
            gather: bench.stream.upload(&[3u32, 1][..self.shape.m]).unwrap(),
            norm: [bench.upload(&self.norm[0]), bench.upload(&self.norm[1])],
            weights: bench.upload(&self.weights),
            bias: bench.upload(&self.bias),
        }
    }

    fn norm_shape(&self) -> NormShape {
        NormShape { rows: self.shape.m, width: self.width, epsilon: EPSILON }
    }
}

impl<T: Half> OnDevice<T> {
    fn norm(&self, form: NormVariant) -> NormWeights<'_, T> {
        let bias = (form == NormVariant::Layer).then(|| self.norm[1].view());
        NormWeights { weight: self.norm[0].view(), bias }
    }

    fn rows(&self, case: &Case<T>, form: NormVariant, gathered: bool) -> NormedRows<'_, T> {
        NormedRows {
            hidden: self.hidden.view(),
            gather: gathered.then(|| self.gather.view()),
            norm: self.norm(form),
            width: case.width,
            epsilon: EPSILON,
        }
    }

    fn matrix(&self) -> Matrix<'_, T> {
        Matrix { weights: self.weights.view().into(), bias: Some(self.bias.view()) }
    }
}

fn same_bits<T: bytemuck::Pod>(found: &[T], expected: &[T], place: &str) {
    assert!(bytemuck::cast_slice::<T, u8>(found) == bytemuck::cast_slice::<T, u8>(expected), "{place}");
}

/// The rows that the products are of, by the norm kernel.
fn normed<T: Half>(bench: &Bench, case: &Case<T>, on: &OnDevice<T>, form: NormVariant, gathered: bool) -> Buffer<T> {
    let norm = Norm::<T>::load(bench.device(), form).unwrap();
    let (shape, mut out) = (case.norm_shape(), bench.poisoned(case.shape.m * case.shape.k));
    let (hidden, weights) = (on.hidden.view(), on.norm(form));
    if gathered {
        // SAFETY: rows 3 and 1 of five.
        unsafe {
            norm.gather_and_normalise(&bench.stream, shape, hidden, on.gather.view(), weights, out.view_mut()).unwrap()
        };
    } else {
        let first = on.hidden.slice(..case.shape.m * case.shape.k).unwrap();
        norm.normalise(&bench.stream, shape, first, weights, out.view_mut()).unwrap();
    }
    out
}

fn has_the_bits_of_both<T: Half>(bench: &Bench, case: &Case<T>, form: NormVariant) {
    let place = format!("{} {form:?} {:?}", T::NAME, case.shape);
    let (on, stream) = (case.upload(bench), &bench.stream);
    let products = NormedGemv::<T>::load(bench.device(), form).unwrap();
    let norm_bias = if form == NormVariant::Layer { BiasTerm::Present } else { BiasTerm::Absent };
    let norm = case.norm_shape().work(form, norm_bias);
    let len = case.shape.m * case.shape.n;

    let x = normed(bench, case, &on, form, false);
    let inputs = LinearInputs { x: x.view(), weights: on.weights.view().into(), bias: Some(on.bias.view()) };
    let (mut expected, mut found) = (bench.poisoned::<T>(len), bench.poisoned::<T>(len));
    let projection = Projection::<T>::load(bench.device(), Epilogue::BiasGelu).unwrap();
    projection.launch_with(GemmAlgorithm::Gemv, stream, case.shape, inputs, expected.view_mut()).unwrap();
    let product = case.shape.work(&WeightFormat::dense(T::DTYPE), Epilogue::BiasGelu, BiasTerm::Present);
    bench.run(gemv_normed::work_of_both(norm, product), || {
        // SAFETY: nothing is gathered.
        unsafe { products.gelu(stream, case.shape, on.rows(case, form, false), on.matrix(), found.view_mut()) }
    });
    same_bits(&bench.download(found.view()), &bench.download(expected.view()), &place);

    let x = normed(bench, case, &on, form, true);
    let (mut expected, mut found) = (stream.alloc::<f32>(len).unwrap(), stream.alloc::<f32>(len).unwrap());
    let head = Head::<T>::load(bench.device()).unwrap();
    head.launch_with(GemmAlgorithm::Gemv, stream, case.shape, x.view(), on.weights.view().into(), expected.view_mut())
        .unwrap();
    // SAFETY: rows 3 and 1 of five.
    unsafe {
        let rows = on.rows(case, form, true);
        products.logits(stream, case.shape, rows, on.weights.view().into(), found.view_mut()).unwrap();
    }
    same_bits(&stream.download(found.view()).unwrap(), &stream.download(expected.view()).unwrap(), &place);
}

fn all<T: Half>() {
    let cases: Vec<Case<T>> = SHAPES.iter().map(|(rows, columns, width)| Case::new(*rows, *columns, *width)).collect();
    common::on_every_schedule(|bench| {
        for case in &cases {
            has_the_bits_of_both(bench, case, NormVariant::Layer);
            has_the_bits_of_both(bench, case, NormVariant::Rms);
        }
    });
}

device_test! {
    fn products_in_bf16_have_the_bits_of_norm_and_gemv() {
        all::<bf16>();
    }
}

device_test! {
    fn products_in_f16_have_the_bits_of_norm_and_gemv() {
        all::<f16>();
    }
}

device_test! {
    fn queries_keys_and_values_have_the_bits_of_norm_and_gemv() {
        let shape = QkvShape { rows: 2, k: 72, heads: 2, kv_heads: 1, head_dim: 64, page_size: 16 };
        let case = Case::<bf16>::new(2, shape.gemm_shape().n, 72);
        common::on_every_schedule(|bench| {
            let (on, stream) = (case.upload(bench), &bench.stream);
            let words = |words: &[u32]| stream.upload(words).unwrap();
            let (positions, row_pages) = (words(&[5, 18]), words(&[1, 0]));
            let rotations = stream.upload(&Random(4).elements::<bf16>(20 * 64, 0.0, 1.0).iter().map(|x| x.to_f32())
                .collect::<Vec<f32>>()).unwrap();
            let places = QkvRows { positions: positions.view(), row_pages: row_pages.view(), rotations: rotations.view() };
            let run = |launch: &dyn Fn(QkvOutputs<'_, bf16>) -> Result<(), CudaError>| {
                let mut out = [2 * 128, 2 * 16 * 64, 2 * 16 * 64].map(|len| bench.upload(&vec![bf16::ZERO; len]));
                let [queries, keys, values] = &mut out;
                let out_views =
                    QkvOutputs { queries: queries.view_mut(), keys: keys.view_mut(), values: values.view_mut() };
                launch(out_views).unwrap();
                out.map(|buffer| bench.download(buffer.view())).concat()
            };
            let x = normed(bench, &case, &on, NormVariant::Layer, false);
            let inputs = LinearInputs { x: x.view(), weights: on.weights.view().into(), bias: Some(on.bias.view()) };
            let projection = QkvProjection::<bf16>::load(bench.device()).unwrap();
            let expected = run(&|out| projection.launch_with(GemmAlgorithm::Gemv, stream, shape, inputs, places, out));
            let products = NormedGemv::<bf16>::load(bench.device(), NormVariant::Layer).unwrap();
            // SAFETY: nothing is gathered.
            let found = run(&|out| unsafe {
                products.qkv(stream, shape, on.rows(&case, NormVariant::Layer, false), on.matrix(), places, out)
            });
            assert!(expected.iter().filter(|x| **x != bf16::ZERO).count() > 400);
            same_bits(&found, &expected, "queries, keys and values");
        });
    }
}

device_test! {
    fn rows_that_do_not_fit_are_refused() {
        let case = Case::<bf16>::new(2, 16, 40);
        common::on_every_schedule(|bench| {
            let on = case.upload(bench);
            let products = NormedGemv::<bf16>::load(bench.device(), NormVariant::Rms).unwrap();
            let mut out = bench.poisoned::<bf16>(48);
            let mut refused = |shape: GemmShape, rows: NormedRows<'_, bf16>, expected: &str| {
                let len = (shape.m * shape.n).min(48);
                let out = out.slice_mut(..len).unwrap();
                // SAFETY: it is refused, and no launch is made.
                let result = unsafe { products.gelu(&bench.stream, shape, rows, on.matrix(), out) };
                assert_eq!(result.unwrap_err().to_string(), expected);
            };
            let rows = on.rows(&case, NormVariant::Rms, false);
            let more = GemmShape { m: 3, ..case.shape };
            refused(more, rows, "gemv_normed: m is 3, expected 1 to 2");
            let deeper = GemmShape { k: 8200, ..case.shape };
            refused(deeper, rows, "gemv_normed: k is 8200, expected 1 to 8192");
            let wider = NormedRows { width: 30, ..rows };
            refused(case.shape, wider, "gemv_normed: width is 30, expected one that is padded to 40");
            let biased = NormedRows { norm: on.norm(NormVariant::Layer), ..rows };
            refused(case.shape, biased, "gemv_normed: bias is given, expected none for RMSNorm");
        });
    }
}
