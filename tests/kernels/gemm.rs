//! `gemm` against float64 loops in every tile, and its tiles against each other.

use crate::common;
use crate::common::{Bench, Half};
use crate::linear::{self, Case, QkvCase, properties, qkv, refusal};
use half::{bf16, f16};
use rigel::backend::Determinism;
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::gemm::{Limits, Plan, Tile};
use rigel::backend::cuda::kernels::linear::{
    Epilogue, GemmAlgorithm, GemmShape, Head, LinearInputs, Projection, QkvOutputs, QkvProjection, QkvRows, QkvShape,
};

/// The plan of a tile on this device; none where it does not fit.
fn plan(bench: &Bench, shape: GemmShape, tile: Tile) -> Option<Plan> {
    Plan::with_tile(Limits::from(bench.device().properties()), shape, tile)
}

/// Sizes around a tile's own: one row, one fewer and one more than the tile, two and some; the same of columns; sums
/// of one vector, around one stage, and longer than the ring.
fn shapes(tile: Tile) -> [GemmShape; 6] {
    let (r, c, d) = (tile.m() as usize, tile.n() as usize, tile.k() as usize);
    [
        (1, c, d - 8),
        (r - 1, 8, d + 8),
        (r, c - 8, 8),
        (r + 1, c + 8, 2 * d + 24),
        (r, c, 9 * d),
        (2 * r + 7, 2 * c + 24, d),
    ]
    .map(|(rows, columns, depth)| GemmShape { m: rows, n: columns, k: depth })
}

/// Cases of every tile, made before the schedules.
fn cases<T: Half>() -> Vec<(Tile, Case<T>)> {
    let of_tile = |tile| shapes(tile).into_iter().map(move |shape| (tile, shape));
    let all = Tile::ALL.into_iter().flat_map(of_tile).enumerate();
    all.map(|(index, (tile, shape))| {
        let bias = if index % 4 == 3 { BiasTerm::Absent } else { BiasTerm::Present };
        (tile, Case::new(shape, bias, index as u64))
    })
    .collect()
}

fn multiplies<T: Half>(bench: &Bench, cases: &[(Tile, Case<T>)], turn: usize) {
    let cases = cases.iter();
    let planned = cases.filter_map(|(tile, case)| Some((GemmAlgorithm::Sm80(plan(bench, case.shape, *tile)?), case)));
    linear::multiplies(bench, planned, turn);
}

device_test! {
    fn products_in_bf16_agree_with_float64() {
        let cases = cases::<bf16>();
        common::on_every_schedule(|bench| multiplies(bench, &cases, 0));
    }
}

device_test! {
    fn products_in_f16_agree_with_float64() {
        let cases = cases::<f16>();
        common::on_every_schedule(|bench| multiplies(bench, &cases, 1));
    }
}

/// Groups of 1, 2, 9 and 12 query heads, both head sizes, pages of 16 to 128 slots, rows around the small tiles.
const QKV: [QkvShape; 6] = [
    qkv(17, 40, [2, 2], 64, 16),
    qkv(32, 72, [4, 2], 128, 64),
    qkv(33, 64, [9, 1], 64, 16),
    qkv(40, 24, [24, 2], 64, 128),
    qkv(65, 16, [12, 1], 128, 32),
    qkv(130, 136, [1, 1], 128, 64),
];

fn rotates_and_caches<T: Half>(bench: &Bench, cases: &[QkvCase<T>]) {
    let projection = QkvProjection::<T>::load(bench.device()).unwrap();
    for (index, case) in cases.iter().enumerate() {
        // The plan's own tile, and one in turn.
        let shape = case.gemm_shape();
        let chosen = Plan::choose(Limits::from(bench.device().properties()), shape);
        let turn = plan(bench, shape, Tile::ALL[index / 2 % Tile::ALL.len()]);
        for plan in [Some(chosen), turn.filter(|plan| *plan != chosen)].into_iter().flatten() {
            case.check(bench, &projection, GemmAlgorithm::Sm80(plan));
        }
    }
}

device_test! {
    fn queries_are_rotated_and_keys_and_values_cached_in_bf16() {
        let cases = QkvCase::<bf16>::with_each_padding(&QKV);
        common::on_every_schedule(|bench| rotates_and_caches(bench, &cases));
    }
}

device_test! {
    fn queries_are_rotated_and_keys_and_values_cached_in_f16() {
        let cases = QkvCase::<f16>::with_each_padding(&QKV);
        common::on_every_schedule(|bench| rotates_and_caches(bench, &cases));
    }
}

