//! Which attention kernels take which sequences of a step.

use std::num::NonZeroU32;

use super::super::Properties;
use super::super::kernels::attention_batch_invariant::{self, Division};
use super::super::kernels::attention_decode;
use super::super::kernels::attention_prefill::{self, Tile};
use super::super::kernels::paged::{Sequence, WorkspaceLen};
use super::CudaOptions;
use super::shapes::{batch_invariant_shape, decode_shape, heads, largest_bucket, window_len};
use crate::backend::Determinism;
use crate::model::ModelSpec;

/// A choice that depends on the network, the options and the device alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionPlan {
    /// Decode attention for sequences of one row, prefill attention for longer ones, in these variants.
    Fast { decode: attention_decode::Variant, prefill: attention_prefill::Variant },
    /// Batch-invariant attention for all. Where the tiles of short sequences would leave SMs idle, their splits are
    /// computed apart, which changes no bit.
    BatchInvariant {
        /// The most tiles whose splits are computed apart.
        max_split: usize,
        /// The most rows that those have room for together.
        split_room: usize,
    },
}

/// The tiles of a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StepTiles {
    /// Those whose splits are computed apart.
    pub split: Vec<Tile>,
    /// The most rows of one of them.
    pub split_rows: usize,
    /// Those that a block computes.
    pub whole: Vec<Tile>,
    /// Whether decode attention takes some sequence, of one row.
    pub decodes: bool,
}

impl AttentionPlan {
    pub(super) fn new(spec: &ModelSpec, options: &CudaOptions, device: &Properties) -> AttentionPlan {
        if !is_ordered(options.determinism, device) {
            let (decode, prefill) = (attention_decode::Variant::of(device), attention_prefill::Variant::of(device));
            return AttentionPlan::Fast { decode, prefill };
        }
        // Apart while there are fewer blocks than SMs: from there on partial results, a tenth of the bytes of
        // keys and values, cost more than they gain. All steps of a bucket decide alike.
        let sm_count = device.sm_count as usize;
        let most = largest_bucket(sm_count.saturating_sub(1) / spec.kv_heads.max(1)).min(options.max_sequences);
        AttentionPlan::BatchInvariant {
            max_split: most,
            split_room: most.max(attention_batch_invariant::tile_rows(&heads(spec))),
        }
    }

    /// The tiles of `sequences` for layers with a window, which alone does not change how many there are, but their order.
    pub(super) fn tiles(self, sequences: &[Sequence], spec: &ModelSpec, window: Option<NonZeroU32>) -> StepTiles {
        let (heads, window) = (heads(spec), window_len(window));
        let (max_split, split_room) = match self {
            AttentionPlan::Fast { prefill, .. } => {
                let whole =
                    attention_prefill::plan_tiles(sequences, &heads, window, prefill, |sequence| sequence.rows > 1);
                let decodes = sequences.iter().any(|sequence| sequence.rows == 1);
                return StepTiles { whole, decodes, ..StepTiles::default() };
            }
            AttentionPlan::BatchInvariant { max_split, split_room } => (max_split, split_room),
        };
        let room = attention_batch_invariant::tile_rows(&heads);
        let is_short = |sequence: &Sequence| (1..=room).contains(&(sequence.rows as usize));
        let short = sequences.iter().filter(|sequence| is_short(sequence));
        let (count, rows) = short.fold((0, 0), |(count, rows), s| (count + 1, s.rows.max(rows)));
        let apart = count <= max_split && count * rows as usize <= split_room;
        let plan = |takes: &dyn Fn(&Sequence) -> bool| {
            attention_batch_invariant::plan_tiles(sequences, &heads, window, |sequence| {
                sequence.rows > 0 && takes(sequence)
            })
        };
        StepTiles {
            split: plan(&|sequence| apart && is_short(sequence)),
            split_rows: if apart { rows as usize } else { 0 },
            whole: plan(&|sequence| !(apart && is_short(sequence))),
            decodes: false,
        }
    }

    /// LinearOp many tiles a step may have at the most: those whose splits are computed apart, and those that are not.
    pub(super) fn max_tiles(self, spec: &ModelSpec, options: &CudaOptions) -> (usize, usize) {
        let (rows, sequences) = (options.max_rows, options.max_sequences);
        match self {
            AttentionPlan::Fast { .. } => (0, attention_prefill::max_tiles(rows, sequences, &heads(spec))),
            AttentionPlan::BatchInvariant { max_split, .. } => {
                (max_split, attention_batch_invariant::max_tiles(rows, sequences, &heads(spec)))
            }
        }
    }

    /// Elements of the workspace that serves any step and layer.
    pub(super) fn workspace_len(self, spec: &ModelSpec, options: &CudaOptions, device: &Properties) -> WorkspaceLen {
        // The driver gives a buffer of no elements a byte, which the plan would not have.
        let least = WorkspaceLen { partials: 1, arrivals: 1 };
        let windows = spec.windows().into_iter();
        windows.map(|window| self.workspace_of(spec, window, options, device)).fold(least, WorkspaceLen::max)
    }

