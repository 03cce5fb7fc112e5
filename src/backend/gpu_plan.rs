//! Whether a model fits a GPU, without the GPU: what [`open`](fn@super::open) would allocate, computed by the code that
//! allocates it.

use std::num::{NonZeroU32, NonZeroUsize};

use super::BackendError;
use super::cache_layout::largest;
use super::cuda::Properties;
use super::cuda::model::{CudaOptions, DRIVER_BYTES, MAX_SEQUENCES, MemoryPlan, max_pages};
use super::open::{BackendOptions, CUDA_SEQUENCES};
use crate::model::ModelSpec;

/// GPU memory needed for all sequences of a step at full context.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuPlan {
    /// Allocations with `pages_for_all` pages, line by line.
    pub memory: MemoryPlan,
    /// Bytes reserved for the driver.
    pub driver_bytes: u64,
    /// Bytes available.
    pub room: u64,
    /// Most sequences in a step.
    pub sequences: usize,
    /// Context length.
    pub positions: usize,
    /// Most rows in a step.
    pub rows: usize,
    /// Positions per page.
    pub page_size: u32,
    /// Most pages of one sequence at full context.
    pub pages_of_sequence: u32,
    /// Pages one sequence needs to finish, one token per step. The engine does not start with fewer.
    pub min_pages: u32,
    /// Pages of all sequences.
    pub pages_for_all: u32,
    /// Pages that fit beside everything else. `None` if everything else does not fit.
    pub pages: Option<u32>,
}

impl GpuPlan {
    /// Returns `true` if everything fits.
    pub fn fits(&self) -> bool {
        self.pages.is_some_and(|pages| pages >= self.pages_for_all)
    }

    /// Returns `true` if the engine starts, perhaps with a smaller cache in which sequences wait for pages.
    pub fn starts(&self) -> bool {
        self.pages.is_some_and(|pages| pages >= self.min_pages)
    }

    /// All allocations and the driver's reserve.
    pub fn needed(&self) -> u64 {
        self.memory.needed()
    }

    /// Sequences at full context computed at once: at most a step's, and one if the cache has just the minimum.
    pub fn sequences_at_once(&self) -> usize {
        (self.whole_sequences() as usize).clamp(usize::from(self.starts()), self.sequences)
    }

    /// Sequences at full context that the memory holds at once.
    pub fn whole_sequences(&self) -> u32 {
        self.pages.unwrap_or(0) / self.pages_of_sequence.max(1)
    }
}

impl BackendOptions {
    /// What [`open`](fn@super::open) would allocate with these options on a GPU like `gpu`, if the model may take
    /// `room` bytes. Needs no device and reads nothing. If it [fits](GpuPlan::fits), exactly this is allocated.
    ///
    /// # Errors
    /// The kernels do not support the network or the options.
    pub fn plan_gpu(&self, spec: &ModelSpec, gpu: &Properties, room: u64) -> Result<GpuPlan, BackendError> {
        let spec = self.limited(spec.clone());
        let (step, options) = self.cuda_step(&spec);
        let options = CudaOptions { pages: step.max_pages, ..options };
        Ok(GpuPlan {
            memory: MemoryPlan::of(&spec, &options, gpu)?,
            driver_bytes: DRIVER_BYTES,
            room,
            sequences: options.max_sequences,
            positions: spec.max_positions,
            rows: options.max_rows,
            page_size: options.page_size.get(),
            pages_of_sequence: step.whole_pages,
            min_pages: step.min_pages,
            pages_for_all: step.max_pages,
            pages: max_pages(gpu, &spec, &options, room)?,
        })
    }

    /// The longest context at which the requested sequences fit. `None` if not even one position does.
    ///
    /// # Errors
    /// As for [`BackendOptions::plan_gpu`].
    pub fn longest_context(
        &self,
        spec: &ModelSpec,
        gpu: &Properties,
        room: u64,
    ) -> Result<Option<NonZeroU32>, BackendError> {
        let most = u32::try_from(spec.max_positions).unwrap_or(u32::MAX);
        let sequences = self.max_sequences.unwrap_or(CUDA_SEQUENCES);
        let fits = |positions: u32| {
            let Some(context) = NonZeroU32::new(positions) else { return Ok::<_, BackendError>(true) };
            Ok(BackendOptions { context: Some(context), ..self.for_sequences(sequences) }
                .plan_gpu(spec, gpu, room)?
                .fits())
        };
        Ok(NonZeroU32::new(largest(most, fits)?))
    }

