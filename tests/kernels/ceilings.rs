//! `kernels/ceilings.cu`: every word is read once, and the clock goes.

use crate::common::{Random, on_every_schedule};
use rigel::backend::cuda::CudaError;
use rigel::backend::cuda::kernels::ceilings::{Ceilings, LONGEST_WAIT};

device_test! {
    fn every_word_is_read_once() {
        on_every_schedule(|bench| {
            let ceilings = Ceilings::load(bench.device()).unwrap();
            let mut random = Random(7);
            // One access, less than a block, a block and one more, and more than the grid at a time.
            for words in [4, 1000, 4 * 256 * 8 + 4, 1_100_004] {
                let source: Vec<u32> = (0..words).map(|_| random.bits() as u32).collect();
                let memory = bench.stream.upload(&source).unwrap();
                let mut folded = bench.stream.zeroed::<u32>(ceilings.folded_len(words)).unwrap();
                bench.run(ceilings.read_work(words), || ceilings.read(&bench.stream, memory.view(), folded.view_mut()));
                let folded = bench.stream.download(folded.view()).unwrap();
                let all = |words: &[u32]| words.iter().fold(0, |sum, word| sum ^ word);
                assert_eq!(all(&folded), all(&source), "{words} words");
            }
        });
    }
}

device_test! {
    fn the_clock_goes() {
        on_every_schedule(|bench| {
            let ceilings = Ceilings::load(bench.device()).unwrap();
            let mut passed = bench.stream.zeroed::<u64>(2).unwrap();
            ceilings.wait_and_count(&bench.stream, 20_000, passed.view_mut()).unwrap();
            let passed = bench.stream.download(passed.view()).unwrap();
            assert!(passed[1] >= 20_000, "{passed:?}");
            let gigahertz = passed[0] as f64 / passed[1] as f64;
            // The interpreter says 2; no GPU that the kernels run on is outside of this.
            assert!((0.1..5.0).contains(&gigahertz), "{passed:?}");
        });
    }
}

device_test! {
    fn operands_are_checked() {
        on_every_schedule(|bench| {
            let ceilings = Ceilings::load(bench.device()).unwrap();
            let source = bench.stream.zeroed::<u32>(8).unwrap();
            let mut folded = bench.stream.zeroed::<u32>(ceilings.folded_len(8) + 4).unwrap();
            let mut passed = bench.stream.zeroed::<u64>(4).unwrap();
            let len = ceilings.folded_len(8);
            let operand = |result: Result<(), CudaError>, what: &str| match result {
                Err(CudaError::Operand { what: found, .. }) => assert_eq!(found, what),
                other => panic!("{what}: {other:?}"),
            };
            let odd = source.slice(0..3).unwrap();
            operand(ceilings.read(&bench.stream, odd, folded.slice_mut(0..len).unwrap()), "source");
            operand(ceilings.read(&bench.stream, source.slice(0..0).unwrap(), folded.slice_mut(0..len).unwrap()), "source");
            operand(ceilings.read(&bench.stream, source.view(), folded.view_mut()), "folded");
            operand(ceilings.wait_and_count(&bench.stream, 0, passed.slice_mut(0..2).unwrap()), "nanoseconds");
            operand(ceilings.wait_and_count(&bench.stream, LONGEST_WAIT + 1, passed.slice_mut(0..2).unwrap()), "nanoseconds");
            operand(ceilings.wait_and_count(&bench.stream, 1, passed.view_mut()), "passed");
        });
    }
}
