//! `gemm_sm90` against float64 loops in every tile, in clusters of one and two blocks, and its tiles against each
//! other. It runs on compute capability 9.0 alone.

use crate::common;
use crate::common::{Bench, Half};
use crate::linear::{self, Case, Padding, QkvCase, properties, qkv, refusal};
use half::{bf16, f16};
use rigel::backend::Determinism;
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::gemm_sm90::{self, Plan, Tile};
use rigel::backend::cuda::kernels::gemm_small_m_sm90::MAX_ROWS;
use rigel::backend::cuda::kernels::linear::{Epilogue, GemmAlgorithm, GemmShape, Projection, QkvProjection, QkvShape};

/// A plan of this tile and cluster whose first cluster has several tiles where there are some.
fn plan(shape: GemmShape, tile: Tile, cluster: u32, clusters: u32) -> Plan {
    let plan = Plan::with_tile(132, shape, tile, cluster);
    Plan { clusters: plan.clusters.min(clusters), ..plan }
}

/// Rows, columns, depth, the tile and the blocks of a cluster: one row more than half a tile, a whole one, one and a
/// half; columns that end in the first 8 of a tile, inside of a piece and at its end; sums of one vector, around one
/// stage, and longer than the ring of each tile; the second block of a cluster with rows, with some and with none.
const SHAPES: [(usize, usize, usize, Tile, u32); 8] = [
    (65, 264, 72, Tile::N256, 1),
    (200, 520, 200, Tile::N256, 2),
    (128, 136, 328, Tile::N256, 2),
    (129, 384, 64, Tile::N192, 1),
    (140, 200, 264, Tile::N192, 2),
    (200, 264, 392, Tile::N128, 1),
    (1, 8, 8, Tile::N128, 2),
    (257, 72, 520, Tile::N64, 2),
];

fn cases<T: Half>() -> Vec<(Case<T>, Plan)> {
    let shapes = SHAPES.into_iter().enumerate();
    shapes
        .map(|(index, (rows, columns, depth, tile, cluster))| {
            let shape = GemmShape { m: rows, n: columns, k: depth };
            let bias = if index % 4 == 3 { BiasTerm::Absent } else { BiasTerm::Present };
            // In turns two clusters and one: tiles of which some cluster computes several, one after the other.
            (Case::new(shape, bias, index as u64), plan(shape, tile, cluster, 2 - index as u32 % 2))
        })
        .collect()
}

fn multiplies<T: Half>(bench: &Bench, cases: &[(Case<T>, Plan)], turn: usize) {
    linear::multiplies(bench, cases.iter().map(|(case, plan)| (GemmAlgorithm::Sm90(*plan), case)), turn);
}

device_test! {
    fn a_product_has_the_same_bits_however_often() {
        if common::skipped_before_hopper("gemm_sm90") {
            return;
        }
        let bench = common::hopper_bench();
        let shape = GemmShape { m: 200, n: 520, k: 200 };
        let case = Case::<bf16>::new(shape, BiasTerm::Present, 9);
        let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
        let operands = case.upload(&bench);
        let algorithm = GemmAlgorithm::Sm90(plan(shape, Tile::N256, 2, 1));
        common::assert_same_bits_however_often(&bench, || case.bits_of(&bench, &projection, &operands, 0..200, algorithm));
    }
}

device_test! {
    fn products_in_bf16_agree_with_float64() {
        let cases = cases::<bf16>();
        common::on_every_hopper_schedule(|bench| multiplies(bench, &cases, 0));
    }
}

device_test! {
    fn products_in_f16_agree_with_float64() {
        let cases = cases::<f16>();
        common::on_every_hopper_schedule(|bench| multiplies(bench, &cases, 1));
    }
}

/// Shapes, the tile and the blocks of a cluster.
const QKV: [(QkvShape, Tile, u32); 4] = [
    (qkv(70, 72, [2, 1], 64, 16), Tile::N256, 1),
    (qkv(150, 40, [4, 2], 128, 64), Tile::N256, 2),
    (qkv(130, 136, [1, 1], 128, 32), Tile::N192, 2),
    (qkv(129, 64, [3, 1], 64, 128), Tile::N128, 1),
];

fn rotates_and_caches<T: Half>(turn: usize) {
    let cases = QKV.into_iter().enumerate().filter(|(index, _)| (index + turn).is_multiple_of(2));
    let cases: Vec<(QkvCase<T>, Plan)> = cases
        .flat_map(|(index, (shape, tile, cluster))| {
            let bias = if index == 3 { BiasTerm::Absent } else { BiasTerm::Present };
            let planned = plan(shape.gemm_shape(), tile, cluster, 1);
            [Padding::None, Padding::LastRows]
                .map(|padding| (QkvCase::new(shape, bias, padding, index as u64), planned))
        })
        .collect();
    common::on_every_hopper_schedule(|bench| {
        let projection = QkvProjection::<T>::load(bench.device()).unwrap();
        cases.iter().for_each(|(case, plan)| case.check(bench, &projection, GemmAlgorithm::Sm90(*plan)));
    });
}

