//! Recording streams into graphs: what CUDA's programming guide allows runs in its order at each replay, what it
//! forbids gives CUDA's errors.

mod workbench;

use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError, result};
use workbench::{Bench, Start, address, shape};

fn begin(stream: &CudaStream) {
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a recording begins");
}

fn end(stream: &Arc<CudaStream>) -> Result<CudaGraph, DriverError> {
    Ok(stream.end_capture(sys::CUgraphInstantiate_flags(0))?.expect("a graph"))
}

fn error_of<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().expect("an error").0
}

fn record(stream: &CudaStream) -> CudaEvent {
    stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).expect("an event")
}

/// Sets every byte.
fn fill(stream: &CudaStream, buffer: &CudaSlice<u8>, byte: u8) -> Result<(), DriverError> {
    // SAFETY: the whole of a live buffer.
    unsafe { result::memset_d8_async(address(buffer, stream), byte, buffer.len(), stream.cu_stream()) }
}

fn copy(stream: &CudaStream, from: &CudaSlice<u8>, to: &CudaSlice<u8>) {
    // SAFETY: two live buffers of one length.
    unsafe { result::memcpy_dtod_async(address(to, stream), address(from, stream), from.len(), stream.cu_stream()) }
        .expect("a copy");
}

/// A diamond: `a` becomes `byte`, then `b` and `c` copies of it on a stream each, then `d` a copy of `c`.
#[test]
fn branches_follow_the_fork_and_the_join_follows_them() {
    for seed in 0..6 {
        let bench = Bench::open(&[0; 64]);
        Bench::interpreter().set_seed(seed);
        let (main, side) = (&bench.stream, bench.context.new_stream().unwrap());
        let buffers: Vec<CudaSlice<u8>> = (0..4).map(|_| bench.upload(&[0u8; 64])).collect();
        let [a, b, c, d] = &buffers[..] else { unreachable!("four") };
        main.synchronize().unwrap();
        begin(main);
        fill(main, a, 7).unwrap();
        side.wait(&record(main)).unwrap();
        copy(&side, a, c);
        copy(main, a, b);
        main.wait(&record(&side)).unwrap();
        copy(main, c, d);
        let graph = end(main).unwrap();
        for _ in 0..3 {
            graph.launch().unwrap();
            // Whatever comes after the graph in its stream comes after all of its branches.
            fill(main, c, 9).unwrap();
        }
        main.synchronize().unwrap();
        let values = buffers.iter().map(|buffer| bench.download(buffer).unwrap()[63]).collect::<Vec<_>>();
        assert_eq!(values, [7, 7, 9, 7]);
        assert_eq!(Bench::interpreter().reports(), Vec::<String>::new());
    }
}

/// A stream that joins at the start, before anything was recorded, still follows what is before the graph.
#[test]
fn a_branch_from_the_start_follows_what_is_before_the_graph() {
    let bench = Bench::open(&[0; 64]);
    let (main, side) = (&bench.stream, bench.context.new_stream().unwrap());
    let (a, b) = (bench.upload(&[0u8; 64]), bench.upload(&[0u8; 64]));
    begin(main);
    side.wait(&record(main)).unwrap();
    copy(&side, &a, &b);
    main.wait(&record(&side)).unwrap();
    let graph = end(main).unwrap();
    for byte in [5, 6] {
        fill(main, &a, byte).unwrap();
        graph.launch().unwrap();
    }
    assert_eq!(bench.download(&b).unwrap(), [6; 64]);
    assert_eq!(Bench::interpreter().reports(), Vec::<String>::new());
}

