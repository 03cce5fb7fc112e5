//! `rigel bench model`: tokens a second in llama-bench's words.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rigel::backend::Backend;
use rigel::bench::model::{Costs, ModelBench, Test};
use rigel::bench::report::{Limit, Report, Row};
use rigel::bench::shapes::Shapes;
use rigel::bench::table::{Table, digits, percent};
use rigel::bench::{cpu_limits, report::DeviceRecord};
use rigel::checkpoint::Checkpoint;
use rigel::engine::EngineError;
use rigel::model::ModelSpec;

use super::super::error::CliError;
use super::super::load_bar::LoadBar;
use super::super::model_args::{Load, ModelArgs};
use super::super::output::Output;
use super::model_name;

const EXAMPLES: &str = "\
Examples:
  rigel bench model                              # nano: pp512, tg128
  rigel bench model --dummy-weights 15b -p 512,4096 -b 1,8,64,256 -d 0,4096
  rigel bench model --model ./starcoder2-3b -r 10 -o json --json 3b.json
  rigel bench model --dummy-weights ./config.json --memory 40GiB

pp512 is a prompt of 512 tokens, tg128 the generation of 128, one a step;
tg128 @ d4096 behind 4096 others. Several values of an option are separated by
commas; -p 0 and -n 0 leave tests out. With --dummy-weights the weights are
random numbers in the shapes of a config.json: no checkpoint is needed, and the
times are the same.";

/// Measure a model's tokens per second, as llama-bench does
///
/// Prompts and generation by batch size and depth, each with its share of the machine's limit.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Model {
    #[command(flatten)]
    model: ModelArgs,
    /// Random weights in the shapes of 3b, 7b, 15b, a config.json or a model
    #[arg(long, value_name = "NAME|CONFIG", conflicts_with = "model", help_heading = "Model")]
    dummy_weights: Option<String>,
    /// Tokens of a prompt
    #[arg(short = 'p', long = "n-prompt", value_name = "N,..", value_delimiter = ',', default_value = "512")]
    prompts: Vec<u32>,
    /// Tokens to generate
    #[arg(short = 'n', long = "n-gen", value_name = "N,..", value_delimiter = ',', default_value = "128")]
    generations: Vec<u32>,
    /// Tokens in the cache before each test
    #[arg(short = 'd', long = "n-depth", value_name = "N,..", value_delimiter = ',', default_value = "0")]
    depths: Vec<u32>,
    /// Sequences generated together; prompts are computed one at a time
    #[arg(short = 'b', long = "batch", value_name = "N,..", value_delimiter = ',', default_value = "1")]
    batches: Vec<u32>,
    /// Repetitions of each test
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    repetitions: u32,
    /// Output format
    #[arg(short = 'o', long, value_enum, default_value_t, help_heading = "Output")]
    output: Format,
    /// Write the result as JSON to this file too, row by row
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// Show no progress bar
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Format {
    /// A Markdown table
    #[default]
    Md,
    /// The whole result, one JSON object
    Json,
    /// A line for each test
    Csv,
}

