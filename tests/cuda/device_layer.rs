//! The device layer: copies, pinned memory, events, streams that wait for each other, shared memory, recordings, and
//! what it refuses before the driver sees it.

use crate::common;
use crate::common::{Bench, conformance_image};
use rigel::backend::cuda::{
    Arguments, Buffer, CudaError, Graph, Kernel, Launch, Overlap, Pinned, SliceMut, Stream, images,
};

const WORDS: usize = 4096;

fn kernel(bench: &Bench, name: &str) -> Kernel {
    bench.device().load(conformance_image("device")).unwrap().kernel(name).unwrap()
}

/// `data[i] += 1`.
fn add_one(stream: &Stream, kernel: &Kernel, data: SliceMut<'_, u32>) -> Result<(), CudaError> {
    let launch = Launch::linear((data.len() / 32) as u32, 32);
    let arguments = Arguments::new().input(data.as_slice()).output(&data);
    // SAFETY: each thread of device_add_one reads and writes one word, and there are as many.
    unsafe { stream.launch(kernel, &launch, &arguments) }
}

fn count_from(first: u32) -> Vec<u32> {
    (first..).take(WORDS).collect()
}

device_test! {
    fn pinned_memory_goes_to_the_device_and_back() {
        common::on_every_schedule(|bench| {
            let (stream, add) = (&bench.stream, kernel(bench, "device_add_one"));
            let mut there = Pinned::<u32>::zeroed(bench.device(), WORDS).unwrap();
            let mut back = Pinned::<u32>::zeroed(bench.device(), WORDS).unwrap();
            assert!(there.as_slice().unwrap().iter().all(|word| *word == 0));
            let mut data = stream.alloc::<u32>(WORDS).unwrap();
            for round in [1, 1000] {
                // Waits for the last round's copy out of it: else that one would carry these words.
                there.as_mut_slice().unwrap().copy_from_slice(&count_from(round));
                stream.copy_from_pinned(&there, data.view_mut()).unwrap();
                there.as_mut_slice().unwrap().fill(7);
                add_one(stream, &add, data.view_mut()).unwrap();
                stream.copy_to_pinned(data.view(), &mut back).unwrap();
                assert!(back.as_slice().unwrap() == count_from(round + 1), "round {round}");
            }
        });
    }
}

device_test! {
    fn parts_of_pinned_memory_go_to_parts_of_a_buffer_and_back() {
        common::on_every_schedule(|bench| {
            let stream = &bench.stream;
            let mut pinned = Pinned::<u32>::zeroed(bench.device(), 8).unwrap();
            pinned.as_mut_slice().unwrap().copy_from_slice(&count_from(10)[..8]);
            let mut data = stream.zeroed::<u32>(6).unwrap();
            stream.copy_from_pinned(pinned.slice(5..).unwrap(), data.slice_mut(1..4).unwrap()).unwrap();
            stream.copy_from_pinned(pinned.slice(..1).unwrap(), data.slice_mut(5..).unwrap()).unwrap();
            assert_eq!(stream.download(data.view()).unwrap(), [0, 15, 16, 17, 0, 10]);
            stream.copy_to_pinned(data.slice(3..).unwrap(), pinned.slice_mut(2..=4).unwrap()).unwrap();
            assert_eq!(pinned.as_slice().unwrap(), [10, 11, 17, 0, 10, 15, 16, 17]);
        });
    }
}

