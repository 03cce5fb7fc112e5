//! `attention_decode` in both forms against float64 loops, and against itself in other company.

use crate::attention::{OnDevice, Step, World, assert_no_bank_conflicts, bits};
use crate::common;
use crate::common::{Bench, Half};
use half::{bf16, f16};
use rigel::backend::cuda::kernels::attention_decode::{AttentionDecode, DecodeShape, DecodeWorkspace, Variant};
use rigel::backend::cuda::kernels::paged::{AttentionInputs, Heads, Sequence, WorkspaceLen};
use rigel::backend::cuda::{Buffer, CudaError, Slice, SliceMut};

fn heads(group: usize, kv: usize, dim: usize) -> Heads {
    Heads { query: group * kv, kv, dim }
}

/// A step, with the highest position and the length of splits.
struct Case {
    step: Step,
    positions: usize,
    split_len: usize,
}

/// Groups from 1 to 64, both head_dims, windows and contexts around units, pages and splits; sequences of no row, one
/// row, and more, which are not decode's.
fn cases() -> Vec<Case> {
    let case = |(group, kv, dim), window, page_size, split_len, positions, spans: &[(u32, u32)]| Case {
        step: Step { heads: heads(group, kv, dim), window, page_size, spans: spans.to_vec() },
        positions,
        split_len,
    };
    let edges: Vec<(u32, u32)> =
        [0, 1, 14, 15, 16, 17, 62, 63, 64, 65, 127, 128, 129, 190, 255, 256].map(|start| (start, 1)).to_vec();
    let some = [(0, 0), (200, 1), (63, 1), (10, 2), (64, 1), (0, 1), (299, 1)];
    let mut cases = vec![
        case((1, 2, 64), None, 64, 64, 257, &edges),
        case((2, 1, 128), None, 16, 128, 300, &edges),
        case((12, 1, 128), Some(64), 64, 64, 300, &edges),
        case((9, 2, 64), Some(65), 64, 128, 1000, &edges),
        case((12, 2, 128), None, 128, 64, 300, &some),
        // One split: the outputs at once.
        case((12, 2, 128), None, 64, 320, 320, &some),
        case((9, 1, 64), Some(100), 16, 512, 300, &some),
        case((24, 1, 128), None, 64, 64, 300, &some),
        case((24, 1, 64), Some(70), 64, 320, 300, &some),
        case((17, 2, 64), None, 16, 128, 300, &some),
        case((16, 1, 128), Some(129), 128, 128, 300, &some),
        case((33, 1, 128), None, 64, 192, 300, &some),
        case((64, 1, 64), Some(65), 64, 64, 300, &some),
        case((48, 1, 128), Some(5), 16, 512, 300, &some),
        // More than 32 units of a warp: the pages are looked up again.
        case((2, 1, 64), None, 64, 8192, 16_384, &[(5000, 1)]),
        case((2, 1, 64), None, 64, 512, 16_384, &[(4999, 1), (16_383, 0), (1023, 1)]),
        case((1, 1, 128), Some(4096), 128, 2560, 16_384, &[(16_383, 1)]),
        case((3, 1, 128), Some(2), 64, 128, 16_384, &[(16_383, 1), (8191, 1), (8192, 1)]),
        // Clusters with all their splits and with one, one cluster and several, and more of them than are asked for at
        // a time; more heads than blocks of a cluster, and fewer.
        case((12, 2, 128), None, 64, 64, 1100, &[(1099, 1), (0, 0), (511, 1), (512, 1), (575, 1), (3, 1)]),
        case((33, 1, 64), Some(600), 16, 64, 1100, &[(1099, 1), (0, 2), (530, 1), (615, 1)]),
        case((20, 1, 128), None, 64, 64, 600, &[(599, 1), (448, 1)]),
        case((1, 3, 64), None, 16, 64, 2700, &[(2687, 1), (2690, 1)]),
    ];
    for window in [1, 5, 15, 16, 17] {
        cases.push(case((4, 1, 64), Some(window), 16, 64, 300, &some));
    }
    cases
}

/// What runs one step.
struct Run<'a, T> {
    device: OnDevice<'a, T>,
    shape: DecodeShape,
    partials: Buffer<f32>,
    tile_counters: Buffer<u32>,
    out: Buffer<T>,
}