impl Model {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        for (option, zero) in [("repetitions", self.repetitions == 0), ("batch", self.batches.contains(&0))] {
            if zero {
                return Err(CliError::Usage(format!("--{option} is 0; expected at least 1")));
            }
        }
        let tests = Test::all(&self.prompts, &self.generations, &self.depths, &self.batches);
        if tests.is_empty() {
            let what = "nothing to measure: -p and -n are 0; give a number of tokens, such as -p 512";
            return Err(CliError::Usage(what.to_owned()));
        }
        let (name, source) = match &self.dummy_weights {
            Some(text) => {
                let Shapes { name, config, .. } = Shapes::resolve(text)?;
                (name, Source::Dummy(Box::new(config)))
            }
            None => (model_name(&self.model.model.name()), Source::Checkpoint),
        };
        let wanted = tests.iter().map(|test| test.batch).max().unwrap_or(1);
        let sequences = NonZeroUsize::new(wanted as usize).unwrap_or(NonZeroUsize::MIN);
        let device = Device::find(&self.model)?;
        // What the device came to is known: it is asked, and warned of, once.
        let builder = self.model.builder(Load::Many(Some(sequences)));
        let builder = match &device {
            Device::Cpu { .. } => builder.device(rigel::backend::Device::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => builder,
        };
        // Measured before the model takes the memory.
        let mut report = begin(&device)?;
        let (builder, element) = match source {
            Source::Dummy(config) => (builder.dummy_weights(*config, 0), 2),
            Source::Checkpoint => {
                let source = self.model.model.source_or_dummy()?;
                let element = stored_bytes(&Checkpoint::open(&source)?)?;
                (builder.source(source), element)
            }
        };
        let backend = builder.on_load(LoadBar::unless(self.quiet).drawer()).build_backend()?;
        let costs = costs(backend.as_ref(), &device, element, self.model.determinism());
        let spec = backend.spec().clone();
        let ceilings = report.ceilings();
        let mut bench = ModelBench::new(backend, costs, name, ceilings);
        for test in tests {
            let row = bench.measure(test, self.repetitions).map_err(EngineError::Backend)?;
            report.rows.push(row);
            if let Some(path) = &self.json {
                report.write(path)?;
            }
        }
        match self.output {
            Format::Md => out.text(&markdown(&report, &spec)),
            Format::Json => out.json(&report),
            Format::Csv => out.text(&csv(&report)),
        }
    }
}

enum Source {
    Checkpoint,
    Dummy(Box<rigel::checkpoint::Config>),
}

/// Where the model runs, opened to be measured first.
enum Device {
    Cpu {
        threads: usize,
    },
    #[cfg(feature = "cuda")]
    Cuda(rigel::backend::cuda::Device),
}

impl Device {
    /// The one that the engine takes.
    fn find(model: &ModelArgs) -> Result<Device, CliError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = model.device().gpu()? {
            return Ok(Device::Cuda(gpu));
        }
        Ok(Device::Cpu { threads: model.cpu_threads() })
    }
}

/// Bytes of a stored parameter: those of the dtype that most of the checkpoint has.
fn stored_bytes(checkpoint: &Checkpoint) -> Result<usize, CliError> {
    let largest = checkpoint.tensors().max_by_key(|tensor| tensor.bytes().len());
    Ok(largest.map_or(2, |tensor| tensor.dtype().size()))
}

/// A report with the device's ceilings.
fn begin(device: &Device) -> Result<Report, CliError> {
    match device {
        Device::Cpu { threads } => {
            let mut report = Report::begin(DeviceRecord::of_cpu(*threads));
            report.ceilings = cpu_limits::measure(*threads);
            Ok(report)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            use rigel::bench::kernels::{KernelBench, Options};
            let failed = rigel::backend::BackendError::NoGpu;
            let mut report = Report::begin(DeviceRecord::of_gpu(device));
            let mut bench = KernelBench::<half::bf16>::new(device, Options::default(), None).map_err(failed)?;
            bench.measure_ceilings(&mut report).map_err(failed)?;
            Ok(report)
        }
    }
}

#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
fn costs(backend: &dyn Backend, device: &Device, element: usize, determinism: rigel::backend::Determinism) -> Costs {
    let spec = backend.spec().clone();
    match device {
        Device::Cpu { .. } => Costs::Cpu { spec, element },
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let cache = backend.cache();
            let options = rigel::backend::cuda::model::CudaOptions {
                page_size: cache.page_size,
                // Those of the widest window.
                pages: cache.groups.iter().map(|group| group.pages).max().unwrap_or(0),
                max_rows: backend.max_rows(),
                max_sequences: backend.max_sequences(),
                determinism,
            };
            Costs::Cuda { spec, options, device: device.properties().clone() }
        }
    }
}