device_test! {
    fn copies_know_their_lengths_and_may_be_empty() {
        common::on_every_schedule(|bench| {
            let stream = &bench.stream;
            let mut data = stream.zeroed::<u32>(8).unwrap();
            let mut pinned = Pinned::<u32>::zeroed(bench.device(), 7).unwrap();
            let wrong = |result: Result<(), CudaError>| result.unwrap_err().to_string();
            assert_eq!(wrong(stream.copy_from_host(&[1, 2, 3], data.view_mut())), "a copy of 3 elements into 8");
            assert_eq!(wrong(stream.copy_from_pinned(&pinned, data.view_mut())), "a copy of 7 elements into 8");
            assert_eq!(wrong(stream.copy_to_pinned(data.view(), &mut pinned)), "a copy of 8 elements into 7");

            let mut empty = stream.upload::<u32>(&[]).unwrap();
            let mut no_words = Pinned::<u32>::zeroed(bench.device(), 0).unwrap();
            assert!(empty.is_empty() && no_words.is_empty() && no_words.as_mut_slice().unwrap().is_empty());
            stream.copy_from_pinned(&no_words, empty.view_mut()).unwrap();
            stream.copy_to_pinned(empty.view(), &mut no_words).unwrap();
            assert!(stream.download(empty.view()).unwrap().is_empty());
            assert!(pinned.slice(3..8).is_none() && pinned.slice_mut(..=7).is_none() && pinned.slice(7..).is_some());
            let three = pinned.slice(4..).unwrap();
            assert_eq!(wrong(stream.copy_from_pinned(three, data.view_mut())), "a copy of 3 elements into 8");
            let two = pinned.slice_mut(..2).unwrap();
            assert_eq!(wrong(stream.copy_to_pinned(data.view(), two)), "a copy of 8 elements into 2");
            stream.copy_from_pinned(pinned.slice(2..2).unwrap(), empty.view_mut()).unwrap();

            stream.copy_from_host(&[1, 2, 3], data.slice_mut(2..5).unwrap()).unwrap();
            let mut copied = stream.zeroed::<u32>(3).unwrap();
            stream.copy(data.slice(1..4).unwrap(), copied.view_mut()).unwrap();
            assert_eq!(stream.download(data.view()).unwrap(), [0, 0, 1, 2, 3, 0, 0, 0]);
            assert_eq!(stream.download(copied.view()).unwrap(), [0, 1, 2]);
        });
    }
}

device_test! {
    fn events_say_when_work_is_done_and_how_long_it_took() {
        common::on_every_schedule(|bench| {
            let (stream, add) = (&bench.stream, kernel(bench, "device_add_one"));
            let mut data = stream.upload(&count_from(0)).unwrap();
            let before = stream.record().unwrap();
            for _ in 0..10 {
                add_one(stream, &add, data.view_mut()).unwrap();
            }
            let after = stream.record().unwrap();
            after.synchronize().unwrap();
            assert!(before.is_complete().unwrap() && after.is_complete().unwrap());
            let milliseconds = before.milliseconds_until(&after).unwrap();
            assert!((0.0..60_000.0).contains(&milliseconds), "{milliseconds} ms");
            assert_eq!(stream.download(data.view()).unwrap(), count_from(10));
        });
    }
}

device_test! {
    fn a_stream_waits_for_an_event_of_another() {
        common::on_every_schedule(|bench| {
            let (one, other) = (&bench.stream, bench.device().stream().unwrap());
            let add = kernel(bench, "device_add_one");
            let mut data = one.upload(&count_from(0)).unwrap();
            for _ in 0..8 {
                add_one(one, &add, data.view_mut()).unwrap();
                other.wait(&one.record().unwrap()).unwrap();
                add_one(&other, &add, data.view_mut()).unwrap();
                one.wait(&other.record().unwrap()).unwrap();
            }
            assert_eq!(one.download(data.view()).unwrap(), count_from(16));
        });
    }
}

device_test! {
    fn a_block_may_have_all_the_shared_memory_of_the_device_and_no_more() {
        common::on_every_schedule(|bench| {
            let (stream, turn) = (&bench.stream, kernel(bench, "device_last_shared_words"));
            let from = stream.upload(&count_from(5)[..32]).unwrap();
            let mut to = stream.zeroed::<u32>(32).unwrap();
            let most = bench.device().properties().shared_bytes;
            assert!(most > 48 << 10, "{most} bytes");
            let mut launch = |shared_bytes: u32| {
                let launch = Launch { shared_bytes, ..Launch::linear(1, 32) };
                let arguments = Arguments::new().input(from.view()).output(&to.view_mut()).scalar(shared_bytes / 4);
                // SAFETY: both buffers have the kernel's 32 words, and it has as much shared memory as it is told.
                unsafe { stream.launch(&turn, &launch, &arguments) }
            };
            for shared_bytes in [128, 48 << 10, (48 << 10) + 4, most] {
                launch(shared_bytes).unwrap();
            }
            let refused = launch(most + 4).unwrap_err();
            assert!(matches!(refused, CudaError::LaunchLimit { .. }), "{refused}");
            assert_eq!(
                refused.to_string(),
                format!(
                    "device_last_shared_words: dynamic shared memory in bytes is {}; this GPU allows 0 to {most}",
                    most + 4
                )
            );
            let turned: Vec<u32> = count_from(5)[..32].iter().rev().copied().collect();
            assert_eq!(stream.download(to.view()).unwrap(), turned);
        });
    }
}

