//! `--device` on every kind of machine. Those with a driver are played by the tests' interpreter, which LD_PRELOAD puts
//! in a driver's place (docs/kernels.md).

use rigel::backend::cuda::{driver, images};
use rigel_interpreter::LIBRARY;

use crate::common::{Run, command, finish, rigel};

/// `rigel` where the driver is the stand-in, told what to play by these variables.
pub fn rigel_on(played: &[(&str, &str)], args: &[&str]) -> Run {
    let mut command = command(args);
    command.env("LD_PRELOAD", LIBRARY).envs(played.iter().copied());
    finish(command, None)
}

pub const OLD_GPU: (&str, &str) = ("RIGEL_INTERPRETER_DEVICE", "75");
pub const NO_GPU: (&str, &str) = ("RIGEL_INTERPRETER_DEVICE", "0");
pub const OLD_DRIVER: (&str, &str) = ("RIGEL_INTERPRETER_DRIVER", "12040");

/// The one line that `--device cuda` ends with.
#[track_caller]
fn refusal(run: Run) -> String {
    assert_eq!(run.stdout, b"");
    let line = run.error(2);
    line.strip_prefix("--device cuda: ").unwrap_or_else(|| panic!("{line}")).to_owned()
}

#[test]
fn device_cuda_fails_with_the_line_that_fits() {
    let generate = ["generate", "--device", "cuda", "x"];
    if images().is_empty() {
        assert!(refusal(rigel_on(&[], &generate)).contains("built without GPU kernels"));
        return;
    }
    if driver::version().is_err() {
        assert!(refusal(rigel(&generate)).contains("no CUDA driver"));
    }
    assert!(refusal(rigel_on(&[OLD_DRIVER], &generate)).contains("driver is too old"));
    assert!(refusal(rigel_on(&[NO_GPU], &generate)).contains("sees no GPU"));
    assert!(refusal(rigel_on(&[OLD_GPU], &generate)).contains("has compute capability 7.5"));
}

#[test]
fn a_gpu_that_the_binary_has_no_kernels_for_is_warned_of_and_no_gpu_is_not() {
    if !images().is_empty() {
        return eprintln!("a_gpu_that_the_binary…: skipped, this build has kernels");
    }
    let generate = ["generate", "-n", "1", "x"];
    for played in [&[][..], &[OLD_GPU], &[OLD_DRIVER]] {
        let run = rigel_on(played, &generate).ok();
        let (warning, closing) = run.stderr.split_once('\n').unwrap();
        let expected = "warning: using the CPU: this binary was built without GPU kernels; build it again with nvcc";
        assert!(warning.starts_with(expected), "{run:?}");
        assert!(closing.contains(", on cpu ("), "{run:?}");
    }
    let run = rigel_on(&[NO_GPU], &generate).ok();
    assert!(!run.stderr.contains("warning"), "{run:?}");
    // Who asks for the CPU knows.
    let run = rigel_on(&[], &["generate", "--quiet", "--device", "cpu", "-n", "1", "x"]).ok();
    assert_eq!(run.stderr, "");
}

#[test]
fn a_gpu_writes_what_the_cpu_writes_and_auto_takes_it() {
    if images().is_empty() {
        return eprintln!("a_gpu_writes…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    // Greedy tokens of nano whose margins are clear; a small step and a small cache are quicker to set up.
    let generate =
        ["generate", "--quiet", "--context", "64", "-n", "6", "def __init__(self):\n        self.", "--device"];
    let on = |device: &'static str| [&generate[..], &[device]].concat();
    let cpu = rigel(&on("cpu")).ok();
    for device in ["cuda", "auto"] {
        let gpu = rigel_on(&[], &on(device)).ok();
        assert_eq!((gpu.text(), gpu.stderr.as_str()), (cpu.text(), ""), "{device}");
    }
    // Auto takes the CPU, and says so where there is a GPU that it cannot take.
    let none = rigel_on(&[NO_GPU], &on("auto")).ok();
    assert_eq!((none.text(), none.stderr.as_str()), (cpu.text(), ""));
    let old = rigel_on(&[OLD_GPU], &on("auto")).ok();
    assert_eq!(old.text(), cpu.text());
    assert!(old.stderr.contains("using the CPU") && old.stderr.contains("compute capability 7.5"), "{}", old.stderr);
}

#[test]
fn what_a_gpu_has_no_room_for_is_said_before_it_is_loaded() {
    if images().is_empty() {
        return eprintln!("what_a_gpu_has_no_room_for…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    let run = rigel_on(&[("RIGEL_INTERPRETER_MEMORY", "270")], &["generate", "--device", "cuda", "x"]);
    let line = run.error(1);
    for part in [
        "out of memory: ",
        "weights 7.52 MiB",
        "key/value cache ",
        "are free on the GPU",
        "a lower --context",
        "a lower --prefill-chunk",
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
}

#[test]
fn a_dtype_is_the_gpus() {
    if images().is_empty() {
        return eprintln!("a_dtype_is_the_gpus: skipped, this build has no kernels; run tools/install-nvcc");
    }
    // nano is stored in bf16.
    let args = ["generate", "--device", "cuda", "--context", "16", "-n", "1", "--dtype", "f16", "x"];
    let f16 = rigel_on(&[], &args).ok();
    assert!(!f16.text().is_empty());
}

#[test]
fn a_capture_that_fails_is_one_warning_and_the_same_text() {
    if images().is_empty() {
        return eprintln!("a_capture_that_fails…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    let generate =
        ["generate", "--quiet", "--context", "64", "-n", "5", "--device", "cuda", "def __init__(self):\n        self."];
    let expected = rigel_on(&[], &generate).ok();
    assert_eq!(expected.stderr, "");
    let refused = rigel_on(&[("RIGEL_INTERPRETER_REFUSE", "cuGraphInstantiateWithFlags=801")], &generate).ok();
    assert_eq!(refused.text(), expected.text());
    let warnings: Vec<&str> = refused.stderr.lines().filter(|line| line.contains("CUDA graph")).collect();
    assert_eq!(warnings.len(), 1, "{}", refused.stderr);
    for part in ["decode steps of 1 row have no CUDA graph", "CUDA_ERROR_NOT_SUPPORTED", "launched kernel by kernel"] {
        assert!(warnings[0].contains(part), "no {part:?} in {}", warnings[0]);
    }
}

#[test]
fn a_switch_with_a_wrong_value_ends_the_program_and_does_not_take_the_cpu_instead() {
    if images().is_empty() {
        return eprintln!("a_switch_with_a_wrong_value…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    for device in ["cuda", "auto"] {
        let run = rigel_on(&[("RIGEL_CUDA_GEMM", "sm100")], &["generate", "--device", device, "x"]);
        assert_eq!(refusal(run), "RIGEL_CUDA_GEMM=sm100: expected auto, small_m, sm90 or sm80", "{device}");
    }
    let run = rigel_on(&[("RIGEL_CUDA_GEMM", "sm90"), ("RIGEL_INTERPRETER_DEVICE", "80")], &["generate", "x"]);
    assert!(refusal(run).starts_with("RIGEL_CUDA_GEMM=sm90 cannot be used: it needs compute capability 9.0"));
}
