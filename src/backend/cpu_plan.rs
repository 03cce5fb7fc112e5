//! What a model takes of a CPU's memory, before anything is loaded.

use std::num::NonZeroUsize;

use super::cpu::{CpuBackend, CpuOptions};
use super::open::BackendOptions;
use crate::host::{AvailableMemory, available_memory};
use crate::model::ModelSpec;

/// What one sequence of the whole context takes on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuPlan {
    /// Bytes of the weights, as they are stored: mapped, in memory that the system may take back.
    pub weight_bytes: u64,
    /// Bytes of the cache of keys and values.
    pub cache_bytes: u64,
    /// Bytes of the activations.
    pub activation_bytes: u64,
    /// Positions of the sequence.
    pub positions: usize,
    /// What this process can have, files in the page cache included; `None` where the system does not say.
    pub available: Option<AvailableMemory>,
}

impl CpuPlan {
    /// Bytes of all of it.
    pub fn needed(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes).saturating_add(self.activation_bytes)
    }

    /// Whether all of it stays in memory; `None` where the system does not say. Weights that do not are read again for
    /// every token.
    pub fn fits(&self) -> Option<bool> {
        self.available.map(|available| self.needed() <= available.bytes)
    }
}

impl BackendOptions {
    /// What [`open`](fn@super::open) would take of the CPU's memory with these options, for one sequence of the whole
    /// context over weights of `weight_bytes` bytes. Nothing is read.
    pub fn plan_cpu(&self, spec: &ModelSpec, weight_bytes: u64) -> CpuPlan {
        let spec = self.limited(spec.clone());
        let (step, options) = self.for_sequences(NonZeroUsize::MIN).cpu_step(&spec);
        let activation_bytes = CpuBackend::planned_bytes(&spec, &options);
        let options = CpuOptions { pages: step.whole_pages, ..options };
        CpuPlan {
            weight_bytes,
            cache_bytes: CpuBackend::planned_bytes(&spec, &options).saturating_sub(activation_bytes),
            activation_bytes,
            positions: spec.max_positions,
            available: available_memory(),
        }
    }
}

#[cfg(all(test, feature = "nano"))]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::checkpoint::{Checkpoint, ModelSource};
    use crate::host::MemoryLimit;

    #[test]
    fn a_plan_is_what_a_backend_of_one_sequence_takes() {
        let spec = ModelSpec::from_checkpoint(&Checkpoint::open(&ModelSource::nano()).unwrap()).unwrap();
        let options = BackendOptions { context: NonZeroU32::new(100), ..BackendOptions::default() };
        let plan = options.plan_cpu(&spec, 1000);
        // Two pages of 64 positions, f32.
        assert_eq!(plan.cache_bytes, 2 * 64 * spec.counts().kv_bytes_per_token(4));
        assert_eq!((plan.positions, plan.weight_bytes), (100, 1000));
        assert_eq!(plan.needed(), 1000 + plan.cache_bytes + plan.activation_bytes);
        let of =
            |bytes| CpuPlan { available: Some(AvailableMemory { bytes, limit: MemoryLimit::Machine }), ..plan.clone() };
        assert_eq!((of(plan.needed()).fits(), of(plan.needed() - 1).fits()), (Some(true), Some(false)));
        assert_eq!(CpuPlan { available: None, ..plan }.fits(), None);
    }
}
