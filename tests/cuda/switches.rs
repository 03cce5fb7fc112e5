//! The switches of a device (`RIGEL_CUDA_…`): each changes what is launched and no result beyond its rounding. On a GPU
//! the same tests run without the interpreter's counters.

use crate::common;
use std::num::NonZeroU32;

use crate::common::Bench;
use half::bf16;
use rigel::backend::cpu::{CpuBackend, CpuOptions};
use rigel::backend::cuda::kernels::gemm_small_m_sm90;
use rigel::backend::cuda::model::cost_model::{SequenceStep, StepDescription, kernel_costs};
use rigel::backend::cuda::model::{CudaBackend, CudaOptions};
use rigel::backend::cuda::{
    Algorithms, Arguments, AttentionAlgorithm as Attention, Device, Launch, LinearAlgorithm as Linear, Overlap,
    Switches,
};
use rigel::backend::{Backend, Batch, Determinism, SequenceRows, Token};
use rigel::kv::{BlockTable, PageId};
use rigel::text::TokenId;
use rigel_interpreter::{DeviceProfile, Interpreter, LaunchCounters};

const MODEL: &str = "gqa9";

fn options(determinism: Determinism) -> CudaOptions {
    let page_size = NonZeroU32::new(16).unwrap();
    CudaOptions { page_size, pages: 6, max_rows: 48, max_sequences: 2, determinism }
}

/// A prompt, of more rows than `gemv` takes, then single rows: launched, captured, replayed.
const STEPS: [u32; 4] = [18, 1, 1, 1];

/// The logits of the last row of each step.
fn logits(backend: &mut dyn Backend, steps: &[u32]) -> Vec<Vec<f32>> {
    let mut start = 0;
    let tables = [BlockTable::from_pages(0, (0..6).map(PageId).collect())];
    let step = |rows: u32| {
        let ids: Vec<TokenId> = (start..start + rows).map(|i| TokenId(i * i * 7 % 500 + 1)).collect();
        let sequences = [SequenceRows { rows: 0..rows as usize, start, tables: &tables }];
        let last = [rows as usize - 1];
        backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &last }).unwrap();
        start += rows;
        backend.logits(0).unwrap().to_vec()
    };
    steps.iter().copied().map(step).collect()
}

/// What a backend with these switches gives, and the launches of all steps, where the interpreter counts them.
fn run(bench: &Bench, switches: Switches, steps: &[u32]) -> (Vec<Vec<f32>>, Vec<LaunchCounters>) {
    let device = Device::open_with(0, switches).unwrap();
    let (checkpoint, spec) = common::golden(MODEL);
    let options = options(Determinism::Fast);
    let mut backend = CudaBackend::<bf16>::new(&device, &checkpoint, spec.clone(), &options, &mut |_| {}).unwrap();
    let Some(interpreter) = bench.interpreter() else { return (logits(&mut backend, steps), Vec::new()) };
    interpreter.clear_counters();
    let found = logits(&mut backend, steps);
    let launches = interpreter.counters();
    // The cost model knows the switches as the launchers do.
    let mut start = 0;
    let mut declared = Vec::new();
    for &rows in steps {
        let sequences = [SequenceStep { rows, start }];
        let step = StepDescription { sequences: &sequences, logits_rows: 1, sampled_rows: 0 };
        declared.extend(kernel_costs::<bf16>(&spec, &options, device.properties(), &step));
        start += rows;
    }
    let names = |names: Vec<&str>| names.join(" ");
    assert_eq!(
        names(launches.iter().map(|launch| launch.kernel.as_str()).collect()),
        names(declared.iter().map(|launch| launch.kernel.as_str()).collect()),
        "{switches:?}"
    );
    (found, launches)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

/// Log-probabilities of each step as the CPU gives them in f32, within what half precision loses.
#[track_caller]
fn assert_right(found: &[Vec<f32>], switches: &Switches) {
    let (checkpoint, spec) = common::golden(MODEL);
    let cpu = CpuOptions { threads: None, page_size: NonZeroU32::new(16).unwrap(), pages: 6, max_rows: 48 };
    let expected = logits(&mut CpuBackend::new(&checkpoint, spec, cpu).unwrap(), &STEPS[..found.len()]);
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let (found, expected) = (log_softmax(found), log_softmax(expected));
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).sum::<f64>() / expected.len() as f64;
        assert!(off < 0.2, "step {step} with {switches:?}: log-probabilities off by {off} on average");
    }
}