impl<'a, T: Half> Run<'a, T> {
    fn new(bench: &Bench, world: &'a World<T>, form: Variant, positions: usize, split_len: usize) -> Run<'a, T> {
        let Step { heads, window, .. } = world.step;
        let sequences = world.sequences.len();
        let shape = DecodeShape { rows: world.rows, sequences, heads, window, positions, split_len };
        // Longer than needed, as one that serves all buckets is; poisoned with NaN.
        let WorkspaceLen { partials, tile_counters } = shape.workspace_len(form);
        let mut partials = bench.stream.alloc(partials + 3).unwrap();
        bench.stream.fill_bytes(partials.view_mut(), 0xff).unwrap();
        let tile_counters = bench.stream.zeroed(tile_counters + 3).unwrap();
        let out = bench.poisoned(world.rows * heads.width());
        Run { device: world.upload(bench), shape, partials, tile_counters, out }
    }

    fn launch(&mut self, bench: &Bench, attention: &AttentionDecode<T>) -> Result<(), CudaError> {
        let Run { device, shape, partials, tile_counters, out } = self;
        let workspace = DecodeWorkspace { partials: partials.view_mut(), tile_counters: tile_counters.view_mut() };
        // SAFETY: the world's tables fit its rows and cache.
        unsafe { attention.launch(&bench.stream, *shape, device.inputs(), workspace, out.view_mut()) }
    }

    fn found(&self, bench: &Bench) -> Vec<T> {
        bench.download(self.out.view())
    }
}

fn is_decode(sequence: &Sequence) -> bool {
    sequence.rows == 1
}

/// Both forms under every schedule of devices that have them; on a GPU those that it has.
fn in_every_form(body: impl Fn(&Bench, Variant)) {
    common::on_every_schedule(|bench| body(bench, Variant::Split));
    common::on_every_hopper_schedule(|bench| body(bench, Variant::Cluster));
}

fn load<T: Half>(bench: &Bench, dim: usize, form: Variant) -> AttentionDecode<T> {
    AttentionDecode::load_variant(bench.device(), dim, form).unwrap()
}

fn agrees<T: Half>() {
    let cases: Vec<_> = (0..)
        .zip(cases())
        .map(|(seed, Case { step, positions, split_len })| {
            let world = World::<T>::new(step, seed);
            let reference = world.reference(world.step.window);
            (world, reference, positions, split_len)
        })
        .collect();
    in_every_form(|bench, form| {
        let kernels = [64, 128].map(|dim| load::<T>(bench, dim, form));
        for (world, reference, positions, split_len) in &cases {
            let place = format!("{form:?}, {} splits of {split_len}, {:?}", T::NAME, world.step);
            eprintln!("{place}");
            let attention = &kernels[world.step.heads.dim / 128];
            let mut run = Run::new(bench, world, form, *positions, *split_len);
            let launches = run.shape.launches(form, T::NAME, &world.sequences, world.step.page_size);
            let works: Vec<_> = launches.iter().map(|(_, work)| *work).collect();
            bench.run_all(&works, || run.launch(bench, attention));
            assert_no_bank_conflicts(&place);
            reference.check(world, &run.found(bench), is_decode, &place);
            let tile_counters = bench.stream.download(run.tile_counters.view()).unwrap();
            assert_eq!(tile_counters, vec![0; tile_counters.len()], "{place}: counters");
        }
    });
}

device_test! {
    fn decode_in_bf16_agrees_with_float64() {
        agrees::<bf16>();
    }
}

device_test! {
    fn decode_in_f16_agrees_with_float64() {
        agrees::<f16>();
    }
}

device_test! {
    /// The comparison has the power to see a window that is off by one, in every row that it makes a difference to.
    fn a_window_off_by_one_is_seen() {
        for window in [5usize, 64] {
            let spans = [64, 90, 127, 128, 200].map(|start| (start, 1)).to_vec();
            let step = Step { heads: heads(12, 1, 128), window: Some(window), page_size: 64, spans };
            let world = World::<f16>::new(step, 7);
            let others = [window - 1, window + 1].map(|window| world.reference(Some(window)));
            in_every_form(|bench, form| {
                let attention = load(bench, 128, form);
                let mut run = Run::new(bench, &world, form, 201, 64);
                run.launch(bench, &attention).unwrap();
                let found = run.found(bench);
                world.reference(Some(window)).check(&world, &found, is_decode, "the right window");
                for (other, reference) in [window - 1, window + 1].into_iter().zip(&others) {
                    for sequence in &world.sequences {
                        let checked = reference.check_row(&found, sequence.first_row as usize);
                        assert!(checked.is_err(), "{sequence:?} passes for a window of {other}");
                    }
                }
            });
        }
    }
}

/// The first sequence's outputs in a step.
fn outputs(bench: &Bench, form: Variant, step: Step, positions: usize, split_len: usize) -> Vec<u16> {
    let attention = load(bench, step.heads.dim, form);
    let world = World::<bf16>::new(step, 3);
    let mut run = Run::new(bench, &world, form, positions, split_len);
    run.launch(bench, &attention).unwrap();
    let width = world.step.heads.width();
    let first_row = world.sequences[0].first_row as usize;
    bits(&run.found(bench)[first_row * width..(first_row + 1) * width])
}

device_test! {
    /// With one length of splits a row has the same bits alone and in company, with more splits in the grid than it
    /// needs, in pages of any size; and a row of one split with the merge and without.
    fn a_row_has_the_same_bits_in_any_company() {
        in_every_form(|bench, form| {
            for (group, dim, window) in [(12, 128, None), (9, 64, Some(150)), (24, 64, Some(65))] {
                for start in [0, 63, 64, 200, 299, 600] {
                    let run = |page_size, others: &[(u32, u32)], positions, split_len| {
                        let spans = [&[(start, 1)], others].concat();
                        let step = Step { heads: heads(group, 1, dim), window, page_size, spans };
                        outputs(bench, form, step, positions, split_len)
                    };
                    let place = format!("{form:?}, group {group}, window {window:?}, position {start}");
                    let alone = run(64, &[], start as usize + 1, 64);
                    assert!(alone == run(16, &[(0, 0), (150, 1), (7, 3)], 700, 64), "{place}: in company");
                    assert!(alone == run(128, &[(5, 1)], 2000, 64), "{place}: with more splits in the grid");
                    let whole = run(64, &[], 640, 640);
                    assert!(whole == run(64, &[], 1280, 640), "{place}: with a merge of one split");
                }
            }
        });
    }
}

device_test! {
    /// Each launch reads what the one before wrote and may start before that ends; then the same from a recording.
    fn attention_in_a_row_and_in_a_graph_gives_the_same_as_one_by_one() {
        let spans = vec![(20, 1), (0, 0), (700, 1)];
        let world = World::<bf16>::new(Step { heads: heads(2, 2, 64), window: None, page_size: 16, spans }, 5);
        in_every_form(|bench, form| {
            let (attention, stream) = (load(bench, 64, form), &bench.stream);
            for split_len in [64, 704] {
                let mut run = Run::new(bench, &world, form, 701, split_len);
                let first = bench.download(run.device.queries.view());
                let mut b = bench.upload(&first);
                let Run { device, shape, partials, tile_counters, .. } = &mut run;
                // There and back: the outputs are the next queries, and the workspace is the same.
                bench.assert_same_however_launched(&first, |a| {
                    let mut attend = |queries: Slice<'_, bf16>, out: SliceMut<'_, bf16>| {
                        let inputs = AttentionInputs { queries, ..device.inputs() };
                        let workspace = DecodeWorkspace { partials: partials.view_mut(), tile_counters: tile_counters.view_mut() };
                        // SAFETY: the world's tables fit its rows and cache.
                        unsafe { attention.launch(stream, *shape, inputs, workspace, out) }
                    };
                    attend(a.view(), b.view_mut())?;
                    attend(b.view(), a.view_mut())
                });
            }
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        let step = Step { heads: heads(2, 2, 64), window: None, page_size: 16, spans: vec![(99, 1)] };
        let world = World::<bf16>::new(step, 9);
        common::on_every_schedule(|bench| {
            let attention = load::<bf16>(bench, 64, Variant::Split);
            let mut run = Run::new(bench, &world, Variant::Split, 100, 64);
            let (device, right) = (&run.device, run.shape);
            let mut refused = |shape: DecodeShape, partials: usize| {
                let partials = run.partials.slice_mut(..partials).unwrap();
                let workspace = DecodeWorkspace { partials, tile_counters: run.tile_counters.view_mut() };
                let out = run.out.view_mut();
                // SAFETY: refused before it is launched.
                let launched = unsafe { attention.launch(&bench.stream, shape, device.inputs(), workspace, out) };
                launched.unwrap_err().to_string()
            };
            // 1 sequence x 4 heads x 2 splits x (64 + 2).
            assert_eq!(right.workspace_len(Variant::Split), WorkspaceLen { partials: 528, tile_counters: 0 });
            assert_eq!(refused(right, 527), "attention_decode: workspace is 527, expected at least 528 elements");
            let shape = DecodeShape { split_len: 80, ..right };
            assert_eq!(refused(shape, 528), "attention_decode: split_len is 80, expected a multiple of 64");
            let shape = DecodeShape { split_len: 0, ..right };
            assert_eq!(refused(shape, 528), "attention_decode: split_len is 0, expected 1 to 536870912");
            let shape = DecodeShape { positions: 0, ..right };
            assert_eq!(refused(shape, 528), "attention_decode: positions is 0, expected 1 to 2147483648");
            let shape = DecodeShape { sequences: 2, ..right };
            assert_eq!(refused(shape, 528), "attention_decode: sequences is 1, expected 2 x 1 elements");
            let shape = DecodeShape { heads: heads(2, 2, 128), ..right };
            assert_eq!(refused(shape, 528), "attention_decode: head_dim is 128, expected 64");
            let shape = DecodeShape { rows: 3, ..right };
            assert_eq!(refused(shape, 528), "attention_decode: queries is 512, expected 3 x 256 elements");
            let error = AttentionDecode::<bf16>::load(bench.device(), 32).err().expect("no such kernel");
            assert_eq!(error.to_string(), "attention_decode: head_dim is 32, expected 64 or 128");
        });
    }
}

device_test! {
    /// A row at a position that the launch was not planned for: its splits beyond are not computed, nothing else is
    /// touched, and the launches behind it find their counters at 0.
    fn rows_beyond_the_plan_stay_within_it() {
        let step = |start| Step { heads: heads(12, 1, 128), window: None, page_size: 64, spans: vec![(start, 1)] };
        let worlds = [1500, 300].map(|start| World::<bf16>::new(step(start), 11));
        in_every_form(|bench, form| {
            let attention = load(bench, 128, form);
            // One split, one cluster of splits, two.
            for positions in [64, 512, 1000] {
                let mut run = Run::new(bench, &worlds[0], form, positions, 64);
                run.launch(bench, &attention).unwrap();
                let found = run.found(bench);
                assert!(found[12 * 128..].iter().all(|x| x.to_f64().is_finite()), "{form:?}, {positions} positions");
                let tile_counters = bench.stream.download(run.tile_counters.view()).unwrap();
                assert_eq!(tile_counters, vec![0; tile_counters.len()], "{form:?}, {positions} positions");
            }
            let mut run = Run::new(bench, &worlds[1], form, 301, 64);
            run.launch(bench, &attention).unwrap();
            worlds[1].reference(None).check(&worlds[1], &run.found(bench), is_decode, "as planned");
        });
    }
}

device_test! {
    fn counters_that_are_too_few_are_refused() {
        let step = Step { heads: heads(2, 2, 64), window: None, page_size: 16, spans: vec![(999, 1)] };
        let world = World::<bf16>::new(step, 9);
        common::on_every_hopper_schedule(|bench| {
            let attention = load::<bf16>(bench, 64, Variant::Cluster);
            let mut run = Run::new(bench, &world, Variant::Cluster, 1000, 64);
            // 16 splits are 2 clusters: 1 sequence x 4 heads x 2 x (64 + 2).
            assert_eq!(run.shape.workspace_len(Variant::Cluster), WorkspaceLen { partials: 528, tile_counters: 4 });
            run.tile_counters = bench.stream.zeroed(3).unwrap();
            let error = run.launch(bench, &attention).unwrap_err().to_string();
            assert_eq!(error, "attention_decode: tile_counters is 3, expected at least 4 elements");
        });
    }
}
