//! `attention_prefill` in its warpgroup's form, on Hopper alone, against float64 loops, and against itself in other
//! chunks, pages, company and numbers of blocks.

use crate::attention::Step;
use crate::common;
use crate::prefill::{self, heads, load, outputs};
use half::{bf16, f16};
use rigel::backend::cuda::kernels::attention_prefill::{AttentionPrefill, Variant};

/// The groups of the models and the extremes, both head_dims, windows around nothing, a page and a tile of 128 keys,
/// pages of a part of a tile, a tile and more.
fn steps() -> Vec<Step> {
    let step = |group, kv, dim, window, page_size, spans: &[(u32, u32)]| Step {
        heads: heads(group, kv, dim),
        window,
        page_size,
        spans: spans.to_vec(),
    };
    vec![
        // Prompts around a tile of 128 rows: whole tiles of keys alone, and with a part. A consumer that sees nothing
        // of the last tile.
        step(1, 2, 64, None, 64, &[(0, 127), (0, 1), (0, 0), (33, 5)]),
        step(1, 1, 128, None, 256, &[(0, 128), (0, 129)]),
        step(1, 1, 128, Some(63), 16, &[(195, 130)]),
        // Windows of a tile of keys, one more, one less: edges at both ends, and whole tiles between.
        step(2, 1, 64, Some(127), 16, &[(250, 65)]),
        step(2, 2, 128, Some(128), 64, &[(0, 0), (61, 7), (0, 64)]),
        step(9, 1, 128, Some(129), 128, &[(255, 3), (0, 15)]),
        step(9, 2, 64, Some(1), 16, &[(0, 1), (100, 29)]),
        // More than 4 and 8 tiles of keys: the pages are looked up again, and the rings go round.
        step(9, 1, 64, None, 64, &[(1150, 15)]),
        step(12, 1, 128, Some(600), 16, &[(1030, 4), (500, 20)]),
        step(12, 2, 128, None, 64, &[(0, 1), (0, 9), (246, 11), (0, 0)]),
        // 5 rows, 2 rows, and one that leaves much of its tile empty.
        step(24, 1, 128, Some(100), 64, &[(0, 4), (160, 6)]),
        step(64, 1, 64, None, 64, &[(0, 3), (127, 1)]),
        step(33, 1, 128, Some(5), 16, &[(126, 4)]),
    ]
}

device_test! {
    fn prefill_in_bf16_agrees_with_float64() {
        prefill::agrees::<bf16>(Variant::Warpgroup, steps());
    }
}

device_test! {
    fn prefill_in_f16_agrees_with_float64() {
        prefill::agrees::<f16>(Variant::Warpgroup, steps());
    }
}

device_test! {
    /// The comparison has the power to see a window that is off by one, in every row that it makes a difference to.
    fn a_window_off_by_one_is_seen() {
        prefill::a_window_off_by_one_is_seen(Variant::Warpgroup, [5, 128], 190);
    }
}

device_test! {
    /// A row has the same bits in a prompt at once, in chunks of any length, in pages of any size, beside any others,
    /// by blocks of one tile each or one block that takes all tiles.
    fn chunks_and_blocks_have_the_bits_of_the_whole() {
        common::on_every_hopper_schedule(|bench| {
            for (group, dim, window) in [(12, 128, None), (9, 64, Some(50)), (1, 64, Some(130))] {
                let attention = load::<bf16>(bench, dim, Variant::Warpgroup);
                let step = |page_size, spans: &[(u32, u32)]| Step {
                    heads: heads(group, 1, dim),
                    window,
                    page_size,
                    spans: spans.to_vec(),
                };
                let width = group * dim;
                let whole = outputs(bench, &attention, Variant::Warpgroup, step(64, &[(0, 140)]));
                for (page_size, start, rows) in [(16, 0, 37), (128, 37, 90), (64, 127, 13), (64, 139, 1)] {
                    let chunk = outputs(bench, &attention, Variant::Warpgroup, step(page_size, &[(start, rows), (3, 7), (0, 0)]));
                    let range = start as usize * width..(start + rows) as usize * width;
                    assert!(chunk == whole[range], "group {group}, window {window:?}: {rows} rows from {start} on");
                }
                // The other form's tiles are as good, if more than it takes.
                for (blocks, form) in [(1, Variant::Warpgroup), (3, Variant::Warp)] {
                    let attention = load::<bf16>(bench, dim, Variant::Warpgroup).with_blocks(blocks);
                    let few = outputs(bench, &attention, form, step(16, &[(0, 140), (250, 9)]));
                    assert!(few == whole, "group {group}, window {window:?}, {blocks} blocks, tiles of {form:?}");
                }
            }
        });
    }
}

device_test! {
    /// Stages of the rings are filled by boxes, then by copies at the edge of a window, then by boxes again.
    fn attention_has_the_same_bits_however_often() {
        if common::skipped_before_hopper("prefill attention by warpgroups") {
            return;
        }
        let bench = common::hopper_bench();
        let attention = load::<bf16>(&bench, 128, Variant::Warpgroup);
        let spans = [(250, 65), (0, 140), (0, 1)];
        common::assert_same_bits_however_often(&bench, || {
            let step = Step { heads: heads(12, 1, 128), window: Some(127), page_size: 16, spans: spans.to_vec() };
            outputs(&bench, &attention, Variant::Warpgroup, step)
        });
    }
}

device_test! {
    fn attention_in_a_row_and_in_a_graph_gives_the_same_as_one_by_one() {
        prefill::the_same_however_launched(Variant::Warpgroup);
    }
}

device_test! {
    /// Which form a device has, and that the other is refused where it does not run.
    fn hopper_alone_has_the_warpgroups_form() {
        common::on_every_schedule(|bench| {
            let is_hopper = bench.device().properties().compute_capability.number() == 90;
            let form = Variant::of(bench.device().properties());
            assert_eq!(form, if is_hopper { Variant::Warpgroup } else { Variant::Warp });
            assert_eq!(form.kernel_name("bf16", 64).contains("_sm90_"), is_hopper);
            let loaded = AttentionPrefill::<f16>::load_variant(bench.device(), 64, Variant::Warpgroup);
            assert_eq!(loaded.is_ok(), is_hopper);
            let error = AttentionPrefill::<f16>::load(bench.device(), 96).err().expect("no such kernel");
            assert_eq!(error.to_string(), "attention_prefill: head_dim is 96, expected 64 or 128");
        });
    }
}
