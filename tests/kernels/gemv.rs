//! `gemv` against float64 loops, and against itself with other rows beside a row.

use crate::common;
use crate::common::{Bench, Half};
use crate::linear::{self, Case, EPILOGUES, QkvCase, qkv, refusal};
use half::{bf16, f16};
use rigel::backend::Determinism;
use rigel::backend::cuda::kernels::gemv::MAX_ROWS;
use rigel::backend::cuda::kernels::linear::{
    Epilogue, GemmAlgorithm, GemmShape, Head, LinearInputs, Projection, QkvProjection, QkvShape,
};
use rigel::backend::cuda::kernels::{BiasTerm, WeightMatrix};
use rigel::checkpoint::Dtype;
use rigel::model::{Code, WeightFormat};

/// Rows 1 to 16 with the edges of the tiles (2|3, 8|9); columns around tiles of 16 and 32; depths around a step of 32,
/// a slab of 128 and the 1024 of all warps, and the deepest that is quick enough here.
const SHAPES: [(usize, usize, usize); 15] = [
    (1, 8, 8),
    (1, 16, 32),
    (1, 24, 24),
    (2, 24, 40),
    (2, 40, 120),
    (3, 24, 128),
    (3, 32, 136),
    (4, 40, 1016),
    (7, 72, 1024),
    (8, 48, 1032),
    (9, 24, 264),
    (9, 8, 2056),
    (15, 32, 1024),
    (16, 96, 3072),
    (1, 40, 6144),
];

fn cases<T: Half>() -> Vec<Case<T>> {
    let shapes = SHAPES.into_iter().enumerate();
    shapes
        .map(|(index, (rows, columns, depth))| {
            let bias = if index % 4 == 3 { BiasTerm::Absent } else { BiasTerm::Present };
            Case::new(GemmShape { m: rows, n: columns, k: depth }, bias, index as u64)
        })
        .collect()
}

fn multiplies<T: Half>(bench: &Bench, cases: &[Case<T>]) {
    for epilogue in EPILOGUES {
        let projection = Projection::<T>::load(bench.device(), epilogue).unwrap();
        cases.iter().for_each(|case| case.check(bench, &projection, epilogue, GemmAlgorithm::Gemv));
    }
    let head = Head::<T>::load(bench.device()).unwrap();
    cases.iter().for_each(|case| case.check_logits(bench, &head, GemmAlgorithm::Gemv));
}

device_test! {
    fn products_in_bf16_agree_with_float64() {
        let cases = cases::<bf16>();
        common::on_every_schedule(|bench| multiplies(bench, &cases));
    }
}

device_test! {
    fn products_in_f16_agree_with_float64() {
        let cases = cases::<f16>();
        common::on_every_schedule(|bench| multiplies(bench, &cases));
    }
}

#[test]
fn the_bounds_tell_the_tanh_form_of_gelu_from_the_other() {
    assert!(cases::<bf16>().iter().filter(|case| case.tells_gelus_apart()).count() >= 5);
    assert!(cases::<f16>().iter().filter(|case| case.tells_gelus_apart()).count() >= 10);
}

/// Groups of 1, 2, 9 and 12 query heads, both head sizes, pages of 16 to 128 slots, rows of every tile.
const QKV: [QkvShape; 7] = [
    qkv(1, 256, [2, 2], 64, 16),
    qkv(2, 136, [4, 2], 128, 64),
    qkv(3, 64, [9, 1], 64, 16),
    qkv(8, 40, [24, 2], 64, 128),
    qkv(9, 24, [12, 1], 128, 32),
    qkv(15, 8, [2, 1], 64, 64),
    qkv(16, 1032, [1, 1], 128, 64),
];

fn rotates_and_caches<T: Half>(bench: &Bench, cases: &[QkvCase<T>]) {
    let projection = QkvProjection::<T>::load(bench.device()).unwrap();
    cases.iter().for_each(|case| case.check(bench, &projection, GemmAlgorithm::Gemv));
}

device_test! {
    fn queries_are_rotated_and_keys_and_values_cached() {
        let (first, second) = (QkvCase::<bf16>::with_each_padding(&QKV), QkvCase::<f16>::with_each_padding(&QKV));
        common::on_every_schedule(|bench| {
            rotates_and_caches(bench, &first);
            rotates_and_caches(bench, &second);
        });
    }
}

