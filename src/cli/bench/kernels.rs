//! `rigel bench kernels`: every kernel against the limits of the GPU.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use rigel::backend::BackendError;
use rigel::backend::cuda::kernels::Element;
use rigel::backend::cuda::{Device, GpuSpec};
use rigel::bench::kernels::{Case, CeilingSizes, Filter, KernelBench, Options, Peers};
use rigel::bench::report::{Ceilings, DeviceRecord, Limit, Report, Row};
use rigel::bench::shapes::Shapes;
use rigel::bench::table::{Table, digits, percent};

use super::super::error::CliError;
use super::super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel bench kernels                            # all, at 3B, 7B and 15B
  rigel bench kernels 'gemv up_proj' --model 15b
  rigel bench kernels gemm --peers python3 --json gemm.json
  rigel bench kernels attention_decode batch=64
  rigel bench kernels --list

Shares are of the limit that the work meets first, by the larger of our ceilings
and the peers'.";

/// Time every GPU kernel alone, at the models' shapes
///
/// Prints µs, GB/s, TFLOP/s and the share of the limit measured in the same run. Inputs are random and larger than the
/// L2 cache; short launches are timed in CUDA graphs; a row during which the GPU's clock moved by more than 5 % is
/// marked.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Kernels {
    /// Measure only rows with these words in kernel, model or sizes: gemv, up_proj, 15b, rows=16
    filter: Vec<String>,
    /// Models whose shapes are measured: 3b, 7b, 15b, a config.json or a model; repeatable [default: all three]
    #[arg(long, short, value_name = "NAME|CONFIG")]
    model: Vec<String>,
    /// Element type of weights and activations
    #[arg(long, value_enum, default_value_t)]
    dtype: HalfArg,
    /// Time PyTorch's kernels in turns with Rigel's, in this Python interpreter
    #[arg(long, value_name = "PYTHON")]
    peers: Option<String>,
    /// Write the result to this file, row by row
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Milliseconds that each kernel is measured for
    #[arg(long, value_name = "MS", default_value_t = 150)]
    budget: u64,
    /// Print the rows and measure nothing; needs no GPU
    #[arg(long)]
    list: bool,
    /// For tests: bytes that the read of memory reads
    #[arg(long, hide = true, value_name = "BYTES")]
    ceiling_bytes: Option<u64>,
    /// For tests: size of the product
    #[arg(long, hide = true, value_name = "N")]
    ceiling_product: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum HalfArg {
    #[default]
    Bf16,
    F16,
}

impl Kernels {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let shapes = match self.model.as_slice() {
            [] => Shapes::published()?,
            models => models.iter().map(|model| Shapes::resolve(model)).collect::<Result<_, _>>()?,
        };
        let filter = Filter::new(&self.filter.join(" "));
        // A filter that means nothing is said before anything is opened: kernels, models and sizes are the same on all
        // GPUs.
        let h200 = GpuSpec::h200().properties;
        let listed = filter.select(all(&shapes, &h200)).map_err(usage)?;
        if self.list {
            return listed.iter().try_for_each(|case| {
                let row = case.row(&h200);
                out.line(&format!("{}  {}  {}", case.model, row.name, row.sizes()))
            });
        }
        let device = Device::open(0).map_err(BackendError::NoGpu)?;
        let cases = filter.select(all(&shapes, device.properties())).map_err(usage)?;
        match self.dtype {
            HalfArg::Bf16 => self.measure::<half::bf16>(&device, &cases, out),
            HalfArg::F16 => self.measure::<half::f16>(&device, &cases, out),
        }
    }

    fn measure<T: Element>(&self, device: &Device, cases: &[Case], out: &mut Output) -> Result<(), CliError> {
        let failed = |error: rigel::backend::cuda::CudaError| CliError::Engine(BackendError::NoGpu(error).into());
        let mut report = Report::begin(DeviceRecord::of_gpu(device));
        let peers = match self.peers.as_deref().map(Peers::start).transpose() {
            Ok(peers) => peers,
            // The column says so; the rest is measured all the same.
            Err(error) => {
                out.line(&format!("peers: none: {error}"))?;
                None
            }
        };
        if let Some(peers) = &peers {
            out.line(&format!("peers: {}", peers.description))?;
        }
        let mut bench = KernelBench::<T>::new(device, self.options(), peers).map_err(failed)?;
        bench.measure_ceilings(&mut report).map_err(failed)?;
        print_head(&report, out)?;
        self.save(&report)?;
        let ceilings = report.ceilings();
        for group in cases.chunk_by(|a, b| a.model == b.model && a.name() == b.name()) {
            let mut table = new_table();
            for case in group {
                let rows = bench.measure(case, &ceilings).map_err(failed)?;
                rows.iter().for_each(|row| add(&mut table, row, &rows[0]));
                report.rows.extend(rows);
                self.save(&report)?;
            }
            let [first, ..] = group else { continue };
            out.text(&format!("\n{}, {}, {}\n\n{table}", first.name(), first.model, T::NAME))?;
        }
        print_ceilings(&report, &ceilings, out)
    }

    fn options(&self) -> Options {
        let usual = CeilingSizes::default();
        let budget = Duration::from_millis(self.budget);
        let ceilings = CeilingSizes {
            read_bytes: self.ceiling_bytes.unwrap_or(usual.read_bytes),
            product: self.ceiling_product.unwrap_or(usual.product),
            budget: usual.budget.min(4 * budget),
        };
        Options { budget, ceilings, ..Options::default() }
    }

    fn save(&self, report: &Report) -> Result<(), CliError> {
        Ok(self.json.as_ref().map_or(Ok(()), |path| report.write(path))?)
    }
}