fn count(launches: &[LaunchCounters], what: impl Fn(&LaunchCounters) -> bool) -> usize {
    launches.iter().filter(|launch| what(launch)).count()
}

device_test! {
    fn overlap_graphs_and_carveout_change_how_kernels_are_launched_and_no_bit() {
        common::on_one_schedule(|bench| {
            let (expected, launches) = run(bench, Switches::default(), &STEPS);
            assert_right(&expected, &Switches::default());
            let all = launches.len();
            if bench.interpreter().is_some() {
                assert_eq!(count(&launches, |launch| launch.programmatic), all);
                assert_eq!(count(&launches, |launch| launch.carveout.is_some()), 0);
                // Two of the four steps: the one that is captured, and its replay.
                let captured = count(&launches, |launch| launch.recorded);
                assert!(captured > 10 && captured % 2 == 0 && captured < all, "{captured} of {all}");
            }
            let compare = |switches: Switches, check: &dyn Fn(&LaunchCounters) -> bool| {
                let (found, launches) = run(bench, switches, &STEPS);
                assert!(found == expected, "other bits with {switches:?}");
                assert_eq!(count(&launches, check), launches.len(), "{switches:?}");
            };
            compare(Switches { programmatic_launch: false, ..Switches::default() }, &|launch| !launch.programmatic);
            compare(Switches { graphs: false, ..Switches::default() }, &|launch| !launch.recorded && launch.programmatic);
            compare(Switches { carveout: Some(100), ..Switches::default() }, &|launch| launch.carveout == Some(100));
            compare(Switches { carveout: Some(0), ..Switches::default() }, &|launch| launch.carveout == Some(0));
            compare(Switches { synchronous: true, ..Switches::default() }, &|launch| !launch.recorded);
        });
    }
}

/// What decode and prompts are computed by: the beginnings of names that must be launched, and of such as must not.
fn computed_by(algorithms: Algorithms, launched: &[&str], not_launched: &[&str]) {
    common::on_one_schedule(|bench| {
        let switches = Switches { algorithms, ..Switches::default() };
        let (found, launches) = run(bench, switches, &STEPS[..2]);
        assert_right(&found, &switches);
        if bench.interpreter().is_none() {
            return;
        }
        for kernel in launched {
            assert!(
                count(&launches, |launch| launch.kernel.starts_with(kernel)) > 0,
                "no {kernel} with {algorithms:?}"
            );
        }
        for kernel in not_launched {
            let found = count(&launches, |launch| launch.kernel.starts_with(kernel));
            assert_eq!(found, 0, "{kernel} with {algorithms:?}");
        }
    });
}

fn gemv(algorithm: Linear) -> Algorithms {
    Algorithms { gemv: Some(algorithm), ..Algorithms::default() }
}

fn gemm(algorithm: Linear) -> Algorithms {
    Algorithms { gemm: Some(algorithm), ..Algorithms::default() }
}

fn attention(decode: Option<Attention>, prefill: Option<Attention>) -> Algorithms {
    Algorithms { decode, prefill, ..Algorithms::default() }
}

/// `gemm_sm80` names its kernels so, and `gemm_sm90` otherwise.
const SM80: &str = "gemm_bias";

device_test! {
    fn linear_layers_of_few_rows_are_computed_by_the_algorithm_named() {
        if common::skipped_before_hopper("the switch RIGEL_CUDA_GEMV") {
            return;
        }
        computed_by(gemv(Linear::GemvNormed), &["gemv_normed_", "gemv_bias", "gemm_small_m_"], &[SM80, "gemm_logits", "gemm_sm90_"]);
        computed_by(gemv(Linear::Gemv), &["gemv_bias", "norm_layer", "gemm_small_m_"], &["gemv_normed_", SM80, "gemm_logits", "gemm_sm90_"]);
        computed_by(gemv(Linear::SmallM), &["gemm_small_m_", "norm_layer"], &["gemv", SM80, "gemm_logits", "gemm_sm90_"]);
        computed_by(gemv(Linear::Sm90), &["gemm_sm90_", "gemm_small_m_"], &["gemv", SM80]);
        computed_by(gemv(Linear::Sm80), &[SM80, "gemm_small_m_"], &["gemv", "gemm_sm90_"]);
    }
}

