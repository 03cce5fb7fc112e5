//! `attention_batch_invariant` against float64 loops, and bit for bit against itself: whole or in splits, in other
//! chunks, pages and company.

use crate::attention::{OnDevice, Step, World, assert_no_bank_conflicts, bits};
use crate::common;
use crate::common::{Bench, Half};
use half::{bf16, f16};
use rigel::backend::cuda::kernels::attention_batch_invariant::{
    AttentionBatchInvariant, BatchInvariantShape, Division, plan_tiles, tile_rows,
};
use rigel::backend::cuda::kernels::attention_prefill::Tile;
use rigel::backend::cuda::kernels::paged::{AttentionInputs, Heads, Sequence};
use rigel::backend::cuda::{Buffer, CudaError};

/// Every position of a test is below this.
const POSITIONS: usize = 2048;

fn heads(group: usize, kv: usize, dim: usize) -> Heads {
    Heads { query: group * kv, kv, dim }
}

/// A step, and the positions of a split.
fn cases() -> Vec<(Step, usize)> {
    let case = |(group, kv, dim), window, page_size, split_len, spans: &[(u32, u32)]| {
        (Step { heads: heads(group, kv, dim), window, page_size, spans: spans.to_vec() }, split_len)
    };
    vec![
        // Prompts around a tile of 64 rows, some warps of which have no query; a chunk at an odd start.
        case((1, 2, 64), None, 64, 64, &[(0, 63), (0, 1), (0, 0), (33, 5)]),
        case((1, 1, 128), None, 128, 128, &[(0, 64), (0, 65)]),
        case((1, 1, 64), Some(65), 64, 64, &[(70, 70), (0, 66)]),
        case((1, 1, 128), Some(63), 16, 128, &[(3, 140)]),
        case((2, 2, 128), Some(16), 16, 64, &[(0, 0), (61, 7), (0, 40)]),
        case((3, 2, 64), Some(15), 16, 256, &[(0, 43), (400, 2), (17, 42)]),
        // 7 rows, around the end of a tile of keys and of a split.
        case((9, 1, 64), None, 64, 64, &[(0, 6), (0, 7), (63, 1), (64, 1), (0, 0), (65, 8)]),
        case((9, 2, 128), Some(1), 16, 64, &[(0, 1), (100, 29)]),
        case((9, 1, 128), Some(128), 128, 128, &[(255, 3), (0, 15)]),
        // 5 rows, of which the last sees a split more, and the first one less, than the others.
        case((12, 2, 128), None, 64, 128, &[(0, 1), (126, 5), (37, 11), (0, 0)]),
        case((12, 1, 64), Some(5), 64, 64, &[(0, 31), (62, 4), (63, 2), (64, 10)]),
        case((12, 1, 128), Some(65), 64, 64, &[(126, 5), (128, 10)]),
        case((12, 1, 128), Some(129), 128, 64, &[(301, 7)]),
        // More than 8 tiles of keys: the pages are looked up again; more splits than the merge asks for at a time.
        case((12, 1, 64), None, 16, 128, &[(1030, 4), (500, 12)]),
        case((9, 1, 128), Some(600), 128, 64, &[(1700, 3)]),
        // 2 rows, 1 row, and one that leaves much of its tile empty.
        case((24, 1, 128), Some(100), 64, 64, &[(0, 4), (160, 5)]),
        case((43, 1, 64), Some(66), 64, 64, &[(64, 5)]),
        case((64, 1, 128), None, 64, 64, &[(0, 3), (63, 2), (200, 1)]),
        case((33, 1, 128), Some(5), 16, 64, &[(0, 4)]),
    ]
}

/// What runs one step.
struct Run<'a, T> {
    device: OnDevice<'a, T>,
    shape: BatchInvariantShape,
    tiles: Vec<Tile>,
    tiles_on_device: Buffer<Tile>,
    workspace: Buffer<f32>,
    out: Buffer<T>,
}

