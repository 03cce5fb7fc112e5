//! Kernels under criterion, timed by events on the device: for following one kernel from change to change. `rigel bench
//! kernels` measures all of them against the device's limits.
//!
//!     cargo bench --bench kernels -- 'gemv up_proj'    # criterion's filter
//!
//! Without a GPU it says so and measures nothing.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use half::bf16;
use rigel::backend::cuda::{Device, Stream};
use rigel::bench::kernels::{Case, Launches};
use rigel::bench::shapes::Shapes;

/// Sets of inputs that are rotated: three times any cache for what is bound by memory.
const SETS: usize = 8;

fn main() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(error) => return println!("kernels: nothing measured: {error}"),
    };
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    let stream = device.stream().expect("a stream of an open device");
    for shapes in Shapes::published().expect("the published networks") {
        for case in Case::all(&shapes.name, &shapes.spec, device.properties()) {
            measure(&mut criterion, &stream, &case);
        }
    }
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, stream: &Stream, case: &Case) {
    let mut group = criterion.benchmark_group(format!("{} {}", case.model, case.name()));
    group.throughput(Throughput::Bytes(case.work().bytes()));
    let sizes = case.row(stream.device().properties()).sizes();
    // Inputs are made when the filter has let the case through.
    let mut inputs: Option<Box<dyn Launches>> = None;
    group.bench_function(BenchmarkId::from_parameter(sizes), |bencher| {
        let launches =
            inputs.get_or_insert_with(|| case.prepare::<bf16>(stream, SETS, 0).expect("room for the inputs"));
        let mut next = 0;
        bencher.iter_custom(|iterations| {
            let start = stream.record().expect("an event");
            for _ in 0..iterations {
                next = (next + 1) % SETS;
                launches.launch(stream, next).expect("a launch");
            }
            let end = stream.record().expect("an event");
            let milliseconds = start.milliseconds_until(&end).expect("the launches to run");
            Duration::from_secs_f64(f64::from(milliseconds) / 1e3)
        });
    });
    group.finish();
}
