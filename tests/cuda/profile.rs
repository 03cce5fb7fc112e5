//! A step watched launch by launch, and a stream that is not watched any more.

use crate::common;
use std::num::NonZeroU32;

use half::bf16;
use rigel::backend::cuda::model::cost_model::Part;
use rigel::backend::cuda::model::{CudaBackend, CudaOptions};
use rigel::backend::cuda::trace::{COPY, EventTimes, LaunchTimes};
use rigel::backend::{Backend, Batch, Determinism, SequenceRows, Token};
use rigel::bench::profile::{Plan, Step, profile};
use rigel::bench::report::Ceilings;
use rigel::kv::{BlockTable, PageId};
use rigel::text::TokenId;

device_test! {
    fn a_prefill_and_a_decode_step_are_watched() {
        common::on_one_schedule(|bench| {
            let (checkpoint, spec) = common::golden("gqa9");
            for determinism in [Determinism::Fast, Determinism::BatchInvariant] {
                // Deeper than the window, in chunks; a batch that is padded to a recording's.
                let plan = Plan { prefill: 20, batch: 3, depth: 45, determinism };
                let options = plan.options(&spec).unwrap();
                let device = bench.device();
                let mut backend =
                    CudaBackend::<bf16>::new(device, &checkpoint, spec.clone(), &options, &mut |_| {}).unwrap();
                let ceilings = Ceilings { bytes: Some(1e9), flops: Some(1e12) };
                let [prefill, decode] = profile(&mut backend, &plan, &mut EventTimes, &ceilings).unwrap();
                assert_eq!(prefill.step, Step::Prefill { rows: 20 });
                assert_eq!(decode.step, Step::Decode { batch: 3, depth: 45 });
                for timeline in [prefill, decode] {
                    let parts: Vec<&str> = timeline.parts().iter().map(|total| total.name()).collect();
                    // The one row of a prompt that has logits takes its norm along.
                    let one = determinism == Determinism::Fast && matches!(timeline.step, Step::Prefill { .. });
                    let own = Part::ALL.into_iter().filter(|part| !(one && *part == Part::FinalNorm));
                    let expected: Vec<&str> = own.map(Part::name).chain([COPY]).collect();
                    assert_eq!(parts, expected);
                    let qkv = &timeline.parts()[2];
                    assert_eq!((qkv.launches, qkv.bytes > 0, qkv.flops > 0), (spec.layers.len(), true, true));
                    // One behind the other, without gaps.
                    let ends = timeline.spans.iter().zip(&timeline.spans[1..]);
                    assert!(ends.into_iter().all(|(a, b)| (a.end_us() - b.start_us).abs() < 1e-6));
                    assert!(!timeline.sees_gaps && timeline.of_limit().is_some());
                }
            }
        });
    }
}

device_test! {
    fn a_stream_that_was_watched_does_what_it_did() {
        common::on_one_schedule(|bench| {
            let (checkpoint, spec) = common::golden("gqa9");
            let options = CudaOptions {
                page_size: NonZeroU32::new(16).unwrap(),
                pages: 2,
                max_rows: 4,
                max_sequences: 1,
                determinism: Determinism::Fast,
            };
            let tables = [BlockTable::from_pages(0, vec![PageId(1)])];
            // Six decode steps; those of `watched` are watched, on their way from the first to a replay.
            let play = |watched: &[u32]| {
                let mut backend =
                    CudaBackend::<bf16>::new(bench.device(), &checkpoint, spec.clone(), &options, &mut |_| {}).unwrap();
                let stream = backend.stream().clone();
                let mut all = Vec::new();
                let mut counts = Vec::new();
                for start in 0..6 {
                    let rows = [SequenceRows { rows: 0..1, start, tables: &tables }];
                    let batch = Batch { tokens: &[Token::Known(TokenId(start + 5))], sequences: &rows, logits_rows: &[0] };
                    if watched.contains(&start) {
                        EventTimes.begin(&stream).unwrap();
                    }
                    backend.forward(&batch).unwrap();
                    counts.push(EventTimes.end(&stream).unwrap().len());
                    all.push(backend.logits(0).unwrap().to_vec());
                }
                (all, counts)
            };
            let (expected, none) = play(&[]);
            assert_eq!(none, [0; 6]);
            let (found, counts) = play(&[0, 2, 4]);
            assert!(found == expected, "a step that is watched, or was, gives other logits");
            let launches = counts[0];
            assert!(launches > 6 * spec.layers.len(), "{launches}");
            assert_eq!(counts, [launches, 0, launches, 0, launches, 0]);
        });
    }
}

#[test]
fn sizes_that_the_model_has_no_room_for_are_said() {
    let (_, spec) = common::golden("gqa9");
    let plan = Plan { prefill: 20, batch: 3, depth: 45, determinism: Determinism::Fast };
    let error = |plan: Plan| plan.options(&spec).unwrap_err().to_string();
    let most = spec.max_positions;
    assert_eq!(error(Plan { depth: most, ..plan }), format!("--depth is {most}; expected 0 to {}", most - 1));
    assert_eq!(error(Plan { prefill: 0, ..plan }), format!("--prefill is 0; expected 1 to {most}"));
    assert_eq!(error(Plan { batch: 2000, ..plan }), "--batch is 2000; expected 1 to 1024");
    let options = plan.options(&spec).unwrap();
    assert_eq!((options.max_rows, options.max_sequences), (20, 4));
}