impl<'a, T: Half> Run<'a, T> {
    /// Two tiles of padding go with those that the step needs, one of them in front; the workspace, longer than needed,
    /// and the outputs are NaN.
    fn new(bench: &Bench, world: &'a World<T>, split_len: usize, division: Division) -> Run<'a, T> {
        let Step { heads, window, .. } = world.step;
        let planned = plan_tiles(&world.sequences, &heads, window, |_| true);
        let tiles = [&[Tile::PADDING], planned.as_slice(), &[Tile::PADDING]].concat();
        let (rows, positions) = (world.rows, POSITIONS);
        let shape = BatchInvariantShape { rows, tiles: tiles.len(), heads, window, positions, split_len, division };
        let tiles_on_device = bench.stream.upload(&tiles).unwrap();
        let mut workspace = bench.stream.alloc(shape.workspace_len() + 3).unwrap();
        bench.stream.fill_bytes(workspace.view_mut(), 0xff).unwrap();
        let out = bench.poisoned(world.rows * heads.width());
        Run { device: world.upload(bench), shape, tiles, tiles_on_device, workspace, out }
    }

    fn first(&mut self, bench: &Bench, attention: &AttentionBatchInvariant<T>) -> Result<(), CudaError> {
        let (inputs, tiles, workspace) = (self.device.inputs(), self.tiles_on_device.view(), self.workspace.view_mut());
        // SAFETY: the world's tables fit its rows and cache, and the tiles the division.
        unsafe { attention.first(&bench.stream, self.shape, inputs, tiles, workspace, self.out.view_mut()) }
    }

    fn merge(&mut self, bench: &Bench, attention: &AttentionBatchInvariant<T>) -> Result<(), CudaError> {
        let (sequences, tiles) = (self.device.inputs().sequences, self.tiles_on_device.view());
        let workspace = self.workspace.view();
        // SAFETY: as above.
        unsafe { attention.merge(&bench.stream, self.shape, sequences, tiles, workspace, self.out.view_mut()) }
    }

    fn found(&self, bench: &Bench) -> Vec<T> {
        bench.download(self.out.view())
    }
}

fn split(heads: &Heads) -> Division {
    Division::Split { tile_rows: tile_rows(heads) }
}

fn agrees<T: Half>() {
    let worlds: Vec<_> = (0..)
        .zip(cases())
        .map(|(seed, (step, split_len))| {
            let world = World::<T>::new(step, seed);
            let reference = world.reference(world.step.window);
            (world, reference, split_len)
        })
        .collect();
    common::on_every_schedule(|bench| {
        let kernels = [64, 128].map(|dim| AttentionBatchInvariant::<T>::load(bench.device(), dim).unwrap());
        for (world, reference, split_len) in &worlds {
            let attention = &kernels[world.step.heads.dim / 128];
            let mut outputs = Vec::new();
            for division in [Division::Whole, split(&world.step.heads)] {
                let place = format!("{} {division:?}, splits of {split_len}, {:?}", T::NAME, world.step);
                let mut run = Run::new(bench, world, *split_len, division);
                let work = run.shape.work(&world.sequences, &run.tiles, world.step.page_size);
                bench.run(work, || run.first(bench, attention));
                assert_no_bank_conflicts(&place);
                if run.shape.splits() > 1 {
                    bench.run(run.shape.merge_work(&world.sequences, &run.tiles), || run.merge(bench, attention));
                }
                reference.check(world, &run.found(bench), |_| true, &place);
                outputs.push(bits(&run.found(bench)));
            }
            assert!(outputs[0] == outputs[1], "{} splits of {split_len}, {:?}", T::NAME, world.step);
        }
    });
}

device_test! {
    fn ordered_attention_in_bf16_agrees_with_float64_and_splits_with_the_whole() {
        agrees::<bf16>();
    }
}

device_test! {
    fn ordered_attention_in_f16_agrees_with_float64_and_splits_with_the_whole() {
        agrees::<f16>();
    }
}

/// Outputs of the first sequence.
fn outputs<T: Half>(bench: &Bench, step: Step, split_len: usize, division: Division) -> Vec<u16> {
    let world = World::<T>::new(step, 3);
    let attention = AttentionBatchInvariant::load(bench.device(), world.step.heads.dim).unwrap();
    let mut run = Run::new(bench, &world, split_len, division);
    run.first(bench, &attention).unwrap();
    if run.shape.splits() > 1 {
        run.merge(bench, &attention).unwrap();
    }
    let width = world.step.heads.width();
    let Sequence { first_row, rows, .. } = world.sequences[0];
    bits(&run.found(bench)[first_row as usize * width..(first_row + rows) as usize * width])
}

device_test! {
    /// A row has the same bits in a prompt at once, in chunks of any length, alone, in pages of any size, beside
    /// others.
    fn chunks_and_single_rows_have_the_bits_of_the_whole() {
        common::on_every_schedule(|bench| {
            for (group, dim, window) in [(12, 128, None), (9, 64, Some(50)), (1, 64, Some(65))] {
                let step = |page_size, spans: &[(u32, u32)]| Step {
                    heads: heads(group, 1, dim),
                    window,
                    page_size,
                    spans: spans.to_vec(),
                };
                let width = group * dim;
                let whole = outputs::<bf16>(bench, step(64, &[(0, 140)]), 64, Division::Whole);
                let tile = tile_rows(&heads(group, 1, dim)) as u32;
                for (page_size, start, rows) in [(16, 0, 37), (128, 37, 90), (64, 126, tile.min(14)), (16, 139, 1)] {
                    for division in [Division::Whole, split(&heads(group, 1, dim))] {
                        let chunk =
                            outputs::<bf16>(bench, step(page_size, &[(start, rows), (3, 7), (0, 0)]), 64, division);
                        let range = start as usize * width..(start + rows) as usize * width;
                        let place = format!("group {group}, window {window:?}, {division:?}");
                        assert!(chunk == whole[range], "{place}: {rows} rows from {start} on");
                    }
                }
                // Splits of another length are another order of sums: they must not be chosen by the step.
                if window.is_none() {
                    assert!(outputs::<bf16>(bench, step(64, &[(0, 140)]), 128, Division::Whole) != whole);
                }
            }
        });
    }
}

device_test! {
    /// Each launch reads what the one before wrote and may start before that ends; then the same from a recording.
    fn attention_in_a_row_and_in_a_graph_gives_the_same_as_one_by_one() {
        let spans = vec![(120, 30), (0, 0), (0, 5)];
        let world = World::<bf16>::new(Step { heads: heads(2, 2, 64), window: Some(100), page_size: 16, spans }, 5);
        common::on_every_schedule(|bench| {
            let (attention, stream) = (AttentionBatchInvariant::load(bench.device(), 64).unwrap(), &bench.stream);
            let mut run = Run::new(bench, &world, 64, split(&world.step.heads));
            let (tiles, first) = (run.tiles_on_device.view(), bench.download(run.device.queries.view()));
            let mut b = bench.upload(&first);
            // There and back: the outputs are the next queries.
            bench.assert_same_however_launched(&first, |a| {
                let inputs = AttentionInputs { queries: a.view(), ..run.device.inputs() };
                let workspace = run.workspace.view_mut();
                // SAFETY: the world's tables fit its rows and cache, and the tiles the division.
                unsafe { attention.launch(stream, run.shape, inputs, tiles, workspace, b.view_mut())? };
                let inputs = AttentionInputs { queries: b.view(), ..run.device.inputs() };
                let workspace = run.workspace.view_mut();
                // SAFETY: as above.
                unsafe { attention.launch(stream, run.shape, inputs, tiles, workspace, a.view_mut()) }
            });
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        let step = Step { heads: heads(2, 2, 64), window: None, page_size: 16, spans: vec![(0, 5)] };
        let world = World::<bf16>::new(step, 9);
        common::on_every_schedule(|bench| {
            let attention = AttentionBatchInvariant::<bf16>::load(bench.device(), 64).unwrap();
            let mut run = Run::new(bench, &world, 64, split(&world.step.heads));
            let right = run.shape;
            let mut refused = |shape: BatchInvariantShape| {
                run.shape = shape;
                run.first(bench, &attention).unwrap_err().to_string()
            };
            let shape = BatchInvariantShape { rows: 7, ..right };
            assert_eq!(refused(shape), "attention_batch_invariant: queries is 1536, expected 7 x 256 elements");
            let shape = BatchInvariantShape { heads: heads(2, 2, 128), ..right };
            assert_eq!(refused(shape), "attention_batch_invariant: head_dim is 128, expected 64");
            let shape = BatchInvariantShape { window: Some(0), ..right };
            assert_eq!(refused(shape), "attention_batch_invariant: window is 0, expected 1 to 2147483648");
            let shape = BatchInvariantShape { tiles: 1, ..right };
            assert_eq!(refused(shape), "attention_batch_invariant: tiles is 3, expected 1 x 1 elements");
            let shape = BatchInvariantShape { split_len: 80, ..right };
            assert_eq!(refused(shape), "attention_batch_invariant: split_len is 80, expected a multiple of 64");
            let shape = BatchInvariantShape { division: Division::Split { tile_rows: 33 }, ..right };
            assert_eq!(refused(shape), "attention_batch_invariant: tile_rows is 33, expected 1 to 32");
            let shape = BatchInvariantShape { positions: 4096, ..right };
            let (found, needed) = (right.workspace_len() + 3, shape.workspace_len());
            let expected = format!("attention_batch_invariant: workspace is {found}, expected at least {needed} elements");
            assert_eq!(refused(shape), expected);
            let error = AttentionBatchInvariant::<bf16>::load(bench.device(), 96).err().expect("no such kernel");
            assert_eq!(error.to_string(), "attention_batch_invariant: head_dim is 96, expected 64 or 128");
        });
    }
}
