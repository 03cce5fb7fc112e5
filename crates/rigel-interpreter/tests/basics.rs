//! The interpreter runs kernels through unmodified cudarc: a launch, its values, its counters.

mod workbench;

use workbench::{Bench, Start, address, shape};

#[test]
fn a_kernel_runs_through_cudarc() {
    let bench = Bench::open(&[0; 64]);
    let interpreter = Bench::interpreter();
    for seed in 0..5 {
        interpreter.set_seed(seed);
        interpreter.clear_counters();
        let n = 1000usize;
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let x = bench.upload(&values);
        let y = bench.uninitialised::<f32>(n);
        let (x_at, y_at, count) = (address(&x, &bench.stream), address(&y, &bench.stream), n as i32);
        bench.launch("correct_exchange", shape(4, 256, 1024), Start::AfterAll, arguments![x_at, y_at, count]);
        let result = bench.download(&y).expect("a correct kernel");
        let expected: Vec<f32> = (0..n).map(|i| 2.0 * (i ^ 1) as f32).collect();
        assert_eq!(result, expected);
        let counters = &interpreter.counters()[0];
        assert_eq!((counters.bytes_read, counters.bytes_written), (4 * n as u64, 4 * n as u64));
        assert_eq!(counters.barriers, 4);
    }
    assert_eq!(interpreter.reports(), Vec::<String>::new());
}
