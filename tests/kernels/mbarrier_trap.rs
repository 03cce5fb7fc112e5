//! A wait at an mbarrier that never ends, in a kernel that is built to trap: the host's error names kernel, block,
//! barrier and phase, on the interpreter and, unchanged, on a GPU.

use crate::common;
use crate::common::{Bench, conformance_image_for};
use rigel::backend::cuda::{Arguments, CudaError, Launch};

const BLOCKS: u32 = 6;

/// Runs `conform_mbarrier_trap`, in which this block misses an arrival.
fn run(bench: &Bench, block: u32) -> Result<Vec<u32>, CudaError> {
    let stream = &bench.stream;
    let module = bench.device().load(conformance_image_for("mbarrier_trap", &["sm_90"]))?;
    let kernel = module.kernel("conform_mbarrier_trap")?;
    let input = stream.upload(&(0..64 * BLOCKS).collect::<Vec<u32>>())?;
    let mut output = stream.zeroed::<u32>(64 * BLOCKS as usize)?;
    let arguments = Arguments::new().input(input.view()).output(&output.view_mut()).scalar(block);
    let launch = Launch { shared_bytes: 1040, ..Launch::linear(BLOCKS, 64) };
    // SAFETY: input and output are as long as six blocks of the kernel read and write.
    unsafe { stream.launch(&kernel, &launch, &arguments) }?;
    stream.download(output.view())
}

/// On the interpreter with each of its reports taken; on a GPU once.
fn on_hopper(body: impl Fn(&Bench)) {
    if common::skipped_before_hopper("a wait that traps") {
        return;
    }
    body(&common::hopper_bench());
}

device_test! {
    fn waits_that_end_do_not_trap() {
        on_hopper(|bench| {
            let expected: Vec<u32> = (1..=64 * BLOCKS).collect();
            assert_eq!(run(bench, BLOCKS).unwrap(), expected);
        });
    }
}

device_test! {
    fn a_wait_that_never_ends_names_kernel_block_barrier_and_phase() {
        on_hopper(|bench| {
            let error = run(bench, 4).unwrap_err();
            let text = error.to_string();
            println!("{text}");
            assert!(matches!(error, CudaError::WorkFailed { .. }) && text.lines().count() == 1, "{text}");
            let (before, after) = text.split_once(" waited ").unwrap_or_else(|| panic!("no record in: {text}"));
            assert!(
                before.ends_with("; conform_mbarrier_trap trapped: thread 37 of 64 in block [4, 0, 0] of [6, 1, 1]"),
                "{text}"
            );
            let (milliseconds, place) = after.split_once(' ').unwrap();
            // The bound of the kernel's file is 50 ms.
            assert!(milliseconds.parse::<u32>().unwrap() >= 50, "{text}");
            let expected =
                "ms for the mbarrier 'second phase' at byte 1032 of its shared memory to end a phase of parity 1);";
            assert!(place.starts_with(expected), "{text}");
            // Whoever asks next is told the same.
            let next = bench.stream.synchronize().unwrap_err().to_string();
            assert!(next.contains("block [4, 0, 0]") && next.contains("'second phase'"), "{next}");
        });
    }
}