/// llama-bench's columns, and the shares.
fn markdown(report: &Report, spec: &ModelSpec) -> String {
    let columns = [
        "model",
        ">params",
        "backend",
        ">batch",
        ">test",
        ">t/s",
        ">± %",
        ">of limit",
        ">of bytes",
        ">of FLOPs",
        "marks",
    ];
    let mut table = Table::new(&columns);
    let parameters = count(spec.counts().parameters);
    for row in &report.rows {
        let model = row.model.clone().unwrap_or_default();
        let batch = row.shape.get("batch").map(ToString::to_string).unwrap_or_default();
        let share = |share: Option<f64>| share.map(percent).unwrap_or_default();
        let value = |name: &str| share(row.values.get(name).copied());
        let (rate, spread) = match (row.tokens_per_second(), row.times) {
            (Some(rate), Some(times)) => (digits(rate), format!("{:.1}", 100.0 * times.spread())),
            _ => ("-".to_owned(), String::new()),
        };
        let limit = match row.limit {
            Some(Limit::Bytes) => " B",
            Some(Limit::Flops) => " F",
            None => "",
        };
        table.row([
            model,
            parameters.clone(),
            report.device.kind.clone(),
            batch,
            row.name.clone(),
            rate,
            spread,
            format!("{}{limit}", share(row.of_limit)),
            value("of_bytes_limit"),
            value("of_flops_limit"),
            row.missing.clone().unwrap_or_else(|| row.marks.join("; ")),
        ]);
    }
    let mut text = table.to_string();
    if report.rows.iter().any(|row| row.limit.is_some()) {
        text.push_str(
            "\nof limit: the time that the ceilings allow, as a share of the time taken; B: bytes set it, F: FLOPs\n",
        );
    }
    let DeviceRecord { name, units, .. } = &report.device;
    text.push_str(&format!("\n{name} ({units}), commit {}\n", report.commit));
    for ceiling in &report.ceilings {
        let (scale, unit) = match (ceiling.limit, report.device.kind.as_str()) {
            (Limit::Bytes, _) => (1e9, "GB/s"),
            (Limit::Flops, "cpu") => (1e9, "GFLOP/s"),
            (Limit::Flops, _) => (1e12, "TFLOP/s"),
        };
        text.push_str(&format!("ceiling: {} {unit}, {}\n", digits(ceiling.per_second / scale), ceiling.how));
    }
    for why in &report.invalid {
        text.push_str(&format!("INVALID: {why}; do not quote these figures\n"));
    }
    text
}

/// A number of parameters with two digits at the least: `3.9 M`, `159 M`, `16.0 B`.
fn count(parameters: u64) -> String {
    let (scale, unit) = if parameters >= 999_500_000 { (1e9, "B") } else { (1e6, "M") };
    let value = parameters as f64 / scale;
    if value >= 99.95 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

fn csv(report: &Report) -> String {
    let mut text =
        "model,backend,device,commit,test,batch,tokens,us_median,us_low,us_high,tokens_per_second,of_limit,missing\n"
            .to_owned();
    let quoted = |field: &str| format!("\"{}\"", field.replace('"', "\"\""));
    for row in &report.rows {
        let Row { model, name, tokens, times, of_limit, missing, .. } = row;
        let time = |part: fn(&rigel::bench::Times) -> f64| times.as_ref().map(part).map(|us| us.to_string());
        let fields = [
            quoted(model.as_deref().unwrap_or("")),
            report.device.kind.clone(),
            quoted(&report.device.name),
            report.commit.clone(),
            name.clone(),
            row.shape.get("batch").map(ToString::to_string).unwrap_or_default(),
            tokens.to_string(),
            time(|times| times.median_us).unwrap_or_default(),
            time(|times| times.low_us).unwrap_or_default(),
            time(|times| times.high_us).unwrap_or_default(),
            row.tokens_per_second().map(|rate| rate.to_string()).unwrap_or_default(),
            of_limit.map(|share| share.to_string()).unwrap_or_default(),
            quoted(missing.as_deref().unwrap_or("")),
        ];
        text.push_str(&(fields.join(",") + "\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_rounded_not_cut() {
        for (parameters, text) in [
            (3_944_960, "3.9 M"),
            (49_999, "0.0 M"),
            (158_600_000, "159 M"),
            (999_400_000, "999 M"),
            (999_900_000, "1.0 B"),
            (3_030_371_328, "3.0 B"),
            (15_957_889_024, "16.0 B"),
        ] {
            assert_eq!(count(parameters), text);
        }
    }
}
