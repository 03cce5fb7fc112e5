//! `rigel bench start`.

use rigel::bench::Report;
use rigel::bench::report::Suite;

use crate::common::{Run, rigel};
#[cfg(feature = "cuda")]
use crate::cuda::rigel_on;

/// Names of the rows that a run wrote, and what it printed.
fn rows(run: impl FnOnce(&[&str]) -> Run, device: &str) -> (Vec<String>, Report) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("start.json");
    let args = ["bench", "start", "--device", device, "-p", "20", "-r", "2", "--json", file.to_str().unwrap()];
    let run = run(&args).ok();
    let report = Report::read(&file).unwrap();
    let names: Vec<String> = report.rows.iter().map(|row| row.name.clone()).collect();
    for name in &names {
        assert!(run.text().contains(&format!("| {name} ")), "{name}: {}", run.text());
    }
    for row in &report.rows {
        assert_eq!((row.suite, row.model.as_deref(), row.times.unwrap().samples), (Suite::Start, Some("nano"), 2));
    }
    (names, report)
}

#[test]
fn a_cpu_has_the_phases_that_it_has() {
    let (names, report) = rows(rigel, "cpu");
    let expected =
        ["process start", "map, headers", "tokenizer", "cache, threads", "prefill, first token", "second step"];
    assert_eq!(names[..6], expected);
    assert_eq!(names.last().unwrap(), "first token");
    assert_eq!(report.device.kind, "cpu");
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_has_all_of_them() {
    use rigel::backend::cuda::layout::Layout;
    use rigel::checkpoint::{Checkpoint, Dtype, ModelSource};
    use rigel::model::ModelSpec;
    if rigel::backend::cuda::images().is_empty() {
        return eprintln!("a_gpu_has_all_of_them: skipped, this build has no kernels; run tools/install-nvcc");
    }
    let (names, report) = rows(|args| rigel_on(&[], args), "cuda");
    for name in ["open the device", "kernels, cache, tables", "upload", "prefill, first token", "step, recorded"] {
        assert!(names.iter().any(|row| row == name), "{name}: {names:?}");
    }
    let upload = report.rows.iter().find(|row| row.name == "upload").unwrap();
    let nano = Checkpoint::open(&ModelSource::nano()).unwrap();
    let layout = Layout::new(&ModelSpec::from_checkpoint(&nano).unwrap(), Dtype::Bf16);
    assert_eq!(upload.bytes, layout.bytes());
    assert!(upload.of_limit.is_some() && upload.values.contains_key("link_bytes_per_second"));
    assert_eq!(report.device.kind, "cuda");
}

#[test]
fn a_prompt_is_as_long_as_asked_for_or_a_warning_says_how_long() {
    let start = |prompt| rigel(&["bench", "start", "--device", "cpu", "-p", prompt, "-r", "1"]).ok();
    let (run, long) = (start("300"), start("5000"));
    assert!(run.text().contains("a prompt of 300 tokens") && run.stderr.is_empty(), "{run:?}");
    assert!(long.stderr.starts_with("warning: --prompt 5000: there is room for a prompt of "), "{long:?}");
}

#[test]
fn a_repetition_s_failure_is_the_command_s() {
    let run = rigel(&["bench", "start", "--model", "/no/such/model"]);
    assert!(run.error(2).starts_with("no such model: "), "{run:?}");
    let run = rigel(&["bench", "start", "--device", "cpu", "--dtype", "f16"]);
    assert!(run.error(2).starts_with("dtype F16: the CPU uses weights as they are stored"), "{run:?}");
}
