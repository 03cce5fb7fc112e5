//! CPU memory of a model, before it is loaded.

use std::num::NonZeroUsize;

use super::cpu::{CpuBackend, CpuOptions};
use super::open::BackendOptions;
use crate::host::{AvailableMemory, available_memory};
use crate::model::ModelSpec;

/// CPU memory for one sequence at full context.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuPlan {
    /// Bytes of the weights as stored: mapped, so the system may reclaim them.
    pub weight_bytes: u64,
    /// Bytes of the KV cache.
    pub cache_bytes: u64,
    /// Bytes of the activations.
    pub activation_bytes: u64,
    /// Context length.
    pub positions: usize,
    /// Bytes available to this process, page cache included. `None` if unknown.
    pub available: Option<AvailableMemory>,
}

impl CpuPlan {
    /// Total bytes.
    pub fn needed(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes).saturating_add(self.activation_bytes)
    }

    /// Whether everything stays in memory; otherwise weights are read again for every token. `None` if unknown.
    pub fn fits(&self) -> Option<bool> {
        self.available.map(|available| self.needed() <= available.bytes)
    }
}

impl BackendOptions {
    /// What [`open`](fn@super::open) would take with these options for one sequence at full context, with
    /// `weight_bytes` bytes of weights. Reads nothing.
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
