//! The small_m product of compute capability 9.0 against float64 loops: its four kernels, parts of k, clusters.

use crate::common;
use crate::common::{Bench, Half};
use crate::linear::{self, Case, Padding, QkvCase, refusal};
use half::{bf16, f16};
use rigel::backend::Determinism;
use rigel::backend::cuda::Launch;
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::gemm_small_m_sm90::{self, MAX_ROWS, Plan, Tile, runs_on};
use rigel::backend::cuda::kernels::linear::{Epilogue, GemmAlgorithm, GemmShape, Projection, QkvProjection, QkvShape};

/// Rows, columns, depth, parts of k, tiles of a cluster. Each kernel full and not; one tile, several, an odd number
/// side by side; depths with a tail, of whole chunks, and parts of unequal length; clusters of 1 to 8 blocks.
const SIZES: [(usize, usize, usize, u32, u32); 8] = [
    (17, 264, 72, 1, 2),
    (33, 264, 512, 4, 2),
    (64, 136, 1032, 8, 1),
    (100, 264, 512, 2, 2),
    (128, 8, 1032, 3, 1),
    (150, 136, 136, 1, 2),
    (256, 264, 72, 2, 1),
    (64, 1032, 72, 1, 1),
];

fn small_m(rows: usize, splits: u32, across: u32) -> GemmAlgorithm {
    GemmAlgorithm::SmallM(Plan { tile: Tile::for_rows(rows), splits, across })
}

/// Cases made before the schedules, and how they are cut.
fn cases<T: Half>() -> Vec<(GemmAlgorithm, Case<T>)> {
    let sizes = SIZES.into_iter().enumerate();
    sizes
        .map(|(index, (rows, columns, depth, splits, across))| {
            let bias = if index % 4 == 3 { BiasTerm::Absent } else { BiasTerm::Present };
            let shape = GemmShape { m: rows, n: columns, k: depth };
            (small_m(rows, splits, across), Case::new(shape, bias, index as u64))
        })
        .collect()
}

