//! How long the interpreter takes: the figures of docs/interpreter.md. Not a test; run by name:
//!
//!     cargo test --test interpreter_speed -- --ignored --nocapture

use crate::common::{Bench, Random};
use half::bf16;
use rigel::backend::cuda::kernels::linear::{Epilogue, GemmShape, LinearInputs, Projection};
use rigel::backend::cuda::kernels::norm::{Norm, NormShape, NormVariant, NormWeights};
use rigel::backend::cuda::{CudaError, images};
use rigel_interpreter::{AsyncPolicy, DeviceProfile, Interpreter};

/// Nanoseconds that this thread has had of a processor, by Linux's books: a busy machine does not change them much.
fn processor_time() -> u64 {
    let books = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux keeps these books");
    books.split_whitespace().next().and_then(|time| time.parse().ok()).expect("a number comes first")
}

/// The least processor time of some launches, in milliseconds.
fn milliseconds(bench: &Bench, mut launch: impl FnMut() -> Result<(), CudaError>) -> f64 {
    let once = |_| {
        bench.stream.synchronize().unwrap();
        let begun = processor_time();
        launch().unwrap();
        bench.stream.synchronize().unwrap();
        (processor_time() - begun) as f64 / 1e6
    };
    (0..5).map(once).fold(f64::INFINITY, f64::min)
}

/// Rows of 4096, normalised.
fn norm(bench: &Bench, rows: usize) -> f64 {
    let (width, mut random) = (4096, Random(1));
    let mut elements = |len| bench.upload(&random.elements::<bf16>(len, 0.0, 1.0));
    let (hidden, weight, bias) = (elements(rows * width), elements(width), elements(width));
    let mut out = bench.poisoned::<bf16>(rows * width);
    let norm = Norm::<bf16>::load(bench.device(), NormVariant::Layer).unwrap();
    let shape = NormShape { rows, width, epsilon: 1e-5 };
    let weights = NormWeights { weight: weight.view(), bias: Some(bias.view()) };
    milliseconds(bench, || norm.normalise(&bench.stream, shape, hidden.view(), weights, out.view_mut()))
}

/// Up to 16 rows by gemv, more by gemm.
fn product(bench: &Bench, shape: GemmShape) -> f64 {
    let GemmShape { m: rows, n: columns, k: depth } = shape;
    let mut random = Random(2);
    let mut elements = |len| bench.upload(&random.elements::<bf16>(len, 0.0, 1.0));
    let (x, weights) = (elements(rows * depth), elements(columns * depth));
    let mut out = bench.poisoned::<bf16>(rows * columns);
    let projection = Projection::<bf16>::load(bench.device(), Epilogue::BiasGelu).unwrap();
    let inputs = LinearInputs { x: x.view(), weights: weights.view().into(), bias: None };
    milliseconds(bench, || projection.launch(&bench.stream, shape, inputs, out.view_mut()))
}

#[test]
#[ignore = "prints times"]
fn times() {
    assert!(!images().is_empty(), "this build has no kernels; run tools/install-nvcc");
    let interpreter = Interpreter::load();
    interpreter.set_device(DeviceProfile::Sm90);
    interpreter.set_async(AsyncPolicy::Late);
    for seed in [0, 1] {
        interpreter.set_seed(seed);
        let bench = Bench::open(Some(interpreter));
        println!("seed {seed}");
        println!("  norm, 256 rows of 4096      {:8.1} ms", norm(&bench, 256));
        for rows in [1, 16] {
            let shape = GemmShape { m: rows, n: 512, k: 4096 };
            println!("  gemv, {rows:2} x 4096 x 512       {:8.1} ms", product(&bench, shape));
        }
        let shape = GemmShape { m: 512, n: 512, k: 512 };
        println!("  gemm, 512 x 512 x 512       {:8.1} ms", product(&bench, shape));
    }
}
