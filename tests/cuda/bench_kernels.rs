//! The kernel bench end to end: what it launches is what it declares, and what it says of what it cannot measure.

use crate::common;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{Bench, on_one_schedule};
use half::bf16;
use rigel::backend::cuda::Work;
use rigel::bench::kernels::{Case, CeilingSizes, Filter, KernelBench, Options, Timer, What};
use rigel::bench::report::{DeviceRecord, Limit, Report, Row};
use rigel::bench::shapes::Shapes;

/// For each kernel its smallest case, and one that takes the other path where there are two, at a small model's shapes.
fn smallest_cases(bench: &Bench) -> Vec<Case> {
    let shapes = Shapes::resolve(common::root().join("crates/rigel-nano/model").to_str().unwrap()).unwrap();
    let mut smallest = BTreeMap::<String, Case>::new();
    for case in Case::all("nano", &shapes.spec, bench.device().properties()) {
        let bytes = |case: &Case| (case.work().bytes(), case.work().flops);
        let place = smallest.entry(case.name()).or_insert_with(|| case.clone());
        if bytes(&case) < bytes(place) {
            *place = case;
        }
    }
    smallest.into_values().collect()
}

device_test! {
    fn every_case_launches_what_it_declares() {
        on_one_schedule(|bench| {
            let cases = smallest_cases(bench);
            assert!(cases.len() >= 16, "{}", cases.len());
            for case in cases {
                let mut launches = case.prepare::<bf16>(&bench.stream, 2, 0).unwrap();
                assert_eq!(launches.sets(), 2);
                bench.stream.synchronize().unwrap();
                let Some(interpreter) = bench.interpreter() else {
                    launches.launch(&bench.stream, 1).unwrap();
                    bench.stream.synchronize().unwrap();
                    continue;
                };
                interpreter.clear_counters();
                launches.launch(&bench.stream, 1).unwrap();
                bench.stream.synchronize().unwrap();
                let counted = interpreter.counters();
                // A split attention's second launch is part of the time, and none of the work.
                let split = matches!(case.what, What::Decode { .. } | What::OrderedDecode { .. });
                let launched = if split { 1..=2 } else { 1..=1 };
                assert!(launched.contains(&counted.len()), "{}: {counted:?}", case.name());
                let Work { bytes_read, bytes_written, .. } = case.work();
                let last = counted.last().unwrap();
                for (what, counted, declared) in
                    [("read", counted[0].bytes_read, bytes_read), ("written", last.bytes_written, bytes_written)]
                {
                    // A row of parameters beside a few logits, and ids that may be equal.
                    let room = 0.02 * declared as f64 + 1024.0;
                    let off = counted.abs_diff(declared) as f64;
                    assert!(off <= room, "{}: {counted} bytes {what}, {declared} declared", case.name());
                }
            }
        });
    }
}

fn small() -> Options {
    let budget = Duration::from_millis(5);
    Options { budget, ceilings: CeilingSizes { read_bytes: 1 << 20, product: 128, budget }, seed: 0, max_sets: 2 }
}

device_test! {
    fn rows_have_times_rates_and_shares() {
        on_one_schedule(|bench| {
            let mut report = Report::begin(DeviceRecord::of_gpu(bench.device()));
            let mut kernels = KernelBench::<bf16>::new(bench.device(), small(), None).unwrap();
            kernels.measure_ceilings(&mut report).unwrap();
            let ceilings = report.ceilings();
            assert!(ceilings.bytes.unwrap() > 0.0 && ceilings.flops.unwrap() > 0.0, "{report:?}");
            let by_limit = |limit| report.ceilings.iter().filter(|ceiling| ceiling.limit == limit).count();
            assert_eq!([by_limit(Limit::Bytes), by_limit(Limit::Flops)], [1, 1]);
            let words = ["norm rows=1", "gemv up_proj rows=1", "sample greedy rows=1"];
            for word in words {
                let cases = Filter::new(word).select(smallest_cases(bench)).unwrap();
                let rows = kernels.measure(&cases[0], &ceilings).unwrap();
                let [Row { times: Some(times), of_limit: Some(share), missing: None, .. }] = rows.as_slice() else {
                    panic!("{word}: {rows:?}")
                };
                assert!(times.median_us > 0.0 && times.samples >= 3, "{word}: {times:?}");
                assert!(*share > 0.0, "{word}: {share}");
                assert!(rows[0].bytes_per_second().unwrap() > 0.0);
            }
        });
    }
}

device_test! {
    fn a_case_that_does_not_fit_says_so_before_it_allocates() {
        on_one_schedule(|bench| {
            let mut kernels = KernelBench::<bf16>::new(bench.device(), small(), None).unwrap();
            let shapes = Shapes::resolve("15b").unwrap();
            let mut cases = Case::all("starcoder2-15b", &shapes.spec, bench.device().properties());
            for case in &mut cases {
                if let What::Head(shape) = &mut case.what {
                    // 600 GB: more than any of them has.
                    shape.n = 49_152 * 1000;
                }
            }
            let case = cases.iter().find(|case| matches!(case.what, What::Head(_))).unwrap();
            let (free, _) = bench.device().memory().unwrap();
            let rows = kernels.measure(case, &Default::default()).unwrap();
            let why = rows[0].missing.as_deref().unwrap();
            assert!(why.starts_with("needs 563 GiB, ") && why.ends_with("iB are free"), "{why}");
            assert!(rows[0].times.is_none());
            assert_eq!(bench.device().memory().unwrap().0, free);
        });
    }
}

device_test! {
    fn short_launches_are_timed_in_a_recording() {
        on_one_schedule(|bench| {
            /// Counts; launches a fill, which takes next to no time.
            struct Fill(rigel::backend::cuda::Buffer<u32>, Vec<usize>);
            impl rigel::bench::kernels::Launches for Fill {
                fn sets(&self) -> usize {
                    3
                }
                fn launch(
                    &mut self,
                    stream: &rigel::backend::cuda::Stream,
                    set: usize,
                ) -> Result<(), rigel::backend::cuda::CudaError> {
                    self.1.push(set);
                    stream.fill_bytes(self.0.view_mut(), set as u8)
                }
            }
            let mut timer = Timer::new(bench.stream.clone()).unwrap();
            let mut fill = Fill(bench.stream.zeroed(4).unwrap(), Vec::new());
            let samples = timer.time(&mut fill, Duration::from_millis(2)).unwrap();
            // Warm-up, estimate, and one recording of whole rounds, however often it was replayed.
            assert_eq!(fill.1.len(), 3 + 3 + samples.recorded);
            assert!(samples.recorded > 1 && samples.recorded.is_multiple_of(3), "{samples:?}");
            assert!(fill.1.iter().enumerate().all(|(index, set)| *set == index % 3), "{:?}", fill.1);
            assert!(samples.us.len() >= 3 && samples.us.iter().all(|us| *us >= 0.0), "{samples:?}");
            assert!(samples.clock.iter().all(|clock| *clock > 0.0));
        });
    }
}