#[test]
fn branches_that_touch_the_same_bytes_are_a_race() {
    let bench = Bench::open(&[0; 64]);
    let (main, side) = (&bench.stream, bench.context.new_stream().unwrap());
    let a = bench.upload(&[0u8; 64]);
    main.synchronize().unwrap();
    begin(main);
    side.wait(&record(main)).unwrap();
    fill(&side, &a, 1).unwrap();
    fill(main, &a, 2).unwrap();
    main.wait(&record(&side)).unwrap();
    let graph = end(main).unwrap();
    graph.launch().unwrap();
    assert_eq!(error_of(main.synchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let reports = Bench::interpreter().take_reports();
    assert!(reports.len() == 1 && reports[0].contains("race in global memory"), "{reports:?}");
    assert!(reports[0].contains("the two are in different streams"), "{reports:?}");
}

/// The first kernels of a graph's branches never start early; the ones behind them do.
#[test]
fn kernels_start_early_inside_a_graph() {
    let bench = Bench::open(&[0; 64]);
    let x = bench.upload(&[1.0f32; 64]);
    let (y, z) = (bench.uninitialised::<f32>(64), bench.uninitialised::<f32>(64));
    let main = &bench.stream;
    let (x_at, y_at, z_at, n) = (address(&x, main), address(&y, main), address(&z, main), 64i32);
    let step = |from: &u64, to: &u64, start| {
        bench.launch("correct_exchange", shape(1, 64, 256), start, arguments![*from, *to, n]);
    };
    main.synchronize().unwrap();
    begin(main);
    step(&x_at, &y_at, Start::Early);
    step(&y_at, &z_at, Start::AfterAll);
    let graph = end(main).unwrap();
    for _ in 0..2 {
        graph.launch().unwrap();
    }
    assert_eq!(bench.download(&z).unwrap(), [4.0; 64]);
}

#[test]
fn a_copy_reads_pinned_memory_when_it_is_replayed() {
    let bench = Bench::open(&[0; 64]);
    let main = &bench.stream;
    let (there, back) = (bench.upload(&[0u8; 16]), bench.uninitialised::<u8>(16));
    main.synchronize().unwrap();
    // SAFETY: 16 bytes each, touched here only while no copy runs.
    let (pinned, host) = unsafe {
        let pinned = result::malloc_host(16, 0).unwrap().cast::<u8>();
        (pinned, std::slice::from_raw_parts_mut(pinned, 16))
    };
    host.fill(1);
    begin(main);
    // SAFETY: 16 bytes on both sides.
    unsafe { result::memcpy_htod_async(address(&there, main), host, main.cu_stream()) }.unwrap();
    copy(main, &there, &back);
    let graph = end(main).unwrap();
    host.fill(2);
    graph.launch().unwrap();
    // As late as allowed: nothing has waited for the replay yet, so this is what it carries. On a GPU it may be either.
    host.fill(3);
    assert_eq!(bench.download(&back).unwrap(), [3; 16]);
    graph.launch().unwrap();
    main.synchronize().unwrap();
    // SAFETY: the pointer came from malloc_host, and nothing runs.
    unsafe { result::free_host(pinned.cast()) }.unwrap();
    graph.launch().unwrap();
    assert_eq!(error_of(main.synchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let reports = Bench::interpreter().take_reports();
    assert!(reports[0].contains("pinned host memory that has been freed"), "{reports:?}");
    assert!(reports[0].contains("cuMemcpyHtoD"), "{reports:?}");
}

/// Records with `misuse` in the middle, and returns what that gave, and what the end of the recording gave.
fn misused<T>(
    bench: &Bench,
    misuse: impl FnOnce(&Arc<CudaStream>) -> Result<T, DriverError>,
) -> (Result<T, DriverError>, CUresult) {
    let main = &bench.stream;
    let a = bench.upload(&[0u8; 64]);
    main.synchronize().unwrap();
    begin(main);
    fill(main, &a, 1).unwrap();
    let result = misuse(main);
    let ended = error_of(end(main));
    assert_eq!(main.capture_status().unwrap(), CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
    assert_eq!(bench.download(&a).unwrap(), [0; 64], "nothing was run");
    (result, ended)
}

#[test]
fn what_is_forbidden_loses_the_recording() {
    use CUresult::*;
    let bench = Bench::open(&[0; 64]);
    let side = bench.context.new_stream().unwrap();
    let other = bench.upload(&[0u8; 64]);
    let outside = record(&bench.stream);
    bench.stream.synchronize().unwrap();
    const LOST: CUresult = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;

    let (asked, ended) = misused(&bench, |main| main.synchronize());
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, LOST));
    let (asked, ended) = misused(&bench, |main| main.wait(&outside));
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_STREAM_CAPTURE_ISOLATION, LOST));
    let (asked, ended) = misused(&bench, |main| record(main).synchronize());
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_CAPTURED_EVENT, LOST));
    let (asked, ended) = misused(&bench, |main| record(main).try_is_complete());
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_CAPTURED_EVENT, LOST));
    // SAFETY: never read.
    let (asked, ended) = misused(&bench, |main| unsafe { main.alloc::<u8>(16) }.map(drop));
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, LOST));
    let host = [1u8; 64];
    // SAFETY: 64 bytes on both sides.
    let (asked, ended) =
        misused(&bench, |main| unsafe { result::memcpy_htod_async(address(&other, main), &host, main.cu_stream()) });
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, LOST));
    // SAFETY: the event and stream are live; the default stream's handle is null.
    let (asked, ended) = misused(&bench, |main| unsafe {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        result::stream::wait_event(std::ptr::null_mut(), record(main).cu_event(), flags)
    });
    assert_eq!((error_of(asked), ended), (CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, LOST));

    // After a mistake whatever else is recorded fails too.
    let (after, ended) = misused(&bench, |main| {
        assert!(main.wait(&outside).is_err());
        assert_eq!(main.capture_status()?, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
        fill(main, &other, 1)
    });
    assert_eq!((error_of(after), ended), (LOST, LOST));

    // A fork that does not come back: before it did anything that is no loss, after it is.
    let (_, ended) = misused(&bench, |main| {
        side.wait(&record(main))?;
        fill(&side, &other, 1)
    });
    assert_eq!(ended, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    let (ended_elsewhere, ended) = misused(&bench, |main| {
        side.wait(&record(main))?;
        end(&side).map(drop)
    });
    assert_eq!((error_of(ended_elsewhere), ended), (CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, LOST));
    // The other stream is free again.
    fill(&side, &other, 3).unwrap();
    side.synchronize().unwrap();

    assert_eq!(error_of(end(&bench.stream)), CUDA_ERROR_ILLEGAL_STATE);
    begin(&bench.stream);
    let again = bench.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
    assert_eq!(error_of(again), CUDA_ERROR_ILLEGAL_STATE);
    let inside = record(&bench.stream);
    end(&bench.stream).unwrap();
    assert_eq!(error_of(side.wait(&inside)), CUDA_ERROR_CAPTURED_EVENT);
}

#[test]
fn two_recordings_do_not_merge_and_end_where_they_began() {
    use CUresult::*;
    let bench = Bench::open(&[0; 64]);
    let (one, two) = (&bench.stream, bench.context.new_stream().unwrap());
    begin(one);
    begin(&two);
    assert_eq!(error_of(one.wait(&record(&two))), CUDA_ERROR_STREAM_CAPTURE_MERGE);
    assert_eq!(error_of(end(one)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert_eq!(error_of(end(&two)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

    begin(one);
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| error_of(end(one))).join().unwrap());
    assert_eq!(elsewhere, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    assert_eq!(error_of(end(one)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn the_default_stream_does_not_wait_for_a_recording() {
    let bench = Bench::open(&[0; 64]);
    let a = bench.upload(&[0u8; 64]);
    bench.stream.synchronize().unwrap();
    let at = a.device_ptr(&bench.stream).0;
    // SAFETY: a stream of this test, that the default stream waits for; the buffer is live.
    unsafe {
        let blocking = result::stream::create(result::stream::StreamKind::Default).unwrap();
        result::stream::begin_capture(blocking, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        let refused = result::memset_d8_async(at, 1, 64, std::ptr::null_mut());
        assert_eq!(error_of(refused), CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        assert_eq!(error_of(result::stream::end_capture(blocking)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        result::stream::destroy(blocking).unwrap();
    }
    assert_eq!(bench.download(&a).unwrap(), [0; 64]);
}