fn usage(error: rigel::bench::kernels::UnknownKernel) -> CliError {
    CliError::Usage(error.to_string())
}

fn all(shapes: &[Shapes], device: &rigel::backend::cuda::Properties) -> Vec<Case> {
    shapes.iter().flat_map(|shapes| Case::all(&shapes.name, &shapes.spec, device)).collect()
}

fn new_table() -> Table {
    Table::new(&["sizes", "by", ">µs", ">±", ">GB/s", ">TFLOP/s", ">of limit", ">ours is", "how, and what to know"])
}

fn add(table: &mut Table, row: &Row, ours: &Row) {
    let Some(times) = row.times else {
        let why = row.missing.clone().unwrap_or_default();
        table.row([
            row.sizes(),
            row.by.clone(),
            "-".into(),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
            "".into(),
            why,
        ]);
        return;
    };
    let rate = |rate: Option<f64>, scale: f64| rate.map_or(String::new(), |rate| digits(rate / scale));
    let limit = row.of_limit.zip(row.limit).map_or(String::new(), |(share, limit)| {
        let of = if limit == Limit::Bytes { "B" } else { "F" };
        format!("{} {of}", percent(share))
    });
    let against = ours.times.filter(|_| row.by != ours.by).map(|ours| times.median_us / ours.median_us);
    let mut notes: Vec<String> = row.path.iter().cloned().collect();
    notes.extend(row.marks.iter().cloned());
    table.row([
        row.sizes(),
        row.by.clone(),
        digits(times.median_us),
        percent(times.spread()),
        rate(row.bytes_per_second(), 1e9),
        rate(row.flops_per_second(), 1e12),
        limit,
        against.map_or(String::new(), |ratio| format!("{} x", digits(ratio))),
        notes.join("; "),
    ]);
}

fn print_head(report: &Report, out: &mut Output) -> Result<(), CliError> {
    let DeviceRecord { name, units, driver, .. } = &report.device;
    let driver = driver.as_deref().unwrap_or("unknown");
    out.line(&format!("{name}, {units} SMs, driver for CUDA {driver}; commit {}", report.commit))
}

/// Last, where a reader of a long output looks.
fn print_ceilings(report: &Report, ceilings: &Ceilings, out: &mut Output) -> Result<(), CliError> {
    out.line("")?;
    for ceiling in &report.ceilings {
        let (scale, unit, used) = match ceiling.limit {
            Limit::Bytes => (1e9, "GB/s", ceilings.bytes),
            Limit::Flops => (1e12, "TFLOP/s", ceilings.flops),
        };
        let mark = if used == Some(ceiling.per_second) { "; the limit that shares are of" } else { "" };
        let rate = digits(ceiling.per_second / scale);
        out.line(&format!("ceiling: {rate} {unit} by {}, {}{mark}", ceiling.by, ceiling.how))?;
    }
    out.line("of limit: B is of bytes, F of FLOPs; ±: half the range of the middle four fifths of the samples")?;
    report.invalid.iter().try_for_each(|why| out.line(&format!("INVALID: {why}; do not quote these figures")))
}