/// The first `rows` rows of a case, computed with no other row beside them, have the bits that they have in the whole.
fn invariant<T: Half>(bench: &Bench, case: &Case<T>, epilogue: Epilogue) {
    let projection = Projection::<T>::load(bench.device(), epilogue).unwrap();
    let GemmShape { n: columns, k: depth, .. } = case.shape;
    let operands = case.upload(bench);
    let compute = |first: usize, rows: usize| -> Vec<u16> {
        let shape = GemmShape { m: rows, ..case.shape };
        let x = bench.upload(&case.x[first * depth..(first + rows) * depth]);
        let mut out = bench.upload(&case.residual[first * columns..(first + rows) * columns]);
        let inputs = LinearInputs { x: x.view(), ..operands.inputs() };
        projection.launch(&bench.stream, shape, inputs, out.view_mut()).unwrap();
        bench.download(out.view()).into_iter().map(|value| bytemuck::cast(value)).collect()
    };
    let all = compute(0, MAX_ROWS);
    for rows in [1, 2, 3, 8, 9, 15] {
        for first in [0, 1, MAX_ROWS - rows] {
            let range = first * columns..(first + rows) * columns;
            assert!(compute(first, rows) == all[range], "{epilogue:?} {}: rows {first}, {rows} of them", T::NAME);
        }
    }
}

device_test! {
    fn a_row_has_the_same_bits_with_any_rows_beside_it() {
        let shape = GemmShape { m: MAX_ROWS, n: 40, k: 1416 };
        let first = Case::<bf16>::new(shape, BiasTerm::Present, 99);
        let second = Case::<f16>::new(shape, BiasTerm::Present, 99);
        common::on_every_schedule(|bench| {
            for epilogue in EPILOGUES {
                invariant(bench, &first, epilogue);
                invariant(bench, &second, epilogue);
            }
        });
    }
}

device_test! {
    fn products_follow_each_other_without_waiting_and_replay_as_a_graph() {
        common::on_every_schedule(|bench| linear::an_mlp_is_the_same_however_launched(bench, 3, Determinism::Fast));
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        let shape = GemmShape { m: 2, n: 24, k: 40 };
        let case = Case::<bf16>::new(shape, BiasTerm::Present, 3);
        common::on_every_schedule(|bench| {
            let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
            let operands = case.upload(bench);
            let mut out = case.output(bench, Epilogue::BiasGelu);
            let mut refused = |shape, inputs| {
                refusal(projection.launch_with(GemmAlgorithm::Gemv, &bench.stream, shape, inputs, out.view_mut()))
            };
            let rows = GemmShape { m: MAX_ROWS + 1, ..shape };
            assert_eq!(refused(rows, operands.inputs()), "gemv: m is 17, expected 1 to 16");
            let depth = GemmShape { k: 44, ..shape };
            assert_eq!(refused(depth, operands.inputs()), "gemv: k is 44, expected a multiple of 8");
            let columns = GemmShape { n: 25, ..shape };
            assert_eq!(refused(columns, operands.inputs()), "gemv: n is 25, expected a multiple of 8");
            let columns = GemmShape { n: 32, ..shape };
            assert_eq!(refused(columns, operands.inputs()), "gemv: weights is 960, expected 32 x 40 elements");
            let long = bench.stream.zeroed::<bf16>(2 * 40 + 4).unwrap();
            let shifted = LinearInputs { x: long.slice(4..).unwrap(), ..operands.inputs() };
            assert_eq!(refused(shape, shifted), "gemv: x is aligned to 8 bytes, expected aligned to 16");
            let halves = bench.stream.zeroed::<f16>(24 * 40).unwrap();
            let other = LinearInputs { weights: halves.view().into(), ..operands.inputs() };
            assert_eq!(refused(shape, other), "gemv: the weights' format is F16, expected BF16");
            let eight = WeightFormat { code: Code::Integer { bits: 8 }, ..WeightFormat::dense(Dtype::Bf16) };
            let quantised = WeightMatrix { format: eight, ..operands.inputs().weights };
            let quantised = LinearInputs { weights: quantised, ..operands.inputs() };
            assert_eq!(refused(shape, quantised), "gemv: the weights' format is quantised, expected BF16");
            let short = bench.stream.zeroed::<bf16>(16).unwrap();
            let bias = LinearInputs { bias: Some(short.view()), ..operands.inputs() };
            assert_eq!(refused(shape, bias), "gemv: bias is 16, expected 1 x 24 elements");
        });
    }
}
