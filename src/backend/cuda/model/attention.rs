//! Chooses the attention kernel of each sequence of a step.

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

/// Choice of attention kernels; depends only on the network, the options and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttentionPlan {
    /// Decode attention for sequences of one row, prefill attention for longer ones, in these variants.
    Fast { decode: attention_decode::Variant, prefill: attention_prefill::Variant },
    /// Batch-invariant attention for all sequences. If the tiles of short sequences would leave SMs idle, their splits
    /// get blocks of their own, which changes no bit.
    BatchInvariant {
        /// Most tiles with split blocks.
        max_split: usize,
        /// Most rows of those tiles together.
        split_room: usize,
    },
}

/// The tiles of a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StepTiles {
    /// Tiles with one block per split.
    pub split: Vec<Tile>,
    /// Most rows of one of them.
    pub split_rows: usize,
    /// Tiles with one block each.
    pub whole: Vec<Tile>,
    /// Whether decode attention takes any sequence.
    pub decodes: bool,
}

impl AttentionPlan {
    pub(super) fn new(spec: &ModelSpec, options: &CudaOptions, device: &Properties) -> AttentionPlan {
        if !is_batch_invariant(options.determinism, device) {
            let (decode, prefill) = (attention_decode::Variant::of(device), attention_prefill::Variant::of(device));
            return AttentionPlan::Fast { decode, prefill };
        }
        // Split while there are fewer blocks than SMs. Beyond that, partial results (a tenth of the bytes of keys and
        // values) cost more than they gain. All steps of a bucket decide alike.
        let sm_count = device.sm_count as usize;
        let most = largest_bucket(sm_count.saturating_sub(1) / spec.kv_heads.max(1)).min(options.max_sequences);
        AttentionPlan::BatchInvariant {
            max_split: most,
            split_room: most.max(attention_batch_invariant::tile_rows(&heads(spec))),
        }
    }

    /// The tiles of `sequences` for layers with a window. The window changes their order, not their number.
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

    /// Most split tiles and most whole tiles of a step.
    pub(super) fn max_tiles(self, spec: &ModelSpec, options: &CudaOptions) -> (usize, usize) {
        let (rows, sequences) = (options.max_rows, options.max_sequences);
        match self {
            AttentionPlan::Fast { .. } => (0, attention_prefill::max_tiles(rows, sequences, &heads(spec))),
            AttentionPlan::BatchInvariant { max_split, .. } => {
                (max_split, attention_batch_invariant::max_tiles(rows, sequences, &heads(spec)))
            }
        }
    }

    /// Workspace elements for any step and layer.
    pub(super) fn workspace_len(self, spec: &ModelSpec, options: &CudaOptions, device: &Properties) -> WorkspaceLen {
        // The driver allocates a byte for an empty buffer, which the plan would not count.
        let least = WorkspaceLen { partials: 1, tile_counters: 1 };
        let windows = spec.windows().into_iter();
        windows.map(|window| self.workspace_of(spec, window, options, device)).fold(least, WorkspaceLen::max)
    }

    /// Workspace elements for any step of layers with a window.
    fn workspace_of(
        self,
        spec: &ModelSpec,
        window: Option<NonZeroU32>,
        options: &CudaOptions,
        device: &Properties,
    ) -> WorkspaceLen {
        match self {
            // Fewer sequences have more splits each, so the largest workspace may belong to any number of them. With
            // more sequences than resident blocks (two per SM) all have equal splits: then the last one is the largest.
            AttentionPlan::Fast { decode, .. } => {
                let len = |n| decode_shape(n, n, spec, window, device).workspace_len(decode);
                let alike = 2 * device.sm_count as usize + 1;
                let numbers = (1..=options.max_sequences.min(alike)).chain([options.max_sequences]);
                numbers.map(len).fold(WorkspaceLen::default(), WorkspaceLen::max)
            }
            // Larger tiles are fewer but may see one split more.
            AttentionPlan::BatchInvariant { split_room, .. } => {
                let room = attention_batch_invariant::tile_rows(&heads(spec));
                let division = |tile_rows| Division::Split { tile_rows };
                let len = |rows| {
                    let partials =
                        batch_invariant_shape(0, split_room / rows, division(rows), spec, window).workspace_len();
                    WorkspaceLen { partials, tile_counters: 0 }
                };
                (1..=room).map(len).fold(WorkspaceLen::default(), WorkspaceLen::max)
            }
        }
    }
}

/// Returns `true` if batch-invariant attention computes all rows, by [`Determinism::BatchInvariant`] or because it was
/// chosen by name.
pub(super) fn is_batch_invariant(determinism: Determinism, device: &Properties) -> bool {
    determinism == Determinism::BatchInvariant || device.algorithms.is_batch_invariant()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Config;

    /// Groups of 12 query heads: a tile of batch-invariant attention holds 5 rows.
    fn spec() -> ModelSpec {
        let json = br#"{"model_type":"starcoder2","vocab_size":50,"sliding_window":20,"max_position_embeddings":200,
            "hidden_size":1536,"num_attention_heads":24,"num_key_value_heads":2,"eos_token_id":1,"bos_token_id":1}"#;
        ModelSpec::from_config(&Config::parse(json, "config.json").unwrap()).unwrap()
    }

    /// Sequence and first row of each tile.
    type SlotMapping = Vec<(u32, u32)>;

    /// Split tiles with their rows, and whole tiles.
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
            let mut worst = WorkspaceLen { partials: 1, tile_counters: 1 };
            for n in 1..=1000 {
                let variant = attention_decode::Variant::of(device);
                let len = decode_shape(n, n, &spec, window, device).workspace_len(variant);
                worst = worst.max(len);
                assert_eq!(plan(n), worst, "{} {window:?} {n}", card.name);
            }
        }
    }
}