    /// Elements of the workspace that serves any step of layers with a window.
    fn workspace_of(
        self,
        spec: &ModelSpec,
        window: Option<NonZeroU32>,
        options: &CudaOptions,
        device: &Properties,
    ) -> WorkspaceLen {
        match self {
            // Fewer sequences have more splits each: the largest workspace may be that of any number of them. With more
            // sequences than blocks run at a time, two an SM, all have the same splits: the last has the most.
            AttentionPlan::Fast { decode, .. } => {
                let len = |n| decode_shape(n, n, spec, window, device).workspace_len(decode);
                let alike = 2 * device.sm_count as usize + 1;
                let numbers = (1..=options.max_sequences.min(alike)).chain([options.max_sequences]);
                numbers.map(len).fold(WorkspaceLen::default(), WorkspaceLen::max)
            }
            // Tiles of more rows are fewer, and may see a split more.
            AttentionPlan::BatchInvariant { split_room, .. } => {
                let room = attention_batch_invariant::tile_rows(&heads(spec));
                let division = |tile_rows| Division::Split { tile_rows };
                let len = |rows| {
                    let partials =
                        batch_invariant_shape(0, split_room / rows, division(rows), spec, window).workspace_len();
                    WorkspaceLen { partials, arrivals: 0 }
                };
                (1..=room).map(len).fold(WorkspaceLen::default(), WorkspaceLen::max)
            }
        }
    }
}

/// Whether batch-invariant attention computes all rows: for [`Determinism::BatchInvariant`], or because it was chosen by name.
pub(super) fn is_ordered(determinism: Determinism, device: &Properties) -> bool {
    determinism == Determinism::BatchInvariant || device.algorithms.is_ordered()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Config;

    /// Groups of 12: a tile of batch-invariant attention holds 5 rows.
    fn spec() -> ModelSpec {
        let json = br#"{"model_type":"starcoder2","vocab_size":50,"sliding_window":20,"max_position_embeddings":200,
            "hidden_size":1536,"num_attention_heads":24,"num_key_value_heads":2,"eos_token_id":1,"bos_token_id":1}"#;
        ModelSpec::from_config(&Config::parse(json, "config.json").unwrap()).unwrap()
    }

    /// The sequence and the first row of each of some tiles.
    type SlotMapping = Vec<(u32, u32)>;

    /// Split tiles and their rows, and whole tiles.
    fn tiles(plan: AttentionPlan, rows: &[u32]) -> (SlotMapping, usize, SlotMapping) {
        let sequence = |rows: &u32| Sequence { rows: *rows, start: 7, ..Sequence::PADDING };
        let StepTiles { split, split_rows, whole, decodes } =
            plan.tiles(&rows.iter().map(sequence).collect::<Vec<_>>(), &spec(), NonZeroU32::new(20));
        assert!(!decodes);
        let sorted = |tiles: Vec<Tile>| {
            let mut pairs: SlotMapping = tiles.iter().map(|tile| (tile.sequence, tile.first_row)).collect();
            pairs.sort_unstable();
            pairs
        };
        (sorted(split), split_rows, sorted(whole))
    }

    #[test]
    fn short_sequences_are_split_while_there_is_room() {
        let plan = AttentionPlan::BatchInvariant { max_split: 4, split_room: 8 };
        assert_eq!(tiles(plan, &[1, 0, 1, 1, 1]), (vec![(0, 0), (2, 0), (3, 0), (4, 0)], 1, vec![]));
        assert_eq!(tiles(plan, &[1; 5]), (vec![], 0, (0..5).map(|s| (s, 0)).collect()), "blocks enough");
        assert_eq!(tiles(plan, &[4, 1, 6]), (vec![(0, 0), (1, 0)], 4, vec![(2, 0), (2, 5)]));
        assert_eq!(tiles(plan, &[5, 2]), (vec![], 0, vec![(0, 0), (1, 0)]), "two tiles of 5 rows have no room");
        assert_eq!(tiles(plan, &[0, 0]), (vec![], 0, vec![]));
    }

    #[test]
    fn the_workspace_is_that_of_the_worst_number_of_sequences() {
        use crate::backend::cuda::GpuSpec;
        for (card, window) in
            GpuSpec::all().into_iter().flat_map(|card| [None, NonZeroU32::new(4096)].map(|w| (card.clone(), w)))
        {
            let mut spec = ModelSpec { max_positions: 16_384, ..spec() };
            spec.set_window(window);
            let device = &card.properties;
            let plan = |max_sequences| {
                let options = CudaOptions {
                    page_size: NonZeroU32::new(64).unwrap(),
                    pages: 1,
                    max_rows: max_sequences,
                    max_sequences,
                    determinism: Determinism::Fast,
                };
                AttentionPlan::new(&spec, &options, device).workspace_len(&spec, &options, device)
            };
            let mut worst = WorkspaceLen { partials: 1, arrivals: 1 };
            for n in 1..=1000 {
                let variant = attention_decode::Variant::of(device);
                let len = decode_shape(n, n, &spec, window, device).workspace_len(variant);
                worst = worst.max(len);
                assert_eq!(plan(n), worst, "{} {window:?} {n}", card.name);
            }
        }
    }
}
