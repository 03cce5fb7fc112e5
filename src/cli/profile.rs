//! `rigel profile`: one prefill and one decode step, launch by launch.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use super::model_args::{DtypeArg, ModelArg};
use super::output::Output;

const EXAMPLES: &str = "\
Examples:
  rigel profile --html profile.html
  rigel profile --model bigcode/starcoder2-3b --batch 32 --depth 4096 --svg profile.svg
  rigel profile --cupti /usr/local/cuda/extras/CUPTI/lib64/libcupti.so.13 --ceilings result.json";

/// Where the time of a step goes: each kernel's time, bytes, FLOPs and share of its own limit
///
/// Runs one prefill and one decode step on a GPU. With NVIDIA's library CUPTI, where it is found, each kernel's own
/// beginning and end are seen, also in replayed recordings, and so the gaps between them. Without it an event stands
/// behind each launch: steps are launched one by one, and a gap counts to the launch behind it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Profile {
    #[command(flatten)]
    model: ModelArg,
    /// Dtype of the weights; auto keeps f16 and makes bf16 of all else
    #[arg(long, value_enum, default_value_t, help_heading = "Model")]
    dtype: DtypeArg,
    /// The same bits for a request in any company
    #[arg(long, help_heading = "Model")]
    batch_invariant: bool,
    /// Tokens of the prefill
    #[arg(long, value_name = "N", default_value = "512", help_heading = "Steps")]
    prefill: NonZeroUsize,
    /// Sequences of the decode step
    #[arg(long, value_name = "B", default_value = "1", help_heading = "Steps")]
    batch: NonZeroUsize,
    /// Positions that each of them has in the cache
    #[arg(long, value_name = "D", default_value_t = 1024, help_heading = "Steps")]
    depth: usize,
    /// CUPTI's library [default: where it usually lies, else events]
    #[arg(long, value_name = "PATH", conflicts_with = "events", help_heading = "Times")]
    cupti: Option<PathBuf>,
    /// Take events, also where CUPTI is found
    #[arg(long, help_heading = "Times")]
    events: bool,
    /// A result of this card whose ceilings shares are of
    #[arg(long, value_name = "RESULT.json", help_heading = "Times")]
    ceilings: Option<PathBuf>,
    /// Write the picture as a page of its own
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Write the picture
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    /// Write the result
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
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
        Err(rigel::engine::EngineError::NoCudaFeature.into())
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::path::Path;

    use rigel::backend::cuda::cupti::{Cupti, CuptiError};
    use rigel::backend::cuda::kernels::Element;
    use rigel::backend::cuda::model::CudaBackend;
    use rigel::backend::cuda::trace::{EventTimes, LaunchTimes};
    use rigel::backend::cuda::{CudaError, Device, images};
    use rigel::backend::{Arithmetic, BackendError, WeightDtype};
    use rigel::bench::profile::{Plan, ProfileError, Timeline, html, profile, svg};
    use rigel::bench::report::Ceilings;
    use rigel::bench::{DeviceRecord, Report};
    use rigel::checkpoint::{Checkpoint, Dtype};
    use rigel::engine::EngineError;
    use rigel::model::ModelSpec;

    use super::super::load_bar::LoadBar;
    use super::{CliError, Output, Profile};

    pub fn run(arguments: Profile, out: &mut Output) -> Result<(), CliError> {
        let checkpoint = Checkpoint::open(&arguments.model.source()?)?;
        let mut spec = ModelSpec::from_checkpoint(&checkpoint)?;
        spec.untie_stored_head(&checkpoint);
        let plan = arguments.plan();
        // What does not fit the model is said before a GPU is looked for.
        plan.options(&spec).map_err(failed)?;
        let earlier = arguments.ceilings.as_deref().map(Report::read).transpose()?;

        // Ahead of the device: so it sees all of its launches.
        let mut times = arguments.times()?;
        if images().is_empty() {
            return Err(EngineError::Cuda(CudaError::BuiltWithoutKernels).into());
        }
        let device = Device::open(0).map_err(EngineError::Cuda)?;
        let mut report = Report::begin(DeviceRecord::of_gpu(&device));
        report.ceilings = earlier.map(|report| report.ceilings).unwrap_or_default();
        let ceilings = report.ceilings();
        let timelines = match WeightDtype::from(arguments.dtype).resolve_and_log(&checkpoint, &spec) {
            Dtype::F16 => timelines::<half::f16>(&device, &checkpoint, spec, &plan, times.as_mut(), &ceilings),
            Dtype::Bf16 | Dtype::F32 => {
                timelines::<half::bf16>(&device, &checkpoint, spec, &plan, times.as_mut(), &ceilings)
            }
        };
        let timelines = timelines.map_err(failed)?;

        report.rows = timelines.iter().flat_map(Timeline::rows).collect();
        report.rows.iter_mut().for_each(|row| row.model = Some(arguments.model.name()));
        let (model, Report { commit, date, command, .. }) = (arguments.model.name(), &report);
        let caption = format!("{model} on {}, {date}, commit {commit}: {command}", report.device.name);
        out.line(&caption)?;
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

    impl Profile {
        fn plan(&self) -> Plan {
            Plan {
                prefill: self.prefill.get(),
                batch: self.batch.get(),
                depth: self.depth,
                arithmetic: if self.batch_invariant { Arithmetic::BatchInvariant } else { Arithmetic::Fastest },
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
        checkpoint: &Checkpoint,
        spec: ModelSpec,
        plan: &Plan,
        times: &mut dyn LaunchTimes,
        ceilings: &Ceilings,
    ) -> Result<[Timeline; 2], ProfileError> {
        let options = plan.options(&spec)?;
        let bar = &mut LoadBar::unless(false).drawer();
        let mut backend = CudaBackend::<T>::new(device, checkpoint, spec, &options, bar)?;
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