device_test! {
    fn a_recording_holds_launches_copies_and_fills_and_runs_at_each_replay() {
        common::on_every_schedule(|bench| {
            let (stream, add) = (&bench.stream, kernel(bench, "device_add_one"));
            let mut data = stream.upload(&count_from(0)).unwrap();
            let mut copied = stream.zeroed::<u32>(WORDS).unwrap();
            let mut filled = stream.upload(&count_from(9)).unwrap();
            // Loads the kernel, which a recording cannot.
            add_one(stream, &add, data.view_mut()).unwrap();
            stream.synchronize().unwrap();
            let graph = stream
                .capture(|| {
                    add_one(stream, &add, data.view_mut())?;
                    stream.copy(data.view(), copied.view_mut())?;
                    add_one(stream, &add, copied.view_mut())?;
                    stream.fill_bytes(filled.view_mut(), 1)
                })
                .unwrap();
            assert_eq!(stream.download(data.view()).unwrap(), count_from(1), "nothing has run yet");
            assert_eq!(stream.download(filled.view()).unwrap(), count_from(9));
            graph.upload().unwrap();
            for _ in 0..5 {
                graph.launch().unwrap();
            }
            assert_eq!(stream.download(data.view()).unwrap(), count_from(6));
            assert_eq!(stream.download(copied.view()).unwrap(), count_from(7));
            assert_eq!(stream.download(filled.view()).unwrap(), vec![0x0101_0101; WORDS]);
        });
    }
}

device_test! {
    fn a_recording_copies_what_pinned_memory_holds_at_each_replay() {
        common::on_every_schedule(|bench| {
            let (stream, add) = (&bench.stream, kernel(bench, "device_add_one"));
            let mut there = Pinned::<u32>::zeroed(bench.device(), WORDS + 3).unwrap();
            let mut back = Pinned::<u32>::zeroed(bench.device(), WORDS).unwrap();
            let mut data = stream.zeroed::<u32>(WORDS).unwrap();
            add_one(stream, &add, data.view_mut()).unwrap();
            stream.synchronize().unwrap();
            there.as_mut_slice().unwrap()[3..].copy_from_slice(&count_from(70));
            let graph = stream
                .capture(|| {
                    stream.copy_from_pinned(there.slice(3..).unwrap(), data.view_mut())?;
                    add_one(stream, &add, data.view_mut())?;
                    stream.copy_to_pinned(data.view(), &mut back)
                })
                .unwrap();
            assert!(back.as_slice().unwrap().iter().all(|word| *word == 0), "nothing has run yet");
            for round in [1, 1000, 7] {
                there.as_mut_slice().unwrap()[3..].copy_from_slice(&count_from(round));
                graph.launch().unwrap();
                assert!(back.as_slice().unwrap() == count_from(round + 1), "round {round}");
            }
            // Two in a row, the second with other words: touching them waits for the first.
            graph.launch().unwrap();
            there.as_mut_slice().unwrap()[3..].copy_from_slice(&count_from(20));
            assert!(back.as_slice().unwrap() == count_from(8));
            graph.launch().unwrap();
            assert!(back.as_slice().unwrap() == count_from(21));
            // The recording keeps the memory that it copies from.
            drop(there);
            stream.fill_bytes(data.view_mut(), 0).unwrap();
            graph.launch().unwrap();
            assert_eq!(stream.download(data.view()).unwrap(), count_from(21));
        });
    }
}

