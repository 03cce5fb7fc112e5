//! The model bench on a GPU's stand-in: queued decoding behind copied pasts, and costs from the launchers.

use std::num::NonZeroU32;

use crate::common::on_one_schedule;
use half::bf16;
use rigel::backend::Determinism;
use rigel::backend::cuda::model::{CudaBackend, CudaOptions};
use rigel::bench::model::{Costs, ModelBench, Test, TestWork};
use rigel::bench::report::{Ceilings, Limit};
use rigel::checkpoint::{Checkpoint, ModelSource};
use rigel::model::ModelSpec;

device_test! {
    fn prompts_and_generation_have_rates_and_shares() {
        on_one_schedule(|bench| {
            let checkpoint = Checkpoint::open(&ModelSource::nano()).unwrap();
            let mut spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
            spec.max_positions = 128;
            let options = CudaOptions {
                page_size: NonZeroU32::new(64).unwrap(),
                pages: 8,
                max_rows: 32,
                max_sequences: 4,
                determinism: Determinism::Fast,
            };
            let (device, progress) = (bench.device(), &mut |_| {});
            let backend = CudaBackend::<bf16>::new(device, &checkpoint, spec.clone(), &options, progress).unwrap();
            let costs = Costs::Cuda { spec: spec.clone(), options, device: device.properties().clone() };
            // Far beyond the stand-in: shares are small and there.
            let ceilings = Ceilings { bytes: Some(1e12), flops: Some(1e15) };
            let mut bench = ModelBench::new(Box::new(backend), costs, "nano".to_owned(), ceilings);

            let row = bench.measure(Test { work: TestWork::Prompt(40), depth: 0, batch: 1 }, 1).unwrap();
            assert_eq!((row.name.as_str(), row.tokens, row.missing.as_deref()), ("pp40", 40, None));
            assert!(row.tokens_per_second().unwrap() > 0.0 && row.of_limit.unwrap() > 0.0, "{row:?}");

            // One row a step reads the weights once, two share them.
            let weights = spec.counts().weight_bytes_per_token(2);
            let test = |batch| Test { work: TestWork::Generate(3), depth: 20, batch };
            let one = bench.measure(test(1), 1).unwrap();
            let two = bench.measure(test(2), 2).unwrap();
            assert_eq!((two.name.as_str(), two.tokens, two.times.unwrap().samples), ("tg3 @ d20", 6, 2));
            assert_eq!(two.limit, Some(Limit::Bytes));
            for row in [&one, &two] {
                let of_weights = row.bytes as f64 / (3 * weights) as f64;
                assert!((1.0..1.4).contains(&of_weights), "{of_weights}");
            }
            assert_eq!(two.flops / 2, one.flops);

            let row = bench.measure(test(5), 1).unwrap();
            assert_eq!(row.missing.as_deref(), Some("5 sequences; a step has room for 4"));
            assert!(row.times.is_none());
        });
    }
}