/// A row has the same bits in every tile, with any number of stages, in any order of tiles, and with any rows beside
/// it.
fn invariant<T: Half>(bench: &Bench, case: &Case<T>) {
    let projection = Projection::<T>::load(bench.device(), Epilogue::BiasGelu).unwrap();
    let operands = case.upload(bench);
    let columns = case.shape.n;
    let compute = |first: usize, rows: usize, plan: Plan| {
        case.bits_of(bench, &projection, &operands, first..first + rows, GemmAlgorithm::Sm80(plan))
    };
    let base = Plan { tile: Tile::M32N64, stages: 3, group: 1 };
    let all = compute(0, case.shape.m, base);
    let own = [
        Plan { stages: 4, group: 2, ..base },
        Plan { stages: 8, group: 3, ..base },
        Plan { tile: Tile::M64N64, stages: 4, group: 2 },
        Plan { tile: Tile::M64N64, stages: 6, group: 1 },
        Plan { tile: Tile::M128N128, stages: 3, group: 1 },
    ];
    for plan in own.into_iter().chain(plan(bench, case.shape, Tile::M128N256)) {
        assert!(compute(0, case.shape.m, plan) == all, "{} {plan:?}", T::NAME);
    }
    for (first, rows) in [(0, 1), (31, 2), (5, 17), (33, 40)] {
        for plan in [base, Plan { tile: Tile::M64N64, stages: 8, group: 1 }] {
            // Eight stages of 16 KiB are more than some devices have.
            let fits = (plan.stages * 16) << 10 <= bench.device().properties().shared_bytes;
            let plan = if fits { plan } else { base };
            let range = first * columns..(first + rows) * columns;
            assert!(compute(first, rows, plan) == all[range], "{} rows {first}, {rows} of them, {plan:?}", T::NAME);
        }
    }
}

device_test! {
    fn a_row_has_the_same_bits_in_every_tile_and_with_any_rows_beside_it() {
        let shape = GemmShape { m: 90, n: 136, k: 472 };
        let first = Case::<bf16>::new(shape, BiasTerm::Present, 5);
        let second = Case::<f16>::new(shape, BiasTerm::Present, 6);
        common::on_every_schedule(|bench| {
            invariant(bench, &first);
            invariant(bench, &second);
        });
    }
}

device_test! {
    fn products_follow_each_other_without_waiting_and_replay_as_a_graph() {
        common::on_every_schedule(|bench| linear::an_mlp_is_the_same_however_launched(bench, 37, Determinism::BatchInvariant));
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        let shape = GemmShape { m: 20, n: 24, k: 40 };
        let case = Case::<bf16>::new(shape, BiasTerm::Present, 3);
        common::on_every_schedule(|bench| {
            let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
            let operands = case.upload(bench);
            let mut out = case.output(bench, Epilogue::BiasGelu);
            let mut refused = |shape, inputs| refusal(projection.launch(&bench.stream, shape, inputs, out.view_mut()));
            let depth = GemmShape { k: 44, ..shape };
            assert_eq!(refused(depth, operands.inputs()), "gemm: k is 44, expected a multiple of 8");
            let depth = GemmShape { k: 1 << 31, ..shape };
            assert_eq!(refused(depth, operands.inputs()), "gemm: k is 2147483648, expected 1 to 2147483640");
            let columns = GemmShape { n: 25, ..shape };
            assert_eq!(refused(columns, operands.inputs()), "gemm: n is 25, expected a multiple of 8");
            let columns = GemmShape { n: 32, ..shape };
            assert_eq!(refused(columns, operands.inputs()), "gemm: weights is 960, expected 32 x 40 elements");
            let rows = GemmShape { m: 0, ..shape };
            assert_eq!(refused(rows, operands.inputs()), "gemv: m is 0, expected 1 to 16");
            let rows = GemmShape { m: usize::MAX, ..shape };
            assert!(refused(rows, operands.inputs()).starts_with("gemm: m is 18446744073709551615, expected 1 to"));
            let long = bench.stream.zeroed::<bf16>(20 * 40 + 4).unwrap();
            let shifted = LinearInputs { x: long.slice(4..).unwrap(), ..operands.inputs() };
            assert_eq!(refused(shape, shifted), "gemm: x is aligned to 8 bytes, expected aligned to 16");

            let plan = Plan { tile: Tile::M32N64, stages: 3, group: 1 };
            let mut refused_plan = |plan| {
                refusal(projection.launch_with(GemmAlgorithm::Sm80(plan), &bench.stream, shape, operands.inputs(), out.view_mut()))
            };
            assert_eq!(refused_plan(Plan { stages: 5, ..plan }), "gemm: stages is 5, expected 3, 4, 6 or 8");
            assert_eq!(refused_plan(Plan { group: 0, ..plan }), "gemm: group is 0, expected 1 to 1");
            assert_eq!(refused_plan(Plan { group: 2, ..plan }), "gemm: group is 2, expected 1 to 1");

            let head = Head::<bf16>::load(bench.device()).unwrap();
            let inputs = operands.inputs();
            let mut logits = bench.stream.zeroed::<f32>(20 * 23).unwrap();
            let refused = refusal(head.launch(&bench.stream, shape, inputs.x, inputs.weights, logits.view_mut()));
            assert_eq!(refused, "gemm: out is 460, expected 20 x 24 elements");
        });
    }
}

