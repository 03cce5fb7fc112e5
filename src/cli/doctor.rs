//! `rigel doctor`: what this binary can do on this machine, and what to do about what is missing.

mod gpu;
mod text;
mod variables;

use std::path::{Path, PathBuf};

use clap::Args;
use rigel::backend::cpu::{ISA_VARIABLE, Isa, available_cores};
use rigel::bench::report::{DeviceRecord, commit};
use rigel::checkpoint::hub::{CachedModel, cache_directory, cached_models};
use rigel::host::{available_memory, free_disk_bytes};
use serde::Serialize;

use super::error::CliError;
use super::output::Output;
use super::version;
use gpu::GpuReport;
use variables::Variable;

const HELP: &str = "\
Examples:
  rigel doctor
  rigel doctor --json > report.json

JSON object of --json; null where something is not known or not there:
  version, commit    of this binary
  cpu                model, isa (instruction set of the kernels), threads
  memory             available_bytes, and limit: what allows no more
  cache              of Hugging Face: directory, free_bytes of its disk,
                     models: [{id, bytes}, …]
  kernels            nvcc (its version), targets, names
  driver             release, cuda (the version that it supports), problem
  gpus               [{ordinal, name, compute_capability, SMs,
                     memory_bytes, free_bytes, problem}, …]
  switches           [{variable, value, set}, …]: of the GPU backend
  environment        [{variable, value, problem}, …]: what is set of the
                     variables of options and of the hub, whose values are null
  device             where models run: \"gpu 0\" or \"cpu\"
  problems           why the exit code is 1";

/// Check what this binary and this machine can do
///
/// Prints what was compiled in and what was found, and under each thing that is missing what to do about it. Exits with
/// 1 where there is a GPU that cannot be used, or a variable of the environment has a wrong value or names no model.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct Doctor {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let report = Report::gather();
        match self.json {
            true => out.json(&report)?,
            false => text::lines(&report).iter().try_for_each(|line| out.line(line))?,
        }
        match report.problems.first() {
            None => Ok(()),
            Some(problem) => Err(CliError::Failed(problem.clone())),
        }
    }
}

/// All that was looked at.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    cpu: Cpu,
    memory: Option<Memory>,
    cache: Option<Cache>,
    #[serde(flatten)]
    gpu: GpuReport,
    environment: Vec<Variable>,
    device: &'static str,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    model: String,
    /// None where the variable names none.
    isa: Option<&'static str>,
    /// Whether the variable chose it.
    #[serde(skip)]
    isa_is_set: bool,
    threads: usize,
    #[serde(skip)]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Memory {
    available_bytes: u64,
    limit: String,
}

#[derive(Debug, Serialize)]
struct Cache {
    directory: PathBuf,
    #[serde(skip)]
    exists: bool,
    free_bytes: Option<u64>,
    /// None: the directory cannot be read.
    models: Option<Vec<Model>>,
}

/// A model in the cache, all of its revisions.
#[derive(Debug, Serialize)]
struct Model {
    id: String,
    bytes: u64,
}

impl Report {
    fn gather() -> Report {
        let (cpu, gpu, environment) = (Cpu::find(), gpu::find(), variables::find());
        let of_variables = environment.iter().filter_map(|variable| variable.problem.as_ref());
        let problems = cpu.problem.iter().chain(&gpu.problems).chain(of_variables).cloned().collect();
        Report {
            version: version::VERSION,
            commit: commit(),
            cpu,
            memory: available_memory()
                .map(|available| Memory { available_bytes: available.bytes, limit: available.limit.to_string() }),
            cache: cache_directory().map(Cache::of),
            device: if gpu.usable { "gpu 0" } else { "cpu" },
            gpu,
            environment,
            problems,
        }
    }
}

impl Cpu {
    fn find() -> Cpu {
        let threads = available_cores().get();
        let isa = Isa::from_env();
        Cpu {
            model: DeviceRecord::of_cpu(threads).name,
            isa: isa.as_ref().ok().map(|isa| isa.name()),
            isa_is_set: std::env::var_os(ISA_VARIABLE).is_some_and(|value| !value.is_empty()),
            threads,
            problem: isa.err().map(|error| error.to_string()),
        }
    }
}

impl Cache {
    fn of(directory: PathBuf) -> Cache {
        // What is not there yet will be on the disk of what is.
        let free_bytes = directory.ancestors().filter(|path| *path != Path::new("")).find_map(free_disk_bytes);
        let models = cached_models().ok();
        let model = |CachedModel { id, bytes, .. }| Model { id, bytes };
        let models = models.map(|models| models.into_iter().map(model).collect());
        Cache { exists: directory.is_dir(), directory, free_bytes, models }
    }
}