    /// Most sequences that fit at the requested context, limited by the cache's maximum number of pages. `None` if not
    /// even one does.
    ///
    /// # Errors
    /// As for [`BackendOptions::plan_gpu`].
    pub fn max_sequences(
        &self,
        spec: &ModelSpec,
        gpu: &Properties,
        room: u64,
    ) -> Result<Option<NonZeroUsize>, BackendError> {
        let one = self.for_sequences(NonZeroUsize::MIN).plan_gpu(spec, gpu, room)?;
        // One more than the pages alone allow never fits.
        let most = one.whole_sequences().min(MAX_SEQUENCES as u32);
        let fits = |sequences: u32| {
            let Some(sequences) = NonZeroUsize::new(sequences as usize) else { return Ok::<_, BackendError>(true) };
            Ok(self.for_sequences(sequences).plan_gpu(spec, gpu, room)?.fits())
        };
        Ok(NonZeroUsize::new(largest(most, fits)? as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::GpuSpec;
    use crate::checkpoint::Config;

    fn b15() -> ModelSpec {
        let json = include_bytes!("../../models/configs/starcoder2-15b.json");
        ModelSpec::from_config(&Config::parse(json, "config.json").unwrap()).unwrap()
    }

    fn asked(sequences: usize, context: u32) -> BackendOptions {
        let (max_sequences, context) = (NonZeroUsize::new(sequences), NonZeroU32::new(context));
        BackendOptions { max_sequences, context, ..BackendOptions::default() }
    }

    #[test]
    fn a_plan_s_lines_are_the_shapes_and_its_limits_are_limits() {
        let (spec, gpu) = (b15(), GpuSpec::find("h100").unwrap().properties);
        let room = 60_000_000_000;
        let plan = asked(8, 4096).plan_gpu(&spec, &gpu, room).unwrap();
        let line = |what| plan.memory.lines.iter().find(|line| line.what == what).unwrap().bytes;
        assert_eq!(line("weights"), 2 * spec.counts().parameters);
        // Whole pages of 64, which a chunk of 2048 rows may begin and end within.
        assert_eq!(line("key/value cache"), u64::from(plan.pages_for_all) * 64 * spec.counts().kv_bytes_per_token(2));
        assert_eq!(plan.pages_for_all, 8 * plan.pages_of_sequence);
        assert!(plan.fits() && plan.starts() && plan.needed() <= room, "{plan:?}");

        let most = asked(8, 4096).max_sequences(&spec, &gpu, room).unwrap().unwrap().get();
        assert!(asked(most, 4096).plan_gpu(&spec, &gpu, room).unwrap().fits());
        assert!(!asked(most + 1, 4096).plan_gpu(&spec, &gpu, room).unwrap().fits(), "{most}");
        let crowd = asked(400, 4096);
        assert!(
            !crowd.plan_gpu(&spec, &gpu, room).unwrap().fits() && crowd.plan_gpu(&spec, &gpu, room).unwrap().starts()
        );
        let longest = crowd.longest_context(&spec, &gpu, room).unwrap().unwrap().get();
        assert!(longest < 4096 && asked(400, longest).plan_gpu(&spec, &gpu, room).unwrap().fits());
        assert!(!asked(400, longest + 1).plan_gpu(&spec, &gpu, room).unwrap().fits(), "{longest}");

        let [whole, crowded] = [8, 400].map(|sequences| asked(sequences, 4096).plan_gpu(&spec, &gpu, room).unwrap());
        assert_eq!(whole.sequences_at_once(), 8, "no more than were asked for");
        assert_eq!(crowded.sequences_at_once(), crowded.whole_sequences() as usize);
        let pages = Some(crowded.min_pages);
        assert_eq!(GpuPlan { pages, ..crowded }.sequences_at_once(), 1, "its prompt in smaller chunks");

        let nothing = asked(8, 4096).plan_gpu(&spec, &gpu, 20_000_000_000).unwrap();
        assert!(!nothing.fits() && !nothing.starts() && nothing.pages.is_none());
        assert_eq!(nothing.sequences_at_once(), 0);
        assert_eq!(asked(8, 4096).max_sequences(&spec, &gpu, 20_000_000_000).unwrap(), None);
        assert_eq!(asked(8, 4096).longest_context(&spec, &gpu, 20_000_000_000).unwrap(), None);
    }
}
