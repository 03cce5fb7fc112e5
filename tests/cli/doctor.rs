//! `rigel doctor` on every kind of machine.

use rigel::backend::cuda::{driver, images};

use crate::common::{Run, rigel};
use crate::cuda::{NO_GPU, OLD_DRIVER, OLD_GPU, rigel_on};

/// The lines of the report, all of which a terminal of 120 columns holds.
#[track_caller]
fn report(run: Run) -> Vec<String> {
    let run = run.ok();
    assert_eq!(run.stderr, "", "nothing but the report");
    let lines: Vec<String> = run.text().lines().map(str::to_owned).collect();
    assert!(lines.iter().all(|line| line.chars().count() <= 120), "{lines:?}");
    lines
}

/// The lines that belong to `subject`, without the column of subjects.
#[track_caller]
fn under(report: &[String], subject: &str) -> Vec<String> {
    let start = report.iter().position(|line| line.starts_with(&format!("{subject:<8}  ")));
    let start = start.unwrap_or_else(|| panic!("nothing on {subject} in {report:?}"));
    let more = report[start + 1..].iter().take_while(|line| line.starts_with("          "));
    [&report[start]].into_iter().chain(more).map(|line| line[10..].to_owned()).collect()
}

#[test]
fn without_a_driver_it_says_so_and_what_to_do() {
    if driver::version().is_ok() {
        return eprintln!("without_a_driver…: skipped, this machine has a driver");
    }
    let report = report(rigel(&["doctor"]));
    assert_eq!(
        under(&report, "driver"),
        ["no CUDA driver: libcuda.so was not found", "install NVIDIA's driver 580 or newer, or use --device cpu"]
    );
    assert!(!report.iter().any(|line| line.starts_with("gpu")), "{report:?}");
    assert!(under(&report, "cpu")[0].contains("threads"));
    assert!(under(&report, "memory")[0].contains(" GiB left in this "), "{report:?}");
    assert_eq!(under(&report, "models"), ["run on the CPU"]);
}

#[test]
fn what_was_compiled_in_is_listed() {
    let lines = under(&report(rigel(&["doctor"])), "kernels");
    if images().is_empty() {
        assert!(lines[0].contains("built without GPU kernels") && lines[1].contains("tools/install-nvcc"), "{lines:?}");
        return;
    }
    assert!(lines[0].starts_with("compiled by nvcc "), "{lines:?}");
    let listed = lines[1..].join(" ");
    for image in images() {
        assert!(listed.contains(image.name) && listed.contains(&image.targets.join(" ")), "{listed}");
    }
}

#[test]
fn a_gpu_is_described_and_its_kernels_are_loaded() {
    let report = report(rigel_on(&[], &["doctor"]));
    assert!(under(&report, "driver")[0].ends_with("supports CUDA 13.0"), "{report:?}");
    let gpu = under(&report, "gpu 0");
    assert_eq!(gpu[0], "interpreter sm_90, compute capability 9.0, 4.0 GiB of memory");
    assert_eq!(gpu[1], "132 multiprocessors with 227 KiB of shared memory for a block, 50 MiB of L2 cache");
    assert_eq!(gpu[2], "4.0 GiB free");
    if !images().is_empty() {
        let loaded = gpu[3..].join(" ");
        assert_eq!(loaded.matches(',').count() + loaded.matches("loads ").count(), images().len(), "{gpu:?}");
        assert!(gpu[3].starts_with("loads "), "{gpu:?}");
        assert_eq!(under(&report, "models"), ["run on gpu 0; with --device cpu on the CPU"]);
    }
}

#[test]
fn an_old_gpu_an_old_driver_and_no_gpu_are_told_apart() {
    let gpu = under(&report(rigel_on(&[OLD_GPU], &["doctor"])), "gpu 0");
    assert!(gpu[0].contains("compute capability 7.5"), "{gpu:?}");
    assert!(gpu.iter().any(|line| line == "the kernels need 8.0 (Ampere) or newer"), "{gpu:?}");

    let old = report(rigel_on(&[OLD_DRIVER], &["doctor"]));
    let driver = under(&old, "driver").join("; ");
    assert!(driver.contains("supports CUDA 12.4, the kernels need CUDA 13.0; install NVIDIA's driver 580"), "{driver}");
    assert!(!old.iter().any(|line| line.starts_with("gpu")), "{old:?}");

    let none = report(rigel_on(&[NO_GPU], &["doctor"]));
    assert_eq!(under(&none, "gpu")[0], "the CUDA driver sees no GPU");
}

#[test]
fn switches_are_shown_as_they_are_set() {
    let defaults = under(&report(rigel(&["doctor"])), "switches");
    assert_eq!(defaults.len(), rigel::backend::cuda::SWITCHES.len(), "{defaults:?}");
    assert!(defaults.iter().all(|line| line.starts_with("RIGEL_CUDA_") && !line.ends_with("(set)")), "{defaults:?}");
    assert!(defaults[1].starts_with("RIGEL_CUDA_PDL=1 "), "{defaults:?}");

    let set = report(rigel_on(&[("RIGEL_CUDA_PDL", "0"), ("RIGEL_CUDA_GEMV", "sm80")], &["doctor"]));
    let set: Vec<String> = under(&set, "switches").into_iter().filter(|line| line.ends_with("(set)")).collect();
    assert_eq!(set.len(), 2, "{set:?}");
    assert!(set[0].starts_with("RIGEL_CUDA_PDL=0 ") && set[1].starts_with("RIGEL_CUDA_GEMV=sm80 "), "{set:?}");

    let wrong = report(rigel_on(&[("RIGEL_CUDA_PDL", "no")], &["doctor"]));
    assert_eq!(under(&wrong, "switches"), ["RIGEL_CUDA_PDL=no: expected 1 or 0"]);
}