fn multiplies<T: Half>(bench: &Bench, cases: &[(GemmAlgorithm, Case<T>)], turn: usize) {
    linear::multiplies(bench, cases.iter().map(|(algorithm, case)| (*algorithm, case)), turn);
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

/// Rows, depth, heads, key heads, elements of a head, slots of a page; parts of k, tiles of a cluster.
const QKV: [[usize; 8]; 3] =
    [[17, 264, 9, 1, 64, 16, 2, 2], [65, 72, 2, 1, 128, 64, 1, 2], [130, 136, 1, 1, 128, 128, 3, 1]];

fn qkv_cases<T: Half>() -> Vec<(GemmAlgorithm, QkvCase<T>)> {
    let cases = QKV.into_iter().enumerate();
    cases
        .map(|(index, [rows, depth, heads, kv_heads, head_dim, page_size, splits, across])| {
            let shape = QkvShape { rows, k: depth, heads, kv_heads, head_dim, page_size };
            let bias = if index == 2 { BiasTerm::Absent } else { BiasTerm::Present };
            let padding = if index == 1 { Padding::LastRows } else { Padding::None };
            (small_m(rows, splits as u32, across as u32), QkvCase::new(shape, bias, padding, index as u64))
        })
        .collect()
}

device_test! {
    fn queries_are_rotated_and_keys_and_values_cached() {
        let (first, second) = (qkv_cases::<bf16>(), qkv_cases::<f16>());
        common::on_every_hopper_schedule(|bench| {
            let projection = QkvProjection::<bf16>::load(bench.device()).unwrap();
            first.iter().for_each(|(algorithm, case)| case.check(bench, &projection, *algorithm));
            let projection = QkvProjection::<f16>::load(bench.device()).unwrap();
            second.iter().for_each(|(algorithm, case)| case.check(bench, &projection, *algorithm));
        });
    }
}

/// Within one kernel, and with as many parts of k, a row has the same bits beside any other rows, and whatever its
/// place and the tiles of a cluster are.
fn invariant<T: Half>(bench: &Bench, case: &Case<T>, batch: Tile) {
    let projection = Projection::<T>::load(bench.device(), Epilogue::BiasGelu).unwrap();
    let operands = case.upload(bench);
    let GemmShape { n: columns, m: all_rows, .. } = case.shape;
    let compute = |first: usize, rows: usize, across: u32| {
        let algorithm = GemmAlgorithm::SmallM(Plan { tile: batch, splits: 3, across });
        case.bits_of(bench, &projection, &operands, first..first + rows, algorithm)
    };
    let all = compute(0, all_rows, 1);
    for (first, rows) in [(0, 1), (all_rows - 17, 17), (5, all_rows - 9)] {
        let range = first * columns..(first + rows) * columns;
        assert!(compute(first, rows, 2) == all[range], "{} {batch:?}, rows {first}, {rows} of them", T::NAME);
    }
}

device_test! {
    fn a_row_has_the_same_bits_with_any_rows_beside_it() {
        let shape = GemmShape { m: 50, n: 136, k: 200 };
        let first = Case::<bf16>::new(shape, BiasTerm::Present, 5);
        let second = Case::<f16>::new(GemmShape { m: 130, ..shape }, BiasTerm::Present, 6);
        common::on_every_hopper_schedule(|bench| {
            invariant(bench, &first, Tile::M64);
            invariant(bench, &second, Tile::M192);
        });
    }
}

device_test! {
    fn products_follow_each_other_without_waiting_and_replay_as_a_graph() {
        common::on_every_hopper_schedule(|bench| {
            linear::an_mlp_is_the_same_however_launched(bench, 37, Determinism::Fast);
        });
    }
}

device_test! {
    fn a_product_has_the_same_bits_however_often() {
        if common::skipped_before_hopper("the small-M gemm") {
            return;
        }
        let bench = common::hopper_bench();
        let case = Case::<bf16>::new(GemmShape { m: 50, n: 264, k: 1032 }, BiasTerm::Present, 9);
        let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
        let operands = case.upload(&bench);
        let algorithm = small_m(50, 4, 2);
        common::assert_same_bits_however_often(&bench, || case.bits_of(&bench, &projection, &operands, 0..50, algorithm));
    }
}

device_test! {
    /// `Plan::choose` cuts k into as many parts as run at one time: by the GPU's own account of clusters.
    fn the_clusters_of_a_plan_run_at_one_time() {
        if common::skipped_before_hopper("the small-M gemm") {
            return;
        }
        let bench = common::hopper_bench();
        let (device, stream) = (bench.device(), &bench.stream);
        for batch in Tile::ALL {
            for (columns, depth) in [(3584, 3072), (3072, 12_288), (5632, 4608), (7168, 6144), (6144, 6144), (6144, 24_576)] {
                let shape = GemmShape { m: batch.m(), n: columns, k: depth };
                let plan = Plan::choose(device.properties().sm_count, shape);
                let name = GemmAlgorithm::SmallM(plan).kernel_name("bias_gelu", "bf16", shape.m);
                let kernel = device.module("gemm_small_m_sm90").unwrap().kernel(&name).unwrap();
                let blocks = plan.blocks(columns) as u32;
                let cluster = plan.across * plan.splits;
                let mut launch = Launch::linear(blocks, gemm_small_m_sm90::THREADS);
                (launch.cluster[0], launch.shared_bytes) = (cluster, batch.shared_bytes() as u32);
                let fit = stream.clusters_at_a_time(&kernel, &launch).unwrap();
                println!("{name}, {columns} x {depth}: {} clusters of {cluster}, {fit} at a time", blocks / cluster);
                // Above 128 rows a block needs an SM to itself: there some plans wait, and the review says so.
                if batch.m() <= 128 {
                    assert!(fit >= blocks / cluster, "{name}, {columns} x {depth}: {fit} of {}", blocks / cluster);
                }
            }
        }
    }
}

device_test! {
    fn plans_that_no_kernel_takes_are_refused_by_name() {
        let shape = GemmShape { m: 65, n: 24, k: 520 };
        let case = Case::<bf16>::new(shape, BiasTerm::Present, 3);
        common::on_every_schedule(|bench| {
            let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
            let operands = case.upload(bench);
            let mut out = case.output(bench, Epilogue::BiasGelu);
            let mut refused = |batch, splits, across| {
                let algorithm = GemmAlgorithm::SmallM(Plan { tile: batch, splits, across });
                refusal(projection.launch_with(algorithm, &bench.stream, shape, operands.inputs(), out.view_mut()))
            };
            let device = bench.device().properties();
            if !runs_on(device) {
                let found = device.compute_capability;
                let expected = "expected 9.0, and kernels that were built for it";
                let expected = format!("gemm: compute capability is {found}, {expected}");
                assert_eq!(refused(Tile::M128, 1, 1), expected);
                return;
            }
            assert_eq!(refused(Tile::M64, 1, 1), "gemm: m is 65, expected 1 to 64");
            assert_eq!(refused(Tile::M128, 0, 1), "gemm: parts of k is 0, expected 1 to 8");
            assert_eq!(refused(Tile::M128, 9, 1), "gemm: parts of k is 9, expected 1 to 8");
            assert_eq!(refused(Tile::M128, 1, 3), "gemm: tiles of a cluster is 3, expected 1 to 2");
            assert_eq!(refused(Tile::M128, 5, 2), "gemm: blocks of a cluster is 10, expected 1 to 8");
        });
    }
}

device_test! {
    fn it_is_chosen_from_17_rows_to_256_where_it_runs() {
        common::on_every_schedule(|bench| {
            let device = bench.device().properties();
            let is_skinny = |rows, determinism| {
                let algorithm = GemmAlgorithm::choose_for(determinism, device, GemmShape { m: rows, n: 6144, k: 6144 });
                matches!(algorithm, GemmAlgorithm::SmallM(_))
            };
            for rows in [1, 16, 17, 64, MAX_ROWS, MAX_ROWS + 1, 4096] {
                let expected = runs_on(device) && (17..=MAX_ROWS).contains(&rows);
                assert_eq!(is_skinny(rows, Determinism::Fast), expected, "{rows} rows");
                assert!(!is_skinny(rows, Determinism::BatchInvariant), "{rows} rows");
            }
        });
    }
}
