//! Whether a model fits a GPU, before there is one: what [`open`](fn@super::open) would allocate there, by the code
//! that allocates it.

use std::num::{NonZeroU32, NonZeroUsize};

use super::BackendError;
use super::cache_layout::largest;
use super::cuda::Properties;
use super::cuda::model::{CudaOptions, DRIVER_BYTES, MAX_SEQUENCES, MemoryPlan, max_pages};
use super::open::{BackendOptions, CUDA_SEQUENCES};
use crate::model::ModelSpec;

/// What an engine takes of a GPU so that all sequences of a step can have the whole context at once.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuPlan {
    /// What is allocated, line by line, with `pages_for_all` pages.
    pub memory: MemoryPlan,
    /// Bytes kept free for the driver.
    pub driver_bytes: u64,
    /// Bytes that there are.
    pub room: u64,
    /// The most sequences of a step.
    pub sequences: usize,
    /// Positions of a sequence.
    pub positions: usize,
    /// The most rows of a step.
    pub rows: usize,
    /// Positions of a page.
    pub page_size: u32,
    /// Pages that one sequence of the whole context has at the most.
    pub pages_of_sequence: u32,
    /// Pages that one sequence needs to come to its end, a token a step; without them the engine does not start.
    pub min_pages: u32,
    /// Pages of all sequences.
    pub pages_for_all: u32,
    /// Pages that there is room for beside all else; none where not even all else fits.
    pub pages: Option<u32>,
}

impl GpuPlan {
    /// Whether all of it fits.
    pub fn fits(&self) -> bool {
        self.pages.is_some_and(|pages| pages >= self.pages_for_all)
    }

    /// Whether the engine starts, be it with a smaller cache: sequences then wait for pages.
    pub fn starts(&self) -> bool {
        self.pages.is_some_and(|pages| pages >= self.min_pages)
    }

    /// All lines and the driver's part.
    pub fn needed(&self) -> u64 {
        self.memory.needed()
    }

    /// Sequences of the whole context that are computed at once: no more than a step has, and one where the cache has just
    /// the pages that the engine starts with.
    pub fn sequences_at_once(&self) -> usize {
        (self.whole_sequences() as usize).clamp(usize::from(self.starts()), self.sequences)
    }

    /// Sequences of the whole context that the memory has room for at once.
    pub fn whole_sequences(&self) -> u32 {
        self.pages.unwrap_or(0) / self.pages_of_sequence.max(1)
    }
}

impl BackendOptions {
    /// What [`open`](fn@super::open) would allocate on a GPU like `gpu` where the model may take `room` bytes, with these
    /// options. No device is needed and nothing is read. Where it [fits](GpuPlan::fits), it is what is allocated.
    ///
    /// # Errors
    /// A network or options that the kernels are not written for.
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

    /// The longest context with which as many sequences as asked for fit; none where not even one position does.
    ///
    /// # Errors
    /// Those of [`BackendOptions::plan_gpu`].
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

    /// The most sequences that fit with the context asked for; none where not even one does. No more than the GPU's cache
    /// can have pages.
    ///
    /// # Errors
    /// Those of [`BackendOptions::plan_gpu`].
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
