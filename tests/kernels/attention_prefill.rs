//! `attention_prefill` in its warp's form against float64 loops, and against itself in other chunks, pages and company.

use crate::attention::{Step, World};
use crate::common;
use crate::prefill::{self, Run, heads, load, outputs};
use half::{bf16, f16};
use rigel::backend::cuda::kernels::attention_prefill::{AttentionPrefill, PrefillShape, Variant, tile_rows};
use rigel::backend::cuda::kernels::paged::{AttentionInputs, Heads};

/// Groups from 1 to 64, both head_dims, windows around nothing, a page and a tile of keys, pages of 16, 64 and 128.
fn steps() -> Vec<Step> {
    let step = |group, kv, dim, window, page_size, spans: &[(u32, u32)]| Step {
        heads: heads(group, kv, dim),
        window,
        page_size,
        spans: spans.to_vec(),
    };
    vec![
        // Prompts around a tile of 128 rows; a chunk at an odd start.
        step(1, 2, 64, None, 64, &[(0, 127), (0, 1), (0, 0), (33, 5)]),
        step(1, 1, 128, None, 128, &[(0, 128), (0, 129)]),
        step(1, 1, 64, Some(65), 64, &[(70, 130), (0, 66)]),
        step(1, 1, 128, Some(63), 16, &[(3, 140)]),
        // Tiles of 64 rows.
        step(2, 2, 128, Some(16), 16, &[(0, 0), (61, 7), (0, 64)]),
        step(2, 1, 64, Some(17), 16, &[(15, 65), (250, 3)]),
        step(2, 1, 128, None, 16, &[(0, 63), (47, 1), (0, 2)]),
        step(3, 2, 64, Some(15), 16, &[(0, 43), (400, 2), (17, 42)]),
        // 14 rows.
        step(9, 1, 64, None, 64, &[(0, 13), (0, 14), (63, 1), (64, 1), (0, 0), (65, 15)]),
        step(9, 2, 128, Some(1), 16, &[(0, 1), (100, 29)]),
        step(9, 1, 128, Some(128), 128, &[(255, 3), (0, 15)]),
        // 10 rows.
        step(12, 2, 128, None, 64, &[(0, 1), (0, 9), (37, 11), (0, 0)]),
        step(12, 1, 64, Some(5), 64, &[(0, 31), (62, 4), (63, 2), (64, 10)]),
        step(12, 1, 128, Some(64), 64, &[(0, 65), (128, 10)]),
        step(12, 1, 128, Some(129), 128, &[(301, 7)]),
        // More than 8 and 16 tiles of keys: the pages are looked up again.
        step(12, 1, 64, None, 16, &[(1030, 4), (500, 20)]),
        step(9, 1, 128, Some(600), 128, &[(1700, 3)]),
        // 5 rows, 2 rows, and one that leaves much of its tile empty.
        step(24, 1, 128, Some(100), 64, &[(0, 4), (160, 5), (191, 6)]),
        step(24, 1, 64, None, 16, &[(16, 1), (15, 2), (79, 11)]),
        step(43, 1, 64, Some(66), 64, &[(64, 5)]),
        step(64, 1, 128, None, 64, &[(0, 3), (63, 2), (0, 1)]),
        step(33, 1, 128, Some(5), 16, &[(0, 4)]),
    ]
}

device_test! {
    fn prefill_in_bf16_agrees_with_float64() {
        prefill::agrees::<bf16>(Variant::Warp, steps());
    }
}

device_test! {
    fn prefill_in_f16_agrees_with_float64() {
        prefill::agrees::<f16>(Variant::Warp, steps());
    }
}

device_test! {
    /// The comparison has the power to see a window that is off by one, in every row that it makes a difference to.
    fn a_window_off_by_one_is_seen() {
        prefill::a_window_off_by_one_is_seen(Variant::Warp, [5, 64], 90);
    }
}

