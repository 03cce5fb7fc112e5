//! `rigel profile`: one prefill and one decode step, launch by launch.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::model_args::{DeterminismOption, DtypeOption, ModelArg};
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel profile --html profile.html
  rigel profile --model bigcode/starcoder2-3b --batch 32 --svg profile.svg
  rigel profile --dummy-weights 15b --depth 4096 --json profile.json
  rigel profile --cupti /usr/local/cuda/lib64/libcupti.so.13 --svg profile.svg
  rigel profile --ceilings kernels.json          # as bench kernels wrote them";

/// Show where a step's time on a GPU goes, kernel by kernel
///
/// Runs one prefill and one decode step on a GPU, and prints each kernel's time, bytes, FLOPs and share of its own
/// limit. Where NVIDIA's library CUPTI is found, each kernel's start and end are recorded, also in replayed CUDA
/// graphs, and so the gaps between kernels. Without CUPTI an event follows each launch: kernels are launched one by
/// one, and a gap counts to the launch after it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Profile {
    #[command(flatten)]
    model: ModelArg,
    /// Random weights in the shapes of this model, made on the GPU: 3b, 7b, 15b, a config.json or a folder with one
    #[arg(long, value_name = "CONFIG", conflicts_with = "model", help_heading = "Model")]
    dummy_weights: Option<String>,
    #[command(flatten)]
    dtype: DtypeOption,
    #[command(flatten)]
    determinism: DeterminismOption,
    /// Tokens of the prefill
    #[arg(long, value_name = "N", default_value = "512", help_heading = "Steps")]
    prefill: NonZeroUsize,
    /// Sequences of the decode step
    #[arg(long, value_name = "B", default_value = "1", help_heading = "Steps")]
    batch: NonZeroUsize,
    /// Tokens that each of them has in the cache
    #[arg(long, value_name = "D", default_value_t = 1024, help_heading = "Steps")]
    depth: usize,
    /// Path of the CUPTI library [default: searched for; events if there is none]
    #[arg(long, value_name = "PATH", conflicts_with = "events", help_heading = "Times")]
    cupti: Option<PathBuf>,
    /// Use events even where CUPTI is found
    #[arg(long, help_heading = "Times")]
    events: bool,
    /// Result of `bench kernels` on this GPU whose measured limits the shares refer to [default: measure them first]
    #[arg(long, value_name = "RESULT.json", help_heading = "Times")]
    ceilings: Option<PathBuf>,
    /// Write the timeline as an HTML page
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Write the timeline as an SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// For tests: bytes that the read of memory reads
    #[arg(long, hide = true, value_name = "BYTES")]
    ceiling_bytes: Option<u64>,
    /// For tests: size of the product
    #[arg(long, hide = true, value_name = "N")]
    ceiling_product: Option<usize>,
}

impl Profile {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        gpu::run(self, out)
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::{CliError, Output, Profile};