device_test! {
    fn wrong_heads_pages_and_tables_are_refused_by_name() {
        let shape = QkvShape { rows: 20, k: 40, heads: 2, kv_heads: 1, head_dim: 64, page_size: 16 };
        let product = GemmShape { m: 20, n: 256, k: 40 };
        let case = Case::<bf16>::new(product, BiasTerm::Present, 3);
        common::on_every_schedule(|bench| {
            let stream = &bench.stream;
            let projection = QkvProjection::<bf16>::load(bench.device()).unwrap();
            let operands = case.upload(bench);
            let numbers = stream.zeroed::<u32>(40).unwrap();
            let table = stream.zeroed::<f32>(5 * 64).unwrap();
            let mut outputs = [20 * 128, 3 * 1024, 4 * 1024].map(|len| stream.zeroed::<bf16>(len).unwrap());
            let mut refused = |shape: QkvShape, numbers_of: usize, table_len: usize, cache: [usize; 2]| {
                let rows = QkvRows {
                    positions: numbers.slice(..numbers_of).unwrap(),
                    row_pages: numbers.slice(..20).unwrap(),
                    rotations: table.slice(..table_len).unwrap(),
                };
                let [queries, keys, values] = &mut outputs;
                let out = QkvOutputs {
                    queries: queries.view_mut(),
                    keys: keys.slice_mut(..cache[0]).unwrap(),
                    values: values.slice_mut(..cache[1]).unwrap(),
                };
                refusal(projection.launch(stream, shape, operands.inputs(), rows, out))
            };
            let whole = [3 * 1024; 2];
            let head_dim = QkvShape { head_dim: 96, ..shape };
            assert_eq!(refused(head_dim, 20, 320, whole), "gemm: head_dim is 96, expected 64 or 128");
            let heads = QkvShape { heads: 0, ..shape };
            assert_eq!(refused(heads, 20, 320, whole), "gemm: heads is 0, expected 1 to 2147483647");
            let heads = QkvShape { heads: usize::MAX, ..shape };
            assert!(refused(heads, 20, 320, whole).ends_with("expected heads whose elements can be counted"));
            let page = QkvShape { page_size: 24, ..shape };
            assert_eq!(refused(page, 20, 320, whole), "gemm: page_size is 24, expected a power of two");
            assert_eq!(refused(shape, 19, 320, whole), "gemm: positions is 19, expected 20 elements");
            assert_eq!(refused(shape, 20, 319, whole), "gemm: rotations is 319, expected 4 x 64 elements");
            assert!(refused(shape, 20, 0, whole).starts_with("gemm: positions of the table is 0, expected"));
            assert_eq!(refused(shape, 20, 320, [3000, 3072]), "gemm: keys is 3000, expected 2 x 1024 elements");
            assert_eq!(refused(shape, 20, 320, [3072, 4096]), "gemm: values is 4096, expected 3 x 1024 elements");
            assert!(refused(shape, 20, 320, [0, 0]).starts_with("gemm: pages is 0, expected"));
            let more = QkvShape { heads: 3, ..shape };
            assert_eq!(refused(more, 20, 320, whole), "gemm: weights is 10240, expected 320 x 40 elements");
        });
    }
}

/// The front door's own choice, at the sizes where it changes.
#[test]
fn more_rows_than_gemv_takes_go_to_gemm() {
    let algorithm = |rows| GemmAlgorithm::choose(&properties((8, 0)), GemmShape { m: rows, n: 6144, k: 6144 });
    assert_eq!((algorithm(1), algorithm(16)), (GemmAlgorithm::Gemv, GemmAlgorithm::Gemv));
    assert!(matches!(algorithm(17), GemmAlgorithm::Sm80(_)));
    // In batch-invariant arithmetic everywhere.
    let shape = GemmShape { m: 17, n: 6144, k: 6144 };
    let algorithm = GemmAlgorithm::choose_for(Determinism::BatchInvariant, &properties((9, 0)), shape);
    assert!(matches!(algorithm, GemmAlgorithm::Sm80(_)), "{algorithm:?}");
}