device_test! {
    /// A row has the same bits in a prompt at once, in chunks of any length, in pages of any size, beside any others.
    fn chunks_have_the_bits_of_the_whole() {
        common::on_every_schedule(|bench| {
            for (group, dim, window) in [(12, 128, None), (9, 64, Some(50)), (1, 64, Some(65))] {
                let step = |page_size, spans: &[(u32, u32)]| Step {
                    heads: heads(group, 1, dim),
                    window,
                    page_size,
                    spans: spans.to_vec(),
                };
                let attention = load::<bf16>(bench, dim, Variant::Warp);
                let width = group * dim;
                let whole = outputs(bench, &attention, Variant::Warp, step(64, &[(0, 140)]));
                for (page_size, start, rows) in [(16, 0, 37), (128, 37, 90), (64, 127, 13), (64, 139, 1)] {
                    let chunk = outputs(bench, &attention, Variant::Warp, step(page_size, &[(start, rows), (3, 7), (0, 0)]));
                    let range = start as usize * width..(start + rows) as usize * width;
                    assert!(chunk == whole[range], "group {group}, window {window:?}: {rows} rows from {start} on");
                }
            }
        });
    }
}

device_test! {
    fn attention_in_a_row_and_in_a_graph_gives_the_same_as_one_by_one() {
        prefill::the_same_however_launched(Variant::Warp);
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        let step = Step { heads: heads(2, 2, 64), window: None, page_size: 16, spans: vec![(0, 5)] };
        let world = World::<bf16>::new(step, 9);
        common::on_every_schedule(|bench| {
            let attention = load::<bf16>(bench, 64, Variant::Warp);
            let mut run = Run::new(bench, &world, Variant::Warp);
            let tiles = bench.stream.upload(&run.tiles).unwrap();
            let right = run.shape;
            let device = &run.device;
            let mut refused = |shape: PrefillShape, change: fn(&mut AttentionInputs<bf16>)| {
                let mut inputs = device.inputs();
                change(&mut inputs);
                let (tiles, out) = (tiles.view(), run.out.view_mut());
                // SAFETY: refused before it is launched.
                let launched = unsafe { attention.launch(&bench.stream, shape, inputs, tiles, out) };
                launched.unwrap_err().to_string()
            };
            let as_they_are = |_: &mut AttentionInputs<bf16>| ();
            let shape = PrefillShape { rows: 7, ..right };
            assert_eq!(refused(shape, as_they_are), "attention_prefill: queries is 1536, expected 7 x 256 elements");
            let shape = PrefillShape { heads: heads(2, 2, 128), ..right };
            assert_eq!(refused(shape, as_they_are), "attention_prefill: head_dim is 128, expected 64");
            let shape = PrefillShape { heads: Heads { query: 5, kv: 2, dim: 64 }, ..right };
            assert_eq!(
                refused(shape, as_they_are),
                "attention_prefill: the number of query heads is 5, expected a multiple of the 2 key/value heads"
            );
            let shape = PrefillShape { heads: heads(65, 1, 64), ..right };
            assert_eq!(
                refused(shape, as_they_are),
                "attention_prefill: the number of query heads of a key/value head is 65, expected 1 to 64"
            );
            let shape = PrefillShape { heads: Heads { query: 4, kv: 0, dim: 64 }, ..right };
            assert_eq!(
                refused(shape, as_they_are),
                "attention_prefill: the number of key/value heads is 0, expected 1 to 1024"
            );
            let shape = PrefillShape { window: Some(0), ..right };
            assert_eq!(refused(shape, as_they_are), "attention_prefill: window is 0, expected 1 to 2147483648");
            let shape = PrefillShape { tiles: 1, ..right };
            assert_eq!(refused(shape, as_they_are), "attention_prefill: tiles is 3, expected 1 x 1 elements");
            assert_eq!(
                refused(right, |inputs| inputs.cache.page_size = 24),
                "attention_prefill: page_size is 24, expected a power of two from 16 to 65536"
            );
            assert_eq!(
                refused(right, |inputs| inputs.cache.pages += 1),
                "attention_prefill: keys is 8192, expected 5 x 2048 elements"
            );
            let error = AttentionPrefill::<bf16>::load(bench.device(), 96).err().expect("no such kernel");
            assert_eq!(error.to_string(), "attention_prefill: head_dim is 96, expected 64 or 128");
            assert_eq!(tile_rows(&right.heads), 64);
        });
    }
}