device_test! {
    fn linear_layers_of_many_rows_are_computed_by_the_algorithm_named() {
        if common::skipped_before_hopper("the switch RIGEL_CUDA_GEMM") {
            return;
        }
        computed_by(gemm(Linear::SmallM), &["gemm_small_m_", "gemv_normed_"], &[SM80, "gemm_logits", "gemm_sm90_"]);
        computed_by(gemm(Linear::Sm90), &["gemm_sm90_", "gemv_normed_"], &["gemm_small_m_", SM80]);
        computed_by(gemm(Linear::Sm80), &[SM80, "gemv_normed_"], &["gemm_small_m_", "gemm_sm90_"]);
    }
}

device_test! {
    fn attention_is_computed_by_the_algorithm_named() {
        if common::skipped_before_hopper("the switch RIGEL_CUDA_ATTENTION_DECODE") {
            return;
        }
        let (decode, prefill) = ("attention_decode_sm90", "attention_prefill_sm90");
        computed_by(attention(Some(Attention::Sm80), None), &["attention_decode_split", prefill], &[decode]);
        computed_by(attention(Some(Attention::Sm90), None), &[decode, prefill], &["attention_decode_split"]);
        computed_by(attention(None, Some(Attention::Sm80)), &[decode, "attention_prefill_bf16"], &[prefill]);
        computed_by(attention(None, Some(Attention::Sm90)), &[decode, prefill], &["attention_prefill_bf16"]);
        let ordered = Some(Attention::BatchInvariant);
        computed_by(attention(ordered, ordered), &["attention_batch_invariant", "gemv_normed_"], &[decode, prefill]);
    }
}

fn refused<T>(result: Result<T, impl std::fmt::Display>) -> String {
    let error = result.err().expect("an error").to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

device_test! {
    fn an_algorithm_that_cannot_run_says_so() {
        // On a device of another generation, as it is opened.
        if !common::skipped_on_a_gpu("an_algorithm_that_cannot_run_says_so", "a device of compute capability 8.6") {
            Interpreter::load().set_device(DeviceProfile::Sm86);
            for (algorithms, switch) in [
                (gemm(Linear::Sm90), "RIGEL_CUDA_GEMM=sm90"),
                (gemm(Linear::SmallM), "RIGEL_CUDA_GEMM=small_m"),
                (gemv(Linear::SmallM), "RIGEL_CUDA_GEMV=small_m"),
                (attention(Some(Attention::Sm90), None), "RIGEL_CUDA_ATTENTION_DECODE=sm90"),
                (attention(None, Some(Attention::Sm90)), "RIGEL_CUDA_ATTENTION_PREFILL=sm90"),
            ] {
                let reason = "it needs compute capability 9.0, and a build for it; this GPU has 8.6";
                assert_eq!(
                    refused(Device::open_with(0, Switches { algorithms, ..Switches::default() })),
                    format!("{switch} cannot be used: {reason}; unset it or choose another")
                );
            }
        }
        common::on_one_schedule(|_| {
            let open = |algorithms| Device::open_with(0, Switches { algorithms, ..Switches::default() });
            // Where one kernel computes all rows.
            assert_eq!(
                refused(open(attention(Some(Attention::BatchInvariant), None))),
                "RIGEL_CUDA_ATTENTION_DECODE=batch_invariant cannot be used: one kernel computes all rows; set \
                 RIGEL_CUDA_ATTENTION_PREFILL=batch_invariant too; unset it or choose another"
            );
            // With determinism that allows one alone, as the model is loaded.
            let load = |algorithms, determinism| {
                let (checkpoint, spec) = common::golden(MODEL);
                let options = CudaOptions { max_rows: 300, pages: 20, ..options(determinism) };
                CudaBackend::<bf16>::new(&open(algorithms).unwrap(), &checkpoint, spec, &options, &mut |_| {})
            };
            let error = refused(load(attention(Some(Attention::Sm80), None), Determinism::BatchInvariant));
            assert!(error.contains("RIGEL_CUDA_ATTENTION_DECODE=sm80 cannot be used: batch-invariant arithmetic takes batch_invariant"), "{error}");
            assert!(load(gemm(Linear::Sm80), Determinism::BatchInvariant).is_ok());
            // With more rows than it takes, in the step that has them; the next step is fine.
            if !gemm_small_m_sm90::runs_on(open(Algorithms::default()).unwrap().properties()) {
                return;
            }
            let mut backend = load(gemm(Linear::SmallM), Determinism::Fast).unwrap();
            let tables = [BlockTable::from_pages(0, (0..20).map(PageId).collect())];
            let mut step = |rows: usize| {
                let ids = vec![TokenId(3); rows];
                let sequences = [SequenceRows { rows: 0..rows, start: 0, tables: &tables }];
                backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &sequences, logits_rows: &[0] })
            };
            let error = refused(step(257));
            assert!(
                error.contains("RIGEL_CUDA_GEMM=small_m cannot be used: a linear layer has 257 rows, it takes 256 at most"),
                "{error}"
            );
            assert!(step(20).is_ok());
        });
    }
}