    pub fn run(_: Profile, _: &mut Output) -> Result<(), CliError> {
        Err(rigel::backend::BackendError::NoCudaFeature.into())
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::path::Path;

    use rigel::backend::cuda::CuptiError;
    use rigel::backend::cuda::cupti::Cupti;
    use rigel::backend::cuda::kernels::Element;
    use rigel::backend::cuda::model::{CudaBackend, WeightSource};
    use rigel::backend::cuda::trace::{EventTimes, LaunchTimes};
    use rigel::backend::cuda::{CudaError, Device, driver, images};
    use rigel::backend::{BackendError, WeightDtype};
    use rigel::bench::kernels::{CeilingSizes, KernelBench, Options};
    use rigel::bench::profile::{Plan, ProfileError, Timeline, html, profile, svg};
    use rigel::bench::report::Ceilings;
    use rigel::bench::shapes::Shapes;
    use rigel::bench::table::digits;
    use rigel::bench::{Ceiling, DeviceRecord, Limit, Report};
    use rigel::checkpoint::{Checkpoint, Dtype};
    use rigel::engine::EngineError;
    use rigel::model::ModelSpec;

    use super::super::load_bar::LoadBar;
    use super::{CliError, Output, Profile};

    pub fn run(arguments: Profile, out: &mut Output) -> Result<(), CliError> {
        let network = arguments.network()?;
        let plan = arguments.plan();
        // What does not fit the model is said before a GPU is looked for.
        plan.options(&network.spec).map_err(failed)?;
        let earlier = arguments.ceilings.as_deref().map(Report::read).transpose()?;

        if images().is_empty() {
            return Err(BackendError::NoGpu(CudaError::BuiltWithoutKernels).into());
        }
        // Without a driver CUPTI fails with a number that says little.
        driver::device_count().map_err(BackendError::NoGpu)?;
        // Ahead of the device: so it sees all of its launches.
        let mut times = arguments.times()?;
        let device = Device::open(0).map_err(BackendError::NoGpu)?;
        let mut report = Report::begin(DeviceRecord::of_gpu(&device));
        match earlier {
            Some(earlier) => report.ceilings = earlier.ceilings,
            None => arguments.measure_ceilings(&device, &mut report).map_err(BackendError::NoGpu)?,
        }
        let ceilings = report.ceilings();
        let timelines = match network.dtype {
            Dtype::F16 => timelines::<half::f16>(&device, &network, &plan, times.as_mut(), &ceilings),
            Dtype::Bf16 | Dtype::F32 => timelines::<half::bf16>(&device, &network, &plan, times.as_mut(), &ceilings),
        };
        let timelines = timelines.map_err(failed)?;

        report.rows = timelines.iter().flat_map(Timeline::rows).collect();
        report.rows.iter_mut().for_each(|row| row.model = Some(network.name.clone()));
        let (Report { commit, date, command, .. }, Network { name, .. }) = (&report, &network);
        let caption = format!("{name} on {}, {date}, commit {commit}: {command}", report.device.name);
        out.line(&caption)?;
        for Ceiling { limit, by, per_second, how } in &report.ceilings {
            let unit = if *limit == Limit::Bytes { "TB/s" } else { "TFLOP/s" };
            out.line(&format!("ceiling: {} {unit} by {by}, {how}", digits(per_second / 1e12)))?;
        }
        report.invalid.iter().try_for_each(|why| out.line(&format!("invalid: {why}")))?;
        if !times.sees_gaps() {
            out.line("times: events, which see no gaps between kernels; give CUPTI's library with --cupti")?;
        }
        for timeline in &timelines {
            out.line(&format!("\n{}: {}", timeline.step, timeline.summary()))?;
            out.text(&timeline.table().to_string())?;
        }
        if let Some(path) = &arguments.svg {
            write(path, &svg(&timelines, &caption))?;
        }
        if let Some(path) = &arguments.html {
            write(path, &html(&timelines, &caption))?;
        }
        if let Some(path) = &arguments.json {
            report.write(path)?;
        }
        Ok(())
    }

    /// What is profiled.
    struct Network {
        name: String,
        spec: ModelSpec,
        dtype: Dtype,
        /// None: random weights.
        checkpoint: Option<Checkpoint>,
    }

    impl Profile {
        fn network(&self) -> Result<Network, CliError> {
            if let Some(config) = &self.dummy_weights {
                let Shapes { name, spec, .. } = Shapes::resolve(config)?;
                let dtype = match WeightDtype::from(self.dtype.dtype) {
                    WeightDtype::F16 => Dtype::F16,
                    WeightDtype::Auto | WeightDtype::Bf16 => Dtype::Bf16,
                };
                return Ok(Network { name, spec, dtype, checkpoint: None });
            }
            let checkpoint = Checkpoint::open(&self.model.source_or_dummy()?)?;
            let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
            spec.untie_stored_head(&checkpoint);
            let dtype = WeightDtype::from(self.dtype.dtype).resolve_and_log(&checkpoint, &spec);
            Ok(Network { name: self.model.name(), spec, dtype, checkpoint: Some(checkpoint) })
        }

        /// What the device can do, into `report`.
        fn measure_ceilings(&self, device: &Device, report: &mut Report) -> Result<(), CudaError> {
            let usual = CeilingSizes::default();
            let ceilings = CeilingSizes {
                read_bytes: self.ceiling_bytes.unwrap_or(usual.read_bytes),
                product: self.ceiling_product.unwrap_or(usual.product),
                budget: usual.budget,
            };
            let options = Options { ceilings, ..Options::default() };
            KernelBench::<half::bf16>::new(device, options, None)?.measure_ceilings(report)
        }

        fn plan(&self) -> Plan {
            Plan {
                prefill: self.prefill.get(),
                batch: self.batch.get(),
                depth: self.depth,
                determinism: self.determinism.determinism(),
            }
        }

        /// CUPTI where it was asked for or is found, else events.
        fn times(&self) -> Result<Box<dyn LaunchTimes>, CliError> {
            if self.events {
                return Ok(Box::new(EventTimes));
            }
            match Cupti::open(self.cupti.as_deref()) {
                Ok(cupti) => Ok(Box::new(cupti)),
                Err(CuptiError::NotFound { .. }) if self.cupti.is_none() => Ok(Box::new(EventTimes)),
                Err(error) if self.cupti.is_none() => {
                    tracing::warn!("{error}; taking events");
                    Ok(Box::new(EventTimes))
                }
                Err(error) => Err(CliError::Usage(format!("--cupti {error}"))),
            }
        }
    }

    fn timelines<T: Element>(
        device: &Device,
        network: &Network,
        plan: &Plan,
        times: &mut dyn LaunchTimes,
        ceilings: &Ceilings,
    ) -> Result<[Timeline; 2], ProfileError> {
        let options = plan.options(&network.spec)?;
        let source = network.checkpoint.as_ref().map_or(WeightSource::Random { seed: 0 }, WeightSource::Checkpoint);
        let bar = &mut LoadBar::unless(false).drawer();
        let mut backend = CudaBackend::<T>::new(device, source, network.spec.clone(), &options, bar)?;
        profile(&mut backend, plan, times, ceilings)
    }

    fn failed(error: ProfileError) -> CliError {
        match error {
            ProfileError::Size { .. } => CliError::Usage(error.to_string()),
            ProfileError::Backend(error) => EngineError::Backend(error).into(),
            ProfileError::Cuda(error) => EngineError::Backend(BackendError::Device(Box::new(error))).into(),
            error => CliError::Failed(error.to_string()),
        }
    }

    fn write(path: &Path, text: &str) -> Result<(), CliError> {
        std::fs::write(path, text).map_err(|source| CliError::Write { path: path.to_owned(), source })
    }
}