device_test! {
    fn a_recording_forks_to_another_stream_and_joins_it() {
        common::on_every_schedule(|bench| {
            let (stream, other) = (&bench.stream, bench.device().stream().unwrap());
            let add = kernel(bench, "device_add_one");
            let mut first = stream.upload(&count_from(0)).unwrap();
            let mut second = stream.zeroed::<u32>(WORDS).unwrap();
            let mut third = stream.zeroed::<u32>(WORDS).unwrap();
            add_one(stream, &add, first.view_mut()).unwrap();
            stream.synchronize().unwrap();
            let graph = stream
                .capture(|| {
                    add_one(stream, &add, first.view_mut())?;
                    other.wait(&stream.record()?)?;
                    // Beside each other: both read `first`, each writes its own.
                    stream.copy(first.view(), second.view_mut())?;
                    add_one(stream, &add, second.view_mut())?;
                    other.copy(first.view(), third.view_mut())?;
                    add_one(&other, &add, third.view_mut())?;
                    add_one(&other, &add, third.view_mut())?;
                    stream.wait(&other.record()?)?;
                    stream.copy(third.view(), first.view_mut())
                })
                .unwrap();
            for replay in 1..=4 {
                graph.launch().unwrap();
                if replay == 2 {
                    stream.synchronize().unwrap();
                }
            }
            // Each replay adds 1, then 2 in the third, which becomes the first.
            assert_eq!(stream.download(first.view()).unwrap(), count_from(13));
            assert_eq!(stream.download(second.view()).unwrap(), count_from(12));
            // The other stream is out of the recording and goes on by itself.
            add_one(&other, &add, third.view_mut()).unwrap();
            assert_eq!(other.download(third.view()).unwrap(), count_from(14));
        });
    }
}

device_test! {
    fn events_do_not_cross_the_edge_of_a_recording() {
        common::on_every_schedule(|bench| {
            let (stream, other) = (&bench.stream, bench.device().stream().unwrap());
            let mut data = stream.upload(&[1u32, 2]).unwrap();
            let mut besides = stream.upload(&[3u32, 4]).unwrap();
            let outside = stream.record().unwrap();
            stream.synchronize().unwrap();
            let refused = |result: Result<Graph, CudaError>| result.err().expect("it was recorded").to_string();

            let unjoined = refused(stream.capture(|| {
                other.wait(&stream.record()?)?;
                other.fill_bytes(besides.view_mut(), 0)?;
                stream.fill_bytes(data.view_mut(), 0)
            }));
            assert!(unjoined.contains("cuGraphInstantiate failed: CUDA_ERROR_STREAM_CAPTURE_UNJOINED"), "{unjoined}");
            let isolated = refused(stream.capture(|| stream.wait(&outside)));
            assert!(isolated.starts_with("cuStreamWaitEvent failed: CUDA_ERROR_STREAM_CAPTURE_ISOLATION"), "{isolated}");
            let asked = refused(stream.capture(|| stream.record()?.synchronize()));
            assert!(asked.starts_with("cuEventSynchronize failed: CUDA_ERROR_CAPTURED_EVENT"), "{asked}");
            let waited = refused(stream.capture(|| stream.synchronize()));
            assert!(waited.starts_with("cuStreamSynchronize failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"), "{waited}");
            // One mistake loses the recording, even where the work goes on.
            let lost = refused(stream.capture(|| {
                let _ = stream.wait(&outside);
                stream.fill_bytes(data.view_mut(), 0)
            }));
            assert!(lost.ends_with("operation failed due to a previous error during capture"), "{lost}");

            assert_eq!(stream.download(data.view()).unwrap(), [1, 2], "nothing has run");
            assert_eq!(other.download(besides.view()).unwrap(), [3, 4]);
        });
    }
}

/// Work that a recording refuses.
type Recorded<'a> = dyn FnMut(&mut Buffer<u32>) -> Result<(), CudaError> + 'a;

device_test! {
    fn what_cannot_be_recorded_is_refused_and_the_stream_goes_on() {
        common::on_every_schedule(|bench| {
            let stream = &bench.stream;
            let mut data = stream.upload(&[1u32, 2]).unwrap();
            stream.synchronize().unwrap();
            let mut refused = |work: &mut Recorded| {
                let Err(error) = stream.capture(|| work(&mut data)) else { panic!("it was recorded") };
                error.to_string()
            };
            let expected = |what: &str| format!("{what} cannot be recorded into a graph; do it before or after");
            assert_eq!(refused(&mut |_| stream.alloc::<u32>(1).map(drop)), expected("an allocation"));
            assert_eq!(
                refused(&mut |data| stream.copy_from_host(&[3, 4], data.view_mut())),
                expected("a copy from host memory")
            );
            assert_eq!(
                refused(&mut |data| stream.download(data.view()).map(drop)),
                expected("a copy to host memory")
            );
            assert_eq!(stream.download(data.view()).unwrap(), [1, 2]);
        });
    }
}