device_test! {
    fn the_environment_is_read_when_a_device_is_opened() {
        common::on_one_schedule(|bench| {
            // SAFETY: this process has no other thread that reads the environment.
            let set = |variable: &str, value: &str| unsafe { std::env::set_var(variable, value) };
            set("RIGEL_CUDA_CARVEOUT", "50");
            set("RIGEL_CUDA_GRAPHS", "0");
            let device = Device::open(0).unwrap();
            assert_eq!(*device.switches(), Switches { carveout: Some(50), graphs: false, ..Switches::default() });
            assert_eq!(*bench.device().switches(), Switches::default(), "opened before");
            set("RIGEL_CUDA_GRAPHS", "never");
            assert_eq!(refused(Device::open(0)), "RIGEL_CUDA_GRAPHS=never: expected 1 or 0");
            // The program's own settings are not touched by it.
            assert!(Device::open_with(0, Switches::default()).is_ok());
        });
    }
}

/// Three launches of one kernel on the same data, as a graph: its edges.
fn edges(device: &Device, overlap: Overlap) -> (usize, usize) {
    let stream = device.stream().unwrap();
    let kernel = device.load(common::conformance_image("device")).unwrap().kernel("device_add_one").unwrap();
    let mut data = stream.zeroed::<u32>(64).unwrap();
    let launch = Launch { overlap, ..Launch::linear(2, 32) };
    let mut step = || {
        let arguments = Arguments::new().input(data.view()).output(&data.view_mut());
        // SAFETY: as long as two blocks of the kernel read and write.
        unsafe { stream.launch(&kernel, &launch, &arguments) }
    };
    step().unwrap();
    stream.synchronize().unwrap();
    let graph = stream
        .capture(|| {
            step()?;
            step()?;
            step()
        })
        .unwrap();
    graph.launch().unwrap();
    let edges = graph.edges().unwrap();
    assert_eq!(stream.download(data.view()).unwrap(), [4; 64]);
    edges
}

device_test! {
    /// What the review calls B2: a capture that loses programmatic edges costs half a microsecond a kernel.
    fn programmatic_edges_survive_a_capture() {
        if common::skipped_before_hopper("programmatic dependent launch") {
            return;
        }
        common::on_one_schedule(|bench| {
            assert_eq!(edges(bench.device(), Overlap::Programmatic), (2, 2));
            assert_eq!(edges(bench.device(), Overlap::None), (2, 0));
            let switches = Switches { programmatic_launch: false, ..Switches::default() };
            assert_eq!(edges(&Device::open_with(0, switches).unwrap(), Overlap::Programmatic), (2, 0));
        });
    }
}
