//! What the steps of a test must move and compute, and the least time that the ceilings allow for it.

#[cfg(feature = "cuda")]
use crate::backend::cuda;
use crate::bench::report::Ceilings;
use crate::kv::first_visible;
use crate::model::{Layer, ModelSpec};

/// One sequence's rows in a step, and the positions before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Rows of the step.
    pub rows: u32,
    /// Positions before the first of them.
    pub start: u32,
}

/// A step of a test: how many sequences of which rows, and how many of the rows have logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The rows of each sequence.
    pub rows: Rows,
    /// Sequences.
    pub batch: u32,
    /// Rows with logits, for each of which a token may be drawn.
    pub logits_rows: u32,
}

/// Bytes, FLOPs and times of a test.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes that must be moved.
    pub bytes: u64,
    /// FLOPs that must be done.
    pub flops: u64,
    /// The sum over all launches of the longer of their two times; none without ceilings.
    pub min_us: Option<f64>,
    /// All bytes at the ceiling of bytes; 0 without.
    pub by_bytes_us: f64,
    /// All FLOPs at the ceiling of FLOPs; 0 without.
    pub by_flops_us: f64,
}

/// How the cost of a step is counted.
pub enum Costs {
    /// On the CPU: weights as they are stored, in so many bytes a parameter, once a step; keys and values in f32.
    Cpu {
        /// The network.
        spec: ModelSpec,
        /// Bytes of a stored parameter.
        element: usize,
    },
    /// On a GPU: launch by launch, as the launchers declare it.
    #[cfg(feature = "cuda")]
    Cuda {
        /// The network.
        spec: ModelSpec,
        /// As the backend was set up.
        options: cuda::model::CudaOptions,
        /// The GPU.
        device: cuda::Properties,
    },
}

impl Costs {
    /// Of the steps of a test.
    pub(super) fn of(&self, steps: &[Step], ceilings: &Ceilings) -> Cost {
        let mut cost = Cost::default();
        let mut least = Some(0.0);
        for step in steps {
            for (bytes, flops) in self.launches(step) {
                cost.bytes += bytes;
                cost.flops += flops;
                let time = if bytes + flops == 0 { Some(0.0) } else { ceilings.min_us(bytes, flops).map(|it| it.0) };
                least = least.zip(time).map(|(sum, time)| sum + time);
            }
        }
        cost.min_us = least.filter(|least| *least > 0.0);
        cost.by_bytes_us = ceilings.bytes.map_or(0.0, |ceiling| cost.bytes as f64 / ceiling * 1e6);
        cost.by_flops_us = ceilings.flops.map_or(0.0, |ceiling| cost.flops as f64 / ceiling * 1e6);
        cost
    }

    /// Bytes and FLOPs of each launch of a step; on the CPU of the whole step.
    fn launches(&self, step: &Step) -> Vec<(u64, u64)> {
        match self {
            Costs::Cpu { spec, element } => {
                let counts = spec.counts();
                let Step { rows: Rows { rows, start }, batch, logits_rows } = *step;
                let (first, last) = (u64::from(start), u64::from(start + rows));
                // Keys of a layer that any row of the step sees.
                let seen = |layer: &Layer| last - u64::from(first_visible(start, layer.attention.window));
                let seen: u64 = spec.layers.iter().map(seen).sum();
                let keys = 2 * 4 * (spec.kv_heads * spec.head_dim) as u64 * seen * u64::from(batch);
                let positions = first..last;
                let all: u64 = positions.map(|position| counts.flops_per_token(position)).sum();
                let rows = u64::from(rows) * u64::from(batch);
                // A head for the rows that have logits alone, instead of one for each.
                let heads = 2 * counts.embedding * (rows - u64::from(logits_rows).min(rows));
                vec![(counts.weight_bytes_per_token(*element) + keys, (all * u64::from(batch)).saturating_sub(heads))]
            }
            #[cfg(feature = "cuda")]
            Costs::Cuda { spec, options, device } => {
                use cuda::model::cost_model::{SequenceStep, StepDescription, kernel_costs};
                let Step { rows: Rows { rows, start }, batch, logits_rows } = *step;
                let sequences = vec![SequenceStep { rows, start }; batch as usize];
                let logits_rows = logits_rows as usize;
                let step = StepDescription { sequences: &sequences, logits_rows, sampled_rows: logits_rows };
                // The two element types cost the same.
                let launches = kernel_costs::<half::bf16>(spec, options, device, &step);
                launches.into_iter().map(|launch| (launch.work.bytes(), launch.work.flops)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::Shapes;

    #[test]
    fn a_decoded_token_costs_what_inspect_says() {
        let spec = Shapes::resolve("3b").unwrap().spec;
        let counts = spec.counts();
        let ceilings = Ceilings { bytes: Some(50e9), flops: Some(500e9) };
        let costs = Costs::Cpu { spec, element: 2 };
        let step = Step { rows: Rows { rows: 1, start: 99 }, batch: 1, logits_rows: 1 };
        let cost = costs.of(&[step], &ceilings);
        assert_eq!(cost.bytes, counts.weight_bytes_per_token(2) + 100 * counts.kv_bytes_per_token(4));
        assert_eq!(cost.flops, counts.flops_per_token(99));
        let seconds = cost.bytes as f64 / 50e9;
        assert!((cost.min_us.unwrap() / 1e6 / seconds - 1.0).abs() < 1e-9);

        // A prompt computes the head for its last row alone.
        let step = Step { rows: Rows { rows: 2, start: 0 }, batch: 1, logits_rows: 1 };
        let cost = costs.of(&[step], &ceilings);
        assert_eq!(cost.flops, counts.flops_per_token(0) + counts.flops_per_token(1) - 2 * counts.embedding);
        assert_eq!(costs.of(&[step], &Ceilings::default()).min_us, None);

        // Beyond the window no more keys are read.
        let at = |start| costs.of(&[Step { rows: Rows { rows: 1, start }, batch: 3, logits_rows: 3 }], &ceilings).bytes;
        assert_eq!(at(5000), at(9000));
        assert_eq!(at(5000), counts.weight_bytes_per_token(2) + 3 * 4096 * counts.kv_bytes_per_token(4));
    }
}