device_test! {
    fn a_launch_that_does_not_fit_the_compiled_kernel_is_refused() {
        common::on_every_schedule(|bench| {
            let (stream, add) = (&bench.stream, kernel(bench, "device_add_one"));
            let mut data = stream.upload(&count_from(0)[..32]).unwrap();
            let one = Launch::linear(1, 32);
            let mut refused = |launch: Launch, arguments: fn(&mut Buffer<u32>) -> Arguments| {
                // SAFETY: refused before it runs.
                unsafe { stream.launch(&add, &launch, &arguments(&mut data)) }.unwrap_err().to_string()
            };
            assert_eq!(
                refused(one, |data| Arguments::new().input(data.view())),
                "device_add_one: launched with arguments of [8] bytes, compiled with parameters of [8, 8]"
            );
            assert_eq!(
                refused(one, |data| Arguments::new().input(data.view()).scalar(1u32)),
                "device_add_one: launched with arguments of [8, 4] bytes, compiled with parameters of [8, 8]"
            );
            let both = |data: &mut Buffer<u32>| Arguments::new().input(data.view()).output(&data.view_mut());
            assert_eq!(
                refused(Launch::linear(1, 1025), both),
                "device_add_one: the number of threads of a block is 1025; this GPU allows 1 to 1024"
            );
            assert_eq!(
                refused(Launch::linear(0, 32), both),
                "device_add_one: the number of blocks in x is 0; this GPU allows 1 to 2147483647"
            );
            assert_eq!(
                refused(Launch { grid: [1, 65_536, 1], ..one }, both),
                "device_add_one: the number of blocks in y is 65536; this GPU allows 1 to 65535"
            );
            let clustered = refused(Launch { cluster: [32, 1, 1], overlap: Overlap::None, ..one }, both);
            assert!(clustered.starts_with("device_add_one: the number of blocks of a cluster is 32;"), "{clustered}");
            assert_eq!(stream.download(data.view()).unwrap(), &count_from(0)[..32], "nothing has run");
        });
    }
}

device_test! {
    fn unknown_kernels_and_files_are_named() {
        common::on_every_schedule(|bench| {
            let module = bench.device().module("embed").unwrap();
            let error = module.kernel("embed_scatter").err().expect("no such kernel");
            assert_eq!(error.to_string(), "kernels/embed.cu has no kernel 'embed_scatter'");
            let error = bench.device().module("attention_of_the_future").err().expect("no such file");
            assert!(error.to_string().starts_with("no kernels/attention_of_the_future.cu was compiled"), "{error}");
            let names: Vec<&str> = images().iter().map(|image| image.name).collect();
            assert!(error.to_string().ends_with(&format!("there are: {}", names.join(", "))), "{error}");
        });
    }
}

device_test! {
    fn more_memory_than_the_device_has_is_an_error_with_the_numbers() {
        common::on_every_schedule(|bench| {
            let total = bench.device().memory().unwrap().1;
            let needed = total + (1 << 30);
            let Err(error) = bench.stream.alloc::<u8>(needed as usize) else { panic!("{needed} bytes were given") };
            let CudaError::OutOfMemory { needed: said, free, total: of } = error else { panic!("{error}") };
            assert_eq!((said, of), (needed, total));
            assert!(free <= total);
            // The device is not lost by it.
            let data = bench.stream.upload(&[1u32, 2, 3]).unwrap();
            assert_eq!(bench.stream.download(data.view()).unwrap(), [1, 2, 3]);
            assert!(bench.stream.alloc::<u64>(usize::MAX / 4).is_err(), "a length that overflows");
        });
    }
}

device_test! {
    fn memory_that_was_freed_can_be_had_again_and_given_back() {
        common::on_one_schedule(|bench| {
            // A sixteenth of the device, so that on a GPU what other processes take meanwhile is little beside it.
            let bytes = (bench.device().memory().unwrap().1 / 16) as usize;
            let free = || bench.device().memory().unwrap().0;
            let least = bytes as u64 / 2;
            bench.device().release_freed_memory().unwrap();
            let before = free();
            let buffer = bench.stream.alloc::<u8>(bytes).unwrap();
            bench.stream.synchronize().unwrap();
            let during = free();
            assert!(before.saturating_sub(during) >= least, "{before} before, {during} with {bytes} in use");
            drop(buffer);
            bench.stream.synchronize().unwrap();
            // The pool has kept it: to this process it is free all the same.
            assert!(free() >= during + least, "{} after", free());
            bench.device().release_freed_memory().unwrap();
            assert!(free() >= during + least, "{} given back", free());
        });
    }
}
