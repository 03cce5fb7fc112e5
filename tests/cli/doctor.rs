//! `rigel doctor` on every kind of machine.

use rigel::backend::cuda::{driver, images};

use crate::common::{Run, command, finish, rigel};
use crate::cuda::{NO_GPU, OLD_DRIVER, OLD_GPU, rigel_on};

/// The lines of the report, all of which a terminal of 120 columns holds.
#[track_caller]
fn report(run: Run) -> Vec<String> {
    let run = run.ok();
    assert_eq!(run.stderr, "", "nothing but the report");
    lines(&run)
}

/// The same of a machine with a GPU that cannot be used, and why.
#[track_caller]
fn failed(run: Run) -> (Vec<String>, String) {
    (lines(&run), run.error(1).to_owned())
}

/// The same of a machine with a GPU that can be used where this build has kernels.
#[track_caller]
fn with_gpu(run: Run) -> Vec<String> {
    match images().is_empty() {
        false => report(run),
        true => {
            let (lines, problem) = failed(run);
            assert!(
                problem.starts_with("gpu 0 cannot be used: this binary was built without GPU kernels"),
                "{problem}"
            );
            lines
        }
    }
}

#[track_caller]
fn lines(run: &Run) -> Vec<String> {
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
    assert!(under(&report, "cpu")[0].contains(" thread"));
    assert!(under(&report, "memory")[0].contains("iB left in this "), "{report:?}");
    assert_eq!(under(&report, "models"), ["run on the CPU"]);
}

#[test]
fn it_begins_with_the_version_and_ends_with_what_models_run_on() {
    let report = report(rigel(&["doctor"]));
    let version = rigel(&["--version"]).ok();
    assert_eq!(under(&report, "version").join(" "), version.text().trim_end().strip_prefix("rigel ").unwrap());
    assert!(report[0].starts_with("version ") && report.last().unwrap().starts_with("models "), "{report:?}");
}

#[test]
fn the_cpu_s_instruction_set_and_the_cache_s_disk_are_named() {
    let with = |variables: &[(&str, &str)]| {
        let mut command = command(&["doctor"]);
        command.envs(variables.iter().copied());
        finish(command, None)
    };
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let lines = report(with(&[("RIGEL_CPU_ISA", "portable"), ("HF_HOME", home)]));
    assert!(under(&lines, "cpu")[0].contains(", portable (RIGEL_CPU_ISA is set), "), "{lines:?}");
    let cache = under(&lines, "cache");
    assert_eq!(cache[0], format!("{home}/hub (does not exist yet)"));
    assert!(!cfg!(unix) || cache[1].ends_with("iB free on its disk"), "{cache:?}");

    let (lines, problem) = failed(with(&[("RIGEL_CPU_ISA", "sse9"), ("HF_HOME", home)]));
    assert!(problem.starts_with("RIGEL_CPU_ISA=sse9: this machine has portable"), "{problem}");
    assert!(under(&lines, "cpu")[1].starts_with("RIGEL_CPU_ISA=sse9: this machine has portable"), "{lines:?}");
}

#[test]
fn all_of_it_is_one_json_object() {
    let record = rigel(&["doctor", "--json"]).ok().json();
    for key in [
        "version",
        "commit",
        "cpu",
        "memory",
        "cache",
        "kernels",
        "driver",
        "gpus",
        "switches",
        "environment",
        "device",
        "problems",
    ] {
        assert!(record.get(key).is_some(), "no {key} in {record}");
        assert!(rigel(&["doctor", "--help"]).text().contains(&format!("\n  {key}")) || key == "commit", "{key}");
    }
    assert_eq!(record.as_object().unwrap().len(), 12);
    assert_eq!((&record["version"], &record["problems"]), (&env!("CARGO_PKG_VERSION").into(), &serde_json::json!([])));
    assert!(record["cpu"]["threads"].as_u64().unwrap() > 0);
    assert!(["portable", "avx2", "avx512"].contains(&record["cpu"]["isa"].as_str().unwrap()));

    let with_gpu = rigel_on(&[], &["doctor", "--json"]);
    let record = with_gpu.json();
    assert_eq!(record["gpus"][0]["compute_capability"], "9.0");
    assert_eq!(record["gpus"][0]["memory_bytes"], 4u64 << 30);
    assert_eq!(record["driver"]["cuda"], "13.0");
    let usable = !images().is_empty();
    assert_eq!(record["device"], if usable { "gpu 0" } else { "cpu" });
    assert_eq!((record["gpus"][0]["problem"].is_null(), with_gpu.code), (usable, i32::from(!usable)));
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
    let report = with_gpu(rigel_on(&[], &["doctor"]));
    assert!(under(&report, "driver")[0].ends_with("supports CUDA 13.0"), "{report:?}");
    let gpu = under(&report, "gpu 0");
    assert_eq!(gpu[0], "interpreter sm_90, compute capability 9.0, 4.00 GiB of memory");
    assert_eq!(gpu[1], "132 SMs with 227 KiB of shared memory for a block, 50.0 MiB of L2 cache");
    assert_eq!(gpu[2], "4.00 GiB free");
    if !images().is_empty() {
        let loaded = gpu[3..].join(" ");
        assert_eq!(loaded.matches(',').count() + loaded.matches("loads ").count(), images().len(), "{gpu:?}");
        assert!(gpu[3].starts_with("loads "), "{gpu:?}");
        assert_eq!(under(&report, "models"), ["run on gpu 0; with --device cpu on the CPU"]);
    }
}