device_test! {
    fn queries_are_rotated_and_keys_and_values_cached_in_bf16() {
        rotates_and_caches::<bf16>(0);
    }
}

device_test! {
    fn queries_are_rotated_and_keys_and_values_cached_in_f16() {
        rotates_and_caches::<f16>(1);
    }
}

device_test! {
    fn a_row_has_the_same_bits_in_every_tile_and_cluster_and_with_any_rows_beside_it() {
        let shape = GemmShape { m: 300, n: 264, k: 200 };
        let case = Case::<bf16>::new(shape, BiasTerm::Present, 5);
        common::on_every_hopper_schedule(|bench| {
            let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
            let operands = case.upload(bench);
            let compute = |first: usize, rows: usize, plan: Plan| {
                case.bits_of(bench, &projection, &operands, first..first + rows, GemmAlgorithm::Sm90(plan))
            };
            let base = Plan { tile: Tile::N256, cluster: 1, clusters: 1, group: 1 };
            let all = compute(0, shape.m, base);
            for plan in [
                Plan { clusters: 2, group: 3, ..base },
                Plan { cluster: 2, clusters: 3, group: 2, ..base },
                Plan { tile: Tile::N192, cluster: 2, ..base },
                Plan { tile: Tile::N128, clusters: 5, group: 2, ..base },
                Plan { tile: Tile::N64, cluster: 2, clusters: 4, ..base },
            ] {
                assert!(compute(0, shape.m, plan) == all, "{plan:?}");
            }
            let range = 33 * shape.n..(33 + 70) * shape.n;
            assert!(compute(33, 70, base) == all[range], "{base:?}");
        });
    }
}

device_test! {
    fn products_follow_each_other_without_waiting_and_replay_as_a_graph() {
        common::on_every_hopper_schedule(|bench| linear::an_mlp_is_the_same_however_launched(bench, MAX_ROWS + 5, Determinism::Fast));
    }
}

device_test! {
    fn wrong_plans_and_devices_are_refused_by_name() {
        let shape = GemmShape { m: 70, n: 24, k: 40 };
        let case = Case::<bf16>::new(shape, BiasTerm::Present, 3);
        common::on_every_schedule(|bench| {
            let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
            let operands = case.upload(bench);
            let mut out = case.output(bench, Epilogue::BiasGelu);
            let mut refused = |plan| {
                let algorithm = GemmAlgorithm::Sm90(plan);
                refusal(projection.launch_with(algorithm, &bench.stream, shape, operands.inputs(), out.view_mut()))
            };
            let plan = Plan { tile: Tile::N64, cluster: 1, clusters: 1, group: 1 };
            if !gemm_sm90::runs_on(bench.device().properties()) {
                let found = bench.device().properties().compute_capability;
                let expected = "9.0, and kernels built for it";
                assert_eq!(refused(plan), format!("gemm: compute capability is {found}, expected {expected}"));
                return;
            }
            assert_eq!(refused(Plan { cluster: 0, ..plan }), "gemm: blocks of a cluster is 0, expected 1 or 2");
            assert_eq!(refused(Plan { cluster: 3, ..plan }), "gemm: blocks of a cluster is 3, expected 1 or 2");
            assert_eq!(refused(Plan { clusters: 0, ..plan }), "gemm: clusters is 0, expected 1 to 1");
            assert_eq!(refused(Plan { clusters: 2, ..plan }), "gemm: clusters is 2, expected 1 to 1");
            assert_eq!(refused(Plan { group: 0, ..plan }), "gemm: group is 0, expected 1 to 1");
            assert_eq!(refused(Plan { group: 2, ..plan }), "gemm: group is 2, expected 1 to 1");
        });
    }
}

/// The front door's own choice.
#[test]
fn many_rows_go_to_it_where_it_runs_and_the_sum_s_order_may_depend_on_them() {
    if rigel::backend::cuda::images().is_empty() {
        eprintln!("skipped, this build has no kernels");
        return;
    }
    let algorithm = |determinism, rows, capability| {
        let shape = GemmShape { m: rows, n: 6144, k: 6144 };
        GemmAlgorithm::choose_for(determinism, &properties(capability), shape)
    };
    let fastest = |rows, capability| algorithm(Determinism::Fast, rows, capability);
    assert!(matches!(fastest(MAX_ROWS, (9, 0)), GemmAlgorithm::SmallM(_)));
    assert!(matches!(fastest(MAX_ROWS + 1, (9, 0)), GemmAlgorithm::Sm90(_)));
    assert!(matches!(fastest(4096, (9, 0)), GemmAlgorithm::Sm90(_)));
    for other in [(8, 0), (8, 6), (8, 9), (10, 0), (12, 0)] {
        assert!(matches!(fastest(4096, other), GemmAlgorithm::Sm80(_)), "{other:?}");
    }
    assert!(matches!(algorithm(Determinism::BatchInvariant, 4096, (9, 0)), GemmAlgorithm::Sm80(_)));
}
