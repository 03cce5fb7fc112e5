//! Correct kernels run clean, with right results, under every schedule: the checks raise no false alarm.

mod workbench;

use workbench::planted::{every_schedule, expect_clean};
use workbench::{Bench, Start, address, shape};

#[test]
fn barriers_and_shuffles() {
    expect_clean("correct_exchange", |bench| {
        let n = 1000usize;
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let (x, y) = (bench.upload(&values), bench.uninitialised::<f32>(n));
        let (x_at, y_at, count) = (address(&x, &bench.stream), address(&y, &bench.stream), n as i32);
        bench.launch("correct_exchange", shape(4, 256, 1024), Start::AfterAll, arguments![x_at, y_at, count]);
        let expected: Vec<f32> = (0..n).map(|i| 2.0 * (i ^ 1) as f32).collect();
        assert_eq!(bench.download(&y).expect("a correct kernel"), expected);
    });
}

#[test]
fn wide_and_narrow_accesses_to_the_same_bytes() {
    expect_clean("correct_widths", |bench| {
        let (numbers, out) = (bench.uninitialised::<u16>(32 * 9), bench.uninitialised::<u16>(32 * 9));
        let bytes = bench.uninitialised::<u8>(9);
        let at = [address(&numbers, &bench.stream), address(&out, &bench.stream)];
        let bytes_at = address(&bytes, &bench.stream);
        // Twice: the second meets what the first left.
        for _ in 0..2 {
            let arguments = arguments![at[0], at[1], bytes_at];
            bench.launch("correct_widths", shape(9, 32, 0), Start::AfterAll, arguments);
        }
        // The first two of every eight were raised by one.
        let expected = (0..32u16).map(|i| i ^ 7).map(|i| i + u16::from(i % 8 < 2));
        assert_eq!(bench.download(&out).expect("a correct kernel"), expected.collect::<Vec<_>>().repeat(9));
        assert_eq!(bench.download(&bytes).expect("a correct kernel"), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    });
}

#[test]
fn the_last_block_finishes() {
    expect_clean("correct_last_block_sum", |bench| {
        let n = 5000usize;
        let values: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
        let (x, y) = (bench.upload(&values), bench.uninitialised::<f32>(1));
        let (partial, counter) = (bench.uninitialised::<f32>(12), bench.upload(&[0u32]));
        let at = [address(&x, &bench.stream), address(&partial, &bench.stream)];
        let (counter_at, y_at, count) = (address(&counter, &bench.stream), address(&y, &bench.stream), n as i32);
        // Twice: the counter is ready again after a launch.
        for _ in 0..2 {
            let arguments = arguments![at[0], at[1], counter_at, y_at, count];
            bench.launch("correct_last_block_sum", shape(12, 128, 256), Start::AfterAll, arguments);
        }
        assert_eq!(bench.download(&y).expect("a correct kernel"), [values.iter().sum::<f32>()]);
    });
}

#[test]
fn fences_around_a_relaxed_counter() {
    expect_clean("correct_fence_and_counter", |bench| {
        let (data, counter, y) =
            (bench.uninitialised::<u32>(6 * 64), bench.upload(&[0u32]), bench.uninitialised::<u32>(64));
        let (data_at, counter_at) = (address(&data, &bench.stream), address(&counter, &bench.stream));
        let y_at = address(&y, &bench.stream);
        let arguments = arguments![data_at, counter_at, y_at];
        bench.launch("correct_fence_and_counter", shape(6, 64, 64), Start::AfterAll, arguments);
        assert_eq!(bench.download(&y).expect("a correct kernel"), [21u32; 64]);
    });
}

#[test]
fn a_chain_of_flags() {
    expect_clean("correct_flag_chain", |bench| {
        let (value, flags) = (bench.uninitialised::<u32>(1), bench.upload(&[0u32; 20]));
        let (value_at, flags_at) = (address(&value, &bench.stream), address(&flags, &bench.stream));
        bench.launch("correct_flag_chain", shape(20, 32, 0), Start::Cooperative, arguments![value_at, flags_at]);
        assert_eq!(bench.download(&value).expect("a correct kernel"), [20]);
    });
}

#[test]
fn a_pipeline_of_copies() {
    expect_clean("correct_copy_pipeline", |bench| {
        let tiles = 7usize;
        let values: Vec<f32> = (0..tiles * 256).map(|i| (i * i % 31) as f32).collect();
        let (x, y) = (bench.upload(&values), bench.uninitialised::<f32>(64));
        let (x_at, y_at, count) = (address(&x, &bench.stream), address(&y, &bench.stream), tiles as i32);
        bench.launch("correct_copy_pipeline", shape(1, 64, 3 * 1024), Start::AfterAll, arguments![x_at, y_at, count]);
        let element = |thread: usize, i: usize| (i * 64 + 17 * thread) % 256;
        let sum = |thread: usize| {
            (0..tiles)
                .flat_map(|tile| (0..4).map(move |i| (tile, i)))
                .map(|(tile, i)| values[tile * 256 + element(thread, i)])
                .sum()
        };
        let expected: Vec<f32> = (0..64).map(sum).collect();
        assert_eq!(bench.download(&y).expect("a correct kernel"), expected);
    });
}

#[test]
fn named_barriers() {
    expect_clean("correct_named_barriers", |bench| {
        let rounds = 5usize;
        let values: Vec<u32> = (0..rounds as u32 * 32).map(|i| i * 3).collect();
        let (x, y) = (bench.upload(&values), bench.uninitialised::<u32>(32));
        let (x_at, y_at, count) = (address(&x, &bench.stream), address(&y, &bench.stream), rounds as i32);
        bench.launch("correct_named_barriers", shape(1, 64, 128), Start::AfterAll, arguments![x_at, y_at, count]);
        let expected: Vec<u32> =
            (0..32).map(|lane| (0..rounds).map(|round| values[round * 32 + 31 - lane]).sum()).collect();
        assert_eq!(bench.download(&y).expect("a correct kernel"), expected);
    });
}

#[test]
fn a_chain_of_dependent_launches() {
    expect_clean("correct_dependent_step", |bench| {
        let buffers: Vec<_> = (0..8).map(|_| bench.upload(&[0u32; 256])).collect();
        let at: Vec<u64> = buffers.iter().map(|buffer| address(buffer, &bench.stream)).collect();
        for step in 0..30 {
            let (from, to) = (at[step % 8], at[(step + 1) % 8]);
            let start = if step == 0 { Start::AfterAll } else { Start::Early };
            bench.launch("correct_dependent_step", shape(4, 64, 0), start, arguments![from, to]);
        }
        assert_eq!(bench.download(&buffers[30 % 8]).expect("a correct kernel"), [30u32; 256]);
    });
}

#[test]
fn streams_ordered_by_an_event() {
    expect_clean("events", |bench| {
        let other = bench.context.new_stream().expect("a second stream");
        let buffers: Vec<_> = (0..3).map(|_| bench.upload(&[1u32; 64])).collect();
        let at: Vec<u64> = buffers.iter().map(|buffer| address(buffer, &bench.stream)).collect();
        bench.launch("correct_dependent_step", shape(1, 64, 0), Start::AfterAll, arguments![at[0], at[1]]);
        let done = bench.stream.record_event(None).expect("an event");
        other.wait(&done).expect("a wait");
        bench.launch_on(&other, "correct_dependent_step", shape(1, 64, 0), Start::AfterAll, arguments![at[1], at[2]]);
        other.synchronize().expect("a correct kernel");
        assert_eq!(bench.download(&buffers[2]).expect("a correct kernel"), [3u32; 64]);
    });
}

#[test]
fn a_graph_replayed() {
    for (seed, _) in every_schedule() {
        let bench = Bench::open(&[0; 64]);
        Bench::interpreter().set_seed(seed);
        let (x, y) = (bench.upload(&[1u32; 64]), bench.upload(&[0u32; 64]));
        let (x_at, y_at) = (address(&x, &bench.stream), address(&y, &bench.stream));
        bench.stream.synchronize().expect("the uploads are done");
        let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        bench.stream.begin_capture(mode).expect("a capture");
        bench.launch("correct_dependent_step", shape(1, 64, 0), Start::AfterAll, arguments![x_at, y_at]);
        bench.launch("correct_dependent_step", shape(1, 64, 0), Start::Early, arguments![y_at, x_at]);
        let flags = cudarc::driver::sys::CUgraphInstantiate_flags(0);
        let graph = bench.stream.end_capture(flags).expect("a graph").expect("a graph with nodes");
        for _ in 0..3 {
            graph.launch().expect("a launch");
        }
        assert_eq!(bench.download(&x).expect("a correct kernel"), [7u32; 64]);
        assert_eq!(Bench::interpreter().take_reports(), Vec::<String>::new());
    }
}