#[test]
fn an_old_gpu_an_old_driver_and_no_gpu_are_told_apart() {
    let (old, problem) = failed(rigel_on(&[OLD_GPU], &["doctor"]));
    assert!(problem.starts_with("gpu 0 cannot be used: interpreter sm_75 has compute capability 7.5"), "{problem}");
    let gpu = under(&old, "gpu 0");
    assert!(gpu[0].contains("compute capability 7.5"), "{gpu:?}");
    assert!(gpu.iter().any(|line| line == "the kernels need 8.0 (Ampere) or newer"), "{gpu:?}");

    let (old, problem) = failed(rigel_on(&[OLD_DRIVER], &["doctor"]));
    assert!(problem.starts_with("the CUDA driver is too old"), "{problem}");
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

    let set = with_gpu(rigel_on(&[("RIGEL_CUDA_PDL", "0"), ("RIGEL_CUDA_GEMV", "sm80")], &["doctor"]));
    let set: Vec<String> = under(&set, "switches").into_iter().filter(|line| line.ends_with("(set)")).collect();
    assert_eq!(set.len(), 2, "{set:?}");
    assert!(set[0].starts_with("RIGEL_CUDA_PDL=0 ") && set[1].starts_with("RIGEL_CUDA_GEMV=sm80 "), "{set:?}");

    let (wrong, problem) = failed(rigel_on(&[("RIGEL_CUDA_PDL", "no"), ("RIGEL_CUDA_GEMM", "sm100")], &["doctor"]));
    let both = ["RIGEL_CUDA_PDL=no: expected 1 or 0", "RIGEL_CUDA_GEMM=sm100: expected auto, small_m, sm90 or sm80"];
    assert_eq!(under(&wrong, "switches"), both);
    assert_eq!(problem, format!("gpu 0 cannot be used: {}", both[0]));
}

#[test]
fn variables_of_options_are_checked_as_the_options_are() {
    let with = |json: &[&str], variables: &[(&'static str, &str)]| {
        crate::common::rigel_envs(&[&["doctor"], json].concat(), variables.iter().copied())
    };
    let lines = report(with(&[], &[("RIGEL_THREADS", "2"), ("RIGEL_MODEL", "nano"), ("RIGEL_MLOCK", "1")]));
    let options = under(&lines, "settings").into_iter().filter(|line| line.starts_with("RIGEL_"));
    assert_eq!(options.collect::<Vec<_>>(), ["RIGEL_MLOCK=1", "RIGEL_MODEL=nano", "RIGEL_THREADS=2"]);

    for (variable, value, expected) in [
        ("RIGEL_THREADS", "0", "expected a whole number of at least 1"),
        ("RIGEL_CONTEXT", "x", "expected a whole number of at least 1, such as 512 or 8k"),
        ("RIGEL_PREFILL_CHUNK", "-1", "expected a whole number of at least 1, such as 512 or 8k"),
        ("RIGEL_MEMORY", "lots", "expected a size above 0, such as 20GiB, 1.5g or 800MB"),
        ("RIGEL_DEVICE", "gpuu", "expected auto, cpu or cuda"),
        ("RIGEL_DTYPE", "f32", "expected auto, bf16 or f16"),
        ("RIGEL_SPECULATION", "yes", "expected auto, prompt-lookup or off"),
        ("RIGEL_MODEL", "/no/such/model", "no such model: \"/no/such/model\"; expected a checkpoint directory"),
    ] {
        let (lines, problem) = failed(with(&[], &[(variable, value), ("RIGEL_MLOCK", "1")]));
        assert!(problem.starts_with(&format!("{variable}={value}: {expected}")), "{problem}");
        let said = under(&lines, "settings").join("; ");
        assert!(said.contains(&format!("{variable}={value}: ")) && said.contains("RIGEL_MLOCK=1"), "{said}");
    }
    let record = with(&["--json"], &[("RIGEL_DEVICE", "gpuu"), ("RIGEL_THREADS", "0"), ("RIGEL_MEMORY", "")]);
    let record = record.json();
    assert_eq!(record["problems"].as_array().unwrap().len(), 2, "all of them: {record}");
    let variables = record["environment"].as_array().unwrap().iter().map(|set| set["variable"].as_str().unwrap());
    let options: Vec<&str> = variables.filter(|variable| variable.starts_with("RIGEL_")).collect();
    assert_eq!(options, ["RIGEL_DEVICE", "RIGEL_THREADS"], "an empty one is unset");
}

#[cfg(feature = "hub")]
#[test]
fn variables_of_the_hub_are_checked_and_their_values_kept() {
    // Whatever this machine sets.
    let unset = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN_PATH"].map(|name| (name, ""));
    let with = |variables: &[(&'static str, &'static str)]| {
        crate::common::rigel_envs(&["doctor"], unset.iter().chain(variables).copied())
    };
    let (lines, problem) = failed(with(&[("HF_ENDPOINT", "my:secret"), ("HF_TOKEN", "hf_secret")]));
    assert!(problem.starts_with("HF_ENDPOINT is no address of a hub; expected "), "{problem}");
    let said = under(&lines, "settings").join("\n");
    assert!(said.starts_with("HF_ENDPOINT is no address of a hub\n") && said.ends_with("HF_TOKEN is set"), "{said}");
    assert!(!lines.iter().any(|line| line.contains("secret")), "{lines:?}");
    report(with(&[("HF_ENDPOINT", "https://mirror.example"), ("HF_HUB_OFFLINE", "1")]));
}
